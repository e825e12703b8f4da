"""`vadcli embed`: vectors without scores, as Parquet and as arrays; a head then judges the events of another detector."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import commands
from tests.detectors.encoders import VECTOR, tiny_encoder_folder
from tests.media import make_video
from tests.store.test_scores import METADATA, table_of
from vadcli.options import EmbedOptions
from vadcli.store import OutputLayout
from vadcli.store.scores import read_embeddings, read_scores, write_embeddings, write_scores
from vadcli.types import ByteArray, FloatArray
from vadcli.vectors import embed_all


def vadcli(*arguments: object) -> subprocess.CompletedProcess[str]:
    return commands.vadcli(*arguments, COLUMNS="200", forks=commands.WITH_TORCH)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder_folder(tmp_path_factory.mktemp("encoder") / "clip")


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    for name in ("a.mp4", "b.mp4"):
        make_video(folder / name, frames=60, fps=10)
    (folder / "broken.mp4").write_text("not a video")
    return folder


def test_vectors_equal_those_of_a_scan_and_are_made_once(footage: Path, encoder: Path, tmp_path: Path) -> None:
    arguments = ("embed", footage, "--encoder", encoder, "--out", tmp_path / "out", "--npy", tmp_path / "npy")
    done = vadcli(*arguments, "--json")
    assert done.returncode == 3
    assert "broken.mp4" in done.stderr
    lines = {line["video"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert lines["a.mp4"]["vectors"] == 12
    assert lines["broken.mp4"]["problem"]
    scanned = vadcli("scan", footage, "--detector", "concept", "--encoder", encoder, "--out", tmp_path / "scanned")
    assert scanned.returncode == 3
    own = read_embeddings(OutputLayout(tmp_path / "out").embeddings("a.mp4"))
    theirs = read_embeddings(OutputLayout(tmp_path / "scanned").embeddings("a.mp4"))
    assert own.metadata.encoder_key == theirs.metadata.encoder_key
    np.testing.assert_array_equal(own.frame_index, theirs.frame_index)
    np.testing.assert_allclose(own.embeddings.vectors(), theirs.embeddings.vectors(), atol=2e-2)
    array = np.load(tmp_path / "npy" / "a.mp4.npy")
    assert array.shape == (12, VECTOR)
    np.testing.assert_array_equal(array, own.embeddings.vectors())
    again = vadcli(*arguments, "--npy-crops", "10", "--json")
    assert sum(json.loads(line)["skipped"] for line in again.stdout.splitlines()) == 2
    assert np.load(tmp_path / "npy" / "a.mp4.npy").shape == (12, 10, VECTOR)


def test_a_scan_with_motion_keeps_the_vectors_and_a_head_judges_its_events(
    footage: Path, encoder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    vadcli("embed", footage, "--encoder", encoder, "--out", out)
    assert vadcli("scan", footage, "--detector", "motion", "--out", out).returncode == 3
    stored = read_embeddings(OutputLayout(out).embeddings("a.mp4"))
    table, _ = read_scores(OutputLayout(out).scores("a.mp4"))
    assert stored.frame_index.max() < len(table)


class OneNumber:
    """An encoder whose vectors have one number."""

    def encode_images(self, frames: ByteArray) -> FloatArray:
        """Returns the vectors of some frames."""
        return np.ones((len(frames), 1), np.float32)


def test_stored_vectors_are_kept_if_the_rate_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vadcli.vectors.load_encoder", lambda *_, **__: OneNumber())
    monkeypatch.setattr("vadcli.vectors.encoder_fingerprint", lambda *_, **__: {"encoder": "one"})
    monkeypatch.setattr("vadcli.vectors.encoder_area_px", lambda _: 32 * 32 * 16 // 9)
    make_video(tmp_path / "a.mp4", frames=60, fps=10)
    layout = OutputLayout(tmp_path / "out")

    def embed(rate: float) -> tuple[int, bool]:
        (result,) = embed_all([tmp_path / "a.mp4"], EmbedOptions(out=layout.out, sample_fps=rate))
        return result.vectors, result.skipped

    assert [embed(rate) for rate in (2, 2, 5, 5)] == [(12, False), (12, True), (30, False), (30, True)]
    stored = read_embeddings(layout.embeddings("a.mp4"))  # the same vectors, as a scan stores them
    write_embeddings(layout.embeddings("a.mp4"), replace(stored, metadata=replace(stored.metadata, key="of a scan")))
    layout.scores("a.mp4").parent.mkdir()
    write_scores(layout.scores("a.mp4"), table_of(60, "a.mp4"), replace(METADATA, video={**METADATA.video, "fps": 10.0}))
    assert [embed(rate) for rate in (5, 2, 2)] == [(30, True), (12, False), (12, True)]


@pytest.mark.parametrize(
    ("options", "said"), [(("--sample-fps", "0"), "--sample-fps 0"), (("--npy-crops", "3"), "--npy-crops needs --npy")]
)
def test_wrong_options_are_one_line(footage: Path, options: tuple[str, ...], said: str) -> None:
    done = vadcli("embed", footage, *options)
    assert done.returncode == 2
    assert said in done.stderr
