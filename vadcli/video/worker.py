"""A decoder process: opens one video after the other and puts its clips into shared memory.

It is started by the loader as `python -m vadcli.video.worker PARENT CONNECTION RING`, the loader's process id and two open
descriptors, with a pipe on standard input that ends when the loader's process does. It leads its own session, so that
neither ^C nor a signal to the loader's process group reaches it, and so that it can be killed together with what it
started. Errors of a video are sent, not raised; whatever kills the process is seen by the loader. It never outlives the
loader.
"""

from __future__ import annotations

import os
import pkgutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from vadcli.errors import DecodeError, FileChanged, VideoError
from vadcli.types import VideoInfo
from vadcli.video.container import shown
from vadcli.video.ffmpeg import die_with_parent, private_mib
from vadcli.video.images import ReadRequest
from vadcli.video.sampling import ClipAssembler, Rows, SamplingPlan
from vadcli.video.transport import ClipRequest, Done, Filled, Opened, Ring, Setup, State, read_tail


@dataclass
class _Outcome:
    decoder: str = ""
    complaints: str = ""
    rows: Rows = field(default_factory=lambda: Rows(0, np.zeros(0, np.int64), np.zeros(0, np.bool_)))
    error: VideoError | None = None


@dataclass(frozen=True)
class _Part:
    """A part of a video: its number among those asked for, and the row where it stops."""

    number: int
    stop: int


