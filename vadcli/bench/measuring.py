"""The parts of a benchmark: its videos, timed rounds, and meters of time and memory.

The videos are the user's own or generated test videos. In a round, clips of these videos are decoded, scored, and their scores
are stored. A round uses either the code of a scan or the baseline. The baseline is a straightforward loop that decodes in this
process and scores one clip at a time.

`need_memory` raises an error if a model does not fit into memory. Without this check, the system would kill the process when
the weights are created.
"""

from __future__ import annotations

import gc
import platform
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
import psutil
import torch

from vadcli.detectors import Detector
from vadcli.detectors.batching import ClipBatcher, GatheredBatch, ScoringPool
from vadcli.detectors.running import devices_for, dtype_for
from vadcli.errors import DecodeError, DeviceError, VadcliError
from vadcli.store.atomic import Claim
from vadcli.store.checkpoint import CheckpointBlock, CheckpointHeader, CheckpointWriter
from vadcli.types import ByteArray, Clip, ClipBatch, ClipNeeds, ClipScores
from vadcli.types.text import how_many, size_text
from vadcli.video.ffmpeg import ffmpeg_path
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished, Item, Opened, core_count
from vadcli.video.supervisor import process_trees

if TYPE_CHECKING:
    from vadcli.detectors.lavida.detector import LavidaDetector
    from vadcli.detectors.lavida.model import LavidaConfig

# Number, length, frame rate and size of the generated test videos.
MADE_FILES = 4
MADE_S = 10
MADE_FPS = 30
MADE_SIZE = (1280, 720)
TIMEOUT_S = 300


@dataclass(frozen=True)
class BenchVideos:
    """The videos that a benchmark reads again and again.

    Attributes:
        videos: name and path of each video.
        warm_up: a small video that is read to start the decoders.
        scratch: folder for temporary files.
        description: what the report says about the videos.
    """

    videos: tuple[tuple[str, Path], ...]
    warm_up: Path
    scratch: Path
    description: str

    def requests(self) -> Iterator[ClipRequest]:
        """Yield the videos again and again without end, with a new name each time."""
        turn = 0
        while True:
            for name, path in self.videos:
                yield ClipRequest(f"{turn}/{name}", path)
            turn += 1


