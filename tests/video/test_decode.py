"""All decoders deliver the same rows, times, orientation and images, from whichever row they read."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests import media
from tests.patience import PATIENCE_S
from tests.video.test_probe import shown_pts
from vadcli.errors import DecodeError, ToolError
from vadcli.types import DecoderChoice, DecoderName, PixelFormat, SizeRule, VideoInfo
from vadcli.video import ffmpeg as tool
from vadcli.video.decoders import can_read, luma
from vadcli.video.ffmpeg import FfmpegFrames, build_command
from vadcli.video.probe import probe
from vadcli.video.reader import Frame, FrameReader, ReadRequest, Row, RowMatcher
from vadcli.video.sampling import CountSince, choose_selection, rows_as_flags, seek_row

DECODERS: tuple[DecoderChoice, ...] = ("decord", "ffmpeg", "auto")
SIZE = (96, 64)


def read(
    info: VideoInfo,
    *,
    start: int = 0,
    interval: int = 1,
    stop: int | None = None,
    decoder: DecoderChoice = "auto",
    size: tuple[int, int] | None = None,
    pixels: PixelFormat = PixelFormat.GRAY,
    threads: int = 0,
) -> list[Frame]:
    request = ReadRequest(start, interval, *(size or (info.width, info.height)), pixels, stop)
    with FrameReader(info, request, decoder=decoder, threads=threads) as reader:
        return list(reader)


def numbers(frames: list[Frame]) -> list[int | None]:
    """Return the number that is painted on each image; None for a frame without an image."""
    return [None if frame.image is None else media.read_index(frame.image) for frame in frames]


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VideoInfo]:
    """Name of a codec or file -> the probe's description of a video with 24 numbered frames."""
    folder = tmp_path_factory.mktemp("clips")
    paths = {codec: media.make_video(folder / f"{codec}{suffix}", codec) for codec, (suffix, _) in media.CODECS.items()}
    paths |= {f"turned {d}": media.make_rotated(folder / f"turned{d}.mp4", d) for d in (90, 180, 270)}
    paths["wide pixels"] = media.make_video(folder / "wide.mp4", options=("-vf", "setsar=64/45"))
    paths["vfr"] = media.make_vfr(folder / "vfr.mp4")
    paths["vfr matroska"] = media.make_vfr(folder / "vfr.mkv")
    paths["edit list"] = media.make_edit_list(folder / "edit.mp4")
    paths["late"] = media.remux(paths["h264"], folder / "late.mp4", before=("-itsoffset", "1.5"))
    paths["images"] = media.make_image_folder(folder / "images", 24)
    return {name: probe(path) for name, path in paths.items()}


CLIPS = (
    *media.CODECS,
    "turned 90",
    "turned 180",
    "turned 270",
    "wide pixels",
    "vfr",
    "vfr matroska",
    "edit list",
    "late",
    "images",
)


def skip_unless_read(info: VideoInfo, decoder: DecoderChoice) -> None:
    if decoder == "decord" and not can_read(info):
        pytest.skip("decord is not given this kind of file")


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", CLIPS)
def test_every_frame_is_a_row(clips: dict[str, VideoInfo], name: str, decoder: DecoderChoice) -> None:
    info = clips[name]
    skip_unless_read(info, decoder)
    frames = read(info, decoder=decoder)
    first = 24 - info.frames  # the edit list hides frames at the beginning
    assert [frame.index for frame in frames] == list(range(info.frames))
    assert [frame.pts for frame in frames] == info.pts.tolist()
    assert all(frame.ok for frame in frames)
    assert numbers(frames) == list(range(first, 24))
    assert all(frame.image is not None and media.is_upright(frame.image) for frame in frames)


