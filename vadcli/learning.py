"""`vadcli learn`: trains a head on labels and stored vectors, and tests on other videos whether it is better than the detector.

The head and the detector are compared at the same recall: the threshold of each is set so that it keeps the same share of the
true examples. The interval draws videos with replacement, because the events of one video depend on one another.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from vadcli.errors import DocumentError, NotBetter, UsageError
from vadcli.heads import HEADS_VERSION, Examples, Head, Labels, Sample, Scale, pooled
from vadcli.heads.stored import Card, Comparison, VideoVectors, head_kind, logit_of_score, reach_of, read_vectors, write_head
from vadcli.options import LearnOptions
from vadcli.store import OutputLayout, matches
from vadcli.store.atomic import writing
from vadcli.store.choices import read_review
from vadcli.store.events import EventsDocument, read_unchecked
from vadcli.store.scores import read_scores
from vadcli.types import BoolArray, FloatArray, IndexArray, ReviewedEvent, TimeArray, Verdict
from vadcli.types.text import how_many, read_text

LEAST_TRUE, LEAST_FALSE = 5, 20
"""The logistic head is the default if there are at least this many verdicts of each kind."""
MOST_CENTRES = 256
MOST_FOLDS = 10
RESAMPLES = 1000
CONFIDENCE = 0.95
TOO_FEW = "review more events, in more videos"
EMBED = "store vectors with `vadcli scan --detector concept`"
YES, NO = ("abnormal", "1", "true", "yes"), ("normal", "0", "false", "no")


@dataclass
class _Collected:
    """The examples that have been read so far, video by video."""

    samples: list[Sample] = field(default_factory=list)
    positive: list[bool] = field(default_factory=list)
    category: list[str] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    detector: list[float] = field(default_factory=list)
    centres: list[tuple[FloatArray, ...]] = field(default_factory=list)
    cameras: dict[str, None] = field(default_factory=dict)
    encoders: dict[tuple[str, ...], VideoVectors] = field(default_factory=dict)
    without: int = 0

    def see(self, found: VideoVectors) -> None:
        """Add the mean vectors, the camera and the encoders of a video that has labels."""
        self.centres.append(tuple(found.centre(place) for place in range(len(found.vectors))))
        self.cameras[found.camera] = None
        self.encoders[tuple(one.key for one in found.encoders)] = found

    def add(self, sample: Sample, positive: bool, video: str, detector: float, category: str = "") -> None:
        """Add an example."""
        self.samples.append(sample)
        self.positive.append(positive)
        self.videos.append(video)
        self.detector.append(detector)
        self.category.append(category)


@dataclass(frozen=True)
class Learned:
    """A trained head that is not written yet.

    Attributes:
        card: the training data of the head, and its figures; the figures are None if the head could not be tested.
        centres: mean vectors (V, D) of the training videos, or of MOST_CENTRES of them.
        notes: lines for the user.
        untested: why the head could not be tested; "" if it was tested.
    """

    card: Card
    head: Head = field(repr=False)
    centres: FloatArray = field(repr=False)
    notes: tuple[str, ...] = ()
    untested: str = ""

    @property
    def figures(self) -> Comparison | None:
        """The cross-validated figures."""
        return self.card.figures


def train(out: Path, options: LearnOptions) -> Learned:
    """Return a head that is trained and tested on the labels. Nothing is written.

    Raises:
        UsageError: the folder does not exist, no vectors are stored, or there are too few labels.
        DocumentError: a file of labels or of vectors can't be read.
    """
    if not out.is_dir():
        raise UsageError(f"{out}: the folder does not exist", hint="name the --out folder of a scan")
    stored = filter(None, map(read_unchecked, OutputLayout(out).iter_events()))
    documents = {str(one.video["path"]): one for one in stored if one.failure is None}
    documents = {video: one for video, one in documents.items() if matches(video, options.include)}
    folders = (out, *map(Path, options.embeddings))
    notes: list[str] = []
    if options.review is not None:
        found = _from_review(folders, read_review(options.review), documents, notes)
        counts = sum(found.positive), len(found.positive) - sum(found.positive)
        enough = counts[0] >= LEAST_TRUE and counts[1] >= LEAST_FALSE
        name = options.head or ("logistic" if enough else "retrieval")
    else:
        assert options.labels is not None
        found = _from_labels(folders, options.labels, documents, notes)
        name = options.head or "mil"
    if found.without:
        notes.append(f"{how_many(found.without, 'label')} left out: no vectors are stored for the video ({EMBED})")
    if not found.samples:
        raise UsageError(f"{options.review or options.labels}: no label can be used", hint="; ".join(notes) or TOO_FEW)
    kind = head_kind(name)
    _check(name, kind, options, found)
    hours = sum(float(one.video["duration_s"] or 0.0) for one in documents.values()) / 3600.0
    detectors = [documents[video].detector for video in found.videos]
    detector = max(sorted(set(detectors)), key=detectors.count)
    # Heads multiply only small matrices. Several threads make this slower: ten times on a busy machine.
    with threadpool_limits(1):
        return _trained(name, found, options, hours=max(hours, 1e-9), detector=detector, notes=notes)


def _from_review(
    folders: Sequence[Path], entries: Sequence[ReviewedEvent], documents: dict[str, EventsDocument], notes: list[str]
) -> _Collected:
    found = _Collected()
    judged = [entry for entry in entries if entry.verdict is not Verdict.UNSURE and entry.video in documents]
    unsure = sum(entry.verdict is Verdict.UNSURE for entry in entries)
    if unsure:
        notes.append(f"{how_many(unsure, 'verdict')} left out: unsure")
    if others := len(entries) - unsure - len(judged):
        notes.append(f"{how_many(others, 'verdict')} left out: on other videos than those of {folders[0]}")
    for video in dict.fromkeys(entry.video for entry in judged):
        own = [entry for entry in judged if entry.video == video]
        vectors = read_vectors(folders, video)
        if vectors is None:
            found.without += len(own)
            continue
        found.see(vectors)
        for entry in own:
            sample = vectors.of_span(entry.start_s, entry.end_s, entry.peak_score)
            found.add(sample, entry.verdict is Verdict.TRUE, video, logit_of_score(entry.peak_score))
    return found


def _from_labels(folders: Sequence[Path], path: Path, documents: dict[str, EventsDocument], notes: list[str]) -> _Collected:
    found = _Collected()
    layout = OutputLayout(folders[0])
    rows = list(read_labels(path))
    if others := [video for video, _, _ in rows if video not in documents]:
        notes.append(f"{how_many(len(others), 'video')} left out: not in {folders[0]}, such as {others[0]}")
    for video, positive, category in rows:
        if video not in documents:
            continue
        vectors = read_vectors(folders, video)
        if vectors is None:
            found.without += 1
            continue
        found.see(vectors)
        sample = vectors.whole(read_scores(layout.scores(video))[0])
        found.add(sample, positive, video, float(sample.logit.max()), category)
    return found


def read_labels(path: Path) -> Iterator[tuple[str, bool, str]]:
    """Yield (video, True if it is abnormal, category) for each line of a CSV file of labels.

    The file has the columns video, label and perhaps category.

    Raises:
        DocumentError: the file can't be read, or a line is not valid.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if not {"video", "label"} <= set(reader.fieldnames or ()):
        raise DocumentError(f"{path}: needs the columns video and label", hint="the first line is video,label[,category]")
    seen: set[str] = set()
    for row in reader:
        video, label = (row["video"] or "").strip(), (row["label"] or "").strip().lower()
        where = f"{path}, line {reader.line_num}"
        if label not in (*YES, *NO):
            raise DocumentError(f"{where}: the label {label!r} is not known", hint="write normal or abnormal")
        if not video or video in seen:
            raise DocumentError(f"{where}: {f'{video} has a label already' if video else 'the video is missing'}")
        seen.add(video)
        category = (row.get("category") or "").strip()
        yield video, label in YES, category if label in YES else ""


