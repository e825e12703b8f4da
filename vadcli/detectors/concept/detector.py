"""The concept detector: implements the `Detector` protocol with an image-text encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vadcli.detectors import digest
from vadcli.detectors.batching import PerCamera
from vadcli.detectors.calibration import CALIBRATION
from vadcli.detectors.concept import ConceptOptions
from vadcli.detectors.concept.scoring import Bank, Burst, ConceptCamera, Sentences, unlike
from vadcli.detectors.encoders import Encoder, encoder_area_px, encoder_fingerprint, encoder_key, load_encoder
from vadcli.errors import UsageError
from vadcli.options.categories import CategoryBook, read_categories
from vadcli.types import (
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
    MaskScale,
    PixelFormat,
    RawTrack,
    SizeRule,
    Thresholds,
)

VERSION = 1
"""Increase this if the scores of stored vectors change."""
DEFAULT_CATEGORIES = "@general"
CLIP_FRAMES = 32
RATE_HZ = 2.0


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
        self.thresholds = Thresholds(high=0.5, low=0.4, min_duration_s=0.5, merge_gap_s=2.0)
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
