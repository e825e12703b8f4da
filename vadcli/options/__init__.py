"""The options of every command, as frozen dataclasses. Each option is declared only once.

The metadata of a field has its help text and choices. The command line and the reference page are made from this metadata.
`config.resolve` fills an option set from the command line, the environment and TOML files. `ScanOptions` also has the options
of each detector in the registry.
"""

from typing import TYPE_CHECKING

from vadcli.options import scan
from vadcli.options.categories import category_list_names, parse_categories
from vadcli.options.groups import (
    DEFAULT_MODEL,
    DETECTOR_CHOICES,
    PANELS,
    DecodeOptions,
    DetectorOptions,
    ExitOptions,
    FindOptions,
    TalkOptions,
    ThresholdOptions,
    default_of,
    effective,
    option,
    parse_duration,
    parse_shard,
    with_detector_options,
)
from vadcli.options.learning import METRIC_GROUPS, EmbedOptions, EvalOptions, LearnOptions
from vadcli.options.mixins import HeadOptions
from vadcli.options.results import (
    REPORT_FORMATS,
    ClipsOptions,
    EventsOptions,
    PruneOptions,
    RenderOptions,
    ReportOptions,
    SearchOptions,
    StatusOptions,
    VerifyOptions,
)
from vadcli.options.scan import DEFAULT_OUT, MASK_CHOICES, BenchOptions, WeightsImportOptions, WeightsPullOptions

if TYPE_CHECKING:
    from vadcli.options.scan import ScanOptions
else:
    ScanOptions = with_detector_options(scan.ScanOptions)

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_OUT",
    "DETECTOR_CHOICES",
    "MASK_CHOICES",
    "METRIC_GROUPS",
    "PANELS",
    "REPORT_FORMATS",
    "BenchOptions",
    "ClipsOptions",
    "DecodeOptions",
    "DetectorOptions",
    "EmbedOptions",
    "EvalOptions",
    "EventsOptions",
    "ExitOptions",
    "FindOptions",
    "HeadOptions",
    "LearnOptions",
    "PruneOptions",
    "RenderOptions",
    "ReportOptions",
    "ScanOptions",
    "SearchOptions",
    "StatusOptions",
    "TalkOptions",
    "ThresholdOptions",
    "VerifyOptions",
    "WeightsImportOptions",
    "WeightsPullOptions",
    "category_list_names",
    "default_of",
    "effective",
    "option",
    "parse_categories",
    "parse_duration",
    "parse_shard",
]
