"""Compares stored scores with a data set's ground truth. No detector is run.

`figures` reads the scores and the ground truth, and computes the metrics. The functions in this file are for `vadcli eval`:
they compare scans, print the report as a table, JSON, Markdown or LaTeX rows, and store it. `plots` draws curves and contact
sheets. Only contact sheets need the videos.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vadcli import __version__
from vadcli.errors import OutputError, UsageError
from vadcli.evaluation.figures import GROUPS, NEEDS_MASKS, Estimates, Protocol, TestSet, collect, measure
from vadcli.ground_truth import open_ground_truth
from vadcli.ground_truth.interval_sets import template_from_events, template_from_labels
from vadcli.metrics import Bootstrap, Estimate, Metric, difference
from vadcli.options import EvalOptions
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch, check_folder
from vadcli.store.events import EventsDocument, read_events
from vadcli.store.scores import read_scores, read_video
from vadcli.types.text import how_many

__all__ = [
    "GROUPS",
    "Evaluation",
    "Protocol",
    "TestSet",
    "collect",
    "compared",
    "document_of",
    "evaluate_outputs",
    "events_as_truth",
    "inputs_of",
    "keep_figures",
    "measure",
    "merged",
    "store_document",
    "to_latex",
    "to_markdown",
    "to_table",
    "truth_in_seconds",
    "truth_of",
]

FORMAT_VERSION = 1
UNLIKE_MASKS = "some runs have mask videos, others only run lengths (two levels): do not compare their pixel and region figures"
UNPAIRED = "no interval of the difference: the runs have frames of different videos"
TITLES = {
    "frame.auc_micro": "frame ROC-AUC, all frames",
    "frame.auc_macro": "frame ROC-AUC, within videos",
    "frame.ap_micro": "frame AP, all frames",
    "frame.ap_macro": "frame AP, within videos",
    "pixel.auc": "pixel ROC-AUC",
    "pixel.ap": "pixel AP",
    "pixel.mask_iou": "mask IoU, positive frames",
    "pixel.aupro": "AUPRO (FPR up to 0.3)",
    "pixel.aupimo": "AUPIMO (FPR 1e-5 to 1e-4)",
    "region.rbdc": "RBDC",
    "region.tbdc": "TBDC",
    "event.recall": "events found",
    "event.onset_error_s": "onset error, s",
    "event.false_alarms_per_hour": "false alarms per hour",
    "range.pate": "PATE",
    "severity.spearman": "severity and score, Spearman",
    "severity.kendall": "severity and score, Kendall",
}


@dataclass(frozen=True)
class Evaluation:
    """The report about one scan of one data set.

    Attributes:
        dataset: name of the data set.
        test: the scores and the ground truth that were read.
        protocol: the settings of the evaluation.
        metrics: the metrics, by group and then by name.
        against: the differences (value of this scan minus value of the first scan), by group and then by name; None for the
            first or only scan.
    """

    dataset: str
    test: TestSet
    protocol: Protocol
    metrics: Mapping[str, Mapping[str, Metric]]
    against: Mapping[str, Mapping[str, Metric]] | None = None

    @classmethod
    def of(cls, dataset: str, test: TestSet, protocol: Protocol, estimates: Estimates) -> Evaluation:
        """Return the report with the values of the estimates, and intervals if `protocol` has a bootstrap.

        Args:
            dataset: name of the data set.
            test: the scores and the ground truth that were read.
            protocol: the settings of the evaluation.
            estimates: the estimates, by group of metrics and then by name.
        """
        metrics = {
            group: {name: estimate.metric(protocol.bootstrap) for name, estimate in figures.items()}
            for group, figures in estimates.items()
        }
        return cls(dataset, test, protocol, metrics)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON with unrounded numbers, such as `metrics.frame.auc_micro.value`."""
        document: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "generator": f"vadcli {__version__}",
            "dataset": self.dataset,
            "out": str(self.test.out),
            "detector": list(self.test.detectors),
            "videos": len(self.test.videos),
            "frames": len(self.test.frames.scores),
            "abnormal_frames": int(self.test.frames.labels.sum()),
            "left_out": {
                "unscored": list(self.test.unscored),
                "unknown": list(self.test.unknown),
                "unmasked": list(self.test.unmasked),
            },
            "overhang_frames": self.test.overhang_frames,
            "two_level_masks": list(self.test.two_level),
            "partial": list(self.test.partial),
            "damaged_frames": dict(self.test.damaged),
            "protocol": self.protocol.to_json(),
            "metrics": _plain(self.metrics),
        }
        if self.against is not None:
            document["difference_to_first"] = _plain(self.against)
        return document


