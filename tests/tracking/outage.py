"""A door in front of the real tracking server, which a test can shut: an outage on demand."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Door:
    """Forwards connections to a server while it is open, refuses them while it is shut."""

    def __init__(self, target_uri):
        target = urlsplit(target_uri)
        self._target = (target.hostname, target.port)
        self._listener = None
        self._links = []
        # a bound socket that does not listen refuses callers and keeps the port ours
        self._keeper = _bound(0)
        self._port = self._keeper.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"

    def open(self):
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._keeper.close()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self):
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            self._keeper = _bound(self._port)
            listener.close()
        while self._links:
            with contextlib.suppress(OSError):
                self._links.pop().shutdown(socket.SHUT_RDWR)

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                caller, _ = listener.accept()
                server = socket.create_connection(self._target)
                self._links += [caller, server]
                for source, sink in ((caller, server), (server, caller)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _bound(port):
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(("127.0.0.1", port))
    return keeper


def _pump(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
