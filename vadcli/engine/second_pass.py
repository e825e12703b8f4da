"""Second passes over the spans of events: they find categories and make better masks.

Attribution scores each category alone, in the clips in which an event scores highest. This is needed because the first pass
gives one score for all categories together. That score does not show which category the event belongs to.

Propagation uses the detector's memory to move masks from the sampled frames to the frames between them. Propagation needs every
frame of an event, but the first pass reads only the sampled frames.

Refinement (`--refine-masks`) replaces each blob (connected area) of a mask by the outline that SAM2 finds. Only one frame and
its mask are in memory at a time.

All passes read their frames again after the whole video is scored. Propagation also reads the masks of the sampled frames from
the checkpoint. So the scan keeps no frames in memory for these passes, and a resumed scan gives the same result. A long event
does not need more memory than a short event.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import numpy as np

from vadcli.cutting import event_rows
from vadcli.detectors import Attributor, Propagator
from vadcli.detectors.refining import Refiner, Sam2Refiner, refine_mask
from vadcli.errors import NotFinished
from vadcli.options import ScanOptions, VerifyOptions
from vadcli.store.masks import Spans
from vadcli.types import (
    BoolArray,
    ByteArray,
    Clip,
    ClipBatch,
    ClipNeeds,
    Event,
    FloatArray,
    IndexArray,
    PixelFormat,
    ScoreTable,
    SizeRule,
)
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished, Item, LoaderOptions
from vadcli.video.sampling import SamplingPlan

log = logging.getLogger("vadcli")

PEAK_CLIPS = 2
"""Number of clips that attribution reads again for each event."""
MOST_FRAMES = 32
"""Frames per call of the detector in propagation. In longer spans, each call starts from the last mask of the previous call."""


class Interrupted(Exception):
    """The scan must end before a video's masks are complete. The scores are in the video's checkpoint."""


@dataclass(frozen=True)
class Attribution:
    """Finds the categories of events."""

    detector: Attributor  # scores each category alone
    loader: ClipLoader  # reads the clips around the peaks; no other code may use this loader at the same time

    def fill(
        self,
        events: Sequence[Event],
        table: ScoreTable,
        plan: SamplingPlan,
        request: ClipRequest,
        *,
        frames: int,
    ) -> list[Event]:
        """Add categories to the events of a video, and return the events.

        If the peak of an event can't be read, the event stays as it is.

        Args:
            events: in order, without overlap.
            table: the scores of the video.
            plan: the sampling plan of the video.
            request: a request for the whole video.
            frames: number of frames that the probe counted; the table may have fewer frames.
        """
        names = self.detector.categories
        if len(names) == 1:
            return [_with_category(event, names, np.array([event.peak_score])) for event in events]
        peaks = [peak_clips(event, table, plan) for event in events]
        clips = sorted({clip for chosen in peaks for clip in chosen})
        samples = plan.samples(len(table))
        starts = [min(clip * plan.stride, max(0, samples - plan.frames)) for clip in clips]
        positions = tuple((start + 0.5) / plan.samples(max(frames, len(table))) for start in starts)
        scores: dict[int, _ClipCategories] = {}
        for batch in self._batches(replace(request, bursts=positions, exact=True)):
            of_batch = self.detector.attribute(ClipBatch.of(batch))  # (B, T, C)
            scores.update({clips[clip.index]: _ClipCategories(clip, of_batch[row]) for row, clip in enumerate(batch)})
        return [
            self._named(event, [scores[clip] for clip in chosen if clip in scores], request.path)
            for event, chosen in zip(events, peaks, strict=True)
        ]

    def _named(self, event: Event, peaks: Sequence[_ClipCategories], path: Path) -> Event:
        """Return the event with a score per category: the mean over those `peaks` that have frames of the event."""
        by_clip = [scores for peak in peaks if (scores := peak.within(event)) is not None]
        if not by_clip:
            log.warning(
                "%s: the peak of the event at %.1f s can't be read again: its category is not known", path, event.peak_s
            )
            return event
        return _with_category(event, self.detector.categories, np.mean(by_clip, axis=0))

    def _batches(self, request: ClipRequest) -> Iterator[list[Clip]]:
        """Read the clips of a request, and yield them in batches."""
        batch: list[Clip] = []
        for item in self.loader.run([request]):
            if isinstance(item, ClipReady):
                batch.append(item.clip.owned())
            elif isinstance(item, Finished) and isinstance(item.error, NotFinished):
                raise item.error
            elif isinstance(item, Finished) and item.error is not None:
                log.warning("%s: the categories of some events are not known: %s", request.path, item.error)
            if len(batch) >= self.detector.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


@dataclass(frozen=True)
class _ClipCategories:
    """The scores of a clip's frames, one per category: (T, C)."""

    clip: Clip
    scores: FloatArray

    def within(self, event: Event) -> FloatArray | None:
        """Return the highest score of each category in an event, (C,); None if the clip has no frame of the event.

        The last sampled frame before the event is used, too, because its score is carried forward into the event.
        """
        rows = self.clip.frame_index
        inside = self.clip.valid & (rows > event.start_frame - self.clip.interval) & (rows < event.end_frame)
        return self.scores[inside].max(axis=0) if inside.any() else None


