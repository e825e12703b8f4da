"""Reads videos as clips in child processes. If a decoder crashes or hangs, only one video is affected.

    with ClipLoader(needs, LoaderOptions(workers=2)) as loader:
        for item in loader.run(requests):
            ...  # per video: Opened, then each ClipReady, then Finished; use or copy a clip before the next item

`FrameFeed` uses a loader to read single frames of a video by their numbers.

The contract:

- Processes. A loader has up to `workers` decoder processes. A process is started when it is first needed; a command may start
  the first process earlier (`vadcli.video.early_worker`). A process reads one video after another, also in later runs, and is
  replaced if it dies. No process is forked, so this process may have threads and use devices.
- Memory. Each decoder process shares slots of memory with this process (their number is `SLOTS`), and writes clips into these
  slots. Each decoder process has one more clip in its own memory. A slot is free again when the caller requests the next item.
  If no slot is free, the decoder process waits. The loader takes a request only when a decoder process is idle. So memory does
  not grow with the length or the number of videos.
- The next run. With `then`, idle decoder processes begin to read the videos of the next run, while the caller still uses the
  items of this run. They stop when their slots are full. Their items belong to the next run.
- Order. The items of a video come in order. Only the last item of a video is a Finished. Items of different videos are mixed.
  The content of a clip depends on the file, the needs and the options. It does not depend on the number of processes.
- Killing. A supervisor thread kills a decoder process and its children if they make no progress for `timeout_s` or use more
  memory than `memory_limit_mib`. If a decoder process waits for a video, for a free slot or for the loader, this counts as
  progress. So a slow caller never causes a kill. If this process dies, even by kill -9, its decoder processes die too: on Linux
  by the kernel's parent-death signal, on other systems because their standard input ends. Ctrl-C and signals to this process's
  group do not reach the decoder processes.
- A second decoder. If `auto` chose decord, and the decoder process dies or is killed, ffmpeg reads the video from the
  beginning. The caller does not get a clip twice. `note` of Finished gives the reason.
- Errors. If a decoder raises an error or its process dies, Finished has the `error`, and other videos continue. `run` raises
  only the errors that `requests` raises, and VadcliError if no decoder process can be started.
- Ends. If a run ends early (by an exception, Ctrl-C, `stopped` or close() of the iterator), the decoder processes are killed,
  and the next run starts new processes. `close` may be called at any time and more than once. After `close`, the loader has no
  process and no thread; only the shared memory of clips that are still in use remains.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import numpy as np

from vadcli.errors import DecodeError, VadcliError, VideoError
from vadcli.options import DecodeOptions, parse_duration
from vadcli.types import ByteArray, Clip, ClipNeeds, DecoderName, VideoInfo
from vadcli.types.text import how_many
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

__all__ = [
    "SLOTS",
    "ClipLoader",
    "ClipReady",
    "ClipRequest",
    "Finished",
    "FrameFeed",
    "Item",
    "LoaderOptions",
    "Opened",
    "Rows",
]

SLOTS = 3
"""Clips per decoder process in shared memory: the caller uses a clip, the next clip is ready, and another is being written."""

JOINED_ROWS = 100
"""Two requested frames are read in one span if fewer frames than this are between them.

