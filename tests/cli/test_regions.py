"""Hidden parts of the picture: events, stored files, skipped videos and messages of a scan."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.commands import vadcli
from tests.media import make_video
from vadcli.store.masks import read_masks

SIZE = (160, 120)
CLOCK = [[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]
CUT = ("--threshold", 0.055, "--low", 0.04)
BLINKS, CROSSES = slice(40, 60), slice(90, 110)


def street(index: int, width: int, height: int) -> np.ndarray:
    """A still picture. A thing jumps at the top left for two seconds; later, another crosses at the bottom right."""
    texture = np.random.default_rng(7).integers(70, 110, (height // 4, width // 4))
    shown = texture.repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8)
    if BLINKS.start <= index < BLINKS.stop:
        left = 8 + 5 * (index - BLINKS.start) % 50
        shown[10:45, left : left + 16] = 240
    if CROSSES.start <= index < CROSSES.stop:
        left = 82 + 3 * (index - CROSSES.start)
        shown[70:105, left : left + 16] = 240
    return shown


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nvr")
    for camera in ("gate", "yard"):
        (folder / camera).mkdir()
    make_video(folder / "gate" / "a.mp4", frames=120, fps=10, size=SIZE, draw=street)
    make_video(folder / "yard" / "b.mp4", frames=12, fps=10, size=SIZE, draw=street)
    return folder


def write(path: Path, **cameras: object) -> Path:
    path.write_text(json.dumps({"format_version": 1, "cameras": cameras}))
    return path


def need(footage: Path, out: Path, *options: object) -> dict[str, str]:
    done = vadcli("scan", footage, "--out", out, *CUT, "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    return {video: need for need, video in (line.split("\t") for line in done.stdout.splitlines())}


def starts(out: Path) -> list[float]:
    return [event["start_s"] for event in json.loads((out / "events/gate/a.mp4.json").read_text())["events"]]


def test_hidden_parts_have_no_score_and_no_mask(footage: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert vadcli("scan", footage, "--out", out, *CUT, "--masks", "video").returncode == 0
    first = starts(out)
    assert [round(start) for start in first] == [4, 9]
    assert json.loads((out / "events/gate/a.mp4.json").read_text())["regions"] is None

    regions = write(tmp_path / "regions.json", gate={"ignore": [CLOCK]}, yrd={"ignore": [CLOCK]})
    assert need(footage, out) == {"gate/a.mp4": "done", "yard/b.mp4": "done"}
    assert need(footage, out, "--ignore", regions) == {"gate/a.mp4": "scan", "yard/b.mp4": "done"}
    again = vadcli("scan", footage, "--out", out, *CUT, "--masks", "video", "--ignore", regions)
    assert again.returncode == 0, again.stderr
    assert "no camera is called yrd; the cameras are gate, yard" in again.stderr
    assert "camera gate: the regions changed, so it is learned again" in again.stderr
    assert [round(start) for start in starts(out)] == [9]
    score = pq.read_table(out / "scores/gate/a.mp4.parquet", partitioning=None).column("score").to_numpy()
    assert score[BLINKS].max() < 0.02
    masks = np.stack(list(read_masks(out / "masks/gate/a.mp4.mkv")))
    assert masks[:, :60, :80].max() == 0
    assert masks[CROSSES, 60:, 80:].max() > masks[: CROSSES.start - 5].max()
    document = json.loads((out / "events/gate/a.mp4.json").read_text())
    assert document["regions"] == {"ignore": [CLOCK], "only": []}
    assert json.loads((out / "run.json").read_text())["config"]["ignore"] == str(regions)
    assert vadcli("events", out, "--validate").returncode == 0
    regions.unlink()  # OUT stores the regions
    assert vadcli("render", footage / "gate", "--out", out).returncode == 0
    with av.open(str(out / "rendered/gate/a.mp4.mp4")) as film:
        drawn = next(film.decode(video=0)).to_ndarray(format="gray")
    assert drawn.shape[1] == 2 * SIZE[0]  # small pictures are enlarged
    assert np.median(drawn[:110, :150]) < 0.75 * np.median(drawn[130:230, 170:])
    write(regions, gate={"ignore": [CLOCK]})
    assert vadcli("events", out, "--write", "--threshold", "0.1").returncode == 0
    assert json.loads((out / "events/gate/a.mp4.json").read_text())["regions"] == document["regions"]
    assert need(footage, out, "--ignore", regions, "--no-refit") == {"gate/a.mp4": "recut", "yard/b.mp4": "recut"}
    assert need(footage, out)["gate/a.mp4"] == "scan"


def test_an_image_hides_its_white_pixels_or_with_only_its_black_ones(footage: Path, tmp_path: Path) -> None:
    image = np.zeros((30, 40), np.uint8)
    image[:15, :20] = 255
    Image.fromarray(image).save(tmp_path / "clock.png")
    Image.fromarray(255 - image).save(tmp_path / "rest.png")
    regions = write(tmp_path / "regions.json", **{"g*": {"ignore": ["clock.png"]}})
    for name, options in (
        ("ignore", ["--ignore", tmp_path / "clock.png"]),
        ("only", ["--only", tmp_path / "rest.png"]),
        ("file", ["--only", regions]),
    ):
        done = vadcli("scan", footage / "gate", "--root", footage, "--out", tmp_path / name, *CUT, *options)
        assert done.returncode == 0, done.stderr
        assert [round(start) for start in starts(tmp_path / name)] == [9]
        assert vadcli("events", tmp_path / name, "--validate").returncode == 0
    models = {(tmp_path / name / "cameras/gate.json").read_text().split('"arrays"')[1] for name in ("ignore", "only", "file")}
    assert len({model.split('"regions"')[0] for model in models}) == 1


def test_every_fault_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "text.png").write_text("no image")
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    bad = write(
        tmp_path / "bad.json",
        gate={"ignore": [[[0, 0], [1, 1]], [[0, 0], [1.5, 0], [1, 1]], "gone.png", "text.png", "black.png"], "olny": []},
        yard={"only": [[[0, 0], ["1", 0], [1, 1]]], "ignore": [[[0, 0], [1, 0], [1, 1], [0, 1]]]},
        lane=[],
    )
    done = vadcli("scan", tmp_path / "a.mp4", "--out", tmp_path / "out", "--ignore", bad)
    assert done.returncode == 2
    faults = [
        "camera gate: `olny` is not known; write ignore or only",
        "camera gate: ignore[0]: a polygon needs at least 3 points, not 2",
        "camera gate: ignore[1]: point [1.5, 0] is outside 0-1",
        "camera gate: ignore[2]: gone.png: can't be read: No such file or directory",
        "camera gate: ignore[3]: text.png: can't be read as an image",
        "camera gate: ignore[4]: black.png: the mask image has no white pixel",
        'camera yard: only[0]: ["1", 0] is not a point [x, y]',
        "camera lane: is not an object with `ignore` and `only`",
        "camera yard: the regions hide the whole picture",
    ]
    assert done.stderr == f"vadcli: error: {bad}: {'; '.join(faults)}\n"
    for name, text, said in (
        ("gone.json", None, "can't be read: No such file or directory"),
        ("list.json", "[]", "not a regions file of format version 1"),
        ("half.json", '{"format_version": 1, "cameras": {', "not JSON"),
        ("text.txt", "left half", "can't be read as an image"),
        ("two.json", '{"format_version": 2, "cameras": {}}', "not a regions file of format version 1"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        done = vadcli("scan", tmp_path / "a.mp4", "--out", tmp_path / "out", "--only", tmp_path / name)
        assert done.returncode == 2
        assert said in done.stderr, name
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_small_things_are_left_out(footage: Path, tmp_path: Path) -> None:
    for percent, said in ((0, "--min-size 0 is outside 0-100"), (100, "--min-size 100 is outside 0-100")):
        done = vadcli("scan", footage, "--out", tmp_path / "out", "--min-size", percent)
        assert (done.returncode, said in done.stderr) == (2, True)
    gate = (footage / "gate", "--root", footage, "--out", tmp_path / "out", *CUT)
    assert vadcli("scan", *gate, "--min-size", 60).returncode == 0
    assert starts(tmp_path / "out") == []  # both things have 35 of 120 pixels
    assert vadcli("scan", *gate, "--min-size", 60, "--dry-run").stdout == "done\tgate/a.mp4\n"
    assert vadcli("scan", *gate, "--dry-run").stdout == "scan\tgate/a.mp4\n"
    again = vadcli("scan", *gate, "--min-size", 10)
    assert again.returncode == 0, again.stderr
    assert [round(start) for start in starts(tmp_path / "out")] == [4, 9]
    other = vadcli("scan", *gate, "--detector", "lavida", "--model", "lavida-tiny", "--min-size", 10, "--no-still", "--dry-run")
    assert "the lavida detector does not look for things that stand still; it ignores --no-still" in other.stderr
    assert "the lavida detector can't tell how large things are; it ignores --min-size" in other.stderr
