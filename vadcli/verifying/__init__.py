"""`vadcli verify`: a second, slower model judges the clips with high scores.

A run has three parts. First it chooses clips from the stored scores of all videos. Then it asks the model about the chosen
clips that have no answer yet. At the end it calibrates the model for each camera, and makes the events of every video again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vadcli import __version__
from vadcli.detectors.ask import Asker
from vadcli.detectors.refining import Refiner
from vadcli.engine.event_rules import cell_of
from vadcli.engine.runner import Scan, Stop
from vadcli.engine.second_pass import refiner_of
from vadcli.errors import UsageError
from vadcli.options import ScanOptions, VerifyOptions, effective
from vadcli.store import stored_layout
from vadcli.store.atomic import Scratch
from vadcli.store.verification import Audit, VerificationRun, write_verification
from vadcli.types import Answer, IndexArray
from vadcli.types.text import how_many
from vadcli.verifying.asking import OnAnswers, asker_of
from vadcli.verifying.steps import NO_CLIPS, ClusterSteps, LocalSteps, Step, StepRunner, Wanted, has_masks, unrefined_rows
from vadcli.verifying.survey import Settled, Survey, limited, settle

__all__ = [
    "VerifiedVideo",
    "VerifyResult",
    "asker_of",
    "verification_of",
    "verify_all",
    "verify_options",
    "verify_stored",
]

log = logging.getLogger("vadcli")

TRIAL_CLIPS = 2
"""A dry run measures how long the model takes for this many clips of noise."""


@dataclass(frozen=True)
class VerifiedVideo:
    """The result of a verification for one video.

    Attributes:
        asked: number of clips that this run asked about; after a dry run, number of clips to ask about.
        answered: number of clips with an answer from this run or an earlier run.
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
        """Return the JSON object that `vadcli verify --json` prints for a video."""
        return {"type": "verified", **vars(self), "problem": self.problem or None}


