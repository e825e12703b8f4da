"""The results of `vadcli bench`, as Markdown tables and as JSON lines."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vadcli.bench.measuring import Round
from vadcli.types.text import how_many

MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """A compression ratio and a batch size that are measured together.

    Attributes:
        ratio: kept share of the visual tokens.
        batch_size: clips per batch.
        is_baseline: True for the straightforward loop without batches or compression.
    """

    ratio: float
    batch_size: int
    is_baseline: bool = False

    @property
    def name(self) -> str:
        """The name of the setting in the tables."""
        return "straightforward loop" if self.is_baseline else "vadcli"


@dataclass
class Throughput:
    """The rounds of one setting.

    Attributes:
        setting: the setting that was measured.
        rounds: results of the rounds, in their order.
        device_bytes: peak device memory without the weights; None without a GPU.
        host_bytes: peak resident memory of all processes.
        computed: clips that the device computed at a time, fewer than `batch_size` if memory was short.
    """

    setting: Setting
    rounds: list[Round] = field(default_factory=list)
    device_bytes: int | None = None
    host_bytes: int = 0
    computed: int = 0

    def rates(self) -> list[float]:
        """Return the clips per second of each round."""
        return [done.clips / done.seconds for done in self.rounds]

    def to_json(self, baseline: Throughput) -> dict[str, Any]:
        """Return the JSON object that `vadcli bench --json` prints."""
        rates = self.rates()
        return {
            "type": "throughput",
            "name": self.setting.name,
            "baseline": self.setting.is_baseline,
            "ratio": self.setting.ratio,
            "batch_size": self.setting.batch_size,
            "computed_at_a_time": self.computed,
            "rounds": [asdict(done) for done in self.rounds],
            "clips_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
            "frames_per_s": statistics.median(done.rows / done.seconds for done in self.rounds),
            "real_time": statistics.median(done.video_s / done.seconds for done in self.rounds),
            "of_baseline": self.of(baseline),
            "device_bytes": self.device_bytes,
            "host_bytes": self.host_bytes,
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Throughput:
        """Return the rounds from the JSON object that `to_json` returns."""
        return cls(
            Setting(line["ratio"], line["batch_size"], line["baseline"]),
            [Round(**fields) for fields in line["rounds"]],
            line["device_bytes"],
            line["host_bytes"],
            line["computed_at_a_time"],
        )

    def of(self, other: Throughput) -> float:
        """Return the speed relative to the speed of `other`: the median of the ratios of all rounds."""
        return statistics.median(mine / its for mine, its in zip(self.rates(), other.rates(), strict=True))


@dataclass(frozen=True)
class Stages:
    """Details of one compression ratio.

    Attributes:
        ratio: kept share of the visual tokens.
        batch_size: clips per batch.
        tokens: L, visual tokens per clip.
        kept: M, kept visual tokens per clip.
        ms: milliseconds per clip of each stage; the keys are the stages.
        added_bytes: bytes of device memory that each stage added; empty without a GPU.
        busy: share of a scan's time in which the device works; None without a GPU.
    """

    ratio: float
    batch_size: int
    tokens: float
    kept: float
    ms: dict[str, float]
    added_bytes: dict[str, int]
    busy: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `vadcli bench --json` prints."""
        return {
            "type": "stages",
            "ratio": self.ratio,
            "batch_size": self.batch_size,
            "tokens": self.tokens,
            "kept_tokens": self.kept,
            "ms_per_clip": self.ms,
            "added_device_bytes": self.added_bytes or None,
            "device_busy": self.busy,
        }

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Stages:
        """Return the details from the JSON object that `to_json` returns."""
        return cls(
            line["ratio"],
            line["batch_size"],
            line["tokens"],
            line["kept_tokens"],
            line["ms_per_clip"],
            line["added_device_bytes"] or {},
            line["device_busy"],
        )


