"""The report page in a real browser without a display: the actions of a reader."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import vadcli
from tests.heads.site import Site, make_site
from tests.patience import PATIENCE_S
from tests.report.archives import HOSTILE, make_archive
from tests.report.test_report import report
from vadcli.reporting import archive as archive_module
from vadcli.store.atomic import Scratch
from vadcli.store.events import read_events, write_events
from vadcli.store.verification import Audit, VerificationRun, write_verification
from vadcli.types import Answer, StartTime, TimeSource, Verification

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        try:
            started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium starts here: {error.message.splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [name.replace("/", "∕") for name in HOSTILE]
    layout = make_archive(tmp_path_factory.mktemp("archive") / "out", extra=names)
    assert report(layout.out).returncode == 3
    return layout.out / "report.html"


@pytest.fixture
def page(browser: Any, page_file: Path) -> Iterator[Any]:
    """Open the page 1280 px wide. The test fails if a script has an error, or if the page requests anything but itself."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    made = context.new_page()
    wrong: list[str] = []
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    made.on("request", lambda asked: None if asked.url.startswith(("file://", "data:", "blob:")) else wrong.append(asked.url))
    made.goto(page_file.as_uri())
    yield made
    assert made.evaluate("window.hacked") is None
    context.close()
    assert wrong == []


def scores(page: Any) -> list[float]:
    return [float(text) for text in page.locator("#table tbody .score").all_inner_texts()]


def rows(page: Any) -> Any:
    return page.locator("#table tbody tr")


def test_it_asks_for_nothing_but_itself(browser: Any, page_file: Path) -> None:
    context = browser.new_context()
    made = context.new_page()
    asked: list[str] = []
    made.on("request", lambda request: asked.append(request.url))
    made.goto(page_file.as_uri())
    made.wait_for_timeout(300)
    context.close()
    assert asked == [page_file.as_uri()]


def test_events_are_sorted_by_any_column(page: Any) -> None:
    assert scores(page) == sorted(scores(page), reverse=True)
    page.get_by_role("button", name="Score").click()
    assert scores(page) == sorted(scores(page))
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="Starts").click()
    starts = page.locator("#table tbody td[data-label=Starts]").all_inner_texts()
    assert starts == sorted(starts)


def test_events_are_filtered_by_each_field(page: Any) -> None:
    page.get_by_label("Search").fill("C.MP4")
    assert rows(page).count() == 2
    page.get_by_label("Score from").fill("0.8")
    assert scores(page) == [0.95]
    page.get_by_role("button", name="Clear").click()
    page.locator("[name=camera]").select_option(label="cam1")
    assert rows(page).count() == 1
    page.get_by_role("button", name="Clear").click()
    page.locator("[name=category]").select_option(HOSTILE[2])
    assert rows(page).count() == 1
    page.get_by_role("button", name="Clear").click()
    page.get_by_label("Time in video from").fill("0:02.5")
    assert scores(page) == [0.95]
    page.get_by_label("Search").fill("no such thing")
    assert "No event matches these filters" in rows(page).inner_text()


def test_events_have_a_time_of_day_and_are_filtered_by_it(browser: Any, tmp_path: Path) -> None:
    layout = make_archive(tmp_path / "out")
    for video, moment in (("cam1/a.mp4", "2024-11-28T12:00:00"), ("cam2/c.mp4", "2024-11-28T23:59:59.300")):
        document = read_events(layout.events(video))
        start = StartTime(datetime.fromisoformat(f"{moment}+01:00"), TimeSource.NAME)
        write_events(layout.events(video), replace(document, start=start))
    assert report(layout.out).returncode == 3
    page = browser.new_page()
    page.goto((layout.out / "report.html").as_uri())
    page.get_by_role("button", name="Starts").click()
    shown = page.locator("#table tbody td[data-label=Starts]").all_inner_texts()
    # The second event of c.mp4 starts in the next day.
    assert [text.split("\n")[0] for text in shown] == ["2024-11-28 12:00:01", "2024-11-28 23:59:59", "2024-11-29 00:00:01"]
    assert "Dates and times are from the file's name (2 videos), unknown for 1 video" in page.locator("#events").inner_text()
    rows(page).first.focus()
    page.keyboard.press("Enter")
    assert "2024-11-28 12:00:01 (from the file's name)" in page.get_by_role("dialog").inner_text()
    page.keyboard.press("Escape")
    begin, end = page.locator("[name=day_from]"), page.locator("[name=day_to]")
    begin.fill("22:00")
    end.fill("06:00")
    assert rows(page).count() == 2
    begin.fill("00:00")
    assert scores(page) == [0.7, 0.95]  # sorted by start; the first one begins before midnight and ends after it
    begin.fill("00:00:01")
    assert rows(page).count() == 1
    begin.fill("")
    end.fill("")
    assert rows(page).count() == 3
    page.close()


