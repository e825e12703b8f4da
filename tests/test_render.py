"""`render_video` renders real files; PyAV reads the MP4 files that it writes."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests import media
from tests.patience import PATIENCE_S
from vadcli.draw.overlay import Geometry
from vadcli.errors import DecodeError, DocumentError, OutputError, VideoError
from vadcli.rendering import RenderResult, RenderSettings, clip_needs, render_video, shown_seconds
from vadcli.store import OutputLayout, event_clip
from vadcli.store.atomic import Scratch
from vadcli.store.events import EventsDocument, describe_video, read_events, write_events
from vadcli.store.masks import MaskRleWriter, MaskVideoWriter
from vadcli.store.scores import ScoresMetadata, write_scores
from vadcli.types import Event, ScoreTable, SizeRule, Thresholds, VideoInfo
from vadcli.video.loader import LoaderOptions
from vadcli.video.probe import probe

VIDEO = "cam/clip.mp4"
SETTINGS = RenderSettings(decode=LoaderOptions(workers=1, timeout_s=PATIENCE_S, threads=1), preset="ultrafast")


def pretend_scan(
    source: Path, out: Path, *, events: list[tuple[int, int]] | None = None, every: int = 1, fps: float | None = None
) -> tuple[OutputLayout, VideoInfo, ScoreTable]:
    """Write the files that a scan of this video would store, with scores and with events in the given rows."""
    layout, info = OutputLayout(out), probe(source, fps=fps)
    rows = np.arange(info.frames)
    score = np.full(len(rows), 0.1, np.float32)
    for start, end in events or []:
        score[start:end] = 0.9
    table = ScoreTable(
        video=VIDEO,
        frame_index=rows,
        pts=info.pts,
        timestamp=info.timestamps(info.pts),
        score=score,
        logit=np.log(score / (1 - score)),
        sampled=rows % every == 0,
        decode_ok=np.ones(len(rows), bool),
    )
    metadata = ScoresMetadata("0", "f", {}, info.to_json(), (), str(info.time_base), "motion", "cam")
    edges = [*table.timestamp.tolist(), info.duration_s]
    found = tuple(
        Event(number, start, end, edges[start], edges[end], start, edges[start], 0.9, 0.9, category="a fight")
        for number, (start, end) in enumerate(events or [], 1)
    )
    document = EventsDocument(describe_video(VIDEO, "cam", info), "motion", (), Thresholds(), found)
    for path in (layout.scores(VIDEO), layout.events(VIDEO)):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_scores(layout.scores(VIDEO), table, metadata)
    write_events(layout.events(VIDEO), document)
    return layout, info, table


def render(source: Path, layout: OutputLayout, settings: RenderSettings = SETTINGS, **options: object) -> RenderResult:
    with Scratch(layout.scratch) as scratch:
        return render_video(source, video=VIDEO, layout=layout, settings=settings, scratch=scratch, **options)  # type: ignore[arg-type]


def watch(path: Path) -> SimpleNamespace:
    """Return everything in a rendered file: images (N, H, W, 3), their times from 0, and the sound."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = [(float(frame.pts * video.time_base), frame.to_ndarray(format="rgb24")) for frame in container.decode(video)]
        codec, pixels = video.codec_context.name, video.codec_context.pix_fmt
        audio = container.streams.audio[0].codec_context.name if container.streams.audio else None
    return SimpleNamespace(
        time=np.array([time for time, _ in frames]),
        pictures=np.stack([picture for _, picture in frames]),
        codec=codec,
        pixels=pixels,
        audio=audio,
    )


def numbers(pictures: NDArray[np.uint8], height: int) -> list[int]:
    """Return the numbers that are visible in the pictures of rendered frames. The pictures may be enlarged."""
    return [media.read_index(picture[:height]) for picture in pictures]


def leftovers(layout: OutputLayout) -> list[str]:
    return [path.name for path in layout.scratch.rglob("*")] if layout.scratch.exists() else []


