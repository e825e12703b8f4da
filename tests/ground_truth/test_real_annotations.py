"""The official annotation files, if the folder ../shared/data has them."""

from __future__ import annotations

import pytest

from tests.ground_truth.tables import table
from vadcli.ground_truth import Span, open_ground_truth

pytestmark = pytest.mark.shared


def test_ucf_crime(shared_data):
    videos = open_ground_truth("ucf-crime", shared_data / "ucf_crime").videos()
    assert len(videos) == 290
    assert sum(not truth.is_normal for truth in videos.values()) == 140
    assert videos["Abuse028_x264.mp4"].spans(table("x", 1412)) == (Span(164, 240, "abuse"),)


@pytest.mark.parametrize(
    ("name", "clips", "abnormal", "frames"), [("avenue", 21, 3712, 15324), ("shanghaitech", 107, 17326, 40791)]
)
def test_frame_labels(shared_data, name, clips, abnormal, frames):
    videos = open_ground_truth(name, shared_data / "labels").videos()
    assert len(videos) == clips
    assert sum(truth.frames for truth in videos.values()) == frames
    assert sum(int(truth.labels(table("x", truth.frames)).sum()) for truth in videos.values()) == abnormal


def test_ped2_masks_have_a_pixel_where_the_label_is_set(shared_data):
    root = shared_data / "ucsd_ped2"
    pairs = open_ground_truth("ped2", root).match(["01", "02", "03", "04", "05", "06"]).pairs
    assert sum(truth.frames for truth in pairs.values()) == 1020
    for scored, truth in pairs.items():
        labels = truth.labels(table(scored, len(list((root / "test" / scored).glob("*.jpg")))))
        assert [bool(truth.mask(row).any()) for row in range(0, len(labels), 7)] == labels[::7].tolist()
        assert truth.mask(0).shape == (240, 360)
