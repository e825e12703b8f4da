"""Decoder processes as the loader sees them: started, watched and killed here, from one thread of their own.

The thread that starts them lives as long as the loader, because on Linux a process that asked to die with its parent
dies with the *thread* that started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import psutil

from vadcli.errors import DecoderCrashed, DecoderHung, VadcliError, VideoError
from vadcli.video.ffmpeg import families, private_mib
from vadcli.video.transport import LoaderOptions, Ring, Setup, State, anonymous_file, read_tail

_START_S = 60.0
_LONGEST_TICK_S = 1.0
_REAP_S = 5.0
_READ_AHEAD_BYTES = 64 << 20
_WORDS_LIMIT_BYTES = 1 << 20


class DecoderProcess:
    """One `vadcli.video.worker` with its connection, its ring and the file that its standard error goes to.

    Must be made in a thread that outlives it.

    Attributes:
        process: the worker, for looking at.
    """

    def __init__(self, setup: Setup) -> None:
        slot_bytes = setup.needs.max_clip_bytes
        descriptor = anonymous_file(Ring.size(setup.slots, slot_bytes))
        self._words = anonymous_file(0)
        fcntl.fcntl(self._words, fcntl.F_SETFL, fcntl.fcntl(self._words, fcntl.F_GETFL) | os.O_APPEND)
        self.connection, theirs = Pipe()
        try:
            self.ring = Ring(descriptor, slots=setup.slots, slot_bytes=slot_bytes, writable=False)
            self._popen = self._start(theirs, descriptor)
        finally:
            theirs.close()
            os.close(descriptor)
        self.process = psutil.Process(self._popen.pid)
        self._progress = 0
        self._stalled_s = 0.0
        self._bytes_read = self._bytes_left = self._bytes_allowed = 0
        self._verdict: tuple[type[VideoError], str] | None = None
        self._condemned_at = 0.0
        self.send(setup)

    def _start(self, connection: Connection, descriptor: int) -> subprocess.Popen[bytes]:
        numbers = (connection.fileno(), descriptor)
        # -P and sys.path: it imports what this process would import, and nothing from the folder it happens to run in.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "vadcli.video.worker", *map(str, (os.getpid(), *numbers))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._words,
            pass_fds=numbers,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
        )

    def send(self, message: object) -> bool:
        """Send a message; False if the process is gone."""
        try:
            self.connection.send(message)
        except OSError:
            return False
        return True

    def expect(self, path: Path) -> None:
        """Say which file it is about to read, before the request is sent."""
        with contextlib.suppress(OSError):
            self._bytes_allowed = 2 * path.stat().st_size + _READ_AHEAD_BYTES

    def check(self, elapsed_s: float, options: LoaderOptions, family: list[psutil.Process]) -> None:
        """Kill it if it has stood still for too long or holds too much memory, with what it started."""
        if os.fstat(self._words).st_size > _WORDS_LIMIT_BYTES:
            os.ftruncate(self._words, 0)
        starting = self.ring.state is State.STARTING
        self._stalled_s = 0.0 if self._moved(family) else self._stalled_s + elapsed_s
        memory_mib = sum(map(private_mib, family))
        if self._stalled_s >= (max(options.timeout_s, _START_S) if starting else options.timeout_s):
            self._condemn(DecoderHung, f"the decoder stood still for {options.timeout_s:g} s and was killed")
        elif memory_mib > options.memory_limit_mib:
            text = (
                f"the decoder took {memory_mib:.0f} MiB, more than the {options.memory_limit_mib} MiB allowed, and was killed"
            )
            self._condemn(DecoderCrashed, text)

    def _moved(self, family: list[psutil.Process]) -> bool:
        progress, bytes_read = self.ring.progress, sum(map(_bytes_read, family))
        more, self._bytes_read = bytes_read - self._bytes_read, bytes_read
        if progress != self._progress or self.ring.state is State.WAITING:
            self._progress, self._bytes_left = progress, self._bytes_allowed
            return True
        # Opening a long file, or looking for the middle of one, brings no rows for a while: reading on is progress too,
        # until everything could have been read twice.
        self._bytes_left -= max(0, more)
        return more > 0 and self._bytes_left > 0

    def _condemn(self, kind: type[VideoError], text: str) -> None:
        if self._verdict is None:
            self._verdict = (kind, text)
            self._condemned_at = time.monotonic()
            self._kill()

    @property
    def beyond_killing(self) -> bool:
        """True where it was killed and is still there, as in a read from a network drive that is gone."""
        return self._verdict is not None and time.monotonic() - self._condemned_at > _REAP_S

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def bury(self) -> tuple[VideoError, str]:
        """Kill it and all it started, free what it held, and say what it died of and its last words.

        The watching thread must have forgotten it. Slots that are still being looked at stay readable.
        """
        self._kill()  # before it is waited for, while its number can't belong to another
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_REAP_S)
        words = read_tail(self._words)
        kind, text = self._verdict or (DecoderCrashed, _cause(self._popen.returncode, words))
        self.connection.close()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        os.close(self._words)
        self.ring.close()
        return kind(text), words


def _bytes_read(process: psutil.Process) -> int:
    try:
        return int(process.io_counters().read_chars)
    except (psutil.Error, OSError, AttributeError):  # gone, or a system that doesn't count them
        return 0


def _cause(code: int | None, words: str) -> str:
    if code is None:
        return "the decoder hangs in the system and can't be killed"
    if code == -signal.SIGKILL:
        return "the decoder was killed from outside (SIGKILL), perhaps for want of memory"
    if code < 0:
        return f"the decoder died of {signal.Signals(-code).name}"
    last = words.splitlines()[-1] if words else "no word"
    return f"the decoder ended with exit code {code}: {last}"


class Keeper:
    """The thread that starts decoder processes and looks after them until they are buried."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._tick_s = min(_LONGEST_TICK_S, setup.options.timeout_s / 4)
        self._orders: queue.SimpleQueue[Future[DecoderProcess] | None] = queue.SimpleQueue()
        self._processes: list[DecoderProcess] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="vadcli-decoder-keeper", daemon=True)
        self._thread.start()

    def start(self) -> DecoderProcess:
        """A new process, watched from now on."""
        order: Future[DecoderProcess] = Future()
        self._orders.put(order)
        return order.result()

    def bury(self, process: DecoderProcess) -> tuple[VideoError, str]:
        """Forget a process and bury it."""
        with self._lock:
            self._processes.remove(process)
        return process.bury()

    def stop(self) -> None:
        """Bury all processes and end the thread. May be called again."""
        self._orders.put(None)
        self._thread.join()
        while self._processes:
            self.bury(self._processes[-1])

    def _keep(self) -> None:
        before = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                order = self._orders.get(timeout=max(0.0, before + self._tick_s - time.monotonic()))
                if order is None:
                    return
                self._fill(order)
            now = time.monotonic()
            if now - before < self._tick_s:
                continue
            # After a pause of this whole machine or process nobody has stood still longer than a tick or two.
            elapsed_s, before = min(now - before, 2 * self._tick_s), now
            with self._lock:
                found = families([process.process for process in self._processes])
                for process, family in zip(self._processes, found, strict=True):
                    process.check(elapsed_s, self._setup.options, family)

    def _fill(self, order: Future[DecoderProcess]) -> None:
        try:
            process = DecoderProcess(self._setup)
        except Exception as error:  # whoever waits for the order must hear of it
            order.set_exception(VadcliError(f"no decoder process can be started: {error}"))
            return
        with self._lock:
            self._processes.append(process)
        order.set_result(process)
