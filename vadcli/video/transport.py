"""What is asked of the loader, what it gives, and what its decoder processes send it.

Memory that the loader and one decoder process share: clip slots, a progress counter, the decoder's last words.

None of it has a name, so nothing can be left behind: it goes when the last process that maps it goes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from vadcli.errors import VideoError
from vadcli.types import ByteArray, Clip, ClipNeeds, VideoInfo
from vadcli.video.images import DecoderChoice
from vadcli.video.sampling import ClipParts, Rows


@dataclass(frozen=True)
class LoaderOptions:
    """How videos are decoded, whoever wants the clips.

    Attributes:
        workers: decoder processes; each has one video open.
        timeout_s: a decoder that reads no row for so long is hung.
        memory_limit_mib: what a decoder process and its children may hold, shared memory apart.
        decoder: which decoder reads.
        threads: threads a decoder; 0 is the number of cores divided by workers.
        prober: "module:attribute" of what opens a video, called in the decoder process like `vadcli.video.probe.probe`.
        reader: "module:attribute" of what reads its frames, called in the decoder process like
            `vadcli.video.reader.FrameReader`. Another decoder plugs in here; it must be importable by name.
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
            raise ValueError(f"{self.workers} workers of {self.threads} threads can't decode")
        if not (self.timeout_s > 0 and self.memory_limit_mib > 0):
            raise ValueError(f"time ({self.timeout_s} s) and memory ({self.memory_limit_mib} MiB) limits must be positive")


@dataclass(frozen=True)
class ClipRequest:
    """One video, wanted as clips.

    Attributes:
        video: the key that items carry, the relative path.
        path: the file, or the folder of images.
        fps: for folders of images.
        start_clip: the first clip wanted. Rows start at `SamplingPlan.first_row` of it: right after the last row that the
            clip before brought.
        bursts: where given, only one clip from each of these positions, fractions [0, 1) of the video's frames, numbered
            in this order; no rows. A burst in which nothing was decoded is left out.
        exact: bursts start at the very sample; else near it, where decoding is cheapest.
        spans: where given, only the rows of these ranges [first, last), in order and apart; each first is a sampled row. Each
            range is cut into clips as if it were a video of its own; clips carry the range's number and bring no rows.
    """

    video: str
    path: Path
    fps: float | None = None
    start_clip: int = 0
    bursts: tuple[float, ...] = ()
    exact: bool = False
    spans: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.start_clip < 0 or (self.start_clip and self.bursts):
            raise ValueError(f"{self.video}: can't start at clip {self.start_clip} with {len(self.bursts)} bursts")
        if not all(0 <= position < 1 for position in self.bursts):
            raise ValueError(f"{self.video}: burst positions {self.bursts} must lie in [0, 1)")
        if self.spans and (self.start_clip or self.bursts):
            raise ValueError(f"{self.video}: spans come without bursts and from the first clip on")
        edges = [0, *(row for span in self.spans for row in span)]
        if any(first >= last for first, last in self.spans) or edges != sorted(edges):
            raise ValueError(f"{self.video}: spans {self.spans} must hold rows, and come in order")


@dataclass(frozen=True)
class Opened:
    """A video was probed; the first item of a video that can be read at all."""

    video: str
    info: VideoInfo


@dataclass(frozen=True)
class ClipReady:
    """A clip, in memory that is valid until the next item is asked for.

    Attributes:
        rows: all rows since the previous clip's, up to and including the clip's last sampled row.
    """

    video: str
    clip: Clip
    rows: Rows


@dataclass(frozen=True)
class Finished:
    """The last item of a video, whatever happened to it.

    Attributes:
        info: None where the video could not be opened.
        decoder: which decoder read it last, "" where none did or it is not known.
        rows: the rows after the last clip's. None of those whose decoder process died before it sent them.
        decoded_frames: how many rows with decode_ok the items of this request carried.
        error: why the video is not whole, or None. Frames that were skipped or concealed alone are no error.
        complaints: what the decoder said, for people.
    """

    video: str
    info: VideoInfo | None
    decoder: str
    rows: Rows
    decoded_frames: int
    error: VideoError | None
    complaints: str


Item = Opened | ClipReady | Finished


@dataclass(frozen=True)
class Setup:
    """First message to a decoder process; then come requests, and numbers of slots that are free again."""

    needs: ClipNeeds
    options: LoaderOptions
    threads: int
    slots: int


@dataclass(frozen=True)
class Filled:
    """Message of a decoder process: a clip of this shape lies in this slot."""

    slot: int
    shape: tuple[int, ...]
    parts: ClipParts
    decoder: str


@dataclass(frozen=True)
class Done:
    """Message of a decoder process: the video has ended.

    Attributes:
        retiring: True where the process ends itself now, having grown too large.
    """

    decoder: str
    rows: Rows
    error: VideoError | None
    complaints: str
    retiring: bool


_HEADER_BYTES = mmap.ALLOCATIONGRANULARITY


class State(IntEnum):
    """What a decoder process is doing."""

    STARTING = 0
    WORKING = 1
    WAITING = 2  # for a video, for a free slot, or for the loader to read a message: not hung however long it takes


def anonymous_file(size: int) -> int:
    """A descriptor of zeroed memory (or of a file without a name, where there is no memfd), closed by the caller."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("vadcli")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def read_tail(descriptor: int, limit: int = 4000) -> str:
    """The last `limit` bytes of a file as text, wherever its position is."""
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, limit, max(0, size - limit)).decode(errors="replace").strip()


class Ring:
    """Slots of one size behind a header of two numbers. The decoder process writes, the loader only reads.

    Args:
        descriptor: from `anonymous_file(Ring.size(...))`; the ring keeps its own hold of it.
        slots: how many clips fit.
        slot_bytes: room for a clip.
        writable: True in the decoder process.
    """

    def __init__(self, descriptor: int, *, slots: int, slot_bytes: int, writable: bool) -> None:
        self._slot_bytes = slot_bytes
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(descriptor, self.size(slots, slot_bytes), prot=access)
        self._header = np.frombuffer(self._map, np.int64, count=2)  # state, progress

    @staticmethod
    def size(slots: int, slot_bytes: int) -> int:
        """Bytes of a ring; only those that are written to take memory."""
        return _HEADER_BYTES + slots * slot_bytes

    @property
    def state(self) -> State:
        """What the decoder process is doing; WORKING where it has overwritten the answer."""
        number = int(self._header[0])
        return State(number) if number in list(State) else State.WORKING

    @state.setter
    def state(self, state: State) -> None:
        self._header[0] = state

    @property
    def progress(self) -> int:
        """How many steps (rows, messages) the decoder process has made in its life."""
        return int(self._header[1])

    def advance(self) -> None:
        """Count a step."""
        self._header[1] += 1

    def slot(self, number: int, shape: tuple[int, ...]) -> ByteArray:
        """A view of a slot as a uint8 array, read-only on the loader's side.

        Raises:
            ValueError: the shape has more bytes than a slot.
        """
        count = int(np.prod(shape))
        if count > self._slot_bytes:
            raise ValueError(f"a clip of {shape} takes {count} bytes, a slot has {self._slot_bytes}")
        offset = _HEADER_BYTES + number * self._slot_bytes
        return np.frombuffer(self._map, np.uint8, count=count, offset=offset).reshape(shape)

    def close(self) -> None:
        """Let go of the memory; views that are still held keep it until they go."""
        del self._header
        with contextlib.suppress(BufferError):
            self._map.close()
