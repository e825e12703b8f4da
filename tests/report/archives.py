"""Output folders for tests of the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tests.evaluate.outputs import write_scan
from tests.store.documents import DOCUMENT
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.store.events import Failure, ScanState, read_events, write_events
from vadcli.store.run_log import RunInfo, RunRecord
from vadcli.types import Status, VideoResult

QUIET = [0.1] * 40
ONE = [0.1] * 10 + [0.9] * 10 + [0.1] * 20
TWO = [0.1] * 5 + [0.7] * 5 + [0.1] * 10 + [0.95] * 15 + [0.1] * 5
GONE = "cam2/gone.mp4"
HOSTILE = (
    "</script><script>window.hacked=1</script>",
    "\"'><img src=x onerror=window.hacked=1>",
    "=HYPERLINK(1)",
    "\u202egnp.exe",
    "{{ 7*7 }} {% raw %}",
    "😀" * 63,
)


def make_archive(out: Path, *, root: Path | None = None, extra: Sequence[str] = ()) -> OutputLayout:
    """Write results of two cameras: three events, a quiet video, a failed video, and the run record.

    Args:
        extra: names of more videos. Each has one event, with the video's name as its category.
    """
    videos = {"cam1/a.mp4": ONE, "cam1/b.mp4": QUIET, "cam2/c.mp4": TWO, **dict.fromkeys(extra, ONE)}
    write_scan(out, videos, root=root)
    layout = OutputLayout(out)
    for video in videos:
        document = read_events(layout.events(video))
        camera = video.rsplit("/", 1)[0] if video.startswith("cam") else video
        named = tuple(replace(event, category=video) if video in extra else event for event in document.events)
        described = {**document.video, "camera": camera}
        write_events(layout.events(video), replace(document, video=described, events=named))
    lost = replace(
        DOCUMENT,
        video={**DOCUMENT.video, "path": GONE, "camera": "cam2", "frames": None, "duration_s": None},
        scan=ScanState(Status.FAILED, "ab" * 32, {}),
        failure=Failure("open", "not a readable video file"),
        events=(),
    )
    write_events(layout.events(GONE), lost)
    add_run(layout, [*videos, GONE], root=root)
    return layout


def add_run(layout: OutputLayout, videos: Sequence[str], *, root: Path | None = None, shard: str | None = None) -> None:
    """Write the record of a run that scanned these videos."""
    where = str(root or "/nowhere")
    info = RunInfo("0", ("vadcli", "scan", "x"), {"categories": ""}, {"name": "fake"}, root=where, shard=shard)
    with Scratch(layout.scratch) as scratch, RunRecord(layout, scratch, info) as record:
        for video in videos:
            failed = video == GONE
            reason = "not a readable video file" if failed else ""
            status, stage = (Status.FAILED, "open") if failed else (Status.DONE, "")
            record.add(VideoResult(video, status, stage, reason, camera=video.rpartition("/")[0] or "."))
        record.close(3 if GONE in videos else 0)


def age_run(layout: OutputLayout) -> None:
    """Change the start of the newest run to the year 2001."""
    path = max(layout.iter_runs())
    document = json.loads(path.read_text())
    document["start"] = datetime(2001, 1, 1, tzinfo=UTC).isoformat()
    path.with_name("20010101T000000.000000Z.json").write_text(json.dumps(document))
    path.unlink()
