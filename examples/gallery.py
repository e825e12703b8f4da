"""Make the pictures of docs/gallery.md: screenshots of the report, and frames of rendered videos.

    python examples/gallery.py docs/gallery [--work DIR]

Draws the synthetic archive, the videos of unusual sizes and the coloured shapes, scans and renders them, makes the report, and
takes screenshots with Chromium. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import coloured_shapes
from odd_shapes import SHAPES, ffmpeg, make_shapes
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page, sync_playwright
from synthetic_archive import make_archive

QUALITY = 80
LABEL_PX = 26
NAMES = ("red star", "blue ring", "something falling", "purple star")
"""The categories for lavida-tiny. Its training never showed a purple star."""


@dataclass(frozen=True)
class View:
    """One screenshot of the report.

    Attributes:
        name: name of the picture file, without its suffix.
        width, height: size of the window in CSS pixels.
        scheme: light or dark colours.
        act: function that uses the page before the screenshot.
        part: CSS selector of the element in the screenshot; "" for the whole window.
    """

    name: str
    width: int
    height: int
    scheme: Literal["light", "dark"] = "light"
    act: Callable[[Page], None] = lambda page: None
    part: str = ""


def open_event(page: Page) -> None:
    """Open the first event, move its clip to the middle, and hide the player's buttons."""
    page.locator("#table tbody tr").first.focus()
    page.keyboard.press("Enter")
    video = page.locator("dialog video")
    video.evaluate("video => { video.controls = false; video.preload = 'auto'; video.load(); }")
    video.evaluate("video => new Promise((done) => { if (video.readyState > 2) done(); else video.oncanplay = done; })")
    video.evaluate("video => new Promise((done) => { video.onseeked = done; video.currentTime = video.duration / 2; })")
    page.wait_for_timeout(300)


def zoom_in(page: Page) -> None:
    """Go to the second event of a camera with the keyboard, and zoom in."""
    chart = page.locator(".chart").first
    chart.scroll_into_view_if_needed()
    chart.focus()
    for key in "nn+++":
        page.keyboard.press(key)
    page.wait_for_timeout(200)


def triage(page: Page) -> None:
    """Mark one event as true and one as false, and write a note."""
    page.locator("#table tbody tr").first.focus()
    for key in ("t", "ArrowDown", "f"):
        page.keyboard.press(key)
    page.locator("#table .note").nth(1).fill("a cyclist, allowed here")


VIEWS = (
    View("report", 1280, 1000),
    View("report-timeline", 1280, 1000, "dark", zoom_in),
    View("report-events", 1280, 700, "light", triage, part="#events"),
    View("report-event", 1280, 900, "dark", open_event),
    View("report-phone", 390, 1000),
)


def vadcli(work: Path, *arguments: str) -> str:
    """Run a command in the folder of the footage, as a user would, and return its output."""
    print(f"$ vadcli {' '.join(arguments)}", file=sys.stderr)
    command = [sys.executable, "-m", "vadcli", *arguments]
    return subprocess.run(command, cwd=work, check=True, text=True, stdout=subprocess.PIPE).stdout


def photograph(browser: Browser, report: Path, view: View, target: Path) -> None:
    """Take a screenshot of the report. An error in the page's script is raised as RuntimeError."""
    context = browser.new_context(viewport={"width": view.width, "height": view.height}, color_scheme=view.scheme)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(report.absolute().as_uri())
    page.wait_for_timeout(600)
    view.act(page)
    shot = page.locator(view.part).screenshot() if view.part else page.screenshot()
    picture = Image.open(io.BytesIO(shot))
    context.close()
    if errors:
        raise RuntimeError(f"{report}: {errors[0]}")
    save(picture, target)


def peaks(out: Path, of: str = "video") -> dict[str, tuple[str, float]]:
    """Return the video and time of the highest score per video with events, or per category."""
    rows = list(csv.DictReader(io.StringIO(vadcli(out.parent, "events", out.name, "--format", "csv"))))
    rows.sort(key=lambda row: float(row["peak_score"]))
    return {row[of]: (row["video"], float(row["peak_s"])) for row in rows}


