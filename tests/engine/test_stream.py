"""The stream when scoring fails: every video gets its result."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fakes import DifferenceDetector
from tests.media import make_video
from tests.runs import local_scan
from vadcli.engine.plan import make_plan
from vadcli.engine.runner import Stop
from vadcli.engine.stream import MOST_ENDED
from vadcli.options import ScanOptions
from vadcli.types import ClipBatch, ClipScores, VideoResult


class Failing(DifferenceDetector):
    """Raises an error at every batch, at once or after a moment."""

    def __init__(self, delay_s: float) -> None:
        super().__init__(fits_camera=False)
        self.delay_s = delay_s

    def score(self, batch: ClipBatch) -> ClipScores:
        time.sleep(self.delay_s)
        raise ZeroDivisionError("a corner case")


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
@pytest.mark.parametrize("batch_size", [2, 3])
def test_when_scoring_fails_every_video_is_a_failed_one(tmp_path: Path, delay_s: float, batch_size: int) -> None:
    footage = tmp_path / "footage"
    footage.mkdir()
    count = MOST_ENDED + 3
    for number in range(count):  # no two of a size, so that their clips share no batch
        make_video(footage / f"{number:02d}.mp4", frames=15 + number, fps=10, size=(32 + 2 * number, 32))
    options = ScanOptions(out=tmp_path / "out", batch_size=batch_size, workers=1)
    stop = Stop()
    run = local_scan(make_plan([footage], options, out=options.out), options, Failing(delay_s), stop=stop, command=["vadcli"])
    results = [update for update in run.run() if isinstance(update, VideoResult)]
    assert sorted(result.video for result in results) == [f"{number:02d}.mp4" for number in range(count)]
    assert {str(result.status) for result in results} == {"failed"}
    assert run.exit_code == 3
