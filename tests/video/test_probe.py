"""The probe finds the frames that ffmpeg shows, and refuses files that are no videos."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import media
from tests.patience import PATIENCE_S
from vadcli.errors import NoVideoStream, ProbeError, UnsafeContainer
from vadcli.video.container import path_text
from vadcli.video.decoders import list_images
from vadcli.video.headers import Shows, frame_counter
from vadcli.video.probe import probe
from vadcli.video.timeline import NO_TIME, PacketTimes, build_timeline


def shown_pts(path: Path) -> list[int]:
    """Return the times of the frames that ffmpeg shows."""
    command = [media.ffmpeg_exe(), "-nostdin", "-hide_banner", "-copyts", "-i", f"file:{path}", "-map", "0:v:0"]
    command += ["-vf", "showinfo=checksum=0", "-fps_mode", "passthrough", "-f", "null", "-"]
    said = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False).stderr
    return [int(pts) for pts in re.findall(rb"\] n: *\d+ pts: *(-?\d+) ", said)]


@pytest.mark.parametrize("codec", media.CODECS)
def test_times_are_those_that_ffmpeg_shows(codec: str, tmp_path: Path) -> None:
    path = media.make_video(tmp_path / f"a{media.CODECS[codec][0]}", codec, audio=codec in ("h264", "mpeg1", "mpegts", "vp8"))
    info = probe(path)
    assert info.pts.tolist() == shown_pts(path)
    assert info.frames == 24
    assert (info.width, info.height, info.rotation) == (96, 64, 0)
    assert info.fps == pytest.approx(25, rel=0.01)
    assert info.duration_s == pytest.approx(24 / 25, abs=0.002)
    assert not info.vfr
    assert info.keyframes[0] == 0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_rate_keeps_every_time(suffix: str, tmp_path: Path) -> None:
    info = probe(media.make_vfr(tmp_path / f"a{suffix}"))
    assert info.pts.tolist() == shown_pts(info.path)
    assert info.vfr
    steps = np.diff(info.timestamps(info.pts))
    assert steps.max() > 20 * steps.min()


def test_an_edit_list_hides_frames(tmp_path: Path) -> None:
    info = probe(media.make_edit_list(tmp_path / "a.mp4"))
    assert info.edit_list
    assert info.pts.tolist() == shown_pts(info.path)
    assert info.frames < 24


def test_a_late_start_is_kept(tmp_path: Path) -> None:
    path = media.remux(media.make_video(tmp_path / "a.mp4"), tmp_path / "b.mp4", before=("-itsoffset", "1.5"))
    info = probe(path)
    assert info.pts.tolist() == shown_pts(path)
    assert info.pts[0] * info.time_base == pytest.approx(1.5, abs=0.1)
    assert info.timestamps(info.pts)[0] == 0.0
    assert info.duration_s == pytest.approx(24 / 25, abs=0.002)


def test_a_duration_is_found_where_the_header_has_none(tmp_path: Path) -> None:
    pipe = ("-f", "webm", "-live", "1")
    info = probe(media.make_video(tmp_path / "a.webm", "vp8", options=pipe))
    assert info.duration_s == pytest.approx(24 / 25, abs=0.05)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_the_players(degrees: int, tmp_path: Path) -> None:
    info = probe(media.make_rotated(tmp_path / "a.mp4", degrees))
    assert info.rotation == degrees
    assert (info.width, info.height) == (96, 64)


def wide(path: Path, aspect: str, codec: str = "h264", *more: str, size: tuple[int, int] = (90, 72)) -> Path:
    return media.make_video(path, codec, frames=6, size=size, options=("-vf", f"setsar={aspect}", *more))


@pytest.mark.parametrize("codec", ["h264", "mpegts", "vp8", "mpeg4", "ffv1"])
def test_pixels_that_are_not_square_are_shown_in_their_shape(codec: str, tmp_path: Path) -> None:
    info = probe(wide(tmp_path / f"a{media.CODECS[codec][0]}", "16/15", codec))
    assert (info.width, info.height) == (96, 72)


@pytest.mark.parametrize(
    ("aspect", "width"),
    [("64/45", 128), ("5/11", 41), ("1/1", 90), ("0/1", 90), ("1000/1", 90), ("1/1000", 90), ("91/90", 90), ("89/90", 90)],
)
def test_absurd_and_rounded_aspect_ratios_of_pixels_are_ignored(aspect: str, width: int, tmp_path: Path) -> None:
    assert probe(wide(tmp_path / "a.mp4", aspect)).width == width


def test_the_aspect_ratio_of_the_container_counts_before_that_of_the_codec(tmp_path: Path) -> None:
    source = wide(tmp_path / "a.mp4", "64/45")
    for suffix in (".mp4", ".mkv"):
        info = probe(media.remux(source, tmp_path / f"b{suffix}", after=("-aspect", "4:3")))
        assert (info.width, info.height) == (96, 72)


def test_wide_pixels_are_stretched_before_a_player_turns_the_frame(tmp_path: Path) -> None:
    turned = media.remux(wide(tmp_path / "a.mp4", "64/45"), tmp_path / "b.mp4", before=("-display_rotation:v:0", "90"))
    info = probe(turned)
    assert (info.width, info.height, info.rotation) == (72, 128, 270)


def test_the_first_aspect_ratio_of_a_file_counts(tmp_path: Path) -> None:
    parts = [wide(tmp_path / f"{number}.ts", aspect, "mpegts") for number, aspect in enumerate(("64/45", "16/15"))]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert (probe(joined).width, probe(joined).frames) == (128, 12)


def test_alternate_references_of_vp8_have_no_row(tmp_path: Path) -> None:
    clip = tmp_path / "a.webm"
    source = (
        "-f",
        "lavfi",
        "-i",
        "mandelbrot=size=96x64:rate=25",
        "-frames:v",
        "40",
        "-c:v",
        "libvpx",
        "-b:v",
        "150k",
        "-g",
        "300",
    )
    how = (
        "-auto-alt-ref",
        "1",
        "-lag-in-frames",
        "25",
        "-deadline",
        "good",
        "-cpu-used",
        "5",
        "-passlogfile",
        str(tmp_path / "log"),
    )
    media.run_ffmpeg(*source, *how, "-pass", "1", "-f", "null", "-")
    media.run_ffmpeg(*source, *how, "-pass", "2", str(clip))
    with av.open(str(clip)) as opened:
        assert sum(packet.size > 0 for packet in opened.demux(video=0)) > 40
    info = probe(clip)
    assert info.frames == 40
    assert info.pts.tolist() == shown_pts(clip)


@pytest.mark.parametrize(
    ("packet", "hidden"),
    [
        (b"\x84", True),  # profile 0, show_frame 0
        (b"\x86", False),  # show_frame 1
        (b"\x88", False),  # show_existing_frame
        (b"\xb2", True),  # profile 3, show_frame 0
        (b"\xb1", False),  # profile 3, show_frame 1
        (b"\x84x\x86y\xc1\x02\x02\xc1", False),  # a superframe of a hidden and a shown frame
        (b"\x84x\x84y\xc1\x02\x02\xc1", True),
        (b"\x00", False),  # not VP9: the packet counts as a frame, and the decoder reports the damage
    ],
)
def test_hidden_frames_of_vp9_are_told_by_their_headers(packet: bytes, hidden: bool) -> None:
    counter = frame_counter("vp9", None)
    assert counter is not None
    assert counter(packet) is (Shows.NOTHING if hidden else Shows.FRAME)


def test_a_clock_that_starts_anew_goes_on(tmp_path: Path) -> None:
    stream = media.make_video(tmp_path / "a.ts", "mpegts").read_bytes()
    twice = tmp_path / "twice.ts"
    twice.write_bytes(stream + stream)
    info = probe(twice)
    assert info.shown_pts.tolist() == shown_pts(twice)
    assert info.frames == 48
    assert np.diff(info.pts).tolist() == [3600] * 47


def test_what_no_keyframe_precedes_has_no_row(tmp_path: Path) -> None:
    stream = media.make_video(tmp_path / "a.ts", "mpegts", frames=60, gop=12).read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(stream[len(stream) // 3 // 188 * 188 :])
    info = probe(cut)
    assert 0 < info.frames < 60
    assert info.pts.tolist() == shown_pts(cut)


def test_names_are_only_names(tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "a.mp4")
    for name in ("-rf.mp4", "a:b%03d\n.mp4", "concat:x|y.mp4", "http:host.mp4", "ä'\" \\.mp4"):
        odd = source.rename(tmp_path / name)
        assert probe(odd).frames == 24
        source = odd
    raw = tmp_path / os.fsdecode(b"\xff\xfe.mp4")
    source.rename(raw)
    assert probe(raw).frames == 24


def _bait(port: int) -> dict[str, str]:
    """Return {file name: text}. Each text makes ffmpeg's libraries open bait.mp4 in the same folder, or connect to the port."""
    url = f"http://127.0.0.1:{port}/x.ts"
    segments = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    manifest = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" '
        'type="static" mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
        'bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>'
    )
    return {
        "concat.mp4": "ffconcat version 1.0\nfile bait.mp4\n",
        "concat-url.mp4": f"ffconcat version 1.0\nfile '{url}'\n",
        "hls.mp4": segments.format("bait.mp4"),
        "hls.m3u8": segments.format("bait.mp4"),
        "hls-url.m3u8": segments.format(url),
        "hls-url.mp4": segments.format(url),
        "dash.mp4": manifest.format("bait.mp4"),
        "dash-url.mpd": manifest.format(url),
        "session.mp4": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n",
        "url.mp4": url + "\n",
        "meta.mp4": ";FFMETADATA1\ntitle=x\n",
        "imf.mp4": f'<?xml version="1.0"?><CompositionPlaylist>{url}</CompositionPlaylist>',
    }


