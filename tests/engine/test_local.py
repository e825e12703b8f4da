"""Whole scans in one process with a small detector: rows, resume, skipping, cameras, claims, full disks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.fakes import DifferenceDetector
from tests.media import damage, make_image_folder, make_vfr, make_video
from tests.runs import local_scan
from vadcli.engine import runner
from vadcli.engine.plan import make_plan
from vadcli.engine.runner import Stop
from vadcli.engine.stream import ClipsScored
from vadcli.errors import DeviceError
from vadcli.options import ScanOptions
from vadcli.status import read_status
from vadcli.store import OutputLayout
from vadcli.store.atomic import Claim
from vadcli.store.events import read_events
from vadcli.store.masks import MaskTrack, read_masks
from vadcli.store.run_log import read_run
from vadcli.store.scores import read_scores
from vadcli.types import ClipBatch, ClipScores, ScoreTable, Status, VideoResult


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    folder = tmp_path / "footage"
    (folder / "cam").mkdir(parents=True)
    make_video(folder / "a.mp4", frames=40, fps=10)
    make_vfr(folder / "cam" / "b.mp4")
    return folder


class Scan:
    """A scan that has run to its end, or until `stop_after` progress reports, with its results."""

    def __init__(
        self, footage: Path, out: Path, *, stop_after: int | None = None, fits: bool = True, **options: object
    ) -> None:
        self.options = ScanOptions(out=out, **options)  # type: ignore[arg-type]
        self.detector = DifferenceDetector(fits_camera=fits)
        self.stop = Stop()
        plan = make_plan([footage], self.options, out=out)
        self.run = local_scan(plan, self.options, self.detector, stop=self.stop, command=["vadcli", "scan"])
        self.results: dict[str, VideoResult] = {}
        reports = 0
        for update in self.run.run():
            if isinstance(update, ClipsScored):
                reports += 1
                if stop_after is not None and reports >= stop_after:
                    self.stop.set("test", 2)
            elif isinstance(update, VideoResult):
                self.results[update.video] = update

    @property
    def statuses(self) -> dict[str, str]:
        return {video: str(result.status) for video, result in self.results.items()}

    @property
    def code(self) -> int:
        return self.run.exit_code


def table(out: Path, video: str) -> ScoreTable:
    return read_scores(OutputLayout(out).scores(video))[0]


def assert_same_rows(left: ScoreTable, right: ScoreTable) -> None:
    for name in ("pts", "timestamp", "score", "logit", "sampled", "decode_ok"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_every_frame_has_a_row_and_every_file_is_where_the_contract_says(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scan = Scan(footage, out, masks="both")
    assert scan.statuses == {"a.mp4": "done", "cam/b.mp4": "done"}
    runs = {name for name in files(out) if name.startswith("runs/")}
    assert len(runs) == 1
    assert files(out) - runs == {
        "run.json",
        "reported.jsonl",
        "cameras/%2E.json",
        "cameras/cam.json",
        *(
            f"{kind}/{video}{suffix}"
            for video in ("a.mp4", "cam/b.mp4")
            for kind, suffix in (("scores", ".parquet"), ("events", ".json"), ("masks", ".mkv"), ("masks", ".parquet"))
        ),
    }
    rows = table(out, "a.mp4")
    assert len(rows) == 40
    assert rows.sampled.all()
    masks = list(read_masks(OutputLayout(out).mask_video("a.mp4")))
    assert len(masks) == int(rows.sampled.sum())
    assert masks[0].shape == (64, 96)


def test_carried_rows_hold_the_last_score(footage: Path, tmp_path: Path) -> None:
    Scan(footage, tmp_path / "out", interval=3)
    rows = table(tmp_path / "out", "a.mp4")
    assert list(np.flatnonzero(rows.sampled)) == list(range(0, 40, 3))
    np.testing.assert_array_equal(rows.score, rows.score[np.arange(40) // 3 * 3])


@pytest.mark.parametrize("options", [{"workers": 2, "batch_size": 4}, {"workers": 1, "batch_size": 3}])
def test_rows_depend_neither_on_workers_nor_on_the_batch(footage: Path, tmp_path: Path, options: dict[str, int]) -> None:
    Scan(footage, tmp_path / "one", workers=1, batch_size=1)
    Scan(footage, tmp_path / "two", **options)
    for video in ("a.mp4", "cam/b.mp4"):
        assert_same_rows(table(tmp_path / "one", video), table(tmp_path / "two", video))


def test_a_second_run_skips_and_keeps_what_is_done(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    Scan(footage, out)
    before = {name: (out / name).stat().st_mtime_ns for name in files(out) if name.startswith(("scores", "cameras"))}
    make_video(footage / "new.mp4", frames=20, fps=10)
    again = Scan(footage, out)
    assert again.statuses == {"a.mp4": "skipped", "cam/b.mp4": "skipped", "new.mp4": "done"}
    assert again.detector.scored_frames == 20
    assert again.detector.fitted == []
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before


def test_last_nights_scores_would_not_change_with_a_new_file(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    Scan(footage, out)
    old = table(out, "a.mp4")
    make_video(footage / "new.mp4", frames=20, fps=10)
    Scan(footage, out, force=True)
    assert_same_rows(old, table(out, "a.mp4"))


@pytest.mark.parametrize(
    ("change", "rescanned"),
    [
        ({}, False),
        ({"threshold": 0.9}, False),
        ({"categories": "fight"}, False),
        ({"workers": 2, "batch_size": 5}, False),
        ({"interval": 2}, True),
        ({"masks": "video"}, True),
        ({"force": True}, True),
        ({"skip_existing": False}, True),
        ({"decoder": "ffmpeg"}, True),
    ],
)
def test_only_what_changes_scores_makes_a_new_scan(
    footage: Path, tmp_path: Path, change: dict[str, object], rescanned: bool
) -> None:
    Scan(footage, tmp_path / "out")
    again = Scan(footage, tmp_path / "out", **change)
    assert set(again.statuses.values()) == {"done" if rescanned else "skipped"}


def test_other_thresholds_cut_the_events_anew_without_a_scan(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    Scan(footage, out)
    again = Scan(footage, out, threshold=0.01, low=0.01)
    document = read_events(OutputLayout(out).events("a.mp4"))
    assert document.thresholds.high == 0.01
    assert again.results["a.mp4"].events == len(document.events) > 0
    assert again.detector.scored_frames == 0


def test_a_changed_file_is_scanned_again(footage: Path, tmp_path: Path) -> None:
    Scan(footage, tmp_path / "out")
    make_video(footage / "a.mp4", frames=30, fps=10)
    assert Scan(footage, tmp_path / "out").statuses == {"a.mp4": "done", "cam/b.mp4": "skipped"}
    assert len(table(tmp_path / "out", "a.mp4")) == 30


def test_a_touched_file_is_not(footage: Path, tmp_path: Path) -> None:
    Scan(footage, tmp_path / "out")
    os.utime(footage / "a.mp4")
    assert Scan(footage, tmp_path / "out").statuses["a.mp4"] == "skipped"


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5, 6])
def test_an_interrupted_scan_goes_on_where_it_was(footage: Path, tmp_path: Path, stop_after: int) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    Scan(footage, whole, masks="both")
    cut = Scan(footage, out, masks="both", workers=1, stop_after=stop_after)
    assert cut.code == 130
    assert set(cut.results) == {"a.mp4", "cam/b.mp4"}
    rest = Scan(footage, out, masks="both", workers=1)
    assert rest.code == 0
    frames = sum(int(table(whole, video).sampled.sum()) for video in ("a.mp4", "cam/b.mp4"))
    assert cut.detector.scored_frames + rest.detector.scored_frames == frames
    for video in ("a.mp4", "cam/b.mp4"):
        assert_same_rows(table(whole, video), table(out, video))
        left, right = (list(read_masks(OutputLayout(folder).mask_video(video))) for folder in (whole, out))
        np.testing.assert_array_equal(left, right)
        assert read_events(OutputLayout(out).events(video)).events == read_events(OutputLayout(whole).events(video)).events
    assert {name for name in files(out) if not name.startswith("runs/")} == {
        name for name in files(whole) if not name.startswith("runs/")
    }


def test_a_checkpoint_of_another_scan_is_not_gone_on_with(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    Scan(footage, out, workers=1, stop_after=2)
    Scan(footage, out, interval=2)
    Scan(footage, tmp_path / "whole", interval=2)
    assert_same_rows(table(tmp_path / "whole", "a.mp4"), table(out, "a.mp4"))


@pytest.mark.parametrize("before", ["video", "rle", "both"])
@pytest.mark.parametrize("now", ["none", "video", "rle", "both"])
def test_a_new_scan_leaves_no_masks_of_the_one_before(footage: Path, tmp_path: Path, before: str, now: str) -> None:
    out = tmp_path / "out"
    Scan(footage, out, masks=before)
    assert {path.suffix for path in (out / "masks").iterdir() if path.is_file()} == mask_suffixes(before)
    Scan(footage, out, masks=now, interval=5)
    for video in ("a.mp4", "cam/b.mp4"):
        assert {name.removeprefix(video) for name in files(out / "masks") if name.startswith(video)} == mask_suffixes(now)
        rows, layout = table(out, video), OutputLayout(out)
        track = MaskTrack(rows, layout)
        assert (track.at(len(rows) - 1) is None) == (now == "none")
        assert track.problems == []


def mask_suffixes(masks: str) -> set[str]:
    return {suffix for kind, suffix in (("video", ".mkv"), ("rle", ".parquet")) if masks in (kind, "both")}


def test_a_scan_that_skips_a_video_leaves_its_masks(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    Scan(footage, out, masks="both")
    stored = files(out / "masks")
    again = Scan(footage, out)
    assert set(again.statuses.values()) == {"skipped"}
    assert files(out / "masks") == stored
    assert Scan(footage, out, threshold=0.9).detector.scored_frames == 0
    assert files(out / "masks") == stored


def test_a_failed_scan_leaves_no_masks_of_the_one_before(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    Scan(footage, out, masks="both")
    (footage / "a.mp4").write_text("not a video")
    assert Scan(footage, out).statuses["a.mp4"] == "failed"
    assert files(out / "masks") == {"cam/b.mp4.mkv", "cam/b.mp4.parquet"}


def test_bad_files_are_named_and_the_others_are_whole(footage: Path, tmp_path: Path) -> None:
    (footage / "empty.mp4").touch()
    (footage / "text.mp4").write_text("not a video")
    damage(make_video(tmp_path / "good.mp4", frames=60, fps=10), footage / "hurt.mp4")
    out = tmp_path / "out"
    scan = Scan(footage, out)
    assert scan.statuses == {
        "a.mp4": "done",
        "cam/b.mp4": "done",
        "empty.mp4": "failed",
        "text.mp4": "failed",
        "hurt.mp4": "partial",
    }
    assert scan.code == 3
    layout = OutputLayout(out)
    document = read_events(layout.events("empty.mp4"))
    assert document.failure is not None
    assert document.failure.stage == "probe"
    assert not layout.scores("empty.mp4").exists()
    hurt = table(out, "hurt.mp4")
    assert not hurt.decode_ok.all()
    assert scan.results["hurt.mp4"].decoded_frames == int(hurt.decode_ok.sum())
    again = Scan(footage, out)
    assert set(again.statuses.values()) == {"skipped"}
    assert again.code == 3
    assert Scan(footage, out, retry_failed=True).statuses["empty.mp4"] == "failed"


def test_frame_folders(tmp_path: Path) -> None:
    make_image_folder(tmp_path / "footage" / "cam" / "clip", frames=12)
    scan = Scan(tmp_path / "footage", tmp_path / "out", frames_as_video=True, fps=5.0)
    assert scan.statuses == {"cam/clip": "done"}
    assert scan.results["cam/clip"].decoder == "images"
    assert scan.results["cam/clip"].camera == "cam"
    np.testing.assert_allclose(table(tmp_path / "out", "cam/clip").timestamp, np.arange(12) / 5)


def test_cameras_are_fitted_once_and_alike_whatever_the_shard(footage: Path, tmp_path: Path) -> None:
    for number in range(4):
        make_video(footage / f"c{number}.mp4", frames=15 + number, fps=10)
    Scan(footage, tmp_path / "whole")
    for part in (1, 2):
        Scan(footage, tmp_path / f"part{part}", shard=f"{part}/2")
    for part in (1, 2):
        stored = json.loads((tmp_path / f"part{part}" / "cameras" / "%2E.json").read_text())
        assert stored == json.loads((tmp_path / "whole" / "cameras" / "%2E.json").read_text())
    both = [set(files(tmp_path / f"part{part}" / "scores")) for part in (1, 2)]
    assert not both[0] & both[1]
    assert both[0] | both[1] == files(tmp_path / "whole" / "scores")


def test_a_long_camera_is_fitted_on_bursts(tmp_path: Path) -> None:
    (tmp_path / "footage").mkdir()
    make_video(tmp_path / "footage" / "long.mp4", frames=600, fps=10)
    scan = Scan(tmp_path / "footage", tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "cameras" / "%2E.json").read_text())
    assert stored["values"]["clips"] == 20
    assert scan.detector.scored_frames == 600


def test_refit_makes_a_new_model_only_when_asked(footage: Path, tmp_path: Path) -> None:
    Scan(footage, tmp_path / "out")
    make_video(footage / "bright.mp4", frames=60, fps=10, options=("-vf", "eq=brightness=0.5"))
    assert Scan(footage, tmp_path / "out", refit=False).statuses["a.mp4"] == "skipped"
    refitted = Scan(footage, tmp_path / "out", refit=True)
    assert refitted.statuses["a.mp4"] == "done"
    assert refitted.detector.fitted == [".", "cam"]


def test_a_video_that_another_process_works_on_is_left_alone(footage: Path, tmp_path: Path) -> None:
    claim = Claim.acquire(OutputLayout(tmp_path / "out").checkpoint("a.mp4"))
    assert claim is not None
    scan = Scan(footage, tmp_path / "out")
    assert scan.statuses == {"a.mp4": "skipped", "cam/b.mp4": "done"}
    claim.release(delete=True)
    assert Scan(footage, tmp_path / "out").statuses == {"a.mp4": "done", "cam/b.mp4": "skipped"}


def test_results_of_another_folder_are_not_written_over(footage: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    Scan(footage, out)
    other.mkdir()
    make_video(other / "a.mp4", frames=10, fps=10)
    clash = Scan(other, out)
    assert clash.statuses == {"a.mp4": "failed"}
    assert "give another --out" in clash.results["a.mp4"].reason
    assert len(table(out, "a.mp4")) == 40
    assert Scan(other, out, force=True).statuses == {"a.mp4": "done"}


def test_a_moved_archive_is_still_done(footage: Path, tmp_path: Path) -> None:
    Scan(footage, tmp_path / "out")
    moved = footage.rename(tmp_path / "moved")
    assert set(Scan(moved, tmp_path / "out").statuses.values()) == {"skipped"}


def test_the_record_names_the_weights(footage: Path, tmp_path: Path) -> None:
    detector = DifferenceDetector()
    detector.weights = {"small": "ab" * 32}
    options = ScanOptions(out=tmp_path / "out", detector="motion")
    list(local_scan(make_plan([footage], options, out=options.out), options, detector, stop=Stop(), command=[]).run())
    assert dict(read_run(tmp_path / "out" / "run.json").info.weights) == {"small": "ab" * 32}


def test_the_record_tells_what_became_of_each_video(footage: Path, tmp_path: Path) -> None:
    (footage / "empty.mp4").touch()
    scan = Scan(footage, tmp_path / "out", seed=3)
    run = read_run(tmp_path / "out" / "run.json")
    assert run.exit_code == 3
    assert run.info.config["seed"] == 3
    assert run.info.root == str(footage)
    assert {entry.video: str(entry.status) for entry in run.files} == scan.statuses
    assert run.totals["decoded_frames"] == sum(result.decoded_frames for result in scan.results.values())


def test_metadata_holds_what_a_reader_needs(footage: Path, tmp_path: Path) -> None:
    Scan(footage, tmp_path / "out", categories="fight, fire")
    metadata = pq.read_metadata(tmp_path / "out" / "scores" / "a.mp4.parquet").metadata
    assert json.loads(metadata[b"vadcli.categories"]) == ["fight", "fire"]
    assert json.loads(metadata[b"vadcli.video"])["frames"] == 40
    assert metadata[b"time_base"] == b"1/10240"


def test_an_output_that_fails_costs_that_video_for_now(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "events").mkdir(parents=True)
    (out / "events" / "a.mp4.json").mkdir()  # a folder where the document should go
    scan = Scan(footage, out)
    assert scan.statuses == {"a.mp4": "failed", "cam/b.mp4": "done"}
    assert scan.results["a.mp4"].stage == "write"
    assert not OutputLayout(out).scores("a.mp4").exists()
    (out / "events" / "a.mp4.json").rmdir()
    again = Scan(footage, out)
    assert again.statuses == {"a.mp4": "done", "cam/b.mp4": "skipped"}
    assert again.detector.scored_frames <= 8  # the checkpoint held all but the last clip


def test_a_camera_model_that_cant_be_written_costs_only_this_camera(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = OutputLayout(out).camera(".")
    model.mkdir(parents=True)  # a folder where the model should go
    (model / "x").touch()
    scan = Scan(footage, out)
    assert scan.statuses == {"a.mp4": "failed", "cam/b.mp4": "done"}
    assert scan.results["a.mp4"].stage == "write"


def test_a_stop_releases_the_next_camera_which_is_already_being_read(footage: Path, tmp_path: Path) -> None:
    stopped = Scan(footage, tmp_path / "out", stop_after=1)
    assert stopped.statuses["cam/b.mp4"] == "unfinished"
    claim = Claim.acquire(OutputLayout(tmp_path / "out").checkpoint("cam/b.mp4"))
    assert claim is not None
    claim.release(delete=False)
    assert set(Scan(footage, tmp_path / "out").statuses.values()) == {"done"}


@pytest.mark.parametrize("method", ["score", "finish"])
def test_what_nobody_foresaw_costs_one_video(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(self: DifferenceDetector, given: object) -> object:
        videos = getattr(given, "videos", None) or (given.info.path.name,)  # type: ignore[attr-defined]
        if any(video.endswith("a.mp4") for video in videos):
            raise ZeroDivisionError("a corner case")
        return whole(self, given)

    whole = getattr(DifferenceDetector, method)
    monkeypatch.setattr(DifferenceDetector, method, fail)
    scan = Scan(footage, tmp_path / "out")
    assert scan.statuses == {"a.mp4": "failed", "cam/b.mp4": "done"}
    assert "ZeroDivisionError: a corner case" in scan.results["a.mp4"].reason
    assert not [name for name in files(tmp_path / "out") if name.endswith(".part") or ".tmp" in name]


def test_a_device_that_fails_ends_the_run_and_costs_no_video(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: DifferenceDetector, given: ClipBatch) -> ClipScores:
        if given.timestamp[0, 0] > 2:
            raise DeviceError("cuda:0: one clip does not fit into memory")
        return whole(self, given)

    out, whole = tmp_path / "out", DifferenceDetector.score
    with monkeypatch.context() as broken:
        broken.setattr(DifferenceDetector, "score", fail)
        with pytest.raises(DeviceError, match="does not fit"):
            Scan(footage, out, workers=1)
    assert not (out / "scores" / "a.mp4.parquet").exists()
    again = Scan(footage, out, workers=1)
    assert again.statuses == {"a.mp4": "done", "cam/b.mp4": "done"}
    rows = table(out, "a.mp4")
    Scan(footage, tmp_path / "undisturbed", workers=1)
    assert_same_rows(rows, table(tmp_path / "undisturbed", "a.mp4"))


def test_the_frames_of_a_run_are_all_rows(footage: Path, tmp_path: Path) -> None:
    scan = Scan(footage, tmp_path / "out", interval=7)
    assert scan.run.totals.frames == sum(len(table(tmp_path / "out", video)) for video in ("a.mp4", "cam/b.mp4"))


def test_max_runtime_leaves_a_resumable_state(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ScanOptions(out=out, max_runtime="0s")
    run = local_scan(make_plan([footage], options, out=out), options, DifferenceDetector(), stop=Stop("0s"), command=["vadcli"])
    results = [update for update in run.run() if isinstance(update, VideoResult)]
    assert {result.status for result in results} == {Status.UNFINISHED}
    assert run.exit_code == 0
    (told,) = read_status(OutputLayout(out))
    assert (told.finished, told.planned) == (0, 2)
    assert Scan(footage, out).code == 0


def test_a_path_that_is_not_a_video_is_one_of_the_planned_videos(footage: Path, tmp_path: Path) -> None:
    (footage / "loop.mp4").symlink_to("loop.mp4")
    out = tmp_path / "out"
    options = ScanOptions(out=out, max_runtime="0s")
    list(local_scan(make_plan([footage], options, out=out), options, DifferenceDetector(), stop=Stop("0s")).run())
    (told,) = read_status(OutputLayout(out))
    assert (told.finished, told.planned, told.to_json()["unfinished"]) == (1, 3, 2)


@pytest.fixture
def twin_scans(footage: Path, tmp_path: Path) -> tuple[runner.Scan, ...]:
    options = ScanOptions(out=tmp_path / "out", workers=1)
    plan = make_plan([footage], options, out=options.out)
    stop = Stop()
    return tuple(local_scan(plan, options, DifferenceDetector(), stop=stop, command=[]) for _ in range(2))


def test_two_scans_side_by_side_share_the_work(twin_scans: tuple[runner.Scan, ...], footage: Path, tmp_path: Path) -> None:
    left, right = (scan.run() for scan in twin_scans)
    seen: list[VideoResult] = [update for update in [next(left)] if isinstance(update, VideoResult)]
    seen += [update for update in right if isinstance(update, VideoResult)]
    seen += [update for update in left if isinstance(update, VideoResult)]
    done = [result.video for result in seen if result.status is Status.DONE]
    assert sorted(done) == ["a.mp4", "cam/b.mp4"]
    Scan(footage, tmp_path / "alone")
    for video in done:
        assert_same_rows(table(tmp_path / "alone", video), table(tmp_path / "out", video))
