"""The detector `concept`: an image-text encoder compares frames with sentences about categories.

Each step after the encoder is exact or depends on one video alone. So scores from stored vectors equal those of the scan bit
for bit, and the batch size does not matter.

The anchor is a vector of the camera's usual frames. The method comes from the paper NOVA (arXiv 2609.06360).

Letters in shapes: S vectors, M sentences, C categories, D width of a vector.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vadcli.detectors import CATEGORY_THRESHOLDS, digest
from vadcli.detectors.batching import PerCamera
from vadcli.detectors.calibration import CALIBRATION, CategoryTails, smooth
from vadcli.detectors.encoders import Encoder, encoder_area_px, encoder_fingerprint, encoder_key, load_encoder
from vadcli.detectors.options import ConceptOptions
from vadcli.errors import UsageError
from vadcli.options.categories import CategoryBook, read_categories
from vadcli.types import (
    BoolArray,
    ByteArray,
    Calibration,
    CameraModel,
    CameraSample,
    ClipBatch,
    ClipNeeds,
    ClipScores,
    Embeddings,
    FloatArray,
    FrameScores,
    IndexArray,
    MaskScale,
    PixelFormat,
    RawTrack,
    SizeRule,
    TimeArray,
    sigmoid,
)

log = logging.getLogger("vadcli")

VERSION = 1
"""Increase this if the scores of stored vectors change."""
DEFAULT_CATEGORIES = "@general"
CLIP_FRAMES = 32
RATE_HZ = 2.0
POSITIVE_WEIGHT = 0.9
"""Weight of the sentences for a category; the sentences against it have the weight 1 (NOVA)."""
ANCHOR_TEMPERATURE = 0.3
"""A frame's weight in the anchor falls by a factor of e when its score rises by this much (NOVA)."""
SMOOTHING_S = 1.7
"""Standard deviation of the smoothing over time, in seconds (NOVA)."""
GAP_S = 4.0
SIMILAR = 0.70
"""A normal sentence may describe a category if their cosine is higher than this."""
TEXT_LEVELS = 2**15 - 1
"""Vectors of sentences are rounded to whole numbers up to this. Their products with int8 vectors are exact in float64."""
SPREAD_FLOOR = 0.15
"""Smallest spread of a camera's evidence. Otherwise a camera whose frames never change would alarm at any change."""


