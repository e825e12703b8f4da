"""Measures speed and memory on this machine.

`Bench` measures LAVIDA with several settings. `compare` measures several detectors.

`Bench` measures in rounds. Each round runs every setting and the baseline, which is a straightforward loop without batches or
compression. So a change in the machine's speed affects all settings alike. After the rounds, `Bench` measures GPU use, and the
time and memory per stage, for each compression ratio.

`compare` scores the same videos with each detector in a separate process, so that the memory of one detector is not counted for
the next detector.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vadcli.bench.measuring import (
    BenchVideos,
    Bound,
    BusyMeter,
    HostMemory,
    Round,
    ScoreStore,
    StageClock,
    baseline_round,
    cuda_of,
    footage_of,
    forget_peak,
    held_bytes,
    machine,
    need_memory,
    peak_over,
    scan_round,
    wake,
)
from vadcli.bench.report import MIB, BenchReport, Setting, Stages, Throughput, table_lines
from vadcli.detectors import check_device, load
from vadcli.detectors.running import devices_for, dtype_for, untimed
from vadcli.errors import NoVideoFound, VadcliError, VideoError, WeightsError
from vadcli.options import DEFAULT_OUT, BenchOptions, DetectorOptions, FindOptions
from vadcli.registry import BENCHED
from vadcli.types import Clip, ClipBatch
from vadcli.types.text import clock, how_many
from vadcli.video.loader import ClipLoader, ClipReady, Finished, LoaderOptions, core_count

if TYPE_CHECKING:
    import torch

    from vadcli.detectors.lavida.detector import LavidaDetector

__all__ = [
    "Bench",
    "BenchPlan",
    "BenchReport",
    "BenchVideos",
    "Bound",
    "Candidate",
    "Comparison",
    "compare",
    "footage_of",
    "measure_speed",
    "need_memory",
]

log = logging.getLogger("vadcli")

DECODED_CLIPS = 12
"""Number of clips that are decoded to measure the decoding time."""
TIMED_BATCHES = 3
"""Number of batches for which the stages are timed."""
BUSY_S = 6.0
"""To measure GPU use, a scan runs for at most this many seconds."""
COMPARED_S = 40
"""Length of a generated video for a comparison. A shorter video has too few clips if clips last several seconds."""


@dataclass(frozen=True)
class BenchPlan:
    """The settings of a benchmark, and the length of each measurement.

    Attributes:
        ratios: compression ratios; each is the kept share of the visual tokens.
        batch_sizes: numbers of clips per batch.
        bound: the time or the number of clips after which a round ends.
        rounds: number of rounds per setting.
        frame_px: area of a frame for the language model, in pixels; None keeps the area of the model's configuration.
        workers: decoder processes; None means one per core.
    """

    ratios: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    bound: Bound
    rounds: int
    frame_px: int | None = None
    workers: int | None = None

    @property
    def settings(self) -> list[Setting]:
        """Every combination of ratio and batch size."""
        return [Setting(ratio, size) for ratio in self.ratios for size in self.batch_sizes]


class Bench:
    """Measures one detector; its weights are loaded once for all settings.

    Args:
        detector: the detector to measure; it may be loaded already.
        footage: the videos to read.
        plan: the settings and the number of rounds.
    """

    def __init__(self, detector: LavidaDetector, footage: BenchVideos, plan: BenchPlan) -> None:
        self.detector = detector
        self.footage = footage
        self.plan = plan

    def run(self) -> BenchReport:
        """Return the figures of all settings.

        Raises:
            DeviceError, WeightsError: the model cannot be loaded.
            VideoError: the footage cannot be read.
        """
        for caveat in self.detector.caveats:
            log.info("%s", caveat)
        self.detector.prepare()
        workers = self.plan.workers or core_count()
        with ClipLoader(self.detector.needs, LoaderOptions(workers=workers)) as loader:
            sample, sampling = self._sample(loader)
            held = held_bytes(self.detector.devices)
            measured = self._throughput(loader, workers, sample, held)
            stages = [self._stages(ratio, loader, workers, sample) for ratio in self.plan.ratios]
        options, config, device = self.detector.options, self.detector.config, self.detector.devices[0]
        weights = "random weights" if self.detector.folder is None else "" if config.trained else "never trained"
        dtype = str(dtype_for(options.precision, device)).removeprefix("torch.")
        return BenchReport(
            model=", ".join(part for part in (config.name, weights, f"{dtype} on {device.type}") if part),
            machine=machine(self.detector.devices),
            footage=self.footage.description,
            sampling=sampling,
            weights_bytes=max(held.values(), default=None),
            found_batch=self.detector.batch_size,
            baseline=measured[0],
            settings=measured[1:],
            stages=stages,
        )

    def _throughput(
        self, loader: ClipLoader, workers: int, sample: list[Clip], held: dict[torch.device, int]
    ) -> list[Throughput]:
        """Return the throughput of the baseline and of all settings. Each round runs the baseline and all settings."""
        plan = self.plan
        measured = [Throughput(Setting(1.0, 1, is_baseline=True)), *map(Throughput, plan.settings)]
        for number in range(plan.rounds):
            for throughput in measured:
                setting = throughput.setting
                size = setting.batch_size
                self._configure(setting.ratio)
                self.detector.score(ClipBatch.of(_as_many(sample, size)))  # warm-up
                wake(loader, self.footage, workers)
                forget_peak(self.detector.devices)
                with self._store() as store, HostMemory() as memory:
                    if setting.is_baseline:
                        done = baseline_round(self.detector, self.footage, bound=plan.bound, store=store)
                    else:
                        done = scan_round(self.detector, loader, self.footage, batch_size=size, bound=plan.bound, store=store)
                throughput.rounds.append(done)
                throughput.host_bytes = max(throughput.host_bytes, memory.peak_bytes)
                throughput.computed = min(size, self.detector.largest_step)
                peak = peak_over(held)
                throughput.device_bytes = None if peak is None else max(throughput.device_bytes or 0, peak)
                shown = setting.name if setting.is_baseline else f"ratio {setting.ratio:g}, {how_many(size, 'clip')} per batch"
                log.info("round %d/%d: %s: %.2f clips/s", number + 1, plan.rounds, shown, throughput.rates()[-1])
        return measured

    def _stages(self, ratio: float, loader: ClipLoader, workers: int, sample: list[Clip]) -> Stages:
        """Return stage times, token counts and GPU use of a compression ratio at the largest batch size."""
        self._configure(ratio)
        size = max(self.plan.batch_sizes)
        batch = ClipBatch.of(_as_many(sample, size))
        tokens, kept = self.detector.count_tokens(batch)
        decode_ms = self._decode_ms()
        timer = StageClock(self.detector.devices)
        self.detector.time_stages(timer)
        try:
            with self._store() as store:
                for number in range(TIMED_BATCHES + 1):
                    if number == 1:  # the first batch is a warm-up
                        timer.reset()
                    scores = self.detector.score(batch)
                    with timer("write"):
                        store.add(scores)
        finally:
            self.detector.time_stages(untimed)
        ms = {name: 1000 * seconds / (TIMED_BATCHES * size) for name, seconds in timer.seconds.items()}
        wake(loader, self.footage, workers)
        bound = replace(self.plan.bound, seconds=min(BUSY_S, self.plan.bound.seconds))
        busy = BusyMeter(self.detector.devices)
        if held_bytes(self.detector.devices):
            with self._store() as store:
                scan_round(self.detector, loader, self.footage, batch_size=size, bound=bound, store=store, steady=busy)
        return Stages(ratio, size, tokens, kept, {"decode": decode_ms, **ms}, dict(timer.added_bytes), busy.share)

    def _decode_ms(self) -> float:
        """Return how many milliseconds a single decoder process needs per clip."""
        with ClipLoader(self.detector.needs, LoaderOptions(workers=1)) as loader:
            wake(loader, self.footage, 1)
            started, clips = time.perf_counter(), 0
            for item in loader.run(self.footage.requests()):
                clips += isinstance(item, ClipReady)
                if clips == DECODED_CLIPS:
                    break
            return 1000 * (time.perf_counter() - started) / clips

    def _sample(self, loader: ClipLoader) -> tuple[list[Clip], str]:
        """Return at least one clip, all clips with the same frame size, and a description of the sampling."""
        wanted = max(self.plan.batch_sizes)
        clips: list[Clip] = []
        once = islice(self.footage.requests(), len(self.footage.videos))
        for item in loader.run(once):
            if isinstance(item, Finished) and item.error is not None:
                raise item.error
            if isinstance(item, ClipReady) and (not clips or item.clip.frames.shape == clips[0].frames.shape):
                clips.append(item.clip.owned())
            if len(clips) == wanted:
                break
        if not clips:
            raise VideoError("the footage contains no clip", hint="name other videos")
        frames, interval = clips[0].frames, clips[0].interval
        return clips, f"one frame in {interval} is sampled, {len(frames)} per clip of {frames.shape[2]}x{frames.shape[1]}"

    def _configure(self, ratio: float) -> None:
        config = self.detector.config
        config = replace(config, compression=replace(config.compression, ratio=ratio))
        if self.plan.frame_px is not None:
            config = replace(config, pixels=replace(config.pixels, min_px=self.plan.frame_px, max_px=self.plan.frame_px))
        self.detector.reconfigure(config)

    def _store(self) -> ScoreStore:
        return ScoreStore(self.footage.scratch, channels=len(self.detector.channels))


def _as_many(clips: list[Clip], count: int) -> list[Clip]:
    return list(islice(cycle(clips), count))


@dataclass(frozen=True)
class Candidate:
    """A detector to measure.

    Attributes:
        name: the detector's name in the registry.
        options: the detector's options.
    """

    name: str
    options: DetectorOptions


@dataclass(frozen=True)
class Measured:
    """The figures of one detector.

    Attributes:
        detector: the detector's name.
        weights: the names of the weights that the detector loaded; empty if it needs no weights.
        rounds: the results of all rounds; empty if the detector could not be measured.
        host_bytes: peak resident memory of all processes.
        device_bytes: peak memory on a GPU, with the weights; None without a GPU.
        machine: the devices, the processor and the versions.
        trouble: why the detector could not be measured, and what to do; "" if it was measured.
    """

    detector: str
    weights: tuple[str, ...] = ()
    rounds: tuple[Round, ...] = ()
    host_bytes: int = 0
    device_bytes: int | None = None
    machine: str = ""
    trouble: str = ""

    @property
    def real_time(self) -> float:
        """How many seconds of footage this machine scores per second: the median of the rounds."""
        return statistics.median(done.video_s / done.seconds for done in self.rounds)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `vadcli bench --detectors --json` prints."""
        return {
            "type": "detector",
            "detector": self.detector,
            "weights": list(self.weights),
            "real_time": self.real_time if self.rounds else None,
            "machine_s_per_hour": 3600 / self.real_time if self.rounds else None,
            "clips": sum(done.clips for done in self.rounds),
            "host_bytes": self.host_bytes or None,
            "device_bytes": self.device_bytes,
            "machine": self.machine or None,
            "trouble": self.trouble or None,
        }


