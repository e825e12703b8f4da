"""The worker of a cluster: scans one chunk after the other with one detector. It does not depend on the cluster's software."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

from vadcli.detectors import Detector
from vadcli.engine.local import LocalRunner
from vadcli.engine.runner import ScanSettings, Stop, choose_detector
from vadcli.engine.stream import Update
from vadcli.errors import OutputError, UsageError, VadcliError
from vadcli.options import ScanOptions
from vadcli.types.text import is_remote, may_exist
from vadcli.video.objects import check_store

log = logging.getLogger("vadcli")

SEND_EVERY_S = 0.5


@dataclass(frozen=True)
class Fitted:
    """Frames that a worker has read to fit a camera."""

    camera: str
    frames: int


Sent = Update | Fitted | VadcliError | logging.LogRecord


class ChunkScanner:
    """The worker: an actor that scans one chunk after the other with one detector."""

    def __init__(self, options: ScanOptions) -> None:
        self._options = options
        self._detector: Detector | None = None
        self._stop = Stop()

    def stop(self, reason: str, signal: int | None) -> None:
        """Ask the running scan to end."""
        self._stop.set(reason, signal)

    def scan(self, settings: ScanSettings) -> Iterator[list[Sent]]:
        """Scan a chunk. Yield an empty list at once, and then what happened, every SEND_EVERY_S.

        An error of vadcli is the last item.
        """
        yield []
        said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        handler = QueueHandler(said)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        thread = threading.Thread(target=self._scan, args=(settings, said), daemon=True)
        thread.start()
        try:
            ended = False
            while not ended:
                due, items = time.monotonic() + SEND_EVERY_S, []
                while not ended and (left := due - time.monotonic()) > 0:
                    with suppress(queue.Empty):
                        item = said.get(timeout=left)
                        ended = item is None
                        items += [] if ended else [item]
                if items:
                    yield items
        finally:
            self._stop.set("the driver is gone")
            thread.join()
            log.removeHandler(handler)
            self._stop = Stop()

    def _scan(self, settings: ScanSettings, said: queue.SimpleQueue[Any]) -> None:
        try:
            if self._detector is None:
                self._detector = choose_detector(self._options)
            options = replace(settings.options, workers=self._options.workers)
            runner = LocalRunner(replace(settings, options=options), self._detector, stop=self._stop)
            for update in runner.updates(lambda camera, frames: said.put(Fitted(camera, frames))):
                said.put(update)
        except VadcliError as error:
            said.put(error)
        except Exception as error:  # the driver reports it with the node's name
            log.debug("the scan of a chunk failed", exc_info=True)
            said.put(OutputError(f"{socket.gethostname()}: {type(error).__name__}: {error}"))
        finally:
            said.put(None)


def check_node(token: Path, word: str, root: Path, version: str) -> str:
    """Return the reason why this node can't take part; "" if it can."""
    from vadcli import __version__ as own

    if own != version:
        return f"it has vadcli {own}, and this machine has {version}"
    try:
        if token.read_text(encoding="ascii") != word:
            return f"it has another folder at {token.parent}"
    except OSError:
        return "it does not see the output folder; it must be on storage that all nodes share"
    if is_remote(root):
        try:
            check_store(root)
        except UsageError as error:
            return str(error)
    return "" if may_exist(root) else f"it does not see the footage at {root}"
