"""Ref-DAVIS17: DAVIS 2017's videos with two annotators' expressions; pictures at 24 a second, of which every third is taken.

    ROOT/DAVIS/JPEGImages/480p/VIDEO/00000.jpg               ROOT/DAVIS/ImageSets/2017/train.txt
    ROOT/DAVIS/Annotations_unsupervised/480p/VIDEO/00000.png ROOT/davis_text_annotations/Davis17_annot1.txt, …

A line of the texts is: VIDEO ID "EXPRESSION". There are up to four: two annotators, each from the first frame and from the
whole video. The layout is that of the archives as ReferFormer's data page unpacks them; its form after conversion, which is
Ref-YouTube-VOS's, is read as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vadcli.errors import DocumentError
from vadcli.train.datasets.base import ClipEntry, ClipRule, LabelMapData
from vadcli.train.datasets.documents import ANEW, needed, plain, read_lines, spoken
from vadcli.train.datasets.youtube_vos import object_id, with_expressions

EVERY = 3
"""24 frames a second become 8."""
TEXTS = {
    "Davis17_annot1.txt": "utf-8",
    "Davis17_annot1_full_video.txt": "utf-8",
    "Davis17_annot2.txt": "latin-1",
    "Davis17_annot2_full_video.txt": "latin-1",
}
_MISSPELT = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
_PICTURES = "DAVIS/JPEGImages/480p"
_MAPS = "DAVIS/Annotations_unsupervised/480p"


class RefDavis(LabelMapData):
    """Ref-DAVIS17.

    Args:
        root: the folder that holds `DAVIS` and `davis_text_annotations`, or `train` and `meta_expressions` after conversion.
        split: `train` or `val`.
        rule: how videos are cut.
    """

    def __init__(self, root: Path, *, split: str = "train", rule: ClipRule | None = None) -> None:
        rule = rule or ClipRule()
        clips = _converted(root, split, rule) if (root / "meta_expressions").is_dir() else _official(root, split, rule)
        super().__init__("ref-davis", root, clips, rule)


def _converted(root: Path, split: str, rule: ClipRule) -> Iterator[ClipEntry]:
    folder = "valid" if split == "val" else split
    for video in with_expressions(root, folder, "Ref-DAVIS17"):
        yield from video.clips(folder, rule, every=EVERY)


def _official(root: Path, split: str, rule: ClipRule) -> Iterator[ClipEntry]:
    listed = needed(root, f"DAVIS/ImageSets/2017/{split}.txt", name="Ref-DAVIS17")
    said = _expressions(needed(root, "davis_text_annotations", name="Ref-DAVIS17"))
    for number, line in read_lines(listed):
        video = plain(listed, f"line {number}", line)
        folder = root / _MAPS / video
        try:
            frames = sorted(item.stem for item in folder.iterdir() if item.suffix == ".png")
        except OSError as error:
            raise DocumentError(f"{folder}: can't be read: {error.strerror}", hint=ANEW) from error
        for places in rule.cut(len(frames), EVERY) if frames else ():
            yield ClipEntry(
                f"{video}/{frames[places[0]]}",
                tuple(f"{_PICTURES}/{video}/{frames[place]}.jpg" for place in places),
                tuple(said.get(video, ())),
                tuple(f"{_MAPS}/{video}/{frames[place]}.png" for place in places),
                places,
            )


def _expressions(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """Of each video its (expression, id) pairs, in the order of the texts."""
    found: dict[str, list[tuple[str, int]]] = {}
    present = [folder / name for name in TEXTS if (folder / name).exists()]
    if not present:
        raise DocumentError(f"{folder}: has none of {', '.join(TEXTS)}", hint=ANEW)
    for path in present:
        for number, line in read_lines(path, encoding=TEXTS[path.name]):
            parts = line.split(maxsplit=2)
            where = f"line {number}"
            if len(parts) < 3:
                raise DocumentError(f'{path}: {where} should be VIDEO ID "EXPRESSION", not {line[:60]!r}', hint=ANEW)
            text = spoken(path, where, parts[2].strip().strip('"'))
            if text:
                pair = (text, object_id(path, where, parts[1]))
                found.setdefault(_MISSPELT.get(parts[0], parts[0]), []).append(pair)
    return found
