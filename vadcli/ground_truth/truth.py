"""Which scored video is which of the truth's: by path, tolerant to suffixes and folders, never by guess. Touches no file.

One video's truth, and a data set's truth as a mapping of them: what every reader delivers and the evaluation uses.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

from vadcli.errors import DocumentError, UsageError
from vadcli.ground_truth.annotation import Annotation, Span, fill
from vadcli.types import BoolArray, Box, ScoreTable

_VIDEO = ".mp4 .avi .mkv .mov .webm .mpg .mpeg .m4v .ts .m2ts .mts .flv .wmv .asf .ogv .ogg .gif .3gp .vob .mxf .mjpeg .h264"
_SUFFIXES = frozenset(_VIDEO.split())

PathParts = tuple[str, ...]
"""A relative path's parts."""


def stem(name: str) -> str:
    """The last part of a name without a video's suffix; other dots belong to the name."""
    return _parts(name, suffix=False)[-1]


def pair(scored: Iterable[str], truths: Iterable[str], *, stem_alone: bool) -> dict[str, str]:
    """Scored video to truth, for those that can be told; each at most once.

    The first rule that fits decides: the same path; the same path but for the suffix; one path the end of the other ("a.mp4"
    and "cam1/a.mp4"); that but for the suffix; with `stem_alone`, the same name whatever the folders, where no other video
    has it.

    Args:
        scored: relative paths of scored videos.
        truths: the data set's names.
        stem_alone: the data set's names tell its videos apart without their folders.

    Raises:
        UsageError: a rule fits two videos alike.
    """
    groups: defaultdict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, names in enumerate((scored, truths)):
        for name in names:
            groups[stem(name)][side].append(name)
    found: dict[str, str] = {}
    for here, there in groups.values():
        if here and there:
            found.update(_pair_group(here, there, stem_alone=stem_alone))
    return found


def _pair_group(scored: list[str], truths: list[str], *, stem_alone: bool) -> Mapping[str, str]:
    alone = stem_alone and len(scored) == len(truths) == 1
    found: dict[str, str] = {}
    for tails in (False, True):
        for suffix in (True, False):
            taken = set(found.values())
            here = {name: _parts(name, suffix=suffix) for name in scored if name not in found}
            there = {name: _parts(name, suffix=suffix) for name in truths if name not in taken}
            found.update(_one_to_one(_edges(here, there, tails=tails)))
    return found or ({scored[0]: truths[0]} if alone else {})


def _edges(scored: Mapping[str, PathParts], truths: Mapping[str, PathParts], *, tails: bool) -> Iterator[tuple[str, str]]:
    """Every (scored, truth) of the same path, or, with `tails`, of which one path is the end of the other."""
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
    by_scored: dict[str, str] = {}
    by_truth: dict[str, str] = {}
    for name, truth in edges:
        for seen, key, value, what in (
            (by_scored, name, truth, "videos of the truth"),
            (by_truth, truth, name, "scored videos"),
        ):
            if key in seen:
                raise UsageError(
                    f"{key!r} could be either of two {what}, {seen[key]!r} and {value!r}",
                    hint="scan the data set's test folder alone, or give the truth paths that tell them apart",
                )
            seen[key] = value
    return by_scored


def _parts(name: str, *, suffix: bool) -> PathParts:
    normal = unicodedata.normalize("NFC", name.replace("\\", "/"))
    parts = [part for part in normal.split("/") if part not in ("", ".")] or [normal]
    head, dot, end = parts[-1].rpartition(".")
    if not suffix and head and f"{dot}{end}".lower() in _SUFFIXES:
        parts[-1] = head
    return tuple(parts)


_SHOWN = 5


class Masks(Protocol):
    """The pixel truth of one video, read a frame at a time."""

    def mask(self, frame_index: int) -> BoolArray | None:
        """(H, W) bool of a 0-based frame, True where something happens; None where nothing does and no picture says so.

        Raises:
            DocumentError: the picture is missing, damaged or outside the video.
        """


@dataclass(frozen=True)
class Region:
    """Something that happens, in one frame.

    Attributes:
        track: the thing, a number that its regions share within the video.
        frame: 0-based.
        box: x, y, width, height in pixels.
    """

    track: int
    frame: int
    box: Box


