"""Footage in an object store: results equal to those of a folder, few downloads, a bounded cache, errors."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import vadcli
from tests.engine.test_cluster import rows_of
from tests.media import make_video
from tests.patience import PATIENCE_S
from tests.s3_server import BUCKET, SECRET, S3Server, running_server
from vadcli.engine.plan import Plan, make_plan
from vadcli.errors import FileChanged, NotFinished, UsageError
from vadcli.options import FindOptions
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.run_log import read_run
from vadcli.types import Status, VideoResult
from vadcli.video import objects
from vadcli.video.objects import cache_folder, list_objects, local_copy

SITE = f"s3://{BUCKET}/site"
OPTIONS = {"detector": "motion", "workers": 1, "threshold": 0.01}
VIDEOS = ["gate/a.mp4", "gate/b.mp4", "yard/c 50%2525 ü.mp4"]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_server() as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    monkeypatch.setenv("VADCLI_FOOTAGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def folder(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of footage that is also in the store. The store has other files, which are not scanned."""
    root = tmp_path_factory.mktemp("site")
    for number, name in enumerate(VIDEOS):
        path = root / name.replace("%2525", "%25")
        path.parent.mkdir(exist_ok=True)
        make_video(path, frames=40 + number, fps=10)
        server.put(f"site/{path.relative_to(root)}", path)
    for key in ("site/gate/notes.txt", "site/.hidden/d.mp4", "site/gate/", "site2/e.mp4"):
        server.put(key, b"not scanned")
    return root


