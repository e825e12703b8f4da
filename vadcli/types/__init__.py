"""The values that cross vadcli's boundaries: frozen, self-checking, with shapes and units where they are born."""

from vadcli.types.arrays import BoolArray, ByteArray, FloatArray, IndexArray, TimeArray
from vadcli.types.detection import (
    MASK_LOGIT_LIMIT,
    Calibration,
    CameraModel,
    CameraSample,
    ClipBatch,
    ClipScores,
    FrameScores,
    MaskScale,
    RawTrack,
)
from vadcli.types.media import Clip, ClipNeeds, DecoderName, PixelFormat, SizeRule, VideoInfo
from vadcli.types.results import (
    EVENTS_FORMAT_VERSION,
    SCORES_SCHEMA_VERSION,
    Box,
    Event,
    MaskRows,
    ScoreTable,
    Status,
    Thresholds,
    VideoResult,
)

__all__ = [
    "EVENTS_FORMAT_VERSION",
    "MASK_LOGIT_LIMIT",
    "SCORES_SCHEMA_VERSION",
    "BoolArray",
    "Box",
    "ByteArray",
    "Calibration",
    "CameraModel",
    "CameraSample",
    "Clip",
    "ClipBatch",
    "ClipNeeds",
    "ClipScores",
    "DecoderName",
    "Event",
    "FloatArray",
    "FrameScores",
    "IndexArray",
    "MaskRows",
    "MaskScale",
    "PixelFormat",
    "RawTrack",
    "ScoreTable",
    "SizeRule",
    "Status",
    "Thresholds",
    "TimeArray",
    "VideoInfo",
    "VideoResult",
]
