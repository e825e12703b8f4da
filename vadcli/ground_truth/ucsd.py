"""UCSD Ped1 and Ped2 (Mahadevan et al., CVPR 2010): folders of frames, frame ranges as MATLAB text, folders of masks.

In the official archive UCSD_Anomaly_Dataset.v1p2, each of the folders UCSDped1 and UCSDped2 has the frames
Test/TestNNN/NNN.tif (numbered from 001), the masks Test/TestNNN_gt/NNN.bmp (for all clips of Ped2 and 10 of Ped1) and
Test/UCSDpedN.m. The k-th line of this file, `TestVideoFile{end+1}.gt_frame = [61:180];`, belongs to the k-th clip (the README:
"gt_frame indicates frames that contain abnormal events"). MATLAB ranges count from 1 and include both ends: [61:180] are the
frames 60 to 179, counted from 0.
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
    UNPACK,
    ImageMasks,
    bad_line,
    find_existing,
    first_existing,
    numbered_images,
    numbered_lines,
    read_clip_list,
    read_text,
    whole,
)
from vadcli.ground_truth.truth import GroundTruth, VideoTruth, video_truth

_RANGES = re.compile(r"TestVideoFile\{[^}]*\}\.gt_frame\s*=\s*\[([^\]]*)\]\s*;?\s*(%.*)?")
_RANGE = re.compile(r"(\d{1,9})(?::(\d{1,9}))?")


class Ped1(GroundTruth):
    """UCSD Ped1: 36 test clips. `root` is the archive's folder, UCSDped1, its Test folder or the .m file in it."""

    name = "ped1"
    folder = "UCSDped1"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the clips of the .m file."""
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
            text = f"has frame ranges of {expected} clips, but its folder has {len(clips)} clips"
            raise DocumentError(f"{script}: {text}", hint=UNPACK)

    def _clip(self, script: Path, clip: str, intervals: tuple[Span, ...]) -> VideoTruth:
        frames = len(numbered_images(script.parent / clip)) or None
        folder = script.parent / f"{clip}_gt"
        images = numbered_images(folder)
        if images and frames is not None and len(images) != frames:
            raise DocumentError(f"{folder}: has {len(images)} masks for the {frames} frames of {clip}", hint=UNPACK)
        frames = frames or len(images) or None
        last = max((span.end_frame for span in intervals), default=0)
        if frames is not None and last > frames:
            raise DocumentError(f"{script}: {clip} is abnormal up to frame {last}, but has {frames} frames", hint=UNPACK)
        masks = ImageMasks(tuple(images)) if images else None
        return VideoTruth(f"Test/{clip}", script, lambda: FrameIntervals(intervals, frames), masks=masks)


class Ped2(Ped1):
    """UCSD Ped2: 12 test clips.

    `root` is one of these: the archive's folder, UCSDped2, its Test folder or the .m file in it; a folder with frames in
    test/NN, frame_labels.csv (clip, 0-based frame, label) and test_masks/NN/NNN.png; a gt_label.json with one list of labels
    per clip, in which "0" is testing/frames/01 (as published by LiUzHiAn/hf2vad).
    """

    name = "ped2"
    folder = "UCSDped2"

    def read(self) -> Iterable[VideoTruth]:
        """Yield the clips of the layout found under `root`."""
        if self.root.is_file() and self.root.suffix != ".m":
            for number, labels in read_clip_list(self.root).items():
                yield video_truth(f"testing/frames/{number + 1:02d}", self.root, FrameLabels(labels))
        elif (table := find_existing(self.root, ["frame_labels.csv"])) is not None:
            for clip, frame_labels in read_label_table(table).items():
                yield self._labelled_clip(table, clip, frame_labels)
        else:
            yield from self._official()

    def _labelled_clip(self, table: Path, clip: str, labels: FrameLabels) -> VideoTruth:
        if not re.fullmatch(r"[\w-]+", clip):
            hint = "clips have the names of their folders: 01, 02 …"
            raise DocumentError(f"{table}: {clip!r} is not a clip's name", hint=hint)
        folder = table.parent / "test_masks" / clip
        images = numbered_images(folder)
        if images and len(images) != labels.frames:
            raise DocumentError(f"{folder}: has {len(images)} masks for {labels.frames} frame labels", hint=UNPACK)
        masks = ImageMasks(tuple(images)) if images else None
        return VideoTruth(f"test/{clip}", table, lambda: labels, masks=masks)


def read_ranges(script: Path) -> list[tuple[Span, ...]]:
    """Return the intervals of each clip in a UCSDpedN.m file, as half-open ranges of frames.

    Raises:
        DocumentError: a line has another form, or a range ends before it starts.
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
                raise bad_line(script, number, f"{part[:40]!r} is not a range of frames counted from 1")
            spans.append(Span(first - 1, last))
        clips.append(tuple(spans))
    return clips


def read_label_table(path: Path) -> dict[str, FrameLabels]:
    """Return the labels of each clip from a table with one row per frame, in order: clip, 0-based frame, label.

    Raises:
        DocumentError: the header or a row has another form, or a frame is missing.
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
            raise bad_line(path, rows.line_num, f"clip {clip!r} continues with frame {frame} instead of {len(labels)}")
        if label not in (0, 1):
            raise bad_line(path, rows.line_num, f"the label is {label}, neither 0 nor 1")
        labels.append(bool(label))
    return {clip: FrameLabels(np.array(labels, np.bool_)) for clip, labels in clips.items()}
