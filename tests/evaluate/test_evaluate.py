"""Whole evaluations: their inputs, figures and texts, and sanity checks of the figures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.evaluate.outputs import FPS, SIZE, write_scan, write_truth
from vadcli.errors import DocumentError, UsageError
from vadcli.evaluation import Evaluation, Protocol, collect, compared, measure, to_latex, to_markdown, to_table
from vadcli.evaluation.figures import Estimates
from vadcli.evaluation.plots import curve, draw, frames_for_sheet
from vadcli.ground_truth import open_ground_truth
from vadcli.metrics import Bootstrap, Metric

ROWS = 100
ABNORMAL = {"a.mp4": (2.0, 5.0), "cam/b.mp4": (6.0, 8.0)}


def labels(video: str) -> np.ndarray:
    times = np.arange(ROWS) / FPS
    start_s, end_s = ABNORMAL.get(video, (0.0, 0.0))
    return (times >= start_s) & (times < end_s)


def scores(video: str, seed: int, *, lift: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(rng.uniform(0, 0.6, ROWS) + lift * labels(video), 0, 1)


VIDEOS = ("a.mp4", "cam/b.mp4", "cam/c.mp4")


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    rows = [f"{video},{start},{end},fight" for video, (start, end) in ABNORMAL.items()]
    return write_truth(tmp_path / "truth.csv", [*rows, "cam/c.mp4,,,"])


def evaluate(out: Path, truth: Path, protocol: Protocol | None = None, **options: object) -> tuple[Evaluation, Estimates]:
    protocol = protocol or Protocol(bootstrap=Bootstrap(200))
    test = collect(out, open_ground_truth("csv", truth), **options)  # type: ignore[arg-type]
    estimates = measure(test, protocol)
    return Evaluation.of("csv", test, protocol, estimates), estimates


def figure(report: Evaluation, name: str) -> Metric:
    group, _, key = name.partition(".")
    return report.metrics[group][key]


def test_frame_figures_are_scikit_learns_over_all_rows(tmp_path: Path, truth: Path) -> None:
    given = {video: scores(video, seed) for seed, video in enumerate(VIDEOS)}
    report, _ = evaluate(write_scan(tmp_path / "out", given), truth)
    flat = np.concatenate([given[video].astype(np.float32) for video in VIDEOS])
    wanted = np.concatenate([labels(video) for video in VIDEOS])
    assert figure(report, "frame.auc_micro").value == pytest.approx(roc_auc_score(wanted, flat), abs=1e-9)
    assert figure(report, "frame.ap_micro").value == pytest.approx(average_precision_score(wanted, flat), abs=1e-9)
    macro = figure(report, "frame.auc_macro")
    own = [roc_auc_score(labels(video), given[video].astype(np.float32)) for video in ABNORMAL]
    assert macro.value == pytest.approx(np.mean(own), abs=1e-9)
    assert macro.videos == 2
    assert "1" in macro.note


def test_the_truth_as_scores_is_perfect_and_shuffled_labels_are_chance(tmp_path: Path, truth: Path) -> None:
    perfect, _ = evaluate(write_scan(tmp_path / "perfect", {video: labels(video) * 1.0 for video in VIDEOS}), truth)
    for name in ("frame.auc_micro", "frame.ap_micro", "event.f1_iou_0.5", "event.recall", "category.fight"):
        assert figure(perfect, name).value == pytest.approx(1.0), name
    assert figure(perfect, "event.onset_error_s").value == pytest.approx(0.0)
    assert figure(perfect, "event.false_alarms_per_hour").value == 0.0
    rng = np.random.default_rng(3)
    shuffled = {f"v{number}.mp4": rng.uniform(0, 1, ROWS) for number in range(40)}
    rows = [
        f"{video},{start:.1f},{start + 3:.1f}," for video, start in zip(shuffled, rng.uniform(0, 6, 40).round(1), strict=True)
    ]
    chance, _ = evaluate(write_scan(tmp_path / "chance", shuffled), write_truth(tmp_path / "chance.csv", rows))
    auc = figure(chance, "frame.auc_micro")
    assert auc.ci_low is not None
    assert auc.ci_high is not None
    assert auc.ci_low < 0.5 < auc.ci_high
    assert auc.ci_high - auc.ci_low < 0.1


def test_figures_of_a_scan_that_is_one_frame_late(tmp_path: Path, truth: Path) -> None:
    late = {video: np.roll(labels(video), 1) * 1.0 for video in VIDEOS}
    report, _ = evaluate(write_scan(tmp_path / "out", late), truth)
    assert figure(report, "event.onset_error_s").value == pytest.approx(0.1)
    # 50 of 300 rows are abnormal. Per event, one abnormal row is missed, and one normal row is a false alarm. So the AUC is
    # 1 - (2/50 + 2/250) / 2.
    assert figure(report, "frame.auc_micro").value == pytest.approx(1 - (2 / 50 + 2 / 250) / 2)
    assert figure(report, "event.f1_iou_0.5").value == 1.0  # the IoUs are 29 / 31 and 19 / 21


def test_endpoints_raise_figures_and_are_noted(tmp_path: Path, truth: Path) -> None:
    out = write_scan(tmp_path / "out", {video: scores(video, seed, lift=0.05) for seed, video in enumerate(VIDEOS)})
    plain, _ = evaluate(out, truth)
    flattered, _ = evaluate(out, truth, Protocol(endpoints=True))
    values = [figure(report, "frame.auc_micro").value for report in (plain, flattered)]
    assert values[1] > values[0]
    assert "end points" in to_table([flattered])
    assert "end points" not in to_table([plain])
    assert flattered.to_json()["protocol"]["endpoints"] is True


def test_only_sampled_rows(tmp_path: Path, truth: Path) -> None:
    given = {video: np.repeat(scores(video, seed)[::4], 4) for seed, video in enumerate(VIDEOS)}
    out = write_scan(tmp_path / "out", given, interval=4)
    report, _ = evaluate(out, truth, Protocol(only_sampled=True))
    flat = np.concatenate([given[video][::4].astype(np.float32) for video in VIDEOS])
    wanted = np.concatenate([labels(video)[::4] for video in VIDEOS])
    assert figure(report, "frame.auc_micro").value == pytest.approx(roc_auc_score(wanted, flat), abs=1e-9)


def ped2_like(root: Path, masks: np.ndarray) -> Path:
    """Write a small copy of UCSD's official layout with one test clip."""
    from PIL import Image

    (root / "Test" / "Test001").mkdir(parents=True)
    (root / "Test" / "Test001_gt").mkdir()
    for number, mask in enumerate(masks, 1):
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / "Test" / "Test001" / f"{number:03d}.tif")
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / "Test" / "Test001_gt" / f"{number:03d}.bmp")
    spans = np.flatnonzero(np.diff(masks.any(axis=(1, 2)).astype(int), prepend=0, append=0))
    ranges = ", ".join(f"{start + 1}:{end}" for start, end in zip(spans[::2], spans[1::2], strict=True))
    (root / "Test" / "UCSDped2.m").write_text(f"TestVideoFile = {{}};\nTestVideoFile{{end+1}}.gt_frame = [{ranges}];\n")
    return root


