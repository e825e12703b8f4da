"""The loader with real processes; what they decode are stories, told by fake_decoders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.video import fake_decoders as fake
from vadcli.errors import DecodeError, DecoderCrashed, DecoderHung, FileChanged, ProbeError, VadcliError, VideoError
from vadcli.types import Clip, ClipNeeds, PixelFormat, SizeRule
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished, Item, LoaderOptions, Opened, Rows
from vadcli.video.sampling import SamplingPlan

NEEDS = ClipNeeds(4, 1, 5.0, SizeRule(1000), PixelFormat.GRAY)  # every 2nd row of the fakes' 10 a second
OPTIONS = LoaderOptions(timeout_s=20, prober=fake.PROBER, reader=fake.READER)
QUICK = replace(OPTIONS, timeout_s=1.2)


@dataclass
class Seen:
    """All that came of one video."""

    opened: int = 0
    clips: list[Clip] = field(default_factory=list)
    rows: list[Rows] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def end(self) -> Finished:
        assert self.finished is not None
        return self.finished

    @property
    def row_numbers(self) -> list[int]:
        return [row for rows in self.rows for row in range(rows.first, rows.first + len(rows))]

    def values(self) -> list[object]:
        """Everything that must not depend on circumstances."""
        clips = [
            (c.index, c.frames.tolist(), c.frame_index.tolist(), c.timestamp.tolist(), c.valid.tolist(), c.interval)
            for c in self.clips
        ]
        rows = [(r.first, r.pts.tolist(), r.decode_ok.tolist()) for r in self.rows]
        end = self.end
        return [clips, rows, end.video, end.decoder, end.decoded_frames, str(end.error)]


def gather(items: Iterable[Item], pause_s: float = 0.0) -> dict[str, Seen]:
    """Copy what comes, and hold the loader to its order."""
    seen: dict[str, Seen] = {}
    for item in items:
        one = seen.setdefault(item.video, Seen())
        assert one.finished is None, f"{item} after the end of its video"
        if isinstance(item, Opened):
            assert not one.opened
            one.opened += 1
        elif isinstance(item, ClipReady):
            assert one.opened
            one.clips.append(replace(item.clip, frames=item.clip.frames.copy()))
            one.rows.append(item.rows)
        else:
            one.rows.append(item.rows)
            one.finished = item
        time.sleep(pause_s)
    assert all(one.finished for one in seen.values())
    return seen


def request(folder: Path, name: str, **story: object) -> ClipRequest:
    return ClipRequest(name, fake.write(folder / name, **story))


def load(requests: Iterable[ClipRequest], options: LoaderOptions = OPTIONS, needs: ClipNeeds = NEEDS) -> dict[str, Seen]:
    with ClipLoader(needs, options) as loader:
        return gather(loader.run(requests))


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def wait_until(condition, limit_s: float = 20.0) -> bool:
    """True as soon as the condition holds."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    threads, shared = set(threading.enumerate()), shared_memory()
    descriptors = open_descriptors()
    yield
    assert not descendants()
    assert set(threading.enumerate()) <= threads
    assert shared_memory() <= shared
    assert open_descriptors() <= descriptors


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def open_descriptors() -> int:
    return psutil.Process().num_fds()


# What comes


def test_a_video_comes_as_opened_clips_and_finished(tmp_path):
    one = load([request(tmp_path, "a", rows=24, lost=[4, 9])])["a"]

    assert [clip.index for clip in one.clips] == [0, 1, 2, 3]
    assert [clip.frame_index.tolist() for clip in one.clips] == [
        [0, 2, 4, 6],
        [6, 8, 10, 12],
        [12, 14, 16, 18],
        [16, 18, 20, 22],
    ]
    assert one.clips[0].frames.shape == (4, 6, 8, 1)
    assert [frame.max() for frame in one.clips[0].frames] == [1, 3, 3, 7]  # row 4 was lost: row 2 again
    assert one.clips[0].valid.tolist() == [True, True, False, True]
    assert one.clips[3].valid.tolist() == [False, False, True, True]
    assert one.clips[1].timestamp.tolist() == pytest.approx([0.6, 0.8, 1.0, 1.2])
    assert one.clips[1].interval == 2
    assert one.row_numbers == list(range(24))
    ok = np.concatenate([rows.decode_ok for rows in one.rows])
    assert np.flatnonzero(~ok).tolist() == [4, 9]
    assert (one.end.decoded_frames, one.end.error, one.end.decoder) == (22, None, "ffmpeg")
    assert one.end.info is not None
    assert one.end.info.frames == 24


