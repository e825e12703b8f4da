"""`vadcli scan --detector concept` and `vadcli search` as processes, with a small encoder that has random weights."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import vadcli as library
from tests import commands
from tests.detectors.encoders import tiny_encoder_folder
from tests.media import make_video
from tests.patience import PATIENCE_S
from vadcli.errors import WeightsError


def vadcli(*arguments: object) -> subprocess.CompletedProcess[str]:
    return commands.vadcli(*arguments, COLUMNS="200", forks=commands.WITH_TORCH)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder_folder(tmp_path_factory.mktemp("encoder") / "clip")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    for name in ("a.mp4", "b.mp4"):
        make_video(folder / name, frames=120, fps=10)
    made = folder.parent / "out"
    done = vadcli("scan", folder, "-o", made, "--detector", "concept", "--encoder", encoder, "--categories", "fight,fire")
    assert done.returncode == 0, done.stderr
    return made


def test_json_csv_and_a_page(out: Path, tmp_path: Path) -> None:
    lines = vadcli("search", out, "a red car", "--top", "3", "--json").stdout.splitlines()
    moments = [json.loads(line) for line in lines]
    assert 1 <= len(moments) <= 3
    assert [one["score"] for one in moments] == sorted((one["score"] for one in moments), reverse=True)
    assert {one["video"] for one in moments} <= {"a.mp4", "b.mp4"}
    rows = list(csv.DictReader(io.StringIO(vadcli("search", out, "a red car", "--top", "3", "--format", "csv").stdout)))
    assert [(row["video"], float(row["peak_s"])) for row in rows] == [(one["video"], one["peak_s"]) for one in moments]
    page = tmp_path / "page.html"
    done = vadcli("search", out, "<b>a red car</b>", "--top", "3", "--format", "html", "--to", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.count("data:image/webp;base64,") == len(moments)
    assert "<b>a red car</b>" not in text
    assert "&lt;b&gt;a red car" in text


def test_moments_are_chosen_by_time_of_day(out: Path) -> None:
    """Names without a time: the videos begin 12 s before their last change, at most a few minutes ago."""
    found = [json.loads(line) for line in vadcli("search", out, "a red car", "--top", "9", "--json").stdout.splitlines()]
    starts = [datetime.fromisoformat(one["start_time"]) for one in found]
    assert all(timedelta(0) < datetime.now(UTC) - start < timedelta(hours=2) for start in starts)
    hour = timedelta(hours=3)
    early, late = (f"{moment:%H:%M}" for moment in (min(starts) - hour, max(starts) + hour))
    for options, count in (
        (("--between", f"{early}-{late}"), len(found)),
        (("--between", f"{late}-{early}"), 0),
        (("--since", "3h"), len(found)),
        (("--since", "2h", "--time-from", "%Y%m%d%H%M"), len(found)),
    ):
        done = vadcli("search", out, "a red car", "--top", "9", "--format", "csv", *options)
        assert done.returncode == 0, done.stderr
        assert len(list(csv.DictReader(io.StringIO(done.stdout)))) == count, options


def test_bad_searches_are_one_line(out: Path, tmp_path: Path) -> None:
    for arguments, code, words in (
        (("search", out, "x", "--top", "0"), 2, "--top 0"),
        (("search", out, "x", "--encoder", "siglip-b32"), 2, "siglip2-b32"),
        (("search", out, "x", "--to", tmp_path), 1, "is a directory"),
    ):
        done = vadcli(*arguments)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_changed_encoder_is_refused(out: Path, encoder: Path) -> None:
    path = encoder / "preprocessor_config.json"
    before = path.read_text()
    try:
        path.write_text(before.replace('"resample": 3', '"resample": 2'))
        with pytest.raises(WeightsError, match="were not made by the encoder"):
            library.search(out, "a red car")
    finally:
        path.write_text(before)
    assert library.search(out, "a red car")


def test_a_damaged_file_is_reported_and_the_others_are_searched(out: Path) -> None:
    path = out / "embeddings" / "a.mp4.parquet"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:200] + b"\0" * 50 + whole[250:-20])
        done = vadcli("search", out, "a red car", "--json")
    finally:
        path.write_bytes(whole)
    assert done.returncode == 3
    assert "a.mp4.parquet" in done.stderr
    assert {json.loads(line)["video"] for line in done.stdout.splitlines()} == {"b.mp4"}


def test_words_without_an_encoder_name_the_command(tmp_path: Path) -> None:
    (tmp_path / "footage").mkdir()
    make_video(tmp_path / "footage" / "a.mp4", frames=20, fps=10)
    done = subprocess.run(
        [sys.executable, "-m", "vadcli", "scan", "footage", "--categories", "fight,fire"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "VADCLI_WEIGHTS": str(tmp_path / "weights")},
    )
    assert done.returncode == 0, done.stderr
    assert "ignores fight, fire" in done.stderr
    assert "vadcli weights pull siglip2-b32 (1.5 GB)" in done.stderr
