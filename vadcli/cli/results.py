"""The commands that read an output folder: `vadcli status`, `events`, `render`, `report` and others."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vadcli.cli import Out, with_options
from vadcli.cli._talk import Progress, emit_json, log, put
from vadcli.options import (
    DEFAULT_OUT,
    ClipsOptions,
    EvalOptions,
    EventsOptions,
    PruneOptions,
    RenderOptions,
    ReportOptions,
    SearchOptions,
    StatusOptions,
    parse_duration,
)
from vadcli.types.text import camera_names, clock, counted, how_many, size_text, without_name

if TYPE_CHECKING:
    from vadcli.rendering import OnFrame
    from vadcli.status import RunStatus

CLEAR = "\x1b[H\x1b[2J"


@with_options(StatusOptions, section="status")
def status(*, out: Out = DEFAULT_OUT, options: StatusOptions) -> None:
    """Report the progress of a running scan: videos, speed, time left, last events.

    The command does not disturb the scan.

    \b
    Examples:
      vadcli status vadcli-out
      vadcli status vadcli-out --watch
      vadcli status vadcli-out --json
    """  # noqa: D301
    from vadcli.status import watch_status
    from vadcli.store import OutputLayout

    every_s = parse_duration(options.every, "every")
    for runs, events in watch_status(OutputLayout(out), every_s=every_s, once=not options.watch):
        if options.json:
            for line in [*(run.to_json() for run in runs), *({"type": "event", **event} for event in events)]:
                emit_json(line)
        else:
            lines = [line for run in runs for line in _run_lines(run)] + [_event_line(event) for event in events]
            more = runs[-1].run.totals["events"] - len(events)
            lines += [f"  and {counted(more, 'more event')}"] if more > 0 else []
            put((CLEAR if options.watch and sys.stdout.isatty() else "") + "\n".join(lines))


def _run_lines(status: RunStatus) -> list[str]:
    run = status.to_json()
    shown = [name for name in ("done", "partial", "failed", "skipped") if run[name] or name == "done"]
    unfinished = [f"{run['unfinished']} not finished"] if run["unfinished"] else []
    counts = ", ".join([*(f"{run[name]} {name}" for name in shown), *unfinished])
    speed = f"{run['frames_per_s']:.0f} frames/s"
    if run["times_real_time"] is not None:
        speed += f", {run['times_real_time']:.1f}x real time"
    state = f"{run['run'].removesuffix('.json')}: {run['state']}"
    if run["exit_code"] is not None:
        state += f", exit code {run['exit_code']}"
    eta = f", {clock(run['eta_s'])} to go" if run["eta_s"] is not None else ""
    lines = [
        f"{state}, {clock(run['seconds'])}{eta}",
        f"  {status.finished}/{status.planned} videos: {counts}; {counted(run['events'], 'event')}; {speed}",
    ]
    if len(run["nodes"]) > 1:
        lines.append(f"  nodes: {', '.join(f'{node} {count}' for node, count in run['nodes'].items())} videos")
    if fitting := run["fitting"]:
        lines.append(f"  now: fitting {camera_names([fitting['camera'] or '.'])} ({how_many(fitting['frames'], 'frame')} read)")
    return lines + [f"  now: {video['video']} ({how_many(video['frames'], 'frame')})" for video in run["running"]]


def _event_line(event: dict[str, Any]) -> str:
    span = f"{clock(event['start_s'])} to {clock(event['end_s'])}"
    category = f", {event['category']}" if event["category"] else ""
    return f"  event: {event['video']} {span}, peak {event['peak_score']:.2f}{category}"


@with_options(EventsOptions, section="events")
def events(*, out: Out = DEFAULT_OUT, options: EventsOptions) -> None:
    """Make the events again from the stored scores, and print them. No video is decoded.

    \b
    Examples:
      vadcli events vadcli-out --preview
      vadcli events vadcli-out --alarms-per-hour 0.2 --format csv
      vadcli events vadcli-out --threshold 0.7 --min-duration 1s --write
      vadcli events vadcli-out --review review.json --write
      vadcli events vadcli-out --calibrate review.json --format csv
      vadcli events vadcli-out --init-truth > truth.csv
      vadcli events vadcli-out --validate
    """  # noqa: D301
    if options.validate:
        show = _validate
    elif options.calibrate is not None:
        show = _calibrate
    elif options.preview:
        show = _preview
    else:
        show = _recut
    raise typer.Exit(show(out, options))


def _recut(out: Path, options: EventsOptions) -> int:
    """Make the events again, and print them. Returns the exit code, as do the other modes of `vadcli events`."""
    from vadcli.engine.recut import export_events, recut_all

    stored = recut_all(out, options)
    failed = [f"{video}: failed, so it has no events: {without_name(error, video)}" for video, error in stored.failed.items()]
    lost = _log_problems(stored.problems) + _log_problems(failed)
    if options.init_truth:
        from vadcli.evaluation import truth_of
        from vadcli.store import OutputLayout

        put(truth_of(OutputLayout(out), stored.documents), nl=False)
    elif options.json and options.to is None:
        for document in stored.documents:
            emit_json(document.to_json())
    else:
        lost += _log_problems(export_events(stored, out, options))
    return options.exit_code(lost=bool(lost), events=any(document.events for document in stored.documents))


def _validate(out: Path, options: EventsOptions) -> int:
    from vadcli.engine.recut import validate_all

    wrong = [_log_problems(errors) for errors in validate_all(out)]
    log.info("%s checked, %d wrong", how_many(len(wrong), "document"), sum(map(bool, wrong)))
    return max(wrong, default=0)


def _calibrate(out: Path, options: EventsOptions) -> int:
    from vadcli.engine.recut import thresholds_from_review

    choices, problems = thresholds_from_review(out, options)
    rows = [asdict(choice) for choice in choices]
    _print_rows("threshold", rows, options, text=json.dumps({"thresholds": rows}, indent=2))
    return _log_problems(problems)


def _log_problems(problems: list[str] | tuple[str, ...]) -> int:
    """Log each problem as an error. Returns the exit code: 3 if there are problems, else 0."""
    for problem in problems:
        log.error("%s", problem)
    return 3 if problems else 0


def _print_rows(kind: str, rows: list[dict[str, float | None]], options: EventsOptions, *, text: str) -> None:
    """Print rows of numbers as JSON objects, as CSV (None is empty, True is 1), or as the given text."""
    if options.json:
        for row in rows:
            emit_json({"type": kind, **row})
    elif options.format == "csv":
        lines = [",".join("" if value is None else f"{value:.6g}" for value in row.values()) for row in rows]
        put("\n".join([",".join(rows[0]), *lines]))
    else:
        put(text)


def _preview(out: Path, options: EventsOptions) -> int:
    from vadcli.engine.recut import preview

    table = preview(out, options)
    lines = ["threshold  events  events/hour  expected/hour in normal footage"]
    for row in table.rows:
        expected = "-" if row.expected_per_hour is None else f"{row.expected_per_hour:.3g}"
        mark = "  <- present" if row.present else ""
        lines.append(f"{row.threshold:9.4g}  {row.events:6d}  {row.events_per_hour:11.3g}  {expected:>13}{mark}")
    _print_rows("preview", [asdict(row) for row in table.rows], options, text="\n".join(lines))
    log.info("%s, %.3g hours of footage", how_many(table.videos, "video"), table.hours)
    return _log_problems(table.problems)


MOST_LISTED = 3  # if a video has more rendered files, the log names only the first and the last file, and the number of files

Paths = Annotated[
    list[Path] | None, typer.Argument(metavar="FOOTAGE...", readable=False, help="The files and folders that were scanned.")
]


@with_options(RenderOptions, section="render")
def render(*, paths: Paths = None, options: RenderOptions) -> None:
    """Write MP4 videos that show the masks, the score curve, the time, and a caption per event.

    FOOTAGE names the files and folders that were scanned, or some of them.

    \b
    Examples:
      vadcli render ./footage
      vadcli render ./footage/cam1 --events-only --pad 5s --out results
    """  # noqa: D301
    from vadcli.rendering import render_all

    @contextmanager
    def watch(video: str) -> Iterator[OnFrame]:
        """Show the progress of one video in the `with` block."""
        with closing(Progress(video, " frames", options)) as display:
            yield display.advance

    incomplete = False
    for result in render_all(paths or [], options, watch=watch):
        if result.skipped:
            log.info("%s: rendered already (--force renders again)", result.video)
            continue
        files = [str(path) for path in result.files]
        if options.json:
            emit_json({"type": "rendered", "video": result.video, "files": files, "problems": list(result.problems)})
        for problem in result.problems:
            log.error("%s: %s", result.video, without_name(problem, result.video))
        many = len(files) > MOST_LISTED
        shown = f"{len(files)} files, {files[0]} to {Path(files[-1]).name}" if many else ", ".join(files)
        if shown or not result.problems:
            log.info("%s: %s", result.video, shown or "no events")
        incomplete |= bool(result.problems)
    if incomplete:
        raise typer.Exit(3)


@with_options(ReportOptions, section="report")
def report(*, out: Out = DEFAULT_OUT, options: ReportOptions) -> None:
    """Make one HTML page with events, score curves and failures, to review the events in a browser.

    \b
    Examples:
      vadcli report vadcli-out
      vadcli report vadcli-out --since last-run --format email --mail-to guard@example.org | sendmail -t
      vadcli report vadcli-out --assets vadcli-out/report --to vadcli-out/report.html --clips
    """  # noqa: D301
    from vadcli.reporting import make_report, read_archive
    from vadcli.reporting.html import to_json

    archive = read_archive(out, options)
    for line in archive.problems:
        log.error("%s", line)
    if options.json:
        emit_json(to_json(archive))
    else:
        written = make_report(archive, options)
        if written.file is None:
            put(written.text, nl=False)
        else:
            log.info("%s: %s", written.file, size_text(len(written.text.encode())))
    raise typer.Exit(options.exit_code(lost=bool(archive.failures or archive.problems), events=bool(archive.events)))


Text = Annotated[str, typer.Argument(metavar="[TEXT]", help="What to look for, as a sentence.")]


@with_options(SearchOptions, section="search")
def search(*, out: Out = DEFAULT_OUT, text: Text = "", options: SearchOptions) -> None:
    """Find the moments that fit a sentence or a picture best. Reads stored vectors; no video is decoded.

    \b
    Examples:
      vadcli search vadcli-out "a person climbing over a fence"
      vadcli search vadcli-out --image suspect.jpg --top 50 --camera "gate*"
      vadcli search vadcli-out "a red car" --since 24h --format html
    """  # noqa: D301
    from vadcli.reporting import search_all, write_search

    result = search_all(out, text, options)
    if options.json:
        for moment in result.moments:
            emit_json(moment.to_json())
    else:
        written = write_search(result, options)
        if written.file is None:
            put(written.text, nl=False)
        else:
            log.info("%s: %s", written.file, how_many(len(result.moments), "moment"))
    raise typer.Exit(_log_problems(result.problems))


Outs = Annotated[list[Path] | None, typer.Argument(metavar="[OUT...]", help="Output folders of scans.")]


@with_options(EvalOptions, section="eval")
def evaluate(*, outs: Outs = None, options: EvalOptions) -> None:
    """Compare stored scores with the ground truth of a data set. No model runs, and no footage is read.

    \b
    Examples:
      vadcli eval results --dataset ped2 --root ../ucsd_ped2 --pixel-size 158x238
      vadcli eval results --init > truth.csv        # correct it by hand, then:
      vadcli eval results --root truth.csv --plots plots
      vadcli eval --compare night-1 night-2 --root truth.csv --format markdown
    """  # noqa: D301
    from vadcli.evaluation import (
        document_of,
        evaluate_outputs,
        events_as_truth,
        keep_figures,
        to_latex,
        to_markdown,
        to_table,
        truth_in_seconds,
    )

    folders = outs or []
    if options.init:
        put(events_as_truth(folders), nl=False)
        return
    if options.from_frames:
        put(truth_in_seconds(folders, options), nl=False)
        return
    reports = evaluate_outputs(folders, options)
    if options.json:
        for evaluation in reports:
            emit_json(document_of(evaluation, options.root or Path()))
    else:
        as_text = {"table": to_table, "markdown": to_markdown, "latex": to_latex}[options.format]
        put(as_text(reports), nl=False)
    keep_figures(reports, options)
    if options.plots is not None:
        from vadcli.evaluation.plots import draw

        for path in draw(reports, options.plots):
            log.info("%s", path)


@with_options(ClipsOptions, section="clips")
def clips(*, out: Out = DEFAULT_OUT, options: ClipsOptions) -> None:
    """Copy every event from its footage into a clip, in original quality and with sound. Encodes nothing.

    \b
    Examples:
      vadcli clips vadcli-out --since 24h
      vadcli clips vadcli-out --to evidence --before 10s --after 10s --camera "gate*" --container same
    """  # noqa: D301
    from vadcli.clipping import clip_all

    cut, skipped, problems = 0, 0, 0
    for result in clip_all(out, options):
        if options.json:
            emit_json({"type": "clip", **result.to_json()})
        if result.file and not result.skipped:
            cut += 1
            log.info("%s: event %d: %s", result.video, result.event, result.file)
        skipped += result.skipped
        if result.problem:
            problems += 1
            log.error("%s: %s", result.video, result.problem)
    log.info("%s cut, %d cut already; in %s", how_many(cut, "clip"), skipped, options.to or out / "clips")
    if problems:
        raise typer.Exit(3)


@with_options(PruneOptions, section="prune")
def prune(*, out: Out = DEFAULT_OUT, options: PruneOptions) -> None:
    """Remove results of deleted or old videos, and files that belong to no video. Never removes footage.

    \b
    Examples:
      vadcli prune vadcli-out --dry-run
      vadcli prune vadcli-out --older-than 90d
      vadcli prune vadcli-out --no-missing --older-than 30d --include "gate/*"
    """  # noqa: D301
    from vadcli.pruning import prune_all

    done = prune_all(out, options)
    for item in done.removed:
        if options.json:
            emit_json({"type": "would_prune" if options.dry_run else "pruned", **item.to_json()})
        elif options.dry_run or not options.quiet:
            put(f"{item.name}: {item.why}, {how_many(item.files, 'file')}, {size_text(item.size)}")
    if options.json:
        emit_json({"type": "summary", **done.summary(), "dry_run": options.dry_run})
    for line in done.notes:
        log.info("%s", line)
    for line in done.problems:
        log.error("%s", line)
    verbs = ("would be removed", "would be freed") if options.dry_run else ("removed", "freed")
    log.info("%s %s, %s %s", len(done.removed) or "nothing", verbs[0], size_text(done.size), verbs[1])
    if done.problems:
        raise typer.Exit(3)
