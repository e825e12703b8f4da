"""The content of reports, made with the command and with the functions behind it."""

from __future__ import annotations

import base64
import email
import email.policy
import html
import json
import os
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.commands import vadcli
from tests.evaluate.outputs import write_scan
from tests.media import make_video
from tests.patience import PATIENCE_S
from tests.report.archives import GONE, HOSTILE, QUIET, add_run, age_run, make_archive
from vadcli.errors import UsageError
from vadcli.options import ReportOptions
from vadcli.reporting import archive as archive_module
from vadcli.reporting import make_report
from vadcli.reporting.archive import Counts, collect, no_events_text, time_of_since
from vadcli.reporting.html import to_json, to_markdown
from vadcli.reporting.pictures import LEVELS, NO_SCORE, InPage, outlined, pack, peaks, points_for, rows_of
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch
from vadcli.store.events import ScanState, read_events, write_events
from vadcli.store.run_log import RunInfo, RunRecord
from vadcli.store.scores import read_scores
from vadcli.types import Event, Status, VideoResult


@pytest.fixture
def layout(tmp_path: Path) -> OutputLayout:
    return make_archive(tmp_path / "out")


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    return vadcli("report", *arguments)


class TestArchive:
    def test_tells_cameras_events_and_failures(self, layout: OutputLayout) -> None:
        archive = collect(layout)
        assert {name: [video.video for video in videos] for name, videos in archive.cameras.items()} == {
            "cam1": ["cam1/a.mp4", "cam1/b.mp4"],
            "cam2": ["cam2/c.mp4"],
        }
        assert archive.events == 3
        assert [(video.video, video.reason) for video in archive.failures] == [(GONE, "not a readable video file")]

    @pytest.mark.parametrize(
        ("reason", "told"),
        [
            ("the decoder stopped (exit code 1)", "the decoder stopped (exit code 1); 30 frames lost"),
            ("30 of 40 frames missing; the file ends early", "30 of 40 frames missing; the file ends early"),
        ],
    )
    def test_lost_frames_are_told_once(self, layout: OutputLayout, reason: str, told: str) -> None:
        path = layout.events("cam1/b.mp4")
        write_events(path, replace(read_events(path), scan=ScanState(Status.PARTIAL, "ab" * 32, {})))
        result = VideoResult("cam1/b.mp4", Status.PARTIAL, "decode", reason, expected_frames=40, decoded_frames=10)
        with Scratch(layout.scratch) as scratch, RunRecord(layout, scratch, RunInfo("0", (), {}, {"name": "fake"})) as record:
            record.add(result)
            record.close(3)
        assert [video.reason for video in collect(layout).failures] == [told, "not a readable video file"]

    def test_without_events_it_says_what_to_do(self, tmp_path: Path) -> None:
        out = tmp_path / "a night"
        write_scan(out, {"a.mp4": QUIET})
        assert report(out).returncode == 0
        page = html.unescape((out / "report.html").read_text())
        assert "There are no events: the highest score is 0.10, and the threshold is 0.50." in page
        assert f"vadcli events '{out}' --threshold 0.05 --write" in page
        archive = replace(collect(OutputLayout(out)), runs=())
        assert "outside the chosen times" in no_events_text(archive, 0.7)[0]
        assert no_events_text(replace(archive, counts=Counts()), None) == (
            "There are no events, because no video has scores.",
            [],
        )

    def test_since_last_run_leaves_out_what_it_did_not_work_on(self, layout: OutputLayout) -> None:
        age_run(layout)
        add_run(layout, ["cam1/a.mp4"])
        assert [video.video for video in collect(layout, since="last-run").videos] == ["cam1/a.mp4"]
        assert len(collect(layout, since="2000-01-01").videos) == 4
        assert [video.video for video in collect(layout, since="24h").videos] == ["cam1/a.mp4"]

    def test_shards_that_began_side_by_side_are_one_run(self, layout: OutputLayout) -> None:
        def videos() -> list[str]:
            return [video.video for video in collect(layout, since="last-run").videos]

        age_run(layout)
        add_run(layout, ["cam1/b.mp4"], shard="1/3")
        age_run(layout)  # an earlier run of the same shard
        add_run(layout, ["cam1/a.mp4"], shard="1/3")
        add_run(layout, ["cam2/c.mp4"], shard="2/3")
        assert videos() == ["cam1/a.mp4", "cam2/c.mp4"]
        add_run(layout, ["cam2/c.mp4"], shard="2/3")  # the same shard again, without the other shards
        assert videos() == ["cam2/c.mp4"]
        add_run(layout, ["cam1/a.mp4"])
        assert videos() == ["cam1/a.mp4"]

    def test_include_chooses_by_glob(self, layout: OutputLayout) -> None:
        assert {video.video for video in collect(layout, include=("cam2/*",)).videos} == {"cam2/c.mp4", GONE}

    def test_damaged_files_cost_only_themselves(self, layout: OutputLayout) -> None:
        layout.events("cam1/a.mp4").write_text("{")
        max(layout.iter_runs()).write_text("[]")
        archive = collect(layout)
        assert len(archive.problems) == 2
        assert archive.events == 2

    def test_footage_is_looked_for_below_its_root_alone(self, tmp_path: Path) -> None:
        root = tmp_path / "footage"
        root.mkdir()
        (tmp_path / "secret.mp4").touch()
        archive = collect(make_archive(tmp_path / "out", root=root))
        for name in ("../secret.mp4", "%2E%2E/secret.mp4", str(tmp_path / "secret.mp4"), "a%00.mp4"):
            assert archive.footage(name) is None
        (root / "caf\udce9.mp4").touch()
        assert archive.footage("caf%E9.mp4") == root / "caf\udce9.mp4"

    def test_a_folder_without_a_scan_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="contains no results"):
            collect(OutputLayout(tmp_path))

    @pytest.mark.parametrize("since", ["yesterday", "", "12 parsecs"])
    def test_a_time_that_is_none_is_refused(self, since: str) -> None:
        with pytest.raises(UsageError, match="not understood"):
            time_of_since(since, [])


