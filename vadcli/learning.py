"""`vadcli learn`: trains a head on labels and stored vectors, and compares it with the detector alone.

The comparison uses videos on which the head was not trained. The thresholds are chosen so that head and detector have the same
recall: they keep the same share of the true examples. The confidence interval comes from random resamples of whole videos,
because the events of one video depend on one another.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from vadcli.detectors.encoders import encoder_fingerprint, encoder_key, load_encoder
from vadcli.errors import DocumentError, NotBetter, UsageError, WeightsError
from vadcli.heads import HEADS_VERSION, Examples, Head, Labels, Sample, Scale, centred, pooled
from vadcli.heads.stored import (
    Card,
    HeadComparison,
    VideoVectors,
    head_kind,
    logit_of_score,
    reach_of,
    read_vectors,
    write_head,
)
from vadcli.options import LearnOptions
from vadcli.store import OutputLayout, matches
from vadcli.store.atomic import check_folder, write_folder
from vadcli.store.choices import read_review
from vadcli.store.events import EventsDocument, read_unchecked
from vadcli.store.scores import read_scores
from vadcli.types import BoolArray, FloatArray, IndexArray, ReviewedEvent, TimeArray, Verdict
from vadcli.types.text import how_many, no_folder, read_text

LEAST_TRUE, LEAST_FALSE = 5, 20
"""The logistic head is the default if there are this many true and false verdicts. Otherwise it is the retrieval head."""
MOST_CENTRES = 256
"""A head stores the mean vectors of at most this many training videos."""
MOST_FOLDS = 10
RESAMPLES = 1000
CONFIDENCE = 0.95
TOO_FEW = "review more events, in more videos"
EMBED = "store vectors with `vadcli scan --detector concept`"
YES, NO = ("abnormal", "1", "true", "yes"), ("normal", "0", "false", "no")


@dataclass(frozen=True)
class _Labelled:
    """One example for the training: a video, or one event of a video, with a label.

    Attributes:
        sample: the vectors and logits that the head reads.
        video: the name of the video.
        positive: the label: True for an abnormal video or a true event, False for a normal video or a false alarm.
        detector: the logit that the detector gave to the sample.
        category: the category of what happens; "" if it is unknown.
    """

    sample: Sample
    video: str
    positive: bool
    detector: float
    category: str = ""


@dataclass
class _LabelledSet:
    """The labelled samples that have been read so far, and facts about their videos.

    Attributes:
        examples: the labelled samples.
        centres: for each video, one mean vector per encoder.
        cameras: the cameras of the videos, in order.
        encoders: for each set of encoders, the vectors of one example video. The keys are the keys of the encoders. There are
            several entries if the vectors of the videos come from different encoders.
        without_vectors: the number of labels for videos that have no stored vectors.
    """

    examples: list[_Labelled] = field(default_factory=list)
    centres: list[tuple[FloatArray, ...]] = field(default_factory=list)
    cameras: dict[str, None] = field(default_factory=dict)
    encoders: dict[tuple[str, ...], VideoVectors] = field(default_factory=dict)
    without_vectors: int = 0

    @property
    def videos(self) -> list[str]:
        """The names of the videos from which the examples come, in the order of the examples."""
        return [example.video for example in self.examples]

    @property
    def positive(self) -> BoolArray:
        """The labels of the examples, (N,): True for an abnormal video or a true event."""
        return np.array([example.positive for example in self.examples], np.bool_)

    def add_video(self, vectors: VideoVectors) -> None:
        """Add the mean vectors, the camera and the encoders of a video with labels."""
        self.centres.append(tuple(vectors.centre(encoder) for encoder in range(len(vectors.vectors))))
        self.cameras[vectors.camera] = None
        self.encoders[tuple(encoder.key for encoder in vectors.encoders)] = vectors


@dataclass(frozen=True)
class Learned:
    """A trained head that has not been written to a folder yet.

    Attributes:
        card: facts about the training and the quality of the head.
        centres: mean vectors (V, D) of the training videos; V is at most MOST_CENTRES.
        notes: lines of text to print for the user.
        untested: the reason why the head could not be tested; "" if it was tested.
    """

    card: Card
    head: Head = field(repr=False)
    centres: FloatArray = field(repr=False)
    notes: tuple[str, ...] = ()
    untested: str = ""

    @property
    def figures(self) -> HeadComparison | None:
        """The cross-validated figures; None if the head could not be tested."""
        return self.card.figures


def train(out: Path, options: LearnOptions) -> Learned:
    """Return a head that is trained and tested on the labels. Nothing is written.

    Args:
        out: the output folder of a scan.
        options: the options of `vadcli learn`.

    Raises:
        UsageError: the folder does not exist, no vectors are stored, there are too few labels, or the folder for the head is
            not empty.
        DocumentError: a file of labels or of vectors can't be read.
        OutputError: the folder for the head can't be written.
    """
    if not out.is_dir():
        raise UsageError(f"{out}: {no_folder(out)}", hint="name the output folder of a scan")
    if options.to is not None:
        _check_target(options.to, force=options.force)
    stored = filter(None, map(read_unchecked, OutputLayout(out).iter_events()))
    documents = {str(document.video["path"]): document for document in stored if document.failure is None}
    documents = {video: document for video, document in documents.items() if matches(video, options.include)}
    folders = (out, *map(Path, options.embeddings))
    notes: list[str] = []
    if options.review is not None:
        collected = _from_review(folders, read_review(options.review), documents, notes)
        enough = collected.positive.sum() >= LEAST_TRUE and (~collected.positive).sum() >= LEAST_FALSE
        name = options.head or ("logistic" if enough else "retrieval")
    else:
        assert options.labels is not None
        collected = _from_labels(folders, options.labels, documents, notes)
        name = options.head or "mil"
    if collected.without_vectors:
        count = how_many(collected.without_vectors, "label")
        notes.append(f"{count} left out: no vectors are stored for the video ({EMBED})")
    if not collected.examples:
        raise UsageError(f"{options.review or options.labels}: no label can be used", hint="; ".join(notes) or TOO_FEW)
    kind = head_kind(name)
    _check(name, kind, options, collected)
    hours = sum(float(document.video["duration_s"] or 0.0) for document in documents.values()) / 3600.0
    detectors = [documents[video].detector for video in collected.videos]
    detector = max(sorted(set(detectors)), key=detectors.count)
    # Heads multiply only small matrices. Several threads would be slower than one thread, ten times slower on a busy machine.
    with threadpool_limits(1):
        return _trained(name, collected, options, hours=max(hours, 1e-9), detector=detector, notes=notes)


def _from_review(
    folders: Sequence[Path], entries: Sequence[ReviewedEvent], documents: dict[str, EventsDocument], notes: list[str]
) -> _LabelledSet:
    """Return the reviewed events as examples. Add a line to `notes` about verdicts that can't be used."""
    collected = _LabelledSet()
    judged = [entry for entry in entries if entry.verdict is not Verdict.UNSURE and entry.video in documents]
    unsure = sum(entry.verdict is Verdict.UNSURE for entry in entries)
    if unsure:
        notes.append(f"{how_many(unsure, 'verdict')} left out: unsure")
    if others := len(entries) - unsure - len(judged):
        notes.append(f"{how_many(others, 'verdict')} left out: on videos that are not in {folders[0]}")
    for video in dict.fromkeys(entry.video for entry in judged):
        of_video = [entry for entry in judged if entry.video == video]
        vectors = read_vectors(folders, video)
        if vectors is None:
            collected.without_vectors += len(of_video)
            continue
        collected.add_video(vectors)
        for entry in of_video:
            sample = vectors.of_span(entry.start_s, entry.end_s, entry.peak_score)
            detector = logit_of_score(entry.peak_score)
            collected.examples.append(_Labelled(sample, video, entry.verdict is Verdict.TRUE, detector))
    return collected