@dataclass(frozen=True, eq=False)
class VideoTruth:
    """What a data set says of one video. Big files behind it are read when they are asked for.

    Attributes:
        video: the data set's own name, a relative path without "..".
        source: the file that says so, for errors.
        read: gives the annotation; `annotation` keeps it.
        categories: everything that happens in the video, by the data set's classes; empty where it has none or it is normal.
        masks: the pixel truth, None where there is none.
        read_regions: gives the tracked regions, None where there are none.
    """

    video: str
    source: Path
    read: Callable[[], Annotation]
    categories: tuple[str, ...] = ()
    masks: Masks | None = None
    read_regions: Callable[[], tuple[Region, ...]] | None = None

    @cached_property
    def annotation(self) -> Annotation:
        """When something happens.

        Raises:
            DocumentError: the file that says so is not what it should be.
        """
        return self.read()

    @property
    def frames(self) -> int | None:
        """How many frames the truth was made for; None where it doesn't say."""
        return self.annotation.frames

    @property
    def is_normal(self) -> bool:
        """True where nothing happens."""
        return self.annotation.is_normal

    @property
    def has_masks(self) -> bool:
        """True where there is a pixel truth."""
        return self.masks is not None

    @property
    def has_regions(self) -> bool:
        """True where tracked regions are given."""
        return self.read_regions is not None

    def labels(self, table: ScoreTable) -> BoolArray:
        """(N,) bool, a label a row.

        Raises:
            DocumentError: the truth was made for another cut of the video; never cropped to fit.
        """
        return fill(self.spans(table), len(table))

    def spans(self, table: ScoreTable) -> tuple[Span, ...]:
        """The rows in which something happens, by start, with categories; spans may overlap where the data set's do.

        Raises:
            DocumentError: the truth was made for another cut of the video.
        """
        return self.annotation.spans(table, self._where)

    def overhang_frames(self, table: ScoreTable) -> int:
        """How many annotated frames lie past the last row and count for nothing: worth a line where it is not 0."""
        return self.annotation.overhang_frames(table)

    def mask(self, frame_index: int) -> BoolArray | None:
        """(H, W) bool of a 0-based frame; None without a pixel truth, or where nothing happens and no picture says so.

        Raises:
            DocumentError: the picture is missing, damaged or outside the video.
        """
        if self.masks is None:
            return None
        if frame_index < 0 or (self.frames is not None and frame_index >= self.frames):
            raise DocumentError(f"{self._where}: there is no frame {frame_index} among {self.frames}")
        return self.masks.mask(frame_index)

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The tracked regions by track and frame; empty without any.

        Raises:
            DocumentError: the file that says so is not what it should be.
        """
        return self.read_regions() if self.read_regions is not None else ()

    @property
    def _where(self) -> str:
        name = self.video if self.video.isprintable() else repr(self.video)
        return f"{name} in {self.source}"


def video_truth(video: str, source: Path, annotation: Annotation, *, categories: Iterable[str] = ()) -> VideoTruth:
    """A truth that is read already, without pixels."""
    return VideoTruth(video, source, lambda: annotation, tuple(categories))


@dataclass(frozen=True)
class Matching:
    """Scored videos and their truth.

    Attributes:
        pairs: relative path of the scored video to its truth, in the truth's order.
        unscored: truths that no scored video matched.
        unknown: scored videos that the truth doesn't know.
    """

    pairs: Mapping[str, VideoTruth]
    unscored: tuple[str, ...] = ()
    unknown: tuple[str, ...] = field(default=())


class GroundTruth(ABC):
    """A data set's truth: a reader says how its files are laid out, the rest is the same for all.

    Attributes:
        name: as `--dataset` takes it.
        stem_alone: the names tell the videos apart without their folders.
    """

    name: ClassVar[str]
    stem_alone: ClassVar[bool] = True

    def __init__(self, root: Path) -> None:
        """Open a data set; nothing is read yet.

        Raises:
            UsageError: there is nothing at `root`.
        """
        if not root.exists():
            raise UsageError(f"{root}: no such file or folder", hint=f"give the folder or file of {self.name}'s ground truth")
        self.root = root

    @abstractmethod
    def read(self) -> Iterable[VideoTruth]:
        """Every video of the truth, normal ones too.

        Raises:
            UsageError: `root` has another layout.
            DocumentError: a file is not what it should be.
        """

    def videos(self) -> Mapping[str, VideoTruth]:
        """The truth by the data set's own names, in its order; read once.

        Raises:
            UsageError: `root` has another layout.
            DocumentError: a file is not what it should be.
        """
        return self._videos

    @cached_property
    def _videos(self) -> Mapping[str, VideoTruth]:
        found: dict[str, VideoTruth] = {}
        for truth in self.read():
            if truth.video in found:
                raise DocumentError(f"{truth.source}: {truth.video!r} is there twice", hint="keep one of the two")
            found[truth.video] = truth
        if not found:
            raise DocumentError(f"{self.root}: the ground truth of {self.name} has no video")
        return found

    def implied(self, scored: str) -> VideoTruth | None:
        """The truth of a scored video that no file lists but whose name says it; None where it doesn't."""
        return None

    def match(self, scored: Iterable[str], *, allow_missing: bool = False) -> Matching:
        """Pair scored videos with their truth.

        Args:
            scored: relative paths as a scan wrote them.
            allow_missing: leave out truths without scores and scored videos without truth, instead of an error.

        Raises:
            UsageError: a video could be either of two; or one is missing on either side and that is not allowed; or none
                is left.
        """
        names, truths = list(scored), self.videos()
        found = pair(names, truths, stem_alone=self.stem_alone)
        implied = {name: truth for name in names if name not in found and (truth := self.implied(name)) is not None}
        by_truth = {truth: name for name, truth in found.items()}
        pairs = {by_truth[truth]: truths[truth] for truth in truths if truth in by_truth} | implied
        matching = Matching(
            pairs,
            unscored=tuple(truth for truth in truths if truth not in by_truth),
            unknown=tuple(name for name in names if name not in pairs),
        )
        if not pairs:
            raise UsageError(
                f"no scored video is one of {self.name}'s: {_listed(names)} against {_listed(list(truths))}",
                hint="check --dataset and --root, and that OUT is the scan of this data set",
            )
        if not allow_missing:
            self._complete(matching, len(names), len(truths))
        return matching

    def _complete(self, matching: Matching, scored: int, truths: int) -> None:
        hint = "--allow-missing evaluates the videos that have both"
        if matching.unscored:
            lost = f"{len(matching.unscored)} of {truths} videos of {self.name} have no scores"
            raise UsageError(f"{lost}: {_listed(matching.unscored)}", hint=f"scan them too; {hint}")
        if matching.unknown:
            lost = f"{len(matching.unknown)} of {scored} scored videos are not in the truth of {self.name}"
            raise UsageError(f"{lost}: {_listed(matching.unknown)}", hint=f"scan the test videos alone; {hint}")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(repr(name) for name in names[:_SHOWN]) or "none") + more
