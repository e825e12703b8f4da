"""Reads chosen clips of videos and asks a model about them. Other frames of the videos are not read.

Answers are also written while a video is in progress, so that few answers are lost if the run is killed. While a run has the
lock of a video, no scan and no other run works on this video.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np

from vadcli.detectors import check_device
from vadcli.detectors.ask import Asker, Question, QwenAsker
from vadcli.engine.event_rules import ClipGrid
from vadcli.options.results import VerifyOptions
from vadcli.registry import ASKERS
from vadcli.store import OutputLayout
from vadcli.store.atomic import Claim, Scratch
from vadcli.store.verification import Answers, StoredAnswers, write_answers
from vadcli.types import NO_REGIONS, BoolArray, ByteArray, FloatArray, IndexArray, Regions
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished, Item
from vadcli.video.sampling import fill_sources

OnAnswers = Callable[[int, float], None]
"""Called with the number of clips that were answered, and the seconds that the model took for them."""


def asker_of(options: VerifyOptions) -> Asker:
    """Return the model of `--model`: a folder, or a name that this or another package has registered.

    Raises:
        UsageError: the name or folder does not exist.
        DeviceError, WeightsError: the device or the weights are missing or unsuitable.
    """
    check_device(options.device)
    load = ASKERS.load(options.model) if options.model in ASKERS else QwenAsker
    asker: Asker = load(
        options.model,
        device=options.device,
        precision=options.precision,
        compression=options.compression,
        batch_size=options.batch_size,
    )
    return asker


@dataclass
class VideoJob:
    """A video with the clips to read.

    Attributes:
        path, fps: the path of the video, and its frame rate if the video is a folder of images.
        grid: all clips of the video.
        clips: (W,) int64, ascending numbers of the clips to read.
        unproposed: (C,) bool, True for the clips that the scan did not propose, because other clips of the camera have higher
            scores.
        stored: the answers so far.
        claim: the lock of the video; None if the video is not being read.
        regions: the hidden parts of the picture.
        may_seek: False if the reader must decode from the start of the file. If so, all frames from the first to the last clip
            are read.
        error: why some clips can't be read; "" if all clips can be read.
        answered: number of clips that have an answer from this run.
        waiting: number of clips that were read and have no answer yet.
        is_read: True if no more clips will be read.
        fresh: (number of a clip, answers about this clip) for each clip whose answers are not in `stored` yet.
        written_at: when `stored` was last written, as `time.monotonic()`.
    """

    video: str
    path: Path
    grid: ClipGrid
    clips: IndexArray
    unproposed: BoolArray
    stored: StoredAnswers
    fps: float | None = None
    claim: Claim | None = None
    regions: Regions = NO_REGIONS
    may_seek: bool = True
    error: str = ""
    answered: int = 0
    waiting: int = 0
    is_read: bool = False
    fresh: list[tuple[int, FloatArray]] = field(default_factory=list)
    written_at: float = field(default_factory=time.monotonic)

    @property
    def is_complete(self) -> bool:
        """True if every clip that could be read is answered."""
        return self.is_read and not self.waiting

    def request(self) -> ClipRequest:
        """Return the loader's request for the frames of the clips."""
        rows = np.unique(self.grid.rows[self.clips])
        breaks = np.flatnonzero(np.diff(rows) > self.grid.interval) + 1
        parts = np.split(rows, breaks) if self.may_seek else [rows]
        spans = tuple((int(part[0]), int(part[-1]) + 1) for part in parts)
        return ClipRequest(self.video, self.path, fps=self.fps, spans=spans, regions=self.regions)


ReadClip = tuple[VideoJob, int, ByteArray]
"""A video, the number of a clip, and its frames (T, H, W, 3) uint8."""


