"""`vadcli scan` runs a detector, and `vadcli verify` a second model. Both show their progress and print results."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vadcli.cli._options import Out, with_options
from vadcli.cli._talk import Progress, ScanDisplay, counted, emit_json, log, on_signals, put, put_result
from vadcli.options import DEFAULT_OUT, ScanOptions, VerifyOptions
from vadcli.types import Status, VideoResult
from vadcli.types.text import clock, how_many

if TYPE_CHECKING:
    from vadcli.engine.runner import Scan, Stop
    from vadcli.verifying import VerifyResult


Paths = Annotated[
    list[Path] | None,
    typer.Argument(metavar="PATHS...", readable=False, help="Files and folders of footage, also s3://BUCKET/FOLDER."),
]


@with_options(ScanOptions, section="scan")
def scan(*, paths: Paths = None, options: ScanOptions) -> None:
    """Score every frame of the videos in PATHS, and make events from the scores.

    \b
    Examples:
      vadcli scan ./footage
      vadcli scan ./footage --categories "fight,fire" --masks video --out results
      find /nvr -name "*.mp4" -mtime -1 -print0 | vadcli scan --files-from - --min-age 5m --quiet
    """  # noqa: D301
    from vadcli.engine.runner import how_to_read_categories, ignored_categories, open_scan
    from vadcli.store.scores import keep_pandas_out

    keep_pandas_out()
    verification = None
    if options.verify:
        from vadcli.verifying import verification_of, verify_options

        verification = verification_of(options)
    run = open_scan(paths or [], options, command=["vadcli", *sys.argv[1:]])
    for note in run.settings.plan.notes:
        log.info("%s", note)
    if not run.settings.plan.units and not run.settings.plan.unusable:
        log.info("no video found")
        if options.json:
            emit_json(_summary(run, 0.0, code=0))
        return
    if ignored := ignored_categories(run):
        log.warning("the %s detector can't read categories; it ignores %s", run.detector.name, ", ".join(ignored))
        if options.detector == "auto":
            log.warning("to find them: %s", how_to_read_categories())
    if options.dry_run:
        for video, need in run.preview():
            put_result({"type": "plan", "video": video, "need": need}, f"{need}\t{video}", options)
        return
    with _signals(run.stop, " (send it again to stop now)"):
        _show(run, options)
        result = None if verification is None else verification(run)
    code = run.exit_code
    if result is not None:
        _show_verified(result, verify_options(options))
        if run.stop.signal is None:  # only confirmed events count
            code = options.exit_code(lost=bool(run.totals.lost or result.problems), events=bool(result.confirmed))
    raise typer.Exit(code)


def _show(run: Scan, options: ScanOptions) -> None:
    """Run the scan. Prints its progress, each result, and at the end the totals."""
    from vadcli.engine.runner import NewEvent

    started = time.monotonic()
    display = ScanDisplay(run.progress, options)
    run.on_fitting = display.move
    with closing(display), closing(run.run()) as updates:
        for update in updates:
            if isinstance(update, VideoResult):
                display.result(update)
                line = {"type": "video", **update.to_json()}
            elif isinstance(update, NewEvent):
                line = update.to_json()
            else:
                display.move()
                continue
            if options.json:
                emit_json(line)
    if options.json:
        emit_json(_summary(run, time.monotonic() - started, code=run.exit_code))
    totals, found = run.totals, counted(run.totals.events, "event")
    counts = Counter(totals.by_status) - Counter(skipped=totals.unfinished)
    videos = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    if run.stop.reason:
        videos = ", ".join(filter(None, [videos, f"{totals.unfinished} not finished"]))
        message = "stopped (%s): %s; %s; results in %s; the next run continues from here"
        log.warning(message, run.stop.reason, videos, found, options.out)
        return
    log.info("%s; %s; %s; results in %s", videos, found, display.summary(), options.out)
    if totals.frames or totals.by_status["skipped"]:
        log.info("next: vadcli report %s", shlex.quote(str(options.out)))


def _summary(run: Scan, seconds: float, *, code: int) -> dict[str, Any]:
    totals = run.totals
    return {
        "type": "summary",
        "videos": sum(totals.by_status.values()),
        **{str(status): totals.by_status[str(status)] for status in Status if status is not Status.RUNNING},
        "unfinished": totals.unfinished,
        "lost": totals.lost,
        "events": totals.events,
        "new_events": totals.new_events,
        "frames": totals.frames,
        "video_s": round(totals.video_s, 3),
        "seconds": round(seconds, 3),
        "out": str(run.settings.options.out),
        "stopped": run.stop.reason or None,
        "exit_code": code,
    }


@contextmanager
def _signals(stop: Stop, advice: str = "") -> Iterator[None]:
    """Make the first SIGINT or SIGTERM end the run after its current clips, and the second end the process at once."""

    def ask(number: int) -> None:
        if stop.signal is not None:
            raise SystemExit(128 + number)
        name = signal.Signals(number).name
        stop.set(name, number)
        log.warning("%s: finishing the current clips; the next run continues from there%s", name, advice)

    with on_signals(ask):
        yield


@with_options(VerifyOptions, section="verify")
def verify(*, out: Out = DEFAULT_OUT, options: VerifyOptions) -> None:
    """Ask a multimodal model about the spans where a scan scored highest, and mark each event as confirmed or rejected.

    \b
    Examples:
      vadcli verify vadcli-out --dry-run
      vadcli verify vadcli-out --model qwen2-vl-7b --share 10% --max-runtime 6h
      vadcli verify vadcli-out --categories "fight,fire" --describe
    """  # noqa: D301
    from vadcli.engine.runner import Stop
    from vadcli.options import parse_duration
    from vadcli.verifying import verify_stored

    stop = Stop(None if options.max_runtime is None else parse_duration(options.max_runtime, "max_runtime"))
    with _signals(stop), closing(Progress("clips", " clips", options)) as display:
        result = verify_stored(out, options, stop=stop, told=display.advance, command=["vadcli", *sys.argv[1:]])
    _show_verified(result, options)
    raise typer.Exit(result.exit_code)


def _show_verified(result: VerifyResult, options: VerifyOptions) -> None:
    """Print the result of each video, and an estimate of how much the scan misses."""
    for problem in result.problems:
        log.error("%s", problem)
    if options.json:
        for one in result.videos:
            emit_json(one.to_json())
        emit_json({**result.to_json(), "dry_run": options.dry_run})
    elif options.dry_run:
        seconds = f", about {clock(result.seconds)} on this machine" if result.left else ""
        put(f"{how_many(result.left, 'clip')} to ask{seconds}")
    if options.dry_run:
        return
    numbers = result.events
    answers = f"{counted(numbers['confirmed'], 'event')} confirmed by {result.model}, {numbers['rejected']} rejected"
    log.info("%s, %d not asked; %s asked", answers, numbers["not_asked"], how_many(result.asked, "clip"))
    if numbers["not_asked"] and not result.left:
        log.info("to ask about all events, raise --share")
    if result.audit is not None:
        log.info("audit: %s", result.audit.text)
    if result.left:
        why = f"stopped ({result.stopped}): " if result.stopped else ""
        log.warning("%s%s left to ask; the next run continues from here", why, how_many(result.left, "clip"))
