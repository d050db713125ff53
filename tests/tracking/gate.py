"""A gate in front of the real tracking server, which answers in its place what a test says."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Gate:
    """Passes requests on, unless `answer(method, path, body)` gives a status and a text."""

    def __init__(self, target_uri, answer=lambda method, path, body: None):
        target = urlsplit(target_uri)
        self.answer, self.asked = answer, []
        gate = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                gate.asked.append((self.command, self.path))
                told = gate.answer(self.command, self.path, body)
                status, data, kind = self._passed(body) if told is None else (*told, "text/plain")
                self.send_response(status)
                data = data if isinstance(data, bytes) else data.encode()
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _passed(self, body):
                link = http.client.HTTPConnection(target.hostname, target.port, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
                link.request(self.command, self.path, body or None, headers)
                answer = link.getresponse()
                return answer.status, answer.read(), answer.headers.get("Content-Type", "")

            def log_message(self, *_):
                pass

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
