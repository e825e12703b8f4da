"""Small test sets whose figures are computed by hand.

A mistake in any input changes at least one figure.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluate.outputs import SIZE, Odd, write_scan, write_truth
from tests.store.documents import DOCUMENT
from vadcli.errors import UsageError
from vadcli.evaluation import Evaluation, Protocol, collect, compared, measure, to_table
from vadcli.evaluation.plots import draw
from vadcli.ground_truth import open_ground_truth
from vadcli.metrics import Bootstrap
from vadcli.store import OutputLayout
from vadcli.store.events import Failure, write_events
from vadcli.store.scores import read_scores, write_scores


def scores_with_alarms(rows: int, *alarms: tuple[int, int]) -> np.ndarray:
    """Return (rows,) scores: 0.9 in the alarms, which are (first row, end row), and 0.1 elsewhere."""
    values = np.full(rows, 0.1)
    for start, end in alarms:
        values[start:end] = 0.9
    return values


def evaluated(out: Path, truth: Path, protocol: Protocol | None = None, *, dataset: str = "csv", **options: Any) -> Evaluation:
    protocol = protocol or Protocol()
    test = collect(out, open_ground_truth(dataset, truth), **options)
    return Evaluation.of(dataset, test, protocol, measure(test, protocol))


def longer(out: Path, *, duration_s: float) -> None:
    """Change the durations in the metadata of a scan, as if sound lasted longer than the frames."""
    for path in OutputLayout(out).iter_scores():
        table, metadata = read_scores(path)
        write_scores(path, table, replace(metadata, video={**metadata.video, "duration_s": duration_s}))


def value(report: Evaluation, name: str) -> float | None:
    group, _, key = name.partition(".")
    return report.metrics[group][key].value


def test_a_cut_video_lasts_as_long_as_its_rows(tmp_path: Path) -> None:
    """Only 100 of 1000 frames exist: the true event at the end lasts from 8 to 10 s, and not to 100 s."""
    odd = Odd(promised={"a.mp4": 1000}, damaged={"a.mp4": (3, 4), "b.mp4": (7,)})
    out = write_scan(
        tmp_path / "out", {"a.mp4": scores_with_alarms(100, (20, 30), (80, 100)), "b.mp4": scores_with_alarms(100)}, odd=odd
    )
    report = evaluated(out, write_truth(tmp_path / "truth.csv", ["a.mp4,8,10,", "b.mp4,,,"]))
    assert report.test.events.true[0].tolist() == pytest.approx(np.array([[8.0, 10.0]]))
    assert value(report, "event.f1_iou_0.5") == pytest.approx(2 / 3)  # two predicted, one true, one pair
    assert value(report, "event.false_alarms_per_hour") == pytest.approx(1 / (20 / 3600))
    document = json.loads(json.dumps(report.to_json()))
    assert document["partial"] == ["a.mp4"]
    assert document["damaged_frames"] == {"a.mp4": 2, "b.mp4": 1}
    table = to_table([report])
    assert "note: 1 partial video: " in table
    assert "note: decoded with errors, but used: 3 frames of 2 videos" in table
    whole = evaluated(
        write_scan(tmp_path / "whole", {"a.mp4": scores_with_alarms(100), "b.mp4": scores_with_alarms(100)}),
        tmp_path / "truth.csv",
    )
    assert "partial" not in to_table([whole])
    assert "decoded with errors" not in to_table([whole])


def test_severities_worked_by_hand(tmp_path: Path) -> None:
    """Events with severities 4, 2, 2 and 1 have the scores 0.9, 0.6, 0.7 and 0.2.

    A fifth event has no severity.

    Two overlapping intervals of a fire are one event.
    """
    given = np.full(100, 0.1)
    for start, score in ((10, 0.9), (30, 0.6), (50, 0.7), (70, 0.2), (90, 0.8)):
        given[start + 2] = score
    rows = [
        "a.mp4,1,1.5,fire,3",
        "a.mp4,1.2,2,fire,4",
        "a.mp4,3,4,,2",
        "a.mp4,5,6,,2",
        "b.mp4,7,8,,1.0",
        "b.mp4,9,10,,",
        "c.mp4,,,,",
    ]
    truth = tmp_path / "truth.csv"
    truth.write_text("\n".join(["video,start_s,end_s,category,severity", *rows]) + "\n")
    out = write_scan(tmp_path / "out", {"a.mp4": given, "b.mp4": given, "c.mp4": scores_with_alarms(100)})
    report = evaluated(out, truth)
    assert value(report, "severity.spearman") == pytest.approx(4.5 / np.sqrt(5 * 4.5))
    assert value(report, "severity.kendall") == pytest.approx(5 / np.sqrt(6 * 5))
    assert "note: severity and score, Spearman; severity and score, Kendall: 4 of 5 true events have a severity" in to_table(
        [report]
    )
    plain = evaluated(out, write_truth(tmp_path / "plain.csv", ["a.mp4,1,2,", "b.mp4,,,", "c.mp4,,,"]))
    assert "severity" not in plain.metrics
    with pytest.raises(UsageError, match=r"--metrics severity: the ground truth \(csv\) has no data for this group"):
        measure(plain.test, Protocol(groups=("severity",)))


def squares(root: Path, clips: dict[str, int]) -> Path:
    """Write a ground truth of Ped2, with an abnormal left half in frames 2 to 5 of each clip."""
    lines = ["clip,frame_index0,label"]
    for clip, frames in clips.items():
        (root / "test_masks" / clip).mkdir(parents=True)
        for number in range(frames):
            there = 2 <= number < 6
            Image.fromarray(half(there)).save(root / "test_masks" / clip / f"{number:03d}.png")
            lines.append(f"{clip},{number},{int(there)}")
    (root / "frame_labels.csv").write_text("\n".join(lines) + "\n")
    return root


def half(there: bool, level: int = 255) -> np.ndarray:
    picture = np.zeros(SIZE, np.uint8)
    picture[:, : SIZE[1] // 2] = level * there
    return picture


def test_figures_of_run_lengths_have_a_note_on_two_levels(tmp_path: Path) -> None:
    """The abnormal pixels score 100 of 255. A mask video ranks them perfectly.

    Run lengths at 0.5 do not contain them.
    """
    truth = squares(tmp_path / "ped2", {"01": 8, "02": 8})
    masks = {clip: np.stack([half(2 <= number < 6, 100) for number in range(8)]) for clip in ("01", "02")}
    reports, estimates = [], []
    for name in ("video", "runs"):
        given = {clip: scores_with_alarms(8, (2, 6)) for clip in masks}
        out = write_scan(tmp_path / name, given, masks=masks, odd=Odd(run_lengths=name == "runs"))
        test = collect(out, open_ground_truth("ped2", truth))
        estimates.append(measure(test, Protocol(bootstrap=Bootstrap(100))))
        reports.append(Evaluation.of("ped2", test, Protocol(bootstrap=Bootstrap(100)), estimates[-1]))
    video, runs = reports
    assert (value(video, "pixel.auc"), value(runs, "pixel.auc")) == (1.0, 0.5)
    note = "two levels: run lengths at 0.5"
    assert {name for name, metric in runs.metrics["pixel"].items() if note in metric.note} == {"auc", "ap", "aupro", "aupimo"}
    assert not any(note in metric.note for metric in video.metrics["pixel"].values())
    assert runs.to_json()["two_level_masks"] == ["01", "02"]
    assert note in to_table([runs])
    assert "run lengths" not in to_table([video])
    both = compared(reports, estimates)
    assert "some runs have mask videos, others only run lengths" in to_table(both)
    assert both[1].against is not None
    assert "others only run lengths" in both[1].against["pixel"]["auc"].note
    assert "others only run lengths" not in both[1].against["frame"]["auc_micro"].note


def test_true_events_are_the_intervals_and_rows_may_have_two_categories(tmp_path: Path) -> None:
    """Overlapping intervals of two categories and adjacent intervals stay two events.

    Overlapping intervals of one category (smoke) become one event.
    """
    lines = ["fight,1,3", "fire,2,4", "fall,5,6", "fall,6,7", "smoke,8,9", "smoke,8.5,9.5"]
    rows = ["a.mp4,{1},{2},{0}".format(*line.split(",")) for line in lines]
    values = np.zeros(100)
    values[10:20], values[20:30], values[30:40] = 0.2, 0.6, 0.9  # only fight, fight and fire, only fire
    values[95:] = 0.7
    report = evaluated(write_scan(tmp_path / "out", {"a.mp4": values}), write_truth(tmp_path / "truth.csv", rows))
    wanted = [[1, 3], [2, 4], [5, 6], [6, 7], [8, 9.5]]
    assert np.asarray(report.test.events.true[0]) == pytest.approx(np.array(wanted))
    # 35 normal rows: 30 score 0, and 5 score 0.7. Fight: 10 rows score 0.2 and 10 score 0.6, which is above 30 normal rows.
    # Fire: 10 rows score 0.6, which is above 30 normal rows, and 10 rows score 0.9, which is above all 35.
    assert value(report, "category.fight") == pytest.approx(30 / 35)
    assert value(report, "category.fire") == pytest.approx((30 + 35) / 2 / 35)
    assert value(report, "category.fall") == pytest.approx(15 / 35)  # all score 0, like 30 normal rows; a tie counts half


def test_a_comparison_has_the_figures_of_all_runs_and_notes_name_their_run(tmp_path: Path) -> None:
    truth = squares(tmp_path / "ped2", {"01": 8, "02": 8})
    masks = {clip: np.stack([half(2 <= number < 6) for number in range(8)]) for clip in ("01", "02")}
    given = {clip: scores_with_alarms(8, (2, 6)) for clip in masks}
    plain = write_scan(tmp_path / "plain", given)
    masked = write_scan(tmp_path / "masked", given, masks=masks, odd=Odd(detector="other", damaged={"01": (1,)}))
    table = to_table([evaluated(out, truth, dataset="ped2") for out in (plain, masked)])
    headline, *lines = table.splitlines()
    assert headline.endswith(f"detectors {plain}: fake; {masked}: other")
    assert any(re.fullmatch(r"pixel ROC-AUC +- +1\.0000", line) for line in lines)
    assert f"note: {masked}: decoded with errors, but used: 1 frame of 1 video" in lines
    assert any(line.startswith(f"note: {plain}: no pixel figures") for line in lines)
    assert any(line.startswith("note: onset error") for line in lines)  # both runs have this note, so it names no run


def test_a_whole_evaluation_worked_out_by_hand(tmp_path: Path) -> None:
    """Two videos have frames for 10 s, and their files last 12 s. Every fourth row is sampled.

    a has true events at 2-4 s and 6-8 s. It has alarms at 2.4-4.4 s (IoU 1.6 / 2.4), at 7.6-8.8 s (IoU 0.4 / 2.8), and at
    0.4-0.8 s. b is normal, with an alarm at 4-4.8 s.
    """
    values = {"a.mp4": scores_with_alarms(100, (24, 44), (76, 88), (4, 8)), "b.mp4": scores_with_alarms(100, (40, 48))}
    out = write_scan(tmp_path / "out", values, interval=4)
    longer(out, duration_s=12.0)
    truth = write_truth(tmp_path / "truth.csv", ["a.mp4,2,4,fight", "a.mp4,6,8,fight", "b.mp4,,,"])
    report = evaluated(out, truth)
    assert [value(report, f"event.f1_iou_{level}") for level in (0.1, 0.2, 0.5)] == pytest.approx([4 / 6, 2 / 6, 2 / 6])
    assert value(report, "event.recall") == 1.0
    assert value(report, "event.onset_error_s") == pytest.approx((0.4 + 1.6) / 2)
    assert value(report, "event.false_alarms_per_hour") == pytest.approx(2 / (24 / 3600))
    # 20 of 40 abnormal rows score 0.9, and 4 + 8 + 4 + 8 = 24 of 160 normal rows. Ties count half.
    hit, false = 20 / 40, 24 / 160
    auc = hit * (1 - false) + 0.5 * (hit * false + (1 - hit) * (1 - false))
    assert value(report, "frame.auc_micro") == pytest.approx(auc)
    assert value(report, "category.fight") == pytest.approx(auc)
    assert value(report, "range.pate") is not None
    # The end points add a normal row with score 0, below all others, and an abnormal row with score 1, above all others.
    ended = evaluated(out, truth, Protocol(endpoints=True))
    flattered = (40 * (160 * auc + 1) + 161) / (41 * 161)
    assert value(ended, "frame.auc_micro") == pytest.approx(flattered)
    assert value(ended, "category.fight") == pytest.approx(flattered)


def test_only_sampled_applies_to_categories_and_is_noted(tmp_path: Path) -> None:
    """Of the sampled rows, row 0 is normal and scores 0.1, and row 4 is abnormal and scores 0.9.

    All other rows are wrong.
    """
    out = write_scan(tmp_path / "out", {"a.mp4": [0.1, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1]}, interval=4)
    truth = write_truth(tmp_path / "truth.csv", ["a.mp4,0.4,0.8,fight"])
    # All rows: abnormal 0.9, 0.1, 0.1, 0.1; normal 0.1, 0.9, 0.9, 0.9. Of 16 pairs, one is right and six are ties.
    every, sampled = evaluated(out, truth), evaluated(out, truth, Protocol(only_sampled=True))
    for name in ("frame.auc_micro", "category.fight"):
        assert value(every, name) == pytest.approx(0.25)
        assert value(sampled, name) == 1.0
    note = "note: frame and category figures use only sampled frames"
    assert note in to_table([sampled])
    assert note not in to_table([every])


def test_notes_on_pixel_size_and_on_labels_after_the_end(tmp_path: Path) -> None:
    truth = squares(tmp_path / "ped2", {"01": 8})
    masks = {"01": np.stack([half(2 <= number < 6) for number in range(8)])}
    out = write_scan(tmp_path / "out", {"01": scores_with_alarms(8, (2, 6))}, masks=masks)
    report = evaluated(out, truth, Protocol(pixel_size=(12, 16)), dataset="ped2", pixel_size=(12, 16))
    assert "note: pixel figures at 12x16 (height x width)" in to_table([report])
    lists = tmp_path / "ucf"
    lists.mkdir()
    line = "Abuse028_x264.mp4  Abuse  3  10  -1  -1"  # frames 3 to 10, counted from 1; the video has 8 frames
    (lists / "Temporal_Anomaly_Annotation_for_Testing_Videos.txt").write_text(line + "\n")
    scan = write_scan(tmp_path / "ucf_out", {"Abuse028_x264.mp4": scores_with_alarms(8, (2, 8))})
    overhanging = evaluated(scan, lists, dataset="ucf-crime")
    assert "note: 2 annotated frames lie after the end of their video" in to_table([overhanging])
    assert overhanging.to_json()["overhang_frames"] == 2


def test_a_mask_is_carried_forward_to_rows_without_a_mask(tmp_path: Path) -> None:
    """Only rows 0, 4 and 8 of 12 have masks.

    The left half is abnormal in rows 2 to 5, and in the masks of rows 4 to 7.
    """
    truth = squares(tmp_path / "ped2", {"01": 12})
    masks = {"01": np.stack([half(False), half(True), half(False)])}
    report = evaluated(
        write_scan(tmp_path / "out", {"01": scores_with_alarms(12)}, masks=masks, interval=4), truth, dataset="ped2"
    )
    # Counted in halves of frames: 2 of 4 abnormal halves are in the masks, and 2 of 20 normal halves.
    hit, false = 2 / 4, 2 / 20
    assert value(report, "pixel.auc") == pytest.approx(hit * (1 - false) + 0.5 * (hit * false + (1 - hit) * (1 - false)))
    assert value(report, "pixel.mask_iou") == pytest.approx(2 / 4)
    # In 2 of 4 frames with true pixels, all of them are found. In 2 of 8 normal frames, the left half is a false alarm.
    assert report.to_json()["metrics"]["pixel"]["aupimo"]["curve"] == [[0.125, 0.5], [1.0, 1.0]]
    assert value(report, "pixel.aupimo") == 0.0
    assert [path.name for path in draw([report], tmp_path / "plots")] == ["curves.png", "pimo.png", "timelines-1.png"]
    assert (tmp_path / "plots" / "pimo.png").stat().st_size > 5000


def test_tracks_and_regions_worked_by_hand(tmp_path: Path) -> None:
    """Two of six regions of one track are found, and nothing false.

    RBDC is the share of regions, TBDC that of tracks.
    """
    scene = tmp_path / "UBnormal" / "Scene1"
    name = "abnormal_scene_1_scenario_1"
    folder = scene / f"{name}_annotations"
    folder.mkdir(parents=True)
    (folder / f"{name}_tracks.txt").write_text("1,0,5\n")
    objects = np.zeros(SIZE, np.uint8)
    objects[4:12, 6:16] = 1
    for frame in range(6):
        Image.fromarray(objects).save(folder / f"{name}_{frame:04d}_gt.png")
    (scene / f"{name}.mp4").touch()
    masks = np.zeros((6, *SIZE), np.uint8)
    masks[2:4, 4:12, 6:16] = 200
    video = f"Scene1/{name}.mp4"
    out = write_scan(tmp_path / "out", {video: scores_with_alarms(6)}, masks={video: masks})
    report = evaluated(out, tmp_path / "UBnormal", Protocol(groups=("region",)), dataset="ubnormal")
    assert value(report, "region.rbdc") == pytest.approx(1 / 3)
    assert value(report, "region.tbdc") == pytest.approx(1.0)


def test_a_listed_video_whose_scan_failed_is_named_with_the_reason(tmp_path: Path) -> None:
    out = write_scan(tmp_path / "out", {"a.mp4": scores_with_alarms(20), "b.mp4": scores_with_alarms(20)})
    layout = OutputLayout(out)
    layout.scores("b.mp4").unlink()
    failed = replace(
        DOCUMENT, video={**DOCUMENT.video, "path": "b.mp4"}, events=(), failure=Failure("open", "moov atom not found")
    )
    write_events(layout.events("b.mp4"), failed)
    truth = write_truth(tmp_path / "truth.csv", ["a.mp4,1,2,", "b.mp4,,,"])
    with pytest.raises(UsageError, match=r"the scan of 'b\.mp4' failed: moov atom not found"):
        evaluated(out, truth)
    assert evaluated(out, truth, allow_missing=True).test.unscored == ("b.mp4",)


def test_a_group_without_truth_names_the_data_set(tmp_path: Path) -> None:
    out = write_scan(tmp_path / "out", {"a.mp4": scores_with_alarms(20)})
    with pytest.raises(UsageError, match=r"--metrics region: the ground truth \(csv\) has no data for this group"):
        evaluated(out, write_truth(tmp_path / "truth.csv", ["a.mp4,1,2,"]), Protocol(groups=("region",)))
