"""Real decoder processes that hang, crash or take too much memory, abandoned runs, and killed parents."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests import decoder_forks, media
from tests.patience import PATIENCE_S
from tests.video import fake_decoders
from tests.video.loading import NEEDS, OPTIONS, QUICK, REAL, gather, load, request
from vadcli.errors import DecodeError, DecoderCrashed, DecoderHung, NotFinished, VadcliError, VideoError
from vadcli.types import SizeRule
from vadcli.video import early_worker
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished, Item, LoaderOptions, Opened
from vadcli.video.supervisor import DecoderProcess, State


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return media.make_video(tmp_path_factory.mktemp("real") / "a.mp4", frames=200, fps=10, size=(320, 240), gop=12)


_before: set[psutil.Process] = set()  # such as multiprocessing's resource tracker, which other tests may have started


def descendants() -> list[psutil.Process]:
    """Return the processes that this process has started since the test began."""
    return [process for process in psutil.Process().children(recursive=True) if process not in _before]


def wait_until(condition, limit_s: float = PATIENCE_S) -> bool:
    """Return True as soon as the condition is true, False if it is not true within the limit."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(autouse=True)
def nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(decoder_forks.SERVER)  # decoder processes start as for users, not from the tests' server
    threads, descriptors = set(threading.enumerate()), open_descriptors()
    _before.clear()
    _before.update(psutil.Process().children(recursive=True))
    yield
    assert not descendants()
    assert set(threading.enumerate()) <= threads
    assert open_descriptors() <= descriptors


def open_descriptors() -> int:
    return psutil.Process().num_fds()


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_the_first_loader_takes_the_process_that_was_started_early(video: Path) -> None:
    with early_worker():
        (early,) = descendants()
        with ClipLoader(NEEDS, REAL) as loader:
            items = [(item, [process.pid for process in descendants()]) for item in loader.run([ClipRequest("a", video)])]
        last = items[-1][0]
        assert isinstance(last, Finished)
        assert last.error is None
        assert all(early.pid in running for _, running in items)
        assert not descendants()


def test_a_process_that_was_started_early_ends_if_no_loader_takes_it() -> None:
    with early_worker():
        assert len(descendants()) == 1
    assert not descendants()