class ConceptDetector:
    """Finds what the user describes in words. `Detector` describes the attributes.

    A category fits a frame if its sentences are more similar to the frame than sentences about normal scenes are. The score of
    a frame says how rare such a good fit is for this camera.

    Raises:
        UsageError: a category or the encoder does not exist.
        WeightsError: the encoder's weights are missing.
    """

    name = "concept"
    calibration: Calibration | None = CALIBRATION
    uses_categories = True
    fits_camera = True
    mask_scale = MaskScale.SCORE
    thresholds = CATEGORY_THRESHOLDS
    batch_size = 1
    parallel = 1

    def __init__(self, options: ConceptOptions) -> None:
        self.options = options
        self.book: CategoryBook = read_categories(options.categories or DEFAULT_CATEGORIES)
        if not self.book.categories:
            raise UsageError(f"--categories {options.categories!r} contains no category", hint="omit it to look for @general")
        self.categories = tuple(category.name for category in self.book.categories)
        self.channels = (*self.categories, *(f"{name}: fit" for name in self.categories))
        self._encoder_state = encoder_fingerprint(options.encoder, precision=options.precision)
        self.encoder_name, self.keeps_embeddings = options.encoder, options.keep_embeddings
        self.encoder_key, self.embedding_key = encoder_key(self._encoder_state), digest(self._encoder_state)
        self.weights: Mapping[str, str] = {self.encoder_name: self.encoder_key}
        # A camera model stores vectors of one encoder, and is useless for another one. So each encoder has its own version.
        self.model_version = int(self.embedding_key[:12], 16)
        self.needs = ClipNeeds(
            frames=CLIP_FRAMES,
            overlap=0,
            rate_hz=RATE_HZ,
            size=SizeRule(encoder_area_px(options.encoder)),
            pixel_format=PixelFormat.RGB,
        )
        # Masks take a second pass through the last layer, so they are made only if the scan stores them.
        self.makes_masks = getattr(options, "masks", "none") != "none"
        self._encoder: Encoder | None = None
        self._bank: Bank | None = None
        self._fitted_on: dict[bytes, Embeddings] = {}
        self._camera = PerCamera(self._fit_camera)

    def prepare(self) -> None:
        """Load the encoder and encode the sentences. Later calls do nothing."""
        if self._encoder is not None:
            return
        encoder = load_encoder(self.options.encoder, device=self.options.device, precision=self.options.precision)
        self._bank = make_bank(self.book, encoder)
        self._encoder = encoder

    def fit(self, sample: CameraSample) -> CameraModel | None:
        """Return a camera model with the vectors of the sample; None if the sample has no frame.

        Results that depend on the categories are not stored.
        """
        parts = []
        self._fitted_on.clear()  # it may have clips of another camera that were never scored
        for clip in sample.clips:
            if clip.valid.any():
                found = self._encode(clip.frames)
                # If the video is short, the same clips are scored later. So their vectors are kept.
                self._fitted_on[_content(clip.frames)] = found
                parts.append((clip, found[clip.valid]))
        if not parts:
            return None
        rows = np.concatenate([np.full(len(found), number) for number, (_, found) in enumerate(parts)])
        arrays = {
            "values": np.concatenate([found.values for _, found in parts]),
            "scale": np.concatenate([found.scale for _, found in parts]),
            "timestamp": np.concatenate([clip.timestamp[clip.valid] for clip, _ in parts]),
            "burst": rows.astype(np.int64),
        }
        seconds = sum(float(np.ptp(clip.timestamp[clip.valid])) for clip, _ in parts)
        values = {"seconds": seconds, "encoder": self.options.encoder}
        return CameraModel(sample.camera, self.name, self.model_version, arrays, values)

    def score(self, batch: ClipBatch) -> ClipScores:
        """Return evidence (B, T, 2C), one vector per frame, and masks (B, T, h, w) if the scan stores masks."""
        raw, vectors, masks = [], [], []
        for frames, model in zip(batch.frames, batch.models, strict=True):
            known = self._fitted_on.pop(_content(frames), None) if self._fitted_on else None
            found = self._encode(frames) if known is None else known
            vectors.append(found)
            raw.append(self.score_embeddings(found, model))
            if self.makes_masks:
                assert self._encoder is not None
                bank, camera = self._fitted(model)
                patches = self._encoder.patch_map(frames)  # (T, h, w, D)
                flat = Embeddings.of(patches.reshape(-1, patches.shape[-1]))
                scores = camera.pixel_scores(bank.evidence(flat, camera.anchor))
                masks.append(scores.reshape(patches.shape[:3]))
        embedding = Embeddings(np.stack([one.values for one in vectors]), np.stack([one.scale for one in vectors]))
        return ClipScores(np.stack(raw), np.stack(masks) if masks else None, embedding)

    def score_embeddings(self, embeddings: Embeddings, model: CameraModel | None) -> FloatArray:
        """Return the evidence (S, 2C) of S vectors; see `Bank.evidence`."""
        bank, camera = self._fitted(model)
        return bank.evidence(embeddings, camera.anchor)

    def finish(self, track: RawTrack) -> FrameScores:
        """Return the logits of a video, and the score of each category."""
        if not len(track.timestamp):
            return FrameScores(np.zeros(0, np.float32))
        _, camera = self._fitted(track.model)
        return camera.finish(track.raw, track.timestamp)

    def fingerprint(self) -> dict[str, object]:
        """Return the encoder, the sentences and the version."""
        return {
            "detector": self.name,
            "version": VERSION,
            "encoder": self._encoder_state,
            "encoder_key": self.encoder_key,
            "sentences": digest([asdict(one) for one in self.book.categories] + [list(self.book.normal)]),
        }

    def _fitted(self, model: CameraModel | None) -> tuple[Bank, ConceptCamera]:
        self.prepare()
        assert self._bank is not None
        return self._bank, self._camera(model)

    def _fit_camera(self, model: CameraModel | None) -> ConceptCamera:
        assert self._bank is not None
        if model is None:
            return ConceptCamera.fit(self._bank, [], 0.0)
        arrays = model.arrays
        embeddings = Embeddings(arrays["values"], arrays["scale"])
        inside = [arrays["burst"] == number for number in np.unique(arrays["burst"])]
        bursts = [Burst(embeddings[rows], arrays["timestamp"][rows]) for rows in inside]
        return ConceptCamera.fit(self._bank, bursts, float(model.values["seconds"]))

    def _encode(self, frames: Any) -> Embeddings:
        self.prepare()
        assert self._encoder is not None
        return Embeddings.of(self._encoder.encode_images(frames))