@pytest.mark.parametrize("maker", [media.make_video, media.make_vfr, media.make_edit_list])
def test_every_frame_is_there_at_its_own_time(tmp_path: Path, maker: object) -> None:
    source = maker(tmp_path / "clip.mp4", frames=30, size=(320, 176))  # type: ignore[operator]
    layout, info, table = pretend_scan(source, tmp_path / "out", events=[(5, 9)])
    result = render(source, layout)
    shown = watch(layout.rendered(VIDEO))
    assert result == RenderResult(VIDEO, (layout.rendered(VIDEO),), info.frames, info.frames, ())
    np.testing.assert_allclose(shown.time, table.timestamp, atol=1e-6)
    first = numbers(shown.pictures, 176)[0]
    assert numbers(shown.pictures, 176) == list(range(first, first + info.frames))
    assert leftovers(layout) == []


def test_it_plays_anywhere(tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "clip.mp4", frames=6)
    layout, _, _ = pretend_scan(source, tmp_path / "out")
    render(source, layout)
    shown, data = watch(layout.rendered(VIDEO)), layout.rendered(VIDEO).read_bytes()
    assert (shown.codec, shown.pixels) == ("h264", "yuv420p")
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (15, 33), (353, 199)])
def test_tiny_and_odd_sizes_become_legible_even_ones(tmp_path: Path, size: tuple[int, int]) -> None:
    source = tmp_path / "clip.mkv"
    media.run_ffmpeg(
        "-f", "lavfi", "-i", f"color=red:s={size[0]}x{size[1]}:d=0.2", "-c:v", "ffv1", "-pix_fmt", "bgr0", str(source)
    )
    layout, _, _ = pretend_scan(source, tmp_path / "out", events=[(1, 3)])
    render(source, layout)
    height, width = watch(layout.rendered(VIDEO)).pictures.shape[1:3]
    assert width % 2 == 0
    assert height % 2 == 0
    assert width >= 240


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_phone_videos_come_out_upright(tmp_path: Path, degrees: int) -> None:
    source = media.make_rotated(tmp_path / "clip.mp4", degrees, size=(256, 320), frames=4)
    layout, info, _ = pretend_scan(source, tmp_path / "out")
    render(source, layout)
    shown = watch(layout.rendered(VIDEO))
    assert (info.width, info.height) == (256, 320)
    assert media.is_upright(shown.pictures[2][:320, :256])
    assert numbers(shown.pictures, 320) == [0, 1, 2, 3]


def test_folder_of_images(tmp_path: Path) -> None:
    source = media.make_image_folder(tmp_path / "clip", 7, size=(256, 96))
    layout, _, table = pretend_scan(source, tmp_path / "out", fps=5)
    render(source, layout)
    shown = watch(layout.rendered(VIDEO))
    assert numbers(shown.pictures, 96) == list(range(7))
    np.testing.assert_allclose(shown.time, table.timestamp, atol=1e-6)


def flash_and_beep(path: Path, *, audio: str, picture_late_s: float = 0.0, sound_late_s: float = 0.0) -> Path:
    """Make a black video with a flash and a beep at 1 s. The picture or the sound can start late."""
    flash = "color=black:s=256x96:r=25:d=3,drawbox=c=white:t=fill:enable='between(t,0.99,1.3)'"
    beep = "aevalsrc='0.6*sin(2*PI*880*t)*between(t,1,1.3)':s=48000:d=3"
    whole = path.with_name(f"whole{path.suffix}")
    codecs = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-pix_fmt", "yuv420p", "-c:a", audio)
    media.run_ffmpeg("-f", "lavfi", "-i", flash, "-f", "lavfi", "-i", beep, *codecs, str(whole))
    inputs = ("-itsoffset", str(picture_late_s), "-i", str(whole), "-itsoffset", str(sound_late_s), "-i", str(whole))
    media.run_ffmpeg(*inputs, "-map", "0:v", "-map", "1:a", "-c", "copy", str(path))
    return path


