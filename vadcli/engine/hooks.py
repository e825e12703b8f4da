"""Finds the new events of a scan, and runs the command of --on-event once for each of them.

The command runs in a shell. At most COMMANDS_AT_ONCE commands run at a time, and a thread waits for each of them. Their output
goes to stderr, because stdout is for data. If a command fails or takes too long, this is logged, and the scan continues.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from vadcli.errors import OutputError
from vadcli.store import OutputLayout, printable
from vadcli.store.events import EventsDocument, read_unchecked
from vadcli.store.reported import ReportedEvents
from vadcli.types import Event, Status, VideoResult
from vadcli.types.text import clock, shown

log = logging.getLogger("vadcli")

COMMANDS_AT_ONCE = 4
POLL_S = 0.2


@dataclass(frozen=True)
class NewEvent:
    """An event that no earlier scan has reported."""

    document: EventsDocument  # of the event's video
    event: Event
    path: Path | None = None  # the video's file or folder; None if this is not known

    @property
    def title(self) -> str:
        """The name of the event in messages."""
        return f"{self.document.video['path']}, event at {clock(self.event.start_s)}"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that `scan --json` prints and that the command of --on-event gets."""
        return {
            "type": "event",
            "video": self.document.video["path"],
            "camera": self.document.video["camera"],
            "path": None if self.path is None else printable(shown(self.path)),
            "detector": self.document.detector,
            **self.event.to_json(),
        }


class EventHook:
    """Runs a shell command for new events.

    An event is added to the list of reported events when its command starts.

    A command that takes longer than `timeout_s` is killed, together with all processes that it has started.
    """

    def __init__(self, command: str, *, timeout_s: float, reported: ReportedEvents) -> None:
        self._command, self._timeout_s, self._reported = command, timeout_s, reported
        self._threads = ThreadPoolExecutor(COMMANDS_AT_ONCE, thread_name_prefix="on-event")
        self._waiting: set[Future[None]] = set()
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, found: NewEvent) -> None:
        """Run the command for an event as soon as a thread is free."""
        self._waiting = {future for future in self._waiting if not future.done()}
        self._waiting.add(self._threads.submit(self._run, found))

    def close(self, stopped: Callable[[], bool]) -> None:
        """Wait until all commands have ended. If `stopped` returns True, commands that have not started are dropped."""
        if any(not future.done() for future in self._waiting):
            log.info("waiting for commands of --on-event")
        try:
            while left := [future for future in self._waiting if not future.done()]:
                if stopped():
                    self._threads.shutdown(wait=False, cancel_futures=True)  # the next scan runs these commands
                wait(left, timeout=POLL_S)
        except BaseException:  # a second signal: do not wait any longer
            self._threads.shutdown(wait=False, cancel_futures=True)
            for process in list(self._running):
                _kill(process)
            raise
        self._threads.shutdown()

    def _run(self, found: NewEvent) -> None:
        try:
            if not self._reported.add(found.document, found.event):
                return  # another scan has reported it in the meantime
            data = json.dumps(found.to_json(), ensure_ascii=False).encode() + b"\n"
            process = subprocess.Popen(
                ["/bin/sh", "-c", self._command], stdin=subprocess.PIPE, stdout=sys.stderr.fileno(), start_new_session=True
            )
            self._running.add(process)
            try:
                process.communicate(data, timeout=self._timeout_s)
            except subprocess.TimeoutExpired:
                _kill(process)
                log.error("--on-event: %s: the command took longer than %g s and was killed", found.title, self._timeout_s)
                return
            finally:
                self._running.discard(process)
        except (OSError, OutputError) as error:
            log.error("--on-event: %s: the command did not run: %s", found.title, error)
            return
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            log.error("--on-event: %s: the command was ended by %s", found.title, name)
        elif process.returncode:
            log.error("--on-event: %s: the command ended with exit status %d", found.title, process.returncode)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all processes that it has started."""
    family = []
    with suppress(psutil.Error):
        top = psutil.Process(process.pid)
        family = [top, *top.children(recursive=True)]
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # the command has its own session, so this kills its process group
    for member in family:
        with suppress(psutil.Error):
            member.kill()
    process.wait()


class NewEvents:
    """Finds the new events in the results of a scan, and runs the command of --on-event for each of them.

    Args:
        layout: the output folder.
        paths: the file or folder of each video, by video.
        command: the command; no command runs if this is empty.
        timeout_s: as in `EventHook`.
        alone: True if no other scan runs in the output folder. Then stored events that were not reported are new, too: an
            interrupted scan has left them. Otherwise the other scan may still report them.
    """

    def __init__(self, layout: OutputLayout, paths: Mapping[str, Path], *, command: str, timeout_s: float, alone: bool) -> None:
        self._layout, self._paths, self._alone = layout, paths, alone
        self._reported = ReportedEvents(layout)
        self._told: dict[str, list[Event]] = {}  # a run may score a video twice before the command for an event has started
        self._hook = EventHook(command, timeout_s=timeout_s, reported=self._reported) if command else None

    def of(self, result: VideoResult) -> list[NewEvent]:
        """Return the new events of a video, and report them.

        This runs the command for each of them. If there is no command, they are only added to the list of reported events.

        Raises:
            OutputError: the list of reported events can't be written.
        """
        if not result.events or not (self._alone or result.status in (Status.DONE, Status.PARTIAL)):
            return []
        document = read_unchecked(self._layout.events(result.video))
        if document is None:
            return []
        path, reported = self._paths.get(result.video), self._told.setdefault(result.video, [])
        found = [
            NewEvent(document, event, path)
            for event in self._reported.new(document)
            if not any(event.start_s < other.end_s and other.start_s < event.end_s for other in reported)
        ]
        reported += [one.event for one in found]
        for one in found:
            if self._hook is not None:
                self._hook.run(one)
            else:
                self._reported.add(one.document, one.event)
        return found

    def close(self, stopped: Callable[[], bool]) -> None:
        """Wait for the commands; see `EventHook.close`."""
        if self._hook is not None:
            self._hook.close(stopped)