class TestCurves:
    @given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(0, 10**6))
    def test_budget_is_shared_by_length(self, durations: list[float], budget: int) -> None:
        points = points_for(durations, budget)
        assert all(count >= 2 for count in points)
        assert sum(points) <= budget + 2 * len(points)

    @given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=100))
    def test_packed_scores_are_within_half_a_level(self, values: list[float]) -> None:
        packed = np.frombuffer(base64.b64decode(pack(np.array(values, np.float32))), np.uint8)
        assert np.abs(packed / LEVELS - np.array(values)).max() <= 0.5 / LEVELS + 1e-6

    def test_no_score_has_a_level_of_its_own(self) -> None:
        assert list(base64.b64decode(pack(np.array([np.nan, 0, 1], np.float32)))) == [NO_SCORE, 0, LEVELS]

    def test_a_stretch_shows_its_highest_score(self, layout: OutputLayout) -> None:
        table, _ = read_scores(layout.scores("cam1/a.mp4"))
        assert peaks(table, 4.0, 4) == pytest.approx([0.1, 0.9, 0.1, 0.1])


class TestPictures:
    @given(st.integers(0, 50), st.integers(1, 60), st.integers(1, 9), st.data())
    def test_rows_lie_in_the_event_and_hold_its_peak(self, start: int, length: int, count: int, data: st.DataObject) -> None:
        peak = data.draw(st.integers(start, start + length - 1))
        event = Event(1, start, start + length, 0.0, 1.0, peak, 0.5, 0.9, 0.8)
        rows = rows_of(event, count)
        assert peak in rows
        assert rows == sorted(set(rows))
        assert len(rows) <= count
        assert start <= rows[0]
        assert rows[-1] < start + length

    def test_the_outline_is_the_masks_edge(self) -> None:
        picture = np.zeros((40, 60, 3), np.uint8)
        mask = np.zeros((80, 120), np.uint8)
        mask[20:60, 40:80] = 255
        drawn = outlined(picture, mask, 128).any(axis=2)
        inside = np.zeros((40, 60), bool)
        inside[10:30, 20:40] = True
        inside[11:29, 21:39] = False
        assert np.array_equal(drawn, inside)
        assert not picture.any()

    def test_no_more_goes_into_a_page_than_there_is_room(self) -> None:
        assets = InPage(150)
        assert assets.put(b"x" * 40, "image/webp") is not None
        assert assets.put(b"x" * 40, "image/webp") is None
        assert assets.refused == 1


