"""Ground truth: turns the annotations of a data set into labels and masks, one per frame.

    truth = open_ground_truth("ped2", Path("UCSD_Anomaly_Dataset.v1p2"))
    for video, video_truth in truth.match(scored).pairs.items():
        labels = video_truth.labels(table)

To add a data set, write a subclass of `GroundTruth` with one method, `read`, and add a line to `vadcli.registry`. The method
yields one `VideoTruth` per video. Each scored video is paired with the `VideoTruth` that has the same path. Folders and
suffixes may differ. If two pairs are possible, the result is an error.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

from vadcli.errors import DocumentError, UsageError
from vadcli.ground_truth.annotation import Annotation, Span, fill
from vadcli.registry import DATA_SETS
from vadcli.types import BoolArray, Box, ScoreTable

__all__ = [
    "GroundTruth",
    "Masks",
    "Matching",
    "Region",
    "Span",
    "VideoTruth",
    "open_ground_truth",
    "pair",
    "stem",
    "video_truth",
]

_VIDEO = ".mp4 .avi .mkv .mov .webm .mpg .mpeg .m4v .ts .m2ts .mts .flv .wmv .asf .ogv .ogg .gif .3gp .vob .mxf .mjpeg .h264"
_SUFFIXES = frozenset(_VIDEO.split())

PathParts = tuple[str, ...]
"""The parts of a relative path."""

UNPACKED = "set --root to the unpacked official archive"
_SHOWN = 5  # largest number of names in an error message


def stem(name: str) -> str:
    """Return the file name of a video without the suffix of a video file; other suffixes stay."""
    return _parts(name, suffix=False)[-1]


def pair(scored: Iterable[str], truths: Iterable[str], *, stem_alone: bool) -> dict[str, str]:
    """Find for each scored video the same video in the data set; no video is in two pairs.

    Videos are paired by these rules, in this order:

    1. The paths are the same.
    2. The paths are the same without their suffixes.
    3. One path ends with the other path, as in "cam1/a.mp4" and "a.mp4".
    4. One path ends with the other path, both without their suffixes.
    5. Only with `stem_alone`: the file names are the same without suffixes, and no other video has this name.

    Args:
        scored: paths of the scored videos.
        truths: paths of the videos in the data set.
        stem_alone: True if no two videos of the data set have the same file name.

    Returns:
        The path in the data set of each scored video that has a pair; the keys are the paths of the scored videos.

    Raises:
        UsageError: a rule pairs one video with two others.
    """
    groups: defaultdict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, names in enumerate((scored, truths)):
        for name in names:
            groups[stem(name)][side].append(name)
    pairs: dict[str, str] = {}
    for scored_names, truth_names in groups.values():
        new: dict[str, str] = {}
        rules = ((False, True), (False, False), (True, True), (True, False))
        for tails, suffix in rules if scored_names and truth_names else ():
            taken = set(new.values())
            free = {name: _parts(name, suffix=suffix) for name in scored_names if name not in new}
            free_truths = {name: _parts(name, suffix=suffix) for name in truth_names if name not in taken}
            new.update(_one_to_one(_edges(free, free_truths, tails=tails)))
        if not new and stem_alone and len(scored_names) == len(truth_names) == 1:
            new = {scored_names[0]: truth_names[0]}
        pairs.update(new)
    return pairs


def _edges(scored: Mapping[str, PathParts], truths: Mapping[str, PathParts], *, tails: bool) -> Iterator[tuple[str, str]]:
    """Yield the pairs (scored, truth) with the same path.

    With `tails`, also yield the pairs in which one path ends with the other path.
    """
    whole, ends = defaultdict(list), defaultdict(list)
    for truth, parts in truths.items():
        whole[parts].append(truth)
        for cut in range(1, len(parts) if tails else 0):
            ends[parts[cut:]].append(truth)
    for name, parts in scored.items():
        for cut in range(len(parts) if tails else 1):
            yield from ((name, truth) for truth in whole.get(parts[cut:], ()))
        yield from ((name, truth) for truth in ends.get(parts, ()))


def _one_to_one(edges: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    """Return the pairs as a mapping; raise UsageError if a video is in two pairs."""
    by_scored: dict[str, str] = {}
    by_truth: dict[str, str] = {}
    for name, truth in edges:
        for seen, key, value, what in (
            (by_scored, name, truth, "videos of the truth"),
            (by_truth, truth, name, "scored videos"),
        ):
            if key in seen:
                raise UsageError(
                    f"{key!r} fits two {what}: {seen[key]!r} and {value!r}",
                    hint="scan the data set's test folder alone, or write paths in the ground truth that fit only one video",
                )
            seen[key] = value
    return by_scored


def _parts(name: str, *, suffix: bool) -> PathParts:
    normal = unicodedata.normalize("NFC", name.strip().replace("\\", "/"))
    parts = [part for part in normal.split("/") if part not in ("", ".")] or [normal]
    head, dot, end = parts[-1].rpartition(".")
    if not suffix and head and f"{dot}{end}".lower() in _SUFFIXES:
        parts[-1] = head
    return tuple(parts)


class Masks(Protocol):
    """The masks of one video, read one frame at a time."""

    def mask(self, frame_index: int) -> BoolArray | None:
        """Return the mask (H, W) bool of a frame, or None for a normal frame; the first frame is 0.

        Raises:
            DocumentError: the mask is missing or damaged, or the frame is outside the video.
        """


@dataclass(frozen=True)
class Region:
    """An abnormal object in one frame.

    Attributes:
        track: number of the object in the video; the object keeps its number from frame to frame.
        frame: number of the frame, from 0.
        box: x, y, width, height in pixels.
    """

    track: int
    frame: int
    box: Box


@dataclass(frozen=True, eq=False)
class VideoTruth:
    """The ground truth of one video. Large files are read only when they are needed.

    Attributes:
        video: path of the video in the data set: relative, without "..".
        source: the file with the annotation, for error messages.
        read: function that reads the annotation. Callers use the property `annotation`, which calls it once.
        categories: the categories of all anomalies in the video; empty for a normal video or a data set without categories.
        masks: the masks; None if the data set has no masks for this video.
        read_regions: function that reads the tracked regions; None if the data set has no regions for this video. Callers use
            the property `regions`.
    """

    video: str
    source: Path
    read: Callable[[], Annotation]
    categories: tuple[str, ...] = ()
    masks: Masks | None = None
    read_regions: Callable[[], tuple[Region, ...]] | None = None

    @cached_property
    def annotation(self) -> Annotation:
        """The times of the anomalies.

        Raises:
            DocumentError: the file is damaged or does not have the expected form.
        """
        return self.read()

    @property
    def frames(self) -> int | None:
        """The number of frames of the annotated video; None if the annotation does not state it."""
        return self.annotation.frames

    @property
    def is_normal(self) -> bool:
        """Whether the video has no anomaly."""
        return self.annotation.is_normal

    @property
    def has_masks(self) -> bool:
        """Whether the data set has masks for this video."""
        return self.masks is not None

    @property
    def has_regions(self) -> bool:
        """Whether the data set has tracked regions for this video."""
        return self.read_regions is not None

    def labels(self, table: ScoreTable) -> BoolArray:
        """Return one label per row of the score table, (N,) bool: True if the frame is abnormal.

        Raises:
            DocumentError: the annotation was made for another version of the video.
        """
        return fill(self.spans(table), len(table))

    def spans(self, table: ScoreTable) -> tuple[Span, ...]:
        """Return the spans of the anomalies in the scored video, ordered by start; spans may overlap.

        Raises:
            DocumentError: the annotation was made for another version of the video.
        """
        return self.annotation.spans(table, self._where)

    def overhang_frames(self, table: ScoreTable) -> int:
        """Return how many frames after the end of the scored video are annotated; these frames are ignored."""
        return self.annotation.overhang_frames(table)

    def mask(self, frame_index: int) -> BoolArray | None:
        """Return the mask (H, W) bool of a frame, or None if the frame has no mask; the first frame is 0.

        Raises:
            DocumentError: the mask is missing or damaged, or the frame is outside the video.
        """
        if self.masks is None:
            return None
        if frame_index < 0 or (self.frames is not None and frame_index >= self.frames):
            raise DocumentError(
                f"{self._where}: there is no frame {frame_index}: there are {self.frames} frames, numbered from 0"
            )
        return self.masks.mask(frame_index)

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The tracked regions, ordered by track and frame; empty if there are none.

        Raises:
            DocumentError: the file of the regions is damaged or does not have the expected form.
        """
        return self.read_regions() if self.read_regions is not None else ()

    @property
    def _where(self) -> str:
        name = self.video if self.video.isprintable() else repr(self.video)
        return f"{name} in {self.source}"


