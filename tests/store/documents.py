"""Events documents for tests."""

from dataclasses import replace
from typing import Any

from vadcli.store.events import EventsDocument, ScanState
from vadcli.types import Event, Status, Thresholds

FIGHT = Event(1, 25, 50, 1.0, 2.0, 30, 1.2, 0.875, 0.75, "fight", {"fight": 0.9, "fire": 0.1}, (10, 20, 30, 40))
PLAIN = Event(2, 100, 200, 4.0, 8.0, 100, 4.0, 0.5, 0.5)

DOCUMENT = EventsDocument(
    video={
        "path": "cam1/a.mp4",
        "camera": "cam1",
        "width": 640,
        "height": 360,
        "rotation": 0,
        "fps": 25.0,
        "duration_s": 12.0,
        "frames": 300,
        "moving_camera": False,
    },
    detector="motion",
    categories=("fight", "fire"),
    thresholds=Thresholds(0.5, 0.4, 0.5, 1.0, 0.25),
    events=(FIGHT, PLAIN),
    scan=ScanState(Status.DONE, "ab" * 32, {"size": 1000, "mtime_ns": 5}),
)


def video_of(document: EventsDocument, **changes: Any) -> EventsDocument:
    return replace(document, video={**document.video, **changes})
