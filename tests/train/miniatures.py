"""Writes small copies of segmentation data sets in their official layouts.

Every picture has one background colour, and a block per object in the object's own colour. So the picture alone shows what its
mask must be.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

HEIGHT, WIDTH = 24, 32
Blocks = Mapping[int, tuple[int, int]]
"""Number of the object -> (row, column) of its block of 6 × 8 pixels."""


def label_map(blocks: Blocks, *, empty: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray[Any, Any]:
    values = np.full(size, empty, np.uint8)
    for number, (row, column) in blocks.items():
        values[row : row + 6, column : column + 8] = number
    return values


def write_picture(path: Path, values: np.ndarray[Any, Any]) -> None:
    """Write a picture of a label map: red is the object's number times 20."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.zeros((*values.shape, 3), np.uint8)
    colours[..., 0] = np.minimum(values.astype(np.int64) * 20, 255)
    colours[..., 2] = 90
    Image.fromarray(colours).save(path, quality=95)


def write_map(path: Path, values: np.ndarray[Any, Any], *, palette: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values, "L")
    if palette:
        picture.putpalette([(37 * k) % 256 for k in range(768)])
    picture.save(path)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def moving(number: int, frame: int) -> tuple[int, int]:
    """Return an object's place in a frame: object 1 moves right, object 2 down, object 3 not at all."""
    return {1: (0, 2 * frame % 24), 2: (8 + frame % 10, 20), 3: (16, 0)}[number]


def blocks_of(frame: int, shown: Mapping[int, range]) -> dict[int, tuple[int, int]]:
    return {number: moving(number, frame) for number, frames in shown.items() if frame in frames}


def write_video(folder: Path, maps: Path, shown: Mapping[int, range], length: int, *, step: int = 1) -> list[str]:
    names = [f"{step * frame:05d}" for frame in range(length)]
    for frame, name in enumerate(names):
        values = label_map(blocks_of(frame, shown))
        write_picture(folder / f"{name}.jpg", values)
        write_map(maps / f"{name}.png", values)
    return names


def youtube_vos(root: Path) -> Path:
    """Write two videos: `ape` with 19 pictures, `bee` with 5.

    Object 2 of `ape` is only in its first four pictures.
    """
    shown = {"ape": {1: range(19), 2: range(4)}, "bee": {1: range(5), 3: range(5)}}
    categories = {"ape": {1: "ape", 2: "person"}, "bee": {1: "bee", 3: "bee"}}
    document: dict[str, Any] = {}
    for video, length in (("ape", 19), ("bee", 5)):
        folder = root / "train"
        names = write_video(folder / "JPEGImages" / video, folder / "Annotations" / video, shown[video], length, step=5)
        document[video] = {
            "objects": {
                str(number): {"category": category, "frames": [names[frame] for frame in shown[video][number]]}
                for number, category in categories[video].items()
            }
        }
    write_json(root / "train/meta.json", {"videos": document})
    return root


def ref_youtube_vos(root: Path) -> Path:
    """Write the videos of `youtube_vos` with expressions; ids are text, as in the official document."""
    youtube_vos(root)
    meta = json.loads((root / "train/meta.json").read_text())
    texts = {
        "ape": [("a  black ape going right ", "1"), ("the ape", "1"), ("a person at the right", "2")],
        "bee": [("the upper bee", "1"), ("the lower bee", "3"), ("", "3")],
    }
    lengths = {"ape": 19, "bee": 5}
    document = {
        video: {
            "frames": [f"{5 * frame:05d}" for frame in range(lengths[video])],
            "expressions": {str(place): {"exp": text, "obj_id": number} for place, (text, number) in enumerate(texts[video])},
        }
        for video in meta["videos"]
    }
    write_json(root / "meta_expressions/train/meta_expressions.json", {"videos": document})
    return root