class TestLargeArchive:
    """An archive of more than `MOST_VIDEOS` videos."""

    @pytest.fixture(autouse=True)
    def bounds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"MOST_VIDEOS": 3, "MOST_EVENTS": 2, "MOST_FAILURES": 1, "MOST_CAMERAS": 1}.items():
            monkeypatch.setattr(archive_module, name, value)

    def test_lists_the_events_with_the_highest_scores_and_counts_all(self, layout: OutputLayout) -> None:
        archive = collect(layout)
        assert not archive.is_whole
        listed = [(video.video, event.id, round(event.peak_score, 2)) for video in archive.videos for event in video.events]
        assert listed == [("cam1/a.mp4", 1, 0.9), ("cam2/c.mp4", 2, 0.95)]
        assert (archive.events, archive.counts.total.videos, archive.counts.total.scored) == (3, 4, 3)
        assert archive.unlisted == {"events": 1, "failures": 0}
        assert [video.video for video in archive.failures] == [GONE]
        assert [(name, one.videos, one.events, one.lost) for name, one in archive.busiest] == [("cam2", 2, 2, 1)]
        assert archive.scored_cameras == 2

    def test_events_of_later_videos_count_too(self, tmp_path: Path) -> None:
        names = [f"cam3/{number:02d}.mp4" for number in range(12)]
        layout = make_archive(tmp_path / "out", extra=names)
        for number, name in enumerate(names):
            path = layout.events(name)
            document = read_events(path)
            peaks = tuple(replace(event, peak_score=number / 20, mean_score=0.0) for event in document.events)
            write_events(path, replace(document, events=peaks))
        archive = collect(layout)
        assert sorted(event.peak_score for video in archive.videos for event in video.events) == [
            pytest.approx(0.9, abs=0.01),
            pytest.approx(0.95, abs=0.01),
        ]
        assert archive.unlisted["events"] == 13

    def test_the_page_and_the_digest_say_what_they_leave_out(self, layout: OutputLayout) -> None:
        text = html.unescape(make_report(collect(layout), ReportOptions(thumbnails=0)).text)
        assert "These are the 2 events with the highest scores, of 3." in text
        assert f"vadcli events {layout.out} --format csv" in text
        assert "These are the 1 cameras with the most events, of 2." in text
        assert "has no score curves" in text
        assert to_json(collect(layout))["unlisted"] == {"events": 1, "failures": 0}
        assert "3 events in" in to_markdown(collect(layout))

    def test_a_small_archive_says_nothing_of_it(self, layout: OutputLayout) -> None:
        archive = collect(layout, include=("cam1/*",))
        assert archive.is_whole
        assert "unlisted" not in to_json(archive)
        assert "These are" not in make_report(archive, ReportOptions(thumbnails=0)).text


class TestDigest:
    def test_json_holds_every_event_highest_first(self, layout: OutputLayout) -> None:
        told = to_json(collect(layout))
        assert [round(event["peak_score"], 2) for event in told["events"]] == [0.95, 0.9, 0.7]
        assert told["failures"] == [
            {"video": GONE, "status": "failed", "reason": "not a readable video file", "lost_frames": 0}
        ]
        assert told["last_run"]["exit_code"] == 3

    def test_markdown_shows_names_as_they_are(self, tmp_path: Path) -> None:
        text = to_markdown(collect(make_archive(tmp_path / "out", extra=["a|b_*c*.mp4", "<b>.mp4"])))
        assert r"a\|b\_\*c\*.mp4" in text
        assert r"\<b\>.mp4" in text

    def test_email_is_a_whole_message(self, layout: OutputLayout) -> None:
        done = report(layout.out, "--format", "email", "--mail-to", "night@example.org", "--mail-to", "b@example.org")
        assert done.returncode == 3
        message = email.message_from_string(done.stdout, policy=email.policy.default)
        assert message["To"] == "night@example.org, b@example.org"
        assert "3 events in 12 s of footage, 1 video failed or partial" in message["Subject"]
        for part in ("plain", "html"):
            body = message.get_body((part,))
            assert body is not None
            assert "cam2/c.mp4" in body.get_content()

    def test_a_header_can_not_be_smuggled_in(self, layout: OutputLayout) -> None:
        assert report(layout.out, "--format", "email", "--mail-to", "a@b\nBcc: c@d").returncode == 2
        done = report(layout.out, "--format", "email", "--title", "x\nBcc: c@d")
        assert email.message_from_string(done.stdout, policy=email.policy.default)["Bcc"] is None


