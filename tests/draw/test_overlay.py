"""Rendered frames: their sizes and colours, the pixels that stay unchanged, and text that fits."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.store.documents import DOCUMENT
from vadcli.draw import EVENT, NORMAL, WHOLE_UP_TO_S, HeatLayer, ScoreCurve, column_maxima
from vadcli.draw.overlay import ELLIPSIS, MIN_CANVAS_PX, MIN_TYPE_PX, Geometry, Lettering, Overlay
from vadcli.types import Answer, Event, Regions, ScoreTable, StartTime, Thresholds, TimeSource, Verification
from vadcli.types.media import Polygon

GREY = 120


def table(seconds: float, *, fps: float = 10.0, high: tuple[float, float] = (0.0, 0.0)) -> ScoreTable:
    """Return a table with scores of 0.9 between the two times, and of 0.1 elsewhere."""
    time = np.arange(round(seconds * fps)) / fps
    score = np.where((time >= high[0]) & (time < high[1]), 0.9, 0.1).astype(np.float32)
    rows = np.arange(len(time))
    whole = np.ones(len(time), bool)
    return ScoreTable("a.mp4", rows, rows, time, score, np.log(score / (1 - score)), whole, whole)


def event(start: int, end: int, *, fps: float = 10.0, category: str | None = None) -> Event:
    return Event(1, start, end, start / fps, end / fps, start, start / fps, 0.9, 0.9, category=category)


def overlay(scores: ScoreTable, events: list[Event], *, size: tuple[int, int] = (640, 360), **options: object) -> Overlay:
    place = Geometry.of(*size, side_by_side=bool(options.pop("side_by_side", False)))
    document = replace(DOCUMENT, events=tuple(events), thresholds=Thresholds(), **options)  # type: ignore[arg-type]
    return Overlay(scores, document, place, end_s=len(scores) / 10)


def plain(width: int = 640, height: int = 360) -> NDArray[np.uint8]:
    return np.full((height, width, 3), GREY, np.uint8)


def share_near(picture: NDArray[np.uint8], colour: tuple[int, int, int], *, within: int = 40) -> float:
    """Return the share of a picture whose colour is similar to this colour."""
    return float((np.abs(picture.astype(int) - colour).max(axis=-1) <= within).mean())


@given(st.integers(1, 5000), st.integers(1, 5000), st.booleans())
def test_every_size_gets_an_even_canvas_with_legible_type(width: int, height: int, side_by_side: bool) -> None:
    place = Geometry.of(width, height, side_by_side=side_by_side)
    assert place.width % 2 == place.height % 2 == 0
    assert place.width >= MIN_CANVAS_PX
    assert place.type_px >= MIN_TYPE_PX
    assert place.picture_width == width * place.enlarge
    assert place.picture_height == height * place.enlarge
    assert place.picture_x[-1] + place.picture_width <= place.width
    assert place.height > place.picture_height


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (3, 900), (2000, 30), (320, 240), (720, 1280)])
@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("seconds", [0.1, 5.0, 100.0])
def test_any_size_and_length_is_drawn(size: tuple[int, int], side_by_side: bool, seconds: float) -> None:
    scores = table(seconds)
    drawn = overlay(scores, [event(0, 1)], size=size, side_by_side=side_by_side)
    mask = np.full((size[1], size[0]), 255, np.uint8)
    for row in (0, len(scores) - 1):
        canvas = drawn.draw(plain(*size), row, mask)
        assert canvas.shape == (drawn.geometry.height, drawn.geometry.width, 3)
        assert canvas.dtype == np.uint8


def test_the_picture_is_untouched_without_heat_and_event() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    canvas = overlay(table(20), []).draw(picture, 50)
    np.testing.assert_array_equal(canvas[:360], picture)


def test_hidden_parts_are_striped_and_the_rest_is_untouched() -> None:
    corner = Regions(ignore=(Polygon(((0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.0, 0.5))),))
    picture = np.random.default_rng(0).integers(100, 256, (360, 640, 3), dtype=np.uint8)
    for both in (False, True):
        drawn = overlay(table(20), [], regions=corner, side_by_side=both)
        left = drawn.geometry.picture_x[-1]
        canvas = drawn.draw(picture.copy(), 50)
        shown = canvas[:360, left : left + 640]
        np.testing.assert_array_equal(shown[180:], picture[180:])
        np.testing.assert_array_equal(shown[:, 320:], picture[:, 320:])
        assert shown[:180, :320].mean() < 0.7 * picture[:180, :320].mean()
        assert len(np.unique(shown[:180, :320, 0] > 110)) == 2  # dark, with brighter stripes
        if both:
            np.testing.assert_array_equal(canvas[:360, :640], picture)


def test_faint_heat_leaves_the_picture_and_strong_heat_shows() -> None:
    mask = np.zeros((360, 640), np.uint8)
    mask[:, :320] = 25
    mask[100:200, 400:500] = 230
    canvas = overlay(table(20), []).draw(plain(), 50, mask)[:360].astype(int)
    np.testing.assert_array_equal(canvas[:, :320], GREY)
    np.testing.assert_array_equal(canvas[210:, 510:], GREY)
    inside = canvas[110:190, 410:490].reshape(-1, 3)
    assert (inside[:, 0] - inside[:, 2]).min() > 60  # warm
    assert np.ptp(inside, axis=0).max() == 0


def test_heat_lets_the_picture_through() -> None:
    stripes = plain()
    stripes[:, ::8] = 40
    canvas = overlay(table(20), []).draw(stripes, 50, np.full((360, 640), 255, np.uint8)).astype(int)
    assert canvas[180, 325].sum() - canvas[180, 320].sum() > 0.35 * 3 * (GREY - 40)


def test_heat_gets_brighter_with_the_score() -> None:
    steps = np.repeat(np.linspace(60, 255, 8).astype(np.uint8), 40)[None].repeat(64, axis=0)
    layer, picture = HeatLayer(320, 64, line_px=1, level=128), np.zeros((64, 320, 3), np.uint8)
    layer.draw(picture, steps)
    brightness = picture[32, 20::40].astype(float) @ [0.2126, 0.7152, 0.0722]
    assert np.all(np.diff(brightness) > 0)


def test_a_small_mask_covers_the_same_part_of_the_picture() -> None:
    mask = np.zeros((9, 16), np.uint8)
    mask[3:6, 4:8] = 255
    canvas = overlay(table(20), []).draw(plain(), 50, mask)[:360].astype(int)
    y, x = np.nonzero(canvas[..., 0] - canvas[..., 2] > 60)
    assert 140 <= x.min() < x.max() <= 340
    assert 100 <= y.min() < y.max() <= 260


def test_the_next_mask_replaces_the_one_before() -> None:
    drawn = overlay(table(20), [])
    warm = drawn.draw(plain(), 50, np.full((360, 640), 255, np.uint8))
    cold = drawn.draw(plain(), 51, np.zeros((360, 640), np.uint8))
    assert not np.array_equal(warm[:360], plain())
    np.testing.assert_array_equal(cold[:360], plain())


def test_an_event_has_a_frame_a_plate_and_orange_figures() -> None:
    drawn = overlay(table(20, high=(5, 8)), [event(50, 80)])
    calm, odd = drawn.draw(plain(), 20), drawn.draw(plain(), 60)
    assert share_near(odd[:2, :640], EVENT) == 1
    np.testing.assert_array_equal(odd[20:340, 20:620], plain()[20:340, 20:620])
    head = slice(360, 360 + 2 * drawn.geometry.type_px)
    assert share_near(odd[head], EVENT) > 0.05 > share_near(calm[head], EVENT)
    assert share_near(calm[head], NORMAL) > 0 == share_near(odd[head], NORMAL)


def test_side_by_side_draws_on_the_right_picture_alone() -> None:
    drawn = overlay(table(20, high=(5, 8)), [event(50, 80)], side_by_side=True)
    canvas = drawn.draw(plain(), 60, np.full((360, 640), 255, np.uint8))
    left, right = drawn.geometry.picture_x
    np.testing.assert_array_equal(canvas[:360, left : left + 640], plain())
    assert share_near(canvas[:360, right : right + 640], (GREY, GREY, GREY)) == 0


def test_a_lost_frame_is_marked() -> None:
    scores = table(20)
    lost = replace(scores, decode_ok=np.arange(200) != 50)
    usual = overlay(scores, []).draw(plain(), 50)
    marked = overlay(lost, []).draw(plain(), 50)
    assert not np.array_equal(usual, marked)
    np.testing.assert_array_equal(overlay(scores, []).draw(plain(), 49), overlay(lost, []).draw(plain(), 49))


def test_the_time_of_day_stands_beside_the_time_in_the_video() -> None:
    scores, start = table(20), StartTime(datetime(2026, 3, 1, 23, 59, 50, tzinfo=UTC), TimeSource.NAME)
    for size, shown in (((1280, 720), True), ((320, 240), False)):
        place = Geometry.of(*size)
        without, told = (overlay(scores, [], size=size, start=one).draw(plain(*size), 105) for one in (None, start))
        changed = np.argwhere((without != told).any(axis=-1))
        assert bool(len(changed)) is shown
        if shown:
            (top, left), (bottom, _) = changed.min(axis=0), changed.max(axis=0)
            assert size[1] < top < bottom < size[1] + 2 * place.type_px
            assert left > place.type_px


@pytest.mark.parametrize("category", ["fight", "x" * 300, "Schlägerei", "打架", "line\nbreak", "🔥"])
def test_any_category_fits_between_time_and_score(category: str) -> None:
    scores = table(20, high=(5, 8))
    bare, named = (overlay(scores, [event(50, 80, category=text)], size=(426, 240)) for text in (None, category))
    one, other = bare.draw(plain(426, 240), 60), named.draw(plain(426, 240), 60)
    changed = np.nonzero((one != other).any(axis=(0, 2)))[0]
    assert len(changed)
    assert 5 * named.geometry.type_px < changed.min() < changed.max() < 426 - 2 * named.geometry.type_px


@pytest.mark.parametrize("category", ["fight", None])
def test_the_caption_says_what_a_second_model_says(category: str | None) -> None:
    """If there is little room, the caption keeps the number and the score of the event."""
    asked = replace(event(50, 80, category=category), verification=Verification("qwen2-vl-2b", Answer.REJECTED, -1.0))
    made, bare = (overlay(table(20, high=(5, 8)), [one]) for one in (asked, replace(asked, verification=None)))
    said = ", ".join(filter(None, [category, "rejected by qwen2-vl-2b"]))
    assert made._name_event(0, 10_000) == f"Event 1  ·  {said}  ·  peak 0.90"
    short = made._name_event(0, 200)
    assert (short[:7], short[-9:]) == ("Event 1", "peak 0.90")
    assert (made.draw(plain(), 60) != bare.draw(plain(), 60)).any()


@given(st.text(max_size=60), st.integers(0, 400))
def test_cut_text_fits(text: str, room_px: int) -> None:
    kind = Lettering(14)
    cut = kind.fit(kind.readable(text), room_px)
    assert kind.width_px(cut) <= room_px or not cut
    assert cut in ("", kind.readable(text)) or cut.endswith(ELLIPSIS)


def test_letters_that_no_face_has_lose_their_accents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vadcli.draw.overlay.SYSTEM_FACES", ())
    assert Lettering(17).readable("Schlägerei  é\n打") == "Schlagerei e ?"


@given(
    st.lists(st.tuples(st.floats(0.01, 3), st.floats(0, 1, width=32)), min_size=1, max_size=40),
    st.floats(0, 20),
    st.floats(0.05, 2),
    st.integers(1, 30),
)
def test_columns_hold_the_highest_score_on_show(
    frames: list[tuple[float, float]], start_s: float, step_s: float, columns: int
) -> None:
    time = np.cumsum([gap for gap, _ in frames]) - frames[0][0]
    score = np.array([value for _, value in frames], np.float32)
    edges = start_s + np.arange(columns + 1) * step_s
    value = column_maxima(time, score, edges)
    for column in range(columns):
        on_show = [
            score[row]
            for row in range(len(time))
            if time[row] < edges[column + 1] and (row + 1 == len(time) or time[row + 1] > edges[column])
        ]
        if on_show:
            assert value[column] == max(on_show)
        else:
            assert np.isnan(value[column])


def test_the_curve_is_high_where_the_score_is() -> None:
    curve = ScoreCurve(table(20, high=(5, 10)), [], Thresholds(0.99, 0.99), width=200, height=60, end_s=20)
    picture, playhead = curve.window(19.95)
    assert playhead == 199
    blue = np.abs(np.asarray(picture).astype(int) - NORMAL).max(axis=-1) < 60
    top = [int(column.argmax()) if column.any() else 60 for column in blue.T]
    assert max(top[55:95]) < 15
    assert min(top[5:45] + top[105:195]) > 40


def test_a_long_video_scrolls_and_a_short_one_does_not() -> None:
    short = ScoreCurve(table(WHOLE_UP_TO_S), [], Thresholds(), width=300, height=40, end_s=WHOLE_UP_TO_S)
    assert [short.window(at)[1] for at in (0.0, 15.0, 30.0)] == [0, 100, 200]
    long = ScoreCurve(table(600), [], Thresholds(), width=300, height=40, end_s=600)
    assert [long.window(at)[1] for at in (0.0, 5.0, 100.0, 300.0, 595.0, 599.99)] == [0, 50, 150, 150, 250, 299]


def test_scrolling_moves_the_same_picture() -> None:
    scores = table(200, high=(90, 92))
    curve = ScoreCurve(scores, [], Thresholds(), width=300, height=40, end_s=200)
    one, other = (np.asarray(curve.window(at)[0]) for at in (95.0, 97.0))
    np.testing.assert_array_equal(one[:, 20:150], other[:, :130])


def test_the_strip_shows_even_the_shortest_event() -> None:
    scores = table(3600, high=(1800, 1801))
    curve = ScoreCurve(scores, [event(18_000, 18_001)], Thresholds(), width=300, height=40, end_s=3600)
    strip = np.asarray(curve.strip(300, 8))
    columns = np.flatnonzero(np.abs(strip[4].astype(int) - EVENT).max(axis=-1) < 10)
    assert columns.tolist() == [150, 151]
