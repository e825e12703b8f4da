"""Processes for tests. A script prints a line when it is ready; then the test kills it or waits for its end."""

import subprocess
import sys
from contextlib import contextmanager

from tests.patience import PATIENCE_S


@contextmanager
def running(script, *arguments):
    """Yield a Python process that runs `script` and has printed its first line; kill it at the end."""
    process = start(script, *arguments)
    try:
        line = process.stdout.readline()
        assert line, f"the process ended with {process.wait()}"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def side_by_side(script, *argument_lists):
    """Return the outputs of processes that run at the same time. All must exit with code 0; none runs on after the call."""
    processes = [start(script, *arguments) for arguments in argument_lists]
    try:
        outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return outputs


def start(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finished(script, *arguments):
    """Return the output of a process that must exit with code 0."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, check=False, text=True, timeout=PATIENCE_S)
    assert result.returncode == 0, result.stderr
    return result.stdout
