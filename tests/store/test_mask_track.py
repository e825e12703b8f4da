"""Stored masks by row, from either format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vadcli.store import OutputLayout
from vadcli.store.masks import MaskRleWriter, MaskTrack, MaskVideoWriter
from vadcli.types import MaskRows, ScoreTable

VIDEO = "a.mp4"
ROWS, SAMPLED = 12, (2, 5, 6, 9)


def table() -> ScoreTable:
    rows = np.arange(ROWS)
    score = np.full(ROWS, 0.5, np.float32)
    return ScoreTable(VIDEO, rows, rows, rows / 25, score, score * 0, np.isin(rows, SAMPLED), np.ones(ROWS, bool))


@pytest.fixture(params=["video", "rle"])
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> OutputLayout:
    """Return an output folder with four masks. The k-th mask marks column k."""
    stored = OutputLayout(tmp_path)
    path = stored.mask_video(VIDEO) if request.param == "video" else stored.mask_rle(VIDEO)
    path.parent.mkdir(parents=True)
    with MaskVideoWriter(path, 8, 6) if request.param == "video" else MaskRleWriter(path, VIDEO, 8, 6) as writer:
        for number, row in enumerate(SAMPLED):
            mask = np.zeros((6, 8), np.uint8)
            mask[:, number] = 255
            writer.write(mask, *((row / 25,) if request.param == "video" else (row, row)))  # type: ignore[arg-type]
    return stored


def column_at(track: MaskTrack, row: int) -> int | None:
    mask = track.at(row)
    if mask is None:
        return None
    assert mask.dtype == np.uint8
    [column] = np.flatnonzero((mask >= 128).all(axis=0))
    return int(column)


def test_a_mask_stays_until_the_next(layout: OutputLayout) -> None:
    track = MaskTrack(table(), layout)
    assert [column_at(track, row) for row in range(ROWS)] == [None, None, 0, 0, 0, 1, 2, 2, 2, 3, 3, 3]
    assert track.problems == []


def test_rows_may_be_skipped_and_asked_for_again(layout: OutputLayout) -> None:
    track = MaskTrack(table(), layout)
    assert [column_at(track, row) for row in (7, 11, 3, 0, 9)] == [2, 3, 0, None, 3]


def test_the_array_is_the_same_until_the_mask_changes(layout: OutputLayout) -> None:
    track = MaskTrack(table(), layout)
    assert track.at(6) is track.at(8)
    assert track.at(8) is not track.at(9)


def test_the_masks_between_two_rows_are_their_own_alone(layout: OutputLayout) -> None:
    track = MaskTrack(table(), layout)

    def between(start: int, end: int) -> list[tuple[int, int]]:
        return [(row, int(np.flatnonzero((mask >= 128).all(axis=0))[0])) for row, mask in track.between(start, end)]

    assert between(0, 2) == []
    assert between(2, 6) == [(2, 0), (5, 1)]
    assert between(6, 9) == [(6, 2)]
    assert between(9, 99) == [(9, 3)]
    assert between(5, 7) == [(5, 1), (6, 2)]
    assert column_at(track, 7) == 2
    assert between(7, 9) == []
    assert between(0, 99) == [(2, 0), (5, 1), (6, 2), (9, 3)]


def test_no_masks(tmp_path: Path) -> None:
    track = MaskTrack(table(), OutputLayout(tmp_path))
    assert [track.at(row) for row in range(ROWS)] == [None] * ROWS
    assert track.problems == []


def test_damage_is_told_once(layout: OutputLayout) -> None:
    for path in (layout.mask_video(VIDEO), layout.mask_rle(VIDEO)):
        if path.exists():
            path.write_bytes(path.read_bytes()[:40])
    track = MaskTrack(table(), layout)
    assert [track.at(row) for row in (3, 0, 3)] == [None] * 3
    assert len(track.problems) == 1


@pytest.fixture(params=["video", "rle"])
def every_row(request: pytest.FixtureRequest, tmp_path: Path) -> OutputLayout:
    """Return an output folder with twelve masks. The masks of rows 2k and 2k + 1 mark column k."""
    stored = OutputLayout(tmp_path)
    path = stored.mask_video(VIDEO) if request.param == "video" else stored.mask_rle(VIDEO)
    path.parent.mkdir(parents=True)
    kind = MaskRows.EVERY
    video = request.param == "video"
    with MaskVideoWriter(path, 8, 6, rows=kind) if video else MaskRleWriter(path, VIDEO, 8, 6, rows=kind) as writer:
        for row in range(ROWS):
            mask = np.zeros((6, 8), np.uint8)
            mask[:, row // 2] = 255
            writer.write(mask, *((row / 25,) if video else (row, row)))  # type: ignore[arg-type]
    return stored


def test_where_every_row_has_a_mask_each_shows_its_own(every_row: OutputLayout) -> None:
    track = MaskTrack(table(), every_row)
    assert [column_at(track, row) for row in range(ROWS)] == [row // 2 for row in range(ROWS)]
    assert [column_at(track, row) for row in (7, 3, 11)] == [3, 1, 5]
    assert track.at(4) is track.at(5), "an equal mask should cost its reader nothing"
    assert track.problems == []


def test_missing_masks_of_every_row_are_told(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    path = layout.mask_video(VIDEO)
    path.parent.mkdir(parents=True)
    with MaskVideoWriter(path, 8, 6, rows=MaskRows.EVERY) as writer:
        for row in range(4):
            writer.write(np.zeros((6, 8), np.uint8), row / 25)
    track = MaskTrack(table(), layout)
    assert track.at(11) is not None
    assert len(track.problems) == 1
    assert "has 4 masks instead of 12" in track.problems[0]


def write_masks(layout: OutputLayout, kind: str, rows: tuple[int, ...]) -> None:
    """Write an empty mask for each of these rows, as masks of sampled rows."""
    path = layout.mask_video(VIDEO) if kind == "video" else layout.mask_rle(VIDEO)
    path.parent.mkdir(parents=True)
    with MaskVideoWriter(path, 8, 6) if kind == "video" else MaskRleWriter(path, VIDEO, 8, 6) as writer:
        for row in rows:
            writer.write(np.zeros((6, 8), np.uint8), *((row / 25,) if kind == "video" else (row, row)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["video", "rle"])
@pytest.mark.parametrize(
    "rows", [(*SAMPLED, 11), tuple(range(ROWS)), SAMPLED[:-1]], ids=["one more", "of every row", "one less"]
)
def test_masks_of_other_scores_are_told_with_both_numbers(tmp_path: Path, kind: str, rows: tuple[int, ...]) -> None:
    layout = OutputLayout(tmp_path)
    write_masks(layout, kind, rows)
    track = MaskTrack(table(), layout)
    for _ in range(2):
        for row in range(ROWS):
            track.at(row)
    assert len(track.problems) == 1
    assert f"has {len(rows)} masks instead of {len(SAMPLED)}" in track.problems[0]


@pytest.mark.parametrize("kind", ["video", "rle"])
def test_masks_where_no_row_should_have_one_are_told(tmp_path: Path, kind: str) -> None:
    layout, rows = OutputLayout(tmp_path), table()
    write_masks(layout, kind, (2, 5))
    track = MaskTrack(replace(rows, sampled=np.zeros(ROWS, np.bool_)), layout)
    assert [track.at(row) for row in range(ROWS)] == [None] * ROWS
    [problem] = track.problems
    assert "has 2 masks instead of 0" in problem


def test_run_lengths_of_other_rows_are_told(tmp_path: Path) -> None:
    layout = OutputLayout(tmp_path)
    write_masks(layout, "rle", (2, 4, 6, 9))
    track = MaskTrack(table(), layout)
    assert track.at(ROWS - 1) is not None
    [problem] = track.problems
    assert "has a mask of row 4 instead of row 5" in problem
