"""The scores of a finished video as Parquet: one row per frame. The metadata has the other values that later runs need."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vadcli.errors import DocumentError
from vadcli.store import printable
from vadcli.types import SCORES_SCHEMA_VERSION, MaskRows, ScoreTable

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
"""The name of a column with the scores of one category begins with this; the category's name follows."""
_RESCAN = "scan the video again with --force"


@dataclass(frozen=True)
class ScoresMetadata:
    """The metadata of a scores file.

    Attributes:
        version: the version of vadcli that wrote the file.
        fingerprint: hash of everything that changes scores.
        source: values that show whether the video file has changed: size, mtime_ns, content sample, root.
        video: `VideoInfo.to_json()`.
        categories: as the user gave them.
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
        """Return the Parquet metadata: key -> text."""
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
        """Read what `to_keys` wrote.

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
        if name == "pandas":
            raise ModuleNotFoundError(name)


def keep_pandas_out() -> None:
    """Keep pyarrow from importing pandas, which takes longer than the start of a scan. Nothing in vadcli uses pandas.

    pyarrow looks for pandas once, when it makes its first array. Call this only in a process that belongs to vadcli alone:
    afterwards, an array made from a pandas series may have NaN in place of null.
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
    columns = [
        video,
        pa.array(table.frame_index, pa.int64()),
        pa.array(table.pts, pa.int64()),
        pa.array(table.timestamp, pa.float64()),
        pa.array(table.score, pa.float32()),
        pa.array(table.logit, pa.float32()),
        pa.array(table.sampled, pa.bool_()),
        pa.array(table.decode_ok, pa.bool_()),
    ]
    arrow = pa.Table.from_arrays(columns, schema=SCHEMA.with_metadata(metadata.to_keys()))
    for number, name in enumerate(table.category_names):
        assert table.category_scores is not None
        arrow = arrow.append_column(
            pa.field(CATEGORY_COLUMN + printable(name), pa.float32(), nullable=False),
            pa.array(np.ascontiguousarray(table.category_scores[:, number]), pa.float32()),
        )
    # Rows that are not sampled repeat the score before them. So Parquet's dictionary encoding makes these columns small.
    repeated = ["video", *arrow.schema.names[len(SCHEMA) :]]
    with path.open("wb") as file:
        pq.write_table(arrow, file, compression="zstd", use_dictionary=repeated, column_encoding=_ENCODINGS)


def read_scores(path: Path) -> tuple[ScoreTable, ScoresMetadata]:
    """Read a scores file with all its rows.

    Raises:
        DocumentError: the file is missing or damaged, or is not a scores file of this version.
    """
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            metadata = ScoresMetadata.from_keys(_keys(parquet))
            names = parquet.schema_arrow.names
            own = [name for name in names if name.startswith(CATEGORY_COLUMN)]
            arrow = parquet.read(columns=[*SCHEMA.names, *own], use_threads=False)
        return _table(arrow), metadata
    except OSError as error:
        raise DocumentError(f"{path}: can't be read: {error.strerror or error}", hint=_RESCAN) from error
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DocumentError(f"{path}: not a scores file of this version: {_one_line(error)}", hint=_RESCAN) from error


def read_metadata(path: Path) -> ScoresMetadata | None:
    """Read only the metadata of a scores file; None if the file is missing, damaged or of another version."""
    try:
        with path.open("rb") as file:
            return ScoresMetadata.from_keys(_keys(pq.ParquetFile(file)))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def has_fingerprint(path: Path, fingerprint: str) -> bool:
    """True if a scores file is complete and its metadata have this fingerprint; False if it has another, or is not sure.

    Only the end of the file is searched for the fingerprint, which takes a tenth of the time of `read_metadata`.
    """
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(-min(_END_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
            end = file.read(_END_BYTES)
    except OSError:
        return False
    return end.endswith(_PARQUET_MARK) and fingerprint.encode() in end


def read_video(path: Path) -> str:
    """Read only the name of the video in a scores file; empty if the file has no rows.

    Raises:
        DocumentError: the file is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            names = parquet.read_row_group(0, columns=["video"]).column(0).unique() if parquet.num_row_groups else []
        return str(names[0]) if len(names) else ""
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DocumentError(f"{path}: not a scores file of this version: {_one_line(error)}", hint=_RESCAN) from error


def shown_s(table: ScoreTable, probe: Mapping[str, Any]) -> float:
    """Return the seconds from the first pts to the end of the last frame.

    If the video is truncated, the last frame is that of its last row.

    Args:
        table: the video's rows, at least one.
        probe: `VideoInfo.to_json()`.
    """
    last_s = float(table.timestamp[-1])
    return last_s + 1.0 / float(probe["fps"]) if is_partial(table, probe) else max(last_s, float(probe["duration_s"]))


def is_partial(table: ScoreTable, probe: Mapping[str, Any]) -> bool:
    """True if the table has fewer rows than the probe counted frames."""
    return len(table) < int(probe["frames"])


def _keys(parquet: pq.ParquetFile) -> dict[str, str]:
    raw = parquet.metadata.metadata or {}
    return {key.decode(): value.decode() for key, value in raw.items()}


def _table(arrow: pa.Table) -> ScoreTable:
    own = arrow.drop_columns(SCHEMA.names)
    arrow = arrow.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
    videos = arrow.column("video").unique().to_pylist()
    if len(videos) > 1:
        raise ValueError(f"rows of {len(videos)} videos in one file")
    columns = {name: arrow.column(name).to_numpy() for name in SCHEMA.names[1:]}
    if own.num_columns:
        columns["category_scores"] = np.stack([column.to_numpy() for column in own.columns], axis=1).astype(np.float32)
    categories = tuple(name.removeprefix(CATEGORY_COLUMN) for name in own.column_names)
    return ScoreTable(video=videos[0] if videos else "", category_names=categories, **columns)


def _one_line(error: Exception) -> str:
    text = f"no {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())
