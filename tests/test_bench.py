"""The benchmark: its counts, its comparisons and its messages.

No test checks how long something takes.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.detectors.ask.models import tiny_qwen_folder
from tests.fakes import DifferenceDetector
from tests.media import make_video
from vadcli.bench import Bench, BenchPlan, BenchReport, Bound, Candidate, Comparison, Measured, footage_of, measure, measuring
from vadcli.bench.measuring import (
    BusyMeter,
    HostMemory,
    Round,
    ScoreStore,
    StageClock,
    baseline_clips,
    baseline_round,
    covered,
    scan_round,
)
from vadcli.bench.report import Setting, Stages, Throughput
from vadcli.detectors.lavida import LavidaOptions, checkpoint
from vadcli.detectors.lavida.checkpoint import load_preset
from vadcli.detectors.lavida.detector import LavidaDetector
from vadcli.detectors.lavida.model import Lavida
from vadcli.detectors.motion import MotionUserOptions
from vadcli.detectors.options import AskOptions
from vadcli.errors import DecodeError, DeviceError, UsageError, VadcliError, VideoError
from vadcli.options import BenchOptions
from vadcli.types import ClipNeeds, PixelFormat, SizeRule
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, LoaderOptions

NEEDS = ClipNeeds(frames=4, overlap=0, rate_hz=5, size=SizeRule(4096), pixel_format=PixelFormat.RGB)
CPU = torch.device("cpu")
OWN_PX = 18816
"""Largest frame of lavida-tiny for the language model."""

torch.set_num_threads(1)


class Colours(DifferenceDetector):
    """The fake detector with the clips of LAVIDA."""

    needs = NEEDS


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_video(tmp_path / "a.mp4", frames=40, fps=10)


@pytest.fixture
def read(video: Path, tmp_path: Path) -> measuring.BenchVideos:
    return footage_of([("a.mp4", video)], tmp_path)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10))))
def test_overlapping_spans_count_once(spans: list[tuple[int, int]]) -> None:
    wanted = len({tick for start, length in spans for tick in range(start, start + length)})
    assert covered((start, start + length) for start, length in spans) == wanted


def test_a_stage_is_charged_with_what_ran_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: float(next(ticks)))
    clock = StageClock([CPU])
    for stage in ("llm", "write", "llm"):
        with clock(stage):
            pass
    assert dict(clock.seconds) == {"llm": 2.0, "write": 1.0}
    assert dict(clock.added_bytes) == {}
    clock.reset()
    assert not clock.seconds


def test_a_stage_is_charged_with_the_memory_it_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    peak, held = iter([900, 1500]), iter([800, 1000])
    for name, fake in {
        "synchronize": lambda device: None,
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: next(held),
        "max_memory_allocated": lambda device: next(peak),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    clock = StageClock([torch.device("cuda", 0), CPU])
    for _ in range(2):
        with clock("llm"):
            pass
    assert dict(clock.added_bytes) == {"llm": 500}


class _Recorded:
    """Takes the place of torch's profiler, with recorded spans of one device."""

    def __init__(self, spans: list[tuple[str, int, int]]) -> None:
        self.spans = spans

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def events(self) -> list[object]:
        return [
            SimpleNamespace(
                device_type=SimpleNamespace(name=kind), device_index=0, time_range=SimpleNamespace(start=start, end=end)
            )
            for kind, start, end in self.spans
        ]


def test_busy_is_the_devices_own_time_over_the_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([10.0, 11.0])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    spans = [("CUDA", 0, 300_000), ("CUDA", 200_000, 500_000), ("CPU", 500_000, 1_000_000)]
    monkeypatch.setattr(torch.profiler, "profile", lambda activities: _Recorded(spans))
    with BusyMeter([torch.device("cuda", 0)]) as busy:
        pass
    assert busy.share == pytest.approx(0.5)


def test_a_profilers_events_are_as_the_busy_meter_reads_them() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ones(3).sum()
    (event, *_) = profile.events()
    assert event.device_type.name == "CPU"
    assert isinstance(event.device_index, int)
    assert event.time_range.end >= event.time_range.start


