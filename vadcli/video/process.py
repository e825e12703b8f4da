"""Child processes: they don't outlive their parent, and what they hold can be told."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

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
