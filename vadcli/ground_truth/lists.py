"""Ground truth in one text file of intervals: a user's own CSV table, UCF-Crime and XD-Violence.

The CSV table has intervals in seconds; `template_from_events` and `template_from_labels` write one:

    video,start_s,end_s,category
    cam1/a.mp4,12.4,15,fighting
    cam1/b.mp4,,,

A frame belongs to an interval if start_s <= its timestamp < end_s; differences of a microsecond do not count. A video with
several intervals has several rows. A normal video has one row with empty times. The columns category and severity (a number,
or empty) are optional. Paths are written as in a scan's output; leading folders and the suffix may differ if only one video
fits.

UCF-Crime (Sultani et al., CVPR 2018): Temporal_Anomaly_Annotation_for_Testing_Videos.txt has one line `video class first last
first last` per test video, with -1 for no interval. The official Evaluate_Anomaly_Detector.m
(WaqasSultani/AnomalyDetectionCVPR2018) sets GT(max(first, 1) : min(last, frames)) = 1 in MATLAB: frames count from 1 and both
ends are inside. A few intervals end one or two frames after the video (Arson011, Fighting003 and Shooting015, by the frame
counts of ekosman's port).

XD-Violence (Wu et al., ECCV 2020): annotations.txt has one line `video start end start end …` per violent test video. The
official list/make_gt.py (Roc-Ng/XDVioDet) sets gt[start:end] = 1 in Python: frames count from 0 and the end is outside. A
normal video has no line; its name has the label A. The name of a violent video has up to three labels of `XD_CATEGORIES`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vadcli.errors import DocumentError
from vadcli.ground_truth.annotation import OVERHANG_FRAMES, FrameIntervals, Span, TimeInterval, TimeIntervals, runs, video_end_s
from vadcli.ground_truth.files import bad_line, numbered_lines, read_text, whole
from vadcli.ground_truth.truth import GroundTruth, VideoTruth, stem, video_truth
from vadcli.types import BoolArray, Event, ScoreTable

HEADER = ("video", "start_s", "end_s", "category")
OPTIONAL = ("category", "severity")
_TIMES_HINT = "write seconds as plain numbers, start before end, or leave both empty for a normal video"


class CsvTruth(GroundTruth):
    """Reads a user's own intervals; `root` is the table, or a folder with ground_truth.csv."""

    name = "csv"
    stem_alone = False

    def read(self) -> Iterable[VideoTruth]:
        """Yield the videos of the table, in its order."""
        path = self.annotation_file(["ground_truth.csv"], hint="set --root to your table, or to the folder that holds it")
        videos: dict[str, list[TimeInterval]] = {}
        normal: set[str] = set()
        for line, video, interval in _rows(path):
            known = video in videos
            intervals = videos.setdefault(video, [])
            if video in normal or (interval is None and known):
                what = f"{video!r} has several rows, but one with empty times; a normal video has one row"
                raise bad_line(path, line, what, own=True)
            if interval is None:
                normal.add(video)
            else:
                intervals.append(interval)
        for video, intervals in videos.items():
            categories = dict.fromkeys(interval.category for interval in intervals if interval.category)
            yield video_truth(video, path, TimeIntervals(tuple(intervals)), categories=categories)


def template_from_events(events: Iterable[tuple[ScoreTable, Sequence[Event]]]) -> str:
    """Return a CSV table of the events of a scan, to be corrected by hand.

    `CsvTruth` reads the same frames from the table if timestamps are at least two microseconds apart.

    Args:
        events: scored videos, each with the list of its events; the list may be empty.
    """
    rows: list[tuple[str, ...]] = []
    for table, found in events:
        for event in found:
            # A long last frame may end later than an interval is allowed to, because its length is not in the score table.
            end_s = min(event.end_s, _last_end_s(table)) if event.end_frame >= len(table) else event.end_s
            rows.append((table.video, _seconds(event.start_s), _seconds(end_s), event.category or ""))
        if not found:
            rows.append((table.video, "", "", ""))
    return _csv_text(rows)


