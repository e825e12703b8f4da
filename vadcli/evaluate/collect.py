"""A scan's output and a data set's truth, video by video, put into the arrays that metrics read.

Only what metrics need is kept: five bytes a row, spans and counts of pixels. Masks pass through one frame at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vadcli.errors import DocumentError, UsageError
from vadcli.ground_truth import GroundTruth, Span, VideoTruth
from vadcli.metrics import NORMAL, EventSet, FrameSet, PixelAccumulator, PixelCounts, Regions, Tracks, mask_regions
from vadcli.outputs.event_json import read_events
from vadcli.outputs.layout import OutputLayout
from vadcli.outputs.mask_track import MaskTrack
from vadcli.outputs.scores import ScoresMetadata, read_scores
from vadcli.types import BoolArray, ByteArray, IndexArray, ScoreTable, TimeArray

log = logging.getLogger("vadcli")

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class TestSet:
    """A scanned test set and its truth.

    Attributes:
        out: the scan's output folder.
        videos: V relative paths, in the truth's order.
        truths: V names of the truth's videos.
        detectors: names of the detectors that made the scores, usually one.
        frames: scores and labels of all rows.
        codes: (N,) int32, the category of each abnormal row, NORMAL where it has none.
        categories: names by code.
        events: predicted and true events in seconds.
        pixels: counts over masks, None where there is no pixel truth or no stored mask.
        detected, tracks: regions, None where the truth has no tracks or there is no stored mask.
        unscored, unknown: videos on one side alone, where that was allowed.
        overhang_frames: annotated frames past the last row, which count for nothing.
    """

    __test__ = False  # not a test class, whatever its name

    out: Path
    videos: tuple[str, ...]
    truths: tuple[str, ...]
    detectors: tuple[str, ...]
    frames: FrameSet
    codes: IndexArray
    categories: tuple[str, ...]
    events: EventSet
    pixels: PixelCounts | None = None
    detected: Regions | None = None
    tracks: Tracks | None = None
    unscored: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    overhang_frames: int = 0


@dataclass
class _Gathered:
    """What has been read so far, a list entry a video."""

    scores: list[np.ndarray] = field(default_factory=list)
    labels: list[BoolArray] = field(default_factory=list)
    sampled: list[BoolArray] = field(default_factory=list)
    codes: list[IndexArray] = field(default_factory=list)
    predicted: list[TimeArray] = field(default_factory=list)
    true: list[TimeArray] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    detectors: dict[str, None] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    boxes: list[tuple[int, int, tuple[float, ...], float]] = field(default_factory=list)
    tracks: list[tuple[int, int, tuple[int, ...], int]] = field(default_factory=list)
    overhang_frames: int = 0


def collect(
    out: Path, truth: GroundTruth, *, allow_missing: bool = False, pixels: bool = True, pixel_size: Size | None = None
) -> TestSet:
    """Read a scan's output against a data set's truth.

    Args:
        out: the scan's output folder.
        truth: the data set.
        allow_missing: leave out videos that are on one side alone.
        pixels: read stored masks where the truth has masks or regions.
        pixel_size: resize masks and truth to this height and width first; None keeps the frame's own size.

    Raises:
        UsageError: no scan at `out`, or videos that don't match.
        DocumentError: a file is not what it should be, or the truth was made for another cut of a video.
    """
    layout = OutputLayout(out)
    stored = {_video_of(path, layout): path for path in layout.iter_scores()} if out.is_dir() else {}
    if not stored:
        raise UsageError(f"{out}: holds no scores", hint="name the --out folder of a scan")
    matching = truth.match(stored, allow_missing=allow_missing)
    got, accumulator = _Gathered(), PixelAccumulator()
    seen_masks = False
    for number, (video, video_truth) in enumerate(matching.pairs.items()):
        table, metadata = read_scores(stored[video])
        labels, spans = video_truth.labels(table), video_truth.spans(table)
        _add_rows(got, table, metadata, labels, spans)
        _add_events(got, layout, table, metadata, labels)
        got.overhang_frames += video_truth.overhang_frames(table)
        if pixels and (video_truth.has_masks or video_truth.has_regions):
            seen_masks |= _add_masks(got, accumulator, layout, table, video_truth, number=number, size=pixel_size)
    has_tracks = seen_masks and bool(got.tracks)
    return TestSet(
        out=out,
        videos=tuple(matching.pairs),
        truths=tuple(each.video for each in matching.pairs.values()),
        detectors=tuple(got.detectors),
        frames=FrameSet.of(got.scores, got.labels, got.sampled),
        codes=np.concatenate(got.codes) if got.codes else np.empty(0, np.int64),
        categories=tuple(got.names),
        events=EventSet.of(got.predicted, got.true, got.durations),
        pixels=accumulator.counts() if accumulator.counts().names else None,
        detected=_regions(got) if has_tracks else None,
        tracks=_tracks(got) if has_tracks else None,
        unscored=matching.unscored,
        unknown=matching.unknown,
        overhang_frames=got.overhang_frames,
    )


def _video_of(path: Path, layout: OutputLayout) -> str:
    return path.relative_to(layout.out / "scores").as_posix().removesuffix(".parquet")


def _add_rows(got: _Gathered, table: ScoreTable, metadata: ScoresMetadata, labels: BoolArray, spans: tuple[Span, ...]) -> None:
    got.scores.append(table.score)
    got.labels.append(labels)
    got.sampled.append(table.sampled)
    got.detectors.setdefault(metadata.detector)
    codes = np.full(len(table), NORMAL, np.int64)
    for span in spans:
        if span.category is not None:
            codes[span.start_frame : span.end_frame] = got.names.setdefault(span.category, len(got.names))
    got.codes.append(codes)


def _add_events(got: _Gathered, layout: OutputLayout, table: ScoreTable, metadata: ScoresMetadata, labels: BoolArray) -> None:
    document = read_events(layout.events(table.video))
    got.predicted.append(np.array([(event.start_s, event.end_s) for event in document.events]).reshape(-1, 2))
    last_s = float(table.timestamp[-1]) if len(table) else 0.0
    duration_s = max(last_s, float(metadata.video["duration_s"]))
    edges = np.append(table.timestamp, duration_s)
    flags = np.diff(labels.astype(np.int8), prepend=0, append=0)
    got.true.append(np.stack([edges[np.flatnonzero(flags == 1)], edges[np.flatnonzero(flags == -1)]], axis=1))
    got.durations.append(duration_s)


def _add_masks(
    got: _Gathered,
    accumulator: PixelAccumulator,
    layout: OutputLayout,
    table: ScoreTable,
    truth: VideoTruth,
    *,
    number: int,
    size: Size | None,
) -> bool:
    """Count one video's masks row by row, carried ones too; False where none are stored."""
    track = MaskTrack(table, layout)
    for row in range(len(table)):
        mask = track.at(row)
        if mask is None:
            break
        if truth.has_masks:
            scores, wanted = _alike(mask, truth.mask(row), table.video, size)
            accumulator.add(table.video, scores, wanted)
        if truth.has_regions:
            boxes, peaks = mask_regions(mask)
            got.boxes.extend((number, row, tuple(box), float(peak)) for box, peak in zip(boxes, peaks, strict=True))
    else:
        got.tracks.extend((number, region.frame, region.box, region.track) for region in truth.regions)
        return bool(len(table))
    for problem in track.problems:
        raise DocumentError(problem, hint="scan the video again with --masks and --force")
    return False


