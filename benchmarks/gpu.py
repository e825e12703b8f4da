"""Run everything that needs a GPU, in under nine minutes.

The steps are tests/gpu, and `vadcli bench` with models of real sizes and random weights.

python benchmarks/gpu.py [--minutes M] [--models lavida-7b lavida-2b] [--tests EXPRESSION] [--bench OPTIONS] [--out DIR]

Writes benchmarks/results/<gpu>.md with every command and its output. The file is written again after each step, so that an
interrupted run keeps its figures. The exit code is 1 if a step fails, a step takes too long or a claim is missed, and 4 without
a GPU. `--rehearse` runs the same steps on a CPU with lavida-tiny, to check the script itself. Its file has no real figures, and
claims are not checked.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vadcli.bench import BenchReport

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
MINUTES = 8.5
TESTS_SHARE = 0.4
"""The largest share of the time that the tests may take."""
MEASURED = "--ratios 1,0.2 --batch-sizes 1,8 --seconds 10 --rounds 2"
"""Options of `vadcli bench`. The rounds are much longer than the start of sixteen decoders (1 to 2 s)."""
COMPARED = "--seconds 10 --rounds 2 --categories fight,fire,fall"
COMPARED_SHARE = 0.25
"""The share of the time after the tests that the comparison of the detectors may take."""
REHEARSED = "--ratios 1,0.2 --batch-sizes 1,2 --clips 2 --rounds 1 --device cpu"
LEAST_SPEED = 3.0
LEAST_BUSY = 0.9
MOST_MEMORY = 0.6
CLAIMS = """| figure | target | measured | |
|---|---|---|---|"""


@dataclass(frozen=True)
class Claim:
    """A figure that was promised.

    Attributes:
        name: a description of the figure.
        measured: None if the figure was not measured; then the promise is not kept.
        least, most: the range that keeps the promise.
    """

    name: str
    measured: float | None
    least: float = -math.inf
    most: float = math.inf

    @property
    def kept(self) -> bool:
        """True if the measured figure is within the promised range."""
        return self.measured is not None and self.least <= self.measured <= self.most

    def row(self) -> str:
        """Return one line of the table."""
        wanted = f">= {self.least:g}" if self.most == math.inf else f"<= {self.most:g}"
        measured = "not measured" if self.measured is None else f"{self.measured:.2f}"
        return f"| {self.name} | {wanted} | {measured} | {'reached' if self.kept else '**missed**'} |"


@dataclass
class Page:
    """The results file, which grows with each step."""

    path: Path
    parts: list[str] = field(default_factory=list)
    failed: bool = False

    def add(self, command: list[str], output: str, seconds: float, *, failure: str = "") -> None:
        """Record a step: its command, output and duration."""
        shown = shlex.join(["python" if part == sys.executable else part for part in command])
        self.failed = self.failed or bool(failure)
        end = f"\n\n**{failure}**" if failure else ""
        self.parts.append(f"`{shown}` ({seconds:.0f} s):\n\n{output.strip()}{end}\n")
        self.write()

    def write(self) -> None:
        """Write the page with the steps so far."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(self.parts), encoding="utf-8")


def run(command: list[str], limit_s: float) -> tuple[str, str, float]:
    """Run a command for at most `limit_s`; returns (stdout, failure, seconds).

    Its stderr is not captured.
    """
    print(f"$ {shlex.join(command)}", file=sys.stderr, flush=True)
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    failure = ""
    try:
        stdout, _ = process.communicate(timeout=max(1.0, limit_s))
        if process.returncode:
            failure = f"failed with exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            stdout, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, _ = process.communicate()
        failure = f"stopped after {limit_s:.0f} s"
    return stdout, failure, time.monotonic() - started


def tests(page: Page, chosen: str, *, rehearse: bool, limit_s: float) -> None:
    """Run the GPU tests, whose output also has figures, and add the output to the page."""
    how = "--gpu-rehearsal" if rehearse else "--gpu"
    command = [sys.executable, "-m", "pytest", "tests/gpu", how, "-rs", "--durations=5", "-p", "no:cacheprovider"]
    if chosen:
        command += ["-k", chosen]
    output, failure, seconds = run(command, limit_s)
    page.add(command, f"```\n{output.strip()}\n```", seconds, failure=failure)


