"""The log of a run: the run record with the result of each video, and the live file with the progress of a running scan.

The run record is `runs/<start>.json`; `run.json` is a copy of it. Because a record may be long, a running scan also writes a
short live file every second, in its folder for temporary files. `vadcli status` reads the live file.

`stored_run` reads the records.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from vadcli.store import OutputLayout, printable
from vadcli.store.atomic import Scratch, writing
from vadcli.store.progress import RunProgress
from vadcli.store.stored_run import FILES_BEGIN, RUN_FORMAT_VERSION, RunInfo, result_of
from vadcli.types import Status, VideoResult

LAST_VIDEOS = 5
"""The live file names this many videos: those with events that finished last."""
_WRITE_EVERY_S = 1.0
_SHARE_OF_TIME = 0.02
"""At most this share of a run's time is spent on rewriting its record. So a long record is rewritten less often."""
MOST_SKIPPED = 10_000
"""If a run skips more videos than this because they are done, its record counts them and does not list them."""
_LIVE_NAME = "live.json"
_LIVE_PARTS = ("totals", "progress", "last_videos")


class _Totals:
    """Totals of the results. They are updated with each result."""

    def __init__(self) -> None:
        self._statuses = dict.fromkeys(map(str, Status), 0)
        self._sums = {"expected_frames": 0, "decoded_frames": 0, "events": 0, "new_events": 0}
        self._lost = 0
        self._seconds = 0.0

    def count(self, result: Mapping[str, Any], sign: int, *, lost: bool) -> None:
        """Add the numbers in the JSON of a result (sign 1), or subtract them (sign -1)."""
        self._lost += sign * lost
        self._statuses[result["status"]] += sign
        for name in self._sums:
            self._sums[name] += sign * result[name]
        self._seconds += sign * result["seconds"]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values that the record stores."""
        return {
            "videos": sum(self._statuses.values()),
            **self._statuses,
            "lost": self._lost,
            **self._sums,
            "seconds": round(self._seconds, 3),
        }


class RunRecord:
    """Writes runs/<start>[-shard].json and its copy run.json, and also the live file if progress is counted.

    Use it as a context manager. If an error ends the `with` block, the record is closed with the error's exit code, or with 1
    if the error has no exit code. Each result is turned into JSON text once, when it is added, and kept in a temporary file. So
    memory hardly grows with the number of videos. The record is rewritten every few seconds, each time atomically.

    Args:
        layout: the output folder.
        scratch: the folder for temporary files.
        info: the facts that are known at the start.
        progress: counts how far the run has come; None if this is not counted.
        write_every_s: `add` rewrites the record at most once per this many seconds.
    """

    def __init__(
        self,
        layout: OutputLayout,
        scratch: Scratch,
        info: RunInfo,
        *,
        progress: RunProgress | None = None,
        write_every_s: float = _WRITE_EVERY_S,
    ) -> None:
        self.info = info
        self.progress = progress
        self.start = datetime.now(UTC)
        self._layout = layout
        self._scratch = scratch
        self._results = _Results(scratch.folder / "results")
        self._totals = _Totals()
        self._write_every_s = write_every_s
        self._due = self._live_due = 0.0
        self._last_videos: deque[str] = deque(maxlen=LAST_VIDEOS)
        self._closed = False
        self.path = self._free_path()
        self._write(end=None, exit_code=None)

    def add(self, result: VideoResult) -> None:
        """Record the result of a video, which replaces an earlier result. Rewrites the record if that is due.

        Raises:
            OutputError: the record can't be written.
        """
        before = self._results.put(result)
        if before is not None:
            self._totals.count(before.to_json(), -1, lost=before.is_lost)
        self._totals.count(result.to_json(), 1, lost=result.is_lost)
        if result.events:
            self._last_videos.append(result.video)
        if self.progress is not None:
            self.progress.finish(result.video, result.node)
        self.flush()

    def flush(self, *, force: bool = False) -> None:
        """Rewrite the record and the live file if they are due, or both if `force` is true."""
        now = time.monotonic()
        if force or now >= self._live_due:
            self.say()
        if force or now >= self._due:
            self._write(end=None, exit_code=None)

    def say(self) -> None:
        """Write the current state of the run to the live file. Does nothing if progress is not counted.

        Raises:
            OutputError: the live file can't be written.
        """
        if self.progress is None:
            return
        live = {
            "run": self.path.name,
            "totals": self._totals.to_json(),
            "progress": self.progress.to_json(),
            "last_videos": list(self._last_videos),
        }
        path = self._scratch.folder / _LIVE_NAME
        temporary = path.with_suffix(".new")
        # No fsync is needed: the file has no use after this process has ended.
        with writing(path):
            temporary.write_text(printable(json.dumps(live, ensure_ascii=False, allow_nan=False)), encoding="utf-8")
            os.replace(temporary, path)
        self._live_due = time.monotonic() + self._write_every_s

    def close(self, exit_code: int) -> None:
        """Write how the run ended. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._write(end=datetime.now(UTC), exit_code=exit_code)
        finally:
            self._results.close()

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(0 if error is None else getattr(error, "exit_code", 1))

    def _free_path(self) -> Path:
        """Return an unused path. If another run started in the same microsecond, this run's start is moved to the next."""
        suffix = f"-{self.info.shard.replace('/', 'of')}" if self.info.shard else ""
        while True:
            path = self._layout.runs / f"{self.start:%Y%m%dT%H%M%S.%fZ}{suffix}.json"
            if not path.exists():
                return path
            self.start += timedelta(microseconds=1)

    def _write(self, *, end: datetime | None, exit_code: int | None) -> None:
        began = time.monotonic()
        with self._scratch.replace(self.path) as temporary, temporary.open("wb") as file:
            file.write(printable(self._head(end, exit_code)).encode() + FILES_BEGIN)
            beginning = b"\n    "
            for line in self._results.listed():
                file.write(beginning + line)
                beginning = b",\n    "
            file.write(b"\n  ]\n}\n" if self._results.listed_count else b"]\n}\n")
        if max(self._layout.iter_runs()) == self.path:
            with self._scratch.replace(self._layout.run_json) as temporary:
                shutil.copyfile(self.path, temporary)
        now = time.monotonic()
        self._due = now + max(self._write_every_s, (now - began) / _SHARE_OF_TIME)

    def _head(self, end: datetime | None, exit_code: int | None) -> str:
        """Return the JSON text of the record up to its list of files."""
        unlisted = {"unlisted": self._results.unlisted_count} if self._results.unlisted_count else {}
        head = {
            "format_version": RUN_FORMAT_VERSION,
            **{name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self.info).items()},
            "start": self.start.isoformat(),
            "end": end.isoformat() if end else None,
            "exit_code": exit_code,
            "totals": self._totals.to_json() | unlisted,
            "progress": self.progress.to_json() if self.progress else None,
        }
        return json.dumps(head, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}") + ","


