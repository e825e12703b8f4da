"""Renders scanned videos as MP4: frames with mask, score curve, time and captions.

Scores, events and masks are read from the output folder; no detector runs. Time 0 of a rendered file is its first frame. So
for a whole video, the player shows the same times as the events document.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np

from vadcli.draw import Mp4Writer
from vadcli.draw.overlay import Geometry, Overlay
from vadcli.errors import DocumentError, NoVideoFound, UsageError, VideoError
from vadcli.options import RenderOptions, parse_duration
from vadcli.store import OutputLayout, event_clip, event_clips, stored_layout
from vadcli.store.atomic import Scratch
from vadcli.store.events import EventsDocument, read_events, stored_roots
from vadcli.store.masks import MaskTrack
from vadcli.store.scores import ScoresMetadata, read_scores
from vadcli.types import ByteArray, ClipNeeds, Event, PixelFormat, ScoreTable, SizeRule
from vadcli.types.text import is_remote, without_name
from vadcli.video.ffmpeg import add_sound, find_sound
from vadcli.video.loader import ClipLoader, FrameFeed, LoaderOptions, loader_options
from vadcli.video.objects import local_copy

OnFrame = Callable[[int, int], None]
"""Called with the number of frames written so far and the number of all frames to write."""
Watch = Callable[[str], AbstractContextManager[OnFrame | None]]
"""Opens the progress display of a video. Called with the name of the video."""

CLIP_BYTES = 48 << 20  # largest clip that a decoder may deliver, in bytes
LONGEST_CLIP_FRAMES = 8


@dataclass(frozen=True)
class RenderSettings:
    """How a video is rendered.

    Attributes:
        events_only: True to write one file per event, `<video>.event-001.mp4` and so on, instead of the whole video.
        pad_s: with events_only, seconds shown before and after an event.
        most_s: with events_only, at most this many seconds around the peak of an event are shown; None shows the whole event.
        side_by_side: True to show the original frame on the left and the annotated frame on the right.
        max_height_px: taller frames are scaled down to this height.
        fps: frame rate of folders of images; None uses the rate of the scan.
        preset: preset of the encoder x264. It sets the speed.
        decode: how the video is read.
    """

    events_only: bool = False
    pad_s: float = 2.0
    most_s: float | None = None
    side_by_side: bool = False
    max_height_px: int | None = None
    fps: float | None = None
    preset: str = "veryfast"
    decode: LoaderOptions = field(default_factory=LoaderOptions)


@dataclass(frozen=True)
class RenderResult:
    """The files that `render_video` has written.

    Attributes:
        video: relative path.
        files: the written files; empty if only events were requested and the video has no event.
        frames: number of frames that were written.
        expected_frames: number of frames that the written files should have together, according to the scores.
        problems: one line per problem, such as missing frames.
        skipped: True if the video was rendered earlier and nothing was written now.
    """

    video: str
    files: tuple[Path, ...]
    frames: int
    expected_frames: int
    problems: tuple[str, ...]
    skipped: bool = False


def render_all(paths: Sequence[Path], options: RenderOptions, *, watch: Watch | None = None) -> Iterator[RenderResult]:
    """Render the scanned videos below these paths. Yields one result per video, with the written files.

    Args:
        paths: the files and folders that were scanned, or some of them.
        watch: opens the progress display of a video; None for no display.

    Raises:
        UsageError: `options.out` has no results, or no video is found.
    """
    from vadcli.engine.plan import OutsideRoot, make_plan, no_video_text
    from vadcli.engine.runner import may_be_empty

    layout = stored_layout(options.out, hint="scan first, or name the scan's folder with --out")
    roots = list(stored_roots(layout))
    # If the footage has moved, no stored root exists any more. In this case, the root is the folder that contains all
    # `paths`, as in a first scan.
    moved = not any(is_remote(root) or os.path.isdir(root) for root in roots)
    try:
        plan = make_plan(paths, options, out=options.out, stored=() if moved else roots)
    except OutsideRoot as error:
        raise UsageError(error.message, hint="give footage that was scanned into this --out") from error
    if not plan.units and not may_be_empty(paths, options):
        raise NoVideoFound(no_video_text(plan, options))
    known = {unit.video for unit in plan.units if layout.scores(unit.video).exists() or layout.events(unit.video).exists()}
    unknown = [unit.video for unit in plan.units if unit.video not in known]
    if unknown and len(unknown) == len(plan.units):
        raise UsageError(f"{unknown[0]}: {_not_scanned(unknown, options)}", hint="scan first, or name the scan's --out")
    videos = [(unit.video, unit.path) for unit in plan.units if unit.video in known]
    return _rendered(videos, options, watch or (lambda video: nullcontext()), unknown)


def _not_scanned(videos: Sequence[str], options: RenderOptions) -> str:
    """Return the words that follow a video's name in a message: this video and N other videos were not scanned."""
    return f"not scanned into {options.out}" + (f", nor are {len(videos) - 1} more videos" if len(videos) > 1 else "")


