"""Reads a scan's output and a data set's ground truth (`collect`), and computes metrics (`measure`).

The data of a frame needs six bytes of memory. Each category adds one byte per frame, or five bytes if the scan stored scores
per category. Spans and pixel counts need a little more memory. Masks are read one frame at a time, and are not kept.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vadcli.errors import DocumentError, UsageError
from vadcli.ground_truth import GroundTruth, Matching, Span, VideoTruth
from vadcli.metrics import Bootstrap, Estimate
from vadcli.metrics.event import (
    IOU_LEVELS,
    EventSet,
    SeveritySet,
    detection_recall,
    false_alarms_per_hour,
    onset_error,
    segment_f1,
    severity_kendall,
    severity_spearman,
)
from vadcli.metrics.frame import (
    NORMAL,
    FrameSet,
    category_auc,
    frame_ap,
    frame_ap_macro,
    frame_auc,
    frame_auc_macro,
    frames_of_category,
    pate,
)
from vadcli.metrics.localization import (
    DetectedRegions,
    PixelAccumulator,
    PixelCounts,
    Tracks,
    aupimo,
    aupro,
    mask_iou,
    mask_regions,
    pixel_ap,
    pixel_auc,
    rbdc,
    tbdc,
)
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.masks import MaskTrack, rle_threshold
from vadcli.store.scores import ScoresMetadata, is_partial, read_scores, read_video, shown_s
from vadcli.types import BoolArray, FloatArray, IndexArray, ScoreTable, TimeArray
from vadcli.types.text import how_many

log = logging.getLogger("vadcli")

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class TestSet:
    """A scanned test set with its ground truth.

    Attributes:
        out: output folder of the scan.
        videos: relative paths of the V videos, in the order of the data set.
        truths: the paths of the same videos in the data set.
        detectors: names of the detectors that gave the scores; usually one.
        frames: scores and labels of all N frames.
        categories: for each category (the key), (N,) bool, True for frames that show the category. A frame may show several
            categories or none.
        category_scores: for each category (the key), its stored scores, (N,) float32 in [0, 1]. A category is left out if a
            video has no stored scores for it. Names are compared without regard to upper and lower case.
        events: predicted and true events in seconds.
        pixels: counts of mask pixels; None if the data set has no masks or the scan stored none.
        detected, tracks: detected and true regions; None if the data set has no tracks or the scan stored no masks.
        region_frames: (V,) int64, number of frames of each video; 0 if its regions were not read.
        unscored: videos of the data set that have no scores; empty unless `allow_missing`.
        unknown: scored videos that are not in the data set; empty unless `allow_missing`.
        unmasked: videos for which the data set has masks or regions, but the scan stored no masks.
        masked: videos whose masks were read.
        two_level: videos whose masks are stored as run lengths. Run lengths only show which pixels reach a threshold.
        run_lengths_at: the thresholds of these run lengths, each once, ascending.
        overhang_frames: number of annotated frames after the ends of the videos, in total; they are ignored.
        partial: videos with fewer frames than their container announces.
        damaged: the number of frames that were decoded with errors. The keys are the videos with such frames.
        dataset: the name of the data set.
        severity: scores and severities of the true events; None if the data set states no severity.
    """

    __test__ = False  # pytest must not take this for a test class

    out: Path
    videos: tuple[str, ...]
    truths: tuple[str, ...]
    detectors: tuple[str, ...]
    frames: FrameSet
    categories: Mapping[str, BoolArray]
    events: EventSet
    pixels: PixelCounts | None = None
    detected: DetectedRegions | None = None
    tracks: Tracks | None = None
    region_frames: IndexArray = field(default_factory=lambda: np.empty(0, np.int64))
    unscored: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    unmasked: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    two_level: tuple[str, ...] = ()
    run_lengths_at: tuple[float, ...] = ()
    overhang_frames: int = 0
    partial: tuple[str, ...] = ()
    damaged: Mapping[str, int] = field(default_factory=dict)
    dataset: str = ""
    category_scores: Mapping[str, FloatArray] = field(default_factory=dict)
    severity: SeveritySet | None = None


@dataclass
class _VideoData:
    """The data of the videos that `collect` has read so far; most lists have one entry per video.

    Attributes:
        wanted: the data set's categories in lower case.
        severity: (number of the video, peak score, severity) of each true event.
        boxes: (number of the video, number of the frame, x, y, width, height, score) of each detected region.
        tracks: (number of the video, number of the frame, x, y, width, height, track) of each true region.
    """

    wanted: frozenset[str]
    scores: list[np.ndarray] = field(default_factory=list)
    labels: list[BoolArray] = field(default_factory=list)
    sampled: list[BoolArray] = field(default_factory=list)
    rows: int = 0
    categories: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    category_scores: dict[str, list[FloatArray]] = field(default_factory=dict)
    predicted: list[TimeArray] = field(default_factory=list)
    true: list[TimeArray] = field(default_factory=list)
    severity: list[tuple[int, float, float]] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)
    detectors: dict[str, None] = field(default_factory=dict)
    boxes: list[tuple[float, ...]] = field(default_factory=list)
    tracks: list[tuple[float, ...]] = field(default_factory=list)
    pixels: PixelAccumulator = field(default_factory=PixelAccumulator)
    region_frames: dict[int, int] = field(default_factory=dict)
    masked: list[str] = field(default_factory=list)
    unmasked: list[str] = field(default_factory=list)
    two_level: list[str] = field(default_factory=list)
    run_lengths_at: set[float] = field(default_factory=set)
    overhang_frames: int = 0
    partial: list[str] = field(default_factory=list)
    damaged: dict[str, int] = field(default_factory=dict)


def collect(
    out: Path,
    truth: GroundTruth,
    *,
    allow_missing: bool = False,
    pixels: bool = True,
    pixel_size: Size | None = None,
    events: bool = True,
) -> TestSet:
    """Return the scores, events and masks of a scan together with the ground truth of a data set.

    Args:
        out: output folder of the scan.
        truth: ground truth of the data set.
        allow_missing: True leaves out videos without scores, and scored videos that are not in the data set. False makes both
            an error.
        pixels: True reads the stored masks if the data set has masks or regions.
        pixel_size: height and width to which stored masks and true masks are resized; None keeps the size of the frame.
        events: True reads the predicted events. False reads none, so no video has predicted events.

    Raises:
        UsageError: `out` has no scores, the videos are not those of the data set, or only some videos have masks.
        DocumentError: a file is damaged, or the annotation was made for another version of a video.
    """
    layout = OutputLayout(out)
    stored = {read_video(path): path for path in layout.iter_scores()} if out.is_dir() else {}
    if not stored:
        raise UsageError(f"{out}: has no scores", hint="name the output folder of a scan")
    matching = _matched(truth, stored, layout, allow_missing=allow_missing)
    regional = pixels and any(video_truth.has_regions for video_truth in matching.pairs.values())
    data = _VideoData(frozenset(name.casefold() for video_truth in matching.pairs.values() for name in video_truth.categories))
    for number, (video, video_truth) in enumerate(matching.pairs.items()):
        table, metadata = read_scores(stored[video])
        labels, spans = video_truth.labels(table), video_truth.spans(table)
        _add_video(data, table, metadata, labels, spans, events=layout.events(table.video) if events else None)
        data.overhang_frames += video_truth.overhang_frames(table)
        masks = pixels and video_truth.has_masks
        # Normal videos have no true regions, but their detected regions count as false alarms, so these are read too.
        regions = regional and (video_truth.has_regions or video_truth.is_normal)
        if masks or regions:
            _add_masks(data, layout, table, video_truth, pixel_size, masks=masks, regions_of=number if regions else None)
    if data.masked and data.unmasked and not allow_missing:
        raise UsageError(
            f"{out}: masks are stored for {how_many(len(data.masked), 'video')}, but not for {len(data.unmasked)}, "
            f"for example {data.unmasked[0]!r}",
            hint="scan all videos with --masks and --force, or add --allow-missing to use only the videos that have masks",
        )
    return _test_set(data, out, truth.name, matching)


def _test_set(data: _VideoData, out: Path, dataset: str, matching: Matching) -> TestSet:
    categories = {name: np.zeros(data.rows, np.bool_) for name in data.categories}
    for name, spans in data.categories.items():
        for start, end in spans:
            categories[name][start:end] = True
    category_scores = {name: data.category_scores.get(name.casefold(), []) for name in data.categories}
    video, score, severity = np.array(data.severity, np.float64).reshape(-1, 3).T
    counts = data.pixels.counts()
    boxes, tracks = (np.array(rows, np.float64).reshape(-1, 7) for rows in (data.boxes, data.tracks))
    return TestSet(
        out=out,
        videos=tuple(matching.pairs),
        truths=tuple(video_truth.video for video_truth in matching.pairs.values()),
        detectors=tuple(data.detectors),
        frames=FrameSet.of(data.scores, data.labels, data.sampled),
        categories=categories,
        events=EventSet.of(data.predicted, data.true, data.durations),
        pixels=counts if counts.names else None,
        detected=DetectedRegions(*_places(boxes), boxes[:, 6]) if data.tracks else None,
        tracks=Tracks(*_places(tracks), tracks[:, 6].astype(np.int64)) if data.tracks else None,
        region_frames=np.array([data.region_frames.get(number, 0) for number in range(len(matching.pairs))], np.int64),
        unscored=matching.unscored,
        unknown=matching.unknown,
        unmasked=tuple(data.unmasked),
        masked=tuple(data.masked),
        two_level=tuple(data.two_level),
        run_lengths_at=tuple(sorted(data.run_lengths_at)),
        overhang_frames=data.overhang_frames,
        partial=tuple(data.partial),
        damaged=data.damaged,
        dataset=dataset,
        # A category is left out if one of the videos has no scores for it.
        category_scores={
            name: np.concatenate(scores) for name, scores in category_scores.items() if len(scores) == len(data.scores)
        },
        severity=None if np.isnan(severity).all() else SeveritySet(video.astype(np.int64), score, severity, len(data.true)),
    )


def _places(rows: np.ndarray) -> tuple[IndexArray, IndexArray, np.ndarray]:
    return rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), rows[:, 2:6]


def _matched(truth: GroundTruth, stored: Mapping[str, Path], layout: OutputLayout, *, allow_missing: bool) -> Matching:
    """Return the result of `truth.match`.

    If the match raises an error about a video whose scan failed, the message also says why the scan failed.
    """
    try:
        return truth.match(stored, allow_missing=allow_missing)
    except UsageError as error:
        failed: dict[str, str] = {}
        for path in layout.iter_events():
            with contextlib.suppress(DocumentError):
                document = read_events(path)
                if document.failure:
                    failed[str(document.video["path"])] = document.failure.error
        expected = truth.match([*stored, *failed], allow_missing=True).pairs if failed else {}
        for video, reason in failed.items():
            if video in expected:
                hint = "leave it out with --allow-missing, or scan it again"
                raise UsageError(f"{error.message}; the scan of {video!r} failed: {reason}", hint=hint) from error
        raise


def _add_video(
    data: _VideoData,
    table: ScoreTable,
    metadata: ScoresMetadata,
    labels: BoolArray,
    spans: tuple[Span, ...],
    *,
    events: Path | None,
) -> None:
    """Add the scores, true events and predicted events of a video.

    `events` is the file of the predicted events; None if they are not needed.
    """
    data.scores.append(table.score)
    data.labels.append(labels)
    data.sampled.append(table.sampled)
    data.detectors.setdefault(metadata.detector)
    data.partial += [table.video] if is_partial(table, metadata.video) else []
    if broken := int((~table.decode_ok).sum()):
        data.damaged[table.video] = broken
    for span in spans:
        if span.category is not None:
            data.categories.setdefault(span.category, []).append((data.rows + span.start_frame, data.rows + span.end_frame))
    for number, name in enumerate(table.category_names):
        if table.category_scores is not None and (key := name.casefold()) in data.wanted:
            # Without the copy of this column, the whole table with all other categories would stay in memory.
            data.category_scores.setdefault(key, []).append(table.category_scores[:, number].copy())
    data.rows += len(table)
    predicted_events = read_events(events).events if events is not None else ()
    data.predicted.append(np.array([(event.start_s, event.end_s) for event in predicted_events]).reshape(-1, 2))
    duration_s = shown_s(table, metadata.video) if len(table) else 0.0
    edges = np.append(table.timestamp, duration_s)
    true = _true_events(spans)
    rows = np.array([(span.start_frame, span.end_frame) for span in true], np.int64).reshape(-1, 2)
    for span in true:
        peak = float(table.score[span.start_frame : span.end_frame].max())
        data.severity.append((len(data.true), peak, np.nan if span.severity is None else span.severity))
    data.true.append(edges[rows])
    data.durations.append(duration_s)


def _true_events(spans: Sequence[Span]) -> list[Span]:
    """Return the spans ordered by start. Overlapping spans of one category become one span.

    The new span has the highest severity of the spans that it replaces.
    """
    events: list[Span] = []
    newest: dict[str | None, int] = {}
    for span in sorted(spans, key=lambda span: (span.start_frame, span.end_frame)):
        number = newest.get(span.category)
        if number is not None and span.start_frame < events[number].end_frame:
            severities = [severity for severity in (events[number].severity, span.severity) if severity is not None]
            end = max(events[number].end_frame, span.end_frame)
            events[number] = replace(events[number], end_frame=end, severity=max(severities, default=None))
        else:
            newest[span.category] = len(events)
            events.append(span)
    return events


def _add_masks(
    data: _VideoData,
    layout: OutputLayout,
    table: ScoreTable,
    truth: VideoTruth,
    size: Size | None,
    *,
    masks: bool,
    regions_of: int | None,
) -> None:
    """Add the masks of one video.

    A frame without a stored mask gets the mask of the latest sampled frame before it.

    Args:
        data: where the counts and regions are added.
        layout: the output folder of the scan.
        table: the scores of the video.
        truth: the ground truth of the video.
        size: height and width to which masks are resized; None keeps the size of the frame.
        masks: True counts the pixels of the stored masks and of the true masks.
        regions_of: the number of the video, which is stored with its regions; None adds no regions.
    """
    track = MaskTrack(table, layout)
    if track.at(0) is None and not track.problems:
        data.unmasked += [table.video] if len(table) else []
        return
    for row in range(len(table)):
        mask = track.at(row)
        if mask is None or track.problems:
            break
        if masks:
            true = truth.mask(row)
            true = np.zeros(mask.shape, np.bool_) if true is None else true
            if size is None and true.shape != mask.shape:
                theirs, ours = (f"{shape[1]}x{shape[0]}" for shape in (true.shape, mask.shape))
                raise DocumentError(
                    f"{table.video}: the true masks have {theirs} pixels, but the video has {ours}",
                    hint="scan the original videos, or give --pixel-size to resize both",
                )
            resized = _resized(mask, size, Image.Resampling.BILINEAR), _resized(true, size, Image.Resampling.NEAREST)
            data.pixels.add(table.video, *resized)
        if regions_of is not None:
            boxes, peaks = mask_regions(mask)
            data.boxes.extend((regions_of, row, *box, peak) for box, peak in zip(boxes, peaks, strict=True))
    for problem in track.problems:
        raise DocumentError(problem, hint="scan the video again with --masks and --force")
    data.masked.append(table.video)
    if not layout.mask_video(table.video).exists():
        data.two_level.append(table.video)
        data.run_lengths_at.add(rle_threshold(layout.mask_rle(table.video)))
    if regions_of is not None:
        data.tracks.extend((regions_of, region.frame, *region.box, region.track) for region in truth.regions)
        data.region_frames[regions_of] = len(table)


def _resized(picture: np.ndarray, size: Size | None, how: Image.Resampling) -> np.ndarray:
    if size is None or picture.shape == size:
        return picture
    image = Image.fromarray(picture.astype(np.uint8))
    return np.asarray(image.resize((size[1], size[0]), how)).astype(picture.dtype)


Estimates = dict[str, dict[str, Estimate]]
"""Estimates by group of metrics and then by name, for example `estimates["frame"]["auc_micro"]`."""


@dataclass(frozen=True)
class Protocol:
    """The settings of an evaluation that change the values of metrics.

    Attributes:
        endpoints: True adds a normal frame with score 0 and an abnormal frame with score 1, as some published evaluation code
            does.
        only_sampled: True leaves out frames that only repeat the score of a sampled frame.
        pixel_size: height and width to which masks are resized; None for the size of the frames.
        groups: the groups of metrics to compute; empty for all groups.
        bootstrap: settings of the confidence intervals; None for no intervals.
    """

    endpoints: bool = False
    only_sampled: bool = False
    pixel_size: Size | None = None
    groups: tuple[str, ...] = ()
    bootstrap: Bootstrap | None = None

    def wants(self, *groups: str) -> bool:
        """Return True if at least one of the groups in the arguments is computed."""
        return not self.groups or not set(groups).isdisjoint(self.groups)

    def to_json(self) -> dict[str, Any]:
        """Return the protocol as JSON for the report."""
        size = None if self.pixel_size is None else f"{self.pixel_size[0]}x{self.pixel_size[1]}"
        drawn = asdict(self.bootstrap) if self.bootstrap else None
        return {**vars(self), "pixel_size": size, "groups": list(self.groups), "bootstrap": drawn}


def measure(test: TestSet, protocol: Protocol) -> Estimates:
    """Return all metrics of the chosen groups for which the test set has the data.

    Raises:
        UsageError: the user named a group, but the test set has no data for it.
    """
    estimates: Estimates = {}
    for group in protocol.groups or tuple(GROUPS):
        figures = dict(GROUPS[group](test, protocol))
        if figures:
            estimates[group] = figures
        elif protocol.groups and test.unmasked and group in NEEDS_MASKS:
            raise UsageError(f"{test.out}: has no masks for {group} metrics", hint="scan again with --masks video --force")
        elif protocol.groups:
            text = f"--metrics {group}: the ground truth ({test.dataset or test.out}) has no data for this group"
            raise UsageError(text, hint="leave it out of --metrics")
    return estimates


def _frame(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    frames = test.frames.only_sampled() if protocol.only_sampled else test.frames
    for name, figure in FRAME.items():
        yield name, figure(frames, endpoints=protocol.endpoints)


def _pixel(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    if test.pixels is not None:
        for name, figure in PIXEL.items():
            estimate = figure(test.pixels)
            # The IoU only needs to know which pixels reach 0.5. Run lengths with the threshold 0.5 are enough for that.
            exact = name == "mask_iou" and set(test.run_lengths_at) <= {0.5}
            yield name, estimate if exact else _of_levels(estimate, test)


def _region(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    if test.detected is not None and test.tracks is not None:
        yield "rbdc", _of_levels(rbdc(test.detected, test.tracks, test.region_frames), test)
        yield "tbdc", _of_levels(tbdc(test.detected, test.tracks, test.region_frames), test)


def _of_levels(estimate: Estimate, test: TestSet) -> Estimate:
    """Return the estimate. Add a note if stored masks are run lengths.

    A mask that is stored as run lengths has only two different scores.
    """
    if not test.two_level:
        return estimate
    some = "" if len(test.two_level) == len(test.masked) else f" in {len(test.two_level)} of {len(test.masked)} videos"
    note = f"{TWO_LEVELS}{some}: run lengths at {', '.join(f'{threshold:g}' for threshold in test.run_lengths_at)}"
    return replace(estimate, note="; ".join(part for part in (estimate.note, note) if part))


def _event(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    for iou in IOU_LEVELS:
        yield f"f1_iou_{iou:g}", segment_f1(test.events, iou=iou)
    yield "recall", detection_recall(test.events)
    yield "onset_error_s", onset_error(test.events)
    yield "false_alarms_per_hour", false_alarms_per_hour(test.events)


def _range(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    yield "pate", pate(test.frames)


def _category(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    endpoints = protocol.endpoints
    rows = test.frames.sampled if protocol.only_sampled and test.frames.sampled is not None else slice(None)
    frames = test.frames.only_sampled() if protocol.only_sampled else test.frames
    for name, of_category in test.categories.items():
        codes = np.where(of_category[rows], 0, NORMAL)
        variants = {"": frame_auc(frames_of_category(frames, codes, 0), endpoints=endpoints)}
        variants[WITHIN] = category_auc(frames, codes, 0, within=True, endpoints=endpoints)
        if name in test.category_scores:
            own = replace(frames, scores=test.category_scores[name][rows])
            variants[OWN] = category_auc(own, codes, 0, endpoints=endpoints)
            variants[OWN + WITHIN] = category_auc(own, codes, 0, within=True, endpoints=endpoints)
        # A variant's name, such as "fight, within videos", may also be the name of a category. In this case, the variant is
        # left out.
        yield from (
            (name + ending, estimate)
            for ending, estimate in variants.items()
            if not ending or name + ending not in test.categories
        )


def _severity(test: TestSet, protocol: Protocol) -> Iterator[tuple[str, Estimate]]:
    if test.severity is not None:
        yield "spearman", severity_spearman(test.severity)
        yield "kendall", severity_kendall(test.severity)


FRAME: dict[str, Callable[..., Estimate]] = {
    "auc_micro": frame_auc,
    "auc_macro": frame_auc_macro,
    "ap_micro": frame_ap,
    "ap_macro": frame_ap_macro,
}
PIXEL: dict[str, Callable[..., Estimate]] = {
    "auc": pixel_auc,
    "ap": pixel_ap,
    "mask_iou": mask_iou,
    "aupro": aupro,
    "aupimo": aupimo,
}
WITHIN, OWN = ", within videos", ", own score"
"""Endings of the names of metrics, after the category: mean over videos, and computed from the category's own score."""
NEEDS_MASKS = ("pixel", "region")
TWO_LEVELS = "two levels"
GROUPS: dict[str, Callable[[TestSet, Protocol], Iterator[tuple[str, Estimate]]]] = {
    "frame": _frame,
    "pixel": _pixel,
    "region": _region,
    "event": _event,
    "range": _range,
    "category": _category,
    "severity": _severity,
}
"""The functions that compute the groups of metrics. The keys are the names of the groups."""