def compared(reports: Sequence[Evaluation], estimates: Sequence[Estimates]) -> list[Evaluation]:
    """Return the reports. In every report except the first, `against` has the differences from the first.

    Raises:
        UsageError: a scan has other videos than the first scan, or has masks of other videos.
    """
    first, bootstrap = reports[0].test, reports[0].protocol.bootstrap
    with_differences = [reports[0]]
    for report, theirs in zip(reports[1:], estimates[1:], strict=True):
        test = report.test
        with_masks = [side for side in (first, test) if side.pixels is not None]
        if first.truths != test.truths or (len(with_masks) == 2 and _masked(first) != _masked(test)):
            which = "different videos" if first.truths != test.truths else "masks of different videos"
            raise UsageError(
                f"{first.out} and {test.out} have {which}",
                hint="scan the same videos into both folders",
            )
        unlike = bool(first.two_level) != bool(test.two_level)
        shared = {
            group: {
                name: _versus(theirs[group][name], mine, bootstrap, UNLIKE_MASKS if unlike and group in NEEDS_MASKS else "")
                for name, mine in figures.items()
                if name in theirs[group]
            }
            for group, figures in estimates[0].items()
            if group in theirs and bootstrap is not None
        }
        with_differences.append(replace(report, against=shared))
    return with_differences


def _masked(test: TestSet) -> list[str]:
    names = dict(zip(test.videos, test.truths, strict=True))
    return [names[video] for video in test.pixels.names] if test.pixels is not None else []


def _versus(theirs: Estimate, mine: Estimate, bootstrap: Bootstrap, note: str) -> Metric:
    """Return `theirs` minus `mine` with a note.

    If the numbers of videos differ, the difference has no interval.
    """
    videos = min(theirs.drawn, mine.drawn)
    if theirs.drawn == mine.drawn:
        metric = difference(theirs, mine, bootstrap)
    elif theirs.value is None or mine.value is None:
        metric = Metric(None, videos=videos, note=theirs.note if theirs.value is None else mine.note)
    else:
        metric = Metric(theirs.value - mine.value, videos=videos, note=UNPAIRED)
    return replace(metric, note="; ".join(part for part in (metric.note, note) if part))


