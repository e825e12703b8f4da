"""The footage that a camera is fitted on: chooses bursts, and decides whether there was enough.

A model that was fitted on less than ENOUGH_S of footage is fitted again when the camera has GROWTH times as much footage. The
model stores the length and bytes of its footage, so every shard and every process decides the same. Bytes are compared, because
the length of a video is not known before it is opened, and a run does not open videos that are done.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from vadcli.engine.plan import WorkUnit
from vadcli.types import CameraModel, Clip, Footage
from vadcli.types.text import length_text

# A model that was fitted on this much footage is fitted again only if the user asks for it. One hour is needed because a score
# means a number of events per hour.
ENOUGH_S = 3600.0
# A model that was fitted on less is fitted again when the footage has grown by this factor. So there are few fits: a camera
# whose first video has ten seconds is fitted again at most nine times before it has an hour of footage.
GROWTH = 2
# More footage than fits into memory is sampled in this many bursts.
BURSTS = 20


def is_outgrown(model: CameraModel, size: int) -> bool:
    """True if a model was fitted on little footage, and now there are GROWTH times as many bytes.

    Models of older versions do not store their footage. They are never outgrown, so that videos with their scores stay done.
    """
    known = model.footage
    return known is not None and known.seconds < ENOUGH_S and size >= GROWTH * max(1, known.bytes)


def footage_caveats(model: CameraModel | None) -> tuple[str, ...]:
    """Return a warning about a camera model that was fitted on little footage; empty if there was enough."""
    known = model.footage if model else None
    if known is None or known.seconds >= ENOUGH_S:
        return ()
    length = length_text(known.seconds)
    if known.videos == 1:
        usual = "anything that lasts for the whole video counts as usual"
        return (f"The camera was learned from a single video of {length}, so {usual}.",)
    return (f"The camera was learned on only {length} of footage, so what is usual there may still count as unusual.",)


def size_of(units: Iterable[WorkUnit], *, but: Collection[str] = ()) -> int:
    """Return the total bytes of the videos, without the videos in `but`."""
    return sum(unit.size for unit in units if unit.video not in but)


def estimated_footage(
    whole: Sequence[WorkUnit],
    asked: Sequence[WorkUnit],
    wanted: Mapping[str, Sequence[float]],
    lengths_s: Mapping[str, float],
    clips: Sequence[Clip],
) -> Footage:
    """Return an estimate of a camera's footage if only bursts of it were read.

    The declared length of a video may be wrong. So if only half of its bursts could be read, only half of its length counts.

    Args:
        whole: all videos of the camera.
        asked: the videos that have bursts.
        wanted: the positions of the bursts in these videos, by video.
        lengths_s: the declared lengths of the videos that could be opened, by video.
        clips: the bursts that could be read.
    """
    found = Counter(clip.video for clip in clips)
    seconds = sum(lengths_s.get(unit.video, 0.0) * found[unit.video] / len(wanted[unit.video]) for unit in asked)
    unread = sum(not found[unit.video] for unit in asked)
    scale = size_of(whole) / max(1, size_of(asked))
    return Footage(len(whole) - unread, round(seconds * scale, 3), size_of(whole))


def burst_positions(units: Sequence[WorkUnit], *, camera: str, seed: int, bursts: int = BURSTS) -> dict[str, tuple[float, ...]]:
    """Return the positions of a camera's bursts.

    The bytes of all videos are divided into one equal share per burst. Each burst begins at a random place in its share. The
    random places depend on the camera's name and the seed.

    Args:
        units: the camera's videos, in plan order.
        camera: the camera's name.
        seed: the seed of the scan.
        bursts: number of bursts.

    Returns:
        The positions in each video that has bursts, by video: ascending fractions [0, 1) of the video.
    """
    digest = hashlib.sha256(f"{seed}:{camera}".encode()).digest()
    shifts = np.random.default_rng(int.from_bytes(digest[:8], "big")).random(bursts)
    ends = np.cumsum([max(1, unit.size) for unit in units], dtype=np.float64)
    points = (np.arange(bursts) + shifts) / bursts * ends[-1]
    found: dict[str, list[float]] = {}
    for point, k in zip(points, np.searchsorted(ends, points, side="right"), strict=True):
        unit, end = units[min(int(k), len(units) - 1)], ends[min(int(k), len(units) - 1)]
        fraction = (point - (end - max(1, unit.size))) / max(1, unit.size)
        found.setdefault(unit.video, []).append(float(min(max(fraction, 0.0), 1 - 1e-9)))
    return {video: tuple(sorted(positions)) for video, positions in found.items()}
