"""Scans that decode only references or keyframes: their rows, where they continue, and when they are done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.engine.test_local import Scan, assert_same_rows, table
from tests.fakes import DifferenceDetector
from tests.media import damage, make_video
from vadcli.detectors.motion.detector import MotionDetector
from vadcli.engine.job import ScanIdentity
from vadcli.engine.runner import effective_needs
from vadcli.options import ScanOptions
from vadcli.store import OutputLayout
from vadcli.store.scores import read_metadata
from vadcli.video.probe import probe


@pytest.fixture(scope="module")
def footage(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    options = ("-bf", "3", "-b_strategy", "0", "-x264-params", "b-pyramid=none")
    make_video(folder / "a.mp4", frames=120, fps=30, gop=30, size=(320, 240), options=options)
    damage(folder / "a.mp4", folder / "b.mp4", start=0.5, length=600)
    return folder


@pytest.mark.parametrize("stop_after", [2, 5])
def test_a_scan_that_decodes_references_goes_on_where_it_was(footage, tmp_path, stop_after):
    whole, out = tmp_path / "whole", tmp_path / "out"
    Scan(footage, whole, decode="reference", workers=1, decoder="ffmpeg")
    Scan(footage, out, decode="reference", workers=1, decoder="ffmpeg", stop_after=stop_after)
    Scan(footage, out, decode="reference", workers=2, decoder="ffmpeg", retry_failed=True)
    every = tmp_path / "every"
    Scan(footage, every, decoder="ffmpeg", workers=1)
    for video in ("a.mp4", "b.mp4"):
        assert_same_rows(table(whole, video), table(out, video))
        np.testing.assert_array_equal(table(whole, video).pts, table(every, video).pts)
        np.testing.assert_array_equal(table(whole, video).decode_ok, table(every, video).decode_ok)
    assert not table(whole, "b.mp4").decode_ok.all()
    sampled = np.flatnonzero(table(whole, "a.mp4").sampled)
    assert probe(footage / "a.mp4").reference[sampled].all()
    assert 30 <= len(sampled) < 40 == int(table(every, "a.mp4").sampled.sum())


def test_keyframes_alone(footage, tmp_path):
    assert Scan(footage, tmp_path, decode="key", include=("a.mp4",)).code == 0
    scores = table(tmp_path, "a.mp4")
    assert np.flatnonzero(scores.sampled).tolist() == [0, 30, 60, 90]
    assert scores.decode_ok.all()
    metadata = read_metadata(OutputLayout(tmp_path).scores("a.mp4"))
    assert metadata is not None
    assert (metadata.extra["decode"], metadata.extra["interval"]) == ("key", 30)


def test_scans_of_before_are_still_done(footage, tmp_path):
    def needs(detector: object, **options: object) -> str:
        asked = effective_needs(detector, ScanOptions(**options))  # type: ignore[arg-type]
        return json.dumps(ScanIdentity.of(detector, asked, decoder="auto", fps=None, categories=()).needs)  # type: ignore[arg-type]

    others, motion = DifferenceDetector(), MotionDetector()
    assert "decode" not in needs(others)
    assert needs(others, decode="all") == needs(others)
    assert needs(others, decode="reference") != needs(others) != needs(others, decode="key")
    assert needs(motion) == needs(motion, decode="reference")
    assert "decode" not in needs(motion, interval=3)  # every third frame was asked for
