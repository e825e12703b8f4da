"""Runs the program `vadcli`, also as `python -m vadcli`.

The program starts the first decoder process of a scan before it imports the command line, so that both load at the same time.
So this file imports little.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from vadcli.video import early_worker

_BLAS_THREADS = "OPENBLAS_NUM_THREADS"


def entry() -> None:
    """Run the command line, then end the process at once with the exit code.

    Python's shutdown is skipped: a thread of a third-party library could abort the process in the shutdown, and change the exit
    code. At this point all results are written and all files are closed.
    """
    _use_utf8_names()
    is_scan = sys.argv[1:2] == ["scan"] and not {"-h", "--help", "--dry-run"} & set(sys.argv)
    code: object = 0
    try:
        with early_worker() if is_scan else nullcontext():
            with _one_blas_thread() if is_scan else nullcontext():
                from vadcli.cli import main  # here, because this import is slow
            main()
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:  # during the import
        code = 130
    logging.shutdown()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Let numpy start no pool of threads if it is imported in this block: the pool takes long to start, and a scan has its own.

    Afterwards, the environment is as before, because the user's commands (`--on-event`) inherit it.
    """
    if _BLAS_THREADS in os.environ:
        yield
        return
    os.environ[_BLAS_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[_BLAS_THREADS]


def _use_utf8_names() -> None:
    """Start this process again in Python's UTF-8 mode if file names have another encoding, like ASCII.

    File names in an output folder are UTF-8. In another encoding, Python could not open the files. stdout keeps its encoding.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1" or sys.stdout is None:
        return
    changed = {"PYTHONUTF8": "1", "PYTHONIOENCODING": sys.stdout.encoding}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **changed})  # noqa: S606


if __name__ == "__main__":
    entry()