def beep_after_flash_s(path: Path) -> float:
    """Return how many seconds after the flash the beep starts."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        flash = next(
            float(frame.pts * video.time_base)
            for frame in container.decode(video)
            if frame.to_ndarray(format="gray")[:96].mean() > 128
        )
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.audio[0]):
            loud = np.abs(frame.to_ndarray().astype(float)).max(axis=0) > 0.2
            if loud.any():
                return frame.time + int(loud.argmax()) / frame.sample_rate - flash
    raise AssertionError(f"no beep in {path}")


def first_sound_packet_s(path: Path) -> float:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return min(float(packet.pts * stream.time_base) for packet in container.demux(stream) if packet.pts is not None)


@pytest.mark.parametrize(
    ("name", "audio", "late"),
    [
        ("clip.mp4", "aac", {}),
        ("clip.mp4", "aac", {"sound_late_s": 0.4}),
        ("clip.mp4", "aac", {"picture_late_s": 0.4}),
        ("clip.ts", "aac", {}),
        ("clip.mkv", "libopus", {"sound_late_s": 0.4}),
        ("clip.mkv", "libopus", {"picture_late_s": 0.4}),
    ],
)
def test_sound_stays_in_sync(tmp_path: Path, name: str, audio: str, late: dict[str, float]) -> None:
    source = flash_and_beep(tmp_path / name, audio=audio, **late)
    layout, _, _ = pretend_scan(source, tmp_path / "out")
    result = render(source, layout)
    assert result.problems == ()
    assert watch(layout.rendered(VIDEO)).audio == "aac"
    assert first_sound_packet_s(layout.rendered(VIDEO)) > -0.06
    assert beep_after_flash_s(layout.rendered(VIDEO)) == pytest.approx(beep_after_flash_s(source), abs=0.03)


@pytest.mark.parametrize(("name", "audio"), [("clip.mp4", "aac"), ("clip.mkv", "libopus")])
def test_event_clips_have_their_own_sound(tmp_path: Path, name: str, audio: str) -> None:
    source = flash_and_beep(tmp_path / name, audio=audio)
    layout, _, _ = pretend_scan(source, tmp_path / "out", events=[(22, 40)])
    result = render(source, layout, replace(SETTINGS, events_only=True, pad_s=0.2))
    assert result.problems == ()
    assert beep_after_flash_s(result.files[0]) == pytest.approx(0.0, abs=0.03)
    assert first_sound_packet_s(result.files[0]) > -0.06  # a player that ignores edit lists must not play sound before the clip


def beeps_s(path: Path) -> list[float]:
    """Return when the beeps of a file begin, in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = [(frame.time, np.abs(frame.to_ndarray().astype(float)).max()) for frame in container.decode(stream)]
    loud = [time for time, level in frames if level > 0.2]
    return [time for i, time in enumerate(loud) if i == 0 or time - loud[i - 1] > 0.5]


def test_the_sound_follows_every_part_of_recordings_that_were_joined(tmp_path: Path) -> None:
    part = flash_and_beep(tmp_path / "part.ts", audio="aac").read_bytes()
    source = tmp_path / "clip.ts"
    source.write_bytes(part * 3)
    layout, info, _ = pretend_scan(source, tmp_path / "out", events=[(75 + 22, 75 + 40)])
    assert info.frames == 225
    assert render(source, layout).problems == ()
    assert beeps_s(layout.rendered(VIDEO)) == pytest.approx([1, 4, 7], abs=0.1)
    result = render(source, layout, replace(SETTINGS, events_only=True, pad_s=0.2))
    assert beep_after_flash_s(result.files[0]) == pytest.approx(0.0, abs=0.1)


