"""An encoder whose answer is known: colours of pictures and colour words of sentences have axes of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vadcli.types import ByteArray, FloatArray

COLOURS = ("red", "green", "blue")
NORMAL = 3
WIDTH = 8


class PlantedEncoder:
    """A picture's vector says how much of it is red, green and blue; a sentence's vector is the axis of its colour word.

    Everything else is "normal". A little texture goes to other axes, so that pictures differ.
    """

    name = "planted"
    width = WIDTH
    size_px = 32
    temperature = 0.03
    max_tokens = 77

    def encode_images(self, frames: ByteArray) -> FloatArray:
        """(N, H, W, 3) uint8 -> (N, 8)."""
        return self._vectors(self._patches(frames, 1))[:, 0, 0]

    def patch_map(self, frames: ByteArray) -> FloatArray:
        """(N, H, W, 3) uint8 -> (N, 4, 4, 8)."""
        return self._vectors(self._patches(frames, 4))

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """The axis of the colour word; else the normal one. The length of the text tilts it a little."""
        vectors = np.zeros((len(texts), WIDTH), np.float32)
        for row, text in enumerate(texts):
            axis = next((axis for axis, colour in enumerate(COLOURS) if colour in text), NORMAL)
            vectors[row, axis] = 1.0
            vectors[row, 4 + len(text) % 4] = 0.02
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def text_tokens(self, text: str) -> int:
        """Words, with a start and an end token."""
        return len(text.split()) + 2

    def fingerprint(self) -> dict[str, object]:
        """A constant."""
        return {"encoder": "planted"}

    def _patches(self, frames: ByteArray, count: int) -> FloatArray:
        """(N, count, count, 4): shares of red, green and blue pixels, and brightness."""
        values = frames.astype(np.float32)
        high = values > values.mean(axis=-1, keepdims=True) + 40.0
        kinds = np.concatenate([high, values.mean(axis=-1, keepdims=True) / 255.0], axis=-1)
        rows = [np.array_split(row, count, axis=2) for row in np.array_split(kinds, count, axis=1)]
        return np.stack([np.stack([cell.mean(axis=(1, 2)) for cell in row], axis=1) for row in rows], axis=1)

    def _vectors(self, patches: FloatArray) -> FloatArray:
        vectors = np.zeros((*patches.shape[:-1], WIDTH), np.float32)
        vectors[..., :3] = 4.0 * patches[..., :3]
        vectors[..., NORMAL] = 1.0
        vectors[..., 4:] = 0.05 * np.sin(50.0 * patches[..., 3:] + np.arange(4))
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
