"""The lists of detectors, runners, exporters, data sets, encoders, heads and second models.

An entry is a name and the place of its code. The code is imported when the name is first used. To add an entry to a list,
another package declares an entry point in its pyproject.toml:

    [project.entry-points."vadcli.detectors"]
    still = "their_package:make_detector"
    [project.entry-points."vadcli.detector_options"]
    still = "their_package.options:StillOptions"

The command line takes its choices and its help from these lists. `--detector auto` and the contract tests also use them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vadcli.errors import UsageError

REINSTALL = "reinstall or remove the package that contains it"


_installed = cache(entry_points)  # cached, because `entry_points` reads the metadata of every installed package


class Registry(Mapping[str, str]):
    """Maps names to the places of their code, such as "module:attribute".

    vadcli's own names come first, then the names from other packages.

    Args:
        kind: a word for an entry in messages, such as "detector".
        group: the group of the entry points in other packages.
        own: the names that come with vadcli. Other packages can't replace them.
    """

    def __init__(self, kind: str, group: str, own: Mapping[str, str]) -> None:
        self.kind, self.group, self.own = kind, group, own

    @cached_property
    def _all(self) -> dict[str, str]:
        installed: list[EntryPoint] = sorted(_installed().select(group=self.group), key=lambda entry: entry.name)
        return {**{entry.name: entry.value for entry in installed}, **self.own}

    def __getitem__(self, name: str) -> str:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.own, *self._all]))

    def __len__(self) -> int:
        return len(self._all)

    def load(self, name: str) -> Any:
        """Import and return the object of a name.

        Raises:
            UsageError: the name is not known, or the package that contains it can't be imported.
        """
        if name not in self._all:
            raise UsageError(f"no {self.kind} is called {name!r}", hint=f"choose one of {', '.join(self)}")
        module, _, attribute = self._all[name].partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if name in self.own:
                raise
            raise UsageError(
                f"the {self.kind} {name!r} can't be loaded from {self._all[name]}: {error}", hint=REINSTALL
            ) from error

    def check(self, name: str, *, ok: bool, what: str) -> None:
        """Raise UsageError if `ok` is False. `what` is the end of the message: what is wrong with the loaded object."""
        if not ok:
            raise UsageError(f"the {self.kind} {name!r}, from {self._all[name]}, {what}", hint=REINSTALL)


DETECTORS = Registry(
    "detector",
    "vadcli.detectors",
    {
        "lavida": "vadcli.detectors:make_lavida",
        "ask": "vadcli.detectors.ask:AskDetector",
        "concept": "vadcli.detectors.concept:ConceptDetector",
        "motion": "vadcli.detectors:make_motion",
    },
)
"""Classes or functions that make a `Detector` from `DetectorOptions`."""

DETECTOR_OPTIONS = Registry(
    "detector's option set",
    "vadcli.detector_options",
    {
        "lavida": "vadcli.detectors.lavida:LavidaOptions",
        "ask": "vadcli.detectors.options:AskOptions",
        "concept": "vadcli.detectors.options:ConceptOptions",
        "motion": "vadcli.detectors.motion:MotionUserOptions",
    },
)
"""The options class of a detector, under the detector's name. It is a subclass of `vadcli.options.DetectorOptions`.

Importing the class must not load a model. `--detector auto` takes the first detector in this list whose options class has a
method `is_ready()` that returns True.
"""
FALLBACK = "motion"
"""The detector that `--detector auto` takes if no other detector is ready."""
BENCHED = "lavida"
"""The detector whose settings `vadcli bench` measures."""
HAS_ENCODER = "concept"
"""The detector whose option `encoder` is also an option of `vadcli embed`.

If no detector that reads categories is ready, the user is advised to download the encoder of this detector.
"""

RUNNERS = Registry(
    "runner",
    "vadcli.runners",
    {"local": "vadcli.engine.local:LocalRunner", "ray": "vadcli.engine.ray_runner:RayRunner"},
)
"""Classes that implement `vadcli.engine.runner.Runner`."""

EXPORTERS = Registry(
    "format",
    "vadcli.exporters",
    {
        "json": "vadcli.export:JSON",
        "csv": "vadcli.export:CSV",
        "vtt": "vadcli.export:VTT",
        "edl": "vadcli.export:EDL",
        "otio": "vadcli.export:OTIO",
        "fiftyone": "vadcli.export.annotation:FIFTYONE",
        "label-studio": "vadcli.export.annotation:LABEL_STUDIO",
        "cvat": "vadcli.export.annotation:CVAT",
    },
)
"""Formats of events: `vadcli.export.Exporter` objects."""

DATA_SETS = Registry(
    "data set",
    "vadcli.datasets",
    {
        "ped1": "vadcli.ground_truth.mask_sets:Ped1",
        "ped2": "vadcli.ground_truth.mask_sets:Ped2",
        "avenue": "vadcli.ground_truth.mask_sets:Avenue",
        "shanghaitech": "vadcli.ground_truth.mask_sets:ShanghaiTech",
        "ubnormal": "vadcli.ground_truth.mask_sets:UBnormal",
        "ucf-crime": "vadcli.ground_truth.interval_sets:UCFCrime",
        "xd-violence": "vadcli.ground_truth.interval_sets:XDViolence",
        "msad": "vadcli.ground_truth.interval_sets:Msad",
        "cuva": "vadcli.ground_truth.interval_sets:Cuva",
        "prevad": "vadcli.ground_truth.interval_sets:PreVad",
        "vau-bench": "vadcli.ground_truth.interval_sets:VauBench",
        "csv": "vadcli.ground_truth.interval_sets:CsvTruth",
    },
)
"""Readers of ground truth: subclasses of `vadcli.ground_truth.GroundTruth`. A reader is made from a folder or a file."""

ENCODERS = Registry(
    "image-text encoder",
    "vadcli.encoders",
    {"clip": "vadcli.detectors.encoders.networks:ClipEncoder", "siglip": "vadcli.detectors.encoders.networks:SiglipEncoder"},
)
"""Families of image-text encoders, named as `model_type` by Hugging Face (SigLIP 2 with a fixed image size is "siglip", too).

Each entry is called with (name, folder, device=…, precision=…), and returns a `vadcli.detectors.encoders.Encoder`.
"""

HEADS = Registry(
    "head",
    "vadcli.heads",
    {
        "logistic": "vadcli.heads:LogisticHead",
        "retrieval": "vadcli.heads:RetrievalHead",
        "mil": "vadcli.heads.video_heads:MilHead",
        "rtfm": "vadcli.heads.video_heads:RtfmHead",
        "topk": "vadcli.heads.video_heads:TopkHead",
        "dual": "vadcli.heads.video_heads:DualHead",
        "gaussian": "vadcli.heads.video_heads:GaussianHead",
    },
)
"""Small models that `vadcli learn` trains on stored embeddings: classes that implement `vadcli.heads.Head`."""

ASKERS = Registry("multimodal model", "vadcli.askers", {})
"""Models from other packages for `vadcli verify --model NAME`, in addition to the names of `vadcli weights list`.

Each entry is called like `vadcli.detectors.ask.QwenAsker`, and returns a `vadcli.detectors.ask.Asker`.
"""
