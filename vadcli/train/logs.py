"""Validation of a model during training, and the log of a training.

Validation measures the frame AUC and the IoU of the masks on samples that are not used for training.
Each sample has its own list of categories. The log has two CSV files, a progress bar if stderr is a
terminal, and TensorBoard if it is installed.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from vadcli.metrics.frame import FrameSet, frame_auc
from vadcli.store.atomic import writing
from vadcli.train.samples import ExposureSample
from vadcli.train.step import ExposureStep


@dataclass(frozen=True)
class Validated:
    """Results of one validation.

    Attributes:
        frame_auc: ROC-AUC over all frames; None if all frames are of one class.
        mask_iou: mean IoU over all frames that show an anomaly, at the size of the frame. None if no
            frame shows an anomaly.
        frames: number of frames.
    """

    frame_auc: float | None
    mask_iou: float | None
    frames: int


def validate(step: ExposureStep, samples: Sequence[ExposureSample], *, batch: int) -> Validated:
    """Return the frame AUC and the mask IoU of samples that are scored as in a scan.

    Leaves the model in evaluation mode. Draws no random numbers, so that the training stays the same.

    Args:
        step: has the model.
        samples: read one batch at a time.
        batch: samples per batch.
    """
    step.eval()
    scores, labels, ious = [], [], []
    for start in range(0, len(samples), batch):
        some = [samples[place] for place in range(start, min(start + batch, len(samples)))]
        for count in sorted({len(sample.frames) for sample in some}):
            alike = [sample for sample in some if len(sample.frames) == count]
            output = step.judge(alike)
            for sample, logit, mask in zip(alike, output.object_logit, output.mask_logit, strict=True):
                scores.append(logit.float().cpu().numpy())
                labels.append(sample.labels)
                ious += _ious(mask, sample)
    estimate = frame_auc(FrameSet.of(scores, labels))
    return Validated(estimate.value, float(np.mean(ious)) if ious else None, sum(map(len, labels)))


def _ious(mask: torch.Tensor, sample: ExposureSample) -> list[float]:
    """Return the IoU of each frame labelled True; the mask logits (T, h, w) are resized to the frame."""
    size = sample.masks.shape[1:]
    wide = F.interpolate(mask[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]
    found, there = (wide > 0).cpu().numpy(), sample.masks
    common, either = (found & there).sum(axis=(1, 2)), (found | there).sum(axis=(1, 2))
    return [float(common[frame] / either[frame]) for frame in np.flatnonzero(sample.labels)]


VALIDATION_COLUMNS = ("step", "frame_auc", "mask_iou", "frames")


class TrainingLog:
    """The log of one training, which may continue an earlier run.

    Rows of steps after `start` are removed, because these steps are computed again. Such rows are
    left if an earlier run was killed. Numbers are written in full, so that two logs of the same
    training differ only in the seconds.

    Args:
        out: folder of the CSV files.
        names: names of the losses.
        total: steps of the whole training.
        start: number of steps that are done already.
        main: whether this is the main process; the other processes log nothing.
    """

    def __init__(self, out: Path, *, names: Sequence[str], total: int, start: int, main: bool) -> None:
        self.main, self.names = main, tuple(names)
        self._steps, self._validations = out / "log.csv", out / "validation.csv"
        self._bar: Any = None
        self._board: Any = None
        if main:
            _begin(self._steps, ("step", *self.names, "rate", "seconds"), start)
            _begin(self._validations, VALIDATION_COLUMNS, start)
            self._bar = tqdm(total=total, initial=start, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)
            self._board = _board(out / "tensorboard", start)

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.main:
            self._bar.close()
            if self._board is not None:
                self._board.close()

    def step(self, step: int, losses: Mapping[str, float], rate: float, seconds: float) -> None:
        """Log one optimiser step."""
        if not self.main:
            return
        _append(self._steps, [str(step), *(repr(losses[name]) for name in self.names), repr(rate), f"{seconds:.4f}"])
        self._bar.set_postfix(loss=f"{losses['total']:.3f}", refresh=False)
        self._bar.update()
        self._tell(step, {**{f"loss/{name}": losses[name] for name in self.names}, "rate": rate})

    def validation(self, step: int, found: Validated) -> None:
        """Log one validation. A cell stays empty if its measure is None."""
        if not self.main:
            return
        figures = {"frame_auc": found.frame_auc, "mask_iou": found.mask_iou}
        _append(
            self._validations,
            [str(step), *("" if value is None else repr(value) for value in figures.values()), str(found.frames)],
        )
        self._tell(step, {f"validation/{name}": value for name, value in figures.items() if value is not None})

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def _begin(path: Path, columns: Sequence[str], start: int) -> None:
    """Replace a CSV file by a new one with the header and the old rows up to step `start`."""
    rows: list[list[str]] = []
    if start and path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(columns) and row[0].isdigit() and int(row[0]) <= start]
    temporary = path.with_name(f".{path.name}.new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *rows])
        os.replace(temporary, path)


def _append(path: Path, row: Sequence[str]) -> None:
    with writing(path), path.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(row)


def _board(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # TensorBoard is optional
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)