def _rendered(
    videos: Sequence[tuple[str, Path]], options: RenderOptions, watch: Watch, unknown: Sequence[str]
) -> Iterator[RenderResult]:
    """Render videos, given as (name, path).

    Yields one result per video, and one result for all `unknown` videos together.
    """
    layout = OutputLayout(options.out)
    settings = RenderSettings(
        events_only=options.events_only,
        pad_s=parse_duration(options.pad, "pad"),
        side_by_side=options.side_by_side,
        max_height_px=options.max_height,
        fps=options.fps,
        decode=loader_options(options),
    )
    with Scratch(layout.scratch) as scratch:
        for video, path in videos:
            if is_rendered(layout, video, options):
                yield RenderResult(video, (layout.rendered(video),), 0, 0, (), skipped=True)
                continue
            with watch(video) as progress:
                try:
                    with local_copy(path) as source:
                        result = render_video(
                            source, video=video, layout=layout, settings=settings, scratch=scratch, progress=progress
                        )
                except (DocumentError, VideoError) as error:
                    result = RenderResult(video, (), 0, 0, (str(error),))
            yield result
    if unknown:
        yield RenderResult(unknown[0], (), 0, 0, (_not_scanned(unknown, options),))


def is_rendered(layout: OutputLayout, video: str, options: RenderOptions) -> bool:
    """True if the rendered file of a video is newer than its events, and no option asks to render again."""
    if options.force or options.events_only:
        return False
    try:
        return layout.rendered(video).stat().st_mtime_ns > layout.events(video).stat().st_mtime_ns
    except OSError:
        return False


def render_video(
    source: Path,
    *,
    video: str,
    layout: OutputLayout,
    settings: RenderSettings,
    scratch: Scratch,
    progress: OnFrame | None = None,
) -> RenderResult:
    """Render one scanned video and return the written files.

    Three faults do not stop the rendering: frames that can't be decoded, masks that end early, and unreadable sound. They are
    in `problems` of the result. Files of events that no longer exist are removed.

    Args:
        source: the video file or folder of images.
        video: its relative path in the scan.
        layout: the output folder with the scan's results. The rendered files are written into this folder.
        settings: how to render.
        scratch: temporary files of this process in the same output folder.
        progress: called after every frame.

    Raises:
        DocumentError: the video was not scanned, or its stored results are damaged.
        VideoError: no frame could be decoded.
        OutputError: the output can't be written; files that are already complete are kept.
    """
    results = _ScanResults.load(layout, video)
    rendered = layout.rendered(video)
    spans = _event_spans(results, settings, rendered) if settings.events_only else [_Span(0, len(results.table), rendered)]
    expected = sum(span.last - span.first for span in spans)
    stored = results.metadata.video
    needs = clip_needs(int(stored["width"]), int(stored["height"]), settings)
    written: list[Path] = []
    failed: list[VideoError] = []
    with ClipLoader(needs, settings.decode) as loader:
        fps = settings.fps or float(stored["fps"])
        feed = FrameFeed(loader, needs.frames, source, video=video, frames=len(results.table), fps=fps)
        on_written = (lambda written: progress(written, expected)) if progress else (lambda written: None)
        renderer = _Renderer(feed, results, MaskTrack(results.table, layout), settings, on_written)
        for span in spans:
            try:
                with scratch.replace(span.final) as temporary:
                    renderer.write(span, temporary)
                written.append(span.final)
            except VideoError as error:  # no frame of this span could be decoded
                failed.append(error)
    if failed and not written:
        raise failed[0]
    if settings.events_only:
        current = {span.final for span in spans}
        with suppress(FileNotFoundError):
            for path in event_clips(rendered):
                if path not in current:
                    path.unlink()
    problems = (*renderer.problems, *dict.fromkeys(error.message for error in failed))
    return RenderResult(video, tuple(written), renderer.written, expected, problems)


