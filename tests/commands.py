"""Runs commands in processes that start quickly.

The processes are forks of a server that has already imported the modules of commands.

A short command spends most of its time on imports, and the tests run hundreds of commands. Some tests need a new process and
use subprocess: tests of signals, of streams, of Python's settings, and of the modules that a command imports.
"""

from __future__ import annotations

import atexit
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.patience import PATIENCE_S
from vadcli import cli


class Forks:
    """Starts processes as forks of a server that has imported some modules.

    Args:
        modules: the modules.
        fixed: prefixes of environment variables that Python or a module reads when it is loaded. A process with other values of
            these variables cannot be a fork of the server.
    """

    def __init__(self, modules: Sequence[str], *, fixed: Sequence[str]) -> None:
        self.modules, self.fixed = modules, tuple(fixed)
        self._lock = threading.Lock()
        self._server: subprocess.Popen[str] | None = None
        self._given: dict[str, str] = {}

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Return whether a fork behaves like a new process with these environment variables."""
        given = self._given if self._server else os.environ
        names = {name for name in {*given, *environment} if name.startswith(self.fixed)}
        names -= {"PYTHONPATH", "LD_LIBRARY_PATH"}  # a fork uses a new PYTHONPATH; importing cv2 changes LD_LIBRARY_PATH
        return all(given.get(name) == environment.get(name) for name in names)

    def start(self, call: str, arguments: list[str], *, cwd: Path, environment: Mapping[str, str], stdin: str | None) -> Fork:
        """Start a process that calls the function "module:name", with the arguments in sys.argv."""
        folder = Path(tempfile.mkdtemp())
        streams = [folder / name for name in ("stdin", "stdout", "stderr")]
        streams[0].write_bytes(os.fsencode(stdin or ""))
        request = {"call": call, "arguments": arguments, "cwd": str(cwd), "environment": dict(environment)}
        answer = self.ask({**request, "streams": list(map(str, streams))})
        return Fork(self, answer["pid"], arguments, folder)

    def ask(self, request: Mapping[str, object]) -> dict[str, int]:
        """Return the server's answer; the first request starts the server."""
        with self._lock:
            if self._server is None:
                self._given = dict(os.environ)
                self._server = subprocess.Popen(
                    [sys.executable, "-m", "tests.fork_server", *self.modules],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=Path(__file__).resolve().parents[1],
                )
                atexit.register(self._end)
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            answer: dict[str, int] = json.loads(self._server.stdout.readline())
            return answer

    def _end(self) -> None:
        assert self._server is not None
        self._server.communicate()


@dataclass(frozen=True)
class Fork:
    """A process that a server started."""

    forks: Forks
    pid: int
    arguments: list[str]
    folder: Path

    def ended(self) -> bool:
        """Return whether the process has ended."""
        return bool(self.forks.ask({"ended": self.pid})["ended"])

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end of the process, and return its exit code and output."""
        code = self.forks.ask({"wait": self.pid, "limit_s": PATIENCE_S})["code"]
        stdout, stderr = ((self.folder / name).read_text() for name in ("stdout", "stderr"))
        shutil.rmtree(self.folder)
        return subprocess.CompletedProcess(self.arguments, code, stdout, stderr)

    def kill(self) -> None:
        """Kill the process, as the system does if memory is short."""
        os.kill(self.pid, signal.SIGKILL)


PYTHON = ("PYTHON", "LANG", "LC_", "LD_")
_LIGHT = (
    *(f"vadcli.cli.{module.name}" for module in pkgutil.iter_modules(cli.__path__)),
    "vadcli.api",
    "vadcli.clipping",
    "vadcli.engine.local",
    "vadcli.detectors.motion.detector",
    "vadcli.pruning",
    "vadcli.verifying",
    "vadcli.vectors",
    "vadcli.evaluation",
    "vadcli.rendering",
    "vadcli.reporting",
    "vadcli.status",
    "vadcli.export",
    "jsonschema_rs",
    "cv2",
    "pandas",  # pyarrow loads it if it is installed
    "multiprocessing.synchronize",
    "pyarrow.pandas_compat",
    "pydantic.type_adapter",
    "tqdm",
    "typer._adapters",
    "platformdirs",
    "PIL.ImageFile",
    "PIL.ImageOps",
    "av.subtitles",
)
LIGHT = Forks(_LIGHT, fixed=PYTHON)
"""Processes for commands that load no model."""
WITH_TORCH = Forks(
    (*_LIGHT, "vadcli.bench", "vadcli.detectors.lavida.detector", "vadcli.train.trainer", "tools.tiny_world.training"),
    fixed=(*PYTHON, "TRANSFORMERS_", "TORCH"),
)
"""Processes for commands that load a model, and for training."""


def vadcli(
    *arguments: object,
    cwd: Path | None = None,
    stdin: str | None = None,
    forks: Forks = LIGHT,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run one command, and return its exit code and output.

    Args:
        arguments: the arguments of `vadcli`.
        cwd: folder of the process.
        stdin: the text on the command's stdin; None for an empty stdin.
        forks: WITH_TORCH if the command loads a model.
        environment: variables that differ from those of the test.
    """
    given, place, words = {**os.environ, **environment}, cwd or Path.cwd(), list(map(str, arguments))
    if forks.fits(given):
        return forks.start("vadcli.__main__:entry", ["vadcli", *words], cwd=place, environment=given, stdin=stdin).wait()
    command = [sys.executable, "-m", "vadcli", *words]
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",  # bytes that are not UTF-8, as in a fork
        timeout=PATIENCE_S,
        cwd=place,
        input=stdin or "",
        env=given,
        check=False,
    )