This costs less than starting a decoder for each requested frame.
"""

_AHEAD_ITEMS = 8
_WAIT_S = 1.0


@dataclass
class _Job:
    """The video that a process is reading, and what the messages of the process have reported so far."""

    request: ClipRequest
    info: VideoInfo | None = None
    decoder: str = ""
    next_row: int = 0
    interval: int = 1
    decoded_frames: int = 0
    clips: int = 0  # clips that were passed on to the caller
    repeated: int = 0  # clips that the second decoder delivers again
    note: str = ""
    is_second_start: bool = False  # True if the first process for this video ended before it was ready


@dataclass(frozen=True)
class _Entry:
    """An item that the caller has not requested yet, and the slot that becomes free after the item is used."""

    item: Item
    process: DecoderProcess
    slot: int | None = None


class ClipLoader:
    """Reads videos in decoder processes; the contract is at the top of this file.

    Use it in a `with` statement.

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
        self._begun: dict[DecoderProcess, _Job] = {}  # the videos of the next run that are already being read
        self._unread: list[ClipRequest] = []  # the videos of the next run that must be read again, because this run ended early
        self._then: Iterator[ClipRequest] | None = None  # the other requests of the next run
        self._ready: deque[_Entry] = deque()
        self._running = self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def run(
        self,
        requests: Iterable[ClipRequest],
        *,
        stopped: Callable[[], bool] | None = None,
        then: Iterator[ClipRequest] | None = None,
    ) -> Iterator[Item]:
        """Read these videos and yield their items as they arrive. Only one run at a time is possible.

        The frames of a ClipReady are a read-only view. The view is valid until the next item is requested; copy frames to keep
        them.

        Args:
            requests: the videos. The next request is taken only when a decoder process is idle.
            stopped: a function that is called at least once per second. After it has returned True, no more items are yielded.
            then: the requests of the next run. Pass the same iterator as `requests` to the next call of this method.

        Raises:
            VadcliError: no decoder process can be started.
            RuntimeError: another run has not ended, or the loader is closed.
        """
        if self._closed or self._running:
            raise RuntimeError("the loader is closed" if self._closed else "another run of this loader has not ended")
        self._running = True
        try:
            if self._begun and requests is not self._then:
                self._reset()
            first, self._unread = self._unread if requests is self._then else [], []
            self._jobs, self._begun, self._then = self._begun, {}, then
            yield from self._items(chain(first, requests), stopped or (lambda: False))
            if self._jobs or self._ready:
                self._reset()
        except BaseException:  # also at GeneratorExit: a process may be in the middle of a video, or may wait for a slot
            self._reset()
            raise
        finally:
            self._running = False

    def close(self) -> None:
        """Kill the decoder processes and free the shared memory. Clips that are still in use stay readable."""
        self._closed = True
        self._reset()

    def _items(self, requests: Iterator[ClipRequest], stopped: Callable[[], bool]) -> Iterator[Item]:
        self._feed(requests)
        while (self._jobs or self._ready) and not stopped():
            self._collect(0.0 if self._ready else _WAIT_S)
            self._feed(requests)  # before an item is yielded, so that no process is idle while the caller works
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
                self._begin_next()
                return
            self._assign(request, self._jobs)

    def _begin_next(self) -> None:
        """Let idle processes read the first videos of the next run. `_collect` leaves their messages for that run."""
        while self._then is not None and len(self._jobs) + len(self._begun) < self._workers:
            request = next(self._then, None)
            if request is None:
                return
            self._assign(request, self._begun)

    def _assign(self, request: ClipRequest, jobs: dict[DecoderProcess, _Job], job: _Job | None = None) -> None:
        while True:
            busy = self._jobs.keys() | self._begun.keys()
            process = next((idle for idle in self._processes if idle not in busy), None)
            if process is None:
                self._supervisor = self._supervisor or Supervisor(self._setup)
                process = self._supervisor.start()
                self._processes.append(process)
            process.expect(request.path)
            jobs[process] = job or _Job(request)
            if process.send(request):
                return
            del jobs[process]
            self._reap(process)  # the process died while it was idle, so this video is not the cause

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
        for process in [process for process in self._jobs if process.survives_kill]:
            self._lose(process)

    def _take(self, process: DecoderProcess, message: Opened | Begun | Filled | Done) -> None:
        job = self._jobs[process]
        if isinstance(message, Begun):
            job.decoder = message.decoder
        elif isinstance(message, Opened) and job.info is not None:
            job.info = message.info  # this is from the second decoder: the caller already has the item Opened of this video
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
        """Handle the end of a process that died or was killed: let ffmpeg read its video again, or finish the video."""
        job = self._jobs.pop(process)
        try:
            error, stderr = self._reap(process)
        except VadcliError as failure:  # the process ended before it was ready; this may happen by chance, but not twice
            if job.is_second_start:
                raise
            log.debug("%s; trying once more", failure.message)
            job.is_second_start = True
            self._assign(job.request, self._jobs, job)
            return
        if self._setup.options.decoder == "auto" and job.decoder == DecoderName.DECORD and job.request.decoder is None:
            log.info("%s: decord failed (%s), so ffmpeg reads the video", job.request.video, error.message)
            job.note = f"decord failed, so ffmpeg read the video: {error.message}"
            job.request, job.repeated = replace(job.request, decoder="ffmpeg"), job.clips
            self._assign(job.request, self._jobs, job)
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
        self._unread += [job.request for job in self._begun.values()]
        self._begun.clear()
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
    """Return the `LoaderOptions` with a command's decoding options."""
    return LoaderOptions(
        workers=workers,
        timeout_s=parse_duration(options.decode_timeout, "decode_timeout"),
        memory_limit_mib=options.decode_memory,
        decoder=options.decoder,
    )


