"""The user's own truth: a CSV table of intervals in seconds, read and made.

    video,start_s,end_s,category
    cam1/a.mp4,12.4,15,fighting
    cam1/b.mp4,,,

A frame is inside where start_s <= its timestamp < end_s, within a microsecond. A video of several intervals has several
rows, a normal one a single row with empty times; the category is optional. Paths are as a scan writes them; where that is
unambiguous, folders in front and the suffix may differ.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from vadcli.errors import DocumentError
from vadcli.ground_truth.annotation import TimeInterval, TimeIntervals, runs, video_end_s
from vadcli.ground_truth.files import bad_line, first_existing, read_text
from vadcli.ground_truth.truth import GroundTruth, VideoTruth, video_truth
from vadcli.types import BoolArray, Event, ScoreTable

HEADER = ("video", "start_s", "end_s", "category")
_SECOND = "seconds as plain numbers, start before end, or both empty for a normal video"


class CsvTruth(GroundTruth):
    """The user's own intervals; `root` is the table, or a folder with ground_truth.csv."""

    name = "csv"
    stem_alone = False

    def read(self) -> Iterable[VideoTruth]:
        """The videos of the table, in its order."""
        path = self.root
        if not path.is_file():
            path = first_existing(path, ["ground_truth.csv"], name=self.name, wanted="ground_truth.csv")
        videos: dict[str, list[TimeInterval]] = {}
        normal: set[str] = set()
        for line, video, interval in _rows(path):
            known = video in videos
            intervals = videos.setdefault(video, [])
            if video in normal or (interval is None and known):
                raise bad_line(
                    path, line, f"{video!r} has a row with empty times, which says that it is normal, and another one"
                )
            if interval is None:
                normal.add(video)
            else:
                intervals.append(interval)
        for video, intervals in videos.items():
            categories = dict.fromkeys(interval.category for interval in intervals if interval.category)
            yield video_truth(video, path, TimeIntervals(tuple(intervals)), categories=categories)


def template_from_events(events: Mapping[str, Sequence[Event]]) -> str:
    """A table to correct by hand, from what a scan found.

    Args:
        events: relative path to its events, none for a video in which nothing was found.
    """
    rows: list[tuple[str, ...]] = []
    for video, found in events.items():
        rows.extend((video, _seconds(event.start_s), _seconds(event.end_s), event.category or "") for event in found)
        if not found:
            rows.append((video, "", "", ""))
    return _written(rows)


def template_from_labels(labels: Iterable[tuple[ScoreTable, BoolArray]]) -> str:
    """A table that says of each row what its label says, from labels a frame: the frames of another truth in seconds.

    Args:
        labels: scored videos and (N,) bool of each. Read back, the table gives the same labels where timestamps are at least
            two microseconds apart.

    Raises:
        ValueError: a video has another number of labels than rows.
    """
    rows: list[tuple[str, ...]] = []
    for table, flags in labels:
        if len(flags) != len(table):
            raise ValueError(f"{table.video}: {len(flags)} labels for {len(table)} rows")
        times = (
            [*table.timestamp.tolist(), max(video_end_s(table.timestamp), float(table.timestamp[-1]) + 1e-3)]
            if len(table)
            else []
        )
        spans = runs(flags)
        rows.extend((table.video, _seconds(times[start]), _seconds(times[end]), "") for start, end in spans)
        if not len(spans):
            rows.append((table.video, "", "", ""))
    return _written(rows)


def _rows(path: Path) -> Iterator[tuple[int, str, TimeInterval | None]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if header not in (list(HEADER), list(HEADER[:-1])):
            raise bad_line(path, 1, f"the header is {','.join(header)[:80]!r} instead of {','.join(HEADER)}")
        for row in reader:
            if any(cell.strip() for cell in row):
                yield reader.line_num, *_row(path, reader.line_num, row, len(header))
    except csv.Error as error:
        raise bad_line(path, reader.line_num, f"not CSV: {error}") from error


def _row(path: Path, line: int, row: Sequence[str], columns: int) -> tuple[str, TimeInterval | None]:
    if not len(HEADER) - 1 <= len(row) <= columns:
        raise bad_line(path, line, f"has {len(row)} columns instead of {columns}")
    video, start, end, category = (*(cell.strip() for cell in row), "")[:4]
    if not video:
        raise bad_line(path, line, "the video is empty")
    if not start and not end:
        return video, None
    try:
        return video, TimeInterval(float(start), float(end), category or None)
    except ValueError:
        message = f"{path}, line {line}: {start[:40]!r} to {end[:40]!r} is no interval"
        raise DocumentError(message, hint=_SECOND) from None


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _written(rows: Iterable[tuple[str, ...]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([HEADER, *rows])
    return text.getvalue()
