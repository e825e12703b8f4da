"""Data sets with intervals: a user's own CSV table, and the lists and tables of six benchmarks.

The repositories of MSAD, CUVA, PreVAD and VAU-Bench do not describe all of their files. The docstring of each class says where
its knowledge of the layout comes from, and what the authors do not document. The order of a table's columns does not matter,
and unknown columns are ignored.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vadcli.errors import DocumentError
from vadcli.ground_truth import GroundTruth, VideoTruth, find_existing, stem, video_truth
from vadcli.ground_truth.annotation import (
    OVERHANG_FRAMES,
    FrameIntervals,
    ShareIntervals,
    Span,
    TimeInterval,
    TimeIntervals,
    runs,
    video_end_s,
)
from vadcli.ground_truth.files import UNPACK, bad_line, numbered_lines, read_annotation, whole_number
from vadcli.types import BoolArray, Event, ScoreTable
from vadcli.types.text import error_text, how_many

HEADER = ("video", "start_s", "end_s", "category")
OPTIONAL = ("category", "severity")
_TIMES_HINT = "write seconds as plain numbers, start before end, or leave both empty for a normal video"


class CsvTruth(GroundTruth):
    """A user's own CSV table of intervals in seconds.

    `root` is the table, or a folder with ground_truth.csv.

    `template_from_events` and `template_from_labels` write a table like this one:

        video,start_s,end_s,category
        cam1/a.mp4,12.4,15,fighting
        cam1/b.mp4,,,

    - A video has one row per interval. A normal video has one row with empty times.
    - A frame with the timestamp t belongs to an interval if start_s <= t < end_s. Differences of a microsecond are ignored.
    - The columns category and severity (a number) are optional. Their cells may be empty.
    - Paths are written as in a scan's output. Folders at the beginning, and the suffix, may differ if only one video fits.
    """

    name = "csv"
    stem_alone = False

    @property
    def title(self) -> str:
        """The name of the table in messages."""
        return "your CSV table"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the videos in the order of the table."""
        path = self.annotation_file(["ground_truth.csv"], hint="set --root to your table, or to the folder with this table")
        videos: dict[str, list[TimeInterval]] = {}
        normal: set[str] = set()
        for line, video, interval in _rows(path):
            known = video in videos
            intervals = videos.setdefault(video, [])
            if video in normal or (interval is None and known):
                what = f"{video!r} has several rows, and one of them has empty times; a normal video has only one row"
                raise bad_line(path, line, what, own=True)
            if interval is None:
                normal.add(video)
            else:
                intervals.append(interval)
        for video, intervals in videos.items():
            categories = dict.fromkeys(interval.category for interval in intervals if interval.category)
            yield video_truth(video, path, TimeIntervals(tuple(intervals)), categories=categories)


def template_from_events(events: Iterable[tuple[ScoreTable, Sequence[Event]]]) -> str:
    """Return a CSV table with the events of a scan. The user corrects the table by hand.

    If the frames of a video are at least two microseconds apart, `CsvTruth` finds the same frames in this table.

    Args:
        events: (scores, events) of each video; a video may have no events.
    """
    rows: list[tuple[str, ...]] = []
    for table, video_events in events:
        for event in video_events:
            # `TimeIntervals` estimates when the last frame ends, and refuses an interval that ends later. So the end of an
            # event is limited to this estimate.
            end_s = min(event.end_s, _last_end_s(table)) if event.end_frame >= len(table) else event.end_s
            rows.append((table.video, _seconds_text(event.start_s), _seconds_text(end_s), event.category or ""))
        if not video_events:
            rows.append((table.video, "", "", ""))
    return _csv_text(rows)


