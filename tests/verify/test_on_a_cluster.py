"""`vadcli verify --runner ray`: the same documents as on this machine, also if a worker is killed."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.verify.planted import VIDEOS, BrightAsker, make_archive, scanned
from tests.verify.test_command import run
from tests.verify.test_verify import Middle
from vadcli.engine.runner import Stop
from vadcli.errors import UsageError
from vadcli.options import ScanOptions, VerifyOptions
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.verification import read_answers, read_verification
from vadcli.verifying import VerifyResult, steps, verify_all, verify_options
from vadcli.verifying.steps import Part, Step, VerifyWork, VideoAsked, VideoPart, unrefined_rows
from vadcli.verifying.survey import Survey

ENTRY_POINTS = "[vadcli.askers]\nplanted = tests.verify.planted:load_planted\nmortal = tests.verify.planted:load_mortal\n"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make footage and scan it."""
    folder = tmp_path_factory.mktemp("archive")
    scanned(make_archive(folder / "footage"), folder / "out", masks="rle")
    return folder


@pytest.fixture(scope="module")
def site(ray_site: Path) -> Path:
    """Make a package with two models that the nodes can import, too."""
    info = ray_site / "models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return ray_site


def verify(out: Path, **options: object) -> VerifyResult:
    given = VerifyOptions(model="mortal", categories="fight", share="40%", describe=True, checkpoint_every="0s", **options)  # type: ignore[arg-type]
    return verify_all(out, given, BrightAsker("mortal"))


@pytest.mark.usefixtures("site")
def test_a_worker_that_dies_changes_nothing(
    archive: Path, tmp_path: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The model kills its process once, in the middle of a video. Stored answers are not asked for again."""
    monkeypatch.chdir(tmp_path)  # the model writes its log into the current folder
    here, there = (Path(shutil.copytree(archive / "out", tmp_path / name)) for name in ("here", "there"))
    wanted = verify(here)
    Path("asked.log").touch()
    got = verify(Path("there"), runner="ray", ray_address=ray_address, ray_cpus=1)
    assert "a worker died" in caplog.text
    assert replace(got, seconds=0) == replace(wanted, seconds=0)
    assert got.exit_code == 0
    one, two = OutputLayout(here), OutputLayout(there)
    for name in VIDEOS:
        video = f"yard/{name}"
        assert read_events(two.events(video)) == read_events(one.events(video))
        expected, found = read_answers(one.answers(video)), read_answers(two.answers(video))
        assert replace(found.metadata, seconds_per_clip=0) == replace(expected.metadata, seconds_per_clip=0)
        for column, values in expected.answers.columns().items():
            np.testing.assert_array_equal(found.answers.columns()[column], values)
    twice = len(Path("asked.log").read_text().split()) - wanted.asked
    assert 0 < twice <= 2 * BrightAsker.batch_size  # the batch of the dead process, and an unstored batch
    for layout in (one, two):
        record = read_verification(layout)
        assert record is not None
        assert (record.asked, record.left, record.confirmed, record.exit_code) == (wanted.asked, 0, wanted.confirmed, 0)
    assert not list(there.rglob(".tmp/*"))
    again = verify(there, runner="ray", ray_address=ray_address)
    assert (again.asked, again.left) == (0, 0)


def test_a_scan_and_its_verification_on_the_cluster(archive: Path, tmp_path: Path, site: Path, ray_address: str) -> None:
    (tmp_path / "site").symlink_to(site)
    options = ("--detector", "motion", "--verify", "planted", "--out", "out", "--json")
    video = str(archive / "footage" / "yard" / "b.mp4")
    code, out, error = run(
        tmp_path, "scan", video, *options, "--runner", "ray", "--ray-address", ray_address, "--ray-cpus", "1"
    )
    assert code == 0, error
    assert "confirmed by planted" in error
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["video"] for line in lines if line["type"] == "verified"} == {"b.mp4"}
    assert json.loads((tmp_path / "out" / "verify.json").read_text())["config"]["runner"] == "ray"


def test_a_worker_refines_masks(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of a worker is done in this process, because the nodes of the tests lack the model's weights."""
    layout = OutputLayout(Path(shutil.copytree(archive / "out", tmp_path / "out")))
    verify_all(layout.out, VerifyOptions(), BrightAsker())
    options, refiner = VerifyOptions(refine_masks=True), Middle()
    survey = Survey.of(layout, options, BrightAsker())
    monkeypatch.setattr(steps, "asker_of", lambda options: BrightAsker())
    monkeypatch.setattr(steps, "refiner_of", lambda options: refiner)
    rows = [unrefined_rows(layout, video) for video in survey.videos]
    parts = tuple(VideoPart(*part) for part in zip(survey.videos, survey.choices, rows, strict=True) if len(part[2]))
    order = pickle.loads(pickle.dumps(Part(Step.REFINE, layout, survey.questions, parts)))
    said: list[object] = []
    VerifyWork(options).do(order, Stop(), said.append)
    assert said == [VideoAsked("yard/b.mp4", 0, "")]
    assert refiner.frames > 20
    assert not len(unrefined_rows(layout, survey.videos[1]))


def test_other_runners_are_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--runner slurm can't verify"):
        verify_all(archive / "out", VerifyOptions(runner="slurm"), BrightAsker())
    with pytest.raises(UsageError, match="add --runner ray"):
        VerifyOptions(ray_cpus=2)
    chosen = verify_options(ScanOptions(verify="planted", runner="slurm"))
    assert chosen.runner == "local"
