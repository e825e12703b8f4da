"""The protocols that a detector implements, and the function that loads a detector by its name.

A detector gets arrays and returns arrays. It never opens a video or another media file. `vadcli.registry` lists the detectors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from vadcli.errors import DeviceError, UsageError
from vadcli.options.groups import DetectorOptions, options_class
from vadcli.registry import DETECTORS
from vadcli.types import (
    ByteArray,
    Calibration,
    CameraModel,
    CameraSample,
    Clip,
    ClipBatch,
    ClipNeeds,
    ClipScores,
    Embeddings,
    FloatArray,
    FrameScores,
    MaskScale,
    RawTrack,
    Thresholds,
)

if TYPE_CHECKING:
    from vadcli.detectors.lavida import LavidaOptions
    from vadcli.detectors.motion import MotionUserOptions


CATEGORY_THRESHOLDS = Thresholds(high=0.5, low=0.4, min_duration_s=0.5, merge_gap_s=2.0)
"""The default thresholds of the detectors that look for categories."""


class ClipModel(Protocol):
    """A model whose input is clips: a `Detector` or a `vadcli.detectors.ask.Asker`."""

    @property
    def batch_size(self) -> int:
        """The number of clips that each call should get. Known after `prepare`."""

    @property
    def parallel(self) -> int:
        """The number of threads that may call the model at the same time. Known after `prepare`."""

    def prepare(self) -> None:
        """Load the model. Later calls do nothing.

        Raises:
            DeviceError, WeightsError: the device or the weights are missing or unsuitable.
        """

    def fingerprint(self) -> dict[str, object]:
        """Return everything that changes the results, such as options and hashes of weights, as JSON."""


class Detector(ClipModel, Protocol):
    """Turns clips into scores. A detector may also have the attributes of `Traits`.

    The engine calls `prepare` before it calls `score`. It puts clips of several videos into one batch, scores videos in any
    order, and can resume in the middle of a video. So the scores of a clip must not depend on other clips or on earlier calls.

    Attributes:
        name: the name of the detector in the registry.
        model_version: version of the camera models that `fit` returns. If a stored camera model has another version, the engine
            fits a new camera model.
        needs: properties of the clips that the loader must deliver, for example the number of frames and the frame size.
        channels: names of the K raw scores that each frame gets.
        thresholds: default thresholds for events.
        calibration: how a score becomes a rate of events per hour; None if the scores are not calibrated.
        uses_categories: True if the scores depend on the user's categories.
        fits_camera: True if `fit` returns a model. Before a scan, the engine then reads a sample of each camera's videos.
        mask_scale: how the values of a mask become pixel scores.
    """

    name: str
    model_version: int
    needs: ClipNeeds
    channels: tuple[str, ...]
    thresholds: Thresholds
    calibration: Calibration | None
    uses_categories: bool
    fits_camera: bool
    mask_scale: MaskScale

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories that the detector looks for; empty if it does not use categories."""

    @property
    def weights(self) -> Mapping[str, str]:
        """The SHA-256 of the weights.

        The keys are the names of the weights. Empty if the detector loads no weights.
        """

    def fit(self, sample: CameraSample) -> CameraModel | None:
        """Return a model of what is usual for one camera; None if no model can be fitted. Deterministic."""

    def score(self, batch: ClipBatch) -> ClipScores:
        """Return the raw scores (B, T, K) and the masks of a batch. Deterministic."""

    def finish(self, track: RawTrack) -> FrameScores:
        """Smooth and calibrate the raw scores of one video. Return the logits of its frames."""


_METHODS = {name for protocol in (ClipModel, Detector) for name in vars(protocol) if not name.startswith("_")}
MEMBERS = tuple(sorted({*Detector.__annotations__, *_METHODS}))
"""The names of the attributes and methods that every detector must have."""


@runtime_checkable
class Preparer(Protocol):
    """A detector that can begin the work on a clip before its camera has a model."""

    def prepare_clip(self, clip: Clip) -> None:
        """Compute and keep what `fit` and `score` need of a clip.

        Several threads may call this method at the same time.
        """


@runtime_checkable
class Attributor(Protocol):
    """A detector that can determine which of its categories a clip shows."""

    @property
    def batch_size(self) -> int:
        """The number of clips that a call of `attribute` should get."""

    @property
    def categories(self) -> tuple[str, ...]:
        """The C categories."""

    def attribute(self, batch: ClipBatch) -> FloatArray:
        """Return scores (B, T, C) float32 in [0, 1]. A score depends on its own category only."""


