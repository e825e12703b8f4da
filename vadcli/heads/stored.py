"""Reads samples from stored vectors, and reads and writes the folder of a head.

The folder has the arrays as safetensors, and a card as JSON. The card says how the head was trained and how good it is.
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
from vadcli.types.text import document_errors, read_document, structure, unreadable

CARD_FORMAT_VERSION = 1
_WHAT = "a head's card"
_AGAIN = "train it again with `vadcli learn`"
ROOM = 1.5
"""A video looks new if its distance from the training videos is larger than ROOM times `Card.reach`."""


@dataclass(frozen=True)
class CardEncoder:
    """An encoder whose vectors a head reads; `key` is the `encoder_key` of the embeddings files."""

    name: str
    key: str
    width: int


@dataclass(frozen=True)
class Comparison:
    """A comparison of a head with the detector alone, on examples that the head was not trained on.

    Attributes:
        recall: the head and the detector keep at least this share of the true examples.
        detector_per_hour, head_per_hour: false alarms per hour.
        change_per_hour: the head's false alarms per hour minus the detector's.
        low, high: 95 % interval of the change.
        detector_auc, head_auc: how often a true example has a higher score than a false one.
        threshold: the head's logit that keeps the share `recall`.
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
        """True if the whole interval is below 0: the head gives fewer false alarms."""
        return self.high < 0.0


@dataclass(frozen=True)
class Card:
    """The training and the figures of a head.

    Attributes:
        kind: name in the registry of heads.
        heads_version: `HEADS_VERSION` when the head was trained.
        seed: seed of the training and of the folds.
        labels: the kind of labels from which the head learned.
        detector: the detector whose events the head judges.
        encoders: the encoders whose vectors the head reads, in order.
        cameras: the cameras of the training videos.
        videos: number of training videos.
        true, false: number of training examples.
        hours: length of the footage that the figures refer to.
        figures: the cross-validated figures; None if the head could not be tested.
        scale: turns the head's logits into scaled logits.
        threshold: the scaled logit that becomes the score 0.5.
        categories: names of the categories, if the head learned from categories.
        reach: the largest distance of a training video from its nearest neighbour; see `reach_of`.
        generator: the program that wrote the folder.
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
    figures: Comparison | None
    threshold: float
    scale: Scale = field(default_factory=Scale)
    categories: tuple[str, ...] = ()
    reach: float = 0.0
    generator: str = f"vadcli {__version__}"


@dataclass(frozen=True)
class StoredHead:
    """A head with its card.

    Attributes:
        name: the name of its folder.
        card: its training and its figures.
        head: the head itself.
        centres: the mean vector (V, D) of each training video, by the first encoder.
        key: hash of card and arrays.
    """

    name: str
    card: Card
    head: Head = field(repr=False)
    centres: FloatArray = field(repr=False)
    key: str = ""

    def score(self, sample: Sample) -> FloatArray:
        """Return the scores (S,) float32 of the frames in [0, 1]; the card's threshold becomes 0.5."""
        return sigmoid(self.card.scale(self.head.score(sample)) - np.float32(self.card.threshold))

    def judge(self, sample: Sample) -> float:
        """Return one score in [0, 1] for the whole sample."""
        return float(sigmoid(self.card.scale(np.array(pooled(self.head, sample))) - np.float32(self.card.threshold)))

    def strangeness(self, centre: FloatArray) -> float:
        """Return the distance of a video's mean vector from the training videos. Above 1, the video looks new.

        Args:
            centre: (D,) mean vector of the video, by the first encoder.
        """
        distance = float(np.linalg.norm(self.centres - centre, axis=1).min())
        return distance / (ROOM * self.card.reach) if self.card.reach > 0 else 0.0


def reach_of(centres: FloatArray) -> float:
    """Return the largest distance of a video's mean vector (V, D) from its nearest neighbour."""
    if len(centres) < 2:
        return 0.0
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    return float(distance.min(axis=1).max())


