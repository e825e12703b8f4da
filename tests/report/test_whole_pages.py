"""A page and its files are written completely or not at all, and files that no page uses are removed."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.media import make_video
from tests.patience import PATIENCE_S
from tests.report.archives import make_archive
from vadcli.errors import OutputError
from vadcli.reporting.pictures import InFolder
from vadcli.store import OutputLayout

WEBP, MP4 = "image/webp", "video/mp4"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vadcli", "report", *map(str, arguments)]


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def make(folder: Path, page: Path, *files: bytes) -> list[str]:
    """Write a page that uses these files, and return the names of the files."""
    with InFolder(folder, page) as shelf:
        urls = [str(shelf.put(data, WEBP)) for data in files]
        page.write_text(" ".join(urls))
        shelf.settle()
    return [Path(url).name for url in urls]


class TestInFolder:
    def test_files_of_an_earlier_page_go_once_the_new_one_is_there(self, tmp_path: Path) -> None:
        folder, page = tmp_path / "files", tmp_path / "page.html"
        old, kept = make(folder, page, b"old", b"kept")
        with InFolder(folder, page) as shelf:
            new = Path(str(shelf.put(b"new", MP4))).name
            shelf.put(b"kept", WEBP)
            assert {old, kept, new} <= names(folder)  # the earlier page keeps its files until the new page replaces it
            page.write_text(f"{new} {kept}")
            shelf.settle()
        assert names(folder) == {new, kept, "pages.json"}

    def test_pages_share_a_folder(self, tmp_path: Path) -> None:
        folder, first, second = tmp_path / "files", tmp_path / "1.html", tmp_path / "sub" / "2.html"
        second.parent.mkdir()
        both, ones = make(folder, first, b"both", b"one's")
        make(folder, second, b"both")
        assert {both, ones} <= names(folder)
        first.unlink()
        make(folder, second, b"both")
        assert names(folder) == {both, "pages.json"}

    def test_other_peoples_files_stay(self, tmp_path: Path) -> None:
        folder, page = tmp_path / "files", tmp_path / "page.html"
        folder.mkdir()
        (folder / "notes.webp").write_bytes(b"mine")
        make(folder, page, b"a")
        make(folder, page, b"b")
        assert (folder / "notes.webp").read_bytes() == b"mine"

    def test_urls_lead_from_the_page_to_the_file(self, tmp_path: Path) -> None:
        page = tmp_path / "sub" / "page.html"
        page.parent.mkdir()
        with InFolder(tmp_path / "my files", page) as shelf:
            assert re.fullmatch(r"\.\./my%20files/[0-9a-f]{32}\.mp4", str(shelf.put(b"x", MP4)))

    def test_two_reports_at_once_are_refused(self, tmp_path: Path) -> None:
        with (
            InFolder(tmp_path, tmp_path / "1.html"),
            pytest.raises(OutputError, match="another report"),
            InFolder(tmp_path, tmp_path / "2.html"),
        ):
            pass

    @pytest.mark.parametrize("text", ["{", "{}", "[1]"])
    def test_a_damaged_list_of_pages_is_named_before_anything_is_made(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "pages.json").write_text(text)
        with pytest.raises(OutputError, match=r"pages\.json"), InFolder(tmp_path, tmp_path / "page.html"):
            pass
        assert names(tmp_path) == {"pages.json"}

    def test_beside_a_page_that_is_a_pipe_everything_stays(self, tmp_path: Path) -> None:
        old = make(tmp_path, tmp_path / "page.html", b"old")
        with InFolder(tmp_path, Path("/dev/null")) as shelf:
            shelf.put(b"new", WEBP)
            shelf.settle()
        assert set(old) < names(tmp_path)


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    (tmp_path / "footage" / "cam1").mkdir(parents=True)
    make_video(tmp_path / "footage" / "cam1" / "a.mp4", frames=40, fps=10)
    return make_archive(tmp_path / "out", root=tmp_path / "footage")


def test_a_full_disk_keeps_the_earlier_page_and_says_so(layout: OutputLayout) -> None:
    page = layout.out / "report.html"
    page.write_text("earlier")

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        command(layout.out, "--thumbnails", 0),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # Python would store truncated compiled modules
        preexec_fn=small,
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "report.html" in line]
    assert len(lines) == 1
    assert "larger than" in lines[0]
    assert page.read_text() == "earlier"
    assert not layout.scratch.exists()


def test_killed_in_its_middle_the_earlier_page_is_whole_and_the_next_report_clears_up(layout: OutputLayout) -> None:
    page, files = layout.out / "report.html", layout.out / "files"
    options = (layout.out, "--assets", files, "--thumbnails", 2)
    assert subprocess.run(command(*options), capture_output=True, timeout=PATIENCE_S, check=False).returncode == 3
    before, beside = page.read_bytes(), names(files)
    for _ in range(2):
        process = subprocess.Popen(command(*options, "--clips"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = time.monotonic() + PATIENCE_S
        while not list(files.glob(".tmp/*")) and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert page.read_bytes() == before
        assert beside <= names(files)
    assert list(files.glob(".tmp/*"))
    assert subprocess.run(command(*options), capture_output=True, timeout=PATIENCE_S, check=False).returncode == 3
    assert names(files) == beside
    assert json.loads((files / "pages.json").read_text()) == ["../report.html"]
    assert not layout.scratch.exists()
