"""Pairing of scored videos with the truth, and errors for ambiguous and missing videos."""

from __future__ import annotations

from pathlib import Path

import pytest

from vadcli.errors import DocumentError, UsageError
from vadcli.ground_truth import GroundTruth, pair, video_truth
from vadcli.ground_truth.annotation import FrameIntervals


def truth_of(*videos, alone=True):
    class Named(GroundTruth):
        name = "named"
        stem_alone = alone

        def read(self):
            return [video_truth(video, self.root, FrameIntervals(())) for video in videos]

    return Named(Path("/"))


@pytest.mark.parametrize(
    ("scored", "truth"),
    [
        ("cam1/a.mp4", "cam1/a.mp4"),
        ("cam1/a.mkv", "cam1/a.mp4"),
        ("cam1/a", "cam1/a.mp4"),
        ("a.mp4", "cam1/a.mp4"),
        ("site/cam1/a.MP4", "cam1/a.mp4"),
        ("site/cam1/a.mp4", "cam1\\a.mp4"),
        ("Bad.Boys.1995__#01-11-55_label_G-B2-B6.mp4", "Bad.Boys.1995__#01-11-55_label_G-B2-B6"),
        ("caf\u00e9.mp4", "cafe\u0301.mp4"),
    ],
)
def test_folders_in_front_and_suffixes_may_differ(scored, truth):
    assert pair([scored], [truth], stem_alone=False) == {scored: truth}


@pytest.mark.parametrize(
    ("scored", "truth"), [("clip.one", "clip.two"), ("ba.mp4", "a.mp4"), ("cam1/a.mp4", "cam2/a.mp4"), ("A", "a")]
)
def test_other_names_are_other_videos(scored, truth):
    assert pair([scored], [truth], stem_alone=False) == {}


def test_the_same_path_comes_before_the_same_end():
    scored = ["Train/Train001", "test/01", "train/01", "01.avi", "01.mp4"]
    assert pair(scored[1:3], ["test/01"], stem_alone=True) == {"test/01": "test/01"}
    assert pair(scored[3:], ["testing_videos/01.avi"], stem_alone=True) == {"01.avi": "testing_videos/01.avi"}


def test_the_name_decides_only_if_no_other_video_has_it():
    truths = ["testing_videos/01.avi"]
    assert pair(["frames/01"], truths, stem_alone=True) == {"frames/01": truths[0]}
    assert pair(["frames/01", "other/01"], truths, stem_alone=True) == {}
    assert pair(["frames/01"], truths, stem_alone=False) == {}


@pytest.mark.parametrize(
    ("scored", "truths"),
    [(["x/a.mp4", "y/a.mp4"], ["a.mp4"]), (["a.mp4"], ["x/a.mp4", "y/a.mp4"]), (["cam/a.mp4", "cam/a.mkv"], ["cam/a"])],
)
def test_an_ambiguous_pair_is_an_error_that_names_both_videos(scored, truths):
    with pytest.raises(UsageError) as caught:
        pair(scored, truths, stem_alone=True)
    assert all(repr(name) in caught.value.message for name in scored + truths)


def test_names_that_try_to_leave_the_folder_match_nothing_but_themselves():
    assert pair(["etc/passwd"], ["../../etc/passwd"], stem_alone=False) == {"etc/passwd": "../../etc/passwd"}
    assert pair(["b"], ["..", "", "/", "\0"], stem_alone=False) == {}


def test_many_videos_of_one_name_pair_quickly():
    names = [f"cam{number}/video.mp4" for number in range(5000)]
    assert pair(names, [f"site/{name}" for name in names], stem_alone=True) == {name: f"site/{name}" for name in names}


def test_a_truth_without_scores_is_an_error_unless_allowed():
    truth = truth_of("a.mp4", "b.mp4", "c.mp4")
    with pytest.raises(UsageError, match=r"2 of 3 videos of the data set named have no scores: 'b.mp4', 'c.mp4'") as caught:
        truth.match(["a.mp4"])
    assert "--allow-missing" in caught.value.hint
    matching = truth.match(["a.mp4"], allow_missing=True)
    assert list(matching.pairs) == ["a.mp4"]
    assert matching.unscored == ("b.mp4", "c.mp4")
    assert matching.unknown == ()


def test_a_scored_video_without_truth_is_an_error_unless_allowed():
    truth = truth_of("a.mp4")
    with pytest.raises(UsageError, match=r"1 of 2 scored videos are not in the ground truth of .* named: 'train/z.mp4'"):
        truth.match(["a.mp4", "train/z.mp4"])
    assert truth.match(["a.mp4", "train/z.mp4"], allow_missing=True).unknown == ("train/z.mp4",)


def test_no_video_in_common_is_an_error_even_if_missing_is_allowed():
    with pytest.raises(UsageError, match=r"no scored video belongs to the data set named: the scan has 'x', .* has 'a.mp4'"):
        truth_of("a.mp4").match(["x"], allow_missing=True)


def test_pairs_come_in_the_order_of_the_truth_and_long_lists_are_cut():
    names = [f"{number:02d}.mp4" for number in range(9)]
    truth = truth_of(*names)
    assert list(truth.match(reversed(names)).pairs) == names
    with pytest.raises(UsageError, match="and 3 more"):
        truth.match(names[:1])


def test_a_truth_with_a_video_twice_or_without_videos_is_refused():
    with pytest.raises(DocumentError, match=r"'a.mp4' occurs twice"):
        truth_of("a.mp4", "a.mp4").videos()
    with pytest.raises(DocumentError, match="no video"):
        truth_of().videos()


def test_a_missing_root_is_an_error():
    with pytest.raises(UsageError, match="the file or folder does not exist"):
        type(truth_of("a"))(Path("/nonexistent/place"))
