"""Starts, watches and kills decoder processes (`Supervisor`); defines their messages to the loader.

The loader and a decoder process (`vadcli.video.worker`) send messages through a pipe. Clips and a progress counter are in
shared memory (`Ring`). This memory has no name in any file system: the system frees it when the last process that maps it ends.

This module begins with what a loader requests, and the items that the loader yields. Then come the messages between the
processes, the shared memory, helpers for processes, and the supervisor.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import queue
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing.reduction import send_handle
from pathlib import Path

import numpy as np
import psutil

from vadcli.errors import DecoderCrashed, DecoderHung, NotFinished, VadcliError, VideoError
from vadcli.types import NO_REGIONS, ByteArray, Clip, ClipNeeds, DecoderChoice, Regions, VideoInfo
from vadcli.types.text import is_remote
from vadcli.video import REAP_S, anonymous_file, take_worker
from vadcli.video.sampling import ClipParts, Rows

_START_S = 60.0  # a process may take this long to start, even if `timeout_s` is shorter
_LONGEST_TICK_S = 1.0
_READ_AHEAD_BYTES = 64 << 20
_REMOTE_BYTES = 1 << 40  # stands for the size of an object in a store, because the size is not known yet
_STDERR_LIMIT_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class LoaderOptions:
    """How a loader decodes videos. These options do not depend on the detector.

    Attributes:
        workers: number of decoder processes; each reads one video at a time.
        timeout_s: if a decoder makes no progress for this many seconds, it counts as hung.
        memory_limit_mib: how much memory a decoder process and its children may use together, without shared memory.
        decoder: which decoder reads the frames.
        threads: threads per decoder; 0 means the number of cores divided by the number of workers.
        prober: "module:attribute" of a function that describes a video. The decoder process calls it with the arguments of
            `vadcli.video.probe.probe`.
        reader: "module:attribute" of a class that reads the frames, to plug in another decoder. The decoder process calls it
            with the arguments of `vadcli.video.reader.FrameReader`.
    """

    workers: int = 1
    timeout_s: float = 60.0
    memory_limit_mib: int = 4096
    decoder: DecoderChoice = "auto"
    threads: int = 0
    prober: str = "vadcli.video.probe:probe"
    reader: str = "vadcli.video.reader:FrameReader"

    def __post_init__(self) -> None:
        if self.workers < 1 or self.threads < 0:
            raise ValueError(f"workers={self.workers} must be at least 1, and threads={self.threads} must not be negative")
        if not (self.timeout_s > 0 and self.memory_limit_mib > 0):
            raise ValueError(f"timeout_s={self.timeout_s} and memory_limit_mib={self.memory_limit_mib} must be positive")


@dataclass(frozen=True)
class ClipRequest:
    """One video to read as clips.

    Attributes:
        video: relative path of the video. Each item about this video has the same path.
        path: the file, or the folder of images.
        fps: frame rate of a folder of images.
        start_clip: number of the first clip to read. The rows are reported from `SamplingPlan.first_row(start_clip)` on.
        bursts: positions in [0, 1), as fractions of the video's frames. If given, only one clip is read at each position. The
            index of a clip is the index of its burst, and `ClipReady.rows` is empty. If no frame of a burst can be decoded, the
            burst has no clip.
        exact: True if each burst starts exactly at its position; False if a burst may start nearby, where decoding is cheapest.
        spans: ranges of rows [first, last). If given, only these rows are read. The ranges must be ordered and must not
            overlap, and each `first` must be a sampled row. Each range is cut into clips like a separate video. The index of a
            clip is the index of its range, and `ClipReady.rows` is empty.
        decoder: replaces the loader's choice of decoder for this video; the loader sets it after decord has crashed.
        regions: the regions of the image to hide in the clips.
        damaged: True if the video has damage before `start_clip`. If so, all frames are decoded, as in a scan that was not
            interrupted.
    """

    video: str
    path: Path
    fps: float | None = None
    start_clip: int = 0
    bursts: tuple[float, ...] = ()
    exact: bool = False
    spans: tuple[tuple[int, int], ...] = ()
    decoder: DecoderChoice | None = None
    regions: Regions = NO_REGIONS
    damaged: bool = False

    def __post_init__(self) -> None:
        if self.start_clip < 0 or (self.start_clip and self.bursts):
            raise ValueError(f"{self.video}: start_clip {self.start_clip} is negative, or is combined with bursts")
        if not all(0 <= position < 1 for position in self.bursts):
            raise ValueError(f"{self.video}: burst positions {self.bursts} must be in [0, 1)")
        if self.spans and (self.start_clip or self.bursts):
            raise ValueError(f"{self.video}: spans cannot be combined with bursts or a start clip")
        edges = [0, *(row for span in self.spans for row in span)]
        if any(first >= last for first, last in self.spans) or edges != sorted(edges):
            raise ValueError(f"{self.video}: spans {self.spans} must be non-empty and in order")


@dataclass(frozen=True)
class Opened:
    """The first item of a video: the result of the probe.

    If the probe fails, `Finished` is the only item of the video.
    """

    video: str
    info: VideoInfo


@dataclass(frozen=True)
class ClipReady:
    """A clip, and the rows after the previous clip up to the last sample of this clip.

    The clip is valid until the next item is requested.
    """

    video: str
    clip: Clip
    rows: Rows


@dataclass(frozen=True)
class Finished:
    """The last item of every video, whether the video was read or not.

    Attributes:
        info: the result of the probe; None if the video could not be opened.
        decoder: the last decoder that read the video; "" if unknown.
        rows: the rows after the last clip. If the decoder process died, these rows are missing.
        decoded_frames: number of rows with decode_ok in all items of this request.
        error: why the video was not read to its end; None if the video was read to its end. Skipped frames and concealed damage
            do not count as errors.
        complaints: the decoder's messages, for people to read.
        note: which decoder failed before another decoder read the video, and why; usually empty.
    """

    video: str
    info: VideoInfo | None
    decoder: str
    rows: Rows
    decoded_frames: int
    error: VideoError | None
    complaints: str
    note: str = ""


Item = Opened | ClipReady | Finished


@dataclass(frozen=True)
class Setup:
    """The first message to a decoder process.

    Each later message is a request or the number of a free slot.
    """

    needs: ClipNeeds
    options: LoaderOptions
    threads: int
    slots: int


@dataclass(frozen=True)
class Begun:
    """Message from a decoder process: this decoder will now read the video.

    The message is sent before the decoder starts.
    """

    decoder: str


@dataclass(frozen=True)
class Filled:
    """Message from a decoder process: a clip of this shape is in this slot."""

    slot: int
    shape: tuple[int, ...]
    parts: ClipParts
    decoder: str


@dataclass(frozen=True)
class Done:
    """Message from a decoder process: the video has ended.

    Attributes:
        retiring: True if the process now ends because its memory has grown too large.
        note: as in `Finished`.
    """

    decoder: str
    rows: Rows
    error: VideoError | None
    complaints: str
    retiring: bool
    note: str = ""


_HEADER_BYTES = mmap.ALLOCATIONGRANULARITY


class State(IntEnum):
    """What a decoder process is doing."""

    STARTING = 0
    WORKING = 1
    WAITING = 2  # for a video, a free slot or the loader; a process in this state never counts as hung
    FETCHING = 3  # copies an object from a store to this machine


def read_tail(descriptor: int, limit: int = 4000) -> str:
    """Return the last `limit` bytes of an open file as text. The file's position does not change."""
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, limit, max(0, size - limit)).decode(errors="replace").strip()