@dataclass(frozen=True)
class Comparison:
    """The figures of all compared detectors, and a description of the videos that they scored."""

    footage: str
    measured: tuple[Measured, ...]

    def json_lines(self) -> Iterator[dict[str, Any]]:
        """Yield one object per detector."""
        for figures in self.measured:
            yield {**figures.to_json(), "footage": self.footage}

    def text(self) -> str:
        """Return a Markdown table, and below it one line per detector that could not be measured."""
        where = next((figures.machine for figures in self.measured if figures.machine), machine([]))
        on_gpu = any(figures.device_bytes is not None for figures in self.measured)
        head = ["detector", "weights", "x real time", "machine time per hour of footage", "host MiB"]
        rows = [[*head, "device MiB"] if on_gpu else head]
        for figures in self.measured:
            if figures.rounds:
                speed, cost = f"{figures.real_time:.2f}", clock(3600 / figures.real_time)
                weights, host = ", ".join(figures.weights) or "none", f"{figures.host_bytes / MIB:,.0f}"
                device = [f"{(figures.device_bytes or 0) / MIB:,.0f}"] if on_gpu else []
                rows.append([figures.detector, weights, speed, cost, host, *device])
        lines = [f"{where}.", f"Footage: {self.footage}. Learning the cameras, loading and starting are not counted.", ""]
        lines += table_lines(rows) if len(rows) > 1 else []
        lines += [f"not measured: {figures.detector}: {figures.trouble}" for figures in self.measured if figures.trouble]
        return "\n".join(lines) + "\n"


