"""Damaged files: some of the thousands of files that `benchmarks/fuzz.py` scans, and each file that once caused a fault."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from _fuzzed import FORMATS, fuzzed, make_seeds
from fuzz import scan_part


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return make_seeds(tmp_path_factory.mktemp("seeds"))


def test_damaged_files_do_not_harm_the_run(seeds: dict[str, bytes], tmp_path: Path) -> None:
    files = [fuzzed(number, seeds, seed=2) for number in range(2 * len(FORMATS))]
    assert files == [fuzzed(number, seeds, seed=2) for number in range(2 * len(FORMATS))]
    files.append(fuzzed(6161, seeds, seed=1))  # once, decord's message and its line of source code became a part of the reason
    assert len({file.name for file in files}) == len(files)
    part = scan_part(tmp_path / "part", files, timeout_s=500)
    assert part.faults == []
    assert sum(part.statuses.values()) == len(files)
    assert len({status.split()[-1] for status in part.statuses}) == 3
