"""A fake encoder and a fake asker whose results are easy to predict.

The encoder has one dimension per colour, for both pictures and sentences. The asker answers yes if a clip shows the colour in
the question.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vadcli.detectors.ask import Question
from vadcli.types import ByteArray, FloatArray

COLOURS = ("red", "green", "blue")
NORMAL = 3
WIDTH = 8


class PlantedEncoder:
    """Encodes pictures by their shares of red, green and blue pixels, and sentences by their colour word.

    A fourth dimension means "normal". The other dimensions depend a little on the brightness, so that pictures differ.
    """

    name = "planted"
    width = WIDTH
    size_px = 32
    temperature = 0.03
    max_tokens = 77

    def encode_images(self, frames: ByteArray) -> FloatArray:
        """Return the vectors (N, 8) of pictures (N, H, W, 3) uint8."""
        return self._vectors(self._patches(frames, 1))[:, 0, 0]

    def patch_map(self, frames: ByteArray) -> FloatArray:
        """Return the patch vectors (N, 4, 4, 8) of pictures (N, H, W, 3) uint8."""
        return self._vectors(self._patches(frames, 4))

    def encode_text(self, texts: Sequence[str]) -> FloatArray:
        """Return (N, 8): the dimension of the colour word, or "normal".

        The length of the text changes the vector a little.
        """
        vectors = np.zeros((len(texts), WIDTH), np.float32)
        for row, text in enumerate(texts):
            axis = next((axis for axis, colour in enumerate(COLOURS) if colour in text), NORMAL)
            vectors[row, axis] = 1.0
            vectors[row, 4 + len(text) % 4] = 0.02
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def text_tokens(self, text: str) -> int:
        """Return the number of words plus a start and an end token."""
        return len(text.split()) + 2

    def fingerprint(self) -> dict[str, object]:
        """Return a constant."""
        return {"encoder": "planted"}

    def _patches(self, frames: ByteArray, count: int) -> FloatArray:
        """Return (N, count, count, 4): shares of red, green and blue pixels, and brightness."""
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


class PlantedAsker:
    """Answers yes to a question with a colour if more than 5 % of the clip's pixels have this colour.

    The brightness changes the answers a little.

    Attributes:
        asked: number of clips in all calls.
    """

    name = "planted-asker"
    clip_frames, clip_s, max_area_px = 8, 8.0, 4096
    batch_size = parallel = 1

    def __init__(self) -> None:
        self.asked = 0

    def prepare(self) -> None:
        """Do nothing, because there are no weights to load."""

    def ask(self, frames: ByteArray, questions: Sequence[Question]) -> FloatArray:
        """Return log-odds (N, Q) for clips (N, T, H, W, 3): 0 at 5 % of the colour, -2 without it."""
        self.asked += len(frames)
        values = frames.astype(np.float32)
        shares = (values > values.mean(axis=-1, keepdims=True) + 40.0).mean(axis=(1, 2, 3))  # (N, 3)
        brightness = values.mean(axis=(1, 2, 3, 4)) / 255.0
        logits = np.full((len(frames), len(questions)), -2.0, np.float32) + 0.2 * np.sin(90 * brightness)[:, None]
        for place, question in enumerate(questions):
            for axis, colour in enumerate(COLOURS):
                logits[:, place] += 40.0 * shares[:, axis] * (colour in question.text)
        return logits.astype(np.float32)

    def describe(self, frames: ByteArray) -> str:
        """Return a sentence with the most frequent colour."""
        values = frames.astype(np.float32)
        shares = (values > values.mean(axis=-1, keepdims=True) + 40.0).mean(axis=(0, 1, 2))
        return f"Something {COLOURS[int(shares.argmax())]} is there." if shares.max() > 0.01 else "Nothing happens."

    def fingerprint(self) -> dict[str, object]:
        """Return a constant."""
        return {"asker": "planted"}