def footage_of(
    videos: Sequence[tuple[str, Path]], scratch: Path, *, size: tuple[int, int] = MADE_SIZE, seconds: int = MADE_S
) -> BenchVideos:
    """Return the given videos; if `videos` is empty, make test videos in `scratch` and return these.

    Raises:
        VadcliError: ffmpeg cannot make the test videos.
    """
    warm_up = scratch / "warm-up.mp4"
    make_video(warm_up, size=(64, 64), seconds=1, hue=0)
    if videos:
        return BenchVideos(tuple(videos), warm_up, scratch, f"{how_many(len(videos), 'video')} from the given paths")
    made = [(f"{number}.mp4", scratch / f"{number}.mp4") for number in range(MADE_FILES)]
    for number, (_, path) in enumerate(made):
        make_video(path, size=size, seconds=seconds, hue=number * 360 // MADE_FILES)
    description = f"{MADE_FILES} generated H.264 videos, {size[0]}x{size[1]}, {MADE_FPS} frames/s, {seconds} s each"
    return BenchVideos(tuple(made), warm_up, scratch, description)


def make_video(path: Path, *, size: tuple[int, int], seconds: int, hue: int) -> None:
    """Write a noisy test video with moving content.

    Raises:
        VadcliError: ffmpeg cannot make the video.
    """
    source = f"testsrc2=size={size[0]}x{size[1]}:rate={MADE_FPS}:duration={seconds},noise=alls=6:allf=t,hue=h={hue}"
    codec = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "60", "-pix_fmt", "yuv420p"]
    command = [ffmpeg_path(), "-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", source, *codec, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VadcliError(f"ffmpeg cannot make the test videos: {error}", hint="give paths of your own videos") from error
    if done.returncode != 0:
        message = " ".join(done.stderr.decode(errors="replace").split())
        raise VadcliError(f"ffmpeg cannot make the test videos: {message[-200:]}", hint="give paths of your own videos")


UNSTATED_FPS = 25.0
"""The frame rate that is assumed for files that do not state their frame rate."""


def baseline_clips(video: str, path: Path, needs: ClipNeeds) -> Iterator[tuple[Clip, float]]:
    """Yield (clip, frame rate of the video) for each clip of a video; clips do not overlap.

    The last clip repeats its last frame until the clip is full. The decoding library converts only the sampled
    frames to RGB, and resizes only these. So the baseline is faster than a loop that converts every frame.

    Raises:
        DecodeError: the video cannot be read.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            fps = float(stream.average_rate or UNSTATED_FPS)
            interval = needs.interval_for(fps)
            frames: list[ByteArray] = []
            number = 0
            for index, frame in enumerate(container.decode(stream)):
                if index % interval:
                    continue
                width, height = needs.size.apply(frame.width, frame.height)
                picture = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
                frames.append(picture.astype(np.uint8, copy=False))
                if len(frames) == needs.frames:
                    yield _clip(video, number, frames, interval, fps), fps
                    frames, number = [], number + 1
            if frames:
                yield _clip(video, number, frames + frames[-1:] * (needs.frames - len(frames)), interval, fps), fps
    except (av.FFmpegError, IndexError) as error:
        raise DecodeError(f"{path}: {error}", hint="name other videos") from error


def _clip(video: str, number: int, frames: list[ByteArray], interval: int, fps: float) -> Clip:
    count = len(frames)
    index = np.arange(number * count, (number + 1) * count, dtype=np.int64) * interval
    return Clip(video, number, np.stack(frames), index, index / fps, np.ones(count, np.bool_), interval)


@dataclass(frozen=True)
class Bound:
    """The limit of a round. After this time or this number of clips, the round takes no more clips.

    Attributes:
        seconds: time since the start of the round.
        clips: largest number of clips; None for no limit.
    """

    seconds: float
    clips: int | None = None

    def reached(self, clips: int, started: float) -> bool:
        """Return True if the round takes no more clips.

        Args:
            clips: number of clips taken so far.
            started: time.perf_counter() when the round began.
        """
        return time.perf_counter() - started >= self.seconds or (self.clips is not None and clips >= self.clips)


@dataclass(frozen=True)
class Round:
    """The amount of footage that one round scored, and the time that it took.

    Attributes:
        clips: number of clips scored and stored.
        rows: frames in the spans of these clips, sampled or not.
        video_s: seconds of footage.
        seconds: time from the first request for a clip to the last stored score.
    """

    clips: int
    rows: int
    video_s: float
    seconds: float


@dataclass
class _Tally:
    clips: int = 0
    rows: int = 0
    video_s: float = 0.0

    def add(self, rows: int, fps: float) -> None:
        """Count a clip with this number of rows of a video with `fps` frames per second."""
        self.clips += 1
        self.rows += rows
        self.video_s += rows / fps

    def after(self, seconds: float) -> Round:
        """Return the clips counted so far as a `Round` that took this many seconds."""
        return Round(self.clips, self.rows, self.video_s, seconds)


class ScoreStore:
    """Stores scores and masks in a checkpoint as a scan does, and deletes the checkpoint on exit.

    Args:
        folder: where the checkpoint is written.
        channels: K, number of the detector's score channels.
    """

    def __init__(self, folder: Path, *, channels: int) -> None:
        self._channels = channels
        claim = Claim.acquire(folder / "scores.arrows")
        assert claim is not None
        self._claim = claim
        self._writer: CheckpointWriter | None = None
        self._next = 0

    def __enter__(self) -> ScoreStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._claim.release(delete=True)

    def add(self, scores: ClipScores) -> None:
        """Append the scores and masks of a batch of clips, with one row per frame."""
        for row, raw in enumerate(scores.raw):
            count = len(raw)
            mask = None if scores.mask is None else np.rint(scores.mask[row] * 255).astype(np.uint8)
            if self._writer is None:
                shape = None if mask is None else (int(mask.shape[1]), int(mask.shape[2]))
                header = CheckpointHeader(fingerprint="bench", interval=1, channels=self._channels, mask_shape=shape, video={})
                self._writer = CheckpointWriter(self._claim, header)
            index = np.arange(self._next, self._next + count, dtype=np.int64)
            self._next += count
            seen = np.ones(count, np.bool_)
            block = CheckpointBlock(index, index, seen, seen, raw.astype(np.float32), np.zeros((count, 4), np.int32), mask)
            self._writer.append(block)
            self._writer.flush()


def wake(loader: ClipLoader, footage: BenchVideos, workers: int) -> None:
    """Start every decoder process, and wait until all have read the warm-up video.

    Raises:
        VideoError: the warm-up video cannot be read.
    """
    for item in loader.run([ClipRequest(f"warm-up/{number}", footage.warm_up) for number in range(workers)]):
        if isinstance(item, Finished) and item.error is not None:
            raise item.error


def scan_round(
    detector: Detector,
    loader: ClipLoader,
    footage: BenchVideos,
    *,
    batch_size: int,
    bound: Bound,
    store: ScoreStore,
    steady: AbstractContextManager[object] | None = None,
) -> Round:
    """Run one round in the way of a scan, and return its figures.

    As in a scan, decoder processes read the videos, batches mix clips of several files, and threads score the batches.

    Args:
        detector: scores the clips.
        loader: reads the clips.
        footage: the videos to read.
        batch_size: clips per batch.
        bound: the limit of the round.
        store: stores the scores.
        steady: a context manager, for measuring the round without its slow start and end. It is entered when the first scores
            arrive, and left when `bound` is reached.

    Raises:
        VideoError: a video cannot be read.
    """
    tally, started, ahead = _Tally(), time.perf_counter(), [steady or nullcontext()]
    batcher = ClipBatcher[None](batch_size)
    items = cast("Generator[Item, None, None]", loader.run(footage.requests()))
    with closing(items):
        with ScoringPool[GatheredBatch[None]](detector) as pool, ExitStack() as running:
            for batch in _batches(items, tally, batcher, is_over=lambda: bound.reached(tally.clips, started)):
                for done, scores in pool.submit(batch, batch.clip_batch()):
                    _keep(store, scores)
                    batcher.give_back(done)
                    if ahead:
                        running.enter_context(ahead.pop())
            running.close()
            for _, scores in pool.drain():
                _keep(store, scores)
        seconds = time.perf_counter() - started  # measured before the decoders stop, because that time does not count
    return tally.after(seconds)


def baseline_round(detector: Detector, footage: BenchVideos, *, bound: Bound, store: ScoreStore) -> Round:
    """Run one round of the baseline, and return its figures. Decodes, scores and stores one clip after another."""
    tally, started = _Tally(), time.perf_counter()
    for request in footage.requests():
        for clip, fps in baseline_clips(request.video, request.path, detector.needs):
            store.add(detector.score(ClipBatch.of([clip])))
            tally.add(len(clip.frames) * clip.interval, fps)
            if bound.reached(tally.clips, started):
                return tally.after(time.perf_counter() - started)
    raise AssertionError("requests() never ends")


def _batches(
    items: Iterable[Item], tally: _Tally, batcher: ClipBatcher[None], *, is_over: Callable[[], bool]
) -> Iterator[GatheredBatch[None]]:
    """Yield batches of clips that have the same frame size. The last batches may have fewer clips."""
    fps: dict[str, float] = {}
    for item in items:
        if isinstance(item, Opened):
            fps[item.video] = item.info.fps
        elif isinstance(item, ClipReady):
            batch = batcher.add(item.clip, None)
            tally.add(len(item.rows), fps[item.video])
            if batch is not None:
                yield batch
            if is_over():
                yield from batcher.flush()
                return
        elif item.error is not None:
            raise item.error


def _keep(store: ScoreStore, scores: ClipScores | Exception) -> None:
    if isinstance(scores, Exception):
        raise scores
    store.add(scores)


LOOK_EVERY_S = 0.5


class StageClock:
    """Measures the time and the added memory of stages.

    The clock waits for the devices after each stage, so stages do not overlap. Therefore all stages together take longer than
    in a scan.

    Args:
        devices: the devices on which the stages run.

    Attributes:
        seconds: the time of all calls of each stage together; the keys are the stages.
        added_bytes: the largest amount of device memory, in bytes, that one call of each stage added; empty without CUDA.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._cuda = cuda_of(devices)
        self.reset()

    def reset(self) -> None:
        """Clear all measurements."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.added_bytes: dict[str, int] = defaultdict(int)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure the code in the `with` block as one call of `stage`."""
        wait_for(self._cuda)
        for device in self._cuda:
            torch.cuda.reset_peak_memory_stats(device)
        before = {device: torch.cuda.memory_allocated(device) for device in self._cuda}
        started = time.perf_counter()
        yield
        wait_for(self._cuda)
        self.seconds[stage] += time.perf_counter() - started
        for device, allocated in before.items():
            added = torch.cuda.max_memory_allocated(device) - allocated
            self.added_bytes[stage] = max(self.added_bytes[stage], added)


class HostMemory:
    """Measures the peak resident memory of this process and its descendants in a `with` block.

    Memory that several processes share is counted once per process.

    Attributes:
        peak_bytes: largest memory so far.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> HostMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        me = psutil.Process()
        while True:
            resident = 0
            for process in process_trees([me])[0]:
                with suppress(psutil.Error):  # the process has ended
                    resident += int(process.memory_info().rss)
            self.peak_bytes = max(self.peak_bytes, resident)
            if self._over.wait(LOOK_EVERY_S):
                return


class BusyMeter:
    """Measures the share of time in which CUDA devices are busy, with torch's profiler.

    Args:
        devices: where the work runs; nothing is recorded if none is a CUDA device.

    Attributes:
        share: mean over the devices, in [0, 1], set on exit; None without a CUDA device.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.share: float | None = None
        self._cuda = cuda_of(devices)

    def __enter__(self) -> BusyMeter:
        if self._cuda:
            self._profile: Any = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profile.start()
            wait_for(self._cuda)
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._cuda:
            return
        wait_for(self._cuda)
        elapsed_us = (time.perf_counter() - self._started) * 1e6
        self._profile.stop()
        spans: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for event in self._profile.events() or ():
            if event.device_type.name == "CUDA":
                spans[event.device_index].append((event.time_range.start, event.time_range.end))
        self.share = sum(covered(kernels) for kernels in spans.values()) / elapsed_us / len(self._cuda)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of (start, end) spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def cuda_of(devices: Sequence[torch.device]) -> list[torch.device]:
    """Return the CUDA devices among these devices."""
    return [device for device in devices if device.type == "cuda"]


def wait_for(devices: Sequence[torch.device]) -> None:
    """Wait until the CUDA devices have finished their work."""
    for device in cuda_of(devices):
        torch.cuda.synchronize(device)


def held_bytes(devices: Sequence[torch.device]) -> dict[torch.device, int]:
    """Return the memory that tensors use now on each CUDA device."""
    gc.collect()
    return {device: torch.cuda.memory_allocated(device) for device in cuda_of(devices)}


def forget_peak(devices: Sequence[torch.device]) -> None:
    """Reset the recorded peak of device memory to the memory that tensors use now."""
    for device in cuda_of(devices):
        torch.cuda.reset_peak_memory_stats(device)


def peak_over(held: dict[torch.device, int]) -> int | None:
    """Return the peak of device memory since `forget_peak`, minus the bytes in `held`; None without a CUDA device."""
    return max((torch.cuda.max_memory_allocated(device) - before for device, before in held.items()), default=None)


def machine(devices: Sequence[torch.device]) -> str:
    """Return a description of the machine: GPUs, cores, processor, Python and torch."""
    names = [torch.cuda.get_device_name(device) for device in cuda_of(devices)]
    where = ", ".join(dict.fromkeys(f"{names.count(name)} x {name}" for name in names)) or "no GPU"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return f"{where}; {core_count()} cores of {processor}; Python {platform.python_version()}, torch {torch.__version__}"


CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
HALVES = (torch.float16, torch.bfloat16)


def need_memory(detector: LavidaDetector) -> None:
    """Check in less than 1 s that the random weights of a detector fit into the memory of its devices.

    Raises:
        DeviceError: the weights are larger than the free memory; the hint names smaller choices.
    """
    if detector.folder is not None:
        return
    precision = detector.options.precision
    for device in devices_for(detector.options.device):
        dtype, free = dtype_for(precision, device), free_bytes(device)
        needed = weights_bytes(detector.config, dtype)
        if needed <= free:
            continue
        weights = f"its weights take {size_text(needed)} in {str(dtype).removeprefix('torch.')}"
        message = f"{detector.config.name}: {weights}, and {device} has {size_text(free)} free"
        raise DeviceError(message, hint=_what_fits(detector.config, dtype, free))


def weights_bytes(config: LavidaConfig, dtype: torch.dtype) -> int:
    """Return the size of a preset's parameters and buffers, without allocating them."""
    from vadcli.detectors.lavida.checkpoint import random_model  # imports transformers, which other detectors do not need

    model = random_model(config, device="meta", dtype=dtype)
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device. For a CPU, the limit of the control group counts too."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = int(psutil.virtual_memory().available)
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # the file is missing or contains `max` (no limit)
            free = min(free, int(path.read_text()) - int(psutil.Process().memory_info().rss))
    return max(0, free)


def _what_fits(config: LavidaConfig, dtype: torch.dtype, free: int) -> str:
    """Return a hint that lists half precision and the smaller presets that fit, largest first."""
    from vadcli.detectors.lavida.checkpoint import load_preset, preset_names

    fitting = []
    half = weights_bytes(config, torch.bfloat16)
    if dtype not in HALVES and half <= free:
        fitting.append(f"--precision bf16 ({size_text(half)})")
    sizes = {name: weights_bytes(load_preset(name), dtype) for name in preset_names() if name != config.name}
    smaller = sorted((size, name) for name, size in sizes.items() if size <= free)
    fitting += [f"--model {name} ({size_text(size)})" for size, name in reversed(smaller)]
    return f"what fits: {', '.join(fitting)}" if fitting else "end other programs, or use a machine with more memory"
