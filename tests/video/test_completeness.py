"""Files that end early, files with several video streams, and streams that ffmpeg finds only if it reads more of the file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import av
import pytest

from tests import media
from tests.patience import PATIENCE_S
from vadcli.errors import UnsafeContainer
from vadcli.video.probe import probe

FRAMES = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    """4 s of H.264 without reordered frames, which every container can store."""
    return media.make_video(folder / "source.mp4", frames=FRAMES, gop=25, options=("-bf", "0"))


@pytest.fixture(scope="module")
def with_long_sound(folder: Path, source: Path) -> Path:
    path = folder / "sound.mkv"
    media.run_ffmpeg("-f", "lavfi", "-i", "sine=d=9", "-i", str(source), "-map", "1", "-map", "0", "-c:v", "copy", str(path))
    return path


CONTAINERS: dict[str, tuple[str, ...]] = {
    "a.mkv": (),
    "a.flv": (),
    "a.avi": (),
    "sidx.mp4": ("-movflags", "frag_keyframe+empty_moov+global_sidx"),
    "faststart.mp4": ("-movflags", "faststart"),
}
ENCODED = {"b.avi": "mpeg4", "a.ivf": "libvpx", "a.wmv": "wmv2", "a.gxf": "mpeg2video"}


@pytest.fixture(scope="module")
def whole(folder: Path, source: Path) -> list[Path]:
    paths = [media.remux(source, folder / name, after=options) for name, options in CONTAINERS.items()]
    for name, encoder in ENCODED.items():
        size = "720x576" if name.endswith("gxf") else "96x64"
        media.run_ffmpeg("-i", str(source), "-c:v", encoder, "-s", size, str(folder / name))
        paths.append(folder / name)
    untagged = folder / "untagged.mkv"
    untagged.write_bytes((folder / "a.mkv").read_bytes().replace(b"DURATION", b"DUR_TION"))
    return [*paths, untagged]


def test_a_file_that_ends_before_its_declared_length_lacks_frames(whole: list[Path], tmp_path: Path) -> None:
    for path in whole:
        complete = probe(path)
        assert (complete.frames, complete.missing, complete.missing_reason) == (FRAMES, 0, ""), path.name
        half = probe(media.truncate(path, tmp_path / path.name, 0.6))
        assert half.frames + half.missing == pytest.approx(FRAMES, abs=2), path.name
        if path.name not in (
            "faststart.mp4",
            "a.avi",
        ):  # their index lists all frames, or most frames are empty
            assert half.missing > 20, path.name
            assert "ends before" in half.missing_reason


def test_a_length_that_is_not_the_videos_is_no_loss(with_long_sound: Path, folder: Path, tmp_path: Path) -> None:
    untagged = tmp_path / "untagged.mkv"
    untagged.write_bytes(with_long_sound.read_bytes().replace(b"DURATION", b"DUR_TION"))
    live = media.remux(folder / "source.mp4", tmp_path / "live.mkv", after=("-live", "1"))
    flv = media.remux(with_long_sound, tmp_path / "a.flv", after=("-c:a", "aac"))
    mp4 = media.remux(with_long_sound, tmp_path / "a.mp4", after=("-c:a", "aac"))
    cut_live = media.truncate(live, tmp_path / "cut.mkv", 0.6)
    for path in (with_long_sound, untagged, flv, mp4, live, cut_live):
        assert probe(path).missing == 0, path.name
    # This file is cut inside the sound that comes after the video, so it is unknown whether the video is complete.
    assert probe(media.truncate(flv, tmp_path / "cut.flv", 0.4)).missing > 0
    # A recording that is cut short, with tags that were copied from a longer recording.
    stale = tmp_path / "stale.mkv"
    stale.write_bytes((folder / "a.mkv").read_bytes().replace(b"00:00:04.000", b"02:00:04.000"))
    assert probe(stale).missing == 0


def test_damage_in_the_container_makes_the_rest_of_the_file_missing(folder: Path, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.rm"
    media.run_ffmpeg("-i", str(source), "-c:v", "rv10", "-s", "176x144", str(path))
    assert probe(path).missing == 0
    assert probe(media.truncate(path, path, 0.5)).missing > 20


def test_what_follows_a_hole_is_read_and_the_hole_is_told(tmp_path: Path) -> None:
    data = media.make_video(tmp_path / "a.ts", "mpegts", frames=FRAMES).read_bytes()
    middle = len(data) // 188 // 2 * 188
    path = tmp_path / "hole.ts"
    path.write_bytes(data[:middle] + bytes(500_000) + data[middle:])
    info = probe(path)
    assert FRAMES - 3 <= info.frames <= FRAMES
    assert info.missing == 1
    assert "a part of it cannot be read" in info.missing_reason


def test_other_video_streams_are_named_and_lose_frames_only_if_they_take_over(folder: Path, tmp_path: Path) -> None:
    first = media.make_video(tmp_path / "first.ts", "mpegts", frames=75)
    options = ("-mpegts_start_pid", "400", "-output_ts_offset", "3")
    second = media.make_video(tmp_path / "second.ts", "mpegts", frames=50, options=options)
    again = media.make_video(tmp_path / "again.ts", "mpegts", frames=50, options=("-mpegts_start_pid", "400"))
    for later in (second, again):  # in `second` the clock continues, in `again` it restarts
        path = tmp_path / "joined.ts"
        path.write_bytes(first.read_bytes() + later.read_bytes())
        info = probe(path)
        assert (info.frames, info.missing) == (75, 50)
        assert "another stream (1)" in info.missing_reason
        assert "left out: 1" in info.note
    for suffix in ("ts", "mkv", "mp4"):
        both = tmp_path / f"both.{suffix}"
        scaled = "[0:v]split[a][b];[b]scale=48:32[c]"
        mapping = ("-filter_complex", scaled, "-map", "[a]", "-map", "[c]")
        media.run_ffmpeg("-i", str(first), *mapping, "-c:v", "libx264", "-preset", "ultrafast", str(both))
        info = probe(both)
        assert (info.frames, info.missing, info.width) == (75, 0, 96), suffix
        assert info.note == "only video stream 0 was read; left out: 1 (h264 48x32)"


def test_a_stream_in_the_middle_that_ffmpeg_sees_neither_at_the_start_nor_at_the_end(tmp_path: Path) -> None:
    noise = (
        "-vf",
        "noise=alls=90:allf=t",
        "-qp",
        "0",
    )  # makes a file of more than 5 MB; ffmpeg reads no more at first
    big = media.make_video(tmp_path / "big.ts", "mpegts", frames=60, size=(320, 240), options=noise)
    assert big.stat().st_size > 5_200_000
    other = media.make_video(tmp_path / "b.ts", "mpegts", frames=50, options=("-mpegts_start_pid", "400"))
    path = tmp_path / "aba.ts"
    path.write_bytes(big.read_bytes() + other.read_bytes() + big.read_bytes())
    info = probe(path)
    assert info.frames == 120
    assert info.missing > 0
    assert "begins in the middle" in info.missing_reason


def test_a_recording_cut_in_a_long_group_of_pictures(tmp_path: Path) -> None:
    whole = media.make_video(tmp_path / "a.ts", "mpegts", frames=150, fps=5, gop=75, options=("-bf", "0", "-sc_threshold", "0"))
    with av.open(str(whole)) as container:
        position = [packet.pos for packet in container.demux(video=0) if packet.size][5]
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole.read_bytes()[position // 188 * 188 :])
    info = probe(cut)
    assert (info.frames, info.width) == (75, 96)
    assert info.probe_options
    assert not probe(whole).probe_options


def test_video_that_starts_long_after_the_sound(tmp_path: Path) -> None:
    video = media.make_video(tmp_path / "v.ts", "mpegts", frames=20)
    for name in ("a.ts", "a.mpg"):
        codec = ("libx264", "-preset", "ultrafast") if name == "a.ts" else ("mpeg2video", "-fps_mode", "passthrough")
        sound = ("-f", "lavfi", "-i", "sine=d=30", "-itsoffset", "25", "-i", str(video))
        media.run_ffmpeg(*sound, "-map", "0", "-map", "1", "-c:a", "mp2", "-c:v", *codec, str(tmp_path / name))
        assert (probe(tmp_path / name).frames, probe(tmp_path / name).width) == (20, 96), name


def test_jpegs_end_to_end_are_a_video(folder: Path, source: Path, tmp_path: Path) -> None:
    raw, parts, one = tmp_path / "a.mjpeg", tmp_path / "b.mjpg", tmp_path / "one.jpg"
    for path, form in ((raw, "mjpeg"), (parts, "mpjpeg")):
        media.run_ffmpeg("-i", str(source), "-frames:v", "20", "-c:v", "mjpeg", "-f", form, str(path))
    media.run_ffmpeg("-i", str(source), "-frames:v", "1", str(one))
    (tmp_path / "c.mjpg").write_bytes(b"HTTP/1.0 200 OK\r\nServer: cam\r\n\r\n" + parts.read_bytes())
    (tmp_path / "d.mp4").write_bytes(raw.read_bytes())
    (tmp_path / "e.mjpg").write_bytes(parts.read_bytes().replace(b"--ffmpeg", b"--myboundary"))
    for name in ("a.mjpeg", "b.mjpg", "c.mjpg", "d.mp4", "e.mjpg"):
        info = probe(tmp_path / name)
        assert (info.demuxer, info.codec, info.frames, info.width) == ("mjpeg", "mjpeg", 20, 96), name
    with pytest.raises(UnsafeContainer):
        probe(one)


def _without(path: Path, start: float, count: int) -> Path:
    """Cut `count` bytes out of a file; `start` is their place as a share of the file's length."""
    data = path.read_bytes()
    at = int(len(data) * start)
    path.write_bytes(data[:at] + data[at + count :])
    return path


