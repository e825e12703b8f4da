"""Which category an event shows: a second look at its highest-scoring clips, with each category asked for alone.

The prompt holds all categories at once and gives one score, so the first pass can't say which one it was. Events are few: their
peak clips are read once more, so that this needs no memory while a video runs and gives the same after a resumed scan.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vadcli.detectors.base import Attributor
from vadcli.types import Clip, ClipBatch, Event, FloatArray, ScoreTable
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished
from vadcli.video.sampling import SamplingPlan

log = logging.getLogger("vadcli")

PEAK_CLIPS = 2
"""Clips that are looked at again for each event."""


@dataclass(frozen=True)
class Attribution:
    """Fills in the categories of events.

    Attributes:
        detector: what can tell categories apart.
        loader: reads the peaks; nothing else may use it at the same time.
    """

    detector: Attributor
    loader: ClipLoader

    def fill(
        self, events: Sequence[Event], table: ScoreTable, plan: SamplingPlan, *, path: Path, frames: int, fps: float | None
    ) -> list[Event]:
        """The events of one video with `category` and `category_scores`; without them where the peaks can't be read again.

        Args:
            events: in order, without overlap.
            table: the video's rows.
            plan: of its clips.
            path, fps: where to read it.
            frames: how many its probe counts, which may be more than there are rows.
        """
        names = self.detector.categories
        if len(names) == 1:
            return [_named(event, names, np.array([event.peak_score])) for event in events]
        peaks = [peak_clips(event, table, plan) for event in events]
        clips = sorted({clip for chosen in peaks for clip in chosen})
        samples = plan.samples(len(table))
        starts = [min(clip * plan.stride, max(0, samples - plan.frames)) for clip in clips]
        positions = tuple((start + 0.5) / plan.samples(max(frames, len(table))) for start in starts)
        read = self._read(ClipRequest(str(path), path, fps=fps, bursts=positions, exact=True))
        scores = {clips[number]: found for number, found in read.items()}
        return [
            self._named(event, [scores[clip] for clip in chosen if clip in scores], path)
            for event, chosen in zip(events, peaks, strict=True)
        ]

    def _named(self, event: Event, looks: Sequence[_ClipCategories], path: Path) -> Event:
        """The event with the mean of what its peaks show, where any of them could be read."""
        seen = [scores for look in looks if (scores := look.within(event)) is not None]
        if not seen:
            log.warning(
                "%s: the peak of the event at %.1f s can't be read again: its category is not known", path, event.peak_s
            )
            return event
        return _named(event, self.detector.categories, np.mean(seen, axis=0))

    def _read(self, request: ClipRequest) -> dict[int, _ClipCategories]:
        """Category scores of the request's clips by their number, as far as they can be read."""
        found: dict[int, _ClipCategories] = {}
        for batch in self._batches(request):
            scores = self.detector.attribute(ClipBatch.of(batch))
            found.update({clip.index: _ClipCategories(clip, scores[row]) for row, clip in enumerate(batch)})
        return found

    def _batches(self, request: ClipRequest) -> Iterator[list[Clip]]:
        held: list[Clip] = []
        for item in self.loader.run([request]):
            if isinstance(item, ClipReady):
                held.append(item.clip.owned())
            elif isinstance(item, Finished) and item.error is not None:
                log.warning("%s: the categories of some events are not known: %s", request.path, item.error)
            if len(held) >= self.detector.batch_size:
                yield held
                held = []
        if held:
            yield held


@dataclass(frozen=True)
class _ClipCategories:
    """(T, C) scores of a clip's frames."""

    clip: Clip
    scores: FloatArray

    def within(self, event: Event) -> FloatArray | None:
        """(C,) the highest score of each category in the samples whose score the event shows; None where the clip has none."""
        rows = self.clip.frame_index
        inside = self.clip.valid & (rows > event.start_frame - self.clip.interval) & (rows < event.end_frame)
        return self.scores[inside].max(axis=0) if inside.any() else None


def peak_clips(event: Event, table: ScoreTable, plan: SamplingPlan) -> list[int]:
    """Numbers of the clips in which the event scores highest, the highest first; of equals the earlier."""
    rows = np.arange(event.start_frame, event.end_frame)
    sampled = rows[table.sampled[event.start_frame : event.end_frame]]
    if not len(sampled):  # a short event may lie between two samples: its score is the one before
        sampled = rows[:1]
    clips = sampled // plan.interval // plan.stride
    numbers = np.unique(clips)
    peaks = np.array([table.score[sampled[clips == number]].max() for number in numbers])
    return [int(number) for number in numbers[np.argsort(-peaks, kind="stable")][:PEAK_CLIPS]]


def _named(event: Event, names: Sequence[str], scores: FloatArray) -> Event:
    listed = {name: round(float(score), 6) for name, score in zip(names, scores, strict=True)}
    return replace(event, category=names[int(np.argmax(scores))], category_scores=listed)