class _Results:
    """The results of a run, as lines of JSON in a temporary file. A new result of a video replaces the earlier one.

    Each line begins with a mark: `-` if the video was skipped because it is done, a space if the result was replaced, else `+`.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._path, self._size = path, 0
        self._begins: dict[str, int] = {}
        self._skipped = 0

    @property
    def unlisted_count(self) -> int:
        """How many results `listed` leaves out."""
        return self._skipped if self._skipped > MOST_SKIPPED else 0

    @property
    def listed_count(self) -> int:
        """How many results `listed` yields."""
        return len(self._begins) - self.unlisted_count

    def put(self, result: VideoResult) -> VideoResult | None:
        """Add a result; return the one that it replaces."""
        before = self._take(result.video)
        text = printable(json.dumps(result.to_json(), ensure_ascii=False, allow_nan=False))
        line = f"{'-' if _is_skipped(result) else '+'}{text}\n".encode()
        with writing(self._path):
            self._file.write(line)
        self._begins[result.video] = self._size
        self._size += len(line)
        self._skipped += _is_skipped(result)
        return before

    def listed(self) -> Iterator[bytes]:
        """Yield the results as JSON, in the order in which they were added."""
        with writing(self._path):
            self._file.flush()
        hidden = b" -" if self.unlisted_count else b" "
        with self._path.open("rb") as file:
            yield from (line[1:-1] for line in file if line[:1] not in hidden)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.close()

    def _take(self, video: str) -> VideoResult | None:
        begin = self._begins.pop(video, None)
        if begin is None:
            return None
        with writing(self._path):
            self._file.flush()
            with self._path.open("r+b") as file:
                file.seek(begin)
                line = file.readline()
                file.seek(begin)
                file.write(b" ")
        before = result_of(line[1:])
        self._skipped -= _is_skipped(before)
        return before


def _is_skipped(result: VideoResult) -> bool:
    return result.status is Status.SKIPPED and result.reason == "done"


def read_live(layout: OutputLayout) -> dict[str, dict[str, Any]]:
    """Return {name of the run record: content of the live file} for each scan that is running in an output folder.

    Damaged files are skipped.
    """
    said = {}
    for path in layout.scratch.glob(f"*/{_LIVE_NAME}"):
        # A run may end after the folder was listed. Then its live file is gone.
        with suppress(OSError, ValueError, KeyError, TypeError):
            document = json.loads(path.read_bytes())
            said[str(document["run"])] = {part: document[part] for part in _LIVE_PARTS}
    return said
