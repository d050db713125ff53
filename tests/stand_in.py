"""A server that keeps its state in memory and speaks real HTTP; a subclass says what it answers."""

from __future__ import annotations

import json
import re
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Request:
    """One request; of a query parameter given twice the first value.

    target: path and query, as they were sent
    """

    method: str
    target: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """One answer; with parts it is sent as they are, one chunk each, without a length."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    parts: tuple[bytes, ...] = field(default=())

    @classmethod
    def of(cls, document: object, status: int = 200) -> Answer:
        """Answer with JSON."""
        return cls(status, json.dumps(document).encode())


class HttpError(Exception):
    """An answer of this status; 0 = cut the connection without one."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StandIn:
    """Serves on a free port between `with` and its end; `url` is its address."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[str] = []
        self.seen_headers: list[dict[str, str]] = []
        self.failures: list[tuple[str, str, int]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://localhost:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, method: str, path: str, status: int) -> None:
        """Answer the next request of this kind with an error; status 0 = cut the connection."""
        self.failures.append((method, path, status))

    def names(self, method: str, pattern: str = "") -> list[str]:
        """List the requests of one kind, in order."""
        return [r for r in self.requests if r.startswith(method) and re.search(pattern, r)]

    def answer(self, request: Request) -> Answer:
        """Answer a request. Raises: HttpError."""
        raise NotImplementedError

    def serve(self, request: Request) -> Answer:
        """Note a request and answer it, unless it is to fail. Raises: HttpError for status 0."""
        self.requests.append(f"{request.method} {request.path}")
        self.seen_headers.append(request.headers)
        try:
            for failure in self.failures:
                if failure[0] == request.method and re.fullmatch(failure[1], request.path):
                    self.failures.remove(failure)
                    raise HttpError(failure[2], "made to fail")
            return self.answer(request)
        except HttpError as error:
            if error.status == 0:
                raise
            return Answer.of({"error": str(error), "message": str(error)}, error.status)


def _handler(server: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            request = Request(
                method=self.command,
                target=self.path,
                path=parts.path,
                query={key: values[0] for key, values in parse_qs(parts.query).items()},
                headers=dict(self.headers),
                body=self.rfile.read(int(self.headers.get("Content-Length") or 0)),
            )
            try:
                self._send(server.serve(request))
            except HttpError:
                self.close_connection = True
                self.connection.close()

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            if answer.parts:
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for part in answer.parts:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.write(b"0\r\n\r\n")
                return
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else answer.body)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    return Handler