def test_pixel_figures_read_the_mask_video(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wanted = np.zeros((20, *SIZE), bool)
    wanted[5:12, 4:14, 6:20] = True
    stored = np.clip(rng.integers(0, 140, wanted.shape) + 90 * wanted, 0, 255).astype(np.uint8)
    out = write_scan(tmp_path / "out", {"Test001": wanted.any(axis=(1, 2)) * 1.0}, masks={"Test001": stored})
    root = ped2_like(tmp_path / "UCSDped2", wanted)
    test = collect(out, open_ground_truth("ped2", root))
    figures = measure(test, Protocol(groups=("pixel",)))["pixel"]
    assert figures["auc"].value == pytest.approx(roc_auc_score(wanted.ravel(), stored.ravel()), abs=1e-9)
    assert figures["ap"].value == pytest.approx(average_precision_score(wanted.ravel(), stored.ravel()), abs=1e-9)
    ious = [
        (found & there).sum() / (found | there).sum() for found, there in zip(stored[5:12] >= 128, wanted[5:12], strict=True)
    ]
    assert figures["mask_iou"].value == pytest.approx(np.mean(ious))
    small = collect(out, open_ground_truth("ped2", root), pixel_size=(12, 16))
    assert small.pixels is not None
    assert int(small.pixels.positives.sum() + small.pixels.negatives.sum()) == 20 * 12 * 16


def test_masks_of_another_size_are_refused_unless_resized(tmp_path: Path) -> None:
    wanted = np.zeros((6, 12, 16), bool)
    wanted[2:4] = True
    stored = np.zeros((6, *SIZE), np.uint8)
    out = write_scan(tmp_path / "out", {"Test001": [0.1] * 6}, masks={"Test001": stored})
    truth = open_ground_truth("ped2", ped2_like(tmp_path / "UCSDped2", wanted))
    with pytest.raises(DocumentError, match="16x12 pixels, but the video has 32x24"):
        collect(out, truth)
    assert collect(out, truth, pixel_size=(12, 16)).pixels is not None


def test_a_missing_video_is_an_error_unless_allowed(tmp_path: Path, truth: Path) -> None:
    out = write_scan(tmp_path / "out", {video: scores(video, 1) for video in (*VIDEOS[:2], "x.mp4")})
    with pytest.raises(UsageError, match=r"'cam/c\.mp4'"):
        evaluate(out, truth)
    report, _ = evaluate(out, truth, allow_missing=True)
    assert report.to_json()["left_out"] == {"unscored": ["cam/c.mp4"], "unknown": ["x.mp4"], "unmasked": []}
    assert "left out: 1 video without scores" in to_table([report])


def test_no_scan_at_all(tmp_path: Path, truth: Path) -> None:
    with pytest.raises(UsageError, match="has no scores"):
        evaluate(tmp_path, truth)


def test_two_runs_side_by_side(tmp_path: Path, truth: Path) -> None:
    runs = [
        write_scan(tmp_path / name, {video: scores(video, seed, lift=lift) for seed, video in enumerate(VIDEOS)})
        for name, lift in (("good", 0.5), ("poor", 0.1))
    ]
    pairs = [evaluate(run, truth) for run in runs]
    first, second = compared([report for report, _ in pairs], [estimates for _, estimates in pairs])
    assert first.against is None
    assert second.against is not None
    lost = second.against["frame"]["auc_micro"]
    values = [figure(report, "frame.auc_micro").value for report in (first, second)]
    assert lost.value == pytest.approx(values[1] - values[0])
    assert lost.value < 0
    assert f"({lost.value:+.4f}" in to_table([first, second])
    assert second.to_json()["difference_to_first"]["frame"]["auc_micro"]["value"] == lost.value
    same, _ = evaluate(runs[0], truth)
    _, nothing = compared([first, same], [pairs[0][1], pairs[0][1]])
    assert nothing.against is not None
    assert nothing.against["frame"]["auc_micro"] == Metric(0.0, 0.0, 0.0, videos=3, note=lost.note)


def test_other_videos_can_not_be_compared(tmp_path: Path, truth: Path) -> None:
    whole = evaluate(write_scan(tmp_path / "a", {video: scores(video, 1) for video in VIDEOS}), truth)
    part = evaluate(write_scan(tmp_path / "b", {video: scores(video, 1) for video in VIDEOS[:2]}), truth, allow_missing=True)
    with pytest.raises(UsageError, match="different videos"):
        compared([whole[0], part[0]], [whole[1], part[1]])


def test_what_is_printed(tmp_path: Path, truth: Path) -> None:
    report, _ = evaluate(write_scan(tmp_path / "my_out", {video: scores(video, 1) for video in VIDEOS}), truth)
    value = figure(report, "frame.auc_micro").value
    assert f"frame ROC-AUC, all frames       {value:.4f} [" in to_table([report])
    assert f"| frame ROC-AUC, all frames | {value:.4f} [" in to_markdown([report])
    assert rf"frame ROC-AUC, all frames & {value:.4f} [" in to_latex([report])
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["metrics"]["frame"]["auc_micro"]["value"] == value
    assert document["metrics"]["frame"]["auc_micro"]["ci_low"] <= value <= document["metrics"]["frame"]["auc_micro"]["ci_high"]
    assert document["videos"] == 3
    assert document["abnormal_frames"] == 50


def test_figures_are_drawn_and_sheets_show_the_worst_frames(tmp_path: Path, truth: Path) -> None:
    report, _ = evaluate(write_scan(tmp_path / "out", {video: scores(video, seed) for seed, video in enumerate(VIDEOS)}), truth)
    names = [path.name for path in draw([report], tmp_path / "plots")]
    assert names == ["curves.png", "timelines-1.png"]  # no footage, so no sheets
    assert all((tmp_path / "plots" / name).stat().st_size > 5000 for name in names)
    false, found, precision = curve(report.test.frames)
    area = np.trapezoid([0, *found], [0, *false])
    assert area == pytest.approx(figure(report, "frame.auc_micro").value, abs=1e-3)
    assert precision[-1] == pytest.approx(50 / 300)
    alarms, misses = frames_for_sheet(report.test, abnormal=False), frames_for_sheet(report.test, abnormal=True)
    assert [frame.score for frame in alarms] == sorted((frame.score for frame in alarms), reverse=True)
    assert [frame.score for frame in misses] == sorted(frame.score for frame in misses)
    assert len(misses) == 2


def ped2_clips(root: Path, masks: dict[str, np.ndarray]) -> Path:
    """Write Ped2 in the layout with a label table, from the true masks (N, H, W) of each clip."""
    from PIL import Image

    lines = ["clip,frame_index0,label"]
    for clip, wanted in masks.items():
        (root / "test_masks" / clip).mkdir(parents=True)
        for number, mask in enumerate(wanted):
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / "test_masks" / clip / f"{number:03d}.png")
            lines.append(f"{clip},{number},{int(mask.any())}")
    (root / "frame_labels.csv").write_text("\n".join(lines) + "\n")
    return root


