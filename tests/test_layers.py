"""The house rules as data: which package may import which, and which modules the help and a scan may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.media import make_video
from tests.patience import PATIENCE_S

PACKAGE = Path(__file__).resolve().parents[1] / "vadcli"

# Unit (a package or a module of vadcli) -> level. A unit imports only from lower levels and from itself.
LEVELS: dict[str, int] = {
    "types": 0,
    "errors": 0,
    "registry": 0,
    "options": 0,
    "video": 1,
    "cutting": 1,
    "store": 1,
    "export": 2,
    "draw": 2,
    "weights": 1,
    "metrics": 1,
    "ground_truth": 1,
    "detectors": 2,
    "heads": 2,
    "engine": 3,
    "pruning": 3,
    "status": 3,
    "doctor": 3,
    "learning": 3,
    "evaluation": 3,
    "train": 3,
    "weights_check": 3,
    "rendering": 4,  # finds the footage as the engine does
    "bench": 4,  # finds the footage as the engine does
    "verifying": 4,  # uses the engine's rules for events
    "vectors": 4,  # finds the footage as the engine does
    "clipping": 4,  # finds out whether footage has changed since the engine scanned it
    "reporting": 5,  # shows clips that rendering makes
    "api": 6,
    "cli": 7,
}
# The units of L0 in order: each imports only from units before it.
GROUND = ["errors", "registry", "types", "options"]

HOMES: dict[str, tuple[str, ...]] = {
    "decord": ("video/decoders",),
    "ffmpeg": ("video/ffmpeg",),
    "imageio_ffmpeg": ("video/ffmpeg",),
    "av": ("video/container", "video/probe", "video/ffmpeg", "store/masks", "draw/__init__", "bench/measuring"),
    "pyarrow": ("store/",),
    "pycocotools": ("store/masks", "train/datasets/"),
    "jsonschema_rs": ("store/events",),
    "cv2": ("detectors/motion",),
    "PIL": ("store/", "draw/", "video/decoders", "ground_truth/", "evaluation", "train/", "reporting/", "weights_check"),
    "jinja2": ("reporting/",),
    "fsspec": ("video/objects",),
    "ray": ("engine/ray_cluster",),
    "scipy": ("metrics", "ground_truth", "detectors/calibration", "detectors/refining", "heads/__init__", "learning"),
    "opentimelineio": ("export/__init__",),
    "matplotlib": ("evaluation",),
    "threadpoolctl": ("detectors/motion", "learning"),
    "torch": ("detectors/", "heads/", "doctor", "bench", "train/"),
    "transformers": (
        "detectors/lavida/",
        "detectors/ask/__init__",
        "detectors/ask/reader",
        "detectors/mllm/",
        "detectors/encoders/",
        "detectors/running",
    ),
    "tokenizers": ("detectors/lavida/text",),
    "sam2": ("detectors/lavida/sam2", "doctor"),
    "safetensors": ("detectors/lavida/", "detectors/encoders/", "heads/stored", "weights", "train/"),
    "peft": ("detectors/lavida/checkpoint", "train/state"),
    "accelerate": ("train/",),
    "huggingface_hub": ("weights", "detectors/lavida/checkpoint"),
    "typer": ("cli/",),
    "tqdm": ("cli/_talk", "train/trainer"),
    "platformdirs": ("options/__init__", "weights"),
    "psutil": ("video/supervisor", "video/worker", "engine/runner", "engine/ray_cluster", "doctor", "bench", "status"),
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """Yield the dotted names that a module imports anywhere. Relative names are made absolute."""
    package = ["vadcli", *name.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            dotted = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield dotted
            yield from (f"{dotted}.{alias.name}" for alias in node.names)


def unit(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "vadcli" and len(parts) > 1 and parts[1] in LEVELS else None


@pytest.mark.parametrize(("name", "tree"), [pytest.param(*item, id=item[0]) for item in modules()])
def test_imports_point_down(name: str, tree: ast.Module) -> None:
    own = name.split("/", maxsplit=1)[0]
    if own in ("__init__", "__main__"):
        return
    assert own in LEVELS, f"vadcli/{name}.py belongs to no level"
    for dotted in imports(name, tree):
        other = unit(dotted)
        if other is None or other == own:
            continue
        if own in GROUND:
            assert GROUND.index(other) < GROUND.index(own), f"vadcli/{name}.py imports {dotted}"
        else:
            assert LEVELS[other] < LEVELS[own], f"vadcli/{name}.py imports {dotted}"


@pytest.mark.parametrize(("name", "tree"), [pytest.param(*item, id=item[0]) for item in modules()])
def test_third_party_packages_stay_at_home(name: str, tree: ast.Module) -> None:
    for dotted in imports(name, tree):
        homes = HOMES.get(dotted.split(".")[0])
        assert homes is None or name.startswith(homes), f"vadcli/{name}.py imports {dotted}, which is at home in {homes}"


def test_every_third_party_package_has_a_home() -> None:
    known = {*sys.stdlib_module_names, "vadcli", "numpy", *HOMES}
    for name, tree in modules():
        for dotted in imports(name, tree):
            assert dotted.split(".")[0] in known, f"vadcli/{name}.py imports {dotted}, which has no home"


def test_no_import_cycles() -> None:
    graph = {}
    names = {name.removesuffix("/__init__") for name, _ in modules()}
    for name, tree in modules():
        at_top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        found = {dotted.removeprefix("vadcli.").replace(".", "/") for dotted in imports(name, at_top)}
        graph[name.removesuffix("/__init__")] = (found & names) - {name.removesuffix("/__init__")}
    done: set[str] = set()
    while ready := [name for name in graph if name not in done and graph[name] <= done]:
        done.update(ready)
    assert set(graph) == done, f"import cycle among {sorted(set(graph) - done)}"


def test_importing_vadcli_loads_nothing_heavy() -> None:
    code = "import sys, vadcli; print(sorted({'torch', 'numpy', 'cv2', 'av', 'pyarrow'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout
    assert said.strip() == "[]"


HELP = """
import sys; sys.argv = ["vadcli", "--help"]
from vadcli.cli import main
try: main()
except SystemExit as end: assert not end.code
heavy = {"torch", "cv2", "av", "decord", "pyarrow", "scipy", "transformers", "huggingface_hub"}
print(sorted(heavy & set(sys.modules)), len(sys.modules), file=sys.stderr)
"""


def test_help_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    found, count = done.stderr.rsplit(maxsplit=1)
    assert found == "[]"
    # Users wait for each module that the help loads; 325 take a third of a second. torch alone brings over 1,000.
    assert int(count) < 600
    assert "scan" in done.stdout


SCAN = """
import sys; sys.argv = ["vadcli", "scan", *sys.argv[1:], "--quiet", "--detector", "motion"]
from vadcli.cli import main
try: main()
except SystemExit as end: assert not end.code
heavy = {"torch", "av", "decord", "pandas", "scipy.stats", "transformers", "huggingface_hub", "matplotlib", "jinja2"}
print(sorted(heavy & set(sys.modules)))
"""


def test_a_scan_with_motion_loads_nothing_heavy(tmp_path: Path) -> None:
    given = [str(make_video(tmp_path / "clip.mp4", frames=20)), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", SCAN, *given], check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert (tmp_path / "out" / "scores" / "clip.mp4.parquet").is_file()


# LAVIDA's bridges: one between folders of weights and the model, one between the model and the scan engine.
BRIDGES = ("__init__", "checkpoint", "detector")
IMPORTERS = ("importing",)  # build a folder of weights; the model does not know them
MODEL_MAY_IMPORT = {
    "torch",
    "transformers",
    "tokenizers",
    "sam2",  # the second backend
    "numpy",
    "vadcli.detectors.lavida",
    "vadcli.detectors.mllm",
    "vadcli.errors",
    "vadcli.types",
}
PURE = {
    "__future__",
    "collections",
    "contextlib",
    "dataclasses",
    "fractions",
    "functools",
    "importlib",
    "itertools",
    "json",
    "logging",
}
PURE |= {"bisect", "inspect", "math", "operator", "re", "threading", "types", "typing"}


def test_lavidas_model_knows_no_path_no_video_and_no_command() -> None:
    for name, tree in modules():
        if not name.startswith(("detectors/lavida/", "detectors/mllm/")):
            continue
        file = name.rpartition("/")[2]
        if file in IMPORTERS:
            continue
        bridge = file in BRIDGES
        for dotted in imports(name, tree):
            assert unit(dotted) not in ("video", "engine", "store", "cli"), f"vadcli/{name}.py imports {dotted}"
            ours = any(dotted == known or dotted.startswith(f"{known}.") for known in MODEL_MAY_IMPORT)
            assert bridge or ours or dotted.split(".")[0] in PURE, f"vadcli/{name}.py imports {dotted}, and it is no bridge"
