"""`--refine-masks`: replaces the blobs of masks in events by the outlines that SAM2 finds.

The frames of events are read again after a video is scored. Only one frame and its mask are in memory at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from vadcli.detectors.refining import Refiner, Sam2Refiner, refine_mask
from vadcli.engine.second_pass import Interrupted
from vadcli.errors import NotFinished
from vadcli.options import ScanOptions, VerifyOptions
from vadcli.store.masks import Spans
from vadcli.types import BoolArray, ByteArray, ClipNeeds, IndexArray, PixelFormat, SizeRule
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished, LoaderOptions

log = logging.getLogger("vadcli")


def refiner_of(options: ScanOptions | VerifyOptions) -> Refiner | None:
    """Return the model that refines masks; None if the options do not ask for it.

    Raises:
        WeightsError: the model is not on this machine.
    """
    return Sam2Refiner(device=options.device, precision=options.precision) if options.refine_masks else None


@dataclass(frozen=True)
class Refinement:
    """Refines the masks of videos."""

    refiner: Refiner  # finds the outlines of blobs
    loader: ClipLoader  # reads single frames; nothing else may use it at the same time
    stopped: Callable[[], bool] = lambda: False  # returns True when the run must end

    @classmethod
    def of(cls, refiner: Refiner, options: LoaderOptions, stopped: Callable[[], bool]) -> Refinement:
        """Return a refinement with its own decoder process. The caller closes its loader."""
        needs = ClipNeeds(
            frames=1, overlap=0, rate_hz=1.0, interval=1, size=SizeRule(refiner.max_area_px), pixel_format=PixelFormat.RGB
        )
        return cls(refiner, ClipLoader(needs, replace(options, workers=1)), stopped)

    def refined(
        self,
        masks: Iterable[tuple[int, ByteArray]],
        rows: IndexArray,
        request: ClipRequest,
        *,
        level: int,
        hidden: BoolArray | None,
    ) -> Iterator[tuple[int, ByteArray]]:
        """Yield all masks of a video, and refine those of some rows.

        If a frame can't be read again, its mask is unchanged.

        Args:
            masks: pairs of a row and its mask, (H, W) uint8 pixel scores, in ascending order.
            rows: (R,) the rows to refine, in ascending order.
            request: the video to read. Its spans must contain these rows (see `spans_of`).
            level: lowest pixel score of a blob.
            hidden: (H, W) bool, True for hidden pixels; None if no pixel is hidden.

        Raises:
            Interrupted: the run must end.
        """
        with closing(self._pictures(set(rows.tolist()), request)) as pictures:
            ahead = next(pictures, None)
            for row, mask in masks:
                while ahead is not None and ahead[0] < row:
                    ahead = next(pictures, None)
                if ahead is None or ahead[0] != row:
                    yield row, mask
                    continue
                segment = partial(self.refiner.segment, ahead[1], width=mask.shape[1], height=mask.shape[0])
                found = refine_mask(mask, level, segment)
                yield row, found if hidden is None else np.where(hidden, np.uint8(0), found)

    def _pictures(self, rows: set[int], request: ClipRequest) -> Generator[tuple[int, ByteArray], None, None]:
        """Yield each row that can be decoded, with its frame (H, W, 3) uint8, valid until the next row."""
        if not rows:
            return
        self.refiner.prepare()
        with closing(self.loader.run([request], stopped=self.stopped)) as items:  # type: ignore[type-var]
            for item in items:
                if isinstance(item, ClipReady):
                    row = int(item.clip.frame_index[0])
                    if row in rows and item.clip.valid[0]:
                        yield row, item.clip.frames[0]
                elif isinstance(item, Finished):
                    if isinstance(item.error, NotFinished):
                        raise item.error
                    if item.error is not None:
                        log.warning("%s: some masks are not refined: %s", item.video, item.error)
                    return
        raise Interrupted  # a loader ends without a `Finished` item only if it was stopped


def rows_of(masked: IndexArray, spans: Spans, frames: int) -> IndexArray:
    """Return the rows whose masks are visible in some spans.

    A mask is visible until the next row that has a mask.

    Args:
        masked: (S,) the rows that have a mask, in ascending order.
        spans: the first row of each span, and the row after its last row.
        frames: number of frames of the video.
    """
    inside = np.zeros(frames + 1, np.int64)
    for first, end in spans:
        inside[first + 1 : end + 1] = 1
    before = np.cumsum(inside)
    ends = np.append(masked[1:], frames)[: len(masked)]
    return np.asarray(masked[before[ends] > before[masked]])


def spans_of(rows: IndexArray, spans: Spans, *, may_seek: bool) -> Spans:
    """Return the parts of a video that must be read for some rows.

    There is one part per span that has such rows. If the reader can't seek, there is one part for all rows.

    Args:
        rows: (R,) the rows that are needed, in ascending order.
        spans: the spans of events, in order, without overlap.
        may_seek: False if the reader must decode from the start of the file; then there is one part for all rows.
    """
    if not len(rows):
        return ()
    places = np.searchsorted([end for _, end in spans], rows, "right") if may_seek else np.zeros(len(rows), np.int64)
    parts = np.split(rows, np.flatnonzero(np.diff(places)) + 1)
    return tuple((int(part[0]), int(part[-1]) + 1) for part in parts)
