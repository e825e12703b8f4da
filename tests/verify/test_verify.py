"""`vadcli verify` from the footage to the documents, with a planted model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import vadcli
from benchmarks.verify import count
from tests.media import SHARED
from tests.runs import local_scan
from tests.verify.planted import JUMPS_S, VIDEOS, BrightAsker, make_archive, make_yard, scanned
from vadcli.detectors.ask import SEVERITY, AskDetector, calibrate, questions_for
from vadcli.detectors.calibration import CategoryTails
from vadcli.detectors.options import AskOptions
from vadcli.engine.event_rules import ClipGrid, VerifiedScores, judge_of, tails_to_json
from vadcli.engine.plan import make_plan
from vadcli.engine.recut import preview, validate_all
from vadcli.engine.runner import Stop
from vadcli.errors import UsageError
from vadcli.options import EventsOptions, ScanOptions, VerifyOptions
from vadcli.options.categories import Category
from vadcli.store import OutputLayout
from vadcli.store.atomic import Claim, Scratch
from vadcli.store.events import read_events, write_events
from vadcli.store.masks import MaskTrack, refined_spans
from vadcli.store.scores import read_scores, shown_s
from vadcli.store.verification import StoredAnswers, read_answers
from vadcli.types import Answer, CameraModel, Event, Thresholds
from vadcli.verifying import VerifyResult, verify_all
from vadcli.verifying.asking import Interview, VideoJob
from vadcli.verifying.survey import Survey, clip_needs
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, LoaderOptions
from vadcli.video.sampling import SamplingPlan


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make footage and scan it."""
    folder = tmp_path_factory.mktemp("archive")
    scanned(make_archive(folder / "footage"), folder / "out")
    return folder


@pytest.fixture
def out(archive: Path, tmp_path: Path) -> Path:
    """Return a copy of the scan."""
    return Path(shutil.copytree(archive / "out", tmp_path / "out"))


def verify(out: Path, asker: BrightAsker | None = None, **options: object) -> VerifyResult:
    return verify_all(out, VerifyOptions(**options), asker or BrightAsker())  # type: ignore[arg-type]


def events_of(out: Path, name: str) -> tuple[Event, ...]:
    return read_events(OutputLayout(out).events(f"yard/{name}")).events


def answers_of(out: Path, name: str) -> StoredAnswers:
    return read_answers(OutputLayout(out).answers(f"yard/{name}"))


def test_the_scan_finds_what_jumps(out: Path) -> None:
    """Both things are events before the verification. The other tests need this."""
    assert [len(events_of(out, name)) for name in VIDEOS] == [0, 1, 1]


def test_an_event_is_confirmed_or_rejected_and_the_old_ones_come_back(out: Path) -> None:
    before = {path.name: path.read_bytes() for path in (out / "events" / "yard").iterdir()}
    result = verify(out)
    assert result.problems == ()
    assert [(one.video[5:], one.confirmed, one.rejected) for one in result.videos] == [
        ("a.mp4", 0, 0),
        ("b.mp4", 1, 0),
        ("c.mp4", 0, 1),
    ]
    (bright,), (dark,) = events_of(out, "b.mp4"), events_of(out, "c.mp4")
    assert bright.verification is not None
    assert (bright.verification.answer, bright.verification.text) == (Answer.CONFIRMED, "confirmed by planted")
    assert bright.category in {question.category for question in SEVERITY}
    assert bright.start_s == pytest.approx(JUMPS_S[0], abs=6.0)
    assert bright.end_s == pytest.approx(JUMPS_S[1], abs=6.0)
    assert dark.verification is not None
    assert dark.verification.answer is Answer.REJECTED
    assert dark.peak_score < 0.5
    assert not dark.category
    assert [error for errors in validate_all(out) for error in errors] == []

    shown = vadcli.events(out)
    assert [one.events for one in shown.documents] == [events_of(out, name) for name in VIDEOS]
    for document in vadcli.events(out, verify=False).documents:
        assert document.scan_events is None
        assert all(event.verification is None for event in document.events)
    vadcli.events(out, verify=False, write=True)
    assert {path.name: path.read_bytes() for path in (out / "events" / "yard").iterdir()} == before
    assert verify(out).asked == 0
    assert events_of(out, "b.mp4") == (bright,)


