"""The parts of the motion detector, each for itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.detectors.films import film, put, texture
from vadcli.detectors.motion import MotionOptions
from vadcli.detectors.motion.background import (
    camera_flow,
    foreground,
    grid_for,
    learn_scenes,
    likeness,
    match_light,
    median_of,
    shown_scene,
)
from vadcli.detectors.motion.camera import FittedCamera, Levels, RaritySamples, Scene, from_model, rarity, to_model
from vadcli.detectors.motion.features import DenseFlow, clip_steps, repeated_rows
from vadcli.types import CameraModel

OPTIONS = MotionOptions()


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_pooling_is_the_mean_of_each_cell(height: int, width: int, seed: int) -> None:
    grid = grid_for(height, width, 4, 2.0)
    pictures = np.random.default_rng(seed).integers(0, 256, (2, height, width), dtype=np.uint8)
    padded = grid.pad(pictures)
    pooled = grid.pool(padded)
    h, w = grid.shape
    assert pooled.shape == (2, -(-height // 4), -(-width // 4)) == (2, h, w)
    expected = padded.reshape(2, h, 4, w, 4).astype(np.float64).mean(axis=(2, 4))
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)
    assert grid.centres(padded[0].astype(np.float32)).shape == (h, w)
    np.testing.assert_allclose(grid.blur(np.ones((h, w), dtype=np.float32)), 1.0, rtol=1e-5)


@pytest.mark.parametrize("shift", [(2, 0), (0, -2), (3, 2)])
def test_flow_follows_a_shift(shift: tuple[int, int]) -> None:
    picture = texture(1, 140, 180).astype(np.uint8)
    x, y = shift
    before, after = picture[10:130, 10:170], picture[10 - y : 130 - y, 10 - x : 170 - x]
    flow = DenseFlow().between(before, after)
    assert np.median(flow[..., 0]) == pytest.approx(x, abs=0.3)
    assert np.median(flow[..., 1]) == pytest.approx(y, abs=0.3)


@pytest.mark.parametrize("size", [(1, 1), (4, 300), (300, 4), (8, 120), (16, 100), (31, 240), (33, 33)])
def test_flow_of_small_and_thin_pictures(size: tuple[int, int]) -> None:
    """OpenCV refuses some of these sizes and crashes the process on others."""
    rng = np.random.default_rng(0)
    before, after = (rng.integers(0, 256, size, dtype=np.uint8) for _ in range(2))
    flow = DenseFlow().between(before, after)
    assert flow.shape == (*size, 2)
    assert np.isfinite(flow).all()


def moving_camera(kind: str) -> np.ndarray:
    y, x = np.mgrid[:30, :40].astype(np.float32)
    flow = {
        "pan": np.stack([np.full_like(x, 3.0), np.full_like(x, -1.0)], axis=-1),
        "zoom": 0.1 * np.stack([x - 20, y - 15], axis=-1),
        "turn": 0.05 * np.stack([y - 15, 20 - x], axis=-1),
    }[kind]
    return flow + np.random.default_rng(0).normal(0, 0.05, flow.shape).astype(np.float32)


@pytest.mark.parametrize("kind", ["pan", "zoom", "turn"])
def test_camera_motion_is_found_beside_something_that_moves_by_itself(kind: str) -> None:
    flow = moving_camera(kind)
    truth = flow.copy()
    flow[10:20, 10:20] += 6.0
    found = camera_flow(flow, texture(1, 30, 40).astype(np.float32))
    assert found is not None
    shared, moves = found
    assert moves
    assert np.abs(shared - truth).mean() < 0.4


def test_a_still_camera_and_noise_are_no_camera_motion() -> None:
    picture = texture(1, 30, 40).astype(np.float32)
    flow = np.zeros((30, 40, 2), dtype=np.float32)
    flow[5:15, 5:15] = 4.0
    assert camera_flow(flow, picture) is None
    noise = np.random.default_rng(0).normal(0, 1.0, flow.shape).astype(np.float32)
    found = camera_flow(noise, picture)
    assert found is None or not found[1]
    assert camera_flow(moving_camera("pan"), np.full((30, 40), 90, dtype=np.float32)) is None


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.sampled_from([np.float32, np.float64]))
def test_the_fast_median_is_the_median(values: list[float], kind: type) -> None:
    given_values = np.array(values, kind)
    found, expected = median_of(given_values), np.median(given_values)
    assert (found, found.dtype) == (expected, expected.dtype)


def test_the_fast_median_of_pictures_is_the_median_of_each_pixel() -> None:
    for count in (1, 2, 8, 9):
        pictures = texture(count, 12 * count, 20).reshape(count, 12, 20).astype(np.float32)
        np.testing.assert_array_equal(median_of(pictures), np.median(pictures, axis=0))


@given(st.floats(0.6, 1.8), st.floats(-40, 40))
def test_light_is_matched_around_what_stands_there(gain: float, offset: float) -> None:
    scene = texture(2, 30, 40).astype(np.float32)
    lit = (gain * scene + offset).astype(np.float32)
    picture = lit.copy()
    picture[10:20, 10:16] += 80
    clear = np.ones(scene.shape, dtype=bool)
    clear[10:20, 10:16] = False
    assert np.abs(match_light(scene, picture) - lit)[clear].mean() < 3.0


@given(st.lists(st.tuples(st.floats(0.3, 2.5), st.floats(-60, 60)), max_size=4))
def test_light_of_several_pictures_is_matched_as_for_each_alone(lights: list[tuple[float, float]]) -> None:
    scene = texture(2, 16, 24).astype(np.float32)
    pictures = np.zeros((len(lights), *scene.shape), np.float32)
    for picture, (gain, offset) in zip(pictures, lights, strict=True):
        picture[:] = np.clip(gain * scene + offset, 0, 255)
    alone = [match_light(scene, picture) for picture in pictures]
    np.testing.assert_array_equal(match_light(scene, pictures), np.reshape(alone, pictures.shape))


def test_views_are_told_apart_and_light_is_not_a_view() -> None:
    rng = np.random.default_rng(0)
    one, other = texture(1, 30, 40).astype(np.float32), texture(2, 30, 40).astype(np.float32)
    shots = [np.stack([light * view + rng.normal(0, 2, view.shape) for _ in range(8)]).astype(np.float32)
             for view, light in [(one, 1.0), (other, 1.0), (one, 0.8), (one, 1.2), (other, 1.1)]]  # fmt: skip
    scenes = learn_scenes(shots, 8)
    assert len(scenes) == 2
    assert likeness(scenes[0], one) > 0 > likeness(scenes[0], other)
    assert likeness(scenes[1], other) > 0
    assert len(learn_scenes(shots, 1)) == 1


def test_foreground_is_what_stands_before_the_scene() -> None:
    scene = texture(1, 30, 40).astype(np.float32)
    shot = np.repeat(0.9 * scene[None], 6, axis=0)
    shot[:, 10:16, 10:14] += 60
    background, number = shown_scene(shot, {3: scene, 5: texture(2, 30, 40).astype(np.float32)})
    gate = foreground(shot, background, OPTIONS)
    assert number == 3
    assert gate[:, 11:15, 11:13].min() > 0.9
    assert gate[:, 20:].max() < 0.2
    _, unknown = shown_scene(np.repeat(texture(7, 30, 40)[None].astype(np.float32), 6, axis=0), {3: scene})
    assert unknown == -1


def samples_at(value: float, count: int, *, video: int, time_s: float) -> RaritySamples:
    features = np.zeros((count, 4), dtype=np.float32)
    features[:, 1] = value
    same = np.zeros(count, dtype=np.int64)
    return RaritySamples(features, same, same + video, np.full(count, time_s))


def test_rarity_is_the_distance_to_what_is_usual() -> None:
    samples = samples_at(1.0, 100, video=1, time_s=0.0)
    query = np.zeros((2, 4), dtype=np.float32)
    query[:, 1] = [1.0, 4.0]
    np.testing.assert_allclose(rarity(query, samples, video=2, time_s=0.0, options=OPTIONS), [0.0, 3.0], atol=1e-3)


def test_a_thing_does_not_make_itself_usual() -> None:
    usual, fight = samples_at(1.0, 100, video=1, time_s=50.0), samples_at(4.0, 100, video=1, time_s=10.0)
    both = RaritySamples(*(np.concatenate([a, b]) for a, b in
                           [(usual.features, fight.features), (usual.scene, fight.scene), (usual.video, fight.video),
                            (usual.time_s, fight.time_s)]))  # fmt: skip
    query = np.zeros((1, 4), dtype=np.float32)
    query[:, 1] = 4.0

    def at(video: int, time_s: float) -> float:
        return float(rarity(query, both, video=video, time_s=time_s, options=OPTIONS)[0])

    assert at(1, 11.5) == pytest.approx(3.0, abs=1e-3)
    assert at(1, 12.5) == at(2, 11.5) == pytest.approx(0.0, abs=1e-3)


def test_rarity_is_unknown_with_too_little_to_compare_with() -> None:
    samples = samples_at(1.0, 10, video=1, time_s=0.0)
    assert not rarity(np.ones((3, 4), dtype=np.float32), samples, video=2, time_s=0.0, options=OPTIONS).any()


@pytest.mark.parametrize(
    ("activity", "expected"),
    [
        ([0, 5, 5, 5, 5], []),
        ([0, 0, 0, 0, 0], []),
        ([0, 0, 0, 6, 0, 0, 6, 0, 0, 6], [(1, 4), (4, 7), (7, 10)]),
        ([0, 0, 6, 0, 6, 0, 6, 0], [(1, 3), (3, 5), (5, 8)]),  # the last repeats, though its next step is in the next clip
        ([0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9], [(5, 9)]),  # begins to move after a long stillness
        ([0, 1, 8, 1, 8], []),  # little is not nothing
    ],
)
def test_repeated_pictures_share_the_step_that_follows(activity: list[float], expected: list[tuple[int, int]]) -> None:
    usable = np.ones(len(activity), dtype=bool)
    usable[0] = False
    found = repeated_rows(np.array(activity, dtype=np.float32), usable)
    assert [(one.start, one.end) for one in found] == expected


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_stretches_are_short_apart_and_within_usable_rows(activity: list[float], seed: int) -> None:
    usable = np.random.default_rng(seed).random(len(activity)) < 0.9
    found = repeated_rows(np.array(activity, dtype=np.float32), usable)
    rows = [row for one in found for row in range(one.start, one.end)]
    assert len(rows) == len(set(rows))
    assert usable[rows].all()
    assert all(one.start <= one.source < one.end for one in found)


def test_a_camera_survives_storage() -> None:
    background = texture(1, 30, 40).astype(np.float32)
    scene = Scene(120, 160, background, Levels(3.0, 1.5, 0.7, 0.4))
    camera = FittedCamera((scene,), samples=samples_at(1.0, 30, video=-5, time_s=2.0), rarity_power=0.3)
    model = to_model(camera, "gate", "motion")
    again = from_model(CameraModel.from_json(model.to_json()))
    assert to_model(again, "gate", "motion").sha256 == model.sha256
    assert (again.tail, again.rarity_power, again.scenes[0].levels) == (camera.tail, 0.3, scene.levels)
    assert again.backgrounds(120, 160).keys() == {0}
    assert again.backgrounds(60, 80) == {}
    assert from_model(None).samples is None


@pytest.mark.parametrize("rate_hz", [5.0, 8.0, 12.5])
def test_speeds_do_not_depend_on_how_often_frames_are_sampled(rate_hz: float) -> None:
    times = np.arange(8) / rate_hz
    frames = film([put(texture(0), x=20 + 40 * t, y=40, seed=7, size=(48, 48)) for t in times.tolist()])
    steps = clip_steps(
        frames,
        timestamp=times,
        seen=np.ones(8, dtype=bool),
        grid=grid_for(*frames.shape[1:], OPTIONS.cell_px, OPTIONS.blur_cells),
        options=OPTIONS,
    )
    fastest = np.hypot(*steps.velocity)[1:].max(axis=(1, 2))  # 40 pixels per second are 4 pixels per step
    assert np.median(fastest) == pytest.approx(4.0, rel=0.25)