def _from_labels(folders: Sequence[Path], path: Path, documents: dict[str, EventsDocument], notes: list[str]) -> _LabelledSet:
    """Return the labelled videos as examples. Add a line to `notes` about labels that can't be used."""
    collected = _LabelledSet()
    layout = OutputLayout(folders[0])
    rows = list(read_labels(path))
    if others := [video for video, _, _ in rows if video not in documents]:
        notes.append(f"{how_many(len(others), 'video')} left out: not in {folders[0]}, such as {others[0]}")
    for video, positive, category in rows:
        if video not in documents:
            continue
        vectors = read_vectors(folders, video)
        if vectors is None:
            collected.without_vectors += 1
            continue
        collected.add_video(vectors)
        sample = vectors.whole(read_scores(layout.scores(video))[0])
        collected.examples.append(_Labelled(sample, video, positive, float(sample.logit.max()), category))
    return collected


def read_labels(path: Path) -> Iterator[tuple[str, bool, str]]:
    """For each line of a CSV file, yield the name of a video, its label and its category.

    The label is True for an abnormal video. The category is "" if the line has none. The file has the columns `video` and
    `label`. It may also have the column `category`.

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


def _check(name: str, kind: type[Head], options: LearnOptions, collected: _LabelledSet) -> None:
    """Raise UsageError if this kind of head can't learn from these labels or vectors."""
    given = "--review" if options.review is not None else "--labels"
    wanted = "--review" if kind.labels is Labels.EVENTS else "--labels"
    if given != wanted:
        raise UsageError(f"--head {name} learns from {wanted}, not from {given}")
    if len(collected.encoders) > 1:
        names = sorted({" and ".join(encoder.name for encoder in video.encoders) for video in collected.encoders.values()})
        raise UsageError(
            f"the stored vectors come from several encoders: {', '.join(names)}",
            hint="choose the videos of one encoder with --include",
        )
    count = len(next(iter(collected.encoders)))
    if count != kind.encoders:
        raise UsageError(
            f"--head {name} reads the vectors of {how_many(kind.encoders, 'encoder')}, not of {count}",
            hint="with --embeddings, name the folder that has the vectors of the other encoder"
            if count < kind.encoders
            else "leave --embeddings out",
        )
    missing = [example.video for example in collected.examples if example.positive and not example.category]
    if kind.labels is Labels.CATEGORIES and missing:
        raise UsageError(f"--head {name} needs the category of each abnormal video: {missing[0]} has no category")
    if kind.labels is not Labels.EVENTS and (collected.positive.all() or not collected.positive.any()):
        raise UsageError(f"--labels {options.labels}: needs normal and abnormal videos")