def run_length(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    code = coco.encode(np.asfortranarray(values, np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode("ascii")}


def mevis(root: Path) -> Path:
    """Write two videos of 10 pictures. Annotation 71 is only in pictures 0 to 3.

    One expression means annotations 70 and 71.
    """
    shown = {1: range(10), 2: range(4), 3: range(10)}
    for frame in range(10):
        blocks = blocks_of(frame, shown)
        third = {3: blocks.pop(3)}
        write_picture(root / f"train/JPEGImages/cat/{frame:05d}.jpg", label_map(blocks))
        write_picture(root / f"train/JPEGImages/dog/{frame:05d}.jpg", label_map(third))
    codes: dict[str, list[Any]] = {}
    for number, key in ((1, "70"), (2, "71"), (3, "80")):
        codes[key] = [
            run_length(label_map({number: moving(number, frame)}) == number) if frame in shown[number] else None
            for frame in range(10)
        ]
    write_json(root / "train/mask_dict.json", codes)
    expressions = {
        "0": {"exp": "the cat moving right", "obj_id": [1], "anno_id": [70]},
        "1": {"exp": "cats that move", "obj_id": [1, 2], "anno_id": [70, 71]},
        "2": {"exp": "the cat moving down", "obj_id": [2], "anno_id": [71]},
        "3": {"exp": "nothing of the kind", "obj_id": [], "anno_id": []},
    }
    video = {"vid_id": 5, "height": HEIGHT, "width": WIDTH, "frames": [f"{frame:05d}" for frame in range(10)]}
    other = {"0": {"exp": "the dog that rests", "obj_id": [1], "anno_id": [80]}}
    document = {"cat": {**video, "expressions": expressions}, "dog": {**video, "expressions": other}}
    write_json(root / "train/meta_expressions.json", {"videos": document})
    return root


def ref_davis(root: Path) -> Path:
    """Write two videos. The texts misspell one of their names.

    The texts of the second annotator are in Latin-1.
    """
    base = root / "DAVIS"
    for video in ("motorbike", "bear"):
        write_video(
            base / "JPEGImages/480p" / video, base / "Annotations_unsupervised/480p" / video, {1: range(30), 2: range(30)}, 25
        )
    (base / "ImageSets/2017").mkdir(parents=True)
    (base / "ImageSets/2017/train.txt").write_text("bear\nmotorbike\n")
    texts = root / "davis_text_annotations"
    texts.mkdir()
    (texts / "Davis17_annot1.txt").write_text(
        'bear 1 "a brown bear"\nmotor-bike 1 "a man"\nmotor-bike 2 "a motorbike"\ncamel 1 "a camel"\n'
    )
    (texts / "Davis17_annot2.txt").write_bytes('bear 1 "the bear, naïve"\nmotor-bike 1 "the rider"\n'.encode("latin-1"))
    return root


def refcoco(root: Path) -> Path:
    """Write two images. refcoco has both, refcoco+ only the first. Annotation 8 is a run-length code."""
    folder = root / "images/mscoco/images/train2014"
    images = {1: "COCO_train2014_000000000001.jpg", 2: "COCO_train2014_000000000002.jpg"}
    for number, name in images.items():
        write_picture(folder / name, label_map({1: (4, 8), 2: (12, 16)} if number == 1 else {1: (4, 8)}))
    square = [8.0, 4.0, 16.0, 4.0, 16.0, 10.0, 8.0, 10.0]
    crowd = label_map({1: (12, 16)}) == 1
    counts = [int(run) for run in np.diff(np.flatnonzero(np.diff(crowd.ravel(order="F").astype(int), prepend=2, append=2)))]
    annotations = [
        {"id": 7, "image_id": 1, "category_id": 1, "segmentation": [square]},
        {"id": 8, "image_id": 1, "category_id": 1, "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}},
        {"id": 9, "image_id": 2, "category_id": 1, "segmentation": [square]},
    ]
    document = {
        "images": [{"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH} for number, name in images.items()],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }

    def ref(annotation: int, image: int, split: str, *sentences: str) -> dict[str, Any]:
        texts = [{"raw": text, "sent": text, "sent_id": place, "tokens": text.split()} for place, text in enumerate(sentences)]
        return {
            "ref_id": annotation,
            "ann_id": annotation,
            "image_id": image,
            "split": split,
            "sentences": texts,
            "category_id": 1,
        }

    refs = {
        "refcoco": [ref(7, 1, "train", "left man", "man in red"), ref(8, 1, "train", "right man"), ref(9, 2, "testA", "boy")],
        "refcoco+": [ref(7, 1, "train", "man in red")],
        "refcocog": [ref(9, 2, "train", "a boy who stands")],
    }
    for name, file in (("refcoco", "refs(unc).p"), ("refcoco+", "refs(unc).p"), ("refcocog", "refs(umd).p")):
        (root / name).mkdir(parents=True)
        write_json(root / name / "instances.json", document)
        (root / name / file).write_bytes(pickle.dumps(refs[name], protocol=2))
    return root


def ade20k(root: Path) -> Path:
    """Write two images for training and one for validation.

    Number 3 comes before 2 in the list of names, so that a reader must not use the position in the list as the number.
    """
    base = root / "ADEChallengeData2016"
    shown: Sequence[tuple[str, str, Blocks]] = (
        ("training", "ADE_train_00000001", {1: (0, 0), 3: (10, 10)}),
        ("training", "ADE_train_00000002", {2: (5, 5)}),
        ("validation", "ADE_val_00000001", {1: (0, 0)}),
    )
    for split, name, blocks in shown:
        write_picture(base / f"images/{split}/{name}.jpg", label_map(blocks))
        write_map(base / f"annotations/{split}/{name}.png", label_map(blocks), palette=False)
    lines = ["Idx\tRatio\tTrain\tVal\tName", "1\t0.15\t11664\t1172\twall", "3\t0.09\t8322\t784\tsky"]
    lines.append("2\t0.11\t6046\t612\tbuilding, edifice")
    (base / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    return root


def cityscapes(root: Path) -> Path:
    """Write two cities with one image each: a road, a car, a person, and the ego vehicle (1), which has no name."""
    for city, blocks in (("aachen", {26: (0, 0), 1: (16, 0)}), ("bochum", {24: (8, 8)})):
        values = label_map(blocks, empty=7)
        name = f"{city}_000000_000019"
        write_picture(root / f"leftImg8bit/train/{city}/{name}_leftImg8bit.png", values)
        write_map(root / f"gtFine/train/{city}/{name}_gtFine_labelIds.png", values, palette=False)
        write_map(root / f"gtFine/train/{city}/{name}_gtFine_instanceIds.png", values, palette=False)
    return root


def mapillary(root: Path) -> Path:
    """Write two images and four categories. The third category is not evaluated.

    The first is the background.
    """
    for name, blocks in (("abc", {1: (2, 2), 2: (12, 12)}), ("def", {3: (6, 6)})):
        values = label_map(blocks)
        write_picture(root / f"training/images/{name}.jpg", values)
        write_map(root / f"training/v2.0/labels/{name}.png", values)
    labels = [
        {"name": "animal--bird", "readable": "Bird", "color": [165, 42, 42], "instances": True, "evaluate": True},
        {"name": "object--vehicle--car", "readable": "Car", "color": [0, 0, 142], "instances": True, "evaluate": True},
        {"name": "void--unlabeled", "readable": "Unlabeled", "color": [0, 0, 0], "instances": False, "evaluate": False},
        {"name": "object--vehicle--boat", "readable": "Boat", "color": [150, 0, 255], "instances": True, "evaluate": True},
    ]
    write_json(root / "config_v2.0.json", {"version": 2.0, "labels": labels})
    return root


MINIATURES = {
    "youtube-vos": youtube_vos,
    "ref-youtube-vos": ref_youtube_vos,
    "mevis": mevis,
    "ref-davis": ref_davis,
    "refcoco": refcoco,
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "mapillary": mapillary,
}
"""Name of the data set -> function that writes the copy into a folder, and returns its root."""
