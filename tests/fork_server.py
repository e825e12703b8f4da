"""A server that imports modules once, and then runs each requested call in a fork of itself.

`tests/commands.py` starts the server. It writes one JSON line per request to the server's stdin, and reads one JSON line per
answer from its stdout.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from typing import Any

from PIL import Image

from tests import decoder_forks


def main(modules: list[str]) -> None:
    """Answer requests until stdin ends.

    A request with `call` starts a process. `ended` asks whether a process has ended, and `wait` waits for its end.
    """
    for name in modules:
        importlib.import_module(name)
    decoder_forks.install()
    Image.init()
    gc.freeze()  # otherwise the garbage collector of a fork would visit, and so copy, the memory of all modules
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "ended" in request:
            answer = {"ended": os.waitid(os.P_PID, request["ended"], os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None}
        elif "wait" in request:
            answer = {"code": _wait(request["wait"], request["limit_s"])}
        else:
            answer = {"pid": _start(request)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _wait(pid: int, limit_s: int) -> int:
    """Return the exit code of a process, as subprocess does; kill the process after `limit_s`."""
    before = signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
    signal.alarm(limit_s)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _start(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _become(request)
            module, _, function = request["call"].partition(":")
            getattr(importlib.import_module(module), function)()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid


def _become(request: dict[str, Any]) -> None:
    """Take over the streams, the environment, the folder and the arguments of the requested process."""
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    modes = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, (path, mode) in enumerate(zip(request["streams"], modes, strict=True)):
        opened = os.open(path, mode, 0o600)
        os.dup2(opened, stream)
        os.close(opened)
    sys.stdin = sys.__stdin__ = open(0, encoding=encoding, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", encoding=encoding, errors=errors, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # type: ignore[misc]  # noqa: SIM115
        2, "w", encoding=encoding, errors="backslashreplace", closefd=False, buffering=1
    )
    sys.modules["__main__"].__package__ = None  # so that messages name the command sys.argv[0] and not `python -m`
    os.environ.clear()
    os.environ.update(request["environment"])
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [entry for entry in more if entry and entry not in sys.path]
    sys.modules["vadcli.registry"]._installed.cache_clear()  # the new path may have other packages
    if constants := sys.modules.get("huggingface_hub.constants"):
        importlib.reload(constants)  # the module reads HF_ variables when it is loaded
    time.tzset()
    tempfile.tempdir = None
    os.chdir(request["cwd"])
    sys.argv = request["arguments"]


if __name__ == "__main__":
    main(sys.argv[1:])
