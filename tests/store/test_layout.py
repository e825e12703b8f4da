"""The paths of files in an output folder, and how their names are made."""

import os
import re
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadcli.store import OutputLayout, encode_name, printable


def test_the_input_tree_is_mirrored_and_the_suffix_kept():
    layout = OutputLayout(Path("out"))
    assert layout.scores("cam1/a.mp4") == Path("out/scores/cam1/a.mp4.parquet")
    assert layout.checkpoint("cam1/a.mp4") == Path("out/scores/cam1/.a.mp4.parquet.part")
    assert layout.events("cam1/a.mp4") == Path("out/events/cam1/a.mp4.json")
    assert layout.mask_video("cam1/a.mp4") == Path("out/masks/cam1/a.mp4.mkv")
    assert layout.mask_rle("cam1/a.mp4") == Path("out/masks/cam1/a.mp4.parquet")
    assert layout.rendered("cam1/a.mp4") == Path("out/rendered/cam1/a.mp4.mp4")
    assert layout.camera("cam1") == Path("out/cameras/cam1.json")
    assert layout.camera(".") == Path("out/cameras/%2E.json")
    assert (layout.runs, layout.run_json, layout.scratch) == (Path("out/runs"), Path("out/run.json"), Path("out/.tmp"))


@pytest.mark.parametrize(
    ("relative", "encoded"),
    [
        ("cam 1/ä.mp4", "cam 1/ä.mp4"),
        (PurePosixPath("a/b.mp4"), "a/b.mp4"),
        (b"caf\xe9.mp4", "caf%E9.mp4"),
        (os.fsdecode(b"caf\xe9.mp4"), "caf%E9.mp4"),
        ("two\nlines\t.mp4", "two%0Alines%09.mp4"),
        ("a\x7f\x85.mp4", "a%7F%C2%85.mp4"),
        ("50% off a%20b.mp4", "50% off a%20b.mp4"),
        ("caf%E9.mp4", "caf%25E9.mp4"),
        ("caf%25E9.mp4", "caf%2525E9.mp4"),
    ],
)
def test_names_are_utf8_without_control_characters(relative, encoded):
    assert encode_name(relative) == encoded


paths = st.lists(st.binary(min_size=1, max_size=12).filter(lambda part: not {0, 47} & set(part)), min_size=1, max_size=3)


def decode_name(encoded):
    pattern = re.compile(rb"%(25|2E|0[0-9A-F]|1[0-9A-F]|7F|[89A-F][0-9A-F])")
    return pattern.sub(lambda match: bytes([int(match[1], 16)]), encoded.encode())


@given(paths)
def test_two_files_never_share_a_name(parts):
    relative = b"/".join(parts)
    encoded = encode_name(relative)
    assert decode_name(encoded) == relative
    assert all(ord(character) >= 0x20 for character in encoded)


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("./%")))
def test_no_name_leaves_the_output_folder(text):
    relative = encode_name(text)
    if not relative.strip("/"):
        with pytest.raises(ValueError, match="empty"):
            OutputLayout(Path("out")).scores(relative)
        return
    path = OutputLayout(Path("out")).scores(relative)
    assert path.parts[:2] == ("out", "scores")
    assert ".." not in path.parts
    assert all(len(part.encode()) <= 255 for part in path.parts)


def test_a_name_too_long_is_cut_for_all_kinds_alike_and_stays_its_own(tmp_path):
    layout = OutputLayout(tmp_path)
    first, second = "é" * 122 + "a.mp4", "é" * 122 + "b.mp4"
    for make in (layout.scores, layout.checkpoint, layout.events, layout.mask_video, layout.rendered):
        assert make(first) != make(second)
        make(first).parent.mkdir(parents=True, exist_ok=True)
        make(first).write_text("fits")
    stem = layout.events(first).name.removesuffix(".json")
    assert re.fullmatch("é+-[0-9a-f]{8}", stem)
    assert layout.scores(first).name == f"{stem}.parquet"
    assert layout.scores("x" * 241).name == "x" * 241 + ".parquet"
    assert re.fullmatch("x{232}-[0-9a-f]{8}.parquet", layout.scores("x" * 242).name)


def test_stored_files_are_listed_in_order(tmp_path):
    layout = OutputLayout(tmp_path)
    assert list(layout.iter_scores()) == []
    for video in ("b/2.mp4", "b/1.mp4", "a.mp4"):
        for path in (layout.scores(video), layout.events(video), layout.checkpoint(video)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "scores" / "notes.txt").touch()
    videos = ["a.mp4", "b/1.mp4", "b/2.mp4"]
    assert list(layout.iter_scores()) == [layout.scores(video) for video in videos]
    assert list(layout.iter_events()) == [layout.events(video) for video in videos]
    assert list(layout.iter_checkpoints()) == [layout.checkpoint(video) for video in videos]


def test_printable_keeps_all_but_raw_bytes():
    assert printable(f"{os.fsdecode(b'/a/' + bytes([255]))} 50%\n") == "/a/%FF 50%\n"