def test_a_short_video_repeats_its_last_frame(tmp_path):
    one = load([request(tmp_path, "a", rows=4)])["a"]
    (clip,) = one.clips
    assert clip.frame_index.tolist() == [0, 2, 2, 2]
    assert clip.valid.tolist() == [True, True, False, False]
    assert one.row_numbers == [0, 1, 2, 3]


def test_colour_and_size_follow_the_needs(tmp_path):
    needs = replace(NEEDS, pixel_format=PixelFormat.RGB, size=SizeRule(100))
    one = load([request(tmp_path, "a", rows=8, size=[40, 20])], needs=needs)["a"]
    assert one.clips[0].frames.shape == (4, 6, 14, 3)


def test_threads_and_decoder_reach_the_reader(tmp_path):
    options = replace(OPTIONS, decoder="decord", threads=3)
    assert load([request(tmp_path, "a", rows=4)], options)["a"].end.complaints == "decord 3"


def test_frame_rate_of_the_request_reaches_the_prober(tmp_path):
    one = load([replace(request(tmp_path, "a", rows=40), fps=20.0)])["a"]
    assert one.clips[0].interval == 4


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_many_videos_are_the_same_with_any_number_of_processes(tmp_path, workers):
    stories = {f"{n:02}": {"rows": 3 * n + 1, "lost": [n, 2 * n], "fps": 5 + n % 7} for n in range(30)}
    seen = load([request(tmp_path, name, **story) for name, story in stories.items()], replace(OPTIONS, workers=workers))
    assert sorted(seen) == sorted(stories)
    for name, story in stories.items():
        one, rows = seen[name], int(story["rows"])
        plan = SamplingPlan.of(NEEDS, story["fps"])
        assert one.row_numbers == list(range(rows))
        assert [clip.index for clip in one.clips] == list(range(plan.clips(rows)))
        for clip in one.clips:
            shown = clip.frames[:, 0, 0, 0].astype(int)
            assert (shown[clip.valid] == clip.frame_index[clip.valid] + 1).all()
        scored = [row for clip in one.clips for row in clip.frame_index[clip.valid].tolist()]
        assert scored == [row for row in range(0, rows, plan.interval) if row not in story["lost"]]
        assert one.end.error is None


@pytest.mark.parametrize("start_clip", [0, 1, 3, 6, 7, 20])
def test_a_resumed_video_is_the_tail_of_an_undisturbed_one(tmp_path, start_clip):
    whole_request = request(tmp_path, "a", rows=45, lost=[12, 14, 16, 18, 20, 22, 31])
    with ClipLoader(NEEDS, OPTIONS) as loader:
        whole = gather(loader.run([whole_request]))["a"]
        resumed = gather(loader.run([replace(whole_request, start_clip=start_clip)]))["a"]
    clips, rows, *_ = whole.values()
    resumed_clips, resumed_rows, *_ = resumed.values()
    assert len(clips) == 8
    assert resumed_clips == clips[start_clip:]
    if start_clip < 8:
        assert resumed_rows == rows[start_clip:]
        assert resumed.end.decoded_frames == sum(sum(ok) for _, _, ok in rows[start_clip:])
    else:
        assert resumed.row_numbers == []


def test_bursts_give_one_clip_from_each_position_and_no_rows(tmp_path):
    ask = replace(request(tmp_path, "a", rows=100, lost=[50]), bursts=(0.0, 0.5, 0.99))
    one = load([ask, replace(request(tmp_path, "b", rows=3), bursts=(0.7,))])["a"]
    assert [clip.index for clip in one.clips] == [0, 1, 2]
    assert [clip.frame_index.tolist() for clip in one.clips] == [[0, 2, 4, 6], [50, 52, 54, 56], [92, 94, 96, 98]]
    assert [frame.max() for frame in one.clips[1].frames] == [53, 53, 55, 57]
    assert one.clips[1].valid.tolist() == [False, True, True, True]
    assert one.row_numbers == []
    assert (one.end.decoded_frames, one.end.error) == (0, None)


