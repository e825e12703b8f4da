"""Computes which frames are sampled, how ffmpeg selects them and which clips they form.

`ClipAssembler` collects the clips frame by frame.

A row is the 0-based index of a frame in presentation order. Every `interval`-th row is a sample. If the decoder leaves out
frames, the samples are not evenly spaced, and a plan lists them (`SamplingPlan.rows`). A clip is T samples:

    rows      0 1 2 3 4 5 6 7 8 9 ...        interval 2
    samples   0   1   2   3   4   ...
    clip 0    [0   1   2   3]                T = 4, overlap 1, stride 3: clip c starts at sample 3c
    clip 1                [3   4 ...         sample 3 is in both clips, but only clip 0 scores it

The last clip of a video may start earlier than usual, so that it ends on the last sample. If a video is shorter than a clip,
its last sample is repeated. Each sampled frame that was decoded is `valid` in exactly one clip: the clip that scores it.

A `Selection` has one rule in two forms: as an expression for ffmpeg's `select` filter, and in Python (`takes`). The caller uses
the Python form to know which frames get an image.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field, replace

import numpy as np

from vadcli.types import BoolArray, ByteArray, ClipNeeds, IndexArray, VideoInfo

# If less than this share of the frames can be left out, all frames are decoded: this costs little more, and the samples are
# then evenly spaced.
_SKIPPED_SHARE = 0.25
_INDEXED = frozenset({"mov", "matroska"})
_CLEAN_KEYFRAMES = frozenset({"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "vp8", "vp9", "av1", "mjpeg"})
_SAFE_ROUNDING = 0.4  # in rows; if a time were about halfway between two rows, two machines could round it to different rows
_FLAGS = 48  # a double has 53 exact bits
_MOST_LISTED = 100_000  # rows; Linux allows 128 KiB per argument of a command
_WIDEST = 2  # references may be at most this many sampling intervals apart


@dataclass(frozen=True)
class SamplingPlan:
    """Defines which rows of a video are samples, and which samples form each clip.

    Attributes:
        frames: T, samples per clip.
        overlap: number of samples that a clip shares with the previous clip.
        interval: number of rows from one sample to the next. If `rows` is given, the steps differ, and `interval` is their
            rounded mean.
        rows: (S,) int64, the sampled rows in order; None if every `interval`-th row is sampled.
    """

    frames: int
    overlap: int
    interval: int
    rows: IndexArray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.interval < 1 or not 0 <= self.overlap < self.frames:
            text = f"{self.frames} frames, overlap {self.overlap}, interval {self.interval}"
            raise ValueError(f"cannot cut clips with {text}: the overlap must be shorter than a clip, the interval at least 1")

    @classmethod
    def of(cls, needs: ClipNeeds, info: VideoInfo) -> SamplingPlan:
        """Return the plan for a video. The plan depends only on these arguments, not on the decoder."""
        interval = needs.interval_for(info.fps)
        rows = None
        if needs.decode == "reference":
            rows = sampled_references(info, interval)
        elif needs.decode == "key":
            rows = sampled_keyframes(info, interval)
        if rows is None:
            return cls(needs.frames, needs.overlap, interval)
        return cls(needs.frames, needs.overlap, max(1, round(info.frames / len(rows))), rows)

    @property
    def stride(self) -> int:
        """Number of samples from the start of one clip to the start of the next."""
        return self.frames - self.overlap

    def samples(self, rows: int) -> int:
        """Return how many of the first `rows` rows are sampled."""
        return -(-rows // self.interval) if self.rows is None else int(np.searchsorted(self.rows, rows))

    def row(self, sample: int) -> int:
        """Return the row of a sample. The row is after the end of the video if the video has fewer samples."""
        if self.rows is None:
            return sample * self.interval
        beyond = sample - len(self.rows) + 1
        return int(self.rows[-1]) + beyond * self.interval if beyond > 0 else int(self.rows[sample])

    def since(self, row: int) -> SamplingPlan:
        """Return the plan for the part of the video from this sampled row on.

        Row 0 of the new plan is this row.
        """
        if self.rows is None:
            return self
        later = self.rows[np.searchsorted(self.rows, row) :] - row
        return replace(self, rows=later if len(later) else np.zeros(1, np.int64))

    def first_new_sample(self, clip: int) -> int:
        """Return the number of the first sample that this clip scores."""
        return clip * self.stride + self.overlap if clip else 0

    def first_row(self, clip: int) -> int:
        """Return the row after the last sample of the previous clip: the first row that belongs to this clip."""
        return self.row(self.first_new_sample(clip) - 1) + 1 if clip else 0

    def read_from(self, clip: int) -> int:
        """Return the first row to decode for this clip.

        This row is before the clip's usual start. The reason: if the clip is the last clip of the video, it ends on the last
        sample, so it may start earlier than usual.
        """
        sample = clip * self.stride - max(self.stride - 1, 1 - self.overlap)
        return self.row(sample) if sample > 0 else 0

    def whole_clips(self, rows: int) -> int:
        """Return how many clips are complete after `rows` rows. A resumed scan continues after these clips."""
        return self.whole_clips_of(self.samples(rows))

    def whole_clips_of(self, samples: int) -> int:
        """Return how many clips are complete after `samples` samples.

        A last clip with fewer than T samples is not counted.
        """
        return (samples - self.frames) // self.stride + 1 if samples >= self.frames else 0

    def clips(self, rows: int) -> int:
        """Return the number of clips of a video with this many rows."""
        whole = self.whole_clips(rows)
        return whole + (self.samples(rows) > self.first_new_sample(whole))

    def clip_samples(self, clip: int, rows: int) -> IndexArray:
        """Return the samples (T,) of a clip in a video with `rows` rows.

        The last clip may start earlier than usual, so that it ends on the last sample. If the video is shorter than a clip, its
        last sample is repeated.
        """
        end = min(self.samples(rows), clip * self.stride + self.frames)
        start = max(0, end - self.frames)
        return np.minimum(np.arange(start, start + self.frames, dtype=np.int64), end - 1)

    def burst_row(self, position: float, rows: int) -> int:
        """Return the first row of a clip at `position`, a fraction of the video (0 to 1).

        If the clip would end after the end of the video, the clip starts earlier.
        """
        samples = self.samples(rows)
        return self.row(max(0, min(int(position * samples), samples - self.frames)))


def sampled_references(info: VideoInfo, interval: int) -> IndexArray | None:
    """Return the rows to sample if only references are decoded; None if all frames must be decoded.

    A reference is a frame that other frames need for decoding. For each `interval`-th row, the nearest reference is sampled.
    Two samples are at least half an interval apart. All frames must be decoded if frames of the file are missing, if only few
    frames can be left out, or if references are too far apart.
    """
    references = np.flatnonzero(info.reference)
    if interval == 1 or not len(references) or info.missing or len(references) > (1 - _SKIPPED_SHARE) * info.frames:
        return None
    ends = np.concatenate(([0], references, [info.frames - 1]))
    if int(np.diff(ends).max()) > _WIDEST * interval:
        return None
    places = np.arange(0, info.frames, interval)
    after = np.minimum(np.maximum(np.searchsorted(references, places), 1), len(references) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(references[after] - places < places - references[before], references[after], references[before])
    return _thinned(np.unique(nearest), -(-interval // 2))


def sampled_keyframes(info: VideoInfo, interval: int) -> IndexArray | None:
    """Return keyframes that are at least `interval` rows apart.

    Return None if no frame or every frame is a keyframe.
    """
    return _thinned(info.keyframes, interval) if 0 < len(info.keyframes) < info.frames else None


def needed_for(info: VideoInfo, rows: IndexArray) -> tuple[BoolArray | None, bool]:
    """Return which frames must be decoded to get the images of `rows`, and True if these are the keyframes.

    The frames are flags (N,) bool, or None for all frames:

    - `rows` has only keyframes: the flags mark all keyframes.
    - `rows` has only references (frames that other frames need): the flags mark all references.
    - `rows` has other frames too: None.

    The result is also None if frames of the file are missing, or if only few frames could be left out.
    """
    keys = rows_as_flags(info.keyframes, info.frames)
    for flags, only_keys in ((keys, True), (info.reference, False)):
        if len(info.reference) and not info.missing and flags[rows].all() and flags.mean() <= 1 - _SKIPPED_SHARE:
            return flags, only_keys
    return None, False


def _thinned(rows: IndexArray, apart: int) -> IndexArray:
    """Leave out rows, so that each returned row is at least `apart` rows after the previous returned row."""
    if len(rows) < 2 or int(np.diff(rows).min()) >= apart:
        return rows
    kept = [int(rows[0])]
    for row in rows[1:].tolist():
        if row - kept[-1] >= apart:
            kept.append(row)
    return np.array(kept, np.int64)


def can_skip(info: VideoInfo) -> bool:
    """Return True if a decoder may leave out frames.

    The file must have exact times. Otherwise, the decoded frames can't be matched with their rows.
    """
    return not info.guessed_times and not len(info.shown_pts) and info.one_frame_per_packet and not info.edit_list


def rows_as_flags(rows: IndexArray, frames: int) -> BoolArray:
    """Return flags (N,) bool, one per frame of the video: True for `rows`."""
    flags = np.zeros(frames, np.bool_)
    flags[rows] = True
    return flags


@dataclass(frozen=True)
class TimeGrid:
    """Selects frames of a video with a constant frame rate, by their pts.

    No frames are counted, so a lost frame does not change which other frames are selected.

    Attributes:
        origin: pts of row 0.
        rows_per_tick: 1 / (duration of a frame in ticks of the time base).
        interval: rows with index % interval == 0 are selected.
        first_pts: frames before this time are not selected.
    """

    origin: int
    rows_per_tick: float
    interval: int
    first_pts: int

    @property
    def expression(self) -> str:
        """The expression for ffmpeg's select filter."""
        return f"gte(pts,{self.first_pts})*not(mod({self.row},{self.interval}))"

    @property
    def row(self) -> str:
        """The expression for the row of a frame."""
        return f"floor((pts-({self.origin}))*{self.rows_per_tick!r}+0.5)"

    def row_at(self, pts: int) -> int:
        """Return the row at this time."""
        return math.floor((pts - self.origin) * self.rows_per_tick + 0.5)

    def takes(self, shown: int, pts: int | None) -> bool:
        """Return True if ffmpeg selects a frame. Call this for each frame, in order.

        Args:
            shown: how many frames were shown before.
            pts: time of the frame; None if unknown.
        """
        if pts is None or pts < self.first_pts:
            return False
        return self.row_at(pts) % self.interval == 0


