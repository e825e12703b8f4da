"""Options get their values from several layers; values that can't be used are refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vadcli.errors import UsageError
from vadcli.options import (
    ClipsOptions,
    EvalOptions,
    EventsOptions,
    PruneOptions,
    ReportOptions,
    ScanOptions,
    SearchOptions,
    ThresholdOptions,
    VerifyOptions,
    WeightsImportOptions,
    category_list_names,
    out_folder,
    parse_categories,
    parse_duration,
    parse_shard,
    resolve,
    scan,
)
from vadcli.options.groups import HOW, DetectorOptions, option, with_detector_options
from vadcli.registry import Registry
from vadcli.types import Calibration, Thresholds


@dataclass(frozen=True)
class StillOptions(DetectorOptions):
    patience: int = option(3, "Number of frames.", panel=HOW)


@dataclass(frozen=True)
class CalmOptions(StillOptions):
    calm: bool = option(True, "Is calm.", panel=HOW)


def test_detectors_may_share_an_options_class(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {
        "first": f"{__name__}:StillOptions",
        "second": f"{__name__}:StillOptions",
        "third": f"{__name__}:CalmOptions",
        "fourth": "vadcli.options:DetectorOptions",
    }
    monkeypatch.setattr("vadcli.options.groups.DETECTOR_OPTIONS", Registry("option set", "vadcli.tests", named))
    made = with_detector_options(scan.ScanOptions)(patience=5, calm=False)
    assert (made.patience, made.calm, made.detector) == (5, False, "auto")


def test_layers_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = tmp_path / "user" / "vadcli"
    user.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    (user / "vadcli.toml").write_text('[scan]\nworkers = 1\nseed = 1\nmasks = "rle"\nmin-age = "1m"\n')
    Path("vadcli.toml").write_text("[scan]\nworkers = 2\nseed = 2\nmasks = 'video'\n[events]\nthreshold = 0.9\n")
    env = {"VADCLI_WORKERS": "3", "VADCLI_SEED": "3"}
    options = resolve(ScanOptions, section="scan", given={"workers": 4, "seed": None}, env=env)
    assert (options.workers, options.seed, options.masks, options.min_age) == (4, 3, "video", "1m")
    assert resolve(EventsOptions, section="events", given={}, env={}).threshold == 0.9


def test_an_explicit_file_replaces_the_local_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vadcli.toml").write_text("[scan]\nseed = 1\n")
    Path("other.toml").write_text("[scan]\nworkers = 7\n")
    options = resolve(ScanOptions, section="scan", given={}, config=Path("other.toml"), env={})
    assert (options.seed, options.workers) == (0, 7)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[scan]\nworkerz = 2\n", "did you mean workers"),
        ("[scan]\nworkers = 'many'\n", "workers: 'many' is not a whole number"),
        ("[scan]\nmasks = 'all'\n", "not one of none, video, rle, both"),
        ("[scan]\nquiet = 3\n", "is not true or false"),
        ("[scan\n", "can't be read as TOML"),
        ("scan = 3\n", "must be a table"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        resolve(ScanOptions, section="scan", given={}, config=path, env={})
    assert words in str(caught.value)
    assert "bad.toml" in str(caught.value)


def test_a_profile_wins_over_the_other_tables_of_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = tmp_path / "user" / "vadcli"
    user.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    (user / "vadcli.toml").write_text('[profile.yard.scan]\nout = "yard"\nseed = 5\n[profile.gate.scan]\nseed = 6\n')
    Path("vadcli.toml").write_text('[scan]\nout = "usual"\nseed = 1\nworkers = 2\n[profile.yard.events]\nthreshold = 0.9\n')
    options = resolve(ScanOptions, section="scan", given={}, profile="yard", env={})
    assert (options.out, options.seed, options.workers) == (Path("yard"), 5, 2)
    assert resolve(ScanOptions, section="scan", given={}, env={"VADCLI_PROFILE": "gate", "VADCLI_SEED": "7"}).seed == 7
    assert resolve(EventsOptions, section="events", given={}, profile="yard", env={}).threshold == 0.9
    for chosen, out in ((None, "usual"), ("yard", "yard"), ("gate", "usual")):
        assert out_folder(section="report", default=Path("x"), profile=chosen, env={}) == Path(out)
    with pytest.raises(UsageError, match="--profile hall: no settings file has this profile") as caught:
        resolve(ScanOptions, section="scan", given={}, profile="hall", env={})
    assert caught.value.hint == "choose among gate, yard"
    Path("vadcli.toml").write_text("[profile.yard.scan]\nworkerz = 1\n")
    with pytest.raises(UsageError, match=r"vadcli.toml: \[profile.yard\]: \[scan\] has no option 'workerz'"):
        resolve(ScanOptions, section="scan", given={}, profile="yard", env={})


def test_the_roots_of_two_commands_have_two_variables_and_categories_may_be_a_list(tmp_path: Path) -> None:
    env = {"VADCLI_ROOT": str(tmp_path), "VADCLI_EVAL_ROOT": "truth.csv"}
    assert resolve(ScanOptions, section="scan", given={}, env=env).root == tmp_path
    assert resolve(EvalOptions, section="eval", given={}, env=env).root == Path("truth.csv")
    formats = {"VADCLI_EVAL_FORMAT": "latex", "VADCLI_EVENTS_FORMAT": "csv", "VADCLI_FORMAT": "nothing"}
    assert resolve(EvalOptions, section="eval", given={}, env=formats).format == "latex"
    assert resolve(EventsOptions, section="events", given={}, env=formats).format == "csv"
    sam2 = {"VADCLI_WEIGHTS_IMPORT_SAM2": "sam2.pt", "VADCLI_SAM2": "package"}
    assert resolve(WeightsImportOptions, section="weights-import", given={}, env=sam2).sam2 == Path("sam2.pt")
    path = tmp_path / "a.toml"
    path.write_text('[scan]\ncategories = ["fight", "fire"]\n')
    assert resolve(ScanOptions, section="scan", given={}, config=path, env={}).categories == "fight,fire"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mine\.toml: can't be read: No such file or directory$"):
        resolve(ScanOptions, section="scan", given={}, config=tmp_path / "mine.toml", env={})


def test_the_environment_speaks_every_type() -> None:
    env = {"VADCLI_QUIET": "yes", "VADCLI_INCLUDE": "*.a, *.b", "VADCLI_OUT": "x/y", "VADCLI_THRESHOLD": "0.25"}
    options = resolve(ScanOptions, section="scan", given={}, env=env)
    assert (options.quiet, options.include, options.out, options.threshold) == (True, ("*.a", "*.b"), Path("x/y"), 0.25)


@pytest.mark.parametrize(
    "given",
    [
        {"threshold": 1.5},
        {"threshold": 0.5, "alarms_per_hour": 1.0},
        {"interval": 2, "sample_fps": 5.0},
        {"interval": 0},
        {"workers": 0},
        {"shard": "3/2"},
        {"min_age": "soon"},
        {"fps": 0.0},
        {"decode_memory": 1},
    ],
)
def test_values_that_contradict_or_make_no_sense(given: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        resolve(ScanOptions, section="scan", given=given, env={})


@pytest.mark.parametrize("kind", [EventsOptions, ClipsOptions])
def test_a_command_that_writes_a_folder_refuses_stdout(kind: type) -> None:
    with pytest.raises(UsageError, match="--to -: this command writes a folder"):
        kind(to=Path("-"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("8h", 28800), ("2d", 172800), ("500ms", 0.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, "pad") == seconds


@given(st.integers(1, 50), st.integers(1, 50))
def test_shards_count_from_one(part: int, parts: int) -> None:
    if part <= parts:
        assert parse_shard(f"{part}/{parts}") == (part, parts)
    else:
        with pytest.raises(UsageError):
            parse_shard(f"{part}/{parts}")


def test_categories_presets_and_files(tmp_path: Path) -> None:
    own = tmp_path / "mine.txt"
    own.write_text("# mine\nforklift speeding\nfight # again\n")
    assert parse_categories(f"fight, fire ,fight,@{own}") == ("fight", "fire", "forklift speeding")
    assert len(parse_categories("@ucf-crime")) == 13
    assert all(parse_categories(f"@{name}") for name in category_list_names())
    with pytest.raises(UsageError, match="lists: "):
        parse_categories("@nothing-of-the-kind")


def test_thresholds_come_from_alarms_an_hour_where_scores_are_calibrated() -> None:
    default, calibration = Thresholds(0.5, 0.4), Calibration(1.0, 2.0)
    asked = ThresholdOptions(alarms_per_hour=0.1).thresholds(default, calibration)
    assert math.isclose(asked.high, 1 / (1 + math.exp(-math.log(10) / 2)))
    assert ThresholdOptions(threshold=0.3).thresholds(default, None).low == 0.3
    with pytest.raises(UsageError, match="not calibrated"):
        ThresholdOptions(alarms_per_hour=0.1).thresholds(default, None)
    with pytest.raises(UsageError, match="above the threshold"):
        ThresholdOptions(threshold=0.3, low=0.4).thresholds(default, None)


@pytest.mark.parametrize("kind", [ClipsOptions, PruneOptions, ReportOptions, SearchOptions, VerifyOptions])
def test_the_footage_may_be_in_an_object_store_but_a_folder_must_exist(kind: type, tmp_path: Path) -> None:
    for footage in (tmp_path, Path("s3:/bucket/cameras")):
        assert kind(footage=footage).footage == footage
    with pytest.raises(UsageError, match=r"--footage .*away: the folder does not exist"):
        kind(footage=tmp_path / "away")
