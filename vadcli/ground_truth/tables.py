"""Ground truth in the tables of four newer benchmarks: MSAD, CUVA, PreVAD and VAU-Bench.

Their repositories say little about their files. The paragraphs below say where each layout comes from, and what is not
documented. Columns are found by their names; other columns are ignored.

MSAD (Zhu et al., NeurIPS 2024, Tom-roujiang/MSAD): anomaly_annotation.csv comes with the videos. It has one row per abnormal
video: `name,scenario,total frames,starting frame of anomaly,ending frame of anomaly`. The repository's list of test videos
(RTFM/list/msad-i3d-test.list) has one line `…/NAME_i3d.npy` per video; normal videos are named MSAD_normal_…. How frames are
counted is not documented. Here they are counted from 1 and both ends are inside, for two reasons: some anomalies end at the
total number of frames, and in VAU-Bench, an anomaly that starts at the first frame starts at 0.03 s (1/30 s).

CUVA (Du et al., CVPR 2024, fesvhtr/CUVA): one JSON list. The repository's evaluation (CUVA/mmaEval.py) reads the keys `ID`,
`visual_input` (the video), `task` and `output` of each item. The task Timestamp has the output `[mmss, mmss]`, minutes and
seconds without a colon. The task Classification has a number of Category.txt, and the task Detection has 1 if there is an
anomaly. It is not documented whether the second at which an anomaly ends is inside; here it is outside.

PreVAD (Liu et al., 2025, Kamino666/LaGoVAD-PreVAD): test.csv, or the JSON list with the same keys: `video_path`,
`class_name` and `anomaly_span`, a list of [start, end] as shares of the video. The README does not describe these files. The
keys and the arithmetic (`ShareIntervals`) are from the authors' data loader. The loader applies the arithmetic to the features
of every eighth frame; this reader applies it to frames.

VAU-Bench (Zhu et al., 2025, GVCLab/VAU-R1): annotations/test_msad.csv, test_ucf_crime.csv and test_ecva.csv, with the columns
`Video Name`, `Anomaly Class`, `Start Time` and `End Time` in seconds. In src/evaluation/evaluation_tag.py, a normal video has
the times 0 and 0. The time -1 means that the time is not known; such a row is left out. A video with several questions has
several rows.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vadcli.errors import DocumentError
from vadcli.ground_truth.annotation import (
    OVERHANG_FRAMES,
    FrameIntervals,
    ShareIntervals,
    Span,
    TimeInterval,
    TimeIntervals,
)
from vadcli.ground_truth.files import UNPACK, bad_line, numbered_lines, read_text, whole
from vadcli.ground_truth.truth import GroundTruth, VideoTruth, find_existing, stem, video_truth
from vadcli.types.text import error_text

Item = Mapping[str, Any]
Items = Iterator[tuple[int, Item]]
"""The items of a file, each with its line in the table or its position in the list, counted from 1."""

MSAD_LISTS = ("msad-i3d-test.list", "RTFM/list/msad-i3d-test.list", "MGFN/data/msad/msad-i3d-test.list")
MSAD_NORMAL = "MSAD_normal"
MSAD_FRAMES = ("total frames", "starting frame of anomaly", "ending frame of anomaly")
CUVA_CATEGORIES = {
    1: "fighting",
    2: "animals hurting people",
    3: "water incident",
    4: "vandalism",
    5: "traffic accident",
    6: "robbery",
    7: "theft",
    8: "pedestrian incident",
    9: "fire",
    10: "traffic violation",
    11: "burning",
}
"""Number in the repository's Category.txt -> the name in words."""
MOST_SHARE = 10.0
"""Shares of the video are below this limit; a larger number is probably a frame number or a time."""
_NORMAL = "normal"
_CLOCK = re.compile(r"\[\s*(\d{1,2})([0-5]\d)\s*,\s*(\d{1,2})([0-5]\d)\s*\]")