@dataclass(frozen=True)
class ListedRows:
    """Selects listed rows of a video with a constant frame rate, by their pts.

    Use this if the sampled rows are not evenly spaced.

    Attributes:
        grid: gives the row of each pts. Its interval is 1.
        listed: (N,) bool, True for the rows that are selected.
    """

    grid: TimeGrid
    listed: BoolArray = field(repr=False, compare=False)

    @property
    def expression(self) -> str:
        """The expression for ffmpeg's select filter.

        Each number in the expression has the flags of 48 rows as its bits. More bits would not be exact, because ffmpeg
        computes with doubles. A binary search finds the number of a row.
        """
        groups = np.pad(self.listed, (0, -len(self.listed) % _FLAGS)).reshape(-1, _FLAGS)
        numbers = [str(int(number)) for number in groups @ (1 << np.arange(_FLAGS, dtype=np.int64))]

        def search(first: int, end: int) -> str:
            """Return an expression that finds, by bisection, the number with the flags of a row.

            `first` and `end` limit the search to `numbers[first:end]`.
            """
            if end - first == 1:
                return numbers[first]
            middle = (first + end) // 2
            return f"if(lt(ld(0),{middle * _FLAGS}),{search(first, middle)},{search(middle, end)})"

        flags = f"bitand({search(0, len(numbers))},pow(2,mod(ld(0),{_FLAGS})))"
        inside = f"gte(pts,{self.grid.first_pts})*lt(ld(0),{len(self.listed)})"
        return f"st(0,{self.grid.row})*0+{inside}*gt({flags},0)"

    def takes(self, shown: int, pts: int | None) -> bool:
        """Return True if ffmpeg selects the frame; see `TimeGrid.takes`."""
        if pts is None or not self.grid.takes(shown, pts):
            return False
        row = self.grid.row_at(pts)
        return row < len(self.listed) and bool(self.listed[row])