@dataclass(frozen=True)
class VerifyResult:
    """The result of a run of `vadcli verify`.

    Attributes:
        videos: one entry per video of the run. A video whose stored results cannot be read also has an entry.
        model: the model that was asked.
        audit: how much the scan misses; None if no clip was audited.
        asked: number of clips that this run asked about.
        left: number of clips about which the model must still be asked.
        seconds: how long the model took for the `asked` clips. After a dry run: how long it would take for the `left` clips.
        stopped: why the run ended early; "" if it did not end early.
        exit_code: the exit code of the command; only confirmed events count as events.
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
        return tuple(f"{video.video}: {video.problem}" for video in self.videos if video.problem)

    @property
    def confirmed(self) -> int:
        """The number of confirmed events."""
        return sum(video.confirmed for video in self.videos)

    @property
    def events(self) -> dict[str, int]:
        """The number of events per answer: confirmed, rejected, and not asked."""
        return {name: sum(getattr(video, name) for video in self.videos) for name in ("confirmed", "rejected", "not_asked")}

    def recorded(self, run: VerificationRun) -> VerificationRun:
        """Return the record of a run that ends now with this result."""
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
        """Return the JSON object that `vadcli verify --json` prints last."""
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
    """Load the models that the options name, and call `verify_all` with these models and with `settings`."""
    stored_layout(out)  # raises an error for an unusable folder before the models are loaded
    refiner = refiner_of(options)
    return verify_all(out, options, asker_of(options), refiner=refiner, **settings)


def verify_all(
    out: Path,
    options: VerifyOptions,
    asker: Asker,
    *,
    refiner: Refiner | None = None,
    stop: Stop | None = None,
    on_progress: Callable[[int, int], None] = lambda done, expected: None,
    command: Sequence[str] = ("vadcli.verify",),
) -> VerifyResult:
    """Ask a model about the stored videos, make their events again, and write the record of the run.

    Args:
        out: the output folder of the scan.
        options: the options of the command.
        asker: the model to ask.
        refiner: refines the masks of confirmed events; None if masks are not refined.
        stop: ends the run early; by default after --max-runtime.
        on_progress: called after each batch with the number of answered clips and the number of all clips to ask about.
        command: the command line, for the record of the run.

    Raises:
        UsageError: the folder does not exist, no video in the folder has scores, no video has masks for the refiner, or
            the categories cannot be read.
        DeviceError, WeightsError: the model cannot be loaded.
        OutputError: OUT cannot be written.
    """
    layout = stored_layout(out)
    survey = Survey.of(layout, options, asker)
    if refiner and not any(has_masks(layout, video.video) for video in survey.videos):
        raise UsageError(f"--refine-masks: {out} has no masks", hint="scan with --masks video, rle or both")
    missing = [survey.missing(video, choice) for video, choice in zip(survey.videos, survey.choices, strict=True)]
    wanted = limited(survey, missing, options.limit)
    if options.dry_run:
        return _estimate(survey, wanted)
    stop = stop or Stop(options.max_runtime)
    run = VerificationRun(__version__, tuple(command), effective(options), asker.name, datetime.now(UTC).isoformat())
    tally = _Tally(on_progress, sum(map(len, wanted)))
    with (
        Scratch(layout.scratch) as scratch,
        _step_runner(survey, options, refiner=refiner, scratch=scratch, stop=stop, on_answers=tally.add) as runner,
    ):
        write_verification(layout, scratch, run)
        settled = _verified(survey, options, runner, scratch=scratch, stop=stop, wanted=wanted, tally=tally)
        asked = sum(video.asked for video in survey.videos)
        result = VerifyResult(
            (*_unreadable(survey), *_counted(survey, settled)),
            asker.name,
            settled.audit,
            asked,
            left=sum(map(len, missing)) - asked,
            seconds=tally.seconds,
            stopped=stop.reason,
        )
        code = options.exit_code(lost=bool(result.problems), events=bool(result.confirmed))
        result = replace(result, exit_code=code if stop.signal is None else 128 + stop.signal)
        write_verification(layout, scratch, result.recorded(run))
    return result


@contextmanager
def _step_runner(
    survey: Survey, options: VerifyOptions, *, refiner: Refiner | None, scratch: Scratch, stop: Stop, on_answers: OnAnswers
) -> Iterator[StepRunner]:
    """Return the object that does the steps of the run: on this machine, or on a Ray cluster."""
    if options.runner == "local":
        yield LocalSteps(survey, options, refiner, scratch, stop, on_answers)
    elif options.runner == "ray":
        with closing(ClusterSteps(survey, options, scratch, stop, on_answers)) as runner:
            yield runner
    else:
        raise UsageError(f"--runner {options.runner} can't verify", hint="choose local or ray")


@dataclass
class _Tally:
    """Counts the clips that were answered, and reports the progress.

    Attributes:
        on_progress: called with the number of answered clips and with `expected`.
        expected: the number of all clips to ask about.
        clips, seconds: the number of answered clips, and the seconds that the model took for them.
    """

    on_progress: Callable[[int, int], None]
    expected: int
    clips: int = 0
    seconds: float = 0.0

    def add(self, clips: int, seconds: float) -> None:
        """Count a batch of answered clips, and the seconds that the model took for the batch."""
        self.clips, self.seconds = self.clips + clips, self.seconds + seconds
        self.on_progress(min(self.clips, self.expected), self.expected)

    @property
    def seconds_per_clip(self) -> float:
        """The seconds that the model took per clip; 0 if no clip was answered."""
        return self.seconds / max(1, self.clips)


def _verified(
    survey: Survey, options: VerifyOptions, runner: StepRunner, *, scratch: Scratch, stop: Stop, wanted: Wanted, tally: _Tally
) -> Settled:
    """Do the steps of a verification, and make the events of each video after each step."""
    if tally.expected:
        log.info("asking %s about %s", survey.asker.name, how_many(tally.expected, "clip"))
        runner.do(Step.ASK, wanted)
    settled = settle(survey, scratch, seconds_per_clip=tally.seconds_per_clip)
    if options.refine_masks:
        rows = [unrefined_rows(survey.layout, video) if video.is_included else NO_CLIPS for video in survey.videos]
        if any(map(len, rows)):
            runner.do(Step.REFINE, rows)
            settled = settle(survey, scratch, seconds_per_clip=tally.seconds_per_clip)
    if not options.describe:
        return settled
    to_describe = []
    for video in survey.videos:
        events = [event for event in video.document.events if event.verification and event.description is None]
        peaks = [event.peak_s for event in events if event.verification and event.verification.answer is Answer.CONFIRMED]
        chosen = peaks and video.is_included
        to_describe.append(np.unique(cell_of(video.edges, np.array(peaks))) if chosen else NO_CLIPS)
    if any(map(len, to_describe)) and not stop():
        runner.do(Step.DESCRIBE, to_describe)
        settled = settle(survey, scratch, seconds_per_clip=tally.seconds_per_clip)
    return settled


def _unreadable(survey: Survey) -> list[VerifiedVideo]:
    """Return an entry for each video whose results cannot be read."""
    return [VerifiedVideo(video, problem=problem) for video, problem in survey.problems.items()]


def _counted(survey: Survey, settled: Settled) -> Iterator[VerifiedVideo]:
    """Yield the result of each video of the run: its numbers of clips and events."""
    for video in survey.videos:
        if video.is_included:
            counts = settled.events.get(video.video, {})
            events = {answer.replace(" ", "_"): counts.get(answer, 0) for answer in Answer}
            answered = settled.answered.get(video.video, 0)
            yield VerifiedVideo(video.video, video.asked, answered, **events, problem=video.problem)


def _estimate(survey: Survey, wanted: Sequence[IndexArray]) -> VerifyResult:
    """Return the result of a dry run. Its time is an estimate: the model is asked about a few clips of noise."""
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
    chosen = zip(survey.videos, wanted, strict=True)
    videos = [VerifiedVideo(video.video, len(clips)) for video, clips in chosen if video.is_included]
    return VerifyResult((*_unreadable(survey), *videos), asker.name, None, 0, left, seconds)


# The verification after a scan: `vadcli scan --verify`


def verification_of(options: ScanOptions) -> Callable[[Scan], VerifyResult | None] | None:
    """Return a function that verifies a scan that has ended; None without the option --verify.

    The exit code in the result is that of the scan and the verification together. If the scan was stopped, the function does
    nothing and returns None, because the next run must continue the scan first.

    Raises:
        UsageError: the model of --verify does not exist.
        DeviceError, WeightsError: the device or the weights are missing.
    """
    if not options.verify:
        return None
    chosen = verify_options(options)
    asker, refiner = asker_of(chosen), refiner_of(chosen)

    def verify(scan: Scan) -> VerifyResult | None:
        """Verify the events of a scan; return None if the scan was stopped."""
        if scan.stop():
            return None
        command = scan.settings.command
        result = verify_all(options.out, chosen, asker, refiner=refiner, stop=scan.stop, command=command)
        code = scan.exit_code
        if scan.stop.signal is None:  # only confirmed events count
            code = options.exit_code(lost=bool(scan.totals.lost or result.problems), events=bool(result.confirmed))
        return replace(result, exit_code=code)

    return verify


def verify_options(options: ScanOptions) -> VerifyOptions:
    """Return the options of the verification after a scan.

    The values of options that both `vadcli scan` and `vadcli verify` have are copied from the options of the scan.
    """
    own = {"model": options.verify, "categories": options.categories}
    decoding = ("device", "precision", "decoder", "decode_timeout", "decode_memory")
    shared = (*decoding, "checkpoint_every", "refine_masks", "json", "quiet", "verbose")
    # A runner of another package can't verify. In this case, the videos are verified on this machine.
    cluster = ("runner", "ray_address", "ray_cpus", "ray_gpus") if options.runner == "ray" else ()
    known = {item.name for item in fields(VerifyOptions)}
    return VerifyOptions(**own, **{name: getattr(options, name) for name in (*shared, *cluster) if name in known})  # type: ignore[arg-type]
