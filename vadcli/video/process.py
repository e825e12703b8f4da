"""Child processes: they don't outlive their parent, and what they hold can be told."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Sequence

import psutil

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to kill this process when its parent dies, even by SIGKILL; call it first thing in the child.

    Fit for `preexec_fn`: it takes no lock and imports nothing. On systems without the call it does nothing, and a child
    there ends by the broken pipe instead. The parent is the thread that made the child: start children from threads
    that live as long as the children are wanted.

    Args:
        parent: its process id where the caller knows it; a parent that died before the call is then noticed too.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:  # it died before the call: nobody would send the signal
        os._exit(1)


def private_mib(process: psutil.Process) -> float:
    """Resident MiB of a process that it shares with no other, so neither libraries nor shared memory; 0 if it is gone."""
    try:
        memory = process.memory_info()
    except (psutil.Error, OSError):
        return 0.0
    return float(memory.rss - getattr(memory, "shared", 0)) / 2**20


def families(elders: Sequence[psutil.Process]) -> list[list[psutil.Process]]:
    """Each process with all that it started, directly or not, and that still runs, itself first.

    One look at the machine's processes for all of them: looking takes longest, and beside threads that feed a GPU it counts.
    """
    children: dict[int, list[psutil.Process]] = defaultdict(list)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            children[process.ppid()].append(process)
    return [[elder, *_descendants(elder.pid, children)] for elder in elders]


def _descendants(pid: int, children: dict[int, list[psutil.Process]]) -> list[psutil.Process]:
    found, pids, seen = [], [pid], {pid}
    while pids:
        for child in children.get(pids.pop(), ()):
            if child.pid not in seen:  # numbers given anew while looking could close a circle
                seen.add(child.pid)
                found.append(child)
                pids.append(child.pid)
    return found
