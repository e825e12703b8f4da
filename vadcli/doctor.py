"""Checks whether this machine has the programs, packages, weights and disk space that vadcli needs."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from vadcli import __version__, weights
from vadcli.errors import VadcliError
from vadcli.registry import DETECTOR_OPTIONS, HAS_ENCODER
from vadcli.types.text import size_text
from vadcli.video.ffmpeg import ffmpeg_path, ffmpeg_version
from vadcli.video.loader import core_count

LOW_DISK_BYTES = 1 << 30
PACKAGES = (
    ("decord", "decord", "pip install decord if your platform has a wheel; without decord, ffmpeg reads all videos", False),
    ("PyAV", "av", "pip install av", True),
    ("torch", "torch", "pip install torch; only detectors with weights need it", False),
    ("transformers", "transformers", "pip install transformers; only the lavida detector needs it", False),
)
"""(name of the check, package, advice if the package is missing, whether vadcli needs the package)"""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: name of the check.
        ok: True if the check passed.
        found: the version, size or device that was found.
        advice: what the user can do; "" if there is nothing to do.
        required: False if vadcli also works when this check fails.
    """

    name: str
    ok: bool
    found: str
    advice: str = ""
    required: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that `vadcli doctor --json` prints."""
        return {"name": self.name, "ok": self.ok, "found": self.found, "advice": self.advice or None, "required": self.required}


def examine(out: Path) -> Iterator[Check]:
    """Run all checks, the fast ones first.

    Args:
        out: the output folder that a scan would use.
    """
    new_enough = sys.version_info >= (3, 11)
    advice = "" if new_enough else "install Python 3.11 or newer"
    yield Check("python", new_enough, f"{platform.python_version()}, vadcli {__version__}", advice)
    memory = psutil.virtual_memory()
    machine = f"{platform.machine()}, {core_count()} cores"
    yield Check("machine", True, f"{machine}, {size_text(memory.available)} of {size_text(memory.total)} memory free")
    yield _ffmpeg()
    for name, package, advice, required in PACKAGES:
        installed = _version(package)
        yield Check(name, installed is not None, installed or "not installed", "" if installed else advice, required)
    sam2 = _version("sam2") or "not installed and not needed: the transformers package has SAM2, too"
    yield Check("sam2", True, sam2, required=False)
    yield _device()
    yield _weights()
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    if not os.access(folder, os.W_OK):
        yield Check("disk", False, f"{folder} is not writable", "choose another folder with --out")
        return
    free = shutil.disk_usage(folder).free
    advice = "" if free >= LOW_DISK_BYTES else "free space or choose another folder with --out"
    yield Check("disk", not advice, f"{size_text(free)} free at {folder}", advice)


def _ffmpeg() -> Check:
    try:
        major, minor = ffmpeg_version()
        path = ffmpeg_path()
    except VadcliError as error:
        return Check("ffmpeg", False, error.message, error.hint)
    number = "from git" if major >= 1000 else f"{major}.{minor}"
    return Check("ffmpeg", major >= 4, f"{number} ({path})", "" if major >= 4 else "install ffmpeg 4 or newer")


def _device() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("device", True, "cpu", required=False)
    import torch

    if not torch.cuda.is_available():
        return Check("device", True, "cpu (torch sees no CUDA device)", required=False)
    names = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        names.append(f"cuda:{index} {torch.cuda.get_device_name(index)}, {size_text(free)} of {size_text(total)} free")
    return Check("device", True, "; ".join(names), required=False)


def _weights() -> Check:
    known = [item for item in weights.status() if item.kind in ("lavida", "encoder") and item.state != "absent"]
    states = {"toy": "a toy: it knows only a synthetic world"}
    listed = ", ".join(f"{item.name} ({states.get(item.state, item.state)})" for item in known)
    damaged = [item.name for item in known if item.state == "damaged"]
    advice = ""
    if damaged:
        advice = f"`vadcli weights verify {damaged[0]}`"
    elif not any(item.kind == "encoder" or item.state == "trained" for item in known):
        advice = f"--categories need an encoder: {DETECTOR_OPTIONS.load(HAS_ENCODER).encoder_download()}"
    return Check("weights", not damaged, listed or "none; the motion detector needs no weights", advice, required=False)


def _version(package: str) -> str | None:
    try:
        return version(package) if importlib.util.find_spec(package) else None
    except PackageNotFoundError:
        return None
