"""Reads videos as clips in child processes. If a decoder crashes or hangs, only one video is affected.

    with ClipLoader(needs, LoaderOptions(workers=2)) as loader:
        for item in loader.run(requests):
            ...  # per video: Opened, then each ClipReady, then Finished; use or copy a clip before the next item

The contract:

- Processes. There are up to `workers` decoder processes. Each is started when it is first needed. It reads one video after
  another, also in later runs, and is replaced if it dies. No process is forked, so this process may have threads and use
  devices.
- Memory. Each decoder process shares a ring of SLOTS slots with this process and writes clips there. It has one more clip in
  its own memory. A slot is free again when the next item is requested. If no slot is free, the decoder process waits. Memory
  does not grow with the length or the number of videos. A request is taken only when a decoder process is idle.
- Order. The items of a video come in order, and the last item is always exactly one Finished. Items of different videos are
  mixed. The content of a clip depends only on the file, the needs and the options, not on the number of processes.
- Killing. A supervisor thread kills a decoder process and its children if it makes no progress for `timeout_s` or uses more
  memory than `memory_limit_mib`. Waiting for a video, for a free slot or for the loader counts as progress. So a slow caller
  never causes a kill. If this process dies, even by kill -9, its decoder processes die too: on Linux by the kernel's
  parent-death signal, elsewhere because their standard input ends. Ctrl-C and signals to the process group of this process
  do not reach them.
- A second decoder. If `auto` chose decord and its process dies or is killed, ffmpeg reads the video once from the beginning.
  The clips that the caller already has are not delivered again. `note` of Finished says so.
- Errors. If a decoder raises an error or its process dies, the video's Finished has the `error`; other videos continue.
  `run` itself raises the errors of `requests`, and VadcliError if no decoder process can be started.
- Ends. If a run is left early (by an exception, Ctrl-C, `stopped` or close() of the iterator), the decoder processes are
  killed; the next run starts new processes. `close` may be called at any time and more than once. After `close`, there is no
  child process and no thread; only the shared memory of clips that are still in use is kept.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from types import TracebackType
from typing import Self

import numpy as np

from vadcli.errors import VadcliError, VideoError
from vadcli.options import DecodeOptions, parse_duration
from vadcli.types import Clip, ClipNeeds, DecoderName, VideoInfo
from vadcli.video.sampling import Rows, SamplingPlan
from vadcli.video.supervisor import (
    Begun,
    ClipReady,
    ClipRequest,
    DecoderProcess,
    Done,
    Filled,
    Finished,
    Item,
    LoaderOptions,
    Opened,
    Setup,
    State,
    Supervisor,
)

log = logging.getLogger("vadcli")

__all__ = ["SLOTS", "ClipLoader", "ClipReady", "ClipRequest", "Finished", "Item", "LoaderOptions", "Opened", "Rows"]

SLOTS = 3
"""Clips per decoder process in shared memory: one that the caller uses, one that is ready, one that is being written."""

_AHEAD_ITEMS = 8
_WAIT_S = 1.0


@dataclass
class _Job:
    """The video that a process is reading, and the content of the process's messages so far."""

    request: ClipRequest
    info: VideoInfo | None = None
    decoder: str = ""
    next_row: int = 0
    interval: int = 1
    decoded_frames: int = 0
    clips: int = 0  # clips that were passed on to the caller
    repeated: int = 0  # clips that the second decoder delivers again
    note: str = ""


@dataclass(frozen=True)
class _Entry:
    """An item that the caller has not requested yet, and the slot to free after its use."""

    item: Item
    process: DecoderProcess
    slot: int | None = None


