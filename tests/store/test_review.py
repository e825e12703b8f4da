"""Reviews that the report page saved are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vadcli.errors import DocumentError
from vadcli.store.choices import read_review
from vadcli.types import ReviewedEvent, Verdict

ENTRY = {"video": "=a.mp4", "start_s": 1.0, "end_s": 2.5, "peak_score": 0.75, "verdict": "false", "note": 'a, "b"'}
EXPECTED = ReviewedEvent("=a.mp4", 1.0, 2.5, 0.75, Verdict.FALSE, 'a, "b"')


def write(path: Path, reviews: object, version: int = 1) -> Path:
    path.write_text(json.dumps({"format_version": version, "reviews": reviews}))
    return path


def test_json_and_csv_hold_the_same(tmp_path: Path) -> None:
    table = tmp_path / "review.csv"
    table.write_text('video,start_s,end_s,peak_score,verdict,note\r\n\'=a.mp4,1,2.5,0.75,false,"a, ""b"""\r\n', newline="")
    assert read_review(table) == read_review(write(tmp_path / "review.json", [ENTRY])) == (EXPECTED,)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verdict": "maybe"}, "entry 2.*maybe"),
        ({"start_s": 3.0}, "entry 2.*cannot last"),
        ({"peak_score": 7}, "entry 2.*outside 0-1"),
        ({"end_s": "x"}, "entry 2"),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(DocumentError, match=said):
        read_review(write(tmp_path / "review.json", [ENTRY, {**ENTRY, **change}]))


def test_what_is_no_review_is_refused(tmp_path: Path) -> None:
    missing = {name: value for name, value in ENTRY.items() if name != "video"}
    for path, said in [
        (write(tmp_path / "a.json", [missing]), "no 'video'"),
        (write(tmp_path / "b.json", {}), "is not a list"),
        (write(tmp_path / "c.json", [], version=2), "format version 1"),
        (tmp_path / "d.json", "can't be read"),
    ]:
        with pytest.raises(DocumentError, match=said):
            read_review(path)
    (tmp_path / "e.json").write_text("[")
    with pytest.raises(DocumentError, match="not JSON"):
        read_review(tmp_path / "e.json")
    (tmp_path / "f.csv").write_bytes(b"video\n\xff\n")
    with pytest.raises(DocumentError, match="not text in UTF-8"):
        read_review(tmp_path / "f.csv")


def test_a_note_of_many_lines_and_apostrophes_comes_back_from_csv(tmp_path: Path) -> None:
    note = "'=x\u2028y\r\nz"
    table = tmp_path / "review.csv"
    table.write_text(f'video,start_s,end_s,peak_score,verdict,note\r\na.mp4,1,2.5,0.75,true,"\'{note}"\r\n', newline="")
    (entry,) = read_review(table)
    assert entry.note == note
