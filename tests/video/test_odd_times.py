"""Packets that show no frame or two frames, and times that are guessed, repeat, jump or are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import media, odd_media
from tests.video.test_decode import fake_info, numbers, read
from vadcli.types import DecoderChoice, PixelFormat, VideoInfo
from vadcli.video.decoders import DecodedFrame, can_read
from vadcli.video.ffmpeg import DamageFound
from vadcli.video.probe import probe
from vadcli.video.reader import FrameReader, ReadRequest, Row, RowMatcher
from vadcli.video.timeline import NO_TIME, PacketTimes, Timeline, build_timeline

FRAMES = 24
MS = list(range(0, 40 * FRAMES, 40))  # times of 24 frames at 25 per second


def seconds(info: VideoInfo, decoder: DecoderChoice = "auto", shown: list[int] | None = None) -> list[float]:
    """Read all rows, check that each row has the right image and that no row is lost, and return their times in seconds."""
    frames = read(info, decoder=decoder)
    assert numbers(frames) == (list(range(info.frames)) if shown is None else shown)
    assert [frame.index for frame in frames] == list(range(info.frames))
    assert all(frame.ok for frame in frames)
    times = info.timestamps(np.array([frame.pts for frame in frames]))
    assert np.all(np.diff(times) > 0)
    assert times[-1] < info.duration_s
    return [float(time) for time in times]


@pytest.mark.parametrize("make", [odd_media.h264_stream, odd_media.mpeg2_stream])
@pytest.mark.parametrize("kinds", ["f" * 20, "ffpppfpfpffffpppppff"])
def test_two_fields_are_one_frame_in_every_container(make: Callable[[str], bytes], kinds: str, tmp_path: Path) -> None:
    raw = tmp_path / ("a.h264" if make is odd_media.h264_stream else "a.m2v")
    raw.write_bytes(make(kinds))
    boxes = [media.remux(raw, tmp_path / f"a{suffix}", before=("-fflags", "+genpts")) for suffix in (".ts", ".mp4", ".mkv")]
    for path in (raw, *boxes):
        info = probe(path)
        assert info.frames == len(kinds), path.name
        for decoder in ("auto", "ffmpeg"):
            times = seconds(info, decoder)
            if path.suffix != ".mp4":
                assert times == pytest.approx(np.arange(20) / 25, abs=0.03), path.name


def test_pulldown_flags_make_frames_longer_and_no_more_of_them(tmp_path: Path) -> None:
    path = tmp_path / "a.m2v"
    path.write_bytes(odd_media.mpeg2_stream("pr" * 12))
    info = probe(path)
    assert seconds(info) == pytest.approx(np.arange(24) * 0.05, abs=0.03)
    assert info.fps == pytest.approx(20, rel=0.03)


def still(chunks: list[bytes], every: int) -> tuple[list[bytes], list[int]]:
    """Replace every n-th chunk by a chunk that is not coded. Return the chunks and the numbers of the other frames."""
    gone = {i for i in range(len(chunks)) if i % every == every - 1}
    return [odd_media.not_coded(vop) if i in gone else vop for i, vop in enumerate(chunks)], sorted(
        {*range(len(chunks))} - gone
    )


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv", ".m4v"])
def test_a_frame_that_is_not_coded_prolongs_the_one_before(suffix: str, tmp_path: Path) -> None:
    head, vops = odd_media.mpeg4_vops(tmp_path, FRAMES)
    chunks, left = still(vops, 4)
    avi = odd_media.write_avi(tmp_path / "a.avi", b"XVID", [head + chunks[0], *chunks[1:]])
    info = probe(avi if suffix == ".avi" else media.remux(avi, tmp_path / f"b{suffix}"))
    assert info.frames == len(left) == 18
    assert info.duration_s == pytest.approx(FRAMES / 25, abs=0.001)
    for decoder in ("auto", "ffmpeg"):
        assert seconds(info, decoder, left) == pytest.approx(np.array(left) / 25, abs=0.001)
    assert not can_read(info)


def test_packed_b_frames_are_frames(tmp_path: Path) -> None:
    head, vops = odd_media.mpeg4_vops(tmp_path, FRAMES, b_frames=1)
    chunks: list[bytes] = []
    for vop in vops:
        if vop[4] >> 6 == 2:
            chunks[-1:] = [chunks[-1] + vop, odd_media.not_coded(chunks[-1])]
        else:
            chunks.append(vop)
    chunks[0] = head + b"\0\0\1\xb2DivX503b1393p\0" + chunks[0]
    avi = odd_media.write_avi(tmp_path / "a.avi", b"DX50", chunks)
    for path in (avi, media.remux(avi, tmp_path / "a.mp4")):
        times = seconds(probe(path))
        assert len(times) == FRAMES
        assert times == pytest.approx(np.arange(FRAMES) / 25, abs=0.041)


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4"])
def test_empty_chunks_show_nothing(codec: str, tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "a.avi", codec, gop=1, options=("-bf", "0") if codec == "mpeg4" else ())
    with media.av.open(str(source)) as opened:
        pictures = [bytes(packet) for packet in opened.demux(video=0) if packet.size]
    chunks = [b"" if i % 5 in (1, 2) or i > 21 else picture for i, picture in enumerate(pictures)]
    left = [i for i, chunk in enumerate(chunks) if chunk]
    info = probe(odd_media.write_avi(tmp_path / "b.avi", {"mjpeg": b"MJPG", "mpeg4": b"FMP4"}[codec], chunks))
    for decoder in ("auto", "ffmpeg"):
        assert seconds(info, decoder, left) == pytest.approx(np.array(left) / 25, abs=0.001)


@pytest.mark.parametrize(
    ("name", "size", "rate", "options"),
    [
        ("pal.dv", (720, 576), "25", ("-c:v", "dvvideo", "-pix_fmt", "yuv420p")),
        ("ntsc.dv", (720, 480), "30000/1001", ("-c:v", "dvvideo", "-pix_fmt", "yuv411p")),
        ("a.drc", (96, 64), "25", ("-c:v", "vc2", "-pix_fmt", "yuv420p", "-f", "dirac")),
    ],
)
def test_times_are_seconds_whatever_the_time_base(
    name: str, size: tuple[int, int], rate: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    raw = b"".join(media.picture(i, *size).tobytes() for i in range(8))
    source = ("-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{size[0]}x{size[1]}", "-r", rate, "-i", "pipe:0")
    media.run_ffmpeg(*source, *options, f"file:{tmp_path / name}", stdin=raw)
    assert seconds(probe(tmp_path / name)) == pytest.approx(np.arange(8) / 25, abs=0.05)


@pytest.mark.parametrize("codec", ["mpegts", "mpeg1"])
@pytest.mark.parametrize("every", [3, 25])
def test_a_time_stamp_now_and_then_is_enough(codec: str, every: int, tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "a.ts", codec, frames=60)
    program = media.remux(source, tmp_path / "a.mpg", after=("-f", "mpeg"))
    sparse = odd_media.retime_pes(program, tmp_path / "b.mpg", lambda n, stamp: None if n % every else stamp)
    assert seconds(probe(sparse)) == pytest.approx(np.arange(60) / 25, abs=0.001)


WILD = 1_700_000_000_000
_ODD = ["repeat", "repeats", "rate", "wild", "hour", "zero", "jitter", "last", "decades", "gap", "restart", "overlap", "first"]


@pytest.mark.parametrize(
    ("times_ms", "expected_ms"),
    [
        ([*MS[:9], MS[8], *MS[10:]], [*MS[:9], MS[8], *MS[10:]]),
        ([*MS[:9], *MS[8:10], MS[9], MS[9], *MS[13:]], [*MS[:9], *MS[8:10], MS[9], MS[9], *MS[13:]]),
        ([i // 3 for i in range(24)], [i // 3 for i in range(24)]),
        ([*MS[:9], WILD, *MS[10:]], MS),
        ([*MS[:9], 3_600_000, *MS[10:]], MS),
        ([*MS[:9], 0, *MS[10:]], MS),
        ([*MS[:9], MS[9] - 50, *MS[10:]], MS),
        ([*MS[:22], WILD, MS[23]], MS),
        ([*MS[:9], *(time + WILD for time in MS[9:])], MS),
        ([*MS[:9], *(time + 3_600_000 for time in MS[9:])], [*MS[:9], *(time + 3_600_000 for time in MS[9:])]),
        ([*(time + 90_000 for time in MS[:12]), *MS[:12]], MS),
        ([*(time + 300 for time in MS[:12]), *MS[:12]], MS),
        ([WILD, *MS[1:]], MS),
    ],
    ids=[
        "repeat",
        "repeats",
        "rate",
        "wild",
        "hour",
        "zero",
        "jitter",
        "last",
        "decades",
        "gap",
        "restart",
        "overlap",
        "first",
    ],
)
def test_an_odd_time_moves_no_other_row(times_ms: list[int], expected_ms: list[int], tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "a.mp4", options=("-bf", "0"))
    info = probe(odd_media.write_mkv(tmp_path / "a.mkv", source, times_ms))
    for decoder in ("auto", "ffmpeg"):
        assert seconds(info, decoder) == pytest.approx(np.array(expected_ms) / 1000, abs=0.0011)
    assert info.duration_s == pytest.approx((expected_ms[-1] + 40) / 1000, abs=0.05)


@pytest.mark.parametrize("odd", ["wild", "repeat", "wrap", "restart"])
def test_an_odd_time_among_b_frames_moves_no_other_row(odd: str, tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "a.ts", "mpegts", frames=60, gop=12)

    def change(number: int, stamp: int) -> int:
        if odd == "wild":
            return stamp + 90_000 * 9_000 * (number == 30)
        if odd == "repeat":
            return stamp - 3_600 * (number in (20, 40))
        return stamp + (2**33 - 90_000 * 2 if odd == "wrap" else 90_000 * 500 * (number < 36))

    info = probe(odd_media.retime_pes(source, tmp_path / "b.ts", change))
    assert seconds(info) == pytest.approx(np.arange(60) / 25, abs=0.081 if odd in ("wild", "repeat") else 0.001)


@pytest.mark.parametrize("odd", ["wild", "zero", "first", "restart", "decades", "repeat"])
def test_odd_times_of_b_frames_without_decoding_times(odd: str, tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "a.mp4", frames=60, gop=12, options=("-x264-params", "b-adapt=0:bframes=2"))
    with media.av.open(str(source)) as opened:
        rows = [round(packet.pts * packet.time_base * 25) for packet in opened.demux(video=0) if packet.size]
    rows = [row - min(rows) for row in rows]
    change: dict[str, Callable[[int], int]] = {
        "wild": lambda row: WILD * (row in (30, 31)),
        "zero": lambda row: -40 * row * (row == 30),
        "first": lambda row: WILD * (row == 0),
        "restart": lambda row: 90_000 * (row < 36),
        "decades": lambda row: WILD * (row >= 36),
        "repeat": lambda row: -40 * (row in (20, 40)),
    }
    info = probe(odd_media.write_mkv(tmp_path / "a.mkv", source, [40 * row + change[odd](row) for row in rows]))
    assert seconds(info) == pytest.approx(np.arange(60) / 25, abs=0.081)


@pytest.mark.parametrize("back_ms", [300, 2_000])
def test_a_clock_that_steps_back_at_a_keyframe_among_b_frames_loses_no_frame(back_ms: int, tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "a.mp4", frames=60, gop=12, options=("-x264-params", "b-adapt=0:bframes=2"))
    with media.av.open(str(source)) as opened:
        rows = [round(packet.pts * packet.time_base * 25) for packet in opened.demux(video=0) if packet.size]
    rows = [row - min(rows) for row in rows]
    info = probe(odd_media.write_mkv(tmp_path / "a.mkv", source, [40 * row + back_ms * (row < 36) for row in rows]))
    assert seconds(info) == pytest.approx(np.arange(60) / 25, abs=0.001)


def test_rows_keep_their_order_if_ffmpeg_starts_again_and_reports_other_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = probe(media.make_video(tmp_path / "a.mp4", frames=4, options=("-bf", "0")))
    step = int(info.pts[1] - info.pts[0])
    runs = iter([[0, 1, 2, 3, 4, 5], [0, 1, 1.5, 2, 3, 4, 5, 6]])

    class Restarted:
        complaints = ""

        def __init__(self, *_: object, **__: object) -> None:
            self._times = next(runs)

        def __iter__(self) -> Iterator[DecodedFrame]:
            for time in self._times:
                yield DecodedFrame(int(time * step), True, True, np.zeros((8, 8, 1), np.uint8))
            if len(self._times) == 6:
                raise DamageFound

        def close(self) -> None:
            pass

    monkeypatch.setattr("vadcli.video.reader.FfmpegFrames", Restarted)
    with FrameReader(info, ReadRequest(0, 1, 8, 8, PixelFormat.GRAY), decoder="ffmpeg") as frames:
        rows = [(frame.index, frame.pts) for frame in frames]
    assert [index for index, _ in rows] == list(range(8))
    assert np.all(np.diff([pts for _, pts in rows]) > 0)


def test_an_flv_file_whose_clock_restarts_goes_on(tmp_path: Path) -> None:
    flv = media.remux(media.make_video(tmp_path / "a.mp4"), tmp_path / "a.flv").read_bytes()
    (tmp_path / "b.flv").write_bytes(flv + flv[13:])
    info = probe(tmp_path / "b.flv")
    assert seconds(info, shown=[*range(24), *range(24)]) == pytest.approx(np.arange(48) / 25, abs=0.001)


def timeline(times: list[int | None], decoded: list[int | None] | None = None, **options: object) -> Timeline:
    """Return the timeline of packets with these times, in decoding order. A frame lasts 40 ticks."""
    count = len(times)
    arguments = {"frame_ticks": 40, "longest_gap_ticks": 10**6, "jump_ticks": None, "timed": True, "needs_key": False} | options
    pts, dts = (
        np.array([NO_TIME if time is None else time for time in some], np.int64) for some in (times, decoded or [None] * count)
    )
    packets = PacketTimes(pts, dts, np.full(count, 40, np.int64), np.ones(count, np.bool_))
    return build_timeline(packets, **arguments)  # type: ignore[arg-type]


_TIMES = st.one_of(st.none(), st.integers(0, 4000), st.integers(-(2**63) + 1, 2**63 - 1))


@given(
    times=st.lists(_TIMES, min_size=1, max_size=60),
    decoded=st.lists(_TIMES, min_size=60, max_size=60),
    jump_ticks=st.sampled_from([None, 250]),
    timed=st.booleans(),
    reorders=st.booleans(),
)
def test_any_times_become_strictly_increasing(
    times: list[int | None], decoded: list[int | None], jump_ticks: int | None, timed: bool, reorders: bool
) -> None:
    found = timeline(times, decoded[: len(times)], jump_ticks=jump_ticks, timed=timed, reorders=reorders)
    assert len(found.pts) == len(times)
    assert np.all(np.diff(found.pts) > 0)
    assert len(found.shown_pts) in (0, len(times))


@given(
    steps=st.lists(st.integers(1, 500), min_size=8, max_size=60),
    odd=st.sets(st.integers(1, 58), max_size=8),
    how=st.sampled_from(["repeat", "wild", "zero"]),
)
def test_no_odd_time_moves_a_row_whose_time_is_right(steps: list[int], odd: set[int], how: str) -> None:
    right = (1000 + np.cumsum(steps)).tolist()
    odd = {i for i in odd if i < len(right) - 1 and i - 1 not in odd}
    wrong = {"repeat": lambda i: right[i - 1], "wild": lambda i: 10**12, "zero": lambda i: 0}[how]
    times = [wrong(i) if i in odd else time for i, time in enumerate(right)]
    found = timeline(times, reorders=False)
    for i, time in enumerate(right):
        if i in odd:
            assert right[i - 1] <= found.pts[i] / found.finer <= right[i + 1]
        else:
            assert found.pts[i] == time * found.finer


@given(
    lengths=st.lists(st.integers(12, 30), min_size=1, max_size=5),
    starts=st.lists(st.integers(0, 10**9), min_size=5, max_size=5),
)
def test_parts_follow_each_other_where_the_clock_restarts(lengths: list[int], starts: list[int]) -> None:
    starts = sorted(starts, reverse=True)  # so each part begins at an earlier time than the previous part
    parts = [[start + 40 * i for i in range(count)] for start, count in zip(starts, lengths, strict=False)]
    times = [time for part in parts for time in part]
    found = timeline(list(times), list(times), jump_ticks=250)
    assert np.diff(found.pts).tolist() == [40] * (len(times) - 1)


def guessed(pts: list[int]) -> VideoInfo:
    info = fake_info(np.array(pts))
    object.__setattr__(info, "guessed_times", True)
    return info


def test_guessed_times_are_matched_by_order() -> None:
    matcher = RowMatcher(guessed([0, 4, 8, 12, 16]))
    placed = [matcher.place(pts) for pts in (7, 19, 15, None, 2)]
    assert placed == [([], Row(k, 4 * k)) for k in range(5)]
    assert matcher.place(6) == ([], Row(5, 20))


def test_after_an_error_guessed_times_say_how_many_frames_are_lost() -> None:
    matcher = RowMatcher(guessed([0, 4, 8, 12, 16, 20]))
    matcher.place(7)
    matcher.place(11)
    assert matcher.place(23, after_error=True) == ([Row(2, 8), Row(3, 12)], Row(4, 16))


def test_a_time_is_matched_if_it_is_less_than_half_a_frame_away() -> None:
    matcher = RowMatcher(fake_info(np.array([0, 4, 8, 12, 16])))
    assert [matcher.place(pts) for pts in (0, 5, 7)] == [([], Row(0, 0)), ([], Row(1, 4)), ([], Row(2, 8))]
    assert matcher.place(17) == ([Row(3, 12)], Row(4, 16))
