"""Helpers for tests of the loader: requests for fake videos (see fake_decoders), and their items."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.patience import PATIENCE_S
from tests.video import fake_decoders as fake
from vadcli.types import Clip, ClipNeeds, PixelFormat, SizeRule
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished, Item, LoaderOptions, Opened, Rows

NEEDS = ClipNeeds(4, 1, 5.0, SizeRule(1000), PixelFormat.GRAY)  # samples every 2nd row, because fake videos have 10 per second
OPTIONS = LoaderOptions(timeout_s=PATIENCE_S, prober=fake.PROBER, reader=fake.READER)
QUICK = replace(OPTIONS, timeout_s=0.4)
"""For tests of the timeout. They need a `Clock`, because a busy machine may stop a process for longer than this."""
REAL = LoaderOptions(timeout_s=PATIENCE_S, workers=2)


@dataclass
class Seen:
    """All items of one video."""

    opened: int = 0
    clips: list[Clip] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def end(self) -> Finished:
        assert self.finished is not None
        return self.finished

    @property
    def row_numbers(self) -> list[int]:
        return [row for rows in self.rows for row in range(rows.first, rows.first + len(rows))]

    def values(self) -> list[object]:
        """Return all results that must be the same for any number of processes."""
        clips = [
            (
                c.index,
                c.frames.shape,
                c.frames.tobytes(),
                c.frame_index.tolist(),
                c.timestamp.tolist(),
                c.valid.tolist(),
                c.interval,
            )
            for c in self.clips
        ]
        rows = [(r.first, r.pts.tolist(), r.decode_ok.tolist()) for r in self.rows]
        end = self.end
        return [clips, rows, end.video, end.decoder, end.decoded_frames, str(end.error)]


def gather(items: Iterable[Item]) -> dict[str, Seen]:
    """Collect the items of each video, and check their order."""
    seen: dict[str, Seen] = {}
    for item in items:
        one = seen.setdefault(item.video, Seen())
        assert one.finished is None, f"{item} after the end of its video"
        if isinstance(item, Opened):
            assert not one.opened
            one.opened += 1
        elif isinstance(item, ClipReady):
            assert one.opened
            one.clips.append(replace(item.clip, frames=item.clip.frames.copy()))
            one.rows.append(item.rows)
        else:
            one.rows.append(item.rows)
            one.finished = item
    assert all(one.finished for one in seen.values())
    return seen


def request(folder: Path, name: str, **story: object) -> ClipRequest:
    return ClipRequest(name, fake.write(folder / name, **story))


def load(requests: Iterable[ClipRequest], options: LoaderOptions = OPTIONS, needs: ClipNeeds = NEEDS) -> dict[str, Seen]:
    with ClipLoader(needs, options) as loader:
        return gather(loader.run(requests))