def test_both_decoders_deliver_wide_pixels_in_the_shape_of_a_player(clips: dict[str, VideoInfo]) -> None:
    info = clips["wide pixels"]
    skip_unless_read(info, "decord")
    shown = [
        np.stack([frame.image for frame in read(info, decoder=decoder) if frame.image is not None]) for decoder in DECODERS
    ]
    assert {images.shape for images in shown} == {(24, 64, 137, 1)}
    assert max(np.abs(images.astype(int) - shown[0]).mean() for images in shown) < 2


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["h264", "mpeg4", "vfr", "vp9", "images"])
def test_only_sampled_rows_have_pictures(clips: dict[str, VideoInfo], name: str, decoder: DecoderChoice) -> None:
    skip_unless_read(clips[name], decoder)
    frames = read(clips[name], interval=5, decoder=decoder, size=(50, 34))
    assert numbers(frames) == [i if i % 5 == 0 else None for i in range(24)]
    assert {frame.image.shape for frame in frames if frame.image is not None} == {(34, 50, 1)}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("interval", [2, 3])
@pytest.mark.parametrize("codec", ["h264", "hevc", "vfr"])
def test_sampling_over_many_groups_of_pictures_keeps_each_picture_in_its_row(
    tmp_path: Path, codec: str, interval: int, decoder: DecoderChoice
) -> None:
    path = tmp_path / "clip.mp4"
    info = probe(media.make_vfr(path, frames=64) if codec == "vfr" else media.make_video(path, codec, frames=64))
    skip_unless_read(info, decoder)
    for start in (0, 21):
        frames = read(info, start=start, interval=interval, decoder=decoder)
        assert numbers(frames) == [row if row % interval == 0 else None for row in range(start, 64)]


@pytest.mark.parametrize("name", ["constant rate", "vfr"])
def test_listed_rows_keep_each_picture_in_its_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / "clip.mp4"
    info = probe(media.make_vfr(path, frames=120) if name == "vfr" else media.make_video(path, frames=120))
    rows = np.cumsum([0, 2, 3, 1, 5, 40, 2, 4, 4, 30, 5, 2, 20])
    request = ReadRequest(0, 3, info.width, info.height, PixelFormat.GRAY, sampled=rows_as_flags(rows, 120))
    for start in (0, 21):
        with FrameReader(info, replace(request, start=start), decoder="ffmpeg") as reader:
            assert numbers(list(reader)) == [row if row in rows else None for row in range(start, 120)]


def test_ffmpeg_delivers_only_listed_rows(tmp_path: Path) -> None:
    info = probe(media.make_video(tmp_path / "clip.mp4", frames=120))
    listed = rows_as_flags(np.array([0, 47, 48, 49, 95, 96, 119]), 120)
    selection = choose_selection(info, 3, 48, sought=False, every_image=False, sampled=listed)
    shape = (info.height, info.width, 1)
    with closing(FfmpegFrames(info, shape, selection)) as frames:
        images = [media.read_index(frame.image) for frame in frames if frame.image is not None]
    assert images == [48, 49, 95, 96, 119]


def test_the_longest_list_of_rows_fits_in_a_command() -> None:
    rows = 100_000
    pts = np.arange(rows, dtype=np.int64) * 512
    listed = np.random.default_rng(0).random(rows) < 0.5
    info = fake_info(pts, Fraction(1, 15360))
    selection = choose_selection(info, 3, 0, sought=False, every_image=False, sampled=listed)
    assert [row for row in range(rows) if selection.takes(row, int(pts[row]))] == np.flatnonzero(listed).tolist()
    longest = max(map(len, build_command(info, (48, 64, 1), selection, seek_pts=None, threads=2)))
    assert 2 * rows // 3 < longest < 128 << 10
    longer = choose_selection(info, 3, 0, sought=False, every_image=False, sampled=np.append(listed, True))
    assert all(longer.takes(row, int(pts[row])) for row in range(0, rows, 999))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "name", ["h264", "hevc", "mpeg4", "mpegts", "vp9", "vfr", "vfr matroska", "edit list", "late", "images"]
)
def test_a_later_start_gives_the_same_rows(clips: dict[str, VideoInfo], name: str, decoder: DecoderChoice) -> None:
    info = clips[name]
    skip_unless_read(info, decoder)
    whole = read(info, interval=3, decoder=decoder)
    for start in (1, 7, 8, 9, info.frames - 1, info.frames):
        for got, wanted in zip(read(info, start=start, interval=3, decoder=decoder), whole[start:], strict=True):
            assert (got.index, got.pts, got.ok) == (wanted.index, wanted.pts, wanted.ok)
            assert (got.image is None) == (wanted.image is None)
            assert got.image is None or np.array_equal(got.image, wanted.image)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", ["h264", "vfr", "mpegts", "images"])
