"""The motion detector on small films: what it finds, and what must leave it cold."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from tests.detectors.films import HEIGHT_PX, RUN_PX, WIDTH_PX, clips_of, film, fit, put, scan, street, texture
from vadcli.detectors.motion import MotionOptions, scoring
from vadcli.detectors.motion import detector as motion_detector
from vadcli.detectors.motion.background import grid_for
from vadcli.detectors.motion.camera import FittedCamera
from vadcli.detectors.motion.detector import KeptClips, MotionDetector
from vadcli.detectors.motion.features import ClipMaps
from vadcli.types import CameraModel, CameraSample, ClipBatch

FRAMES = 96
HOUR_S = 3600.0


@pytest.fixture(scope="module")
def detector() -> MotionDetector:
    return MotionDetector()


@pytest.fixture(scope="module")
def usual_street(detector: MotionDetector) -> CameraModel:
    model = fit(detector, [street(FRAMES, seed=seed) for seed in range(1, 9)], start_s=HOUR_S)
    assert model is not None
    return model


def test_a_runner_stands_out_among_walkers_in_time_and_place(detector: MotionDetector, usual_street: CameraModel) -> None:
    run = range(40, 66)
    found = scan(detector, street(FRAMES, seed=9, runner=run), usual_street)
    usual = scan(detector, street(FRAMES, seed=9), usual_street)
    assert found.score.argmax() in run
    assert found.score.max() >= detector.thresholds.high > usual.score.max()
    middle = run[len(run) // 2]
    y, x = np.unravel_index(found.mask[middle].argmax(), found.mask[middle].shape)
    assert abs(4 * x - RUN_PX * (middle - run.start)) < 24
    assert 56 <= 4 * y <= 92


def test_what_runs_all_the_time_is_usual_for_its_camera(detector: MotionDetector) -> None:
    """The same film scores less on a camera that always sees runners."""
    run = range(40, 66)
    runners = [street(FRAMES, seed=seed, runner=range(seed * 8, seed * 8 + 26)) for seed in range(1, 7)]
    busy = fit(detector, runners, start_s=HOUR_S)
    calm = fit(detector, [street(FRAMES, seed=seed) for seed in range(1, 7)], start_s=HOUR_S)
    film_ = street(FRAMES, seed=9, runner=run)
    assert scan(detector, film_, busy).score.max() < 0.8 * scan(detector, film_, calm).score.max()


def still(t: int) -> np.ndarray:
    return texture(0)


LEAVES_COLD: dict[str, Callable[[int], np.ndarray]] = {
    "still": still,
    "black": lambda t: np.zeros((HEIGHT_PX, WIDTH_PX)),
    "dark with strong noise": lambda t: 0.2 * texture(0) + np.random.default_rng(t).normal(0, 12, (HEIGHT_PX, WIDTH_PX)),
    "flicker": lambda t: texture(0) * (1 + 0.12 * np.sin(2.1 * t)),
    "one brightness jump": lambda t: texture(0) * (1.0 if t < 50 else 1.7),
    "light switched on": lambda t: texture(0) * (0.1 if t < 50 else 1.0),
    "fade to black": lambda t: texture(0) * max(0.0, 1 - max(0, t - 40) / 30),
    "cuts": lambda t: texture(t // 24),
    "title card between": lambda t: np.zeros((HEIGHT_PX, WIDTH_PX)) if 30 <= t < 60 else texture(0),
    "keyframe pulses": lambda t: texture(0) + np.random.default_rng(t // 10).normal(0, 4, (15, 20)).repeat(8, 0).repeat(8, 1),
    "flashes": lambda t: texture(0) * (1.8 if t % 40 == 20 else 1.0),
    "a swaying tree": lambda t: np.where(
        np.arange(WIDTH_PX) > 110, np.roll(texture(0), round(1.5 * np.sin(0.7 * t)), axis=1), texture(0)
    ),
}


@pytest.mark.parametrize("kind", LEAVES_COLD)
@pytest.mark.parametrize("fitted", ["itself", "nothing", "a street"])
def test_nothing_that_happens_raises_no_alarm(
    detector: MotionDetector, usual_street: CameraModel, kind: str, fitted: str
) -> None:
    frames = film([LEAVES_COLD[kind](t) for t in range(FRAMES)])
    model = {"itself": lambda: fit(detector, [frames]), "nothing": lambda: None, "a street": lambda: usual_street}[fitted]()
    found = scan(detector, frames, model)
    assert found.score.max() < detector.thresholds.low
    assert found.moving is False


@pytest.mark.parametrize("sway", ["pan", "shake"])
def test_a_moving_camera_is_flagged_and_raises_no_alarm(detector: MotionDetector, sway: str) -> None:
    wide = texture(5, HEIGHT_PX + 20, 2 * WIDTH_PX)
    x = [t if sway == "pan" else round(10 + 5 * np.sin(0.9 * t)) for t in range(FRAMES)]
    frames = film([wide[10 : 10 + HEIGHT_PX, left : left + WIDTH_PX] for left in x])
    for model in (None, fit(detector, [frames])):
        found = scan(detector, frames, model)
        assert found.moving is True
        assert found.score.max() < detector.thresholds.low


def test_repeated_pictures_hide_no_motion(detector: MotionDetector) -> None:
    """A recorder that stores every second picture twice: what runs still stands out, and no frame seems still."""
    run = range(40, 66)
    held = np.arange(FRAMES) // 2 * 2
    model = fit(detector, [street(FRAMES, seed=seed)[held] for seed in range(1, 9)], start_s=HOUR_S)
    found = scan(detector, street(FRAMES, seed=9, runner=run)[held], model)
    usual = scan(detector, street(FRAMES, seed=9)[held], model)
    assert found.score.argmax() in run
    assert found.score.max() >= detector.thresholds.high > usual.score.max()
    assert usual.raw[:, detector.channels.index("speed")].min() > 0.3


def test_the_first_frame_takes_the_seconds_value(detector: MotionDetector, usual_street: CameraModel) -> None:
    found = scan(detector, street(FRAMES, seed=4), usual_street)
    names = detector.channels
    assert found.raw[0, names.index("usable")] == 0.0
    assert found.raw[0, names.index("together")] == pytest.approx(found.raw[1, names.index("together")], rel=0.6)
    assert found.raw[0, names.index("together")] > 0.1


def test_masks_and_scores_read_the_same_scale(detector: MotionDetector, usual_street: CameraModel) -> None:
    """Where the frame is an alarm, so is a part of its mask."""
    found = scan(detector, street(FRAMES, seed=9, runner=range(40, 66)), usual_street)
    alarm = found.score >= 0.5
    highest = found.mask.max(axis=(1, 2))
    assert alarm.any()
    assert np.median(highest[alarm]) >= 0.5
    assert np.median(highest[~alarm]) < 0.5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_very_short_videos(detector: MotionDetector, usual_street: CameraModel, count: int) -> None:
    frames = street(FRAMES)[:count]
    for model in (None, usual_street, fit(detector, [frames])):
        found = scan(detector, frames, model)
        assert found.score.shape == (count,)
        assert found.score.max() < detector.thresholds.high


def test_lost_frames_are_bridged(detector: MotionDetector, usual_street: CameraModel) -> None:
    """Rows that repeat an older picture because theirs was lost neither score nor hide what goes on around them."""
    clip = clips_of(street(32, seed=9, runner=range(4, 28)), length=32, overlap=1)[0]
    lost = slice(12, 16)
    frames, valid = clip.frames.copy(), clip.valid.copy()
    frames[lost], valid[lost] = frames[11], False

    def score(pictures: np.ndarray, flags: np.ndarray) -> np.ndarray:
        batch = ClipBatch(pictures[None], clip.timestamp[None], flags[None], ("v",), (usual_street,), np.array([1]))
        return detector.score(batch).raw[0, :, detector.channels.index("together")]

    whole, holed = score(clip.frames, clip.valid), score(frames, valid)
    np.testing.assert_allclose(holed[:5], whole[:5], rtol=0.05)  # means over time reach the others
    assert holed[16:20].max() > 0.5 * whole[16:20].max()


def test_views_of_one_camera_keep_their_own_usual(detector: MotionDetector) -> None:
    """A road beside a path in one folder: the path's runner stands out although the road is faster."""
    road = film(
        [put(put(texture(40), x=9.0 * t % 200 - 20, y=50, seed=1), x=7.0 * t % 190, y=20, seed=2) for t in range(FRAMES)]
    )
    model = fit(detector, [road, *(street(FRAMES, seed=seed) for seed in range(1, 9)), road], start_s=HOUR_S)
    run = range(40, 66)
    found = scan(detector, street(FRAMES, seed=9, runner=run), model)
    assert found.score.argmax() in run
    assert found.score.max() >= detector.thresholds.high
    assert scan(detector, road, model).score[:-4].max() < detector.thresholds.high  # the last means have one side only


