"""Checks whether this machine has what vadcli needs, and advises what to do if something is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from vadcli import __version__, weights
from vadcli.detectors.concept import DEFAULT_ENCODER
from vadcli.errors import VadcliError
from vadcli.types.text import size_text
from vadcli.video.ffmpeg import ffmpeg_path, ffmpeg_version
from vadcli.video.loader import core_count

LOW_DISK_BYTES = 1 << 30
PACKAGES = (
    ("decord", "decord", "pip install decord if your platform has a wheel; without it ffmpeg reads all videos", False),
    ("PyAV", "av", "pip install av", True),
    ("torch", "torch", "pip install torch; only detectors with weights need it", False),
    ("transformers", "transformers", "pip install transformers; only the lavida detector needs it", False),
)
"""Name of a check, package, what to do if the package is missing, and whether it is required."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: what was checked.
        ok: True if the check passed.
        found: what was found.
        advice: what to do; empty if there is nothing to do.
        required: False if vadcli works without it.
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
    checks: tuple[Callable[[], Check], ...] = (
        _python,
        _machine,
        _ffmpeg,
        *(partial(_package, *about) for about in PACKAGES),
        _sam2,
        _device,
        _weights,
    )
    for check in checks:
        yield check()
    yield _disk(out)


def _python() -> Check:
    new_enough = sys.version_info >= (3, 11)
    advice = "" if new_enough else "install Python 3.11 or newer"
    return Check("python", new_enough, f"{platform.python_version()}, vadcli {__version__}", advice)


def _machine() -> Check:
    cores = core_count()
    memory = psutil.virtual_memory()
    return Check(
        "machine",
        True,
        f"{platform.machine()}, {cores} cores, {size_text(memory.available)} of {size_text(memory.total)} memory free",
    )


def _ffmpeg() -> Check:
    try:
        major, minor = ffmpeg_version()
        path = ffmpeg_path()
    except VadcliError as error:
        return Check("ffmpeg", False, error.message, error.hint)
    number = "from git" if major >= 1000 else f"{major}.{minor}"
    return Check("ffmpeg", major >= 4, f"{number} ({path})", "" if major >= 4 else "install ffmpeg 4 or newer")


def _package(name: str, package: str, advice: str, required: bool) -> Check:
    found = _version(package)
    return Check(name, found is not None, found or "not installed", "" if found else advice, required)


def _sam2() -> Check:
    found = _version("sam2")
    return Check("sam2", True, found or "not installed and not needed: the transformers package has SAM2, too", required=False)


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
    if not known:
        return Check("weights", True, "none; the motion detector needs no weights", _encoder_advice(), required=False)
    states = {"toy": "a toy: it knows only a synthetic world"}
    found = ", ".join(f"{item.name} ({states.get(item.state, item.state)})" for item in known)
    damaged = [item.name for item in known if item.state == "damaged"]
    advice = f"`vadcli weights verify {damaged[0]}`" if damaged else ""
    if not advice and not any(item.kind == "encoder" or item.state == "trained" for item in known):
        advice = _encoder_advice()
    return Check("weights", not damaged, found, advice, required=False)


def _encoder_advice() -> str:
    size = weights.entry(DEFAULT_ENCODER).download_gb
    return f"--categories need an encoder: `vadcli weights pull {DEFAULT_ENCODER}`" + (f" ({size:g} GB)" if size else "")


def _disk(out: Path) -> Check:
    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Check("disk", False, f"{folder} is not writable", "choose another folder with --out")
    enough = free >= LOW_DISK_BYTES
    return Check(
        "disk",
        enough,
        f"{size_text(free)} free at {folder}",
        "" if enough else "free space or choose another folder with --out",
    )


def _version(package: str) -> str | None:
    try:
        return version(package) if importlib.util.find_spec(package) else None
    except PackageNotFoundError:
        return None
