"""`vadcli verify`: a second, slower model looks only where a scan scored high, and the events are made from both.

A run has three parts: choose clips from all stored scores, ask about those that were not answered yet, and then calibrate the
model for each camera and make the events of every video again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vadcli import __version__
from vadcli.detectors import check_device
from vadcli.detectors.ask.asker import Asker, load_asker
from vadcli.detectors.refining import Refiner
from vadcli.engine.job import check_unchanged
from vadcli.engine.refining import Refinement, refiner_of
from vadcli.engine.runner import Stop
from vadcli.engine.second_pass import Interrupted
from vadcli.engine.verified import ClipGrid, cell_of
from vadcli.errors import DocumentError, UsageError, VideoError
from vadcli.options import effective, parse_duration
from vadcli.options.results import VerifyOptions
from vadcli.registry import ASKERS
from vadcli.store import stored_layout
from vadcli.store.atomic import Claim, Scratch
from vadcli.store.footage import FootageFolders
from vadcli.store.scores import read_scores, shown_s
from vadcli.store.verification import Audit, VerificationRun, write_answers, write_verification
from vadcli.types import Answer, IndexArray, VideoInfo
from vadcli.types.text import how_many, without_name
from vadcli.verifying.asking import Interview, ReadClip, VideoJob, describe, read_clips
from vadcli.verifying.masks import has_masks, refine_stored, unrefined_rows
from vadcli.verifying.proposals import Choice
from vadcli.verifying.settling import ELSEWHERE, Settled, settle
from vadcli.verifying.survey import Survey, Surveyed, limited
from vadcli.video.container import can_seek
from vadcli.video.loader import ClipLoader, loader_options

log = logging.getLogger("vadcli")

Told = Callable[[int, int], None]
NO_CLIPS = np.zeros(0, np.int64)
TRIAL_CLIPS = 2
"""A dry run measures how long the model takes for this many clips of noise."""


@dataclass(frozen=True)
class VerifiedVideo:
    """What became of one video.

    Attributes:
        video: relative path.
        asked: clips that this run asked about, or would ask about if it is a dry run.
        answered: clips with an answer, from this run or an earlier one.
        confirmed, rejected, not_asked: numbers of events.
        problem: why the video could not be verified completely; "" if nothing is wrong.
    """

    video: str
    asked: int = 0
    answered: int = 0
    confirmed: int = 0
    rejected: int = 0
    not_asked: int = 0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object that `vadcli verify --json` prints for a video."""
        return {"type": "verified", **vars(self), "problem": self.problem or None}


