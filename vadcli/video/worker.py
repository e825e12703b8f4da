"""The program of a decoder process: reads videos, and writes their clips to shared memory.

`vadcli.video.start_worker` starts this program as `python -m vadcli.video.worker PARENT CONNECTION`. PARENT is the id of the
loader's process, and CONNECTION is an open descriptor.

The process leads its own session. So Ctrl-C and signals to the loader's process group do not reach it, and it can be killed
together with its children. Its standard input is a pipe. When the loader's process ends, the pipe closes, and the decoder
process ends too.

If a video cannot be read, the error is sent to the loader and not raised.
"""

from __future__ import annotations

import errno
import mmap
import os
import pkgutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from vadcli.errors import DecodeError, FileChanged, NotFinished, ToolError, VideoError
from vadcli.types import NO_REGIONS, DecoderChoice, DecoderName, VideoInfo
from vadcli.types.media import Blanker
from vadcli.types.text import is_remote, shown
from vadcli.video import GROUP_SIGNALS
from vadcli.video.container import path_text
from vadcli.video.decoders import MACHINE_ERRORS, ReadRequest
from vadcli.video.ffmpeg import check_ffmpeg, ffmpeg_version
from vadcli.video.sampling import ClipAssembler, Rows, SamplingPlan, can_skip, needed_for, rows_as_flags
from vadcli.video.supervisor import (
    Begun,
    ClipRequest,
    Done,
    Filled,
    LoaderOptions,
    Opened,
    Ring,
    Setup,
    State,
    die_with_parent,
    private_mib,
    read_tail,
)

_SAMPLE_BYTES = 1 << 16
_READ_BYTES = 1 << 22
_SCARCE_BYTES = 256 << 20


@dataclass
class _Outcome:
    decoder: str = ""
    complaints: str = ""
    note: str = ""
    is_short: bool = False  # frames are missing or damaged
    rows: Rows = field(default_factory=lambda: Rows(0, np.zeros(0, np.int64), np.zeros(0, np.bool_)))
    error: VideoError | None = None


@dataclass(frozen=True)
class _Part:
    """A burst or span to read: its index in the request, and the row after its last row."""

    number: int
    stop: int


def burst_rows(info: VideoInfo, plan: SamplingPlan, bursts: tuple[float, ...], *, exact: bool = False) -> list[int]:
    """Return the sampled row at which each burst starts.

    A burst is a single clip at some place in the video.

    Args:
        info: the probe's description of the video.
        plan: which rows are sampled.
        bursts: the positions of the bursts in [0, 1).
        exact: True if each burst starts exactly at its position. False is faster: a burst starts at the last keyframe before
            its position, or at the first sampled row after this keyframe. There is one exception: if another burst already
            starts there, the burst starts at its own position, so that the same frames are not used twice.
    """
    rows: list[int] = []
    for position in bursts:
        row = plan.burst_row(position, info.frames)
        if exact:
            rows.append(row)
            continue
        before = info.keyframes[info.keyframes <= row]
        aligned = plan.row(plan.samples(int(before[-1]))) if len(before) else row
        rows.append(aligned if aligned < row and aligned not in rows else row)
    return rows


