"""`vadcli verify --runner ray`: the workers of a Ray cluster do the steps of a verification.

A worker gets the survey of a few videos, asks with its own model, and writes the answers to OUT. Only the driver chooses clips,
calibrates the model and makes events, because this needs all videos of a camera.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vadcli.detectors.ask import Asker, Question
from vadcli.detectors.refining import Refiner
from vadcli.engine.plan import WorkUnit
from vadcli.engine.ray_cluster import Chunk, Workers
from vadcli.engine.ray_runner import KILLS, Killer, Worklist, drive, hired
from vadcli.engine.runner import Stop
from vadcli.engine.second_pass import refiner_of
from vadcli.errors import DocumentError
from vadcli.options.results import VerifyOptions
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.store.events import FootageFolders
from vadcli.types import IndexArray
from vadcli.types.text import is_remote
from vadcli.verifying.asking import Told, asker_of
from vadcli.verifying.steps import Here, Step, Wanted
from vadcli.verifying.survey import Choice, Survey, Surveyed, clip_needs


class VideoPart(NamedTuple):
    """One video of a chunk, its chosen clips, and the numbers of the clips or rows to read."""

    video: Surveyed
    choice: Choice
    wanted: IndexArray


@dataclass(frozen=True)
class Part:
    """The task of a worker for a chunk."""

    step: Step
    layout: OutputLayout
    questions: tuple[Question, ...]
    videos: tuple[VideoPart, ...]


class Answered(NamedTuple):
    """A batch of clips that were answered, and the seconds that the model took."""

    clips: int
    seconds: float


class VideoAsked(NamedTuple):
    """The end of a step for one video: the number of clips that were asked about, and the problem, or ""."""

    video: str
    asked: int
    problem: str


@dataclass
class VerifyWork:
    """Does a step of a verification with the videos of a chunk; see `Work`."""

    options: VerifyOptions
    _models: tuple[Asker, Refiner | None] | None = None

    def do(self, order: Part, stop: Stop, say: Callable[[object], None]) -> None:
        """See `Work`. Passes one `Answered` per batch and one `VideoAsked` per video to `say`."""
        if self._models is None:
            self._models = asker_of(self.options), refiner_of(self.options)
        asker, refiner = self._models
        videos, choices = [part.video for part in order.videos], [part.choice for part in order.videos]
        survey = Survey(order.layout, asker, clip_needs(asker), order.questions, videos, choices)
        # A worker that has died may have done a part of the chunk.
        left = [_left(survey, order.step, part) for part in order.videos]
        with Scratch(order.layout.scratch) as scratch:
            crew = Here(survey, self.options, refiner, scratch, stop, lambda clips, seconds: say(Answered(clips, seconds)))
            crew.do(order.step, left)
        for part in order.videos:
            asked = len(part.wanted) - len(_left(survey, order.step, part)) if order.step is Step.ASK else 0
            say(VideoAsked(part.video.video, asked, part.video.problem))


def _left(survey: Survey, step: Step, part: VideoPart) -> IndexArray:
    """Return the wanted clips that are not done yet, or all wanted rows."""
    if step is Step.REFINE:  # `refine_stored` leaves out refined rows itself
        return part.wanted
    with suppress(DocumentError):  # the step reports answers that can't be read
        if step is Step.ASK:
            return np.intersect1d(part.wanted, survey.missing(part.video, part.choice))
        described = survey.usable(part.video).metadata.descriptions
        return np.array([clip for clip in part.wanted if str(clip) not in described], np.int64)
    return part.wanted


@dataclass
class ClusterCrew:
    """Does the steps on a Ray cluster, to which it connects at the first step.

    Attributes: as in `Here`.
    """

    survey: Survey
    options: VerifyOptions
    scratch: Scratch
    stop: Stop
    told: Told
    _stack: ExitStack = field(default_factory=ExitStack)
    _workers: Workers | None = None

    def do(self, step: Step, wanted: Wanted) -> None:
        """See `Crew`.

        Raises:
            UsageError: ray is not installed, no cluster answers, or no node can take part.
        """
        parts = {part[0].video: VideoPart(*part) for part in zip(self.survey.videos, self.survey.choices, wanted, strict=True)}
        units = [WorkUnit(video, Path(), "", len(part.wanted), 0) for video, part in parts.items() if len(part.wanted)]
        if not units or self.stop():
            return
        if self._workers is None:
            roots = FootageFolders(self.survey.layout, self.options.footage).roots()
            seen = next((Path(root) for root in roots if is_remote(Path(root)) or os.path.isdir(root)), None)
            crew = hired(
                self.options,
                self.scratch,
                seen,
                lambda cpus: VerifyWork(self.options),
                wants_gpu=self.options.device != "cpu",
                stop=self.stop,
            )
            self._workers = self._stack.enter_context(crew)
        workers = self._workers
        work = Worklist(units, units, by_cameras=False, workers=len(workers.slots))

        def order_of(chunk: Chunk) -> Part:
            return Part(step, self.survey.layout, self.survey.questions, tuple(parts[video] for video in chunk.left))

        for item, chunk, node in drive(work, workers, self.stop, order_of):
            if isinstance(item, Answered):
                chunk.moved = True
                self.told(*item)
            elif isinstance(item, VideoAsked):
                chunk.left.pop(item.video, None)
                video = parts[item.video].video
                video.asked, video.problem = video.asked + item.asked, item.problem
            elif isinstance(item, Killer):
                reason = f"{KILLS} workers died while they asked about this video, the last one on node {node.name}"
                parts[item.unit.video].video.problem = reason

    def close(self) -> None:
        """Stop the workers, and disconnect."""
        self._stack.close()