@runtime_checkable
class Embedder(Protocol):
    """A detector that can compute its raw scores from one stored vector per sampled frame.

    The engine can store the vectors. If the user later changes only the categories, the engine scores the video from the stored
    vectors and does not decode the video again.
    """

    @property
    def encoder_name(self) -> str:
        """The encoder's name, for messages and documents."""

    @property
    def encoder_key(self) -> str:
        """Hash of the encoder and its weights. Vectors with the same key can be compared."""

    @property
    def embedding_key(self) -> str:
        """Hash of everything that changes a vector, except the video itself."""

    @property
    def keeps_embeddings(self) -> bool:
        """True if the engine should store the vectors."""

    def score_embeddings(self, embeddings: Embeddings, model: CameraModel | None) -> FloatArray:
        """Return the raw scores (S, K) of S vectors, exactly as `score` returns them for the same frames."""


@runtime_checkable
class Propagator(Protocol):
    """A detector that can propagate the known masks of some frames to the frames after them."""

    def propagate(self, frames: ByteArray, known: Mapping[int, FloatArray]) -> FloatArray:
        """Return the masks of all frames, computed from the known masks of some frames. Deterministic.

        The mask of frame n depends only on the last known mask before n, and on the frames from this known mask to n.

        Args:
            frames: (N, H, W, C) uint8 in time order, in the size that `needs` asks for. The frames may come from several spans
                of a video. In this case, the mask of the first frame of each span must be known.
            known: the known masks by the index of their frame. A mask is (h, w) float32 on the detector's mask
                scale, as `score` returns it. The mask of frame 0 must be known.

        Returns:
            (N, h, w) float32 on the detector's mask scale.
        """


@dataclass(frozen=True)
class Traits:
    """Optional attributes of a detector. If a detector does not have an attribute, the default is used.

    Attributes:
        caveats: reasons to trust the scores less than usual, such as untrained weights; one sentence per reason. Known before
            `prepare`.
        makes_masks: False if the detector never makes masks.
    """

    caveats: tuple[str, ...] = ()
    makes_masks: bool = True

    @classmethod
    def of(cls, detector: Detector) -> Traits:
        """Return the traits of a detector."""
        return cls(**{trait.name: getattr(detector, trait.name) for trait in fields(cls) if hasattr(detector, trait.name)})


@runtime_checkable
class ChecksModels(Protocol):
    """A detector whose options change its camera models."""

    def accepts(self, model: CameraModel) -> bool:
        """Return True if a stored model was fitted with this detector's options.

        If the result is False, the engine fits a new model.
        """


def caveats_of(detector: Detector) -> tuple[str, ...]:
    """Return the caveats of a detector; see `Traits`."""
    return Traits.of(detector).caveats


def digest(document: object) -> str:
    """Return the SHA-256 of a JSON document, in hex digits."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def check_device(device: str) -> None:
    """Check that this machine has a device. Loads torch only if the device is a GPU.

    Raises:
        DeviceError: this machine does not have the device.
        UsageError: no device can have this name.
    """
    if device in ("auto", "cpu"):
        return
    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise UsageError(f"--device {device!r} is not a device", hint="write auto, cpu, cuda or cuda:N")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        raise DeviceError(f"--device {device}: torch {torch.__version__} finds {count} CUDA devices")


def keep_compiler_cache() -> None:
    """Give torch's compiler a fixed folder for its files.

    Call this before the library `transformers` is imported. During this import, torch creates a folder for these files. By
    default, this is a new temporary folder in each process, and torch never removes the folder.
    """
    from vadcli.options import cache_folder  # here, because `vadcli.options` imports the options of each detector

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "torchinductor"))


def make_motion(options: MotionUserOptions) -> Detector:
    """Return the motion detector. Of the options, it uses only those that `MotionUserOptions` adds."""
    from vadcli.detectors.motion.detector import MotionDetector

    return MotionDetector(options.motion_options)


def make_lavida(options: LavidaOptions) -> Detector:
    """Return the LAVIDA detector. Raises WeightsError if its weights are missing."""
    keep_compiler_cache()
    from vadcli.detectors.lavida.detector import LavidaDetector

    return LavidaDetector(options)


def load(name: str, options: DetectorOptions | None = None) -> Detector:
    """Return a new detector.

    Args:
        name: the name of the detector in `registry.DETECTORS`.
        options: the options of the detector; None means the defaults.

    Raises:
        UsageError: no detector has this name, or an option can't be used.
        WeightsError: the weights of the detector are missing.
    """
    make = DETECTORS.load(name)
    if options is None:
        options = options_class(name)()
    detector: Detector = make(options)
    # `hasattr` is used on the type. On the detector, it would compute properties that are known only after `prepare`.
    lacking = [
        member for member in MEMBERS if not hasattr(type(detector), member) and member not in getattr(detector, "__dict__", ())
    ]
    DETECTORS.check(name, ok=not lacking, what=f"lacks {', '.join(lacking)}")
    return detector