def test_a_reader_sees_what_a_second_model_says_and_what_the_audit_found(browser: Any, tmp_path: Path) -> None:
    layout = make_archive(tmp_path / "out")
    answers = iter(Answer)
    for video in ("cam1/a.mp4", "cam2/c.mp4"):
        document = read_events(layout.events(video))
        events = [replace(event, verification=Verification("qwen2-vl-2b", next(answers))) for event in document.events]
        write_events(layout.events(video), replace(document, events=tuple(events), scan_events=document.events))
    audit = Audit(clips=212, confirmed=0, low=0.0, high=0.01725, left_out_s=339_600.0, found_s=2480.0)
    counts = {"confirmed": 1, "rejected": 1, "not_asked": 1}
    began = "2026-11-28T06:00:00+00:00"
    record = VerificationRun("1", ("vadcli", "verify"), {}, "qwen2-vl-2b", began, began, 0, audit=audit, **counts)  # type: ignore[arg-type]
    with Scratch(layout.scratch) as scratch:
        write_verification(layout, scratch, record)
    assert report(layout.out).returncode == 3
    page = browser.new_page()
    page.goto((layout.out / "report.html").as_uri())
    shown = {row.locator("[data-label=Category]").inner_text() for row in rows(page).all()}
    said = {"confirmed by qwen2-vl-2b", "rejected by qwen2-vl-2b", "not asked"}
    assert {line for text in shown for line in text.splitlines()} >= said
    page.get_by_label("Search").fill("rejected by")
    assert rows(page).count() == 1
    text = page.locator("body").inner_text()
    assert "qwen2-vl-2b, 2026-11-28 06:00 UTC: 1 event confirmed, 1 rejected, 1 not asked" in text
    assert "the model confirmed 0 of 212 random clips that the scan did not propose. So it would confirm at most 1.7 %" in text
    page.close()


def test_names_are_shown_as_they_are(page: Any) -> None:
    shown = page.locator("#table tbody td[data-label=Video]").all_inner_texts()
    assert {name.replace("/", "∕") for name in HOSTILE} <= set(shown)


def test_the_list_is_worked_by_keyboard_and_kept(page: Any) -> None:
    rows(page).first.focus()
    page.keyboard.press("t")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("f")
    page.keyboard.press("n")
    page.keyboard.type("a cat")
    page.keyboard.press("Tab")
    page.reload()
    pressed = page.locator("#table [aria-pressed=true]").all_inner_texts()
    assert pressed == ["true", "false"]
    assert rows(page).nth(1).locator(".note").input_value() == "a cat"
    rows(page).first.focus()
    page.keyboard.press("Backspace")
    assert page.locator("#table [aria-pressed=true]").all_inner_texts() == ["false"]
    page.keyboard.press("Enter")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog").is_visible()


def test_a_review_goes_out_and_comes_back(page: Any, tmp_path: Path) -> None:
    rows(page).nth(0).get_by_role("button", name="true").click()
    rows(page).nth(2).get_by_role("button", name="unsure").click()
    rows(page).nth(2).locator(".note").fill('=1+1, "quoted"')
    rows(page).nth(2).locator(".note").blur()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save review as JSON").click()
    saved.value.save_as(tmp_path / "review.json")
    review = json.loads((tmp_path / "review.json").read_text())
    assert review["format_version"] == 1
    assert [(entry["verdict"], entry["note"]) for entry in review["reviews"]].count(("unsure", '=1+1, "quoted"')) == 1
    with page.expect_download() as saved:
        page.get_by_role("button", name="as CSV").click()
    saved.value.save_as(tmp_path / "review.csv")
    assert '"\'=1+1, ""quoted"""' in (tmp_path / "review.csv").read_text()
    page.evaluate("localStorage.clear()")
    page.reload()
    assert page.locator("#table [aria-pressed=true]").count() == 0
    page.locator("#load").set_input_files(tmp_path / "review.json")
    playwright.expect(page.locator("#kept")).to_have_text("2 of 2 entries loaded")
    assert sorted(page.locator("#table [aria-pressed=true]").all_inner_texts()) == ["true", "unsure"]