def test_other_thresholds_keep_the_answers(out: Path) -> None:
    verify(out)
    (document,) = [one for one in vadcli.events(out, threshold=0.7, low=0.6).documents if one.video["path"] == "yard/b.mp4"]
    (event,) = document.events
    assert event.verification is not None
    assert event.verification.answer is Answer.CONFIRMED
    assert document.scan_events is not None
    assert len(document.scan_events) == 1


def test_the_preview_counts_what_other_thresholds_would_store(out: Path) -> None:
    verify(out)
    for verified in (True, False):
        options = EventsOptions(verify=verified)
        for row in preview(out, options).rows:
            stored = vadcli.events(out, threshold=row.threshold, verify=verified)
            assert row.events == sum(len(document.events) for document in stored.documents), (row, verified)


def test_a_second_run_asks_nothing_and_new_categories_only_themselves(out: Path) -> None:
    first = BrightAsker()
    result = verify(out, first, categories="fight")
    assert set(first.asked) == {"fight"}
    assert result.asked == len(first.asked) > 0
    again = BrightAsker()
    assert verify(out, again, categories="fight").asked == 0
    assert again.asked == []
    files = {path: path.read_bytes() for path in (out / "verify").rglob("*") if path.is_file()}
    verify(out, BrightAsker(), categories="fight")
    assert {path: path.read_bytes() for path in files} == files

    more = BrightAsker()
    verify(out, more, categories="fight,fire")
    assert Counter(more.asked) == {"fire": result.asked}
    fewer = BrightAsker()
    verify(out, fewer, categories="fire")
    assert fewer.asked == []
    assert events_of(out, "b.mp4")[0].category == "fire"
    other = BrightAsker("another")
    assert verify(out, other, categories="fight").asked == result.asked


def test_the_questions_quote_the_sentences_of_the_scan(out: Path) -> None:
    """The questions contain the user's sentences and those of vadcli's lists."""
    layout, own = OutputLayout(out), Category("fall", ("a man slips on ice",), ("a child jumps",))
    for name in VIDEOS:
        path = layout.events(f"yard/{name}")
        write_events(path, replace(read_events(path), categories=("fall", "fight"), own_categories=(own,)))
    assert [error for errors in validate_all(out) for error in errors] == []
    survey = Survey.of(layout, VerifyOptions(), BrightAsker())
    fall, fight = survey.questions
    assert fall.text == "Does this video clip show fall, such as: a man slips on ice?"
    assert fall.look_alike == "Does this video clip show a child jumps?"
    assert fight == questions_for("fight")[0]
    assert Survey.of(layout, VerifyOptions(categories="fire"), BrightAsker()).questions == questions_for("fire")


def test_share_100_asks_what_a_loop_over_all_clips_asks(archive: Path, out: Path) -> None:
    """The clips are the same, so the log-odds are equal bit for bit, with every batch size."""
    asker = BrightAsker()
    asker.batch_size = 7
    result = verify(out, asker, share="100%")
    assert result.audit is None
    for name in VIDEOS:
        found = answers_of(out, name)
        with ClipLoader(clip_needs(asker), LoaderOptions()) as loader:
            request = ClipRequest(name, archive / "footage" / "yard" / name)
            odds = [
                BrightAsker().ask(item.clip.frames[None], SEVERITY)[0]
                for item in loader.run([request])
                if isinstance(item, ClipReady)
            ]
        np.testing.assert_array_equal(found.answers.clip, np.arange(len(odds)))
        np.testing.assert_array_equal(found.of(tuple(question.category for question in SEVERITY)), np.stack(odds))
        assert not found.answers.audit.any()


