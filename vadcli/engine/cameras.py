"""Fits a model of each camera on a sample of the camera's footage. Stores the models in cameras/ as JSON.

The sample depends only on a seed and on the camera's videos. All videos count: the videos of every shard, and the videos that
earlier runs have scanned. So every process that works on the camera fits the same model.

If a camera has little footage, all of its footage is read. The clips stay in memory after the fit, so they are scored without
being decoded again. If a camera has more footage, only bursts are read: short sequences of frames, spread over the footage.

A model that was fitted on less than one hour of footage is fitted again when the camera has twice as much footage. Each model
stores the length and the number of bytes of its footage. Only the bytes are compared: the length of a video is not known before
the video is opened, and a run does not open finished videos.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from vadcli.detectors import ChecksModels, Detector
from vadcli.detectors.batching import PreparingPool
from vadcli.engine.plan import WorkUnit
from vadcli.errors import DocumentError, NotFinished, ToolError
from vadcli.store import OutputLayout
from vadcli.store.atomic import Claim, Scratch
from vadcli.types import CameraModel, CameraRegions, CameraSample, Clip, ClipNeeds, Footage, VideoInfo
from vadcli.types.text import MOST_NAMED, camera_names, document_errors, length_text, read_document
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished, Item, LoaderOptions, Opened
from vadcli.video.sampling import SamplingPlan

log = logging.getLogger("vadcli")

# A model that was fitted on this much footage (one hour) is fitted again only with --refit. One hour is needed, because scores
# are calibrated in events per hour.
ENOUGH_S = 3600.0
# A model that was fitted on less than ENOUGH_S seconds is fitted again when the footage has grown by this factor. If the first
# video of a camera lasts ten seconds, the camera is fitted again at most nine times before it has an hour of footage.
GROWTH = 2
# Footage of up to this many clips (about three minutes for the motion detector) is read once, kept in memory, used for the fit
# and then scored. For longer footage it is faster to read bursts for the fit, and to decode all footage later for the scan.
CLIPS_IN_MEMORY = 40
# The fit uses at most this many of the clips in memory, evenly spread over the footage.
SAMPLE_CLIPS = 12
# If the footage has more than CLIPS_IN_MEMORY clips, this many bursts are read instead.
BURSTS = 20
# A burst has about 1 / BURST_PART of the frames of a clip.
BURST_PART = 2
# While another process fits a camera, this process waits, and checks every WAIT_S seconds whether the fit has ended.
WAIT_S = 0.2
_REFIT = "fit the camera again with --refit"


def read_camera(path: Path) -> CameraModel:
    """Read a stored camera model.

    Raises:
        DocumentError: the file is missing or damaged, or is not a camera model of this version.
    """
    document = read_document(path, version=1, what="a camera model", hint=_REFIT)
    with document_errors(path, "a camera model", _REFIT):
        return CameraModel.from_json(document)


def write_camera(path: Path, model: CameraModel) -> None:
    """Write a camera model to `path`, a temporary file that the caller renames.

    Raises:
        OSError: the file can't be written.
        ValueError: a value of the model is not JSON.
    """
    text = json.dumps(model.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


@dataclass
class Cameras:
    """The camera models of one output folder."""

    layout: OutputLayout
    scratch: Scratch
    detector: Detector
    needs: ClipNeeds  # the detector's needs, changed by the sampling options
    loader_options: LoaderOptions  # how to read the bursts
    seed: int  # seed of the random sample of footage
    # True: fit each camera again, once per run. False: fit no camera that has a model. None: fit a camera again if it has much
    # more footage now (`is_outgrown`).
    refit: bool | None
    stopped: Callable[[], bool]  # returns True when the run must end
    # Called with the name of a camera, and the number of frames that were just read to fit this camera.
    fitting: Callable[[str, int], None] = lambda camera, frames: None
    regions: CameraRegions = field(default_factory=CameraRegions)  # the hidden parts of each camera's picture
    outgrown: int = 0  # number of cameras that this run has fitted again because they had much more footage
    _fitted: dict[str, CameraModel | None] = field(default_factory=dict)  # the models that this run has fitted, by camera

    def stored(self, camera: str) -> CameraModel | None:
        """Return the camera's model that this run uses; None if the camera must be fitted first."""
        if camera in self._fitted or not self.refit:
            return self._fitted.get(camera) or self._read(camera)
        return None

    def needs_fit(self, camera: str) -> bool:
        """True if the detector fits cameras and this camera has no usable model yet."""
        return self.detector.fits_camera and camera not in self._fitted and self.stored(camera) is None

    def is_outgrown(self, camera: str, whole: Sequence[WorkUnit]) -> bool:
        """True if this run must fit the camera again, because the camera now has much more footage.

        `whole` has all videos of the camera.
        """
        if self.refit is not None or not self.detector.fits_camera or camera in self._fitted:
            return False
        model = self._read(camera)
        return model is not None and is_outgrown(model, size_of(whole))

    def has_model(self, camera: str) -> bool:
        """True if a usable model is stored, even if this run replaces it."""
        return self._read(camera) is not None

    def why_again(self, camera: str) -> str:
        """Return why the stored model can't be used; "" if no model is stored or --refit replaces the model.

        The reason fits one camera or several: `fitted by another version of vadcli`.
        """
        if not self.detector.fits_camera or camera in self._fitted or self.refit:
            return ""
        model = self._on_disk(camera)
        if model is None or model.detector != self.detector.name:
            return ""
        if model.version != self.detector.model_version:
            return "fitted by another version of vadcli"
        return "the regions changed" if model.regions != self.regions.of(camera).sha256 else ""

    def _read(self, camera: str) -> CameraModel | None:
        """Return the stored model of a camera; None if no model is stored or this run can't use it."""
        model = self._on_disk(camera)
        if model is None or (model.detector, model.version) != (self.detector.name, self.detector.model_version):
            return None
        if isinstance(self.detector, ChecksModels) and not self.detector.accepts(model):
            return None
        return model if model.regions == self.regions.of(camera).sha256 else None

    def _on_disk(self, camera: str) -> CameraModel | None:
        path = self.layout.camera(camera)
        try:
            return read_camera(path) if path.exists() else None
        except DocumentError:
            return None

    def fit(self, camera: str, clips: Sequence[Clip], footage: Footage) -> CameraModel | None:
        """Fit, store and return a model, or return the model that another process has just stored.

        Returns None if the detector makes no model from these clips.
        """
        with self._claim(camera):
            before = None if self.refit else self._read(camera)
            model = before
            if before is None or (self.refit is None and is_outgrown(before, footage.bytes)):
                model = self._learn(camera, clips, footage, before)
                if model is not None:
                    with self.scratch.replace(self.layout.camera(camera)) as temporary:
                        write_camera(temporary, model)
        self._fitted[camera] = model
        return model

    def _learn(self, camera: str, clips: Sequence[Clip], footage: Footage, before: CameraModel | None) -> CameraModel | None:
        """Return a new model, or the earlier model `before` if that model was fitted on more footage."""
        if before is None or before.footage is None or footage.seconds >= before.footage.seconds:
            model = self.detector.fit(CameraSample(camera, tuple(clips), self.seed)) if clips else None
            if model is not None:
                return replace(model, footage=footage, regions=self.regions.of(camera).sha256)
        if before is None or before.footage is None:
            return before
        # The earlier model gets the present number of bytes. Otherwise the next run would try to fit the camera again.
        return replace(before, footage=replace(before.footage, bytes=footage.bytes))

    @contextmanager
    def _claim(self, camera: str) -> Iterator[None]:
        """Lock the camera's model during the `with` block. While another process has the lock, wait."""
        path = self.layout.camera(camera).with_suffix(".json.part")
        claim = Claim.acquire(path)
        while claim is None and not self.stopped():
            time.sleep(WAIT_S)
            claim = Claim.acquire(path)
        try:
            yield
        finally:
            if claim is not None:
                claim.release(delete=True)


