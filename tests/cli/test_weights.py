"""`vadcli weights` in processes of its own: exit codes, data on stdout, messages on stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from tests.cli.test_process import VADCLI, wait_until
from tests.commands import LIGHT, WITH_TORCH, vadcli
from tests.fake_hub import Revision, serve
from tests.patience import PATIENCE_S

Weights = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Weights:
    """Run `vadcli weights …` with its own home and cache, and without a real hub."""

    def call(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"VADCLI_WEIGHTS": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
        forks = WITH_TORCH if "--random-weights" in arguments else LIGHT
        return vadcli("weights", *arguments, cwd=tmp_path, forks=forks, **{**own, **environment})

    return call


def one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check that the output is a line with the error and a line with its hint, without a traceback."""
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("vadcli: error: ")
    assert len(lines) == 2, done.stderr
    for word in words:
        assert word in done.stderr


def test_list_shows_installed_weights_and_that_nobody_has_published_lavida(run: Weights) -> None:
    done = run("list", "--json")
    items = {item["name"]: item for item in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0
    assert done.stderr == ""
    assert items["lavida-tiny"]["state"] == "toy", "it comes along, and knows only a synthetic world"
    assert {item["state"] for name, item in items.items() if name != "lavida-tiny"} == {"absent"}
    assert [name for name, item in items.items() if item["published"] is False] == ["lavida-7b", "lavida-2b"]
    assert items["lavida-2b"]["parts"]["mllm"] == "qwen2-vl-2b"
    table = run("list").stdout.splitlines()
    assert [line.split()[0] for line in table] == list(items)
    assert any("no public trained checkpoint exists" in line for line in table)


def test_import_path_and_verify(run: Weights, tmp_path: Path) -> None:
    made = run("import", "lavida-tiny", "--random-weights")
    folder = tmp_path / "home" / "lavida-tiny"
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{folder}\n"
    assert "untrained" in made.stderr
    assert run("path", "lavida-tiny").stdout == f"{folder}\n"
    assert run("verify").returncode == 0

    again = run("import", "lavida-tiny", "--random-weights")
    assert again.returncode == 2
    one_line(again, str(folder), "--force")

    own = folder / "lavida.safetensors"
    own.write_bytes(own.read_bytes()[:-1] + b"x")
    (folder / "text" / "config.json").unlink()
    (folder / "stray.txt").write_text("")
    damaged = run("verify", folder)
    assert damaged.returncode == 4
    assert damaged.stdout.splitlines() == [
        f"missing\t{folder / 'text' / 'config.json'}",
        f"changed\t{own}",
        f"extra\t{folder / 'stray.txt'}",
    ]
    (line,) = map(json.loads, run("verify", "lavida-tiny", "--json").stdout.splitlines())
    assert (line["ok"], line["missing"]) == (False, ["text/config.json"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("path", "lavida-7b"), 4, "no public trained checkpoint exists"),
        (("path", "qwen2-vl-2b"), 4, "vadcli weights pull qwen2-vl-2b"),
        (("path", "./nowhere"), 4, "the folder does not exist"),
        (("pull", "lavida-8b"), 4, "did you mean lavida-7b?"),
        (("pull", "sam2.1-hiera-tiny"), 1, "can't be fetched"),
        (("verify", "nonsense"), 4, "no LAVIDA weights are called"),
        (("import", "lavida-2b"), 4, "vadcli weights pull lavida-2b"),
        (("import", "lavida-9b"), 2, "no preset is called"),
    ],
)
def test_an_error_is_one_line(run: Weights, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = run(*arguments, "--quiet")
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    one_line(done, words)


def test_a_missing_argument_is_usage(run: Weights) -> None:
    assert run("pull").returncode == 2
    assert run("nonsense").returncode == 2


def test_pull_from_a_hub_and_again_without_it(run: Weights) -> None:
    with serve() as hub:
        files = {"config.json": b"{}", "model.safetensors": save({"a": np.ones(3)}), "model.pt": b"\x80\x02"}
        hub.repos["facebook/sam2.1-hiera-tiny"] = {"main": Revision("a" * 40, files)}
        first = run("pull", "sam2.1-hiera-tiny", "--json", HF_ENDPOINT=hub.url)
    assert first.returncode == 0, first.stderr
    (line,) = map(json.loads, first.stdout.splitlines())
    assert (line["commit"], line["fetched"]) == ("a" * 40, True)
    assert sorted(path.name for path in Path(line["folder"]).iterdir()) == ["config.json", "model.safetensors"]
    assert "facebook/sam2.1-hiera-tiny" in first.stderr
    offline = run("pull", "sam2.1-hiera-tiny", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert offline.stdout == f"sam2.1-hiera-tiny\t{line['folder']}\n"
    assert run("path", "sam2.1-hiera-tiny").stdout == f"{line['folder']}\n"
    assert run("verify", "sam2.1-hiera-tiny").returncode == 0
    refused = run("pull", "qwen2-vl-2b", HF_HUB_OFFLINE="1")
    assert refused.returncode == 4
    one_line(refused, "HF_HUB_OFFLINE")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_pull_ends_at_once_and_continues_next_time(
    run: Weights, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with serve() as hub:
        files = {"config.json": b"{}", "model.safetensors": save({"a": np.ones(300_000)})}
        hub.repos["facebook/sam2.1-hiera-tiny"] = {"main": Revision("a" * 40, files)}
        hub.stalled.add("model.safetensors")
        own = {"VADCLI_WEIGHTS": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url}
        command = [*VADCLI, "weights", "pull", "sam2.1-hiera-tiny"]
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **own})
        wait_until(lambda: "model.safetensors" in hub.downloads() or running.poll() is not None)
        running.send_signal(number)
        _, said = running.communicate(timeout=PATIENCE_S)
        assert running.returncode == code, said
        assert "run the same command again" in said
        assert "Traceback" not in said
        hub.stalled.clear()
        assert run("pull", "sam2.1-hiera-tiny", HF_ENDPOINT=hub.url).returncode == 0
    assert run("verify", "sam2.1-hiera-tiny").returncode == 0


def test_listing_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['vadcli', 'weights', 'import', '--help']\n"
        "from vadcli.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert done.stderr.strip() == "[]"
    assert "--random-weights" in done.stdout
