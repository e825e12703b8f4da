"""Makes samples from output folders: the stored vectors of a video, or of the span of an event, of one or more encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vadcli.errors import DocumentError
from vadcli.heads import LOGIT_LIMIT, Sample
from vadcli.heads.stored import CardEncoder
from vadcli.store import OutputLayout
from vadcli.store.scores import StoredEmbeddings, read_embeddings
from vadcli.types import Embeddings, FloatArray, IndexArray, ScoreTable, TimeArray

MOST_ROWS = 64
"""If an event has more frames than this, frames are left out evenly."""


@dataclass(frozen=True)
class VideoVectors:
    """The stored vectors of a video.

    Attributes:
        camera: the camera's name.
        encoders: the encoders of the vectors.
        frame_index: (S,) int64 frames.
        timestamp: (S,) float64 seconds.
        vectors: S vectors per encoder; those of the second one are the nearest in time.
    """

    camera: str
    encoders: tuple[CardEncoder, ...]
    frame_index: IndexArray = field(repr=False)
    timestamp: TimeArray = field(repr=False)
    vectors: tuple[Embeddings, ...] = field(repr=False)

    def centre(self, encoder: int = 0) -> FloatArray:
        """Return (D,) float32 the mean vector of the video."""
        return np.asarray(self.vectors[encoder].vectors().mean(axis=0), np.float32)

    def of_span(self, start_s: float, end_s: float, peak_score: float) -> Sample:
        """Return the sample of an event: the frames of its span that have vectors, or the nearest such frame.

        Args:
            start_s, end_s: the span.
            peak_score: highest score of the event in [0, 1]; every row gets its logit.
        """
        rows = np.flatnonzero((self.timestamp >= start_s) & (self.timestamp < end_s))
        if not len(rows):
            rows = np.array([np.abs(self.timestamp - start_s).argmin()])
        if len(rows) > MOST_ROWS:
            rows = rows[np.linspace(0, len(rows) - 1, MOST_ROWS).round().astype(np.int64)]
        return self._sample(rows, np.full(len(rows), logit_of_score(peak_score), np.float32))

    def whole(self, table: ScoreTable) -> Sample:
        """Return the sample of the whole video, with the detector's logits of the frames that have a vector."""
        return self._sample(np.arange(len(self.timestamp)), table.logit[np.minimum(self.frame_index, len(table) - 1)])

    def _sample(self, rows: IndexArray, logit: FloatArray) -> Sample:
        return Sample(tuple(one[rows].vectors() for one in self.vectors), logit, self.timestamp[rows])


def logit_of_score(score: float) -> float:
    """Return the logit of a score in [0, 1], within ± LOGIT_LIMIT."""
    inside = min(max(score, 1e-7), 1.0 - 1e-7)
    return float(np.clip(np.log(inside / (1.0 - inside)), -LOGIT_LIMIT, LOGIT_LIMIT))


def read_vectors(folders: Sequence[Path], video: str) -> VideoVectors | None:
    """Read the vectors of a video from each output folder, one encoder per folder; None if a folder has none of this video.

    Raises:
        DocumentError: a file is damaged.
    """
    paths = [OutputLayout(folder).embeddings(video) for folder in folders]
    if not all(path.exists() for path in paths):
        return None
    found = [read_embeddings(path) for path in paths]
    first = found[0]
    if not all(len(one.timestamp) for one in found):
        return None
    for path, one in zip(paths, found, strict=True):
        if one.metadata.content != first.metadata.content:
            raise DocumentError(f"{path}: vectors of another file than in {paths[0]}", hint="embed the same footage again")
    return VideoVectors(
        first.metadata.camera,
        tuple(CardEncoder(one.metadata.encoder, one.metadata.encoder_key, one.embeddings.values.shape[1]) for one in found),
        first.frame_index,
        first.timestamp,
        tuple(one.embeddings[_nearest(one, first.timestamp)] for one in found),
    )


def _nearest(stored: StoredEmbeddings, timestamp: TimeArray) -> IndexArray:
    """Return (S,) the rows that are nearest to each of these times."""
    after = np.searchsorted(stored.timestamp, timestamp).clip(1, max(len(stored.timestamp) - 1, 1))
    before, after = after - 1, np.minimum(after, len(stored.timestamp) - 1)
    earlier = np.abs(timestamp - stored.timestamp[before]) <= np.abs(stored.timestamp[after] - timestamp)
    return np.asarray(np.where(earlier, before, after), np.int64)
