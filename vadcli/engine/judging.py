"""Judges events by a head: removes events that look like rejected events, or makes events from the head's own scores.

It reads stored vectors and decodes no video.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vadcli.cutting import EventBoxes, cut_events
from vadcli.errors import DocumentError, UsageError
from vadcli.heads import Labels
from vadcli.heads.stored import StoredHead, VideoVectors, matching, read_head, read_vectors
from vadcli.options import HeadOptions
from vadcli.store.choices import Choices
from vadcli.types import Event, HeadMark, ScoreTable, Thresholds
from vadcli.types.text import how_many

log = logging.getLogger("vadcli")

HIGH, LOW = 0.5, 0.4
"""An event is kept if its head score is at least HIGH. A head that scores frames opens events at HIGH and closes them at LOW.

The user can replace HIGH by another value. If this value is below LOW, events also close at it.
"""


class Judge:
    """Judges the events of an output folder by a head.

    Args:
        head: the head.
        folders: output folders with vectors, one per encoder of the head.
        high: an event is kept if its head score is at least this.

    Attributes:
        mark: how events documents name the head.
    """

    def __init__(self, head: StoredHead, folders: Sequence[Path], *, high: float = HIGH) -> None:
        self.head, self.folders, self.high = head, tuple(folders), high
        self.mark = HeadMark(head.name, head.card.kind, head.key if high == HIGH else f"{head.key}@{high:g}")
        self._judged: set[str] = set()
        self._refused: Counter[str] = Counter()
        self._said: set[str] = set()

    def events(
        self,
        video: str,
        table: ScoreTable,
        events: list[Event],
        thresholds: Thresholds,
        *,
        duration_s: float,
        boxes: EventBoxes | None = None,
    ) -> list[Event]:
        """Return the events of a video that the head keeps or makes. If the vectors can't be read, return `events` unchanged.

        Args:
            video: the name of the video.
            table: the detector's scores.
            events: the detector's events.
            thresholds: the thresholds of the detector's events.
            duration_s: end of the video.
            boxes: mask boxes.
        """
        vectors = self._vectors(video)
        if vectors is None:
            self._judged.discard(video)
            return events
        self._judged.add(video)
        self._say_if_new(video, vectors)
        if self.head.card.labels is Labels.EVENTS:
            scored = [
                replace(one, head_score=self.head.judge(vectors.of_span(one.start_s, one.end_s, one.peak_score)))
                for one in events
            ]
            return _numbered([one for one in scored if one.head_score is not None and one.head_score >= self.high])
        score = self.head.score(vectors.whole(table))
        rows = np.searchsorted(vectors.frame_index, table.frame_index, "right").clip(1, len(score)) - 1
        own = replace(thresholds, high=self.high, low=min(LOW, self.high))
        found = cut_events(replace(table, score=score[rows]), own, duration_s=duration_s, boxes=boxes)
        return [_with_detector(one, table) for one in found]

    def score_of(self, video: str, start_s: float, end_s: float, peak_score: float) -> float | None:
        """Return the head's score of an event, in [0, 1]; None if the vectors of its video can't be read."""
        vectors = self._vectors(video)
        return None if vectors is None else self.head.judge(vectors.of_span(start_s, end_s, peak_score))

    def mark_of(self, video: str) -> HeadMark | None:
        """Return the mark of the head if it has judged the video, else None."""
        return self.mark if video in self._judged else None

    @property
    def refusal(self) -> str:
        """The reason why no video could be judged, in one line; "" if a video was judged, or if no video was tried."""
        return "" if self._judged or not self._refused else f"head {self.head.name}: {self._refused.most_common(1)[0][0]}"

    def say_refused(self) -> None:
        """Log how many videos could not be judged, one line per reason."""
        for reason, count in self._refused.items():
            log.warning("head %s: %s not judged: %s", self.head.name, how_many(count, "video"), reason)
        self._refused.clear()

    def _vectors(self, video: str) -> VideoVectors | None:
        try:
            found = read_vectors(self.folders, video)
        except DocumentError as error:
            self._refused[error.message] += 1
            return None
        if found is None:
            self._refused["no vectors are stored (vadcli embed stores them)"] += 1
            return None
        reason = matching(self.head.card, found.encoders)
        if reason:
            self._refused[reason] += 1
            return None
        return found

    def _say_if_new(self, video: str, vectors: VideoVectors) -> None:
        """Warn once per camera if the head was not trained on it, or if a video looks unlike the training videos."""
        if vectors.camera in self._said:
            return
        strangeness = self.head.strangeness(vectors.centre())
        if strangeness > 1.0:
            log.warning(
                "head %s: %s looks unlike the videos that it was trained on (%.1f times the expected distance), "
                "so it may judge wrongly: review events of the camera %s and learn again",
                self.head.name,
                video,
                strangeness,
                vectors.camera,
            )
        elif vectors.camera not in self.head.card.cameras:
            log.warning("head %s: was not trained on the camera %s", self.head.name, vectors.camera)
        else:
            return
        self._said.add(vectors.camera)


def judge_of(options: HeadOptions, choices: Choices, *, out: Path, detector: str = "") -> Judge | None:
    """Return the judge that the options or the choices of OUT ask for; None if they name no head.

    Args:
        options: the options of the command. Their head replaces the head of the choices.
        choices: the choices that `vadcli events --write` stored.
        out: the output folder, which has the vectors of the first encoder.
        detector: the detector whose events are judged; "" if there may be several detectors.

    Raises:
        UsageError: the folder of the head does not exist, or the number of folders with vectors is wrong.
        DocumentError, WeightsError: the head can't be read, or has another version.
    """
    folder = options.head or (Path(choices.head) if choices.head else None)
    if folder is None:
        return None
    others = tuple(map(Path, options.embeddings or choices.embeddings))
    head = read_head(folder)
    if len(others) + 1 != len(head.card.encoders):
        names = ", ".join(one.name for one in head.card.encoders)
        raise UsageError(
            f"--head {folder}: reads the vectors of {names}, and {how_many(len(others) + 1, 'folder')} with vectors is given",
            hint="name one folder with --embeddings for each of these encoders except the first",
        )
    if detector and detector != head.card.detector and head.card.labels is Labels.EVENTS:
        log.warning(
            "head %s: was trained on events of the detector %s, and may judge those of %s wrongly",
            head.name,
            head.card.detector,
            detector,
        )
    high = choices.head_threshold if options.head is None else options.head_threshold
    return Judge(head, (out, *others), high=HIGH if high is None else high)


def _numbered(events: Sequence[Event]) -> list[Event]:
    return [replace(event, id=number) for number, event in enumerate(events, 1)]


def _with_detector(event: Event, table: ScoreTable) -> Event:
    """Return an event that the head made, with the detector's scores. The head's peak becomes `head_score`."""
    score = table.score[event.start_frame : event.end_frame]
    peak = int(score.argmax())
    highest = float(score[peak])
    return replace(
        event,
        peak_frame=event.start_frame + peak,
        peak_s=float(table.timestamp[event.start_frame + peak]),
        peak_score=highest,
        mean_score=min(float(score.mean(dtype=np.float64)), highest),
        head_score=event.peak_score,
    )
