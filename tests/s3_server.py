"""A real S3 server on this machine (moto).

A test can count, slow down, cut off or refuse its requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BUCKET = "archive"
SECRET = "s3cr3t-of-this-test"


@dataclass
class S3Server:
    """The server's address, a client, and the server's behaviour.

    A content request asks for the content of an object.

    Attributes:
        gets: (object, Range header) of each content request.
        cut: number of content requests whose answer is cut off in the middle.
        deny: True refuses all requests.
        slow_s: seconds that the server waits before it answers a content request.
    """

    url: str
    client: Any
    gets: list[tuple[str, str]] = field(default_factory=list)
    cut: int = 0
    deny: bool = False
    slow_s: float = 0.0

    def put(self, key: str, data: bytes | Path) -> None:
        """Store an object."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data.read_bytes() if isinstance(data, Path) else data)

    def answer(self, app: Any, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        """Answer a request (WSGI)."""
        if self.deny:
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            start("403 Forbidden", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
        key = environ["PATH_INFO"].removeprefix(f"/{BUCKET}/")
        if environ["REQUEST_METHOD"] != "GET" or "list-type" in environ["QUERY_STRING"] or key == environ["PATH_INFO"]:
            return app(environ, start)  # type: ignore[no-any-return]
        self.gets.append((key, environ.get("HTTP_RANGE", "")))
        time.sleep(self.slow_s)
        body = app(environ, start)
        if not self.cut:
            return body  # type: ignore[no-any-return]
        self.cut -= 1
        return half_of(body)


def half_of(body: Iterable[bytes]) -> Iterator[bytes]:
    whole = b"".join(body)
    yield whole[: len(whole) // 2]
    raise ConnectionAbortedError  # the server closes the connection


@contextmanager
def running_server() -> Iterator[S3Server]:
    """Start the server with an empty bucket, and set the environment variables for its clients."""
    boto3 = pytest.importorskip("boto3", reason="no S3 packages: pip install 'vadcli[dev]'")
    pytest.importorskip("s3fs", reason="no S3 packages: pip install 'vadcli[dev]'")
    pytest.importorskip("moto", reason="no S3 packages: pip install 'vadcli[dev]'")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *arguments: object) -> None:
            pass

    app, found = DomainDispatcherApplication(create_backend_app), {}
    server = make_server(
        "127.0.0.1", 0, lambda environ, start: found["server"].answer(app, environ, start), threaded=True, request_handler=Quiet
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        found["server"] = S3Server(url, boto3.client("s3"))
        found["server"].client.create_bucket(Bucket=BUCKET)
        yield found["server"]
    server.shutdown()
    thread.join()
