"""The detector `concept` with a planted encoder: it finds a category where it is, and nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import vadcli
from tests.media import run_ffmpeg
from tests.planted import PlantedEncoder
from tests.runs import local_scan
from vadcli.detectors import concept
from vadcli.engine.job import ScanJob
from vadcli.engine.plan import WorkUnit, make_plan
from vadcli.engine.recut import recut
from vadcli.engine.results import rescore
from vadcli.engine.runner import Stop
from vadcli.errors import UsageError, WeightsError
from vadcli.options import ScanOptions
from vadcli.store import OutputLayout
from vadcli.store.events import read_events
from vadcli.store.scores import read_embeddings, read_scores
from vadcli.types import Status, Thresholds, VideoResult

FPS = 4
RED = "something red: a red thing; the colour red in the picture"
BLUE = "something blue: a blue thing; the colour blue in the picture"
RED_S = (60.0, 70.0)


def draw(index: int, kind: str) -> np.ndarray:
    """Write a video of a grey yard with a little noise. From 60 to 70 s, it has a coloured square."""
    image = np.full((48, 64, 3), 120, np.uint8)
    image += np.random.default_rng(index).integers(0, 8, image.shape, dtype=np.uint8)
    if kind in ("red", "blue") and RED_S[0] <= index / FPS < RED_S[1]:
        image[12:36, 8:32] = (220, 20, 20) if kind == "red" else (20, 20, 220)
    return image


def make(path: Path, kind: str, seconds: int = 120) -> Path:
    raw = b"".join(draw(index, kind).tobytes() for index in range(seconds * FPS))
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", str(FPS), "-i", "pipe:0")
    run_ffmpeg(*source, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv444p", f"file:{path}", stdin=raw)
    return path


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    for name, kind in (("a-red.mp4", "red"), ("b-blue.mp4", "blue"), ("c-quiet.mp4", "quiet")):
        (folder / name[0]).mkdir()
        make(folder / name[0] / name, kind)
    return folder


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)


def plant(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PlantedEncoder()
    monkeypatch.setattr(concept, "load_encoder", lambda name, **_: encoder)
    monkeypatch.setattr(concept, "encoder_fingerprint", lambda name, **_: {"encoder": name})
    monkeypatch.setattr(concept, "encoder_area_px", lambda name: 32 * 32 * 16 // 9)
    monkeypatch.setattr("vadcli.vectors.load_encoder", lambda name, **_: encoder)
    monkeypatch.setattr("vadcli.vectors.encoder_fingerprint", lambda name: {"encoder": name})


def scan(footage: Path, out: Path, categories: str, **options: object) -> dict[str, VideoResult]:
    given = {"out": out, "detector": "concept", "encoder": "planted", "categories": categories, "workers": 1, **options}
    return {result.video: result for result in vadcli.scan(footage, **given)}


@pytest.fixture(scope="module")
def red(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a scan for RED."""
    out = tmp_path_factory.mktemp("red") / "out"
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        scan(footage, out, RED)
    return out


@pytest.fixture
def out(red: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(red, tmp_path / "out"))


def test_what_is_described_is_found_and_named(footage: Path, tmp_path: Path) -> None:
    results = scan(footage, tmp_path / "out", f"{RED}, {BLUE}", masks="rle")
    assert {result.status for result in results.values()} == {Status.DONE}
    layout = OutputLayout(tmp_path / "out")
    for video, colour in (("a/a-red.mp4", "red"), ("b/b-blue.mp4", "blue")):
        events = read_events(layout.events(video)).events
        assert len(events) == 1
        assert events[0].start_s == pytest.approx(RED_S[0], abs=4.0)
        assert events[0].end_s == pytest.approx(RED_S[1], abs=4.0)
        assert events[0].category == f"something {colour}"
        assert min(events[0].category_scores.values()) < 0.1
        assert max(events[0].category_scores.values()) == pytest.approx(events[0].peak_score, abs=1e-5)
        # the square is at x 8..32, y 12..36 of 64 x 48; a patch of the planted encoder is 16 x 12
        x, y, width, height = events[0].bbox or (0, 0, 0, 0)
        assert x <= 12
        assert y <= 14
        assert 28 <= x + width <= 52
        assert 30 <= y + height <= 46
    assert read_events(layout.events("c/c-quiet.mp4")).events == ()
    table, _ = read_scores(layout.scores("a/a-red.mp4"))
    assert table.category_names == ("something red", "something blue")
    assert table.category_scores is not None
    np.testing.assert_allclose(table.category_scores.max(axis=1), table.score, atol=1e-6)  # the rarest category is the score
    found = recut(layout, None, "a/a-red.mp4", Thresholds(high=0.9, low=0.8)).events
    assert [event.category for event in found] == ["something red"]


def test_what_is_absent_is_not_found(footage: Path, tmp_path: Path) -> None:
    scan(footage, tmp_path / "out", "something green: a green thing; the colour green")
    layout = OutputLayout(tmp_path / "out")
    assert [read_events(path).events for path in layout.iter_events()] == [(), (), ()]