def _alike(mask: ByteArray, wanted: BoolArray | None, video: str, size: Size | None) -> tuple[ByteArray, BoolArray]:
    """Mask and truth of one frame at one size."""
    if wanted is None:
        wanted = np.zeros(mask.shape, np.bool_)
    if size is None and wanted.shape != mask.shape:
        theirs, ours = (f"{shape[1]}x{shape[0]}" for shape in (wanted.shape, mask.shape))
        raise DocumentError(
            f"{video}: the truth's masks are {theirs} where the video is {ours}",
            hint="scan the original footage, or give --pixel-size to resize both",
        )
    return _resized(mask, size, Image.Resampling.BILINEAR), _resized(wanted, size, Image.Resampling.NEAREST)


def _resized(picture: np.ndarray, size: Size | None, how: Image.Resampling) -> np.ndarray:
    if size is None or picture.shape == size:
        return picture
    image = Image.fromarray(picture.astype(np.uint8))
    return np.asarray(image.resize((size[1], size[0]), how)).astype(picture.dtype)


def _regions(got: _Gathered) -> Regions:
    video, frame, box, score = _columns(got.boxes)
    return Regions(video, frame, box, np.array(score, np.float64))


def _tracks(got: _Gathered) -> Tracks:
    video, frame, box, track = _columns(got.tracks)
    return Tracks(video, frame, box, np.array(track, np.int64))


def _columns(
    rows: list[tuple[int, int, tuple[float, ...], float]] | list[tuple[int, int, tuple[int, ...], int]],
) -> tuple[IndexArray, IndexArray, np.ndarray, list[float]]:
    parts: Iterator[tuple[object, ...]] = zip(*rows, strict=True)
    video, frame, box, last = parts if rows else ((), (), (), ())
    boxes = np.array(box, np.float64).reshape(-1, 4)
    return np.array(video, np.int64), np.array(frame, np.int64), boxes, list(last)  # type: ignore[arg-type]
