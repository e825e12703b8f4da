"""Keeps measurements of clips after a camera was fitted, because the same clips are scored next."""

from __future__ import annotations

import hashlib
import threading
from typing import Generic, TypeVar

import numpy as np

from vadcli.types import BoolArray, ByteArray, TimeArray

KEPT_BYTES = 128 << 20

Found = TypeVar("Found")


class KeptClips(Generic[Found]):
    """A store of the measurements of clips. Threads may share a store.

    The key of the measurements is a hash of the clip. `take` removes the measurements. A full store drops the oldest
    measurements. The detector then measures these clips again, so the store does not change any score.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most = most_bytes
        self._found: dict[bytes, tuple[int, Found]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, key: bytes) -> bool:
        return key in self._found

    def put(self, key: bytes, found: Found, size: int) -> None:
        """Store the measurements of a clip. They need `size` bytes."""
        with self._lock:
            self._found[key] = size, found
            while self._found and sum(size for size, _ in self._found.values()) > self._most:
                del self._found[next(iter(self._found))]

    def take(self, key: bytes) -> Found | None:
        """Remove and return the measurements of a clip; None if the store does not have them."""
        with self._lock:
            return self._found.pop(key, (0, None))[1]


def clip_key(frames: ByteArray, timestamp: TimeArray, valid: BoolArray, *, video: str) -> bytes:
    """Return a hash of the video, the times and every fourth row of pixels of a clip (T, H, W).

    The other rows are left out to save time. This is enough, because the clips of a video have different times.
    """
    digest = hashlib.blake2b(f"{frames.shape} ".encode() + video.encode("utf-8", "surrogateescape"), digest_size=16)
    for part in (frames[:, ::4], timestamp, valid):
        digest.update(np.ascontiguousarray(part).data)
    return digest.digest()