def test_other_categories_are_scored_without_decoding(
    footage: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, again = tmp_path / "whole", out
    scan(footage, whole, f"{RED}, {BLUE}")
    options = ScanOptions(out=again, detector="concept", encoder="planted", categories=f"{RED}, {BLUE}")  # type: ignore[call-arg]
    preview = local_scan(make_plan([footage], options, out=again), options, concept.ConceptDetector(options)).preview()
    assert {need for _, need in preview} == {"rescore"}
    monkeypatch.setattr(PlantedEncoder, "encode_images", lambda self, frames: pytest.fail("a video was decoded"))
    results = scan(footage, again, f"{RED}, {BLUE}")
    assert {result.status for result in results.values()} == {Status.DONE}
    one, two = OutputLayout(whole), OutputLayout(again)
    for video in results:
        (first, told), (second, meta) = read_scores(one.scores(video)), read_scores(two.scores(video))
        np.testing.assert_array_equal(first.logit, second.logit)
        assert meta.fingerprint == told.fingerprint
        assert meta.categories == told.categories == ("something red", "something blue")
        assert read_events(two.events(video)).events == read_events(one.events(video)).events
    assert {result.status for result in scan(footage, again, f"{RED}, {BLUE}").values()} == {Status.SKIPPED}


def test_vectors_are_stored_per_sampled_frame_or_not_at_all(footage: Path, out: Path, tmp_path: Path) -> None:
    layout = OutputLayout(out)
    stored = read_embeddings(layout.embeddings("a/a-red.mp4"))
    table, metadata = read_scores(layout.scores("a/a-red.mp4"))
    np.testing.assert_array_equal(stored.frame_index, table.frame_index[table.sampled])
    assert len(stored.embeddings) == 240  # two per second
    assert (stored.metadata.encoder, stored.metadata.content) == ("planted", metadata.source["content"])
    scan(footage / "c", tmp_path / "none", RED, keep_embeddings=False)
    assert not (tmp_path / "none" / "embeddings").exists()


def test_a_damaged_vectors_file_means_a_new_scan(footage: Path, out: Path) -> None:
    path = OutputLayout(out).embeddings("a/a-red.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert {result.status for result in scan(footage, out, BLUE).values()} == {Status.DONE}
    assert len(read_embeddings(path).embeddings) == 240


def test_another_encoder_or_rate_is_scanned_again(footage: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    encode = PlantedEncoder.encode_images
    monkeypatch.setattr(PlantedEncoder, "encode_images", lambda self, frames: seen.append(len(frames)) or encode(self, frames))
    scan(footage, out, RED, sample_fps=1.0)
    assert seen
    seen.clear()
    scan(footage, out, RED, sample_fps=1.0, encoder="other")
    assert seen


def test_a_search_finds_the_moment(footage: Path, out: Path, tmp_path: Path) -> None:
    found = vadcli.search(out, "a red thing", top=3)
    assert found[0].video == "a/a-red.mp4"
    assert RED_S[0] <= found[0].peak_s < RED_S[1]
    assert found[0].start_s == pytest.approx(RED_S[0], abs=1.0)
    assert found[0].end_s == pytest.approx(RED_S[1], abs=1.0)
    assert found[0].score > 0.5 > found[1].score
    assert {one.video for one in vadcli.search(out, "a red thing", camera=("b",), top=50)} == {"b/b-blue.mp4"}
    picture = tmp_path / "blue.png"
    run_ffmpeg("-ss", "65", "-i", str(footage / "b" / "b-blue.mp4"), "-frames:v", "1", str(picture))
    assert vadcli.search(out, image=picture, top=1)[0].video == "b/b-blue.mp4"
    assert vadcli.search(out, "a red thing", top=3, to=tmp_path / "found.csv", format="csv") == found
    assert len((tmp_path / "found.csv").read_text().splitlines()) == 4


def test_what_cannot_be_searched_is_one_line(footage: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the folder does not exist"):
        vadcli.search(tmp_path / "nowhere", "a red thing")
    scan(footage / "c", tmp_path / "out", RED, keep_embeddings=False)
    with pytest.raises(UsageError, match="no stored vectors"):
        vadcli.search(tmp_path / "out", "a red thing")
    scan(footage / "c", tmp_path / "out", RED, force=True)
    with pytest.raises(UsageError, match="a text or --image"):
        vadcli.search(tmp_path / "out")
    with pytest.raises(UsageError, match="tokens"):
        vadcli.search(tmp_path / "out", "red " * 90)
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"x\.png: can't be read as a picture"):
        vadcli.search(tmp_path / "out", image=tmp_path / "x.png")
    with pytest.raises(WeightsError, match="not made by the encoder"):
        vadcli.search(tmp_path / "out", "a red thing", encoder="another")


def test_an_interrupted_scan_gives_the_same_vectors_and_scores(footage: Path, tmp_path: Path) -> None:
    whole = scan(footage / "a", tmp_path / "whole", RED)
    options = ScanOptions(  # type: ignore[call-arg]
        out=tmp_path / "out", detector="concept", encoder="planted", categories=RED, workers=1, batch_size=1
    )
    scan(footage / "a", tmp_path / "out", RED, batch_size=1)  # fits the camera; short footage is held in memory for that
    for kind in ("scores", "events", "embeddings"):
        shutil.rmtree(tmp_path / "out" / kind)
    stop = Stop()
    run = local_scan(make_plan([footage / "a"], options, out=options.out), options, concept.ConceptDetector(options), stop=stop)
    for update in run.run():
        if not isinstance(update, VideoResult) and run.totals.frames > 30 * FPS:
            stop.set("test", 2)
    layout = OutputLayout(tmp_path / "out")
    assert not layout.scores("a-red.mp4").exists()
    assert set(scan(footage / "a", tmp_path / "out", RED, batch_size=1)) == set(whole)
    one, two = (read_embeddings(OutputLayout(tmp_path / name).embeddings("a-red.mp4")) for name in ("whole", "out"))
    np.testing.assert_array_equal(one.embeddings.values, two.embeddings.values)
    first, second = (read_scores(OutputLayout(tmp_path / name).scores("a-red.mp4"))[0] for name in ("whole", "out"))
    np.testing.assert_array_equal(first.logit, second.logit)


def test_hundreds_of_categories(footage: Path, tmp_path: Path) -> None:
    words = ", ".join(f"thing number {number}" for number in range(500))
    assert {result.status for result in scan(footage / "c", tmp_path / "out", words).values()} == {Status.DONE}


def test_a_camera_that_is_learned_again_is_scored_from_stored_vectors(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, out, whole = tmp_path / "archive", tmp_path / "out", tmp_path / "whole"
    (archive / "cam").mkdir(parents=True)
    shutil.copy(footage / "a" / "a-red.mp4", archive / "cam")
    scan(archive, out, RED)
    for name in ("b/b-blue.mp4", "c/c-quiet.mp4"):
        shutil.copy(footage / name, archive / "cam")
    scored: list[str] = []

    def noted(job: ScanJob, unit: WorkUnit, *rest: object) -> object:
        scored.append(unit.video)
        return rescore(job, unit, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("vadcli.engine.local.rescore", noted)
    assert {result.status for result in scan(archive, out, RED).values()} == {Status.DONE}
    assert scored == ["cam/a-red.mp4"]
    scan(archive, whole, RED)
    one, two = OutputLayout(whole), OutputLayout(out)
    for video in ("cam/a-red.mp4", "cam/b-blue.mp4", "cam/c-quiet.mp4"):
        np.testing.assert_array_equal(read_scores(one.scores(video))[0].score, read_scores(two.scores(video))[0].score)
        assert read_events(one.events(video)).caveats == read_events(two.events(video)).caveats != ()


def test_a_scan_with_a_head_judges_new_videos_and_those_that_are_done(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted encoder scores red and blue alike. One rejected blue event is enough for a retrieval head."""
    out = tmp_path / "out"
    both = "colour: a red thing; a blue thing"
    scan(footage, out, both)
    layout = OutputLayout(out)
    (blue,) = read_events(layout.events("b/b-blue.mp4")).events
    entry = {"start_s": blue.start_s, "end_s": blue.end_s, "peak_score": blue.peak_score}
    reviews = {"format_version": 1, "reviews": [{"video": "b/b-blue.mp4", **entry, "verdict": "false"}]}
    (tmp_path / "review.json").write_text(json.dumps(reviews))
    vadcli.learn(out, review=tmp_path / "review.json", to=tmp_path / "head", anyway=True)
    card = json.loads((tmp_path / "head" / "card.json").read_text())
    threshold = {"threshold": card["threshold"] - 1.0}  # one verdict gives no threshold between the two
    (tmp_path / "head" / "card.json").write_text(json.dumps({**card, **threshold}))
    with monkeypatch.context() as patch:
        patch.setattr(PlantedEncoder, "encode_images", lambda self, frames: pytest.fail("a video was decoded"))
        results = scan(footage, out, both, head=tmp_path / "head")
    assert {result.status for result in results.values()} == {Status.SKIPPED}
    fresh = tmp_path / "fresh"
    scan(footage, fresh, both, head=tmp_path / "head")
    for folder in (out, fresh):
        stored = {name: read_events(OutputLayout(folder).events(f"{name[0]}/{name}.mp4")) for name in ("a-red", "b-blue")}
        assert [len(one.events) for one in stored.values()] == [1, 0]
        assert {one.head.name for one in stored.values() if one.head} == {"head"}
        assert stored["a-red"].events[0].head_score is not None
    scan(footage, out, both)
    assert len(read_events(layout.events("b/b-blue.mp4")).events) == 1