def peak_clips(event: Event, table: ScoreTable, plan: SamplingPlan) -> list[int]:
    """Return the numbers of the PEAK_CLIPS clips in which an event scores highest, the highest first.

    Clips with equal scores are in order of time.
    """
    rows = np.arange(event.start_frame, event.end_frame)
    sampled = rows[table.sampled[event.start_frame : event.end_frame]]
    if not len(sampled):  # a short event between two sampled frames has the score of the sampled frame before it
        sampled = rows[:1]
    clips = np.array([plan.samples(row + 1) - 1 for row in sampled.tolist()]).clip(0) // plan.stride
    numbers = np.unique(clips)
    peaks = np.array([table.score[sampled[clips == number]].max() for number in numbers])
    return [int(number) for number in numbers[np.argsort(-peaks, kind="stable")][:PEAK_CLIPS]]


def _with_category(event: Event, names: Sequence[str], scores: FloatArray) -> Event:
    """Return the event with the category that scores highest. `scores` is (C,), one score per name."""
    listed = {name: round(float(score), 6) for name, score in zip(names, scores, strict=True)}
    return replace(event, category=names[int(np.argmax(scores))], category_scores=listed)


@dataclass(frozen=True)
class MaskSpans:
    """The mask spans of a video.

    A mask span is one sampled frame and all frames before the next sampled frame.
    """

    starts: IndexArray  # (S,) numbers of the sampled frames
    ends: IndexArray  # (S,) number of the frame after the last frame of each span
    propagated: BoolArray  # (S,) True if an event touches the span, and the span is longer than its sampled frame

    @classmethod
    def of(cls, sampled: BoolArray, events: Sequence[Event]) -> MaskSpans:
        """Return the mask spans of a video.

        `sampled` is (N,), True for the sampled frames. The events must be in order, without overlap.
        """
        rows = len(sampled)
        starts = np.flatnonzero(sampled).astype(np.int64)
        ends = np.append(starts[1:], rows).astype(np.int64)[: len(starts)]
        touched = np.append(0, np.cumsum(event_rows(events, rows)))
        return cls(starts, ends, (touched[ends] > touched[starts]) & (ends - starts > 1))

    def spans(self) -> tuple[tuple[int, int], ...]:
        """Return the propagated mask spans as ranges [first, end) of frames. Adjacent ranges are joined."""
        edges = np.diff(self.propagated.astype(np.int8), prepend=0, append=0)
        firsts, lasts = self.starts[np.flatnonzero(edges == 1)], self.ends[np.flatnonzero(edges == -1) - 1]
        return tuple(zip(firsts.tolist(), lasts.tolist(), strict=True))


@dataclass(frozen=True)
class _Span:
    """A mask span that is propagated: frames [first, end), and the stored mask (h, w) of frame `first`."""

    first: int
    end: int
    mask: ByteArray

    def __len__(self) -> int:
        return self.end - self.first


@dataclass(frozen=True)
class _LastFrame:
    """The last frame of a call of the detector, with its mask. The next call starts from this frame."""

    frame: ByteArray
    mask: ByteArray


