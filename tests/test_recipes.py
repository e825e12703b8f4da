"""The recipes of README and docs that read an output folder: each recipe runs and reads every file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.dataset
import pytest

from tests.commands import vadcli
from tests.media import make_video
from tests.patience import PATIENCE_S
from vadcli.store import OutputLayout

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))]
VIDEOS = ["_cam/%5Fa.avi", "_cam/_a.avi", "_MG_1234.MOV.avi", "video=1/_b=2.avi", ".hidden.avi"]
NEEDS_MORE = r"ped2|vadcli (search|weights|train|bench|scan|doctor|learn|verify|embed)\b|--head|sendmail"
"""Lines that need what this test does not have; other tests run these commands."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output folder for the recipes. The name of its parent looks like a partition of a data set."""
    folder = tmp_path_factory.mktemp("recipes") / "video=1"
    for name in VIDEOS:
        (folder / "footage" / name).parent.mkdir(parents=True, exist_ok=True)
    first = make_video(folder / "footage" / VIDEOS[0], "mpeg4", frames=12, fps=10)
    for name in VIDEOS[1:]:
        (folder / "footage" / name).write_bytes(first.read_bytes())
    done = vadcli(
        "scan", "footage", "footage/.hidden.avi", "-o", "results", "-d", "motion", "-q", "--masks", "both", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    (folder / "vadcli-out").symlink_to("results")
    rows = "".join(f"{video},0.2,0.6\n" for video in VIDEOS)
    (folder / "truth.csv").write_text(f"video,start_s,end_s\n{rows}")
    (folder / "review.json").write_text('{"format_version": 1, "reviews": []}')
    return folder


def blocks(language: str) -> list[Any]:
    """Return every code block in this language that reads an output folder."""
    found = []
    for page in PAGES:
        texts = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
        read = [text for text in texts if re.search(r"(results|vadcli-out)\b", text)]
        found += [pytest.param(text, id=f"{page}-{language}-{number}") for number, text in enumerate(read)]
    return found


@pytest.mark.parametrize("text", blocks("sql"))
def test_a_query_reads_every_video(place: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    where = text.replace("'results", f"'{place}/results").replace("'vadcli-out", f"'{place}/vadcli-out")
    rows = duckdb.sql(where).fetchall()
    assert rows
    if "GROUP BY" in text:
        assert {row[0] for row in rows} == set(VIDEOS)


@pytest.mark.parametrize("text", [block for block in blocks("python") if "scores" in block.values[0]])
def test_python_reads_every_video(place: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(place)
    if "cam1/a.mp4" in text:  # the recipe reads the masks of one video
        text = text.replace("cam1/a.mp4", "video%3D1/%5Fb%3D2.avi")
    names: dict[str, Any] = {}
    exec(text, names)
    if "scores" in names and "mask" not in names:
        table = names["scores"] if isinstance(names["scores"], pd.DataFrame) else names["scores"].to_pandas()
        assert table.groupby("video", observed=True).size().to_dict() == dict.fromkeys(VIDEOS, 12)


def shell_lines() -> list[Any]:
    lines = [line.strip() for block in [*blocks("sh"), *blocks("console")] for line in block.values[0].splitlines()]
    lines = [line.removeprefix("$ ") for line in lines if re.match(r"(\$ )?vadcli ", line)]
    return [pytest.param(line, id=line[:60]) for line in dict.fromkeys(lines) if not re.search(NEEDS_MORE, line)]


@pytest.mark.parametrize("line", shell_lines())
def test_a_command_reads_every_video(place: Path, line: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", line],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, "PATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_results_that_an_earlier_version_stored_are_found_and_renamed(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert vadcli("scan", place / "footage", "-o", out, "-d", "motion", "-q", "--masks", "both", cwd=place).returncode == 0
    found = sorted(set(VIDEOS) - {".hidden.avi"})
    layout = OutputLayout(out)
    kinds = (layout.scores, layout.events, layout.mask_video, layout.mask_rle)
    new = [make(video) for video in found for make in kinds] + [layout.camera(name) for name in ("_cam", "video=1")]
    for path in new:  # give files the names that an early version gave them
        if "%255F" in path.name:
            continue
        old = Path(re.sub("/%5F", "/_", str(path)).replace("%3D", "="))
        old.parent.mkdir(parents=True, exist_ok=True)
        path.rename(old)
    named = vadcli("events", out, "--format", "json", cwd=place)
    assert [document["video"]["path"] for document in json.loads(named.stdout)] == found
    rendered = vadcli("render", place / "footage", "-o", out, "--include", "_MG*", cwd=place)
    assert "rendered/%5FMG_1234.MOV.avi.mp4" in rendered.stderr, rendered.stderr
    again = vadcli("scan", place / "footage", "-o", out, "-d", "motion", "--masks", "both", cwd=place)
    assert again.stderr.startswith(f"{len(found)} skipped"), again.stderr
    assert [path for path in new if not path.exists()] == []
    assert not (out / "scores" / "video=1").exists()
    table = pyarrow.dataset.dataset(out / "scores", format="parquet").to_table()
    assert sorted(set(table["video"].to_pylist())) == found