class Ring:
    """Shared memory: a header with two numbers, then slots. The decoder process writes, the loader reads.

    Args:
        descriptor: the result of `anonymous_file(Ring.size(...))`; the caller may close it after this call.
        slots: number of slots; a slot has room for one clip.
        slot_bytes: size of a slot.
        writable: True in the decoder process.
    """

    def __init__(self, descriptor: int, *, slots: int, slot_bytes: int, writable: bool) -> None:
        self._slot_bytes = slot_bytes
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(descriptor, self.size(slots, slot_bytes), prot=access)
        self._header = np.frombuffer(self._map, np.int64, count=2)  # state, progress

    @staticmethod
    def size(slots: int, slot_bytes: int) -> int:
        """Return the size of a ring in bytes. The ring takes memory only for the pages that were written."""
        return _HEADER_BYTES + slots * slot_bytes

    @property
    def state(self) -> State:
        """What the decoder process is doing; WORKING if a faulty decoder has overwritten the header."""
        number = int(self._header[0])
        return State(number) if number in list(State) else State.WORKING

    @state.setter
    def state(self, state: State) -> None:
        """Store what the decoder process is doing."""
        self._header[0] = state

    @property
    def progress(self) -> int:
        """Number of rows and messages that the decoder process has handled since its start."""
        return int(self._header[1])

    def advance(self) -> None:
        """Add 1 to `progress`."""
        self._header[1] += 1

    def slot(self, number: int, shape: tuple[int, ...]) -> ByteArray:
        """Return a slot as a uint8 array of this shape, read-only for the loader.

        Raises ValueError if the shape is too large.
        """
        count = int(np.prod(shape))
        if count > self._slot_bytes:
            raise ValueError(f"a clip of shape {shape} needs {count} bytes, but a slot has {self._slot_bytes}")
        offset = _HEADER_BYTES + number * self._slot_bytes
        return np.frombuffer(self._map, np.uint8, count=count, offset=offset).reshape(shape)

    def close(self) -> None:
        """Close the shared memory. If arrays from `slot` are still in use, it is freed when they are deleted."""
        del self._header
        with contextlib.suppress(BufferError):
            self._map.close()


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies. Call it first in the child.

    The kernel kills the child as soon as the thread that started it ends, even if other threads of the parent still run. So
    start children from a thread that lives as long as the children are needed.

    On systems other than Linux, this function does nothing, and a child ends when its pipe breaks. The function can be a
    `preexec_fn`, because it takes no lock and imports nothing.

    Args:
        parent: process id of the parent. If the parent died before this call, this process ends at once.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before the call, so no signal will come
        os._exit(1)


