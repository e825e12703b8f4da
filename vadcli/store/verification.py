"""Stores the answers of a second model about clips of a video, and the record of `vadcli verify`.

The answers are Parquet files with one row per clip and category. The record, `verify.json`, has the results of the newest run:
the number of confirmed and rejected events, and the audit.
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
from vadcli.store import OutputLayout, json_text, printable
from vadcli.store.atomic import Scratch
from vadcli.store.scores import parquet_errors
from vadcli.types import BoolArray, FloatArray, IndexArray, RowTable, TimeArray
from vadcli.types.text import clock, document_errors, how_many, read_document, structure

VERIFICATION_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Audit:
    """An estimate of how much the scan misses.

    The scan proposes the clips with the highest scores, and the model is asked about them. For the audit, the model is also
    asked about some of the other clips, which are drawn at random.

    Attributes:
        clips: number of audited clips.
        confirmed: number of audited clips that the model confirmed.
        low, high: 95 % confidence interval of a share, in [0, 1]: of all clips that were not proposed, the share that the model
            would confirm.
        left_out_s: seconds of footage that were not proposed.
        found_s: seconds of footage that were proposed and confirmed.
    """

    clips: int
    confirmed: int
    low: float
    high: float
    left_out_s: float
    found_s: float

    @property
    def text(self) -> str:
        """The estimate in words, for messages."""
        low, high = (f"{float(f'{100 * share:.2g}'):g} %" for share in (self.low, self.high))  # 100 and not 1e+02
        share = f"between {low} and {high}" if self.confirmed else f"at most {high}"
        missed = clock(self.high * self.left_out_s)
        return (
            f"the model confirmed {self.confirmed} of {how_many(self.clips, 'random clip')} that the scan did not propose. "
            f"So it would confirm {share} of the footage that was not proposed: at most {missed} of {clock(self.left_out_s)} "
            f"(95 % confidence). Proposed and confirmed: {clock(self.found_s)}"
        )


@dataclass(frozen=True)
class VerificationRun:
    """One run of `vadcli verify`.

    Attributes:
        version: the version of vadcli.
        command: the command line.
        config: the effective options, as JSON values.
        model: the model that was asked, as the user named it.
        start, end: when the run began and ended, in ISO 8601; `end` is None if the run has not ended or was killed.
        exit_code: the exit code; None if `end` is None.
        stopped: why the run ended early; "" if it did not end early.
        asked: number of clips about which this run asked the model.
        left: number of clips about which the model must still be asked.
        seconds: how long the model took for these `asked` clips.
        confirmed, rejected, not_asked: numbers of events.
        audit: an estimate of how much the scan misses; None if no clip was audited.
        problems: one line per video that could not be verified completely.
    """

    version: str
    command: tuple[str, ...]
    config: Mapping[str, Any]
    model: str
    start: str
    end: str | None = None
    exit_code: int | None = None
    stopped: str = ""
    asked: int = 0
    left: int = 0
    seconds: float = 0.0
    confirmed: int = 0
    rejected: int = 0
    not_asked: int = 0
    audit: Audit | None = None
    problems: tuple[str, ...] = field(default_factory=tuple)

    @property
    def text(self) -> str:
        """One sentence: how many events were confirmed and rejected, or that the run has not ended."""
        if self.end is None:
            return "not ended: it is still running, or was killed"
        return f"{how_many(self.confirmed, 'event')} confirmed, {self.rejected} rejected, {self.not_asked} not asked"


def write_verification(layout: OutputLayout, scratch: Scratch, run: VerificationRun) -> None:
    """Write the record of a run of `vadcli verify`.

    Raises:
        OutputError: the record can't be written.
    """
    document = {"format_version": VERIFICATION_FORMAT_VERSION, **asdict(run)}
    scratch.write_text(layout.verification, json_text(document))


def read_verification(layout: OutputLayout) -> VerificationRun | None:
    """Return the record of the newest run of `vadcli verify`; None if no record is stored.

    Raises:
        DocumentError: the file is damaged, or has another version.
    """
    path = layout.verification
    if not path.exists():
        return None
    document = read_document(path, version=VERIFICATION_FORMAT_VERSION, what="a record of vadcli verify")
    with document_errors(path, "a record of vadcli verify"):
        return structure(VerificationRun, document, extra=True)


ANSWERS_SCHEMA_VERSION = 1
SCHEMA = pa.schema(
    [
        pa.field("clip", pa.int64(), nullable=False),
        pa.field("start", pa.float64(), nullable=False),
        pa.field("end", pa.float64(), nullable=False),
        pa.field("category", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("log_odds", pa.float32(), nullable=False),
        pa.field("audit", pa.bool_(), nullable=False),
    ]
)
_KEY = b"vadcli.verify"
_AGAIN = "remove the file, and run `vadcli verify` again"


@dataclass(frozen=True)
class AnswersMetadata:
    """The metadata of a file of answers.

    Attributes:
        video: relative path.
        camera: the camera's name.
        model: the model that answered, as the user named it.
        key: hash of the model and of how frames are read. Answers with different keys can't be mixed.
        content: hash of the video's content, as in the scores file.
        frames, overlap, interval: how the video is divided into clips, as in `video.sampling.SamplingPlan`.
        questions: the hash of the question that was asked about each category; the keys are the categories.
        categories: the categories of the newest run. The answers about these categories decide about the events.
        usual: how the model usually answers about `categories` at this camera, as the JSON values of a `CategoryTails`. Empty
            during the first run.
        descriptions: the model's sentence about each described clip; the keys are the numbers of the clips.
        seconds_per_clip: how long the model took for one clip in the newest run; 0 if this is not known.
        schema_version: the version of the file format.
    """

    video: str
    camera: str
    model: str
    key: str
    content: str
    frames: int
    overlap: int
    interval: int
    questions: Mapping[str, str] = field(default_factory=dict)
    categories: tuple[str, ...] = ()
    usual: Mapping[str, Any] = field(default_factory=dict)
    descriptions: Mapping[str, str] = field(default_factory=dict)
    seconds_per_clip: float = 0.0
    schema_version: int = ANSWERS_SCHEMA_VERSION


@dataclass(frozen=True)
class Answers(RowTable):
    """The answers about the clips of a video, one row per clip.

    Attributes:
        clip: (A,) int64, ascending numbers of the clips.
        start, end: (A,) float64, the span that the clip shows, in seconds from the video's first pts.
        audit: (A,) bool, True if the clip was drawn at random, False if the scan's scores proposed it.
        log_odds: (A, C) float32, logit(yes) - logit(no) for each of C categories; NaN if the model was not asked.
    """

    clip: IndexArray
    start: TimeArray
    end: TimeArray
    audit: BoolArray
    log_odds: FloatArray

    @classmethod
    def none(cls, categories: int) -> Answers:
        """Return a table without rows."""
        times = np.zeros(0)
        return cls(np.zeros(0, np.int64), times, times, np.zeros(0, np.bool_), np.zeros((0, categories), np.float32))

    def joined(self, new: Answers) -> Answers:
        """Return these answers together with `new`, sorted by clip.

        An answer of `new` replaces an older answer.
        """
        rows = {int(clip): row for row, clip in enumerate(self.clip)}
        log_odds, audit = self.log_odds.copy(), self.audit.copy()
        fresh = np.array([int(clip) not in rows for clip in new.clip], np.bool_)
        for row in np.flatnonzero(~fresh):
            place = rows[int(new.clip[row])]
            log_odds[place] = np.where(np.isnan(new.log_odds[row]), log_odds[place], new.log_odds[row])
            audit[place] = new.audit[row]
        parts = [(log_odds, new.log_odds[fresh]), (audit, new.audit[fresh])]
        odds, flags = (np.concatenate(part) for part in parts)
        columns = [np.concatenate([getattr(self, name), getattr(new, name)[fresh]]) for name in ("clip", "start", "end")]
        order = np.argsort(columns[0], kind="stable")
        clip, start, end = (column[order] for column in columns)
        return Answers(clip, start, end, flags[order], odds[order])


@dataclass(frozen=True)
class StoredAnswers:
    """The answers about one video.

    Attributes:
        metadata: the video, the model and the questions.
        answers: the answers; their C categories are in the order of `metadata.questions`.
    """

    metadata: AnswersMetadata
    answers: Answers = field(repr=False)

    def of(self, categories: tuple[str, ...]) -> FloatArray:
        """Return the log-odds (A, C) float32 of some categories; NaN if the model was not asked."""
        names = list(self.metadata.questions)
        missing = np.full(len(self.answers), np.nan, np.float32)
        columns = [self.answers.log_odds[:, names.index(name)] if name in names else missing for name in categories]
        return np.stack(columns, axis=1) if columns else np.zeros((len(self.answers), 0), np.float32)


def write_answers(path: Path, stored: StoredAnswers) -> None:
    """Write a file of answers to `path`, a temporary file that the caller renames.

    Raises:
        OSError: the file can't be written.
    """
    answers, names = stored.answers, list(stored.metadata.questions)
    rows, columns = np.nonzero(~np.isnan(answers.log_odds))
    category = pa.DictionaryArray.from_arrays(pa.array(columns, pa.int32()), pa.array(names, pa.string()))
    values = [pa.array(column[rows]) for column in (answers.clip, answers.start, answers.end)]
    values += [category, pa.array(answers.log_odds[rows, columns], pa.float32()), pa.array(answers.audit[rows])]
    text = printable(json.dumps(asdict(stored.metadata), ensure_ascii=False, allow_nan=False))
    with path.open("wb") as file:
        pq.write_table(pa.Table.from_arrays(values, schema=SCHEMA.with_metadata({_KEY: text.encode()})), file)


def read_answers(path: Path) -> StoredAnswers:
    """Return the content of a file of answers.

    Raises:
        DocumentError: the file is missing or damaged, or is not a file of answers of this version.
    """
    with parquet_errors(path, "a file of answers of this version", _AGAIN):
        table = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read(use_threads=False)
        document: dict[str, Any] = json.loads((table.schema.metadata or {})[_KEY])
        if document.get("schema_version") != ANSWERS_SCHEMA_VERSION:
            raise ValueError(f"schema version {document.get('schema_version')!r} instead of {ANSWERS_SCHEMA_VERSION}")
        metadata = structure(AnswersMetadata, document, extra=True)
        table = table.select(SCHEMA.names).cast(SCHEMA)
        clips, first, rows = np.unique(table.column("clip").to_numpy(), return_index=True, return_inverse=True)
        start, end, audit = (table.column(name).to_numpy()[first] for name in ("start", "end", "audit"))
        names = list(metadata.questions)
        log_odds = np.full((len(clips), len(names)), np.nan, np.float32)
        places = [names.index(name) for name in table.column("category").to_pylist()]
        log_odds[rows, places] = table.column("log_odds").to_numpy()
        return StoredAnswers(metadata, Answers(clips, start, end, audit, log_odds))


def answers_or_none(path: Path) -> StoredAnswers | None:
    """Return the content of a file of answers; None if the file does not exist.

    Raises:
        DocumentError: the file is damaged or has another version.
    """
    return read_answers(path) if path.exists() else None


def validate_answers(path: Path) -> list[str]:
    """Return one line "path: what" per error in a file of answers; an empty list if it is valid."""
    try:
        stored = read_answers(path)
    except DocumentError as error:
        return [error.message]
    answers, metadata = stored.answers, stored.metadata
    stride = metadata.frames - metadata.overlap
    checks = [
        (metadata.interval >= 1 and stride >= 1, f"clips of {metadata.frames} frames can't overlap by {metadata.overlap}"),
        (bool(np.all(answers.clip >= 0)), "a clip has a negative number"),
        (bool(np.all(answers.start <= answers.end)), "a clip ends before it starts"),
        (bool(np.all(np.diff(answers.start) >= 0)), "the clips are not in order of time"),
        (not np.isinf(answers.log_odds).any(), "log-odds are not finite"),
        (set(metadata.categories) <= set(metadata.questions), "the model was never asked about a category"),
        (len(metadata.usual.get("tails", metadata.categories)) == len(metadata.categories), "`usual` is for other categories"),
        ({str(clip) for clip in answers.clip} >= set(metadata.descriptions), "a clip has a description but no answer"),
    ]
    return [f"{path}: {what}" for is_right, what in checks if not is_right]