def test_after_ten_verdicts_the_page_shows_a_command_that_learns_as_it_stands(browser: Any, tmp_path: Path) -> None:
    out, downloads = tmp_path / "the site", tmp_path / "downloads"
    truth = make_site(out, 3, Site(true=4, false=6))
    vadcli.report(out, thumbnails=0)
    page = browser.new_page(accept_downloads=True)
    page.goto((out / "report.html").as_uri())
    page.get_by_role("button", name="Starts").click()
    learn = page.locator("#learn")
    for number, (video, labels) in enumerate(truth.items()):
        page.get_by_label("Search").fill(video)
        for place, label in enumerate(labels):
            assert learn.is_visible() == (number > 0)  # the hint appears only after the tenth verdict
            rows(page).nth(place).get_by_role("button", name=str(label).lower(), exact=True).click()
    assert learn.is_visible()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save review as JSON").click()
    saved.value.save_as(downloads / saved.value.suggested_filename)
    command = learn.locator("code").inner_text()
    page.close()
    assert command.startswith("vadcli learn ")
    program = f"{shlex.quote(sys.executable)} -m vadcli {command.removeprefix('vadcli ')}"
    done = subprocess.run(program, shell=True, cwd=downloads, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "12 true events and 18 false events in 3 videos" in done.stdout
    assert (downloads / "my-head" / "card.json").exists()
    vadcli.events(out, head=downloads / "my-head", write=True)
    vadcli.report(out, thumbnails=0)
    page = browser.new_page()
    page.goto((out / "report.html").as_uri())
    shown = page.locator("#table tbody td[data-label=Score]").all_inner_texts()
    page.close()
    assert shown
    assert all(re.fullmatch(r"0\.\d{3}\s+head [01]\.\d{3}", text) for text in shown)


def test_a_page_about_very_many_videos_has_a_table_of_cameras(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "MOST_VIDEOS", 3)
    layout = make_archive(tmp_path / "out")
    vadcli.report(layout.out, thumbnails=0)
    page = browser.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((layout.out / "report.html").as_uri())
    assert page.locator(".camera").count() == 0
    assert page.locator("section[aria-labelledby=timelines-heading] tbody tr").count() == 2
    page.locator("#filters [name=camera]").select_option(label="cam2")
    assert rows(page).count() == 2
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.close()
    assert wrong == []


def test_timelines_zoom_and_lead_to_events(page: Any) -> None:
    chart = page.get_by_role("group", name="Score curve of cam2")
    chart.scroll_into_view_if_needed()
    chart.locator("canvas").wait_for()
    mine = "vadcli.timelines.charts.find((chart) => chart.root.closest('[aria-label*=cam2]'))"
    span = f"() => {{ const {{min, max}} = {mine}.scales.x; return max - min; }}"
    before = page.evaluate(span)
    assert before == 4
    chart.focus()
    page.keyboard.press("+")
    page.wait_for_function(f"({span})() === {before / 2}")
    page.keyboard.press("0")
    page.wait_for_function(f"({span})() === {before}")
    page.keyboard.press("n")
    reading = page.locator(".camera", has=chart).locator(".reading")
    told = reading.inner_text()
    assert told.startswith("event 1 of cam2/c.mp4")
    page.keyboard.press("+")
    page.keyboard.press("+")
    page.wait_for_function(f"({span})() < {before / 2}")
    event = page.evaluate("vadcli.events.find((event) => event.video === 'cam2/c.mp4')")
    shown = page.evaluate(f"() => {mine}.scales.x")
    assert shown["min"] <= (event["start_s"] + event["end_s"]) / 2 <= shown["max"]
    assert reading.inner_text() == told
    page.keyboard.press("Enter")
    assert "cam2/c.mp4" in page.get_by_role("dialog").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280, 3840])
