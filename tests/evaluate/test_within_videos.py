"""ROC-AUC over all frames and within videos: in tables, in the stored document, and in comparisons.

In the comments, a score "beats" a lower score.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.outputs import write_scan, write_truth
from vadcli.evaluation import (
    UNPAIRED,
    Evaluation,
    Protocol,
    TestSet,
    collect,
    compared,
    document_of,
    inputs_of,
    measure,
    merged,
    store_document,
    to_latex,
    to_markdown,
    to_table,
)
from vadcli.ground_truth import open_ground_truth
from vadcli.metrics import Bootstrap, Metric
from vadcli.store import OutputLayout
from vadcli.store.scores import read_scores, write_scores

# Ten rows per second. a has a fight in rows 0 and 1, and a fire in row 2. b has a fight in row 0. c is normal. d has a fight in
# all rows.
VIDEOS = {
    "a.mp4": [0.6, 0.6, 0.9, 0.5, 0.7],
    "b.mp4": [0.2, 0.1, 0.1],
    "c.mp4": [0.95, 0.95],
    "d.mp4": [0.3, 0.3],
}
TRUTH = ["a.mp4,0,0.2,fight", "a.mp4,0.2,0.3,fire", "b.mp4,0,0.1,fight", "c.mp4,,,", "d.mp4,0,0.2,fight"]
OF_FIGHT = np.float32([0.9, 0.9, 0.1, 0.2, 0.3, 0.1, 0.1, 0.2, 0.0, 0.0, 0.5, 0.5])


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return write_truth(tmp_path / "truth.csv", TRUTH)


def read(out: Path, truth: Path) -> TestSet:
    return collect(out, open_ground_truth("csv", truth))


def report_of(test: TestSet, protocol: Protocol | None = None) -> Evaluation:
    protocol = protocol or Protocol()
    return Evaluation.of("csv", test, protocol, measure(test, protocol))


def test_both_figures_worked_out_by_hand(tmp_path: Path, truth: Path) -> None:
    report = report_of(read(write_scan(tmp_path / "out", VIDEOS), truth))
    frame, category = report.metrics["frame"], report.metrics["category"]
    # Of 6 normal rows (.5 .7 .1 .1 .95 .95): .9 beats 4, each .6 beats 3, each .3 and the .2 beat 2.
    assert frame["auc_micro"].value == pytest.approx((4 + 2 * 3 + 3 * 2) / (6 * 6))
    # a: .9 beats both normal rows, each .6 beats one. b: .2 beats both. c and d have only one class.
    assert frame["auc_macro"].value == pytest.approx((4 / 6 + 1) / 2)
    assert frame["auc_macro"].videos == 2
    assert "undefined for 2 of 4 videos" in frame["auc_macro"].note
    assert category["fight"].value == pytest.approx((2 * 3 + 3 * 2) / (5 * 6))
    assert category["fight, within videos"].value == pytest.approx((1 / 2 + 1) / 2)
    assert category["fight, within videos"].videos == 2
    assert "undefined for 1 of 3 videos" in category["fight, within videos"].note
    assert category["fire"].value == pytest.approx(4 / 6)
    assert category["fire, within videos"].value == 1.0
    assert list(category) == ["fight", "fight, within videos", "fire", "fire, within videos"]


def test_both_figures_are_in_every_format(tmp_path: Path, truth: Path) -> None:
    report = report_of(read(write_scan(tmp_path / "out", VIDEOS), truth), Protocol(groups=("frame", "category")))
    titles = [
        "frame ROC-AUC, all frames",
        "frame ROC-AUC, within videos",
        "frame AP, all frames",
        "frame AP, within videos",
        "category: fight",
        "category: fight, within videos",
        "category: fire",
        "category: fire, within videos",
    ]
    assert [line.split("  ")[0] for line in to_table([report]).splitlines()[2:10]] == titles
    assert [line.split(" | ")[0] for line in to_markdown([report]).splitlines()[2:10]] == [f"| {title}" for title in titles]
    assert [line.split(" & ")[0] for line in to_latex([report]).splitlines()] == titles
    stored = json.loads(json.dumps(report.to_json()))["metrics"]
    assert list(stored["frame"]) == ["auc_micro", "auc_macro", "ap_micro", "ap_macro"]
    assert stored["category"]["fight, within videos"]["value"] == pytest.approx(3 / 4)


def test_the_scores_of_the_category_itself(tmp_path: Path, truth: Path) -> None:
    test = read(write_scan(tmp_path / "out", VIDEOS), truth)
    assert test.category_scores == {}
    with_scores = replace(test, category_scores={"fight": OF_FIGHT})
    category = report_of(with_scores).metrics["category"]
    # Of 6 normal rows (.2 .3 .1 .2 0 0): each .9 and .5 beats all, .1 beats 2 and ties with one.
    assert category["fight, own score"].value == pytest.approx((4 * 6 + 2.5) / (5 * 6))
    # a: both fight rows beat both normal rows. b: .1 ties with .1, and is below .2.
    assert category["fight, own score, within videos"].value == pytest.approx((1 + 1 / 4) / 2)
    assert "fire, own score" not in category
    plain = report_of(test).metrics["category"]
    assert {name: category[name] for name in plain} == plain  # the other figures do not change
    assert inputs_of(with_scores) != inputs_of(test)
    sampled = replace(with_scores, frames=replace(test.frames, sampled=np.arange(12) != 0))
    half = report_of(sampled, Protocol(only_sampled=True)).metrics["category"]
    assert half["fight, own score"].value == pytest.approx((3 * 6 + 2.5) / (4 * 6))


@pytest.mark.parametrize(("lacking", "found"), [("", ["fight"]), ("c.mp4", [])])
def test_scores_count_if_every_video_has_them(tmp_path: Path, truth: Path, lacking: str, found: list[str]) -> None:
    """The scan looked for "Fight" and "smoke"; the truth has "fight" and "fire"."""
    out = write_scan(tmp_path / "out", VIDEOS)
    for path in OutputLayout(out).iter_scores():
        table, metadata = read_scores(path)
        if table.video != lacking:
            own = np.stack([table.score * 0, 1 - table.score], axis=1)
            write_scores(path, replace(table, category_names=("smoke", "Fight"), category_scores=own), metadata)
    test = read(out, truth)
    assert list(test.category_scores) == found
    for scores in test.category_scores.values():
        assert scores == pytest.approx(1 - test.frames.scores)
        # The category's scores are 1 minus the scores, so its AUC is 1 minus the AUC.
        category = report_of(test).metrics["category"]
        assert category["fight, own score"].value == pytest.approx(1 - category["fight"].value)


def test_a_category_may_have_the_name_of_a_figure(tmp_path: Path) -> None:
    rows = ["a.mp4,0,0.2,fight", 'b.mp4,0,0.1,"fight, within videos"', "c.mp4,,,", "d.mp4,,,"]
    test = read(write_scan(tmp_path / "out", VIDEOS), write_truth(tmp_path / "truth.csv", rows))
    # The category has only the row of b with .2. It beats .1 .1, but not .9 .5 .7 .95 .95 .3 .3.
    assert report_of(test).metrics["category"]["fight, within videos"].value == pytest.approx(2 / 9)


def test_two_runs_are_paired(tmp_path: Path, truth: Path) -> None:
    protocol = Protocol(groups=("frame", "category"), bootstrap=Bootstrap(100))
    better = {**VIDEOS, "a.mp4": [0.8, 0.8, 0.9, 0.5, 0.7]}
    tests = [read(write_scan(tmp_path / name, given), truth) for name, given in (("first", VIDEOS), ("second", better))]
    pairs = [measure(test, protocol) for test in tests]
    reports = [Evaluation.of("csv", test, protocol, each) for test, each in zip(tests, pairs, strict=True)]
    against = compared(reports, pairs)[1].against
    assert against is not None
    assert against["frame"]["auc_macro"].value == pytest.approx((1 - 4 / 6) / 2)
    gained = against["category"]["fight, within videos"]
    assert gained.value == pytest.approx((1 - 1 / 2) / 2)
    assert gained.ci_low is not None
    assert against["category"]["fight, within videos"].videos == 2
    table = to_table(compared(reports, pairs))
    assert f"({gained.value:+.4f} [{gained.ci_low:+.4f}, {gained.ci_high:+.4f}])" in table


def test_runs_without_frames_of_the_same_videos_are_compared_without_an_interval(tmp_path: Path) -> None:
    """With every 20th row sampled, b has only a fire row, which does not count for the fight."""
    given = {video: np.linspace(0, 1, 20) for video in ("a.mp4", "b.mp4", "c.mp4")}
    truth = write_truth(tmp_path / "truth.csv", ["a.mp4,0,1,fight", "b.mp4,0,1,fire", "c.mp4,1,2,fight"])
    protocol = Protocol(groups=("category",), only_sampled=True, bootstrap=Bootstrap(100))
    tests = [read(write_scan(tmp_path / str(step), given, interval=step), truth) for step in (1, 20)]
    pairs = [measure(test, protocol) for test in tests]
    reports = [Evaluation.of("csv", test, protocol, each) for test, each in zip(tests, pairs, strict=True)]
    against = compared(reports, pairs)[1].against
    assert against is not None
    fight = against["category"]["fight"]
    # The only sampled rows are the first rows. A fight row and a normal row have the same score, so the AUC is 0.5.
    assert fight == Metric(0.5 - pairs[0]["category"]["fight"].value, videos=2, note=UNPAIRED)
    assert against["category"]["fight, within videos"].value is None


def test_stored_figures_of_other_groups_are_kept(tmp_path: Path, truth: Path) -> None:
    """The stored document lacks some figures, as if an earlier version had written it."""
    test = read(write_scan(tmp_path / "out", VIDEOS), truth)
    layout = OutputLayout(test.out)
    earlier = document_of(report_of(test), truth)
    del earlier["metrics"]["category"]["fight, within videos"], earlier["metrics"]["category"]["fire, within videos"]
    earlier["metrics"]["frame"] = {name: earlier["metrics"]["frame"][name] for name in ("auc_micro", "ap_micro")}
    layout.evaluation("csv").parent.mkdir()
    layout.evaluation("csv").write_text(json.dumps(earlier))
    now = document_of(report_of(test, Protocol(groups=("frame",))), truth)
    stored = json.loads(store_document(now, layout).read_text())
    assert list(stored["metrics"]["category"]) == ["fight", "fire"]
    assert list(stored["metrics"]["frame"]) == ["auc_micro", "auc_macro", "ap_micro", "ap_macro"]
    assert merged(earlier, document_of(report_of(test), truth)) == document_of(report_of(test), truth)