def template_from_labels(labels: Iterable[tuple[ScoreTable, BoolArray]]) -> str:
    """Return a CSV table with frame labels as intervals in seconds.

    `CsvTruth` reads the same labels from the table if timestamps are at least two microseconds apart.

    Args:
        labels: scored videos, each with (N,) bool labels.

    Raises:
        ValueError: the numbers of labels and rows of a video differ.
    """
    rows: list[tuple[str, ...]] = []
    for table, flags in labels:
        if len(flags) != len(table):
            raise ValueError(f"{table.video}: {len(flags)} labels for {len(table)} rows")
        times = [*table.timestamp.tolist(), _last_end_s(table)] if len(table) else []
        spans = runs(flags)
        rows.extend((table.video, _seconds(times[start]), _seconds(times[end]), "") for start, end in spans)
        if not len(spans):
            rows.append((table.video, "", "", ""))
    return _csv_text(rows)


def _last_end_s(table: ScoreTable) -> float:
    return max(video_end_s(table.timestamp), float(table.timestamp[-1]) + 1e-3)


def _rows(path: Path) -> Iterator[tuple[int, str, TimeInterval | None]]:
    """Yield the line, the video and the interval of each row; None if the row is for a normal video."""
    reader = csv.reader(io.StringIO(read_text(path, hint=""), newline=""), strict=True)
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
        raise bad_line(path, line, "the video is empty", own=True)
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


def _seconds(value: float) -> str:
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
"""Class in the file -> its name in the category lists."""
XD_CATEGORIES = {
    "B1": "fighting",
    "B2": "shooting",
    "B4": "riot",
    "B5": "abuse",
    "B6": "car accident",
    "G": "explosion",
}
"""Label in the name of a video -> its name in the category lists."""
_XD_LABEL = re.compile(r".*_label_(A|[A-Z0-9]+(?:-[A-Z0-9]+)*)", re.DOTALL)


class UCFCrime(GroundTruth):
    """Reads UCF-Crime's 290 test videos; `root` is the annotation file or a folder with it."""

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
                raise bad_line(path, number, f"a video of class {kind} has {len(pairs)} intervals")
            category = UCF_CATEGORIES.get(kind)
            spans = tuple(Span(first - 1, last, category) for first, last in pairs)
            annotation = FrameIntervals(spans, slack_frames=OVERHANG_FRAMES)
            yield video_truth(video, path, annotation, categories=[category] if category else [])


class XDViolence(GroundTruth):
    """Reads XD-Violence's 800 test videos; `root` is annotations.txt or a folder with it.

    No file lists the normal test videos. They are found in the folder of the file, in its folders "videos" and "test…", and
    among the scored videos.
    """

    name = "xd-violence"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the violent videos of the file, then the normal videos that are found."""
        path = self.annotation_file(["annotations.txt"])
        for number, line in numbered_lines(path):
            video, *numbers = line.split()
            labels = _XD_LABEL.fullmatch(stem(video))
            codes = [code for code in labels[1].split("-") if code != "0"] if labels else []
            if not codes or any(code not in XD_CATEGORIES for code in codes):
                what = f"{video[-60:]!r} does not end in the labels of a violent video, such as _label_B1-0-0"
                raise bad_line(path, number, what)
            categories = tuple(XD_CATEGORIES[code] for code in codes)
            pairs = _pairs(path, number, numbers)
            if not pairs or any(not 0 <= start < end for start, end in pairs):
                raise bad_line(path, number, f"{' '.join(numbers)[:80]!r} are not intervals: they need 0 <= start < end")
            category = categories[0] if len(categories) == 1 else None
            spans = tuple(Span(start, end, category) for start, end in pairs)
            annotation = FrameIntervals(spans, slack_frames=OVERHANG_FRAMES)
            yield video_truth(stem(video) + ".mp4", path, annotation, categories=categories)
        folder = path.parent
        for place in (folder, folder / "videos", *sorted(folder.glob("[Tt]est*"))):
            for file in sorted(place.glob("*_label_A.mp4")):
                yield video_truth(file.relative_to(folder).as_posix(), folder, FrameIntervals(()))

    def implied(self, scored: str) -> VideoTruth | None:
        """Return the truth of a normal video if its name ends in the label A; otherwise None."""
        return video_truth(scored, self.root, FrameIntervals(())) if stem(scored).endswith("_label_A") else None


def _pairs(path: Path, number: int, texts: Sequence[str]) -> list[tuple[int, int]]:
    try:
        values = [whole(text) for text in texts]
    except ValueError as error:
        raise bad_line(path, number, str(error)[:120]) from None
    if len(values) % 2:
        raise bad_line(path, number, f"has {len(values)} frame numbers, but they must come in pairs")
    return list(zip(values[::2], values[1::2], strict=True))
