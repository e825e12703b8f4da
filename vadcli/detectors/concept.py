"""The detector `concept`: an image-text encoder compares frames with sentences about categories.

The method comes from the paper NOVA (arXiv 2609.06360). Some sentences describe a category: these are the sentences for the
category. Others describe normal scenes and things that only look like the category: these are the sentences against the
category. The anchor is the mean vector of the camera's usual frames. It is used as one more sentence against each category.

Cosines of frames and sentences are computed exactly, with whole numbers. So a scan gives the same scores, bit for bit, as a
computation from stored vectors, and the batch size does not matter.

Letters in shapes: S vectors, M sentences, C categories, D width of a vector.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

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
"""Increase this if a change of the code gives other scores for the same vectors."""
DEFAULT_CATEGORIES = "@general"
CLIP_FRAMES = 32
RATE_HZ = 2.0
"""Sampled frames per second."""
POSITIVE_WEIGHT = 0.9
"""Weight of the sentences for a category. The sentences against the category have the weight 1 (NOVA)."""
ANCHOR_TEMPERATURE = 0.3
"""If the score of a frame is higher by this much, its weight in the anchor is lower by a factor of e (NOVA)."""
SMOOTHING_S = 1.7
"""Standard deviation of the smoothing over time, in seconds (NOVA)."""
GAP_S = 4.0
"""Frames are not smoothed across a gap in time that is longer than this, in seconds."""
SIMILAR = 0.70
"""A normal sentence whose cosine with a category is higher than this may describe the category."""
TEXT_LEVELS = 2**15 - 1
"""Vectors of sentences are rounded to whole numbers up to this. In float64, their products with int8 vectors are exact."""
SPREAD_FLOOR = 0.15
"""The smallest spread of a camera's evidence. Otherwise, any change would be an alarm if the frames of a camera are equal."""


