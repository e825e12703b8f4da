"""`vadcli embed`: stores one vector per sampled frame, and can write arrays for published heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vadcli.detectors import digest
from vadcli.detectors.encoders import Encoder, encoder_area_px, encoder_fingerprint, encoder_key, load_encoder
from vadcli.engine.job import source_of
from vadcli.engine.plan import Plan, WorkUnit, make_plan, no_video_text
from vadcli.errors import NoVideoFound, VideoError
from vadcli.options import EmbedOptions
from vadcli.store import OutputLayout
from vadcli.store.atomic import Scratch, writing
from vadcli.store.events import stored_roots
from vadcli.store.scores import (
    EmbeddingsMetadata,
    StoredEmbeddings,
    read_embeddings,
    read_embeddings_metadata,
    read_metadata,
    write_embeddings,
)
from vadcli.types import ClipNeeds, Embeddings, IndexArray, PixelFormat, SizeRule, TimeArray
from vadcli.video.loader import ClipLoader, ClipReady, ClipRequest, Finished, loader_options

CLIP_FRAMES = 32


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


@dataclass
class _Collected:
    """The vectors of a video that is being read."""

    frame_index: list[IndexArray] = field(default_factory=list)
    timestamp: list[TimeArray] = field(default_factory=list)
    vectors: list[Embeddings] = field(default_factory=list)


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
    fingerprint = encoder_fingerprint(options.encoder, precision=options.precision)
    encoder = load_encoder(options.encoder, device=options.device, precision=options.precision)
    return _Embedding(options, layout, encoder, fingerprint).run(plan)


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
        reading: dict[str, _Collected] = {}
        with (
            ClipLoader(self._needs, loader_options(self.options, workers=self.options.workers)) as loader,
            Scratch(self.layout.scratch) as scratch,
        ):
            for item in loader.run(requests):
                if isinstance(item, ClipReady):
                    clip, found = item.clip, reading.setdefault(item.clip.video, _Collected())
                    if clip.valid.any():
                        found.frame_index.append(clip.frame_index[clip.valid])
                        found.timestamp.append(clip.timestamp[clip.valid])
                        found.vectors.append(Embeddings.of(self.encoder.encode_images(clip.frames[clip.valid])))
                elif isinstance(item, Finished):
                    problem = "" if item.error is None else str(item.error)
                    yield self._store(scratch, item.video, reading.pop(item.video, _Collected()), problem)

    def _known(self, unit: WorkUnit) -> EmbedResult | None:
        """Return the result of a video that needs no embedding or can't be read; None for any other video."""
        key = digest([self.fingerprint, self.options.sample_fps])
        try:
            content = str(source_of(unit)["content"])
        except VideoError as error:
            return EmbedResult(unit.video, problem=str(error))
        path, encoder = self.layout.embeddings(unit.video), encoder_key(self.fingerprint)
        metadata = EmbeddingsMetadata(unit.video, unit.camera, self.options.encoder, encoder, key, content)
        old = read_embeddings_metadata(path)
        if old is not None and not self.options.force and self._is_same(old, metadata):
            return EmbedResult(unit.video, self._export(unit.video), str(path), skipped=True)
        self._metadata[unit.video] = metadata
        return None

    def _is_same(self, old: EmbeddingsMetadata, metadata: EmbeddingsMetadata) -> bool:
        """True if the stored vectors are the ones that this command would compute."""
        if (old.encoder_key, old.content) != (metadata.encoder_key, metadata.content):
            return False
        scores = read_metadata(self.layout.scores(old.video))
        if old.key == metadata.key or scores is None:
            return old.key == metadata.key
        # A scan stores a key of its own. The vectors are the same if scan and command sample the same frames.
        steps = np.diff(read_embeddings(self.layout.embeddings(old.video)).frame_index)
        return bool(len(steps)) and int(steps.min()) == self._needs.interval_for(float(scores.video["fps"]))

    @property
    def _needs(self) -> ClipNeeds:
        size = SizeRule(encoder_area_px(self.options.encoder))
        return ClipNeeds(CLIP_FRAMES, 0, self.options.sample_fps, size, PixelFormat.RGB)

    def _store(self, scratch: Scratch, video: str, found: _Collected, problem: str) -> EmbedResult:
        if not found.vectors:
            return EmbedResult(video, problem=problem or "no frame could be decoded")
        vectors = Embeddings(
            np.concatenate([one.values for one in found.vectors]), np.concatenate([one.scale for one in found.vectors])
        )
        path = self.layout.embeddings(video)
        rows, seconds = np.concatenate(found.frame_index), np.concatenate(found.timestamp)
        with scratch.replace(path) as temporary:
            write_embeddings(temporary, StoredEmbeddings(self._metadata[video], rows, seconds, vectors))
        return EmbedResult(video, self._export(video), str(path), problem=problem)

    def _export(self, video: str) -> int:
        """Write the vectors of a video as .npy if the options ask for it. Return the number of vectors.

        VadCLIP and similar heads read (S, D) float32. RTFM and similar heads read (S, crops, D). They have one vector per part
        (crop) of the picture. Here the whole picture has one vector, so all crops get this vector.
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