def test_share_100_scores_as_the_detector_ask_does(archive: Path, out: Path, tmp_path: Path) -> None:
    """With the same calibration, the logits of all frames equal those of a scan bit for bit."""
    options = ScanOptions(out=tmp_path / "ask", workers=1)
    detector = AskDetector(AskOptions(categories="fight"), BrightAsker())
    plan = make_plan([archive / "footage"], options, out=options.out)
    for _ in local_scan(plan, options, detector).run():
        pass
    ((camera),) = (options.out / "cameras").glob("*.json")
    tails = calibrate(CameraModel.from_json(json.loads(camera.read_text())), 1)
    verify(out, share="100%", categories="fight")
    for video in ("yard/a.mp4", "yard/b.mp4"):
        wanted, _ = read_scores(OutputLayout(options.out).scores(video))
        table, metadata = read_scores(OutputLayout(out).scores(video))
        stored = read_answers(OutputLayout(out).answers(video))
        same = replace(stored, metadata=replace(stored.metadata, usual=tails_to_json(tails)))
        found = VerifiedScores.of(table, same, Thresholds(), shown_s(table, metadata.video))
        assert found is not None
        assert found.asked.all()
        np.testing.assert_array_equal(found.model, wanted.logit)


def test_a_smaller_share_gives_the_same_answers(out: Path, archive: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(archive / "out", tmp_path / "whole"))
    verify(whole, share="100%")
    verify(out)
    for name in ("b.mp4", "c.mp4"):
        few, all_of_them = answers_of(out, name), answers_of(whole, name)
        assert 0 < len(few.answers) < len(all_of_them.answers)
        np.testing.assert_array_equal(few.answers.log_odds, all_of_them.answers.log_odds[few.answers.clip])
        assert few.metadata.categories == tuple(few.metadata.questions)


def test_frames_that_were_not_asked_open_no_event(out: Path) -> None:
    verify(out)
    layout, video = OutputLayout(out), "yard/b.mp4"
    table, metadata = read_scores(layout.scores(video))
    thresholds = read_events(layout.events(video)).thresholds
    found = VerifiedScores.of(table, read_answers(layout.answers(video)), thresholds, shown_s(table, metadata.video))
    assert found is not None
    assert 0 < found.asked.sum() < len(table)
    np.testing.assert_array_equal(found.table.logit[~found.asked], table.logit[~found.asked])
    assert found.table.score[~found.asked].max() < thresholds.high
    model = found.model[found.asked]
    np.testing.assert_allclose(found.table.logit[found.asked], (table.logit[found.asked] + model) / 2, rtol=1e-6)


def test_the_model_is_calibrated_so_its_lean_does_not_matter(out: Path, archive: Path, tmp_path: Path) -> None:
    class LeansToYes(BrightAsker):
        def ask(self, frames, questions):  # type: ignore[no-untyped-def]
            return super().ask(frames, questions) + np.float32(16.0)

    other = Path(shutil.copytree(archive / "out", tmp_path / "other"))
    verify(out)
    verify(other, LeansToYes())
    for name in VIDEOS:
        for one, two in zip(events_of(out, name), events_of(other, name), strict=True):
            assert (one.start_s, one.end_s) == (two.start_s, two.end_s)
            assert one.peak_score == pytest.approx(two.peak_score, abs=1e-4)


def test_after_a_scan_for_motion_only_the_spans_are_decoded(tmp_path: Path) -> None:
    """Less than a quarter of all frames is decoded, with the frames from the keyframe before each span."""
    (tmp_path / "footage").mkdir()
    make_yard(tmp_path / "footage" / "b.mp4", "bright", seconds=240)
    found = count([tmp_path / "footage"], tmp_path, camera_from="all")
    assert found.asked > 0
    assert 0 < found.decoded < 0.25 * found.total


REAL = [SHARED / name for name in ("incidents", "everyday", "ubnormal", "ucf_crime")]


@pytest.mark.skipif(not all(folder.is_dir() for folder in REAL), reason=f"needs the real clips in {SHARED}")
def test_of_real_clips_less_than_a_quarter_is_decoded(tmp_path: Path) -> None:
    """The clips are short, of many kinds, and count as one camera. docs/verify.md has the figure."""
    found = count(REAL, tmp_path, camera_from="all")
    assert found.asked > 0
    assert 0 < found.decoded < 0.25 * found.total