def compare(
    candidates: Sequence[Candidate], footage: BenchVideos, *, bound: Bound, rounds: int, workers: int | None
) -> Comparison:
    """Return the speed and memory of each detector, or the reason why it could not be measured.

    Args:
        candidates: the detectors, measured in this order.
        footage: the videos to read.
        bound: the time or the number of clips after which a round ends.
        rounds: number of rounds per detector.
        workers: decoder processes; None means one per core.
    """
    measured = []
    for candidate in candidates:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            measured.append(pool.submit(measure, candidate, footage, bound=bound, rounds=rounds, workers=workers).result())
    return Comparison(footage.description, tuple(measured))


def measure(candidate: Candidate, footage: BenchVideos, *, bound: Bound, rounds: int, workers: int | None) -> Measured:
    """Return the speed and memory of one detector, measured in this process."""
    workers = workers or core_count()
    done, host_bytes = [], 0
    try:
        detector = load(candidate.name, candidate.options)
        detector.prepare()
        devices = devices_for(candidate.options.device) if detector.weights else []
        size = candidate.options.batch_size or detector.batch_size
        with ClipLoader(detector.needs, LoaderOptions(workers=workers)) as loader:
            wake(loader, footage, workers)
            for number in range(rounds + 1):  # the first round is only a warm-up: one batch
                ends = bound if number else Bound(bound.seconds, size)
                forget_peak(devices)
                with ScoreStore(footage.scratch, channels=len(detector.channels)) as store, HostMemory() as memory:
                    one_round = scan_round(detector, loader, footage, batch_size=size, bound=ends, store=store)
                host_bytes = max(host_bytes, memory.peak_bytes)
                done += [one_round] if number else []
    except VadcliError as error:
        return Measured(candidate.name, trouble=f"{error.message}; {error.hint}" if error.hint else error.message)
    return Measured(
        candidate.name,
        tuple(detector.weights),
        tuple(done),
        host_bytes,
        peak_over(dict.fromkeys(cuda_of(devices), 0)),
        machine(devices),
    )


