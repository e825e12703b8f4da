"""Regions in the report: a user draws them on a camera's frame with mouse or keyboard, and a scan reads the saved file."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.media import make_video
from tests.report.archives import make_archive
from tests.report.test_browser import browser, playwright
from tests.report.test_report import report
from vadcli.reporting.archive import collect
from vadcli.reporting.pictures import camera_frames
from vadcli.store.choices import read_regions
from vadcli.store.events import read_events, write_events
from vadcli.types import Regions
from vadcli.types.media import Polygon
from vadcli.video.loader import LoaderOptions

__all__ = ["browser"]
STORED = Polygon(((0.0, 0.0), (0.2, 0.0), (0.2, 0.1)))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive with the footage of two of its cameras; one of the two had a region."""
    root = tmp_path_factory.mktemp("footage")
    for name in ("cam1/a.mp4", "cam2/c.mp4"):
        (root / name).parent.mkdir()
        make_video(root / name, frames=40, fps=10, size=(320, 240))
    layout = make_archive(root / "out", root=root, extra=["cam3"])
    document = read_events(layout.events("cam2/c.mp4"))
    write_events(layout.events("cam2/c.mp4"), replace(document, regions=Regions(ignore=(STORED,))))
    return layout.out


@pytest.mark.parametrize("beside", [False, True])
def test_regions_are_drawn_and_saved(browser: Any, out: Path, tmp_path: Path, beside: bool) -> None:
    to = tmp_path / "page.html"
    assets = ["--assets", tmp_path / "files"] if beside else []
    assert report(out, "--to", to, *assets).returncode == 3
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.goto(to.as_uri())
    assert page.get_by_role("button", name="Draw regions").count() == 2  # cam3 has no footage
    page.get_by_role("button", name="Draw regions, cam1").click()
    dialog = page.get_by_role("dialog", name="Regions of cam1")
    pad = dialog.get_by_role("application")
    assert pad.locator("img").evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])") == [
        320,
        240,
    ]
    box = pad.bounding_box()
    for x, y in ((0.1, 0.1), (0.6, 0.1)):
        pad.click(position={"x": x * box["width"], "y": y * box["height"]})
    dialog.get_by_role("button", name="Close polygon").click()
    assert "at least three points" in dialog.get_by_role("status").inner_text()
    pad.click(position={"x": 0.6 * box["width"], "y": 0.5 * box["height"]})
    dialog.get_by_role("button", name="Close polygon").click()
    dialog.get_by_label("Look only at what is inside").check()
    pad.focus()
    for key in ("Enter", "Shift+ArrowRight", "Enter", "ArrowDown", "Enter", "Backspace", "Shift+ArrowDown", "Enter", "c"):
        page.keyboard.press(key)
    assert dialog.get_by_role("status").inner_text() == "1 region hidden, 1 region looked at"
    assert pad.locator("polygon").count() == 2
    with page.expect_download() as saved:
        dialog.get_by_role("button", name="Save regions.json").click()
    saved.value.save_as(tmp_path / "regions.json")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.get_by_role("button", name="Draw regions, cam2").click()
    other = page.get_by_role("dialog", name="Regions of cam2")
    assert other.get_by_role("status").inner_text() == "1 region hidden, 0 regions looked at"
    other.get_by_role("button", name="Undo").click()  # removes only the region that was drawn now
    assert other.get_by_role("status").inner_text() == "1 region hidden, 0 regions looked at"
    other.get_by_role("button", name="Remove all").click()
    assert other.get_by_role("status").inner_text() == "0 regions hidden, 0 regions looked at"
    page.close()
    assert wrong == []

    found = read_regions(tmp_path / "regions.json", "ignore")
    assert found.of("cam2") == Regions(ignore=(STORED,))
    assert found.of("cam3") == Regions()
    ((ignored,), (looked_at,)) = (found.of("cam1").ignore, found.of("cam1").only)
    assert isinstance(ignored, Polygon)
    for point, expected in zip(ignored.points, ((0.1, 0.1), (0.6, 0.1), (0.6, 0.5)), strict=True):
        assert point == pytest.approx(expected, abs=0.01)
    # the keyboard cursor was at the place of the last click
    first, second, third = looked_at.points  # type: ignore[union-attr]
    assert first == ignored.points[2]
    assert second == pytest.approx((first[0] + 0.05, first[1]), abs=1e-3)
    assert third == pytest.approx((first[0] + 0.05, first[1] + 0.06), abs=1e-3)


def test_axe_finds_no_serious_fault_in_the_dialog(browser: Any, out: Path, tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    assert report(out, "--to", tmp_path / "page.html").returncode == 3
    context = browser.new_context(viewport={"width": 400, "height": 900}, bypass_csp=True)
    page = context.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.get_by_role("button", name="Draw regions, cam1").click()
    playwright.expect(page.get_by_role("dialog")).to_be_visible()
    faults = axe.Axe().run(page).response["violations"]
    context.close()
    assert [fault["id"] for fault in faults if fault["impact"] in ("serious", "critical")] == []


def test_a_page_without_pictures_has_no_frames(out: Path, tmp_path: Path) -> None:
    for options in (["--thumbnails", 0], ["--footage", tmp_path]):
        assert report(out, "--to", tmp_path / "page.html", *options).returncode == 3
        text = (tmp_path / "page.html").read_text()
        data = json.loads(text.split('id="data">')[1].split("</script>")[0])
        assert [camera["frame"] for camera in data["cameras"]] == [None] * 3


def test_the_frame_of_a_camera_comes_from_a_video_that_can_be_read(tmp_path: Path) -> None:
    root = tmp_path / "footage"
    (root / "cam1").mkdir(parents=True)
    make_video(root / "cam1" / "a.mp4", frames=40, fps=10, size=(320, 240))
    (root / "cam1" / "b.mp4").write_text("damaged since the scan")
    archive = collect(make_archive(tmp_path / "out", root=root))
    assert [video.video for video in archive.cameras["cam1"]] == ["cam1/a.mp4", "cam1/b.mp4"]
    frames = camera_frames(archive, most=1, root=None, decode=LoaderOptions())
    assert Image.open(io.BytesIO(frames["cam1"])).size == (320, 240)