def template_from_labels(labels: Iterable[tuple[ScoreTable, BoolArray]]) -> str:
    """Return a CSV table in which the labels of frames are written as intervals in seconds.

    If the frames of a video are at least two microseconds apart, `CsvTruth` reads the same labels from this table.

    Args:
        labels: (scores, labels (N,) bool) of each video.

    Raises:
        ValueError: a video has another number of labels than rows.
    """
    rows: list[tuple[str, ...]] = []
    for table, flags in labels:
        if len(flags) != len(table):
            raise ValueError(f"{table.video}: there are {len(flags)} labels, but {len(table)} rows")
        times = [*table.timestamp.tolist(), _last_end_s(table)] if len(table) else []
        spans = runs(flags)
        rows.extend((table.video, _seconds_text(times[start]), _seconds_text(times[end]), "") for start, end in spans)
        if not len(spans):
            rows.append((table.video, "", "", ""))
    return _csv_text(rows)


def _last_end_s(table: ScoreTable) -> float:
    return max(video_end_s(table.timestamp), float(table.timestamp[-1]) + 1e-3)


def _rows(path: Path) -> Iterator[tuple[int, str, TimeInterval | None]]:
    """Yield (line number, video, interval) of each row; the interval is None for a normal video."""
    reader = csv.reader(io.StringIO(read_annotation(path, hint=""), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        more = header[3:]
        if tuple(header[:3]) != HEADER[:3] or not set(more) <= set(OPTIONAL) or len(more) != len(set(more)):
            wanted = f"{','.join(HEADER)}[,severity]"
            raise bad_line(path, 1, f"the header is {','.join(header)[:80]!r} instead of {wanted}", own=True)
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, *_row(path, reader.line_num, row, header)
    except csv.Error as error:
        raise bad_line(path, reader.line_num, f"not CSV: {error}", own=True) from error


def _row(path: Path, line: int, row: Sequence[str], header: Sequence[str]) -> tuple[str, TimeInterval | None]:
    if not len(HEADER) - 1 <= len(row) <= len(header):
        raise bad_line(path, line, f"has {len(row)} columns instead of {len(header)}", own=True)
    cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
    video, start, end = (cells[name] for name in HEADER[:3])
    if not video:
        raise bad_line(path, line, "the cell of the column video is empty", own=True)
    text = cells.get("severity", "")
    try:
        severity = float(text) if text else None
    except ValueError:
        severity = math.nan
    if severity is not None and not math.isfinite(severity):
        raise bad_line(path, line, f"the severity {text[:40]!r} is not a number; leave it empty if it is unknown", own=True)
    if not start and not end:
        return video, None
    try:
        return video, TimeInterval(float(start), float(end), cells.get("category") or None, severity)
    except ValueError:
        message = f"{path}, line {line}: {start[:40]!r} to {end[:40]!r} is not an interval"
        raise DocumentError(message, hint=_TIMES_HINT) from None


def _seconds_text(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _csv_text(rows: Iterable[tuple[str, ...]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])
    return text.getvalue()


_UCF_FILES = (
    "Temporal_Anomaly_Annotation_for_Testing_Videos.txt",
    "Temporal_Anomaly_Annotation_For_Testing_Videos/Txt_formate/Temporal_Anomaly_Annotation.txt",
    "Temporal_Anomaly_Annotation.txt",
)
UCF_CATEGORIES = {
    "Abuse": "abuse",
    "Arrest": "arrest",
    "Arson": "arson",
    "Assault": "assault",
    "Burglary": "burglary",
    "Explosion": "explosion",
    "Fighting": "fighting",
    "RoadAccidents": "road accident",
    "Robbery": "robbery",
    "Shooting": "shooting",
    "Shoplifting": "shoplifting",
    "Stealing": "stealing",
    "Vandalism": "vandalism",
}
"""The category in vadcli of each class in the file."""
XD_CATEGORIES = {
    "B1": "fighting",
    "B2": "shooting",
    "B4": "riot",
    "B5": "abuse",
    "B6": "car accident",
    "G": "explosion",
}
"""The category in vadcli of each label in the name of a video."""
_XD_LABEL = re.compile(r".*_label_(A|[A-Z0-9]+(?:-[A-Z0-9]+)*)", re.DOTALL)


class UCFCrime(GroundTruth):
    """UCF-Crime (Sultani et al., CVPR 2018): 290 test videos.

    `root` is the annotation file, or a folder with this file.

    Temporal_Anomaly_Annotation_for_Testing_Videos.txt has one line `video class first last first last` per test video; -1 -1
    stands for a missing interval. Frames are counted from 1, and `last` is abnormal too: in MATLAB, the official
    Evaluate_Anomaly_Detector.m (WaqasSultani/AnomalyDetectionCVPR2018) sets GT(max(first, 1) : min(last, frames)) = 1.
    Some intervals end one or two frames after the video (Arson011, Fighting003 and Shooting015; the numbers of frames are from
    ekosman's port of the code).
    """

    name = "ucf-crime"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the videos of the file."""
        path = self.annotation_file(_UCF_FILES)
        for number, line in numbered_lines(path):
            video, *rest = line.split()
            kind, numbers = "".join(rest[:1]), rest[1:]
            if kind != "Normal" and kind not in UCF_CATEGORIES:
                raise bad_line(path, number, f"{kind[:40]!r} is not a class of UCF-Crime")
            if len(numbers) != 4:
                raise bad_line(path, number, f"has {len(numbers)} frame numbers instead of 4")
            pairs = [pair for pair in _pairs(path, number, numbers) if pair != (-1, -1)]
            if any(not 1 <= first <= last for first, last in pairs):
                text = f"{' '.join(numbers)[:80]} are not intervals: they need 1 <= first <= last"
                raise bad_line(path, number, text)
            if (kind == "Normal") != (not pairs):
                raise bad_line(path, number, f"the class is {kind}, but the video has {how_many(len(pairs), 'interval')}")
            category = UCF_CATEGORIES.get(kind)
            spans = tuple(Span(first - 1, last, category) for first, last in pairs)
            annotation = FrameIntervals(spans, slack_frames=OVERHANG_FRAMES)
            yield video_truth(video, path, annotation, categories=[category] if category else [])


class XDViolence(GroundTruth):
    """XD-Violence (Wu et al., ECCV 2020): 800 test videos.

    `root` is annotations.txt, or a folder with this file.

    annotations.txt has one line `video start end start end …` per violent test video. Frames are counted from 0, and the frame
    `end` is normal: the official list/make_gt.py (Roc-Ng/XDVioDet) sets gt[start:end] = 1 in Python. The name of a violent
    video ends with one to three labels of `XD_CATEGORIES`.

    No file lists the normal test videos. Their names end with the label A. They are searched for in the folder of
    annotations.txt, in its folders "videos" and "test…", and among the scored videos.
    """

    name = "xd-violence"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the violent videos of the file, then the normal videos in the folders."""
        path = self.annotation_file(["annotations.txt"])
        for number, line in numbered_lines(path):
            video, *numbers = line.split()
            labels = _XD_LABEL.fullmatch(stem(video))
            codes = [code for code in labels[1].split("-") if code != "0"] if labels else []
            if not codes or any(code not in XD_CATEGORIES for code in codes):
                what = f"{video[-60:]!r} does not end with the labels of a violent video, such as _label_B1-0-0"
                raise bad_line(path, number, what)
            categories = tuple(XD_CATEGORIES[code] for code in codes)
            pairs = _pairs(path, number, numbers)
            if not pairs or any(not 0 <= start < end for start, end in pairs):
                raise bad_line(path, number, f"{' '.join(numbers)[:80]!r} are not intervals with 0 <= start < end")
            category = categories[0] if len(categories) == 1 else None
            spans = tuple(Span(start, end, category) for start, end in pairs)
            annotation = FrameIntervals(spans, slack_frames=OVERHANG_FRAMES)
            yield video_truth(stem(video) + ".mp4", path, annotation, categories=categories)
        folder = path.parent
        for place in (folder, folder / "videos", *sorted(folder.glob("[Tt]est*"))):
            for file in sorted(place.glob("*_label_A.mp4")):
                yield video_truth(file.relative_to(folder).as_posix(), folder, FrameIntervals(()))

    def implied(self, scored: str) -> VideoTruth | None:
        """Return the ground truth of a video whose name ends with the label A (normal); None for other names."""
        return video_truth(scored, self.root, FrameIntervals(())) if stem(scored).endswith("_label_A") else None


def _pairs(path: Path, number: int, texts: Sequence[str]) -> list[tuple[int, int]]:
    try:
        values = [whole_number(text) for text in texts]
    except ValueError as error:
        raise bad_line(path, number, str(error)[:120]) from None
    if len(values) % 2:
        raise bad_line(path, number, f"has {len(values)} frame numbers; the number must be even, two per interval")
    return list(zip(values[::2], values[1::2], strict=True))


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
"""The category of each number in the repository's Category.txt."""
MOST_SHARE = 10.0
"""Fractions of the video are below this limit. A larger number is probably a frame number or a time, so it is an error."""
_NORMAL = "normal"
_CLOCK = re.compile(r"\[\s*(\d{1,2})([0-5]\d)\s*,\s*(\d{1,2})([0-5]\d)\s*\]")


class Msad(GroundTruth):
    """MSAD (Zhu et al., NeurIPS 2024, Tom-roujiang/MSAD).

    `root` is anomaly_annotation.csv, or a folder with this file.

    The table comes with the videos. It has one row per abnormal video: `name,scenario,total frames,starting frame of
    anomaly,ending frame of anomaly`. The repository also has a list of test videos (RTFM/list/msad-i3d-test.list), with one
    line `…/NAME_i3d.npy` per video. The names of normal videos begin with MSAD_normal. If the list of test videos is in
    the folder of the table, it is the test set. Otherwise, the test set has all abnormal videos of the table.

    The authors do not say how they count frames. Here, frames are counted from 1, and the ending frame is abnormal too. Two
    facts suggest this: some ending frames are equal to the total number of frames, and VAU-Bench gives the time 0.03 s (1/30 s)
    for an anomaly that starts at frame 1.
    """

    name = "msad"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the abnormal videos of the test set, then its normal videos."""
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
                total, first, last = (whole_number(row[name]) for name in MSAD_FRAMES)
            except ValueError:
                raise bad_line(path, line, f"the frames of {video!r} are not whole numbers") from None
            if not 1 <= first <= last <= total:
                raise bad_line(path, line, f"frames {first} to {last} are not an interval with 1 <= first <= last <= {total}")
            category = video.rstrip("0123456789").rstrip("_").replace("_", " ").lower()
            intervals = FrameIntervals((Span(first - 1, last, category),), slack_frames=OVERHANG_FRAMES)
            yield video_truth(f"{video}.mp4", path, intervals, categories=[category])
        for video in sorted((wanted or set()) - seen):
            if not video.startswith(MSAD_NORMAL):
                raise DocumentError(f"{listed}: {video!r} is not in {path.name}", hint=UNPACK)
            yield video_truth(f"{video}.mp4", path, FrameIntervals(()))

    def implied(self, scored: str) -> VideoTruth | None:
        """Return the ground truth of a video whose name begins with MSAD_normal; None for other names."""
        return video_truth(scored, self.root, FrameIntervals(())) if stem(scored).startswith(MSAD_NORMAL) else None


class Cuva(GroundTruth):
    """CUVA (Du et al., CVPR 2024, fesvhtr/CUVA).

    `root` is the JSON file, or a folder with this file and no other JSON file.

    The file is a JSON list, or has one JSON object per line, as `load_dataset("fesvhtr/CUVA", split="test").to_json(FILE)`
    writes it. The repository's evaluation (CUVA/mmaEval.py) reads the keys `ID`, `visual_input` (the video), `task` and
    `output` of each object. The output depends on the task:

    - Timestamp: `[mmss, mmss]`, start and end in minutes and seconds without a colon
    - Classification: a number from the repository's Category.txt
    - Detection: 1 if there is an anomaly, otherwise 0

    The authors do not say whether an anomaly that ends at 0130 includes the second from 1:30 to 1:31. Here, it does not.
    """

    name = "cuva"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the videos of the file."""
        names = [] if self.root.is_file() else sorted(path.name for path in self.root.glob("*.json"))
        path = self.annotation_file(names if len(names) == 1 else [], wanted="its one JSON file")
        outputs: dict[str, dict[str, list[tuple[int, str]]]] = {}  # by video and task, with the position in the file
        for place, item in _json_items(path):
            video, task = (_text(path, place, item, key) for key in ("visual_input", "task"))
            outputs.setdefault(video, {}).setdefault(task.lower(), []).append((place, str(item.get("output", ""))))
        for video, tasks in outputs.items():
            numbers = [re.match(r"\W*(\d+)", output) for _, output in tasks.get("classification", ())]
            known = dict.fromkeys(CUVA_CATEGORIES.get(int(number[1][:4]), "") for number in numbers if number)
            categories = [name for name in known if name]
            category = categories[0] if len(categories) == 1 else None
            stamps = tasks.get("timestamp", ())
            # Several items about one video repeat the same intervals. The dictionary keeps each interval once.
            intervals = dict.fromkeys(interval for stamp in stamps for interval in _clock_intervals(path, *stamp, category))
            if not intervals and not any(output.strip() == "0" for _, output in tasks.get("detection", ())):
                raise DocumentError(f"{path}: {video!r} has no item of the task Timestamp", hint=UNPACK)
            yield video_truth(video, path, TimeIntervals(tuple(intervals)), categories=categories)


def _clock_intervals(path: Path, place: int, output: str, category: str | None) -> Iterator[TimeInterval]:
    intervals = _CLOCK.findall(output)
    if not intervals:
        raise bad_line(path, place, f"{output[:60]!r} is not [mmss, mmss], minutes and seconds of start and end")
    for parts in intervals:
        minute, second, end_minute, end_second = map(int, parts)
        try:
            yield TimeInterval(60.0 * minute + second, 60.0 * end_minute + end_second, category)
        except ValueError as error:
            raise bad_line(path, place, str(error)) from None


class PreVad(GroundTruth):
    """PreVAD (Liu et al., 2025, Kamino666/LaGoVAD-PreVAD).

    `root` is test.csv, a JSON file such as v6/prevad_test_anno_v6.json, or a folder with one of these files.

    The files have the same keys: `video_path`, `class_name` and `anomaly_span`. `anomaly_span` is a list of [start, end] in
    fractions of the video's length. The README does not describe these files. The keys, and the way to compute frames from
    fractions (`ShareIntervals`), are from the authors' data loader. But the loader has one feature per eight frames and finds
    the abnormal features, while this class finds the abnormal frames.
    """

    name = "prevad"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the videos of the file."""
        path = self.annotation_file(["test.csv", "annotations/prevad_test_anno.json", "v6/prevad_test_anno_v6.json"])
        needed = ("video_path", "class_name", "anomaly_span")
        for place, item in _json_items(path) if path.suffix == ".json" else table_rows(path, needed):
            video, category = (_text(path, place, item, key) for key in needed[:2])
            shares = _shares(path, place, item.get("anomaly_span"))
            if (category.lower() == _NORMAL) != (not shares):
                raise bad_line(path, place, f"the class is {category!r}, but the video has {how_many(len(shares), 'interval')}")
            categories = [category.lower()] if shares else []
            yield video_truth(video, path, ShareIntervals(shares, *categories), categories=categories)


def _shares(path: Path, place: int, value: object) -> tuple[tuple[float, float], ...]:
    """Return the intervals in the cell `anomaly_span`; intervals with start = end are left out.

    Args:
        path, place: the file, and the line of the cell, for error messages.
        value: a list of intervals, a single interval, a JSON text with one of these, or None.
    """
    try:
        intervals: Any = json.loads(value) if isinstance(value, str) and value.strip() else (value or [])
        if len(intervals) == 2 and not isinstance(intervals[0], list):
            intervals = [intervals]
        shares = tuple((float(start), float(end)) for start, end in intervals if start != end)
        if not all(0.0 <= share < MOST_SHARE for pair in shares for share in pair):
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise bad_line(path, place, f"{str(value)[:60]!r} is not a list of [start, end] in fractions of the video") from None
    return shares


class VauBench(GroundTruth):
    """VAU-Bench (Zhu et al., 2025, GVCLab/VAU-R1).

    `root` is one of the tables, the folder `annotations` with all tables, or the folder that contains `annotations`.

    The tables are test_msad.csv, test_ucf_crime.csv and test_ecva.csv. Their columns are `Video Name`, `Anomaly Class`, `Start
    Time` and `End Time` (in seconds). The times of a normal video are 0 and 0, as in src/evaluation/evaluation_tag.py. The time
    -1 means an unknown time; such a row is left out. A video has one row per question, so it may have several rows.
    """

    name = "vau-bench"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the videos of all tables, without the rows whose times are unknown."""
        paths = [self.root]
        if not self.root.is_file():
            paths = [path for place in (".", "annotations") for path in sorted((self.root / place).glob("test_*.csv"))]
            if not paths:
                raise self.missing("annotations/test_msad.csv")
        videos: dict[str, tuple[Path, dict[TimeInterval, None]]] = {}
        for path in paths:
            for line, row in table_rows(path, ("Video Name", "Anomaly Class", "Start Time", "End Time")):
                video = _text(path, line, row, "Video Name")
                start_s, end_s = (_seconds(path, line, row, key) for key in ("Start Time", "End Time"))
                if min(start_s, end_s) < 0.0:
                    continue
                _, intervals = videos.setdefault(video, (path, {}))
                if (start_s, end_s) == (0.0, 0.0):
                    continue
                try:
                    interval = TimeInterval(start_s, end_s, _text(path, line, row, "Anomaly Class").lower())
                except ValueError as error:
                    raise bad_line(path, line, str(error)) from None
                intervals.setdefault(interval)
        for video, (path, intervals) in videos.items():
            categories = dict.fromkeys(interval.category for interval in intervals if interval.category)
            yield video_truth(video, path, TimeIntervals(tuple(intervals)), categories=categories)


def table_rows(path: Path, needed: Sequence[str]) -> Items:
    """Yield the line number and the cells of each row of a CSV table; the keys of the cells are the column names.

    Raises:
        DocumentError: the file cannot be read, is not CSV, or does not have all columns in `needed`.
    """
    reader = csv.DictReader(io.StringIO(read_annotation(path), newline=""), strict=True, restval="")
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
    """Yield (position from 1, object) for each object in a JSON list or in a file of JSON lines.

    Raises:
        DocumentError: the file is not JSON, or an item is not an object.
    """
    text = read_annotation(path)
    try:
        items = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.split("\n") if line]
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{path}: not JSON: {error_text(error)[:200]}", hint=UNPACK) from error
    for place, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise bad_line(path, place, "is not an object")
        yield place, item


def _text(path: Path, place: int, item: Item, key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value.strip():
        raise bad_line(path, place, f"the value of {key} is empty, or is not a text")
    return value.strip()


def _seconds(path: Path, line: int, row: Item, key: str) -> float:
    try:
        return float(row[key])
    except ValueError:
        raise bad_line(path, line, f"the value of {key} is {row[key][:40]!r}, not a number of seconds") from None