class ConceptDetector:
    """Finds what the user describes in words. `Detector` describes the attributes.

    The frame is compared with the sentences for a category and with the sentences against the category. The score of a frame is
    high if the sentences for a category are unusually similar to the frame, compared with other frames of the camera.

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
            hint = f"omit --categories to look for {DEFAULT_CATEGORIES}"
            raise UsageError(f"--categories {options.categories!r} contains no category", hint=hint)
        self.categories = tuple(category.name for category in self.book.categories)
        self.channels = (*self.categories, *(f"{name}: fit" for name in self.categories))
        self._encoder_state = encoder_fingerprint(options.encoder, precision=options.precision)
        self.encoder_name, self.keeps_embeddings = options.encoder, options.keep_embeddings
        self.encoder_key, self.embedding_key = encoder_key(self._encoder_state), digest(self._encoder_state)
        self.weights: Mapping[str, str] = {self.encoder_name: self.encoder_key}
        # A camera model stores vectors of one encoder, and cannot be used with another encoder. So the version is a hash of the
        # encoder.
        self.model_version = int(self.embedding_key[:12], 16)
        self.needs = ClipNeeds(
            frames=CLIP_FRAMES,
            overlap=0,
            rate_hz=RATE_HZ,
            size=SizeRule(encoder_area_px(options.encoder)),
            pixel_format=PixelFormat.RGB,
        )
        # Masks need a second run of the encoder, so they are made only if the scan stores masks. Only the options of a scan,
        # which inherit from `ConceptOptions`, have --masks.
        self.makes_masks = getattr(options, "masks", "none") != "none"
        self._loaded: tuple[Encoder, Bank] | None = None
        self._fitted_clips: dict[bytes, Embeddings] = {}  # the vectors of clips, by a hash of the frames
        self._camera = PerCamera(self._fit_camera)

    def prepare(self) -> None:
        """Load the encoder and encode the sentences. Later calls do nothing."""
        self._load()

    def _load(self) -> tuple[Encoder, Bank]:
        """Return the encoder and the encoded sentences. The first call loads them."""
        if self._loaded is None:
            encoder = load_encoder(self.options.encoder, device=self.options.device, precision=self.options.precision)
            self._loaded = encoder, make_bank(self.book, encoder)
        return self._loaded

    def fit(self, sample: CameraSample) -> CameraModel | None:
        """Return a camera model with the vectors of the sample; None if the sample has no frame.

        The model contains nothing that depends on the categories.
        """
        clips = []
        self._fitted_clips.clear()  # clips of another camera that were never scored may remain
        for clip in sample.clips:
            if clip.valid.any():
                vectors = self._encode(clip.frames)
                # If the video is short, the scan later scores the same clips and needs the same vectors.
                self._fitted_clips[_content(clip.frames)] = vectors
                clips.append((clip, vectors[clip.valid]))
        if not clips:
            return None
        burst = np.concatenate([np.full(len(vectors), number) for number, (_, vectors) in enumerate(clips)])
        arrays = {
            "values": np.concatenate([vectors.values for _, vectors in clips]),
            "scale": np.concatenate([vectors.scale for _, vectors in clips]),
            "timestamp": np.concatenate([clip.timestamp[clip.valid] for clip, _ in clips]),
            "burst": burst.astype(np.int64),
        }
        seconds = sum(float(np.ptp(clip.timestamp[clip.valid])) for clip, _ in clips)
        values = {"seconds": seconds, "encoder": self.options.encoder}
        return CameraModel(sample.camera, self.name, self.model_version, arrays, values)

    def score(self, batch: ClipBatch) -> ClipScores:
        """Return evidence (B, T, 2C), one vector per frame, and masks (B, T, h, w) if the scan stores masks."""
        raw, embeddings, masks = [], [], []
        for frames, model in zip(batch.frames, batch.models, strict=True):
            known = self._fitted_clips.pop(_content(frames), None) if self._fitted_clips else None
            vectors = self._encode(frames) if known is None else known
            embeddings.append(vectors)
            raw.append(self.score_embeddings(vectors, model))
            if self.makes_masks:
                patches = self._load()[0].patch_map(frames)  # (T, h, w, D)
                evidence = self.score_embeddings(Embeddings.of(patches.reshape(-1, patches.shape[-1])), model)
                masks.append(self._camera(model).pixel_scores(evidence).reshape(patches.shape[:3]))
        values, scale = (np.stack([getattr(clip, name) for clip in embeddings]) for name in ("values", "scale"))
        return ClipScores(np.stack(raw), np.stack(masks) if masks else None, Embeddings(values, scale))

    def score_embeddings(self, embeddings: Embeddings, model: CameraModel | None) -> FloatArray:
        """Return the evidence (S, 2C) of S vectors; see `Bank.evidence`."""
        return self._load()[1].evidence(embeddings, self._camera(model).anchor)

    def finish(self, track: RawTrack) -> FrameScores:
        """Return the logits of a video, and the logits of each category."""
        if not len(track.timestamp):
            return FrameScores(np.zeros(0, np.float32))
        return self._camera(track.model).finish(track.raw, track.timestamp)

    def fingerprint(self) -> dict[str, object]:
        """Return hashes of the encoder and of the sentences, and the version."""
        return {
            "detector": self.name,
            "version": VERSION,
            "encoder": self._encoder_state,
            "encoder_key": self.encoder_key,
            "sentences": digest([asdict(category) for category in self.book.categories] + [list(self.book.normal)]),
        }

    def _fit_camera(self, model: CameraModel | None) -> ConceptCamera:
        _, bank = self._load()
        if model is None:
            return ConceptCamera.fit(bank, [], 0.0)
        arrays = model.arrays
        embeddings = Embeddings(arrays["values"], arrays["scale"])
        rows_of_bursts = [arrays["burst"] == number for number in np.unique(arrays["burst"])]
        bursts = [Burst(embeddings[rows], arrays["timestamp"][rows]) for rows in rows_of_bursts]
        return ConceptCamera.fit(bank, bursts, float(model.values["seconds"]))

    def _encode(self, frames: ByteArray) -> Embeddings:
        return Embeddings.of(self._load()[0].encode_images(frames))


def make_bank(book: CategoryBook, encoder: Encoder) -> Bank:
    """Return the encoded sentences of all categories.

    The sentences against a category are the sentences about its look-alikes and the sentences about normal scenes. A normal
    sentence that describes the category is left out.

    Raises:
        UsageError: a sentence has more tokens than the encoder can read.
    """
    of_categories = (text for category in book.categories for text in (*category.means, *category.looks_like))
    texts = list(dict.fromkeys([*book.normal, *of_categories]))
    vectors = encoder.encode_text(texts)
    index = {text: number for number, text in enumerate(texts)}

    def rows(sentences: Sequence[str]) -> IndexArray:
        """Return the positions of the sentences in `texts`."""
        return np.array([index[text] for text in sentences], np.int64)

    positive, negative = [], []
    for category in book.categories:
        own = rows(category.means)
        normal = [text for text in book.normal_for(category) if text not in category.means]
        usable = unlike(vectors[own], vectors[rows(normal)], normal, category.name)
        against = (*category.looks_like, *(text for text, is_usable in zip(normal, usable, strict=True) if is_usable))
        positive.append(own)
        negative.append(rows(against or normal or category.means))
    names = tuple(category.name for category in book.categories)
    return Bank(names, Sentences.of(vectors), tuple(positive), tuple(negative), encoder.temperature)


def _content(frames: ByteArray) -> bytes:
    """Return a hash of a clip's frames. Hashing is 100 times as fast as encoding."""
    return hashlib.blake2b(np.ascontiguousarray(frames).data, digest_size=16).digest()


