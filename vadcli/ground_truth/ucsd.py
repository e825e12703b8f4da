"""UCSD Ped1 and Ped2 (Mahadevan et al., CVPR 2010): frame folders, frame ranges as MATLAB text, mask folders.

The official archive UCSD_Anomaly_Dataset.v1p2 has, in UCSDped1 and UCSDped2, Test/TestNNN/NNN.tif (numbered from 001),
Test/TestNNN_gt/NNN.bmp (all of Ped2's clips, 10 of Ped1's) and Test/UCSDpedN.m, whose k-th line
`TestVideoFile{end+1}.gt_frame = [61:180];` belongs to the k-th clip (its README: "gt_frame indicates frames that contain
abnormal events"). MATLAB ranges count from 1 and include both ends: [61:180] are the rows 60 to 179.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vadcli.errors import DocumentError
from vadcli.ground_truth.annotation import FrameIntervals, FrameLabels, Span
from vadcli.ground_truth.files import (
    PictureMasks,
    bad_line,
    find_existing,
    first_existing,
    numbered_lines,
    numbered_pictures,
    read_json_labels,
    read_text,
    whole,
)
from vadcli.ground_truth.truth import GroundTruth, VideoTruth, video_truth

_RANGES = re.compile(r"TestVideoFile\{[^}]*\}\.gt_frame\s*=\s*\[([^\]]*)\]\s*;?\s*(%.*)?")
_RANGE = re.compile(r"(\d{1,9})(?::(\d{1,9}))?")
_ANEW = "unpack the archive anew"


class Ped1(GroundTruth):
    """UCSD Ped1: 36 test clips; `root` is the archive's folder, UCSDped1, its Test folder or the .m file in it."""

    name = "ped1"
    folder = "UCSDped1"

    def read(self) -> Iterable[VideoTruth]:
        """The clips of the .m file."""
        return self._official()

    def _official(self) -> Iterable[VideoTruth]:
        scripts = [f"{place}{self.folder}.m" for place in (f"{self.folder}/Test/", "Test/", "")]
        script = self.root
        if not (script.is_file() and script.suffix == ".m"):
            script = first_existing(self.root, scripts, name=self.name, wanted=f"Test/{self.folder}.m")
        ranges = read_ranges(script)
        self._check_clips(script, len(ranges))
        for clip, intervals in enumerate(ranges, start=1):
            yield self._clip(script, f"Test{clip:03d}", intervals)

    def _check_clips(self, script: Path, expected: int) -> None:
        clips = [path.name for path in script.parent.iterdir() if re.fullmatch(r"Test\d+", path.name) and path.is_dir()]
        if clips and len(clips) != expected:
            raise DocumentError(f"{script}: has frame ranges of {expected} clips, but {len(clips)} lie beside it", hint=_ANEW)

    def _clip(self, script: Path, clip: str, intervals: tuple[Span, ...]) -> VideoTruth:
        frames = _count(script.parent / clip)
        folder = script.parent / f"{clip}_gt"
        pictures = numbered_pictures(folder) if folder.is_dir() else []
        if pictures and frames is not None and len(pictures) != frames:
            raise DocumentError(f"{folder}: has {len(pictures)} masks for the {frames} frames of {clip}", hint=_ANEW)
        frames = frames if frames is not None else len(pictures) or None
        last = max((span.end_frame for span in intervals), default=0)
        if frames is not None and last > frames:
            raise DocumentError(f"{script}: {clip} is abnormal up to frame {last}, but has {frames} frames", hint=_ANEW)
        masks = PictureMasks(tuple(pictures)) if pictures else None
        return VideoTruth(f"Test/{clip}", script, lambda: FrameIntervals(intervals, frames), masks=masks)