def still(video: Path, second: float, work: Path) -> Image.Image:
    """Return one frame of a rendered video."""
    path = work / "still.png"
    ffmpeg("-ss", f"{second:.2f}", "-i", str(video), "-frames:v", "1", str(path))
    return Image.open(path).convert("RGB")


def sheet(stills: list[tuple[str, Image.Image]], *, columns: int, cell: tuple[int, int]) -> Image.Image:
    """Return a picture with the stills in cells of this size, each with its name below."""
    width, height = cell[0], cell[1] + LABEL_PX
    rows = -(-len(stills) // columns)
    page = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(page)
    for place, (name, picture) in enumerate(stills):
        left, top = place % columns * width, place // columns * height
        shown = picture.copy()
        shown.thumbnail((cell[0] - 8, cell[1] - 8), Image.Resampling.LANCZOS)
        page.paste(shown, (left + (width - shown.width) // 2, top + 4))
        draw.text((left + width / 2, top + shown.height + 10), name, fill="black", anchor="ma", font_size=15)
    return page


def save(picture: Image.Image, target: Path) -> None:
    """Save a picture in the gallery's format."""
    picture.convert("RGB").save(target, "WEBP", quality=QUALITY, method=6)


def shapes_picture(results: Path, work: Path) -> Image.Image:
    """Return a picture with one rendered frame of each unusual video."""
    highest = peaks(results)
    videos = [*(shape.video for shape in SHAPES), "turned/helmet.mp4"]
    stills = [
        (video, still(results / "rendered" / f"{video}.mp4", highest.get(video, (video, 0.0))[1], work)) for video in videos
    ]
    labelled = [(f"{video}   {picture.width} x {picture.height}", picture) for video, picture in stills]
    return sheet(labelled, columns=2, cell=(480, 330))


def names_picture(work: Path) -> Image.Image:
    """Return a picture of each category's highest frame, by LAVIDA's small checkpoint."""
    footage, results = work / "named", work / "named-results"
    if not footage.exists():
        coloured_shapes.main([str(footage), "--categories", ", ".join(NAMES), "--videos", "12"])
    lavida = ("--detector", "lavida", "--model", "lavida-tiny", "--categories", ", ".join(NAMES))
    vadcli(work, "scan", footage.name, "--out", results.name, *lavida, "--masks", "video", "--quiet")
    vadcli(work, "render", footage.name, "--out", results.name, "--quiet")
    highest = peaks(results, "category")
    stills = [
        (name, still(results / "rendered" / f"{video}.mp4", second, work))
        for name, video, second in ((name, *highest[name]) for name in NAMES if name in highest)
    ]
    return sheet(stills, columns=4, cell=(270, 362))


def main() -> None:
    """Make the footage, scan it, make the report, render, and take the pictures."""
    parser = argparse.ArgumentParser(description="Make the pictures of docs/gallery.md.")
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument(
        "--work", type=Path, default=None, help="folder that keeps footage and results; existing footage is used again"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        archive, shapes = work / "archive", work / "shapes"
        if not archive.exists():
            make_archive(archive, width=960)
        if not shapes.exists():
            make_shapes(shapes, with_hour=False)
        for footage in (archive, shapes):
            out = f"{footage.name}-results"
            vadcli(work, "scan", footage.name, "--out", out, "--masks", "video", "--quiet")
            vadcli(work, "render", footage.name, "--out", out, "--quiet")
        results = work / "archive-results"
        vadcli(work, "report", results.name, "--clips", "--title", "Last night", "--quiet")
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        with sync_playwright() as running:
            browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for view in VIEWS:
                photograph(browser, results / "report.html", view, options.out / f"{view.name}.webp")
            browser.close()
        save(shapes_picture(work / "shapes-results", work), options.out / "rendered-shapes.webp")
        save(names_picture(work), options.out / "rendered-names.webp")
        *_, (video, second) = peaks(results).values()  # the highest peak comes last
        save(still(results / "rendered" / f"{video}.mp4", second, work), options.out / "rendered.webp")


if __name__ == "__main__":
    main()