@dataclass(frozen=True)
class Sentences:
    """The unit vectors of M sentences, rounded and stored as whole numbers.

    The vector of sentence i is `values[i] * scale[i]`.

    Attributes:
        values: (M, D) float64, whole numbers.
        scale: (M,) float64, one factor per sentence.
    """

    values: TimeArray = field(repr=False)
    scale: TimeArray = field(repr=False)

    @classmethod
    def of(cls, vectors: FloatArray) -> Sentences:
        """Round unit vectors (M, D) of sentences."""
        exact = vectors.astype(np.float64)
        scale = np.maximum(np.abs(exact).max(axis=1), 1e-12) / TEXT_LEVELS
        return cls(np.rint(exact / scale[:, None]), scale)

    def cosines(self, embeddings: Embeddings) -> TimeArray:
        """Return the cosines (S, M) float64 of S vectors with the M sentences."""
        products = embeddings.values.astype(np.float64) @ self.values.T  # sums of whole numbers are exact in any order
        return np.asarray(products * embeddings.scale.astype(np.float64)[:, None] * self.scale[None, :])


@dataclass(frozen=True)
class Bank:
    """The sentences of all categories.

    Attributes:
        names: the names of the C categories.
        sentences: the M different sentences.
        positive: for each category, the indices in `sentences` of the sentences for the category.
        negative: for each category, the indices in `sentences` of the sentences against the category.
        temperature: differences of cosines are divided by this number.
    """

    names: tuple[str, ...]
    sentences: Sentences
    positive: tuple[IndexArray, ...]
    negative: tuple[IndexArray, ...]
    temperature: float

    def evidence(self, embeddings: Embeddings, anchor: Sentences | None) -> FloatArray:
        """Return the evidence (S, 2C) float32: C columns of contrast, then C columns of fit (C categories).

        Fit is the similarity between the frame and the sentences for the category. Contrast is fit minus the similarity between
        the frame and the sentences against the category. The published method uses contrast alone. But everything unusual
        raises the contrast, because normal sentences are less similar to an unusual frame than to a usual frame. So an alarm
        needs a rare contrast and also a rare fit. If the category is absent, its fit is not rare.

        Args:
            embeddings: the vectors of S frames.
            anchor: used as one more sentence against every category; None for no anchor.
        """
        cosines = self.sentences.cosines(embeddings)
        extra = anchor.cosines(embeddings) if anchor is not None else np.empty((len(embeddings), 0))
        count = len(self.names)
        evidence = np.empty((len(embeddings), 2 * count), np.float32)
        for number, (positive, negative) in enumerate(zip(self.positive, self.negative, strict=True)):
            against = np.concatenate([cosines[:, negative], extra], axis=1)
            fit = POSITIVE_WEIGHT * upper_half(cosines[:, positive])
            evidence[:, number] = (fit - upper_half(against)) / self.temperature
            evidence[:, count + number] = fit / self.temperature
        return evidence


