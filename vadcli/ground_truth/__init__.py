"""Ground truth of anomaly detection: readers that turn annotations of a data set into one label per row and masks per frame.

    truth = open_ground_truth("ped2", Path("UCSD_Anomaly_Dataset.v1p2"))
    for video, video_truth in truth.match(scored).pairs.items():
        labels = video_truth.labels(table)

A new data set is a class over `GroundTruth` with one method, and a line in `READERS`.
"""

from __future__ import annotations

from pathlib import Path

from vadcli.errors import UsageError
from vadcli.ground_truth.annotation import Span
from vadcli.ground_truth.campus import Avenue, ShanghaiTech
from vadcli.ground_truth.lists import CsvTruth, UCFCrime, XDViolence, template_from_events, template_from_labels
from vadcli.ground_truth.truth import GroundTruth, Matching, Region, VideoTruth
from vadcli.ground_truth.ubnormal import UBnormal
from vadcli.ground_truth.ucsd import Ped1, Ped2

READERS: dict[str, type[GroundTruth]] = {
    reader.name: reader for reader in (Ped1, Ped2, Avenue, ShanghaiTech, UBnormal, UCFCrime, XDViolence, CsvTruth)
}
"""Name, as `--dataset` takes it, to reader."""


def open_ground_truth(name: str, root: Path) -> GroundTruth:
    """Return the ground truth of a data set; its files are read when its videos are requested.

    Args:
        name: one of `READERS`.
        root: the folder or file of the annotations; the docstring of each reader says which.

    Raises:
        UsageError: there is no such data set, or `root` does not exist.
    """
    if name not in READERS:
        raise UsageError(f"no data set is called {name!r}", hint=f"choose one of {', '.join(READERS)}")
    return READERS[name](root)


__all__ = [
    "READERS",
    "GroundTruth",
    "Matching",
    "Region",
    "Span",
    "VideoTruth",
    "open_ground_truth",
    "template_from_events",
    "template_from_labels",
]