class Msad(GroundTruth):
    """Reads MSAD; `root` is anomaly_annotation.csv, or its folder, perhaps with the list of test videos.

    Without the list, all abnormal videos of the table belong to the data set.
    """

    name = "msad"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the abnormal videos of the table, then the normal videos of the list."""
        path = self.annotation_file(["anomaly_annotation.csv"])
        listed = find_existing(path.parent, MSAD_LISTS)
        lines = None if listed is None else [line.rpartition("/")[2] for _, line in numbered_lines(listed)]
        wanted = None if lines is None else {line.removesuffix(".npy").removesuffix("_i3d") for line in lines}
        seen: set[str] = set()
        for line, row in table_rows(path, ("name", *MSAD_FRAMES)):
            video = stem(_text(path, line, row, "name"))
            seen.add(video)
            if wanted is not None and video not in wanted:
                continue
            try:
                total, first, last = (whole(row[name]) for name in MSAD_FRAMES)
            except ValueError:
                raise bad_line(path, line, f"the frames of {video!r} are not whole numbers") from None
            if not 1 <= first <= last <= total:
                raise bad_line(path, line, f"frames {first} to {last} of {total} are not an interval counted from 1")
            category = video.rstrip("0123456789").rstrip("_").replace("_", " ").lower()
            intervals = FrameIntervals((Span(first - 1, last, category),), slack_frames=OVERHANG_FRAMES)
            yield video_truth(f"{video}.mp4", path, intervals, categories=[category])
        for video in sorted((wanted or set()) - seen):
            if not video.startswith(MSAD_NORMAL):
                raise DocumentError(f"{listed}: {video!r} is not in {path.name}", hint=UNPACK)
            yield video_truth(f"{video}.mp4", path, FrameIntervals(()))

    def implied(self, scored: str) -> VideoTruth | None:
        """Return the truth of a video whose name says that it is normal; otherwise None."""
        return video_truth(scored, self.root, FrameIntervals(())) if stem(scored).startswith(MSAD_NORMAL) else None


class Cuva(GroundTruth):
    """Reads CUVA; `root` is its JSON file, or a folder in which it is the only JSON file.

    The file is a list, or has one object per line, as `load_dataset("fesvhtr/CUVA", split="test").to_json(FILE)` writes it.
    """

    name = "cuva"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the videos of the file."""
        found = [] if self.root.is_file() else sorted(each.name for each in self.root.glob("*.json"))
        path = self.annotation_file(found if len(found) == 1 else [], wanted="its one JSON file")
        said: dict[str, dict[str, list[tuple[int, str]]]] = {}
        for place, item in _json_items(path):
            video, task = (_text(path, place, item, key) for key in ("visual_input", "task"))
            said.setdefault(video, {}).setdefault(task.lower(), []).append((place, str(item.get("output", ""))))
        for video, tasks in said.items():
            numbers = [re.match(r"\W*(\d+)", output) for _, output in tasks.get("classification", ())]
            names = dict.fromkeys(CUVA_CATEGORIES.get(int(number[1][:4]), "") for number in numbers if number)
            categories = [name for name in names if name]
            category = categories[0] if len(categories) == 1 else None
            stamps = tasks.get("timestamp", ())
            # A dictionary, because several questions about one video repeat its intervals.
            intervals = dict.fromkeys(each for stamp in stamps for each in _clock_intervals(path, *stamp, category))
            if not intervals and not any(output.strip() == "0" for _, output in tasks.get("detection", ())):
                raise DocumentError(f"{path}: {video!r} has no item of the task Timestamp", hint=UNPACK)
            yield video_truth(video, path, TimeIntervals(tuple(intervals)), categories=categories)


def _clock_intervals(path: Path, place: int, output: str, category: str | None) -> Iterator[TimeInterval]:
    found = _CLOCK.findall(output)
    if not found:
        raise bad_line(path, place, f"{output[:60]!r} is not [mmss, mmss], minutes and seconds of start and end")
    for parts in found:
        minute, second, end_minute, end_second = map(int, parts)
        try:
            yield TimeInterval(60.0 * minute + second, 60.0 * end_minute + end_second, category)
        except ValueError as error:
            raise bad_line(path, place, str(error)) from None


