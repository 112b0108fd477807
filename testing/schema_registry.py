"""A schema registry for tests: in this process, over real HTTP on the loopback, with faults to order.

It keeps schemas and answers as Confluent's does, as far as the clients that write and read messages ask. It does not judge
compatibility: `refuse` a subject where a test wants that.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from ..models import NotReady

__all__ = ["StubRegistry", "ready"]

T = TypeVar("T")


class StubRegistry:
    """A registry at `url`, from `start` to `stop`; or in a ``with`` block.

    Args:
        credentials: username and password that it asks for.
        ssl_context: of a server; with it, the registry speaks HTTPS.

    Attributes:
        requests: what was asked, as `"GET /schemas/ids/1"`, also what was answered with a fault.

    >>> with StubRegistry() as registry:
    ...     registry.register("orders-value", '"string"')
    1
    """

    def __init__(
        self, *, credentials: tuple[str, str] | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[str] = []
        self._schemas: list[dict[str, Any]] = []
        self._subjects: dict[str, list[int]] = {}
        self._refused: dict[str, tuple[int, str]] = {}
        self._failing: list[int] = []
        self._held = threading.Event()
        self._held.set()
        self._lock = threading.Lock()
        self._credentials = None if credentials is None else base64.b64encode(":".join(credentials).encode()).decode()
        self._ssl_context = ssl_context
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"{'https' if self._ssl_context else 'http'}://127.0.0.1:{self._port}"

    # -- its life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve; after a `stop` at the same port, with the same schemas."""
        handler = type("Handler", (_Handler,), {"registry": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._port = self._server.server_port
        if self._ssl_context is not None:
            self._server.socket = self._ssl_context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="stub registry")
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections."""
        self._held.set()
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> StubRegistry:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- faults --------------------------------------------------------------------------------------------

    def fail(self, times: int, status: int = 500) -> None:
        """Answer the next requests with this status."""
        self._failing += [status] * times

    def refuse(self, subject: str, status: int = 409, message: str = "Schema being registered is incompatible") -> None:
        """Answer with this whenever something is registered under the subject."""
        self._refused[subject] = status, message

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Take requests and answer none within the block."""
        self._held.clear()
        try:
            yield
        finally:
            self._held.set()

    # -- what it knows -------------------------------------------------------------------------------------

    def register(self, subject: str, schema: str, type: str = "AVRO", references: Any = ()) -> int:
        """The id of a schema, which becomes the subject's newest version unless it has it already."""
        entry = {"schema": schema, "schemaType": type, "references": list(references)}
        with self._lock:
            if entry not in self._schemas:
                self._schemas.append(entry)
            id = self._schemas.index(entry) + 1
            versions = self._subjects.setdefault(subject, [])
            if id not in versions:
                versions.append(id)
            return id

    def versions(self) -> dict[str, list[str]]:
        """The schemas of each subject, the oldest first."""
        return {subject: [self._schemas[id - 1]["schema"] for id in ids] for subject, ids in self._subjects.items()}

    @property
    def subjects(self) -> dict[str, list[Any]]:
        """The same for Avro and JSON Schema, as plain data."""
        return {subject: [json.loads(schema) for schema in schemas] for subject, schemas in self.versions().items()}

    def answer(self, method: str, path: str, body: Any, authorization: str | None) -> tuple[int, Any]:
        """Status and JSON for a request."""
        self.requests.append(f"{method} {path}")
        self._held.wait()
        if self._failing:
            status = self._failing.pop(0)
            return status, {"error_code": status * 100 + 1, "message": "ordered by the test"}
        if self._credentials is not None and authorization != f"Basic {self._credentials}":
            return 401, {"error_code": 401, "message": "Unauthorized"}
        parts = [unquote(part) for part in path.strip("/").split("/")]
        match method, parts:
            case "GET", ["schemas", "ids", id] if 0 < int(id) <= len(self._schemas):
                return 200, self._schemas[int(id) - 1]
            case "GET", ["schemas", "ids", id]:
                return 404, {"error_code": 40403, "message": f"Schema {id} not found"}
            case "POST", ["subjects", subject, "versions"] if subject in self._refused:
                status, message = self._refused[subject]
                return status, {"error_code": status, "message": message}
            case "POST", ["subjects", subject, "versions"]:
                return 200, {"id": self._register(subject, body)}
            case _, ["subjects", subject, *_] if subject not in self._subjects:
                return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
            case "POST", ["subjects", subject]:
                return self._look_up(subject, body)
            case "GET", ["subjects", subject, "versions", version]:
                ids = self._subjects[subject]
                return 200, self._version(subject, len(ids) if version == "latest" else int(version))
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def _register(self, subject: str, body: Any) -> int:
        return self.register(subject, body["schema"], body.get("schemaType") or "AVRO", body.get("references") or ())

    def _look_up(self, subject: str, body: Any) -> tuple[int, Any]:
        for version, id in enumerate(self._subjects[subject], 1):
            if self._schemas[id - 1]["schema"] == body["schema"]:
                return 200, self._version(subject, version)
        return 404, {"error_code": 40403, "message": "Schema not found"}

    def _version(self, subject: str, version: int) -> Any:
        id = self._subjects[subject][version - 1]
        return {"subject": subject, "id": id, "version": version, **self._schemas[id - 1]}


class _Handler(BaseHTTPRequestHandler):
    registry: StubRegistry
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may be idle

    def do_GET(self) -> None:
        self._answer("GET", None)

    def do_POST(self) -> None:
        self._answer("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, method: str, body: Any) -> None:
        path = urlsplit(self.path).path
        status, answer = self.registry.answer(method, path, body, self.headers.get("Authorization"))
        data = json.dumps(answer).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except ConnectionError:  # whoever asked did not wait
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def ready(call: Callable[[], T]) -> T:
    """The result of a call to a codec, after all that it has to fetch first: what a topic does, without trio."""
    while True:
        try:
            return call()
        except NotReady as pending:
            pending.work()
