"""Reads videos: `probe` describes a file, `reader` reads its frames, and `loader` reads its clips.

This package imports only the types, options and errors of vadcli. It scores no frames, writes no outputs and knows no detector.

This file starts decoder processes. It imports little, so a command can start its first decoder process before it imports the
scan engine (`early_worker`). So the process and the command load their modules at the same time.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe

GROUP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})
"""The signals that a terminal or a service manager sends to all processes of a group."""

REAP_S = 5.0
"""A killed process has this long to end."""

_early: list[StartedWorker] = []


@dataclass(frozen=True)
class StartedWorker:
    """A decoder process that waits for its settings.

    Attributes:
        process: the process; it is the leader of its own session.
        connection: the loader's end of the pipe for messages.
        stderr: descriptor of the temporary file that receives the standard error of the process.
    """

    process: subprocess.Popen[bytes]
    connection: Connection
    stderr: int

    def kill(self) -> None:
        """Tell the kernel to kill the process and its children; do not wait."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Kill the process and its children, and wait at most `REAP_S` seconds until the process has ended.

        Without this limit, a process that reads from a lost network drive could block this function forever.
        """
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(REAP_S)

    def close(self) -> None:
        """Close the pipe, the standard input and the standard error."""
        self.connection.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        os.close(self.stderr)


@contextmanager
def early_worker() -> Iterator[None]:
    """Start a decoder process for the first loader that needs one.

    If no loader has taken the process when the `with` block ends, the process is killed.

    Use it in the main thread: on Linux, a decoder process dies with the thread that started it. If the process can't be started
    here, no error is raised: the loader tries again later, and reports the error if there is one.
    """
    with suppress(OSError):
        _early.append(start_worker())
    try:
        yield
    finally:
        while _early:
            worker = _early.pop()
            worker.reap()
            worker.close()


def take_worker() -> StartedWorker:
    """Return the decoder process that `early_worker` started; start a new process if there is none."""
    try:
        return _early.pop()
    except IndexError:
        return start_worker()


def start_worker() -> StartedWorker:
    """Start a decoder process, `vadcli.video.worker`."""
    stderr = anonymous_file(0)
    fcntl.fcntl(stderr, fcntl.F_SETFL, fcntl.fcntl(stderr, fcntl.F_GETFL) | os.O_APPEND)
    connection, theirs = Pipe()
    # The worker must import the same modules as this process. So it gets this process's sys.path, and -P keeps Python from
    # adding the current folder.
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    # A signal to this process's group must not end the worker before the worker has its own session. So these signals are
    # blocked in the worker until the worker discards them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vadcli.video.worker", str(os.getpid()), str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
        )
    except OSError:
        connection.close()
        os.close(stderr)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return StartedWorker(process, connection, stderr)


def anonymous_file(size: int) -> int:
    """Return a descriptor of `size` bytes of shared memory, all zero; the caller closes it.

    If the system has no memfd, this is a temporary file without a name.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("vadcli")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