@dataclass(frozen=True)
class _ScanResults:
    """The results that the scan stored about a video."""

    table: ScoreTable
    metadata: ScoresMetadata
    document: EventsDocument

    @classmethod
    def load(cls, layout: OutputLayout, video: str) -> _ScanResults:
        """Return the results of a video. Raises DocumentError if they are missing or damaged."""
        if not layout.scores(video).exists():
            if not layout.events(video).exists():
                raise DocumentError(f"{video}: not scanned into {layout.out}", hint="scan it first")
            failure = read_events(layout.events(video)).failure
            why = without_name(failure.error, video) if failure else "its scores are missing: scan it again"
            raise DocumentError(f"{video}: not rendered, because the scan failed: {why}")
        table, metadata = read_scores(layout.scores(video))
        if not len(table):
            raise DocumentError(f"{video}: the stored scores contain no frame", hint="scan it again with --force")
        return cls(table, metadata, read_events(layout.events(video)))

    @property
    def end_s(self) -> float:
        """The time in seconds at which the last frame ends."""
        return max(float(self.metadata.video["duration_s"]), float(self.table.timestamp[-1]))


@dataclass(frozen=True)
class _Span:
    """Rows [first, last) that are rendered into one file."""

    first: int
    last: int
    final: Path


def _event_spans(results: _ScanResults, settings: RenderSettings, rendered: Path) -> list[_Span]:
    timestamp, pad_s = results.table.timestamp, settings.pad_s
    spans = []
    for event in results.document.events:
        start_s, end_s = shown_seconds(event, settings.most_s)
        first = int(np.searchsorted(timestamp, start_s - pad_s, side="left"))
        last = int(np.searchsorted(timestamp, end_s + pad_s, side="left"))
        if (start_s, end_s) == (event.start_s, event.end_s):
            first, last = min(first, event.start_frame), max(last, event.end_frame)
        spans.append(_Span(first, min(last, len(timestamp)), event_clip(rendered, event.id)))
    return spans


def shown_seconds(event: Event, most_s: float | None) -> tuple[float, float]:
    """Return the start and end of the part of an event to show: all of it, or `most_s` around the peak."""
    if most_s is None or event.end_s - event.start_s <= most_s:
        return event.start_s, event.end_s
    start_s = min(max(event.start_s, event.peak_s - most_s / 2), event.end_s - most_s)
    return start_s, start_s + most_s


