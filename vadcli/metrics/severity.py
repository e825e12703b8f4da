"""Measures whether worse events score higher: rank correlations between the scores and the severities of true events.

Cao et al., Are Anomaly Scores Telling the Whole Story? A Benchmark for Multilevel Anomaly Detection (MAD-Bench, 2024), compare
scores with levels of severity in this way. There a sample is an image or a row of a table; here it is a true event.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import kendalltau, spearmanr

from vadcli.metrics.intervals import Estimate, Numbers, divide
from vadcli.types import IndexArray

_ROWS = 512  # pairs are compared in blocks of this many events; limits the memory and changes no result


@dataclass(frozen=True)
class SeveritySet:
    """The E true events of V videos.

    Attributes:
        video: (E,) int64, number of the event's video.
        score: (E,) float64, the event's score.
        severity: (E,) float64, higher is worse; NaN if the ground truth does not state it.
        videos: V.
    """

    video: IndexArray
    score: Numbers
    severity: Numbers
    videos: int


def severity_spearman(events: SeveritySet) -> Estimate:
    """Return Spearman's rank correlation (`scipy.stats.spearmanr`); equal values have the mean of their ranks.

    Events without a severity do not count. Undefined if fewer than two severities or scores differ.
    """
    stated = _stated(events)
    order = [np.unique(each, return_inverse=True)[1] for each in (stated.score, stated.severity)]

    def statistic(weights: Numbers) -> Numbers:
        drawn = weights[:, stated.video]  # (B, E) how often each event was drawn
        ranks = [_ranks(drawn, places) for places in order]
        x, y = (rank - divide((drawn * rank).sum(axis=1), drawn.sum(axis=1))[:, None] for rank in ranks)
        spread = (drawn * x * x).sum(axis=1) * (drawn * y * y).sum(axis=1)
        return divide((drawn * x * y).sum(axis=1), np.sqrt(np.where(spread > 1e-9, spread, 0.0)))

    return _estimate(events, stated, lambda x, y: float(spearmanr(x, y).statistic), statistic)


def severity_kendall(events: SeveritySet) -> Estimate:
    """Return Kendall's tau-b (`scipy.stats.kendalltau`), which corrects for equal values.

    Events without a severity do not count. Undefined if fewer than two severities or scores differ.
    """
    stated = _stated(events)
    videos, pairs = np.unique(stated.video), _pairs(stated)

    def statistic(weights: Numbers) -> Numbers:
        drawn = weights[:, videos]
        agreed, by_score, by_severity = (((drawn @ each) * drawn).sum(axis=1) for each in pairs)
        return divide(agreed, np.sqrt(by_score * by_severity))

    return _estimate(events, stated, lambda x, y: float(kendalltau(x, y).statistic), statistic)


def _stated(events: SeveritySet) -> SeveritySet:
    known = ~np.isnan(events.severity)
    return SeveritySet(events.video[known], events.score[known], events.severity[known], events.videos)


def _estimate(
    events: SeveritySet,
    stated: SeveritySet,
    coefficient: Callable[[Numbers, Numbers], float],
    statistic: Callable[[Numbers], Numbers],
) -> Estimate:
    used = len(np.unique(stated.video))
    note = f"over {len(stated.score)} of {len(events.score)} true events: those with a severity"
    if min(len(np.unique(stated.score)), len(np.unique(stated.severity))) < 2:
        why = "a rank correlation needs true events with different severities and scores"
        return Estimate(None, events.videos, statistic, why, used)
    return Estimate(coefficient(stated.score, stated.severity), events.videos, statistic, note, used, interval=used >= 2)


def _ranks(drawn: Numbers, places: IndexArray) -> Numbers:
    """Return (B, E) mean ranks, up to a constant, if each event occurs as often as it was drawn."""
    counts = drawn @ csr_array((np.ones(len(places)), (np.arange(len(places)), places)))
    ranks = np.cumsum(counts, axis=1) - counts / 2.0
    return np.asarray(ranks[:, places], np.float64)


def _pairs(events: SeveritySet) -> tuple[Numbers, Numbers, Numbers]:
    """Return three (U, U) counts of the pairs of events of two videos; U videos have events.

    The first: pairs in the same order minus pairs in the opposite order. The second: pairs whose scores differ. The third:
    pairs whose severities differ.
    """
    count, places = len(events.video), np.unique(events.video, return_inverse=True)[1]
    of_video = csr_array((np.ones(count), (np.arange(count), places)))
    found = np.zeros((3, of_video.shape[1], of_video.shape[1]))
    for start in range(0, count, _ROWS):
        rows = slice(start, start + _ROWS)
        x, y = (np.sign(each[rows, None] - each[None, :]) for each in (events.score, events.severity))
        for number, signs in enumerate((x * y, np.abs(x), np.abs(y))):
            found[number] += of_video[rows].T @ (signs @ of_video)
    return found[0], found[1], found[2]
