"""An HTTP proxy in front of a real server that does to requests what a plan says."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from tests.faults.fault_plan import ANSWERS, FaultPlan, Request

_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}
_TRICKLE_S = 0.2


class FaultProxy:
    """Forwards to `target_uri`; `plan` may be replaced at any time, None forwards everything.

    stall_s: how long a stalled request is held.
    expired_key: requests signed with this access key are told that it has expired; '' none;
    on_expired is called then.
    delay_s: before every request.  refuse_with: a status that every request gets; 0 none.
    """

    def __init__(self, target_uri: str, stall_s: float = 2.0) -> None:
        target = urlsplit(target_uri)
        self.target = (str(target.hostname), int(target.port or 80))
        self.stall_s = stall_s
        self.plan: FaultPlan | None = None
        self.expired_key = ""
        self.on_expired: Callable[[], object] = lambda: None
        self.delay_s = 0.0
        self.refuse_with = 0
        self.ended = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def faults(self, plan: FaultPlan) -> Iterator[FaultPlan]:
        """Inject faults during the block."""
        self.plan = plan
        try:
            yield plan
        finally:
            self.plan = None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    proxy: FaultProxy

    def handle_error(self, request, client_address):
        """Stay quiet: clients that give up are what this is for."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def do_any(self) -> None:
        proxy = self.server.proxy
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        path, _, query = self.path.partition("?")
        time.sleep(proxy.delay_s)
        if proxy.refuse_with:
            self._refuse(proxy.refuse_with, "Refused", "refused by the proxy")
            return
        if proxy.expired_key and proxy.expired_key in self.headers.get("Authorization", ""):
            self._refuse(*ANSWERS["expired"])
            proxy.on_expired()
            return
        request = Request(self.command, path, query, len(body))
        plan = proxy.plan
        kind = plan.draw(request) if plan else ""
        if kind in ANSWERS:
            self._refuse(*ANSWERS[kind])
        elif kind == "reset":
            self._reset()
        elif kind == "stall":
            proxy.ended.wait(proxy.stall_s)
            self._reset()
        else:
            self._pass_on(kind, body, plan)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_any  # noqa: N815

    def handle_expect_100(self) -> bool:
        """Ask for the body at once: the client waits for that."""
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def _pass_on(self, kind: str, body: bytes, plan: FaultPlan | None) -> None:
        if kind == "wrong_upload":
            body = _changed(body, plan)
        try:
            status, headers, answer = self._ask(body)
        except (OSError, http.client.HTTPException):
            self._reset()  # the server is away: so are we
            return
        unharmed = not answer or self.command == "HEAD" or status >= 400
        if kind in ("wrong_bytes", "truncated", "trickle", "endless_trickle") and unharmed:
            plan.take_back(kind)
            kind = ""
        if kind == "answer_lost":
            self._reset()
            return
        if kind == "wrong_bytes":
            answer = _changed(answer, plan)
        self._answer(status, headers, answer, kind)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.server.proxy.target, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            reply = connection.getresponse()
            answer = reply.read()
            headers = [(n, v) for n, v in reply.getheaders() if n.lower() not in _HOP]
            if self.command == "HEAD":
                headers.append(("Content-Length", reply.getheader("Content-Length") or "0"))
            return reply.status, headers, answer

    def _answer(
        self, status: int, headers: list[tuple[str, str]], answer: bytes, kind: str
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD" and status not in (204, 304):
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if kind == "truncated":
            self.wfile.write(answer[: len(answer) // 2])
            self.wfile.flush()
            self.close_connection = True
        elif kind in ("trickle", "endless_trickle"):
            self._trickle(answer, endless=kind == "endless_trickle")
        else:
            self.wfile.write(answer)

    def _trickle(self, answer: bytes, *, endless: bool) -> None:
        pieces = 8
        size = 1 if endless else -(-len(answer) // pieces)
        for first in range(0, len(answer), size):
            self.wfile.write(answer[first : first + size])
            self.wfile.flush()
            if self.server.proxy.ended.wait(_TRICKLE_S / pieces):
                return

    def _refuse(self, status: int, code: str, message: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _reset(self) -> None:
        # without lingering, close sends a reset instead of a proper end
        option = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


def _changed(data: bytes, plan: FaultPlan | None) -> bytes:
    assert plan is not None
    at = plan.position(len(data))
    return data[:at] + bytes([data[at] ^ (1 << (at % 8))]) + data[at + 1 :]