@dataclass(frozen=True)
class Count:
    """Selects frames by their number, counted from the first frame that is shown.

    Attributes:
        first: frames before this number are not selected.
        interval: frames with number % interval == 0 are selected.
    """

    first: int
    interval: int

    @property
    def expression(self) -> str:
        """The expression for ffmpeg's select filter."""
        return f"gte(n,{self.first})*not(mod(n,{self.interval}))"

    def takes(self, shown: int, pts: int | None) -> bool:
        """Return True if ffmpeg selects the frame; see `TimeGrid.takes`."""
        return shown >= self.first and shown % self.interval == 0


@dataclass
class CountSince:
    """Selects frames by their number, counted from the frame at a given time.

    ffmpeg stores the count in variable 0 of its expression.

    Attributes:
        first_pts: frames before this time are neither counted nor selected.
        first_row: row of the first frame that is counted.
        interval: rows with index % interval == 0 are selected.
    """

    first_pts: int
    first_row: int
    interval: int
    _counted: int = field(default=0, repr=False)

    @property
    def expression(self) -> str:
        """The expression for ffmpeg's select filter."""
        row = f"{self.first_row - 1}+ld(0)"
        return f"if(gte(pts,{self.first_pts}),st(0,ld(0)+1)*0+not(mod({row},{self.interval})),0)"

    def takes(self, shown: int, pts: int | None) -> bool:
        """Return True if ffmpeg selects the frame; see `TimeGrid.takes`."""
        if pts is None or pts < self.first_pts:
            return False
        self._counted += 1
        return (self.first_row - 1 + self._counted) % self.interval == 0


