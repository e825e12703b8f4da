"""The scan: which videos, in what order, through which detector, into which files."""

from __future__ import annotations
