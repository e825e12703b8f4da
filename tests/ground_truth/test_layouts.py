"""A small copy of each official layout: abnormal rows and pixels, and the errors of damaged files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.ground_truth.tables import SIZE, patch, picture, table, true_rows
from vadcli.errors import DocumentError, UsageError
from vadcli.ground_truth import Region, Span, open_ground_truth
from vadcli.registry import DATA_SETS


def labels_of(name: str, root: Path, video: str, rows: int) -> list[int]:
    return true_rows(open_ground_truth(name, root).videos()[video].labels(table(video, rows)))


# UCSD


def ucsd(root: Path, number: int, *, ranges: str = "[2:4, 6]", masks: int = 6) -> Path:
    test = root / f"UCSDped{number}" / "Test"
    for clip in ("Test001", "Test002"):
        for frame in range(1, 7):
            picture(test / clip / f"{frame:03d}.tif")
    for frame in range(1, masks + 1):
        picture(test / "Test001_gt" / f"{frame:03d}.bmp", patch(1, 1, 2, 2) if frame in (2, 3, 4, 6) else None)
    (test / "Test001" / "._001.tif").write_bytes(b"resource fork")
    lines = ["TestVideoFile = {};", f"TestVideoFile{{end+1}}.gt_frame = {ranges};", "TestVideoFile{end+1}.gt_frame = [];"]
    (test / f"UCSDped{number}.m").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("place", [".", "UCSDped{}", "UCSDped{}/Test", "UCSDped{0}/Test/UCSDped{0}.m"])
def test_ucsd_ranges_count_from_one_and_include_both_ends(tmp_path, number, place):
    root = ucsd(tmp_path, number) / place.format(number)
    assert labels_of(f"ped{number}", root, "Test/Test001", 6) == [1, 2, 3, 5]
    truth = open_ground_truth(f"ped{number}", root).videos()
    assert [video.frames for video in truth.values()] == [6, 6]
    assert truth["Test/Test002"].is_normal
    assert not truth["Test/Test002"].has_masks
    masks = [truth["Test/Test001"].mask(row) for row in range(6)]
    assert [bool(mask.any()) for mask in masks] == [False, True, True, True, False, True]
    assert np.array_equal(masks[1], patch(1, 1, 2, 2))
    assert list(open_ground_truth(f"ped{number}", root).match(["Test001", "UCSD/Test/Test002"]).pairs) == [
        "Test001",
        "UCSD/Test/Test002",
    ]


def test_ucsd_without_frames_uses_only_the_ranges(tmp_path):
    (tmp_path / "UCSDped2.m").write_text("TestVideoFile{end+1}.gt_frame = [1:3];\n")
    truth = open_ground_truth("ped2", tmp_path).videos()["Test/Test001"]
    assert truth.frames is None
    assert true_rows(truth.labels(table("Test001", 5))) == [0, 1, 2]


@pytest.mark.parametrize(
    ("ranges", "says"),
    [("[4:2]", "line 2: '4:2'"), ("[0:2]", "'0:2'"), ("[a]", "'a'"), ("[1:99999999999999]", "'1:99"), ("oops", "line 2")],
)
def test_errors_of_ucsd_ranges_name_the_line(tmp_path, ranges, says):
    with pytest.raises(DocumentError) as caught:
        open_ground_truth("ped2", ucsd(tmp_path, 2, ranges=ranges)).videos()
    assert "UCSDped2.m" in caught.value.message
    assert says in caught.value.message


def test_ucsd_ranges_masks_and_clips_must_fit_the_frames(tmp_path):
    with pytest.raises(DocumentError, match="Test001 is abnormal up to frame 7, but has only 6 frames"):
        open_ground_truth("ped2", ucsd(tmp_path / "a", 2, ranges="[5:7]")).videos()
    with pytest.raises(DocumentError, match="has 5 masks for the 6 frames of Test001"):
        open_ground_truth("ped2", ucsd(tmp_path / "b", 2, masks=5)).videos()
    root = ucsd(tmp_path / "c", 2)
    (root / "UCSDped2/Test/Test003").mkdir()
    with pytest.raises(DocumentError, match="has frame ranges of 2 clips, but its folder has 3 clips"):
        open_ground_truth("ped2", root).videos()
    (root / "UCSDped2/Test/Test003").rmdir()
    (root / "UCSDped2/Test/Test002/003.tif").unlink()
    with pytest.raises(DocumentError, match=r"image 3 is missing before 004.tif"):
        open_ground_truth("ped2", root).videos()


def test_a_damaged_or_huge_mask_is_an_error_of_one_line(tmp_path):
    root = ucsd(tmp_path, 2)
    folder = root / "UCSDped2/Test/Test001_gt"
    (folder / "002.bmp").write_bytes(b"BM garbage")
    Image.new("1", (30_000, 30_000)).save(folder / "003.bmp")
    truth = open_ground_truth("ped2", root).videos()["Test/Test001"]
    for row in (1, 2):
        with pytest.raises(DocumentError, match="not a readable image") as caught:
            truth.mask(row)
        assert f"00{row + 1}.bmp" in caught.value.message
    with pytest.raises(DocumentError, match="there is no frame 6: there are 6 frames"):
        truth.mask(6)
    with pytest.raises(DocumentError, match="there is no frame -1"):
        truth.mask(-1)


def label_table(root: Path, text: str) -> Path:
    (root / "frame_labels.csv").write_text(text)
    return root


def test_ped2_label_table_counts_from_zero(tmp_path):
    label_table(tmp_path, "clip,frame_index0,label\n01,0,0\n01,1,1\n02,0,0\n")
    for frame in range(2):
        picture(tmp_path / "test_masks/01" / f"{frame:03d}.png", patch(0, 0, 1, 1) if frame else None, mode="1")
    assert labels_of("ped2", tmp_path, "test/01", 2) == [1]
    truth = open_ground_truth("ped2", tmp_path).videos()["test/01"]
    assert [int(truth.mask(row).sum()) for row in range(2)] == [0, 1]
    assert list(open_ground_truth("ped2", tmp_path).match(["01", "02"]).pairs) == ["01", "02"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("01,1,0\n", "line 2: frame 1 of clip '01' comes where frame 0 should be"),
        ("01,0,0\n01,2,0\n", "line 3"),
        ("01,0,2\n", "line 2: the label is 2"),
        ("01,x,0\n", "line 2"),
        ("01\n", "line 2"),
        ("../../etc,0,0\n", "not the name of a clip"),
    ],
)
def test_errors_of_the_ped2_label_table_name_the_line(tmp_path, body, says):
    with pytest.raises(DocumentError, match=says.replace(".", r"\.")):
        open_ground_truth("ped2", label_table(tmp_path, "clip,frame_index0,label\n" + body)).videos()


# Avenue


def avenue(root: Path, **volumes: int) -> Path:
    folder = root / "ground_truth_demo" / "testing_label_mask"
    folder.mkdir(parents=True, exist_ok=True)
    for clip, frames in volumes.items():
        cells = np.empty((1, frames), object)
        for frame in range(frames):
            cells[0, frame] = (patch(4, 1, 2, 2) if frame >= 3 else np.zeros(SIZE, bool)).astype(np.uint8)
        savemat(folder / f"{clip.removeprefix('clip')}_label.mat", {"volLabel": cells})
    return root


def test_avenue_masks_are_numbered_like_the_frames(tmp_path):
    root = avenue(tmp_path, clip1=5, clip2=3, clip10=4)
    truth = open_ground_truth("avenue", root).videos()
    assert list(truth) == ["testing_videos/01.avi", "testing_videos/02.avi", "testing_videos/10.avi"]
    assert [video.frames for video in truth.values()] == [5, 3, 4]
    assert labels_of("avenue", root, "testing_videos/01.avi", 5) == [3, 4]
    assert truth["testing_videos/02.avi"].is_normal
    assert np.array_equal(truth["testing_videos/01.avi"].mask(4), patch(4, 1, 2, 2))
    assert truth["testing_videos/10.avi"].mask(2).shape == SIZE
    assert not truth["testing_videos/10.avi"].mask(2).any()
    with pytest.raises(DocumentError, match=r"the annotation has 5 frames, but 01.avi has scores for 4: one frame apart"):
        truth["testing_videos/01.avi"].labels(table("01.avi", 4))


def test_avenue_damaged_volumes_are_errors_of_one_line(tmp_path):
    folder = avenue(tmp_path, clip1=3) / "ground_truth_demo/testing_label_mask"
    whole = (folder / "1_label.mat").read_bytes()
    (folder / "2_label.mat").write_bytes(whole[: len(whole) // 2])
    (folder / "3_label.mat").write_bytes(b"not matlab")
    savemat(folder / "4_label.mat", {"other": np.zeros(3)})
    savemat(folder / "5_label.mat", {"volLabel": np.zeros((3, 4))})
    ragged = np.empty((1, 2), object)
    ragged[0, 0], ragged[0, 1] = np.zeros((2, 2)), np.zeros((3, 3))
    savemat(folder / "6_label.mat", {"volLabel": ragged})
    truth = open_ground_truth("avenue", tmp_path).videos()
    assert truth["testing_videos/01.avi"].frames == 3
    for clip in range(2, 7):
        with pytest.raises(DocumentError, match=f"{clip}_label.mat"):
            truth[f"testing_videos/{clip:02d}.avi"].labels(table("x", 3))


def test_avenue_label_lists_number_the_clips_from_zero(tmp_path):
    path = tmp_path / "gt_label.json"
    path.write_text(json.dumps({"0": [0, 1], "1": [1, 1, 0]}))
    for root in (path, tmp_path):
        assert labels_of("avenue", root, "testing_videos/01.avi", 2) == [1]
        assert labels_of("avenue", root, "testing_videos/02.avi", 3) == [0, 1]
        assert not open_ground_truth("avenue", root).videos()["testing_videos/01.avi"].has_masks


def test_avenue_label_arrays_are_named_like_the_clips(tmp_path):
    (tmp_path / "test_frame_mask").mkdir()
    np.save(tmp_path / "test_frame_mask/01.npy", np.array([0, 0, 1], np.uint8))
    assert labels_of("avenue", tmp_path, "testing_videos/01.avi", 3) == [2]


@pytest.mark.parametrize(
    "text", ["[", "[]", "{}", '{"0": 3}', '{"0": [0, 2]}', '{"0": [0, "1"]}', '{"1": [0]}', "[" * 100_000, "\xff"]
)
def test_bad_label_lists_are_errors_of_one_line(tmp_path, text):
    path = tmp_path / "gt_label.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DocumentError) as caught:
        open_ground_truth("avenue", path).videos()
    assert "gt_label.json" in caught.value.message
    assert "\n" not in str(caught.value)


# ShanghaiTech


def shanghai(root: Path) -> Path:
    for folder in ("test_frame_mask", "test_pixel_mask"):
        (root / "testing" / folder).mkdir(parents=True)
    np.save(root / "testing/test_frame_mask/01_0014.npy", np.array([0, 0, 1, 1], np.int8))
    np.save(
        root / "testing/test_pixel_mask/01_0014.npy",
        np.stack([patch(0, 0, 0, 0)] * 2 + [patch(2, 0, 3, 2)] * 2).astype(np.uint8),
    )
    np.save(root / "testing/test_frame_mask/01_0015.npy", np.array([0.0, 0.0]))
    (root / "annotations/ShanghaiTech").mkdir(parents=True)
    (root / "annotations/ShanghaiTech/01_0014.txt").write_text("0,3,2,0,4,1\n0,2,2,0,4,1\n")
    return root


@pytest.mark.parametrize("place", [".", "testing"])
def test_shanghaitech_arrays_count_from_zero(tmp_path, place):
    root = shanghai(tmp_path) / place
    assert labels_of("shanghaitech", root, "testing/frames/01_0014", 4) == [2, 3]
    truth = open_ground_truth("shanghaitech", root).videos()
    assert np.array_equal(truth["testing/frames/01_0014"].mask(2), patch(2, 0, 3, 2))
    assert truth["testing/frames/01_0015"].is_normal
    assert not truth["testing/frames/01_0015"].has_masks
    assert list(open_ground_truth("shanghaitech", root).match(["01_0014", "videos/01_0015.avi"]).pairs) == [
        "01_0014",
        "videos/01_0015.avi",
    ]


def test_shanghaitech_tracked_boxes_include_both_corners(tmp_path):
    truth = open_ground_truth("shanghaitech", shanghai(tmp_path)).videos()
    assert truth["testing/frames/01_0014"].regions == (Region(0, 2, (2, 0, 3, 2)), Region(0, 3, (2, 0, 3, 2)))
    assert truth["testing/frames/01_0014"].has_regions
    assert not truth["testing/frames/01_0015"].has_regions
    (tmp_path / "annotations/ShanghaiTech/01_0014.txt").write_text("0,2,2,0,4,1\n0,2,9,0,4,1\n")
    with pytest.raises(DocumentError, match="line 2"):
        _ = open_ground_truth("shanghaitech", tmp_path).videos()["testing/frames/01_0014"].regions


def test_shanghaitech_damaged_arrays_are_errors_of_one_line(tmp_path):
    folder = shanghai(tmp_path) / "testing/test_frame_mask"
    np.save(folder / "02_0001.npy", np.array([0, 2]))
    np.save(folder / "02_0002.npy", np.zeros((2, 2)))
    np.save(folder / "02_0003.npy", np.array([{}], object), allow_pickle=True)
    (folder / "02_0004.npy").write_bytes(b"")
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"
    (folder / "02_0005.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    truth = open_ground_truth("shanghaitech", tmp_path).videos()
    for clip in range(1, 6):
        with pytest.raises(DocumentError, match=f"02_000{clip}.npy"):
            truth[f"testing/frames/02_000{clip}"].labels(table("x", 2))
    np.save(tmp_path / "testing/test_pixel_mask/01_0015.npy", np.zeros((3, *SIZE)))
    with pytest.raises(DocumentError, match=r"01_0015.npy: has 3 masks for 2 frame labels"):
        open_ground_truth("shanghaitech", tmp_path).videos()


# UBnormal


ABNORMAL, NORMAL = "abnormal_scene_1_scenario_2", "normal_scene_1_scenario_3"


def ubnormal(root: Path, tracks: str = "3,1,2\n5,2,3\n") -> Path:
    scene = root / "Scene1"
    folder = scene / f"{ABNORMAL}_annotations"
    folder.mkdir(parents=True)
    for video in (ABNORMAL, NORMAL):
        (scene / f"{video}.mp4").touch()
    (folder / f"{ABNORMAL}_tracks.txt").write_text(tracks)
    for frame in range(5):
        objects = patch(0, 0, 2, 2) * 3 + patch(4, 2, 2, 1) * 5 + patch(0, 3, 1, 1) * 9
        objects[3, 5] = 3  # a small part of object 3, far from the rest
        picture(folder / f"{ABNORMAL}_{frame:04d}_gt.png", objects.astype(np.uint8))
    return root


def test_ubnormal_tracks_count_from_zero_and_include_the_last(tmp_path):
    root = ubnormal(tmp_path)
    assert labels_of("ubnormal", root, f"Scene1/{ABNORMAL}.mp4", 5) == [1, 2, 3]
    truth = open_ground_truth("ubnormal", root).videos()
    assert truth[f"Scene1/{NORMAL}.mp4"].is_normal
    assert truth[f"Scene1/{NORMAL}.mp4"].mask(2) is None
    matching = open_ground_truth("ubnormal", root).match([f"{ABNORMAL}.mp4", f"{NORMAL}.mp4"])
    assert [video.video for video in matching.pairs.values()] == [f"Scene1/{ABNORMAL}.mp4", f"Scene1/{NORMAL}.mp4"]


def test_ubnormal_masks_have_the_objects_that_are_abnormal_in_the_frame(tmp_path):
    truth = open_ground_truth("ubnormal", ubnormal(tmp_path)).videos()[f"Scene1/{ABNORMAL}.mp4"]
    third, fifth = patch(0, 0, 2, 2) | patch(5, 3, 1, 1), patch(4, 2, 2, 1)
    assert truth.mask(0) is None
    assert np.array_equal(truth.mask(1), third)
    assert np.array_equal(truth.mask(2), third | fifth)
    assert np.array_equal(truth.mask(3), fifth)
    boxes = [(region.track, region.frame, region.box) for region in truth.regions]
    assert boxes == [(0, 1, (0, 0, 2, 2)), (0, 2, (0, 0, 2, 2)), (1, 2, (4, 2, 2, 1)), (1, 3, (4, 2, 2, 1))]


@pytest.mark.parametrize("tracks", ["3,1\n", "3,2,1\n", "0,1,2\n", "3,-1,2\n", "x,1,2\n", "3,1,1e300\n", "3,nan,4\n", "\n"])
def test_ubnormal_bad_tracks_are_errors_of_one_line(tmp_path, tracks):
    with pytest.raises(DocumentError, match=f"{ABNORMAL}_tracks.txt"):
        open_ground_truth("ubnormal", ubnormal(tmp_path, tracks)).videos()


@pytest.mark.parametrize("rows", [4, 6])
def test_ubnormal_of_another_length_than_its_pictures_is_an_error(tmp_path, rows):
    truth = open_ground_truth("ubnormal", ubnormal(tmp_path)).videos()[f"Scene1/{ABNORMAL}.mp4"]
    assert truth.frames == 5
    with pytest.raises(DocumentError, match=f"the annotation has 5 frames, but x has scores for {rows}: one frame apart"):
        truth.labels(table("x", rows))


def test_ubnormal_without_pictures_has_no_length_and_no_masks(tmp_path):
    root = ubnormal(tmp_path)
    for path in root.glob("Scene1/*/*_gt.png"):
        path.unlink()
    truth = open_ground_truth("ubnormal", root).videos()[f"Scene1/{ABNORMAL}.mp4"]
    assert (truth.frames, truth.has_masks, truth.has_regions) == (None, False, False)
    assert true_rows(truth.labels(table("x", 9))) == [1, 2, 3]


def test_ubnormal_tracks_after_the_end_of_the_video_are_errors(tmp_path):
    truth = open_ground_truth("ubnormal", ubnormal(tmp_path, "3.0,1.0,999999999\n")).videos()[f"Scene1/{ABNORMAL}.mp4"]
    with pytest.raises(DocumentError, match=r"ends at frame 1000000000 .*5 frames"):
        truth.labels(table("x", 5))
    with pytest.raises(DocumentError, match=r"there is no frame 7: there are 5 frames"):
        truth.mask(7)
    with pytest.raises(DocumentError, match=r"_0005_gt.png: is missing, although frame 5 is abnormal"):
        _ = truth.regions


def test_ubnormal_missing_picture_is_named(tmp_path):
    root = ubnormal(tmp_path)
    (root / f"Scene1/{ABNORMAL}_annotations/{ABNORMAL}_0002_gt.png").unlink()
    truth = open_ground_truth("ubnormal", root).videos()[f"Scene1/{ABNORMAL}.mp4"]
    assert true_rows(truth.labels(table("x", 5))) == [1, 2, 3]
    with pytest.raises(DocumentError, match=r"_0002_gt.png: is missing, although frame 2 is abnormal"):
        truth.mask(2)


def test_ubnormal_split_lists_choose_the_videos(tmp_path):
    root = ubnormal(tmp_path)
    (root / "scripts").mkdir()
    (root / "scripts/abnormal_test_video_names.txt").write_text(f"{ABNORMAL}\n")
    assert list(open_ground_truth("ubnormal", root).videos()) == [f"Scene1/{ABNORMAL}.mp4"]
    (root / "scripts/normal_test_video_names.txt").write_text("normal_scene_9_scenario_9\n")
    with pytest.raises(DocumentError, match="1 test videos are missing, the first is normal_scene_9_scenario_9"):
        open_ground_truth("ubnormal", root).videos()


# UCF-Crime and XD-Violence


def test_ucf_crime_counts_from_one_and_includes_both_ends(tmp_path):
    name = "Temporal_Anomaly_Annotation_for_Testing_Videos.txt"
    lines = ["Abuse028_x264.mp4  Abuse  2  4  6  7  ", "RoadAccidents001_x264.mp4  RoadAccidents  1  1  -1  -1  "]
    text = "\n".join([*lines, "Normal_Videos_003_x264.mp4  Normal  -1  -1  -1  -1  "])
    (tmp_path / name).write_text(text)
    for root in (tmp_path, tmp_path / name):
        truth = open_ground_truth("ucf-crime", root)
        scored = [
            "Testing_Normal_Videos_Anomaly/Normal_Videos_003_x264.mp4",
            "Abuse/Abuse028_x264.mp4",
            "RoadAccidents001_x264.mkv",
        ]
        pairs = truth.match(scored).pairs
        assert pairs[scored[1]].spans(table("x", 8)) == (Span(1, 4, "abuse"), Span(5, 7, "abuse"))
        assert pairs[scored[2]].categories == ("road accident",)
        assert true_rows(pairs[scored[2]].labels(table("x", 3))) == [0]
        assert pairs[scored[0]].is_normal
        assert pairs[scored[0]].categories == ()


def test_ucf_crime_intervals_may_end_three_frames_after_the_video(tmp_path):
    (tmp_path / "a.txt").write_text("Arson011_x264.mp4  Arson  150  420  680  1267\n")
    truth = open_ground_truth("ucf-crime", tmp_path / "a.txt").videos()["Arson011_x264.mp4"]
    assert truth.spans(table("x", 1266))[-1] == Span(679, 1266, "arson")
    assert truth.overhang_frames(table("x", 1266)) == 1
    assert truth.overhang_frames(table("x", 1267)) == 0
    with pytest.raises(DocumentError, match=r"ends at frame 1267 .*scores for 1263"):
        truth.spans(table("x", 1263))


@pytest.mark.parametrize(
    "line",
    [
        "a.mp4 Abuse 1 2 -1",
        "a.mp4 Abuse 5 2 -1 -1",
        "a.mp4 Abuse 0 2 -1 -1",
        "a.mp4 Abuse 1 -1 -1 -1",
        "a.mp4 Abuse x 2 -1 -1",
        "a.mp4 Abuse -1 -1 -1 -1",
        "a.mp4 Normal 1 2 -1 -1",
        "a.mp4 Picnic 1 2 -1 -1",
        "a.mp4 Abuse 1 " + "9" * 5000 + " -1 -1",
        "a.mp4 Abuse",
    ],
)
def test_errors_of_ucf_crime_name_the_line(tmp_path, line):
    (tmp_path / "a.txt").write_text(f"ok.mp4 Abuse 1 2 -1 -1\n\n{line}\n")
    with pytest.raises(DocumentError, match=r"a.txt, line 3: ") as caught:
        open_ground_truth("ucf-crime", tmp_path / "a.txt").videos()
    assert len(caught.value.message) < 400


def test_a_line_of_one_word_is_bad_too(tmp_path):
    (tmp_path / "a.txt").write_text("a.mp4\n")
    with pytest.raises(DocumentError, match="line 1"):
        open_ground_truth("ucf-crime", tmp_path / "a.txt").videos()


def test_xd_violence_counts_from_zero_and_excludes_the_end(tmp_path):
    (tmp_path / "annotations.txt").write_text("v=38__#1_label_B6-0-0 2 4 6 7\nBad.Boys.1995__#01_label_G-B2-B6.mp4 0 1\n")
    truth = open_ground_truth("xd-violence", tmp_path)
    scored = ["videos/v=38__#1_label_B6-0-0.mp4", "videos/Bad.Boys.1995__#01_label_G-B2-B6.mp4", "videos/Calm__#1_label_A.mp4"]
    pairs = truth.match(scored).pairs
    assert pairs[scored[0]].spans(table("x", 8)) == (Span(2, 4, "car accident"), Span(6, 7, "car accident"))
    assert pairs[scored[1]].spans(table("x", 8)) == (Span(0, 1, None),)
    assert pairs[scored[1]].categories == ("explosion", "shooting", "car accident")
    assert pairs[scored[2]].is_normal


def test_xd_violence_reports_normal_videos_without_scores(tmp_path):
    (tmp_path / "annotations.txt").write_text("a_label_B1-0-0 0 1\n")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/b_label_A.mp4").touch()
    with pytest.raises(UsageError, match=r"1 of 2 videos .*'videos/b_label_A.mp4'"):
        open_ground_truth("xd-violence", tmp_path).match(["a_label_B1-0-0.mp4"])


@pytest.mark.parametrize(
    "line", ["a_label_B1-0-0", "a_label_B1-0-0 1", "a_label_B1-0-0 2 2", "a_label_A 1 2", "a 1 2", "a_label_B3-0-0 1 2"]
)
def test_errors_of_xd_violence_name_the_line(tmp_path, line):
    (tmp_path / "annotations.txt").write_text(f"ok_label_B1-0-0 1 2\n{line}\n")
    with pytest.raises(DocumentError, match=r"annotations.txt, line 2: "):
        open_ground_truth("xd-violence", tmp_path).videos()


# All of them


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_error_for_an_empty_folder_names_the_missing_file(tmp_path, name):
    with pytest.raises((UsageError, DocumentError)) as caught:
        open_ground_truth(name, tmp_path).videos()
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("content", [b"", b"\0\xff\xfe garbage \n\n", b"{]\n,,,\n", b"../../x 1 2\n"])
def test_a_file_of_garbage_is_an_error_of_one_line(tmp_path, name, content):
    path = tmp_path / "truth"
    path.write_bytes(content)
    with pytest.raises((UsageError, DocumentError)) as caught:
        open_ground_truth(name, path).videos()
    assert "\n" not in str(caught.value)
    assert "truth" in caught.value.message


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_device_is_not_read(name):
    with pytest.raises((UsageError, DocumentError)):
        open_ground_truth(name, Path("/dev/zero")).videos()


def test_an_unknown_data_set_lists_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match="'ped3'") as caught:
        open_ground_truth("ped3", tmp_path)
    assert "ped2" in caught.value.hint


def test_categories_are_spelled_like_the_category_lists():
    from vadcli.ground_truth.interval_sets import UCF_CATEGORIES, XD_CATEGORIES

    folder = Path(__file__).resolve().parents[2] / "vadcli" / "categories"
    for name, ours in (("ucf-crime", UCF_CATEGORIES), ("xd-violence", XD_CATEGORIES)):
        lines = (folder / f"{name}.txt").read_text().splitlines()
        assert {line for line in lines if line and not line.startswith("#")} == set(ours.values())