def bench(page: Page, model: str, *, options: str, rehearse: bool, limit_s: float) -> None:
    """Run `vadcli bench` with one model, and add its tables and the claims to the page."""
    chosen = shlex.split(REHEARSED if rehearse else options)
    command = [sys.executable, "-m", "vadcli", "bench", "--model", model, "--random-weights", *chosen, "--json"]
    output, failure, seconds = run(command, limit_s)
    lines = [json.loads(line) for line in output.splitlines()]
    if failure or not lines:
        page.add(command, output, seconds, failure=failure or "printed nothing")
        return
    report = BenchReport.from_json_lines(lines)
    checked = claims(report)
    missed = [] if rehearse else [claim.name for claim in checked if not claim.kept]
    failure = f"missed: {'; '.join(missed)}" if missed else ""
    page.add(command, f"{report.text()}\n{table(checked)}", seconds, failure=failure)


def comparison(page: Page, *, rehearse: bool, limit_s: float) -> None:
    """Compare motion, concept and ask in real sizes, or with smaller models in a rehearsal."""
    from _real_sizes import real_size_folder  # not at the top, because tests import this file without the benchmarks folder

    models = {"concept": "clip-b32" if rehearse else "siglip2-b32", "ask": "qwen2-vl-small" if rehearse else "qwen2-vl-2b"}
    chosen = "--clips 1 --rounds 1 --device cpu --categories fight" if rehearse else COMPARED
    with tempfile.TemporaryDirectory() as folder:
        made = [f"{name}={real_size_folder(Path(folder) / model, model)}" for name, model in models.items()]
        detectors = ["--detectors", ",".join(["motion", *made])]
        command = [sys.executable, "-m", "vadcli", "bench", *detectors, *shlex.split(chosen)]
        output, failure, seconds = run(command, limit_s)
    if "not measured" in output:
        failure = failure or "a detector was not measured"
    page.add(command, output, seconds, failure=failure)


def claims(report: BenchReport) -> list[Claim]:
    """Return the promised figures with the measured values of a report."""
    fifth = min(report.settings, key=lambda each: (each.setting.ratio, -each.setting.batch_size))
    whole, least = report.stages[0], report.stages[-1]
    share = least.added_bytes["llm"] / whole.added_bytes["llm"] if least.added_bytes and whole.added_bytes else None
    return [
        Claim(f"scan at ratio {fifth.setting.ratio:g} against the loop", fifth.of(report.baseline), least=LEAST_SPEED),
        Claim("GPU busy while files are scanned", least.busy, least=LEAST_BUSY),
        Claim(f"prefill's memory, ratio {least.ratio:g} of ratio {whole.ratio:g}", share, most=MOST_MEMORY),
    ]


def table(checked: list[Claim]) -> str:
    """Return the claims as a Markdown table; missed claims are marked."""
    return "\n".join([CLAIMS, *(claim.row() for claim in checked)])


def main() -> None:
    """Run the steps, each with a limit on its time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--models", nargs="+", default=["lavida-7b", "lavida-2b"])
    parser.add_argument("--bench", default=MEASURED, metavar="OPTIONS", help="options of `vadcli bench`")
    parser.add_argument(
        "--tests", default="", metavar="EXPRESSION", help="run only the tests that match; the value of pytest's -k"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--rehearse", action="store_true", help="run the same steps on a CPU with a small model")
    options = parser.parse_args()
    if not options.rehearse and not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no CUDA device", file=sys.stderr)
        sys.exit(4)
    name = "rehearsal" if options.rehearse else torch.cuda.get_device_name(0)
    page = Page(options.out / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', name).strip('-').lower()}.md")
    page.parts.append(f"# {name}\n\nWritten by `python benchmarks/gpu.py`; see [the benchmarks' page](../README.md).\n")
    end = time.monotonic() + 60 * options.minutes
    tests(page, options.tests, rehearse=options.rehearse, limit_s=60 * options.minutes * TESTS_SHARE)
    comparison(page, rehearse=options.rehearse, limit_s=COMPARED_SHARE * (end - time.monotonic()))
    models = ["lavida-tiny"] if options.rehearse else options.models
    for number, model in enumerate(models):
        left_s = end - time.monotonic()
        bench(page, model, options=options.bench, rehearse=options.rehearse, limit_s=left_s / (len(models) - number))
    print(page.path)
    sys.exit(page.failed)


if __name__ == "__main__":
    main()