DAMAGED = {
    "a.ogv": "libtheora",
    "a.gif": "gif",
    "a.apng": "apng",
    "a.webm": "libvpx",
    "a.wmv": "wmv2",
    "a.avi": "mpeg4",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_bytes_that_are_missing_in_the_middle_are_said(name: str, source: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    media.run_ffmpeg("-i", str(source), "-an", "-c:v", DAMAGED[name], str(path))
    whole = probe(path)
    assert (whole.missing, whole.missing_reason) == (0, "")
    info = probe(_without(path, 0.6, 1500))
    assert info.frames <= whole.frames
    assert info.missing > 0, info.frames
    assert info.missing_reason


@pytest.mark.parametrize("name", ["a.ogv", "a.gif", "a.apng"])
def test_a_file_without_its_end_is_cut_short(name: str, source: Path, tmp_path: Path) -> None:
    path = tmp_path / name
    media.run_ffmpeg("-i", str(source), "-an", "-c:v", DAMAGED[name], str(path))
    info = probe(media.truncate(path, path, 0.5))
    assert 0 < info.frames < FRAMES
    assert "its end is missing" in info.missing_reason or "cut off" in info.missing_reason


def test_a_lost_page_of_an_ogg_file_is_said(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.ogv"
    media.run_ffmpeg("-i", str(source), "-an", "-c:v", "libtheora", "-page_duration", "200000", str(path))
    data = path.read_bytes()
    pages = [i for i in range(len(data)) if data.startswith(b"OggS", i)]
    assert len(pages) > 8
    path.write_bytes(data[: pages[5]] + data[pages[6] :])
    assert probe(path).missing_reason == "the file is damaged: page 5 of a stream is missing"


def test_ogg_files_that_were_joined_and_junk_after_a_gif_are_no_damage(source: Path, tmp_path: Path) -> None:
    ogv, gif = tmp_path / "a.ogv", tmp_path / "a.gif"
    for path in (ogv, gif):
        media.run_ffmpeg("-i", str(source), "-an", "-fflags", "+bitexact", str(path))
    ogv.write_bytes(ogv.read_bytes() * 2)
    gif.write_bytes(gif.read_bytes() + bytes(4000))
    assert probe(ogv).missing == 0
    assert (probe(gif).frames, probe(gif).missing) == (FRAMES, 0)


def test_a_number_of_frames_that_was_never_written_is_no_length(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    with path.open("wb") as target:  # in a pipe, ffmpeg cannot go back to write the number of frames
        command = ["ffmpeg", "-v", "error", "-i", str(source), "-an", "-c:v", "mpeg4", "-f", "avi", "-"]
        subprocess.run(command, stdout=target, check=True, timeout=PATIENCE_S)
    assert (probe(path).frames, probe(path).missing) == (FRAMES, 0)


def test_a_recording_begins_at_an_intra_picture_whose_packet_is_no_keyframe(tmp_path: Path) -> None:
    path = tmp_path / "a.m2v"
    media.run_ffmpeg("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=1", "-c:v", "mpeg2video", "-bf", "1", "-g", "6", str(path))
    data = path.read_bytes()
    second = data.index(b"\0\0\1\0", data.index(b"\0\0\1\0") + 4)
    fake = b"\0\0\1\0" + data[second + 4 : second + 6]  # looks like the header of another picture of another type
    path.write_bytes(data[: second - 40] + fake + data[second - 40 + len(fake) :])
    assert probe(path).frames == 25