class Ped2(Ped1):
    """UCSD Ped2: 12 test clips.

    `root` is the archive's folder, UCSDped2, its Test folder or the .m file in it; or a folder of test/NN frames with
    frame_labels.csv (clip, 0-based frame, label) and test_masks/NN/NNN.png; or a gt_label.json with a list of labels a clip,
    "0" being testing/frames/01 (as LiUzHiAn/hf2vad gives them).
    """

    name = "ped2"
    folder = "UCSDped2"

    def read(self) -> Iterable[VideoTruth]:
        """The clips of whichever layout is there."""
        if self.root.is_file() and self.root.suffix != ".m":
            for number, labels in read_clip_list(self.root).items():
                yield video_truth(f"testing/frames/{number + 1:02d}", self.root, labels)
        elif (table := find_existing(self.root, ["frame_labels.csv"])) is not None:
            for clip, labels in read_label_table(table).items():
                yield self._labelled(table, clip, labels)
        else:
            yield from self._official()

    def _labelled(self, table: Path, clip: str, labels: FrameLabels) -> VideoTruth:
        if not re.fullmatch(r"[\w-]+", clip):
            raise DocumentError(f"{table}: {clip!r} is no clip's name", hint="clips are named as their folders are: 01, 02 …")
        folder = table.parent / "test_masks" / clip
        pictures = numbered_pictures(folder) if folder.is_dir() else []
        if pictures and len(pictures) != labels.frames:
            raise DocumentError(f"{folder}: has {len(pictures)} masks for {labels.frames} frame labels", hint=_ANEW)
        masks = PictureMasks(tuple(pictures)) if pictures else None
        return VideoTruth(f"test/{clip}", table, lambda: labels, masks=masks)


def read_ranges(script: Path) -> list[tuple[Span, ...]]:
    """The intervals of each clip in a UCSDpedN.m file, as half-open rows.

    Raises:
        DocumentError: a line is something else, or a range runs backwards.
    """
    clips = []
    for number, line in numbered_lines(script):
        if line.startswith("%") or "gt_frame" not in line:
            continue
        match = _RANGES.fullmatch(line)
        if match is None:
            raise bad_line(script, number, f"{line[:80]!r} is not TestVideoFile{{end+1}}.gt_frame = [first:last, …];")
        spans = []
        for part in re.split(r"[\s,;]+", match[1].strip()) if match[1].strip() else []:
            found = _RANGE.fullmatch(part)
            first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
            if not 1 <= first <= last:
                raise bad_line(script, number, f"{part[:40]!r} is no range of frames counted from 1")
            spans.append(Span(first - 1, last))
        clips.append(tuple(spans))
    return clips


def read_label_table(path: Path) -> dict[str, FrameLabels]:
    """The labels a clip of a table of clip, 0-based frame and label, with a row a frame in order.

    Raises:
        DocumentError: the header or a row is something else, or a frame is missing.
    """
    rows = csv.reader(io.StringIO(read_text(path)))
    if next(rows, []) != ["clip", "frame_index0", "label"]:
        raise bad_line(path, 1, "the header is not clip,frame_index0,label")
    clips: dict[str, list[bool]] = {}
    for row in rows:
        if not row:
            continue
        try:
            clip, frame, label = row[0], whole(row[1]), whole(row[2])
        except (ValueError, IndexError):
            raise bad_line(path, rows.line_num, f"{','.join(row)[:80]!r} is not clip,frame,label") from None
        labels = clips.setdefault(clip, [])
        if frame != len(labels):
            raise bad_line(path, rows.line_num, f"clip {clip!r} goes on with frame {frame} instead of {len(labels)}")
        if label not in (0, 1):
            raise bad_line(path, rows.line_num, f"the label is {label}, neither 0 nor 1")
        labels.append(bool(label))
    return {clip: FrameLabels(np.array(labels, np.bool_)) for clip, labels in clips.items()}


def read_clip_list(path: Path) -> dict[int, FrameLabels]:
    """The labels of a JSON object whose keys "0", "1", … number the clips in the order of their names.

    Raises:
        DocumentError: it is something else, or a clip is missing.
    """
    labels = read_json_labels(path)
    if set(labels) != {str(clip) for clip in range(len(labels))}:
        raise DocumentError(
            f"{path}: clips are not numbered 0 to {len(labels) - 1}", hint="key the clips by their place from 0"
        )
    return {clip: FrameLabels(labels[str(clip)]) for clip in range(len(labels))}


def _count(folder: Path) -> int | None:
    return (len(numbered_pictures(folder)) or None) if folder.is_dir() else None
