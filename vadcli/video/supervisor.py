"""Starts, watches and kills decoder processes in a separate thread (`Supervisor`).

This thread lives as long as the loader. The reason: on Linux, a process that asks to die with its parent dies with the *thread*
that started it.
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

from vadcli.errors import DecoderCrashed, DecoderHung, NotFinished, VadcliError, VideoError
from vadcli.types.text import is_remote
from vadcli.video.processes import private_mib, process_trees
from vadcli.video.transport import GROUP_SIGNALS, LoaderOptions, Ring, Setup, State, anonymous_file, read_tail

_START_S = 60.0  # a process may take this long to start, even if `timeout_s` is shorter
_LONGEST_TICK_S = 1.0
_REAP_S = 5.0  # the loader waits this long for the end of a killed process
_READ_AHEAD_BYTES = 64 << 20
_REMOTE_BYTES = 1 << 40  # used for an object of a store, because its size is not known yet
_STDERR_LIMIT_BYTES = 1 << 20


class DecoderProcess:
    """A decoder process (`vadcli.video.worker`) with its connection, its ring and its standard error.

    Create it in a thread that outlives it.

    Attributes:
        process: the running process as a `psutil.Process`.
    """

    def __init__(self, setup: Setup) -> None:
        slot_bytes = setup.needs.max_clip_bytes
        descriptor = anonymous_file(Ring.size(setup.slots, slot_bytes))
        self._stderr = anonymous_file(0)
        fcntl.fcntl(self._stderr, fcntl.F_SETFL, fcntl.fcntl(self._stderr, fcntl.F_GETFL) | os.O_APPEND)
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
        self._kill_reason: tuple[type[VideoError], str] | None = None
        self._killed_at = 0.0
        self.send(setup)

    def _start(self, connection: Connection, descriptor: int) -> subprocess.Popen[bytes]:
        numbers = (connection.fileno(), descriptor)
        # With -P and this sys.path, the worker imports the same modules as this process. -P leaves out the current folder.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        # A signal to our process group must not end the worker before it has its own session. The worker discards the signal.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
        try:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "vadcli.video.worker", *map(str, (os.getpid(), *numbers))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=numbers,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def send(self, message: object) -> bool:
        """Send a message; return False if the process has ended."""
        try:
            self.connection.send(message)
        except OSError:
            return False
        return True

    def expect(self, path: Path) -> None:
        """Announce the file of the next request: reading it counts as progress. Call this before `send`."""
        with contextlib.suppress(OSError):
            size = _REMOTE_BYTES if is_remote(path) else path.stat().st_size
            self._bytes_allowed = 2 * size + _READ_AHEAD_BYTES

    def check(self, elapsed_s: float, options: LoaderOptions, tree: list[psutil.Process]) -> None:
        """Kill the process and its children if it made no progress for too long or holds too much memory.

        Args:
            elapsed_s: seconds since the last check.
            options: the limits.
            tree: the process and all its descendants.
        """
        if os.fstat(self._stderr).st_size > _STDERR_LIMIT_BYTES:
            os.ftruncate(self._stderr, 0)
        starting = self.ring.state is State.STARTING
        self._stalled_s = 0.0 if self._has_progressed(tree) else self._stalled_s + elapsed_s
        memory_mib = sum(map(private_mib, tree))
        if self._stalled_s >= (max(options.timeout_s, _START_S) if starting else options.timeout_s):
            stalled = f"the decoder made no progress for {options.timeout_s:g} s"
            if self.ring.state is State.FETCHING:
                self._kill_for(NotFinished, f"the object store sent nothing for {options.timeout_s:g} s")
            elif any(map(_waits_for_storage, tree)):
                self._kill_for(NotFinished, f"{stalled} because the storage did not answer, and was killed")
            else:
                self._kill_for(DecoderHung, f"{stalled} and was killed")
        elif memory_mib > options.memory_limit_mib:
            limit = f"more than the {options.memory_limit_mib} MiB allowed"
            self._kill_for(DecoderCrashed, f"the decoder took {memory_mib:.0f} MiB, {limit}, and was killed")

    def _has_progressed(self, tree: list[psutil.Process]) -> bool:
        progress, bytes_read = self.ring.progress, sum(map(_bytes_read, tree))
        more, self._bytes_read = bytes_read - self._bytes_read, bytes_read
        if progress != self._progress or self.ring.state is State.WAITING:
            self._progress, self._bytes_left = progress, self._bytes_allowed
            return True
        # While a decoder opens a long file or seeks in it, it delivers no frame. So reading bytes counts as progress too, until
        # it has read as many bytes as the file has, twice.
        self._bytes_left -= max(0, more)
        return more > 0 and self._bytes_left > 0

    def _kill_for(self, kind: type[VideoError], text: str) -> None:
        if self._kill_reason is None:
            self._kill_reason = (kind, text)
            self._killed_at = time.monotonic()
            self._kill()

    @property
    def survives_kill(self) -> bool:
        """Whether the process does not end after a kill, for example if it reads from a lost network drive."""
        return self._kill_reason is not None and time.monotonic() - self._killed_at > _REAP_S

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def reap(self) -> tuple[VideoError, str]:
        """Kill the process and its children, and free its memory. Return the reason and its stderr.

        Before this call, the supervisor must have stopped watching the process. Slots that are still in use stay readable.
        """
        self._kill()  # kill first: after the wait, the process id may belong to another process
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_REAP_S)
        stderr = read_tail(self._stderr)
        kind, text = self._kill_reason or _cause(self._popen.returncode, stderr)
        if self._popen.returncode is None:
            kind, text = _cause(None, stderr)
        self.connection.close()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        os.close(self._stderr)
        self.ring.close()
        return kind(text), stderr


def _waits_for_storage(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_DISK_SLEEP)
    except (psutil.Error, OSError):
        return False


def _bytes_read(process: psutil.Process) -> int:
    try:
        return int(process.io_counters().read_chars)
    except (psutil.Error, OSError, AttributeError):  # the process has ended, or the system does not count bytes
        return 0


def _cause(code: int | None, stderr: str) -> tuple[type[VideoError], str]:
    """Return the error type and message for a process that was not killed here."""
    if code is None:
        return NotFinished, "the decoder hangs in a system call and cannot be killed; perhaps a network drive is lost"
    if code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP):
        name = signal.Signals(-code).name
        return NotFinished, f"the decoder was killed from outside ({name}), perhaps because memory ran out"
    if code < 0:
        return DecoderCrashed, f"the decoder died of {signal.Signals(-code).name}"
    last = stderr.splitlines()[-1] if stderr else "no message"
    return DecoderCrashed, f"the decoder ended with exit code {code}: {last}"


class Supervisor:
    """The thread that starts decoder processes and watches them until they are reaped."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._tick_s = min(_LONGEST_TICK_S, setup.options.timeout_s / 4)
        self._orders: queue.SimpleQueue[Future[DecoderProcess] | None] = queue.SimpleQueue()
        self._processes: list[DecoderProcess] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="vadcli-decoder-supervisor", daemon=True)
        self._thread.start()

    def start(self) -> DecoderProcess:
        """Start a process and watch it from now on."""
        order: Future[DecoderProcess] = Future()
        self._orders.put(order)
        return order.result()

    def reap(self, process: DecoderProcess) -> tuple[VideoError, str]:
        """Stop watching a process and reap it; returns what `DecoderProcess.reap` returns."""
        with self._lock:
            self._processes.remove(process)
        return process.reap()

    def stop(self) -> None:
        """Reap all processes and end the thread; a second call does nothing."""
        self._orders.put(None)
        self._thread.join()
        while self._processes:
            self.reap(self._processes[-1])

    def _watch(self) -> None:
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
            # Limited, because time does not count while this process or the whole machine is suspended.
            elapsed_s, before = min(now - before, 2 * self._tick_s), now
            with self._lock:
                trees = process_trees([process.process for process in self._processes])
                for process, tree in zip(self._processes, trees, strict=True):
                    process.check(elapsed_s, self._setup.options, tree)

    def _fill(self, order: Future[DecoderProcess]) -> None:
        try:
            process = DecoderProcess(self._setup)
        except Exception as error:  # the thread that waits in `start` must get the error
            order.set_exception(VadcliError(f"no decoder process can be started: {error}"))
            return
        with self._lock:
            self._processes.append(process)
        order.set_result(process)