Selection = TimeGrid | ListedRows | Count | CountSince


def choose_selection(
    info: VideoInfo, interval: int, start: int, *, sought: bool, every_image: bool, sampled: BoolArray | None = None
) -> Selection:
    """Return the rule by which ffmpeg selects the frames of the sampled rows.

    Args:
        info: the probe's description of the video.
        interval: rows with index % interval == 0 are sampled.
        start: first row to deliver.
        sought: True if ffmpeg starts at the keyframe that `seek_row` returned, and not at the beginning.
        every_image: True selects all rows from `start` on, and perhaps some earlier rows. Use this after the decoder has lost
            frames or delivered unexpected frames.
        sampled: (N,) bool, True for the sampled rows; if given, it replaces `interval`.
    """
    every_image = every_image or (sampled is not None and len(sampled) > _MOST_LISTED)
    pts, first_pts = info.pts, int(info.pts[min(start, info.frames - 1)])
    if not info.guessed_times and not len(info.shown_pts) and not every_image and len(pts) > 1:
        rows_per_tick = (len(pts) - 1) / (int(pts[-1]) - int(pts[0]))
        rows = (pts - pts[0]) * rows_per_tick
        if float(np.abs(rows - np.arange(len(pts))).max()) <= _SAFE_ROUNDING:  # if not, the frame rate varies
            grid = TimeGrid(int(pts[0]), rows_per_tick, interval if sampled is None else 1, first_pts)
            return grid if sampled is None else ListedRows(grid, sampled)
    every_image = every_image or sampled is not None
    if sought:
        return CountSince(first_pts, start, 1 if every_image else interval)
    return Count(0, 1) if every_image else Count(start, interval)


def seek_row(info: VideoInfo, start: int) -> int | None:
    """Return the row of the last keyframe at or before row `start`; None if decoding must begin at row 0."""
    if not can_seek(info) or start == 0:
        return None
    before = info.keyframes[info.keyframes <= min(start, info.frames - 1)]
    return int(before[-1]) if len(before) and before[-1] > 0 else None


def can_seek(info: VideoInfo) -> bool:
    """Return True if decoding can begin at a keyframe: the file has an index and exact times."""
    is_indexed = info.demuxer in _INDEXED and info.codec in _CLEAN_KEYFRAMES and not info.edit_list
    return is_indexed and len(info.shown_pts) == 0 and not info.guessed_times


@dataclass(frozen=True)
class Rows:
    """Consecutive rows of a video.

    Attributes:
        first: index of the first row; if the object has no rows, the index of the next row.
        pts: (R,) int64 in the stream's time base.
        decode_ok: (R,) bool, False if the frame is lost or the decoder concealed damage in it.
    """

    first: int
    pts: IndexArray
    decode_ok: BoolArray

    def __len__(self) -> int:
        return len(self.pts)


@dataclass(frozen=True)
class ClipParts:
    """All data of a clip except its pixels.

    Attributes:
        index: number of the clip in its video.
        frame_index: (T,) int64 row of each frame.
        pts: (T,) int64 time of each frame in the stream's time base.
        valid: (T,) bool, True if this clip scores the frame.
        rows: the rows after the previous clip, up to and including this clip's last sample.
    """

    index: int
    frame_index: IndexArray
    pts: IndexArray
    valid: BoolArray
    rows: Rows