def test_without_a_gpu_there_is_no_share_and_no_device_memory() -> None:
    with BusyMeter([CPU]) as busy, HostMemory() as memory:
        pass
    assert busy.share is None
    assert measuring.peak_over(measuring.held_bytes([CPU])) is None
    assert memory.peak_bytes > 2**20


def test_the_baselines_reader_gives_the_loaders_clips(video: Path) -> None:
    baseline = [clip for clip, _ in baseline_clips("a.mp4", video, NEEDS)]
    with ClipLoader(NEEDS, LoaderOptions(workers=1)) as loader:
        loaded = [item.clip.owned() for item in loader.run([ClipRequest("a.mp4", video)]) if isinstance(item, ClipReady)]
    assert len(baseline) == len(loaded) == 5
    for mine, theirs in zip(baseline, loaded, strict=True):
        np.testing.assert_array_equal(mine.frame_index, theirs.frame_index)
        np.testing.assert_allclose(mine.timestamp, theirs.timestamp, atol=1e-6)
        assert np.abs(mine.frames.astype(int) - theirs.frames.astype(int)).mean() < 6


def test_the_baselines_reader_fills_up_the_last_clip(tmp_path: Path) -> None:
    path = make_video(tmp_path / "short.mp4", frames=11, fps=10)
    clips = [clip for clip, _ in baseline_clips("short.mp4", path, NEEDS)]
    assert [len(clip.frames) for clip in clips] == [4, 4]
    np.testing.assert_array_equal(clips[1].frames[1], clips[1].frames[3])


def test_the_baselines_reader_names_what_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"nothing")
    with pytest.raises(DecodeError, match=r"broken\.mp4"):
        list(baseline_clips("broken.mp4", path, NEEDS))


