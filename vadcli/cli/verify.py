"""`vadcli verify`: asks a second model about the spans where a scan scored high, and prints what it confirms."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vadcli.cli._shared import counted, emit_json, log, on_signals, set_up_talk, with_options
from vadcli.cli._streams import put
from vadcli.options import DEFAULT_OUT, VerifyOptions
from vadcli.types.media import clock, how_many

if TYPE_CHECKING:
    from vadcli.engine.runner import Stop
    from vadcli.verifying import VerifyResult
    from vadcli.verifying.settling import Audit

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
    with ending(stop):
        result = verify_stored(out, options, stop=stop)
    show(result, options)
    raise typer.Exit(exit_code(result, options, stop))


def exit_code(result: VerifyResult, options: VerifyOptions, stop: Stop) -> int:
    """Return the exit code: 128 + the signal if there was one, else `ExitOptions.exit_code` for the confirmed events."""
    if stop.signal is not None:
        return 128 + stop.signal
    return options.exit_code(lost=bool(result.problems), events=bool(result.confirmed))


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
    numbers = {name: sum(getattr(one, name) for one in result.videos) for name in ("confirmed", "rejected", "not_asked")}
    told = f"{counted(numbers['confirmed'], 'event')} confirmed by {result.model}, {numbers['rejected']} rejected"
    log.info("%s, %d not asked; %s asked", told, numbers["not_asked"], how_many(result.asked, "clip"))
    if numbers["not_asked"] and not result.left:
        log.info("to ask about all events, raise --share")
    if result.audit is not None:
        log.info("%s", audit_text(result.audit))
    if result.left:
        why = f"stopped ({result.stopped}): " if result.stopped else ""
        log.warning("%s%s left to ask; the next run continues from here", why, how_many(result.left, "clip"))


def audit_text(audit: Audit) -> str:
    """Returns the sentence that says how much the scan misses."""
    most = f"{100 * audit.high:.2g} %"
    share = f"between {100 * audit.low:.2g} % and {most}" if audit.confirmed else f"at most {most}"
    missed = clock(audit.high * audit.left_out_s)
    return (
        f"audit: {audit.confirmed} of {how_many(audit.clips, 'random clip')} outside the proposals confirmed: {share} of the "
        f"{clock(audit.left_out_s)} that was not proposed (95 % confidence), or up to {missed}; "
        f"{clock(audit.found_s)} was proposed and confirmed"
    )


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
