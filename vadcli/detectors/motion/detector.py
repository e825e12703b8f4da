"""The motion detector: implements the `Detector` protocol on arrays."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from vadcli.detectors.calibration import CALIBRATION, Tail, logit_of, smooth
from vadcli.detectors.motion import MODEL_VERSION, MotionOptions
from vadcli.detectors.motion.background import grid_for
from vadcli.detectors.motion.camera import FittedCamera, from_model, to_model
from vadcli.detectors.motion.features import ClipMaps, ClipSteps
from vadcli.detectors.motion.scoring import channels_of, fit_camera, measure, peaks, rarities, seen_in, steps_of_clip
from vadcli.detectors.motion.still import lasting
from vadcli.types import (
    BoolArray,
    ByteArray,
    Calibration,
    CameraModel,
    CameraSample,
    Clip,
    ClipBatch,
    ClipNeeds,
    ClipScores,
    FloatArray,
    FrameScores,
    MaskScale,
    PixelFormat,
    RawTrack,
    SizeRule,
    Thresholds,
    TimeArray,
    sigmoid,
)
from vadcli.video.loader import core_count

MOST_THREADS = 8
"""With more threads than this, the threads wait for one another, because parts of the scoring are Python."""


class _OneBlasThread:
    """A context in which BLAS uses one thread per matrix product, in the whole process.

    The matrices here are small. Several BLAS threads would compete with the decoders for cores, and
    matrix products would take a hundred times longer.
    """

    def __init__(self) -> None:
        self._blas = ThreadpoolController()
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._take_control()
                self._limit = self._blas.limit(limits=1, user_api="blas")
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._take_control()
                    self._limit.restore_original_limits()
                    self._take_control()

    def _take_control(self) -> None:
        """Let any thread set the next limit of BLAS threads.

        Without this, version 3.8 of the library `threadpoolctl` accepts limits only from the thread that set the first limit.
        """
        for library in self._blas.lib_controllers:
            clear = getattr(library, "clear_controlling_thread", None)
            if clear is not None:
                clear(force=True)


one_blas_thread = _OneBlasThread()

USER_OPTIONS = ("min_size", "detail", "still")
"""The options that users set. A camera model can be used only with the values with which it was fitted."""

CHANNELS = ("speed", "disorder", "rarity", "together", "camera_px", "usable")
STILL_CHANNEL = "still"
"""The name of the last channel, which does not exist with --no-still."""

LEAST_STILL = 0.3
"""Still things with a lower score than this do not count. At the default thresholds, they belong to no event.

