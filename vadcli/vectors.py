"""Stores one vector per sampled frame (`vadcli embed`), and searches stored vectors (`vadcli search`).

A search computes how similar a vector is to the query, and compares this with what is usual for the camera. Otherwise, a camera
that always shows something similar to the query would fill the list. A search decodes no video, and has the vectors of only a
few videos in memory.
"""

from __future__ import annotations

import heapq
import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vadcli.detectors import digest
from vadcli.detectors.calibration import BellTail, fit_bell_tail, logit_of
from vadcli.detectors.encoders import Encoder, encoder_area_px, encoder_fingerprint, encoder_key, load_encoder
from vadcli.engine.job import source_of
from vadcli.engine.plan import Plan, WorkUnit, make_plan, no_video_text
from vadcli.errors import DocumentError, NoVideoFound, UsageError, VideoError, WeightsError
from vadcli.options import EmbedOptions
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch, check_folder, writing
from vadcli.store.events import stored_roots
from vadcli.store.scores import (
    EmbeddingsMetadata,
    StoredEmbeddings,
    read_embeddings,
    read_embeddings_metadata,
    read_metadata,
    write_embeddings,
)
from vadcli.types import (
    BoolArray,
    ByteArray,
    CameraModel,
    ClipNeeds,
    Embeddings,
    FloatArray,
    IndexArray,
    PixelFormat,
    SizeRule,
    StartTime,
    TimeArray,
    When,
    sigmoid,
)
from vadcli.types.text import read_document
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished, core_count, loader_options

log = logging.getLogger("vadcli")
T = TypeVar("T")

CLIP_FRAMES = 32
TEMPLATES = ("{}", "a picture of {}", "a surveillance camera picture of {}")
"""The encoder reads the search text in each of these sentences. The query is the mean of their vectors."""
NEIGHBOURS_S = 10.0
"""Moments of one video that are closer together than this count as one moment."""
EDGE = 1.0
"""A moment ends where the similarity is lower than at the peak by this many standard deviations (spreads)."""
SPREAD_FLOOR = 0.005
"""Smallest spread (standard deviation) of the cosines of a camera."""
CHUNK = 256
"""Number of vectors that are compared at a time. This number of vectors fits into the processor's cache."""
READ_AHEAD = 4
DAY_S = 86400.0