def measure_speed(paths: Sequence[Path], options: BenchOptions, *, scratch: Path) -> BenchReport | Comparison:
    """Do the work of `vadcli bench`: measure LAVIDA with several settings, or several detectors.

    Args:
        paths: files and folders with videos; if empty, a synthetic video is made.
        options: the options of `vadcli bench`.
        scratch: an empty folder for temporary files.

    Raises:
        UsageError, NoVideoFound, DeviceError, WeightsError: the options, paths, devices or weights can't be used. These errors
            are raised before anything is measured.
        VideoError: a video can't be read.
    """
    from vadcli.detectors.lavida.detector import LavidaDetector
    from vadcli.engine.plan import make_plan, no_video_text

    plan = make_plan(paths, FindOptions(), out=DEFAULT_OUT) if paths else None
    if plan is not None and not plan.units:
        plan = replace(plan, passed_over={})  # `vadcli bench` has no --include
        raise NoVideoFound(no_video_text(plan, FindOptions()), hint="without PATHS, a synthetic video is made")
    check_device(options.device)
    videos = [(unit.video, unit.path) for unit in plan.units] if plan else []
    bound = Bound(options.seconds, options.clips)
    if options.compared():
        candidates = [Candidate(name, options.options_of(name, model)) for name, model in options.compared()]
        footage = footage_of(videos, scratch, seconds=COMPARED_S)
        return compare(candidates, footage, bound=bound, rounds=options.rounds, workers=options.workers)
    try:
        detector = load(BENCHED, options.detector_options())
    except WeightsError as error:
        hint = error.hint if options.random_weights else "use --random-weights to measure without trained weights"
        raise WeightsError(error.message, hint=hint) from error
    assert isinstance(detector, LavidaDetector)
    need_memory(detector)
    settings = BenchPlan(
        ratios=options.ratio_list(),
        batch_sizes=options.batch_size_list(),
        bound=bound,
        rounds=options.rounds,
        frame_px=options.frame_px,
        workers=options.workers,
    )
    return Bench(detector, footage_of(videos, scratch), settings).run()
