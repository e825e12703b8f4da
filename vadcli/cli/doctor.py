"""`vadcli doctor`: what is there, and what to do about what isn't."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vadcli.cli._options import with_options
from vadcli.cli._output import emit_json, set_up_talk
from vadcli.options import DEFAULT_OUT, TalkOptions

Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The output folder to look at.")]


@with_options(TalkOptions, section="doctor")
def doctor(*, out: Out = DEFAULT_OUT, options: TalkOptions) -> None:
    """Say what this machine has: decoders, ffmpeg, torch, devices, weights, disk. Exits 1 where something needed is missing.

    \b
    Examples:
      vadcli doctor
      vadcli doctor --json
    """  # noqa: D301
    from vadcli.doctor import examine

    set_up_talk(options)
    broken = False
    for check in examine(out):
        broken = broken or (check.required and not check.ok)
        if options.json:
            emit_json(check.to_json())
            continue
        mark = "ok     " if check.ok else "MISSING" if check.required else "absent "
        typer.echo(f"{mark} {check.name:12} {check.found}")
        if check.advice:
            typer.echo(f"        {'':12} {check.advice}")
    if broken:
        raise typer.Exit(1)