@dataclass(frozen=True)
class EmbedResult:
    """The result for one video.

    Attributes:
        video: the name of the video.
        vectors: number of stored vectors.
        file: the embeddings file; "" if no file was written.
        skipped: True if the file existed already, with the same encoder and the same frames per second.
        problem: why the video could not be read completely; "" if it was read completely.
    """

    video: str
    vectors: int = 0
    file: str = ""
    skipped: bool = False
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that `vadcli embed --json` prints."""
        return {"type": "embedded", **asdict(self)}


def embed_all(paths: Sequence[Path], options: EmbedOptions) -> Iterator[EmbedResult]:
    """Embed videos. Yields one result per video when it is finished.

    Raises:
        UsageError, NoVideoFound, DeviceError, WeightsError: at once, before any video is read.
        OutputError: a file can't be written.
    """
    layout = OutputLayout(options.out)
    stored = stored_roots(layout)
    plan = make_plan(paths, options, out=options.out, camera_from=options.camera_from, root=options.root, stored=stored)
    if not plan.units and not plan.unusable and not options.allow_empty:
        raise NoVideoFound(no_video_text(plan, options))
    if options.npy is not None:
        check_folder(options.npy)
    fingerprint = encoder_fingerprint(options.encoder, precision=options.precision)
    encoder = load_encoder(options.encoder, device=options.device, precision=options.precision)
    return _Embedding(options, layout, encoder, fingerprint).run(plan)


@dataclass
class _VectorsSoFar:
    """The vectors of a video that is being read, one array per clip."""

    frame_index: list[IndexArray] = field(default_factory=list)
    timestamp: list[TimeArray] = field(default_factory=list)
    vectors: list[Embeddings] = field(default_factory=list)


@dataclass
class _Embedding:
    """A run of `vadcli embed`. `fingerprint` is the encoder's fingerprint."""

    options: EmbedOptions
    layout: OutputLayout
    encoder: Encoder
    fingerprint: dict[str, object]
    _metadata: dict[str, EmbeddingsMetadata] = field(default_factory=dict)

    def run(self, plan: Plan) -> Iterator[EmbedResult]:
        """Yield one result per video."""
        yield from (EmbedResult(item.video, problem=item.reason) for item in plan.unusable if item.failed)
        requests = []
        for unit in plan.units:
            known = self._known(unit)
            if known is not None:
                yield known
            else:
                fps = self.options.fps if unit.is_frames else None
                requests.append(ClipRequest(unit.video, unit.path, fps=fps))
        if not requests:
            return
        reading: dict[str, _VectorsSoFar] = {}
        with (
            ClipLoader(self._needs, loader_options(self.options, workers=self.options.workers)) as loader,
            Scratch(self.layout.scratch) as scratch,
        ):
            for item in loader.run(requests):
                if isinstance(item, ClipReady):
                    clip, so_far = item.clip, reading.setdefault(item.clip.video, _VectorsSoFar())
                    if clip.valid.any():
                        so_far.frame_index.append(clip.frame_index[clip.valid])
                        so_far.timestamp.append(clip.timestamp[clip.valid])
                        so_far.vectors.append(Embeddings.of(self.encoder.encode_images(clip.frames[clip.valid])))
                elif isinstance(item, Finished):
                    problem = "" if item.error is None else str(item.error)
                    yield self._store(scratch, item.video, reading.pop(item.video, _VectorsSoFar()), problem)

    def _known(self, unit: WorkUnit) -> EmbedResult | None:
        """Return the result of a video that needs no embedding or can't be read; None for any other video."""
        key = digest([self.fingerprint, self.options.sample_fps])
        try:
            content = str(source_of(unit)["content"])
        except VideoError as error:
            return EmbedResult(unit.video, problem=str(error))
        path, encoder = self.layout.embeddings(unit.video), encoder_key(self.fingerprint)
        metadata = EmbeddingsMetadata(unit.video, unit.camera, self.options.encoder, encoder, key, content)
        stored = read_embeddings_metadata(path)
        if stored is not None and not self.options.force and self._is_same(stored, metadata):
            return EmbedResult(unit.video, self._export(unit.video), str(path), skipped=True)
        self._metadata[unit.video] = metadata
        return None

    def _is_same(self, stored: EmbeddingsMetadata, new: EmbeddingsMetadata) -> bool:
        """True if the stored vectors are equal to those that this command would compute."""
        if (stored.encoder_key, stored.content) != (new.encoder_key, new.content):
            return False
        scores = read_metadata(self.layout.scores(stored.video))
        if stored.key == new.key or scores is None:
            return stored.key == new.key
        # The key of vectors that a scan stored can't be compared with this command's key. So compare the sampled frames: the
        # vectors are the same if the scan took the same frames.
        steps = np.diff(read_embeddings(self.layout.embeddings(stored.video)).frame_index)
        return bool(len(steps)) and int(steps.min()) == self._needs.interval_for(float(scores.video["fps"]))

    @property
    def _needs(self) -> ClipNeeds:
        size = SizeRule(encoder_area_px(self.options.encoder))
        return ClipNeeds(CLIP_FRAMES, 0, self.options.sample_fps, size, PixelFormat.RGB)

    def _store(self, scratch: Scratch, video: str, read: _VectorsSoFar, problem: str) -> EmbedResult:
        """Write the vectors of a video.

        `problem` says why the video was not read to its end; "" if there was no problem.
        """
        if not read.vectors:
            return EmbedResult(video, problem=problem or "no frame could be decoded")
        vectors = Embeddings(
            np.concatenate([part.values for part in read.vectors]), np.concatenate([part.scale for part in read.vectors])
        )
        path = self.layout.embeddings(video)
        rows, seconds = np.concatenate(read.frame_index), np.concatenate(read.timestamp)
        with scratch.replace(path) as temporary:
            write_embeddings(temporary, StoredEmbeddings(self._metadata[video], rows, seconds, vectors))
        return EmbedResult(video, self._export(video), str(path), problem=problem)

    def _export(self, video: str) -> int:
        """Write the vectors of a video as .npy if the options ask for it. Returns the number of vectors.

        VadCLIP and similar heads read (S, D) float32. RTFM and similar heads read (S, crops, D): one vector per crop (part) of
        the picture. vadcli has one vector for the whole picture, and repeats it for each crop.
        """
        vectors = read_embeddings(self.layout.embeddings(video)).embeddings.vectors()
        if self.options.npy is not None:
            crops = self.options.npy_crops
            array = np.repeat(vectors[:, None], crops, axis=1) if crops else vectors
            path = self.options.npy / f"{video}.npy"
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f".{path.name}.part")
                with part.open("wb") as file:
                    np.save(file, array)
                part.replace(path)
        return len(vectors)


