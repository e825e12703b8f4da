"""A video's stored masks by row, whichever format they are stored in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vadcli.errors import DocumentError
from vadcli.outputs.event_json import EventsDocument
from vadcli.outputs.layout import OutputLayout
from vadcli.outputs.mask_rle import read_mask_rle, rle_rows
from vadcli.outputs.mask_video import masked_rows, read_masks
from vadcli.outputs.scores import read_scores
from vadcli.types import ByteArray, IndexArray, ScoreTable

IN_RUN_LENGTHS = np.uint8(191)
_RESCAN = "scan the video again with --masks and --force"


class MaskTrack:
    """Reads masks forward as rows are asked for, one in memory at a time; an earlier row starts over.

    The mask video is taken where there is one, else the run lengths, else there are no masks.

    Args:
        table: the video's scores; the k-th stored mask belongs to the k-th sampled row, or row, as the file says.
        layout: where they are stored.

    Attributes:
        problems: why masks are missing from some row on, or belong to other scores, a line each.
    """

    def __init__(self, table: ScoreTable, layout: OutputLayout) -> None:
        self._sampled = table.sampled
        self._video, self._rle = layout.mask_video(table.video), layout.mask_rle(table.video)
        self.problems: list[str] = []
        self._row = -1
        self._mask: ByteArray | None = None
        self._next: tuple[int, ByteArray] | None = None
        self._restart()

    def at(self, row: int) -> ByteArray | None:
        """The mask shown at a row: its own where it has one, else that of the last row that has one.

        Returns:
            (H, W) uint8, 0–255 = pixel score 0–1; where only run lengths are stored 0 and 191, the middle of what reaches
            0.5. The same array until the mask changes. None where there is none.
        """
        if row < self._row:
            self._restart()
        self._row = row
        while self._next is not None and self._next[0] <= row:
            if self._mask is None or not np.array_equal(self._mask, self._next[1]):
                self._mask = self._next[1]
            self._advance()
        return self._mask

    def between(self, start: int, end: int) -> Iterator[tuple[int, ByteArray]]:
        """The masks that rows in [start, end) have of their own, each with its row; forward as `at`."""
        if start <= self._row:
            self._restart()
            self._row = -1
        while self._next is not None and self._next[0] < end:
            row, _ = self._next
            mask = self.at(row)
            if row >= start and mask is not None:
                yield row, mask

    def _restart(self) -> None:
        self._mask = None
        self._stored = self._read()
        self._advance()

    def _advance(self) -> None:
        try:
            self._next = next(self._stored, None)
        except DocumentError as error:
            self._next = None
            if error.message not in self.problems:
                self.problems.append(error.message)

    def _read(self) -> Iterator[tuple[int, ByteArray]]:
        stored: Iterator[tuple[int | None, ByteArray]]
        if self._video.exists():
            path, rows = self._video, masked_rows(self._video).of(self._sampled)
            stored = ((None, mask) for mask in read_masks(path))
        elif self._rle.exists():
            path, rows = self._rle, rle_rows(self._rle).of(self._sampled)
            stored = ((row.frame_index, row.decode() * IN_RUN_LENGTHS) for row in read_mask_rle(path))
        else:
            return
        yield from _paired(path, rows, stored)


def _paired(path: Path, rows: IndexArray, stored: Iterator[tuple[int | None, ByteArray]]) -> Iterator[tuple[int, ByteArray]]:
    """The k-th stored mask with the k-th row that should have one, up to the first that doesn't fit.

    Args:
        path: the file, for the error.
        rows: (S,) those that should have a mask.
        stored: the masks, each with the row that the file says it is of, None where it says none.

    Raises:
        DocumentError: the masks are fewer or more, or one is of another row, so that they belong to other scores.
    """
    count = 0
    for told, mask in stored:
        fits = count < len(rows) and told in (None, int(rows[count]))
        count += 1
        if not fits:
            total = count + sum(1 for _ in stored)
            if total == len(rows):
                raise DocumentError(
                    f"{path}: holds a mask of row {told} where one of row {rows[count - 1]} should be", hint=_RESCAN
                )
            count = total
            break
        yield int(rows[count - 1]), mask
    if count != len(rows):
        raise DocumentError(f"{path}: holds {count} masks for {len(rows)} frames that should have one", hint=_RESCAN)


def masks_of(layout: OutputLayout, document: EventsDocument) -> MaskTrack | None:
    """The masks of a document's video; None where it has no scores or none are stored.

    Raises:
        DocumentError: the scores can't be read.
    """
    video = str(document.video["path"])
    if not layout.scores(video).is_file() or not (layout.mask_video(video).exists() or layout.mask_rle(video).exists()):
        return None
    table, _ = read_scores(layout.scores(video))
    return MaskTrack(table, layout)
