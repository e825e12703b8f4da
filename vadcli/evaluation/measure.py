"""Computes the metrics of a test set, by group and under a protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vadcli.errors import UsageError
from vadcli.evaluation.collect import Size, TestSet
from vadcli.metrics import Bootstrap, Estimate
from vadcli.metrics.event import (
    IOU_LEVELS,
    detection_recall,
    false_alarms_per_hour,
    onset_error,
    segment_f1,
    severity_kendall,
    severity_spearman,
)
from vadcli.metrics.frame import (
    NORMAL,
    category_auc,
    frame_ap,
    frame_ap_macro,
    frame_auc,
    frame_auc_macro,
    frames_of_category,
    pate,
)
from vadcli.metrics.localization import aupimo, aupro, mask_iou, pixel_ap, pixel_auc, rbdc, tbdc

Estimates = dict[str, dict[str, Estimate]]
"""Figures by group and name: `estimates["frame"]["auc_micro"]`."""


@dataclass(frozen=True)
class Protocol:
    """The settings that change figures.

    Attributes:
        endpoints: append (0, 0) and (1, 1) to labels and scores, as some published evaluators do.
        only_sampled: leave out frames whose score is carried forward.
        pixel_size: height and width to which masks are resized; None for the size of the frames.
        groups: the groups of metrics to compute; empty for all.
        bootstrap: how intervals are computed; None for no intervals.
    """

    endpoints: bool = False
    only_sampled: bool = False
    pixel_size: Size | None = None
    groups: tuple[str, ...] = ()
    bootstrap: Bootstrap | None = None

    def wants(self, *groups: str) -> bool:
        """True if at least one of `groups` should be computed."""
        return not self.groups or not set(groups).isdisjoint(self.groups)

    def to_json(self) -> dict[str, Any]:
        """Return the protocol as it is stored with the figures."""
        size = None if self.pixel_size is None else f"{self.pixel_size[0]}x{self.pixel_size[1]}"
        drawn = asdict(self.bootstrap) if self.bootstrap else None
        return {**vars(self), "pixel_size": size, "groups": list(self.groups), "bootstrap": drawn}


def measure(test: TestSet, protocol: Protocol) -> Estimates:
    """Return every figure of the chosen groups that the truth and the masks allow.

    Raises:
        UsageError: a group was chosen by name, but the data for it is missing.
    """
    found: Estimates = {}
    for group in protocol.groups or tuple(GROUPS):
        figures = dict(GROUPS[group](test, protocol))
        if figures:
            found[group] = figures
        elif protocol.groups and test.unmasked and group in NEEDS_MASKS:
            raise UsageError(f"{test.out}: holds no masks for {group} figures", hint="scan again with --masks video --force")
        elif protocol.groups:
            text = f"--metrics {group}: the truth of {test.dataset or test.out} has no data for it"
            raise UsageError(text, hint="leave it out of --metrics")
    return found


def _frame(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    frames = test.frames.only_sampled() if protocol.only_sampled else test.frames
    for name, figure in FRAME.items():
        yield name, figure(frames, endpoints=protocol.endpoints)


def _pixel(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    if test.pixels is not None:
        for name, figure in PIXEL.items():
            estimate = figure(test.pixels)
            # The IoU needs only the masks at the threshold 0.5. Run lengths may store exactly these.
            exact = name == "mask_iou" and set(test.run_lengths_at) <= {0.5}
            yield name, estimate if exact else _of_levels(estimate, test)


def _region(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    if test.detected is not None and test.tracks is not None:
        yield "rbdc", _of_levels(rbdc(test.detected, test.tracks, test.region_frames), test)
        yield "tbdc", _of_levels(tbdc(test.detected, test.tracks, test.region_frames), test)


def _of_levels(estimate: Estimate, test: TestSet) -> Estimate:
    """Return the estimate, with a note if masks are run lengths, which cannot rank pixels or regions."""
    if not test.two_level:
        return estimate
    some = "" if len(test.two_level) == len(test.masked) else f" in {len(test.two_level)} of {len(test.masked)} videos"
    note = f"{TWO_LEVELS}{some}: run lengths at {', '.join(f'{threshold:g}' for threshold in test.run_lengths_at)}"
    return replace(estimate, note="; ".join(part for part in (estimate.note, note) if part))


def _event(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    for iou in IOU_LEVELS:
        yield f"f1_iou_{iou:g}", segment_f1(test.events, iou=iou)
    yield "recall", detection_recall(test.events)
    yield "onset_error_s", onset_error(test.events)
    yield "false_alarms_per_hour", false_alarms_per_hour(test.events)


def _range(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    yield "pate", pate(test.frames)


def _category(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    endpoints = protocol.endpoints
    rows = test.frames.sampled if protocol.only_sampled and test.frames.sampled is not None else slice(None)
    frames = test.frames.only_sampled() if protocol.only_sampled else test.frames
    for name, of_category in test.categories.items():
        codes = np.where(of_category[rows], 0, NORMAL)
        found = {"": frame_auc(frames_of_category(frames, codes, 0), endpoints=endpoints)}
        found[WITHIN] = category_auc(frames, codes, 0, within=True, endpoints=endpoints)
        if name in test.category_scores:
            own = replace(frames, scores=test.category_scores[name][rows])
            found[OWN] = category_auc(own, codes, 0, endpoints=endpoints)
            found[OWN + WITHIN] = category_auc(own, codes, 0, within=True, endpoints=endpoints)
        # A truth may have a category with the name "fight, within videos". Then this name is for the category itself.
        yield from ((name + what, each) for what, each in found.items() if not what or name + what not in test.categories)


def _severity(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    if test.severity is not None:
        yield "spearman", severity_spearman(test.severity)
        yield "kendall", severity_kendall(test.severity)


FRAME: dict[str, Callable[..., Estimate]] = {
    "auc_micro": frame_auc,
    "auc_macro": frame_auc_macro,
    "ap_micro": frame_ap,
    "ap_macro": frame_ap_macro,
}
PIXEL: dict[str, Callable[..., Estimate]] = {
    "auc": pixel_auc,
    "ap": pixel_ap,
    "mask_iou": mask_iou,
    "aupro": aupro,
    "aupimo": aupimo,
}
WITHIN, OWN = ", within videos", ", own score"
"""Endings of a category's name: for figures within videos, and for the category's own score."""
NEEDS_MASKS = ("pixel", "region")
TWO_LEVELS = "two levels"
GROUPS: dict[str, Callable[[TestSet, Protocol], Iterator[tuple[str, Estimate]]]] = {
    "frame": _frame,
    "pixel": _pixel,
    "region": _region,
    "event": _event,
    "range": _range,
    "category": _category,
    "severity": _severity,
}
"""The function that computes each group of metrics."""
