"""The library does the same as the commands, and the examples of docs/library.md run."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import vadcli
from tests.detectors.encoders import tiny_encoder_folder
from tests.media import make_video
from tests.patience import PATIENCE_S
from vadcli import options as option_sets
from vadcli.errors import NoVideoFound, UsageError
from vadcli.registry import ASKERS
from vadcli.types import Status

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = [name for name in vadcli.__all__ if name != "__version__"]


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
    assert len(blocks) == 12
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


def options_of(function: str) -> dict[str, Any]:
    """Return the fields of a function's options by name."""
    kind = getattr(option_sets, {"evaluate": "EvalOptions"}.get(function, f"{function.capitalize()}Options"))
    return {item.name: item for item in fields(kind)}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_options_that_work_only_on_the_command_line_are_refused(function: str, footage: Path) -> None:
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8").partition("## Options that work only")[2]
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    listed = {name for names, where in rows if where.strip() == "all" or f"`{function}`" in where for name in quoted(names)}
    refused = {name: item for name, item in options_of(function).items() if item.metadata["cli_only"]}
    assert listed == set(refused)
    for name, item in refused.items():
        value = not item.default if isinstance(item.default, bool) else (item.metadata["choices"] or ["file"])[-1]
        with pytest.raises(UsageError, match=f"{name}.* only on the command line") as caught:
            getattr(vadcli, function)("results", **{name: value})
        assert caught.value.hint == item.metadata["cli_only"]
    assert not Path("results").exists()


def quoted(text: str) -> list[str]:
    return re.findall("`(.*?)`", text)


# A command reads these options to print something. The module that does the work reads them too.
ALSO_PRINTED = {
    "scan": {"out"},
    "verify": {"dry_run", "max_runtime"},
    "embed": {"out"},
    "learn": {"review"},
    "clips": {"to"},
    "prune": {"dry_run"},
    "evaluate": {"root"},
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_a_command_does_with_an_option_the_library_does_too_or_refuses(function: str) -> None:
    known = options_of(function)
    module = "models" if function in ("scan", "verify", "embed", "learn") else "results"
    by_command = options_read(ROOT / "vadcli" / "cli" / f"{module}.py", function) & set(known)
    refused = {name for name, item in known.items() if item.metadata["cli_only"]}
    by_library = options_read(ROOT / "vadcli" / "api.py", function)
    assert by_command <= refused | by_library | ALSO_PRINTED.get(function, set())


def options_read(path: Path, function: str) -> set[str]:
    """Return the names in `options.NAME` and `chosen.NAME`, in a function and in all functions of its module that it uses."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = {item.name: list(ast.walk(item)) for item in tree.body if isinstance(item, ast.FunctionDef)}
    seen, waiting = set(), {function}
    while waiting:
        seen |= waiting
        waiting = {
            node.id for name in waiting for node in bodies[name] if isinstance(node, ast.Name) and node.id in bodies
        } - seen
    return {
        node.attr
        for name in seen
        for node in bodies[name]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("options", "chosen")
    }


def test_a_dry_run_yields_the_plan_and_writes_nothing(footage: Path) -> None:
    plan = list(vadcli.scan(footage, out="out", dry_run=True))
    assert [(planned.video, planned.need) for planned in plan] == [("a.mp4", "scan"), ("b.mp4", "scan")]
    assert not Path("out").exists()
    list(vadcli.scan(footage / "a.mp4", out="out", root=footage))
    assert dict(vadcli.scan(footage, out="out", dry_run=True, refit=False)) == {"a.mp4": "done", "b.mp4": "scan"}


def test_the_library_writes_events_and_plots_where_the_command_does(footage: Path) -> None:
    list(vadcli.scan(footage, out="out"))
    assert vadcli.events("out", to="exported", format="csv").problems == ()
    assert sorted(path.name for path in Path("exported").glob("*.csv")) == ["a.mp4.csv", "b.mp4.csv"]
    vadcli.evaluate("out", root="footage/truth.csv", metrics="frame", bootstrap=0, plots="plots")
    assert Path("plots", "curves.png").is_file()
    for call in (vadcli.events, vadcli.search):
        with pytest.raises(UsageError, match="'csv', but nothing is written"):
            call("out", format="csv")


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
