"""`vadcli bench`: what LAVIDA's scans would reach on this machine, as tables or JSON."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Annotated

import typer

from vadcli.cli._options import with_options
from vadcli.cli._output import emit_json, set_up_talk
from vadcli.errors import NoVideoFound, WeightsError
from vadcli.options import DEFAULT_OUT, BenchOptions, FindOptions

Paths = Annotated[
    list[Path] | None, typer.Argument(metavar="[PATHS]...", help="Footage to read; made for the purpose where none is named.")
]


@with_options(BenchOptions, section="bench")
def bench(*, paths: Paths = None, options: BenchOptions) -> None:
    """Measure LAVIDA on this machine: clips/s beside a straightforward loop, time a stage, memory. Writes nothing.

    \b
    Examples:
      vadcli bench --random-weights
      vadcli bench ./footage --model lavida-2b --ratios 1,0.2 --batch-sizes 8
      vadcli bench --model lavida-tiny --random-weights --device cpu --json
    """  # noqa: D301
    from vadcli import detectors
    from vadcli.bench import Bench, BenchPlan, Bound, footage_of, need_memory
    from vadcli.detectors.lavida.detector import LavidaDetector
    from vadcli.engine.local import check_device

    set_up_talk(options)
    videos = _videos(paths or [])
    check_device(options.device)
    try:
        detector = detectors.load("lavida", options.detector_options())
    except WeightsError as error:
        hint = "--random-weights measures a preset's real sizes without any" if not options.random_weights else error.hint
        raise WeightsError(error.message, hint=hint) from error
    assert isinstance(detector, LavidaDetector)
    need_memory(detector)
    plan = BenchPlan(
        ratios=options.ratio_list(),
        batch_sizes=options.batch_size_list(),
        bound=Bound(options.seconds, options.clips),
        rounds=options.rounds,
        frame_px=options.frame_px,
        workers=options.workers,
    )
    with _scratch() as scratch:
        report = Bench(detector, footage_of(videos, scratch), plan).run()
    if not options.json:
        typer.echo(report.text(), nl=False)
    for line in report.json_lines() if options.json else ():
        emit_json(line)


def _videos(paths: list[Path]) -> list[tuple[str, Path]]:
    from vadcli.engine.plan import make_plan

    if not paths:
        return []
    plan = make_plan(paths, FindOptions(), out=DEFAULT_OUT)
    if not plan.units:
        raise NoVideoFound(f"no video below {', '.join(plan.roots)}", hint="without PATHS, footage is made")
    return [(unit.video, unit.path) for unit in plan.units]


@contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder that goes whatever ends the measurement; SIGINT and SIGTERM end it at once.

    Nothing is worth finishing, and an exception raised anywhere might leave a lock of the running threads held: so the signals
    unwind nothing. Decoders don't outlive this process.
    """
    with TemporaryDirectory(prefix="vadcli-bench-") as folder:

        def end(number: int, frame: FrameType | None) -> None:
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(128 + number)

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield Path(folder)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