def fill_sources(lost: BoolArray) -> IndexArray:
    """Return (T,) positions in a clip: for each frame, the position of the frame whose image it gets.

    All positions are -1 if every frame is lost.

    A lost frame gets the last image before it. If the first frames are lost, they get the first image of the clip. So nothing
    seems to move during the loss. An image of another clip is never used, so that a resumed scan gives the same scores.
    """
    own = np.where(lost, -1, np.arange(len(lost)))
    filled = np.maximum.accumulate(own)
    have = own[own >= 0]
    if len(have):
        filled[filled < 0] = have[0]
    return filled


class ClipAssembler:
    """Collects the rows of a video one by one, and reports when a clip is complete.

    It stores at most T images.

    If `add` or `end` returns True, the next call must be `take`.

    Args:
        plan: the video's plan; if only a part of the video is read, the plan's `since(origin)`.
        shape: (H, W, C) of an image.
        start_clip: first clip to collect. The first row to add is `plan.read_from(start_clip)`.
        origin: sampled row at which clip 0 starts; 0 unless only a part of the video is read.
    """

    def __init__(self, plan: SamplingPlan, shape: tuple[int, int, int], *, start_clip: int = 0, origin: int = 0) -> None:
        self._plan = plan
        self._origin = origin
        self._clip = start_clip
        self._row = origin + plan.read_from(start_clip)
        self._first = origin + plan.first_row(start_clip)
        self._pts = array("q")
        self._ok = bytearray()
        self.shape = shape
        self._images = np.empty((plan.frames, *shape), np.uint8)
        self._sample_pts = np.zeros(plan.frames, np.int64)
        self._lost = np.ones(plan.frames, np.bool_)
        self._sample = plan.samples(self._row - origin)  # the next sample, and its row
        self._sample_row = origin + plan.row(self._sample)
        self._wanted = self._last_row_of(start_clip)

    @property
    def next_row(self) -> int:
        """The next row to add."""
        return self._row

    @property
    def has_image(self) -> bool:
        """True if any of the last T samples was decoded."""
        return not self._lost.all()

    def add(self, pts: int, ok: bool, image: ByteArray | None) -> bool:
        """Add the next row; return True if this row completes a clip.

        Args:
            pts: time of the row.
            ok: False if the frame is lost or the decoder concealed damage in it.
            image: the image of a sampled row, H x W x C bytes; None if the image is lost. Ignored if the row is not sampled.
        """
        row = self._row
        self._row += 1
        if row >= self._first:
            self._pts.append(pts)
            self._ok.append(ok)
        if row != self._sample_row:
            return False
        place = self._sample % self._plan.frames
        self._sample += 1
        self._sample_row = self._origin + self._plan.row(self._sample)
        self._sample_pts[place] = pts
        self._lost[place] = True
        if image is not None:
            self._images[place] = image.reshape(self.shape)
            self._lost[place] = False
        return row == self._wanted

    def end(self) -> bool:
        """Return True if some samples are in no clip yet: they form the last clip.

        Call this when the video has ended.
        """
        return self._plan.samples(self._row - self._origin) > self._plan.first_new_sample(self._clip)

    def take(self, out: ByteArray) -> ClipParts:
        """Write the clip's images into `out` (T, H, W, C), and return all other data of the clip."""
        plan = self._plan
        samples = plan.clip_samples(self._clip, self._row - self._origin)
        places = samples % plan.frames
        repeated = np.diff(samples, prepend=-1) == 0
        lost = self._lost[places]
        for position, source in enumerate(fill_sources(lost)):
            out[position] = self._images[places[source]] if source >= 0 else 0
        parts = ClipParts(
            index=self._clip,
            frame_index=np.array([plan.row(sample) for sample in samples.tolist()], np.int64) + self._origin,
            pts=self._sample_pts[places],
            valid=(samples >= plan.first_new_sample(self._clip)) & ~repeated & ~lost,
            rows=self._cut(self._origin + plan.row(int(samples[-1])) + 1),
        )
        self._clip += 1
        self._wanted = self._last_row_of(self._clip)
        return parts

    def rest(self) -> Rows:
        """Return the rows that come after the rows of the last clip."""
        return self._cut(self._first + len(self._pts))

    def _last_row_of(self, clip: int) -> int:
        return self._origin + self._plan.row(clip * self._plan.stride + self._plan.frames - 1)

    def _cut(self, end: int) -> Rows:
        count = end - self._first
        pts = np.array(self._pts[:count], np.int64)
        rows = Rows(self._first, pts, np.frombuffer(bytes(self._ok[:count]), np.bool_))
        del self._pts[:count], self._ok[:count]
        self._first = end
        return rows
