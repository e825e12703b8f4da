"""Writes and reads the scores and the vectors of a video as Parquet.

The metadata of each file describe the video, the detector and the encoder, because later runs need these values.

A scores file has one row per frame. An embeddings file has one row per sampled frame, with a vector. From these vectors, vadcli
can score other categories and search the archive without decoding the videos again. A vector of D values takes D + 4 bytes.
With 2 sampled frames per second and D = 768, this is 5.6 MB per hour of video.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vadcli.errors import DocumentError
from vadcli.store import printable
from vadcli.types import SCORES_SCHEMA_VERSION, Embeddings, IndexArray, MaskRows, ScoreTable, TimeArray
from vadcli.types.text import error_text, structure, unreadable

SCHEMA = pa.schema(
    [
        pa.field("video", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("frame_index", pa.int64(), nullable=False),
        pa.field("pts", pa.int64(), nullable=False),
        pa.field("timestamp", pa.float64(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("logit", pa.float32(), nullable=False),
        pa.field("sampled", pa.bool_(), nullable=False),
        pa.field("decode_ok", pa.bool_(), nullable=False),
    ]
)
_ENCODINGS = {
    "frame_index": "DELTA_BINARY_PACKED",
    "pts": "DELTA_BINARY_PACKED",
    "timestamp": "PLAIN",
    "score": "PLAIN",
    "logit": "PLAIN",
}
CATEGORY_COLUMN = "score:"
"""The beginning of the name of a column with the scores of one category; the category's name follows."""
_RESCAN = "scan the video again with --force"