@pytest.fixture
def visited() -> Iterator[tuple[int, list[object]]]:
    """The port of a listening socket, and a list of the connections to it."""
    visitors: list[object] = []
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)

        def listen() -> None:
            while not stop.is_set():
                with suppress(TimeoutError):
                    visitor, _ = server.accept()
                    visitors.append(visitor)
                    visitor.close()

        listener = threading.Thread(target=listen)
        listener.start()
        yield server.getsockname()[1], visitors
        stop.set()
        listener.join()


def test_nothing_but_the_file_is_opened(visited: tuple[int, list[object]], tmp_path: Path) -> None:
    port, visitors = visited
    bait = media.make_video(tmp_path / "bait.mp4")
    texts = _bait(port)
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    everything = {"protocol_whitelist": "file,http,tcp,crypto,data"}
    for name in ("concat.mp4", "hls.m3u8", "hls-url.m3u8"):  # without the list of allowed formats, ffmpeg opens the other file
        with suppress(av.error.FFmpegError), av.open(str(tmp_path / name), options=everything, timeout=5) as opened:
            assert len(opened.streams.video) == 1
    assert len(visitors) == 1
    os.utime(bait, (1, 1))
    visitors.clear()
    for name in texts:
        with pytest.raises(ProbeError) as refused:
            probe(tmp_path / name)
        assert name in str(refused.value)
        assert "\n" not in str(refused.value)
    assert bait.stat().st_atime == 1  # reading the file would have changed its time of access
    assert not visitors