def video_truth(
    video: str, source: Path, annotation: Annotation, *, categories: Iterable[str] = (), masks: Masks | None = None
) -> VideoTruth:
    """Return the `VideoTruth` of a video whose annotation is already read."""
    return VideoTruth(video, source, lambda: annotation, tuple(categories), masks)


@dataclass(frozen=True)
class Matching:
    """The scored videos, each with its ground truth.

    Attributes:
        pairs: the ground truth of each scored video, in the order of the data set; the keys are the paths of the scored videos.
        unscored: videos of the data set that have no scores.
        unknown: scored videos that are not in the data set.
    """

    pairs: Mapping[str, VideoTruth]
    unscored: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class GroundTruth(ABC):
    """The ground truth of a data set. A subclass only implements `read`.

    Attributes:
        name: name of the data set for the option `--dataset`.
        stem_alone: True if no two videos of the data set have the same file name.
    """

    name: ClassVar[str]
    stem_alone: ClassVar[bool] = True

    def __init__(self, root: Path) -> None:
        """Use the annotations in `root`, a folder or file. The first call of `videos` or `match` reads them.

        Raises:
            UsageError: `root` does not exist.
        """
        if not root.exists():
            raise UsageError(f"{root}: the file or folder does not exist", hint=f"set --root to {self.title}")
        self.root = root
        self._videos: dict[str, VideoTruth] = {}

    @property
    def title(self) -> str:
        """The name of the data set in messages."""
        return f"the data set {self.name}"

    @abstractmethod
    def read(self) -> Iterable[VideoTruth]:
        """Return the ground truth of every video in the data set, including normal videos.

        Raises:
            UsageError: the folder `root` does not have the layout of this data set.
            DocumentError: a file is damaged or does not have the expected form.
        """

    def annotation_file(self, candidates: Sequence[str], *, wanted: str = "", hint: str = UNPACKED) -> Path:
        """Return `root` if it is a file, otherwise the first of `candidates` under `root` that exists.

        Args:
            candidates: possible paths of the file, relative to `root`.
            wanted: the file that the error message asks for; the first of `candidates` if empty.
            hint: hint of the error; "" for the usual hint.

        Raises:
            UsageError: none of the files exists.
        """
        if self.root.is_file():
            return self.root
        path = find_existing(self.root, candidates)
        if path is None:
            raise self.missing(wanted or candidates[0], hint=hint)
        return path

    def missing(self, wanted: str, *, hint: str = UNPACKED) -> UsageError:
        """Return the error that says that the file `wanted` is missing in `root`."""
        return UsageError(f"{self.root}: not the folder of {self.title}: {wanted} is missing", hint=hint)

    def videos(self) -> Mapping[str, VideoTruth]:
        """Return the ground truth of each video, in the order of the data set; the keys are the videos' paths.

        Files are read only at the first call.

        Raises:
            UsageError: the folder `root` does not have the layout of this data set.
            DocumentError: a file is damaged or does not have the expected form.
        """
        if self._videos:
            return self._videos
        videos: dict[str, VideoTruth] = {}
        for truth in self.read():
            if truth.video in videos:
                raise DocumentError(f"{truth.source}: {truth.video!r} occurs twice", hint="remove one of the two")
            videos[truth.video] = truth
        if not videos:
            raise DocumentError(f"{self.root}: the ground truth of {self.title} has no video")
        self._videos = videos
        return videos

    def implied(self, scored: str) -> VideoTruth | None:
        """Return the ground truth of a video that the data set does not list; None if it is unknown.

        Some data sets do not list their normal videos, but the names show that these videos are normal.
        """
        return None

    def match(self, scored: Iterable[str], *, allow_missing: bool = False) -> Matching:
        """Pair each scored video with its ground truth; see `pair` for the rules.

        Args:
            scored: relative paths of the scored videos.
            allow_missing: True leaves out videos of the data set that have no scores, and scored videos that are not in the
                data set. False makes both an error.

        Raises:
            UsageError: a video could be paired with two others, no video can be paired, or a video has no pair and
                `allow_missing` is False.
        """
        names, truths = list(scored), self.videos()
        paired = pair(names, truths, stem_alone=self.stem_alone)
        implied = {name: truth for name in names if name not in paired and (truth := self.implied(name)) is not None}
        by_truth = {truth: name for name, truth in paired.items()}
        pairs = {by_truth[truth]: truths[truth] for truth in truths if truth in by_truth} | implied
        matching = Matching(
            pairs,
            unscored=tuple(truth for truth in truths if truth not in by_truth),
            unknown=tuple(name for name in names if name not in pairs),
        )
        if not pairs:
            raise UsageError(
                f"no scored video belongs to {self.title}: the scan has {_list(names)}, {self.title} has {_list(truths)}",
                hint="check --dataset and --root, and that OUT is the scan of this data set",
            )
        hint = "--allow-missing evaluates the videos that have both"
        if matching.unscored and not allow_missing:
            problem = f"{len(matching.unscored)} of {len(truths)} videos of {self.title} have no scores"
            raise UsageError(f"{problem}: {_list(matching.unscored)}", hint=f"scan them too; {hint}")
        if matching.unknown and not allow_missing:
            problem = f"{len(matching.unknown)} of {len(names)} scored videos are not in the ground truth of {self.title}"
            raise UsageError(f"{problem}: {_list(matching.unknown)}", hint=f"scan only the test videos; {hint}")
        return matching


def find_existing(root: Path, candidates: Iterable[str]) -> Path | None:
    """Return the first of `candidates` under `root` that exists; None if none of them exists."""
    return next((root / name for name in candidates if (root / name).exists()), None)


def _list(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(repr(name) for name in names[:_SHOWN]) or "none") + more


def open_ground_truth(name: str, root: Path) -> GroundTruth:
    """Return the ground truth of a data set. Its files are not read yet.

    Args:
        name: a name in `registry.DATA_SETS`.
        root: the folder or file of the annotations. The docstring of the data set's class says which.

    Raises:
        UsageError: no data set has this name, or `root` does not exist.
    """
    kind = DATA_SETS.load(name)
    DATA_SETS.check(name, ok=isinstance(kind, type) and issubclass(kind, GroundTruth), what="is not a GroundTruth class")
    truth: GroundTruth = kind(root)
    return truth