def upper_half(cosines: TimeArray) -> TimeArray:
    """Return the mean (S,) of the upper half of each row of cosines (S, n), n >= 1."""
    count = (cosines.shape[1] + 1) // 2
    highest = np.ascontiguousarray(np.sort(cosines, axis=1)[:, -count:])
    return np.asarray(highest.sum(axis=1) / count)


def unlike(category: FloatArray, normal: FloatArray, texts: Sequence[str], name: str) -> BoolArray:
    """Return flags (n,), True for the normal sentences that do not describe the category.

    Each normal sentence is compared with the mean of the category's sentences. It describes the category if its cosine with
    this mean is higher than SIMILAR, and also higher than the median cosine of the category's sentences with this mean. The
    second rule is for encoders that give similar vectors to all sentences. With such an encoder, the first rule alone would
    leave out all normal sentences.

    Args:
        category: (m, D) unit vectors of the sentences for the category.
        normal: (n, D) unit vectors of the normal sentences.
        texts: the n normal sentences, for the log.
        name: the name of the category, for the log.
    """
    mean = category.mean(axis=0)
    mean = mean / max(float(np.linalg.norm(mean)), 1e-12)
    limit = max(SIMILAR, float(np.median(category @ mean)))
    keep = normal @ mean <= limit
    left_out = [texts[int(row)] for row in np.flatnonzero(~keep)]
    if left_out:
        log.info("%s: left out %d normal sentences that describe this category, such as %r", name, len(left_out), left_out[0])
        log.debug("%s: left out %s", name, "; ".join(left_out))
    return np.asarray(keep, dtype=np.bool_)


@dataclass(frozen=True)
class Burst:
    """Vectors of consecutive sampled frames of one video.

    Attributes:
        embeddings: the vectors of S frames.
        timestamp: (S,) float64 seconds.
    """

    embeddings: Embeddings
    timestamp: TimeArray


@dataclass(frozen=True)
class ConceptCamera:
    """What is usual for one camera, computed for one list of categories.

    Attributes:
        anchor: the mean vector of the camera's usual frames; None if the camera is unknown.
        tails: how rare the smoothed evidence is. Each category has two kinds of evidence, contrast and fit.
    """

    anchor: Sentences | None
    tails: CategoryTails

    @classmethod
    def fit(cls, bank: Bank, bursts: Sequence[Burst], seconds: float) -> ConceptCamera:
        """Return the anchor and the tails of a camera.

        Args:
            bank: the sentences of all categories.
            bursts: a sample of the camera's videos; empty if the camera is unknown.
            seconds: total length of the sample.
        """
        if not bursts:
            return cls(None, CategoryTails.unknown(len(bank.names), kinds=2))
        vectors = np.concatenate([burst.embeddings.vectors() for burst in bursts])
        plain = np.concatenate([bank.evidence(burst.embeddings, None)[:, : len(bank.names)] for burst in bursts])
        weight = np.exp(-sigmoid(plain.max(axis=1)).astype(np.float64) / ANCHOR_TEMPERATURE)
        mean = (weight[:, None] * vectors).sum(axis=0) / weight.sum()
        anchor = Sentences.of((mean / max(float(np.linalg.norm(mean)), 1e-12))[None].astype(np.float32))
        smoothed = np.concatenate([smooth_all(bank.evidence(burst.embeddings, anchor), burst.timestamp) for burst in bursts])
        return cls(anchor, CategoryTails.fit(smoothed, len(bank.names), seconds=seconds, floor=SPREAD_FLOOR))

    def finish(self, evidence: FloatArray, timestamp: TimeArray) -> FrameScores:
        """Return the logits of a video, (S,), and of each category, (S, C).

        The logit of a frame is that of its rarest category.

        Args:
            evidence: (S, 2C), the evidence of the video.
            timestamp: (S,) seconds.
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