class _Renderer:
    """Renders spans of one video and collects the problems.

    Args:
        feed: the frames of the video.
        results: the stored results of the scan.
        masks: the stored masks.
        settings: how to render.
        on_written: called after every frame, with the number of written frames.
    """

    def __init__(
        self,
        feed: FrameFeed,
        results: _ScanResults,
        masks: MaskTrack,
        settings: RenderSettings,
        on_written: Callable[[int], None],
    ) -> None:
        self._feed, self._results, self._masks, self._settings, self._on_written = feed, results, masks, settings, on_written
        self._overlay: Overlay | None = None
        self.written = 0
        self.sound_problems: list[str] = []

    @property
    def problems(self) -> tuple[str, ...]:
        """What went wrong, one line per problem."""
        return tuple(dict.fromkeys([*self._feed.problems(), *self._masks.problems, *self.sound_problems]))

    def write(self, span: _Span, path: Path) -> None:
        """Render one file, with sound if the video has sound."""
        timeout_s = self._settings.decode.timeout_s
        with closing(self._feed.images(span.first, span.last)) as pictures:
            first = next(pictures)
            sound = None
            try:
                sound = find_sound(self._feed.info, timeout_s=timeout_s)
                self.sound_problems += [sound.problem] if sound and sound.problem else []
            except VideoError as error:
                self.sound_problems.append(error.message)
            if not sound:
                self._write_pictures(chain([first], pictures), span.first, path)
                return
            silent = path.with_name(f"{path.stem}-silent.mp4")
            try:
                end_s = self._write_pictures(chain([first], pictures), span.first, silent)
                start_s = float(self._results.table.timestamp[span.first])
                times = {"start_s": start_s, "duration_s": end_s - start_s, "timeout_s": timeout_s}
                try:
                    add_sound(silent, path, info=self._feed.info, sound=sound, **times)
                except VideoError as error:
                    self.sound_problems.append(error.message)
                    silent.replace(path)
            finally:
                silent.unlink(missing_ok=True)

    def _write_pictures(self, pictures: Iterable[tuple[int, ByteArray]], first: int, path: Path) -> float:
        """Encode the frames into a silent file. Return the time in seconds at which the last frame ends."""
        results, settings, row = self._results, self._settings, first
        with ExitStack() as stack:
            writer: Mp4Writer | None = None
            for row, picture in pictures:
                if self._overlay is None:
                    self._overlay = Overlay(
                        results.table,
                        results.document,
                        Geometry.of(picture.shape[1], picture.shape[0], side_by_side=settings.side_by_side),
                        end_s=results.end_s,
                        mask_level=self._masks.level(results.document.thresholds),
                    )
                if writer is None:
                    opened = Mp4Writer(
                        path,
                        width=self._overlay.geometry.width,
                        height=self._overlay.geometry.height,
                        time_base=Fraction(results.metadata.time_base),
                        fps=float(results.metadata.video["fps"]),
                        preset=settings.preset,
                    )
                    writer = stack.enter_context(opened)
                pts = int(results.table.pts[row] - results.table.pts[first])
                writer.write(self._overlay.draw(picture, row, self._masks.at(row)), pts)
                self.written += 1
                self._on_written(self.written)
        return float(results.table.timestamp[row + 1]) if row + 1 < len(results.table) else results.end_s


def clip_needs(width: int, height: int, settings: RenderSettings) -> ClipNeeds:
    """Return how rendering reads a video: every frame, in colour, at the largest size that H.264 allows.

    Large frames are read in shorter clips, to limit the memory.

    Args:
        width, height: size of the video in px, in display orientation.
        settings: how to render.
    """
    area = width * height
    if settings.max_height_px and height > settings.max_height_px:
        area = round(area * (settings.max_height_px / height) ** 2)
    size = SizeRule(area)
    while not Geometry.of(*size.apply(width, height), side_by_side=settings.side_by_side).plays_anywhere:
        size = SizeRule(size.max_area_px * 49 // 50)
    frames = max(1, min(LONGEST_CLIP_FRAMES, CLIP_BYTES // (3 * size.max_area_px)))
    return ClipNeeds(frames=frames, overlap=0, rate_hz=1.0, interval=1, size=size, pixel_format=PixelFormat.RGB)