def _check(name: str, kind: type[Head], options: LearnOptions, found: _Collected) -> None:
    """Raise UsageError if this kind of head can't learn from these labels or vectors."""
    given = "--review" if options.review is not None else "--labels"
    wanted = "--review" if kind.labels is Labels.EVENTS else "--labels"
    if given != wanted:
        raise UsageError(f"--head {name} learns from {wanted}, not from {given}")
    if len(found.encoders) > 1:
        names = sorted({" and ".join(one.name for one in vectors.encoders) for vectors in found.encoders.values()})
        raise UsageError(
            f"the stored vectors come from several encoders: {', '.join(names)}",
            hint="choose videos of one of them with --include",
        )
    count = len(next(iter(found.encoders)))
    if count != kind.encoders:
        raise UsageError(
            f"--head {name} reads the vectors of {how_many(kind.encoders, 'encoder')}, not of {count}",
            hint="name the folder that has the other encoder's vectors, with --embeddings"
            if count < kind.encoders
            else "leave --embeddings out",
        )
    if kind.labels is Labels.CATEGORIES:
        missing = [
            video for video, yes, name in zip(found.videos, found.positive, found.category, strict=True) if yes and not name
        ]
        if missing:
            raise UsageError(f"--head {name} needs the category of each abnormal video: {missing[0]} has none")
    if kind.labels is not Labels.EVENTS and (all(found.positive) or not any(found.positive)):
        raise UsageError(f"--labels {options.labels}: needs normal and abnormal videos")


