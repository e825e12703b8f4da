"""Which scored video is which of the truth's: by path, tolerant to suffixes and folders, never by guess. Touches no file."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from vadcli.errors import UsageError

_VIDEO = ".mp4 .avi .mkv .mov .webm .mpg .mpeg .m4v .ts .m2ts .mts .flv .wmv .asf .ogv .ogg .gif .3gp .vob .mxf .mjpeg .h264"
_SUFFIXES = frozenset(_VIDEO.split())

Path = tuple[str, ...]
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


def _edges(scored: Mapping[str, Path], truths: Mapping[str, Path], *, tails: bool) -> Iterator[tuple[str, str]]:
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


def _parts(name: str, *, suffix: bool) -> Path:
    normal = unicodedata.normalize("NFC", name.replace("\\", "/"))
    parts = [part for part in normal.split("/") if part not in ("", ".")] or [normal]
    head, dot, end = parts[-1].rpartition(".")
    if not suffix and head and f"{dot}{end}".lower() in _SUFFIXES:
        parts[-1] = head
    return tuple(parts)