def make_bank(book: CategoryBook, encoder: Encoder) -> Bank:
    """Return the sentences of all categories, encoded.

    The sentences against a category are its look-alikes and those normal sentences that do not describe it.

    Raises:
        UsageError: a sentence has more tokens than the encoder can read.
    """
    texts = list(dict.fromkeys([*book.normal, *(text for one in book.categories for text in (*one.means, *one.looks_like))]))
    for text in texts:
        if encoder.text_tokens(text) > encoder.max_tokens:
            raise UsageError(
                f"the sentence {text[:60]!r} has {encoder.text_tokens(text)} tokens; {encoder.name} reads {encoder.max_tokens}",
                hint="write several shorter sentences",
            )
    vectors = encoder.encode_text(texts)
    place = {text: number for number, text in enumerate(texts)}

    def rows(sentences: Sequence[str]) -> Any:
        return np.array([place[text] for text in sentences], np.int64)

    positive, negative = [], []
    for category in book.categories:
        own = rows(category.means)
        normal = [text for text in book.normal_for(category) if text not in category.means]
        usable = unlike(vectors[own], vectors[rows(normal)], normal, category.name)
        against = (*category.looks_like, *(text for text, keep in zip(normal, usable, strict=True) if keep))
        positive.append(own)
        negative.append(rows(against or normal or category.means))
    names = tuple(one.name for one in book.categories)
    return Bank(names, Sentences.of(vectors), tuple(positive), tuple(negative), encoder.temperature)


def _content(frames: ByteArray) -> bytes:
    """Return a hash of a clip's frames. Hashing is 100 times as fast as encoding."""
    return hashlib.blake2b(np.ascontiguousarray(frames).data, digest_size=16).digest()


@dataclass(frozen=True)
class Sentences:
    """M unit vectors of sentences: rows of whole numbers, each multiplied by a scale.

    Attributes:
        values: (M, D) float64, whole numbers.
        scale: (M,) float64, the factor of each row.
    """

    values: TimeArray = field(repr=False)
    scale: TimeArray = field(repr=False)

    @classmethod
    def of(cls, vectors: FloatArray) -> Sentences:
        """Return sentences from their unit vectors (M, D), which are rounded."""
        exact = vectors.astype(np.float64)
        scale = np.maximum(np.abs(exact).max(axis=1), 1e-12) / TEXT_LEVELS
        return cls(np.rint(exact / scale[:, None]), scale)

    def cosines(self, embeddings: Embeddings) -> TimeArray:
        """Return the cosines (S, M) float64 of S vectors and M sentences."""
        products = embeddings.values.astype(np.float64) @ self.values.T  # sums of whole numbers are exact in any order
        return np.asarray(products * embeddings.scale.astype(np.float64)[:, None] * self.scale[None, :])


@dataclass(frozen=True)
class Bank:
    """The sentences of all categories.

    Attributes:
        names: C categories.
        sentences: M different sentences.
        positive, negative: for each category, the indices of the sentences for it, and of those against it.
        temperature: the number by which differences of cosines are divided.
    """

    names: tuple[str, ...]
    sentences: Sentences
    positive: tuple[IndexArray, ...]
    negative: tuple[IndexArray, ...]
    temperature: float

    def evidence(self, embeddings: Embeddings, anchor: Sentences | None) -> FloatArray:
        """Return the evidence (S, 2C) float32: the contrast of C categories, then their fit.

        Fit says how well the sentences for the category fit. Contrast says how much better they fit than the sentences against
        the category. The published method uses contrast alone. But contrast rises for everything unusual, because normal
        sentences then fit less well. So an alarm needs both: contrast and fit must be rare. The fit of an absent category is
        not rare.

        Args:
            embeddings: S vectors.
            anchor: counts as one more sentence against every category; None for no anchor.
        """
        cosines = self.sentences.cosines(embeddings)
        extra = anchor.cosines(embeddings) if anchor is not None else np.empty((len(embeddings), 0))
        count = len(self.names)
        found = np.empty((len(embeddings), 2 * count), np.float32)
        for place, (good, bad) in enumerate(zip(self.positive, self.negative, strict=True)):
            against = np.concatenate([cosines[:, bad], extra], axis=1)
            fit = POSITIVE_WEIGHT * upper_half(cosines[:, good])
            found[:, place] = (fit - upper_half(against)) / self.temperature
            found[:, count + place] = fit / self.temperature
        return found


