"""The LAVIDA detector: loads a model folder onto the devices, and lets the model score clips."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from vadcli import weights
from vadcli.detectors import CATEGORY_THRESHOLDS
from vadcli.detectors.batching import ModelCopies
from vadcli.detectors.lavida import LavidaOptions, checkpoint
from vadcli.detectors.lavida.checkpoint import load_preset, preset_names
from vadcli.detectors.lavida.model import EncodedQuestion, Lavida, LavidaConfig
from vadcli.detectors.lavida.sam2 import ConvTrunkConfig, PackageMasks
from vadcli.detectors.mllm.compress import STATIC_DISTANCE
from vadcli.detectors.running import Clock, DeviceRunner, attention_for, devices_for, dtype_for
from vadcli.errors import UsageError, WeightsError
from vadcli.options import parse_categories
from vadcli.options.groups import PRESET_MARK
from vadcli.types import (
    MASK_LOGIT_LIMIT,
    ByteArray,
    Calibration,
    CameraModel,
    CameraSample,
    ClipBatch,
    ClipNeeds,
    ClipScores,
    FloatArray,
    FrameScores,
    MaskScale,
    PixelFormat,
    RawTrack,
    SizeRule,
)

log = logging.getLogger("vadcli")

MODEL_VERSION = 1
DEFAULT_CATEGORIES = "@general"


class LavidaDetector:
    """Scores how well each frame shows the user's categories, and marks the pixels that show a category.

    The constructor reads only configs in the model's folder. `prepare` loads the weights.

    Args:
        options: the user's options, such as the model, the categories and the device.

    Raises:
        UsageError: the category list can't be read.
        WeightsError: the model does not exist, or the model is untrained and --allow-untrained was not given.
    """

    name = "lavida"
    model_version = MODEL_VERSION
    channels: tuple[str, ...] = ("object_logit",)
    calibration: Calibration | None = None
    uses_categories = True
    fits_camera = False
    mask_scale = MaskScale.LOGIT

    def __init__(self, options: LavidaOptions) -> None:
        self.options = options
        self.categories = parse_categories(options.categories or DEFAULT_CATEGORIES)
        if not self.categories:
            raise UsageError(
                f"--categories {options.categories!r} contains no category", hint="omit --categories to look for @general"
            )
        self.folder, config = _find(options)
        self.config = _adjusted(config, options)
        if self.folder is None:
            side = int(self.config.parts.sam2.get("image_size", 1024))
        else:
            side = checkpoint.image_size(self.folder)
        sampling = self.config.sampling
        self.needs = ClipNeeds(
            frames=sampling.frames,
            overlap=0,
            rate_hz=sampling.rate_hz,
            size=SizeRule(side * side),
            pixel_format=PixelFormat.RGB,
        )
        self.thresholds = CATEGORY_THRESHOLDS
        model = options.lavida_model
        self.caveats: tuple[str, ...] = ()
        if self.folder is None or not self.config.trained:
            self.caveats = (f"{model} was never trained: its scores, masks and categories mean nothing.",)
        elif self.config.data_sets() == {"synthetic"}:
            caveat = f"{model} was trained only on generated videos of shapes; it is not a detector for real videos."
            self.caveats = (caveat,)
        self._copies: ModelCopies[_LavidaCopy] = ModelCopies()
        self.batch_size = 1

    @property
    def parallel(self) -> int:
        """The number of calls that may run at the same time: one on a CPU, two per GPU.

        On a GPU, one call copies frames while the other call computes.
        """
        return self._copies.parallel

    def prepare(self) -> None:
        """Load the model onto each device. Measure how many clips fit into memory. Later calls do nothing."""
        if self._copies.all:
            return
        if not self.options.categories:
            log.info("no --categories: looking for %s (%s)", DEFAULT_CATEGORIES, ", ".join(self.categories))
        if len(self.categories) > self.config.prompt.max_categories:
            log.warning(
                "%d categories are split into prompts of at most %d categories; the highest score of all prompts counts",
                len(self.categories),
                self.config.prompt.max_categories,
            )
        self._copies.start(_LavidaCopy(self, device) for device in devices_for(self.options.device))
        first, side = self._copies.all[0], int(self.needs.size.max_area_px**0.5)
        clip = np.zeros((self.needs.frames, side, side, 3), np.uint8)
        self.batch_size = self.options.batch_size or first.runner.find_batch_size(first.score, clip)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices that compute; empty before `prepare`."""
        return self._copies.devices

    @property
    def largest_step(self) -> int:
        """The number of clips that each device can process at once; halved if a device runs out of memory."""
        return min(copy.runner.limit for copy in self._copies.all)

    def reconfigure(self, config: LavidaConfig) -> None:
        """Use another config with the same model sizes as now. Do not call this while `score` is running."""
        self.config = config
        for copy in self._copies.all:
            copy.model.config = config
            copy.runner.reset_limit()

    def time_stages(self, clock: Clock) -> None:
        """Measure how long each stage of later calls takes.

        A stage runs in the context `clock(name of the stage)`.
        """
        for copy in self._copies.all:
            copy.model.clock = copy.runner.clock = clock

    def count_tokens(self, batch: ClipBatch) -> tuple[float, float]:
        """Return the mean numbers of visual tokens per clip: L before compression, and M after compression."""
        self.prepare()
        copy = self._copies.all[0]
        before, after = copy.runner.run(copy.count_tokens, batch.frames)
        return float(before.mean()), float(after.mean())

    def fit(self, sample: CameraSample) -> CameraModel | None:
        """Return None, because LAVIDA learns nothing about cameras."""
        return None

    def score(self, batch: ClipBatch) -> ClipScores:
        """Return object-score logits (B, T, 1) and masks (B, T, h, w) in the format MaskScale.LOGIT."""
        self.prepare()
        with self._copies.idle() as copy:
            logits, masks = copy.runner.run(copy.score, batch.frames)
        return ClipScores(logits[..., None], masks)

    def attribute(self, batch: ClipBatch) -> FloatArray:
        """Return scores (B, T, C). Each category has its own prompt, but the frames are encoded only once."""
        self.prepare()
        with self._copies.idle() as copy:
            scores: FloatArray = copy.runner.run(copy.attribute, batch.frames)[0]
        return scores

    def propagate(self, frames: ByteArray, known: Mapping[int, FloatArray]) -> FloatArray:
        """Return the masks of all frames. SAM2's video memory propagates the known masks; see `Propagator`."""
        self.prepare()
        with self._copies.idle() as copy:
            return copy.propagate(frames, known)

    def finish(self, track: RawTrack) -> FrameScores:
        """Return the object-score logits of a video, unchanged."""
        return FrameScores(track.raw[:, 0].astype(np.float32))

    @property
    def weights(self) -> dict[str, str]:
        """The SHA-256 of the model's folder.

        The key is the name of the model. Empty if the weights are random.
        """
        return {self.config.name: weights.fingerprint(self.folder)} if self.folder else {}

    def fingerprint(self) -> dict[str, object]:
        """Return the hash of the weights, the precision and all settings that change scores."""
        config = asdict(self.config)
        return {
            "detector": self.name,
            "model_version": MODEL_VERSION,
            "weights": weights.fingerprint(self.folder) if self.folder else f"random {self.config.name} {self.config.seed}",
            "precision": str(dtype_for(self.options.precision, devices_for(self.options.device)[0])),
            "allow_untrained": self.options.allow_untrained and not self.config.trained,
            **{name: config[name] for name in ("compression", "prompt", "sampling", "pixels", "mask_gate")},
        }

    def load(self, device: torch.device) -> Lavida:
        """Return the model, loaded onto a device."""
        dtype = dtype_for(self.options.precision, device)
        if dtype is torch.float32:
            # TF32, torch's default for convolutions, would make the results depend on the batch size.
            torch.backends.cudnn.allow_tf32 = False
        if self.folder is None:
            model = checkpoint.random_model(self.config, seed=self.config.seed, device=device, dtype=dtype)
        else:
            model = checkpoint.load(
                self.folder,
                device=device,
                dtype=dtype,
                allow_untrained=self.options.allow_untrained,
                attention=attention_for(device, dtype),
            )
        model.config = self.config
        if self.options.sam2 == "package":
            _use_package(model)
        if self.options.compile:
            model.compile_parts()
        return model


