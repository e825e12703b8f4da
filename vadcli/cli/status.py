"""`vadcli status`: what is running in an output folder, how far it is, and how the newest run went."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vadcli.cli._options import with_options
from vadcli.cli._output import clock, counted, emit_json, set_up_talk
from vadcli.errors import UsageError
from vadcli.options import DEFAULT_OUT, StatusOptions, parse_duration
from vadcli.store.layout import OutputLayout

if TYPE_CHECKING:
    from vadcli.status import RunStatus

Out = Annotated[Path, typer.Argument(metavar="[OUT]", help="The scan's output folder.")]
SHARE_OF_TIME = 0.008
"""At most this share of a core goes into looking again: long records are read less often."""
CLEAR = "\x1b[H\x1b[2J"


@with_options(StatusOptions, section="status")
def status(*, out: Out = DEFAULT_OUT, options: StatusOptions) -> None:
    """Say how far a running scan is: videos, speed, time to go, last events. Reads only; safe beside the scan.

    \b
    Examples:
      vadcli status vadcli-out
      vadcli status vadcli-out --watch
      vadcli status vadcli-out --json
    """  # noqa: D301
    from vadcli.status import RunState, read_status

    set_up_talk(options)
    if not out.is_dir():
        raise UsageError(f"{out}: there is no such folder", hint="name the --out folder of a scan")
    layout = OutputLayout(out)
    every_s = parse_duration(options.every, "every")
    while True:
        began = time.process_time()
        runs = read_status(layout)
        _tell(layout, runs, options)
        if not options.watch or all(run.state is not RunState.RUNNING for run in runs):
            return
        time.sleep(max(every_s, (time.process_time() - began) / SHARE_OF_TIME))


def _tell(layout: OutputLayout, runs: list[RunStatus], options: StatusOptions) -> None:
    from vadcli.status import last_events

    events = last_events(layout, runs[-1])
    if options.json:
        for run in runs:
            emit_json(run.to_json())
        for event in events:
            emit_json({"type": "event", **event})
        return
    lines = [line for run in runs for line in _lines(run)]
    lines += [_event_line(event) for event in events]
    typer.echo((CLEAR if options.watch and sys.stdout.isatty() else "") + "\n".join(lines))


def _lines(status: RunStatus) -> list[str]:
    told = status.to_json()
    counts = ", ".join(
        f"{told[name]} {name}" for name in ("done", "partial", "failed", "skipped") if told[name] or name == "done"
    )
    speed = f"{told['frames_per_s']:.0f} frames/s"
    if told["times_real_time"] is not None:
        speed += f", {told['times_real_time']:.1f}x real time"
    first = f"{told['run'].removesuffix('.json')}: {told['state']}"
    if told["exit_code"] is not None:
        first += f", exit code {told['exit_code']}"
    eta = f", {clock(told['eta_s'])} to go" if told["eta_s"] is not None else ""
    lines = [
        f"{first}, {clock(told['seconds'])}{eta}",
        f"  {status.over}/{status.planned} videos: {counts}; {counted(told['events'], 'event')}; {speed}",
    ]
    if told["fitting"]:
        lines.append(f"  now: fitting camera {told['fitting']['camera'] or '.'} ({told['fitting']['frames']} frames read)")
    return lines + [f"  now: {video['video']} ({video['frames']} frames)" for video in told["running"]]


def _event_line(event: dict[str, Any]) -> str:
    span = f"{clock(event['start_s'])} to {clock(event['end_s'])}"
    category = f", {event['category']}" if event["category"] else ""
    return f"  event: {event['video']} {span}, peak {event['peak_score']:.2f}{category}"
