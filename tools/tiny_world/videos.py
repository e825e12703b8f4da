"""Writes videos of the synthetic world with their ground truth, to measure vadcli as a whole.

    write_videos(Path("videos"), world, range(20), categories=["red star", "something falling"])
    vadcli scan videos --out out --categories "red star, something falling"
    vadcli eval out --root videos/ground_truth.csv

Each object appears and disappears at its own time. Categories can be looks, sizes and motions. They cannot be order and
interaction, which are only defined for clips.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from tools.tiny_world.casting import Palette, distractor, draw_role, embody, place, surround
from tools.tiny_world.painting import paint
from tools.tiny_world.scene import Role, Scene, Thing
from tools.tiny_world.silhouettes import silhouettes
from tools.tiny_world.truth import Answer, fits
from tools.tiny_world.words import MOTIONS, SIZES, Name, performs
from tools.tiny_world.world import SyntheticWorld, object_masks, parsed
from vadcli.draw import Mp4Writer
from vadcli.errors import UsageError
from vadcli.ground_truth.annotation import runs
from vadcli.ground_truth.interval_sets import HEADER
from vadcli.store.atomic import Scratch, writing
from vadcli.types import BoolArray, ByteArray, TimeArray

TRUTH_FILE = "ground_truth.csv"
_STREAM = 1_000  # makes the random numbers of videos differ from those of clips
_TRIES = 200
_STAY_S = 3.2  # average time for which a thing exists
# Seconds for which a thing with this motion exists before and after the middle of its time.
_SPANS_S = {"growing": (0.9, 0.9), "shrinking": (0.9, 0.9), "falling": (0.5, 1.5)}


@dataclass(frozen=True)
class VideoOptions:
    """The length, frame rate and objects of videos.

    Attributes:
        seconds: length of each video.
        fps: frames per second.
        normal: share of videos without objects of the categories.
        objects_per_s: average number of new objects per second.
        wanted: share of objects with a category, in videos that are not normal.
    """

    seconds: float = 12.0
    fps: int = 30
    normal: float = 0.3
    objects_per_s: float = 0.5
    wanted: float = 0.35

    def __post_init__(self) -> None:
        if not (self.seconds >= 1 and self.fps >= 1 and self.objects_per_s > 0):
            raise UsageError(f"no video can have {self.seconds} s, {self.fps} fps and {self.objects_per_s} objects per second")
        if not (0 <= self.normal <= 1 and 0 <= self.wanted <= 1):
            raise UsageError(f"normal {self.normal} and wanted {self.wanted} must be shares from 0 to 1")


def write_videos(
    folder: Path,
    world: SyntheticWorld,
    indices: Iterable[int],
    *,
    categories: Sequence[str],
    options: VideoOptions | None = None,
) -> Path:
    """Write one video per index, and their ground truth.

    Args:
        folder: folder of the videos; made if missing. Files with the same names are replaced.
        world: gives the look, the seed and the split of the videos.
        indices: numbers of the videos. A video depends only on world, index, categories and options.
        categories: names of the world for the ground truth: looks, sizes or motions.
        options: length, frame rate and objects.

    Returns:
        The path of the ground truth, a table for `vadcli.ground_truth.interval_sets`.

    Raises:
        UsageError: a category is not a name of the world, is held out, or is only for clips.
        OutputError: the folder cannot be written.
    """
    options = options or VideoOptions()
    names = [parsed(text) for text in categories]
    for text, name in zip(categories, names, strict=True):
        if name.kind not in ("appearance", "size", "motion"):
            raise UsageError(f"{text!r} can't be a category of a video", hint="use a look, a size or a motion")
        if not world.allows(text):
            raise UsageError(f"{text!r} is held out from {world.split}", hint="use the split that shows it")
    if not names:
        raise UsageError("videos need at least one category", hint="such as 'red star' or 'something falling'")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, ...]] = [HEADER]
    with Scratch(folder / ".tmp") as scratch:
        for index in indices:
            video = f"{world.split}-{world.seed}-{index:05d}.mp4"
            scene = draw_video(world, index, names, options)
            with scratch.replace(folder / video) as temporary:
                visible = _write(temporary, scene, names, world.options.size_px, options)  # (C, frames)
            events = [
                (video, f"{start / options.fps:.6f}", f"{end / options.fps:.6f}", text)
                for text, flags in zip(categories, visible, strict=True)
                for start, end in runs(flags)
            ]
            rows += events or [(video, "", "", "")]
        table = io.StringIO(newline="")
        csv.writer(table, lineterminator="\n").writerows(rows)
        scratch.write_text(folder / TRUTH_FILE, table.getvalue())
    return folder / TRUTH_FILE


def draw_video(world: SyntheticWorld, index: int, names: Sequence[Name], options: VideoOptions) -> Scene:
    """Return the random scene of a video. Some objects fit the names, but not in a normal video."""
    stated = [*("".join(map(str, names)).encode())]
    rng = np.random.default_rng([world.seed, _STREAM, *world.split.encode(), index, *stated])
    normal = rng.random() < options.normal
    count = max(2, round(options.seconds * options.objects_per_s))
    wanted = rng.random(count) < (0.0 if normal else options.wanted)
    wanted[0] = not normal
    cast: list[Thing] = []
    for is_wanted in wanted:
        name = names[int(rng.integers(len(names)))] if is_wanted else None
        role = _role_of(name, world.palette, rng) if name is not None else _other_role(names, world.palette, rng)
        middle_s = float(rng.uniform(0.08, 0.92)) * options.seconds
        before, after = _span(role.motion, rng)
        present = [thing for thing in cast if thing.from_s < middle_s < thing.until_s]
        thing = place(embody(role, texture=world.options.texture, rng=rng), present, middle_s=middle_s, rng=rng)
        cast.append(replace(thing, from_s=middle_s - before, until_s=middle_s + after))
    # Insert distractors between the objects. At any time, there are about as many as in a clip.
    things = list(cast)
    for _ in range(rng.integers(round(world.options.distractors * options.seconds / _STAY_S) + 1)):
        motion = str(rng.choice(MOTIONS))
        middle_s = float(rng.random()) * options.seconds
        before, after = _span(motion, rng)
        thing = distractor(motion, world.options, middle_s=middle_s, rng=rng)
        thing = replace(thing, from_s=middle_s - before, until_s=middle_s + after)
        things.insert(int(rng.integers(len(things) + 1)), thing)
    return surround(things, replace(world.options, distractors=0), middle_s=options.seconds / 2, rng=rng)


def video_frames(scene: Scene, size_px: int, options: VideoOptions) -> Iterator[tuple[ByteArray, BoolArray]]:
    """Yield the frames and masks of a video, at most one second at a time.

    Frames are (T, H, W, 3) uint8. Masks of the named objects are (K, T, H, W) bool, the farthest first.
    """
    count = round(options.seconds * options.fps)
    for take, start in enumerate(range(0, count, options.fps)):
        times_s: TimeArray = np.arange(start, min(start + options.fps, count)) / options.fps
        shapes = silhouettes(scene, times_s, size_px)
        yield paint(scene, shapes, times_s, size_px, take=take), object_masks(shapes, size_px)


def _write(path: Path, scene: Scene, names: Sequence[Name], size_px: int, options: VideoOptions) -> BoolArray:
    """Write one video; return (C, frames) bool, whether an object of the category is visible."""
    roles = [thing.role for thing in scene.cast if thing.role is not None]
    meant = np.array([[fits(role, name) is Answer.TRUE for role in roles] for name in names], np.bool_)  # (C, K)
    visible: list[BoolArray] = []
    time_base = Fraction(1, options.fps)
    with Mp4Writer(path, width=size_px, height=size_px, time_base=time_base, fps=options.fps) as writer:
        pts = 0
        for frames, masks in video_frames(scene, size_px, options):
            for frame in frames:
                writer.write(frame, pts)
                pts += 1
            shown = np.asarray(masks.any(axis=(2, 3)))  # (K, T)
            visible.append(np.asarray((meant[..., None] & shown[None]).any(axis=1)))
    return np.concatenate(visible, axis=1)


def _role_of(name: Name, palette: Palette, rng: np.random.Generator) -> Role:
    """Return a random role that the name means."""
    size = name.size or str(rng.choice(SIZES))
    for _ in range(_TRIES):
        drawn = draw_role(palette, rng)
        pair = (name.colour or drawn.pair[0], name.shape or drawn.pair[1])
        fitting = [motion for motion in palette.motions if not name.deed or name.deed in performs(motion)]
        motion = fitting[int(rng.integers(len(fitting)))]
        unsized = motion in ("growing", "shrinking")
        role = Role(pair, "" if unsized else size, motion)
        if pair in (*palette.pairs, *palette.rare) and fits(role, name) is Answer.TRUE:
            return role
    raise UsageError(f"the world's options allow no object with the name {str(name)!r}")


def _other_role(names: Sequence[Name], palette: Palette, rng: np.random.Generator) -> Role:
    """Return a random role that none of the names means."""
    for _ in range(_TRIES):
        role = draw_role(palette, rng)
        if all(fits(role, name) is Answer.FALSE for name in names):
            return role
    raise UsageError(f"every object would fit the categories {', '.join(map(str, names))[:80]}; use fewer")


def _span(motion: str, rng: np.random.Generator) -> tuple[float, float]:
    """Return the seconds for which a thing exists before and after the middle of its time."""
    if motion.endswith("fast"):
        return 3.2, 3.2  # long enough to cross the frame from outside to outside
    if motion in _SPANS_S:
        return _SPANS_S[motion]
    half = float(rng.uniform(1.0, 2.2))
    return half, half