class PreVad(GroundTruth):
    """Reads PreVAD's test videos; `root` is test.csv, the JSON file, or a folder with one of them."""

    name = "prevad"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the videos of the file."""
        path = self.annotation_file(["test.csv", "annotations/prevad_test_anno.json", "v6/prevad_test_anno_v6.json"])
        needed = ("video_path", "class_name", "anomaly_span")
        for place, item in _json_items(path) if path.suffix == ".json" else table_rows(path, needed):
            video, category = (_text(path, place, item, key) for key in needed[:2])
            shares = _shares(path, place, item.get("anomaly_span"))
            if (category.lower() == _NORMAL) != (not shares):
                raise bad_line(path, place, f"a video of class {category!r} has {len(shares)} intervals")
            categories = [category.lower()] if shares else []
            yield video_truth(video, path, ShareIntervals(shares, *categories), categories=categories)


def _shares(path: Path, place: int, value: object) -> tuple[tuple[float, float], ...]:
    """Return the intervals of an `anomaly_span`, without empty intervals.

    The value is a list of intervals, one interval, or the JSON text of one of these. It may be missing.
    """
    try:
        found: Any = json.loads(value) if isinstance(value, str) and value.strip() else (value or [])
        if len(found) == 2 and not isinstance(found[0], list):
            found = [found]
        shares = tuple((float(start), float(end)) for start, end in found if start != end)
        if not all(0.0 <= share < MOST_SHARE for pair in shares for share in pair):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise bad_line(path, place, f"{str(value)[:60]!r} is not a list of [start, end], shares of the video") from None
    return shares


class VauBench(GroundTruth):
    """Reads VAU-Bench; `root` is one of its tables, or the folder `annotations` with tables test_….csv."""

    name = "vau-bench"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the videos with known times, from all tables."""
        paths = [self.root]
        if not self.root.is_file():
            paths = [each for place in (".", "annotations") for each in sorted((self.root / place).glob("test_*.csv"))]
            if not paths:
                raise self.missing("annotations/test_msad.csv")
        found: dict[str, tuple[Path, dict[TimeInterval, None]]] = {}
        for path in paths:
            for line, row in table_rows(path, ("Video Name", "Anomaly Class", "Start Time", "End Time")):
                video = _text(path, line, row, "Video Name")
                start_s, end_s = (_seconds(path, line, row, key) for key in ("Start Time", "End Time"))
                if min(start_s, end_s) < 0.0:
                    continue
                _, intervals = found.setdefault(video, (path, {}))
                if (start_s, end_s) == (0.0, 0.0):
                    continue
                try:
                    interval = TimeInterval(start_s, end_s, _text(path, line, row, "Anomaly Class").lower())
                except ValueError as error:
                    raise bad_line(path, line, str(error)) from None
                intervals.setdefault(interval)
        for video, (path, intervals) in found.items():
            categories = dict.fromkeys(each.category for each in intervals if each.category)
            yield video_truth(video, path, TimeIntervals(tuple(intervals)), categories=categories)


def table_rows(path: Path, needed: Sequence[str]) -> Items:
    """Yield the rows of a CSV table: the line, and the cells by the names of their columns.

    Raises:
        DocumentError: the file cannot be read, is not CSV, or lacks a needed column.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True, restval="")
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        if missing := [name for name in needed if name not in columns]:
            raise bad_line(path, 1, f"the column {missing[0]!r} is missing; the columns are {','.join(columns)[:80]!r}")
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise bad_line(path, reader.line_num, f"not CSV: {error}") from error


def _json_items(path: Path) -> Items:
    """Yield the objects of a JSON list or of a file with one object per line, with positions from 1."""
    text = read_text(path)
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.split("\n") if line]
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path}: not JSON: {error_text(error)[:200]}", hint=UNPACK) from error
    for place, item in enumerate(found, 1):
        if not isinstance(item, dict):
            raise bad_line(path, place, "is not an object")
        yield place, item


def _text(path: Path, place: int, item: Item, key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value.strip():
        raise bad_line(path, place, f"{key} is empty or not a text")
    return value.strip()


def _seconds(path: Path, line: int, row: Item, key: str) -> float:
    try:
        return float(row[key])
    except ValueError:
        raise bad_line(path, line, f"{key} is {row[key][:40]!r}, not a number of seconds") from None