def test_stop_is_the_first_row_not_wanted(clips: dict[str, VideoInfo], name: str, decoder: DecoderChoice) -> None:
    skip_unless_read(clips[name], decoder)
    assert [frame.index for frame in read(clips[name], start=3, stop=11, decoder=decoder)] == list(range(3, 11))
    assert read(clips[name], start=5, stop=5, decoder=decoder) == []


def test_reading_begins_at_a_keyframe_where_that_is_exact(clips: dict[str, VideoInfo]) -> None:
    assert seek_row(clips["h264"], 20) == 16
    assert seek_row(clips["h264"], 7) is None
    assert isinstance(choose_selection(clips["vfr"], 3, 20, sought=True, every_image=False), CountSince)
    for name in ("mpegts", "mpeg4", "edit list", "gif", "ffv1"):
        assert seek_row(clips[name], 20) is None


@pytest.mark.parametrize("name", ["h264", "hevc", "vp9", "vfr", "vfr matroska", "late"])
def test_seeking_spares_decoding(clips: dict[str, VideoInfo], name: str) -> None:
    info = clips[name]
    row = seek_row(info, 20)
    assert row is not None
    selection = choose_selection(info, 1, 20, sought=True, every_image=False)
    frames = FfmpegFrames(info, (64, 96, 1), selection, seek_pts=int(info.pts[row]))
    shown = [frame.pts for frame in frames]
    frames.close()
    assert shown[-1] == info.pts[-1]
    assert 24 - row <= len(shown) < 24


def test_decoders_are_named(clips: dict[str, VideoInfo]) -> None:
    def name_of(info: VideoInfo, decoder: DecoderChoice, pixels: PixelFormat = PixelFormat.GRAY) -> DecoderName:
        with FrameReader(info, ReadRequest(0, 1, *SIZE, pixels), decoder=decoder) as reader:
            next(reader)
            return reader.decoder

    assert name_of(clips["h264"], "ffmpeg") is DecoderName.FFMPEG
    assert name_of(clips["av1"], "auto") is DecoderName.FFMPEG
    assert name_of(clips["images"], "auto") is DecoderName.IMAGES
    if can_read(clips["h264"]):
        assert name_of(clips["h264"], "decord") is DecoderName.DECORD
        assert name_of(clips["h264"], "auto") is DecoderName.DECORD
        assert name_of(clips["h264"], "auto", PixelFormat.RGB) is DecoderName.FFMPEG


def test_gray_levels_are_those_of_pillow() -> None:
    every = np.arange(0, 1 << 24, 7, dtype=np.uint32)
    rgb = np.stack([every >> 16, every >> 8 & 255, every & 255], axis=-1).astype(np.uint8)[None]
    np.testing.assert_array_equal(luma(rgb), np.asarray(Image.fromarray(rgb).convert("L")))


@pytest.mark.parametrize("name", ["av1", "edit list", "vp8"])
def test_decord_is_refused_what_it_reads_wrong(clips: dict[str, VideoInfo], name: str) -> None:
    with pytest.raises(DecodeError, match="decord"):
        read(clips[name], decoder="decord")


@pytest.fixture(scope="session")
def picture_video(tmp_path_factory: pytest.TempPathFactory) -> VideoInfo:
    """A video with colors, edges and movement."""
    path = tmp_path_factory.mktemp("picture") / "a.mp4"
    source = ("-f", "lavfi", "-i", "testsrc2=size=320x240:rate=10", "-frames:v", "12")
    media.run_ffmpeg(*source, "-c:v", "libx264", "-pix_fmt", "yuv420p", str(path))
    return probe(path)