def test_sound_that_does_not_follow_is_named(tmp_path: Path) -> None:
    part = flash_and_beep(tmp_path / "part.ts", audio="aac")
    silent = media.remux(part, tmp_path / "silent.ts", after=("-an",))
    source = tmp_path / "clip.ts"
    source.write_bytes(part.read_bytes() + silent.read_bytes())
    layout, _, _ = pretend_scan(source, tmp_path / "out")
    (problem,) = render(source, layout).problems
    assert "the sound is right only until the clock restarts" in problem


def test_a_broken_sound_track_costs_only_the_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = media.make_video(tmp_path / "clip.mp4", frames=5, audio=True)
    layout, _, _ = pretend_scan(source, tmp_path / "out")

    def fail(*_: object, **__: object) -> None:
        raise DecodeError("no sound today")

    monkeypatch.setattr("vadcli.rendering.add_sound", fail)
    result = render(source, layout)
    assert result.problems == ("no sound today",)
    assert len(watch(layout.rendered(VIDEO)).pictures) == 5
    assert leftovers(layout) == []


def test_one_clip_an_event_with_padding(tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "clip.mp4", frames=100, size=(256, 64))
    layout, _, _ = pretend_scan(source, tmp_path / "out", events=[(10, 20), (60, 70), (95, 100)])
    result = render(source, layout, replace(SETTINGS, events_only=True, pad_s=0.2))
    assert result.files == tuple(event_clip(layout.rendered(VIDEO), number) for number in (1, 2, 3))
    assert [path.name for path in result.files] == [f"clip.mp4.event-00{number}.mp4" for number in (1, 2, 3)]
    clips = [watch(path) for path in result.files]
    assert [numbers(clip.pictures, 64) for clip in clips] == [list(range(5, 25)), list(range(55, 75)), list(range(90, 100))]
    assert all(clip.time[0] == 0 for clip in clips)
    assert not layout.rendered(VIDEO).exists()
    assert result.frames == result.expected_frames == 50


def test_a_long_events_clip_shows_as_much_as_is_asked_around_its_peak(tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "clip.mp4", frames=100, size=(256, 64))
    layout, _, table = pretend_scan(source, tmp_path / "out", events=[(10, 90), (92, 96)])
    document = read_events(layout.events(VIDEO))
    long, short = document.events
    middle = replace(long, peak_frame=50, peak_s=float(table.timestamp[50]))
    write_events(layout.events(VIDEO), replace(document, events=(middle, short)))
    result = render(source, layout, replace(SETTINGS, events_only=True, pad_s=0, most_s=16.5 / 25))
    shown, whole = (numbers(watch(path).pictures, 64) for path in result.files)
    assert shown == list(range(42, 59))
    assert whole == list(range(92, 96))


@given(
    start_s=st.floats(0, 1e5),
    lasts_s=st.floats(0.01, 1e5),
    peak=st.floats(0, 1),
    most_s=st.none() | st.floats(0.01, 1e5),
)
def test_what_a_clip_shows_lies_in_its_event_and_has_the_peak(
    start_s: float, lasts_s: float, peak: float, most_s: float | None
) -> None:
    end_s, peak_s = start_s + lasts_s, start_s + peak * lasts_s
    event = Event(1, 0, 1, start_s, end_s, 0, peak_s, 0.9, 0.8)
    first, last = shown_seconds(event, most_s)
    assert start_s - 1e-6 <= first <= peak_s + 1e-6
    assert peak_s - 1e-6 <= last <= end_s + 1e-6
    assert last - first == pytest.approx(min(lasts_s, most_s or lasts_s), abs=1e-6)


def test_clips_of_events_that_are_no_more_go(tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "clip.mp4", frames=40, size=(256, 64))
    layout, _, _ = pretend_scan(source, tmp_path / "out", events=[(10, 12), (30, 32)])
    settings = replace(SETTINGS, events_only=True)
    before = render(source, layout, settings)
    kept = layout.rendered(VIDEO).with_name("clip.mp4.event-best.mp4")
    kept.write_bytes(b"somebody's own")
    pretend_scan(source, tmp_path / "out", events=[(10, 12)])
    after = render(source, layout, settings)
    assert after.files == before.files[:1]
    assert not before.files[1].exists()
    assert kept.exists()
    pretend_scan(source, tmp_path / "out")
    assert render(source, layout, settings) == RenderResult(VIDEO, (), 0, 0, ())


