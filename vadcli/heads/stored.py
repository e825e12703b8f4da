"""Writes and reads the folders of heads, and reads the stored vectors that a head scores.

The folder of a head has two files. `head.safetensors` has the arrays. `card.json` says how the head was trained, and how well
it did in a test.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from vadcli import __version__
from vadcli.errors import DocumentError, UsageError, WeightsError
from vadcli.heads import HEADS_VERSION, LOGIT_LIMIT, Head, Labels, Sample, Scale, pooled
from vadcli.registry import HEADS
from vadcli.store import OutputLayout
from vadcli.store.scores import read_embeddings
from vadcli.types import Embeddings, FloatArray, IndexArray, ScoreTable, TimeArray, sigmoid
from vadcli.types.text import document_errors, no_folder, read_document, structure, unreadable

CARD_FORMAT_VERSION = 1
_WHAT = "a head's card"
_AGAIN = "train it again with `vadcli learn`"
ROOM = 1.5
"""A video is unlike the training videos if its distance from the nearest of them is more than ROOM × `Card.reach`."""


@dataclass(frozen=True)
class CardEncoder:
    """An encoder whose vectors a head reads.

    Attributes:
        name: the encoder's name or folder, as the user gave it.
        key: hash of the encoder. The files with its vectors store the same hash.
        width: number of values per vector.
    """

    name: str
    key: str
    width: int


@dataclass(frozen=True)
class HeadComparison:
    """A comparison of a head with the detector alone, on examples that the head was not trained on.

    Attributes:
        recall: fraction of the true examples that must be found. The thresholds of the detector and of the head are chosen so
            that both reach this recall.
        detector_per_hour, head_per_hour: false alarms per hour of the detector and of the head at these thresholds.
        change_per_hour: head_per_hour - detector_per_hour.
        low, high: 95 % confidence interval of `change_per_hour`.
        detector_auc, head_auc: ROC-AUC of the detector and of the head.
        threshold: the threshold of the head, a scaled logit.
    """

    recall: float
    detector_per_hour: float
    head_per_hour: float
    change_per_hour: float
    low: float
    high: float
    detector_auc: float
    head_auc: float
    threshold: float

    @property
    def is_better(self) -> bool:
        """True if the head certainly gives fewer false alarms: the whole confidence interval is below 0."""
        return self.high < 0.0


@dataclass(frozen=True)
class Card:
    """The content of `card.json`: how a head was trained, and how well it did in a test.

    Attributes:
        kind: kind of the head, a name in `vadcli.registry.HEADS`.
        heads_version: the value of `HEADS_VERSION` when the head was trained.
        seed: seed of the training and of the cross-validation.
        labels: the kind of labels that the head learned from.
        detector: name of the detector that scored the training videos.
        encoders: the encoders whose vectors the head needs, in this order.
        cameras: the cameras of the training videos.
        videos: number of training videos.
        true, false: number of true and of false training examples.
        hours: length of the footage in hours; false alarms per hour are computed with it.
        figures: the cross-validated comparison with the detector; None if the head could not be tested.
        scale: the scale for the head's logits.
        threshold: the scaled logit that becomes the score 0.5.
        categories: names of the categories; empty if the head did not learn from categories.
        reach: largest distance from a training video to the training video nearest to it (see `reach_of`). If a
            new video is much farther than this from every training video, it is unlike the training videos.
        generator: program and version that wrote the folder.
    """

    kind: str
    heads_version: int
    seed: int
    labels: Labels
    detector: str
    encoders: tuple[CardEncoder, ...]
    cameras: tuple[str, ...]
    videos: int
    true: int
    false: int
    hours: float
    figures: HeadComparison | None
    threshold: float
    scale: Scale = field(default_factory=Scale)
    categories: tuple[str, ...] = ()
    reach: float = 0.0
    generator: str = f"vadcli {__version__}"


@dataclass(frozen=True)
class StoredHead:
    """A head with its card.

    Attributes:
        name: the name of the head's folder.
        card: how the head was trained, and how well it did in a test.
        head: the head itself.
        centres: (V, D), for each training video the mean of its vectors from the first encoder.
        key: hash of the card and of the head's arrays.
    """

    name: str
    card: Card
    head: Head = field(repr=False)
    centres: FloatArray = field(repr=False)
    key: str = ""

    def score(self, sample: Sample) -> FloatArray:
        """Return the score of each frame, (S,) float32 in [0, 1]; the card's threshold becomes the score 0.5."""
        return sigmoid(self.card.scale(self.head.score(sample)) - np.float32(self.card.threshold))

    def judge(self, sample: Sample) -> float:
        """Return one score in [0, 1] for a whole sample; see `pooled`."""
        return float(sigmoid(self.card.scale(np.array(pooled(self.head, sample))) - np.float32(self.card.threshold)))

    def strangeness(self, centre: FloatArray) -> float:
        """Return how different a video is from the training videos: 0 or more.

        The number is above 1 if no training video is similar.

        Args:
            centre: (D,) mean of the video's vectors from the first encoder.
        """
        distance = float(np.linalg.norm(self.centres - centre, axis=1).min())
        return distance / (ROOM * self.card.reach) if self.card.reach > 0 else 0.0