@pytest.mark.parametrize("name", ["concat.mp4", "hls.m3u8", "session.mp4", "meta.mp4"])
def test_a_script_is_called_unsafe(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(_bait(1)[name])
    with pytest.raises(UnsafeContainer, match="not allowed"):
        probe(tmp_path / name)


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    whole = media.make_video(tmp_path / "whole.mp4")
    cases = {
        "empty.mp4": (b"", ProbeError, "0 bytes"),
        "text.mp4": (b"hello world\n" * 40, ProbeError, "not a readable video"),
        "moov.mp4": (whole.read_bytes()[: whole.stat().st_size // 3], ProbeError, "not a readable video"),
        "noise.mkv": (np.random.default_rng(0).bytes(5000), ProbeError, "not a readable video|not a video"),
    }
    for name, (content, kind, words) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(kind, match=words) as refused:
            probe(tmp_path / name)
        assert name in str(refused.value)
    Image.new("L", (8, 8)).save(tmp_path / "still.png")
    (tmp_path / "still.png").rename(tmp_path / "still.mp4")
    for gone, words in (("missing.mp4", "No such file"), ("still.mp4", "not a video container")):
        with pytest.raises(ProbeError, match=words):
            probe(tmp_path / gone)
    with pytest.raises(NoVideoStream, match="no video stream"):
        probe(media.make_audio_only(tmp_path / "sound.mp4"))


def test_each_file_with_the_same_damage_gets_its_reason(tmp_path: Path) -> None:
    whole = media.make_video(tmp_path / "whole.mp4").read_bytes()
    for name in ("first.mp4", "second.mp4", "third.mp4"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 3])
        with pytest.raises(ProbeError, match=rf"{name}: not a readable video file \(moov atom not found;"):
            probe(tmp_path / name)


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    cover, song = tmp_path / "cover.png", tmp_path / "song.mp3"
    Image.new("RGB", (64, 64), "red").save(cover)
    media.run_ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-i", str(cover), "-map", "0", "-map", "1", str(song))
    with pytest.raises(NoVideoStream):
        probe(song)


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ProbeError, match="not a regular file"):
        probe(tmp_path / "pipe.mp4")


def test_the_stream_with_most_pixels_is_picked(tmp_path: Path) -> None:
    small, large = media.make_video(tmp_path / "s.mp4", size=(48, 32)), media.make_video(tmp_path / "l.mp4", size=(128, 96))
    both = tmp_path / "both.mkv"
    media.run_ffmpeg("-i", str(small), "-i", str(large), "-map", "0", "-map", "1", "-c", "copy", "-disposition", "0", str(both))
    info = probe(both)
    assert (info.stream_index, info.width, info.height) == (1, 128, 96)


def test_a_truncated_matroska_tells_what_is_left(tmp_path: Path) -> None:
    cut = media.truncate(media.make_video(tmp_path / "a.mkv"), tmp_path / "b.mkv", 0.6)
    info = probe(cut)
    assert 0 < info.frames < 24
    assert info.pts.tolist() == shown_pts(cut)


def test_images_in_natural_order(tmp_path: Path) -> None:
    folder = media.make_image_folder(tmp_path / "frames", 12, suffix=".jpg")
    (folder / "notes.txt").write_text("not a frame")
    (folder / ".hidden.jpg").write_bytes(b"x")
    info = probe(folder)
    assert info.images == tuple(f"frame{i}.jpg" for i in range(12)) == list_images(folder)
    assert (info.demuxer, info.width, info.height, info.frames) == ("images", 96, 64, 12)
    assert info.time_base == Fraction(1, 10)
    assert info.pts.tolist() == list(range(12))
    assert probe(folder, fps=29.97).time_base == Fraction(100, 2997)


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoVideoStream, match="no images"):
        probe(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"broken")
    with pytest.raises(ProbeError, match="none of its images"):
        probe(tmp_path)
    with pytest.raises(ProbeError, match="frame rate"):
        probe(tmp_path, fps=0)


