"""Stored scores against a data set's ground truth: collect, measure, report, compare. Runs no model and reads no footage."""

from vadcli.evaluate.collect import TestSet, collect
from vadcli.evaluate.measure import GROUPS, Protocol, measure
from vadcli.evaluate.report import Report

__all__ = ["GROUPS", "Protocol", "Report", "TestSet", "collect", "measure"]
