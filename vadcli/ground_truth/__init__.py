"""Ground truth: turns the annotations of a data set into labels and masks, one per frame.

    truth = open_ground_truth("ped2", Path("UCSD_Anomaly_Dataset.v1p2"))
    for video, video_truth in truth.match(scored).pairs.items():
        labels = video_truth.labels(table)

To add a data set, write a subclass of `GroundTruth` with one method, and add a line to `vadcli.registry`.
"""

from __future__ import annotations

from pathlib import Path

from vadcli.ground_truth.annotation import Span
from vadcli.ground_truth.lists import template_from_events, template_from_labels
from vadcli.ground_truth.truth import GroundTruth, Matching, Region, VideoTruth
from vadcli.registry import DATA_SETS


def open_ground_truth(name: str, root: Path) -> GroundTruth:
    """Return the ground truth of a data set; its files are read when its videos are requested.

    Args:
        name: a name in `registry.DATA_SETS`.
        root: the folder or file of the annotations; the docstring of each reader says which.

    Raises:
        UsageError: no data set has this name, or `root` does not exist.
    """
    kind = DATA_SETS.load(name)
    DATA_SETS.check(name, ok=isinstance(kind, type) and issubclass(kind, GroundTruth), what="is not a GroundTruth class")
    truth: GroundTruth = kind(root)
    return truth


__all__ = [
    "GroundTruth",
    "Matching",
    "Region",
    "Span",
    "VideoTruth",
    "open_ground_truth",
    "template_from_events",
    "template_from_labels",
]