class _DecoderWorker:
    def __init__(self, connection: Connection, ring: Ring, setup: Setup) -> None:
        self._connection = connection
        self._ring = ring
        self._setup = setup
        self._free = list(range(setup.slots))
        self._probe: Callable[..., VideoInfo] = pkgutil.resolve_name(setup.options.prober)
        self._open_reader: Callable[..., Any] = pkgutil.resolve_name(setup.options.reader)
        self._process = psutil.Process()
        self._probed: tuple[object, VideoInfo] | None = None
        self._decoder: DecoderChoice | None = None
        self._regions = NO_REGIONS
        self._damaged = False
        self._blanker: tuple[object, Blanker] | None = None

    def serve(self) -> None:
        """Read the requested videos until the loader ends, or until decoding has leaked too much memory."""
        retiring = False
        while not retiring:
            message = self._receive()
            if isinstance(message, ClipRequest):
                outcome = self._decode(message)
                retiring = private_mib(self._process) > self._setup.options.memory_limit_mib / 2
                self._send(Done(outcome.decoder, outcome.rows, outcome.error, outcome.complaints, retiring, outcome.note))

    def _decode(self, request: ClipRequest) -> _Outcome:
        if not is_remote(request.path):
            return self._decode_file(request)
        from vadcli.video.objects import local_copy

        self._ring.state = State.FETCHING
        try:
            with local_copy(request.path, self._ring.advance) as path:
                self._ring.state = State.WORKING
                outcome = self._decode_file(replace(request, path=path))
        except VideoError as error:
            return _Outcome(error=error)
        if outcome.error is not None:
            message = outcome.error.message.replace(path_text(path), shown(request.path))
            outcome.error = type(outcome.error)(message, hint=outcome.error.hint)
        return outcome

    def _decode_file(self, request: ClipRequest) -> _Outcome:
        os.ftruncate(sys.stderr.fileno(), 0)
        outcome = _Outcome()
        self._decoder, self._regions, self._damaged = request.decoder, request.regions, request.damaged
        before: tuple[int, int] | None = None
        try:
            before = _identity(request.path)
            key = (request.path, request.fps, before)
            if self._probed is None or self._probed[0] != key or not any(before):  # otherwise, reuse the last probe
                self._probed = (key, self._probe(request.path, fps=request.fps))
            info = self._probed[1]
            self._send(Opened(request.video, info))
            if request.bursts or request.spans:
                self._read_parts(info, request, outcome)
            else:
                self._read_all(info, request.start_clip, outcome)
        except VideoError as error:
            outcome.error = error
        except Exception as error:  # if a decoder raises an unknown error, the other videos must still be read
            outcome.error = DecodeError(f"{path_text(request.path)}: {type(error).__name__}: {error}")
        outcome.complaints = outcome.complaints or read_tail(sys.stderr.fileno())
        try:
            _check_cause(request.path, before, outcome)
        except NotFinished as error:
            outcome.error = error
        return outcome

    def _read_all(self, info: VideoInfo, start_clip: int, outcome: _Outcome) -> None:
        plan = SamplingPlan.of(self._setup.needs, info)
        assembler = ClipAssembler(plan, self._shape(info), start_clip=start_clip)
        try:
            self._read(info, plan, assembler, outcome)
        finally:
            outcome.rows = assembler.rest()
        outcome.is_short = outcome.is_short or assembler.next_row < info.frames
        if assembler.next_row == 0:
            raise DecodeError(f"{path_text(info.path)}: no frame could be decoded")

    def _read_parts(self, info: VideoInfo, request: ClipRequest, outcome: _Outcome) -> None:
        """Read the bursts or spans of a request. Each part is cut into clips like a separate video."""
        plan = replace(SamplingPlan.of(self._setup.needs, info), overlap=0)
        parts = [(first, _Part(number, last)) for number, (first, last) in enumerate(request.spans)]
        for number, row in enumerate(burst_rows(info, plan, request.bursts, exact=request.exact)):
            parts.append((row, _Part(number, row + plan.since(row).row(plan.frames - 1) + 1)))
        for first, part in parts:
            assembler = ClipAssembler(plan.since(first), self._shape(info), origin=first)
            self._read(info, plan, assembler, outcome, part)

    def _read(
        self, info: VideoInfo, plan: SamplingPlan, assembler: ClipAssembler, outcome: _Outcome, part: _Part | None = None
    ) -> None:
        start, (height, width, _) = assembler.next_row, assembler.shape
        stop = None if part is None else part.stop
        read_request = ReadRequest(start, plan.interval, width, height, self._setup.needs.pixel_format, stop)
        if plan.rows is not None:
            only_keys = self._setup.needs.decode == "key"
            sampled, keys = rows_as_flags(plan.rows, info.frames), rows_as_flags(info.keyframes, info.frames)
            needed = (keys if only_keys else info.reference) if can_skip(info) and not self._damaged else None
            read_request = replace(read_request, sampled=sampled, needed=needed, only_keys=only_keys)
        elif stop is not None and can_skip(info):
            # The rows of a part are not reported. So it does not matter if a frame that is left out is damaged.
            rows = np.arange(start, min(stop, info.frames), plan.interval, dtype=np.int64)
            needed, only_keys = needed_for(info, rows)
            if needed is not None:
                sampled = rows_as_flags(rows, info.frames)
                read_request = replace(read_request, sampled=sampled, needed=needed, only_keys=only_keys)
        decoder = self._decoder or self._setup.options.decoder
        reader = self._open_reader(info, read_request, decoder=decoder, threads=self._setup.threads)
        self._send(Begun(reader.decoder))
        try:
            for frame in reader:
                outcome.is_short = outcome.is_short or not frame.ok
                if frame.index != assembler.next_row:
                    expected = assembler.next_row
                    raise DecodeError(
                        f"{path_text(info.path)}: the decoder delivered frame {frame.index} instead of {expected}"
                    )
                self._ring.advance()
                if assembler.add(frame.pts, frame.ok, frame.image):
                    outcome.decoder = reader.decoder
                    self._send_clip(assembler, outcome, part)
        finally:  # also after an error: the frames that were read before it are sent
            outcome.decoder = reader.decoder
            if assembler.end():
                self._send_clip(assembler, outcome, part)
            reader.close()
            outcome.complaints = reader.complaints
            outcome.note = outcome.note or getattr(reader, "note", "")

    def _shape(self, info: VideoInfo) -> tuple[int, int, int]:
        width, height = self._setup.needs.size.apply(info.width, info.height)
        return height, width, self._setup.needs.pixel_format.channels

    def _send_clip(self, assembler: ClipAssembler, outcome: _Outcome, part: _Part | None) -> None:
        while not self._free:
            self._receive()
        shape = (self._setup.needs.frames, *assembler.shape)
        seen = assembler.has_image
        slot = self._ring.slot(self._free[-1], shape)
        parts = assembler.take(slot)
        if self._regions:  # hide them here, so that no detector gets these pixels
            height, width, _ = assembler.shape
            key = (self._regions, width, height)
            if self._blanker is None or self._blanker[0] != key:
                self._blanker = (key, Blanker(self._regions, width, height))
            self._blanker[1].blank(slot)
        if part is not None:
            if not seen:
                return
            parts = replace(parts, index=part.number, rows=Rows(0, parts.rows.pts[:0], parts.rows.decode_ok[:0]))
        self._send(Filled(self._free.pop(), shape, parts, outcome.decoder))

    def _receive(self) -> ClipRequest | None:
        """Return the next request; None if the next message is the number of a free slot."""
        with self._waiting():
            message = self._connection.recv()
        if isinstance(message, ClipRequest):
            return message
        self._free.append(message)
        return None

    def _send(self, message: Opened | Begun | Filled | Done) -> None:
        with self._waiting():
            self._connection.send(message)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self._ring.state = State.WAITING
        try:
            yield
        except (EOFError, OSError):
            os._exit(0)  # the loader has ended
        self._ring.advance()
        self._ring.state = State.WORKING


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise FileChanged(f"{path_text(path)}: vanished") from error
    except OSError as error:
        raise NotFinished(f"{path_text(path)}: can't be read at the moment: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _check_cause(path: Path, before: tuple[int, int] | None, outcome: _Outcome) -> None:
    """Raise an error if the video itself is not the cause of missing frames.

    FileChanged: the file changed while it was read. NotFinished: frames are missing because of the machine.
    """
    if isinstance(outcome.error, NotFinished):
        return
    if _identity(path) != before:
        raise FileChanged(f"{path_text(path)}: grew or was rewritten while it was read")
    if outcome.error is not None or outcome.is_short:
        check_machine(path, f"{outcome.error} {outcome.complaints}")
    if isinstance(outcome.error, DecodeError) and outcome.decoder == DecoderName.FFMPEG:
        check_ffmpeg()


def check_machine(path: Path, messages: str) -> None:
    """Raise NotFinished if the machine is the reason why a video could not be read completely.

    Faults of the machine are temporary: for example, a network share is lost, or memory runs out. After a fault of the machine,
    nothing is stored for the video, so the next run tries again.

    Two messages of ffmpeg's libraries can also come from a damaged file: "Input/output error" if the file is cut short, and
    "Cannot allocate memory" if a header asks for too much memory. So these two errors count as faults of the machine only if
    this function finds them too, without ffmpeg.

    Args:
        path: the file, or the folder of images.
        messages: all messages about the problem.
    """
    name = path_text(path)
    for number in sorted(MACHINE_ERRORS):
        if os.strerror(number) in messages:
            raise NotFinished(f"{name}: can't be read at the moment: {os.strerror(number)}")
    if os.strerror(errno.ENOMEM) in messages or "MemoryError" in messages:
        try:  # check if memory is still scarce, although the video is closed
            is_scarce = psutil.virtual_memory().available < _SCARCE_BYTES
            with closing(mmap.mmap(-1, _SCARCE_BYTES)):
                pass
        except (OSError, ValueError):
            is_scarce = True
        if is_scarce:
            raise NotFinished(f"{name}: the machine has too little memory at the moment")
    whole = os.strerror(errno.EIO) in messages  # True reads every file completely; False reads samples
    try:
        files = [path]
        if path.is_dir():
            entries = sorted(entry for entry in path.iterdir() if entry.is_file())
            files = entries if whole else entries[:1] + entries[-1:]
        for file_path in files:
            with file_path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                while whole and file.read(_READ_BYTES):
                    pass
                for start in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
                    os.pread(file.fileno(), _SAMPLE_BYTES, start)
    except OSError as error:
        raise NotFinished(f"{name}: can't be read at the moment: {error.strerror}") from error


def _end_with_loader() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Run the decoder process until the loader ends."""
    parent, connection_number = map(int, sys.argv[1:])
    # Signals to the loader's process group may have come while this process started. Discard them; later signals work as usual.
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    die_with_parent(parent)
    connection = Connection(connection_number)
    threading.Thread(target=_end_with_loader, name="end-with-loader", daemon=True).start()
    for usual in (LoaderOptions.prober, LoaderOptions.reader):  # import both now: the loader may not be ready yet
        pkgutil.resolve_name(usual)
    with suppress(ToolError):  # ask for the version now for the same reason; the answer is cached
        ffmpeg_version()
    setup: Setup = connection.recv()
    descriptor = recv_handle(connection)
    ring = Ring(descriptor, slots=setup.slots, slot_bytes=setup.needs.max_clip_bytes, writable=True)
    os.close(descriptor)
    _DecoderWorker(connection, ring, setup).serve()


if __name__ == "__main__":
    # Some decoders crash in Python's clean-up, so os._exit skips it. The loader only needs the connection to be closed.
    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
