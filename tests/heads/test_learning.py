"""`vadcli learn` on a simulated site: verdicts on the first nights make the later nights better; without signal it refuses."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

import vadcli
from tests import commands
from tests.heads.site import Site, make_site, review_of
from vadcli import learning
from vadcli.errors import DocumentError, NotBetter, UsageError, WeightsError
from vadcli.heads import video_heads
from vadcli.store import OutputLayout
from vadcli.store.events import read_events


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[bool]]]:
    out = tmp_path_factory.mktemp("site") / "out"
    return out, make_site(out, 20)


def remaining(out: Path, truth: dict[str, list[bool]], videos: Sequence[str], **options: object) -> tuple[int, int]:
    """True and false events that `events` finds in these videos."""
    layout = OutputLayout(out)
    counts = [0, 0]
    for document in vadcli.events(out, **options).documents:
        video = str(document.video["path"])
        if video in videos:
            starts = [event.start_frame for event in read_events(layout.events(video)).events]
            for event in document.events:
                counts[not truth[video][starts.index(event.start_frame)]] += 1
    return counts[0], counts[1]


@pytest.mark.parametrize("head", ["logistic", "retrieval"])
def test_verdicts_on_five_nights_halve_the_false_alarms_of_the_other_fifteen(
    site: tuple[Path, dict[str, list[bool]]], tmp_path: Path, head: str
) -> None:
    out, truth = site
    early, late = list(truth)[:5], list(truth)[5:]
    review = review_of(out, tmp_path / "verdicts.csv", truth, early)
    learned = vadcli.learn(out, review=review, to=tmp_path / "my-head", head=head)
    assert learned.figures is not None
    assert learned.figures.high < 0
    before, after = remaining(out, truth, late), remaining(out, truth, late, head=tmp_path / "my-head")
    assert before == (30, 120)
    assert after[1] <= before[1] / 2
    at = 0.95 * before[0]
    assert after[0] >= at


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    return commands.vadcli(*arguments, COLUMNS="200")


def test_without_signal_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    truth = make_site(out, 5, Site(signal=0.0))
    review = review_of(out, tmp_path / "review.json", truth, list(truth))
    with pytest.raises(UsageError, match=r"review\.json: exists already"):
        vadcli.learn(out, review=review, to=review)
    with pytest.raises(NotBetter, match="interval of the change reaches 0"):
        vadcli.learn(out, review=review, to=tmp_path / "my-head")
    assert not (tmp_path / "my-head").exists()
    learned = vadcli.learn(out, review=review, to=tmp_path / "my-head", anyway=True)
    assert learned.figures is not None
    assert not learned.figures.is_better
    done = cli("learn", out, "--review", review)
    assert done.returncode == 0, done.stderr
    assert "the head may not be better than the detector alone; --to DIR writes the head" in done.stderr
    assert (tmp_path / "my-head" / "card.json").exists()


def test_shuffled_verdicts_are_refused_nearly_always(site: tuple[Path, dict[str, list[bool]]], tmp_path: Path) -> None:
    """The interval has 95 %, so one side errs in one of forty reviews; three of twenty-four would be rare."""
    out, truth = site
    wrong = 0
    for seed in range(24):
        review = review_of(out, tmp_path / "review.json", truth, list(truth)[:5], flip=seed)
        learned = vadcli.learn(out, review=review)
        wrong += learned.figures is not None and learned.figures.is_better
    assert wrong <= 2


def test_the_command_prints_figures_and_the_next_command(site: tuple[Path, dict[str, list[bool]]], tmp_path: Path) -> None:
    out, truth = site
    review = review_of(out, tmp_path / "verdicts.csv", truth, list(truth)[:5])
    done = cli("learn", out, "--review", review, "--to", tmp_path / "my-head")
    assert done.returncode == 0, done.stderr
    assert "logistic head, trained on 10 true events and 40 false events in 5 videos" in done.stdout
    assert "false alarms per hour" in done.stdout
    assert f"next: vadcli events {out} --head {tmp_path / 'my-head'}" in done.stderr
    card = json.loads((tmp_path / "my-head" / "card.json").read_text())
    assert (card["kind"], card["true"], card["false"], card["cameras"]) == ("logistic", 10, 40, ["gate"])
    assert card["encoders"] == [{"name": "planted", "key": "key of planted", "width": 32}]
    assert card["figures"]["head_per_hour"] < card["figures"]["detector_per_hour"]
    again = cli("learn", out, "--review", review, "--to", tmp_path / "my-head")
    assert again.returncode == 2
    assert "--force" in again.stderr
    printed = cli("learn", out, "--review", review, "--to", tmp_path / "my-head", "--force", "--json")
    assert printed.returncode == 0
    assert json.loads(printed.stdout)["threshold"] == card["threshold"]


def test_a_refused_head_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    out = tmp_path / "out"
    truth = make_site(out, 3, Site(signal=0.0))
    review = review_of(out, tmp_path / "review.json", truth, list(truth))
    done = cli("learn", out, "--review", review, "--to", tmp_path / "my-head")
    assert done.returncode == 1
    assert "the head is not written" in done.stderr
    assert "false alarms per hour" in done.stdout


def test_events_show_both_scores_and_name_the_head(site: tuple[Path, dict[str, list[bool]]], tmp_path: Path) -> None:
    out, truth = site
    review = review_of(out, tmp_path / "review.json", truth, list(truth)[:5])
    vadcli.learn(out, review=review, to=tmp_path / "my-head")
    shown = cli("events", out, "--head", tmp_path / "my-head")
    assert shown.returncode == 0, shown.stderr
    documents = json.loads(shown.stdout)
    events = [event for document in documents for event in document["events"]]
    assert events
    assert all(event["head_score"] >= 0.5 and event["peak_score"] >= 0.5 for event in events)
    assert {document["head"]["name"] for document in documents} == {"my-head"}
    for head in (("--head", tmp_path / "my-head"), ()):
        table = [json.loads(line) for line in cli("events", out, "--preview", "--json", *head).stdout.splitlines()]
        assert [row["events"] for row in table if row["present"]] == [len(events) if head else sum(map(len, truth.values()))]


def test_written_heads_last_until_they_are_forgotten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    truth = make_site(out, 6)
    review = review_of(out, tmp_path / "review.json", truth, list(truth))
    vadcli.learn(out, review=review, to=tmp_path / "my-head")
    whole = sum(len(one.events) for one in vadcli.events(out).documents)
    vadcli.events(out, head=tmp_path / "my-head", write=True)
    layout = OutputLayout(out)
    stored = [read_events(path) for path in layout.iter_events()]
    assert {one.head.name for one in stored if one.head} == {"my-head"}
    assert sum(len(one.events) for one in stored) < whole
    assert cli("events", out, "--validate").returncode == 0
    assert sum(len(one.events) for one in vadcli.events(out).documents) < whole
    vadcli.events(out, forget=True, write=True)
    assert sum(len(read_events(path).events) for path in layout.iter_events()) == whole


def trained(tmp_path: Path, site: Site = Site()) -> Path:
    out = tmp_path / "trained-on"
    truth = make_site(out, 5, site)
    vadcli.learn(out, review=review_of(out, tmp_path / "review.json", truth, list(truth)), to=tmp_path / "my-head")
    return tmp_path / "my-head"


def test_vectors_of_another_encoder_are_refused(tmp_path: Path) -> None:
    head = trained(tmp_path)
    make_site(tmp_path / "out", 2, Site(encoder="other"))
    with pytest.raises(UsageError, match="reads vectors of the encoder planted, and the stored vectors are of other"):
        vadcli.events(tmp_path / "out", head=head)


def test_another_version_is_refused(tmp_path: Path) -> None:
    head = trained(tmp_path)
    card = json.loads((head / "card.json").read_text())
    (head / "card.json").write_text(json.dumps({**card, "heads_version": 99}))
    with pytest.raises(WeightsError, match="version 99"):
        vadcli.events(tmp_path / "trained-on", head=head)


def test_a_new_camera_is_named_and_one_that_looks_different_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = trained(tmp_path)
    make_site(tmp_path / "out", 2, Site(camera="yard"), seed=3)
    make_site(tmp_path / "out", 2, Site(camera="roof", shift=1.0), seed=4)
    make_site(tmp_path / "out", 2, first=5, seed=9)
    with caplog.at_level(logging.WARNING, logger="vadcli"):
        vadcli.events(tmp_path / "out", head=head)
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "yard" in line] == ["head my-head was not trained on camera yard"]
    (drifted,) = [line for line in said if "roof" in line]
    assert "looks unlike" in drifted
    assert not [line for line in said if "gate" in line]


def test_videos_without_vectors_keep_their_events_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    head = trained(tmp_path)
    out = tmp_path / "out"
    truth = make_site(out, 2)
    bare = next(iter(truth))
    OutputLayout(out).embeddings(bare).unlink()
    with caplog.at_level(logging.WARNING, logger="vadcli"):
        found = {str(one.video["path"]): one for one in vadcli.events(out, head=head).documents}
    assert len(found[bare].events) == 10
    assert found[bare].head is None
    assert "head my-head: 1 video could not be judged: no vectors are stored" in caplog.text


def test_one_sided_verdicts_need_anyway(tmp_path: Path) -> None:
    out = tmp_path / "out"
    truth = make_site(out, 3, Site(true=0, false=6))
    review = review_of(out, tmp_path / "review.json", truth, list(truth))
    with pytest.raises(UsageError, match="the true labels"):
        vadcli.learn(out, review=review, to=tmp_path / "my-head")
    learned = vadcli.learn(out, review=review, to=tmp_path / "my-head", anyway=True)
    assert learned.card.kind == "retrieval"
    assert learned.figures is None
    assert not [event for one in vadcli.events(out, head=tmp_path / "my-head").documents for event in one.events]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "--review FILE or --labels FILE"),
        ({"review": "review.json", "head": "nothing"}, "no head of this kind is installed"),
        ({"review": "review.json", "recall": 1.5}, "--recall 1.5"),
        ({"review": "review.json", "head": "mil"}, "learns from --labels"),
    ],
)
def test_wrong_options_are_one_line(
    site: tuple[Path, dict[str, list[bool]]], tmp_path: Path, options: dict[str, object], said: str
) -> None:
    out, truth = site
    review = review_of(out, tmp_path / "review.json", truth, list(truth)[:2])
    given = {name: review if value == "review.json" else value for name, value in options.items()}
    with pytest.raises(UsageError, match=said):
        vadcli.learn(out, **given)


def test_labels_of_videos_make_events_of_the_heads_own_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "MOST_FOLDS", 4)  # each fold is a training
    monkeypatch.setattr("tests.heads.site.NIGHT_S", 120)
    out = tmp_path / "out"
    make_site(out, 8, Site(true=1, false=0, signal=1.0), seed=1)
    make_site(out, 8, Site(true=0, false=2, signal=1.0), seed=2, first=10)
    videos = sorted(str(one.video["path"]) for one in vadcli.events(out).documents)
    rows = [f"{video},{'abnormal' if video < 'gate/night-10' else 'normal'}" for video in videos]
    labels = tmp_path / "videos.csv"
    labels.write_text("\n".join(["video,label", *rows, "gone.mp4,normal", ""]))
    learned = vadcli.learn(out, labels=labels, to=tmp_path / "my-head")
    assert learned.card.kind == "mil"
    assert "1 video left out: not in" in learned.notes[0]
    layout = OutputLayout(out)
    found = {str(one.video["path"]): one for one in vadcli.events(out, head=tmp_path / "my-head").documents}
    spans = 0
    for video in videos:
        before = read_events(layout.events(video)).events
        after = found[video].events
        if video < "gate/night-10":
            spans += any(one.start_s < before[0].end_s and one.end_s > before[0].start_s for one in after)
            assert all(one.head_score is not None and one.head_score >= 0.5 for one in after)
        else:
            assert not after
    assert spans >= 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("video,verdict\na.mp4,normal\n", "needs the columns video and label"),
        ("video,label\na.mp4,odd\n", "line 2: the label 'odd' is not known"),
        ("video,label\na.mp4,normal\na.mp4,abnormal\n", "line 3: a.mp4 has a label already"),
    ],
)
def test_a_wrong_file_of_labels_is_one_line(
    site: tuple[Path, dict[str, list[bool]]], tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "videos.csv").write_text(text)
    with pytest.raises(DocumentError, match=said):
        vadcli.learn(site[0], labels=tmp_path / "videos.csv")


def test_a_head_of_two_encoders_needs_both_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "MOST_FOLDS", 3)
    monkeypatch.setattr(video_heads, "STEPS", 20)
    monkeypatch.setattr("tests.heads.site.NIGHT_S", 120)
    out, second = tmp_path / "out", tmp_path / "second"
    for folder, encoder in ((out, "planted"), (second, "other")):
        make_site(folder, 4, Site(true=1, false=0, encoder=encoder), seed=1)
        make_site(folder, 4, Site(true=0, false=2, encoder=encoder), seed=2, first=10)
    videos = sorted(str(one.video["path"]) for one in vadcli.events(out).documents)
    labels = tmp_path / "videos.csv"
    rows = [f"{video},{'abnormal' if video < 'gate/night-10' else 'normal'}" for video in videos]
    labels.write_text("\n".join(["video,label", *rows]))
    with pytest.raises(UsageError, match="reads the vectors of 2 encoders, not of 1"):
        vadcli.learn(out, labels=labels, head="topk")
    learned = vadcli.learn(out, labels=labels, head="topk", embeddings=[str(second)], to=tmp_path / "my-head", anyway=True)
    assert [one.name for one in learned.card.encoders] == ["planted", "other"]
    with pytest.raises(UsageError, match="reads the vectors of planted, other, but it was given 1 folder of vectors"):
        vadcli.events(out, head=tmp_path / "my-head")
    judged = vadcli.events(out, head=tmp_path / "my-head", embeddings=[str(second)]).documents
    assert all(one.head for one in judged)


def test_calibration_uses_the_heads_scores(tmp_path: Path) -> None:
    out = tmp_path / "out"
    truth = make_site(out, 6)
    review = review_of(out, tmp_path / "review.json", truth, list(truth))
    vadcli.learn(out, review=review, to=tmp_path / "my-head")
    alone = [json.loads(line) for line in cli("events", out, "--calibrate", review, "--json").stdout.splitlines()]
    done = cli("events", out, "--calibrate", review, "--head", tmp_path / "my-head", "--json")
    judged = [json.loads(line) for line in done.stdout.splitlines()]
    assert max(row["precision"] for row in judged if row["kept"] == 1.0) == 1.0
    assert max(row["precision"] for row in alone if row["kept"] >= 0.9) < 0.4
    best = next(row["threshold"] for row in judged if row["precision"] == 1.0)
    found = vadcli.events(out, head=tmp_path / "my-head", head_threshold=best)
    assert sum(len(one.events) for one in found.documents) == 12
    with pytest.raises(UsageError, match="needs --head"):
        vadcli.events(out, head_threshold=0.7)