def to_table(reports: Sequence[Evaluation]) -> str:
    """Return the reports as a table for the terminal, with one column per scan."""
    test = reports[0].test
    named = {str(report.test.out): ", ".join(report.test.detectors) for report in reports}
    if len(set(named.values())) == 1:
        by = f"detector {named[str(test.out)]}"
    else:
        by = "detectors " + "; ".join(f"{out}: {detectors}" for out, detectors in named.items())
    lines = [
        f"{reports[0].dataset}: {how_many(len(test.videos), 'video')}, {how_many(len(test.frames.scores), 'frame')}, "
        f"{int(test.frames.labels.sum())} abnormal; {by}"
    ]
    rows = [("", *(str(report.test.out) for report in reports)) if len(reports) > 1 else ("", "value [interval]")]
    rows += [(title, *cells) for title, cells in _cells(reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"note: {note}" for note in _notes(reports)]
    return "\n".join(lines) + "\n"


def to_markdown(reports: Sequence[Evaluation]) -> str:
    """Return the reports as a Markdown table with one column per scan, followed by the notes."""
    names = [str(report.test.out) for report in reports] if len(reports) > 1 else ["value"]
    lines = [f"| {reports[0].dataset} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {title} | " + " | ".join(cells) + " |" for title, cells in _cells(reports)]
    return "\n".join([*lines, "", *(f"{note}  " for note in _notes(reports))]) + "\n"


def to_latex(reports: Sequence[Evaluation]) -> str:
    """Return the reports as rows of a LaTeX table, without the `tabular` environment."""
    return "".join(
        f"{_escaped(title)} & " + " & ".join(_escaped(cell) for cell in cells) + r" \\" + "\n"
        for title, cells in _cells(reports)
    )


def _cells(reports: Sequence[Evaluation]) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of the report: (title, one cell per report) for each metric of at least one report."""
    groups = [group for group in GROUPS if any(group in report.metrics for report in reports)]
    for group in groups:
        for name in dict.fromkeys(name for report in reports for name in report.metrics.get(group, {})):
            cells = []
            for report in reports:
                metric = report.metrics.get(group, {}).get(name)
                versus = (report.against or {}).get(group, {}).get(name)
                cells.append("-" if metric is None else _shown(metric, versus))
            yield _title(group, name), cells


def _title(group: str, name: str) -> str:
    if name.startswith("f1_iou_"):
        return f"event F1 at IoU {name.removeprefix('f1_iou_')}"
    return TITLES.get(f"{group}.{name}", f"{group}: {name}")


def _shown(metric: Metric, versus: Metric | None) -> str:
    if metric.value is None:
        return "undefined"
    text = f"{metric.value:.4f}"
    if metric.ci_low is not None and metric.ci_high is not None:
        text += f" [{metric.ci_low:.4f}, {metric.ci_high:.4f}]"
    if versus is not None and versus.value is not None:
        text += f" ({versus.value:+.4f}"
        if versus.ci_low is not None and versus.ci_high is not None:
            text += f" [{versus.ci_low:+.4f}, {versus.ci_high:+.4f}]"
        text += ")"
    return text


def _notes(reports: Sequence[Evaluation]) -> list[str]:
    """Return the notes of all reports.

    If only some reports have a note, the note starts with the folders of these reports.
    """
    by_note: dict[str, list[str]] = {}
    for report in reports:
        for note in _notes_of(report):
            by_note.setdefault(note, []).append(str(report.test.out))
    notes = [note if len(outs) == len(reports) else f"{', '.join(outs)}: {note}" for note, outs in by_note.items()]
    two_level = [bool(report.test.two_level) for report in reports if report.test.masked]
    if any(two_level) and not all(two_level):
        notes.append(UNLIKE_MASKS)
    return notes


def _notes_of(report: Evaluation) -> list[str]:
    """Return the notes on protocol, data and metrics; metrics with the same note share one line."""
    protocol, test = report.protocol, report.test
    notes = ["frame and category figures use only sampled frames"] if protocol.only_sampled else []
    if protocol.pixel_size is not None:
        notes.append("pixel figures at {}x{} (height x width)".format(*protocol.pixel_size))
    if test.overhang_frames:
        notes.append(f"{test.overhang_frames} annotated frames lie after the end of their video and are ignored")
    if test.partial:
        notes.append(f"{how_many(len(test.partial), 'partial video')}: the frames up to the last scored frame are used")
    if test.damaged:
        damaged = how_many(sum(test.damaged.values()), "frame")
        notes.append(f"decoded with errors, but used: {damaged} of {how_many(len(test.damaged), 'video')}")
    for side, names in (("without scores", test.unscored), ("without truth", test.unknown)):
        notes += [f"left out: {how_many(len(names), 'video')} {side}"] if names else []
    if test.pixels is not None and "pixel" in report.metrics and len(test.pixels.names) < len(test.videos):
        notes.append(
            f"pixel figures use {len(test.pixels.names)} of {len(test.videos)} videos: those with pixel truth and masks"
        )
    if test.unmasked and test.pixels is None and not protocol.groups:
        notes.append("no pixel figures: no masks are stored (scan with --masks video)")
    by_note: dict[str, dict[str, None]] = {}
    for group, figures in report.metrics.items():
        for name, metric in figures.items():
            if metric.note:
                by_note.setdefault(metric.note, {})[_title(group, name)] = None
    return notes + [f"{'; '.join(titles)}: {note}" for note, titles in by_note.items()]


def _plain(metrics: Mapping[str, Mapping[str, Metric]]) -> dict[str, dict[str, Any]]:
    return {group: {name: metric.to_json() for name, metric in figures.items()} for group, figures in metrics.items()}


def _escaped(text: str) -> str:
    return "".join(f"\\{character}" if character in "&%$#_{}" else character for character in text)


SAME = ("format_version", "generator", "dataset", "root", "inputs")
"""Two documents are merged only if they have the same values of these keys, and protocols that differ only in `groups`."""


def document_of(report: Evaluation, root: Path) -> dict[str, Any]:
    """Return a report as JSON, with the path of the ground truth and a hash of the data that was read."""
    return {**report.to_json(), "root": str(root), "inputs": inputs_of(report.test)}


def store_document(document: dict[str, Any], layout: OutputLayout) -> Path:
    """Write a document from `document_of` to OUT/eval/<dataset>.json, and return the path.

    Metrics of other groups that are already in the file may stay there; see `merged`.

    Raises:
        OutputError: the file cannot be written.
    """
    final = layout.evaluation(document["dataset"])
    try:
        earlier = json.loads(final.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = None
    with Scratch(layout.scratch) as scratch, scratch.replace(final) as path:
        path.write_text(json.dumps(merged(earlier, document), indent=2) + "\n", encoding="utf-8")
    return final


def merged(earlier: dict[str, Any] | None, document: dict[str, Any]) -> dict[str, Any]:
    """Return `document`, plus the groups of metrics that only `earlier` has.

    If the two documents have different inputs or protocols, return `document` unchanged.
    """
    needed = {*SAME, "protocol", "metrics", "left_out", "two_level_masks"}
    if not isinstance(earlier, dict) or not needed <= set(earlier) or any(earlier[key] != document[key] for key in SAME):
        return document
    if {**earlier["protocol"], "groups": None} != {**document["protocol"], "groups": None}:
        return document
    added = [group for group in earlier["metrics"] if group not in document["metrics"]]
    if not added:
        return document
    figures = {**earlier["metrics"], **document["metrics"]}
    chosen = (earlier["protocol"]["groups"], document["protocol"]["groups"])
    groups = [group for group in GROUPS if group in chosen[0] or group in chosen[1]] if all(chosen) else []
    whole = {**document, "metrics": {group: figures[group] for group in GROUPS if group in figures}}
    whole["protocol"] = {**document["protocol"], "groups": groups}
    if not set(added).isdisjoint(NEEDS_MASKS) and set(document["metrics"]).isdisjoint(NEEDS_MASKS):
        whole["two_level_masks"] = earlier["two_level_masks"]
        whole["left_out"] = {**document["left_out"], "unmasked": earlier["left_out"]["unmasked"]}
    return whole


def inputs_of(test: TestSet) -> str:
    """Return a hexadecimal hash of the data from which the metrics are computed.

    It depends on the content of scores, labels and events, and on the size and time of the files with stored masks. It does not
    depend on the true masks.
    """
    digest, layout = hashlib.sha256(), OutputLayout(test.out)
    digest.update(json.dumps([test.videos, list(test.categories)]).encode())
    frames = test.frames
    truth = (*test.categories.values(), *test.events.true, *([test.severity.severity] if test.severity is not None else []))
    for array in (frames.scores, frames.labels, frames.offsets, frames.sampled, *truth, *test.category_scores.values()):
        if array is not None:
            digest.update(array.tobytes())
    for video in test.videos:
        try:
            digest.update(hashlib.sha256(layout.events(video).read_bytes()).digest())
        except OSError:
            digest.update(b"-")
        for path in (layout.mask_video(video), layout.mask_rle(video)):
            state = path.stat() if path.exists() else None
            digest.update(f"{state.st_size} {state.st_mtime_ns}".encode() if state else b"-")
    return digest.hexdigest()


def evaluate_outputs(outs: Sequence[Path], options: EvalOptions) -> list[Evaluation]:
    """Return one report per output folder.

    Every report except the first also has the differences from the first report.

    Raises:
        UsageError: an option, folder or data set cannot be used.
        DocumentError: an annotation or stored file is damaged.
        OutputError: the folder of --plots can't be written.
    """
    if options.compare and len(outs) < 2:
        raise UsageError("--compare needs two OUT or more", hint="give the output folders of the scans to compare")
    truth = open_ground_truth(options.dataset, _root(options))
    if options.plots is not None:
        check_folder(options.plots)
    bootstrap = Bootstrap(options.bootstrap, options.confidence, options.seed) if options.bootstrap else None
    protocol = Protocol(
        endpoints=options.endpoints,
        only_sampled=options.only_sampled,
        pixel_size=options.size(),
        groups=options.groups(),
        bootstrap=bootstrap,
    )
    tests = [
        collect(
            out,
            truth,
            allow_missing=options.allow_missing,
            pixels=protocol.wants("pixel", "region"),
            pixel_size=protocol.pixel_size,
            events=protocol.wants("event") or options.plots is not None,
        )
        for out in outs
    ]
    estimates = [measure(test, protocol) for test in tests]
    reports = [Evaluation.of(options.dataset, test, protocol, figures) for test, figures in zip(tests, estimates, strict=True)]
    return compared(reports, estimates)


def keep_figures(reports: Sequence[Evaluation], options: EvalOptions) -> None:
    """Store each report in the output folder of its scan if `options.save` is True.

    Raises:
        OutputError: a file cannot be written.
    """
    for report in reports if options.save else ():
        try:
            store_document(document_of(report, _root(options)), OutputLayout(report.test.out))
        except OutputError as error:
            raise OutputError(f"cannot store the metrics: {error.message}", hint="--no-save only prints them") from error


def events_as_truth(outs: Sequence[Path]) -> str:
    """Return the events of one scan as a CSV table, from which the user makes a ground truth by hand."""
    layout = OutputLayout(_single(outs, "--init"))
    documents = [read_events(path) for path in layout.iter_events()]
    if not documents:
        raise UsageError(f"{layout.out}: has no events", hint="name the output folder of a scan")
    return truth_of(layout, documents)


def truth_of(layout: OutputLayout, documents: Sequence[EventsDocument]) -> str:
    """Return the events of some videos as a CSV table, from which the user makes a ground truth by hand.

    Videos that could not be scanned are left out, because they have no scores.

    Raises:
        DocumentError: stored scores are missing or damaged.
    """
    return template_from_events(  # the generator reads one table at a time
        (read_scores(layout.scores(str(document.video["path"])))[0], document.events)
        for document in documents
        if document.failure is None
    )


def truth_in_seconds(outs: Sequence[Path], options: EvalOptions) -> str:
    """Return a data set's frame labels as intervals in seconds (CSV), with the timestamps of one scan."""
    truth = open_ground_truth(options.dataset, _root(options))
    layout = OutputLayout(_single(outs, "--from-frames"))
    paths = {read_video(path): path for path in layout.iter_scores()}
    if not paths:
        raise UsageError(f"{layout.out}: has no scores", hint="name the output folder of a scan")
    matching = truth.match(paths, allow_missing=options.allow_missing)
    tables = ((read_scores(paths[video])[0], truth) for video, truth in matching.pairs.items())  # one at a time
    return template_from_labels((table, truth.labels(table)) for table, truth in tables)


def _root(options: EvalOptions) -> Path:
    if options.root is None:
        raise UsageError(
            "--root is missing",
            hint="name the data set's folder or a CSV table; `vadcli eval OUT --init` prints a table of the events in OUT",
        )
    return options.root


def _single(outs: Sequence[Path], option: str) -> Path:
    if len(outs) > 1:
        raise UsageError(f"{option} makes a table from one scan, not from {len(outs)}", hint="name only one OUT")
    return outs[0]