def _trained(
    name: str, found: _Collected, options: LearnOptions, *, hours: float, detector: str, notes: Sequence[str]
) -> Learned:
    kind = head_kind(name)
    positive = np.array(found.positive)
    vectors = next(iter(found.encoders.values()))
    mean = tuple(np.asarray(np.mean(each, axis=0), np.float32) for each in zip(*found.centres, strict=True))
    names = tuple(sorted({one for one in found.category if one}))
    needs = kind.labels is Labels.CATEGORIES
    category = np.array([names.index(one) if one else -1 for one in found.category], np.int64)
    texts = _encode_names(vectors, names) if needs else np.zeros((0, 0), np.float32)
    examples = Examples(found.samples, positive, mean, category if needs else np.zeros(0, np.int64), texts)
    figures, untested = None, ""
    try:
        scores = out_of_fold(kind, examples, found.videos, seed=options.seed)
        figures = compare(
            scores,
            np.array(found.detector),
            positive,
            found.videos,
            hours=hours,
            recall=options.recall,
            seed=options.seed,
        )
    except UsageError as error:
        if not options.anyway:
            raise
        untested = error.message
    head = kind.fit(examples, seed=options.seed)
    scale = Scale.of(head, examples)
    if figures is not None:
        threshold = figures.threshold
    elif positive.any():
        threshold = threshold_at(
            scale(np.array([pooled(head, one) for one in found.samples])).astype(np.float64), positive, options.recall
        )
    else:
        threshold = min(found.detector)
    centres = np.stack([each[0] for each in found.centres])
    centres = centres[np.linspace(0, len(centres) - 1, min(MOST_CENTRES, len(centres))).round().astype(np.int64)]
    card = Card(
        kind=name,
        heads_version=HEADS_VERSION,
        seed=options.seed,
        labels=kind.labels,
        detector=detector,
        encoders=vectors.encoders,
        cameras=tuple(found.cameras),
        videos=len(found.centres),
        true=int(positive.sum()),
        false=int((~positive).sum()),
        hours=hours,
        figures=figures,
        threshold=threshold,
        scale=scale,
        categories=names if needs else (),
        reach=reach_of(centres),
    )
    return Learned(card, head, centres, tuple(notes), untested)


def _encode_names(vectors: VideoVectors, names: Sequence[str]) -> FloatArray:
    """Return unit vectors (C, D) of category names, minus the mean of all names and a neutral text."""
    from vadcli.detectors.encoders import encoder_fingerprint, encoder_key, load_encoder
    from vadcli.errors import WeightsError
    from vadcli.heads import centred

    encoder = vectors.encoders[0]
    if encoder_key(encoder_fingerprint(encoder.name)) != encoder.key:
        raise WeightsError(f"the stored vectors were made by an encoder {encoder.name} with other weights", hint="embed again")
    texts = load_encoder(encoder.name).encode_text([*names, "an ordinary scene"])
    return centred(texts, texts.mean(axis=0))[:-1]


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


def write(learned: Learned, options: LearnOptions) -> Path | None:
    """Write the head to `options.to`. Returns this folder, or None if the options name no folder.

    Raises:
        NotBetter: the head is not better than the detector alone, or could not be tested, and `anyway` is not set.
        UsageError: the folder is not empty.
        OutputError: the folder can't be written.
    """
    to = options.to
    if to is None:
        return None
    figures = learned.card.figures
    if not options.anyway and (figures is None or not figures.is_better):
        why = learned.untested or "it may not be better than the detector alone: the interval of the change reaches 0"
        raise NotBetter(f"the head is not written: {why}", hint="review more events, or write it with --anyway")
    old = to / "card.json"
    if to.exists() and not (options.force and old.exists()) and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"--to {to}: exists already", hint="name a new folder, or replace a head with --force")
    made = to.with_name(f".{to.name}.part")
    with writing(to):
        shutil.rmtree(made, ignore_errors=True)
        write_head(made, learned.card, learned.head, learned.centres)
        if to.exists():
            shutil.rmtree(to)
        made.rename(to)
    return to
