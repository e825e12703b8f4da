"""The library does the same as the commands, and the examples of docs/library.md run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vadcli
from tests.detectors.encoders import tiny_encoder_folder
from tests.media import make_video
from tests.patience import PATIENCE_S
from vadcli.errors import NoVideoFound, UsageError
from vadcli.registry import ASKERS
from vadcli.types import Status

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def footage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make two small videos and their ground truth in the working folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "footage"
    folder.mkdir()
    for name in ("a", "b"):
        make_video(folder / f"{name}.mp4", frames=40)
    (folder / "truth.csv").write_text("video,start_s,end_s\na.mp4,0.4,0.8\nb.mp4,,\n")
    return folder


def test_every_example_of_the_page_runs(
    footage: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ASKERS._all, "planted", "tests.verify.planted:load_planted")
    tiny_encoder_folder(Path("my-encoder"))
    reviews = [
        {"video": video, "start_s": 0.2, "end_s": 0.6, "peak_score": score, "verdict": verdict}
        for video in ("a.mp4", "b.mp4")
        for score, verdict in ((0.8, "true"), (0.6, "false"))
    ]
    Path("review.json").write_text(json.dumps({"format_version": 1, "reviews": reviews}))
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 11
    for block in blocks:
        exec(block, names)
    said = capsys.readouterr().out
    assert "a.mp4 done" in said
    assert re.search(r"^a\.mp4 \d+ $", said, re.M)  # the number of vectors, without a problem
    assert "the head is not written: it may not be better" in said
    assert "'treshold' is not an option (did you mean threshold?)" in said
    assert (footage.parent / "results" / "report.html").is_file()
    assert (footage.parent / "results" / "rendered").is_dir()
    events = sum(len(document.events) for document in vadcli.events("results").documents)
    assert len(list((footage.parent / "evidence").glob("*.mp4"))) == events


def test_the_library_and_the_command_store_the_same_scores(footage: Path) -> None:
    results = list(vadcli.scan([footage / "a.mp4", footage / "b.mp4"], out="library"))
    assert [result.status for result in results] == [Status.DONE, Status.DONE]
    command = [sys.executable, "-m", "vadcli", "scan", "footage/a.mp4", "footage/b.mp4", "--out", "command", "--quiet"]
    subprocess.run(command, check=True, timeout=PATIENCE_S)
    for name in ("a", "b"):
        ours, theirs = (next(Path(out, "events").rglob(f"{name}*.json")).read_bytes() for out in ("library", "command"))
        assert ours == theirs
    assert [result.status for result in vadcli.scan(footage, out="library")] == [Status.SKIPPED, Status.SKIPPED]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"detector": "still"}, "still"),
        ({"treshold": 0.5}, "did you mean threshold"),
        ({"masks": "some"}, "masks"),
        ({"interval": 0}, "interval"),
    ],
)
def test_options_are_checked_before_anything_is_read(footage: Path, options: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        vadcli.scan(footage, out="out", **options)
    assert not Path("out").exists()


def test_a_folder_without_videos_and_a_missing_output_are_errors(tmp_path: Path) -> None:
    with pytest.raises(NoVideoFound):
        vadcli.scan(tmp_path, out=tmp_path / "out")
    for call in (vadcli.events, vadcli.report):
        with pytest.raises(UsageError, match="the folder does not exist"):
            call(tmp_path / "out")
    with pytest.raises(AttributeError, match="no attribute"):
        vadcli.scam


def test_a_list_of_categories_is_what_the_command_gets(footage: Path) -> None:
    for result in vadcli.scan(footage / "a.mp4", out="out", categories=["a fight", "fire"]):
        assert result.status is Status.DONE
    (document,) = vadcli.events("out").documents
    assert list(document.categories) == ["a fight", "fire"]
