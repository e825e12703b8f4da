"""Tests whether a head is better than the detector alone, on videos that it was not trained on.

The head and the detector are compared at the same recall: the threshold of each is set so that it keeps the same share of the
true examples. The interval draws videos with replacement, because the events of one video depend on one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vadcli.errors import UsageError
from vadcli.heads import Examples, Head, Scale, pooled
from vadcli.types import BoolArray, IndexArray, TimeArray

MOST_FOLDS = 10
RESAMPLES = 1000
CONFIDENCE = 0.95
TOO_FEW = "review more events, in more videos"


@dataclass(frozen=True)
class Comparison:
    """A comparison of a head with the detector alone, on examples that the head was not trained on.

    Attributes:
        recall: the head and the detector keep at least this share of the true examples.
        detector_per_hour, head_per_hour: false alarms per hour.
        change_per_hour: the head's false alarms per hour minus the detector's.
        low, high: 95 % interval of the change.
        detector_auc, head_auc: how often a true example has a higher score than a false one.
        threshold: the head's logit that keeps the share `recall`.
    """

    recall: float
    detector_per_hour: float
    head_per_hour: float
    change_per_hour: float
    low: float
    high: float
    detector_auc: float
    head_auc: float
    threshold: float

    @property
    def is_better(self) -> bool:
        """True if the whole interval is below 0: the head gives fewer false alarms."""
        return self.high < 0.0


def folds(groups: Sequence[str], positive: BoolArray, *, seed: int) -> list[IndexArray]:
    """Return the rows of each fold, for at most ten folds. All rows of a group (a video) are in one fold.

    The groups with the most positive rows are assigned first, each to the fold with the fewest positive rows. Groups without
    positive rows come last, each to the fold with the fewest rows. So, if possible, no fold has all rows of one label.

    Raises:
        UsageError: one fold has all rows of a label, so the rows of the other folds do not have both labels.
    """
    names = np.array(list(groups))
    unique = np.random.default_rng(seed).permutation(np.unique(names))
    counts = {name: (int(positive[names == name].sum()), int((names == name).sum())) for name in unique}
    dealt: list[list[str]] = [[] for _ in range(min(MOST_FOLDS, len(unique)))]
    for name in sorted(unique, key=lambda name: counts[name], reverse=True):
        places = (0, 1) if counts[name][0] else (1,)
        sums = [tuple(sum(counts[one][place] for one in fold) for place in places) for fold in dealt]
        dealt[sums.index(min(sums))].append(name)
    found = [np.flatnonzero(np.isin(names, fold)) for fold in dealt]
    for rows in found:
        rest = np.delete(positive, rows)
        if not rest.any() or rest.all():
            label = "true" if not rest.any() else "false"
            raise UsageError(
                f"all {label} labels are in the videos of one fold, so nothing can be learned without them", hint=TOO_FEW
            )
    return found


def out_of_fold(kind: type[Head], examples: Examples, groups: Sequence[str], *, seed: int) -> TimeArray:
    """Return the scaled logits (N,) of the examples, by heads that did not learn from their videos.

    Raises:
        UsageError: as in `folds`.
    """
    found = np.zeros(len(examples))
    for rows in folds(groups, examples.positive, seed=seed):
        rest = examples.pick(np.delete(np.arange(len(examples)), rows))
        head = kind.fit(rest, seed=seed)
        scale = Scale.of(head, rest)
        found[rows] = scale(np.array([pooled(head, examples.samples[row]) for row in rows]))
    return found


def compare(
    head: TimeArray,
    detector: TimeArray,
    positive: BoolArray,
    groups: Sequence[str],
    *,
    hours: float,
    recall: float,
    seed: int,
) -> Comparison:
    """Return how a head compares with the detector.

    Args:
        head, detector: (N,) scores of the examples.
        positive: (N,) bool, the labels; both must occur.
        groups: the N videos.
        hours: the length of the footage.
        recall: the share of the true examples that must remain, in (0, 1].
        seed: seed of the resamples.
    """
    once = np.ones((1, len(positive)))
    alarms = [float(false_alarms(scores, positive, once, recall)[0]) for scores in (detector, head)]
    number = np.unique(np.array(list(groups)), return_inverse=True)[1]
    count = int(number.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES)[:, number].astype(float)
    drawn = drawn[drawn[:, positive].sum(axis=1) > 0]
    change = false_alarms(head, positive, drawn, recall) - false_alarms(detector, positive, drawn, recall)
    change_per_hour = (alarms[1] - alarms[0]) / hours
    tail = (1.0 - CONFIDENCE) / 2.0
    ends = np.quantile(change, [tail, 1.0 - tail]) / hours
    low, high = (float(end) for end in change_per_hour + widening(count) * (ends - change_per_hour))
    return Comparison(
        recall=recall,
        detector_per_hour=alarms[0] / hours,
        head_per_hour=alarms[1] / hours,
        change_per_hour=change_per_hour,
        low=low,
        high=high,
        detector_auc=auc(detector, positive),
        head_auc=auc(head, positive),
        threshold=threshold_at(head, positive, recall),
    )


def widening(videos: int) -> float:
    """Return the factor by which a percentile interval over this many videos is too narrow.

    Resamples of n videos vary less than new videos, by the factor sqrt((n - 1) / n). Student's t replaces the normal
    distribution, because the spread itself is uncertain (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015).
    """
    from scipy.special import ndtri, stdtrit

    inside = (1.0 + CONFIDENCE) / 2.0
    return float(np.sqrt(videos / (videos - 1)) * stdtrit(videos - 1, inside) / ndtri(inside))


def threshold_at(scores: TimeArray, positive: BoolArray, recall: float) -> float:
    """Return the highest threshold that keeps at least the share `recall` of the true examples."""
    true = np.sort(scores[positive])[::-1]
    return float(true[int(np.ceil(recall * len(true) - 1e-9)) - 1])


def false_alarms(scores: TimeArray, positive: BoolArray, weights: TimeArray, recall: float) -> TimeArray:
    """Return the false alarms (R,) of each resample, at the threshold for the share `recall`.

    Args:
        scores: (N,).
        positive: (N,) bool.
        weights: (R, N) how often each example counts.
        recall: in (0, 1].
    """
    order = np.argsort(-scores, kind="stable")
    weights, positive, scores = weights[:, order], positive[order], scores[order]
    true = np.cumsum(weights * positive, axis=1)
    last = np.argmax(true >= recall * true[:, -1:] - 1e-9, axis=1)
    last = np.searchsorted(-scores, -scores[last], "right") - 1  # false examples with the same score are kept as well
    return np.asarray(np.take_along_axis(np.cumsum(weights * ~positive, axis=1), last[:, None], axis=1)[:, 0])


def auc(scores: TimeArray, positive: BoolArray) -> float:
    """Return the share of pairs in which the true example has the higher score; equal scores count half."""
    true, false = scores[positive], np.sort(scores[~positive])
    below = np.searchsorted(false, true, "left") + np.searchsorted(false, true, "right")
    return float(below.sum() / (2.0 * len(true) * len(false)))