@pytest.mark.parametrize("clips", [1, 5, 7])
def test_a_round_scores_and_stores_every_clip_it_counts(
    read: measuring.BenchVideos, clips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[int] = []
    add = ScoreStore.add
    monkeypatch.setattr(ScoreStore, "add", lambda self, scores: (stored.append(len(scores.raw)), add(self, scores)))
    scanner, baseline = Colours(), Colours()
    bound = Bound(60.0, clips)
    with ClipLoader(NEEDS, LoaderOptions(workers=1)) as loader, ScoreStore(read.scratch, channels=2) as store:
        by_scan = scan_round(scanner, loader, read, batch_size=3, bound=bound, store=store)
    assert sum(stored) == by_scan.clips == clips
    assert max(stored) <= 3
    stored.clear()
    with ScoreStore(read.scratch, channels=2) as store:
        by_loop = baseline_round(baseline, read, bound=bound, store=store)
    assert stored == [1] * clips
    assert (by_loop.clips, scanner.scored_frames, baseline.scored_frames) == (clips, clips * 4, clips * 4)
    assert by_loop.rows == clips * 4 * 2  # every second frame is sampled, of 10 per second
    assert by_loop.video_s == pytest.approx(by_loop.rows / 10)
    assert by_scan.rows <= by_loop.rows
    assert by_scan.rows > (clips - 1) * 8  # the last frame of a video is not sampled


def test_a_failed_round_raises_its_error(read: measuring.BenchVideos, tmp_path: Path) -> None:
    class Broken(Colours):
        def score(self, batch: object) -> object:  # type: ignore[override]
            raise RuntimeError("no")

    bound = Bound(60.0, 2)
    with ClipLoader(NEEDS, LoaderOptions(workers=1)) as loader, ScoreStore(read.scratch, channels=2) as store:
        with pytest.raises(RuntimeError, match="no"):
            scan_round(Broken(), loader, read, batch_size=1, bound=bound, store=store)  # type: ignore[arg-type]
        bad = tmp_path / "bad.mp4"
        bad.write_bytes(b"x" * 5000)
        with pytest.raises(VideoError):
            scan_round(
                Colours(), loader, replace(read, videos=(("bad.mp4", bad),)), batch_size=1, bound=bound, store=store
            )  # fmt: skip


def test_time_ends_a_round_too(read: measuring.BenchVideos) -> None:
    with ScoreStore(read.scratch, channels=2) as store:
        assert baseline_round(Colours(), read, bound=Bound(1e-9), store=store).clips == 1


def test_made_footage_is_asked_for_without_end(tmp_path: Path) -> None:
    made = footage_of([], tmp_path, size=(64, 48), seconds=1)
    paths = [path for _, path in made.videos]
    assert len({path.read_bytes() for path in paths}) == len(paths) == measuring.MADE_FILES
    names = [request.video for request in itertools.islice(made.requests(), 2 * len(paths))]
    assert len(set(names)) == 2 * len(paths)


def test_footage_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(VadcliError, match="give paths of your own videos"):
        measuring.make_video(tmp_path / "missing" / "a.mp4", size=(64, 48), seconds=1, hue=0)


def throughput(setting: Setting, *rates: float, device_bytes: int | None = None) -> Throughput:
    done = [Round(clips=10, rows=320, video_s=10.0, seconds=10 / rate) for rate in rates]
    return Throughput(setting, done, device_bytes, host_bytes=2**30, computed=setting.batch_size)


def report(*, device_bytes: int | None = None, busy: float | None = None) -> BenchReport:
    return BenchReport(
        model="lavida-tiny",
        machine="a machine",
        footage="a video",
        sampling="one frame in 4",
        weights_bytes=None if device_bytes is None else 2**30,
        found_batch=2,
        baseline=throughput(Setting(1.0, 1, is_baseline=True), 1.0, 4.0, 2.0, device_bytes=device_bytes),
        settings=[
            throughput(Setting(0.2, 4), 3.0, 8.0, 8.0, device_bytes=device_bytes),
            throughput(Setting(0.2, 8), 2.0, 2.0, 2.0, device_bytes=device_bytes),
        ],
        stages=[Stages(0.2, 8, 72, 14, {"decode": 1.0}, {} if device_bytes is None else {"llm": 2**20}, busy)],
    )


def test_speeds_are_compared_within_a_round() -> None:
    found = report()
    assert found.settings[0].of(found.baseline) == 3.0  # the median of 3, 2 and 4; the ratio of the medians is 4
    *_, summary = found.json_lines()
    assert summary["best"] == {"ratio": 0.2, "batch_size": 4, "of_baseline": 3.0}


def test_the_slowest_round_is_told() -> None:
    line = next(report().json_lines())
    assert line["clips_per_s"] == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert (line["frames_per_s"], line["real_time"]) == (64.0, 2.0)
    assert "2.00 (1.00)" in report().text()


def test_what_no_gpu_measured_is_absent_not_zero() -> None:
    line, *_ = report().json_lines()
    assert line["device_bytes"] is None
    assert "device" not in report().text().split("Time per stage")[0].replace("on the device", "")
    with_gpu = report(device_bytes=3 * 2**20, busy=0.93)
    assert "device MiB" in with_gpu.text()
    assert "| llm adds, MiB" in with_gpu.text()
    assert "0.93" in with_gpu.text()


def test_a_tables_rows_have_as_many_cells_as_its_head() -> None:
    for text in (report().text(), report(device_bytes=1, busy=0.5).text()):
        tables = [list(lines) for is_row, lines in itertools.groupby(text.splitlines(), lambda line: line[:1] == "|") if is_row]
        assert len(tables) == 2
        for table in tables:
            assert len({line.count("|") for line in table}) == 1
            assert len({len(line) for line in table}) == 1


@given(device_bytes=st.none() | st.integers(0, 2**40), busy=st.none() | st.floats(0, 1))
def test_a_report_comes_back_from_its_json(device_bytes: int | None, busy: float | None) -> None:
    found = report(device_bytes=device_bytes, busy=busy)
    again = BenchReport.from_json_lines(json.loads(json.dumps(line)) for line in found.json_lines())
    assert again == found
    assert again.text() == found.text()


def tiny(**options: object) -> LavidaDetector:
    given = {"categories": "fight", "model": "preset:lavida-tiny", "allow_untrained": True, "device": "cpu", **options}
    return LavidaDetector(LavidaOptions(**given))  # type: ignore[arg-type]


def test_a_measurement_of_the_real_detector(read: measuring.BenchVideos, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vadcli.bench.TIMED_BATCHES", 1)
    encode, sizes = Lavida.encode, []

    def narrow(self: Lavida, frames: torch.Tensor) -> object:
        sizes.append(len(frames))
        if len(frames) > 1 and self.config.compression.ratio == 1.0:
            raise torch.OutOfMemoryError("out of memory")
        return encode(self, frames)

    monkeypatch.setattr(Lavida, "encode", narrow)
    plan = BenchPlan(ratios=(1.0, 0.5), batch_sizes=(2,), bound=Bound(60.0, 2), rounds=2, frame_px=2 * OWN_PX, workers=1)
    found = Bench(tiny(), read, plan).run()
    assert [each.setting.ratio for each in found.settings] == [1.0, 0.5]
    assert [[done.clips for done in each.rounds] for each in (found.baseline, *found.settings)] == [[2, 2]] * 3
    assert [each.computed for each in found.settings] == [1, 2]
    assert "2 (by 1)" in found.text()
    whole, half = found.stages
    assert whole.tokens == whole.kept == half.tokens
    assert whole.tokens > 1.5 * 4 * OWN_PX / 28**2  # more tokens than frames in the preset's size give
    assert half.kept == round(half.tokens / 2)
    wanted = {"decode", "copy", "pixels", "vision tower", "compression", "llm", "sam2 encoder", "projector", "sam2 decoder"}
    assert wanted | {"fetch", "write"} == set(whole.ms)
    assert found.weights_bytes is None
    assert "random weights, float32 on cpu" in found.model


def test_a_comparison_measures_each_detector_in_the_same_way(read: measuring.BenchVideos, tmp_path: Path) -> None:
    asked = AskOptions(model=str(tiny_qwen_folder(tmp_path / "qwen")), device="cpu", categories="fight")
    motion, ask = (
        measure(Candidate(name, options), read, bound=Bound(60.0, 2), rounds=2, workers=1)
        for name, options in (("motion", MotionUserOptions(device="cpu")), ("ask", asked))
    )
    for one in (motion, ask):
        assert one.trouble == ""
        assert [found.clips for found in one.rounds] == [2, 2]
        assert one.host_bytes > 0
        assert one.device_bytes is None
    assert (motion.weights, ask.weights) == ((), (asked.model,))


def test_a_comparison_names_what_it_could_not_measure() -> None:
    fast = Measured("motion", (), (Round(4, 400, 30.0, 2.0), Round(4, 400, 30.0, 3.0)), 300 * 2**20, None, "a machine")
    slow = Measured("ask", ("qwen2-vl-2b",), (Round(4, 400, 30.0, 60.0),), 2**30, 5 * 2**30, "a machine")
    lacks = Measured("lavida", trouble="lavida-7b: not on this machine; train one")
    text = Comparison("two videos", (fast, lacks)).text()
    assert "| motion   |    none |       12.50 |                          0:04:48 |      300 |" in text
    assert "device MiB" not in text
    assert text.endswith("not measured: lavida: lavida-7b: not on this machine; train one\n")
    assert "0.50 |                          2:00:00 |    1,024 |      5,120 |" in Comparison("", (fast, slow)).text()
    lines = list(Comparison("two videos", (slow, lacks)).json_lines())
    assert [line["machine_s_per_hour"] for line in lines] == [7200.0, None]
    json.dumps(lines, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "model", "wanted"),
    [
        ("concept", "clip-b32", {"encoder": "clip-b32", "device": "cpu"}),
        ("ask", "qwen2-vl-7b", {"model": "qwen2-vl-7b", "compile": True}),
        ("lavida", "lavida-2b", {"model": "preset:lavida-2b", "allow_untrained": True}),
        ("motion", "", {"device": "cpu"}),
    ],
)
def test_a_model_to_compare_is_passed_to_its_detector(name: str, model: str, wanted: dict[str, object]) -> None:
    options = BenchOptions(detectors=f"{name}={model}", device="cpu", compile=True, random_weights=True)
    assert options.compared() == ((name, model),)
    found = options.options_of(name, model)
    assert {part: getattr(found, part) for part in wanted} == wanted


def test_real_sizes_are_drawn_where_they_are_needed_and_nowhere_else() -> None:
    before = psutil.Process().memory_info().rss
    model = checkpoint.random_model(load_preset("lavida-7b"), device="meta", dtype=torch.float16)
    assert psutil.Process().memory_info().rss - before < 2**30
    weights = list(model.parameters())
    assert {weight.device.type for weight in weights} == {"meta"}
    assert {weight.dtype for weight in weights} == {torch.float16}
    assert 8e9 < sum(weight.numel() for weight in weights) < 9e9


def needs(model: str, precision: str = "auto") -> int:
    model_bytes = measuring.weights_bytes(load_preset(model), {"auto": torch.float32, "bf16": torch.bfloat16}[precision])
    assert model_bytes > 0
    return model_bytes


@pytest.mark.parametrize(
    ("spare", "fits"),
    [
        (-1, "--precision bf16 (16.9 GB), --model lavida-2b (9.5 GB), --model lavida-tiny-scratch"),
        (-(20 * 10**9), "--model lavida-2b"),
        (-(30 * 10**9), "--model lavida-tiny"),
        (-(10**11), "more memory"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_they_are_drawn(
    monkeypatch: pytest.MonkeyPatch, spare: int, fits: str
) -> None:
    wanted = needs("lavida-7b")
    monkeypatch.setattr(measuring, "free_bytes", lambda device: max(0, wanted + spare))
    detector = tiny(model="lavida-7b")
    with pytest.raises(DeviceError, match=r"lavida-7b: its weights take \d+\.\d GB in float32, and cpu has") as caught:
        measuring.need_memory(detector)
    assert fits in caught.value.hint
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4
    monkeypatch.setattr(measuring, "free_bytes", lambda device: wanted)
    measuring.need_memory(detector)


def test_weights_are_counted_in_their_number_format() -> None:
    stored = sum(tensor.nbytes for tensor in checkpoint.random_model(load_preset("lavida-tiny")).parameters())
    assert stored <= needs("lavida-tiny") < 1.1 * stored
    assert 0.5 <= needs("lavida-2b", "bf16") / needs("lavida-2b") < 0.51


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, text in (("unlimited", "max\n"), ("limited", f"{2**30 + psutil.Process().memory_info().rss}\n")):
        (tmp_path / name).write_text(text)
    available = psutil.virtual_memory().available
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=available))
    monkeypatch.setattr(measuring, "CGROUP_LIMITS", (tmp_path / "absent", tmp_path / "unlimited"))
    assert measuring.free_bytes(CPU) == available
    monkeypatch.setattr(measuring, "CGROUP_LIMITS", (tmp_path / "limited",))
    assert measuring.free_bytes(CPU) <= 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    assert measuring.free_bytes(torch.device("cuda", 0)) == 7


@pytest.mark.parametrize(
    "given",
    [
        {"ratios": "1,zero"},
        {"ratios": "0"},
        {"ratios": "1.5"},
        {"ratios": "nan"},
        {"batch_sizes": ""},
        {"batch_sizes": "1,2.5"},
        {"batch_sizes": "0"},
        {"clips": 0},
        {"rounds": 0},
        {"workers": 0},
        {"seconds": 0.0},
        {"frame_px": 100},
    ],
)
def test_options_that_make_no_sense(given: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        BenchOptions(**given)  # type: ignore[arg-type]


def test_options_reach_the_detector() -> None:
    options = BenchOptions(model="lavida-2b", precision="bf16", random_weights=True, ratios="1, 0.2", batch_sizes="8,8,2")
    assert options.ratio_list() == (1.0, 0.2)
    assert options.batch_size_list() == (8, 2)
    given = options.detector_options()
    assert (given.model, given.precision, given.allow_untrained, given.detector) == ("preset:lavida-2b", "bf16", True, "lavida")
    assert measuring.Bound(options.seconds, options.clips) == Bound(5.0, None)
