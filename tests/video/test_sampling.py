from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadcli.types import ClipNeeds, PixelFormat, SizeRule, VideoInfo
from vadcli.video.sampling import ClipAssembler, ClipParts, Rows, SamplingPlan, fill_sources

SHAPE = (2, 3, 1)


@st.composite
def plans(draw: st.DrawFn) -> SamplingPlan:
    frames = draw(st.integers(1, 9))
    even = SamplingPlan(frames, draw(st.integers(0, frames - 1)), draw(st.integers(1, 4)))
    uneven = draw(st.none() | st.sets(st.integers(0, 90)))
    return even if uneven is None else replace(even, rows=np.array([*sorted(uneven), *range(91, 1000, 4)], np.int64))


@dataclass
class Assembled:
    clips: list[tuple[ClipParts, np.ndarray]]
    tail: Rows


def pts_of(row: int) -> int:
    return 100 + 7 * row


def assemble(plan: SamplingPlan, rows: int, lost: frozenset[int] = frozenset(), start_clip: int = 0) -> Assembled:
    """Return the clips of a whole video. The pixels of row r have the value r + 1, so 0 means that a frame has no image."""
    assembler = ClipAssembler(plan, SHAPE, start_clip=start_clip)
    clips = []

    def take() -> None:
        out = np.full((plan.frames, *SHAPE), 255, np.uint8)
        clips.append((assembler.take(out), out))

    for row in range(assembler.next_row, rows):
        picture = None if row in lost else np.full(SHAPE, row + 1, np.uint8)
        if assembler.add(pts_of(row), row not in lost, picture):
            take()
    if assembler.end():
        take()
    return Assembled(clips, assembler.rest())


lost_rows = st.frozensets(st.integers(0, 80), max_size=30)
row_counts = st.integers(0, 80)


@given(plans(), row_counts, lost_rows)
def test_every_decoded_sample_is_scored_once_and_every_row_comes_once(plan, rows, lost):
    done = assemble(plan, rows, lost)
    assert len(done.clips) == plan.clips(rows)
    scored = [index for parts, _ in done.clips for index in parts.frame_index[parts.valid].tolist()]
    wanted = range(0, rows, plan.interval) if plan.rows is None else [row for row in plan.rows.tolist() if row < rows]
    assert scored == [row for row in wanted if row not in lost]

    pieces = [parts.rows for parts, _ in done.clips] + [done.tail]
    assert np.concatenate([piece.pts for piece in pieces]).tolist() == [pts_of(row) for row in range(rows)]
    assert np.concatenate([piece.decode_ok for piece in pieces]).tolist() == [row not in lost for row in range(rows)]
    starts = np.cumsum([0, *(len(piece) for piece in pieces)])
    assert [piece.first for piece in pieces] == starts[:-1].tolist()


@given(plans(), row_counts, lost_rows)
def test_clips_lie_where_the_rules_say(plan, rows, lost):
    for number, (parts, pictures) in enumerate(assemble(plan, rows, lost).clips):
        samples = plan.clip_samples(number, rows)
        assert parts.index == number
        assert parts.frame_index.tolist() == [plan.row(sample) for sample in samples.tolist()]
        assert parts.pts.tolist() == [pts_of(row) for row in parts.frame_index]
        assert parts.rows.first + len(parts.rows) == parts.frame_index[-1] + 1
        for position, row in enumerate(parts.frame_index.tolist()):
            if row not in lost:
                assert (pictures[position] == row + 1).all()
            else:
                assert not parts.valid[position]


@given(plans(), st.integers(1, 80))
def test_clips_advance_by_the_stride_but_for_the_last_one(plan, rows):
    total, samples = plan.clips(rows), plan.samples(rows)
    for number in range(total):
        shown = plan.clip_samples(number, rows)
        if number < total - 1:
            assert shown.tolist() == list(range(number * plan.stride, number * plan.stride + plan.frames))
        elif samples >= plan.frames:
            assert shown.tolist() == list(range(samples - plan.frames, samples))
        else:
            assert shown.tolist() == [*range(samples), *[samples - 1] * (plan.frames - samples)]


@given(plans(), row_counts, lost_rows, st.integers(0, 12))
def test_a_resumed_video_gives_the_tail_of_an_undisturbed_one(plan, rows, lost, stored_clips):
    whole = assemble(plan, rows, lost)
    stored = sum(len(parts.rows) for parts, _ in whole.clips[:stored_clips])
    start = plan.whole_clips(stored)
    resumed = assemble(plan, rows, lost, start_clip=start)

    assert plan.first_row(start) <= stored
    assert start >= min(stored_clips, plan.clips(rows)) - 1  # only a clip that was moved back is read again
    assert len(resumed.clips) == len(whole.clips[start:])
    for (parts, pictures), (other_parts, other_pictures) in zip(resumed.clips, whole.clips[start:], strict=True):
        assert (pictures == other_pictures).all()
        for name in ("frame_index", "pts", "valid"):
            assert getattr(parts, name).tolist() == getattr(other_parts, name).tolist()
        assert (parts.index, parts.rows.first) == (other_parts.index, other_parts.rows.first)
        assert parts.rows.pts.tolist() == other_parts.rows.pts.tolist()
    assert (resumed.tail.first, resumed.tail.pts.tolist()) == (whole.tail.first, whole.tail.pts.tolist())