def private_mib(process: psutil.Process) -> float:
    """Return the resident memory of a process in MiB, without shared memory; 0 if the process has ended."""
    try:
        memory = process.memory_info()
    except (psutil.Error, OSError):
        return 0.0
    return float(memory.rss - getattr(memory, "shared", 0)) / 2**20


def process_trees(roots: Sequence[psutil.Process]) -> list[list[psutil.Process]]:
    """Return one list per root: the process itself, then all its running descendants.

    Listing the processes of the machine is slow. If they were listed once per root, the threads that feed a GPU would wait. So
    they are listed only once for all roots.
    """
    children: dict[int, list[int]] = defaultdict(list)
    for pid, parent in _parents() if roots else ():
        children[parent].append(pid)
    trees = []
    for root in roots:
        tree, pids, seen = [root], [root.pid], {root.pid}
        while pids:
            for child in children.get(pids.pop(), ()):
                if child not in seen:  # if a process id was used again, the parents could form a circle
                    seen.add(child)
                    pids.append(child)
                    with contextlib.suppress(psutil.Error, OSError):
                        tree.append(psutil.Process(child))
        trees.append(tree)
    return trees


def _parents() -> Iterator[tuple[int, int]]:
    """Yield (process id, id of its parent) of all processes.

    On Linux, psutil would take ten times as long.
    """
    if sys.platform != "linux":
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                yield process.pid, process.ppid()
        return
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                yield int(name), int(file.read().rpartition(b")")[2].split()[1])  # the program's name may contain ")"


