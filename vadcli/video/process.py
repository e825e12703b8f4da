"""Child processes that don't outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, even by SIGKILL; call it first thing in the child.

    Fit for `preexec_fn`: it takes no lock and imports nothing. On systems without the call it does nothing, and a child
    there ends by the broken pipe instead. The parent is the thread that made the child: start children from threads
    that live as long as the children are wanted.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1 and os.getpid() != 1:  # the parent died before the call: nobody would send the signal
        os._exit(1)