@pytest.fixture(scope="module")
def scanned(server: S3Server, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a scan of the store."""
    out = tmp_path_factory.mktemp("scanned") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADCLI_FOOTAGE_CACHE", str(out.parent / "cache"))
        assert {result.status for result in scan(SITE, out).values()} == {Status.DONE}
    return out


def scan(path: object, out: Path, **options: object) -> dict[str, VideoResult]:
    return {result.video: result for result in vadcli.scan(str(path), out=out, **{**OPTIONS, **options})}


def test_a_scan_of_a_store_gives_the_rows_of_a_scan_of_a_folder(scanned: Path, folder: Path, tmp_path: Path) -> None:
    assert sorted(scan(folder, tmp_path / "local")) == VIDEOS
    assert rows_of(scanned) == rows_of(tmp_path / "local")
    record = read_run(scanned / "run.json")
    assert (record.info.root, record.info.roots) == (SITE, (SITE,))
    document = read_events(OutputLayout(scanned).events("gate/a.mp4"))
    assert document.scan is not None
    assert document.scan.source["root"] == SITE
    written = [path for path in scanned.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in path.read_bytes() for path in written)


def test_a_second_scan_downloads_nothing(server: S3Server, scanned: Path) -> None:
    server.gets.clear()
    again = scan(SITE, scanned)
    assert {video: (result.status, result.reason) for video, result in again.items()} == dict.fromkeys(
        VIDEOS, (Status.SKIPPED, "done")
    )
    assert list(scan(f"{SITE}/gate/a.mp4", scanned)) == ["gate/a.mp4"]
    assert server.gets == []


def test_a_replaced_object_is_scanned_again(server: S3Server, folder: Path, tmp_path: Path) -> None:
    server.put("other/a.mp4", folder / "gate" / "a.mp4")
    other = f"s3://{BUCKET}/other"
    assert scan(other, tmp_path / "out")["a.mp4"].status is Status.DONE
    server.put("other/a.mp4", folder / "gate" / "b.mp4")
    clipped = list(vadcli.clips(tmp_path / "out"))
    assert all("has changed since it was scanned" in clip.problem for clip in clipped)
    found = scan(other, tmp_path / "out")
    assert (found["a.mp4"].status, found["a.mp4"].decoded_frames) == (Status.DONE, 41)


def test_find_options_hold_for_objects(server: S3Server, folder: Path, tmp_path: Path) -> None:
    def planned(*paths: str, **options: object) -> Plan:
        return make_plan([Path(path) for path in paths], FindOptions(**options), out=tmp_path / "out")  # type: ignore[arg-type]

    def videos(plan: Plan) -> list[str]:
        return [unit.video for unit in plan.units]

    assert videos(planned(SITE, exclude=("yard",))) == VIDEOS[:2]
    assert videos(planned(SITE, recursive=False)) == []
    both = planned(SITE, include=("*.txt", "b.*"))
    assert (videos(both), str(both.root)) == (["gate/b.mp4", "gate/notes.txt"], "s3:/archive/site")
    listed = tmp_path / "list"
    listed.write_text(f"{SITE}/gate/a.mp4\n{SITE}/gate/none.mp4\n")
    plan = planned(files_from=listed)
    assert videos(plan) == ["a.mp4"]
    assert [(item.video, item.reason) for item in plan.unusable] == [
        ("none.mp4", f"{SITE}/gate/none.mp4: the object, folder or bucket does not exist")
    ]
    assert plan.notes == (f"names of videos and cameras are relative to {SITE}/gate (--root)",)
    server.put("odd//a.mp4", b"x")
    (odd,) = planned(f"s3://{BUCKET}/odd").unusable
    assert "the object is called '/a.mp4': names with an empty part, `.` or `..` can't be read" in odd.reason


def test_render_clips_and_thumbnails_use_the_same_cache(server: S3Server, scanned: Path) -> None:
    server.gets.clear()
    assert [result.problems for result in vadcli.render(f"{SITE}/gate/a.mp4", out=scanned)] == [()]
    assert not [clip.problem for clip in vadcli.clips(scanned, include=("gate/a.mp4",)) if clip.problem]
    assert OutputLayout(scanned).rendered("gate/a.mp4").exists()
    report = vadcli.report(scanned, include=("gate/a.mp4",), footage=SITE)
    assert "data:image/webp" in report.file.read_text() or list(report.file.parent.glob("**/*.webp"))
    assert len(server.gets) == 1


# The cache alone, in this process, with small blocks.


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(objects, "BLOCK_BYTES", 1000)
    return 1000


def object_at(key: str) -> Path:
    return Path(f"s3://{BUCKET}/{key}")


def test_a_download_that_was_cut_off_continues(server: S3Server, small_blocks: int, cache: Path) -> None:
    data = os.urandom(4500)
    server.put("parts/a.mp4", data)
    steps = []

    def told() -> None:
        steps.append(1)
        if len(steps) == 2:
            server.deny = True

    try:
        with (
            pytest.raises(NotFinished, match=r"s3://archive/parts/a.mp4: the store denies access"),
            local_copy(object_at("parts/a.mp4"), told),
        ):
            pass
    finally:
        server.deny = False
    assert [path.stat().st_size for path in cache.rglob(".part")] == [2000]
    server.gets.clear()
    server.cut = 1  # the package of the store asks again
    with local_copy(object_at("parts/a.mp4")) as path:
        assert (path.name, path.read_bytes()) == ("a.mp4", data)
    assert {asked for _, asked in server.gets} == {"bytes=2000-2999", "bytes=3000-3999", "bytes=4000-4499"}
    assert not list(cache.rglob(".part"))


def test_a_damaged_copy_is_made_again(server: S3Server, small_blocks: int, cache: Path) -> None:
    data = os.urandom(2500)
    server.put("damaged/a.mp4", data)
    with pytest.raises(KeyboardInterrupt), local_copy(object_at("damaged/a.mp4"), interrupt):
        pass
    (part,) = cache.rglob(".part")
    part.write_bytes(b"x" * part.stat().st_size)
    with local_copy(object_at("damaged/a.mp4")) as path:
        assert path.read_bytes() == data


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_object_that_is_replaced_meanwhile_is_not_used(server: S3Server, small_blocks: int, cache: Path) -> None:
    server.put("moving/a.mp4", b"a" * 2500)

    def replace_it() -> None:
        server.put("moving/a.mp4", b"b" * 2500)

    with (
        pytest.raises(FileChanged, match="was replaced while it was copied"),
        local_copy(object_at("moving/a.mp4"), replace_it),
    ):
        pass
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_the_cache_is_bounded_and_keeps_what_is_in_use(server: S3Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VADCLI_FOOTAGE_CACHE_GB", "2.5e-6")  # 2500 bytes
    for name in "abcd":
        server.put(f"many/{name}.mp4", name.encode() * 1000)

    def held() -> set[str]:
        return {path.stem for path in cache.rglob("*.mp4")}

    with local_copy(object_at("many/a.mp4")) as first:
        for name in "bcd":
            with local_copy(object_at(f"many/{name}.mp4")) as path:
                os.utime(path.parent, (time.time() + ord(name),) * 2)
                assert {"a", name} <= held()
        assert first.read_bytes() == b"a" * 1000  # in use the whole time
    assert held() == {"a", "d"}
    with local_copy(object_at("many/d.mp4")), local_copy(object_at("many/d.mp4")):  # shared
        assert "d" in held()


def test_a_lock_of_another_process_is_waited_for(server: S3Server, cache: Path) -> None:
    server.put("locked/a.mp4", b"a" * 100)
    with local_copy(object_at("locked/a.mp4")) as path:
        copy = path
    copy.unlink()
    other = os.open(copy.parent, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    waited = []

    def told() -> None:
        if not waited:
            os.close(other)
        waited.append(1)

    with local_copy(object_at("locked/a.mp4"), told) as path:
        assert path.read_bytes() == b"a" * 100
    assert waited


# Trouble, in one line.


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("s3://archive/none", r"s3://archive/none: the object, folder or bucket does not exist"),
        ("s3://no-such-bucket/a", r"s3://no-such-bucket/a: the object, folder or bucket does not exist"),
        ("gs://bucket/a", r"gs://bucket/a: the package that reads gs:// is not installed \(pip install 'vadcli\[gs\]'\)"),
        ("s3://me:word@archive/site", r"must not contain a password"),
    ],
)
def test_what_cannot_be_listed_is_one_line(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=said) as raised:
        scan(given, tmp_path / "out")
    assert "word@" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_denied_access_is_one_line(server: S3Server) -> None:
    server.deny = True
    try:
        with pytest.raises(
            UsageError, match=r"the store denies access \(set the store's credentials in environment variables\)"
        ):
            list_objects(Path(SITE))
    finally:
        server.deny = False


def test_what_does_not_go_together_is_refused(folder: Path, scanned: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="results can't be in an object store"):
        list(vadcli.scan(str(folder), out="s3://archive/out", detector="motion"))
    with pytest.raises(UsageError, match="other footage is on this machine"):
        list(vadcli.scan([SITE, str(folder)], out=tmp_path / "out", detector="motion"))
    with pytest.raises(UsageError, match=re.escape(f"{folder}: not below {SITE}")):
        scan(folder, scanned)
    with pytest.raises(UsageError, match=re.escape(f"s3://{BUCKET}/site2: not below {SITE}")):
        scan(f"s3://{BUCKET}/site2", scanned)


def test_the_size_of_the_cache_is_checked_first(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VADCLI_FOOTAGE_CACHE_GB", "much")
    with pytest.raises(UsageError, match="VADCLI_FOOTAGE_CACHE_GB='much' is not a size in GB"):
        scan(SITE, tmp_path / "out")
    assert cache_folder() == tmp_path / "cache"


def test_ctrl_c_during_a_download_ends_the_scan_and_the_next_one_continues(
    server: S3Server, folder: Path, tmp_path: Path, cache: Path
) -> None:
    server.gets.clear()
    server.slow_s = PATIENCE_S
    command = [sys.executable, "-m", "vadcli", "scan", SITE, "--out", str(tmp_path / "out"), "--detector", "motion"]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + PATIENCE_S
        while not server.gets and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        server.slow_s = 0.0
    assert process.returncode == 128 + signal.SIGINT, said
    assert "the next run continues from here" in said
    assert {result.status for result in scan(SITE, tmp_path / "out").values()} == {Status.DONE}
    assert not list(cache.rglob(".part"))
