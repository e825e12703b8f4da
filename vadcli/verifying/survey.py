"""Collects what a run can ask: the videos of an output folder, the questions, and the stored answers of earlier runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from vadcli.detectors.ask import Asker, Question, questions_about, questions_for
from vadcli.engine.job import digest
from vadcli.engine.verified import ClipGrid
from vadcli.errors import DocumentError, UsageError
from vadcli.options.categories import described_categories
from vadcli.options.results import VerifyOptions, parse_share
from vadcli.store import OutputLayout, matches
from vadcli.store.events import EventsDocument, read_events
from vadcli.store.scores import read_scores, shown_s
from vadcli.store.verification import Answers, AnswersMetadata, StoredAnswers, answers_or_none
from vadcli.types import ClipNeeds, IndexArray, PixelFormat, SizeRule, TimeArray
from vadcli.types.text import without_name
from vadcli.verifying.proposals import Candidates, Choice, choose_clips
from vadcli.video.sampling import SamplingPlan

HOP_S = 4.0
"""Seconds from one clip to the next, as in a scan with the detector `ask`."""


@dataclass
class Surveyed:
    """A video with scores.

    Attributes:
        document: its events document.
        candidates: the clips that can be asked about.
        plan: which frames form each clip.
        edges: the edges of the cells of the clips, as in `ClipGrid`.
        content: hash of the video's content.
        is_included: False if the options leave the video out; its scores still count for its camera.
        asked: number of clips that this run has asked about.
        problem: why the video cannot be verified completely; "" if nothing is wrong.
    """

    document: EventsDocument
    candidates: Candidates
    plan: SamplingPlan
    edges: TimeArray
    content: str
    is_included: bool
    asked: int = 0
    problem: str = ""

    @property
    def video(self) -> str:
        """The relative path of the video."""
        return self.candidates.video


@dataclass
class Survey:
    """The videos of an output folder, and the questions and clips to ask about them.

    Attributes:
        layout: the output folder.
        asker: the model.
        needs: the length, rate and frame size of the clips that the model is asked about.
        questions: one per category.
        videos: the videos with scores.
        choices: the clips to ask about, one choice per video.
        problems: why the results of a video cannot be read, by video.
    """

    layout: OutputLayout
    asker: Asker
    needs: ClipNeeds
    questions: tuple[Question, ...] = ()
    videos: list[Surveyed] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, layout: OutputLayout, options: VerifyOptions, asker: Asker) -> Survey:
        """Return the survey of an output folder; no video is opened.

        Raises:
            UsageError: no video has scores, or the categories cannot be read.
        """
        found = cls(layout, asker, clip_needs(asker))
        found.videos = list(found._scored(options))
        if not found.videos:
            first = next((f": {video}: {problem}" for video, problem in found.problems.items()), "")
            raise UsageError(f"{layout.out}: no video has scores{first}", hint="scan first")
        found.questions = questions_for(options.categories) if options.categories else found._questions_of_scan()
        candidates = [video.candidates for video in found.videos]
        share, audit = parse_share(options.share, "share"), parse_share(options.audit, "audit")
        found.choices = choose_clips(candidates, share=share, audit=audit)
        return found

    def _questions_of_scan(self) -> tuple[Question, ...]:
        """Return the questions about the categories of the scan. If it has none, return the default questions."""
        documents = [video.document for video in self.videos if video.is_included]
        names = [name for document in documents for name in document.categories]
        own = [category for document in documents for category in document.own_categories]
        return questions_about(described_categories(names, own)) or questions_for("")

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories of the questions."""
        return tuple(question.category for question in self.questions)

    def usable(self, video: Surveyed) -> StoredAnswers:
        """Return the stored answers of a video that fit the model and the questions, with a column for each question.

        Raises:
            DocumentError: the stored answers are damaged or of another version.
        """
        keys = {question.category: digest(asdict(question)) for question in self.questions}
        metadata = AnswersMetadata(
            video=video.video,
            camera=video.candidates.camera,
            model=self.asker.name,
            key=self._key(video.document),
            content=video.content,
            frames=video.plan.frames,
            overlap=video.plan.overlap,
            interval=video.plan.interval,
            questions=keys,
            categories=self.categories,
        )
        old = answers_or_none(self.layout.answers(video.video))
        if old is None or (old.metadata.key, old.metadata.content) != (metadata.key, metadata.content):
            return StoredAnswers(metadata, Answers.none(len(keys)))
        kept = tuple(name for name, key in old.metadata.questions.items() if keys.get(name, key) == key)
        names = {**{name: old.metadata.questions[name] for name in kept}, **keys}
        columns = [old.of((name,)) if name in kept else np.full((len(old.answers), 1), np.nan, np.float32) for name in names]
        is_same = old.metadata.categories == metadata.categories and set(metadata.categories) <= set(kept)
        metadata = replace(
            metadata,
            questions=names,
            usual=old.metadata.usual if is_same else {},
            descriptions=old.metadata.descriptions,
            seconds_per_clip=old.metadata.seconds_per_clip,
        )
        return StoredAnswers(metadata, replace(old.answers, log_odds=np.concatenate(columns, axis=1)))

    def missing(self, video: Surveyed, choice: Choice) -> IndexArray:
        """Return the chosen clips of a video that are not answered yet; none if the options leave the video out."""
        if not video.is_included:
            return np.zeros(0, np.int64)
        usable = self.usable(video)
        done = usable.answers.clip[~np.isnan(usable.of(self.categories)).any(axis=1)]
        return np.setdiff1d(np.flatnonzero(choice.asked), done)

    def _scored(self, options: VerifyOptions) -> Iterator[Surveyed]:
        """Yield the videos that have scores; a video whose results cannot be read becomes a problem."""
        for path in self.layout.iter_events():
            name = path.relative_to(self.layout.out / "events").as_posix().removesuffix(".json")
            try:
                document = read_events(path)
                name = str(document.video["path"])
                if document.failure is not None:
                    continue
                table, metadata = read_scores(self.layout.scores(name))
                answers_or_none(self.layout.answers(name))
            except DocumentError as error:
                self.problems[name] = without_name(str(error), name)
                continue
            if not len(table):
                continue
            content = str(metadata.source.get("content"))
            interval = self.needs.interval_for(float(metadata.video["fps"]))
            plan = SamplingPlan(self.needs.frames, self.needs.overlap, interval)
            grid = ClipGrid.of(plan, table.timestamp, shown_s(table, metadata.video))
            candidates = Candidates.of(metadata.camera, table, grid, content=content, seed=options.seed)
            yield Surveyed(document, candidates, plan, grid.edges, content, matches(name, options.include))

    def _key(self, document: EventsDocument) -> str:
        """Return the hash of everything that changes an answer, apart from the clip and the question."""
        needs = self.needs
        clips = [needs.frames, needs.overlap, needs.rate_hz, needs.size.max_area_px, str(needs.pixel_format)]
        return digest([self.asker.fingerprint(), *clips, document.regions.sha256 if document.regions else ""])


