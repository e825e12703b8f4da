"""Scores files: they are read as they were written, other tools can read them, and errors name the damage."""

import importlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from vadcli.errors import DocumentError
from vadcli.store import OutputLayout
from vadcli.store.atomic import Claim
from vadcli.store.checkpoint import CheckpointBlock
from vadcli.store.scores import SCHEMA, ScoresMetadata, read_metadata, read_scores, write_scores
from vadcli.types import ScoreTable

METADATA = ScoresMetadata(
    version="0.1.0",
    fingerprint="ab" * 32,
    source={"size": 1234, "mtime_ns": 1_700_000_000_123_456_789, "sample": "cd", "root": "/archive"},
    video={"codec": "h264", "width": 640, "fps": 29.97002997002997},
    categories=("fight", "feu à bord", 'a "quote"'),
    time_base="1/90000",
    detector="motion",
    camera="cam1",
    calibration={"r0_per_hour": 1.0, "temperature": 1.5},
    extra={"interval": 3},
)
COLUMNS = ("frame_index", "pts", "timestamp", "score", "logit", "sampled", "decode_ok")


def table_of(n, video="cam1/a.mp4", seed=0):
    rng = np.random.default_rng(seed)
    pts = np.cumsum(rng.integers(1, 9000, n))
    logit = rng.normal(0, 4, n).astype(np.float32)
    score = (1 / (1 + np.exp(-logit.astype(np.float64)))).astype(np.float32)
    timestamp = (pts - pts[0]) / 90000 if n else np.zeros(0)
    return ScoreTable(video, np.arange(n), pts, timestamp, score, logit, rng.random(n) < 0.3, rng.random(n) < 0.9)


def assert_same(one, other):
    assert one.video == other.video
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert getattr(one, name).dtype == getattr(other, name).dtype, name


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_a_table_reads_back_bit_by_bit(tmp_path, n):
    path = tmp_path / "a.parquet"
    table = table_of(n)
    write_scores(path, table, METADATA)
    stored, metadata = read_scores(path)
    assert_same(stored, table)
    assert metadata == METADATA == read_metadata(path)


@pytest.mark.parametrize("n", [1, 1000])
def test_each_category_has_a_column(tmp_path, n):
    path = tmp_path / "a.parquet"
    own = np.random.default_rng(1).random((n, 2)).astype(np.float32)
    table = replace(table_of(n), category_names=("fight", 'a person: "falls"'), category_scores=own)
    write_scores(path, table, METADATA)
    stored, _ = read_scores(path)
    assert_same(stored, table)
    assert stored.category_names == table.category_names
    np.testing.assert_array_equal(stored.category_scores, own)
    assert pq.read_schema(path).names[8:] == ["score:fight", 'score:a person: "falls"']
    with pytest.raises(ValueError, match="category_scores has 2 columns, but there are 1 categories"):
        replace(table, category_names=("fight",))


def test_a_video_without_rows_is_a_file_too(tmp_path):
    write_scores(tmp_path / "a.parquet", table_of(0), METADATA)
    stored, metadata = read_scores(tmp_path / "a.parquet")
    assert len(stored) == 0
    assert metadata == METADATA