@given(
    steps=st.lists(st.integers(1, 90), min_size=1, max_size=60),
    depth=st.integers(0, 3),
    start=st.integers(-1000, 10**9),
)
def test_reordered_packets_come_back_in_order(steps: list[int], depth: int, start: int) -> None:
    pts = (start + np.cumsum(steps)).tolist()
    decoding = sorted(range(len(pts)), key=lambda i: (i // (depth + 1), -i))  # the last frame of each group is decoded first
    keyframe = [i == decoding[0] for i in decoding]
    timeline = build_timeline(
        PacketTimes(
            np.array([pts[i] for i in decoding]), np.full(len(pts), NO_TIME), np.zeros(len(pts), np.int64), np.array(keyframe)
        ),
        frame_ticks=40, jump_ticks=250, longest_gap_ticks=10**9, timed=True, needs_key=False,
    )  # fmt: skip
    assert timeline.pts.tolist() == pts
    assert len(timeline.shown_pts) == 0


@given(times=st.lists(st.one_of(st.none(), st.integers(0, 5000)), min_size=1, max_size=60), ticks=st.integers(1, 50))
def test_any_times_become_strictly_increasing(times: list[int | None], ticks: int) -> None:
    count = len(times)
    pts = np.array([NO_TIME if time is None else time for time in times])
    timeline = build_timeline(
        PacketTimes(pts, np.full(count, NO_TIME), np.zeros(count, np.int64), np.ones(count, bool)),
        frame_ticks=ticks, jump_ticks=250, longest_gap_ticks=10**9, timed=True, needs_key=True,
    )  # fmt: skip
    assert len(timeline.pts) <= count
    assert np.all(np.diff(timeline.pts) > 0)


_FOLDERS = ("everyday", "incidents", "ucf_crime", "ubnormal")
_REAL = sorted(path for folder in _FOLDERS for path in (media.SHARED / folder).glob("*") if path.suffix != ".txt")


@pytest.mark.shared
@pytest.mark.skipif(not _REAL, reason="no ../shared/data")
def test_real_footage_agrees_with_ffmpeg() -> None:
    differing = [path.name for path in _REAL if probe(path).pts.tolist() != shown_pts(path)]
    assert differing == []


@pytest.mark.shared
@pytest.mark.skipif(not _REAL, reason="no ../shared/data")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("derived_not_a_video.mp4", ProbeError),
        ("derived_trunc60_chaplin.mp4", ProbeError),
        ("empty_0_bytes.webm", ProbeError),
        ("moviepy_first_vid_2004B.mp4", NoVideoStream),
    ],
)
def test_real_broken_files_are_named(name: str, kind: type[ProbeError]) -> None:
    with pytest.raises(kind, match=name):
        probe(media.SHARED / "broken" / name)


def test_a_path_is_shown_as_everywhere_else() -> None:
    assert path_text(Path("caf\udce9\n é.mp4")) == "caf%E9%0A é.mp4"
