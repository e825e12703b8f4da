"""Messages: each says once what is wrong, and how to fix it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from typer.main import get_command

from tests.commands import vadcli
from tests.media import make_video, truncate
from vadcli.cli import make_app
from vadcli.errors import DecodeError, UsageError
from vadcli.ground_truth import open_ground_truth
from vadcli.options import ScanOptions, from_keywords
from vadcli.types.text import how_many, without_name


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Footage with a broken file and a video of one frame, a scan of it, and a folder that is neither."""
    folder = tmp_path_factory.mktemp("messages")
    (folder / "footage" / "cam").mkdir(parents=True)
    (folder / "neither").mkdir()
    (folder / "odd").mkdir()
    (folder / "odd" / "a.xyz").touch()
    make_video(folder / "footage" / "cam" / "good.mp4", frames=40, fps=10)
    make_video(folder / "footage" / "cam" / "one.mp4", frames=1, fps=10)
    truncate(folder / "footage" / "cam" / "good.mp4", folder / "footage" / "cam" / "cut.mp4", 0.5)
    (folder / "scan.log").write_text(vadcli("scan", "footage", "--out", "out", "--threshold", "0", cwd=folder).stderr)
    return folder


def test_a_scan_says_what_it_counts_and_names_each_file_once(here: Path) -> None:
    log = (here / "scan.log").read_text()
    assert re.search(r"^cam/good.mp4: 40 frames, 1 event, scored in \d+\.\d s$", log, re.MULTILINE)
    assert re.search(r"^cam/one.mp4: 1 frame, ", log, re.MULTILINE)
    failure = next(line for line in log.splitlines() if "cut.mp4" in line)
    assert failure.startswith("cam/cut.mp4: failed: not a readable video file (")
    assert (failure.count("cut.mp4"), failure.count("(")) == (1, 1)
    again = vadcli("scan", "footage", "--out", "out", "--threshold", "0", cwd=here).stderr
    assert "real time" not in again
    assert re.search(r"^3 skipped; 1 event; \d+\.\d s; results in out$", again, re.MULTILINE), again


def test_names_that_begin_with_a_dash(here: Path, tmp_path: Path) -> None:
    shutil.copy(here / "footage" / "cam" / "one.mp4", tmp_path / "-x.mp4")
    wrong = vadcli("scan", "-x.mp4", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.splitlines()[-1]) == (2, "  for the file or folder -x.mp4, write ./-x.mp4")
    misplaced = vadcli("scan", "--", "-x.mp4", "--dry-run", cwd=tmp_path)
    hint = "--dry-run: the file or folder does not exist\n  options must stand before --\n"
    assert (misplaced.returncode, misplaced.stderr) == (2, f"vadcli: error: {hint}")
    for right in (["./-x.mp4"], ["--", "-x.mp4"]):
        assert vadcli("scan", "--dry-run", *right, cwd=tmp_path).stdout == "scan\t-x.mp4\n"


def test_render_says_why_a_video_is_not_rendered(here: Path) -> None:
    done = vadcli("render", "footage", "--out", "out", cwd=here)
    assert done.returncode == 3
    assert "cam/cut.mp4: not rendered, because the scan failed: not a readable video file" in done.stderr
    assert done.stderr.count("cut.mp4") == 1
    for name in ("x", "y", "z"):
        shutil.copy(here / "footage" / "cam" / "good.mp4", here / "footage" / f"new-{name}.mp4")
    some = vadcli("render", "footage", "--out", "out", cwd=here)
    none = vadcli("render", "footage", "--include", "new-*", "--out", "out", cwd=here)
    for name in ("x", "y", "z"):
        (here / "footage" / f"new-{name}.mp4").unlink()
    assert "new-x.mp4: not scanned into out, nor are 2 more videos\n" in some.stderr
    assert (some.returncode, some.stderr.count("not scanned")) == (3, 1)
    assert (none.returncode, none.stderr.count("not scanned")) == (2, 1)


