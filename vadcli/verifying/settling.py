"""The end of a run: calibrates the model per camera, makes the events, and counts the audit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from vadcli.detectors.calibration import CategoryTails
from vadcli.engine.event_rules import judge_of, tails_to_json
from vadcli.engine.recut import recut
from vadcli.errors import DocumentError
from vadcli.metrics import share_interval
from vadcli.options import EventsOptions
from vadcli.store.atomic import Claim, Scratch
from vadcli.store.choices import read_choices
from vadcli.store.events import EventsDocument
from vadcli.store.verification import Audit, StoredAnswers, write_answers
from vadcli.types import Answer, BoolArray, FloatArray
from vadcli.types.text import without_name
from vadcli.verifying.survey import FEWEST, HOP_S, Choice, Survey, Surveyed, spread_sample

SPREAD_FLOOR = 0.25
"""Smallest spread of a camera's log-odds, as in the detector `ask`."""
ELSEWHERE = "a scan or another run is working on it; run `vadcli verify` again"


@dataclass
class Settled:
    """The results of the end of a run.

    Attributes:
        audit: the result of the audit; None if no clip was audited.
        answered: number of clips with an answer, by video.
        events: number of events per answer, by video.
    """

    audit: Audit | None = None
    answered: dict[str, int] = field(default_factory=dict)
    events: dict[str, Mapping[Answer, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Known:
    """The usable answers about one video: answers for all current categories."""

    video: Surveyed
    choice: Choice
    stored: StoredAnswers
    rows: BoolArray
    log_odds: FloatArray

    def flags(self, which: BoolArray) -> BoolArray:
        """Return the flags (A,) of the clips with a usable answer, from the flags (C,) of all clips."""
        return np.asarray(which[self.stored.answers.clip[self.rows]])


def settle(survey: Survey, scratch: Scratch, *, seconds_per_clip: float) -> Settled:
    """Calibrate the model for each camera, and write the answers and the events of the included videos.

    Raises:
        OutputError: a file cannot be written.
    """
    known = [_known(survey, video, choice) for video, choice in zip(survey.videos, survey.choices, strict=True)]
    tails = _calibrated([one for one in known if one is not None], len(survey.categories))
    settled, choices = Settled(), read_choices(survey.layout)
    judge = judge_of(EventsOptions(), choices, out=survey.layout.out)
    recut_stored = partial(recut, survey.layout, scratch, review=choices.reviews, judge=judge, verify=True)
    audited = _Audited()
    for one in known:
        if one is None:
            continue
        usual = tails[one.video.candidates.camera]
        audited.add(one, usual)
        video = one.video.video
        settled.answered[video] = int(one.rows.sum())
        if not one.video.is_included:
            continue
        metadata = replace(
            one.stored.metadata,
            usual=tails_to_json(usual),
            seconds_per_clip=seconds_per_clip or one.stored.metadata.seconds_per_clip,
        )
        settled.events[video] = _write(survey, scratch, one.video, replace(one.stored, metadata=metadata), recut_stored)
    settled.audit = audited.result(survey)
    return settled


def _known(survey: Survey, video: Surveyed, choice: Choice) -> _Known | None:
    """Return the answers about a video, perhaps none; None if they cannot be read."""
    try:
        stored = survey.usable(video)
    except DocumentError as error:
        video.problem = without_name(str(error), video.video)
        return None
    odds = stored.of(survey.categories)
    rows = ~np.isnan(odds).any(axis=1) & (stored.answers.clip < len(choice.proposed))
    return _Known(video, choice, stored, rows, odds[rows])


def _calibrated(known: Sequence[_Known], categories: int) -> dict[str, CategoryTails]:
    """Return tails for each camera, which say how the model usually answers about it.

    A camera with too few random clips gets the tails of all cameras together. If all cameras together have too few random
    clips, the usual answers are not known, and the log-odds are not calibrated.
    """
    cameras: dict[str, list[_Known]] = {}
    for one in known:
        cameras.setdefault(one.video.candidates.camera, []).append(one)
    together = _sample(known)
    found = {}
    for camera, own in cameras.items():
        sample = _sample(own)
        sample = together if sample is None else sample
        if sample is None:
            found[camera] = CategoryTails.unknown(categories)
            continue
        seconds = HOP_S * sum(len(one.log_odds) for one in own)
        found[camera] = CategoryTails.fit(sample, categories, seconds=seconds, floor=SPREAD_FLOOR)
    return found


def _sample(own: Sequence[_Known]) -> FloatArray | None:
    """Return log-odds (n, C) that represent all footage of some videos; None if random clips are too few."""
    rest = sum(int((~one.choice.proposed).sum()) for one in own)
    sampled = [one.flags(one.choice.sampled) for one in own]
    if sum(int(flags.sum()) for flags in sampled) < min(FEWEST, rest) or not own:
        return None
    odds = np.concatenate([one.log_odds for one in own])
    proposed = np.concatenate([one.flags(one.choice.proposed) for one in own])
    return spread_sample(odds, proposed, np.concatenate(sampled), rest=rest)


class _Audited:
    """Counts the audited clips, and adds up the length of the proposed clips that the model confirms."""

    def __init__(self) -> None:
        self.clips = self.confirmed = 0
        self.found_s = 0.0

    def add(self, one: _Known, usual: CategoryTails) -> None:
        """Count the clips of one video."""
        opens = min(max(one.video.document.thresholds.high, 1e-6), 1 - 1e-6)
        high = usual.logits(one.log_odds).max(axis=1) >= np.log(opens / (1 - opens))
        audited, proposed = one.flags(one.choice.audited), one.flags(one.choice.proposed)
        self.clips += int(audited.sum())
        self.confirmed += int((audited & high).sum())
        lengths = one.video.candidates.length_s[one.stored.answers.clip[one.rows]]
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
    survey: Survey, scratch: Scratch, video: Surveyed, stored: StoredAnswers, recut_stored: Callable[..., EventsDocument]
) -> Mapping[Answer, int]:
    """Write the answers and the events of one video; return the number of events per answer."""
    claim = Claim.acquire(survey.layout.checkpoint(video.video))
    if claim is None:
        video.problem = video.problem or ELSEWHERE
        return {}
    try:
        with scratch.replace(survey.layout.answers(video.video)) as path:
            write_answers(path, stored)
        document = recut_stored(video.video, video.document.thresholds)
    except DocumentError as error:
        video.problem = without_name(str(error), video.video)
        return {}
    finally:
        claim.release(delete=False)
    video.document = document
    return Counter(event.verification.answer for event in document.events if event.verification)