def test_limit_and_dry_run(out: Path) -> None:
    dry = verify(out, dry_run=True)
    assert dry.left > 5
    assert dry.seconds > 0
    assert not (out / "verify").exists()
    first = verify(out, limit=5)
    assert (first.asked, first.left) == (5, dry.left - 5)
    rest = verify(out)
    assert (rest.asked, rest.left) == (dry.left - 5, 0)


def test_what_a_small_share_leaves_out_is_not_asked(out: Path) -> None:
    verify(out, share="1%", audit="0%")
    said = [event for name in VIDEOS for event in events_of(out, name)]
    unasked = [event for event in said if event.verification and event.verification.answer is Answer.NOT_ASKED]
    assert unasked
    for event in unasked:
        assert event.peak_score >= 0.5
        assert event.verification is not None
        assert event.verification.log_odds is None


def test_confirmed_events_are_described_once(out: Path) -> None:
    asker = BrightAsker()
    verify(out, asker, describe=True)
    assert asker.described == 1
    (event,) = events_of(out, "b.mp4")
    assert event.description is not None
    assert event.description.model == "planted"
    assert event.description.text.startswith("A thing with a brightness of 25")
    again = BrightAsker()
    verify(out, again, describe=True)
    assert again.described == 0
    assert events_of(out, "b.mp4") == (event,)


