"""UCF-Crime (Sultani et al., CVPR 2018) and XD-Violence (Wu et al., ECCV 2020): one text file of frame intervals.

UCF-Crime's Temporal_Anomaly_Annotation_for_Testing_Videos.txt has a line `video class first last first last` a test video,
-1 where there is no interval. The official Evaluate_Anomaly_Detector.m (WaqasSultani/AnomalyDetectionCVPR2018) sets
GT(max(first, 1) : min(last, frames)) = 1 in MATLAB: frames count from 1 and both ends are inside. A few intervals end one or
two frames past the video (Arson011, Fighting003 and Shooting015, by the frame counts of ekosman's port).

XD-Violence's annotations.txt has a line `video start end start end …` a violent test video. The official list/make_gt.py
(Roc-Ng/XDVioDet) sets gt[start:end] = 1 in Python: frames count from 0 and the end is outside. A normal video has no line
but the label A in its name, the violent ones up to three of B1 fighting, B2 shooting, B4 riot, B5 abuse, B6 car accident and
G explosion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from vadcli.ground_truth.annotation import OVERHANG_FRAMES, FrameIntervals, Span
from vadcli.ground_truth.files import bad_line, first_existing, numbered_lines, whole
from vadcli.ground_truth.matching import stem
from vadcli.ground_truth.truth import GroundTruth, VideoTruth, video_truth

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
"""The file's classes, as the category lists spell them."""
XD_CATEGORIES = {
    "B1": "fighting",
    "B2": "shooting",
    "B4": "riot",
    "B5": "abuse",
    "B6": "car accident",
    "G": "explosion",
}
"""The codes in the names, as the category lists spell them."""
_XD_LABEL = re.compile(r".*_label_(A|[A-Z0-9]+(?:-[A-Z0-9]+)*)", re.DOTALL)


class UCFCrime(GroundTruth):
    """UCF-Crime's 290 test videos; `root` is the annotation file or a folder with it."""

    name = "ucf-crime"

    def read(self) -> Iterable[VideoTruth]:
        """The videos of the file."""
        path = _file(self, _UCF_FILES)
        for number, line in numbered_lines(path):
            video, *rest = line.split()
            kind, numbers = "".join(rest[:1]), rest[1:]
            if kind != "Normal" and kind not in UCF_CATEGORIES:
                raise bad_line(path, number, f"{kind[:40]!r} is no class of UCF-Crime")
            if len(numbers) != 4:
                raise bad_line(path, number, f"has {len(numbers)} frame numbers instead of 4")
            pairs = [pair for pair in _pairs(path, number, numbers) if pair != (-1, -1)]
            if any(not 1 <= first <= last for first, last in pairs):
                raise bad_line(path, number, f"{' '.join(numbers)[:80]} are no intervals: frames count from 1 and forward")
            if (kind == "Normal") != (not pairs):
                raise bad_line(path, number, f"a video of class {kind} has {len(pairs)} intervals")
            category = UCF_CATEGORIES.get(kind)
            spans = tuple(Span(first - 1, last, category) for first, last in pairs)
            annotation = FrameIntervals(spans, slack_frames=OVERHANG_FRAMES)
            yield video_truth(video, path, annotation, categories=[category] if category else [])


class XDViolence(GroundTruth):
    """XD-Violence's 800 test videos; `root` is annotations.txt or a folder with it.

    Of the normal test videos, which no file lists, those count that lie beside the file or in its folders "videos" and
    "test…", and those that were scored.
    """

    name = "xd-violence"

    def read(self) -> Iterable[VideoTruth]:
        """The violent videos of the file, then the normal ones that are found."""
        path = _file(self, ("annotations.txt",))
        for number, line in numbered_lines(path):
            video, *numbers = line.split()
            categories = _xd_categories(path, number, video)
            pairs = _pairs(path, number, numbers)
            if not pairs or any(not 0 <= start < end for start, end in pairs):
                raise bad_line(path, number, f"{' '.join(numbers)[:80]!r} are no intervals: frames count from 0 and forward")
            category = categories[0] if len(categories) == 1 else None
            spans = tuple(Span(start, end, category) for start, end in pairs)
            annotation = FrameIntervals(spans, slack_frames=OVERHANG_FRAMES)
            yield video_truth(stem(video) + ".mp4", path, annotation, categories=categories)
        folder = path.parent
        for place in (folder, folder / "videos", *sorted(folder.glob("[Tt]est*"))):
            for file in sorted(place.glob("*_label_A.mp4")):
                yield video_truth(file.relative_to(folder).as_posix(), folder, FrameIntervals(()))

    def implied(self, scored: str) -> VideoTruth | None:
        """Normal where the name says label A."""
        return video_truth(scored, self.root, FrameIntervals(())) if stem(scored).endswith("_label_A") else None


def _file(truth: GroundTruth, candidates: Sequence[str]) -> Path:
    if truth.root.is_file():
        return truth.root
    return first_existing(truth.root, candidates, name=truth.name, wanted=candidates[0])


def _pairs(path: Path, number: int, texts: Sequence[str]) -> list[tuple[int, int]]:
    try:
        values = [whole(text) for text in texts]
    except ValueError as error:
        raise bad_line(path, number, str(error)[:120]) from None
    if len(values) % 2:
        raise bad_line(path, number, f"has {len(values)} frame numbers, which make no pairs")
    return list(zip(values[::2], values[1::2], strict=True))


def _xd_categories(path: Path, number: int, video: str) -> tuple[str, ...]:
    match = _XD_LABEL.fullmatch(stem(video))
    codes = [code for code in match[1].split("-") if code != "0"] if match else []
    if not codes or any(code not in XD_CATEGORIES for code in codes):
        raise bad_line(path, number, f"{video[-60:]!r} doesn't end in the labels of a violent video, as _label_B1-0-0 does")
    return tuple(XD_CATEGORIES[code] for code in codes)
