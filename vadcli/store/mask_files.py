"""Writes the mask files of a video together: a mask video, run lengths, or both. The files say which masks are refined."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.store.mask_video import MaskVideoWriter, mask_box, refined_tag
from vadcli.store.masks import MaskRleWriter, refined_metadata
from vadcli.types import Box, ByteArray, MaskRows, ScoreTable

NO_BOX: Box = (0, 0, 0, 0)
Spans = tuple[tuple[int, int], ...]
"""The first row of each span, and the row after its last."""


@dataclass(frozen=True)
class MaskFiles:
    """The mask files to write for a video, and the values that they store.

    Attributes:
        layout, scratch: the folders for the files and for temporary files.
        width, height: display size in pixels.
        fps: frame rate of the mask video, for players.
        rows: which rows have masks.
        threshold: pixels with at least this score are marked in run lengths.
        as_video, as_rle: the formats to write.
        refined: the spans of events whose masks `--refine-masks` has refined.
    """

    layout: OutputLayout
    scratch: Scratch
    width: int
    height: int
    fps: float
    rows: MaskRows
    threshold: float
    as_video: bool
    as_rle: bool
    refined: Spans = ()

    def write(self, masks: Iterable[tuple[int, ByteArray]], table: ScoreTable, *, level: int) -> NDArray[np.int32]:
        """Write the masks, and return the box around the pixels >= `level` of each mask.

        Args:
            masks: pairs of a row and its mask, (height, width) uint8 pixel scores, in ascending order.
            table: the rows of the video, for their times; the scores are not used.
            level: lowest pixel score inside a box.

        Returns:
            The boxes (S, 4): x, y, width, height; the width is 0 if a mask has no such pixel.

        Raises:
            OutputError: a file can't be written; the files before it are in place.
        """
        boxes: list[Box] = []
        last, box = None, NO_BOX
        told = json.dumps(self.refined) if self.refined else ""
        with ExitStack() as stack:
            # The run lengths are renamed into place before the mask video: if both exist, masks are read from the mask video.
            pixels = runs = None
            if self.as_video:
                path = stack.enter_context(self.scratch.replace(self.layout.mask_video(table.video)))
                size = self.width, self.height
                pixels = stack.enter_context(MaskVideoWriter(path, *size, fps=self.fps, rows=self.rows, refined=told))
            if self.as_rle:
                path = stack.enter_context(self.scratch.replace(self.layout.mask_rle(table.video)))
                kept = {"rows": self.rows, "threshold": self.threshold, "refined": told}
                runs = stack.enter_context(MaskRleWriter(path, table.video, self.width, self.height, **kept))  # type: ignore[arg-type]
            for row, mask in masks:
                if mask is not last:
                    last, box = mask, mask_box(mask, level) or NO_BOX
                if pixels:
                    pixels.write(mask, float(table.timestamp[row]))
                if runs:
                    runs.write(mask, row, int(table.pts[row]))
                boxes.append(box)
        return np.array(boxes, np.int32).reshape(-1, 4)


def refined_spans(layout: OutputLayout, video: str) -> Spans:
    """Return the spans of events whose stored masks are refined; empty if no masks are refined."""
    path = layout.mask_video(video)
    told = refined_tag(path) if path.exists() else refined_metadata(layout.mask_rle(video))
    try:
        return tuple((int(first), int(end)) for first, end in json.loads(told or "[]"))
    except (TypeError, ValueError):
        return ()