def clip_needs(asker: Asker) -> ClipNeeds:
    """Return the needs for the clips that a model is asked about. The clips are the same as those of the detector `ask`."""
    rate_hz = asker.clip_frames / asker.clip_s
    return ClipNeeds(
        frames=asker.clip_frames,
        overlap=asker.clip_frames - round(HOP_S * rate_hz),
        rate_hz=rate_hz,
        size=SizeRule(2 * asker.max_area_px),
        pixel_format=PixelFormat.RGB,
    )


def limited(survey: Survey, wanted: Sequence[IndexArray], limit: int | None) -> list[IndexArray]:
    """Return at most `limit` of the wanted clips: first the random clips, then the clips with the highest scores."""
    total = sum(map(len, wanted))
    if limit is None or limit >= total:
        return list(wanted)
    ranks = [
        np.where(choice.sampled[clips], -np.inf, -video.candidates.score[clips])
        for clips, choice, video in zip(wanted, survey.choices, survey.videos, strict=True)
    ]
    kept = np.zeros(total, np.bool_)
    kept[np.argsort(np.concatenate(ranks), kind="stable")[:limit]] = True
    parts = np.split(kept, np.cumsum([len(clips) for clips in wanted])[:-1])
    return [clips[part] for clips, part in zip(wanted, parts, strict=True)]