def reach_of(centres: FloatArray) -> float:
    """Return the largest distance from a vector in `centres` (V, D) to its nearest neighbour; 0 if V < 2."""
    if len(centres) < 2:
        return 0.0
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    return float(distance.min(axis=1).max())


def write_head(folder: Path, card: Card, head: Head, centres: FloatArray) -> None:
    """Write a head to a folder that is new or empty.

    Raises:
        OSError: the folder can't be written.
    """
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"head.{name}": np.ascontiguousarray(value) for name, value in head.state().items()}
    (folder / "head.safetensors").write_bytes(save({**arrays, "centres": np.ascontiguousarray(centres)}))
    text = json.dumps({"format_version": CARD_FORMAT_VERSION, **asdict(card)}, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")


def read_head(folder: Path) -> StoredHead:
    """Read a head from its folder.

    Raises:
        UsageError: the folder does not exist, or this kind of head is not installed.
        DocumentError: a file is missing or damaged.
        WeightsError: the head is from a version of vadcli that computes scores in another way.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not folder.is_dir():
        hint = "name a folder that `vadcli learn --to` wrote"
        raise UsageError(f"{folder}: {no_folder(folder)}", hint=hint)
    path, arrays_path = folder / "card.json", folder / "head.safetensors"
    document = read_document(path, version=CARD_FORMAT_VERSION, what=_WHAT, hint=_AGAIN)
    if document.get("heads_version") != HEADS_VERSION:
        raise WeightsError(
            f"{folder}: the head has version {document.get('heads_version')}, but this vadcli reads version {HEADS_VERSION}",
            hint=_AGAIN,
        )
    with document_errors(path, _WHAT, _AGAIN):
        card = structure(Card, document, extra=True)
    try:
        arrays: dict[str, FloatArray] = load(arrays_path.read_bytes())
    except OSError as error:
        raise DocumentError(unreadable(arrays_path, error), hint=_AGAIN) from error
    except SafetensorError as error:
        raise DocumentError(f"{arrays_path}: not a safetensors file: {error}", hint=_AGAIN) from error
    kind = head_kind(card.kind)
    try:
        head = kind.of({name.removeprefix("head."): value for name, value in arrays.items() if name.startswith("head.")})
        centres = arrays["centres"]
    except (KeyError, ValueError) as error:
        raise DocumentError(f"{arrays_path}: not the arrays of a {card.kind} head: {error}", hint=_AGAIN) from error
    digest = hashlib.sha256(path.read_bytes() + arrays_path.read_bytes()).hexdigest()
    return StoredHead(folder.resolve().name, card, head, centres, digest)


def head_kind(name: str) -> type[Head]:
    """Return the class of a kind of head; raise UsageError if this kind is not installed."""
    kind: type[Head] = HEADS.load(name)
    HEADS.check(name, ok=isinstance(kind, type) and isinstance(kind, Head), what="is not a head (see vadcli.heads.Head)")
    return kind


def matching(card: Card, stored: Sequence[CardEncoder]) -> str:
    """Return in one line why a head can't use the stored vectors of these encoders; "" if it can."""
    for wanted, encoder in zip(card.encoders, stored, strict=False):
        if wanted.key != encoder.key:
            other = " with other weights" if wanted.name == encoder.name else ""
            return f"it reads vectors of the encoder {wanted.name}, and the stored vectors are of {encoder.name}{other}"
    if len(stored) < len(card.encoders):
        return f"it reads vectors of {len(card.encoders)} encoders ({', '.join(wanted.name for wanted in card.encoders)})"
    return ""


MOST_ROWS = 64
"""A sample of an event has at most this many frames. If the event has more frames, they are evenly spaced."""


@dataclass(frozen=True)
class VideoVectors:
    """The stored vectors of a video.

    Attributes:
        camera: the camera's name.
        encoders: the encoders that made the vectors.
        frame_index: (S,) int64, numbers of the frames that have a vector from the first encoder.
        timestamp: (S,) float64, times of these frames in seconds.
        vectors: S vectors per encoder. If another encoder has no vector at one of these times, its vector nearest in time is
            used.
    """

    camera: str
    encoders: tuple[CardEncoder, ...]
    frame_index: IndexArray = field(repr=False)
    timestamp: TimeArray = field(repr=False)
    vectors: tuple[Embeddings, ...] = field(repr=False)

    def centre(self, encoder: int = 0) -> FloatArray:
        """Return the mean (D,) float32 of the video's vectors from one encoder."""
        return np.asarray(self.vectors[encoder].vectors().mean(axis=0), np.float32)

    def of_span(self, start_s: float, end_s: float, peak_score: float) -> Sample:
        """Return the sample of an event: the frames in its span that have vectors, at most 64.

        If no frame in the span has a vector, the sample is a single frame: of all frames with a vector, the frame that is
        nearest in time to the start of the event.

        Args:
            start_s, end_s: the span of the event in seconds.
            peak_score: the highest score of the event, in [0, 1]. All frames of the sample get the logit of this score.
        """
        rows = np.flatnonzero((self.timestamp >= start_s) & (self.timestamp < end_s))
        if not len(rows):
            rows = np.array([np.abs(self.timestamp - start_s).argmin()])
        if len(rows) > MOST_ROWS:
            rows = rows[np.linspace(0, len(rows) - 1, MOST_ROWS).round().astype(np.int64)]
        return self._sample(rows, np.full(len(rows), logit_of_score(peak_score), np.float32))

    def whole(self, table: ScoreTable) -> Sample:
        """Return a sample of all frames of the video that have vectors. Their logits come from `table`."""
        return self._sample(np.arange(len(self.timestamp)), table.logit[np.minimum(self.frame_index, len(table) - 1)])

    def _sample(self, rows: IndexArray, logit: FloatArray) -> Sample:
        return Sample(tuple(embeddings[rows].vectors() for embeddings in self.vectors), logit, self.timestamp[rows])


def logit_of_score(score: float) -> float:
    """Return the logit of a score in [0, 1], clipped to ± LOGIT_LIMIT."""
    inside = min(max(score, 1e-7), 1.0 - 1e-7)
    return float(np.clip(np.log(inside / (1.0 - inside)), -LOGIT_LIMIT, LOGIT_LIMIT))


def read_vectors(folders: Sequence[Path], video: str) -> VideoVectors | None:
    """Return the vectors of a video, which are read from one folder per encoder.

    The result is None if one of the folders has no vectors of the video.

    Raises:
        DocumentError: a file is damaged, or the vectors in two folders are from different videos with the same name.
    """
    paths = [OutputLayout(folder).embeddings(video) for folder in folders]
    if not all(path.exists() for path in paths):
        return None
    tables = [read_embeddings(path) for path in paths]
    first = tables[0]
    if not all(len(table.timestamp) for table in tables):
        return None
    for path, table in zip(paths, tables, strict=True):
        if table.metadata.content != first.metadata.content:
            raise DocumentError(
                f"{path}: these vectors and those in {paths[0]} are from different video files",
                hint="embed the same footage again",
            )
    encoders, vectors = [], []
    for table in tables:
        encoders.append(CardEncoder(table.metadata.encoder, table.metadata.encoder_key, table.embeddings.values.shape[1]))
        # For each time in the first table, take the vector of this table that is nearest in time.
        last = len(table.timestamp) - 1
        after = np.searchsorted(table.timestamp, first.timestamp).clip(1, max(last, 1))
        before, after = after - 1, np.minimum(after, last)
        is_before = np.abs(first.timestamp - table.timestamp[before]) <= np.abs(table.timestamp[after] - first.timestamp)
        vectors.append(table.embeddings[np.where(is_before, before, after)])
    return VideoVectors(first.metadata.camera, tuple(encoders), first.frame_index, first.timestamp, tuple(vectors))