def test_a_burst_that_decodes_nothing_is_left_out(tmp_path):
    ask = replace(request(tmp_path, "a", rows=60, lost=list(range(20, 60))), bursts=(0.5, 0.1))
    (clip,) = load([ask])["a"].clips
    assert (clip.index, clip.frame_index[0]) == (1, 6)


def test_a_clip_is_a_view_that_the_consumer_cannot_write(tmp_path):
    with ClipLoader(NEEDS, OPTIONS) as loader:
        clip = next(item.clip for item in loader.run([request(tmp_path, "a", rows=8)]) if isinstance(item, ClipReady))
        with pytest.raises(ValueError, match="read-only"):
            clip.frames[0] = 0


# What goes wrong

TROUBLES: list[tuple[str, type[VideoError], str]] = [
    ("hang", DecoderHung, "stood still for 1.2 s"),
    ("hang in C with the lock held", DecoderHung, "stood still for 1.2 s"),
    ("hang with a child", DecoderHung, "stood still for 1.2 s"),
    ("segfault", DecoderCrashed, "SIGSEGV"),
    ("exit", DecoderCrashed, "exit code 7: the library gave up"),
    ("eat memory", DecoderCrashed, "more than the 300 MiB allowed"),
    ("read on for ever", DecoderHung, "stood still for 1.2 s"),
]


@pytest.mark.parametrize(("what", "kind", "words"), TROUBLES)
def test_a_process_that_dies_costs_its_own_video(tmp_path, what, kind, words):
    requests = [
        request(tmp_path, "before", rows=30),
        request(tmp_path, "bad", rows=40, at=20, do=what),
        request(tmp_path, "after", rows=30),
    ]
    seen = load(requests, replace(OPTIONS if kind is DecoderCrashed else QUICK, memory_limit_mib=300))
    bad = seen["bad"]
    assert type(bad.end.error) is kind
    assert words in str(bad.end.error)
    assert str(bad.end.error).startswith("bad: ")
    assert bad.row_numbers == list(range(19))  # of the three clips that were complete: up to their last sampled row
    assert (bad.end.rows.first, bad.end.decoded_frames, bad.end.decoder) == (19, 19, "ffmpeg")
    assert seen["before"].values()[:2] == seen["after"].values()[:2]
    assert seen["after"].row_numbers == list(range(30))


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("raise a decode error", DecodeError, "the stream is cut (record again)"),
        ("raise anything", DecodeError, "RuntimeError: what now"),
    ],
)
def test_what_a_reader_raises_ends_its_video_with_all_rows_that_came(tmp_path, what, kind, words):
    one = load([request(tmp_path, "a", rows=40, at=25, do=what)])["a"]
    assert type(one.end.error) is kind
    assert str(one.end.error).endswith(words)
    assert one.row_numbers == list(range(25))
    assert one.clips[-1].frame_index.tolist() == [18, 20, 22, 24]


@pytest.mark.parametrize(("what", "words"), [("grow", "grew or was rewritten"), ("vanish", "vanished")])
def test_a_file_that_changes_while_it_is_read_says_so_and_keeps_its_rows(tmp_path, what, words):
    one = load([request(tmp_path, "a", rows=40, at=25, do=what)])["a"]
    assert isinstance(one.end.error, FileChanged)
    assert words in str(one.end.error)
    assert one.row_numbers == list(range(40))


def test_a_file_that_is_gone_or_unreadable_is_never_opened(tmp_path):
    (tmp_path / "text").write_text("no story")
    seen = load([ClipRequest("gone", tmp_path / "gone"), ClipRequest("text", tmp_path / "text")])
    assert isinstance(seen["gone"].end.error, FileChanged)
    assert type(seen["text"].end.error) is ProbeError
    assert "(write JSON)" in str(seen["text"].end.error)
    assert [one.opened for one in seen.values()] == [0, 0]
    assert seen["text"].end.info is None


