"""The start and the end of a verification: chooses the clips, and makes events from the answers.

`Survey` finds the videos and the questions, and chooses clips. The scan proposes the clips with its highest scores. The audit
draws clips at random from all other clips, to estimate how much the scan misses. Equal scores, videos and seeds give equal
choices.

`settle` calibrates the model for each camera, makes the events of each video, and sums up the audit.

`Survey` and `settle` need the stored scores and answers of all videos of a camera. They open no video and load no model.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from vadcli.detectors import digest
from vadcli.detectors.ask import Asker, Question, questions_about, questions_for
from vadcli.detectors.calibration import CategoryTails
from vadcli.engine.event_rules import ClipGrid, judge_of, tails_to_json
from vadcli.engine.recut import recut
from vadcli.errors import DocumentError, UsageError
from vadcli.metrics import share_interval
from vadcli.options import EventsOptions
from vadcli.options.categories import described_categories
from vadcli.options.results import VerifyOptions, parse_share
from vadcli.store import OutputLayout, matches
from vadcli.store.atomic import Claim, Scratch
from vadcli.store.choices import read_choices
from vadcli.store.events import EventsDocument, read_events
from vadcli.store.scores import read_scores, shown_s
from vadcli.store.verification import Answers, AnswersMetadata, Audit, StoredAnswers, answers_or_none, write_answers
from vadcli.types import Answer, BoolArray, ClipNeeds, FloatArray, IndexArray, PixelFormat, ScoreTable, SizeRule, TimeArray
from vadcli.types.text import without_name
from vadcli.video.sampling import SamplingPlan

HOP_S = 4.0
"""Seconds from one clip to the next, as in a scan with the detector `ask`."""
GROW_S = 5.0
"""A clip gets the highest score of all frames that are in its cell or within this many seconds of its middle."""
SAMPLE_CLIPS = 8
"""Largest number of random clips per camera. The answers about them show how the model usually answers about the camera."""
SAMPLE_PART = 5
"""A camera with few proposed clips gets one random clip per `SAMPLE_PART` proposed clips."""
FEWEST = 2
"""Every camera gets at least this many random clips, even if it has few proposed clips."""
SPREAD_FLOOR = 0.25
"""Smallest spread of a camera's log-odds, as in the detector `ask`."""
IN_USE = "a scan or another run is working on it; run `vadcli verify` again"
"""The problem of a video that another process has locked."""


@dataclass(frozen=True)
class Candidates:
    """The clips of one video about which the model can be asked.

    Attributes:
        score: (C,) float32, the scan's highest logit in each clip's cell or within `GROW_S` seconds of the clip's middle. The
            cell of a clip has all times that are closer to the middle of this clip than to the middle of any other clip.
        start, end: (C,) float64 seconds, the span that each clip shows.
        length_s: (C,) float64 seconds, the length of each clip's cell.
        draw: (C,) float64 in [0, 1), a random number per clip; clips with the lowest numbers are drawn first.
    """

    video: str
    camera: str
    score: FloatArray
    start: TimeArray
    end: TimeArray
    length_s: TimeArray
    draw: TimeArray

    @classmethod
    def of(cls, camera: str, table: ScoreTable, grid: ClipGrid, *, content: str, seed: int) -> Candidates:
        """Return the clips of a scanned video. Equal content and seed give equal random numbers."""
        own_seed = hashlib.sha256(f"{seed} {content}".encode()).digest()
        draw = np.random.default_rng(int.from_bytes(own_seed[:8])).random(len(grid))
        first = np.searchsorted(table.timestamp, np.minimum(grid.middle - GROW_S, grid.edges[:-1]), "right") - 1
        last = np.searchsorted(table.timestamp, np.maximum(grid.middle + GROW_S, grid.edges[1:]), "left")
        first = first.clip(0, len(table) - 1)
        score = np.maximum.reduceat(np.append(table.logit, -np.inf), np.stack([first, last], axis=1).ravel())[::2]
        return cls(table.video, camera, score.astype(np.float32), grid.start, grid.end, grid.length_s, draw)

    def shown_s(self, clips: BoolArray) -> float:
        """Return how many seconds of the video some clips show. If two clips overlap, the overlap counts once.

        `clips` is (C,) bool, True for these clips.
        """
        start, end = self.start[clips], self.end[clips]
        before = np.append(0.0, end[:-1])
        return float((end - np.maximum(start, before)).sum())


