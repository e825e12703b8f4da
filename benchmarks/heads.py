"""Check that `vadcli learn` writes no head if the vectors contain nothing to learn.

The footage is UCSD Ped2, and the vectors are from a random encoder.

python benchmarks/heads.py --root UCSDped2

`--root` has train/NN, test/NN and frame_labels.csv (clip,frame_index0,label). Prints each command and its output.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: tests/ is not part of the wheel
from tests.detectors.encoders import tiny_encoder_folder
from vadcli.store import OutputLayout
from vadcli.store.events import read_events

CLIPS = range(1, 7)
SAME = "--follow-links --frames-as-video --camera-from all"
LOW = "--threshold 0.02 --low 0.02 --merge-gap 0s --min-duration 0s"
COMMANDS = (
    f"vadcli scan footage {SAME} --detector motion --alarms-per-hour 200 --out out",
    f"vadcli embed footage {SAME} --encoder random-clip --out out",
    f"vadcli embed footage {SAME} --encoder other-clip --out second",
    f"vadcli events out {LOW} --write",
)
REVIEW = tuple(f"vadcli learn out --review review.json --head {head} --to my-head" for head in ("logistic", "retrieval"))
LABELS = tuple(
    f"vadcli learn out --labels videos.csv --head {head}{more} --to my-head"
    for head, more in (("mil", ""), ("rtfm", ""), ("gaussian", ""), ("topk", " --embeddings second"), ("dual", ""))
)


def main() -> None:
    """Make the folders, and run the commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    root = parser.parse_args().root.resolve()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for kind in ("test", "train"):
            for clip in CLIPS:
                link = work / "footage" / f"{kind}-{clip:02d}"
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(root / kind / f"{clip:02d}")
        tiny_encoder_folder(work / "random-clip")
        tiny_encoder_folder(work / "other-clip", seed=1)
        for command in COMMANDS:
            run(command, work)
        events = write_review(work, root / "frame_labels.csv")
        print(f"review.json: {events} events; true if a frame of the event is abnormal")
        rows = [
            f"{path.name},{'abnormal,cyclist' if 'test' in path.name else 'normal,'}" for path in (work / "footage").iterdir()
        ]
        (work / "videos.csv").write_text("\n".join(["video,label,category", *sorted(rows)]) + "\n")
        for command in (*REVIEW, *LABELS):
            run(command, work)
        print("my-head was written" if (work / "my-head").exists() else "no head was written")


def run(command: str, folder: Path) -> None:
    """Run a command of vadcli, and print the command and its output."""
    arguments = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(
        arguments, cwd=folder, env={**os.environ, "COLUMNS": "120"}, capture_output=True, text=True, check=False
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    shown = lines if "learn" in command else lines[-1:]
    print("\n".join([f"$ {command}", *(line[:160] for line in shown)]), flush=True)


def write_review(work: Path, table: Path) -> int:
    """Write a review of all events, with verdicts from the frame labels; return the number of events."""
    abnormal = defaultdict(set)
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["label"] == "1":
                abnormal[f"test-{row['clip']}"].add(int(row["frame_index0"]))
    reviews = []
    for path in OutputLayout(work / "out").iter_events():
        document = read_events(path)
        video = str(document.video["path"])
        for event in document.events:
            true = not abnormal[video].isdisjoint(range(event.start_frame, event.end_frame))
            span = {"start_s": event.start_s, "end_s": event.end_s, "peak_score": event.peak_score}
            reviews.append({"video": video, **span, "verdict": str(true).lower()})
    (work / "review.json").write_text(json.dumps({"format_version": 1, "reviews": reviews}))
    return len(reviews)


if __name__ == "__main__":
    main()
