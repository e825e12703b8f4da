"""LAVIDA on real footage, as a process: a portrait phone video and a lift, with random weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests import commands
from tests.detectors.lavida.models import tiny_folder
from tests.media import remux
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.masks import read_boxes, read_masks
from vadcli.store.scores import read_scores

FOOTAGE = Path(__file__).resolve().parents[2] / "shared" / "data" / "incidents"
NAMES = ("two_people_portrait_b.mp4", "elevator_panic.mp4")

pytestmark = [
    pytest.mark.shared,
    pytest.mark.slow,
    pytest.mark.skipif(not all((FOOTAGE / name).exists() for name in NAMES), reason="the real footage is not here"),
]


def test_a_scan_of_real_footage_writes_the_contract_and_renders(tmp_path: Path) -> None:
    model, layout = tiny_folder(tmp_path / "tiny"), OutputLayout(tmp_path / "out")
    (tmp_path / "footage").mkdir()
    paths = [remux(FOOTAGE / name, tmp_path / "footage" / name, after=("-t", "2")) for name in NAMES]
    asked = ("--detector", "lavida", "--model", model, "--out", layout.out, "--categories", "fight,fire")
    (temporary := tmp_path / "tmp").mkdir()
    vadcli = partial(commands.vadcli, TMPDIR=str(temporary))
    refused = vadcli("scan", *paths, *asked, forks=commands.WITH_TORCH)
    assert refused.returncode == 4
    assert "never trained" in refused.stderr
    assert not layout.out.exists()

    done = vadcli("scan", *paths, *asked, "--allow-untrained", "--masks", "both", "--json", forks=commands.WITH_TORCH)
    assert done.returncode == 0, done.stderr
    assert "mean nothing" in done.stderr
    *videos, summary = [json.loads(line) for line in done.stdout.splitlines()]
    assert {video["video"] for video in videos} == set(NAMES)
    assert summary["done"] == len(NAMES)
    for name in NAMES:
        table, metadata = read_scores(layout.scores(name))
        assert len(table) == metadata.video["frames"]
        assert table.sampled[0]
        assert np.ptp(table.score) > 0
        masks = list(read_masks(layout.mask_video(name)))
        assert len(masks) == int(table.sampled.sum())
        assert {mask.shape for mask in masks} == {(metadata.video["height"], metadata.video["width"])}
        assert list(read_boxes(layout.mask_rle(name))[0]) == list(np.flatnonzero(table.sampled))
        assert read_events(layout.events(name)).detector == "lavida"

    rendered = vadcli("render", *paths, "--out", layout.out)
    assert rendered.returncode == 0, rendered.stderr
    assert all(layout.rendered(name).stat().st_size > 10_000 for name in NAMES)
    again = vadcli("scan", *paths, *asked, "--allow-untrained", "--masks", "both")
    assert again.returncode == 0
    assert f"{len(NAMES)} skipped" in again.stderr
    assert "mean nothing" not in again.stderr, "the model was loaded though nothing was to be scanned"
    assert list(temporary.iterdir()) == [], "something is left among the temporary files"
