"""The options of every command as frozen dataclasses, each written down once.

A field's metadata carries its help text and choices: the command line, the documentation and the run's record are made
from it. `config.resolve` fills a set from the command line, the environment and TOML files.
"""

from vadcli.options.commands import (
    DEFAULT_OUT,
    MASK_CHOICES,
    REPORT_FORMATS,
    BenchOptions,
    EventsOptions,
    RenderOptions,
    ReportOptions,
    ScanOptions,
    StatusOptions,
    WeightsImportOptions,
    WeightsPullOptions,
)
from vadcli.options.evaluation import METRIC_GROUPS, EvalOptions
from vadcli.options.groups import (
    DEFAULT_MODEL,
    DETECTOR_CHOICES,
    PANELS,
    DecodeOptions,
    DecoderChoice,
    DetectorOptions,
    FindOptions,
    TalkOptions,
    ThresholdOptions,
    default_of,
    effective,
    option,
    parse_categories,
    parse_duration,
    parse_shard,
    preset_names,
)

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_OUT",
    "DETECTOR_CHOICES",
    "MASK_CHOICES",
    "METRIC_GROUPS",
    "PANELS",
    "REPORT_FORMATS",
    "BenchOptions",
    "DecodeOptions",
    "DecoderChoice",
    "DetectorOptions",
    "EvalOptions",
    "EventsOptions",
    "FindOptions",
    "RenderOptions",
    "ReportOptions",
    "ScanOptions",
    "StatusOptions",
    "TalkOptions",
    "ThresholdOptions",
    "WeightsImportOptions",
    "WeightsPullOptions",
    "default_of",
    "effective",
    "option",
    "parse_categories",
    "parse_duration",
    "parse_shard",
    "preset_names",
]
