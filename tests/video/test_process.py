"""What a process has started, as the loader sees it."""

from __future__ import annotations

import subprocess
import sys

import psutil

from vadcli.video.ffmpeg import process_trees

NEST = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); print('ready', flush=True); time.sleep(600)"


def test_each_family_is_whole_and_apart_from_the_others() -> None:
    elders = [subprocess.Popen([sys.executable, "-c", NEST], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for elder in elders:
            assert elder.stdout is not None
            assert elder.stdout.readline() == "ready\n"
        looked_at = [psutil.Process(elder.pid) for elder in elders]
        found = process_trees(looked_at)
        assert [family[0].pid for family in found] == [elder.pid for elder in elders]
        assert [[member.name() for member in family[1:]] for family in found] == [["sleep"], ["sleep"]]
        assert found[0][1].ppid() == elders[0].pid
        assert process_trees([]) == []
    finally:
        for family in process_trees([psutil.Process(elder.pid) for elder in elders]):
            for member in family:
                member.kill()
        for elder in elders:
            elder.wait()
            assert elder.stdout is not None
            elder.stdout.close()
