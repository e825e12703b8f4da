"""A fake model hub on 127.0.0.1, with the requests that huggingface_hub makes to download a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Revision:
    """One commit: its id and its files. Files with a suffix of `LARGE` are stored in Git LFS."""

    commit: str
    files: dict[str, bytes]

    LARGE = (".safetensors", ".bin")

    def etag(self, name: str) -> str:
        data = self.files[name]
        return hashlib.sha256(data).hexdigest() if name.endswith(self.LARGE) else git_id(data)


@dataclass
class FakeHub:
    """The content of the hub, and the errors that it makes.

    Attributes:
        repos: repository -> branch or ref -> revision.
        requests: `METHOD path` of every request.
        discussions: repository -> pull requests as (number, author, status).
        refuse: repository -> (status, X-Error-Code).
        garbled: file names that are sent with one byte changed.
        cut: file names whose connection ends in the middle of the file.
        sizes: file name -> a wrong size that the hub declares.
        stalled: file names of which the hub sends the first half, and never the second.
        closed: set when the hub is stopped.
    """

    url: str = ""
    repos: dict[str, dict[str, Revision]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    discussions: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    garbled: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    stalled: set[str] = field(default_factory=set)
    closed: threading.Event = field(default_factory=threading.Event)

    def revision(self, repo: str, name: str) -> Revision | None:
        refs = self.repos.get(repo, {})
        return refs.get(name) or next((item for item in refs.values() if item.commit == name), None)

    def downloads(self) -> list[str]:
        return [line.rsplit("/", 1)[1] for line in self.requests if line.startswith("GET") and "/resolve/" in line]


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Run a hub inside the context."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *arguments: _Handler(hub, *arguments))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: FakeHub, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        is_api = path.startswith("/api/models/")
        owner, name, *rest = path.removeprefix("/api/models/").strip("/").split("/")
        repo = f"{owner}/{name}"
        if repo in self.hub.refuse or repo not in self.hub.repos:
            status, code = self.hub.refuse.get(repo, (404, "RepoNotFound"))
            return self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "no"})
        if is_api and rest[:1] == ["discussions"]:
            return self._json(self._discussions(repo))
        kind, wanted = (rest[0], "/".join(rest[1:])) if rest else ("revision", "main")
        if kind == "resolve":
            wanted, _, file = wanted.partition("/")
            return self._file(self.hub.revision(repo, wanted), file)
        revision = self.hub.revision(repo, wanted)
        if revision is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        return self._json(self._tree(revision) if kind == "tree" else self._info(repo, revision))

    def _discussions(self, repo: str) -> dict[str, Any]:
        found = [
            {
                "title": "Adding `safetensors` variant of this model",
                "num": number,
                "author": {"name": author},
                "createdAt": "2023-01-01T00:00:00.000Z",
                "status": status,
                "repo": {"name": repo, "type": "model"},
                "isPullRequest": True,
            }
            for number, author, status in self.hub.discussions.get(repo, [])
        ]
        return {"discussions": found, "count": len(found), "start": 0}

    def _entries(self, revision: Revision) -> Iterator[tuple[str, int, str, str | None]]:
        for name, data in revision.files.items():
            large = name.endswith(Revision.LARGE)
            size = self.hub.sizes.get(name, len(data))
            yield name, size, git_id(data), revision.etag(name) if large else None

    def _info(self, repo: str, revision: Revision) -> dict[str, Any]:
        siblings = [
            {"rfilename": name, "size": size, "blobId": oid}
            | ({"lfs": {"sha256": sha, "size": size, "pointerSize": 130}} if sha else {})
            for name, size, oid, sha in self._entries(revision)
        ]
        return {"id": repo, "sha": revision.commit, "siblings": siblings, "private": False, "tags": []}

    def _tree(self, revision: Revision) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": size, "oid": oid}
            | ({"lfs": {"oid": sha, "size": size, "pointerSize": 130}} if sha else {})
            for name, size, oid, sha in self._entries(revision)
        ]

    def _file(self, revision: Revision | None, name: str) -> None:
        if revision is None or name not in revision.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = revision.files[name]
        if name in self.hub.garbled:
            data = data[:-1] + bytes([data[-1] ^ 1])
        headers = {"ETag": f'"{revision.etag(name)}"', "X-Repo-Commit": revision.commit}
        if name in self.hub.stalled and self.command == "GET":
            self._send(200, data[: len(data) // 2], headers, declared=len(data))
            self.wfile.flush()
            self.close_connection = True
            self.hub.closed.wait()
            return None
        if name in self.hub.cut and self.command == "GET":
            self.close_connection = True
            return self._send(200, data[: len(data) // 2], headers, declared=len(data))
        return self._send(200, data, headers)

    def _json(self, document: Any) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], declared: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if declared is None else declared))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
