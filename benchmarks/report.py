"""Measure the report of a large archive: its size, and the time to build, open and filter it.

python benchmarks/report.py --videos 2000 --events 10000
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vadcli.cutting import cut_events
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.store.events import EventsDocument, ScanState, write_events
from vadcli.store.run_log import RunInfo, RunRecord
from vadcli.store.scores import ScoresMetadata, write_scores
from vadcli.types import ScoreTable, Status, Thresholds, VideoResult

FPS = 10.0
THRESHOLDS = Thresholds(0.5, 0.4, 0.0, 0.0)
CAMERAS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--frames", type=int, default=1200, help="frames per video")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        make_archive(out, chosen.videos, chosen.events, chosen.frames)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vadcli", "report", str(out), "--quiet"], check=True)
        built_s = time.perf_counter() - began
        peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        page = out / "report.html"
        print(f"built in {built_s:.1f} s, at most {peak_mib:.0f} MiB; the page has {page.stat().st_size / 1e6:.1f} MB")
        look(page)


def make_archive(out: Path, videos: int, events: int, frames: int) -> None:
    """Write scores and events as a scan does, without footage."""
    layout = OutputLayout(out)
    rng = np.random.default_rng(0)
    rows = np.arange(frames, dtype=np.int64)
    each = events // videos
    with Scratch(layout.scratch) as scratch:
        info = RunInfo("0", ("vadcli", "scan"), {}, {"name": "fake"}, root="/nowhere")
        with RunRecord(layout, scratch, info, write_every_s=1e9) as record:
            for number in range(videos):
                video = f"camera-{number % CAMERAS:02d}/{number:05d}.mp4"
                score = rng.uniform(0.0, 0.3, frames).astype(np.float32)
                for start in np.linspace(10, frames - 30, each).astype(int):
                    score[start : start + 10] = rng.uniform(0.5, 1.0)
                table = ScoreTable(video, rows, rows, rows / FPS, score, score, rows >= 0, rows >= 0)
                probe = {"frames": frames, "fps": FPS, "duration_s": frames / FPS, "width": 640, "height": 360}
                found = tuple(cut_events(table, THRESHOLDS, duration_s=frames / FPS))
                described = {
                    "path": video,
                    "camera": f"camera-{number % CAMERAS:02d}",
                    "width": 640,
                    "height": 360,
                    "rotation": 0,
                    "fps": FPS,
                    "duration_s": frames / FPS,
                    "frames": frames,
                    "moving_camera": None,
                }
                document = EventsDocument(
                    video=described,
                    detector="fake",
                    categories=(),
                    thresholds=THRESHOLDS,
                    events=found,
                    scan=ScanState(Status.DONE, "ab" * 32, {}),
                )
                for path in (layout.scores(video), layout.events(video)):
                    path.parent.mkdir(parents=True, exist_ok=True)
                write_events(layout.events(video), document)
                write_scores(layout.scores(video), table, ScoresMetadata("0", "ab" * 32, {}, probe, (), "1/10", "fake", "."))
                record.add(VideoResult(video, Status.DONE, decoded_frames=frames, events=len(found)))
            record.close(0)


def look(page: Path) -> None:
    """Open the page in Chromium and filter it, and print how long each step takes."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1280, "height": 900})
        began = time.perf_counter()
        shown.goto(page.as_uri())
        shown.locator("#table tbody tr").first.wait_for()
        print(f"opened in {time.perf_counter() - began:.2f} s: {shown.locator('#count').inner_text()}")
        for name, value in (("text", "camera-07"), ("score", "0.9"), ("text", "nothing like it")):
            spent = shown.evaluate(
                """([name, value]) => {
                    const field = document.querySelector(`#filters [name=${name}]`);
                    field.value = value;
                    const began = performance.now();
                    field.dispatchEvent(new Event("input", {bubbles: true}));
                    document.body.offsetHeight;
                    return performance.now() - began;
                }""",
                [name, value],
            )
            print(f"filtered by {name} = {value!r} in {spent:.0f} ms: {shown.locator('#count').inner_text()}")
        browser.close()


if __name__ == "__main__":
    main()