def upper_half(cosines: TimeArray) -> TimeArray:
    """Return the mean (S,) of the higher half of each row of cosines (S, n), n >= 1."""
    count = (cosines.shape[1] + 1) // 2
    highest = np.ascontiguousarray(np.sort(cosines, axis=1)[:, -count:])
    return np.asarray(highest.sum(axis=1) / count)


def unlike(category: FloatArray, normal: FloatArray, texts: Sequence[str], name: str) -> BoolArray:
    """Return flags (n,) for the normal sentences, True for those that do not describe the category.

    A normal sentence describes the category if its cosine with the category's mean is higher than SIMILAR, and also higher than
    that of most of the category's own sentences. The second rule is for encoders that give similar vectors to all sentences:
    the first rule alone would remove every normal sentence.

    Args:
        category: (m, D) unit vectors of the sentences for the category.
        normal: (n, D) unit vectors of the normal sentences.
        texts: the n sentences, for the log.
        name: the category.
    """
    mean = category.mean(axis=0)
    mean = mean / max(float(np.linalg.norm(mean)), 1e-12)
    limit = max(SIMILAR, float(np.median(category @ mean)))
    keep = normal @ mean <= limit
    left_out = [texts[int(place)] for place in np.flatnonzero(~keep)]
    if left_out:
        log.info("%s: left out %d normal sentences that describe it, such as %r", name, len(left_out), left_out[0])
        log.debug("%s: left out: %s", name, "; ".join(left_out))
    return np.asarray(keep, dtype=np.bool_)


@dataclass(frozen=True)
class Burst:
    """Vectors of consecutive sampled frames of one video.

    Attributes:
        embeddings: S vectors.
        timestamp: (S,) float64 seconds.
    """

    embeddings: Embeddings
    timestamp: TimeArray


@dataclass(frozen=True)
class ConceptCamera:
    """The usual vector and the usual evidence of one camera, for one list of categories.

    Attributes:
        anchor: a vector of the camera's usual frames; None if the camera is unknown.
        tails: how rare the smoothed evidence is, with two kinds of evidence per category.
    """

    anchor: Sentences | None
    tails: CategoryTails

    @classmethod
    def fit(cls, bank: Bank, bursts: Sequence[Burst], seconds: float) -> ConceptCamera:
        """Return the anchor and the tails of a camera. Without bursts, the camera is unknown.

        Args:
            bank: the sentences.
            bursts: a sample of the camera's videos.
            seconds: total length of the sample.
        """
        if not bursts:
            return cls(None, CategoryTails.unknown(len(bank.names), kinds=2))
        vectors = np.concatenate([burst.embeddings.vectors() for burst in bursts])
        plain = np.concatenate([bank.evidence(burst.embeddings, None)[:, : len(bank.names)] for burst in bursts])
        weight = np.exp(-sigmoid(plain.max(axis=1)).astype(np.float64) / ANCHOR_TEMPERATURE)
        mean = (weight[:, None] * vectors).sum(axis=0) / weight.sum()
        anchor = Sentences.of((mean / max(float(np.linalg.norm(mean)), 1e-12))[None].astype(np.float32))
        smoothed = np.concatenate([smooth_all(bank.evidence(one.embeddings, anchor), one.timestamp) for one in bursts])
        return cls(anchor, CategoryTails.fit(smoothed, len(bank.names), seconds=seconds, floor=SPREAD_FLOOR))

    def finish(self, evidence: FloatArray, timestamp: TimeArray) -> FrameScores:
        """Return the scores of a video from its evidence (S, 2C).

        A frame has the score of its rarest category. The scores of single categories are on the same scale.
        """
        by_category = self.tails.logits(smooth_all(evidence, timestamp))  # (S, C)
        return FrameScores(by_category.max(axis=1), by_category=by_category)

    def pixel_scores(self, evidence: FloatArray) -> FloatArray:
        """Return the scores (P,) in [0, 1] of P patches from their evidence (P, 2C)."""
        return sigmoid(self.tails.logits(evidence).max(axis=1))


def smooth_all(evidence: FloatArray, timestamp: TimeArray) -> FloatArray:
    """Return the evidence (S, K), smoothed over time."""
    usable = np.ones(len(timestamp), np.bool_)
    columns = [smooth(column, timestamp=timestamp, usable=usable, sigma_s=SMOOTHING_S, gap_s=GAP_S) for column in evidence.T]
    return np.stack(columns, axis=1) if len(timestamp) else evidence
