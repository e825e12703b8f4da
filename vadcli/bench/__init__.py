"""Measures LAVIDA on this machine: throughput, time per stage and memory.

Each round runs every setting and the baseline, which is a simple loop without batches or compression.
So a change in the machine's speed affects all settings alike. After the rounds, time and memory per
stage and GPU use are measured for each compression ratio.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING

from vadcli.bench.report import BenchReport, Setting, Stages, Throughput
from vadcli.bench.rounds import Bound, ScoreStore, naive_round, scan_round, wake
from vadcli.bench.usage import (
    BenchVideos,
    BusyMeter,
    HostMemory,
    StageClock,
    footage_of,
    forget_peak,
    held_bytes,
    machine,
    need_memory,
    peak_over,
)
from vadcli.detectors.running import dtype_for, untimed
from vadcli.errors import VideoError
from vadcli.types import Clip, ClipBatch
from vadcli.types.text import how_many
from vadcli.video.loader import ClipLoader, ClipReady, Finished, LoaderOptions, core_count

if TYPE_CHECKING:
    import torch

    from vadcli.detectors.lavida.detector import LavidaDetector

__all__ = ["Bench", "BenchPlan", "BenchReport", "BenchVideos", "Bound", "footage_of", "need_memory"]


log = logging.getLogger("vadcli")

DECODED_CLIPS = 12
"""Number of clips that are decoded to measure the decoding time."""
TIMED_BATCHES = 3
BUSY_S = 6.0
WHOLE = 1.0


@dataclass(frozen=True)
class BenchPlan:
    """The settings of a benchmark, and the length of each measurement.

    Attributes:
        ratios: compression ratios; each is the kept share of the visual tokens.
        batch_sizes: numbers of clips per batch.
        bound: the end of a round.
        rounds: number of rounds per setting.
        frame_px: area of a frame for the language model, in pixels; None keeps the model's own.
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
            sample, words = self._sample(loader)
            held = held_bytes(self.detector.devices)
            measured = self._throughput(loader, workers, sample, held)
            stages = [self._stages(ratio, loader, workers, sample) for ratio in self.plan.ratios]
        options, config, device = self.detector.options, self.detector.config, self.detector.devices[0]
        weights = "random weights" if self.detector.folder is None else "" if config.trained else "never trained"
        dtype = str(dtype_for(options.precision, device)).removeprefix("torch.")
        return BenchReport(
            model=", ".join(part for part in (config.name, weights, f"{dtype} on {device.type}") if part),
            machine=machine(self.detector.devices),
            footage=self.footage.words,
            sampling=words,
            weights_bytes=max(held.values(), default=None),
            found_batch=self.detector.batch_size,
            baseline=measured[0],
            settings=measured[1:],
            stages=stages,
        )

    def _throughput(
        self, loader: ClipLoader, workers: int, sample: list[Clip], held: dict[torch.device, int]
    ) -> list[Throughput]:
        """Return the throughput of the baseline and of all settings. Each round runs all of them."""
        plan = self.plan
        found = [Throughput(Setting(WHOLE, 1, is_baseline=True)), *map(Throughput, plan.settings)]
        for number in range(plan.rounds):
            for each in found:
                size = each.setting.batch_size
                self._configure(each.setting.ratio)
                self.detector.score(ClipBatch.of(_as_many(sample, size)))  # warm-up
                wake(loader, self.footage, workers)
                forget_peak(self.detector.devices)
                with self._store() as store, HostMemory() as memory:
                    if each.setting.is_baseline:
                        done = naive_round(self.detector, self.footage, bound=plan.bound, store=store)
                    else:
                        done = scan_round(self.detector, loader, self.footage, batch_size=size, bound=plan.bound, store=store)
                each.rounds.append(done)
                each.host_bytes = max(each.host_bytes, memory.peak_bytes)
                each.computed = min(size, self.detector.largest_step)
                peak = peak_over(held)
                each.device_bytes = None if peak is None else max(each.device_bytes or 0, peak)
                shown = f"ratio {each.setting.ratio:g}, {how_many(size, 'clip')} per batch"
                shown = each.setting.name if each.setting.is_baseline else shown
                log.info("round %d/%d: %s: %.2f clips/s", number + 1, plan.rounds, shown, each.rates()[-1])
        return found

    def _stages(self, ratio: float, loader: ClipLoader, workers: int, sample: list[Clip]) -> Stages:
        """Return stage times, token counts and GPU use of a compression ratio at the largest batch size."""
        self._configure(ratio)
        size = max(self.plan.batch_sizes)
        batch = ClipBatch.of(_as_many(sample, size))
        tokens, kept = self.detector.count_tokens(batch)
        decode_ms = self._decode_ms()
        clock = StageClock(self.detector.devices)
        self.detector.time_stages(clock)
        try:
            with self._store() as store:
                for number in range(TIMED_BATCHES + 1):
                    if number == 1:  # the first batch is a warm-up
                        clock.reset()
                    scores = self.detector.score(batch)
                    with clock("write"):
                        store.add(scores)
        finally:
            self.detector.time_stages(untimed)
        ms = {name: 1000 * seconds / (TIMED_BATCHES * size) for name, seconds in clock.seconds.items()}
        wake(loader, self.footage, workers)
        bound = replace(self.plan.bound, seconds=min(BUSY_S, self.plan.bound.seconds))
        busy = BusyMeter(self.detector.devices)
        if held_bytes(self.detector.devices):
            with self._store() as store:
                scan_round(self.detector, loader, self.footage, batch_size=size, bound=bound, store=store, steady=busy)
        return Stages(ratio, size, tokens, kept, {"decode": decode_ms, **ms}, dict(clock.added_bytes), busy.share)

    def _decode_ms(self) -> float:
        """Return the milliseconds per clip of a single decoder process."""
        with ClipLoader(self.detector.needs, LoaderOptions(workers=1)) as loader:
            wake(loader, self.footage, 1)
            started, clips = time.perf_counter(), 0
            for item in loader.run(self.footage.requests()):
                clips += isinstance(item, ClipReady)
                if clips == DECODED_CLIPS:
                    break
            return 1000 * (time.perf_counter() - started) / clips

    def _sample(self, loader: ClipLoader) -> tuple[list[Clip], str]:
        """Return clips of the same frame size, at least one, and a description of the sampling."""
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
