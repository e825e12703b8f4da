"""If only references or keyframes are decoded, all rows and the images of samples are the same as if all are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests import media
from tests.video.loading import REAL, Seen, gather
from vadcli.types import ClipNeeds, Decoding, PixelFormat, SizeRule
from vadcli.video.loader import ClipLoader, ClipRequest, LoaderOptions
from vadcli.video.probe import probe
from vadcli.video.sampling import SamplingPlan

NEEDS = ClipNeeds(4, 1, 10.0, SizeRule(96 * 64), PixelFormat.GRAY)  # of the 30 rows per second, every 3rd row is sampled
FFMPEG = replace(REAL, decoder="ffmpeg", workers=1)
FRAMES = 90
X265 = "log-level=none:keyint=30:bframes=4:b-adapt=0"

STREAMS: dict[str, tuple[str, str, tuple[str, ...], bool]] = {
    "h264 without B-frames": ("h264", ".mp4", ("-bf", "0"), False),
    "h264 with B-frames": ("h264", ".mp4", ("-bf", "3", "-b_strategy", "0", "-x264-params", "b-pyramid=none"), True),
    "h264 with a pyramid": ("h264", ".mkv", ("-bf", "3", "-b_strategy", "0", "-x264-params", "b-pyramid=normal"), True),
    "h264 with few B-frames": ("h264", ".mp4", ("-bf", "1", "-b_strategy", "0", "-x264-params", "open-gop=1"), True),
    "h264 in ts": ("mpegts", ".ts", ("-bf", "3", "-b_strategy", "0"), True),
    "h264 in avi, which states no times": ("h264", ".avi", ("-bf", "3", "-b_strategy", "0"), False),
    "h264 in fields": (
        "h264",
        ".mp4",
        ("-bf", "3", "-b_strategy", "0", "-flags", "+ilme+ildct", "-x264-params", "tff=1"),
        True,
    ),
    "h264, references too far apart": (
        "h264",
        ".mp4",
        ("-bf", "8", "-b_strategy", "0", "-x264-params", "b-pyramid=none"),
        False,
    ),
    "hevc": ("hevc", ".mp4", ("-x265-params", f"{X265}:open-gop=0"), True),
    "hevc with an open group": ("hevc", ".mkv", ("-x265-params", f"{X265}:open-gop=1"), True),
    "hevc with temporal layers": ("hevc", ".ts", ("-x265-params", f"{X265}:temporal-layers=1"), True),
    "mpeg2": ("mpeg2", ".ts", ("-bf", "2"), True),
    "mpeg4 asp": ("mpeg4", ".mp4", ("-bf", "2"), True),
    "vp9 with hidden frames": ("vp9", ".webm", ("-deadline", "good", "-auto-alt-ref", "1", "-lag-in-frames", "12"), False),
    "av1": ("av1", ".mkv", (), False),
}
"""Name -> (codec, suffix, encoder options, True if frames are left out)."""


def make(folder: Path, name: str) -> Path:
    codec, suffix, options, _ = STREAMS[name]
    coder = "mpeg4" if codec == "mpeg2" else codec
    more = ("-c:v", "mpeg2video") if codec == "mpeg2" else ()
    return media.make_video(folder / f"a{suffix}", coder, frames=FRAMES, fps=30, gop=30, options=(*more, *options))


@cache
def loader(needs: ClipNeeds, options: LoaderOptions) -> ClipLoader:
    """Return a loader; all tests of this file share the loaders."""
    return LOADERS.enter_context(ClipLoader(needs, options))


LOADERS = ExitStack()


@pytest.fixture(scope="module", autouse=True)
def closed_loaders() -> Iterator[None]:
    yield
    LOADERS.close()
    loader.cache_clear()


def read(path: Path, decode: Decoding, options: LoaderOptions = FFMPEG, **request: object) -> Seen:
    asked = ClipRequest("a", path, **request)  # type: ignore[arg-type]
    return gather(loader(replace(NEEDS, decode=decode), options).run([asked]))["a"]


def whole(path: Path) -> tuple[dict[int, np.ndarray], Seen]:
    """Decode all frames; return the image of every row, and all items."""
    seen = gather(loader(replace(NEEDS, interval=1, overlap=0), FFMPEG).run([ClipRequest("a", path)]))["a"]
    return images(seen), seen


def images(seen: Seen) -> dict[int, np.ndarray]:
    return {
        int(row): frame
        for clip in seen.clips
        for row, frame, valid in zip(clip.frame_index, clip.frames, clip.valid, strict=True)
        if valid
    }


def rows(seen: Seen) -> list[object]:
    return [
        np.concatenate([part.pts for part in seen.rows]).tolist(),
        np.concatenate([r.decode_ok for r in seen.rows]).tolist(),
    ]


def same_images(some: dict[int, np.ndarray], every: dict[int, np.ndarray]) -> bool:
    return all(np.array_equal(frame, every[row]) for row, frame in some.items())


@pytest.mark.parametrize("name", STREAMS)
def test_rows_and_images_are_those_of_decoding_everything(tmp_path, name):
    path, less = make(tmp_path, name), STREAMS[name][3]
    every, seen = whole(path)
    found = read(path, "reference")
    sampled = images(found)
    assert rows(found) == rows(seen)
    assert same_images(sampled, every)
    assert (SamplingPlan.of(replace(NEEDS, decode="reference"), probe(path)).rows is not None) == less
    assert less or sorted(sampled) == list(range(0, FRAMES, 3))
    assert np.diff([0, *sorted(sampled), FRAMES - 1]).max() <= 9
    if less:
        info = probe(path)
        assert info.reference[sorted(sampled)].all()
        assert not info.reference.all()
    keys = images(read(path, "key"))
    assert list(keys) == probe(path).keyframes.tolist()
    assert same_images(keys, every)


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    options = ("-bf", "3", "-b_strategy", "0", "-x264-params", "b-pyramid=normal")
    path = tmp_path_factory.mktemp("long") / "a.mp4"
    return media.make_video(path, frames=240, fps=30, gop=30, size=(320, 240), options=options)


def test_clips_are_the_same_for_every_decoder_resume_and_number_of_threads(long):
    found = read(long, "reference")
    for threads in (1, 4):
        assert read(long, "reference", replace(FFMPEG, threads=threads)).values() == found.values()
    by_decord = read(long, "reference", replace(FFMPEG, decoder="decord"))
    assert rows(by_decord) == rows(found)
    assert images(by_decord).keys() == images(found).keys()
    for start_clip in (1, 10, 20):
        resumed = read(long, "reference", start_clip=start_clip).values()
        assert resumed[:2] == [part[start_clip:] for part in found.values()[:2]]


def test_bursts_and_spans_are_parts_of_the_same_samples(long):
    every, sampled = images(read(long, "all")), images(read(long, "reference"))
    order = sorted(sampled)
    first, last = order[20], order[27]
    spans = read(long, "reference", spans=((first, last + 1),))
    assert sorted(images(spans)) == order[20:28]
    assert same_images(images(spans), sampled)
    bursts = read(long, "reference", bursts=(0.3, 0.99), exact=True)
    assert bursts.clips[1].frame_index.tolist() == order[-4:]
    assert bursts.clips[0].frame_index.tolist() == order[(start := int(0.3 * len(order))) : start + 4]
    assert same_images(images(bursts), sampled)
    assert every.keys() != sampled.keys()


@pytest.mark.parametrize(("interval", "decoded"), [(30, 3), (15, 27), (7, 85)])
def test_of_a_span_only_the_frames_that_its_samples_need_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: int, decoded: int
) -> None:
    """Depending on the interval, these are the keyframes, the references or all frames. The images are always the same."""
    made = media.make_video(tmp_path / "a.mp4", frames=120, fps=30, gop=30, options=("-bf", "4", "-b_strategy", "0"))
    counted = replace(FFMPEG, reader="benchmarks.verify:CountingReader")
    monkeypatch.setenv("VADCLI_DECODED", str(tmp_path / "log"))
    span = (30 - 30 % interval, 30 - 30 % interval + (60 // interval) * interval + 1)
    with ClipLoader(replace(NEEDS, frames=1, overlap=0, interval=interval), counted) as loader:
        found = images(gather(loader.run([ClipRequest("a", made, spans=(span,))]))["a"])
    assert sorted(found) == list(range(*span, interval))
    assert same_images(found, whole(made)[0])
    assert int((tmp_path / "log").read_text()) == decoded


def test_after_the_first_damage_everything_is_decoded(long, tmp_path):
    damaged = media.damage(long, tmp_path / "damaged.mp4", start=0.5, length=600)
    every, seen = whole(damaged)
    ok = np.array(rows(seen)[1])
    assert 0 < int((~ok).sum()) < 60
    found = read(damaged, "reference", replace(FFMPEG, threads=1))
    assert rows(found) == rows(seen)
    assert same_images(images(found), every)
    assert read(damaged, "reference", replace(FFMPEG, threads=4)).values() == found.values()
