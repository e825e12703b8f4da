"""The scan: finds the videos, runs the detector on them, and writes the results."""

from __future__ import annotations