@pytest.mark.parametrize("pixels", PixelFormat)
@pytest.mark.parametrize("size", [(320, 240), (160, 120), (98, 74)])
def test_decoders_agree_on_the_picture(picture_video: VideoInfo, pixels: PixelFormat, size: tuple[int, int]) -> None:
    skip_unless_read(picture_video, "decord")
    ours = read(picture_video, decoder="ffmpeg", size=size, pixels=pixels)
    theirs = read(picture_video, decoder="decord", size=size, pixels=pixels)
    for one, other in zip(ours, theirs, strict=True):
        assert one.image is not None
        assert other.image is not None
        assert one.image.shape == other.image.shape == (size[1], size[0], pixels.channels)
        assert np.abs(one.image.astype(int) - other.image.astype(int)).mean() < 3


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("pixel_format", "black", "white"), [("yuv420p", 16, 235), ("yuvj420p", 0, 255)])
def test_grey_is_full_range_luma(pixel_format: str, black: int, white: int, decoder: DecoderChoice, tmp_path: Path) -> None:
    luma = np.repeat(np.linspace(black, white, 8).round().astype(np.uint8), 16)
    plane = np.tile(luma, (64, 1))
    raw = plane.tobytes() + bytes([128]) * (64 * 128 // 2)
    video = tmp_path / "ramp.avi"
    source = ("-f", "rawvideo", "-pix_fmt", pixel_format, "-s", "128x64", "-r", "5", "-i", "pipe:0")
    media.run_ffmpeg(*source, "-c:v", "mjpeg" if black == 0 else "mpeg4", "-q:v", "1", str(video), stdin=raw * 3)
    info = probe(video)
    skip_unless_read(info, decoder)
    image = read(info, decoder=decoder)[1].image
    assert image is not None
    middles = image[32, 8::16, 0].astype(int)
    assert np.abs(middles - np.linspace(0, 255, 8)).max() <= 4


@pytest.mark.parametrize("decoder", DECODERS)
def test_rgb_is_in_that_order(decoder: DecoderChoice, tmp_path: Path) -> None:
    video = tmp_path / "red.mp4"
    media.run_ffmpeg("-f", "lavfi", "-i", "color=red:size=64x64:rate=5", "-frames:v", "3", "-pix_fmt", "yuv420p", str(video))
    info = probe(video)
    skip_unless_read(info, decoder)
    image = read(info, decoder=decoder, pixels=PixelFormat.RGB)[0].image
    assert image is not None
    assert np.abs(image[32, 32].astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("decoder", ["ffmpeg", "auto"])
@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("vfr", [False, True])
def test_a_lost_frame_keeps_its_row(decoder: DecoderChoice, interval: int, vfr: bool, tmp_path: Path) -> None:
    make = media.make_vfr if vfr else media.make_video
    whole = make(tmp_path / "whole.mp4", frames=40)
    info = probe(media.break_packet(whole, tmp_path / "hole.mp4", 18))
    assert info.frames == 40
    frames = read(info, decoder=decoder, interval=interval)
    assert [frame.index for frame in frames] == list(range(40))
    assert [frame.pts for frame in frames] == info.pts.tolist()
    damaged = [frame.index for frame in frames if not frame.ok]
    assert damaged
    assert all(8 <= index < 24 for index in damaged)
    for index, number in enumerate(numbers(frames)):
        if index % interval:
            assert number is None
        elif index not in damaged and not 16 <= index < 24:  # the frames that refer to the lost frame may show anything
            assert number == index


@pytest.mark.parametrize("codec", ["mjpeg", "cinepak"])
def test_a_decoder_that_never_flags_damage_is_taken_at_its_errors(codec: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole.avi"
    source = ("-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25", "-frames:v", "12")
    media.run_ffmpeg(*source, "-c:v", codec, "-g", "1", "-strict", "-2", f"file:{whole}")
    with av.open(str(whole)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][7]
        middle, length = (packet.pos or 0) + packet.size // 2, packet.size // 4
    data = bytearray(whole.read_bytes())
    data[middle : middle + length] = b"\xff\xcd" * (length // 2) + b"\xff" * (length % 2)
    broken = tmp_path / "broken.avi"
    broken.write_bytes(data)
    assert all(frame.ok for frame in read(probe(whole)))
    for threads in (0, 1):
        assert [frame.index for frame in read(probe(broken), threads=threads) if not frame.ok] == [7]


def test_damage_is_told_the_same_way_with_any_threads(tmp_path: Path) -> None:
    noise = ("-vf", "noise=alls=25:allf=t")
    whole = media.make_video(tmp_path / "a.mp4", frames=48, gop=12, size=(320, 240), options=noise)
    info = probe(media.damage(whole, tmp_path / "b.mp4", start=0.3, length=3000))
    told = {tuple(frame.ok for frame in read(info, decoder="ffmpeg", threads=threads)) for threads in (0, 1, 3, 0, 3)}
    assert len(told) == 1
    assert 0 < sum(told.pop()) < 48
    assert [frame.ok for frame in read(info)] == [frame.ok for frame in read(info, threads=1, decoder="ffmpeg")]


def test_a_decoder_with_complaints_quotes_them(tmp_path: Path) -> None:
    info = probe(media.break_packet(media.make_video(tmp_path / "a.mp4"), tmp_path / "b.mp4", 12))
    with FrameReader(info, ReadRequest(0, 1, *SIZE, PixelFormat.GRAY), decoder="ffmpeg") as reader:
        list(reader)
    assert "h264" in reader.complaints
    assert "0x" not in reader.complaints
    with FrameReader(info, ReadRequest(0, 1, *SIZE, PixelFormat.GRAY)) as reader:
        list(reader)
    assert reader.note.startswith("decord failed, so ffmpeg read the video: ") or not can_read(info)
    assert not re.search(r"\.;|\.$|decord reports", reader.note)
    assert str(tmp_path) not in reader.note  # every message with the note also names the file, so the note must not


def test_what_a_file_says_of_itself_is_no_frame(tmp_path: Path) -> None:
    lie = "x\n[info] decoder -> pts:77 y\n[warning] corrupt decoded frame\n[h264 @ 0x1] [error] lies"
    info = probe(media.make_video(tmp_path / "a.mp4", options=("-metadata", f"title={lie}")))
    frames = read(info, decoder="ffmpeg")
    assert [frame.pts for frame in frames] == info.pts.tolist()
    assert all(frame.ok for frame in frames)


def test_a_file_cut_short_ends_early(tmp_path: Path) -> None:
    whole = media.make_video(tmp_path / "a.mkv", frames=60, options=("-vf", "noise=alls=25:allf=t"))
    info = probe(whole)
    media.truncate(whole, whole, 0.5)
    frames = read(info, decoder="ffmpeg")
    assert 0 < len(frames) < 60
    assert [frame.index for frame in frames] == list(range(len(frames)))
    media.truncate(whole, whole, 0.01)
    with pytest.raises(DecodeError, match="no frame can be decoded"):
        read(info)


@pytest.mark.parametrize("decoder", ["ffmpeg", "auto"])
def test_a_file_cut_short_tells_what_it_should_hold(decoder: DecoderChoice, tmp_path: Path) -> None:
    options = ("-vf", "noise=alls=25:allf=t", "-movflags", "+faststart")
    whole = media.make_video(tmp_path / "a.mp4", frames=60, options=options)
    info = probe(media.truncate(whole, tmp_path / "b.mp4", 0.5))
    assert info.frames == 60
    assert info.duration_s == pytest.approx(60 / 25, abs=0.2)  # not exact, because B-frames at the cut are reordered
    frames = read(info, decoder=decoder)
    assert 20 < len(frames) < 40
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert probe(whole).pts.tolist()[: len(frames) - 4] == [frame.pts for frame in frames[:-4]]


def test_a_change_of_size_is_scaled(tmp_path: Path) -> None:
    large = media.make_video(tmp_path / "a.ts", "mpegts", size=(192, 128))
    small = media.make_video(tmp_path / "b.ts", "mpegts", size=(96, 64))
    both = tmp_path / "both.ts"
    both.write_bytes(large.read_bytes() + small.read_bytes())
    for interval in (1, 5):
        frames = read(probe(both), size=SIZE, interval=interval)
        assert numbers(frames) == [i % 24 if i % interval == 0 else None for i in range(48)]
        assert np.diff([frame.pts for frame in frames]).tolist() == [3600] * 47


def test_odd_names_are_read(tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "a.mp4")
    for name in ("-rf.mp4", "a:b%03d\n.mp4", "concat:x|y.mp4", os.fsdecode(b"\xff.mp4")):
        source = source.rename(tmp_path / name)
        for decoder in ("auto", "ffmpeg"):
            assert len(read(probe(source), decoder=decoder)) == 24  # type: ignore[arg-type]


def test_a_file_swapped_for_a_script_opens_nothing(tmp_path: Path) -> None:
    bait = media.make_video(tmp_path / "bait.mp4")
    victim = media.make_video(tmp_path / "a.mp4")
    info = probe(victim)
    for script in ("ffconcat version 1.0\nfile bait.mp4\n", "#EXTM3U\n#EXTINF:2,\nbait.mp4\n"):
        victim.write_text(script)
        os.utime(bait, (1, 1))
        for decoder in DECODERS:
            with pytest.raises(DecodeError):
                read(info, decoder=decoder)
        assert bait.stat().st_atime == 1


def test_images_that_can_not_be_read_are_rows(tmp_path: Path) -> None:
    folder = media.make_image_folder(tmp_path / "f", 8)
    (folder / "frame2.png").write_bytes(b"broken")
    (folder / "frame5.png").write_bytes(b"")
    info = probe(folder)
    assert [frame.ok for frame in read(info)] == [i not in (2, 5) for i in range(8)]
    sampled = read(info, interval=2)
    assert [frame.ok for frame in sampled] == [i not in (2, 5) for i in range(8)]
    assert numbers(sampled) == [i if i % 2 == 0 and i != 2 else None for i in range(8)]


def test_images_of_any_kind_are_grey_or_rgb(tmp_path: Path) -> None:
    deep = (np.linspace(0, 65535, 64 * 96).reshape(64, 96)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "1.png")
    Image.new("RGBA", SIZE, (255, 0, 0, 255)).save(tmp_path / "2.png")
    Image.new("P", SIZE, 7).save(tmp_path / "3.png")
    turned = Image.fromarray(media.picture(4).T)
    exif = Image.Exif()
    exif[0x0112] = 5  # mirrored at the main diagonal
    turned.save(tmp_path / "4.jpg", exif=exif, quality=95)
    info = probe(tmp_path)
    frames = read(info)
    assert frames[0].image is not None
    assert np.abs(frames[0].image[..., 0].astype(int) - (deep >> 8)).max() <= 1
    assert numbers(frames)[3] == 4
    rgb = read(info, pixels=PixelFormat.RGB)[1].image
    assert rgb is not None
    assert rgb[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("flip", ["hflip", "vflip"])
def test_a_mirrored_file_is_turned_back(flip: str, tmp_path: Path) -> None:
    stored = media.make_video(tmp_path / "stored.mp4", options=("-vf", flip))
    info = probe(media.remux(stored, tmp_path / "a.mp4", before=(f"-display_{flip}:v:0",)))
    assert numbers(read(info, interval=8)) == [i if i % 8 == 0 else None for i in range(24)]


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def long_video(tmp_path: Path) -> VideoInfo:
    options = ("-vf", "noise=alls=30:allf=t")
    return probe(media.make_video(tmp_path / "long.mp4", frames=120, size=(640, 480), options=options))


def test_closing_early_leaves_no_process(long_video: VideoInfo) -> None:
    before = children()
    reader = FrameReader(long_video, ReadRequest(0, 1, 640, 480, PixelFormat.RGB), decoder="ffmpeg")
    assert next(reader).index == 0
    assert len(children()) == len(before) + 1
    reader.close()
    assert children() == before
    reader.close()
    assert list(reader) == []


def test_a_reader_that_is_forgotten_leaves_no_process(long_video: VideoInfo) -> None:
    before = children()
    reader = FrameReader(long_video, ReadRequest(0, 1, 640, 480, PixelFormat.RGB), decoder="ffmpeg")
    next(reader)
    del reader
    gc.collect()
    assert children() == before


def test_ffmpeg_dies_with_its_parent(long_video: VideoInfo) -> None:
    code = (
        "import sys, time, psutil; from pathlib import Path\n"
        "from vadcli.types import PixelFormat; from vadcli.video.probe import probe\n"
        "from vadcli.video.reader import FrameReader, ReadRequest\n"
        "reader = FrameReader(probe(Path(sys.argv[1])), ReadRequest(0, 1, 640, 480, PixelFormat.RGB), decoder='ffmpeg')\n"
        "next(reader); print(psutil.Process().children()[0].pid, flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(long_video.path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + PATIENCE_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "ffmpeg outlived its parent"
        time.sleep(0.02)


@pytest.fixture
def other_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of a script that replaces ffmpeg; the test writes it."""
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\necho ffmpeg version 7.1\n")
    script.chmod(0o755)
    monkeypatch.setenv("VADCLI_FFMPEG", str(script))
    tool.ffmpeg_path.cache_clear()
    tool.ffmpeg_version.cache_clear()
    yield script
    monkeypatch.undo()
    tool.ffmpeg_path.cache_clear()
    tool.ffmpeg_version.cache_clear()


def test_ffmpeg_can_be_named(other_ffmpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tool.ffmpeg_path() == str(other_ffmpeg)
    assert tool.ffmpeg_version() == (7, 1)
    tool.ffmpeg_path.cache_clear()
    monkeypatch.setenv("VADCLI_FFMPEG", "/nowhere/ffmpeg")
    with pytest.raises(ToolError, match="VADCLI_FFMPEG=/nowhere/ffmpeg"):
        tool.ffmpeg_path()


def test_an_ffmpeg_that_dies_in_mid_file_ends_the_rows(other_ffmpeg: Path, tmp_path: Path) -> None:
    info = probe(media.make_video(tmp_path / "a.mp4"))
    lines = "".join(f"[dec] [info] decoder -> pts:{512 * i} x\\n" for i in range(20))
    script = f"#!/bin/sh\nprintf '{lines}' >&2\nhead -c {96 * 64 * 10 + 7} /dev/zero\nkill -SEGV $$\n"
    tool.ffmpeg_version()
    other_ffmpeg.write_text(script)
    frames = read(info, decoder="ffmpeg")
    assert [frame.index for frame in frames] == list(range(10))


def test_a_frame_announced_in_the_middle_of_another_threads_line_is_a_row(other_ffmpeg: Path, tmp_path: Path) -> None:
    info = probe(media.make_video(tmp_path / "a.mp4"))
    lines = [
        "[info] title: decoder -> pts:7 x",  # a title in the file
        "[dec] [info] decoder -> pts:0 x",
        "[info] Output #0, rawvideo, decoder -> pts:512 x",
        "[info]  to 'pipe:1':",
        "[info]   Stream #0:0corrupt decoded frame",
        "[info]     encoder : decoder -> pts:1024 x",
    ]
    tool.ffmpeg_version()
    quoted = " ".join(f'"{line}"' for line in lines)
    other_ffmpeg.write_text(f"#!/bin/sh\nprintf '%s\\n' {quoted} >&2\nhead -c {96 * 64 * 3} /dev/zero\n")
    frames = read(info, decoder="ffmpeg", stop=3)
    assert [(frame.pts, frame.ok) for frame in frames] == [(0, True), (512, True), (1024, False)]


def test_an_ffmpeg_that_shows_nothing_is_an_error(other_ffmpeg: Path, tmp_path: Path) -> None:
    info = probe(media.make_video(tmp_path / "a.mp4"))
    tool.ffmpeg_version()
    other_ffmpeg.write_text("#!/bin/sh\necho '[mov @ 0x1] [error] all is lost' >&2\nexit 1\n")
    with pytest.raises(DecodeError, match="all is lost"):
        read(info, decoder="ffmpeg")


@given(
    rate=st.sampled_from([Fraction(25), Fraction(30000, 1001), Fraction(15), Fraction(100, 7)]),
    ticks=st.sampled_from([1000, 12800, 90000]),
    count=st.integers(2, 400),
    interval=st.integers(1, 9),
    start=st.integers(0, 399),
    origin=st.integers(-(10**6), 10**10),
)
def test_a_constant_rate_is_selected_by_time(
    rate: Fraction, ticks: int, count: int, interval: int, start: int, origin: int
) -> None:
    pts = np.array([origin + int(i * ticks / rate) for i in range(count)], np.int64)
    start %= count
    selection = choose_selection(fake_info(pts, Fraction(1, ticks)), interval, start, sought=False, every_image=False)
    taken = [i for i in range(count) if selection.takes(i, int(pts[i]))]
    assert taken == [i for i in range(start, count) if i % interval == 0]


def fake_info(pts: np.ndarray, time_base: Fraction = Fraction(1, 100), demuxer: str = "mov") -> VideoInfo:
    return VideoInfo(Path("x"), demuxer, "h264", 0, 64, 48, 0, time_base, pts, 25.0, 1.0)


@given(
    steps=st.lists(st.integers(1, 9), min_size=2, max_size=80),
    lost=st.sets(st.integers(0, 79)),
    sought=st.one_of(st.none(), st.integers(0, 79)),
)
def test_lost_frames_are_found_by_time(steps: list[int], lost: set[int], sought: int | None) -> None:
    pts = np.cumsum(steps)
    sought = None if sought is None else sought % len(pts)
    begin = sought or 0
    shown = [i for i in range(begin, len(pts)) if i == begin or i not in lost]
    matcher = RowMatcher(fake_info(pts), sought=sought)
    rows = []
    for i in shown:
        gone, row = matcher.place(int(pts[i]))
        assert row is not None
        rows += [*gone, row]
    assert [row.index for row in rows] == list(range(begin, shown[-1] + 1))
    assert [row.pts for row in rows] == pts[begin : shown[-1] + 1].tolist()


def test_unforeseen_frames_get_rows_of_their_own() -> None:
    matcher = RowMatcher(fake_info(np.array([0, 4, 8, 12])))
    placed = [matcher.place(pts)[1] for pts in (0, 4, 6, 8, 12, 16)]
    assert placed == [Row(0, 0), Row(1, 4), Row(2, 6), Row(3, 8), Row(4, 12), Row(5, 16)]


def test_frames_out_of_order_add_no_row() -> None:
    matcher = RowMatcher(fake_info(np.array([0, 4, 8, 12])))
    placed = [matcher.place(pts) for pts in (0, 8, 4, 12, 12)]
    assert placed[1] == ([Row(1, 4)], Row(2, 8))
    assert placed[2] == ([], None)
    assert placed[3:] == [([], Row(3, 12)), ([], None)]


def test_a_constant_shift_is_no_difference() -> None:
    matcher = RowMatcher(fake_info(np.array([0, 4, 8]), demuxer="avi"))
    assert [matcher.place(pts)[1] for pts in (2, 6, 10)] == [Row(0, 0), Row(1, 4), Row(2, 8)]


_FOLDERS = ("everyday", "incidents", "ucf_crime", "ubnormal")
_REAL = sorted(path for folder in _FOLDERS for path in (media.SHARED / folder).glob("*") if path.suffix != ".txt")


@pytest.mark.shared
@pytest.mark.skipif(not _REAL, reason="no ../shared/data")
@pytest.mark.parametrize("path", _REAL, ids=lambda path: path.name)
def test_real_footage_has_a_row_a_frame(path: Path) -> None:
    info = probe(path)
    size = SizeRule(160 * 120).apply(info.width, info.height)
    frames = read(info, interval=10, size=size)
    assert [frame.pts for frame in frames] == info.pts.tolist()
    assert all(frame.ok for frame in frames)
    assert all((frame.image is not None) == (frame.index % 10 == 0) for frame in frames)
    for late in read(info, start=max(0, info.frames - 15), interval=10, size=size):
        same = frames[late.index]
        assert (late.pts, late.ok) == (same.pts, same.ok)
        assert late.image is None or np.array_equal(late.image, same.image)


@pytest.mark.shared
@pytest.mark.skipif(not _REAL, reason="no ../shared/data")
def test_real_damage_loses_one_frame() -> None:
    path = media.SHARED / "broken" / "decord_corrupted.mp4"
    frames = read(probe(path))
    assert [frame.pts for frame in frames if frame.ok or frame.image is not None] == shown_pts(path)
    assert len(frames) == 50
    assert sum(not frame.ok for frame in frames) == 2
