"""How long a test waits before it counts something as hung.

Nothing that works takes nearly this long, so the limit never decides whether a test passes, not even on a machine that is busy
with other work. The time limit of a whole test (`--timeout` in pyproject.toml) is longer, so that a hung process is named.
"""

PATIENCE_S = 500