def test_a_crash_while_probing_costs_that_video(tmp_path):
    asks = [request(tmp_path, "bad", rows=9, do="segfault while probing"), request(tmp_path, "good", rows=9)]
    seen = load(asks)
    assert isinstance(seen["bad"].end.error, DecoderCrashed)
    assert (seen["bad"].end.info, seen["bad"].row_numbers) == (None, [])
    assert seen["good"].end.error is None


def test_a_reader_that_leaves_a_row_out_is_caught(tmp_path):
    one = load([request(tmp_path, "a", rows=20)], replace(OPTIONS, reader="tests.video.fake_decoders:JumpingReader"))["a"]
    assert isinstance(one.end.error, DecodeError)
    assert "row 6 came where row 5 was due" in str(one.end.error)
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
    assert "not one frame" in str(one.end.error)


def test_a_process_that_keeps_memory_from_earlier_videos_is_replaced_without_blame(tmp_path):
    asks = [request(tmp_path, str(n), rows=9, at=3, do="leak") for n in range(4)]
    seen = load(asks, replace(OPTIONS, memory_limit_mib=230))
    assert [str(one.end.error) for one in seen.values()] == ["None"] * 4


def test_a_slow_consumer_is_no_hang(tmp_path):
    with ClipLoader(NEEDS, replace(QUICK, workers=2)) as loader:
        items = loader.run([request(tmp_path, name, rows=60) for name in "ab"])
        first = next(items)
        time.sleep(2.0)  # both processes have filled their slots and wait
        second = next(items)
        time.sleep(2.0)
        seen = gather(_chain(first, second, items))
    assert [one.end.error for one in seen.values()] == [None, None]
    assert all(one.row_numbers == list(range(60)) for one in seen.values())


def test_reading_on_without_rows_is_no_hang(tmp_path):
    ask = request(tmp_path, "a", rows=20, at=10, do="read on slowly")
    with ask.path.open("a") as file:
        file.write(" " * (1 << 20))
    assert load([ask], QUICK)["a"].end.error is None


def test_no_decoder_at_all_is_fatal(tmp_path):
    with pytest.raises(VadcliError, match=r"no decoder process can be started.*no_such_module"):
        load([request(tmp_path, "a", rows=20)], replace(OPTIONS, reader="no_such_module:Reader"))


# How it ends


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
        for _ in range(6):  # more often than there are slots
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


def test_an_interrupt_while_waiting_leaves_a_loader_that_works_and_closes(tmp_path):
    with ClipLoader(NEEDS, OPTIONS) as loader:
        items = loader.run([request(tmp_path, "a", rows=60, at=0, do="hang")])
        assert isinstance(next(items), Opened)
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(items)
        timer.join()
        assert not descendants()
        assert gather(loader.run([request(tmp_path, "b", rows=9)]))["b"].end.error is None


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


PARENT = """
import sys
from pathlib import Path
from tests.video.test_loader import NEEDS, OPTIONS, ClipLoader, ClipReady, request, replace
folder, what = Path(sys.argv[1]), sys.argv[2]
with ClipLoader(NEEDS, replace(OPTIONS, workers=2)) as loader:
    for item in loader.run([request(folder, name, rows=60, at=20, do=what) for name in "ab"]):
        if isinstance(item, ClipReady) and item.clip.index == 2:
            print(item.video, flush=True)
"""


@pytest.mark.parametrize("what", ["hang", "hang in C with the lock held", "hang with a child"])
def test_nothing_outlives_a_parent_that_is_killed(tmp_path, what):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), what], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert sorted(parent.stdout.readline().strip() for _ in "ab") == ["a", "b"]
    expected = 4 if what == "hang with a child" else 2
    assert wait_until(lambda: len(psutil.Process(parent.pid).children(recursive=True)) == expected)
    family = psutil.Process(parent.pid).children(recursive=True)
    assert all(os.getsid(process.pid) != os.getsid(0) for process in family)  # ^C at the terminal reaches none of them
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not any(alive(process) for process in family)), family


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _chain(*parts: Item | Iterator[Item]) -> Iterator[Item]:
    for part in parts:
        if isinstance(part, Opened | ClipReady | Finished):
            yield part
        else:
            yield from part