@dataclass(frozen=True)
class Moment:
    """A span of a video that fits the query.

    Attributes:
        video, camera: names of the video and its camera.
        start_s, end_s, peak_s: seconds from the video's first pts.
        peak_frame: the frame that fits best.
        score: how rare this similarity is for the camera, in [0, 1]. The scale is the same as for event scores.
        similarity: cosine of the query and the vector of the frame that fits best.
        start_time, end_time: start and end as wall-clock time, ISO 8601; None if they are unknown.
    """

    video: str
    camera: str
    start_s: float
    end_s: float
    peak_s: float
    peak_frame: int
    score: float
    similarity: float
    start_time: str | None = None
    end_time: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON that `vadcli search --json` prints."""
        return {"type": "moment", **vars(self)}


def at_times(moment: Moment, start: StartTime | None) -> Moment:
    """Return a moment with wall-clock times; unchanged if the start of the video is unknown."""
    if start is None:
        return moment
    return replace(moment, start_time=start.text_at(moment.start_s), end_time=start.text_at(moment.end_s))


def encoders_in(layout: OutputLayout) -> Iterator[tuple[str, str]]:
    """Yield (name, key) once per encoder that has stored vectors, in the order of the files."""
    seen: set[tuple[str, str]] = set()
    for path in layout.iter_embeddings():
        metadata = read_embeddings_metadata(path)
        if metadata is not None and (encoder := (metadata.encoder, metadata.encoder_key)) not in seen:
            seen.add(encoder)
            yield encoder


def query_vector(encoder: str, key: str, *, device: str, text: str = "", picture: ByteArray | None = None) -> FloatArray:
    """Return the unit vector (D,) of a sentence or of a picture. The encoder is not kept in memory.

    Args:
        encoder: the name or folder of the encoder.
        key: key of the encoder that made the stored vectors.
        device: as in `load_encoder`.
        picture: (H, W, 3) uint8, instead of a sentence.

    Raises:
        UsageError: as in `load_encoder`; or the sentence is empty, or longer than the encoder can read.
        WeightsError: as in `load_encoder`, or the encoder's key is not `key`.
    """
    with ThreadPoolExecutor(1) as pool:
        # If the hashes of the files are not stored yet, hashing takes a second per GB. Meanwhile, this thread imports torch.
        fingerprint = pool.submit(encoder_fingerprint, encoder)
        loaded = load_encoder(encoder, device=device)
    if encoder_key(fingerprint.result()) != key:
        raise WeightsError(
            f"the stored vectors were not made by the encoder {encoder}",
            hint="name their encoder with --encoder, or scan again",
        )
    if picture is not None:
        vector = loaded.encode_images(picture[None])[0]
    elif not text.strip():
        raise UsageError("the search text is empty", hint='for example: vadcli search OUT "a red car"')
    else:
        sentences = [template.format(text) for template in TEMPLATES]
        longest = max(loaded.text_tokens(sentence) for sentence in sentences)
        if longest > loaded.max_tokens:
            raise UsageError(
                f"the search text has {longest} tokens; {loaded.name} reads at most {loaded.max_tokens}",
                hint="write a shorter sentence",
            )
        vector = loaded.encode_text(sentences).mean(axis=0)
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), dtype=np.float32)


def find(
    layout: OutputLayout,
    query: FloatArray,
    *,
    encoder_key: str,
    top: int,
    keep: Callable[[str, str], bool] = lambda video, camera: True,
    rows: Callable[[str, TimeArray], BoolArray | None] = lambda video, timestamp: None,
    problems: list[str] | None = None,
) -> list[Moment]:
    """Return the `top` moments with the highest scores, the highest first.

    Args:
        query: (D,) unit vector.
        encoder_key: key of the encoder; vectors of other encoders are left out.
        keep: called with the names of a video and its camera; False leaves the video out.
        rows: a function that gets the name of a video and the timestamps (S,) of its frames. It returns which frames may be the
            peak of a moment, (S,) bool, or None if all may. It is called only for videos that may have one of the best moments.
        problems: one line is added per file that could not be read.
    """
    usual: dict[str, BellTail] = {}
    best: list[tuple[float, int, Moment]] = []
    number = 0

    def compare(path: Path) -> tuple[StoredEmbeddings, FloatArray] | None:
        """Return the vectors of one file and their similarities; None if the search does not use the file."""
        stored = read_embeddings(path)
        metadata = stored.metadata
        if metadata.encoder_key != encoder_key or not keep(metadata.video, metadata.camera) or not len(stored.frame_index):
            return None
        return stored, similarities(stored.embeddings, query)

    for compared in _in_threads(compare, layout.iter_embeddings(), problems if problems is not None else []):
        if compared is None:
            continue
        stored, cosines = compared
        camera = stored.metadata.camera
        if camera not in usual:
            usual[camera] = _usual(layout, stored, query)
        tail = usual[camera]
        if len(best) == top and _score(tail, cosines.max()) <= best[0][0]:
            continue  # no moment of this video has a higher score
        for moment in _moments(stored, cosines, tail, top=top, allowed=rows(stored.metadata.video, stored.timestamp)):
            if len(best) == top and moment.score <= best[0][0]:
                break  # the next moments of this video have no higher score
            number += 1  # if scores are equal, the heap compares these numbers, because moments can't be compared
            heapq.heappush(best, (moment.score, -number, moment))
            if len(best) > top:
                heapq.heappop(best)
    return [moment for _, _, moment in sorted(best, key=lambda entry: (-entry[0], -entry[1]))]


def _usual(layout: OutputLayout, stored: StoredEmbeddings, query: FloatArray) -> BellTail:
    """Return how similar the vectors of a video's camera usually are to the query.

    Uses the sample of vectors in the camera model or, if there is no such sample, the vectors of the video.
    """
    camera = stored.metadata.camera
    sample, seconds = stored.embeddings, float(stored.timestamp[-1] - stored.timestamp[0])
    try:
        model = CameraModel.from_json(read_document(layout.camera(camera), version=1, what="a camera model"))
        fitted = Embeddings(model.arrays["values"], model.arrays["scale"])
        if len(fitted) and fitted.values.shape[1] == sample.values.shape[1]:
            sample, seconds = fitted, float(model.values["seconds"])
    except (DocumentError, KeyError, TypeError, ValueError, zlib.error):
        log.debug("%s: no usable camera model", camera, exc_info=True)
    return fit_bell_tail(similarities(sample, query), seconds=seconds, floor=SPREAD_FLOOR)


def similarities(embeddings: Embeddings, query: FloatArray) -> FloatArray:
    """Return the cosine of each vector and the query, (S,) float32."""
    cosines = np.empty(len(embeddings), np.float32)
    for start in range(0, len(embeddings), CHUNK):
        part = slice(start, start + CHUNK)
        cosines[part] = embeddings.values[part].astype(np.float32) @ query
    return cosines * embeddings.scale


def rows_in(timestamp: TimeArray, start: StartTime | None, when: When) -> BoolArray | None:
    """Return which frames `when` includes, (S,) bool; None if it includes all frames.

    Args:
        timestamp: (S,) seconds from the video's start, ascending.
        start: when the video started; None if this is unknown. If it is unknown, `when.since` is ignored, and no frame is
            included if `when.between` is set.
        when: the choice by wall-clock time.
    """
    if not when or not len(timestamp) or (start is None and when.between is None):
        return None
    if start is None:
        return np.zeros(len(timestamp), np.bool_)
    chosen = np.ones(len(timestamp), np.bool_)
    if when.since is not None:
        chosen &= timestamp >= (when.since - start.moment.astimezone(UTC)).total_seconds()
    if when.between is not None:
        first, last = start.at(float(timestamp[0])), start.at(float(timestamp[-1]))
        if first.utcoffset() == last.utcoffset():
            after_s = when.between.after_begin_s(first) + timestamp - timestamp[0]
            chosen &= after_s % DAY_S < when.between.length_s
        else:  # the clock changes within the video
            chosen &= np.array([When(between=when.between).takes(start, at, at) for at in timestamp.tolist()])
    return chosen


def _moments(
    stored: StoredEmbeddings, cosines: FloatArray, usual: BellTail, *, top: int, allowed: BoolArray | None = None
) -> Iterator[Moment]:
    """Yield at most `top` moments of one video, the best first. Only `allowed` frames can be peaks."""
    timestamp, free = stored.timestamp, cosines.copy()
    if allowed is not None:
        free[~allowed] = -np.inf
    for _ in range(min(top, len(free))):
        peak = int(free.argmax())
        if free[peak] == -np.inf:
            return
        high = cosines >= cosines[peak] - EDGE * usual.spread
        low = np.flatnonzero(~high)
        place = int(np.searchsorted(low, peak))
        # The moment is the unbroken series of high cosines around the peak.
        first = int(low[place - 1]) + 1 if place > 0 else 0
        last = int(low[place]) - 1 if place < len(low) else len(high) - 1
        yield Moment(
            video=stored.metadata.video,
            camera=stored.metadata.camera,
            start_s=round(float(timestamp[first]), 3),
            end_s=round(float(timestamp[min(last + 1, len(timestamp) - 1)]), 3),
            peak_s=round(float(timestamp[peak]), 3),
            peak_frame=int(stored.frame_index[peak]),
            score=_score(usual, cosines[peak]),
            similarity=round(float(cosines[peak]), 6),
        )
        free[np.abs(timestamp - timestamp[peak]) <= NEIGHBOURS_S] = -np.inf
        free[first : last + 1] = -np.inf


def _score(usual: BellTail, cosine: np.float32) -> float:
    return round(float(sigmoid(logit_of(usual.log_rarity(np.array([cosine]))))[0]), 6)


def _in_threads(compare: Callable[[Path], T], paths: Iterable[Path], problems: list[str]) -> Iterator[T]:
    """Yield the result of `compare` for each path, in order. Threads read a few files ahead."""

    def attempt(path: Path) -> T | DocumentError:
        """Return the result of `compare`, or the DocumentError that it raised."""
        try:
            return compare(path)
        except DocumentError as error:
            return error

    with ThreadPoolExecutor(max(1, min(READ_AHEAD, core_count()))) as pool:
        waiting = iter(paths)
        ahead = deque(pool.submit(attempt, path) for path in islice(waiting, READ_AHEAD))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(attempt, path) for path in islice(waiting, 1))
            if isinstance(result, DocumentError):
                problems.append(result.message)
            else:
                yield result
