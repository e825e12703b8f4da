"""The steps of a verification that read videos: ask, refine masks and describe.

The steps run on this machine or on a Ray cluster. Each step writes its results to OUT. If a step fails for a video, the reason
is stored in `Surveyed.problem`.

On a cluster (`vadcli verify --runner ray`), a worker gets the survey of a few videos, asks its own model, and writes the
answers to OUT. Only the process of the command chooses clips, calibrates the model and makes events, because this needs all
videos of a camera.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from vadcli.detectors.ask import Asker, Question
from vadcli.detectors.refining import Refiner
from vadcli.engine.event_rules import ClipGrid
from vadcli.engine.job import check_unchanged
from vadcli.engine.plan import WorkUnit
from vadcli.engine.ray_cluster import Chunk, Workers
from vadcli.engine.ray_runner import MOST_DEATHS, GivenUp, Worklist, drive, started_workers
from vadcli.engine.runner import Stop
from vadcli.engine.second_pass import Interrupted, Refinement, refiner_of, rows_of, spans_of
from vadcli.errors import DocumentError, VadcliError, VideoError
from vadcli.options import parse_duration
from vadcli.options.results import VerifyOptions
from vadcli.store import OutputLayout
from vadcli.store.atomic import Claim, Scratch
from vadcli.store.events import FootageFolders
from vadcli.store.masks import MaskFiles, MaskTrack, Spans, masked_rows, refined_spans, rle_rows, rle_threshold
from vadcli.store.scores import read_scores, shown_s
from vadcli.types import Answer, ByteArray, IndexArray, MaskRows, VideoInfo
from vadcli.types.text import how_many, is_remote, without_name
from vadcli.verifying.asking import Interview, OnAnswers, ReadClip, VideoJob, asker_of, read_clips
from vadcli.verifying.survey import IN_USE, Choice, Survey, Surveyed, clip_needs
from vadcli.video.loader import ClipLoader, ClipRequest, loader_options
from vadcli.video.sampling import can_seek

log = logging.getLogger("vadcli")

NO_CLIPS = np.zeros(0, np.int64)

Wanted = Sequence[IndexArray]
"""The work of a step: the numbers of the clips or rows to read, one array per video of the survey."""


class Step(StrEnum):
    """A step of a verification."""

    ASK = "ask"  # `Wanted` has the numbers of the clips to ask about
    REFINE = "refine"  # `Wanted` has the rows whose masks are refined
    DESCRIBE = "describe"  # `Wanted` has the numbers of the clips to describe


class StepRunner(Protocol):
    """Does the steps of a verification, on this machine or on a cluster."""

    def do(self, step: Step, wanted: Wanted) -> None:
        """Do a step for all videos of the survey. `Step` explains what `wanted` contains.

        Raises:
            DeviceError, WeightsError: a model can't be loaded.
            OutputError: OUT can't be written.
        """
        ...


@dataclass(frozen=True)
class LocalSteps:
    """Does the steps on this machine.

    Attributes:
        survey: the videos, and the model to ask.
        options: the options of the command.
        refiner: refines masks; None if the options do not ask for it.
        scratch: the folder for unfinished files.
        stop: ends the steps early.
        on_answers: called after each batch of answers.
    """

    survey: Survey
    options: VerifyOptions
    refiner: Refiner | None
    scratch: Scratch
    stop: Stop
    on_answers: OnAnswers

    def do(self, step: Step, wanted: Wanted) -> None:
        """See `StepRunner`."""
        survey = self.survey
        if step is Step.REFINE:
            self._refine(wanted)
            return
        survey.asker.prepare()
        checkpoint_s = parse_duration(self.options.checkpoint_every, "checkpoint_every")
        interview = Interview(
            survey.asker, survey.questions, survey.layout, self.scratch, checkpoint_s=checkpoint_s, on_answers=self.on_answers
        )
        self._read(wanted, interview.describe if step is Step.DESCRIBE else interview.ask)

    def _read(self, wanted: Wanted, use: Callable[[Iterator[ReadClip | VideoJob]], Iterator[VideoJob]]) -> None:
        """Read the wanted clips of each video, and pass them to `use`, which yields the complete videos."""
        surveyed = {video.video: video for video in self.survey.videos}
        taken: list[VideoJob] = []
        needs = replace(self.survey.needs, frames=1, overlap=0)  # frames are read one by one, because clips overlap
        with ClipLoader(needs, loader_options(self.options)) as loader:
            try:
                for job in use(read_clips(loader, self._jobs(wanted, taken), stopped=self.stop)):
                    surveyed[job.video].problem = without_name(job.error, job.video)
                    log.info("%s: %s read", job.video, how_many(len(job.clips), "clip"))
                    _release(job)
            finally:
                for job in taken:
                    surveyed[job.video].asked += job.answered
                    _release(job)

    def _refine(self, wanted: Wanted) -> None:
        """Refine the masks of confirmed events."""
        assert self.refiner is not None
        surveyed = {video.video: video for video in self.survey.videos}
        refinement = Refinement.of(self.refiner, loader_options(self.options), self.stop)
        with refinement.loader, suppress(Interrupted), closing(self._jobs(wanted, [])) as jobs:
            for job in jobs:
                try:
                    refine_stored(self.survey.layout, self.scratch, surveyed[job.video], job, refinement)
                except (DocumentError, VideoError) as error:
                    surveyed[job.video].problem = without_name(str(error), job.video)
                except (VadcliError, Interrupted, OSError):  # the video is not the cause: the next video would fail, too
                    raise
                except Exception as error:
                    log.debug("%s: the masks can't be refined", job.video, exc_info=True)
                    words = " ".join(str(error).split())
                    surveyed[job.video].problem = f"its masks stay as they were: {type(error).__name__}: {words}"
                finally:
                    _release(job)

    def _jobs(self, wanted: Wanted, taken: list[VideoJob]) -> Generator[VideoJob, None, None]:
        """Lock and yield the videos to read, and add them to `taken`.

        A video that cannot be read gets a `problem`.
        """
        folders = FootageFolders(self.survey.layout, self.options.footage)
        for video, clips, choice in zip(self.survey.videos, wanted, self.survey.choices, strict=True):
            if not len(clips):
                continue
            claim = Claim.acquire(self.survey.layout.checkpoint(video.video))
            if claim is None:
                video.problem = IN_USE
                continue
            try:
                path = folders.find(video.document)
                if path is None:
                    raise VideoError("not found", hint="if the footage has moved, name its folder with --footage")
                check_unchanged(video.document, path)
                table, metadata = read_scores(self.survey.layout.scores(video.video))
                info = VideoInfo.from_json(metadata.video, path, table.pts)
                job = VideoJob(
                    video=video.video,
                    path=path,
                    grid=ClipGrid.of(video.plan, table.timestamp, shown_s(table, metadata.video)),
                    clips=clips,
                    unproposed=~choice.proposed,
                    stored=self.survey.usable(video),
                    fps=info.fps if path.is_dir() else None,
                    claim=claim,
                    regions=video.document.regions,
                    may_seek=path.is_dir() or can_seek(info),
                )
            except (DocumentError, VideoError) as error:
                video.problem = without_name(str(error), video.video)
                claim.release(delete=False)
                continue
            taken.append(job)
            yield job


def has_masks(layout: OutputLayout, video: str) -> bool:
    """True if masks of the video are stored."""
    return layout.mask_video(video).exists() or layout.mask_rle(video).exists()


def unrefined_rows(layout: OutputLayout, video: Surveyed) -> IndexArray:
    """Return the rows of confirmed events whose stored masks are not refined yet."""
    confirmed = _confirmed(video)
    if not confirmed or not has_masks(layout, video.video):
        return np.zeros(0, np.int64)
    table, _ = read_scores(layout.scores(video.video))
    masked, done = _rows(layout, video.video).of(table.sampled), refined_spans(layout, video.video)
    return np.setdiff1d(rows_of(masked, confirmed, len(table)), rows_of(masked, done, len(table)))


def refine_stored(layout: OutputLayout, scratch: Scratch, video: Surveyed, job: VideoJob, refinement: Refinement) -> None:
    """Replace the masks of `unrefined_rows` by refined masks. The caller must have the lock of the video.

    Raises:
        DocumentError: the stored masks cannot be read.
        Interrupted: the run must end; the stored masks stay as they are.
        OutputError: a file cannot be written.
    """
    table, metadata = read_scores(layout.scores(video.video))
    rows, document = unrefined_rows(layout, video), video.document
    as_video, as_rle = layout.mask_video(video.video).exists(), layout.mask_rle(video.video).exists()
    width, height = int(metadata.video["width"]), int(metadata.video["height"])
    masked, fps, level = _rows(layout, video.video), float(metadata.video["fps"]), document.thresholds.mask_level
    files = MaskFiles(
        layout,
        scratch,
        width,
        height,
        fps=fps if masked is MaskRows.EVERY else fps / int(metadata.extra.get("interval", 1)),
        rows=masked,
        threshold=rle_threshold(layout.mask_rle(video.video)) if as_rle else document.thresholds.high,
        as_video=as_video,
        as_rle=as_rle,
        refined=tuple(sorted({*refined_spans(layout, video.video), *_confirmed(video)})),
    )
    request = ClipRequest(
        job.video,
        job.path,
        fps=job.fps,
        spans=spans_of(rows, _confirmed(video), may_seek=job.may_seek),
        regions=job.regions,
    )
    hidden = job.regions.hidden(width, height) if job.regions else None
    masks = _stored(MaskTrack(table, layout), len(table), binary=not as_video)
    files.write(refinement.refined(masks, rows, request, level=level, hidden=hidden), table, level=level)


def _confirmed(video: Surveyed) -> Spans:
    """Return the spans of the confirmed events."""
    return tuple(
        (event.start_frame, event.end_frame)
        for event in video.document.events
        if event.verification is not None and event.verification.answer is Answer.CONFIRMED
    )


def _rows(layout: OutputLayout, video: str) -> MaskRows:
    """Return which rows have a stored mask."""
    path = layout.mask_video(video)
    return masked_rows(path) if path.exists() else rle_rows(layout.mask_rle(video))


def _stored(track: MaskTrack, frames: int, *, binary: bool) -> Iterator[tuple[int, ByteArray]]:
    """Yield each row that has a mask, with its mask.

    In a `binary` mask (from run lengths), the marked pixels get 255, so that they are above every threshold.
    """
    for row, mask in track.between(0, frames):
        yield row, (np.minimum(mask, 1) * np.uint8(255) if binary else mask)
    for problem in track.problems:
        raise DocumentError(problem)


def _release(job: VideoJob) -> None:
    if job.claim is not None:
        job.claim.release(delete=False)
        job.claim = None


class VideoPart(NamedTuple):
    """One video of a `Part`.

    Attributes:
        video: the video.
        choice: the clips that were chosen for the model.
        wanted: the clips or rows for which the step must be done; `Step` explains which of the two.
    """

    video: Surveyed
    choice: Choice
    wanted: IndexArray


@dataclass(frozen=True)
class Part:
    """What a worker of the cluster needs to know to do a step for a few videos."""

    step: Step
    layout: OutputLayout
    questions: tuple[Question, ...]
    videos: tuple[VideoPart, ...]


class Answered(NamedTuple):
    """The number of clips of an answered batch, and the seconds that the model took for the batch."""

    clips: int
    seconds: float


class VideoAsked(NamedTuple):
    """A worker sends this object when it has ended a step for one video."""

    video: str
    asked: int  # number of clips that the worker asked about
    problem: str  # "" if the step did not fail


@dataclass
class VerifyWork:
    """Does a step of a verification for the videos of a `Part`, in a worker of the cluster. See `Work`."""

    options: VerifyOptions
    _models: tuple[Asker, Refiner | None] | None = None

    def do(self, order: Part, stop: Stop, send: Callable[[object], None]) -> None:
        """See `Work`. Passes one `Answered` per batch and one `VideoAsked` per video to `send`."""
        if self._models is None:
            self._models = asker_of(self.options), refiner_of(self.options)
        asker, refiner = self._models
        videos, choices = [part.video for part in order.videos], [part.choice for part in order.videos]
        survey = Survey(order.layout, asker, clip_needs(asker), order.questions, videos, choices)
        # Another worker may have done some of these videos before it died.
        left = [_left(survey, order.step, part) for part in order.videos]
        with Scratch(order.layout.scratch) as scratch:
            crew = LocalSteps(
                survey, self.options, refiner, scratch, stop, lambda clips, seconds: send(Answered(clips, seconds))
            )
            crew.do(order.step, left)
        for part in order.videos:
            asked = len(part.wanted) - len(_left(survey, order.step, part)) if order.step is Step.ASK else 0
            send(VideoAsked(part.video.video, asked, part.video.problem))


def _left(survey: Survey, step: Step, part: VideoPart) -> IndexArray:
    """Return the wanted clips for which a step is not done yet. If the step refines masks, return all wanted rows."""
    if step is Step.REFINE:  # `refine_stored` leaves out refined rows itself
        return part.wanted
    with suppress(DocumentError):  # the step reports answers that can't be read
        if step is Step.ASK:
            return np.intersect1d(part.wanted, survey.missing(part.video, part.choice))
        described = survey.usable(part.video).metadata.descriptions
        return np.array([clip for clip in part.wanted if str(clip) not in described], np.int64)
    return part.wanted


@dataclass
class ClusterSteps:
    """Does the steps on a Ray cluster. Connects to the cluster at the first step.

    The attributes are as in `LocalSteps`.
    """

    survey: Survey
    options: VerifyOptions
    scratch: Scratch
    stop: Stop
    on_answers: OnAnswers
    _stack: ExitStack = field(default_factory=ExitStack)
    _workers: Workers | None = None

    def do(self, step: Step, wanted: Wanted) -> None:
        """See `StepRunner`.

        Raises:
            UsageError: ray is not installed, no cluster answers, or no node can take part.
        """
        parts = {part[0].video: VideoPart(*part) for part in zip(self.survey.videos, self.survey.choices, wanted, strict=True)}
        units = [WorkUnit(video, Path(), "", len(part.wanted), 0) for video, part in parts.items() if len(part.wanted)]
        if not units or self.stop():
            return
        if self._workers is None:
            roots = FootageFolders(self.survey.layout, self.options.footage).roots()
            footage = next((Path(root) for root in roots if is_remote(Path(root)) or os.path.isdir(root)), None)
            self._workers = self._stack.enter_context(
                started_workers(
                    self.options,
                    self.scratch,
                    footage,
                    lambda cpus: VerifyWork(self.options),
                    wants_gpu=self.options.device != "cpu",
                    stop=self.stop,
                )
            )
        workers = self._workers
        work = Worklist(units, units, by_cameras=False, workers=len(workers.slots))

        def order_of(chunk: Chunk) -> Part:
            """Return the work for those videos of a chunk for which the step is not done yet."""
            return Part(step, self.survey.layout, self.survey.questions, tuple(parts[video] for video in chunk.left))

        for item, chunk, node in drive(work, workers, self.stop, order_of):
            if isinstance(item, Answered):
                chunk.has_progress = True
                self.on_answers(*item)
            elif isinstance(item, VideoAsked):
                chunk.left.pop(item.video, None)
                video = parts[item.video].video
                video.asked, video.problem = video.asked + item.asked, item.problem
            elif isinstance(item, GivenUp):
                reason = f"{MOST_DEATHS} workers died while they asked about this video, the last one on node {node.name}"
                parts[item.unit.video].video.problem = reason

    def close(self) -> None:
        """Stop the workers, and disconnect."""
        self._stack.close()
