"""Text files of users are read in the encodings of common editors and shells. Errors name any other encoding."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vadcli.engine.plan import read_list
from vadcli.errors import VadcliError
from vadcli.ground_truth import open_ground_truth
from vadcli.options import read_toml
from vadcli.options.categories import read_list as read_categories
from vadcli.store.choices import read_regions, read_review
from vadcli.train.datasets import read_annotations, read_lines

ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16-le with a mark": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16-be with a mark": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-16-le": lambda text: text.encode("utf-16-le"),
    "utf-16-be": lambda text: text.encode("utf-16-be"),
    "utf-32 with a mark": lambda text: text.encode("utf-32"),
}
REVIEW = {"video": "街.mp4", "start_s": 1.0, "end_s": 2.5, "peak_score": 0.75, "verdict": "false", "note": ""}


def truth_videos(path: Path, name: str = "csv") -> list[str]:
    return [truth.video for truth in open_ground_truth(name, path).read()]


READERS: dict[str, tuple[str, str, Callable[[Path], object], object]] = {
    "a list of files": (
        "list.txt",
        "/nvr/一/a.mp4\r\n/nvr/b c.mp4\r\n",
        read_list,
        [Path("/nvr/一/a.mp4"), Path("/nvr/b c.mp4")],
    ),
    "one path": ("list.txt", "/nvr/a.mp4", read_list, [Path("/nvr/a.mp4")]),
    "settings": ("vadcli.toml", '[scan]\r\nout = "日本"\r\n', read_toml, {"scan": {"out": "日本"}}),
    "categories": (
        "mine.txt",
        "fight\r\nплощадь\r\n",
        lambda path: [category.name for category in read_categories(str(path)).category],
        ["fight", "площадь"],
    ),
    "a review in JSON": (
        "review.json",
        json.dumps({"format_version": 1, "reviews": [REVIEW]}, ensure_ascii=False),
        lambda path: [entry.video for entry in read_review(path)],
        ["街.mp4"],
    ),
    "a review in CSV": (
        "review.csv",
        f"{','.join(REVIEW)}\r\n{','.join(map(str, REVIEW.values()))}\r\n",
        lambda path: [entry.video for entry in read_review(path)],
        ["街.mp4"],
    ),
    "a truth": ("truth.csv", "video,start_s,end_s,category\r\ncafé.mp4,1,2,\r\n", truth_videos, ["café.mp4"]),
    "a table of VAU-Bench": (
        "test.csv",
        "Video Name,Anomaly Class,Start Time,End Time\r\ncafé.mp4,Fire,1,2\r\n",
        lambda path: truth_videos(path, "vau-bench"),
        ["café.mp4"],
    ),
    "a list of CUVA": (
        "cuva.json",
        json.dumps([{"visual_input": "街.mp4", "task": "Timestamp", "output": "[0001, 0002]"}], ensure_ascii=False),
        lambda path: truth_videos(path, "cuva"),
        ["街.mp4"],
    ),
    "a list of a training set": (
        "list.txt",
        "bear 1 熊\r\n\r\nb c\r\n",
        lambda path: list(read_lines(path)),
        [(1, "bear 1 熊"), (3, "b c")],
    ),
    "annotations of a training set": ("meta.json", '{"videos": "街"}', read_annotations, {"videos": "街"}),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("reader", READERS)
def test_a_text_is_read_in_every_encoding(tmp_path: Path, reader: str, encoding: str) -> None:
    name, text, read, expected = READERS[reader]
    path = tmp_path / name
    path.write_bytes(ENCODINGS[encoding](text))
    assert read(path) == expected


@pytest.mark.parametrize("reader", READERS)
def test_what_cannot_be_decoded_names_its_encoding(tmp_path: Path, reader: str) -> None:
    name, text, read, _ = READERS[reader]
    path = tmp_path / name
    path.write_bytes(codecs.BOM_UTF16_LE + text.encode("utf-16-le")[:-1])  # ends in the middle of a character
    with pytest.raises(VadcliError, match="UTF-16"):
        read(path)


def test_an_official_list_in_latin_1_is_read_as_it_is_or_as_an_editor_saved_it(tmp_path: Path) -> None:
    for data in ("naïve".encode("latin-1"), "naïve".encode("utf-8-sig"), "naïve".encode("utf-16")):
        (tmp_path / "list").write_bytes(data)
        assert list(read_lines(tmp_path / "list", encoding="latin-1")) == [(1, "naïve")]


@pytest.mark.parametrize("paths", [[b"/nvr/a.mp4"], [b"./a", b"./b"], [b"/nvr/caf\xe9.mp4", b"/nvr/with\nnewline.mp4"]])
def test_a_list_with_nul_is_no_utf16(tmp_path: Path, paths: list[bytes]) -> None:
    (tmp_path / "list").write_bytes(b"".join(path + b"\0" for path in paths))
    assert [bytes(path) for path in read_list(tmp_path / "list")] == [path.removeprefix(b"./") for path in paths]


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("deep.json", "[" * 100_000, read_review),
        ("deep.json", "[" * 100_000, lambda path: read_regions(path, "ignore")),
        ("deep.toml", "a=" + "[" * 100_000, read_toml),
        ("long.csv", f'video,start_s\n"{"a" * 200_000}",1\n', read_review),
    ],
)
def test_a_file_that_no_reader_can_handle_gets_one_line(
    tmp_path: Path, name: str, text: str, read: Callable[[Path], object]
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(VadcliError, match=name) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
