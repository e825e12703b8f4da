"""Crisp masks: SAM2 finds the outline of the thing that a blob of high pixel scores marks.

A blob is a connected set of pixels whose scores reach the threshold of events. SAM2 gets two prompts per blob: the point with
the highest score, and the box around the blob. SAM2 returns three masks. The one that it rates best replaces the blob.
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
    from vadcli.detectors.running import Runner

REFINER_MODEL = "sam2.1-hiera-small"
MOST_BLOBS = 8
"""At most this many blobs of a frame are refined: the ones with the highest scores."""
RULES_VERSION = 1
"""Increase this if the same frame and mask give another refined mask."""

Segment = Callable[[FloatArray], BoolArray]


class Refiner(Protocol):
    """A model that finds the outline of a thing. A prompt marks the thing: a point, or a point and a box."""

    @property
    def max_area_px(self) -> int:
        """Largest useful area of a frame in pixels. The model makes larger frames smaller."""

    def prepare(self) -> None:
        """Load the model. Later calls do nothing.

        Raises:
            DeviceError, WeightsError: the device or the weights are missing or unsuitable.
        """

    def segment(self, frame: ByteArray, prompts: FloatArray, width: int, height: int) -> BoolArray:
        """Return one mask per prompt (K, height, width) bool. Deterministic.

        Args:
            frame: (H, W, 3) uint8, of any size.
            prompts: (K, P, 2) float32 x, y in a picture of `width` × `height` pixels: P is 1 for a point, or 3 for a point,
                the upper left and the lower right corner of a box.
            width, height: size of the masks.
        """

    def fingerprint(self) -> dict[str, object]:
        """Return everything that changes the masks, as JSON. Loads no weights."""


def refine_mask(pixels: ByteArray, level: int, segment: Segment) -> ByteArray:
    """Return a mask in which outlines replace the blobs.

    All pixels inside an outline get the highest value of the blob. Pixels of a blob outside its outline get a value below
    `level`. If an outline does not touch its blob, the model has found another thing, and the blob stays as it is.

    Args:
        pixels: (H, W) uint8 pixel scores.
        level: the lowest value that belongs to a blob, at least 1.
        segment: returns the outlines for (K, 3, 2) prompts; see `Refiner.segment`.
    """
    from scipy import ndimage

    labels, count = ndimage.label(pixels >= level)
    if not count:
        return pixels
    numbers = np.arange(1, count + 1)
    peaks, areas = ndimage.maximum(pixels, labels, numbers), np.bincount(labels.ravel())[1:]
    chosen = np.lexsort((-areas, -np.asarray(peaks, np.int64)))[:MOST_BLOBS]
    boxes = ndimage.find_objects(labels)
    blobs = [(boxes[blob], labels[boxes[blob]] == blob + 1, int(peaks[blob])) for blob in chosen]
    outlines = segment(np.stack([_prompt(pixels[box], own, peak, box) for box, own, peak in blobs]))
    found = [
        (box, own, peak, outline)
        for (box, own, peak), outline in zip(blobs, outlines, strict=True)
        if (outline[box] & own).any()
    ]
    refined = pixels.copy()
    for box, own, _, _ in found:
        refined[box][own] = np.minimum(refined[box][own], level - 1)
    for _, _, peak, outline in found:
        refined[outline] = np.maximum(refined[outline], peak)
    return refined


def _prompt(pixels: ByteArray, own: BoolArray, peak: int, box: tuple[slice, slice]) -> FloatArray:
    """Return x and y (3, 2) of the pixel with the highest score, and of two corners of the box."""
    # If several pixels have the highest score, the one nearest to their middle is taken.
    rows, columns = np.nonzero(own & (pixels == peak))
    nearest = int(((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin())
    top, left, bottom, right = box[0].start, box[1].start, box[0].stop - 1, box[1].stop - 1
    return np.array([[left + columns[nearest], top + rows[nearest]], [left, top], [right, bottom]], np.float32)


class Sam2Refiner:
    """SAM2 as a `Refiner`, on one device. Creating it reads no tensors; `prepare` does.

    If the device runs out of memory, fewer blobs are computed at a time.

    Args:
        model: a name of the weights manifest, or a transformers folder.
        device, precision: as in `DetectorOptions`; of several GPUs, the first is used.

    Raises:
        WeightsError: the model is not on this machine.
    """

    max_area_px = 2 * 1024 * 1024
    """Frames are resized to a square with sides of 1024 px. A frame of 16:9 with this area has more than 1024 rows."""

    def __init__(self, model: str = "", *, device: str = "auto", precision: str = "auto") -> None:
        model = model or REFINER_MODEL
        self.folder = weights.find(model)
        self._model, self._device, self._precision = model, device, precision
        self._prepared: tuple[TransformersMasks, dtype, Runner] | None = None

    def fingerprint(self) -> dict[str, object]:
        """Return the files, the precision and the version of the rules."""
        return {"rules": RULES_VERSION, "precision": self._precision, "files": model_hashes(self._model, self.folder)}

    def prepare(self) -> None:
        """Load the model onto the device. Later calls do nothing."""
        self._load()

    def _load(self) -> tuple[TransformersMasks, dtype, Runner]:
        """Return the model, its dtype and the runner that computes with it."""
        if self._prepared is not None:
            return self._prepared
        import torch

        from vadcli.detectors.lavida.checkpoint import read_model
        from vadcli.detectors.lavida.masks import TransformersMasks
        from vadcli.detectors.running import Runner, devices_for, dtype_for

        device = devices_for(self._device)[0]
        precision = dtype_for(self._precision, device)
        # TransformersMasks keeps the frequencies of position encodings exact when it is cast, but transformers does not.
        sam2 = read_model("sam2", self.folder, extras_matter=False, dtype=torch.float32)
        model = TransformersMasks(sam2).eval().to(device=device, dtype=precision)
        self._prepared = model, precision, Runner(device)
        return self._prepared

    def segment(self, frame: ByteArray, prompts: FloatArray, width: int, height: int) -> BoolArray:
        """Return one mask per prompt (K, height, width) bool; see `Refiner.segment`."""
        import torch
        from torch.nn.functional import interpolate

        from vadcli.detectors.lavida.masks import sam_pixels

        model, precision, runner = self._load()
        encoded: list[ImageFeatures] = []  # the frame is encoded once, even if its prompts are split

        def step(points: Tensor) -> tuple[Tensor]:  # (k, P, 2) -> (k, height, width)
            if not encoded:
                pixels = torch.from_numpy(np.array(frame[None])).to(points.device)
                encoded.append(model.encode(sam_pixels(pixels, model.image_size, precision)))
            scaled = points * (model.image_size / torch.tensor([width, height], device=points.device))
            labels = torch.tensor([1, 2, 3], dtype=torch.int32, device=points.device)[: points.shape[1]]
            # (k, 1, P + 1, 256): the last one is a padding token, which `decode` adds again
            sparse, _ = model.sam2.prompt_encoder(scaled[:, None], labels.expand(len(points), 1, -1), None, None)
            rows = torch.zeros(len(points), dtype=torch.int64, device=points.device)  # the same frame for each prompt
            output = model.decode(encoded[0][rows], sparse[:, 0, :-1], multimask=True)
            best = output.mask_logit[torch.arange(len(points), device=points.device), output.iou.argmax(dim=1)]  # (k, 4h, 4w)
            return (interpolate(best[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0] > 0,)

        (masks,) = runner.run(step, prompts)
        return np.asarray(masks)