@given(plans(), st.integers(0, 20))
def test_a_scan_that_stored_a_clips_rows_goes_on_with_the_next_clip(plan, clip):
    assert plan.whole_clips(plan.first_row(clip)) == clip
    assert plan.whole_clips(plan.first_row(clip + 1) - 1) == clip


@pytest.mark.parametrize(
    ("lost", "sources"),
    [
        ([0, 0, 0], [0, 1, 2]),
        ([0, 1, 1], [0, 0, 0]),
        ([1, 1, 0], [2, 2, 2]),
        ([1, 0, 1], [1, 1, 1]),
        ([1, 1, 1], [-1, -1, -1]),
    ],
)
def test_lost_pictures_are_filled_from_the_clip_itself(lost, sources):
    assert fill_sources(np.array(lost, bool)).tolist() == sources


def test_a_clip_without_any_picture_is_black_even_where_older_pictures_are_held():
    plan = SamplingPlan(2, 0, 1)
    (_, first), (parts, second) = assemble(plan, 4, frozenset({2, 3})).clips
    assert first.any()
    assert not second.any()
    assert not parts.valid.any()


@given(plans(), st.integers(1, 80), st.floats(0, 1, exclude_max=True))
def test_bursts_start_on_samples_and_fit_in_where_the_video_is_long_enough(plan, rows, position):
    row, samples = plan.burst_row(position, rows), plan.samples(rows)
    first = plan.samples(row)
    assert plan.row(first) == row
    assert 0 <= row < rows or not samples
    assert first + plan.frames <= max(samples, plan.frames)


def test_a_burst_is_laid_out_from_its_own_first_row():
    plan = SamplingPlan(3, 0, 2)
    assembler = ClipAssembler(plan, SHAPE, origin=10)
    done = [assembler.add(pts_of(row), True, np.full(SHAPE, row, np.uint8)) for row in range(10, 15)]
    assert done == [False, False, False, False, True]
    parts = assembler.take(out := np.zeros((3, *SHAPE), np.uint8))
    assert parts.frame_index.tolist() == [10, 12, 14]
    assert out[:, 0, 0, 0].tolist() == [10, 12, 14]
    assert parts.valid.all()


def test_the_interval_follows_the_frame_rate():
    needs = ClipNeeds(32, 1, 10.0, SizeRule(86400), PixelFormat.GRAY)
    assert SamplingPlan.of(needs, video(29.97)) == SamplingPlan(32, 1, 3)
    assert SamplingPlan.of(needs, video(4.0)) == SamplingPlan(32, 1, 1)


def video(fps: float, **known: object) -> VideoInfo:
    pts = np.arange(13, dtype=np.int64)
    return VideoInfo(Path("a"), "mov", "h264", 0, 8, 8, 0, Fraction(1, 30), pts, fps, 0.43, **known)  # type: ignore[arg-type]


def test_references_nearest_to_the_even_grid_are_sampled_if_a_video_has_enough_of_them():
    needs = ClipNeeds(32, 1, 10.0, SizeRule(86400), PixelFormat.GRAY, decode="reference")

    def sampled(references: list[int], **known: object) -> list[int] | None:
        flags = np.isin(np.arange(13), references)
        rows = SamplingPlan.of(needs, video(30.0, reference=flags, **known)).rows
        return None if rows is None else rows.tolist()

    assert sampled([0, 2, 4, 6, 8, 10, 12]) == [0, 2, 6, 8, 12]
    assert sampled([0, 4, 8, 12]) == [0, 4, 8, 12]
    assert sampled([0, 1, 2, 5, 6, 7, 10, 11, 12]) == [0, 2, 6, 10, 12]
    assert sampled([0, 4, 8, 12], missing=1) is None
    assert sampled([0, 7, 9, 12]) is None  # two references are too far apart
    assert sampled([0, *range(2, 13)]) is None  # hardly any frame can be left out
    assert sampled([]) is None


def test_a_picture_of_another_size_is_refused_and_counts_as_lost():
    assembler = ClipAssembler(SamplingPlan(1, 0, 1), SHAPE)
    with pytest.raises(ValueError, match="reshape"):
        assembler.add(0, True, np.zeros((5, 5, 1), np.uint8))
    assert not assembler.has_image


@pytest.mark.parametrize("bad", [(4, 4, 1), (0, 0, 1), (4, 1, 0), (4, -1, 1)])
def test_impossible_plans_are_refused(bad):
    with pytest.raises(ValueError, match="cannot cut clips"):
        SamplingPlan(*bad)
