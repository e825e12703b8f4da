"""The plan of a scan: the videos that are found, and their names, cameras and shards."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.media import make_image_folder
from vadcli.detectors import digest
from vadcli.engine.cameras import burst_positions
from vadcli.engine.job import ScanIdentity
from vadcli.engine.plan import Plan, WorkUnit, by_camera, make_plan
from vadcli.errors import UsageError
from vadcli.options import FindOptions
from vadcli.types import CameraModel, Regions
from vadcli.types.media import Polygon


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(paths: list[Path], out: Path | None = None, **options: object) -> list[str]:
    return [unit.video for unit in plan_of(paths, out, **options).units]


def plan_of(paths: list[Path], out: Path | None = None, **options: object) -> Plan:
    return make_plan(paths, FindOptions(**options), out=out or paths[0] / "no-out")  # type: ignore[arg-type]


def test_finds_videos_by_suffix_in_sub_folders(tmp_path: Path) -> None:
    touch(tmp_path / "b.mp4", tmp_path / "cam1" / "a.MKV", tmp_path / "cam1" / "notes.txt", tmp_path / ".hidden.mp4")
    assert names([tmp_path]) == ["b.mp4", "cam1/a.MKV"]
    assert names([tmp_path], recursive=False) == ["b.mp4"]


def test_a_named_file_is_a_video_whatever_its_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "clip.dat")
    assert names([tmp_path / "clip.dat"]) == ["clip.dat"]


def test_include_replaces_the_suffix_rule_and_exclude_prunes(tmp_path: Path) -> None:
    touch(tmp_path / "a.dat", tmp_path / "b.mp4", tmp_path / "old" / "c.mp4", tmp_path / "new" / "d.mp4")
    assert names([tmp_path], include=("*.dat",)) == ["a.dat"]
    assert names([tmp_path], include=("new/*",)) == ["new/d.mp4"]
    assert names([tmp_path], exclude=("old",)) == ["b.mp4", "new/d.mp4"]


def test_names_are_relative_to_the_common_ancestor(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "a.mp4", tmp_path / "y" / "deep" / "b.mp4")
    plan = plan_of([tmp_path / "x", tmp_path / "y" / "deep" / "b.mp4"])
    assert (plan.root, [unit.video for unit in plan.units]) == (tmp_path, ["x/a.mp4", "y/deep/b.mp4"])


def test_the_output_folder_and_other_results_are_never_scanned(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "out" / "rendered" / "a.mp4.mp4")
    touch(tmp_path / "older" / "run.json", tmp_path / "older" / "scores" / "x", tmp_path / "older" / "rendered" / "b.mp4")
    assert names([tmp_path], tmp_path / "out") == ["a.mp4"]


def test_the_same_file_reached_twice_is_scanned_once(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    assert names([tmp_path, tmp_path / "a.mp4"]) == ["a.mp4"]


def test_linked_folders_only_when_asked_and_loops_end(tmp_path: Path) -> None:
    footage, elsewhere = tmp_path / "footage", tmp_path / "elsewhere"
    touch(footage / "a.mp4", elsewhere / "b.mp4")
    (footage / "more").symlink_to(elsewhere)
    (footage / "loop").symlink_to(footage)
    assert names([footage]) == ["a.mp4"]
    assert names([footage], follow_links=True) == ["a.mp4", "more/b.mp4"]


def test_a_link_to_itself_is_named_and_stops_nothing(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    (tmp_path / "self.mp4").symlink_to("self.mp4")
    plan = plan_of([tmp_path])
    assert [unit.video for unit in plan.units] == ["a.mp4"]
    assert [(item.video, item.failed) for item in plan.unusable] == [("self.mp4", True)]


def test_a_missing_path_is_a_usage_error_and_a_missing_listed_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        plan_of([tmp_path / "nowhere"])
    touch(tmp_path / "a.mp4")
    (tmp_path / "list").write_text(f"{tmp_path}/a.mp4\n{tmp_path}/gone.mp4\n")
    plan = plan_of([tmp_path / "a.mp4"], files_from=tmp_path / "list")
    assert [unit.video for unit in plan.units] == ["a.mp4"]
    assert [(item.video, item.failed) for item in plan.unusable] == [("gone.mp4", True)]


@pytest.mark.parametrize("separator", ["\n", "\0"])
def test_a_list_from_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str) -> None:
    odd = "with\nnewline.mp4" if separator == "\0" else "with space.mp4"
    touch(tmp_path / "a.mp4", tmp_path / odd)
    data = separator.join([str(tmp_path / "a.mp4"), str(tmp_path / odd), ""]).encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    expected = ["a.mp4", odd.replace("\n", "%0A")]
    assert [unit.video for unit in make_plan([], FindOptions(files_from=Path("-")), out=tmp_path / "o").units] == expected


def test_names_that_are_not_utf8_get_percent_signs(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    try:
        with open(path, "wb") as file:
            file.write(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert names([tmp_path]) == ["caf%E9.mp4"]


def test_young_files_wait(tmp_path: Path) -> None:
    touch(tmp_path / "old.mp4", tmp_path / "young.mp4")
    os.utime(tmp_path / "old.mp4", (1, 1))
    plan = plan_of([tmp_path], min_age="1h")
    assert [unit.video for unit in plan.units] == ["old.mp4"]
    assert [(item.video, item.failed) for item in plan.unusable] == [("young.mp4", False)]


def test_frame_folders_are_videos_only_when_asked(tmp_path: Path) -> None:
    make_image_folder(tmp_path / "cam" / "clip01")
    touch(tmp_path / "cam" / "b.mp4")
    assert names([tmp_path]) == ["cam/b.mp4"]
    plan = plan_of([tmp_path], frames_as_video=True)
    assert [(unit.video, unit.camera, unit.is_frames) for unit in plan.units] == [
        ("cam/b.mp4", "cam", False),
        ("cam/clip01", "cam", True),
    ]
    assert names([tmp_path / "cam" / "clip01"], frames_as_video=True) == ["clip01"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "locked" / "a.mp4", tmp_path / "b.mp4")
    (tmp_path / "locked").chmod(0)
    plan = plan_of([tmp_path])
    (tmp_path / "locked").chmod(0o755)
    assert [unit.video for unit in plan.units] == ["b.mp4"]
    assert plan.unusable[0].video == "locked"


@pytest.mark.parametrize(("camera_from", "cameras"), [("folder", [".", "c"]), ("file", ["a.mp4", "c/b.mp4"]), ("all", ["."])])
def test_cameras(tmp_path: Path, camera_from: str, cameras: list[str]) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "c" / "b.mp4")
    plan = make_plan([tmp_path], FindOptions(), out=tmp_path / "o", camera_from=camera_from)
    assert [camera for camera, _ in by_camera(plan.units)] == cameras


def units_of(videos: list[str]) -> tuple[WorkUnit, ...]:
    return tuple(WorkUnit(video, Path(video), ".", 100, 0) for video in videos)


@given(st.sets(st.text("abcdef/", min_size=1), max_size=30), st.integers(1, 7))
def test_shards_part_the_plan_and_a_new_file_moves_none(videos: set[str], parts: int) -> None:
    plan = Plan(Path(), (), units_of(sorted(videos)))
    shards = [[unit.video for unit in plan.shard(part, parts)] for part in range(1, parts + 1)]
    assert sorted(video for shard in shards for video in shard) == sorted(videos)
    more = Plan(Path(), (), units_of(sorted(videos | {"new"})))
    for part, shard in enumerate(shards, 1):
        assert [unit.video for unit in more.shard(part, parts) if unit.video != "new" or "new" in videos] == shard


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=20), st.integers(0, 3), st.integers(1, 40))
def test_bursts_are_spread_over_the_bytes(sizes: list[int], seed: int, bursts: int) -> None:
    units = [WorkUnit(f"{i:03d}", Path(), "c", size, 0) for i, size in enumerate(sizes)]
    found = burst_positions(units, camera="c", seed=seed, bursts=bursts)
    assert found == burst_positions(units, camera="c", seed=seed, bursts=bursts)
    assert sum(map(len, found.values())) == bursts
    assert all(0 <= position < 1 for positions in found.values() for position in positions)
    total = sum(max(1, size) for size in sizes)
    for unit in units:
        share = max(1, unit.size) / total * bursts
        assert abs(len(found.get(unit.video, ())) - share) <= 2


def test_a_fingerprint_is_the_hash_of_all_that_changes_a_score() -> None:
    regions = Regions(ignore=(Polygon(((0.0, 0.0), (0.5, 0.0), (0.5, 0.5))),))
    identity = ScanIdentity(
        "motion", {"b": 1.5, "a": {"d": None, "c": "ü"}}, {"rate_hz": 10.0}, "auto", None, ("fight", "fire")
    )
    model = CameraModel("gate", "motion", 3, {}, {"mean": 0.5})
    shared = {
        "detector": "motion",
        "detector_state": {"a": {"c": "ü", "d": None}, "b": 1.5},
        "needs": {"rate_hz": 10.0},
        "decoder": "auto",
        "fps": None,
        "categories": ["fight", "fire"],
    }
    for content, chosen, hidden in (("c1", None, Regions()), ("c2", model, Regions()), ("c3", model, regions)):
        own = {"content": content, "camera_model": chosen.sha256 if chosen else None}
        expected = digest(shared | own | ({"regions": hidden.sha256} if hidden else {}))
        assert identity.fingerprint(content, chosen, hidden) == expected
