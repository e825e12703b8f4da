"""Memory that the loader and one decoder process share: clip slots, a progress counter, the decoder's last words.

None of it has a name, so nothing can be left behind: it goes when the last process that maps it goes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from enum import IntEnum

import numpy as np

from vadcli.types import ByteArray

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