class Scripts(HTMLParser):
    """Collects the scripts of a page, and in `bad` everything else that could run code or load files."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.bad: list[str] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag == "script"
        if self._open:
            self.scripts.append((dict(attrs), ""))
        self.bad += [name for name, _ in attrs if name.startswith("on")]
        if tag in ("img", "iframe", "object", "link"):
            self.bad.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data

    def handle_endtag(self, tag: str) -> None:
        self._open = False


class TestPage:
    def test_exit_codes_and_the_file(self, layout: OutputLayout) -> None:
        done = report(layout.out)
        assert done.returncode == 3
        assert not done.stdout
        assert (layout.out / "report.html").stat().st_size < 500_000
        assert not (layout.out / ".tmp").exists()
        os.unlink(layout.events(GONE))
        assert report(layout.out).returncode == 0
        assert report(layout.out, "--fail-on-event").returncode == 10
        assert report(layout.out / "nothing").returncode == 2

    def test_data_can_not_become_markup(self, tmp_path: Path) -> None:
        layout = make_archive(tmp_path / "out", extra=[name.replace("/", "∕") for name in HOSTILE])
        done = report(layout.out, "--to", "-", "--title", HOSTILE[0])
        assert done.returncode == 3
        page = Scripts()
        page.feed(done.stdout)
        assert page.bad == []
        assert [attributes.get("id") for attributes, _ in page.scripts] == ["data", None]
        data = json.loads(page.scripts[0][1])
        category = data["fields"].index("category")
        assert {event[category] for event in data["events"]} >= {name.replace("/", "∕") for name in HOSTILE}

    def test_nothing_is_asked_of_a_network(self, layout: OutputLayout) -> None:
        text = report(layout.out, "--to", "-").stdout
        without_data = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
        assert not re.findall(r'(?:src|href)="(?!#)', without_data)
        assert "default-src 'none'" in html.unescape(text)

    @pytest.mark.parametrize("form", ["html", "markdown", "json", "email"])
    def test_an_output_folder_of_any_bytes_is_told_of(self, tmp_path: Path, form: str) -> None:
        layout = make_archive(tmp_path / "o\udcff\n")
        layout.events("cam1/a.mp4").write_text("{")
        done = report(layout.out, "--format", form, "--to", "-", "--title", "t\udcff")
        assert done.returncode == 3
        assert "Traceback" not in done.stderr
        assert "o%FF" in done.stdout

    def test_no_pictures_are_made_if_the_page_can_not_be_written(self, layout: OutputLayout, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        done = report(layout.out, "--assets", tmp_path / "pictures", "--to", tmp_path / "file" / "page.html")
        assert done.returncode == 1
        assert f"{tmp_path / 'file'}: is a file, but must be a folder" in done.stderr
        assert not (tmp_path / "pictures").exists()

    def test_a_pipe_is_written_into_and_a_folder_refused(self, layout: OutputLayout, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
        assert report(layout.out, "--format", "markdown", "--to", pipe).returncode == 3
        assert "cam2/c.mp4" in reader.communicate(timeout=PATIENCE_S)[0]
        assert pipe.is_fifo()
        done = report(layout.out, "--to", tmp_path)
        assert done.returncode == 1
        assert f"{tmp_path}: is a directory\n  add the name of a file\n" in done.stderr
        assert "Traceback" not in done.stderr

    def test_one_line_of_json_is_the_digest(self, layout: OutputLayout) -> None:
        (line,) = report(layout.out, "--json").stdout.splitlines()
        assert json.loads(line) == json.loads(report(layout.out, "--format", "json").stdout)
        assert not (layout.out / "report.html").exists()

    def test_a_page_stays_below_its_bound(self, tmp_path: Path) -> None:
        (tmp_path / "footage").mkdir()
        names = [f"{number}.mp4" for number in range(3)]
        for name in names:
            make_video(tmp_path / "footage" / name, frames=40, fps=10)
        layout = make_archive(tmp_path / "out", root=tmp_path / "footage", extra=names)
        page = layout.out / "report.html"
        report(layout.out, "--thumbnails", 0)
        bare = page.stat().st_size
        report(layout.out)
        bound = (bare + page.stat().st_size) // 2
        done = report(layout.out, "--max-mb", bound / 1e6)
        assert "left out" in done.stderr
        assert bare < page.stat().st_size <= bound

    def test_thumbnails_and_clips_come_from_the_footage(self, tmp_path: Path) -> None:
        (tmp_path / "footage" / "cam1").mkdir(parents=True)
        make_video(tmp_path / "footage" / "cam1" / "a.mp4", frames=40, fps=10)
        layout = make_archive(tmp_path / "out", root=tmp_path / "footage")
        page = tmp_path / "elsewhere" / "page.html"
        done = report(layout.out, "--to", page, "--assets", tmp_path / "elsewhere" / "files", "--clips", "--thumbnails", 2)
        assert done.returncode == 3, done.stderr
        assert "footage of 1 video with events" in done.stderr
        assert sorted(path.suffix for path in (page.parent / "files").iterdir()) == [
            ".js",
            ".js",
            ".json",
            ".mp4",
            ".webp",
            ".webp",
            ".webp",  # the camera's frame, on which regions are drawn
        ]
        assert [path.name for path in page.parent.iterdir() if path.name.startswith(".")] == []
        named = re.findall(r"files/[\w-]+\.(?:webp|mp4|js)", page.read_text())
        assert all((page.parent / name).is_file() for name in named)
        assert len(named) == 6


class TestReview:
    """`vadcli events` uses a saved review."""

    @pytest.fixture
    def review(self, layout: OutputLayout, tmp_path: Path) -> Path:
        path = tmp_path / "review.json"
        verdicts = {("cam1/a.mp4", 1): "true", ("cam2/c.mp4", 1): "false", ("cam2/c.mp4", 2): "true"}
        entries = [
            {
                "video": video.video,
                "verdict": verdicts[video.video, event.id],
                **{name: getattr(event, name) for name in ("start_s", "end_s", "peak_score")},
            }
            for video in collect(layout).videos
            for event in video.events
        ]
        path.write_text(json.dumps({"format_version": 1, "reviews": entries}))
        return path

    def events(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return vadcli("events", *arguments)

    def test_events_called_false_are_left_out_and_stay_out_when_written(self, layout: OutputLayout, review: Path) -> None:
        done = self.events(layout.out, "--review", review, "--write", "--json")
        assert done.returncode == 3  # a video of the archive failed
        told = {document["video"]["path"]: document["events"] for document in map(json.loads, done.stdout.splitlines())}
        assert [(event["id"], round(event["peak_score"], 2)) for event in told["cam2/c.mp4"]] == [(1, 0.95)]
        assert len(told["cam1/a.mp4"]) == 1
        assert collect(layout).events == 2
        assert self.events(layout.out, "--validate").returncode == 0

    def test_thresholds_are_proposed_with_precision_and_alarms(self, layout: OutputLayout, review: Path) -> None:
        done = self.events(layout.out, "--calibrate", review)
        assert done.returncode == 0
        low, high = json.loads(done.stdout)["thresholds"]
        assert (round(low["threshold"], 3), low["precision"]) == (0.7, pytest.approx(2 / 3))
        assert (round(high["threshold"], 3), high["precision"], high["kept"]) == (0.9, 1.0, 1.0)
        assert high["alarms_per_hour"] == pytest.approx(2 / (12 / 3600))

    def test_a_review_of_other_videos_is_refused(self, layout: OutputLayout, tmp_path: Path) -> None:
        (tmp_path / "r.json").write_text('{"format_version": 1, "reviews": []}')
        done = self.events(layout.out, "--calibrate", tmp_path / "r.json")
        assert done.returncode == 2
        assert "no verdict" in done.stderr


def test_the_page_names_the_command_that_learns_if_there_are_vectors(tmp_path: Path) -> None:
    import vadcli as library
    from tests.heads.site import make_site, review_of

    out = tmp_path / "out of the site"
    truth = make_site(out, 3)
    review = review_of(out, tmp_path / "review.json", truth, list(truth))
    library.learn(out, review=review, to=tmp_path / "my-head", anyway=True)
    library.events(out, head=tmp_path / "my-head", write=True)
    library.report(out, to=tmp_path / "page.html", thumbnails=0)
    page = (tmp_path / "page.html").read_text()
    assert "vadcli learn &#39;" in page
    assert "out of the site&#39; --review review.json --to my-head</code>" in page
    assert '"head_score"' in page
    for path in OutputLayout(out).iter_embeddings():
        path.unlink()
    library.report(out, to=tmp_path / "page.html", thumbnails=0)
    assert "vadcli learn" not in (tmp_path / "page.html").read_text()
