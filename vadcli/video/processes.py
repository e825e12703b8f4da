"""Helpers for child processes: their end, their memory and their own children."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence

import psutil

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies. Call it first in the child.

    The function can be a `preexec_fn`, because it takes no lock and imports nothing. Outside Linux it does nothing; there, a
    child ends when its pipe breaks. For the kernel, the parent is the thread that started the child. So start children from a
    thread that lives as long as the children are needed.

    Args:
        parent: process id of the parent. If the parent died before this call, this process ends at once.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before the call, so no signal will come
        os._exit(1)


def private_mib(process: psutil.Process) -> float:
    """Return the resident memory in MiB that a process does not share; 0 if the process has ended."""
    try:
        memory = process.memory_info()
    except (psutil.Error, OSError):
        return 0.0
    return float(memory.rss - getattr(memory, "shared", 0)) / 2**20


def process_trees(roots: Sequence[psutil.Process]) -> list[list[psutil.Process]]:
    """Return each process followed by all its running descendants.

    The processes of the machine are listed only once for all roots, because this is slow: to list them per root would delay the
    threads that feed a GPU.
    """
    children: dict[int, list[int]] = defaultdict(list)
    for pid, parent in _parents() if roots else ():
        children[parent].append(pid)
    trees = []
    for root in roots:
        tree, pids, seen = [root], [root.pid], {root.pid}
        while pids:
            for child in children.get(pids.pop(), ()):
                if child not in seen:  # a reused process id could lead to a circle
                    seen.add(child)
                    pids.append(child)
                    with contextlib.suppress(psutil.Error, OSError):
                        tree.append(psutil.Process(child))
        trees.append(tree)
    return trees


def _parents() -> Iterator[tuple[int, int]]:
    """Yield (process id, its parent's id) of all processes. On Linux, psutil would take ten times as long."""
    if sys.platform != "linux":
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                yield process.pid, process.ppid()
        return
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                yield int(name), int(file.read().rpartition(b")")[2].split()[1])  # the program's name may contain ")"