def test_the_same_table_makes_the_same_bytes(tmp_path):
    for name in "ab":
        write_scores(tmp_path / name, table_of(500), METADATA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_columns_and_keys_are_the_contract_s(tmp_path):
    path = tmp_path / "a.parquet"
    write_scores(path, table_of(10), replace(METADATA, calibration=None))
    stored = pq.read_schema(path)
    assert {field.name: str(field.type) for field in stored} == {
        "video": "dictionary<values=string, indices=int32, ordered=0>",
        "frame_index": "int64",
        "pts": "int64",
        "timestamp": "double",
        "score": "float",
        "logit": "float",
        "sampled": "bool",
        "decode_ok": "bool",
    }
    keys = {key.decode(): value.decode() for key, value in stored.metadata.items()}
    assert keys["vadcli.schema_version"] == "1"
    assert keys["time_base"] == "1/90000"
    assert keys["vadcli.categories"] == '["fight", "feu à bord", "a \\"quote\\""]'
    assert keys["vadcli.calibration"] == "null"
    column = pq.ParquetFile(path).metadata.row_group(0).column(4)
    assert (column.path_in_schema, column.compression) == ("score", "ZSTD")


def write_two(folder):
    for video, n in (("cam=1/a.mp4", 100), ("b.mp4", 50)):
        path = folder / f"{video}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_scores(path, table_of(n, video), METADATA)


def test_all_files_are_one_data_set_while_a_scan_runs_too(tmp_path):
    write_two(tmp_path)
    claim = Claim.acquire(tmp_path / OutputLayout(Path()).checkpoint("c.mp4").name)
    os.write(claim.fd, b"running")
    data = ds.dataset(tmp_path, format="parquet").to_table()
    assert data.num_rows == 150
    assert sorted(data.column("video").unique().to_pylist()) == ["b.mp4", "cam=1/a.mp4"]
    assert data.schema.names == SCHEMA.names
    claim.release(delete=False)


def test_pandas_reads_them(tmp_path):
    pandas = pytest.importorskip("pandas")
    write_two(tmp_path)
    frame = pandas.read_parquet(tmp_path)
    assert frame.groupby("video", observed=True).size().to_dict() == {"b.mp4": 50, "cam=1/a.mp4": 100}
    assert frame.score.dtype == np.float32


@pytest.mark.parametrize(
    ("module", "query"),
    [
        (
            "duckdb",
            lambda duckdb, glob: duckdb.sql(f"SELECT video, count(*), max(pts) FROM '{glob}' GROUP BY video").fetchall(),
        ),
        ("polars", lambda pl, glob: pl.read_parquet(glob).group_by("video").agg(pl.len(), pl.max("pts")).rows()),
    ],
)
def test_query_engines_read_them(tmp_path, module, query):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    write_two(tmp_path)
    rows = query(importlib.import_module(module), f"{tmp_path}/**/*.parquet")
    tables = [table_of(100, "cam=1/a.mp4"), table_of(50, "b.mp4")]
    assert sorted(rows) == sorted((table.video, len(table), int(table.pts.max())) for table in tables)


def test_a_file_cut_or_missing_is_named_and_counts_as_not_there(tmp_path):
    path = tmp_path / "a.parquet"
    write_scores(path, table_of(100), METADATA)
    data = path.read_bytes()
    for size in (0, 3, 100, len(data) - 1):
        path.write_bytes(data[:size])
        assert read_metadata(path) is None
        with pytest.raises(DocumentError, match=r"a\.parquet: not a scores file"):
            read_scores(path)
    path.unlink()
    assert read_metadata(path) is None
    with pytest.raises(DocumentError, match=r"a\.parquet: can't be read: No such file"):
        read_scores(path)


def rewritten(path, change):
    table = pq.read_table(path)
    pq.write_table(change(table), path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda table: table.drop_columns(["logit"]), "logit"),
        (lambda table: table.slice(1), "frame_index must run from 0"),
        (lambda table: table.replace_schema_metadata({}), "no 'vadcli.schema_version'"),
        (
            lambda table: table.replace_schema_metadata({**table.schema.metadata, b"vadcli.schema_version": b"2"}),
            "schema version 2 instead of 1",
        ),
        (lambda table: table.replace_schema_metadata({**table.schema.metadata, b"vadcli.video": b"{"}), "not a scores file"),
        (lambda table: table.set_column(4, "score", pa.array([2.0] * len(table), pa.float32())), "scores must lie in"),
        (lambda table: table.set_column(4, "score", pa.array([None] * len(table), pa.float32())), "not a scores file"),
        (lambda table: table.set_column(0, "video", pa.array(["a", *["b"] * 9])), "rows of 2 videos"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, change, what):
    path = tmp_path / "a.parquet"
    write_scores(path, table_of(10), METADATA)
    rewritten(path, change)
    with pytest.raises(DocumentError) as caught:
        read_scores(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert what in caught.value.message
    assert "\n" not in caught.value.message


def test_a_column_more_does_no_harm(tmp_path):
    path = tmp_path / "a.parquet"
    write_scores(path, table_of(10), METADATA)
    rewritten(path, lambda table: table.append_column("note", pa.array(["x"] * 10)))
    assert_same(read_scores(path)[0], table_of(10))


def test_paths_that_are_not_utf8_are_written_and_kept(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    metadata = replace(METADATA, source={"root": str(folder)})
    write_scores(folder / "a.parquet", table_of(3), metadata)
    assert read_scores(folder / "a.parquet")[1].source == {"root": f"{tmp_path}/caf%E9"}


def test_a_row_table_slices_every_column_and_keeps_what_is_not_a_column():
    block = CheckpointBlock(
        frame_index=np.arange(4),
        pts=np.arange(4) * 10,
        decode_ok=np.ones(4, np.bool_),
        sampled=np.array([True, False, True, False]),
        raw=np.zeros((4, 2), np.float32),
        bbox=np.zeros((4, 4), np.int32),
    )
    some = block[block.frame_index > 1]
    assert (len(block), len(some), some.mask) == (4, 2, None)
    assert (some.pts.tolist(), some.sampled.tolist(), some.raw.shape) == ([20, 30], [True, False], (2, 2))
    assert block[:1].frame_index.tolist() == [0]