def test_a_folder_that_is_no_output_is_refused(here: Path) -> None:
    for command in (["events"], ["events", "--validate"], ["report"], ["status"], ["render", "footage", "--out"]):
        done = vadcli(*command, "neither", cwd=here)
        assert (done.returncode, done.stdout) == (2, ""), command
        assert re.search("neither: .*(no results|no run record)", done.stderr), done.stderr


WRONG = """
scan PLACE, embed PLACE, render PLACE, status PLACE, events PLACE, report PLACE, prune PLACE, verify PLACE,
search PLACE text, clips PLACE --to cut, learn PLACE --labels PLACE, eval PLACE --root PLACE, scan footage --out PLACE,
render footage --out PLACE, report out --to PLACE/page.html, events out --to PLACE/events.json, clips out --to PLACE,
learn out --labels PLACE --to PLACE, eval out --root PLACE, search out text
"""


@pytest.mark.parametrize("command", [part.strip() for part in WRONG.split(",")])
def test_hints_name_only_options_that_the_command_has(here: Path, command: str) -> None:
    name, *arguments = command.split()
    own = get_command(make_app([name])).commands[name]  # type: ignore[attr-defined]
    options = {name for parameter in own.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for place in ("missing", "neither", "odd", "scan.log", "s3://"):
        done = vadcli(name, *(argument.replace("PLACE", place) for argument in arguments), cwd=here)
        for line in done.stderr.splitlines():
            said = re.sub(r"`vadcli [^`]*`|\bscan with .*", "", line)  # the options of another command
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", said)) <= options, line


def test_footage_that_is_not_there(here: Path) -> None:
    missing = vadcli("report", "out", "--footage", "nowhere", cwd=here)
    assert (missing.returncode, "--footage nowhere: the folder does not exist" in missing.stderr) == (2, True)
    other = vadcli("report", "out", "--footage", "neither", "--to", "page.html", cwd=here)
    assert "the footage of 1 video with events is not below neither" in other.stderr


def test_wrong_settings_are_refused_in_plain_words(here: Path) -> None:
    for text, said in [
        ("out = 3", "3 is not a path"),
        ('workers = "x"', "'x' is not a whole number"),
        ("include = 3", "a list"),
    ]:
        (here / "vadcli.toml").write_text(f"[scan]\n{text}\n")
        done = vadcli("scan", "footage", cwd=here)
        (here / "vadcli.toml").unlink()
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    with pytest.raises(UsageError, match="is not true or false"):
        from_keywords(ScanOptions, {"force": "perhaps"})


def test_a_users_own_table_has_no_official_file(here: Path) -> None:
    for text in ("video,start,end\n", "video,start_s,end_s,category\n,1,2,\n", "video,start_s,end_s,category\na.mp4,1\n"):
        (here / "truth.csv").write_text(text)
        with pytest.raises(Exception, match="correct the line") as caught:
            list(open_ground_truth("csv", here / "truth.csv").read())
        assert "official" not in str(caught.value)
    with pytest.raises(UsageError) as folder:
        list(open_ground_truth("csv", here / "neither").read())
    assert "official" not in str(folder.value)


def test_small_texts() -> None:
    assert [how_many(number, "frame") for number in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]
    assert str(DecodeError("broken (by ffmpeg)", hint="copy it again")) == "broken (by ffmpeg; copy it again)"
    assert without_name("/a b/cam/x.mp4: empty", "cam/x.mp4") == "empty"
    assert without_name("cam/x.mp4: empty", "cam/x.mp4") == "empty"
    assert without_name("failed earlier: /a/cam/x.mp4: empty", "cam/x.mp4") == "failed earlier: empty"
    assert without_name("/a/cam/yx.mp4: empty", "x.mp4") == "/a/cam/yx.mp4: empty"
    assert without_name("no name", "x.mp4") == "no name"
