"""How a time in a video is printed. Everything that prints times uses these, so an event starts at the same time everywhere."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """Returns seconds as h:mm:ss, like the clock of a player: rounded down, so it is the start of `clock_ms`."""
    return clock_ms(seconds).partition(".")[0]


def clock_ms(seconds: float, *, hour_digits: int = 1) -> str:
    """Returns seconds as h:mm:ss.mmm, rounded to milliseconds; the hours have at least `hour_digits` digits."""
    whole_s, ms = divmod(round(seconds * 1000), 1000)
    return f"{whole_s // 3600:0{hour_digits}d}:{whole_s // 60 % 60:02d}:{whole_s % 60:02d}.{ms:03d}"