@dataclass(frozen=True)
class Propagation:
    """Makes a mask for every frame of a video from the masks of the sampled frames."""

    detector: Propagator
    loader: ClipLoader  # reads every frame in clips without overlap; no other code may use this loader at the same time
    stopped: Callable[[], bool] = lambda: False  # returns True when the scan must end
    most_frames: int = MOST_FRAMES  # largest number of frames per call of the detector

    def every_row(
        self,
        mask_spans: MaskSpans,
        masks: Iterable[ByteArray],
        request: ClipRequest,
    ) -> Iterator[tuple[int, ByteArray]]:
        """Yield the number and the mask (h, w) uint8 of each frame, starting at the first sampled frame.

        Frames outside events, and frames that can't be read again, get the mask of the previous frame: the same array, not a
        copy.

        Args:
            mask_spans: the mask spans of the video.
            masks: the masks (h, w) uint8 of the sampled frames, on the detector's scale. They are read one by one.
            request: a request for the whole video.

        Raises:
            Interrupted: the scan must end.
        """
        with _FrameReader(self.loader, replace(request, spans=mask_spans.spans()), self.stopped) as reader:
            group: list[_Span] = []
            columns = (mask_spans.starts.tolist(), mask_spans.ends.tolist(), mask_spans.propagated.tolist())
            for first, end, propagated, mask in zip(*columns, masks, strict=True):
                span = _Span(first, end, mask)
                if group and (not propagated or sum(map(len, group)) + len(span) > self.most_frames):
                    yield from self._propagate(group, reader)
                    group = []
                if propagated:
                    group.append(span)
                else:
                    yield from ((row, mask) for row in range(first, end))
            if group:
                yield from self._propagate(group, reader)

    def _propagate(self, group: list[_Span], reader: _FrameReader) -> Iterator[tuple[int, ByteArray]]:
        """Yield the number and the mask of each frame in a group of adjacent spans.

        The detector gets at most `most_frames` frames per call.
        """
        stored = {span.first: span.mask for span in group}
        rows = range(group[0].first, group[-1].end)
        mask, last = group[0].mask, None
        for start in range(0, len(rows), self.most_frames):
            part = rows[start : start + self.most_frames]
            propagated, last = self._masks(part, reader.of(part), stored, last)
            for row in part:
                mask = stored.get(row, propagated.get(row, mask))
                yield row, mask

    def _masks(
        self, rows: range, readable: dict[int, ByteArray], stored: dict[int, ByteArray], last: _LastFrame | None
    ) -> tuple[dict[int, ByteArray], _LastFrame | None]:
        """Call the detector once. Return the masks of the frames, and the frame that starts the next call.

        A frame that can't be read gets no mask. If a sampled frame can't be read, the frames up to the next sampled frame also
        get no masks.

        Args:
            rows: the rows of this call.
            readable: the frames that could be read, by row.
            stored: the stored masks of the sampled frames, by row.
            last: the last frame of the previous call; None if this call needs no earlier frame.
        """
        frames = [last.frame] if last else []
        start_masks = {0: last.mask} if last else {}  # the masks that the detector starts from, by place in `frames`
        places: dict[int, int] = {}  # the place of each row in `frames`
        active = last is not None  # True if a mask can be made for the row
        for row in rows:
            if row in stored:
                active = row in readable
                if active:
                    start_masks[len(frames)] = stored[row]
            if active and row in readable:
                places[row] = len(frames)
                frames.append(readable[row])
        if not active and not places:
            return {}, None
        if len(start_masks) == len(frames):
            masks = [start_masks[place] for place in range(len(frames))]
        else:
            scaled = {place: np.divide(mask, 255, dtype=np.float32) for place, mask in start_masks.items()}
            propagated = np.rint(self.detector.propagate(np.stack(frames), scaled) * 255).astype(np.uint8)
            masks = [start_masks.get(place, propagated[place]) for place in range(len(frames))]
        next_start = _LastFrame(frames[-1], masks[-1]) if active else None
        return {row: masks[place] for row, place in places.items()}, next_start


class _FrameReader:
    """Reads the frames of a video, range by range in ascending order. A context manager.

    Each range must be inside a span of the request. If the request has no spans, the video is not opened.
    """

    def __init__(self, loader: ClipLoader, request: ClipRequest, stopped: Callable[[], bool]) -> None:
        self._path = request.path
        requests = [request] if request.spans else []
        self._items = cast(Generator[Item, None, None], loader.run(requests, stopped=stopped))
        self._waiting: deque[tuple[int, ByteArray]] = deque()
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            for item in self._items:
                self._take(item)
        self._items.close()

    def of(self, rows: range) -> dict[int, ByteArray]:
        """Return the frames (H, W, C) uint8 of a range, by frame number, without frames that can't be decoded.

        After this call, frames of earlier ranges can't be requested any more.

        Raises:
            Interrupted: the scan must end.
        """
        while not self._ended and not (self._waiting and self._waiting[-1][0] >= rows[-1]):
            item = next(self._items, None)
            if item is None:  # a loader ends without a `Finished` item only if it was stopped
                raise Interrupted
            self._take(item)
        frames: dict[int, ByteArray] = {}
        while self._waiting and self._waiting[0][0] < rows.stop:
            row, frame = self._waiting.popleft()
            if row in rows:
                frames[row] = frame
        return frames

    def _take(self, item: Item) -> None:
        """Keep the frames of a clip, or log why the reading has ended early."""
        if isinstance(item, ClipReady):
            rows, valid = item.clip.frame_index.tolist(), item.clip.valid.tolist()
            self._waiting.extend(
                (row, frame.copy()) for row, frame, is_valid in zip(rows, item.clip.frames, valid, strict=True) if is_valid
            )
        elif isinstance(item, Finished):
            self._ended = True
            if isinstance(item.error, NotFinished):
                raise item.error
            if item.error is not None:
                log.warning("%s: the masks of some frames are repeated, not propagated: %s", self._path, item.error)