def test_masks_of_only_some_videos_are_refused_unless_allowed(tmp_path: Path) -> None:
    wanted = np.zeros((6, *SIZE), bool)
    wanted[2:4, :5] = True
    stored = wanted * np.uint8(200)
    out = write_scan(tmp_path / "out", {"01": [0.1] * 6, "02": [0.2] * 6}, masks={"01": stored})
    truth = open_ground_truth("ped2", ped2_clips(tmp_path / "ped2", {"01": wanted, "02": wanted}))
    with pytest.raises(UsageError, match=r"masks are stored for 1 video, but not for 1, for example '02'"):
        collect(out, truth)
    test = collect(out, truth, allow_missing=True)
    report = Evaluation.of("ped2", test, Protocol(), measure(test, Protocol()))
    assert figure(report, "pixel.auc").videos == 1
    assert "pixel figures use 1 of 2 videos" in to_table([report])
    assert report.to_json()["left_out"]["unmasked"] == ["02"]


def test_a_mask_video_that_ends_early_is_an_error(tmp_path: Path) -> None:
    wanted = np.zeros((6, *SIZE), bool)
    wanted[2:4] = True
    out = write_scan(tmp_path / "out", {"01": [0.1] * 6}, masks={"01": wanted[:4] * np.uint8(200)})
    with pytest.raises(DocumentError, match="has 4 masks instead of 6"):
        collect(out, open_ground_truth("ped2", ped2_clips(tmp_path / "ped2", {"01": wanted})))