class DecoderProcess:
    """A decoder process (`vadcli.video.worker`) with its connection, its shared memory and its standard error.

    Create a `DecoderProcess` in a thread that lives longer than the process. On Linux, the decoder process dies when the thread
    that started it ends (see `die_with_parent`).

    Attributes:
        process: the running process as a `psutil.Process`.
    """

    def __init__(self, setup: Setup) -> None:
        slot_bytes = setup.needs.max_clip_bytes
        descriptor = anonymous_file(Ring.size(setup.slots, slot_bytes))
        try:
            self.ring = Ring(descriptor, slots=setup.slots, slot_bytes=slot_bytes, writable=False)
            self._worker = take_worker()
            self.connection = self._worker.connection
            self.process = psutil.Process(self._worker.process.pid)
            self.send(setup)
            with contextlib.suppress(OSError):  # the process has ended; the next `send` reports it
                send_handle(self.connection, descriptor, self.process.pid)
        finally:
            os.close(descriptor)
        self._progress = 0
        self._stalled_s = 0.0
        self._bytes_read = self._bytes_left = self._bytes_allowed = 0
        self._kill_reason: tuple[type[VideoError], str] | None = None
        self._killed_at = 0.0

    def send(self, message: object) -> bool:
        """Send a message; return False if the process has ended."""
        try:
            self.connection.send(message)
        except OSError:
            return False
        return True

    def expect(self, path: Path) -> None:
        """Announce the file of the next request, because reading this file counts as progress.

        Call this before `send`.
        """
        with contextlib.suppress(OSError):
            size = _REMOTE_BYTES if is_remote(path) else path.stat().st_size
            self._bytes_allowed = 2 * size + _READ_AHEAD_BYTES

    def check(self, elapsed_s: float, options: LoaderOptions, tree: list[psutil.Process]) -> None:
        """Kill the process and its children if they made no progress for too long or use too much memory.

        Args:
            elapsed_s: seconds since the last check.
            options: the limits.
            tree: the process and all its descendants.
        """
        if os.fstat(self._worker.stderr).st_size > _STDERR_LIMIT_BYTES:
            os.ftruncate(self._worker.stderr, 0)
        starting = self.ring.state is State.STARTING
        self._stalled_s = 0.0 if self._has_progressed(tree) else self._stalled_s + elapsed_s
        memory_mib = sum(map(private_mib, tree))
        if self._stalled_s >= (max(options.timeout_s, _START_S) if starting else options.timeout_s):
            stalled = f"the decoder made no progress for {options.timeout_s:g} s"
            if self.ring.state is State.FETCHING:
                self._kill_for(NotFinished, f"the object store sent nothing for {options.timeout_s:g} s")
            elif any(map(_waits_for_storage, tree)):
                self._kill_for(NotFinished, f"{stalled} because the storage did not answer, and was killed")
            else:
                self._kill_for(DecoderHung, f"{stalled} and was killed")
        elif memory_mib > options.memory_limit_mib:
            limit = f"more than the {options.memory_limit_mib} MiB allowed"
            self._kill_for(DecoderCrashed, f"the decoder took {memory_mib:.0f} MiB, {limit}, and was killed")

    def _has_progressed(self, tree: list[psutil.Process]) -> bool:
        progress, bytes_read = self.ring.progress, sum(map(_bytes_read, tree))
        more, self._bytes_read = bytes_read - self._bytes_read, bytes_read
        if progress != self._progress or self.ring.state is State.WAITING:
            self._progress, self._bytes_left = progress, self._bytes_allowed
            return True
        # While a decoder opens a long file or seeks in it, it delivers no frame. So reading bytes counts as progress too, up to
        # twice the size of the file.
        self._bytes_left -= max(0, more)
        return more > 0 and self._bytes_left > 0

    def _kill_for(self, kind: type[VideoError], text: str) -> None:
        if self._kill_reason is None:
            self._kill_reason = (kind, text)
            self._killed_at = time.monotonic()
            self._worker.kill()

    @property
    def survives_kill(self) -> bool:
        """True if the process does not end after a kill, for example if it reads from a lost network drive."""
        return self._kill_reason is not None and time.monotonic() - self._killed_at > REAP_S

    def reap(self) -> tuple[VideoError, str]:
        """Kill the process and its children, and free the memory that it shares with the loader.

        The supervisor must stop watching the process before this call. Slots that are still in use stay readable.

        Returns:
            The error that explains why the process ended, and the last lines of the process's stderr.
        """
        self._worker.reap()
        code, stderr = self._worker.process.returncode, read_tail(self._worker.stderr)
        kind, text = _cause(code, stderr) if code is None or self._kill_reason is None else self._kill_reason
        self._worker.close()
        self.ring.close()
        return kind(text), stderr