def refiner_of(options: ScanOptions | VerifyOptions) -> Refiner | None:
    """Return the model that refines masks; None if the options do not ask for refined masks.

    Raises:
        WeightsError: the model is not on this machine.
    """
    return Sam2Refiner(device=options.device, precision=options.precision) if options.refine_masks else None


@dataclass(frozen=True)
class Refinement:
    """Refines the masks of videos."""

    refiner: Refiner  # finds the outlines of blobs
    loader: ClipLoader  # reads single frames; no other code may use this loader at the same time
    stopped: Callable[[], bool] = lambda: False  # returns True when the run must end

    @classmethod
    def of(cls, refiner: Refiner, options: LoaderOptions, stopped: Callable[[], bool]) -> Refinement:
        """Return a refinement with its own decoder process. The caller must close its `loader`."""
        needs = ClipNeeds(
            frames=1, overlap=0, rate_hz=1.0, interval=1, size=SizeRule(refiner.max_area_px), pixel_format=PixelFormat.RGB
        )
        return cls(refiner, ClipLoader(needs, replace(options, workers=1)), stopped)

    def refined(
        self,
        masks: Iterable[tuple[int, ByteArray]],
        rows: IndexArray,
        request: ClipRequest,
        *,
        level: int,
        hidden: BoolArray | None,
    ) -> Iterator[tuple[int, ByteArray]]:
        """Yield all rows of a video that have masks, each with its mask.

        The masks of the given rows are refined.

        If a frame can't be read again, its mask is not changed.

        Args:
            masks: pairs of a row and its mask, (H, W) uint8 pixel scores, in ascending order.
            rows: (R,) the rows to refine, in ascending order.
            request: the video to read. Its spans must contain these rows (see `spans_of`).
            level: lowest pixel score of a blob.
            hidden: (H, W) bool, True for hidden pixels; None if no pixel is hidden.

        Raises:
            Interrupted: the run must end.
        """
        with closing(self._frames(set(rows.tolist()), request)) as frames:
            ahead = next(frames, None)
            for row, mask in masks:
                while ahead is not None and ahead[0] < row:
                    ahead = next(frames, None)
                if ahead is None or ahead[0] != row:
                    yield row, mask
                    continue
                segment = partial(self.refiner.segment, ahead[1], width=mask.shape[1], height=mask.shape[0])
                refined = refine_mask(mask, level, segment)
                yield row, refined if hidden is None else np.where(hidden, np.uint8(0), refined)

    def _frames(self, rows: set[int], request: ClipRequest) -> Generator[tuple[int, ByteArray], None, None]:
        """Yield each row whose frame can be decoded, with this frame (H, W, 3) uint8.

        The frame may be used only until the next row is requested.
        """
        if not rows:
            return
        self.refiner.prepare()
        with closing(self.loader.run([request], stopped=self.stopped)) as items:  # type: ignore[type-var]
            for item in items:
                if isinstance(item, ClipReady):
                    row = int(item.clip.frame_index[0])
                    if row in rows and item.clip.valid[0]:
                        yield row, item.clip.frames[0]
                elif isinstance(item, Finished):
                    if isinstance(item.error, NotFinished):
                        raise item.error
                    if item.error is not None:
                        log.warning("%s: some masks are not refined: %s", item.video, item.error)
                    return
        raise Interrupted  # a loader ends without a `Finished` item only if it was stopped


def rows_of(masked: IndexArray, spans: Spans, frames: int) -> IndexArray:
    """Return the rows whose masks are shown in the given spans.

    The mask of a row is also shown in the following rows, until the next row that has a mask.

    Args:
        masked: (S,) the rows that have a mask, in ascending order.
        spans: ranges [first, end) of rows.
        frames: number of frames of the video.
    """
    inside = np.zeros(frames + 1, np.int64)
    for first, end in spans:
        inside[first + 1 : end + 1] = 1
    before = np.cumsum(inside)
    ends = np.append(masked[1:], frames)[: len(masked)]
    return np.asarray(masked[before[ends] > before[masked]])


def spans_of(rows: IndexArray, spans: Spans, *, may_seek: bool) -> Spans:
    """Return the ranges [first, end) of a video that must be read to get the given rows.

    Each span with at least one of these rows gives one range. If the reader can't seek, one range contains all rows.

    Args:
        rows: (R,) the rows that are needed, in ascending order.
        spans: the spans of events, in order, without overlap.
        may_seek: False if the reader must decode from the start of the file.
    """
    if not len(rows):
        return ()
    places = np.searchsorted([end for _, end in spans], rows, "right") if may_seek else np.zeros(len(rows), np.int64)
    parts = np.split(rows, np.flatnonzero(np.diff(places)) + 1)
    return tuple((int(part[0]), int(part[-1]) + 1) for part in parts)
