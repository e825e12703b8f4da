"""`vadcli verify`: asks a second model about the spans where a scan scored high, and prints what it confirms."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vadcli.cli._shared import Progress, counted, emit_json, log, on_signals, set_up_talk, with_options
from vadcli.cli._streams import put
from vadcli.options import DEFAULT_OUT, VerifyOptions
from vadcli.types.media import clock, how_many

if TYPE_CHECKING:
    from vadcli.engine.runner import Stop
    from vadcli.verifying import VerifyResult

Out = Annotated[Path, typer.Argument(metavar="[OUT]", help="The scan's output folder.")]


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

    set_up_talk(options)
    stop = Stop(None if options.max_runtime is None else parse_duration(options.max_runtime, "max_runtime"))
    with ending(stop), closing(Progress("clips", " clips", options)) as display:
        result = verify_stored(out, options, stop=stop, told=display.advance, command=["vadcli", *sys.argv[1:]])
    show(result, options)
    raise typer.Exit(result.exit_code)


def show(result: VerifyResult, options: VerifyOptions) -> None:
    """Print the result of each video, and an estimate of what the scan misses."""
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
    told = f"{counted(numbers['confirmed'], 'event')} confirmed by {result.model}, {numbers['rejected']} rejected"
    log.info("%s, %d not asked; %s asked", told, numbers["not_asked"], how_many(result.asked, "clip"))
    if numbers["not_asked"] and not result.left:
        log.info("to ask about all events, raise --share")
    if result.audit is not None:
        log.info("audit: %s", result.audit.text)
    if result.left:
        why = f"stopped ({result.stopped}): " if result.stopped else ""
        log.warning("%s%s left to ask; the next run continues from here", why, how_many(result.left, "clip"))


@contextmanager
def ending(stop: Stop) -> Iterator[None]:
    """After the first SIGINT or SIGTERM, the run finishes its current clips and ends. The second one ends it at once."""

    def ask(number: int) -> None:
        if stop.signal is not None:
            raise SystemExit(128 + number)
        stop.set(signal.Signals(number).name, number)
        log.warning("%s: finishing the current clips; the next run continues from there", signal.Signals(number).name)

    with on_signals(ask):
        yield
