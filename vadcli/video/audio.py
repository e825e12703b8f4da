"""A video's sound, put under pictures made from it. ffmpeg does it as a child: a broken track costs just the sound."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from vadcli.errors import DecodeError, DecoderHung
from vadcli.types import VideoInfo
from vadcli.video.ffmpeg import die_with_parent, ffmpeg_path

_AUDIO_STREAM = re.compile(r"^\s*Stream #0:\d+.*?: Audio: (\w+)", re.MULTILINE)
_START = re.compile(r"^\s*Duration: .*\bstart: (-?[\d.]+)", re.MULTILINE)
_HIDDEN_AT_MOST_S = 0.05
_BIT_RATE = "160k"


@dataclass(frozen=True)
class Sound:
    """A video's first audio stream.

    Attributes:
        codec: ffmpeg's name of it.
        earliest_s: time of the file's earliest packet; the sound starts there or later.
    """

    codec: str
    earliest_s: float

    def can_be_copied(self, zero_s: float) -> bool:
        """Whether its packets can go into a file that starts at this time: AAC, and next to nothing to cut off.

        What is cut off a copy stays in the file, hidden by an edit list that not every player heeds.
        """
        return self.codec == "aac" and zero_s - self.earliest_s < _HIDDEN_AT_MOST_S


def find_sound(info: VideoInfo, *, timeout_s: float = 60.0) -> Sound | None:
    """The first audio stream as the file's header describes it; None where there is no sound.

    Raises:
        DecoderHung: the header could not be read in time.
    """
    if info.images:
        return None
    described = _run(_source(info), info, verbosity="info", timeout_s=timeout_s).stderr
    found, start = _AUDIO_STREAM.search(described), _START.search(described)
    return Sound(found[1], float(start[1]) if start else 0.0) if found else None


def add_sound(
    pictures: Path, target: Path, *, info: VideoInfo, sound: Sound, start_s: float, duration_s: float, timeout_s: float = 60.0
) -> None:
    """Write an MP4 of these pictures and the source's first audio stream, in the same sync as in the source.

    AAC is copied where nothing has to be cut off, else it is encoded anew, as AAC. What sounds before the first picture is cut.

    Args:
        pictures: an MP4 that starts at 0.
        target: the file to write.
        info: where the sound comes from.
        sound: what `find_sound` said.
        start_s: time of the first picture, from the source's first pts.
        duration_s: of the pictures.
        timeout_s: how much longer than the pictures last this may take.

    Raises:
        DecodeError: ffmpeg could not do it; the message is its last line.
        DecoderHung: it took too long.
    """
    zero_s = float(info.pts[0] * info.time_base) + start_s
    seek = ["-noaccurate_seek", "-seek_timestamp", "1", "-ss", f"{zero_s:.6f}"] if start_s > 0 else []
    # Padding and trimming to 0 spares the encoded track an edit list.
    encode = ["-c:a", "aac", "-b:a", _BIT_RATE, "-ac", "2", "-af", "atrim=start=0,aresample=async=1:first_pts=0"]
    arguments = [
        *("-i", f"file:{pictures}"),
        *seek,
        *("-itsoffset", f"{-zero_s:.6f}"),
        *_source(info),
        *("-map", "0:v:0", "-map", "1:a:0", "-c:v", "copy"),
        *(["-c:a", "copy"] if sound.can_be_copied(zero_s) else encode),
        *("-copyts", "-t", f"{duration_s:.6f}", "-movflags", "+faststart", "-f", "mp4", f"file:{target}"),
    ]
    done = _run(["-y", *arguments], info, verbosity="error", timeout_s=timeout_s + duration_s)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ffmpeg ended with status {done.returncode}"]
        raise DecodeError(f"{info.path}: no sound: {lines[-1]}")


def _source(info: VideoInfo) -> list[str]:
    """This file and no other: the demuxer is named, and only files can be opened."""
    return ["-protocol_whitelist", "file", "-f", info.demuxer.split(",")[0], "-i", f"file:{info.path}"]


def _run(arguments: list[str], info: VideoInfo, *, verbosity: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    command = [ffmpeg_path(), "-nostdin", "-hide_banner", "-v", verbosity, *arguments]
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            preexec_fn=die_with_parent,
        )
    except subprocess.TimeoutExpired as error:
        raise DecoderHung(f"{info.path}: ffmpeg read no sound within {timeout_s:.0f} s") from error
