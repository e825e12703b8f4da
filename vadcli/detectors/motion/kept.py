"""Keeps the measurements of the clips that a camera was fitted on, because the same clips are scored next."""

from __future__ import annotations

import hashlib
import threading

import numpy as np

from vadcli.detectors.motion.features import ClipMaps
from vadcli.types import BoolArray, ByteArray, FloatArray, TimeArray

KEPT_BYTES = 256 << 20

Kept = tuple[ClipMaps, FloatArray]
"""The maps of a clip, and its rarity (T, h, w)."""


class KeptClips:
    """A store of measurements, found by the content of their clips. Threads may share it.

    Each measurement can be taken once. If the store is full, the oldest measurements are dropped, and their clips are measured
    again. So neither the store nor its size changes a score.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most = most_bytes
        self._found: dict[bytes, Kept] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._found)

    def put(self, key: bytes, kept: Kept) -> None:
        """Stores the measurements of a clip."""
        with self._lock:
            self._found[key] = kept
            while self._found and sum(map(_bytes_of, self._found.values())) > self._most:
                del self._found[next(iter(self._found))]

    def take(self, key: bytes) -> Kept | None:
        """Returns the measurements of a clip and forgets them; None if there are none."""
        with self._lock:
            return self._found.pop(key, None)


def clip_key(frames: ByteArray, timestamp: TimeArray, seen: BoolArray, *, video: str, model: str) -> bytes:
    """Returns a hash of everything that the measurements of a clip depend on; `model` is the hash of the camera model."""
    digest = hashlib.blake2b(f"{model} {frames.shape} ".encode() + video.encode("utf-8", "surrogateescape"), digest_size=16)
    for part in (frames, timestamp, seen):
        digest.update(np.ascontiguousarray(part).data)
    return digest.digest()


def _bytes_of(kept: Kept) -> int:
    maps, rare = kept
    parts = (maps.velocity, maps.speed, maps.disorder, maps.still, rare)
    return sum(part.nbytes for part in parts if part is not None)