def test_a_description_is_stored_before_another_process_may_lock_the_video(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[int] = []
    release = Claim.release

    def checked(claim: Claim, *, delete: bool) -> None:
        if asker.described:
            stored.append(len(read_answers(OutputLayout(out).answers("yard/b.mp4")).metadata.descriptions))
        release(claim, delete=delete)

    asker = BrightAsker()
    monkeypatch.setattr(Claim, "release", checked)
    verify(out, asker, describe=True)
    assert set(stored) == {1}


def test_descriptions_of_a_video_that_is_not_complete_are_stored(out: Path) -> None:
    verify(out)
    layout, clips = OutputLayout(out), np.array([5, 6])
    grid = ClipGrid.of(SamplingPlan(2, 0, 1), np.arange(40.0), 40.0)
    job = VideoJob("yard/b.mp4", out, grid, clips, np.zeros(20, np.bool_), answers_of(out, "b.mp4"))
    with Scratch(layout.scratch) as scratch:
        interview = Interview(BrightAsker(), (), layout, scratch, checkpoint_s=30.0, on_answers=lambda clips, seconds: None)
        frames = np.full((2, 4, 4, 3), 250, np.uint8)
        assert list(interview.describe(iter([(job, 5, frames)]))) == []  # the run is stopped before the second clip
    assert list(answers_of(out, "b.mp4").metadata.descriptions) == ["5"]


def test_answers_that_another_run_adds_in_the_meantime_are_kept(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def after_another_run(*arguments: object, **options: object) -> object:
        if not counts:  # the first run has read the answers, and has not written them yet
            counts.append(len(answers_of(out, "b.mp4").answers))
            verify(out, share="90%")
            counts.append(len(answers_of(out, "b.mp4").answers))
        return judge_of(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("vadcli.verifying.survey.judge_of", after_another_run)
    verify(out)
    first, both = counts
    assert first < both == len(answers_of(out, "b.mp4").answers)


@pytest.fixture
def own(archive: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return copies of the footage and of its scan."""
    footage = Path(shutil.copytree(archive / "footage", tmp_path / "footage"))
    return footage, Path(shutil.copytree(archive / "out", tmp_path / "out"))


def test_a_changed_and_a_vanished_video_are_refused_and_others_go_on(own: tuple[Path, Path]) -> None:
    footage, out = own
    data = bytearray((footage / "yard" / "a.mp4").read_bytes())
    data[len(data) // 2] ^= 255
    (footage / "yard" / "a.mp4").write_bytes(data)
    (footage / "yard" / "c.mp4").unlink()
    result = verify(out, footage=footage, share="60%")
    assert [problem.partition(":")[0] for problem in result.problems] == ["yard/a.mp4", "yard/c.mp4"]
    assert "has changed since it was scanned" in result.problems[0]
    assert "not found" in result.problems[1]
    assert result.confirmed == 1


def test_results_that_cannot_be_read_are_refused_for_their_video(out: Path) -> None:
    verify(out)
    layout = OutputLayout(out)
    layout.answers("yard/a.mp4").write_bytes(b"PAR1")
    document = layout.events("yard/c.mp4")
    document.write_text(document.read_text().replace('"format_version": 1', '"format_version": 2'))
    result = verify(out)
    assert len(result.problems) == 2
    assert "not a file of answers of this version" in result.problems[0]
    assert "format_version" in result.problems[1]
    assert result.confirmed == 1
    assert [len(errors) for errors in validate_all(out) if errors] == [1, 1]


def test_a_video_that_another_run_works_on_is_left_to_it(out: Path) -> None:
    claim = Claim.acquire(OutputLayout(out).checkpoint("yard/b.mp4"))
    assert claim is not None
    result = verify(out)
    assert len(result.problems) == 1
    assert "working on it" in result.problems[0]
    claim.release(delete=True)
    assert verify(out).confirmed == 1


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no results"):
        verify(tmp_path)


def test_a_camera_with_few_random_clips_is_like_all_cameras() -> None:
    rng = np.random.default_rng(0)
    tails = CategoryTails.fit(rng.normal(-3, 1, (400, 1)).astype(np.float32), 1, seconds=1600, floor=0.25)
    assert tails.logits(np.array([[-3.0]], np.float32))[0, 0] < 0 < tails.logits(np.array([[6.0]], np.float32))[0, 0]


# The masks of confirmed events.


class Middle:
    """Returns a small square in the middle of the picture as every outline, and counts the frames."""

    max_area_px = 1 << 20

    def __init__(self) -> None:
        self.frames = 0

    def prepare(self) -> None:
        """Do nothing, because there are no weights to load."""

    def segment(self, frame, prompts, width, height):  # type: ignore[no-untyped-def]
        self.frames += 1
        outline = np.zeros((len(prompts), height, width), np.bool_)
        outline[:, height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = True
        return outline

    def fingerprint(self) -> dict[str, object]:
        return {"refiner": "middle"}


@pytest.fixture(scope="module")
def masked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a scan with masks in both formats."""
    return scanned(archive / "footage", tmp_path_factory.mktemp("masked") / "out", masks="both")


@pytest.mark.parametrize("kind", ["video", "rle", "both"])
def test_masks_of_confirmed_events_are_refined_once(masked: Path, tmp_path: Path, kind: str) -> None:
    out = Path(shutil.copytree(masked, tmp_path / "out"))
    layout = OutputLayout(out)
    for name in VIDEOS if kind != "both" else ():
        (layout.mask_rle if kind == "video" else layout.mask_video)(f"yard/{name}").unlink()
    before = {path: path.read_bytes() for path in (out / "masks").rglob("*") if path.is_file()}

    def refine() -> int:
        refiner = Middle()
        result = verify_all(out, VerifyOptions(refine_masks=True), BrightAsker(), refiner=refiner)
        assert result.problems == ()
        return refiner.frames

    assert refine() > 20
    changed = {path.name for path, data in before.items() if path.read_bytes() != data}
    assert {name.partition(".")[0] for name in changed} == {"b"}, "the event of c.mp4 is rejected, and a.mp4 has none"
    assert len(changed) == (2 if kind == "both" else 1)
    (event,) = events_of(out, "b.mp4")
    assert event.verification is not None
    table, _ = read_scores(layout.scores("yard/b.mp4"))
    inside = [mask for _, mask in MaskTrack(table, layout).between(event.start_frame, event.end_frame)]
    middle = np.zeros((64, 96), np.bool_)
    middle[16:48, 24:72] = True
    level = read_events(layout.events("yard/b.mp4")).thresholds.mask_level
    found = [mask >= level for mask in inside if (mask >= level).any()]
    assert found
    assert sum(np.array_equal(mask, middle) for mask in found) >= 0.9 * len(found)
    assert event.bbox is not None
    assert refine() == 0
    vadcli.events(out, verify=False, write=True)


def test_a_run_that_is_stopped_while_it_refines_continues(masked: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(masked, tmp_path / "out"))
    stored = OutputLayout(out).mask_video("yard/b.mp4")
    before, stop = stored.read_bytes(), Stop()

    class Stopping(Middle):
        def segment(self, frame, prompts, width, height):  # type: ignore[no-untyped-def]
            stop.set("test")
            return super().segment(frame, prompts, width, height)

    options = VerifyOptions(refine_masks=True)
    result = verify_all(out, options, BrightAsker(), refiner=Stopping(), stop=stop)
    assert (result.stopped, result.problems, stored.read_bytes()) == ("test", (), before)
    again = verify_all(out, options, BrightAsker(), refiner=Middle())
    assert (again.asked, again.stopped) == (0, "")
    assert stored.read_bytes() != before


KILLED = """
import sys, time
from pathlib import Path
from tests.verify.planted import BrightAsker
from tests.verify.test_verify import Middle
from vadcli.options import VerifyOptions
from vadcli.verifying import verify_all

class Slow(Middle):
    def segment(self, *given, **named):
        print("refined", flush=True)
        time.sleep(0.1)
        return super().segment(*given, **named)

verify_all(Path(sys.argv[1]), VerifyOptions(refine_masks=True), BrightAsker(), refiner=Slow())
"""


def test_a_run_that_is_killed_while_it_refines_continues(masked: Path, tmp_path: Path) -> None:
    """The masks of the scan are kept until all masks are refined. The result is the same as without the interruption."""
    whole, killed = (OutputLayout(shutil.copytree(masked, tmp_path / name)) for name in ("whole", "killed"))
    options = VerifyOptions(refine_masks=True)
    verify_all(whole.out, options, BrightAsker(), refiner=Middle())
    before = killed.mask_video("yard/b.mp4").read_bytes()
    running = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(killed.out)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert running.stdout is not None
    assert [running.stdout.readline() for _ in range(5)] == 5 * ["refined\n"]
    running.kill()
    running.communicate()
    assert killed.mask_video("yard/b.mp4").read_bytes() == before
    again = verify_all(killed.out, options, BrightAsker(), refiner=Middle())
    assert (again.asked, again.problems) == (0, ())
    for path in (OutputLayout.mask_video, OutputLayout.mask_rle):
        assert path(killed, "yard/b.mp4").read_bytes() == path(whole, "yard/b.mp4").read_bytes()


def test_if_the_model_of_masks_fails_in_one_video_the_others_are_refined(masked: Path, tmp_path: Path) -> None:
    layout = OutputLayout(shutil.copytree(masked, tmp_path / "out"))
    before = layout.mask_video("yard/b.mp4").read_bytes()

    class DarkToo(BrightAsker):
        def ask(self, frames, questions):  # type: ignore[no-untyped-def]
            return super().ask(np.maximum(frames, 220 - frames.astype(np.int16)), questions)

    class Faulty(Middle):
        def segment(self, frame, prompts, width, height):  # type: ignore[no-untyped-def]
            if not self.frames:
                self.frames += 1
                raise RuntimeError("a kernel\nfailed")
            return super().segment(frame, prompts, width, height)

    options = VerifyOptions(refine_masks=True)
    result = verify_all(layout.out, options, DarkToo(), refiner=Faulty())
    assert result.problems == ("yard/b.mp4: its masks stay as they were: RuntimeError: a kernel failed",)
    assert (result.exit_code, result.confirmed) == (3, 2)
    assert layout.mask_video("yard/b.mp4").read_bytes() == before
    assert refined_spans(layout, "yard/c.mp4")
    again = Middle()
    assert verify_all(layout.out, options, DarkToo(), refiner=again).problems == ()
    assert again.frames > 5
    assert refined_spans(layout, "yard/b.mp4")


def test_without_stored_masks_there_is_nothing_to_refine(out: Path) -> None:
    with pytest.raises(UsageError, match="has no masks") as caught:
        verify_all(out, VerifyOptions(refine_masks=True), BrightAsker(), refiner=Middle())
    assert "--masks video" in str(caught.value.hint)