class ClipLoader:
    """Reads videos in decoder processes, by the contract at the top of this file. Use it with `with`.

    Args:
        needs: length, sampling, size and pixel format of the clips.
        options: how to decode.
    """

    def __init__(self, needs: ClipNeeds, options: LoaderOptions) -> None:
        self._needs = needs
        self._workers = options.workers
        threads = options.threads or max(1, core_count() // options.workers)
        self._setup = Setup(needs, options, threads, SLOTS)
        self._supervisor: Supervisor | None = None
        self._processes: list[DecoderProcess] = []
        self._jobs: dict[DecoderProcess, _Job] = {}
        self._ready: deque[_Entry] = deque()
        self._running = self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def run(self, requests: Iterable[ClipRequest], *, stopped: Callable[[], bool] | None = None) -> Iterator[Item]:
        """Read these videos and yield their items as they arrive. Only one run at a time is possible.

        The frames of a ClipReady are a read-only view that is valid until the next item is requested; copy what you keep.

        Args:
            requests: the next request is taken only when a decoder process is idle, so only a few are taken in advance.
            stopped: called at least once per second; after it has returned True, no more items are yielded.

        Raises:
            VadcliError: no decoder process can be started.
            RuntimeError: another run has not ended, or the loader is closed.
        """
        if self._closed or self._running:
            raise RuntimeError("the loader is closed" if self._closed else "another run of this loader has not ended")
        self._running = True
        try:
            yield from self._items(iter(requests), stopped or (lambda: False))
            if self._jobs or self._ready:
                self._reset()
        except BaseException:  # also at GeneratorExit: a process may be in the middle of a video, or may wait for a slot
            self._reset()
            raise
        finally:
            self._running = False

    def close(self) -> None:
        """Kill the decoder processes and free their memory; clips that are still in use stay readable."""
        self._closed = True
        self._reset()

    def _items(self, requests: Iterator[ClipRequest], stopped: Callable[[], bool]) -> Iterator[Item]:
        self._feed(requests)
        while (self._jobs or self._ready) and not stopped():
            self._collect(0.0 if self._ready else _WAIT_S)
            self._feed(requests)  # before the next item is yielded, so that no process is idle while the caller works
            if self._ready:
                entry = self._ready.popleft()
                yield entry.item
                if self._closed:
                    raise RuntimeError("the loader was closed before its run had ended")
                if entry.slot is not None:
                    entry.process.send(entry.slot)

    def _feed(self, requests: Iterator[ClipRequest]) -> None:
        while len(self._ready) <= _AHEAD_ITEMS and len(self._jobs) < self._workers:
            request = next(requests, None)
            if request is None:
                return
            self._assign(request)

    def _assign(self, request: ClipRequest, job: _Job | None = None) -> None:
        while True:
            process = next((each for each in self._processes if each not in self._jobs), None) or self._start()
            process.expect(request.path)
            self._jobs[process] = job or _Job(request)
            if process.send(request):
                return
            del self._jobs[process]
            self._reap(process)  # the process died while it was idle, so this video is not the cause

    def _start(self) -> DecoderProcess:
        if self._supervisor is None:
            self._supervisor = Supervisor(self._setup)
        process = self._supervisor.start()
        self._processes.append(process)
        return process

    def _collect(self, timeout_s: float) -> None:
        """Process all messages that have arrived; wait at most `timeout_s` for the first message."""
        connections = {process.connection: process for process in self._jobs}
        for connection in wait(list(connections), timeout_s):
            process = connections[connection]  # type: ignore[index]
            try:
                while process in self._jobs and process.connection.poll():
                    self._take(process, process.connection.recv())
            except (EOFError, OSError, pickle.UnpicklingError):
                self._lose(process)
        for process in [each for each in self._jobs if each.survives_kill]:
            self._lose(process)

    def _take(self, process: DecoderProcess, message: Opened | Begun | Filled | Done) -> None:
        job = self._jobs[process]
        if isinstance(message, Begun):
            job.decoder = message.decoder
        elif isinstance(message, Opened) and job.info is not None:
            job.info = message.info  # the second decoder; the caller knows that the video is open
        elif isinstance(message, Opened):
            job.info = message.info
            plan = SamplingPlan.of(self._needs, message.info)
            job.interval, job.next_row = plan.interval, plan.first_row(job.request.start_clip)
            self._ready.append(_Entry(message, process))
        elif isinstance(message, Filled) and job.repeated:
            job.repeated -= 1
            process.send(message.slot)
        elif isinstance(message, Filled):
            assert job.info is not None
            parts = message.parts
            job.decoder = message.decoder
            job.clips += 1
            job.next_row = parts.rows.first + len(parts.rows)
            job.decoded_frames += int(parts.rows.decode_ok.sum())
            clip = Clip(
                video=job.request.video,
                index=parts.index,
                frames=process.ring.slot(message.slot, message.shape),
                frame_index=parts.frame_index,
                timestamp=job.info.timestamps(parts.pts),
                valid=parts.valid,
                interval=job.interval,
            )
            self._ready.append(_Entry(ClipReady(job.request.video, clip, parts.rows), process, message.slot))
        else:
            job.decoder = message.decoder
            job.note = job.note or message.note
            del self._jobs[process]
            self._finish(process, job, message.rows, message.error, message.complaints)
            if message.retiring:
                self._reap(process)

    def _lose(self, process: DecoderProcess) -> None:
        """Finish the video of a process that died or was killed, or let the second decoder read it."""
        job = self._jobs.pop(process)
        error, stderr = self._reap(process)
        if self._setup.options.decoder == "auto" and job.decoder == DecoderName.DECORD and job.request.decoder is None:
            log.info("%s: %s while decord read it; now ffmpeg reads it", job.request.video, error.message)
            job.note = f"decord failed, so ffmpeg read the video: {error.message}"
            job.request, job.repeated = replace(job.request, decoder="ffmpeg"), job.clips
            self._assign(job.request, job)
            return
        error = type(error)(f"{job.request.video}: {error.message}")
        self._finish(process, job, Rows(job.next_row, np.zeros(0, np.int64), np.zeros(0, np.bool_)), error, stderr)

    def _finish(self, process: DecoderProcess, job: _Job, rows: Rows, error: VideoError | None, complaints: str) -> None:
        decoded = job.decoded_frames + int(rows.decode_ok.sum())
        item = Finished(job.request.video, job.info, job.decoder, rows, decoded, error, complaints, job.note)
        self._ready.append(_Entry(item, process))

    def _reap(self, process: DecoderProcess) -> tuple[VideoError, str]:
        assert self._supervisor is not None
        starting = process.ring.state is State.STARTING
        self._processes.remove(process)
        error, stderr = self._supervisor.reap(process)
        if starting:
            raise VadcliError(f"no decoder process can be started: {error.message}")
        return error, stderr

    def _reset(self) -> None:
        self._jobs.clear()
        self._ready.clear()
        self._processes.clear()
        if self._supervisor:
            self._supervisor.stop()
            self._supervisor = None


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loader_options(options: DecodeOptions, *, workers: int = 1) -> LoaderOptions:
    """Return the loader's options for a command's options."""
    return LoaderOptions(
        workers=workers,
        timeout_s=parse_duration(options.decode_timeout, "decode_timeout"),
        memory_limit_mib=options.decode_memory,
        decoder=options.decoder,
    )