def write_head(folder: Path, card: Card, head: Head, centres: FloatArray) -> None:
    """Write the two files of a head into a new folder.

    Raises:
        OSError: the folder cannot be written.
    """
    from safetensors.numpy import save

    folder.mkdir(parents=True)
    arrays = {f"head.{name}": np.ascontiguousarray(value) for name, value in head.state().items()}
    (folder / "head.safetensors").write_bytes(save({**arrays, "centres": np.ascontiguousarray(centres)}))
    text = json.dumps({"format_version": CARD_FORMAT_VERSION, **asdict(card)}, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")


def read_head(folder: Path) -> StoredHead:
    """Read a head from its folder.

    Raises:
        UsageError: the folder does not exist, or no head of this kind is installed.
        DocumentError: a file is missing or damaged.
        WeightsError: the head was made by another version of vadcli, which would score differently.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not folder.is_dir():
        raise UsageError(f"--head {folder}: the folder does not exist", hint="name a folder that `vadcli learn --to` wrote")
    path, weights = folder / "card.json", folder / "head.safetensors"
    document = read_document(path, version=CARD_FORMAT_VERSION, what=_WHAT, hint=_AGAIN)
    if document.get("heads_version") != HEADS_VERSION:
        raise WeightsError(
            f"{folder}: a head of version {document.get('heads_version')}; this vadcli reads {HEADS_VERSION}", hint=_AGAIN
        )
    with document_errors(path, _WHAT, _AGAIN):
        card = structure(Card, document, extra=True)
    try:
        arrays: dict[str, FloatArray] = load(weights.read_bytes())
    except OSError as error:
        raise DocumentError(unreadable(weights, error), hint=_AGAIN) from error
    except SafetensorError as error:
        raise DocumentError(f"{weights}: not a safetensors file: {error}", hint=_AGAIN) from error
    kind = head_kind(card.kind)
    try:
        head = kind.of({name.removeprefix("head."): value for name, value in arrays.items() if name.startswith("head.")})
        centres = arrays["centres"]
    except (KeyError, ValueError) as error:
        raise DocumentError(f"{weights}: not the arrays of a {card.kind} head: {error}", hint=_AGAIN) from error
    digest = hashlib.sha256(path.read_bytes() + weights.read_bytes()).hexdigest()
    return StoredHead(folder.resolve().name, card, head, centres, digest)


def head_kind(name: str) -> type[Head]:
    """Return the class of a head by its name; raises UsageError if no head has this name."""
    kind = HEADS.load(name)
    HEADS.check(name, ok=isinstance(kind, type) and isinstance(kind, Head), what="is not a head (see vadcli.heads.Head)")
    found: type[Head] = kind
    return found


def matching(card: Card, found: Sequence[CardEncoder]) -> str:
    """Return in one line why a head cannot read the vectors of these encoders; "" if it can."""
    for wanted, one in zip(card.encoders, found, strict=False):
        if wanted.key != one.key:
            other = " with other weights" if wanted.name == one.name else ""
            return f"it reads vectors of the encoder {wanted.name}, and the stored vectors are of {one.name}{other}"
    if len(found) < len(card.encoders):
        return f"it reads vectors of {len(card.encoders)} encoders ({', '.join(one.name for one in card.encoders)})"
    return ""


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
        vectors: S vectors per encoder. The times are those of the first encoder. From the other encoders, each row has the
            vector that is nearest in time.
    """

    camera: str
    encoders: tuple[CardEncoder, ...]
    frame_index: IndexArray = field(repr=False)
    timestamp: TimeArray = field(repr=False)
    vectors: tuple[Embeddings, ...] = field(repr=False)

    def centre(self, encoder: int = 0) -> FloatArray:
        """Return the mean vector of the video, (D,) float32."""
        return np.asarray(self.vectors[encoder].vectors().mean(axis=0), np.float32)

    def of_span(self, start_s: float, end_s: float, peak_score: float) -> Sample:
        """Return the sample of an event: the frames in its span with vectors, or else the nearest one.

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
    """Read a video's vectors, one encoder per folder. None if a folder has no vectors of the video.

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
    encoders, vectors = [], []
    for one in found:
        encoders.append(CardEncoder(one.metadata.encoder, one.metadata.encoder_key, one.embeddings.values.shape[1]))
        # each row gets the vector that is nearest to the time of the first encoder's row
        last = len(one.timestamp) - 1
        after = np.searchsorted(one.timestamp, first.timestamp).clip(1, max(last, 1))
        before, after = after - 1, np.minimum(after, last)
        earlier = np.abs(first.timestamp - one.timestamp[before]) <= np.abs(one.timestamp[after] - first.timestamp)
        vectors.append(one.embeddings[np.where(earlier, before, after)])
    return VideoVectors(first.metadata.camera, tuple(encoders), first.frame_index, first.timestamp, tuple(vectors))