@contextmanager
def parquet_errors(path: Path, what: str, hint: str) -> Iterator[None]:
    """Turn an error about a damaged Parquet file, raised in the `with` block, into a DocumentError.

    Args:
        path: the file.
        what: the kind of file, as messages name it, such as "a scores file".
        hint: how to get a file that can be read.
    """
    try:
        yield
    except OSError as error:
        raise DocumentError(unreadable(path, error), hint=hint) from error
    except (pa.ArrowException, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DocumentError(f"{path}: not {what}: {error_text(error)}", hint=hint) from error


@dataclass(frozen=True)
class ScoresMetadata:
    """The metadata of a scores file.

    Attributes:
        version: the version of vadcli that wrote the file.
        fingerprint: hash of everything that changes scores.
        source: values that show whether the video file has changed: size, mtime_ns, content sample, root.
        video: `VideoInfo.to_json()`.
        categories: the categories, as the user gave them.
        time_base: seconds per unit of pts, as a fraction such as "1/90000".
        detector: the detector's name in the registry.
        camera: the camera's name.
        calibration: `Calibration.to_json()` if scores are calibrated to events per hour, else None.
        extra: other values that the scan engine needs later.
        masks: which rows have a mask, if masks are stored.
    """

    version: str
    fingerprint: str
    source: Mapping[str, Any]
    video: Mapping[str, Any]
    categories: tuple[str, ...]
    time_base: str
    detector: str
    camera: str
    calibration: Mapping[str, float] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    masks: MaskRows = MaskRows.SAMPLED

    def to_keys(self) -> dict[str, str]:
        """Return the metadata as key-value pairs for a Parquet file."""
        return {
            "vadcli.schema_version": str(SCORES_SCHEMA_VERSION),
            "vadcli.version": self.version,
            "vadcli.fingerprint": self.fingerprint,
            "vadcli.source": _json(dict(self.source)),
            "vadcli.video": _json(dict(self.video)),
            "vadcli.categories": _json(list(self.categories)),
            "vadcli.detector": self.detector,
            "vadcli.camera": self.camera,
            "vadcli.calibration": _json(None if self.calibration is None else dict(self.calibration)),
            "vadcli.extra": _json(dict(self.extra)),
            "vadcli.masks": str(self.masks),
            "time_base": self.time_base,
        }

    @classmethod
    def from_keys(cls, keys: Mapping[str, str]) -> ScoresMetadata:
        """Return the metadata from the key-value pairs that `to_keys` has returned.

        Raises:
            KeyError, TypeError, ValueError: this is not the metadata of a scores file of this version.
        """
        if int(keys["vadcli.schema_version"]) != SCORES_SCHEMA_VERSION:
            raise ValueError(f"schema version {keys['vadcli.schema_version']} instead of {SCORES_SCHEMA_VERSION}")
        return cls(
            version=keys["vadcli.version"],
            fingerprint=keys["vadcli.fingerprint"],
            source=json.loads(keys["vadcli.source"]),
            video=json.loads(keys["vadcli.video"]),
            categories=tuple(json.loads(keys["vadcli.categories"])),
            time_base=keys["time_base"],
            detector=keys["vadcli.detector"],
            camera=keys["vadcli.camera"],
            calibration=json.loads(keys["vadcli.calibration"]),
            extra=json.loads(keys["vadcli.extra"]),
            masks=MaskRows(keys.get("vadcli.masks", MaskRows.SAMPLED)),
        )


_END_BYTES = 1 << 16
_PARQUET_MARK = b"PAR1"


class _NoPandas:
    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Raise ModuleNotFoundError for pandas; let other finders find all other modules."""
        if name == "pandas":
            raise ModuleNotFoundError(name)


def keep_pandas_out() -> None:
    """Keep pyarrow from importing pandas, because this slow import would delay the start of every scan.

    Nothing in vadcli uses pandas.

    pyarrow looks for pandas once, when it makes its first array. Call this function only in a process that runs only vadcli:
    it changes how pyarrow converts a pandas series (NaN in place of null).
    """
    sys.meta_path.insert(0, _NoPandas)
    try:
        pa.array([""])
    finally:
        sys.meta_path.remove(_NoPandas)


def _json(value: object) -> str:
    return printable(json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False))


def write_scores(path: Path, table: ScoreTable, metadata: ScoresMetadata) -> None:
    """Write a scores file to `path`, a temporary file that the caller renames.

    Raises:
        OSError: the file can't be written.
    """
    video = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(table), np.int32)), pa.array([table.video]))
    columns = [pa.array(getattr(table, column.name), column.type) for column in list(SCHEMA)[1:]]
    arrow = pa.Table.from_arrays([video, *columns], schema=SCHEMA.with_metadata(metadata.to_keys()))
    for number, name in enumerate(table.category_names):
        assert table.category_scores is not None
        arrow = arrow.append_column(
            pa.field(CATEGORY_COLUMN + printable(name), pa.float32(), nullable=False),
            pa.array(np.ascontiguousarray(table.category_scores[:, number]), pa.float32()),
        )
    # Rows that are not sampled repeat the score before them. So Parquet's dictionary encoding makes the columns small.
    repeated = ["video", *arrow.schema.names[len(SCHEMA) :]]
    with path.open("wb") as file:
        pq.write_table(arrow, file, compression="zstd", use_dictionary=repeated, column_encoding=_ENCODINGS)


def read_scores(path: Path) -> tuple[ScoreTable, ScoresMetadata]:
    """Return all rows and the metadata of a scores file.

    Raises:
        DocumentError: the file is missing or damaged, or is not a scores file of this version.
    """
    with parquet_errors(path, "a scores file of this version", _RESCAN), path.open("rb") as file:
        parquet = pq.ParquetFile(file)
        metadata = ScoresMetadata.from_keys(_keys(parquet))
        own = [name for name in parquet.schema_arrow.names if name.startswith(CATEGORY_COLUMN)]
        arrow = parquet.read(columns=[*SCHEMA.names, *own], use_threads=False)
        categories = arrow.drop_columns(SCHEMA.names)
        arrow = arrow.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
        videos = arrow.column("video").unique().to_pylist()
        if len(videos) > 1:
            raise ValueError(f"the file has rows of {len(videos)} videos; only one is allowed")
        columns = {name: arrow.column(name).to_numpy() for name in SCHEMA.names[1:]}
        if own:
            scores = np.stack([column.to_numpy() for column in categories.columns], axis=1)
            columns["category_scores"] = scores.astype(np.float32)
        names = tuple(name.removeprefix(CATEGORY_COLUMN) for name in own)
        return ScoreTable(video=videos[0] if videos else "", category_names=names, **columns), metadata


def read_metadata(path: Path) -> ScoresMetadata | None:
    """Return only the metadata of a scores file; None if it is missing, damaged or of another version."""
    try:
        with path.open("rb") as file:
            return ScoresMetadata.from_keys(_keys(pq.ParquetFile(file)))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def has_fingerprint(path: Path, fingerprint: str) -> bool:
    """True if a scores file is complete and its last 64 kB contain this fingerprint (a hash).

    This takes a tenth of the time of `read_metadata`. If the result is False, the fingerprint may still be
    in the file, before its last 64 kB.
    """
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(-min(_END_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
            end = file.read(_END_BYTES)
    except OSError:
        return False
    return end.endswith(_PARQUET_MARK) and fingerprint.encode() in end


def read_video(path: Path) -> str:
    """Return only the name of the video in a scores file; "" if the file has no rows.

    Raises:
        DocumentError: the file is missing or damaged.
    """
    with parquet_errors(path, "a scores file of this version", _RESCAN), path.open("rb") as file:
        parquet = pq.ParquetFile(file)
        names = parquet.read_row_group(0, columns=["video"]).column(0).unique() if parquet.num_row_groups else []
        return str(names[0]) if len(names) else ""


def shown_s(table: ScoreTable, probe: Mapping[str, Any]) -> float:
    """Return the seconds from the first pts to the end of the last frame.

    If the table has fewer rows than the video has frames, the frame of the last row counts as the last frame.

    Args:
        table: the video's rows, at least one.
        probe: `VideoInfo.to_json()`.
    """
    last_s = float(table.timestamp[-1])
    return last_s + 1.0 / float(probe["fps"]) if is_partial(table, probe) else max(last_s, float(probe["duration_s"]))


def is_partial(table: ScoreTable, probe: Mapping[str, Any]) -> bool:
    """True if the table has fewer rows than the number of frames that the probe has counted."""
    return len(table) < int(probe["frames"])


def _keys(parquet: pq.ParquetFile) -> dict[str, str]:
    raw = parquet.metadata.metadata or {}
    return {key.decode(): value.decode() for key, value in raw.items()}


EMBEDDINGS_SCHEMA_VERSION = 1
_EMBEDDINGS_KEY = b"vadcli.embeddings"


@dataclass(frozen=True)
class EmbeddingsMetadata:
    """The metadata of an embeddings file.

    Attributes:
        video: relative path.
        camera: the camera's name.
        encoder: the encoder's name, as messages show it.
        encoder_key: hash of the encoder and its weights; only vectors with the same key can be compared with each other.
        key: hash of everything that changes the vectors of a video: encoder, weights, sampling.
        content: hash of the video's content, as in the scores file.
        schema_version: the version of the file format.
    """

    video: str
    camera: str
    encoder: str
    encoder_key: str
    key: str
    content: str
    schema_version: int = EMBEDDINGS_SCHEMA_VERSION


@dataclass(frozen=True)
class StoredEmbeddings:
    """The vectors of one video.

    Attributes:
        metadata: the video and the encoder of the vectors.
        frame_index: (S,) int64, the sampled frames.
        timestamp: (S,) float64 seconds from the video's first pts.
        embeddings: S vectors.
    """

    metadata: EmbeddingsMetadata
    frame_index: IndexArray
    timestamp: TimeArray
    embeddings: Embeddings = field(repr=False)


def write_embeddings(path: Path, stored: StoredEmbeddings) -> None:
    """Write an embeddings file to `path`, a temporary file that the caller renames.

    Raises:
        OSError: the file can't be written.
    """
    values = stored.embeddings.values
    width = values.shape[1]
    columns = {
        "frame_index": pa.array(stored.frame_index, pa.int64()),
        "timestamp": pa.array(stored.timestamp, pa.float64()),
        "scale": pa.array(stored.embeddings.scale, pa.float32()),
        # A vector is stored as bytes. A list would need four bytes per value, and reading it would take ten times as long.
        "embedding": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
        ),
    }
    text = printable(json.dumps(asdict(stored.metadata), ensure_ascii=False, sort_keys=True))
    table = pa.table(columns).replace_schema_metadata({_EMBEDDINGS_KEY: text.encode()})
    with path.open("wb") as file:
        # No compression: the bytes are almost random and would not get smaller, and a search has to read them all.
        pq.write_table(table, file, compression="none", use_dictionary=False)


def read_embeddings_metadata(path: Path) -> EmbeddingsMetadata | None:
    """Return only the metadata of an embeddings file; None if it can't be read or has another version."""
    try:
        with path.open("rb") as file:
            return _embeddings_metadata(pq.ParquetFile(file).schema_arrow.metadata)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def read_embeddings(path: Path) -> StoredEmbeddings:
    """Return the vectors and the metadata in an embeddings file.

    Raises:
        DocumentError: the file is missing or damaged, or is not an embeddings file of this version.
    """
    with parquet_errors(path, "an embeddings file of this version", _RESCAN):
        # The file is read in one piece. Reading it column by column and copying the vectors would take as long as comparing the
        # vectors with a query.
        table = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read(use_threads=False)
        metadata = _embeddings_metadata(table.schema.metadata)
        column = table.column("embedding")
        packed = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        values = np.frombuffer(packed.buffers()[1], np.int8, len(table) * packed.type.byte_width)
        values = values.reshape(len(table), packed.type.byte_width)
        scale = table.column("scale").to_numpy()
        return StoredEmbeddings(
            metadata, table.column("frame_index").to_numpy(), table.column("timestamp").to_numpy(), Embeddings(values, scale)
        )


def _embeddings_metadata(keys: Mapping[bytes, bytes] | None) -> EmbeddingsMetadata:
    document: dict[str, Any] = json.loads((keys or {})[_EMBEDDINGS_KEY])
    if document.get("schema_version") != EMBEDDINGS_SCHEMA_VERSION:
        raise ValueError(f"schema version {document.get('schema_version')!r} instead of {EMBEDDINGS_SCHEMA_VERSION}")
    return structure(EmbeddingsMetadata, document)
