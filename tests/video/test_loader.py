"""The items that the loader yields. For its processes, see test_loader_processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import media
from tests.video.loading import NEEDS, OPTIONS, REAL, gather, load, request
from vadcli.errors import DecodeError, FileChanged, NoVideoStream, ProbeError
from vadcli.types import PixelFormat, SizeRule
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest
from vadcli.video.probe import probe
from vadcli.video.sampling import SamplingPlan
from vadcli.video.worker import burst_rows


@pytest.fixture(scope="module")
def loader() -> Iterator[ClipLoader]:
    with ClipLoader(NEEDS, OPTIONS) as shared:
        yield shared


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return media.make_video(tmp_path_factory.mktemp("real") / "a.mp4", frames=200, fps=10, size=(320, 240), gop=12)


def test_a_video_comes_as_opened_clips_and_finished(loader, tmp_path):
    one = gather(loader.run([request(tmp_path, "a", rows=24, lost=[4, 9])]))["a"]

    assert [clip.index for clip in one.clips] == [0, 1, 2, 3]
    assert [clip.frame_index.tolist() for clip in one.clips] == [
        [0, 2, 4, 6],
        [6, 8, 10, 12],
        [12, 14, 16, 18],
        [16, 18, 20, 22],
    ]
    assert one.clips[0].frames.shape == (4, 6, 8, 1)
    assert [frame.max() for frame in one.clips[0].frames] == [1, 3, 3, 7]  # row 4 is lost, so it gets the image of row 2
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


def test_a_short_video_repeats_its_last_frame(loader, tmp_path):
    one = gather(loader.run([request(tmp_path, "a", rows=4)]))["a"]
    (clip,) = one.clips
    assert clip.frame_index.tolist() == [0, 2, 2, 2]
    assert clip.valid.tolist() == [True, True, False, False]
    assert one.row_numbers == [0, 1, 2, 3]


def test_a_video_that_ends_on_a_sampled_row_has_an_empty_tail(loader, tmp_path):
    one = gather(loader.run([request(tmp_path, "a", rows=23)]))["a"]
    assert (one.end.rows.first, len(one.end.rows)) == (23, 0)
    assert one.row_numbers == list(range(23))


def test_colour_and_size_follow_the_needs(tmp_path):
    needs = replace(NEEDS, pixel_format=PixelFormat.RGB, size=SizeRule(100))
    one = load([request(tmp_path, "a", rows=8, size=[40, 20])], needs=needs)["a"]
    assert one.clips[0].frames.shape == (4, 6, 14, 3)


def test_threads_and_decoder_reach_the_reader(tmp_path):
    options = replace(OPTIONS, decoder="decord", threads=3)
    assert load([request(tmp_path, "a", rows=4)], options)["a"].end.complaints == "decord 3"


def test_frame_rate_of_the_request_reaches_the_prober(loader, tmp_path):
    one = gather(loader.run([replace(request(tmp_path, "a", rows=40), fps=20.0)]))["a"]
    assert one.clips[0].interval == 4


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_many_videos_are_the_same_with_any_number_of_processes(tmp_path, workers):
    stories = {f"{n:02}": {"rows": 3 * n + 1, "lost": [n, 2 * n], "fps": 5 + n % 7} for n in range(30)}
    seen = load([request(tmp_path, name, **story) for name, story in stories.items()], replace(OPTIONS, workers=workers))
    assert sorted(seen) == sorted(stories)
    for name, story in stories.items():
        one, rows = seen[name], int(story["rows"])
        plan = SamplingPlan(NEEDS.frames, NEEDS.overlap, NEEDS.interval_for(story["fps"]))
        assert one.row_numbers == list(range(rows))
        assert [clip.index for clip in one.clips] == list(range(plan.clips(rows)))
        for clip in one.clips:
            shown = clip.frames[:, 0, 0, 0].astype(int)
            assert (shown[clip.valid] == clip.frame_index[clip.valid] + 1).all()
        scored = [row for clip in one.clips for row in clip.frame_index[clip.valid].tolist()]
        assert scored == [row for row in range(0, rows, plan.interval) if row not in story["lost"]]
        assert one.end.error is None


@pytest.mark.parametrize("start_clip", [0, 1, 3, 6, 7, 20])
def test_a_resumed_video_is_the_tail_of_an_undisturbed_one(loader, tmp_path, start_clip):
    whole_request = request(tmp_path, "a", rows=45, lost=[12, 14, 16, 18, 20, 22, 31])
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


def test_bursts_give_one_clip_from_each_position_and_no_rows(loader, tmp_path):
    ask = replace(request(tmp_path, "a", rows=100, lost=[50]), bursts=(0.0, 0.5, 0.99))
    one = gather(loader.run([ask, replace(request(tmp_path, "b", rows=3), bursts=(0.7,))]))["a"]
    assert [clip.index for clip in one.clips] == [0, 1, 2]
    assert [clip.frame_index.tolist() for clip in one.clips] == [[0, 2, 4, 6], [50, 52, 54, 56], [92, 94, 96, 98]]
    assert [frame.max() for frame in one.clips[1].frames] == [53, 53, 55, 57]
    assert one.clips[1].valid.tolist() == [False, True, True, True]
    assert one.row_numbers == []
    assert (one.end.decoded_frames, one.end.error) == (0, None)


def test_a_burst_that_decodes_nothing_is_left_out(loader, tmp_path):
    ask = replace(request(tmp_path, "a", rows=60, lost=list(range(20, 60))), bursts=(0.5, 0.1))
    (clip,) = gather(loader.run([ask]))["a"].clips
    assert (clip.index, clip.frame_index[0]) == (1, 6)


def test_spans_give_the_clips_of_their_rows_alone(loader, tmp_path):
    ask = replace(request(tmp_path, "a", rows=100, lost=[52, 70, 72, 74, 76]), spans=((6, 13), (40, 56), (70, 80), (94, 120)))
    one = gather(loader.run([ask]))["a"]
    assert [clip.index for clip in one.clips] == [0, 1, 1, 2, 3]
    scored = [clip.frame_index[clip.valid].tolist() for clip in one.clips]
    assert scored == [[6, 8, 10, 12], [40, 42, 44, 46], [48, 50, 54], [78], [94, 96, 98]]
    for clip in one.clips:
        assert (clip.frames[clip.valid][:, 0, 0, 0] == clip.frame_index[clip.valid] + 1).all()
    assert one.row_numbers == []
    assert one.end.error is None


def test_spans_of_a_real_video_hold_its_pictures(video):
    every = replace(NEEDS, interval=1, overlap=0)
    with ClipLoader(every, REAL) as loader:
        whole = gather(loader.run([ClipRequest("a", video)]))["a"]
        parts = gather(loader.run([ClipRequest("a", video, spans=((5, 11), (11, 12), (97, 108), (190, 200)))]))["a"]
    pictures = {row: frame for clip in whole.clips for row, frame in zip(clip.frame_index, clip.frames, strict=True)}
    rows = [row for clip in parts.clips for row in clip.frame_index[clip.valid].tolist()]
    assert rows == [*range(5, 12), *range(97, 108), *range(190, 200)]
    for clip in parts.clips:
        for row, frame in zip(clip.frame_index.tolist(), clip.frames, strict=True):
            np.testing.assert_array_equal(frame, pictures[row])


@pytest.mark.parametrize(
    "asked", [{"spans": ((3, 3),)}, {"spans": ((5, 9), (8, 12))}, {"spans": ((0, 4),), "bursts": (0.5,)}, {"spans": ((-2, 4),)}]
)
def test_spans_that_make_no_sense(asked):
    with pytest.raises(ValueError, match="spans"):
        ClipRequest("a", Path("a"), **asked)


def test_a_clip_is_a_view_that_the_consumer_cannot_write(loader, tmp_path):
    clips = [item.clip for item in loader.run([request(tmp_path, "a", rows=8)]) if isinstance(item, ClipReady)]
    with pytest.raises(ValueError, match="read-only"):
        clips[0].frames[0] = 0


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("raise a decode error", DecodeError, "the stream is cut (record again)"),
        ("raise anything", DecodeError, "RuntimeError: what now"),
    ],
)
def test_what_a_reader_raises_ends_its_video_with_all_rows_that_came(loader, tmp_path, what, kind, words):
    one = gather(loader.run([request(tmp_path, "a", rows=40, at=25, do=what)]))["a"]
    assert type(one.end.error) is kind
    assert str(one.end.error).endswith(words)
    assert one.row_numbers == list(range(25))
    assert one.clips[-1].frame_index.tolist() == [18, 20, 22, 24]


@pytest.mark.parametrize(("what", "words"), [("grow", "grew or was rewritten"), ("vanish", "vanished")])
def test_a_file_that_changes_while_it_is_read_says_so_and_keeps_its_rows(loader, tmp_path, what, words):
    one = gather(loader.run([request(tmp_path, "a", rows=40, at=25, do=what)]))["a"]
    assert isinstance(one.end.error, FileChanged)
    assert words in str(one.end.error)
    assert one.row_numbers == list(range(40))


def test_a_file_that_is_gone_or_unreadable_is_never_opened(loader, tmp_path):
    (tmp_path / "text").write_text("no story")
    seen = gather(loader.run([ClipRequest("gone", tmp_path / "gone"), ClipRequest("text", tmp_path / "text")]))
    assert isinstance(seen["gone"].end.error, FileChanged)
    assert type(seen["text"].end.error) is ProbeError
    assert "(write JSON)" in str(seen["text"].end.error)
    assert [one.opened for one in seen.values()] == [0, 0]
    assert seen["text"].end.info is None


# Real videos through the real decoders


def test_real_videos_of_every_kind_in_one_run(tmp_path, video):
    needs = replace(NEEDS, size=SizeRule(320 * 240))
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    seen = load(
        [
            ClipRequest("film", video),
            ClipRequest("phone", media.make_rotated(tmp_path / "phone.mp4", 90, frames=20, fps=10)),
            ClipRequest("text", text),
            ClipRequest("sound", media.make_audio_only(tmp_path / "sound.mp4")),
            ClipRequest("folder", media.make_image_folder(tmp_path / "folder", 12), fps=5.0),
        ],
        REAL,
        needs,
    )
    assert isinstance(seen["text"].end.error, ProbeError)
    assert isinstance(seen["sound"].end.error, NoVideoStream)
    for name, rows, interval in (("film", 200, 2), ("phone", 20, 2), ("folder", 12, 1)):
        one = seen[name]
        assert one.end.error is None
        assert one.row_numbers == list(range(rows))
        for clip in one.clips:
            assert all(media.is_upright(frame) for frame in clip.frames)
            assert [media.read_index(frame) for frame in clip.frames] == clip.frame_index.tolist()
        assert {clip.interval for clip in one.clips} == {interval}
    assert seen["film"].clips[1].timestamp.tolist() == pytest.approx([0.6, 0.8, 1.0, 1.2])


def test_a_real_video_is_resumed_in_its_middle(video):
    with ClipLoader(NEEDS, replace(REAL, workers=1)) as loader:
        whole = gather(loader.run([ClipRequest("a", video)]))["a"].values()
        for start_clip in (1, 20, 33):
            resumed = gather(loader.run([ClipRequest("a", video, start_clip=start_clip)]))["a"].values()
            assert resumed[0] == whole[0][start_clip:]
            assert resumed[1] == whole[1][start_clip:]


def test_bursts_start_at_keyframes_and_never_twice_at_the_same(video):
    info, plan = probe(video), replace(SamplingPlan.of(NEEDS, probe(video)), overlap=0)
    rows = burst_rows(info, plan, (0.1, 0.3, 0.31, 0.6))
    keyframes = {-(-int(row) // plan.interval) * plan.interval for row in info.keyframes}
    exact = [plan.burst_row(position, info.frames) for position in (0.1, 0.3, 0.31, 0.6)]
    assert len(set(rows)) == len(rows)
    assert all(0 <= wish - row < 12 for wish, row in zip(exact, rows, strict=True))
    assert rows[0] in keyframes
    assert rows[1] in keyframes
    assert all(row % plan.interval == 0 for row in rows)
