"""Starts decoder processes quickly, as forks of a server that has already imported their modules.

A decoder process takes 0.3 s to import its modules, and the tests start thousands of decoders. After `install`, the loaders of
this process use the server at the address in the environment variable SERVER. Without this variable, they start decoders as
users do. `install` also works in forks of `tests/fork_server.py`. Tests of the decoder processes themselves, and commands in
new processes, start decoders as users do.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SERVER = "TEST_DECODER_SERVER"
"""The environment variable with the address of the server. Without it, loaders start processes as users do."""
IMPORTED = ("vadcli.video.worker", "vadcli.video.probe", "vadcli.video.reader", "decord", "PIL.Image")


class ForkedDecoder:
    """A decoder that the server forks, with the parts of subprocess.Popen that the supervisor uses."""

    def __init__(self, command: Sequence[str], *, stderr: int, pass_fds: Sequence[int], env: Mapping[str, str]) -> None:
        self.returncode: int | None = None
        read, write = os.pipe()
        self.stdin = os.fdopen(write, "wb")
        self._server = socket.socket(socket.AF_UNIX)
        try:
            self._server.connect(os.environ[SERVER])
            request = json.dumps({"path": env["PYTHONPATH"], "environment": dict(env), "cwd": os.getcwd()}).encode()
            socket.send_fds(self._server, [len(request).to_bytes(4, "big")], [read, stderr, *pass_fds])
            self._server.sendall(request)
            self.pid = int.from_bytes(self._server.recv(4), "big")
        finally:
            os.close(read)

    def wait(self, timeout: float) -> int:
        """See subprocess.Popen."""
        if self.returncode is None:
            self._server.settimeout(timeout)
            try:
                self.returncode = int.from_bytes(self._server.recv(4), "big", signed=True)
            except TimeoutError as error:
                raise subprocess.TimeoutExpired("a decoder", timeout) from error
            self._server.close()
        return self.returncode


def _popen(command: Sequence[str], **given: Any) -> ForkedDecoder | subprocess.Popen[bytes]:
    if SERVER not in os.environ:
        return subprocess.Popen(command, **given)
    return ForkedDecoder(command, **{name: given[name] for name in ("stderr", "pass_fds", "env")})


def install() -> None:
    """Let the loaders of this process use the server."""
    from vadcli import video

    names = ("PIPE", "DEVNULL", "TimeoutExpired")
    video.subprocess = SimpleNamespace(Popen=_popen, **{name: getattr(subprocess, name) for name in names})  # type: ignore


def start_server() -> str:
    """Start a server that ends with this process, and return its address."""
    address = Path(tempfile.mkdtemp()) / "decoders"
    command = [sys.executable, "-m", "tests.decoder_forks", str(address)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # a process with threads cannot be forked safely
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1], env=environment
    )
    assert server.stdout is not None
    server.stdout.readline()
    atexit.register(server.communicate)
    return str(address)


def serve(address: str) -> None:
    """Fork decoders until stdin ends.

    Each decoder sends its process id to its caller; the server sends the exit code.
    """
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # otherwise the garbage collector of a fork would visit, and so copy, the memory of all modules
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("ready", flush=True)
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready in select.select([0, listener.fileno(), *running], [], [])[0]:
            if ready == 0:
                return
            if ready == listener.fileno():
                caller = listener.accept()[0]
                pid = _fork(caller, listener)
                running[os.pidfd_open(pid)] = pid, caller
            else:
                pid, caller = running.pop(ready)
                os.close(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with caller:
                    caller.sendall(code.to_bytes(4, "big", signed=True))


def _fork(caller: socket.socket, listener: socket.socket) -> int:
    size, descriptors, _, _ = socket.recv_fds(caller, 4, 8)
    request = json.loads(caller.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    server = os.getpid()
    pid = os.fork()
    if pid:
        for each in descriptors:
            os.close(each)
        return pid
    try:
        listener.close()
        _become_worker(request, descriptors, server)
        caller.sendall(os.getpid().to_bytes(4, "big"))
        caller.close()
        from vadcli.video import worker

        worker.main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _become_worker(request: Mapping[str, Any], descriptors: Sequence[int], server: int) -> None:
    """Take over the streams, environment and arguments that `start_worker` gives to a decoder."""
    from vadcli.video import GROUP_SIGNALS

    stdin, stderr, *numbers = descriptors
    signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    os.setsid()
    for given, stream in ((stdin, 0), (os.open(os.devnull, os.O_WRONLY), 1), (stderr, 2)):
        os.dup2(given, stream)
        os.close(given)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:] = request["path"].split(os.pathsep)
    os.chdir(request["cwd"])
    sys.argv = ["worker", *map(str, (server, *numbers))]


if __name__ == "__main__":
    serve(sys.argv[1])