def burst_rows(info: VideoInfo, plan: SamplingPlan, bursts: tuple[float, ...], *, exact: bool = False) -> list[int]:
    """Sampled rows at which bursts start: right after the keyframe before, where no other burst starts there.

    From a keyframe on nothing is decoded in vain. Positions are wishes unless they are `exact`: a fit does not mind some
    seconds; only reading the same rows twice would teach it nothing.
    """
    rows: list[int] = []
    for position in bursts:
        row = plan.burst_row(position, info.frames)
        if exact:
            rows.append(row)
            continue
        before = info.keyframes[info.keyframes <= row]
        aligned = -(-int(before[-1]) // plan.interval) * plan.interval if len(before) else row
        rows.append(aligned if aligned < row and aligned not in rows else row)
    return rows


class _Worker:
    def __init__(self, connection: Connection, ring: Ring, setup: Setup) -> None:
        self._connection = connection
        self._ring = ring
        self._setup = setup
        self._free = list(range(setup.slots))
        self._probe: Callable[..., VideoInfo] = pkgutil.resolve_name(setup.options.prober)
        self._open_reader: Callable[..., Any] = pkgutil.resolve_name(setup.options.reader)
        self._process = psutil.Process()
        self._probed: tuple[object, VideoInfo] | None = None

    def serve(self) -> None:
        """Work until the loader goes, or until decoding has left too much memory behind."""
        retiring = False
        while not retiring:
            message = self._receive()
            if isinstance(message, ClipRequest):
                outcome = self._decode(message)
                retiring = private_mib(self._process) > self._setup.options.memory_limit_mib / 2
                self._send(Done(outcome.decoder, outcome.rows, outcome.error, outcome.complaints, retiring))

    def _decode(self, request: ClipRequest) -> _Outcome:
        os.ftruncate(sys.stderr.fileno(), 0)
        outcome = _Outcome()
        before = _identity(request.path)
        try:
            if before is None:
                raise FileChanged(f"{shown(request.path)}: gone before it could be opened")
            info = self._probe_once(request, before)
            self._send(Opened(request.video, info))
            if request.bursts:
                self._read_bursts(info, request, outcome)
            elif request.spans:
                self._read_spans(info, request, outcome)
            else:
                self._read_all(info, request.start_clip, outcome)
        except VideoError as error:
            outcome.error = error
        except Exception as error:  # one video must not stop the others, whatever its decoder raises
            outcome.error = DecodeError(f"{shown(request.path)}: {type(error).__name__}: {error}")
        after = _identity(request.path)
        if before != after:
            what = "grew or was rewritten" if after else "vanished"
            outcome.error = FileChanged(f"{shown(request.path)}: {what} while it was read")
        outcome.complaints = outcome.complaints or read_tail(sys.stderr.fileno())
        return outcome

    def _probe_once(self, request: ClipRequest, identity: tuple[int, int]) -> VideoInfo:
        """The probe; the last one where the same file is asked for part after part."""
        key = (request.path, request.fps, identity)
        if self._probed is None or self._probed[0] != key or not any(identity):
            self._probed = (key, self._probe(request.path, fps=request.fps))
        return self._probed[1]

    def _read_all(self, info: VideoInfo, start_clip: int, outcome: _Outcome) -> None:
        plan = SamplingPlan.of(self._setup.needs, info.fps)
        assembler = ClipAssembler(plan, self._shape(info), start_clip=start_clip)
        try:
            self._read(info, plan, assembler, outcome)
        finally:
            outcome.rows = assembler.rest()
        if assembler.next_row == 0:
            raise DecodeError(f"{shown(info.path)}: not one frame could be decoded")

    def _read_bursts(self, info: VideoInfo, request: ClipRequest, outcome: _Outcome) -> None:
        plan = replace(SamplingPlan.of(self._setup.needs, info.fps), overlap=0)
        for number, row in enumerate(burst_rows(info, plan, request.bursts, exact=request.exact)):
            assembler = ClipAssembler(plan, self._shape(info), origin=row)
            self._read(info, plan, assembler, outcome, _Part(number, row + (plan.frames - 1) * plan.interval + 1))

    def _read_spans(self, info: VideoInfo, request: ClipRequest, outcome: _Outcome) -> None:
        plan = replace(SamplingPlan.of(self._setup.needs, info.fps), overlap=0)
        for number, (first, last) in enumerate(request.spans):
            assembler = ClipAssembler(plan, self._shape(info), origin=first)
            self._read(info, plan, assembler, outcome, _Part(number, last))

    def _read(
        self, info: VideoInfo, plan: SamplingPlan, assembler: ClipAssembler, outcome: _Outcome, part: _Part | None = None
    ) -> None:
        start, (height, width, _) = assembler.next_row, assembler.shape
        stop = None if part is None else part.stop
        wanted = ReadRequest(start, plan.interval, width, height, self._setup.needs.pixel_format, stop)
        reader = self._open_reader(info, wanted, decoder=self._setup.options.decoder, threads=self._setup.threads)
        try:
            for frame in reader:
                if frame.index != assembler.next_row:
                    raise DecodeError(f"{shown(info.path)}: row {frame.index} came where row {assembler.next_row} was due")
                self._ring.advance()
                if assembler.add(frame.pts, frame.ok, frame.image):
                    outcome.decoder = reader.decoder
                    self._send_clip(assembler, outcome, part)
        finally:  # what was read before an error counts
            outcome.decoder = reader.decoder
            if assembler.end():
                self._send_clip(assembler, outcome, part)
            reader.close()
            outcome.complaints = reader.complaints

    def _shape(self, info: VideoInfo) -> tuple[int, int, int]:
        width, height = self._setup.needs.size.apply(info.width, info.height)
        return height, width, self._setup.needs.pixel_format.channels

    def _send_clip(self, assembler: ClipAssembler, outcome: _Outcome, part: _Part | None) -> None:
        while not self._free:
            self._receive()
        shape = (self._setup.needs.frames, *assembler.shape)
        seen = assembler.has_picture
        parts = assembler.take(self._ring.slot(self._free[-1], shape))
        if part is not None:
            if not seen:
                return
            parts = replace(parts, index=part.number, rows=Rows(0, parts.rows.pts[:0], parts.rows.decode_ok[:0]))
        self._send(Filled(self._free.pop(), shape, parts, outcome.decoder))

    def _receive(self) -> ClipRequest | None:
        """The next request; None where the message was a slot that is free again."""
        with self._waiting():
            message = self._connection.recv()
        if isinstance(message, ClipRequest):
            return message
        self._free.append(message)
        return None

    def _send(self, message: Opened | Filled | Done) -> None:
        with self._waiting():
            self._connection.send(message)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        self._ring.state = State.WAITING
        try:
            yield
        except (EOFError, OSError):
            os._exit(0)  # the loader is gone, and with it everyone who could be told
        self._ring.advance()
        self._ring.state = State.WORKING


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError:
        return (0, 0)  # there, but closed to us: opening it says why
    return status.st_size, status.st_mtime_ns


def _end_with_loader() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Entry of the process."""
    parent, connection_number, descriptor = map(int, sys.argv[1:])
    die_with_parent(parent)
    connection = Connection(connection_number)
    threading.Thread(target=_end_with_loader, name="end-with-loader", daemon=True).start()
    setup: Setup = connection.recv()
    ring = Ring(descriptor, slots=setup.slots, slot_bytes=setup.needs.max_clip_bytes, writable=True)
    os.close(descriptor)
    _Worker(connection, ring, setup).serve()


if __name__ == "__main__":
    # Nothing to tidy up: some decoders crash when they are torn down, and the loader takes a closed connection for death.
    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
