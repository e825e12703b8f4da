"""Defines the requests, items, messages and shared memory of the loader and its processes.

The shared memory (`Ring`) contains clips and a progress counter. It has no name in any file system: the system frees it when
the last process that maps it ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import tempfile
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from vadcli.errors import VideoError
from vadcli.types import NO_REGIONS, ByteArray, Clip, ClipNeeds, DecoderChoice, Regions, VideoInfo
from vadcli.video.sampling import ClipParts, Rows

GROUP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})
"""Signals that a terminal or a service manager sends to a whole process group."""


@dataclass(frozen=True)
class LoaderOptions:
    """How videos are decoded, for any detector.

    Attributes:
        workers: number of decoder processes; each has one video open.
        timeout_s: a decoder that makes no progress for this long counts as hung.
        memory_limit_mib: how much memory a decoder process and its children may use, without shared memory.
        decoder: which decoder reads the frames.
        threads: threads per decoder; 0 is the number of cores divided by workers.
        prober: "module:attribute" of a function that describes a video. The decoder process calls it like
            `vadcli.video.probe.probe`.
        reader: "module:attribute" of a class that reads the frames. The decoder process calls it like
            `vadcli.video.reader.FrameReader`. Use this to plug in another decoder.
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
            raise ValueError(f"{self.workers} workers with {self.threads} threads cannot decode")
        if not (self.timeout_s > 0 and self.memory_limit_mib > 0):
            raise ValueError(f"time ({self.timeout_s} s) and memory ({self.memory_limit_mib} MiB) limits must be positive")


@dataclass(frozen=True)
class ClipRequest:
    """One video to read as clips.

    Attributes:
        video: relative path of the video; each of its items has this path.
        path: the file, or the folder of images.
        fps: frame rate of a folder of images.
        start_clip: the first clip to read. Rows start at its `SamplingPlan.first_row`, after the last row of the previous clip.
        bursts: if given, only one clip is read at each of these positions, which are fractions [0, 1) of the video's frames.
            The clips are numbered in this order and have no rows. If no frame of a burst was decoded, the burst is left out.
        exact: True if each burst starts exactly at its position; False if it may start nearby, where decoding is cheapest.
        spans: if given, only these ranges of rows [first, last) are read. They must be ordered and must not overlap, and each
            `first` must be a sampled row. Each range is cut into clips like a separate video. The index of a clip is then the
            number of its range, and clips have no rows.
        decoder: replaces the loader's choice of decoder for this video; the loader sets it after decord has crashed.
        regions: the parts of the picture to hide in the clips.
        damaged: True if there is damage before `start_clip`. All frames are then decoded, as in a scan without interruption.
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
            raise ValueError(f"{self.video}: start_clip {self.start_clip} must be at least 0, and 0 if bursts are given")
        if not all(0 <= position < 1 for position in self.bursts):
            raise ValueError(f"{self.video}: burst positions {self.bursts} must be in [0, 1)")
        if self.spans and (self.start_clip or self.bursts):
            raise ValueError(f"{self.video}: spans cannot be combined with bursts or a start clip")
        edges = [0, *(row for span in self.spans for row in span)]
        if any(first >= last for first, last in self.spans) or edges != sorted(edges):
            raise ValueError(f"{self.video}: spans {self.spans} must be non-empty and in order")


@dataclass(frozen=True)
class Opened:
    """The first item of a video: the result of the probe. If the video cannot be probed, there is no such item."""

    video: str
    info: VideoInfo


@dataclass(frozen=True)
class ClipReady:
    """A clip and its rows, as in `ClipParts`. The clip is valid until the next item is requested."""

    video: str
    clip: Clip
    rows: Rows


@dataclass(frozen=True)
class Finished:
    """The last item of every video, whatever happened to it.

    Attributes:
        info: None if the video could not be opened.
        decoder: the last decoder of the video; "" if it is not known.
        rows: the rows after the last clip. If the decoder process died, the rows that it had not sent are missing.
        decoded_frames: number of rows with decode_ok in all items of this request.
        error: why the video was not read to its end, or None. Skipped frames and concealed damage are no error.
        complaints: the decoder's messages, for people to read.
        note: which decoder failed before another one read the video, and why; usually empty.
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
    """The first message to a decoder process. Later messages are requests and numbers of free slots."""

    needs: ClipNeeds
    options: LoaderOptions
    threads: int
    slots: int


@dataclass(frozen=True)
class Begun:
    """Message from a decoder process: this decoder now reads the video; sent before the decoder is used."""

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
    WAITING = 2  # waits for a video, a free slot or the loader; never counts as hung
    FETCHING = 3  # it copies an object of a store to this machine


def anonymous_file(size: int) -> int:
    """Return a descriptor of zeroed memory; the caller closes it.

    If the system has no memfd, the memory is a temporary file without a name.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("vadcli")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def read_tail(descriptor: int, limit: int = 4000) -> str:
    """Return the last `limit` bytes of an open file as text. The position in the file stays."""
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, limit, max(0, size - limit)).decode(errors="replace").strip()


class Ring:
    """Shared memory: a header with two numbers, then slots. The decoder process writes, the loader reads.

    Args:
        descriptor: from `anonymous_file(Ring.size(...))`; it may be closed after this call.
        slots: number of slots; each can contain one clip.
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
        """Return the size of a ring in bytes. Only the pages that are written take memory."""
        return _HEADER_BYTES + slots * slot_bytes

    @property
    def state(self) -> State:
        """What the decoder process is doing; WORKING if a faulty decoder has overwritten the number."""
        number = int(self._header[0])
        return State(number) if number in list(State) else State.WORKING

    @state.setter
    def state(self, state: State) -> None:
        self._header[0] = state

    @property
    def progress(self) -> int:
        """How many steps (rows and messages) the decoder process has made since it started."""
        return int(self._header[1])

    def advance(self) -> None:
        """Count a step."""
        self._header[1] += 1

    def slot(self, number: int, shape: tuple[int, ...]) -> ByteArray:
        """Return a slot as a uint8 array, read-only for the loader; ValueError if the shape is too large."""
        count = int(np.prod(shape))
        if count > self._slot_bytes:
            raise ValueError(f"a clip of shape {shape} needs {count} bytes, but a slot has {self._slot_bytes}")
        offset = _HEADER_BYTES + number * self._slot_bytes
        return np.frombuffer(self._map, np.uint8, count=count, offset=offset).reshape(shape)

    def close(self) -> None:
        """Release the memory; it is freed once no view of a slot is left."""
        del self._header
        with contextlib.suppress(BufferError):
            self._map.close()