@dataclass(frozen=True)
class Choice:
    """The clips of one video to ask about; each attribute is (C,) bool.

    Attributes:
        proposed: the clip has one of the highest scores of its camera.
        audited: the clip was drawn at random from all clips that are not proposed, over all cameras.
        sampled: the clip was drawn at random from its camera's clips that are not proposed. All audited clips are sampled,
            too.
    """

    proposed: BoolArray
    audited: BoolArray
    sampled: BoolArray

    @property
    def asked(self) -> BoolArray:
        """Flags (C,), True for every clip to ask about."""
        return self.proposed | self.sampled


@dataclass
class Surveyed:
    """A video with scores.

    Attributes:
        document: the stored events of the video.
        candidates: the clips about which the model can be asked.
        plan: which frames form each clip.
        edges: the times that divide the video among its clips, as in `ClipGrid`.
        content: hash of the video's content.
        is_included: False if the options leave the video out; its scores are still used to choose the clips of its camera.
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
        asker: the model to ask.
        needs: the length, rate and frame size of the clips.
        questions: one question per category.
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
        """Return the survey of an output folder.

        Without --categories, the questions are about the categories of the scan.

        Raises:
            UsageError: no video has scores, or the categories cannot be read.
        """
        survey = cls(layout, asker, clip_needs(asker))
        survey.videos = list(survey._scored(options))
        if not survey.videos:
            first = next((f": {video}: {problem}" for video, problem in survey.problems.items()), "")
            raise UsageError(f"{layout.out}: no video has scores{first}", hint="scan first")
        if options.categories:
            survey.questions = questions_for(options.categories)
        else:
            documents = [video.document for video in survey.videos if video.is_included]
            names = [name for document in documents for name in document.categories]
            own = [category for document in documents for category in document.own_categories]
            survey.questions = questions_about(described_categories(names, own)) or questions_for("")
        candidates = [video.candidates for video in survey.videos]
        share, audit = parse_share(options.share, "share"), parse_share(options.audit, "audit")
        survey.choices = choose_clips(candidates, share=share, audit=audit)
        return survey

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories of the questions."""
        return tuple(question.category for question in self.questions)

    def usable(self, video: Surveyed) -> StoredAnswers:
        """Return only those stored answers about a video that are still usable, one column per question.

        An answer can't be used if another model gave it, or if the video's content has changed since then.

        Raises:
            DocumentError: the stored answers are damaged or of another version.
        """
        keys = {question.category: digest(asdict(question)) for question in self.questions}
        needs, regions = self.needs, video.document.regions
        # All values that change an answer, except the clip and the question.
        key = [self.asker.fingerprint(), needs.frames, needs.overlap, needs.rate_hz, needs.size.max_area_px]
        key += [str(needs.pixel_format), regions.sha256 if regions else ""]
        metadata = AnswersMetadata(
            video=video.video,
            camera=video.candidates.camera,
            model=self.asker.name,
            key=digest(key),
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
        """Return the numbers of the chosen clips that have no answer.

        The result is empty if the options leave out the video.
        """
        if not video.is_included:
            return np.zeros(0, np.int64)
        usable = self.usable(video)
        done = usable.answers.clip[~np.isnan(usable.of(self.categories)).any(axis=1)]
        return np.setdiff1d(np.flatnonzero(choice.asked), done)

    def _scored(self, options: VerifyOptions) -> Iterator[Surveyed]:
        """Yield the videos that have scores.

        If the results of a video cannot be read, add the reason to `problems`.
        """
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


def clip_needs(asker: Asker) -> ClipNeeds:
    """Return the length, rate and frame size of the clips for a model, as in the detector `ask`."""
    rate_hz = asker.clip_frames / asker.clip_s
    return ClipNeeds(
        frames=asker.clip_frames,
        overlap=asker.clip_frames - round(HOP_S * rate_hz),
        rate_hz=rate_hz,
        size=SizeRule(2 * asker.max_area_px),
        pixel_format=PixelFormat.RGB,
    )


def limited(survey: Survey, wanted: Sequence[IndexArray], limit: int | None) -> list[IndexArray]:
    """Return at most `limit` of the wanted clips: random clips first, then clips by falling score.

    `wanted` has one array per video: the numbers of its wanted clips. If `limit` is None, all wanted clips are returned.
    """
    total = sum(map(len, wanted))
    if limit is None or limit >= total:
        return list(wanted)
    ranks = [
        np.where(choice.sampled[clips], -np.inf, -video.candidates.score[clips])
        for clips, choice, video in zip(wanted, survey.choices, survey.videos, strict=True)
    ]
    is_kept = np.zeros(total, np.bool_)
    is_kept[np.argsort(np.concatenate(ranks), kind="stable")[:limit]] = True
    parts = np.split(is_kept, np.cumsum([len(clips) for clips in wanted])[:-1])
    return [clips[part] for clips, part in zip(wanted, parts, strict=True)]


def choose_clips(videos: Sequence[Candidates], *, share: float, audit: float) -> list[Choice]:
    """Return the choice of clips for each video.

    Args:
        videos: all videos of the output folder.
        share: the proposed clips show this share of each camera's footage.
        audit: this share of all other clips is audited.
    """
    proposed = [np.zeros(len(video.score), np.bool_) for video in videos]
    sampled = [np.zeros(len(video.score), np.bool_) for video in videos]
    cameras = sorted({video.camera for video in videos})
    # For each camera, the indices of its videos in `videos`.
    places = {camera: [place for place, video in enumerate(videos) if video.camera == camera] for camera in cameras}
    for own in places.values():
        for place, flags in zip(own, _highest([videos[place] for place in own], share), strict=True):
            proposed[place] = flags
    rest = [~flags for flags in proposed]
    # The clips with the lowest random numbers are drawn: first for the audit, from all cameras together, then for the sample of
    # each camera.
    draws = np.sort(np.concatenate([video.draw[flags] for video, flags in zip(videos, rest, strict=True)] or [np.zeros(0)]))
    count = math.ceil(audit * len(draws))
    limit = draws[count - 1] if count else -1.0
    audited = [flags & (video.draw <= limit) for video, flags in zip(videos, rest, strict=True)]
    for own in places.values():
        count = sum(int(proposed[place].sum()) for place in own)
        least = min(SAMPLE_CLIPS, max(FEWEST, count // SAMPLE_PART)) if audit else 0
        own_draws = np.sort(np.concatenate([videos[place].draw[rest[place]] for place in own]))
        own_limit = max(limit, own_draws[min(least, len(own_draws)) - 1] if len(own_draws) and least else -1.0)
        for place in own:
            sampled[place] = rest[place] & (videos[place].draw <= own_limit)
    return [Choice(*flags) for flags in zip(proposed, audited, sampled, strict=True)]


def _highest(videos: Sequence[Candidates], share: float) -> list[BoolArray]:
    """Return flags (C,) for the clips of each video of one camera, True for the proposed clips.

    Clips are taken in order of falling score, while they show at most `share` of the camera's footage. At least one clip is
    taken. Of clips with equal scores, the clip with the lowest random number (`draw`) is taken first.
    """
    order = np.lexsort((np.concatenate([video.draw for video in videos]), -np.concatenate([video.score for video in videos])))
    ends = np.cumsum([len(video.score) for video in videos])[:-1]

    def first(count: int) -> list[BoolArray]:
        """Return flags per video, True for the first `count` clips in `order`."""
        flags = np.zeros(len(order), np.bool_)
        flags[order[:count]] = True
        return np.split(flags, ends)

    allowed = share * sum(video.shown_s(np.ones(len(video.score), np.bool_)) for video in videos) + 1e-6
    low, high = 1, len(order)  # the largest allowed count is from `low` to `high`
    while low < high:
        middle = (low + high + 1) // 2
        shown = sum(video.shown_s(flags) for video, flags in zip(videos, first(middle), strict=True))
        low, high = (middle, high) if shown <= allowed else (low, middle - 1)
    return first(low)


def spread_sample(log_odds: FloatArray, proposed: BoolArray, sampled: BoolArray, *, rest: int) -> FloatArray:
    """Return (n, C) log-odds that represent all clips of a camera, from the answers about some clips.

    The answers about random clips represent all clips that are not proposed. So these answers are repeated until there are
    about `rest` of them.

    Args:
        log_odds: (A, C), the answers about A clips, for C categories.
        proposed: (A,) bool, True for proposed clips, which are the clips with the highest scores.
        sampled: (A,) bool, True for random clips.
        rest: number of clips of the camera that are not proposed.
    """
    times = max(1, round(rest / max(1, int(sampled.sum()))))
    return np.concatenate([log_odds[proposed], np.repeat(log_odds[sampled], times, axis=0)])


@dataclass
class Settled:
    """What `settle` has made and counted.

    Attributes:
        audit: the result of the audit; None if no clip was audited.
        answered: number of clips with an answer, by video.
        events: number of events per answer, by video.
    """

    audit: Audit | None = None
    answered: dict[str, int] = field(default_factory=dict)
    events: dict[str, Mapping[Answer, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _UsableAnswers:
    """The usable answers about one video. An answer is usable if it is about all current categories."""

    video: Surveyed
    choice: Choice
    stored: StoredAnswers
    rows: BoolArray  # True for the rows of `stored.answers` that are usable
    log_odds: FloatArray  # the usable answers, one row per clip and one column per category

    def flags(self, of_clips: BoolArray) -> BoolArray:
        """Return the flags (A,) of the clips with a usable answer, from the flags (C,) of all clips."""
        return np.asarray(of_clips[self.stored.answers.clip[self.rows]])


def settle(survey: Survey, scratch: Scratch, *, seconds_per_clip: float) -> Settled:
    """Calibrate the model for each camera, and write the answers and the events of the included videos.

    `seconds_per_clip` is the time that the model took per clip in this run; 0 if no clip was answered.

    Raises:
        OutputError: a file cannot be written.
    """
    all_answers = [_usable_answers(survey, video, choice) for video, choice in zip(survey.videos, survey.choices, strict=True)]
    readable = [answers for answers in all_answers if answers is not None]
    tails = _calibrated(readable, len(survey.categories))
    settled, choices = Settled(), read_choices(survey.layout)
    judge = judge_of(EventsOptions(), choices, out=survey.layout.out)
    recut_stored = partial(recut, survey.layout, scratch, reviews=choices.reviews, judge=judge, verify=True)
    audited = _Audited()
    for answers in readable:
        usual = tails[answers.video.candidates.camera]
        audited.add(answers, usual)
        video = answers.video.video
        settled.answered[video] = int(answers.rows.sum())
        if not answers.video.is_included:
            continue
        changes = {"usual": tails_to_json(usual)} | ({"seconds_per_clip": seconds_per_clip} if seconds_per_clip else {})
        settled.events[video] = _write(survey, scratch, answers.video, changes, recut_stored)
    settled.audit = audited.result(survey)
    return settled


def _usable_answers(survey: Survey, video: Surveyed, choice: Choice) -> _UsableAnswers | None:
    """Return the usable answers about a video; None if the stored answers cannot be read."""
    try:
        stored = survey.usable(video)
    except DocumentError as error:
        video.problem = without_name(str(error), video.video)
        return None
    odds = stored.of(survey.categories)
    rows = ~np.isnan(odds).any(axis=1) & (stored.answers.clip < len(choice.proposed))
    return _UsableAnswers(video, choice, stored, rows, odds[rows])


def _calibrated(readable: Sequence[_UsableAnswers], categories: int) -> dict[str, CategoryTails]:
    """Return, per camera, the calibration of the model's log-odds by its usual answers about the camera.

    The usual answers are estimated from the answers about randomly chosen clips and proposed clips (`spread_sample`). A camera
    with too few randomly chosen clips gets the calibration of all cameras together. If all cameras together have too few
    randomly chosen clips, the log-odds are not calibrated.
    """
    cameras: dict[str, list[_UsableAnswers]] = {}
    for answers in readable:
        cameras.setdefault(answers.video.candidates.camera, []).append(answers)
    together = _sample(readable)
    tails = {}
    for camera, own in cameras.items():
        sample = _sample(own)
        sample = together if sample is None else sample
        if sample is None:
            tails[camera] = CategoryTails.unknown(categories)
            continue
        seconds = HOP_S * sum(len(answers.log_odds) for answers in own)
        tails[camera] = CategoryTails.fit(sample, categories, seconds=seconds, floor=SPREAD_FLOOR)
    return tails


def _sample(own: Sequence[_UsableAnswers]) -> FloatArray | None:
    """Return (n, C) log-odds for all clips of the videos in `own`, from the answers about some clips (`spread_sample`).

    Returns None if too few of the clips with answers were drawn at random.
    """
    rest = sum(int((~answers.choice.proposed).sum()) for answers in own)
    sampled = [answers.flags(answers.choice.sampled) for answers in own]
    if sum(int(flags.sum()) for flags in sampled) < min(FEWEST, rest) or not own:
        return None
    odds = np.concatenate([answers.log_odds for answers in own])
    proposed = np.concatenate([answers.flags(answers.choice.proposed) for answers in own])
    return spread_sample(odds, proposed, np.concatenate(sampled), rest=rest)


class _Audited:
    """Counts the audited clips, and adds up the length of the proposed clips that the model confirms."""

    def __init__(self) -> None:
        self.clips = self.confirmed = 0
        self.found_s = 0.0

    def add(self, answers: _UsableAnswers, usual: CategoryTails) -> None:
        """Count the clips of one video. `usual` is the calibration of the model for the video's camera."""
        threshold = min(max(answers.video.document.thresholds.high, 1e-6), 1 - 1e-6)
        high = usual.logits(answers.log_odds).max(axis=1) >= np.log(threshold / (1 - threshold))
        audited, proposed = answers.flags(answers.choice.audited), answers.flags(answers.choice.proposed)
        self.clips += int(audited.sum())
        self.confirmed += int((audited & high).sum())
        lengths = answers.video.candidates.length_s[answers.stored.answers.clip[answers.rows]]
        self.found_s += float(lengths[proposed & high].sum())

    def result(self, survey: Survey) -> Audit | None:
        """Return the audit with its exact interval (see `share_interval`); None if no clip was audited."""
        rest = [
            float(video.candidates.length_s[~choice.proposed].sum())
            for video, choice in zip(survey.videos, survey.choices, strict=True)
        ]
        if not self.clips:
            return None
        low, high = share_interval(self.confirmed, self.clips)
        return Audit(self.clips, self.confirmed, low, high, left_out_s=sum(rest), found_s=self.found_s)


def _write(
    survey: Survey, scratch: Scratch, video: Surveyed, changes: Mapping[str, Any], recut_stored: Callable[..., EventsDocument]
) -> Mapping[Answer, int]:
    """Write the answers and the events of one video. Return the number of events per answer.

    `changes` has new values for some fields of the video's `AnswersMetadata`.
    """
    claim = Claim.acquire(survey.layout.checkpoint(video.video))
    if claim is None:
        video.problem = video.problem or IN_USE
        return {}
    try:
        stored = survey.usable(video)  # read again, because another run may have added answers before the lock was acquired
        with scratch.replace(survey.layout.answers(video.video)) as path:
            write_answers(path, replace(stored, metadata=replace(stored.metadata, **changes)))
        document = recut_stored(video.video, video.document.thresholds)
    except DocumentError as error:
        video.problem = without_name(str(error), video.video)
        return {}
    finally:
        claim.release(delete=False)
    video.document = document
    return Counter(event.verification.answer for event in document.events if event.verification)
