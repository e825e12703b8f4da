"""`FrameFeed` yields the right image for each requested row, whichever part of the video it reads."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import media
from tests.video.loading import NEEDS, OPTIONS, REAL, request
from vadcli.errors import VideoError
from vadcli.types import SizeRule
from vadcli.types.text import how_many
from vadcli.video.loader import JOINED_ROWS, ClipLoader, FrameFeed, join_rows

EVERY = replace(NEEDS, interval=1, overlap=0)
ROWS = 100


def feed_of(tmp_path: Path, loader: ClipLoader, *, rows: int = ROWS, **story: object) -> FrameFeed:
    """Return the feed of a fake video. All pixels of row n have the value n + 1."""
    ask = request(tmp_path, "a", rows=rows, **story)
    return FrameFeed(loader, EVERY.frames, ask.path, video="a", frames=ROWS, fps=10)


@given(st.lists(st.integers(0, 2000), unique=True, max_size=20).map(sorted))
def test_spans_hold_the_rows_and_join_near_ones(rows: list[int]) -> None:
    spans = join_rows(rows)
    held = [row for first, last in spans for row in range(first, last)]
    assert held == sorted(set(held))
    assert set(rows) <= set(held)
    assert {first for first, _ in spans} | {last - 1 for _, last in spans} <= set(rows)
    assert all(after[0] - before[1] >= JOINED_ROWS for before, after in pairwise(spans))


@pytest.mark.parametrize("part", [(0, 100), (0, 7), (13, 22), (40, 41), (93, 100)])
def test_a_part_shows_each_row_once_and_a_lost_one_as_the_one_before(tmp_path: Path, part: tuple[int, int]) -> None:
    lost = [3, 15, 16, 17, 18, 19, 20, 21, 99]
    with ClipLoader(EVERY, OPTIONS) as loader:
        feed = feed_of(tmp_path, loader, lost=lost)
        shown = [(row, int(picture.max())) for row, picture in feed.images(*part)]
    expected, before = [], 0
    for row in range(*part):
        before = before if row in lost else row + 1
        expected.append((row, before))
    assert shown == expected
    count = len([row for row in lost if part[0] <= row < part[1]])
    assert feed.problems() == (
        [f"{how_many(count, 'frame')} could not be decoded; the previous frame is shown instead"] if count else []
    )


def test_part_after_part_is_read_by_one_decoder(tmp_path: Path) -> None:
    with ClipLoader(EVERY, OPTIONS) as loader:
        feed = feed_of(tmp_path, loader)
        for first in (4, 50, 8):
            assert [row for row, _ in feed.images(first, first + 3)] == [first, first + 1, first + 2]
            assert len(loader._processes) == 1
            process = loader._processes[0]
        assert loader._processes == [process]


def test_some_rows_come_in_order_and_lost_ones_are_left_out(tmp_path: Path) -> None:
    with ClipLoader(EVERY, OPTIONS) as loader:
        feed = feed_of(tmp_path, loader, lost=[50, 51, 52, 53, 54])
        assert [(row, int(picture.max())) for row, picture in feed.at_rows([0, 7, 52, 98])] == [(0, 1), (7, 8), (98, 99)]
        assert feed.problems() == []


def test_rows_past_the_end_of_what_is_left_are_named(tmp_path: Path) -> None:
    with ClipLoader(EVERY, OPTIONS) as loader:
        feed = feed_of(tmp_path, loader, rows=20)
        assert [row for row, _ in feed.images(15, 30)] == [15, 16, 17, 18, 19]
        assert feed.problems() == ["ends at frame 20 of 100: the file now has fewer frames than were scored"]
        with pytest.raises(VideoError):
            list(feed.images(50, 60))


def test_a_file_that_is_no_video_has_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("no video")
    with ClipLoader(EVERY, REAL) as loader, pytest.raises(VideoError):
        list(FrameFeed(loader, 4, path, video="a.mp4", frames=10, fps=10).at_rows([1, 2]))


def test_a_file_rewritten_between_two_parts_is_probed_anew(tmp_path: Path) -> None:
    path = media.make_video(tmp_path / "a.mp4", frames=40, size=(256, 96))
    with ClipLoader(replace(EVERY, size=SizeRule(256 * 96)), REAL) as loader:
        feed = FrameFeed(loader, 4, path, video="a.mp4", frames=40, fps=10)
        list(feed.images(2, 4))
        assert feed.info.frames == 40
        media.make_video(path, frames=30, size=(256, 96))
        assert [media.read_index(picture[..., 0]) for _, picture in feed.images(20, 22)] == [20, 21]
        assert feed.info.frames == 30