def test_it_fits_the_screen_in_both_schemes(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    made = context.new_page()
    made.goto(page_file.as_uri())
    assert made.evaluate("document.documentElement.scrollWidth") <= width
    channel = made.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
    assert channel > 200 if scheme == "light" else channel < 60
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser: Any, page_file: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme, bypass_csp=True)
    made = context.new_page()
    made.goto(page_file.as_uri())
    made.wait_for_timeout(300)
    rows(made).first.focus()
    found = {}
    for step in ("list", "dialog"):
        if step == "dialog":
            made.keyboard.press("Enter")
        found[step] = axe.Axe().run(made).response["violations"]
    context.close()
    serious = [
        f"{step}: {fault['id']}: {fault['help']}: {fault['nodes'][0]['html'][:200]}"
        for step, faults in found.items()
        for fault in faults
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []


def quiet_page(folder: Path, *options: object) -> Path:
    """A page on which cam1 has no events."""
    layout = make_archive(folder / "out")
    path = layout.events("cam1/a.mp4")
    write_events(path, replace(read_events(path), events=()))
    assert report(layout.out, *options).returncode == 3
    return layout.out / "report.html"


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (360, 640)])
def test_events_come_first_and_quiet_cameras_are_folded(browser: Any, tmp_path: Path, width: int, height: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(quiet_page(tmp_path).as_uri())
    headings = page.locator("h2:visible").all_inner_texts()
    assert headings.index("Events") < headings.index("What could not be read") < headings.index("Timelines")
    assert page.locator("#quiet summary").inner_text() == "1 camera without events: cam1"
    charts = [page.get_by_role("group", name=f"Score curve of {name}", include_hidden=True) for name in ("cam1", "cam2")]
    assert [chart.is_visible() for chart in charts] == [False, True]
    page.locator("#quiet summary").click()
    charts[0].locator("canvas").wait_for()
    page.evaluate("scrollTo(0, 0)")
    box = page.get_by_role("link", name="To the first event", exact=True).bounding_box()
    assert box["y"] + box["height"] <= height
    page.evaluate("vadcli.$('filters').elements.score.value = '0.99'")
    page.get_by_role("link", name="To the first event", exact=True).click()
    row = page.locator("#table tr:focus")
    row.wait_for()
    assert float(row.locator(".score").inner_text()) == 0.95
    assert 0 <= row.bounding_box()["y"] < height
    page.close()


@pytest.mark.parametrize("assets", [False, True])
def test_paper_shows_every_timeline(browser: Any, tmp_path: Path, assets: bool) -> None:
    file = quiet_page(tmp_path, *(("--assets", tmp_path / "assets") if assets else ()))
    page = browser.new_page(viewport={"width": 794, "height": 600}, color_scheme="dark")
    page.goto(file.as_uri())
    page.evaluate("""() => {
        const isDrawn = (canvas) => {
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return new Set(new Uint32Array(pixels.buffer)).size > 3 && canvas.checkVisibility();
        };
        window.drawn = () => [...document.querySelectorAll(".chart")].map((chart) => isDrawn(chart.querySelector("canvas")));
        addEventListener("beforeprint", () => (window.printed = window.drawn()));
    }""")
    assert page.locator(".chart").count() > page.locator(".chart canvas").count()  # some are not drawn yet
    page.pdf(format="A4")
    assert page.evaluate("window.printed") == [True, True]
    assert page.locator("#quiet").get_attribute("open") is None
    page.emulate_media(media="print", color_scheme="dark")
    page.locator("#quiet canvas").wait_for()
    assert page.evaluate("window.drawn()") == [True, True]
    wide = (
        "[...document.querySelectorAll('.chart canvas')].filter((one) => one.getBoundingClientRect().right > innerWidth).length"
    )
    assert page.evaluate(wide) == 0
    page.close()


@pytest.mark.parametrize("theme", ["system", "dark"])
def test_it_prints_dark_on_light_whatever_the_screen_shows(browser: Any, page_file: Path, theme: str) -> None:
    context = browser.new_context(viewport={"width": 794, "height": 1123}, color_scheme="dark")
    made = context.new_page()
    made.goto(page_file.as_uri())
    while theme not in made.locator("#theme").inner_text():
        made.locator("#theme").click()
    made.emulate_media(media="print")
    channel = "(place) => Number(getComputedStyle(document.querySelector('.cards dd'), null)[place].match(/\\d+/)[0])"
    assert made.evaluate(channel, "color") < 60
    assert made.evaluate(channel.replace(".cards dd", ".cards > div"), "backgroundColor") > 200
    assert not made.locator("#filters").is_visible()
    assert made.locator("#table thead").evaluate("(head) => getComputedStyle(head).display") == "table-header-group"
    context.close()
