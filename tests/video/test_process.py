"""`process_trees` finds the descendants of a process."""

from __future__ import annotations

import subprocess
import sys

import psutil

from vadcli.video.supervisor import process_trees

NEST = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); print('ready', flush=True); time.sleep(600)"


def test_each_family_is_whole_and_apart_from_the_others() -> None:
    parents = [subprocess.Popen([sys.executable, "-c", NEST], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for parent in parents:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "ready\n"
        looked_at = [psutil.Process(parent.pid) for parent in parents]
        found = process_trees(looked_at)
        assert [family[0].pid for family in found] == [parent.pid for parent in parents]
        assert [[member.name() for member in family[1:]] for family in found] == [["sleep"], ["sleep"]]
        assert found[0][1].ppid() == parents[0].pid
        assert process_trees([]) == []
    finally:
        for family in process_trees([psutil.Process(parent.pid) for parent in parents]):
            for member in family:
                member.kill()
        for parent in parents:
            parent.wait()
            assert parent.stdout is not None
            parent.stdout.close()