def test_a_process_that_cannot_be_started_early_is_an_error_of_the_loader_only(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError("no more processes")

    with monkeypatch.context() as patch:
        patch.setattr("vadcli.video.subprocess.Popen", refuse)
        with early_worker():
            assert not descendants()
            with (
                ClipLoader(NEEDS, REAL) as loader,
                pytest.raises(VadcliError, match="no decoder process can be started: no more"),
            ):
                list(loader.run([ClipRequest("a", video)]))


# What goes wrong

TROUBLES: list[tuple[str, type[VideoError], str]] = [
    ("hang", DecoderHung, "made no progress for 0.4 s"),
    ("hang in C with the lock held", DecoderHung, "made no progress for 0.4 s"),
    ("hang with a child", DecoderHung, "made no progress for 0.4 s"),
    ("segfault", DecoderCrashed, "SIGSEGV"),
    ("exit", DecoderCrashed, "exit code 7: the library gave up"),
    ("eat memory", DecoderCrashed, "more than the 300 MiB allowed"),
    ("read on for ever", DecoderHung, "made no progress for 0.4 s"),
]


class Clock:
    """Replaces the time of the supervisor, so that a timeout does not depend on the speed of the machine.

    At each check of a process, `timeout_s` seconds pass if `passes_for` returns True for the process, and otherwise no time
    passes. Change `passes_for` only while you have the `lock`: then no check is going on.
    """

    def __init__(self) -> None:
        self.passes_for: Callable[[DecoderProcess], bool] = lambda _: False
        self.lock = threading.Lock()

    def let_pass(self, passes_for: Callable[[DecoderProcess], bool]) -> None:
        with self.lock:
            self.passes_for = passes_for


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made, check = Clock(), DecoderProcess.check

    def checked(self: DecoderProcess, elapsed_s: float, options: LoaderOptions, tree: list[psutil.Process]) -> None:
        with made.lock:
            check(self, options.timeout_s if made.passes_for(self) else 0.0, options, tree)

    monkeypatch.setattr(DecoderProcess, "check", checked)
    return made


@pytest.mark.parametrize(("what", "kind", "words"), TROUBLES)
def test_a_process_that_dies_costs_its_own_video(tmp_path, clock, what, kind, words):
    requests = [
        request(tmp_path, "before", rows=30),
        request(tmp_path, "bad", rows=40, at=20, do=what),
        request(tmp_path, "after", rows=30),
    ]
    acting = fake_decoders.acting(requests[1].path)
    if kind is DecoderHung:
        clock.let_pass(lambda process: acting.exists() and acting.read_text() == str(process.process.pid))
    seen = load(requests, replace(OPTIONS if kind is DecoderCrashed else QUICK, memory_limit_mib=300))
    bad = seen["bad"]
    assert type(bad.end.error) is kind
    assert words in str(bad.end.error)
    assert str(bad.end.error).startswith("bad: ")
    assert bad.row_numbers == list(range(19))  # the rows of the three complete clips
    assert (bad.end.rows.first, bad.end.decoded_frames, bad.end.decoder) == (19, 19, "ffmpeg")
    assert seen["before"].values()[:2] == seen["after"].values()[:2]
    assert seen["after"].row_numbers == list(range(30))


def test_ffmpeg_reads_what_decord_crashed_on(tmp_path):
    options = replace(OPTIONS, reader="tests.video.fake_decoders:FirstDecordReader", memory_limit_mib=300)
    requests = [
        request(tmp_path, "well", rows=40),
        request(tmp_path, "crash", rows=40, at=20, do="segfault"),
        request(tmp_path, "memory", rows=40, at=20, do="eat memory"),
        request(tmp_path, "both", rows=40, at=20, do="segfault", both=True),
        replace(request(tmp_path, "parts", rows=40, at=31, do="segfault"), spans=((0, 4), (10, 20), (30, 36))),
    ]
    seen = load(requests, options)
    for name, words in (("crash", "SIGSEGV"), ("memory", "300 MiB")):
        assert seen[name].values()[:2] == seen["well"].values()[:2]
        assert (seen[name].end.decoder, seen[name].end.error, seen[name].opened) == ("ffmpeg", None, 1)
        assert seen[name].end.decoded_frames == 40
        assert "decord failed" in seen[name].end.note
        assert words in seen[name].end.note
    assert isinstance(seen["both"].end.error, DecoderCrashed)
    assert seen["both"].row_numbers == list(range(19))
    assert [clip.index for clip in seen["parts"].clips] == [0, 1, 1, 2]
    assert (seen["well"].end.note, seen["well"].end.decoder) == ("", "decord")
    only = load([request(tmp_path, "only", rows=40, at=20, do="segfault", both=True)], replace(options, decoder="decord"))
    assert isinstance(only["only"].end.error, DecoderCrashed)
    assert only["only"].end.note == ""


def test_a_process_killed_from_outside_is_not_the_videos_fault(tmp_path):
    seen = load([request(tmp_path, "bad", rows=40, at=20, do="killed"), request(tmp_path, "good", rows=9)])
    assert type(seen["bad"].end.error) is NotFinished
    assert "memory" in str(seen["bad"].end.error)
    assert seen["good"].end.error is None


def test_a_crash_while_probing_costs_that_video(tmp_path):
    asks = [request(tmp_path, "bad", rows=9, do="segfault while probing"), request(tmp_path, "good", rows=9)]
    seen = load(asks)
    assert isinstance(seen["bad"].end.error, DecoderCrashed)
    assert (seen["bad"].end.info, seen["bad"].row_numbers) == (None, [])
    assert seen["good"].end.error is None


def test_a_reader_that_leaves_a_row_out_is_caught(tmp_path):
    one = load([request(tmp_path, "a", rows=20)], replace(OPTIONS, reader="tests.video.fake_decoders:JumpingReader"))["a"]
    assert isinstance(one.end.error, DecodeError)
    assert "delivered frame 6 instead of 5" in str(one.end.error)
    assert one.row_numbers == list(range(5))


def test_a_reader_that_returns_short_is_seen_in_the_rows(tmp_path):
    options = replace(OPTIONS, reader="tests.video.fake_decoders:ShortReader")
    one = load([request(tmp_path, "a", rows=20)], options)["a"]
    assert one.end.error is None
    assert one.end.info is not None
    assert (one.end.decoded_frames, one.end.info.frames) == (10, 20)


def test_a_video_without_one_decoded_row_fails(tmp_path):
    options = replace(OPTIONS, reader="tests.video.fake_decoders:EmptyReader")
    one = load([request(tmp_path, "a", rows=20)], options)["a"]
    assert isinstance(one.end.error, DecodeError)
    assert "no frame could be decoded" in str(one.end.error)


def test_a_process_that_keeps_memory_from_earlier_videos_is_replaced_without_blame(tmp_path):
    asks = [request(tmp_path, str(n), rows=9, at=3, do="leak") for n in range(4)]
    seen = load(asks, replace(OPTIONS, memory_limit_mib=230))
    assert [str(one.end.error) for one in seen.values()] == ["None"] * 4


def test_a_slow_consumer_is_no_hang(tmp_path, clock):
    checks: Counter[int] = Counter()  # how often each process was checked while it waited

    def waits(process: DecoderProcess) -> bool:
        waiting = process.ring.state is State.WAITING
        checks[process.process.pid] += waiting
        return waiting

    def pause() -> None:
        """Wait until both processes have filled their slots and have waited for longer than the timeout."""
        checks.clear()
        clock.let_pass(waits)
        assert wait_until(lambda: [count >= 2 for count in list(checks.values())] == [True, True])
        clock.let_pass(lambda _: False)

    with ClipLoader(NEEDS, replace(QUICK, workers=2)) as loader:
        items = loader.run([request(tmp_path, name, rows=60) for name in "ab"])
        first = next(items)
        pause()
        second = next(items)
        pause()
        seen = gather(_chain(first, second, items))
    assert [one.end.error for one in seen.values()] == [None, None]
    assert all(one.row_numbers == list(range(60)) for one in seen.values())


def test_reading_on_without_rows_is_no_hang(tmp_path, clock):
    ask = request(tmp_path, "a", rows=20, at=10, do="read on slowly")
    with ask.path.open("a") as file:
        file.write(" " * (1 << 20))
    checks = [0]

    def reads(process: DecoderProcess) -> bool:
        """Return True if the process reads on, and has read something since the last check."""
        since = process.process.io_counters().read_chars - process._bytes_read
        if not fake_decoders.acting(ask.path).exists() or not since:
            return False
        checks[0] += 1
        if checks[0] > 3:
            fake_decoders.enough(ask.path).touch()
        return True

    clock.let_pass(reads)
    assert load([ask], QUICK)["a"].end.error is None


def test_no_decoder_at_all_is_fatal(tmp_path):
    with pytest.raises(VadcliError, match=r"no decoder process can be started.*no_such_module"):
        load([request(tmp_path, "a", rows=20)], replace(OPTIONS, reader="no_such_module:Reader"))


def test_a_process_that_once_ends_before_it_is_ready_costs_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = tmp_path / "tried"
    (tmp_path / "fails_once.py").write_text(
        f"from pathlib import Path\nfrom {fake_decoders.__name__} import Reader\n"
        f"tried = Path({str(tried)!r})\nif not tried.exists():\n    tried.touch()\n    raise ImportError('by chance')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    seen = load([request(tmp_path, "a", rows=20)], replace(OPTIONS, reader="fails_once:Reader"))
    assert tried.exists()
    assert seen["a"].end.error is None
    assert seen["a"].clips


# How it ends


def test_an_abandoned_ffmpeg_is_killed(video):
    needs = replace(NEEDS, size=SizeRule(320 * 240))
    with ClipLoader(needs, replace(REAL, workers=1, decoder="ffmpeg")) as loader:
        items = loader.run([ClipRequest("a", video)])
        next(items)
        assert wait_until(lambda: len(descendants()) == 2)  # the decoder process and its ffmpeg; both wait for this process
        family = descendants()
        items.close()
        assert wait_until(lambda: not any(alive(process) for process in family))


def test_requests_are_pulled_as_processes_fall_idle(tmp_path):
    pulled = 0

    def requests() -> Iterator[ClipRequest]:
        nonlocal pulled
        for n in range(200):
            pulled += 1
            yield ClipRequest(str(n), tmp_path / "gone")

    with ClipLoader(NEEDS, replace(OPTIONS, workers=2)) as loader:
        for count, _ in enumerate(loader.run(requests()), start=1):
            assert pulled <= count + 20
    assert count == 200


def test_an_abandoned_run_leaves_a_loader_that_works(tmp_path):
    asks = [request(tmp_path, "a", rows=60), request(tmp_path, "b", rows=9)]
    with ClipLoader(NEEDS, replace(OPTIONS, workers=2)) as loader:
        for _ in range(4):  # more often than there are slots
            items = loader.run(asks)
            assert any(isinstance(item, ClipReady) for item in items)
            items.close()
        seen = gather(loader.run(asks))
    assert seen["a"].row_numbers == list(range(60))


def test_what_the_requests_raise_is_raised(tmp_path):
    def requests() -> Iterator[ClipRequest]:
        yield request(tmp_path, "a", rows=60)
        raise ZeroDivisionError

    with ClipLoader(NEEDS, OPTIONS) as loader:
        with pytest.raises(ZeroDivisionError):
            list(loader.run(requests()))
        assert gather(loader.run([request(tmp_path, "b", rows=9)]))["b"].end.error is None


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Install Python's default SIGINT handler, because processes that run tests in parallel may ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_while_waiting_leaves_a_loader_that_works_and_closes(tmp_path):
    with ClipLoader(NEEDS, OPTIONS) as loader:
        waits = threading.Event()

        def stopped() -> bool:  # the loader calls this function between two waits for messages
            waits.set()
            return False

        def interrupt() -> None:
            waits.wait()
            os.kill(os.getpid(), signal.SIGINT)

        items = loader.run([request(tmp_path, "a", rows=60, at=0, do="hang")], stopped=stopped)
        assert isinstance(next(items), Opened)
        waits.clear()
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            next(items)
        thread.join()
        assert not descendants()
        assert gather(loader.run([request(tmp_path, "b", rows=9)]))["b"].end.error is None


SIGNALLED = """
import os, signal, sys, threading, time
from pathlib import Path
from tests.media import make_video
from tests.video import fake_decoders
from tests.video.loading import NEEDS, REAL
from vadcli.video.loader import ClipLoader, ClipRequest, Finished

video = make_video(Path(sys.argv[1]) / "a.avi", "mpeg4", frames=12)
signal.signal(signal.SIGINT, lambda *_: None)
over = threading.Event()

def interrupt():
    while not over.is_set():
        os.killpg(0, signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    for _ in range(3):
        with ClipLoader(NEEDS, REAL) as loader:
            items = loader.run([ClipRequest("a", video), ClipRequest("b", video)])
            ends = [item.error for item in items if isinstance(item, Finished)]
        assert ends == [None, None], ends
finally:
    over.set()
"""


def test_signals_to_the_process_group_do_not_reach_a_process_that_starts(tmp_path):
    command = [sys.executable, "-c", SIGNALLED, tmp_path]
    done = subprocess.run(command, stderr=subprocess.PIPE, start_new_session=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_processes_persist_between_runs(tmp_path):
    with ClipLoader(NEEDS, OPTIONS) as loader:
        gather(loader.run([request(tmp_path, "a", rows=9)]))
        first = descendants()
        gather(loader.run([request(tmp_path, "b", rows=9)]))
        assert descendants() == first
        assert len(first) == 1


def test_processes_outlive_the_thread_that_made_them_needed(tmp_path):
    loader = ClipLoader(NEEDS, OPTIONS)
    items = loader.run([request(tmp_path, "a", rows=60), request(tmp_path, "b", rows=60)])
    got: list[Item] = []
    thread = threading.Thread(target=lambda: got.append(next(items)))
    thread.start()
    thread.join()
    seen = gather(_chain(*got, items))
    assert [one.end.error for one in seen.values()] == [None, None]
    loader.close()


def test_closing_is_final_and_idempotent(tmp_path):
    loader = ClipLoader(NEEDS, OPTIONS)
    items = loader.run([request(tmp_path, "a", rows=60)])
    assert isinstance(next(items), Opened)
    held = next(items)
    assert isinstance(held, ClipReady)
    loader.close()
    loader.close()
    assert not descendants()
    assert held.clip.frames[0].max() == 1
    with pytest.raises(RuntimeError, match="closed"):
        next(items)
    with pytest.raises(RuntimeError, match="closed"):
        next(loader.run([]))


def test_two_runs_at_once_are_refused(tmp_path):
    with ClipLoader(NEEDS, OPTIONS) as loader:
        items = loader.run([request(tmp_path, "a", rows=60)])
        next(items)
        with pytest.raises(RuntimeError, match="another run"):
            next(loader.run([]))
        items.close()


def test_a_run_ends_when_told_to_though_its_decoder_hangs(tmp_path):
    told = threading.Event()
    with ClipLoader(NEEDS, replace(OPTIONS, timeout_s=600)) as loader:
        items = loader.run([request(tmp_path, "a", rows=60, at=0, do="hang")], stopped=told.is_set)
        assert isinstance(next(items), Opened)
        told.set()
        assert list(items) == []
        assert not descendants()
        assert gather(loader.run([request(tmp_path, "b", rows=9)]))["b"].end.error is None


def test_a_run_that_is_told_to_end_leaves_no_items_to_the_next_one(tmp_path):
    told = threading.Event()
    with ClipLoader(NEEDS, OPTIONS) as loader:
        items = loader.run([request(tmp_path, "a", rows=9, when_read=str(tmp_path / "read"))], stopped=told.is_set)
        next(items)
        assert wait_until((tmp_path / "read").exists)  # so that several items wait to be yielded
        next(items)
        told.set()
        assert list(items) == []
        assert list(gather(loader.run([request(tmp_path, "b", rows=9)]))) == ["b"]


def test_the_next_run_begins_while_the_items_of_this_run_are_used(tmp_path: Path) -> None:
    alone = load([request(tmp_path, "b", rows=9)])["b"].values()
    with ClipLoader(NEEDS, OPTIONS) as loader:
        then = iter([request(tmp_path, "b", rows=9, when_read=str(tmp_path / "read")), request(tmp_path, "c", rows=600)])
        first = gather(loader.run([request(tmp_path, "a", rows=9)], then=then))
        assert list(first) == ["a"]
        assert wait_until((tmp_path / "read").exists)  # although no item of the next run was requested
        second = gather(loader.run(then))
        assert list(second) == ["b", "c"]
        assert second["b"].values() == alone


def test_what_an_abandoned_run_had_begun_for_the_next_run_is_read_again(tmp_path: Path) -> None:
    with ClipLoader(NEEDS, replace(OPTIONS, workers=2)) as loader:
        then = iter([request(tmp_path, "b", rows=9, when_read=str(tmp_path / "read")), request(tmp_path, "c", rows=9)])
        items = loader.run([request(tmp_path, "a", rows=600)], then=then)
        next(items)
        assert wait_until((tmp_path / "read").exists)
        items.close()
        assert not descendants()
        assert set(gather(loader.run(then))) == {"b", "c"}


def test_another_run_than_the_announced_one_gets_only_its_own_videos(tmp_path: Path) -> None:
    with ClipLoader(NEEDS, OPTIONS) as loader:
        then = iter([request(tmp_path, "b", rows=9)])
        assert list(gather(loader.run([request(tmp_path, "a", rows=9)], then=then))) == ["a"]
        assert list(gather(loader.run([request(tmp_path, "c", rows=9)]))) == ["c"]


def test_a_decoder_that_dies_before_its_run_costs_one_video_of_this_run(tmp_path: Path) -> None:
    with ClipLoader(NEEDS, OPTIONS) as loader:
        then = iter([request(tmp_path, "b", rows=9, at=0, do="exit"), request(tmp_path, "c", rows=9)])
        assert gather(loader.run([request(tmp_path, "a", rows=9)], then=then))["a"].end.error is None
        seen = gather(loader.run(then))
        assert seen["b"].end.error is not None
        assert seen["c"].end.error is None


PARENT = """
import sys, time
from pathlib import Path
from tests.video.test_loader import NEEDS, OPTIONS, REAL, ClipLoader, ClipReady, ClipRequest, SizeRule, request, replace
what, path = sys.argv[1], Path(sys.argv[2])
if what == "decode":
    loader = ClipLoader(replace(NEEDS, size=SizeRule(320 * 240)), replace(REAL, decoder="ffmpeg"))
    requests = [ClipRequest("a", path)]
else:
    loader = ClipLoader(NEEDS, OPTIONS)
    requests = [request(path, "a", rows=60, at=20, do=what)]
for item in loader.run(requests):
    if isinstance(item, ClipReady) and item.clip.index == 2:
        print("ready", flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize(
    ("what", "processes"),
    [("decode", 2), ("hang", 1), ("hang in C with the lock held", 1), ("hang with a child", 2)],
)
def test_nothing_outlives_a_parent_that_is_killed(tmp_path, video, what, processes):
    command = [sys.executable, "-c", PARENT, what, str(video if what == "decode" else tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "ready\n"
            assert wait_until(lambda: len(psutil.Process(parent.pid).children(recursive=True)) == processes)
            family = psutil.Process(parent.pid).children(recursive=True)
            for process in family:
                assert os.getsid(process.pid) != os.getsid(0)  # so Ctrl-C in the terminal does not reach the process
                assert not any(
                    item.path.startswith("/dev/shm") for item in getattr(process, "memory_maps", list)()
                )  # the shared memory has no name, so it cannot be left behind
        finally:
            parent.kill()
    assert wait_until(lambda: not any(alive(process) for process in family)), family


def _chain(*parts: Item | Iterator[Item]) -> Iterator[Item]:
    for part in parts:
        if isinstance(part, Opened | ClipReady | Finished):
            yield part
        else:
            yield from part