def test_clips_of_different_sizes_make_one_camera(detector: MotionDetector) -> None:
    films = [
        street(40, seed=1),
        street(40, seed=2)[:, :90, :110],
        street(40, seed=3)[:, :1, :1],
        street(40, seed=4)[:, :9, :160],
    ]
    model = fit(detector, films)
    for frames in films:
        assert np.isfinite(scan(detector, frames, model).score).all()


def test_another_night_changes_no_score(detector: MotionDetector) -> None:
    """A film's scores depend on its camera's model and on nothing that was scored before."""
    model = fit(detector, [street(FRAMES, seed=1), street(FRAMES, seed=2)])
    first = scan(detector, street(FRAMES, seed=3), model).score
    scan(detector, street(FRAMES, seed=8, runner=range(10, 60)), model)
    np.testing.assert_array_equal(scan(detector, street(FRAMES, seed=3), model).score, first)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_a_fit_measured_is_used_again_and_changes_no_score(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = clips_of(street(FRAMES, seed=3, runner=range(40, 60)), length=32, overlap=1)
    fitting, fresh = MotionDetector(), MotionDetector()
    fitting.parallel = threads
    model = fitting.fit(CameraSample("c", tuple(clips), seed=0))
    measured: list[int] = []
    measure = scoring.measure
    monkeypatch.setattr(motion_detector, "measure", lambda *given, **named: measured.append(1) or measure(*given, **named))
    for clip in clips:
        batch = ClipBatch.of([clip], [model])
        once, again, anew = fitting.score(batch), fitting.score(batch), fresh.score(batch)
        for found in (again, anew):
            np.testing.assert_array_equal(once.raw, found.raw)
            np.testing.assert_array_equal(once.mask, found.mask)
    assert len(measured) == 2 * len(clips)  # `once` was not measured


def test_what_is_prepared_is_used_by_fit_and_score_and_changes_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = clips_of(street(FRAMES, seed=3, runner=range(40, 60)), length=32, overlap=1)
    prepared, fresh = MotionDetector(), MotionDetector()
    steps: list[int] = []
    once = scoring.clip_steps
    for clip in clips:
        prepared.prepare_clip(clip)
    monkeypatch.setattr(scoring, "clip_steps", lambda *given, **named: steps.append(1) or once(*given, **named))
    model = prepared.fit(CameraSample("c", tuple(clips[1:]), seed=0))  # the first clip is scored, but not in the sample
    scores = [prepared.score(ClipBatch.of([clip], [model])) for clip in clips]
    assert not steps
    same = fresh.fit(CameraSample("c", tuple(clips[1:]), seed=0))
    assert model is not None
    assert same is not None
    assert model.sha256 == same.sha256
    for clip, found in zip(clips, scores, strict=True):
        expected = fresh.score(ClipBatch.of([clip], [same]))
        np.testing.assert_array_equal(found.raw, expected.raw)
        np.testing.assert_array_equal(found.mask, expected.mask)


def test_blas_has_one_thread_in_every_scoring_thread_and_its_own_number_afterwards() -> None:
    def seen() -> list[int]:
        return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]

    def inside() -> list[int]:
        with motion_detector.one_blas_thread():
            return seen()

    before = seen()
    assert set(inside()) == {1}
    with ThreadPoolExecutor(2) as pool:
        assert {number for found in pool.map(lambda _: inside(), range(8)) for number in found} == {1}
    assert inside() == [1] * len(before)
    assert seen() == before