Many harmless things stand still for a while. If their low scores counted, they would hide which frames have the most motion.
"""

KEPT_BYTES = 128 << 20
"""A `KeptClips` store holds at most this many bytes."""

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


class MotionDetector:
    """Finds motion that is rare for the camera. It needs no weights.

    It also finds things that appear and then stay. It cannot notice slow events or how things look, and it does not use
    categories. `Detector` describes the attributes.
    """

    name = "motion"
    model_version = MODEL_VERSION
    calibration: Calibration | None = CALIBRATION
    uses_categories = False
    categories: tuple[str, ...] = ()
    weights: Mapping[str, str] = MappingProxyType({})
    fits_camera = True
    mask_scale = MaskScale.SCORE
    batch_size = 1

    def __init__(self, options: MotionOptions | None = None) -> None:
        self.options = options or MotionOptions()
        self.parallel = min(core_count(), MOST_THREADS)
        self.channels: tuple[str, ...] = (*CHANNELS, STILL_CHANNEL) if self.options.still else CHANNELS
        self._steps = KeptClips[ClipSteps]()
        self._maps = KeptClips[tuple[ClipMaps, FloatArray]]()
        self.needs = ClipNeeds(
            frames=self.options.clip_frames,
            overlap=1,
            rate_hz=self.options.rate_hz,
            size=SizeRule(round(self.options.max_area_px * self.options.detail**2)),
            pixel_format=PixelFormat.GRAY,
            decode="reference",
        )
        self.thresholds = Thresholds(high=0.4, low=0.3, min_duration_s=0.3, merge_gap_s=2.0)

    def prepare(self) -> None:
        """Do nothing, because this detector has no weights."""

    def prepare_clip(self, clip: Clip) -> None:
        """Make the measurements of a clip that need no camera model, and keep them for `fit` and `score`."""
        key = _key_of(clip)
        if key not in self._steps:
            with one_blas_thread():
                steps = steps_of_clip(clip, self.options)
            self._steps.put(key, steps, steps.nbytes)

    def fit(self, sample: CameraSample) -> CameraModel | None:
        """Return a camera model: the backgrounds, the usual motion, and how rare strong motion is.

        Return None if no clip has two frames.
        """
        if all(len(clip.frames) < 2 for clip in sample.clips):
            return None
        keys: dict[int, bytes] = {}

        def steps_of(clip: Clip) -> ClipSteps:
            """Return the steps of a clip: the stored ones if the clip was measured before."""
            key = keys[id(clip)] = _key_of(clip)
            known = self._steps.take(key)
            return steps_of_clip(clip, self.options) if known is None else known

        with one_blas_thread():
            fitted, measured = fit_camera(sample, self.options, steps_of=steps_of, threads=self.parallel)
        model = to_model(fitted, sample.camera, self.name)
        model = replace(model, values={**model.values, **self._chosen})
        for one in measured:
            if len(one.clip.frames) == self.needs.frames:  # bursts are shorter than clips
                self._maps.put(keys[id(one.clip)] + _hash_of(model), (one.maps, one.rare), one.maps.nbytes + one.rare.nbytes)
        return model

    def accepts(self, model: CameraModel) -> bool:
        """Return True if a camera model was fitted with the USER_OPTIONS of this detector."""
        return {name: model.values[name] for name in USER_OPTIONS if name in model.values} == self._chosen

    def score(self, batch: ClipBatch) -> ClipScores:
        """Return raw scores (B, T, K), one per name in `channels`, and calibrated masks (B, T, h, w)."""
        with one_blas_thread():
            rows = [self._score_row(batch, row) for row in range(len(batch.videos))]
        raw, mask = (np.stack(part) for part in zip(*rows, strict=True))
        return ClipScores(raw, mask)

    def finish(self, track: RawTrack) -> FrameScores:
        """Return the logits of a video, and whether its camera moves."""
        if not len(track.timestamp):
            return FrameScores(np.zeros(0, dtype=np.float32), None)
        fitted = from_model(track.model)
        together, camera_px, usable = (track.raw[:, CHANNELS.index(name)] for name in ("together", "camera_px", "usable"))
        seen = usable > 0.5
        smoothed = smooth(
            together,
            timestamp=track.timestamp,
            usable=seen,
            sigma_s=self.options.smoothing_s,
            gap_s=self.options.gap_s,
        )
        moved = camera_px[seen] > self.options.moving_px
        moving = bool(moved.mean() > self.options.moving_share) if len(moved) else None
        logit = logit_of(fitted.tail.log_rarity(smoothed))
        if fitted.still is not None and self.options.still:
            contrast = lasting(
                track.raw[:, self.channels.index(STILL_CHANNEL)],
                timestamp=track.timestamp,
                still_s=self.options.still_s,
                gap_s=self.options.gap_s,
            )
            logit = np.maximum(logit, _still_logit(fitted.still, contrast))
        return FrameScores(logit, moving)

    def fingerprint(self) -> dict[str, object]:
        """Return the model version and all options."""
        options = {name: value for name, value in asdict(self.options).items() if name not in USER_OPTIONS}
        return {"detector": self.name, "model_version": MODEL_VERSION, "options": {**options, **self._chosen}}

    @property
    def _chosen(self) -> dict[str, float]:
        """The USER_OPTIONS that differ from the defaults.

        Default values are left out, so that camera models of versions without these options can still be used.
        """
        default = MotionOptions()
        values = {name: getattr(self.options, name) for name in USER_OPTIONS}
        return {name: value for name, value in values.items() if value != getattr(default, name)}

    def _score_row(self, batch: ClipBatch, row: int) -> tuple[FloatArray, FloatArray]:
        fitted = from_model(batch.models[row])
        maps, rare = self._measured(batch, row, fitted)
        found = channels_of(maps, rare, fitted)
        together = found.together(fitted)
        highest = [peaks(cells) for cells in (maps.speed, maps.disorder, found.rarity, together)]
        columns = [*highest, maps.camera_px, maps.usable.astype(np.float32)]
        logit = logit_of(fitted.tail.log_rarity(together))
        if maps.still is not None:
            columns.append(peaks(maps.still))
            if fitted.still is not None:
                logit = np.maximum(logit, _still_logit(fitted.still, maps.still))
        return np.stack(columns, axis=-1).astype(np.float32), sigmoid(logit)

    def _measured(self, batch: ClipBatch, row: int, fitted: FittedCamera) -> tuple[ClipMaps, FloatArray]:
        """Return the maps and the rarity (T, h, w) of a clip.

        If `fit` measured this clip, the stored measurements are used.
        """
        frames, timestamp, valid = batch.frames[row, ..., 0], batch.timestamp[row], batch.valid[row]
        steps, video = None, batch.videos[row]
        if len(self._maps) or len(self._steps):
            key = _clip_key(frames, timestamp, valid, video=video)
            kept = self._maps.take(key + _hash_of(batch.models[row]))
            if kept is not None:
                return kept
            steps = self._steps.take(key)
        grid = grid_for(*frames.shape[1:], self.options.cell_px, self.options.blur_cells)
        seen = seen_in(valid)
        maps = measure(frames, timestamp=timestamp, seen=seen, fitted=fitted, grid=grid, options=self.options, steps=steps)
        return maps, rarities(maps, video=video, fitted=fitted, options=self.options)


def _still_logit(tail: Tail, contrast: FloatArray) -> FloatArray:
    """Return the logits of contrasts of any shape; -inf below LEAST_STILL."""
    logit = logit_of(tail.log_rarity(contrast))
    return np.where(sigmoid(logit) < LEAST_STILL, np.float32(-np.inf), logit)


def _clip_key(frames: ByteArray, timestamp: TimeArray, valid: BoolArray, *, video: str) -> bytes:
    """Return a hash of the video, the times and every fourth row of pixels of a clip (T, H, W).

    The other rows are left out to save time. This is enough, because the clips of a video have different times.
    """
    digest = hashlib.blake2b(f"{frames.shape} ".encode() + video.encode("utf-8", "surrogateescape"), digest_size=16)
    for part in (frames[:, ::4], timestamp, valid):
        digest.update(np.ascontiguousarray(part).data)
    return digest.digest()


def _key_of(clip: Clip) -> bytes:
    return _clip_key(clip.frames[..., 0], clip.timestamp, clip.valid, video=clip.video)


def _hash_of(model: CameraModel | None) -> bytes:
    return model.sha256.encode() if model else b""
