"""The commands about this machine and its work: `vadcli status`, `doctor` and `bench`."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vadcli.cli._options import Out, with_options
from vadcli.cli._talk import counted, emit_json, on_signals, put
from vadcli.errors import UsageError
from vadcli.options import DEFAULT_OUT, BenchOptions, StatusOptions, TalkOptions, parse_duration
from vadcli.store import OutputLayout
from vadcli.types.text import clock, how_many

if TYPE_CHECKING:
    from vadcli.status import RunStatus

SHARE_OF_TIME = 0.008
"""Share of a core that `status --watch` uses at most: run records that take long to read are read less often."""
CLEAR = "\x1b[H\x1b[2J"


@with_options(StatusOptions, section="status")
def status(*, out: Out = DEFAULT_OUT, options: StatusOptions) -> None:
    """Report how far a running scan has come: videos, speed, time left, last events. Does not disturb the scan.

    \b
    Examples:
      vadcli status vadcli-out
      vadcli status vadcli-out --watch
      vadcli status vadcli-out --json
    """  # noqa: D301
    from vadcli.status import RunState, last_events, read_status

    if not out.is_dir():
        raise UsageError(f"{out}: the folder does not exist", hint="name the --out folder of a scan")
    layout = OutputLayout(out)
    every_s = parse_duration(options.every, "every")
    while True:
        began = time.process_time()
        runs = read_status(layout)
        events = last_events(layout, runs[-1])
        if options.json:
            for line in [*(run.to_json() for run in runs), *({"type": "event", **event} for event in events)]:
                emit_json(line)
        else:
            lines = [line for run in runs for line in _run_lines(run)] + [_event_line(event) for event in events]
            put((CLEAR if options.watch and sys.stdout.isatty() else "") + "\n".join(lines))
        if not options.watch or all(run.state is not RunState.RUNNING for run in runs):
            return
        time.sleep(max(every_s, (time.process_time() - began) / SHARE_OF_TIME))


def _run_lines(status: RunStatus) -> list[str]:
    run = status.to_json()
    shown = [name for name in ("done", "partial", "failed", "skipped") if run[name] or name == "done"]
    counts = ", ".join(f"{run[name]} {name}" for name in shown)
    speed = f"{run['frames_per_s']:.0f} frames/s"
    if run["times_real_time"] is not None:
        speed += f", {run['times_real_time']:.1f}x real time"
    state = f"{run['run'].removesuffix('.json')}: {run['state']}"
    if run["exit_code"] is not None:
        state += f", exit code {run['exit_code']}"
    eta = f", {clock(run['eta_s'])} to go" if run["eta_s"] is not None else ""
    lines = [
        f"{state}, {clock(run['seconds'])}{eta}",
        f"  {status.over}/{status.planned} videos: {counts}; {counted(run['events'], 'event')}; {speed}",
    ]
    if len(run["nodes"]) > 1:
        lines.append(f"  nodes: {', '.join(f'{node} {count}' for node, count in run['nodes'].items())} videos")
    if fitting := run["fitting"]:
        lines.append(f"  now: fitting camera {fitting['camera'] or '.'} ({how_many(fitting['frames'], 'frame')} read)")
    return lines + [f"  now: {video['video']} ({how_many(video['frames'], 'frame')})" for video in run["running"]]


def _event_line(event: dict[str, Any]) -> str:
    span = f"{clock(event['start_s'])} to {clock(event['end_s'])}"
    category = f", {event['category']}" if event["category"] else ""
    return f"  event: {event['video']} {span}, peak {event['peak_score']:.2f}{category}"


DoctorOut = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The output folder to examine.")]


@with_options(TalkOptions, section="doctor")
def doctor(*, out: DoctorOut = DEFAULT_OUT, options: TalkOptions) -> None:
    """Report what this machine has: decoders, ffmpeg, torch, devices, weights, disk. Exits with 1 if it lacks a needed part.

    \b
    Examples:
      vadcli doctor
      vadcli doctor --json
    """  # noqa: D301
    from vadcli.doctor import examine

    broken = False
    for check in examine(out):
        broken = broken or (check.required and not check.ok)
        if options.json:
            emit_json(check.to_json())
            continue
        mark = "ok     " if check.ok else "MISSING" if check.required else "absent "
        put(f"{mark} {check.name:12} {check.found}")
        if check.advice:
            put(f"        {'':12} {check.advice}")
    if broken:
        raise typer.Exit(1)


Paths = Annotated[
    list[Path] | None, typer.Argument(metavar="[PATHS]...", help="Footage to read; without PATHS, a synthetic video is made.")
]


@with_options(BenchOptions, section="bench")
def bench(*, paths: Paths = None, options: BenchOptions) -> None:
    """Measure the speed and memory of LAVIDA and a plain loop, or of several detectors. Stores nothing.

    \b
    Examples:
      vadcli bench --random-weights
      vadcli bench ./footage --model lavida-2b --ratios 1,0.2 --batch-sizes 8
      vadcli bench ./footage --detectors motion,concept,ask=qwen2-vl-7b,lavida=./my-lavida
      vadcli bench --model lavida-tiny --random-weights --device cpu --json
    """  # noqa: D301
    from vadcli.api import measure_speed

    with TemporaryDirectory(prefix="vadcli-bench-") as folder:

        def end(number: int) -> None:
            # After an exception, Python could wait for a running thread. The decoders end with this process.
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(128 + number)

        with on_signals(end):
            report = measure_speed(paths or [], options, scratch=Path(folder))
    if not options.json:
        put(report.text(), nl=False)
    for line in report.json_lines() if options.json else ():
        emit_json(line)