@dataclass(frozen=True)
class BenchReport:
    """All results of one run.

    Attributes:
        model: name, weights and number format.
        machine: devices, processor and versions.
        footage: a description of the videos.
        sampling: a description of how frames are sampled.
        weights_bytes: device memory of the weights; None without a GPU.
        found_batch: clips per batch in a scan without `--batch-size`.
        baseline: the rounds of the straightforward loop.
        settings: the rounds of each setting.
        stages: the details of each ratio.
    """

    model: str
    machine: str
    footage: str
    sampling: str
    weights_bytes: int | None
    found_batch: int
    baseline: Throughput
    settings: Sequence[Throughput]
    stages: Sequence[Stages]

    def json_lines(self) -> Iterator[dict[str, Any]]:
        """Yield one object per setting, one per ratio, then the summary."""
        for each in (self.baseline, *self.settings):
            yield each.to_json(self.baseline)
        for stages in self.stages:
            yield stages.to_json()
        best = max(self.settings, key=lambda each: each.of(self.baseline))
        yield {
            "type": "summary",
            "model": self.model,
            "machine": self.machine,
            "footage": self.footage,
            "sampling": self.sampling,
            "weights_bytes": self.weights_bytes,
            "found_batch_size": self.found_batch,
            "best": {"ratio": best.setting.ratio, "batch_size": best.setting.batch_size, "of_baseline": best.of(self.baseline)},
        }

    @classmethod
    def from_json_lines(cls, lines: Iterable[Mapping[str, Any]]) -> BenchReport:
        """Return the report from the JSON objects that `json_lines` yields."""
        *measured, summary = lines
        baseline, *settings = [Throughput.from_json(line) for line in measured if line["type"] == "throughput"]
        return cls(
            model=summary["model"],
            machine=summary["machine"],
            footage=summary["footage"],
            sampling=summary["sampling"],
            weights_bytes=summary["weights_bytes"],
            found_batch=summary["found_batch_size"],
            baseline=baseline,
            settings=settings,
            stages=[Stages.from_json(line) for line in measured if line["type"] == "stages"],
        )

    def text(self) -> str:
        """Return the results as Markdown tables that are also readable as plain text."""
        weights = "" if self.weights_bytes is None else f"; weights {self.weights_bytes / MIB:,.0f} MiB on the device"
        size = self.stages[0].batch_size
        lines = [
            f"{self.model}; {self.machine}{weights}.",
            f"Footage: {self.footage}; {self.sampling}. A scan here would use batches of {how_many(self.found_batch, 'clip')}.",
            "",
            f"Throughput: medians of {len(self.baseline.rounds)} rounds, with the slowest round in brackets. Every round",
            "runs all settings; `x loop` compares speeds in the same round. The straightforward loop",
            "decodes and scores one clip at a time in one process, without overlap, batches or",
            "compression. Loading and starting are not counted.",
            "",
            *table_lines(self._throughput_rows()),
            "",
            f"Time per stage in ms per clip, measured separately in batches of {size}. The clock waits for the",
            "device after every stage, so that nothing overlaps. `decode` is a single decoder process;",
            "`write` stores scores and masks in a checkpoint.",
            "",
            *table_lines(self._stage_rows()),
        ]
        return "\n".join(lines) + "\n"

    def _throughput_rows(self) -> list[list[str]]:
        head = ["what", "ratio", "batch", "clips/s", "frames/s", "x real time", "x loop", "device MiB", "host MiB"]
        rows = [head]
        for each in (self.baseline, *self.settings):
            line = each.to_json(self.baseline)
            batch = f"{each.setting.batch_size}" + (f" (by {each.computed})" if each.computed < each.setting.batch_size else "")
            rates = line["clips_per_s"]
            rows.append(
                [
                    each.setting.name,
                    f"{each.setting.ratio:g}",
                    batch,
                    f"{rates['median']:.2f} ({rates['min']:.2f})",
                    f"{line['frames_per_s']:.0f}",
                    f"{line['real_time']:.2f}",
                    f"{line['of_baseline']:.2f}",
                    "" if each.device_bytes is None else f"{each.device_bytes / MIB:,.0f}",
                    f"{each.host_bytes / MIB:,.0f}",
                ]
            )
        return rows if self.weights_bytes is not None else [row[:-2] + row[-1:] for row in rows]

    def _stage_rows(self) -> list[list[str]]:
        rows = [["stage", *(f"ratio {each.ratio:g}" for each in self.stages)]]
        rows.append(["visual tokens L", *(f"{each.tokens:.0f}" for each in self.stages)])
        rows.append(["kept tokens M", *(f"{each.kept:.0f}" for each in self.stages)])
        rows += [[f"{name} ms", *(f"{each.ms[name]:.2f}" for each in self.stages)] for name in self.stages[0].ms]
        for name in self.stages[0].added_bytes:
            rows.append([f"{name} adds, MiB", *(f"{each.added_bytes[name] / MIB:,.0f}" for each in self.stages)])
        if any(each.busy is not None for each in self.stages):
            rows.append(["device busy in a scan", *("" if each.busy is None else f"{each.busy:.2f}" for each in self.stages)])
        return rows


def table_lines(rows: list[list[str]]) -> list[str]:
    """Return an aligned Markdown table; all columns but the first are right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(cells: list[str]) -> str:
        """Return one row of the Markdown table."""
        padded = [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:])
    return [line(rows[0]), rule, *map(line, rows[1:])]