def test_measurements_that_do_not_fit_into_memory_are_dropped() -> None:
    clip = clips_of(street(32, seed=3), length=32, overlap=1)[0]
    grid = grid_for(*clip.frames.shape[1:3], 4, 2.0)
    maps = scoring.measure(
        clip.frames[..., 0],
        timestamp=clip.timestamp,
        seen=clip.valid,
        fitted=FittedCamera(),
        grid=grid,
        options=MotionOptions(),
    )
    assert maps.still is not None
    size = maps.velocity.nbytes + maps.speed.nbytes + maps.disorder.nbytes + maps.still.nbytes
    assert maps.nbytes == size
    kept = KeptClips[ClipMaps](2 * size)
    for key in (b"a", b"b", b"c"):
        kept.put(key, maps, size)
    assert [kept.take(key) is None for key in (b"a", b"b", b"c", b"c")] == [True, False, False, True]


def test_the_seed_decides_which_cells_are_remembered(detector: MotionDetector) -> None:
    clips = tuple(clips_of(street(FRAMES, seed=1), length=32, overlap=0))
    models = [detector.fit(CameraSample("c", clips, seed=seed)) for seed in (0, 0, 1)]
    first, again, other = (model.sha256 for model in models if model is not None)
    assert first == again != other


def test_no_pair_of_frames_makes_no_model(detector: MotionDetector) -> None:
    assert detector.fit(CameraSample("c", ())) is None
