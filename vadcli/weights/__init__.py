"""The weights that vadcli knows, where they lie on this machine, and whether they are what they should be.

A LAVIDA folder (what `--model` names) holds config.json, the transformers folders mllm/, text/ and sam2/, the own part
lavida.safetensors, perhaps a PEFT adapter in lora/, and checksums.json. `entries` is what exists by name, `checksums` holds
files against their hashes, `hub` fetches public base models, `folders` finds LAVIDA folders. Nothing here builds a model.

The manifest carries no hash, size or commit that nobody has checked. The first pull therefore takes what the hub itself
declares (the resolved commit, sizes, SHA-256 of large files, git object ids of small ones), holds the download against that
and pins it in a lock file: later pulls and verifications mean those very bytes. Only safetensors, JSON and text are fetched,
never a pickle. Nothing here but `pull` touches the network, and no scan calls it.
"""

from vadcli.weights.checksums import (
    CHECKSUMS_NAME,
    FileSum,
    Header,
    Verified,
    fingerprint,
    read_header,
    refuse_pickles,
    verify,
    write_checksums,
)
from vadcli.weights.entries import Entry, entry, home, manifest
from vadcli.weights.folders import WeightsStatus, check_folder, find, is_trained, locate, share, status
from vadcli.weights.hub import Pulled, base_folder, pull, verify_pulled

__all__ = [
    "CHECKSUMS_NAME",
    "Entry",
    "FileSum",
    "Header",
    "Pulled",
    "Verified",
    "WeightsStatus",
    "base_folder",
    "check_folder",
    "entry",
    "find",
    "fingerprint",
    "home",
    "is_trained",
    "locate",
    "manifest",
    "pull",
    "read_header",
    "refuse_pickles",
    "share",
    "status",
    "verify",
    "verify_pulled",
    "write_checksums",
]
