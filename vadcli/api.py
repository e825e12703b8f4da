"""The library: one function per command, such as `vadcli.scan()`.

Keyword arguments are the options of the command, with underscores (docs/cli.md). Neither vadcli.toml nor the environment is
read. The errors are those of `vadcli.errors`. An unknown option, an option that works only on the command line, or a value
outside its range raises UsageError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from vadcli.errors import UsageError
from vadcli.options import (
    DEFAULT_OUT,
    ClipsOptions,
    EmbedOptions,
    EvalOptions,
    EventsOptions,
    LearnOptions,
    PruneOptions,
    RenderOptions,
    ReportOptions,
    ScanOptions,
    SearchOptions,
    VerifyOptions,
    from_keywords,
)
from vadcli.types import VideoResult

if TYPE_CHECKING:
    from vadcli.clipping import ClipResult
    from vadcli.engine.recut import StoredEvents
    from vadcli.engine.runner import PlannedVideo, Scan
    from vadcli.evaluation import Evaluation
    from vadcli.learning import Learned
    from vadcli.pruning import PruneResult
    from vadcli.rendering import RenderResult
    from vadcli.reporting import WrittenReport
    from vadcli.vectors import EmbedResult, Moment
    from vadcli.verifying import VerifyResult

PathGiven = str | PathLike[str]


@overload
def scan(
    paths: PathGiven | Iterable[PathGiven],
    *,
    categories: Sequence[str] | str = ...,
    dry_run: Literal[False] = ...,
    **options: Any,
) -> Iterator[VideoResult]: ...
@overload
def scan(
    paths: PathGiven | Iterable[PathGiven], *, categories: Sequence[str] | str = ..., dry_run: Literal[True], **options: Any
) -> Iterator[PlannedVideo]: ...
def scan(
    paths: PathGiven | Iterable[PathGiven],
    *,
    categories: Sequence[str] | str = (),
    dry_run: bool = False,
    **options: Any,
) -> Iterator[VideoResult] | Iterator[PlannedVideo]:
    """Scan videos. Yields the result of each video when it is finished. Results are stored in `out`.

    Args:
        paths: video files, and folders with videos.
        categories: what to look for, in your own words.
        dry_run: scan nothing. Instead, yield one `PlannedVideo` per video: what the scan would do with it.
        **options: the options of `vadcli scan`, such as `out`, `masks`, `detector`, `alarms_per_hour`.

    Raises:
        UsageError, NoVideoFound, DeviceError, WeightsError: at once, before any video is read.
        OutputError: `out` can't be written.
    """
    from vadcli.engine.runner import open_scan

    chosen = from_keywords(ScanOptions, {"categories": categories, "dry_run": dry_run, **options})
    verify = None
    if chosen.verify:
        from vadcli.verifying import verification_of

        verify = verification_of(chosen)
    run = open_scan(_paths(paths), chosen)
    return run.preview() if chosen.dry_run else _results(run, verify)


def _results(run: Scan, verify: Callable[[Scan], object] | None) -> Iterator[VideoResult]:
    """Yield the results of a scan, and verify its output folder at the end."""
    yield from (update for update in run.run() if isinstance(update, VideoResult))
    if verify is not None:
        verify(run)


def verify(out: PathGiven = DEFAULT_OUT, **options: Any) -> VerifyResult:
    """Ask a multimodal model about the clips with the highest scores. Use the answers to make events again.

    Args:
        out: a scan's output folder.
        **options: the options of `vadcli verify`, such as `model`, `share`, `categories`.

    Returns:
        `videos` has one entry per video, with its numbers of events. `audit` is an estimate of how much the scan misses.
        `problems` has one line per failed video.

    Raises:
        UsageError: the folder does not exist, it has no scores, or an option can't be used.
        DeviceError, WeightsError, OutputError: the model can't be loaded, or the folder can't be written.
    """
    from vadcli.verifying import verify_stored

    return verify_stored(Path(out), from_keywords(VerifyOptions, options))


def events(out: PathGiven = DEFAULT_OUT, **options: Any) -> StoredEvents:
    """Make the events again from the stored scores, with other thresholds. No video is decoded.

    Args:
        out: a scan's output folder.
        **options: the options of `vadcli events`, such as `threshold`, `alarms_per_hour`, `min_duration`, `write`, `review`.
            With `to`, the events are also written to this folder, in the format `format`.

    Returns:
        `documents` has one document per video. `failed` has the reason of each failed video. `problems` has one line per
        document that could not be read or exported.

    Raises:
        UsageError: the folder does not exist.
        DocumentError: the review file can't be read.
        OutputError: a document can't be written.
    """
    from vadcli.engine.recut import export_events, recut_all

    chosen = from_keywords(EventsOptions, options)
    _check_format(chosen)
    stored = recut_all(Path(out), chosen)
    if chosen.to is None:
        return stored
    return replace(stored, problems=(*stored.problems, *export_events(stored, Path(out), chosen)))


def learn(out: PathGiven = DEFAULT_OUT, **options: Any) -> Learned:
    """Train a head on your own labels and test it on other videos. Write the head to `to`, if given.

    Args:
        out: a scan's output folder with stored vectors.
        **options: the options of `vadcli learn`, such as `review`, `labels`, `to`, `head`, `anyway`.

    Returns:
        `figures` has the false alarms per hour with and without the head. `card` has facts about the head and its training.

    Raises:
        UsageError: no vectors are stored, or there are too few labels.
        DocumentError: a file of labels or of vectors can't be read.
        NotBetter: `to` is given, but the head is not better than the detector alone, so it is not written.
        OutputError: the folder can't be written.
    """
    from vadcli.learning import train, write

    chosen = from_keywords(LearnOptions, options)
    learned = train(Path(out), chosen)
    write(learned, chosen)
    return learned


def embed(paths: PathGiven | Iterable[PathGiven], **options: Any) -> Iterator[EmbedResult]:
    """Store one vector per sampled frame, and no scores. Yields one result per video.

    Args:
        paths: video files, and folders with videos.
        **options: the options of `vadcli embed`, such as `out`, `encoder`, `sample_fps`, `npy`.

    Raises:
        UsageError, NoVideoFound, DeviceError, WeightsError: at once, before any video is read.
        OutputError: a file can't be written.
    """
    from vadcli.vectors import embed_all

    return embed_all(_paths(paths), from_keywords(EmbedOptions, options))


def clips(out: PathGiven = DEFAULT_OUT, **options: Any) -> Iterator[ClipResult]:
    """Cut each event out of its video without encoding it again. Yields one result per event, or per video that can't be cut.

    Args:
        out: a scan's output folder.
        **options: the options of `vadcli clips`, such as `to`, `before`, `after`, `container`, `camera`, `since`.

    Raises:
        UsageError: the folder does not exist.
        OutputError: a clip can't be written.
    """
    from vadcli.clipping import clip_all

    return clip_all(Path(out), from_keywords(ClipsOptions, options))


def prune(out: PathGiven = DEFAULT_OUT, **options: Any) -> PruneResult:
    """Remove the results of videos that no longer exist or are too old, and files that belong to no video.

    Args:
        out: a scan's output folder.
        **options: the options of `vadcli prune`, such as `older_than`, `missing`, `dry_run`.

    Returns:
        `removed` has one entry per video or file. `size` is the number of freed bytes. `problems` has one line per file that
        could not be read or removed, and per video that may still exist (its results are kept).

    Raises:
        UsageError: the folder does not exist, or its footage can't be reached.
        OutputError: the folder can't be written.
    """
    from vadcli.pruning import prune_all

    return prune_all(Path(out), from_keywords(PruneOptions, options))


def render(paths: PathGiven | Iterable[PathGiven], **options: Any) -> Iterator[RenderResult]:
    """Render scanned videos with masks, scores and events. Yields one result per video.

    Args:
        paths: the files and folders that were scanned, or some of them.
        **options: the options of `vadcli render`, such as `out`, `events_only`, `pad`, `side_by_side`.

    Raises:
        UsageError: `out` has no results, or no video is found.
    """
    from vadcli.rendering import render_all

    return render_all(_paths(paths), from_keywords(RenderOptions, options))


def report(out: PathGiven = DEFAULT_OUT, **options: Any) -> WrittenReport:
    """Report the events, and the videos that could not be read, as a page or a summary in the file `to`.

    Args:
        out: a scan's output folder.
        **options: the options of `vadcli report`, such as `to`, `format`, `since`, `clips`, `title`.

    Returns:
        `archive` has the videos, events and failures. `text` is the page or summary. `file` is the path of the written file;
        None if no file was written.

    Raises:
        UsageError: the folder does not exist.
        OutputError: the page can't be written.
    """
    from vadcli.reporting import make_report, read_archive

    chosen = from_keywords(ReportOptions, options)
    return make_report(read_archive(Path(out), chosen), chosen)


def search(out: PathGiven = DEFAULT_OUT, text: str = "", **options: Any) -> list[Moment]:
    """Return the moments of scanned videos that match a text or an image, best first. No video is decoded.

    Args:
        out: the output folder of a scan that stored vectors (`detector="concept"`).
        text: what to look for, as a sentence.
        **options: the options of `vadcli search`, such as `image`, `top`, `camera`, `since`. With `to`, the moments are also
            written to this file, in the format `format`.

    Raises:
        UsageError: no vectors are stored, or text and image are both given or both missing.
        WeightsError: the encoder that made the vectors is not installed, or the encoder's weights have changed.
    """
    from vadcli.reporting import search_all, write_search

    chosen = from_keywords(SearchOptions, options)
    _check_format(chosen)
    result = search_all(Path(out), text, chosen)
    if chosen.to is not None:
        write_search(result, chosen)
    return result.moments


def evaluate(outs: PathGiven | Iterable[PathGiven] = DEFAULT_OUT, **options: Any) -> list[Evaluation]:
    """Compare stored scores with ground truth. Returns one result per folder.

    Args:
        outs: output folders of scans. All other folders are compared with the first folder.
        **options: the options of `vadcli eval`, such as `dataset`, `root`, `metrics`, `bootstrap`, `plots`.

    Raises:
        UsageError: an option, folder or data set can't be used.
        DocumentError: an annotation or stored file is damaged.
    """
    from vadcli.evaluation import evaluate_outputs, keep_figures

    chosen = from_keywords(EvalOptions, options)
    reports = evaluate_outputs(_paths(outs), chosen)
    keep_figures(reports, chosen)
    if chosen.plots is not None:
        from vadcli.evaluation.plots import draw

        list(draw(reports, chosen.plots))
    return reports


def _check_format(options: EventsOptions | SearchOptions) -> None:
    """Raise UsageError if a format is given, but no file or folder to write."""
    if options.format != type(options).format and options.to is None:
        raise UsageError(f"'format' is {options.format!r}, but nothing is written", hint="say with `to` where to write")


def _paths(given: PathGiven | Iterable[PathGiven]) -> list[Path]:
    if isinstance(given, str | PathLike):
        return [Path(given)]
    return [Path(path) for path in given]
