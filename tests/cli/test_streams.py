"""stdout and stderr of any encoding: no name causes an error, and printed names can be read back."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.media import make_video
from tests.patience import PATIENCE_S
from tests.store.documents import DOCUMENT, video_of
from vadcli.cli._talk import ESCAPE
from vadcli.export import export
from vadcli.registry import EXPORTERS
from vadcli.store import OutputLayout

NAMES = ["a 日本 é😀.avi", os.fsdecode(b"caf\xe9.avi")]
STORED = ["a 日本 é😀.avi", "caf%E9.avi"]


def vadcli(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "vadcli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=PATIENCE_S, env={**os.environ, **environment}, check=False)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    first = make_video(folder / "b.avi", "mpeg4", frames=10, fps=10)
    for name in NAMES:
        (folder / name).write_bytes(first.read_bytes())
    first.unlink()
    return folder


ENCODINGS = [
    ("cp1252", {"PYTHONIOENCODING": "cp1252"}),
    ("ascii", {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": ""}),
]


@pytest.mark.parametrize(("encoding", "environment"), ENCODINGS, ids=["cp1252", "C locale"])
def test_a_scan_prints_every_name_in_the_encoding_of_stdout(
    footage: Path, tmp_path: Path, encoding: str, environment: dict[str, str]
) -> None:
    out, log = tmp_path / os.fsdecode(b"o\xfft"), tmp_path / os.fsdecode(b"l\xffg")
    options = ("-o", out, "-d", "motion", "--workers", 1, "--log-file", log)
    done = vadcli("scan", footage, *options, "--json", **environment)
    assert done.returncode == 0, done.stderr
    *videos, summary = [json.loads(line) for line in done.stdout.decode(encoding).splitlines()]
    assert [line["video"] for line in videos] == STORED
    assert summary["out"].endswith("o%FFt")
    assert b"Traceback" not in done.stderr
    assert all(f"{name}: 10 frames" in log.read_text(encoding="utf-8") for name in STORED)
    table = vadcli("eval", out, "--init", **environment)
    planned = vadcli("scan", footage, *options, "--dry-run", **environment)
    assert (table.returncode, planned.returncode) == (0, 0), table.stderr + planned.stderr
    first = r"a \u65e5\u672c é\ud83d\ude00.avi" if encoding == "cp1252" else r"a \u65e5\u672c \u00e9\ud83d\ude00.avi"
    assert planned.stdout.decode(encoding).splitlines() == [f"done\t{first}", "done\tcaf%E9.avi"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
def test_every_export_fits_every_encoding(tmp_path: Path, encoding: str) -> None:
    event = replace(DOCUMENT.events[0], category="Schlägerei 日本 😀")
    document = replace(video_of(DOCUMENT, path="a 日本 é😀.mp4"), events=(event,))
    for name in EXPORTERS:
        raw = io.BytesIO()
        stdout = io.TextIOWrapper(raw, encoding=encoding, errors=ESCAPE)
        export([document], name, layout=OutputLayout(tmp_path), file=stdout)
        stdout.flush()
        text = raw.getvalue().decode(encoding)
        assert text
        if name == "cvat":
            track = ElementTree.fromstring(raw.getvalue()).find("track")
            assert track is not None
            assert track.attrib["label"].startswith("Schl\\u00e4" if encoding == "ascii" else "Schlä")
        if name in ("json", "otio", "fiftyone", "label-studio"):
            assert "a 日本 é😀" in json.dumps(json.loads(text), ensure_ascii=False)