def read_clips(
    loader: ClipLoader, jobs: Iterable[VideoJob], *, stopped: Callable[[], bool] = lambda: False
) -> Iterator[ReadClip | VideoJob]:
    """Yield the clips of each job in order, and then the job.

    Several jobs are read at the same time, so their clips are mixed.

    A lost frame is replaced as in a scan. A clip without any frame is left out.

    Args:
        loader: reads single frames.
        jobs: the videos to read; the next job is taken when a decoder process is idle.
        stopped: returns True when reading must end. After it has returned True, jobs with unread clips are not yielded.
    """
    open_jobs: dict[str, tuple[VideoJob, deque[int], dict[int, ByteArray]]] = {}

    def requests() -> Iterator[ClipRequest]:
        """Yield the request of each video, and note which clips it asks for."""
        for job in jobs:
            open_jobs[job.video] = job, deque(job.clips.tolist()), {}
            yield job.request()

    with closing(cast(Generator[Item, None, None], loader.run(requests(), stopped=stopped))) as items:
        for item in items:
            if item.video not in open_jobs:
                continue
            job, waiting, frames = open_jobs[item.video]
            if isinstance(item, ClipReady):
                row = int(item.clip.frame_index[0])
                if item.clip.valid[0]:
                    frames[row] = item.clip.frames[0].copy()
                yield from _ready(job, waiting, frames, before=row + 1)
            elif isinstance(item, Finished):
                yield from _ready(job, waiting, frames, before=int(job.grid.rows[-1, -1]) + 1)
                job.error = str(item.error) if item.error is not None else ""
                job.is_read = True
                del open_jobs[item.video]
                yield job


def _ready(job: VideoJob, waiting: deque[int], frames: dict[int, ByteArray], *, before: int) -> Iterator[ReadClip]:
    """Yield the waiting clips that end before row `before`. Remove the frames that no later clip needs.

    Args:
        job: the video.
        waiting: the numbers of the clips that were not yielded yet; yielded clips are removed.
        frames: the frames that were read, by row.
        before: all rows before this row were read or lost.
    """
    while waiting and job.grid.rows[waiting[0], -1] < before:
        clip = waiting.popleft()
        rows = job.grid.rows[clip].tolist()
        sources = fill_sources(np.array([row not in frames for row in rows]))
        if sources[0] >= 0:
            yield job, clip, np.stack([frames[rows[source]] for source in sources])
    first = int(job.grid.rows[waiting[0], 0]) if waiting else before
    for row in [row for row in frames if row < first]:
        del frames[row]


