"""Stored scores against a data set's ground truth: collect, measure, report, compare. Runs no model and reads no footage."""

from __future__ import annotations

from vadcli.evaluation.collect import TestSet, collect
from vadcli.evaluation.measure import GROUPS, Protocol, measure
from vadcli.evaluation.report import Report

__all__ = ["GROUPS", "Protocol", "Report", "TestSet", "collect", "measure"]
