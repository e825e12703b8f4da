"""How long a test waits before it declares a process hung.

A process that works takes much less time, even on a busy machine. So this limit never makes a working test fail. The time limit
of a whole test (`--timeout` in pyproject.toml) is longer, so that the test can report the hung process.
"""

PATIENCE_S = 500
