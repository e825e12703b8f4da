"""Events cut anew from stored scores with other thresholds: no decoding, no detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vadcli.events import EventBoxes, cut_events, inherit_categories
from vadcli.metrics import without_false
from vadcli.outputs.atomic import Scratch
from vadcli.outputs.event_json import EventsDocument, read_events, write_events
from vadcli.outputs.layout import OutputLayout
from vadcli.outputs.mask_rle import read_boxes
from vadcli.outputs.mask_video import mask_box, masked_rows, read_masks
from vadcli.outputs.scores import read_scores, shown_s
from vadcli.types import Event, ReviewedEvent, ScoreTable, Thresholds


def recut(
    layout: OutputLayout,
    scratch: Scratch | None,
    video: str,
    thresholds: Thresholds,
    *,
    review: Sequence[ReviewedEvent] = (),
) -> EventsDocument:
    """The video's events under other thresholds; written down where there is a scratch folder.

    Boxes come from stored masks where there are any; categories from the old event that overlaps most. Events that a reader
    called false are left out, and the others numbered anew.

    Raises:
        DocumentError: the stored scores or events can't be read.
        OutputError: the new document can't be written.
    """
    old = read_events(layout.events(video))
    if old.failure is not None:
        return replace(old, thresholds=thresholds)
    table, metadata = read_scores(layout.scores(video))
    events = cut_events(table, thresholds, duration_s=shown_s(table, metadata.video), boxes=stored_boxes(layout, video, table))
    events = _reviewed(inherit_categories(events, old.events), [entry for entry in review if entry.video == video])
    document = replace(old, thresholds=thresholds, events=tuple(events))
    if scratch is not None:
        with scratch.replace(layout.events(video)) as path:
            write_events(path, document)
    return document


def _reviewed(events: Sequence[Event], review: Sequence[ReviewedEvent]) -> list[Event]:
    kept = without_false([(event.start_s, event.end_s) for event in events], review)
    return [replace(events[place], id=number) for number, place in enumerate(kept, 1)]


def stored_boxes(layout: OutputLayout, video: str, table: ScoreTable) -> EventBoxes | None:
    """Boxes of the stored masks; None where none are stored."""
    if layout.mask_rle(video).exists():
        return EventBoxes(*read_boxes(layout.mask_rle(video)))
    if layout.mask_video(video).exists():
        rows = masked_rows(layout.mask_video(video)).of(table.sampled)
        boxes = [mask_box(mask) or (0, 0, 0, 0) for mask in read_masks(layout.mask_video(video))]
        if len(boxes) == len(rows):
            return EventBoxes(rows, np.array(boxes, np.int32).reshape(-1, 4))
    return None
