"""How good a model is on samples that it isn't trained on: frame AUC under each sample's own list, and the IoU of its masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from vadcli.metrics import FrameSet, frame_auc
from vadcli.train.samples import ExposureSample
from vadcli.train.step import ExposureStep


@dataclass(frozen=True)
class Validated:
    """Figures of a validation.

    Attributes:
        frame_auc: ROC-AUC over all frames; None where they are all of one class.
        mask_iou: mean over the frames that show an anomaly, at their own size, whatever their score; None without any.
        frames: how many there were.
    """

    frame_auc: float | None
    mask_iou: float | None
    frames: int


def validate(step: ExposureStep, samples: Sequence[ExposureSample], *, batch: int) -> Validated:
    """Judge all samples as in a scan. Leaves the model in evaluation mode and takes no random number.

    Args:
        step: with the model.
        samples: read one batch at a time.
        batch: samples at a time.
    """
    step.eval()
    scores, labels, ious = [], [], []
    for start in range(0, len(samples), batch):
        some = [samples[place] for place in range(start, min(start + batch, len(samples)))]
        for count in sorted({len(sample.frames) for sample in some}):
            alike = [sample for sample in some if len(sample.frames) == count]
            verdict = step.judge(alike)
            for sample, logit, mask in zip(alike, verdict.object_logit, verdict.mask_logit, strict=True):
                scores.append(logit.float().cpu().numpy())
                labels.append(sample.labels)
                ious += _ious(mask, sample)
    estimate = frame_auc(FrameSet.of(scores, labels))
    return Validated(estimate.value, float(np.mean(ious)) if ious else None, sum(map(len, labels)))


def _ious(mask: torch.Tensor, sample: ExposureSample) -> list[float]:
    """IoU of each labelled frame's mask (T, h, w) of logits, brought to the frame's size."""
    size = sample.masks.shape[1:]
    wide = F.interpolate(mask[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]
    found, there = (wide > 0).cpu().numpy(), sample.masks
    common, either = (found & there).sum(axis=(1, 2)), (found | there).sum(axis=(1, 2))
    return [float(common[frame] / either[frame]) for frame in np.flatnonzero(sample.labels)]
