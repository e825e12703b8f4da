"""Connects the driver to the Ray cluster, and finds the nodes that can take part. Only this file imports ray."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from vadcli import __version__
from vadcli.engine.cluster.worker import check_node
from vadcli.errors import ToolError, UsageError
from vadcli.options import ScanOptions, VerifyOptions
from vadcli.store.atomic import Scratch
from vadcli.video.loader import core_count

log = logging.getLogger("vadcli")

CHECK_S = 120.0
"""A node must say within this many seconds whether it can take part."""
CONNECT_S = 20.0
LONGEST_FOLDER = 15
"""Longest path of a temporary folder, in bytes. A socket's path has at most 107 bytes, and Ray's own folders need up to 92."""
_TEMPORARY = "vadcli-ray-"


@dataclass(frozen=True)
class Node:
    """A node of the cluster: its id, its name in messages, and the cores and GPUs that it offers."""

    id: str
    name: str
    cpus: int
    gpus: int


def import_ray() -> Any:
    """Import and return ray; raises UsageError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray prints the errors of its nodes to stdout, which is for data. The driver reports them itself.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError as error:
        raise UsageError("--runner ray: Ray is not installed", hint="pip install 'vadcli[ray]'") from error
    return ray


@contextmanager
def connected(ray: Any, options: ScanOptions | VerifyOptions) -> Iterator[None]:
    """Connect to the cluster. Without an address, start Ray on this machine; at the end, stop it and remove its files."""
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if options.ray_address:
        try:
            _reach(options.ray_address)
            with _own_signals():
                ray.init(address=options.ray_address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            words = str(error).strip().splitlines() or [type(error).__name__]
            hint = "start one with: ray start --head"
            raise UsageError(f"--ray-address {options.ray_address}: no Ray cluster answers: {words[0]}", hint=hint) from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{os.getpid()}-", dir=_temporary()))
    try:
        with _own_signals():
            _start(
                ray,
                num_cpus=core_count(),
                include_dashboard=False,
                _temp_dir=str(folder),
                _system_config={"worker_niceness": 0},  # by default 15: other programs would go first
                **quiet,
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start(ray: Any, **settings: Any) -> None:
    """Start Ray on this machine; raises ToolError if it does not start. Ray gives itself 30 seconds."""
    try:
        ray.init(**settings)
    except Exception as error:  # Ray has no class of its own for this
        words = str(error).strip().splitlines() or [type(error).__name__]
        hint = "try again when the machine is less busy, or name a cluster with --ray-address"
        raise ToolError(f"--runner ray: Ray does not start on this machine: {words[0]}", hint=hint) from error


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM. Ray sets its own, which ends the process at once."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # only the main thread can set a handler
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def _reach(address: str) -> None:
    """Raise OSError if no program listens at HOST:PORT. Ray itself would wait for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def _temporary() -> str:
    """Return the folder for temporary files; /tmp if the path of that folder is too long for Ray's sockets."""
    folder = tempfile.gettempdir()
    return folder if len(os.fsencode(folder)) <= LONGEST_FOLDER else "/tmp"  # noqa: S108 - a new folder is made in it


def _remove_abandoned() -> None:
    """Remove the files of Ray that a killed run has left behind."""
    for folder in Path(_temporary()).glob(f"{_TEMPORARY}*-*"):
        pid = folder.name.removeprefix(_TEMPORARY).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def usable_nodes(ray: Any, scratch: Scratch, root: Path | None) -> list[Node]:
    """Return the nodes that see OUT and the footage and have this version of vadcli. Log why other nodes are left out.

    Raises:
        UsageError: no node can take part.
    """
    word = uuid.uuid4().hex
    token = scratch.folder / "token"
    token.write_text(word, encoding="ascii")
    nodes = nodes_of(ray)
    check = ray.remote(check_node)
    asked = {
        check.options(num_cpus=0, scheduling_strategy=on_node(ray, node)).remote(
            token.absolute(), word, root, __version__
        ): node
        for node in nodes
    }
    usable = []
    for answer, node in asked.items():
        try:
            problem = ray.get(answer, timeout=CHECK_S)
        except ray.exceptions.RayError as error:
            problem = f"it can't run vadcli: {str(error).strip().splitlines()[-1]}"
        if problem:
            log.warning("node %s takes no videos: %s", node.name, problem)
        else:
            usable.append(node)
    if not usable:
        raise UsageError("no node of the cluster can take part", hint="the lines above say why")
    return usable


def on_node(ray: Any, node: Node) -> Any:
    """Return the scheduling strategy for tasks and actors that must run on this node."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)


def nodes_of(ray: Any) -> list[Node]:
    """Return the nodes that are alive. Nodes on the same host get a number in their name."""
    found: list[Node] = []
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"])
    hosts = [str(node["NodeManagerHostname"]) for node in alive]
    for place, (node, host) in enumerate(zip(alive, hosts, strict=True)):
        name = host if hosts.count(host) == 1 else f"{host}/{hosts[: place + 1].count(host)}"
        has = node["Resources"]
        found.append(Node(node["NodeID"], name, int(has.get("CPU", 0)), int(has.get("GPU", 0))))
    return found
