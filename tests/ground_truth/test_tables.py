"""Small copies of the tables of MSAD, CUVA, PreVAD and VAU-Bench, also damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ground_truth.tables import table, true_rows
from vadcli.errors import DocumentError, UsageError
from vadcli.ground_truth import Span, open_ground_truth

SECONDS = [float(second) for second in range(100)]

# MSAD

MSAD = (
    "name,scenario,total frames,starting frame of anomaly,ending frame of anomaly\n"
    "Assault_1,shop,6,2,6\nObject_falling_3,frontdoor,5,1,2\n"
)


def msad(root: Path, text: str = MSAD, *, listed: list[str] | None = None) -> Path:
    (root / "anomaly_annotation.csv").write_text(text)
    if listed is not None:
        folder = root / "RTFM" / "list"
        folder.mkdir(parents=True)
        (folder / "msad-i3d-test.list").write_text("".join(f"/data/{name}_i3d.npy\n" for name in listed))
    return root


def test_msad_counts_from_one_and_includes_both_ends(tmp_path: Path) -> None:
    for root in (msad(tmp_path), tmp_path / "anomaly_annotation.csv"):
        truth = open_ground_truth("msad", root)
        scored = ["Assault/Assault_1.mp4", "Object_falling_3.mp4", "MSAD_normal_testing_7.mp4"]
        pairs = truth.match(scored).pairs
        assert pairs[scored[0]].spans(table("x", 6)) == (Span(1, 6, "assault"),)
        assert pairs[scored[1]].spans(table("x", 5)) == (Span(0, 2, "object falling"),)
        assert pairs[scored[2]].is_normal
    with pytest.raises(DocumentError, match=r"ends at frame 6 .*scores for 2"):
        pairs[scored[0]].spans(table("x", 2))


def test_the_list_of_msad_chooses_the_test_videos(tmp_path: Path) -> None:
    root = msad(tmp_path, listed=["Object_falling_3", "MSAD_normal_testing_1"])
    videos = open_ground_truth("msad", root).videos()
    assert {name: video.is_normal for name, video in videos.items()} == {
        "Object_falling_3.mp4": False,
        "MSAD_normal_testing_1.mp4": True,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MSAD + "Fire_1,shop,6,0,3\n", "line 4: frames 0 to 3 are not an interval with 1 <= first <= last <= 6"),
        (MSAD + "Fire_1,shop,6,3,7\n", "line 4: frames 3 to 7 are not an interval with 1 <= first <= last <= 6"),
        (MSAD + "Fire_1,shop,6,three,7\n", "line 4: the frames of 'Fire_1'"),
        (MSAD + "Fire_1,shop\n", "line 4: the frames of 'Fire_1'"),
        (MSAD + ",shop,6,3,5\n", "line 4: the value of name is empty"),
        ("name,scenario,total frames\n", "the column 'starting frame of anomaly' is missing"),
    ],
)
def test_errors_of_msad_name_the_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DocumentError, match=said):
        open_ground_truth("msad", msad(tmp_path, text)).videos()


def test_a_listed_video_of_msad_without_a_row_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"msad-i3d-test.list: 'Fire_9' is not in anomaly_annotation.csv"):
        open_ground_truth("msad", msad(tmp_path, listed=["Fire_9"])).videos()


# CUVA


def item(video: str, task: str, output: str) -> dict[str, object]:
    return {"ID": 1, "visual_input": video, "task": task, "instruction": "?", "output": output}


CUVA = [
    item("00001.mp4", "Description", "Three masked people broke the window"),
    item("00001.mp4", "Timestamp", "[0012, 0130]"),
    item("00001.mp4", "Classification", "[07]"),
    item("00002.mp4", "Timestamp", " [0000,0002], [0005,0009] "),
    item("00002.mp4", "Timestamp", "[0000,0002]"),
    item("00003.mp4", "Detection", "0"),
]


@pytest.mark.parametrize("lines", [False, True])
def test_cuva_has_minutes_and_seconds(tmp_path: Path, lines: bool) -> None:
    text = "".join(json.dumps(each) + "\n" for each in CUVA) if lines else json.dumps(CUVA, indent=1)
    (tmp_path / "cuva.json").write_text(text)
    truth = open_ground_truth("cuva", tmp_path)
    scored = ["group_0/00001.mp4", "group_0/00002.mp4", "00003.mp4"]
    pairs = truth.match(scored).pairs
    assert pairs[scored[0]].spans(table("x", times=SECONDS)) == (Span(12, 90, "theft"),)
    assert pairs[scored[1]].spans(table("x", times=SECONDS)) == (Span(0, 2, None), Span(5, 9, None))
    assert pairs[scored[1]].categories == ()
    assert pairs[scored[2]].is_normal


@pytest.mark.parametrize(
    ("added", "said"),
    [
        (item("a.mp4", "Timestamp", "from 12 s to 30 s"), r"line 7: .*is not \[mmss, mmss\]"),
        (item("a.mp4", "Timestamp", "[0075, 0090]"), r"line 7: .*is not \[mmss, mmss\]"),
        (item("a.mp4", "Timestamp", "[0020, 0010]"), "line 7: the interval from"),
        (item("a.mp4", "Cause", "A storm."), "'a.mp4' has no item of the task Timestamp"),
        ({"task": "Timestamp"}, "line 7: the value of visual_input is empty"),
        (3, "line 7: is not an object"),
    ],
)
def test_errors_of_cuva_name_the_position(tmp_path: Path, added: object, said: str) -> None:
    (tmp_path / "cuva.json").write_text(json.dumps([*CUVA, added]))
    with pytest.raises(DocumentError, match=said):
        open_ground_truth("cuva", tmp_path / "cuva.json").videos()


def test_a_folder_with_two_json_files_is_refused_as_cuva(tmp_path: Path) -> None:
    for name in ("full.json", "test.json"):
        (tmp_path / name).write_text(json.dumps(CUVA))
    with pytest.raises(UsageError, match="its one JSON file is missing"):
        open_ground_truth("cuva", tmp_path).videos()


# PreVAD

PREVAD = (
    "video_id,path,video_path,class_name,superclass_name,descriptions,anomaly_span\n"
    'a,a.npy,abnormal/a.mp4,Store Robbery,Robbery,"He runs, and falls","[[0.1, 0.32], [0.5, 1.21]]"\n'
    'b,b.npy,abnormal/b_00:01.mp4,Fire,Accident,x,"[0.5, 0.5]"\n'
    "c,c.npy,normal/c.mp4,Normal,Normal,,\n"
)


def test_prevad_has_shares_of_the_video(tmp_path: Path) -> None:
    text = PREVAD.replace('"[0.5, 0.5]"', '"[0.4, 0.6]"')
    (tmp_path / "test.csv").write_text(text)
    truth = open_ground_truth("prevad", tmp_path).videos()
    first = truth["abnormal/a.mp4"]
    assert true_rows(first.labels(table("x", 20))) == [2, 3, 4, 5, *range(10, 20)]
    assert (first.overhang_frames(table("x", 20)), first.categories) == (4, ("store robbery",))
    assert truth["abnormal/b_00:01.mp4"].spans(table("x", 10)) == (Span(4, 6, "fire"),)
    assert truth["normal/c.mp4"].is_normal


def test_the_json_file_of_prevad_gives_the_same_truth(tmp_path: Path) -> None:
    spans = {"abnormal/a.mp4": [[0.1, 0.32], [0.9, 0.7]], "normal/c.mp4": []}
    items = [
        {"video_path": name, "class_name": "Fire" if found else "normal", "anomaly_span": found}
        for name, found in spans.items()
    ]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "prevad_test_anno.json").write_text(json.dumps(items))
    truth = open_ground_truth("prevad", tmp_path).videos()
    assert true_rows(truth["abnormal/a.mp4"].labels(table("x", 20))) == [2, 3, 4, 5]  # an interval that ends before it starts
    assert truth["normal/c.mp4"].is_normal


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PREVAD, "line 3: the class is 'Fire', but the video has 0 intervals"),
        (PREVAD.replace("Normal,Normal,,", 'Normal,Normal,,"[0, 1]"'), "has"),
        (PREVAD.replace('"[0.5, 0.5]"', '"[12, 40]"'), "line 3: .*fractions of the video"),
        (PREVAD.replace('"[0.5, 0.5]"', '"[NaN, 0.4]"'), "line 3: .*fractions of the video"),
        (PREVAD.replace('"[0.5, 0.5]"', "start"), "line 3: .*fractions of the video"),
    ],
)
def test_errors_of_prevad_name_the_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "test.csv").write_text(text)
    with pytest.raises(DocumentError, match=said):
        open_ground_truth("prevad", tmp_path / "test.csv").videos()


# VAU-Bench

HEADER = "Video Name,Question,Option 1,Reasoning,Anomaly Class,Start Time,End Time\n"


def test_vau_bench_has_seconds_and_zeros_for_normal_videos(tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    rows = [
        'Assault_2.mp4,What?,A,"first, then ""x""\nnext line",Assault,0.67,6.67\n',
        "MSAD_normal_testing_1.mp4,?,A,,Normal,0.0,0.0\n",
    ]
    (folder / "test_msad.csv").write_text(HEADER + "".join(rows) + "Assault_2.mp4,Why?,B,,Assault,0.67,6.67\n")
    (folder / "test_ecva.csv").write_text(HEADER + "14.mp4,?,A,,Water Incident,4.0,35.0\n15.mp4,?,A,,Fire,-1,-1\n")
    (folder / "val.csv").write_text("not read\n")
    for root in (tmp_path, folder):
        truth = open_ground_truth("vau-bench", root).videos()
        assert list(truth) == ["14.mp4", "Assault_2.mp4", "MSAD_normal_testing_1.mp4"]
        assert truth["14.mp4"].spans(table("x", times=SECONDS)) == (Span(4, 35, "water incident"),)
        assert truth["Assault_2.mp4"].spans(table("x", times=SECONDS)) == (Span(1, 7, "assault"),)
        assert truth["MSAD_normal_testing_1.mp4"].is_normal
    assert list(open_ground_truth("vau-bench", folder / "test_ecva.csv").videos()) == ["14.mp4"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a.mp4,?,A,,Fire,4,3\n", "line 2: the interval from"),
        ("a.mp4,?,A,,Fire,x,3\n", "line 2: the value of Start Time is 'x'"),
        ("a.mp4,?,A,,Fire,nan,3\n", "line 2: the interval from"),
        ("a.mp4,?,A,,,1,3\n", "line 2: the value of Anomaly Class is empty"),
        ("a.mp4,?,A\n", "line 2: the value of Start Time is ''"),
    ],
)
def test_errors_of_vau_bench_name_the_line(tmp_path: Path, row: str, said: str) -> None:
    (tmp_path / "test_msad.csv").write_text(HEADER + row)
    with pytest.raises(DocumentError, match=said):
        open_ground_truth("vau-bench", tmp_path).videos()
