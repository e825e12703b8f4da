"""The commands that run or train models: `vadcli scan`, `verify`, `embed`, `learn`, `train`, `bench`."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vadcli.cli import Out, with_options
from vadcli.cli._talk import Progress, ScanDisplay, emit_json, log, on_signals, put, put_result, set_up_talk
from vadcli.errors import UsageError
from vadcli.options import (
    DEFAULT_OUT,
    BenchOptions,
    EmbedOptions,
    LearnOptions,
    ScanOptions,
    TalkOptions,
    VerifyOptions,
)
from vadcli.types import Status, VideoResult
from vadcli.types.text import clock, counted, how_many

if TYPE_CHECKING:
    from vadcli.engine.runner import Scan, Stop
    from vadcli.learning import Learned
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
    from vadcli.engine.runner import open_scan
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
    if options.dry_run:
        needs: Counter[str] = Counter()
        for video, need in run.preview():
            put_result({"type": "plan", "video": video, "need": need}, f"{need}\t{video}", options)
            needs[need] += 1
        log.info("%s; nothing was scanned (--dry-run)", ", ".join(f"{count} {need}" for need, count in sorted(needs.items())))
        return
    with _signals(run.stop, " (send the signal again to stop now)"):
        _show(run, options)
        result = None if verification is None else verification(run)
    if result is not None:
        _show_verified(result, verify_options(options))
    raise typer.Exit(run.exit_code if result is None else result.exit_code)


def _show(run: Scan, options: ScanOptions) -> None:
    """Run the scan. Prints its progress, the result of each video, and at the end the totals."""
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
    totals, events = run.totals, counted(run.totals.events, "event")
    counts = Counter(totals.by_status)
    unfinished = counts.pop("unfinished", 0)
    videos = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    if run.stop.reason:
        videos = ", ".join(filter(None, [videos, f"{unfinished} not finished"]))
        message = "stopped (%s): %s; %s; results in %s; the next run continues from here"
        log.warning(message, run.stop.reason, videos, events, options.out)
        return
    log.info("%s; %s; %s; results in %s", videos, events, display.summary(), options.out)
    if totals.frames or totals.by_status["skipped"]:
        log.info("next: vadcli report %s", shlex.quote(str(options.out)))


def _summary(run: Scan, seconds: float, *, code: int) -> dict[str, Any]:
    totals = run.totals
    return {
        "type": "summary",
        "videos": sum(totals.by_status.values()),
        **{str(status): totals.by_status[str(status)] for status in Status if status is not Status.RUNNING},
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
    """After the first SIGINT or SIGTERM, finish the current clips and end the run. End at once after the second signal."""

    def handle(number: int) -> None:
        """Ask the run to end; at the second signal, raise SystemExit."""
        if stop.signal is not None:
            stop.signal = number
            raise SystemExit(128 + number)
        name = signal.Signals(number).name
        stop.set(name, number)
        log.warning("%s: finishing the current clips; the next run continues from there%s", name, advice)

    with on_signals(handle):
        yield


@with_options(VerifyOptions, section="verify")
def verify(*, out: Out = DEFAULT_OUT, options: VerifyOptions) -> None:
    """Ask a multimodal model about the highest scores of a scan, and confirm or reject each event.

    \b
    Examples:
      vadcli verify vadcli-out --dry-run
      vadcli verify vadcli-out --model qwen2-vl-7b --share 10% --max-runtime 6h
      vadcli verify vadcli-out --categories "fight,fire" --describe
    """  # noqa: D301
    from vadcli.engine.runner import Stop
    from vadcli.verifying import verify_stored

    stop = Stop(options.max_runtime)
    with _signals(stop), closing(Progress("clips", " clips", options)) as display:
        result = verify_stored(out, options, stop=stop, on_progress=display.advance, command=["vadcli", *sys.argv[1:]])
    _show_verified(result, options)
    raise typer.Exit(result.exit_code)


def _show_verified(result: VerifyResult, options: VerifyOptions) -> None:
    """Print the results of a verification. `--dry-run` prints only how many clips are left."""
    for problem in result.problems:
        log.error("%s", problem)
    if options.json:
        for video in result.videos:
            emit_json(video.to_json())
        emit_json({**result.to_json(), "dry_run": options.dry_run})
    elif options.dry_run:
        seconds = f"; this takes about {clock(result.seconds)} on this machine" if result.left else ""
        put(f"{how_many(result.left, 'clip')} to ask about{seconds}")
    if options.dry_run:
        return
    numbers = result.events
    answers = f"{counted(numbers['confirmed'], 'event')} confirmed by {result.model}, {numbers['rejected']} rejected"
    log.info(
        "%s, %d not asked about; the model was asked about %s", answers, numbers["not_asked"], how_many(result.asked, "clip")
    )
    if numbers["not_asked"] and not result.left:
        log.info("to ask about all events, raise --share")
    if result.audit is not None:
        log.info("audit: %s", result.audit.text)
    if result.left:
        why = f"stopped ({result.stopped}): " if result.stopped else ""
        log.warning("%s%s left to ask about; the next run continues from here", why, how_many(result.left, "clip"))


@with_options(EmbedOptions, section="embed")
def embed(*, paths: Paths = None, options: EmbedOptions) -> None:
    """Store one vector per sampled frame, for heads, search and your own programs. Stores no scores.

    \b
    Examples:
      vadcli embed ./footage --out vadcli-out
      vadcli embed ./footage --encoder clip-b32 --out second-encoder
      vadcli embed ./footage --npy features
    """  # noqa: D301
    from vadcli.vectors import embed_all

    done = skipped = problems = 0
    for result in embed_all(paths or [], options):
        if options.json:
            emit_json(result.to_json())
        if result.problem:
            problems += 1
            log.error("%s: %s", result.video, result.problem)
        elif not result.skipped:
            log.info("%s: %s", result.video, how_many(result.vectors, "vector"))
        done += bool(result.file) and not result.skipped
        skipped += result.skipped
    log.info("%s embedded, %d were embedded before; the vectors are in %s", how_many(done, "video"), skipped, options.out)
    if problems:
        raise typer.Exit(3)


@with_options(LearnOptions, section="learn")
def learn(*, out: Out = DEFAULT_OUT, options: LearnOptions) -> None:
    """Train a head (a small model) on your labels, and test the head on other videos. Opens no video.

    \b
    Examples:
      vadcli learn vadcli-out --review review.json
      vadcli learn vadcli-out --review review.json --to my-head
      vadcli learn vadcli-out --labels videos.csv --head rtfm --to my-head
    """  # noqa: D301
    from vadcli.learning import train, write

    learned = train(out, options)
    for note in learned.notes:
        log.info("%s", note)
    if options.json:
        emit_json({"type": "head", **asdict(learned.card), "untested": learned.untested or None})
    else:
        _print_head(learned, options)
    folder = write(learned, options)
    if folder is None:
        figures = learned.card.figures
        better = "is" if figures is not None and figures.is_better else "may not be"
        log.info("the head %s better than the detector alone; --to DIR writes the head", better)
    else:
        log.info("%s: written", folder)
        log.info("next: vadcli events %s --head %s", shlex.quote(str(out)), shlex.quote(str(folder)))


def _print_head(learned: Learned, options: LearnOptions) -> None:
    card, figures = learned.card, learned.card.figures
    noun = "event" if options.review is not None else "video"
    true, false = how_many(card.true, f"true {noun}"), how_many(card.false, f"false {noun}")
    videos = how_many(card.videos, "video")
    put(f"{card.kind} head, trained on {true} and {false} in {videos}")
    if figures is None:
        put(f"not tested: {learned.untested}")
        return
    put(f"on videos that the head was not trained on, at a threshold that keeps {figures.recall:.0%} of the true {noun}s:")
    put("               false alarms per hour    AUC")
    put(f"detector alone {figures.detector_per_hour:21.3g} {figures.detector_auc:6.3f}")
    put(f"with the head  {figures.head_per_hour:21.3g} {figures.head_auc:6.3f}")
    put(f"change         {figures.change_per_hour:+21.3g}   95 %: {figures.low:+.3g} to {figures.high:+.3g}")


def train(
    recipe: Annotated[Path | None, typer.Option("--recipe", metavar="FILE", help="The recipe, a TOML file.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for log, checkpoints and model.")] = Path(
        "training"
    ),
    device: Annotated[str, typer.Option(help="Device to train on: auto or cpu.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be trained, and stop.")] = False,
    config: Annotated[Path | None, typer.Option("--config", hidden=True, help="The old name of --recipe.")] = None,
) -> None:
    """Train LAVIDA with a recipe. An interrupted training continues from its newest checkpoint.

    Needs the packages of `pip install "vadcli[train]"`. To use several processes, one per GPU or core, run
    `torchrun --nproc-per-node N -m vadcli train ...`.

    \b
    Examples:
      vadcli train --recipe recipes/lavida-7b.toml --dry-run
      vadcli train --recipe recipes/lavida-7b.toml --out training
    """  # noqa: D301
    from vadcli.train import Recipe, read_recipes

    set_up_talk(TalkOptions())
    chosen = recipe or config
    if chosen is None:
        raise UsageError("vadcli train needs a recipe", hint="name a TOML file with --recipe")
    recipes = read_recipes(chosen, Recipe)
    if dry_run:
        from vadcli.train.trainer import plan_of, plan_text, time_text

        for plan in map(plan_of, recipes):
            put(plan_text(plan) + time_text(plan))
        return
    from vadcli.train import trainer

    folder = trainer.train(recipes, out, device=None if device == "auto" else device)
    log.info("trained; next: vadcli scan ./footage --detector lavida --model %s", folder)


BenchPaths = Annotated[
    list[Path] | None, typer.Argument(metavar="[PATHS]...", help="Footage to read; by default a synthetic video.")
]


@with_options(BenchOptions, section="bench")
def bench(*, paths: BenchPaths = None, options: BenchOptions) -> None:
    """Measure the speed and memory of LAVIDA or of several detectors. Stores nothing.

    LAVIDA is compared with a plain loop: one clip after the other, without compression.

    \b
    Examples:
      vadcli bench --random-weights
      vadcli bench ./footage --model lavida-2b --ratios 1,0.2 --batch-sizes 8
      vadcli bench ./footage --detectors motion,concept,ask=qwen2-vl-7b,lavida=./my-lavida
      vadcli bench --model lavida-tiny --random-weights --device cpu --json
    """  # noqa: D301
    from vadcli.bench import measure_speed

    with TemporaryDirectory(prefix="vadcli-bench-") as folder:

        def end(number: int) -> None:
            """Remove the temporary files and end the process, with the exit code of the signal."""
            # After an exception, Python could wait for a running thread. So this process ends without an exception. The decoder
            # processes end with this process.
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(128 + number)

        with on_signals(end):
            report = measure_speed(paths or [], options, scratch=Path(folder))
    if not options.json:
        put(report.text(), nl=False)
    for line in report.json_lines() if options.json else ():
        emit_json(line)