class _LavidaCopy:
    """A copy of the model on one device, and the prompts on this device."""

    def __init__(self, detector: LavidaDetector, device: torch.device) -> None:
        self.model = detector.load(device)
        self.runner: DeviceRunner = DeviceRunner(device)
        try:
            self._questions: list[EncodedQuestion] = self.model.questions(detector.categories)
            self._single = [question for name in detector.categories for question in self.model.questions([name])]
        except ValueError as error:
            raise UsageError(f"--categories: {error}", hint="use plain words") from error

    def score(self, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the logits (B, T) and the masks (B, T, h, w) of the clips."""
        output = self.model(frames, self._questions)
        return output.object_logit, _on_scale(output.mask_logit)

    def attribute(self, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the scores (B, T, C) in [0, 1], one per frame and category."""
        outputs = self.model.judge_each(self.model.encode(frames), self._single)
        return (torch.stack([output.object_logit.sigmoid() for output in outputs], dim=-1),)

    def count_tokens(self, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the numbers of visual tokens per clip before and after compression."""
        visual = self.model.encode(frames).visual
        counts = torch.tensor([(clip.length, len(clip.tokens)) for clip in visual], dtype=torch.float64)
        return counts[:, 0], counts[:, 1]

    def propagate(self, frames: ByteArray, known: Mapping[int, FloatArray]) -> FloatArray:
        """Return a mask for every frame, made from the masks of some frames."""
        logits = {number: (torch.from_numpy(mask) - 0.5) * (2 * MASK_LOGIT_LIMIT) for number, mask in known.items()}
        masks: FloatArray = self.runner.run_whole(
            lambda video, batch: _on_scale(self.model.propagate(video, logits, batch=batch)), frames
        )
        return masks


def _on_scale(mask_logit: torch.Tensor) -> torch.Tensor:
    """Convert pixel logits to numbers from 0 to 1 in the format MaskScale.LOGIT."""
    return mask_logit.clamp(-MASK_LOGIT_LIMIT, MASK_LOGIT_LIMIT) / (2 * MASK_LOGIT_LIMIT) + 0.5


def _find(options: LavidaOptions) -> tuple[Path | None, LavidaConfig]:
    """Return the folder and the config of the model. A preset with random weights has no folder (None)."""
    model = options.lavida_model
    if model.startswith(PRESET_MARK):
        config = load_preset(model.removeprefix(PRESET_MARK))
        if not options.allow_untrained:
            raise WeightsError(
                f"{model}: a preset has no trained weights",
                hint="name a trained model, or scan with --allow-untrained",
            )
        return None, config
    try:
        folder = weights.locate(model)
    except WeightsError:
        if options.allow_untrained and model in preset_names():
            return None, load_preset(model)
        raise
    return folder, checkpoint.check(folder, allow_untrained=options.allow_untrained)


def _adjusted(config: LavidaConfig, options: LavidaOptions) -> LavidaConfig:
    """Return the stored config, changed by the user's options."""
    if options.compression is not None:
        config = replace(config, compression=replace(config.compression, ratio=options.compression))
    if options.mask_gate is not None:
        config = replace(config, mask_gate=options.mask_gate)  # type: ignore[arg-type]
    if options.drop_static and config.additions.sight:
        hint = "omit --drop-static: this model reads SAM2's features"
        raise UsageError(f"--drop-static: {config.name} has no vision tower, so no patches can be dropped", hint=hint)
    if options.drop_static and config.pixels.static_threshold is None:
        config = replace(config, pixels=replace(config.pixels, static_threshold=STATIC_DISTANCE))
    return config


def _use_package(model: Lavida) -> None:
    """Replace the model's SAM2 by the SAM2 of Meta's package. The weights stay the same."""
    reference = model.masks.sam2  # type: ignore[attr-defined]
    trunk = reference.config.vision_config.backbone_config.model_type
    if trunk == ConvTrunkConfig.model_type:
        raise UsageError(f"{model.config.name}: the sam2 package can't run this model's image encoder", hint="omit --sam2")
    masks = PackageMasks(reference.config)
    masks.load_transformers_state(reference.state_dict())
    model.masks = masks.to(device=reference.device, dtype=reference.dtype).eval()
