"""A gate in front of the real tracking server, which answers in its place what a test says."""

import http.client
from urllib.parse import urlsplit

from tests.stand_in import Answer, StandIn


class Gate(StandIn):
    """Passes requests on, unless `answer(method, path, body)` gives a status and a text."""

    def __init__(self, target_uri, answer=lambda method, path, body: None):
        super().__init__()
        self.answer, self.asked, self.uri = answer, [], self.url
        self._target = urlsplit(target_uri)

    def serve(self, request):
        self.asked.append((request.method, request.target))
        told = self.answer(request.method, request.target, request.body)
        if told is None:
            return self._passed(request)
        status, data = told
        return Answer(status, data if isinstance(data, bytes) else data.encode(), "text/plain")

    def _passed(self, request):
        link = http.client.HTTPConnection(self._target.hostname, self._target.port, timeout=60)
        headers = {k: v for k, v in request.headers.items() if k.lower() != "host"}
        link.request(request.method, request.target, request.body or None, headers)
        answer = link.getresponse()
        return Answer(answer.status, answer.read(), answer.headers.get("Content-Type", ""))
