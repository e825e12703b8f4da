"""Metrics as pure functions over arrays; each returns an `Estimate` of a value and its interval.

Nothing here knows a file, a data set or a detector. A value that cannot be computed is None with a note, never NaN.
"""

from vadcli.metrics.event import (
    IOU_LEVELS,
    EventSet,
    SeveritySet,
    ThresholdChoice,
    detection_recall,
    false_alarms_per_hour,
    match_events,
    onset_error,
    segment_f1,
    severity_kendall,
    severity_spearman,
    threshold_choices,
    without_false,
)
from vadcli.metrics.frame import (
    NORMAL,
    FrameSet,
    category_auc,
    frame_ap,
    frame_ap_macro,
    frame_auc,
    frame_auc_macro,
    frames_of_category,
)
from vadcli.metrics.intervals import Bootstrap, Estimate, Metric, difference
from vadcli.metrics.pate import pate
from vadcli.metrics.pixel import PIMO_LIMITS, PixelAccumulator, PixelCounts, aupimo, aupro, mask_iou, pixel_ap, pixel_auc
from vadcli.metrics.region import Regions, Tracks, mask_regions, rbdc, tbdc

__all__ = [
    "IOU_LEVELS",
    "NORMAL",
    "PIMO_LIMITS",
    "Bootstrap",
    "Estimate",
    "EventSet",
    "FrameSet",
    "Metric",
    "PixelAccumulator",
    "PixelCounts",
    "Regions",
    "SeveritySet",
    "ThresholdChoice",
    "Tracks",
    "aupimo",
    "aupro",
    "category_auc",
    "detection_recall",
    "difference",
    "false_alarms_per_hour",
    "frame_ap",
    "frame_ap_macro",
    "frame_auc",
    "frame_auc_macro",
    "frames_of_category",
    "mask_iou",
    "mask_regions",
    "match_events",
    "onset_error",
    "pate",
    "pixel_ap",
    "pixel_auc",
    "rbdc",
    "segment_f1",
    "severity_kendall",
    "severity_spearman",
    "tbdc",
    "threshold_choices",
    "without_false",
]
