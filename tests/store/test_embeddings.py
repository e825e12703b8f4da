"""Embeddings as whole numbers, and the embeddings file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vadcli.errors import DocumentError
from vadcli.store.scores import (
    EmbeddingsMetadata,
    StoredEmbeddings,
    read_embeddings,
    read_embeddings_metadata,
    write_embeddings,
)
from vadcli.types import Embeddings

METADATA = EmbeddingsMetadata("cam/a.mp4", "cam", "siglip2-b32", "ee" * 32, "ab" * 32, "cd" * 32)


def unit(seed: int, count: int, width: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def stored(count: int = 5, width: int = 8) -> StoredEmbeddings:
    index = np.arange(count, dtype=np.int64) * 15
    return StoredEmbeddings(METADATA, index, index / 30.0, Embeddings.of(unit(1, count, width)))


@pytest.mark.parametrize("width", [4, 512, 768, 1152])
def test_a_vector_keeps_its_direction(width: int) -> None:
    vectors = unit(0, 50, width)
    back = Embeddings.of(vectors).vectors()
    cosines = (back * vectors).sum(axis=1) / np.linalg.norm(back, axis=1)
    assert cosines.min() > 0.9995


@example(np.full((3, 16), 3e-45, np.float32))
@given(hnp.arrays(np.float32, (3, 16), elements=st.floats(-1, 1, width=32)))
def test_packing_loses_nothing(vectors: np.ndarray) -> None:
    embeddings = Embeddings.of(vectors)
    again = Embeddings.unpack(embeddings.pack())
    np.testing.assert_array_equal(again.values, embeddings.values)
    np.testing.assert_array_equal(again.scale, embeddings.scale)
    assert np.abs(embeddings.vectors() - vectors).max() <= embeddings.scale.max() / 2 * 1.001


@pytest.mark.parametrize("width", [512, 768, 1152, 4096])
def test_products_are_exact_in_float32(width: int) -> None:
    worst = Embeddings.of(np.ones((2, width), np.float32))
    exact = worst.values.astype(np.int64) @ worst.values.T.astype(np.int64)
    assert exact.max() <= 2**24
    quick = worst.values.astype(np.float32) @ worst.values.T.astype(np.float32)
    np.testing.assert_array_equal(quick.astype(np.int64), exact)


def test_a_file_reads_back_and_other_tools_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_embeddings(path, stored())
    back = read_embeddings(path)
    assert back.metadata == read_embeddings_metadata(path) == METADATA
    np.testing.assert_array_equal(back.embeddings.values, stored().embeddings.values)
    np.testing.assert_array_equal(back.frame_index, stored().frame_index)
    plain = pq.read_table(path)
    assert plain.column_names == ["frame_index", "timestamp", "scale", "embedding"]
    numbers = [np.frombuffer(row, np.int8) for row in plain.column("embedding").to_pylist()]
    np.testing.assert_array_equal(np.stack(numbers), stored().embeddings.values)
    assert path.stat().st_size < 5 * (8 + 4 + 16) + 4000  # int8 in a Parquet list would take four bytes each
    # Files of other tools, and files of over a million sampled frames, have several row groups.
    pq.write_table(plain, path, row_group_size=2)
    np.testing.assert_array_equal(read_embeddings(path).embeddings.values, stored().embeddings.values)


def test_a_video_without_sampled_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    empty = stored()
    write_embeddings(path, StoredEmbeddings(METADATA, empty.frame_index[:0], empty.timestamp[:0], empty.embeddings[:0]))
    assert len(read_embeddings(path).embeddings) == 0


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    assert read_embeddings_metadata(path) is None
    with pytest.raises(DocumentError, match="can't be read"):
        read_embeddings(path)
    path.write_bytes(content)
    assert read_embeddings_metadata(path) is None
    with pytest.raises(DocumentError, match="not an embeddings file"):
        read_embeddings(path)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    newer = EmbeddingsMetadata(**{**METADATA.__dict__, "schema_version": 9})
    write_embeddings(path, StoredEmbeddings(newer, stored().frame_index, stored().timestamp, stored().embeddings))
    assert read_embeddings_metadata(path) is None
    with pytest.raises(DocumentError, match="schema version 9 instead of 1"):
        read_embeddings(path)