@dataclass(frozen=True)
class CameraFit:
    """Reads footage of one camera, and fits the camera's model on this footage."""

    cameras: Cameras  # stores the model
    camera: str
    whole: Sequence[WorkUnit]  # all videos of the camera
    request: Callable[[WorkUnit], ClipRequest]  # makes the loader's request for a video

    def on_the_way(self, items: Iterator[Item]) -> Iterator[Item]:
        """Fit the camera on the first items. Then yield all items, in order.

        The first items are kept in memory, so that they are not read again. When the scan is stopped, the iterator ends.

        `items` come from the loader of the running scan. They may belong to only some of the camera's videos. Each video is
        read from its beginning.
        """
        with PreparingPool(self.cameras.detector) as pool:
            in_memory = _ItemsInMemory(self.cameras.needs, pool)
            in_memory.take(self._with_progress(items))
            if not in_memory.items:
                return
            is_whole = in_memory.is_too_long or in_memory.ended == {unit.video for unit in self.whole}
            clips, footage = self._sample(in_memory if is_whole else self._whole_in_memory(pool))
            if self.cameras.stopped():
                return
            self.cameras.fit(self.camera, clips, footage)
        for item in chain(in_memory.items, items):
            if isinstance(item, ClipReady) and self.cameras.stopped():  # a `Finished` is yielded
                return
            yield item

    def again(self, *, scored: int) -> None:
        """Fit the camera again, because it has much more footage now. If the model changes, log this.

        Call this before the run scores any video of the camera. `scored` is for the log: the number of videos that earlier
        runs have scored with the old model.
        """
        before = self.cameras.stored(self.camera)
        with PreparingPool(self.cameras.detector) as pool:
            clips, footage = self._sample(self._whole_in_memory(pool))
        if self.cameras.stopped():
            return
        model = self.cameras.fit(self.camera, clips, footage)
        if before and model and before.footage and model.footage and model.sha256 != before.sha256:
            self.cameras.outgrown += 1
            log.log(
                logging.INFO if self.cameras.outgrown <= MOST_NAMED else logging.DEBUG,
                "%s: learned again from %s of footage instead of %s; %d earlier %s scored again (--no-refit prevents this)",
                camera_names([self.camera]),
                length_text(model.footage.seconds),
                length_text(before.footage.seconds),
                scored,
                "video is" if scored == 1 else "videos are",
            )

    def _whole_in_memory(self, pool: PreparingPool) -> _ItemsInMemory:
        """Read all videos of the camera and keep their clips in memory, up to CLIPS_IN_MEMORY clips."""
        in_memory = _ItemsInMemory(self.cameras.needs, pool)
        with ClipLoader(self.cameras.needs, self.cameras.loader_options) as loader:
            requests = (self.request(unit) for unit in self.whole)
            in_memory.take(self._with_progress(loader.run(requests, stopped=self.cameras.stopped)))
        return in_memory

    def _sample(self, in_memory: _ItemsInMemory) -> tuple[list[Clip], Footage]:
        """Return the clips for the fit, and the size of the footage from which they come.

        If all clips of the camera fit into memory, they are in `in_memory`. Otherwise, this method reads bursts.
        """
        if in_memory.is_too_long:
            return self._bursts(in_memory.pool)
        in_memory.pool.wait()
        clips = sorted(in_memory.clips(), key=lambda clip: (clip.video, clip.index))
        videos = sorted({clip.video for clip in clips} - in_memory.hidden)
        seconds = sum(in_memory.infos[video].duration_s for video in videos)
        places = np.linspace(0, len(clips) - 1, min(len(clips), SAMPLE_CLIPS)).round().astype(int)
        spread = [clips[place] for place in places]
        return spread, Footage(len(videos), round(seconds, 3), size_of(self.whole, without=in_memory.hidden))

    def _bursts(self, pool: PreparingPool) -> tuple[list[Clip], Footage]:
        """Read bursts of the videos. Return them as clips, with the size of the footage from which they come."""
        positions = burst_positions(self.whole, camera=self.camera, seed=self.cameras.seed)
        with_bursts = [unit for unit in self.whole if unit.video in positions]
        requests = (replace(self.request(unit), start_clip=0, bursts=positions[unit.video]) for unit in with_bursts)
        needs = self.cameras.needs
        frames = needs.frames if needs.whole_bursts else max(needs.overlap + 1, needs.frames // BURST_PART)
        lengths_s: dict[str, float] = {}
        hidden: set[str] = set()
        clips: list[Clip] = []
        with ClipLoader(replace(needs, frames=frames), self.cameras.loader_options) as loader:
            for item in self._with_progress(loader.run(requests, stopped=self.cameras.stopped)):
                if isinstance(item, ClipReady):
                    clips.append(item.clip.owned())
                    pool.add(clips[-1])
                elif isinstance(item, Opened):
                    lengths_s[item.video] = item.info.duration_s
                elif isinstance(item.error, NotFinished):
                    hidden.add(item.video)
        pool.wait()
        clips.sort(key=lambda clip: (clip.video, clip.index, float(clip.timestamp[0])))
        whole, with_bursts = ([unit for unit in units if unit.video not in hidden] for units in (self.whole, with_bursts))
        return clips, estimated_footage(whole, with_bursts, positions, lengths_s, clips)

    def _with_progress(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items, and report the number of frames of each clip to `Cameras.fitting`.

        Raises:
            ToolError: ffmpeg does not run, so no video can be read and the camera can't be fitted.
        """
        for item in items:
            if isinstance(item, Finished) and isinstance(item.error, ToolError):
                raise item.error
            if isinstance(item, ClipReady):
                self.cameras.fitting(self.camera, len(item.clip.frame_index))
            yield item


class _ItemsInMemory:
    """Keeps up to CLIPS_IN_MEMORY clips of a loader in memory, with the loader's other items."""

    def __init__(self, needs: ClipNeeds, pool: PreparingPool) -> None:
        self.needs = needs
        self.pool = pool
        self.items: list[Item] = []
        self.infos: dict[str, VideoInfo] = {}  # by video
        self.ended: set[str] = set()  # the videos that were read to the end
        self.hidden: set[str] = set()  # the videos that the machine could not read; a later run may be able to read them
        self.total_clips = 0  # number of clips of all opened videos, also of clips that are not read yet

    @property
    def is_too_long(self) -> bool:
        """True if the opened videos have more than CLIPS_IN_MEMORY clips together."""
        return self.total_clips > CLIPS_IN_MEMORY

    def take(self, items: Iterator[Item]) -> None:
        """Keep the items. Stop when `is_too_long` becomes true."""
        for item in items:
            if isinstance(item, ClipReady):
                clip = item.clip.owned()  # a copy that does not depend on the loader's memory
                self.pool.add(clip)
                self.items.append(replace(item, clip=clip))
            else:
                self.items.append(item)
            if isinstance(item, Opened):
                self.infos[item.video] = item.info
                self.total_clips += SamplingPlan.of(self.needs, item.info).clips(item.info.frames)
            elif isinstance(item, Finished):
                self.ended.add(item.video)
                if isinstance(item.error, NotFinished):
                    self.hidden.add(item.video)
            if self.is_too_long:
                return

    def clips(self) -> Iterator[Clip]:
        """Return the clips among the items."""
        return (item.clip for item in self.items if isinstance(item, ClipReady))


def is_outgrown(model: CameraModel, size: int) -> bool:
    """True if a model was fitted on little footage, and there is much more footage now.

    Little footage is less than ENOUGH_S seconds. Much more is at least GROWTH times as many bytes.

    `size` is the number of bytes of the present footage. A model of an older version does not store the size of its footage;
    for such a model, the result is False.
    """
    footage = model.footage
    return footage is not None and footage.seconds < ENOUGH_S and size >= GROWTH * max(1, footage.bytes)


def footage_caveats(model: CameraModel | None) -> tuple[str, ...]:
    """Return a warning if a camera model was fitted on less than ENOUGH_S seconds; else an empty tuple."""
    footage = model.footage if model else None
    if footage is None or footage.seconds >= ENOUGH_S:
        return ()
    length = length_text(footage.seconds)
    if footage.videos == 1:
        usual = "anything that lasts for the whole video is taken to be normal"
        return (f"The camera was learned from a single video of {length}, so {usual}.",)
    return (f"The camera was learned on only {length} of footage, so what is usual there may still count as unusual.",)


def size_of(units: Iterable[WorkUnit], *, without: Collection[str] = ()) -> int:
    """Return the total bytes of the videos, except the videos in `without`."""
    return sum(unit.size for unit in units if unit.video not in without)


def estimated_footage(
    whole: Sequence[WorkUnit],
    with_bursts: Sequence[WorkUnit],
    positions: Mapping[str, Sequence[float]],
    lengths_s: Mapping[str, float],
    clips: Sequence[Clip],
) -> Footage:
    """Return an estimate of the length and size of a camera's footage, of which only bursts were read.

    The length that a file declares may be wrong. So if only half of a video's bursts could be read, only half of the declared
    length counts.

    Args:
        whole: all videos of the camera.
        with_bursts: the videos from which bursts should have been read.
        positions: the positions of the bursts in these videos, by video.
        lengths_s: the declared lengths of the videos that could be opened, by video.
        clips: the bursts that could be read.
    """
    bursts = Counter(clip.video for clip in clips)
    seconds = sum(lengths_s.get(unit.video, 0.0) * bursts[unit.video] / len(positions[unit.video]) for unit in with_bursts)
    unread = sum(not bursts[unit.video] for unit in with_bursts)
    scale = size_of(whole) / max(1, size_of(with_bursts))
    return Footage(len(whole) - unread, round(seconds * scale, 3), size_of(whole))


def burst_positions(units: Sequence[WorkUnit], *, camera: str, seed: int, bursts: int = BURSTS) -> dict[str, tuple[float, ...]]:
    """Return the positions of a camera's bursts, by video: ascending fractions [0, 1) of the video.

    The footage is divided into parts of equal size in bytes, one part per burst. Each burst begins at a random place in its
    part. The random places depend on the camera's name and the seed. Videos without bursts are left out.

    Args:
        units: the camera's videos, in the order of a plan.
        camera: the camera's name.
        seed: the seed of the scan.
        bursts: number of bursts.
    """
    digest = hashlib.sha256(f"{seed}:{camera}".encode()).digest()
    shifts = np.random.default_rng(int.from_bytes(digest[:8], "big")).random(bursts)
    ends = np.cumsum([max(1, unit.size) for unit in units], dtype=np.float64)
    points = (np.arange(bursts) + shifts) / bursts * ends[-1]
    fractions: dict[str, list[float]] = {}
    for point, k in zip(points, np.searchsorted(ends, points, side="right"), strict=True):
        unit, end = units[min(int(k), len(units) - 1)], ends[min(int(k), len(units) - 1)]
        fraction = (point - (end - max(1, unit.size))) / max(1, unit.size)
        fractions.setdefault(unit.video, []).append(float(min(max(fraction, 0.0), 1 - 1e-9)))
    return {video: tuple(sorted(positions)) for video, positions in fractions.items()}
