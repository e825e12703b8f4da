"""The vectors of a video's sampled frames as Parquet: one row per sampled frame.

With these vectors, vadcli can score other categories and search the archive without decoding the videos again. A vector of D
values takes D + 4 bytes: with 2 sampled frames per second and D = 768, one hour of video takes 5.6 MB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vadcli.errors import DocumentError
from vadcli.store import printable
from vadcli.types import Embeddings, IndexArray, TimeArray
from vadcli.types.codec import structure

EMBEDDINGS_SCHEMA_VERSION = 1
_KEY = b"vadcli.embeddings"
_RESCAN = "scan the video again with --force"


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
        metadata: the video and the encoder that the vectors belong to.
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
        # A vector is stored as bytes. A list would need four bytes per value in Parquet, and ten times as long to read.
        "embedding": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
        ),
    }
    text = printable(json.dumps(asdict(stored.metadata), ensure_ascii=False, sort_keys=True))
    table = pa.table(columns).replace_schema_metadata({_KEY: text.encode()})
    with path.open("wb") as file:
        # No compression: the bytes are almost random and would not get smaller, and a search has to read them all.
        pq.write_table(table, file, compression="none", use_dictionary=False)


def read_embeddings_metadata(path: Path) -> EmbeddingsMetadata | None:
    """Read only the metadata of an embeddings file; None if the file is missing, damaged or of another version."""
    try:
        with path.open("rb") as file:
            return _metadata(pq.ParquetFile(file).schema_arrow.metadata)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def read_embeddings(path: Path) -> StoredEmbeddings:
    """Read an embeddings file.

    Raises:
        DocumentError: the file is missing or damaged, or is not an embeddings file of this version.
    """
    try:
        # The file is read in one piece. To read it column by column and copy the vectors would take as long as the comparison
        # of the vectors with a query.
        table = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read(use_threads=False)
        metadata = _metadata(table.schema.metadata)
        column = table.column("embedding")
        packed = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        values = np.frombuffer(packed.buffers()[1], np.int8, len(table) * packed.type.byte_width)
        values = values.reshape(len(table), packed.type.byte_width)
        scale = table.column("scale").to_numpy()
        return StoredEmbeddings(
            metadata, table.column("frame_index").to_numpy(), table.column("timestamp").to_numpy(), Embeddings(values, scale)
        )
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}", hint=_RESCAN) from error
    except (pa.ArrowException, AttributeError, KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise DocumentError(f"{path}: not an embeddings file of this version: {text}", hint=_RESCAN) from error


def _metadata(keys: Mapping[bytes, bytes] | None) -> EmbeddingsMetadata:
    document: dict[str, Any] = json.loads((keys or {})[_KEY])
    if document.get("schema_version") != EMBEDDINGS_SCHEMA_VERSION:
        raise ValueError(f"schema version {document.get('schema_version')!r} instead of {EMBEDDINGS_SCHEMA_VERSION}")
    return structure(EmbeddingsMetadata, document)