@pytest.mark.parametrize("stored", ["video", "rle"])
def test_each_mask_is_drawn_from_its_sampled_row_on(tmp_path: Path, stored: str) -> None:
    width, height, every = 320, 180, 3
    source = tmp_path / "clip.mkv"
    media.run_ffmpeg("-f", "lavfi", "-i", f"color=gray:s={width}x{height}:r=25:d=0.4", "-c:v", "ffv1", str(source))
    layout, _, table = pretend_scan(source, tmp_path / "out", every=every)
    path = layout.mask_video(VIDEO) if stored == "video" else layout.mask_rle(VIDEO)
    path.parent.mkdir(parents=True)
    writer = MaskVideoWriter(path, width, height) if stored == "video" else MaskRleWriter(path, VIDEO, width, height)
    with writer:
        for number, row in enumerate(np.flatnonzero(table.sampled)):
            mask = np.zeros((height, width), np.uint8)
            mask[40:120, 80 * number + 10 : 80 * number + 60] = 255
            if stored == "video":
                writer.write(mask, float(table.timestamp[row]))
            else:
                writer.write(mask, int(row), int(table.pts[row]))
    assert render(source, layout).problems == ()
    pictures = watch(layout.rendered(VIDEO)).pictures.astype(int)
    redness = (pictures[..., 0] - pictures[..., 2])[:, 60:100]
    warm = [
        [number for number in range(4) if picture[:, 80 * number + 20 : 80 * number + 50].mean() > 25] for picture in redness
    ]
    assert warm == [[row // every] for row in range(10)]


def test_damaged_masks_are_named_and_left_out(tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "clip.mp4", frames=5)
    layout, _, _ = pretend_scan(source, tmp_path / "out")
    layout.mask_video(VIDEO).parent.mkdir(parents=True)
    layout.mask_video(VIDEO).write_bytes(b"not a video")
    result = render(source, layout)
    assert len(result.problems) == 1
    assert "mask" in result.problems[0]
    assert result.frames == 5


def test_side_by_side_keeps_the_untouched_picture(tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "clip.mp4", frames=4, size=(320, 180))
    layout, _, _ = pretend_scan(source, tmp_path / "out", events=[(0, 4)])
    render(source, layout, replace(SETTINGS, side_by_side=True))
    picture = watch(layout.rendered(VIDEO)).pictures[1]
    assert picture.shape[1] > 640
    left, right = picture[:180, :320].astype(int), picture[:180, -320:].astype(int)
    assert np.abs(left - media.picture(1, 320, 180)[..., None]).mean() < 6
    assert np.ptp(left[0].reshape(-1, 3), axis=1).max() < 20  # the left picture is grey up to its edge
    assert (right[0, 100:, 0] - right[0, 100:, 2]).mean() > 80  # the right picture has a coloured border during the event


def test_max_height_shrinks_the_picture(tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "clip.mp4", frames=4, size=(640, 360))
    layout, _, _ = pretend_scan(source, tmp_path / "out")
    render(source, layout, replace(SETTINGS, max_height_px=180))
    picture = watch(layout.rendered(VIDEO)).pictures[3]
    assert picture.shape[1] == 320
    assert media.read_index(picture[:180]) == 3


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("size", [(3840, 2160), (2160, 3840), (7680, 4320), (8192, 512)])
def test_large_videos_shrink_to_what_players_take(size: tuple[int, int], side_by_side: bool) -> None:
    needs = clip_needs(*size, replace(SETTINGS, side_by_side=side_by_side))
    shrunk = needs.size.apply(*size)
    canvas = Geometry.of(*shrunk, side_by_side=side_by_side)
    assert canvas.plays_anywhere
    assert shrunk[0] / shrunk[1] == pytest.approx(size[0] / size[1], rel=0.05)
    assert needs.max_clip_bytes < 100 << 20


def test_small_videos_keep_their_size() -> None:
    assert clip_needs(1920, 1080, SETTINGS).size == SizeRule(1920 * 1080)


def test_a_truncated_video_is_rendered_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = media.make_video(tmp_path / "whole.mkv", frames=60, size=(256, 96))
    layout, _, _ = pretend_scan(whole, tmp_path / "out")
    source = media.truncate(whole, tmp_path / "clip.mkv", 0.5)
    result = render(source, layout)
    shown = watch(layout.rendered(VIDEO))
    assert 10 < len(shown.pictures) == result.frames < result.expected_frames == 60
    assert numbers(shown.pictures[:10], 96) == list(range(10))
    assert any(f"frame {result.frames} of 60" in problem for problem in result.problems)


def test_clips_past_the_end_of_a_truncated_video_are_named(tmp_path: Path) -> None:
    whole = media.make_video(tmp_path / "whole.mkv", frames=60, size=(256, 96))
    layout, _, _ = pretend_scan(whole, tmp_path / "out", events=[(4, 8), (50, 55)])
    source = media.truncate(whole, tmp_path / "clip.mkv", 0.5)
    result = render(source, layout, replace(SETTINGS, events_only=True, pad_s=0))
    assert result.files == (event_clip(layout.rendered(VIDEO), 1),)
    assert numbers(watch(result.files[0]).pictures, 96) == [4, 5, 6, 7]
    assert [problem for problem in result.problems if "frame 50" in problem]


@pytest.mark.parametrize("name", ["2026-11-22T10:15", "file:x", "-o", "a b%d", "ünï"])
def test_odd_names_of_output_folders(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = media.make_video(tmp_path / "clip.mp4", frames=3, audio=True)
    layout, _, _ = pretend_scan(source, Path(name))
    assert render(source, layout).problems == ()
    assert watch(tmp_path / name / "rendered" / f"{VIDEO}.mp4").audio == "aac"


def test_nothing_decodable_leaves_the_old_file_alone(tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "clip.mp4", frames=5)
    layout, _, _ = pretend_scan(source, tmp_path / "out")
    layout.rendered(VIDEO).parent.mkdir(parents=True)
    layout.rendered(VIDEO).write_bytes(b"from last week")
    source.write_bytes(b"no longer a video")
    with pytest.raises(VideoError, match=r"clip\.mp4"):
        render(source, layout)
    assert layout.rendered(VIDEO).read_bytes() == b"from last week"
    assert leftovers(layout) == []


def test_a_video_without_scores_says_how_to_get_them(tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "clip.mp4", frames=5)
    with pytest.raises(DocumentError, match="scan it first"):
        render(source, OutputLayout(tmp_path / "out"))
    assert not OutputLayout(tmp_path / "out").rendered(VIDEO).exists()


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    source = tmp_path / "clip.mkv"
    media.run_ffmpeg("-f", "lavfi", "-i", "nullsrc=s=256x144:r=25:d=1.2,geq=random(1)*255:128:128", "-c:v", "ffv1", str(source))
    layout, _, _ = pretend_scan(source, tmp_path / "out")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(written: int, _: int) -> None:
        if written == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    try:
        with pytest.raises(OutputError):
            render(source, layout, progress=fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not layout.rendered(VIDEO).exists()
    assert leftovers(layout) == []


def test_progress_counts_frames(tmp_path: Path) -> None:
    source = media.make_video(tmp_path / "clip.mp4", frames=5)
    layout, _, _ = pretend_scan(source, tmp_path / "out")
    told: list[tuple[int, int]] = []
    render(source, layout, progress=lambda written, expected: told.append((written, expected)))
    assert told == [(number, 5) for number in range(1, 6)]