def test_a_group_chosen_by_name_needs_its_data(tmp_path: Path, truth: Path) -> None:
    wanted = np.zeros((6, *SIZE), bool)
    wanted[2:4] = True
    out = write_scan(tmp_path / "out", {"01": [0.1] * 6})
    ped2 = collect(out, open_ground_truth("ped2", ped2_clips(tmp_path / "ped2", {"01": wanted})))
    with pytest.raises(UsageError, match="has no masks for pixel metrics"):
        measure(ped2, Protocol(groups=("pixel",)))
    with pytest.raises(UsageError, match="--metrics category"):
        measure(ped2, Protocol(groups=("category",)))
    assert "no pixel figures: no masks are stored" in to_table(
        [Evaluation.of("ped2", ped2, Protocol(), measure(ped2, Protocol()))]
    )


def test_regions_in_a_normal_video_are_false_alarms(tmp_path: Path) -> None:
    """A small copy of UBnormal. One object is found in the abnormal video.

    The normal video has two false regions.
    """
    from PIL import Image

    scene = tmp_path / "UBnormal" / "Scene1"
    folder = scene / "abnormal_scene_1_scenario_1_annotations"
    folder.mkdir(parents=True)
    (folder / "abnormal_scene_1_scenario_1_tracks.txt").write_text("1,2,3\n")
    objects = np.zeros(SIZE, np.uint8)
    objects[4:12, 6:16] = 1
    for frame in range(6):
        Image.fromarray(objects).save(folder / f"abnormal_scene_1_scenario_1_{frame:04d}_gt.png")
    names = ("abnormal_scene_1_scenario_1.mp4", "normal_scene_1_scenario_1.mp4")
    for name in names:
        (scene / name).touch()
    found, false = np.zeros((6, *SIZE), np.uint8), np.zeros((6, *SIZE), np.uint8)
    found[2:4, 4:12, 6:16] = 200
    false[:, 0:5, 0:5], false[:, 10:20, 20:30] = 250, 250
    paths = [f"Scene1/{name}" for name in names]
    truth = open_ground_truth("ubnormal", tmp_path / "UBnormal")

    def rbdc_of(masks: tuple[np.ndarray, np.ndarray]) -> float | None:
        out = write_scan(tmp_path / "out", {path: [0.1] * 6 for path in paths}, masks=dict(zip(paths, masks, strict=True)))
        return measure(collect(out, truth), Protocol(groups=("region",)))["region"]["rbdc"].value

    assert rbdc_of((found, np.zeros_like(false))) == pytest.approx(1.0)
    # 12 false regions in 12 frames score 0.98, and the two true regions score 0.78. So the true regions are found only at one
    # false region per frame.
    assert rbdc_of((found, false)) == pytest.approx(0.0)


