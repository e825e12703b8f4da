r"""Prints data on stdout, and the log, errors and progress on stderr. Also handles signals.

The encoding of a terminal or pipe, such as cp1252 or ASCII, may not have every character of a video's name. A missing character
is written as `\uXXXX`, so that no name causes an error. JSON stays valid, because only its strings contain such characters.
"""

from __future__ import annotations

import codecs
import json
import logging
import logging.handlers
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from vadcli.errors import UsageError, VadcliError
from vadcli.options import TalkOptions
from vadcli.types import Status, VideoResult
from vadcli.types.text import camera_names, clock, counted, how_many, without_name

if TYPE_CHECKING:
    from vadcli.store.run_log import RunProgress


ESCAPE = "vadcli_escape"


def _escape(error: UnicodeError) -> tuple[str, int]:
    r"""Return \uXXXX for a character that a stream can't encode, and %XX for a byte that is not text."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    parts = []
    for character in error.object[error.start : error.end]:
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            parts.append(f"%{code - 0xDC00:02X}")
        else:
            units = character.encode("utf-16-be", "surrogatepass").hex()
            parts += [f"\\u{units[k : k + 4]}" for k in range(0, len(units), 4)]
    return "".join(parts), error.end


codecs.register_error(ESCAPE, _escape)


def set_up_streams() -> None:
    """Make stdout and stderr accept any text. Replaces a closed stream by a stream that drops all text."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=ESCAPE)


def put(text: object, *, nl: bool = True) -> None:
    """Write text to stdout. `typer.echo` would write UTF-8 even if the encoding of stdout is ASCII."""
    sys.stdout.write(f"{text}\n" if nl else str(text))
    sys.stdout.flush()


log = logging.getLogger("vadcli")

HEARTBEAT_S = 60.0  # time between two lines of progress, if stderr is not a terminal
REFRESH_S = 0.1  # shortest time between two changes of the bar
LOG_BYTES = 10_000_000
LOG_FILES = 5
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


class _StderrHandler(logging.Handler):
    """Writes log lines above a running progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one log record."""
        from tqdm import tqdm

        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None and log.isEnabledFor(logging.DEBUG):
            text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
        if record.levelno >= logging.WARNING and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            yellow, red = 33, 31
            text = f"\x1b[{yellow if record.levelno == logging.WARNING else red}m{text}\x1b[0m"
        try:
            tqdm.write(text, file=sys.stderr)
        except (OSError, ValueError):
            self.handleError(record)


def _one_line(text: str) -> str:
    """Write control characters of paths as %XX, because they could break the line or control the terminal."""
    return _CONTROLS.sub(lambda match: f"%{ord(match[0]):02X}", text)


def _to_one_line(record: logging.LogRecord) -> bool:
    record.msg, record.args = _one_line(record.getMessage()), ()
    return True


def set_up_talk(options: TalkOptions) -> None:
    """Send the log to stderr and to the file of --log-file. The file gets all lines, even with --quiet.

    Raises:
        UsageError: the log file can't be written.
    """
    log.handlers.clear()
    log.addFilter(_to_one_line)
    log.propagate = False
    stderr = _StderrHandler(logging.WARNING if options.quiet else logging.DEBUG)
    log.addHandler(stderr)
    log.setLevel(logging.DEBUG if options.verbose else logging.INFO if options.log_file else max(stderr.level, logging.INFO))
    if options.log_file is None:
        return
    try:
        options.log_file.parent.mkdir(parents=True, exist_ok=True)
        file = logging.handlers.RotatingFileHandler(
            options.log_file, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8", errors=ESCAPE
        )
    except OSError as error:
        raise UsageError(f"--log-file {options.log_file}: {error.strerror}") from error
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(file)


def say_error(error: VadcliError) -> None:
    """Print the error on one line and its hint on the next line. A log file gets both lines."""
    hint = f"  {_one_line(error.hint)}\n" if error.hint else ""
    sys.stderr.write(f"vadcli: error: {_one_line(error.message)}\n{hint}")
    for handler in log.handlers:
        if not isinstance(handler, _StderrHandler):
            handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, _one_line(str(error)), (), None))


def emit_json(document: Mapping[str, Any]) -> None:
    """Print one JSON object as one line on stdout, at once."""
    try:
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        log.warning("the program that reads stdout has ended; the work continues without it")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def put_result(document: Mapping[str, Any], text: object, options: TalkOptions) -> None:
    """Print one result as a line: with --json as a JSON object, otherwise as text."""
    if options.json:
        emit_json(document)
    else:
        put(text)


