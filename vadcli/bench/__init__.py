"""How fast LAVIDA is on this machine, and what it needs: throughput, stages and memory, beside the loop one writes first."""

from vadcli.bench.machine import Footage, footage_of, need_memory
from vadcli.bench.report import Report
from vadcli.bench.rounds import Bound
from vadcli.bench.run import Bench, BenchPlan

__all__ = ["Bench", "BenchPlan", "Bound", "Footage", "Report", "footage_of", "need_memory"]
