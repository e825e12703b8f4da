"""Files are written completely or not at all, and no temporary file remains."""

import errno
import os
import signal
from pathlib import Path

import pytest

from tests.store.processes import finished, running, side_by_side
from vadcli.errors import OutputError
from vadcli.store.atomic import FileLock, Scratch, check_folder, output_error


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_appears_whole_under_its_final_name_and_nothing_else_stays(tmp_path):
    final = tmp_path / "scores" / "cam" / "a.parquet"
    with Scratch(tmp_path / ".tmp") as scratch:
        with scratch.replace(final) as temporary:
            assert temporary.suffix == ".parquet"
            assert temporary.is_relative_to(scratch.folder)
            temporary.write_bytes(b"first half")
            assert not final.exists()
        assert final.read_bytes() == b"first half"
        scratch.write_text(final, "ünd then")
        assert final.read_text(encoding="utf-8") == "ünd then"
    assert files_under(tmp_path) == ["scores/cam/a.parquet"]
    assert not (tmp_path / ".tmp").exists()


@pytest.mark.parametrize("problem", [ValueError("mine"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_old_file_and_its_own_error(tmp_path, problem):
    final = tmp_path / "a.json"
    final.write_text("old")
    with Scratch(tmp_path / ".tmp") as scratch:

        def fail():
            with scratch.replace(final) as temporary:
                temporary.write_text("half")
                raise problem

        with pytest.raises(type(problem)):
            fail()
        assert list(scratch.folder.glob("*.json")) == []
    assert files_under(tmp_path) == ["a.json"]
    assert final.read_text() == "old"


def test_an_error_of_another_file_is_not_blamed_on_the_output(tmp_path):
    with Scratch(tmp_path / ".tmp") as scratch, pytest.raises(FileNotFoundError), scratch.replace(tmp_path / "a"):
        (tmp_path / "missing.mp4").read_bytes()


@pytest.mark.parametrize("blocked", ["scores/cam/a.parquet", "scores/cam", "scores"])
def test_a_path_that_can_t_be_made_is_one_clear_line(tmp_path, blocked):
    final = tmp_path / "scores" / "cam" / "a.parquet"
    obstacle = tmp_path / blocked
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    if obstacle == final:
        (obstacle / "inside").mkdir(parents=True)
    else:
        obstacle.write_text("a file")
    with Scratch(tmp_path / ".tmp") as scratch, pytest.raises(OutputError) as caught:
        scratch.write_text(final, "x")
    assert str(final) in caught.value.message
    assert "\n" not in str(caught.value)
    assert not (tmp_path / ".tmp").exists()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EFBIG, "larger than"),
        (errno.EACCES, "permission denied"),
        (errno.EXDEV, "one file system"),
        (errno.EEXIST, "the name of a folder that is needed"),
        (errno.ENOTDIR, "the name of a folder that is needed"),
    ],
)
def test_each_reason_is_named(number, words):
    error = output_error(Path("out/a.json"), OSError(number, os.strerror(number)))
    assert error.message.startswith("out/a.json: ")
    assert words in str(error)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder, words in ((tmp_path / "file", "is a file"), (tmp_path / "file" / "out", f"{tmp_path / 'file'} is a file")):
        with pytest.raises(OutputError) as caught:
            check_folder(folder)
        assert caught.value.message == f"{folder}: {words}, but must be a folder"


FULL_DISK = """
import resource, sys
from pathlib import Path
from vadcli.errors import OutputError
from vadcli.store.atomic import Scratch
sys.dont_write_bytecode = True  # Python would store truncated files
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
out = Path(sys.argv[1])
with Scratch(out / ".tmp") as scratch:
    scratch.write_bytes(out / "small", b"x" * 4096)
    for data in (b"y" * 4097, b"y" * 1_000_000):
        try:
            scratch.write_bytes(out / "small", data)
        except OutputError as error:
            print(error)
"""


def test_a_full_disk_keeps_the_old_file_and_says_so(tmp_path):
    said = finished(FULL_DISK, tmp_path).splitlines()
    assert len(said) == 2
    assert all(str(tmp_path / "small") in line and "larger than the system allows" in line for line in said)
    assert (tmp_path / "small").read_bytes() == b"x" * 4096
    assert files_under(tmp_path) == ["small"]
    assert not (tmp_path / ".tmp").exists()


HOLDS_SCRATCH = """
import sys, time
from pathlib import Path
from vadcli.store.atomic import Scratch
with Scratch(Path(sys.argv[1])) as scratch:
    (scratch.folder / "deep").mkdir()
    (scratch.folder / "deep" / "half.mkv").write_bytes(b"x" * 1000)
    (scratch.folder / "1.json").touch()
    print("ready", flush=True)
    time.sleep(600)
"""


def test_opening_removes_what_a_killed_process_left_and_not_what_a_living_one_uses(tmp_path):
    root = tmp_path / ".tmp"
    with running(HOLDS_SCRATCH, root) as living:
        with running(HOLDS_SCRATCH, root) as killed:
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            assert len(files_under(root)) == 6
        with Scratch(root) as scratch:
            assert len(list(root.iterdir())) == 2
            assert scratch.folder in root.iterdir()
        assert len(files_under(root)) == 3
        assert living.poll() is None
    with Scratch(root):
        assert len(list(root.iterdir())) == 1
    assert not root.exists()


def test_a_temporary_folder_of_another_program_stays(tmp_path):
    (tmp_path / ".tmp" / "precious").mkdir(parents=True)
    (tmp_path / ".tmp" / "precious" / "file").touch()
    with Scratch(tmp_path / ".tmp"):
        pass
    assert files_under(tmp_path) == [".tmp/precious/file"]


FORKS = """
import os, sys, time
from pathlib import Path
from vadcli.store.atomic import FileLock
lock = FileLock.acquire(Path(sys.argv[1]))
if os.fork() == 0:
    print("ready", flush=True)
    time.sleep(5)
    os._exit(0)
time.sleep(600)
"""


def test_a_lock_dies_with_its_process_and_not_with_its_children(tmp_path):
    path = tmp_path / "lock"
    with running(FORKS, path) as process:
        assert FileLock.acquire(path) is None
        process.kill()
        process.wait()
        lock = FileLock.acquire(path)
        assert lock is not None
        lock.release()


MANY = """
import sys
from pathlib import Path
from vadcli.store.atomic import Scratch
out = Path(sys.argv[1])
for number in range(150):
    with Scratch(out / ".tmp") as scratch:
        scratch.write_text(out / f"{sys.argv[2]}-{number}", "x")
"""


def test_many_processes_open_and_close_side_by_side(tmp_path):
    side_by_side(MANY, *[(tmp_path, name) for name in "abc"])
    assert len(files_under(tmp_path)) == 450
    assert not (tmp_path / ".tmp").exists()
