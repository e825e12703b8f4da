"""Masks with crisp edges: SAM2 finds the outlines of objects whose pixels have high scores.

A blob is a connected group of pixels whose scores reach the threshold for events. SAM2 gets one prompt per blob: the pixel with
the highest score, and the box around the blob. SAM2 returns three masks. The mask that SAM2 rates best replaces the blob.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vadcli import weights
from vadcli.detectors.encoders import model_hashes
from vadcli.types import BoolArray, ByteArray, FloatArray

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from vadcli.detectors.lavida.masks import ImageFeatures, TransformersMasks
    from vadcli.detectors.running import DeviceRunner

REFINER_MODEL = "sam2.1-hiera-small"
MOST_BLOBS = 8
"""At most this many blobs of a frame are refined: the blobs with the highest scores."""
RULES_VERSION = 1
"""Increase this if a change of the code gives another result for the same frame and the same mask."""

Segment = Callable[[FloatArray], BoolArray]
"""Returns masks (K, height, width) for prompts (K, 3, 2); see `Refiner.segment`."""


class Refiner(Protocol):
    """A model that finds the outline of an object. The prompt is a point, or a point and a box."""

    @property
    def max_area_px(self) -> int:
        """Largest useful area of a frame in pixels. The model reduces larger frames to about this area."""

    def prepare(self) -> None:
        """Load the model. Later calls do nothing.

        Raises:
            DeviceError, WeightsError: the device or the weights are missing or unsuitable.
        """

    def segment(self, frame: ByteArray, prompts: FloatArray, width: int, height: int) -> BoolArray:
        """Return one mask per prompt (K, height, width) bool. Deterministic.

        Args:
            frame: (H, W, 3) uint8, of any size.
            prompts: (K, P, 2) float32, x and y in a frame of `width` × `height` pixels. If P is 1, a prompt is a point. If P is
                3, a prompt is a point, the upper left corner of a box, and the lower right corner of the box.
            width, height: size of the masks.
        """

    def fingerprint(self) -> dict[str, object]:
        """Return everything that changes the masks, as a JSON object. Loads no weights."""


def refine_mask(pixels: ByteArray, level: int, segment: Segment) -> ByteArray:
    """Return the pixel scores (H, W) uint8 after each blob was replaced by the outline of its object.

    Pixels inside an outline get the highest score of the blob, or keep their score if it is higher. Pixels of the blob outside
    its outline get a score below `level`. If an outline does not touch its blob, the model has found another object, and the
    blob does not change.

    Args:
        pixels: (H, W) uint8 pixel scores.
        level: the lowest score that belongs to a blob, at least 1.
        segment: finds the outlines.
    """
    from scipy import ndimage

    labels, count = ndimage.label(pixels >= level)
    if not count:
        return pixels
    numbers = np.arange(1, count + 1)
    peaks, areas = ndimage.maximum(pixels, labels, numbers), np.bincount(labels.ravel())[1:]
    chosen = np.lexsort((-areas, -np.asarray(peaks, np.int64)))[:MOST_BLOBS]
    boxes = ndimage.find_objects(labels)
    # for each blob: its box, flags for the pixels of the box that belong to the blob, and the highest score of the blob
    blobs = [(boxes[blob], labels[boxes[blob]] == blob + 1, int(peaks[blob])) for blob in chosen]
    outlines = segment(np.stack([_prompt(pixels[box], inside, peak, box) for box, inside, peak in blobs]))
    touching = [
        (box, inside, peak, outline)
        for (box, inside, peak), outline in zip(blobs, outlines, strict=True)
        if (outline[box] & inside).any()
    ]
    refined = pixels.copy()
    for box, inside, _, _ in touching:
        refined[box][inside] = np.minimum(refined[box][inside], level - 1)
    for _, _, peak, outline in touching:
        refined[outline] = np.maximum(refined[outline], peak)
    return refined


def _prompt(pixels: ByteArray, inside: BoolArray, peak: int, box: tuple[slice, slice]) -> FloatArray:
    """Return a prompt (3, 2): x and y of the pixel with the highest score, and of two corners of the box."""
    # If several pixels have the highest score, the pixel nearest to their mean position is used.
    rows, columns = np.nonzero(inside & (pixels == peak))
    nearest = int(((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin())
    top, left, bottom, right = box[0].start, box[1].start, box[0].stop - 1, box[1].stop - 1
    return np.array([[left + columns[nearest], top + rows[nearest]], [left, top], [right, bottom]], np.float32)


class Sam2Refiner:
    """SAM2 as a `Refiner`, on one device. Only `prepare` reads the weights.

    If the device runs out of memory, the model processes fewer blobs at a time.

    Args:
        model: a name of the weights manifest, or a transformers folder.
        device, precision: as in `DetectorOptions`. If the device has several GPUs, the first GPU is used.

    Raises:
        WeightsError: the model is not on this machine.
    """

    max_area_px = 2 * 1024 * 1024
    """SAM2 resizes frames to 1024 × 1024 px. A 16:9 frame with this area has more than 1024 rows, which is enough."""

    def __init__(self, model: str = "", *, device: str = "auto", precision: str = "auto") -> None:
        model = model or REFINER_MODEL
        self.folder = weights.find(model)
        self._model, self._device, self._precision = model, device, precision
        self._prepared: tuple[TransformersMasks, dtype, DeviceRunner] | None = None

    def fingerprint(self) -> dict[str, object]:
        """Return the hashes of the model's files, the precision and RULES_VERSION."""
        return {"rules": RULES_VERSION, "precision": self._precision, "files": model_hashes(self._model, self.folder)}

    def prepare(self) -> None:
        """Load the model onto the device. Later calls do nothing."""
        self._load()

    def _load(self) -> tuple[TransformersMasks, dtype, DeviceRunner]:
        """Return the model, its dtype and its runner. The first call loads the model."""
        if self._prepared is not None:
            return self._prepared
        import torch

        from vadcli.detectors.lavida.checkpoint import read_model
        from vadcli.detectors.lavida.masks import TransformersMasks
        from vadcli.detectors.running import DeviceRunner, devices_for, dtype_for

        device = devices_for(self._device)[0]
        precision = dtype_for(self._precision, device)
        # All numbers are read as float32. The call of `to` below casts the weights to `precision`. The frequencies of position
        # encodings stay float32 (see `ExactBuffers`).
        sam2 = read_model("sam2", self.folder, extras_matter=False, dtype=torch.float32)
        model = TransformersMasks(sam2).eval().to(device=device, dtype=precision)
        self._prepared = model, precision, DeviceRunner(device)
        return self._prepared

    def segment(self, frame: ByteArray, prompts: FloatArray, width: int, height: int) -> BoolArray:
        """Return one mask per prompt (K, height, width) bool; see `Refiner.segment`."""
        import torch
        from torch.nn.functional import interpolate

        from vadcli.detectors.lavida.masks import sam_pixels

        model, precision, runner = self._load()
        encoded: list[ImageFeatures] = []  # the frame is encoded once, even if the prompts are split over several steps

        def step(points: Tensor) -> tuple[Tensor]:
            """Return the mask logits (k, height, width) for k prompts (k, P, 2)."""
            if not encoded:
                pixels = torch.from_numpy(np.array(frame[None])).to(points.device)
                encoded.append(model.encode(sam_pixels(pixels, model.image_size, precision)))
            scaled = points * (model.image_size / torch.tensor([width, height], device=points.device))
            labels = torch.tensor([1, 2, 3], dtype=torch.int32, device=points.device)[: points.shape[1]]
            # (k, 1, P + 1, 256): the last token is padding. It is left out below, because `decode` adds a padding token itself.
            sparse, _ = model.sam2.prompt_encoder(scaled[:, None], labels.expand(len(points), 1, -1), None, None)
            rows = torch.zeros(len(points), dtype=torch.int64, device=points.device)  # every prompt uses the same frame
            output = model.decode(encoded[0][rows], sparse[:, 0, :-1], multimask=True)
            best = output.mask_logit[torch.arange(len(points), device=points.device), output.iou.argmax(dim=1)]  # (k, 4h, 4w)
            return (interpolate(best[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0] > 0,)

        (masks,) = runner.run(step, prompts)
        return np.asarray(masks)