def _waits_for_storage(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_DISK_SLEEP)
    except (psutil.Error, OSError):
        return False


def _bytes_read(process: psutil.Process) -> int:
    try:
        return int(process.io_counters().read_chars)
    except (psutil.Error, OSError, AttributeError):  # the process has ended, or the system does not count bytes
        return 0


def _cause(code: int | None, stderr: str) -> tuple[type[VideoError], str]:
    """Return the error type and message for a process that ended by itself, or that cannot be killed.

    Args:
        code: the exit code; None if the process cannot be killed.
        stderr: the end of the process's standard error.
    """
    if code is None:
        return NotFinished, "the decoder hangs in a system call and cannot be killed; perhaps a network drive is lost"
    if code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP):
        name = signal.Signals(-code).name
        return NotFinished, f"the decoder was killed from outside ({name}), perhaps because memory ran out"
    if code < 0:
        return DecoderCrashed, f"the decoder died of {signal.Signals(-code).name}"
    last = stderr.splitlines()[-1] if stderr else "no message"
    return DecoderCrashed, f"the decoder ended with exit code {code}: {last}"


class Supervisor:
    """The thread that starts decoder processes, and watches them until they are reaped.

    It lives as long as the loader.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._tick_s = min(_LONGEST_TICK_S, setup.options.timeout_s / 4)
        self._orders: queue.SimpleQueue[Future[DecoderProcess] | None] = queue.SimpleQueue()
        self._processes: list[DecoderProcess] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="vadcli-decoder-supervisor", daemon=True)
        self._thread.start()

    def start(self) -> DecoderProcess:
        """Start a process and watch it from now on."""
        order: Future[DecoderProcess] = Future()
        self._orders.put(order)
        return order.result()

    def reap(self, process: DecoderProcess) -> tuple[VideoError, str]:
        """Stop watching a process, and return the result of `DecoderProcess.reap`."""
        with self._lock:
            self._processes.remove(process)
        return process.reap()

    def stop(self) -> None:
        """Reap all processes and end the thread. A second call does nothing."""
        self._orders.put(None)
        self._thread.join()
        while self._processes:
            self.reap(self._processes[-1])

    def _watch(self) -> None:
        before = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                order = self._orders.get(timeout=max(0.0, before + self._tick_s - time.monotonic()))
                if order is None:
                    return
                self._fill(order)
            now = time.monotonic()
            if now - before < self._tick_s:
                continue
            # While this process or the machine is suspended, decoders may be suspended too. So a very long time between two
            # checks is not counted in full.
            elapsed_s, before = min(now - before, 2 * self._tick_s), now
            with self._lock:
                trees = process_trees([process.process for process in self._processes])
                for process, tree in zip(self._processes, trees, strict=True):
                    process.check(elapsed_s, self._setup.options, tree)

    def _fill(self, order: Future[DecoderProcess]) -> None:
        try:
            process = DecoderProcess(self._setup)
        except Exception as error:  # the thread that waits in `start` must get the error
            order.set_exception(VadcliError(f"no decoder process can be started: {error}"))
            return
        with self._lock:
            self._processes.append(process)
        order.set_result(process)