@pytest.mark.parametrize("suffix", ["", ".mp4"])
def test_contact_sheets_show_exactly_the_row(tmp_path: Path, suffix: str) -> None:
    """The frames of the worst miss and of the worst false alarm have special grey levels."""
    from PIL import Image

    from tests.media import ffmpeg_exe

    rows, miss, alarm = 30, 17, 4
    frames = tmp_path / "footage" / "clip"
    frames.mkdir(parents=True)
    for row in range(rows):
        level = {miss: 100, alarm: 180}.get(row, 30)
        Image.fromarray(np.full((48, 64), level, np.uint8)).save(frames / f"{row:03d}.png")
    if suffix:
        lossless = ("-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv444p", "-bf", "2")
        made = ("-framerate", str(FPS), "-i", str(frames / "%03d.png"), *lossless, str(frames.with_suffix(suffix)))
        subprocess.run([ffmpeg_exe(), "-v", "error", *made], check=True)
    given = np.full(rows, 0.1)
    given[alarm], given[miss] = 0.9, 0.2
    video = f"clip{suffix}"
    out = write_scan(tmp_path / "out", {video: given}, root=frames.parent)
    report, _ = evaluate(out, write_truth(tmp_path / "truth.csv", [f"{video},1.5,2.5,"]))
    assert len(list(draw([report], tmp_path / "plots"))) == 4
    for name, level in (("lowest-true-events", 100), ("highest-normal-spans", 180)):
        picture = np.asarray(Image.open(tmp_path / "plots" / f"{name}.png").convert("L")).astype(int)
        assert (np.abs(picture - level) <= 3).sum() > 5000, name