@dataclass(frozen=True)
class VerifyResult:
    """What `vadcli verify` has done.

    Attributes:
        videos: one entry per video that can be verified, and per video whose results cannot be read.
        model: the model that was asked.
        audit: what the first stage misses; None if nothing was audited.
        asked: clips that this run asked about.
        left: clips that are still to be asked: all of them after a dry run.
        seconds: how long the model took for `asked`; after a dry run, how long it would take for `left`.
        stopped: why the run ended early; "" if it did not.
        exit_code: that of the command; only confirmed events count as events.
    """

    videos: tuple[VerifiedVideo, ...]
    model: str
    audit: Audit | None
    asked: int
    left: int
    seconds: float
    stopped: str = ""
    exit_code: int = 0

    @property
    def problems(self) -> tuple[str, ...]:
        """One line per video that could not be verified completely."""
        return tuple(f"{one.video}: {one.problem}" for one in self.videos if one.problem)

    @property
    def confirmed(self) -> int:
        """The number of confirmed events."""
        return sum(one.confirmed for one in self.videos)

    @property
    def events(self) -> dict[str, int]:
        """The numbers of confirmed and rejected events, and of those that were not asked about."""
        return {name: sum(getattr(one, name) for one in self.videos) for name in ("confirmed", "rejected", "not_asked")}

    def recorded(self, run: VerificationRun) -> VerificationRun:
        """Returns the record of a run that ends now with this result."""
        return replace(
            run,
            end=datetime.now(UTC).isoformat(),
            exit_code=self.exit_code,
            stopped=self.stopped,
            asked=self.asked,
            left=self.left,
            seconds=round(self.seconds, 3),
            audit=self.audit,
            problems=self.problems,
            **self.events,  # type: ignore[arg-type]
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object that `vadcli verify --json` prints last."""
        return {
            "type": "summary",
            "model": self.model,
            "asked": self.asked,
            "left": self.left,
            "seconds": round(self.seconds, 3),
            **self.events,
            "audit": vars(self.audit) if self.audit else None,
            "problems": len(self.problems),
            "stopped": self.stopped or None,
        }


def verify_stored(out: Path, options: VerifyOptions, **settings: Any) -> VerifyResult:
    """Verify with the models that the options name; otherwise like `verify_all`, with its other arguments."""
    stored_layout(out)  # an unusable folder is found before the models are
    refiner = refiner_of(options)
    return verify_all(out, options, asker_of(options), refiner=refiner, **settings)


def asker_of(options: VerifyOptions) -> Asker:
    """Return the model that `--model` names; another package may have added the name.

    Raises:
        UsageError: the name or folder does not exist.
        DeviceError, WeightsError: the device or the weights are missing or unsuitable.
    """
    check_device(options.device)
    load = ASKERS.load(options.model) if options.model in ASKERS else load_asker
    found: Asker = load(
        options.model,
        device=options.device,
        precision=options.precision,
        compression=options.compression,
        batch_size=options.batch_size,
    )
    return found


def verify_all(
    out: Path,
    options: VerifyOptions,
    asker: Asker,
    *,
    refiner: Refiner | None = None,
    stop: Stop | None = None,
    told: Told = lambda done, expected: None,
    command: Sequence[str] = ("vadcli.verify",),
) -> VerifyResult:
    """Ask the model about the stored videos, make their events again, and write the record of the run.

    Args:
        out: the output folder of a scan.
        options: those of the command.
        asker: the model.
        refiner: refines the masks of confirmed events; None if masks stay as they are.
        stop: ends the run early.
        told: called after each batch, with the clips that were answered and those to ask in all.
        command: the command line, for the record.

    Raises:
        UsageError: the folder does not exist, no video in it has scores or the masks to refine, or the categories cannot be
            read.
        DeviceError, WeightsError: the model cannot be loaded.
        OutputError: OUT cannot be written.
    """
    layout = stored_layout(out)
    survey = Survey.of(layout, options, asker)
    if refiner and not any(has_masks(layout, one.video) for one in survey.videos):
        raise UsageError(f"--refine-masks: {out} has no masks", hint="scan with --masks video, rle or both")
    missing = [survey.missing(video, choice) for video, choice in zip(survey.videos, survey.choices, strict=True)]
    wanted = limited(survey, missing, options.limit)
    if options.dry_run:
        return _estimate(survey, wanted)
    stop = stop or Stop(None if options.max_runtime is None else parse_duration(options.max_runtime, "max_runtime"))
    run = VerificationRun(__version__, tuple(command), effective(options), asker.name, datetime.now(UTC).isoformat())
    with Scratch(layout.scratch) as scratch:
        write_verification(layout, scratch, run)
        result = _verified(_Reading(survey, options, stop), scratch, wanted, refiner=refiner, told=told)
        result = replace(result, left=sum(map(len, missing)) - result.asked, stopped=stop.reason)
        code = options.exit_code(lost=bool(result.problems), events=bool(result.confirmed))
        result = replace(result, exit_code=code if stop.signal is None else 128 + stop.signal)
        write_verification(layout, scratch, result.recorded(run))
    return result


def _verified(
    reading: _Reading, scratch: Scratch, wanted: Sequence[IndexArray], *, refiner: Refiner | None, told: Told
) -> VerifyResult:
    """Ask about the wanted clips, and make the events; the result does not say what is left."""
    survey, options, to_ask = reading.survey, reading.options, sum(map(len, wanted))
    asker, layout = survey.asker, survey.layout
    interview = Interview(
        asker,
        survey.questions,
        layout,
        scratch,
        checkpoint_s=parse_duration(options.checkpoint_every, "checkpoint_every"),
        told=lambda clips: told(clips, to_ask),
    )
    if to_ask:
        asker.prepare()
        log.info("asking %s about %s", asker.name, how_many(to_ask, "clip"))
        reading.run(wanted, interview.ask)
    seconds_per_clip = interview.seconds / max(1, interview.clips)
    settled = settle(survey, scratch, seconds_per_clip=seconds_per_clip)
    if refiner is not None and reading.refine(refiner, scratch):
        settled = settle(survey, scratch, seconds_per_clip=seconds_per_clip)
    if options.describe and (to_describe := _undescribed(survey)) and not reading.stop():
        asker.prepare()
        describing = partial(describe, asker)
        for job in reading.run([to_describe.get(video.video, NO_CLIPS) for video in survey.videos], describing):
            with scratch.replace(layout.answers(job.video)) as path:
                write_answers(path, job.stored)
        settled = settle(survey, scratch, seconds_per_clip=seconds_per_clip)
    return VerifyResult(_videos(survey, settled), asker.name, settled.audit, interview.clips, 0, interview.seconds)


@dataclass(frozen=True)
class _Reading:
    """Reads clips of the surveyed videos; what goes wrong with a video is noted there."""

    survey: Survey
    options: VerifyOptions
    stop: Stop

    def run(
        self, wanted: Sequence[IndexArray], use: Callable[[Iterator[ReadClip | VideoJob]], Iterator[VideoJob]]
    ) -> list[VideoJob]:
        """Read the wanted clips of each video and hand them to `use`; returns the videos that are complete."""
        known = {video.video: video for video in self.survey.videos}
        taken: list[VideoJob] = []
        done = []
        needs = replace(self.survey.needs, frames=1, overlap=0)  # frames are read one by one, because clips overlap
        with ClipLoader(needs, loader_options(self.options)) as loader:
            try:
                for job in use(read_clips(loader, self._jobs(wanted, taken), stopped=self.stop)):
                    known[job.video].problem = without_name(job.error, job.video)
                    log.info("%s: %s read", job.video, how_many(len(job.clips), "clip"))
                    _release(job)
                    done.append(job)
            finally:
                for job in taken:
                    known[job.video].asked += job.answered
                    _release(job)
        return done

    def refine(self, refiner: Refiner, scratch: Scratch) -> bool:
        """Refine the masks of confirmed events; returns True if any masks were replaced."""
        layout, refined = self.survey.layout, False
        wanted = [unrefined_rows(layout, video) if video.is_included else NO_CLIPS for video in self.survey.videos]
        known = {video.video: video for video in self.survey.videos}
        refinement = Refinement.of(refiner, loader_options(self.options), self.stop)
        with refinement.loader, suppress(Interrupted), closing(self._jobs(wanted, [])) as jobs:
            for job in jobs:
                try:
                    refine_stored(layout, scratch, known[job.video], job, refinement)
                    refined = True
                except (DocumentError, VideoError) as error:
                    known[job.video].problem = without_name(str(error), job.video)
                finally:
                    _release(job)
        return refined

    def _jobs(self, wanted: Sequence[IndexArray], taken: list[VideoJob]) -> Generator[VideoJob, None, None]:
        """Yield the videos to read, each with its lock; if a video cannot be read, this becomes its problem."""
        folders = FootageFolders(self.survey.layout, self.options.footage)
        for video, clips, choice in zip(self.survey.videos, wanted, self.survey.choices, strict=True):
            if not len(clips):
                continue
            claim = Claim.acquire(self.survey.layout.checkpoint(video.video))
            if claim is None:
                video.problem = ELSEWHERE
                continue
            try:
                job = self._job(video, clips, choice, folders)
            except (DocumentError, VideoError) as error:
                video.problem = without_name(str(error), video.video)
                claim.release(delete=False)
                continue
            job.claim = claim
            taken.append(job)
            yield job

    def _job(self, video: Surveyed, clips: IndexArray, choice: Choice, folders: FootageFolders) -> VideoJob:
        path = folders.find(video.document)
        if path is None:
            raise VideoError("not found", hint="if the footage has moved, name its folder with --footage")
        check_unchanged(video.document, path)
        table, metadata = read_scores(self.survey.layout.scores(video.video))
        info = VideoInfo.from_json(metadata.video, path, table.pts)
        return VideoJob(
            video=video.video,
            path=path,
            grid=ClipGrid.of(video.plan, table.timestamp, shown_s(table, metadata.video)),
            clips=clips,
            audited=~choice.proposed,
            stored=self.survey.usable(video),
            fps=info.fps if path.is_dir() else None,
            regions=video.document.regions,
            may_seek=path.is_dir() or can_seek(info),
        )


def _release(job: VideoJob) -> None:
    if job.claim is not None:
        job.claim.release(delete=False)
        job.claim = None


def _undescribed(survey: Survey) -> dict[str, IndexArray]:
    """Return by video the clips at the peaks of its confirmed events that have no description."""
    found = {}
    for video in survey.videos:
        events = [event for event in video.document.events if event.verification and event.description is None]
        peaks = [event.peak_s for event in events if event.verification and event.verification.answer is Answer.CONFIRMED]
        if peaks and video.is_included:
            found[video.video] = np.unique(cell_of(video.edges, np.array(peaks)))
    return found


def _estimate(survey: Survey, wanted: Sequence[IndexArray]) -> VerifyResult:
    """Measure how long the model takes for a few clips of noise, and return how long it would take for the wanted clips."""
    asker, left, seconds = survey.asker, sum(map(len, wanted)), 0.0
    if left:
        asker.prepare()
        side = int(asker.max_area_px**0.5)
        clip = np.random.default_rng(0).integers(0, 256, (1, asker.clip_frames, side, side, 3), np.uint8)
        asker.ask(clip, survey.questions)  # the first call is slower than the others
        started = time.monotonic()
        for _ in range(TRIAL_CLIPS):
            asker.ask(clip, survey.questions)
        seconds = left * (time.monotonic() - started) / TRIAL_CLIPS
    problems = [VerifiedVideo(video, problem=problem) for video, problem in survey.problems.items()]
    asked = zip(survey.videos, wanted, strict=True)
    videos = [VerifiedVideo(video.video, len(clips)) for video, clips in asked if video.is_included]
    return VerifyResult((*problems, *videos), asker.name, None, 0, left, seconds)


def _videos(survey: Survey, settled: Settled) -> tuple[VerifiedVideo, ...]:
    problems = [VerifiedVideo(video, problem=problem) for video, problem in survey.problems.items()]
    videos = []
    for one in survey.videos:
        counts = settled.events.get(one.video, {})
        events = {answer.replace(" ", "_"): counts.get(answer, 0) for answer in Answer}
        if one.is_included:
            videos.append(
                VerifiedVideo(one.video, one.asked, settled.answered.get(one.video, 0), **events, problem=one.problem)
            )
    return (*problems, *videos)