class ScanDisplay:
    """Prints one line per video, and the progress: a bar on a terminal, elsewhere a line per minute.

    Args:
        progress: the counters of the scan.
        options: how much to report.
    """

    def __init__(self, progress: RunProgress, options: TalkOptions) -> None:
        from tqdm import tqdm

        self.progress = progress
        self.total = max(1, progress.total)
        self._started = self._last_beat = time.monotonic()
        self._last_shown = 0.0
        self._refused: dict[str, int] = {}  # by reason why results can't be written: number of videos, minus 1
        show = sys.stderr.isatty() and not options.quiet
        bar_format = "{percentage:3.0f}%|{bar}| {desc}"
        self._bar = tqdm(total=self.total, file=sys.stderr, bar_format=bar_format, disable=not show, leave=False)

    def move(self) -> None:
        """Show how far the scan has come."""
        now = time.monotonic()
        if not self._bar.disable:
            if now - self._last_shown >= REFRESH_S:
                self._last_shown = now
                self._bar.n = min(self.progress.done, self.total)
                self._bar.set_description_str(self._state())  # draws the bar, even if the number of frames is unchanged
        elif now - self._last_beat >= HEARTBEAT_S:
            self._last_beat = now
            log.info("%3.0f%% %s", 100 * min(self.progress.done, self.total) / self.total, self._state())

    def result(self, result: VideoResult) -> None:
        """Report one video in one line. Failed videos are reported even with --quiet."""
        self.move()
        if result.note:
            log.info("%s: %s", result.video, result.note)
        if result.is_lost:
            reason = without_name(result.reason, result.video)
            if result.stage == "write" and reason in self._refused:
                self._refused[reason] += 1  # `close` reports the number of these videos
                return
            if result.stage == "write":
                self._refused[reason] = 0
            log.error("%s: %s: %s", result.video, result.status, reason)
        elif result.status in (Status.SKIPPED, Status.UNFINISHED):
            level = logging.INFO
            if result.reason == "done" or result.status is Status.UNFINISHED:  # the last line of the scan counts these videos
                level = logging.DEBUG
            log.log(level, "%s: left out: %s", result.video, result.reason)
        else:
            moving = ", the camera moves" if result.moving_camera else ""
            events, frames = counted(result.events, "event"), counted(result.decoded_frames, "frame")
            log.info("%s: %s, %s, scored in %.1f s%s", result.video, frames, events, result.seconds, moving)

    def summary(self) -> str:
        """Return `22.1 s, 310 frames/s, 10.3x real time`, or only the time if no frame was scored."""
        spent = f"{self._spent_s():.1f} s"
        return f"{spent}, {self.rates()}" if self.progress.frames else spent

    def rates(self) -> str:
        """Return the speed: `310 frames/s, 10.3x real time`."""
        spent = self._spent_s()
        return f"{self.progress.frames / spent:.0f} frames/s, {self.progress.footage_s / spent:.1f}x real time"

    def close(self) -> None:
        """Remove the bar. For each reason that was reported only once, report how many more videos failed for this reason."""
        self._bar.close()
        for reason, count in self._refused.items():
            if count:
                log.error("%s failed for the same reason: %s", how_many(count, "more video"), reason)
        self._refused.clear()

    def _spent_s(self) -> float:
        return max(1e-6, time.monotonic() - self._started)

    def _state(self) -> str:
        state = f"{self.progress.finished}/{self.progress.planned} videos"
        fitting, eta_s = self.progress.fitting, self.progress.eta_s()
        eta = "?" if eta_s is None else clock(eta_s)
        if fitting is not None:
            return f"{state}, fitting {camera_names([fitting['camera']])} ({fitting['frames']} frames read), ETA {eta}"
        return f"{state}, {self.rates()}, ETA {eta}"


class Progress:
    """Shows a progress bar on a terminal, and nothing elsewhere.

    Args:
        name: the text before the bar.
        unit: what is counted, with a space before the word: " frames".
        options: --quiet hides the bar.
    """

    def __init__(self, name: str, unit: str, options: TalkOptions) -> None:
        self._name, self._unit = name, unit
        self._hidden = options.quiet or not sys.stderr.isatty()
        self._bar: Any = None

    def advance(self, done: int, expected: int) -> None:
        """Show that `done` of `expected` units are done."""
        if self._hidden:
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=expected, desc=self._name, unit=self._unit, file=sys.stderr, leave=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def on_signals(
    handler: Callable[[int], None], numbers: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
) -> Iterator[None]:
    """In the `with` block, call `handler` with the number of each signal that arrives."""
    before = {number: signal.signal(number, lambda got, _: handler(got)) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