class FrameFeed:
    """Yields the images of one video by frame number. A `ClipLoader` reads them.

    Args:
        loader: a loader that delivers every frame, in colour.
        clip_frames: how many frames the loader's clips have.
        source: the video file or folder of images.
        video: relative path of the video.
        frames: number of frames of the video, according to its scores.
        fps: frame rate of a folder of images.
    """

    def __init__(self, loader: ClipLoader, clip_frames: int, source: Path, *, video: str, frames: int, fps: float) -> None:
        self._loader, self._clip_frames = loader, clip_frames
        self._source, self._video, self._frames, self._fps = source, video, frames, fps
        self._info: VideoInfo | None = None
        self._lost = 0
        self._ends: list[str] = []

    @property
    def info(self) -> VideoInfo:
        """The probe's description of the video; RuntimeError before the first image was read."""
        if self._info is None:
            raise RuntimeError("no image was read yet")
        return self._info

    def problems(self) -> list[str]:
        """Return the problems of reading so far, one line per problem."""
        lost = (
            [f"{how_many(self._lost, 'frame')} could not be decoded; the previous frame is shown instead"] if self._lost else []
        )
        return lost + self._ends

    def images(self, first: int, last: int) -> Generator[tuple[int, ByteArray], None, None]:
        """Yield each frame number in [first, last) with its image (H, W, 3), up to the end of the video.

        An image is valid until the next image is requested. A lost frame gets the image of the previous frame.

        Raises:
            VideoError: no image could be decoded.
        """
        part = last < self._frames
        row, shown = first, None
        with closing(self._items(spans=((first, last),)) if part else self._items(first // self._clip_frames)) as items:
            for item in items:
                if isinstance(item, Opened):
                    continue
                if isinstance(item, Finished):
                    if row < last and shown is None:
                        raise item.error or DecodeError(f"{self._source}: no frame could be decoded from frame {row} on")
                    if row < last:  # yield the frames up to the known end of the video
                        whole = part and not item.error  # only a part was requested, and it was read to its end
                        end = self.info.frames if whole else item.rows.first + len(item.rows)
                        known = max(row, min(last, end))
                        self._lost += known - row
                        yield from ((lost_row, cast(ByteArray, shown)) for lost_row in range(row, known))
                        if known < last:
                            why = item.error.message if item.error else "the file now has fewer frames than were scored"
                            self._ends.append(f"ends at frame {known} of {self._frames}: {why}")
                    continue
                seen = False
                for index, own_image, lost in _rows_of(item, row, last):
                    self._lost += lost
                    seen = seen or not lost
                    image = own_image if seen or shown is None else shown
                    yield from ((between, image) for between in range(row, index + 1))
                    row = index + 1
                if row >= last and not part:  # a request for a part ends by itself; ending it here would kill its process
                    return
                if item.clip.valid.any():
                    shown = item.clip.frames[-1].copy()

    def at_rows(self, rows: Sequence[int]) -> Generator[tuple[int, ByteArray], None, None]:
        """Yield each of these frame numbers with its image (H, W, 3). Lost frames are left out.

        An image is valid until the next image is requested.

        Args:
            rows: the frame numbers in increasing order.

        Raises:
            VideoError: the video could not be read, and no image was yielded before.
        """
        wanted, has_yielded = set(rows), False
        with closing(self._items(spans=join_rows(rows))) as items:
            for item in items:
                if isinstance(item, ClipReady):
                    for row, image, lost in _rows_of(item, 0, self._frames):
                        if row in wanted and not lost:
                            has_yielded = True
                            yield row, image
                elif isinstance(item, Finished) and item.error:
                    if not has_yielded:
                        raise item.error
                    self._ends.append(item.error.message)

    def _items(self, start_clip: int = 0, spans: tuple[tuple[int, int], ...] = ()) -> Generator[Item, None, None]:
        request = ClipRequest(self._video, self._source, fps=self._fps, start_clip=start_clip, spans=spans)
        with closing(cast(Generator[Item, None, None], self._loader.run([request]))) as items:
            for item in items:
                if isinstance(item, Opened):
                    self._info = item.info
                yield item


def join_rows(rows: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return spans [first, last) that contain these ordered frame numbers.

    Frames that are close together share a span.
    """
    spans: list[tuple[int, int]] = []
    for row in rows:
        first = spans.pop()[0] if spans and row - spans[-1][1] < JOINED_ROWS else row
        spans.append((first, row + 1))
    return tuple(spans)


def _rows_of(item: ClipReady, first: int, last: int) -> Iterator[tuple[int, ByteArray, bool]]:
    """Yield (frame number, image, lost) once for each frame of a clip that is in [first, last)."""
    clip = item.clip
    for index, image, valid in zip(clip.frame_index.tolist(), clip.frames, clip.valid.tolist(), strict=True):
        if first <= index < last:
            yield index, image, not valid
            first = index + 1
