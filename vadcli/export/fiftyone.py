"""Events as a FiftyOne temporal detection dataset's labels.json (fiftyone.types.FiftyOneTemporalDetectionDataset)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from vadcli.errors import UsageError
from vadcli.export.text import label
from vadcli.store.events import EventsDocument
from vadcli.types import Event


def to_fiftyone(documents: Iterable[EventsDocument]) -> str:
    """Labels of all videos, to be read with the scan's folder as `data_path`.

    Videos are named by their path without its suffix, as FiftyOne looks them up; frames count from 1, the last one included.

    Raises:
        UsageError: two videos differ in their suffix alone, which FiftyOne can't tell apart.
    """
    labels: dict[str, list[dict[str, Any]]] = {}
    named: dict[str, str] = {}
    for document in documents:
        path = str(document.video["path"])
        key = str(PurePosixPath(path).with_suffix(""))
        if key in named:
            raise UsageError(
                f"FiftyOne can't tell {named[key]} from {path}: it drops the suffix", hint="export one of them by --include"
            )
        named[key] = path
        labels[key] = [_detection(event) for event in document.events]
    classes = sorted({found["label"] for listed in labels.values() for found in listed})
    return json.dumps({"classes": classes, "labels": labels}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _detection(event: Event) -> dict[str, Any]:
    attributes = {"event": event.id, "mean_score": event.mean_score, "peak_frame": event.peak_frame + 1}
    return {
        "label": label(event),
        "support": [event.start_frame + 1, event.end_frame],
        "confidence": event.peak_score,
        "attributes": attributes,
    }