def _trained(
    name: str, collected: _LabelledSet, options: LearnOptions, *, hours: float, detector: str, notes: Sequence[str]
) -> Learned:
    """Return a head of this kind, trained on the examples and, if possible, tested."""
    kind = head_kind(name)
    samples, positive = [example.sample for example in collected.examples], collected.positive
    detector_logits = np.array([example.detector for example in collected.examples])
    vectors = next(iter(collected.encoders.values()))
    mean = tuple(np.asarray(np.mean(centres, axis=0), np.float32) for centres in zip(*collected.centres, strict=True))
    names: tuple[str, ...] = ()
    examples = Examples(samples, positive, mean)
    if kind.labels is Labels.CATEGORIES:
        categories = [example.category for example in collected.examples]
        names = tuple(sorted(set(categories) - {""}))
        numbers = np.array([names.index(category) if category else -1 for category in categories], np.int64)
        examples = replace(examples, category=numbers, texts=_encode_names(vectors, names))
    figures, untested = None, ""
    try:
        scores = out_of_fold(kind, examples, collected.videos, seed=options.seed)
        figures = compare(
            scores,
            detector_logits,
            positive,
            collected.videos,
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
        logits = scale(np.array([pooled(head, sample) for sample in samples]))
        threshold = threshold_at(logits.astype(np.float64), positive, options.recall)
    else:
        threshold = float(detector_logits.min())
    centres = np.stack([by_encoder[0] for by_encoder in collected.centres])
    centres = centres[np.linspace(0, len(centres) - 1, min(MOST_CENTRES, len(centres))).round().astype(np.int64)]
    card = Card(
        kind=name,
        heads_version=HEADS_VERSION,
        seed=options.seed,
        labels=kind.labels,
        detector=detector,
        encoders=vectors.encoders,
        cameras=tuple(collected.cameras),
        videos=len(collected.centres),
        true=int(positive.sum()),
        false=int((~positive).sum()),
        hours=hours,
        figures=figures,
        threshold=threshold,
        scale=scale,
        categories=names,
        reach=reach_of(centres),
    )
    return Learned(card, head, centres, tuple(notes), untested)


def _encode_names(vectors: VideoVectors, names: Sequence[str]) -> FloatArray:
    """Encode C category names. Subtract a mean vector, and return unit vectors (C, D).

    The mean vector is the mean over the vectors of the names and of a neutral text.
    """
    encoder = vectors.encoders[0]
    if encoder_key(encoder_fingerprint(encoder.name)) != encoder.key:
        message = f"the stored vectors were made by an encoder {encoder.name} with other weights"
        raise WeightsError(message, hint="store the vectors again")
    texts = load_encoder(encoder.name).encode_text([*names, "an ordinary scene"])
    return centred(texts, texts.mean(axis=0))[:-1]


def folds(groups: Sequence[str], positive: BoolArray, *, seed: int) -> list[IndexArray]:
    """Divide examples into at most MOST_FOLDS folds. Return the row numbers of each fold.

    A group is the examples of one video. All rows of a group are in the same fold.

    The groups with the most positive rows are assigned first, and each goes to the fold with the fewest positive rows. Groups
    without positive rows are assigned last, and each goes to the fold with the fewest rows. So, if possible, no fold contains
    all positive rows or all negative rows.

    Raises:
        UsageError: one fold contains all positive rows or all negative rows, so a head could not be trained on the other folds.
    """
    names = np.array(list(groups))
    unique = np.random.default_rng(seed).permutation(np.unique(names))
    counts = {name: (int(positive[names == name].sum()), int((names == name).sum())) for name in unique}
    assigned: list[list[str]] = [[] for _ in range(min(MOST_FOLDS, len(unique)))]
    for name in sorted(unique, key=lambda name: counts[name], reverse=True):
        compared = (0, 1) if counts[name][0] else (1,)  # the numbers of `counts` that decide: positive rows, all rows
        sums = [tuple(sum(counts[group][number] for group in fold) for number in compared) for fold in assigned]
        assigned[sums.index(min(sums))].append(name)
    rows_of_folds = [np.flatnonzero(np.isin(names, fold)) for fold in assigned]
    for rows in rows_of_folds:
        rest = np.delete(positive, rows)
        if not rest.any() or rest.all():
            label = "true" if not rest.any() else "false"
            raise UsageError(
                f"the {label} labels are in too few videos, so the head can't be tested on videos that it did not learn from",
                hint=TOO_FEW,
            )
    return rows_of_folds


def out_of_fold(kind: type[Head], examples: Examples, groups: Sequence[str], *, seed: int) -> TimeArray:
    """Return the scaled logits (N,) of the examples. The head for an example was not trained on this example's video.

    Raises:
        UsageError: as in `folds`.
    """
    logits = np.zeros(len(examples))
    for rows in folds(groups, examples.positive, seed=seed):
        rest = examples.pick(np.delete(np.arange(len(examples)), rows))
        head = kind.fit(rest, seed=seed)
        scale = Scale.of(head, rest)
        logits[rows] = scale(np.array([pooled(head, examples.samples[row]) for row in rows]))
    return logits


def compare(
    head: TimeArray,
    detector: TimeArray,
    positive: BoolArray,
    groups: Sequence[str],
    *,
    hours: float,
    recall: float,
    seed: int,
) -> HeadComparison:
    """Return a comparison of a head with the detector.

    Args:
        head, detector: (N,) scores that the head and the detector give to the examples.
        positive: (N,) bool, the labels; both must occur.
        groups: the name of the video of each example.
        hours: the length of the footage in hours.
        recall: the share of the true examples that must reach the threshold, in (0, 1].
        seed: seed of the random resamples of the videos.
    """
    once = np.ones((1, len(positive)))
    alarms = [float(false_alarms(scores, positive, once, recall)[0]) for scores in (detector, head)]
    video = np.unique(np.array(list(groups)), return_inverse=True)[1]
    count = int(video.max()) + 1
    times_drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES)
    weights = times_drawn[:, video].astype(float)  # (R, N)
    weights = weights[weights[:, positive].sum(axis=1) > 0]  # a resample without true examples has no recall
    change = false_alarms(head, positive, weights, recall) - false_alarms(detector, positive, weights, recall)
    change_per_hour = (alarms[1] - alarms[0]) / hours
    tail = (1.0 - CONFIDENCE) / 2.0
    ends = np.quantile(change, [tail, 1.0 - tail]) / hours
    low, high = (float(end) for end in change_per_hour + widening(count) * (ends - change_per_hour))
    return HeadComparison(
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
    """Return the factor by which a confidence interval from resamples of n videos is too narrow.

    There are two reasons (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015). Resamples vary less than new
    videos do, by the factor sqrt((n - 1) / n). And the spread is only an estimate, so Student's t distribution is right, and
    not the normal distribution.
    """
    from scipy.special import ndtri, stdtrit

    inside = (1.0 + CONFIDENCE) / 2.0
    return float(np.sqrt(videos / (videos - 1)) * stdtrit(videos - 1, inside) / ndtri(inside))


def threshold_at(scores: TimeArray, positive: BoolArray, recall: float) -> float:
    """Return the highest threshold that at least the share `recall` of the true examples reaches."""
    true = np.sort(scores[positive])[::-1]
    return float(true[int(np.ceil(recall * len(true) - 1e-9)) - 1])


def false_alarms(scores: TimeArray, positive: BoolArray, weights: TimeArray, recall: float) -> TimeArray:
    """Return the number of false alarms (R,) in each of R random resamples of the examples.

    Each resample has its own threshold: the highest threshold that at least the share `recall` of its true examples reaches.

    Args:
        scores: (N,) scores of the examples.
        positive: (N,) bool, the labels.
        weights: (R, N), how often each example is in each resample.
        recall: the share of the true examples that must reach the threshold, in (0, 1].
    """
    order = np.argsort(-scores, kind="stable")
    weights, positive, scores = weights[:, order], positive[order], scores[order]
    true = np.cumsum(weights * positive, axis=1)
    last = np.argmax(true >= recall * true[:, -1:] - 1e-9, axis=1)
    last = np.searchsorted(-scores, -scores[last], "right") - 1  # false examples whose score equals the threshold count too
    return np.asarray(np.take_along_axis(np.cumsum(weights * ~positive, axis=1), last[:, None], axis=1)[:, 0])


def auc(scores: TimeArray, positive: BoolArray) -> float:
    """Return the AUC: the share of the pairs (true example, false example) in which the true example scores higher.

    A pair with equal scores counts half.
    """
    true, false = scores[positive], np.sort(scores[~positive])
    below = np.searchsorted(false, true, "left") + np.searchsorted(false, true, "right")
    return float(below.sum() / (2.0 * len(true) * len(false)))


def _check_target(to: Path, *, force: bool) -> None:
    """Check that a head can be written to a folder.

    Raises:
        UsageError: the folder is not empty.
        OutputError: the folder can't be written.
    """
    if to.exists() and not (force and (to / "card.json").exists()) and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"--to {to}: exists already", hint="name a new folder, or replace a head with --force")
    check_folder(to.absolute().parent)


def write(learned: Learned, options: LearnOptions) -> Path | None:
    """Write the head to the folder `options.to`, and return the folder. If `to` is None, do nothing.

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
        raise NotBetter(f"the head is not written: {why}", hint="review more events, or write the head with --anyway")
    _check_target(to, force=options.force)  # again, because the training took time
    write_folder(to, lambda folder: write_head(folder, learned.card, learned.head, learned.centres))
    return to