class Interview:
    """Asks a model about clips and stores its answers.

    Args:
        asker: the model.
        questions: the questions, one per category.
        layout, scratch: where the answers are stored.
        checkpoint_s: seconds between two writes of the answers about a video in progress.
        on_answers: called after each batch of answers.
    """

    def __init__(
        self,
        asker: Asker,
        questions: Sequence[Question],
        layout: OutputLayout,
        scratch: Scratch,
        *,
        checkpoint_s: float,
        on_answers: OnAnswers,
    ) -> None:
        self._asker, self._questions = asker, tuple(questions)
        self._layout, self._scratch, self._checkpoint_s, self._on_answers = layout, scratch, checkpoint_s, on_answers
        # Clips that wait until their batch is full. All clips of a batch have the same shape, and get the same questions.
        self._incomplete: dict[tuple[object, ...], list[ReadClip]] = {}
        # The batches that the model works on: their clips, the indices of their questions, and the answers.
        self._running: deque[tuple[list[ReadClip], list[int], Future[tuple[FloatArray, float]]]] = deque()

    def ask(self, items: Iterator[ReadClip | VideoJob]) -> Iterator[VideoJob]:
        """Ask about each clip, in batches that mix videos.

        Yield each video when all answers about it are stored.

        Raises:
            OutputError: answers cannot be written.
        """
        jobs: dict[str, VideoJob] = {}
        try:
            with ThreadPoolExecutor(self._asker.parallel) as pool:
                for item in items:
                    job = item if isinstance(item, VideoJob) else item[0]
                    jobs[job.video] = job
                    if not isinstance(item, VideoJob):
                        job, clip, frames = item
                        key = (frames.shape, *self._missing(job, clip))
                        self._incomplete.setdefault(key, []).append(item)
                        job.waiting += 1
                        if len(self._incomplete[key]) >= self._asker.batch_size:
                            self._submit(key, pool)
                    yield from self._finished(jobs)
                for key in list(self._incomplete):
                    self._submit(key, pool)
                while self._running:
                    self._take()
                yield from self._finished(jobs)
        finally:  # the run may have been stopped in the middle of a video
            for job in jobs.values():
                self._store(job)

    def describe(self, items: Iterator[ReadClip | VideoJob]) -> Iterator[VideoJob]:
        """Let the model write a sentence about each clip. Yield each video when all its sentences are stored.

        Raises:
            OutputError: the sentences cannot be written.
        """
        jobs: dict[str, VideoJob] = {}
        try:
            for item in items:
                if isinstance(item, VideoJob):
                    jobs.pop(item.video, None)
                    self._write(item)
                    yield item
                    continue
                job, clip, frames = item
                jobs[job.video] = job
                sentence = " ".join(self._asker.describe(frames).split())
                descriptions = {**job.stored.metadata.descriptions, str(clip): sentence}
                job.stored = replace(job.stored, metadata=replace(job.stored.metadata, descriptions=descriptions))
                if time.monotonic() - job.written_at >= self._checkpoint_s:
                    self._write(job)
        finally:  # the run may have been stopped in the middle of a video
            for job in jobs.values():
                self._write(job)

    def _store(self, job: VideoJob) -> None:
        """Add the new answers about a video to the file of the video's answers."""
        if not job.fresh:
            return
        clips = np.array([clip for clip, _ in job.fresh], np.int64)
        odds, order = np.stack([odds for _, odds in job.fresh]), np.argsort(clips)
        clips, grid = clips[order], job.grid
        new = Answers(clips, grid.start[clips], grid.end[clips], job.unproposed[clips], odds[order])
        job.stored = replace(job.stored, answers=job.stored.answers.joined(new))
        job.fresh = []
        self._write(job)

    def _write(self, job: VideoJob) -> None:
        job.written_at = time.monotonic()
        with self._scratch.replace(self._layout.answers(job.video)) as path:
            write_answers(path, job.stored)

    def _missing(self, job: VideoJob, clip: int) -> list[int]:
        """Return the indices of the questions that have no answer for a clip."""
        rows = np.flatnonzero(job.stored.answers.clip == clip)
        known = job.stored.of(tuple(question.category for question in self._questions))[rows]  # (0 or 1, C)
        return [place for place in range(len(self._questions)) if not len(known) or np.isnan(known[0, place])]

    def _submit(self, key: tuple[object, ...], pool: ThreadPoolExecutor) -> None:
        """Give a batch to the model. Before that, wait for answers while the model has too many batches."""
        batch, places = self._incomplete.pop(key), cast(list[int], list(key[1:]))
        questions = [self._questions[place] for place in places]
        frames = np.stack([frames for _, _, frames in batch])

        def timed() -> tuple[FloatArray, float]:
            """Return the answers, and how many seconds the model took."""
            started = time.monotonic()
            return self._asker.ask(frames, questions), time.monotonic() - started

        self._running.append((batch, places, pool.submit(timed)))
        while len(self._running) > self._asker.parallel:  # one batch waits, so that the model has work while clips are read
            self._take()

    def _take(self) -> None:
        """Wait for the oldest batch, and add its answers to the jobs."""
        batch, places, running = self._running.popleft()
        answers, seconds = running.result()  # (B, number of questions) log-odds
        self._on_answers(len(batch), seconds)
        for (job, clip, _), of_clip in zip(batch, answers, strict=True):
            names = list(job.stored.metadata.questions)
            columns = [names.index(self._questions[place].category) for place in places]
            odds = np.full(len(names), np.nan, np.float32)
            odds[columns] = of_clip
            job.fresh.append((clip, odds))
            job.waiting, job.answered = job.waiting - 1, job.answered + 1
            if time.monotonic() - job.written_at >= self._checkpoint_s:
                self._store(job)

    def _finished(self, jobs: dict[str, VideoJob]) -> Iterator[VideoJob]:
        """Remove the complete jobs, store their answers, and yield them."""
        for job in [job for job in jobs.values() if job.is_complete]:
            del jobs[job.video]
            self._store(job)
            yield job
