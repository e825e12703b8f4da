"""Scan thousands of damaged files, folder by folder, and check that no file harms the run.

python benchmarks/fuzz.py [--files 10000] [--seed 1] [--fresh] [--page results/fuzz.md]
python benchmarks/fuzz.py --show NUMBER      writes one damaged file to benchmarks/work/fuzz and prints how it was damaged

After the scan of a folder, the script checks that:

- the exit code is 0 or 3, and stderr has no traceback
- the run record has a status for each file
- scores are finite, and a finished video has a row for each frame
- no process, temporary file or shared memory is left
- no file took longer than the decoder's time limit

A folder that was checked before is not scanned again. So an interrupted run continues. With --fresh, it starts again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
from _fuzzed import FORMATS, Fuzzed, fuzzed, make_seeds
from _measure import VADCLI, WORK, machine

HERE = WORK / "fuzz"
STATUSES = ("done", "partial", "failed")
NOT_THE_FILE = "not finished"  # start of the reason if vadcli blames the machine and not the file
HUNG = "made no progress"
_SHARED_MEMORY = Path("/dev/shm")
_GRACE_S = 3.0  # time to end the processes of a decoder that hangs


@dataclass(frozen=True)
class Part:
    """The result of scanning one folder of damaged files.

    Attributes:
        first, files: number of the first file, and number of files.
        statuses: "FORMAT status" -> number of files.
        hung: names of files at which the decoder reached its time limit.
        slowest_s, slowest: time and name of the file that took longest.
        faults: the checks that failed, in words; empty if all succeeded.
    """

    first: int
    files: int
    wall_s: float
    statuses: dict[str, int] = field(default_factory=dict)
    hung: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: str = ""
    faults: list[str] = field(default_factory=list)


def scan_part(folder: Path, files: list[Fuzzed], *, first: int = 0, workers: int = 1, timeout_s: float = 20.0) -> Part:
    """Write damaged files into a new folder, scan them, and return the result of the checks.

    Args:
        folder: its old content is deleted. It gets the files in `footage` and the results in `out`.
        timeout_s: value of --decode-timeout.
    """
    shutil.rmtree(folder, ignore_errors=True)
    footage, out, temporary = (folder / name for name in ("footage", "out", "tmp"))
    for each in (footage, temporary):
        each.mkdir(parents=True)
    for file in files:
        (footage / file.name).write_bytes(file.data)
    mark = uuid.uuid4().hex
    options = ("--detector", "motion", "--workers", str(workers), "--decode-timeout", f"{timeout_s:g}s", "--quiet")
    memory, started = _shared_memory(), time.monotonic()
    done = subprocess.run(
        [*VADCLI, "scan", str(footage), "--out", str(out), *options],
        capture_output=True,
        env={**os.environ, "TMPDIR": str(temporary), "VADCLI_FUZZ": mark},
        timeout=60 + len(files) * 2 * timeout_s,
        check=False,
    )
    wall_s = time.monotonic() - started
    stderr = done.stderr.decode(errors="replace")
    faults = [f"exit code {done.returncode}: {stderr[-1500:]}"] if done.returncode not in (0, 3) else []
    faults += [f"traceback: {stderr[-3000:]}"] if "Traceback" in stderr else []
    faults += [f"a temporary file is left: {path.name}" for path in temporary.iterdir()]
    faults += [
        f"left in the output: {path}" for path in out.rglob("*") if path.name == ".tmp" or path.suffix in (".part", ".tmp")
    ]
    faults += [f"a process is left: {' '.join(command)}" for command in _processes(mark)]
    faults += [f"shared memory is left: {name}" for name in sorted(_shared_memory() - memory - _in_use())]
    record = json.loads((out / "run.json").read_text()) if (out / "run.json").exists() else {"files": []}
    results = {result["video"]: result for result in record["files"]}
    faults += _result_faults(files, results, out, timeout_s)
    slowest: dict[str, Any] = max(results.values(), key=lambda result: float(result["seconds"]), default={})
    statuses = Counter(f"{file.format} {results[file.name]['status']}" for file in files if file.name in results)
    hung = [name for name, result in results.items() if HUNG in (result["reason"] or "")]
    return Part(first, len(files), wall_s, dict(statuses), hung, slowest.get("seconds", 0.0), slowest.get("video", ""), faults)


def _result_faults(files: list[Fuzzed], results: dict[str, dict[str, Any]], out: Path, timeout_s: float) -> list[str]:
    faults = []
    for file in files:
        result = results.get(file.name)
        if result is None:
            faults.append(f"{file.name}: is not in the run record")
            continue
        reason = result["reason"] or ""
        if result["status"] not in STATUSES:
            faults.append(f"{file.name}: status {result['status']}")
        if result["status"] != "done" and not reason:
            faults.append(f"{file.name}: {result['status']} without a reason")
        if reason.startswith(NOT_THE_FILE) or "Error:" in reason:
            faults.append(f"{file.name}: {reason}")
        if result["seconds"] > timeout_s + _GRACE_S:
            faults.append(f"{file.name}: took {result['seconds']:.1f} s, more than the limit of {timeout_s:g} s")
        if result["status"] != "failed":
            faults += [f"{file.name}: {fault}" for fault in _row_faults(out / "scores" / f"{file.name}.parquet", result)]
    return faults


def _row_faults(path: Path, result: dict[str, Any]) -> list[str]:
    """Return the faults in the score rows of a scanned video."""
    if not path.exists():
        return ["has no scores"]
    table = pq.read_table(path)
    columns = {name: table.column(name).to_numpy() for name in ("frame_index", "pts", "timestamp", "score", "decode_ok")}
    faults = []
    if result["status"] == "done" and not table.num_rows == result["expected_frames"] == result["decoded_frames"]:
        faults.append(f"done with {table.num_rows} rows: {result['decoded_frames']} of {result['expected_frames']} frames")
    if not np.array_equal(columns["frame_index"], np.arange(table.num_rows)):
        faults.append("frame_index has gaps")
    if np.any(np.diff(columns["pts"]) <= 0) or np.any(np.diff(columns["timestamp"]) <= 0):
        faults.append("times do not increase")
    if not (np.isfinite(columns["timestamp"]).all() and np.isfinite(columns["score"]).all()):
        faults.append("times or scores are not finite")
    if np.any(columns["score"] < 0) or np.any(columns["score"] > 1):
        faults.append("scores outside 0-1")
    return faults


def _processes(mark: str) -> list[list[str]]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("VADCLI_FUZZ") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.cmdline())
    return found


def _shared_memory() -> set[str]:
    return {path.name for path in _SHARED_MEMORY.iterdir()} if _SHARED_MEMORY.is_dir() else set()


def _in_use() -> set[str]:
    """Return the shared memory that running processes use.

    It does not belong to the scan, because the processes of the scan have ended.
    """
    found = set[str]()
    for process in psutil.process_iter():
        with suppress(psutil.Error, AttributeError):
            paths = [Path(item.path) for item in process.memory_maps()]
            found |= {path.name for path in paths if path.parent == _SHARED_MEMORY}
    return found


def read_parts(log: Path) -> list[Part]:
    """Return the results of the folders that were checked before."""
    return [Part(**json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []


def write_page(page: Path, parts: list[Part], options: argparse.Namespace) -> None:
    """Write the page with the results of all checked folders."""
    total = Counter[str]()
    for part in parts:
        total.update(part.statuses)
    slowest = max(parts, key=lambda part: part.slowest_s)
    hung = sum(len(part.hung) for part in parts)
    files, faults = sum(part.files for part in parts), sum(len(part.faults) for part in parts)
    command = f"python benchmarks/fuzz.py --files {options.files} --seed {options.seed} --workers {options.workers}"
    rows = {name: [total[f"{name} {status}"] for status in STATUSES] for name in FORMATS}
    rows["all"] = [sum(counts) for counts in zip(*rows.values(), strict=True)]
    about = (
        f"`{command}` scanned {files:,} damaged files of {len(FORMATS)} formats, {options.per_run} files per scan."
        " `benchmarks/_fuzzed.py` damages the files. The docstring of `benchmarks/fuzz.py` lists the checks after each scan."
    )
    done = (
        "A damaged file can be `done`. In this case, the damage is in a part without pictures, or neither the decoder nor the"
        " declared length of the video shows the damage."
    )
    figures = (
        f"Faults: {faults}. Files at which the decoder reached its time limit ({options.decode_timeout:g} s): {hung}. The"
        f" slowest file took {slowest.slowest_s:.1f} s. The scans took {sum(part.wall_s for part in parts) / files:.2f} s per"
        f" file ({machine()}, with other work at the same time)."
    )
    lines = [
        "# Damaged files",
        "",
        *textwrap.wrap(about, 120),
        "",
        *textwrap.wrap(done, 120),
        "",
        *textwrap.wrap(figures, 120),
        "",
        "| format | files | done | partial | failed |",
        "|---|---|---|---|---|",
        *(f"| {name} | {sum(counts)} | {' | '.join(map(str, counts))} |" for name, counts in rows.items()),
    ]
    if faults:
        lines += ["", "## Faults", "", *(f"- {fault.splitlines()[0]}" for part in parts for fault in part.faults)]
    page.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Scan the folders that were not checked before, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-run", type=int, default=400)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--decode-timeout", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--page", type=Path, default=Path(__file__).with_name("results") / "fuzz.md")
    parser.add_argument("--show", type=int, metavar="NUMBER")
    options = parser.parse_args()
    seeds = make_seeds(HERE / "seeds")
    if options.show is not None:
        file = fuzzed(options.show, seeds, seed=options.seed)
        (HERE / file.name).write_bytes(file.data)
        print(f"{HERE / file.name}: {file.format}, {', '.join(file.steps)}")
        return
    log = HERE / f"seed-{options.seed}.jsonl"
    if options.fresh:
        log.unlink(missing_ok=True)
    seen = {part.first for part in read_parts(log)}
    for first in range(0, options.files, options.per_run):
        if first in seen:
            continue
        numbers = range(first, min(options.files, first + options.per_run))
        files = [fuzzed(number, seeds, seed=options.seed) for number in numbers]
        folder = HERE / f"seed-{options.seed}-{first:05d}"
        part = scan_part(folder, files, first=first, workers=options.workers, timeout_s=options.decode_timeout)
        with log.open("a") as file_log:
            file_log.write(json.dumps(asdict(part)) + "\n")
        if not part.faults:
            shutil.rmtree(folder)
        slowest = f"slowest file {part.slowest} ({part.slowest_s:.1f} s)"
        print(f"from file {first}: {part.wall_s:.0f} s, {slowest}, files that hung: {part.hung}", flush=True)
        print(*(f"  {fault}\n" for fault in part.faults), sep="", end="", flush=True)
    parts = read_parts(log)
    write_page(options.page, parts, options)
    sys.exit(any(part.faults for part in parts))


if __name__ == "__main__":
    main()
