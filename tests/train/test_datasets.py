"""Tests of the segmentation data sets, with small copies in their official layouts."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco

from tests.train import miniatures
from tests.train.miniatures import HEIGHT, MINIATURES, WIDTH, label_map, moving, write_json, write_map, write_picture
from tests.train.small import PAPER_MIX
from vadcli.errors import DocumentError, UsageError, VadcliError
from vadcli.train import ExposureOptions
from vadcli.train.datasets import (
    MAX_PIXELS,
    TRAINING_SETS,
    ClipRule,
    DiskData,
    Reduction,
    decode_mask,
    open_data,
    read_frame,
    read_labels,
)
from vadcli.train.datasets.images import RefCoco
from vadcli.train.samples import AnomalyExposureSampler, Mixture, Segmentation


def opened(name: str, folder: Path, **rule: int) -> DiskData:
    return open_data(name, MINIATURES[name](folder), rule=ClipRule(**rule))


def masks(clip: Segmentation) -> dict[str, np.ndarray]:
    """Return the masks of a clip by name: True where an object with this name is visible."""
    return {name: np.any([item.masks for item in clip.objects if item.name == name], axis=0) for name in clip.names}


@pytest.mark.parametrize("name", sorted(TRAINING_SETS))
def test_every_data_set_keeps_the_protocol(name: str, tmp_path: Path) -> None:
    data, again = opened(name, tmp_path / "a"), opened(name, tmp_path / "b")
    assert data.name == name
    assert len(data) == len(again) > 0
    keys = set()
    for index in range(len(data)):
        clip = data[index]
        keys.add(clip.key)
        assert clip.names == data.names(index)
        assert clip.names
        assert (clip.frames == again[index].frames).all()
        for item in clip.objects:
            assert item.masks.any(), f"{item.name} is not in {clip.key}"
            # The red of a pixel is 20 times the number of its object, so objects are redder than the background.
            red = clip.frames[..., 0].astype(int)
            if name not in ("cityscapes", "mapillary"):
                assert red[item.masks].mean() > 12 + red[~np.any([one.masks for one in clip.objects], axis=0)].mean()
    assert len(keys) == len(data)
    assert data.fingerprint() == again.fingerprint()
    assert data.fingerprint() != open_data(name, tmp_path / "a", rule=ClipRule(max_side=8)).fingerprint()
    with pytest.raises(IndexError):
        data[len(data)]


def test_the_papers_mix_names_every_data_set() -> None:
    assert set(PAPER_MIX) == set(TRAINING_SETS) == set(MINIATURES)


def test_youtube_vos_by_categories(tmp_path: Path) -> None:
    data = opened("youtube-vos", tmp_path)
    # 19 frames give clips of 8: 0–7, 8–15, and 11–18, which is moved back to end with the video. 5 frames give one clip.
    assert [data[index].key for index in range(len(data))] == ["ape/00000", "ape/00040", "ape/00055", "bee/00000"]
    assert [data.names(index) for index in range(len(data))] == [("ape", "person"), ("ape",), ("ape",), ("bee",)]
    first = masks(data[0])
    for frame in range(8):
        wanted = label_map({1: moving(1, frame)}) == 1
        assert (first["ape"][frame] == wanted).all()
        assert first["person"][frame].any() == (frame < 4)
    assert (masks(data[2])["ape"][0] == (label_map({1: moving(1, 11)}) == 1)).all()


def test_a_short_video_repeats_its_last_picture_and_two_objects_share_a_name(tmp_path: Path) -> None:
    clip = opened("youtube-vos", tmp_path)[3]
    assert clip.frames.shape == (8, HEIGHT, WIDTH, 3)
    assert (clip.frames[4:] == clip.frames[4]).all()
    assert not (clip.frames[3] == clip.frames[4]).all()
    assert [item.name for item in clip.objects] == ["bee", "bee"]
    assert (masks(clip)["bee"][0] == (label_map({1: moving(1, 0), 3: moving(3, 0)}) > 0)).all()


def test_ref_youtube_vos_by_expressions(tmp_path: Path) -> None:
    data = opened("ref-youtube-vos", tmp_path)
    assert data.names(0) == ("a black ape going right", "the ape", "a person at the right")
    assert data.names(1) == ("a black ape going right", "the ape")
    assert data.names(3) == ("the upper bee", "the lower bee")
    shown = masks(data[0])
    assert (shown["the ape"] == shown["a black ape going right"]).all()
    assert (masks(data[3])["the lower bee"][0] == (label_map({3: moving(3, 0)}) == 3)).all()


def test_mevis_by_expressions_of_one_or_more_objects(tmp_path: Path) -> None:
    data = opened("mevis", tmp_path, frames=5)
    assert [data[index].key for index in range(len(data))] == ["cat/00000", "cat/00005", "dog/00000", "dog/00005"]
    assert data.names(0) == ("the cat moving right", "cats that move", "the cat moving down")
    assert data.names(1) == ("the cat moving right", "cats that move")  # object 2 has left the video
    shown = masks(data[0])
    for frame in range(5):
        both = {number: moving(number, frame) for number in ((1, 2) if frame < 4 else (1,))}
        assert (shown["cats that move"][frame] == (label_map(both) > 0)).all()
    assert not shown["the cat moving down"][4].any()


def test_ref_davis_takes_every_third_picture_and_mends_spelling(tmp_path: Path) -> None:
    data = opened("ref-davis", tmp_path)
    # 25 frames; a clip of 8 spans 22 frames. The clips are 0, 3, …, 21 and, moved back to the end, 3, 6, …, 24.
    assert [data[index].key for index in range(len(data))] == ["bear/00000", "bear/00003", "motorbike/00000", "motorbike/00003"]
    assert data.names(0) == ("a brown bear", "the bear, naïve")
    assert data.names(2) == ("a man", "a motorbike", "the rider")
    shown = masks(data[1])["a brown bear"]
    assert (shown[7] == (label_map({1: moving(1, 24)}) == 1)).all()


def test_ref_davis_after_conversion_is_read_as_well(tmp_path: Path) -> None:
    root = miniatures.ref_youtube_vos(tmp_path)
    meta = json.loads((root / "train/meta.json").read_text())
    for video in meta["videos"].values():  # the conversion lists no frames
        for item in video["objects"].values():
            del item["frames"]
    write_json(root / "train/meta.json", meta)
    data = open_data("ref-davis", root, rule=ClipRule(frames=4))
    assert data.name == "ref-davis"
    assert [data[index].key for index in range(len(data))] == ["ape/00000", "ape/00045", "bee/00000"]
    # If the frames of an object are unknown, the object counts as visible in every clip.
    assert data.names(1) == ("a black ape going right", "the ape", "a person at the right")


def test_refcoco_groups_an_images_expressions(tmp_path: Path) -> None:
    data = opened("refcoco", tmp_path)
    assert [data[index].key for index in range(len(data))] == [
        "refcoco/COCO_train2014_000000000001.jpg",
        "refcoco+/COCO_train2014_000000000001.jpg",
        "refcocog/COCO_train2014_000000000002.jpg",
    ]
    assert data.names(0) == ("left man", "man in red", "right man")
    shown = masks(data[0])
    assert shown["left man"].shape == (1, HEIGHT, WIDTH)
    assert (shown["left man"][0] == (label_map({1: (4, 8)}) == 1)).all()
    assert (shown["right man"][0] == (label_map({1: (12, 16)}) == 1)).all()
    assert RefCoco(tmp_path, split="testA", sets=["refcoco"]).names(0) == ("boy",)
    with pytest.raises(UsageError, match="refclef is not a RefCOCO data set"):
        RefCoco(tmp_path, sets=["refclef"])


def test_ade20k_by_the_first_of_each_categorys_names(tmp_path: Path) -> None:
    data = opened("ade20k", tmp_path)
    assert [data.names(index) for index in range(len(data))] == [("wall", "sky"), ("building",)]
    assert (masks(data[0])["sky"][0] == (label_map({3: (10, 10)}) == 3)).all()
    assert len(open_data("ade20k", tmp_path / "ADEChallengeData2016", split="validation")) == 1


def test_cityscapes_by_the_categories_that_count(tmp_path: Path) -> None:
    data = opened("cityscapes", tmp_path)
    assert [data.names(index) for index in range(len(data))] == [("road", "car"), ("road", "person")]
    assert (masks(data[0])["car"][0] == (label_map({26: (0, 0)}) == 26)).all()
    assert data[1].key == "leftImg8bit/train/bochum/bochum_000000_000019_leftImg8bit.png"


def test_mapillary_by_its_own_configuration(tmp_path: Path) -> None:
    data = opened("mapillary", tmp_path)
    assert data.names(0) == ("bird", "car")
    assert (masks(data[0])["car"][0] == (label_map({1: (2, 2)}) == 1)).all()


def test_what_maps_show_is_read_once_and_again_where_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = miniatures.ade20k(tmp_path / "data"), tmp_path / "cache"
    first = open_data("ade20k", root, cache=cache)
    read: list[str] = []

    def watched(path: Path) -> np.ndarray:
        read.append(path.name)
        return read_labels(path)

    monkeypatch.setattr("vadcli.train.datasets.images.read_labels", watched)
    assert open_data("ade20k", root, cache=cache).fingerprint() == first.fingerprint()
    assert read == []
    changed = root / "ADEChallengeData2016/annotations/training/ADE_train_00000002.png"
    write_map(changed, label_map({3: (0, 0)}), palette=False)
    os.utime(changed, ns=(1, 1))
    assert open_data("ade20k", root, cache=cache).names(1) == ("sky",)
    assert read == ["ADE_train_00000002.png"]
    (cache / "ade20k.json").write_text("{broken")
    assert open_data("ade20k", root, cache=cache).names(1) == ("sky",)
    assert len(read) == 3
    assert [path.name for path in cache.iterdir()] == ["ade20k.json"]


def test_large_pictures_are_reduced_with_their_masks(tmp_path: Path) -> None:
    clip = opened("youtube-vos", tmp_path, max_side=16)[0]
    assert clip.frames.shape == (8, 12, 16, 3)
    wanted = label_map({1: moving(1, 3)}) == 1
    assert (masks(clip)["ape"][3] == wanted[1::2, 1::2]).all()
    small = Image.open(tmp_path / "train/JPEGImages/ape/00015.jpg").resize((16, 12), Image.Resampling.BOX)
    assert np.abs(clip.frames[3].astype(int) - np.asarray(small).astype(int)).mean() < 6


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), side=st.integers(1, 1500))
def test_reductions_keep_their_bounds(height: int, width: int, side: int) -> None:
    reduction = Reduction.to_side(height, width, side)
    rows, columns = reduction.shape
    assert 1 <= rows <= min(height, side)
    assert 1 <= columns <= min(width, side)
    assert max(rows, columns) == min(side, max(height, width))
    for places, length in ((reduction.rows, height), (reduction.columns, width)):
        assert places[0] >= 0
        assert places[-1] < length
        assert (np.diff(places) >= 1).all()


def test_a_reduced_map_takes_the_middle_of_each_pixels_share() -> None:
    reduction = Reduction.to_side(6, 9, 3)
    assert reduction.labels(np.arange(54, dtype=np.uint8).reshape(6, 9)).tolist() == [[10, 13, 16], [37, 40, 43]]


@given(arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_run_length_codes_are_read_as_pycocotools_writes_them(mask: np.ndarray) -> None:
    code = coco.encode(np.asfortranarray(mask, np.uint8))
    text = {"size": list(mask.shape), "counts": code["counts"].decode()}
    assert (decode_mask(Path("masks.json"), "one", text, mask.shape) == mask).all()


@given(length=st.integers(1, 200), frames=st.integers(1, 12), every=st.integers(1, 5))
def test_clips_cover_a_video_evenly(length: int, frames: int, every: int) -> None:
    clips = ClipRule(frames=frames, every=every).cut(length, every=1)
    assert len(set(clips)) == len(clips)
    span = (frames - 1) * every + 1
    for clip in clips:
        assert len(clip) == frames
        assert clip == tuple(min(clip[0] + step * every, length - 1) for step in range(frames))
        assert length < span or clip[-1] == clip[0] + span - 1
    assert clips[0][0] == 0
    assert clips[-1][-1] == length - 1 or length - 1 - clips[-1][-1] < every  # every frame is in a clip
    if every == 1:
        assert {place for clip in clips for place in clip} == set(range(length))


def test_a_rule_checks_itself() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        ClipRule(frames=0)


def test_every_data_set_in_one_mixture_of_exposures(tmp_path: Path) -> None:
    options = ExposureOptions()
    parts = []
    for name, weight in PAPER_MIX.items():
        parts.append((AnomalyExposureSampler(opened(name, tmp_path / name, max_side=20), options, 3, max_categories=4), weight))
    mixture = Mixture(parts, 60, 3)
    samples = [mixture.sample(draw) for draw in mixture.plan(0)]
    assert {sample.frames.shape[0] for sample in samples} == {1, 8}
    assert 0.2 < np.mean([sample.anomalous for sample in samples]) < 0.8
    assert all(sample.labels.any() for sample in samples if sample.anomalous)
    assert {sample.key for sample in samples if sample.key.endswith("def.jpg")}  # the smallest weight is drawn too


def fails(name: str, root: Path, index: int | None = None) -> str:
    """Return the message of the error that opening a data set or reading a clip raises."""

    def attempt() -> None:
        data = open_data(name, root)
        if index is not None:
            data[index]

    with pytest.raises(VadcliError) as caught:
        attempt()
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value.message


NEEDED = {
    "youtube-vos": "train/meta.json",
    "ref-youtube-vos": "meta_expressions/train/meta_expressions.json",
    "mevis": "train/mask_dict.json",
    "ref-davis": "DAVIS/ImageSets/2017/train.txt",
    "refcoco": "refcocog/instances.json",
    "ade20k": "ADEChallengeData2016/objectInfo150.txt",
    "mapillary": "config_v2.0.json",
}


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_a_missing_document_is_named(name: str, tmp_path: Path) -> None:
    root = MINIATURES[name](tmp_path)
    (root / NEEDED[name]).unlink()
    said = fails(name, root)
    assert f"{Path(NEEDED[name]).name} is missing" in said
    assert str(root) in said


@pytest.mark.parametrize("name", sorted(TRAINING_SETS))
def test_another_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not a folder of .* is missing"):
        open_data(name, tmp_path)


@pytest.mark.parametrize("name", sorted(set(NEEDED) - {"ref-davis", "ade20k"}))
@pytest.mark.parametrize("content", ["{", "[]", '{"videos": 3, "labels": 3, "images": 3}', "[" * 100_000, "\xff"])
def test_a_damaged_document_is_named(name: str, content: str, tmp_path: Path) -> None:
    root = MINIATURES[name](tmp_path)
    (root / NEEDED[name]).write_bytes(content.encode("latin-1"))
    with pytest.raises(DocumentError, match=Path(NEEDED[name]).name.replace(".", r"\.")):
        open_data(name, root)


def edited(path: Path, change: str, value: object) -> None:
    """Set the value at a dotted path in a JSON file."""
    told = json.loads(path.read_text())
    holder = told
    *way, last = change.split(".")
    for step in way:
        holder = holder[step]
    holder[last] = value
    path.write_text(json.dumps(told))


@pytest.mark.parametrize(
    ("change", "value", "said"),
    [
        ("videos.ape.frames", ["../../secret"], "a frame of video ape should be a plain file name, not '../../secret'"),
        ("videos.ape.expressions.0.obj_id", "0", "expression 0 of video ape should have an object id of 1 to 255, not '0'"),
        ("videos.ape.expressions.0.exp", 7, "expression 0 of video ape should be text, not 7"),
        ("videos.ape.expressions", [], "'expressions' of video ape should be an object, not []"),
        ("videos.ape", None, "video ape should be an object, not None"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(change: str, value: object, said: str, tmp_path: Path) -> None:
    root = miniatures.ref_youtube_vos(tmp_path)
    path = root / "meta_expressions/train/meta_expressions.json"
    edited(path, change, value)
    assert fails("ref-youtube-vos", root) == f"{path}: {said}"


@pytest.mark.parametrize(
    ("change", "value", "said"),
    [
        ("70", None, "annotation 70 (used in expression 0 of video cat) should be a list, not None"),
        ("70", [None], "annotation 70 has 1 masks, but video cat has 10 frames"),
    ],
)
def test_masks_that_do_not_fit_the_expressions_are_named(change: str, value: object, said: str, tmp_path: Path) -> None:
    path = miniatures.mevis(tmp_path) / "train/mask_dict.json"
    edited(path, change, value)
    assert fails("mevis", tmp_path) == f"{path}: {said}"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ({"size": [3, 3], "counts": "04"}, "the size in the file is [3, 3]"),
        ({"size": [HEIGHT, WIDTH], "counts": "04"}, "the run lengths do not add up to the number of pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": "o" * 50}, "'o' is not a character"),
        ({"size": [HEIGHT, WIDTH], "counts": "0é"}, "'é' is not a character"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "the run lengths do not add up to the number of pixels"),
        ({"size": [HEIGHT, WIDTH]}, "'counts'"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "a polygon needs three corners or more near the image"),
        ([[0, 0, 5, 5]], "a polygon needs three corners or more"),
        ("mask", "the size in the file is None"),
    ],
)
def test_a_damaged_mask_is_named(code: object, said: str, tmp_path: Path) -> None:
    path = miniatures.mevis(tmp_path) / "train/mask_dict.json"
    codes = json.loads(path.read_text())
    codes["70"][2] = code
    path.write_text(json.dumps(codes))
    message = fails("mevis", tmp_path, 0)
    assert message.startswith(f"{path}: annotation 70, frame 2: not a mask of 32 x 24 pixels: ")
    assert said in message


def test_a_pickle_that_would_run_something_runs_nothing(tmp_path: Path) -> None:
    root = miniatures.refcoco(tmp_path)
    path = root / "refcoco/refs(unc).p"

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    path.write_bytes(pickle.dumps([Attack()]))
    assert fails("refcoco", root).startswith(f"{path}: not a pickle of plain values: it asks for posix.mkdir")
    assert not (tmp_path / "ran").exists()
    path.write_bytes(b"\x80\x02]q")
    assert fails("refcoco", root).startswith(f"{path}: not a pickle")
    path.write_bytes(pickle.dumps([{"split": "train", "image_id": 99, "ann_id": 7, "sentences": [{"sent": "a"}]}]))
    assert "the file of image 99" in fails("refcoco", root)
    path.write_bytes(pickle.dumps([{"split": "train", "image_id": 1, "ann_id": 99, "sentences": [{"sent": "a"}]}]))
    assert "annotation 99" in fails("refcoco", root)


def test_a_bad_line_of_ref_davis_is_named(tmp_path: Path) -> None:
    path = miniatures.ref_davis(tmp_path) / "davis_text_annotations/Davis17_annot1.txt"
    path.write_text('bear 1 "a bear"\nbear 2\n')
    assert fails("ref-davis", tmp_path) == f"{path}: line 2 should be VIDEO ID \"EXPRESSION\", not 'bear 2'"


@pytest.mark.parametrize("name", sorted(TRAINING_SETS))
def test_a_missing_or_damaged_picture_is_named(name: str, tmp_path: Path) -> None:
    root = MINIATURES[name](tmp_path)
    data = open_data(name, root)
    picture = data.root / data.entries[0].frames[0]
    picture.write_bytes(picture.read_bytes()[: picture.stat().st_size // 2])
    with pytest.raises(DocumentError, match="cannot be read as an image") as caught:
        data[0]
    assert str(picture) in caught.value.message
    picture.unlink()
    with pytest.raises(DocumentError) as caught:
        data[0]
    assert caught.value.message == f"{picture}: is missing"


def test_maps_and_frames_of_another_size_or_kind_are_named(tmp_path: Path) -> None:
    data = opened("youtube-vos", tmp_path)
    label = tmp_path / "train/Annotations/ape/00010.png"
    write_map(label, label_map({}, size=(10, 10)))
    with pytest.raises(DocumentError, match=r"00010\.png: 10 x 10 pixels, but the clip has 32 x 24"):
        data[0]
    write_picture(label, label_map({}))
    with pytest.raises(DocumentError, match=r"00010\.png: is an image of mode RGB, not a label map"):
        data[0]
    frame = tmp_path / "train/JPEGImages/ape/00010.jpg"
    write_picture(frame, label_map({}, size=(10, 10)))
    with pytest.raises(DocumentError, match=r"00010\.jpg: 10 x 10 pixels, but the clip has 32 x 24"):
        data[0]


def test_a_picture_too_large_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (8_000, MAX_PIXELS // 8_000 + 1)).save(path)
    with pytest.raises(DocumentError, match=r"too large: .* pixels"):
        read_frame(path, max_side=100)


def test_maps_without_their_image_and_images_without_their_map(tmp_path: Path) -> None:
    for name, label in (
        ("ade20k", "ADEChallengeData2016/annotations/training/ADE_train_00000002.png"),
        ("cityscapes", "gtFine/train/bochum/bochum_000000_000019_gtFine_labelIds.png"),
        ("mapillary", "training/v2.0/labels/def.png"),
    ):
        root = MINIATURES[name](tmp_path / name)
        (root / label).unlink()
        assert fails(name, root).startswith(f"{root / label}: the label map of")


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'coco' is not a data set .*youtube-vos.*mapillary|'coco'.*choose among"):
        open_data("coco", tmp_path)
