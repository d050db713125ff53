"""S3 against a real store: its errors; and against a broken one, which a socket plays."""

import hashlib
import http.server
import socket
import threading
from types import MappingProxyType, SimpleNamespace

import pytest

from iceaggr import patience
from iceaggr.errors import StorageError
from iceaggr.patience import AWAY_S, may_pass
from iceaggr.storage import open_store, s3_client
from tests.stand_in import Answer, StandIn

KEYS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "not-to-be-printed"}


@pytest.mark.integration
def test_list_follows_all_pages(object_store_service):
    store = open_store()
    n_objects = 1_050  # a page holds 1,000
    for i in range(n_objects):
        store.write_bytes(f"s3://iceaggr/tests/pages/{i:04d}", b"")
    found = [entry.uri[-4:] for entry in store.list("s3://iceaggr/tests/pages")]
    assert found == [f"{i:04d}" for i in range(n_objects)]


@pytest.mark.integration
def test_ensure_bucket_twice_makes_one_bucket(object_store_service):
    store = open_store()
    with pytest.raises(StorageError, match=r"bucket not found.*'made-by-test'"):
        store.stat("s3://made-by-test/x")
    store.ensure_bucket("s3://made-by-test")
    store.ensure_bucket("s3://made-by-test/any/key")
    store.write_bytes("s3://made-by-test/x", b"1")
    assert store.read_bytes("s3://made-by-test/x") == b"1"


@pytest.mark.integration
@pytest.mark.parametrize(
    "request_made",
    [
        lambda store: store.read_bytes("s3://no-such-bucket/x"),
        lambda store: store.write_bytes("s3://no-such-bucket/x", b"1"),
        lambda store: store.list("s3://no-such-bucket/x"),
        lambda store: store.stat("s3://no-such-bucket/x"),
        lambda store: store.open_input("s3://no-such-bucket/x"),
    ],
)
def test_missing_bucket_is_not_taken_for_a_missing_object(object_store_service, request_made):
    with pytest.raises(StorageError, match=r"bucket not found \[s3://no-such-bucket/x\]"):
        request_made(open_store())


@pytest.mark.integration
@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_told_without_printing_them(object_store_service, wrong):
    store = open_store({**object_store_service.env, wrong: "not-to-be-printed"})
    for request_made in (store.read_bytes, store.stat, store.list):
        with pytest.raises(StorageError, match="refused the credentials") as caught:
            request_made("s3://iceaggr/x")
        assert "not-to-be-printed" not in str(caught.value)
        assert object_store_service.env["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


@pytest.mark.integration
def test_reading_fails_when_the_object_is_replaced_meanwhile(object_store_service):
    store = open_store()
    store.write_bytes("s3://iceaggr/tests/replaced", b"a" * 1_000_000)
    file = store.open_input("s3://iceaggr/tests/replaced")
    assert file.read(1) == b"a"
    store.write_bytes("s3://iceaggr/tests/replaced", b"b" * 1_000_000)
    file.seek(600_000)
    with pytest.raises(StorageError, match="replaced while it was read"):
        file.read(1)


def test_unreachable_endpoint_is_named_at_once():
    store = open_store({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", **KEYS})
    with pytest.raises(StorageError, match=r"no answer from http://127\.0\.0\.1:9") as caught:
        store.read_bytes("s3://bucket/x")
    assert "not-to-be-printed" not in str(caught.value)


def test_endpoint_that_is_no_address_is_explained():
    with pytest.raises(StorageError, match=r"not an endpoint address.*'localhost'"):
        open_store({"AWS_ENDPOINT_URL": "localhost", **KEYS}).read_bytes("s3://bucket/x")


class _Flaky(http.server.BaseHTTPRequestHandler):
    """Breaks off the first bodies of every object, then sends all of it."""

    content = b"0123456789" * 1_000
    n_broken = 2
    n_gets = 0

    def do_GET(self):
        type(self).n_gets += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.send_header("ETag", hashlib.md5(self.content).hexdigest())
        self.end_headers()
        whole = self.n_gets > self.n_broken
        self.wfile.write(self.content if whole else self.content[:500])
        self.close_connection = True

    def log_message(self, *_):
        pass


def serve(port=0):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _Flaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def end(server):
    server.shutdown()
    server.server_close()


def store_at(url, more=MappingProxyType({})):
    return open_store({"AWS_ENDPOINT_URL": url, **KEYS, **more})


def url_of(server):
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def flaky_store(monkeypatch):
    monkeypatch.setattr(s3_client, "sleep", lambda _: None)
    _Flaky.n_gets = 0
    server = serve()
    yield store_at(url_of(server))
    end(server)


class _Page(StandIn):
    """Something that is no object store: it answers every request with a page and status 200."""

    def __init__(self, page):
        super().__init__()
        self.page = page

    def answer(self, _):
        return Answer(body=self.page, kind="text/html")


@pytest.mark.parametrize(
    "request_made",
    [
        lambda store, path: store.read_bytes("s3://b/x"),
        lambda store, path: store.write_bytes("s3://b/x", b"1"),
        lambda store, path: store.write_bytes_if_absent("s3://b/x", b"1"),
        lambda store, path: store.list("s3://b/x"),
        lambda store, path: store.stat("s3://b/x"),
        lambda store, path: store.open_input("s3://b/x"),
        lambda store, path: store.upload(path, "s3://b/x"),
        lambda store, path: store.download("s3://b/x", path),
    ],
)
def test_endpoint_that_answers_with_a_page_is_told_to_be_no_s3(request_made, tmp_path, monkeypatch):
    monkeypatch.setattr("iceaggr.storage.s3_store.PART_BYTES", 3)
    (tmp_path / "file").write_bytes(b"parts")
    told = r"speak S3 \[s3://b/x\]: found an answer .* from http://localhost"
    with _Page(b"<html>login</html>") as server, pytest.raises(StorageError, match=told):
        request_made(store_at(server.url), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"parts"


@pytest.mark.parametrize("page", [b"<!doctype html><p>login<br>", b"OK"])
def test_page_that_is_no_xml_is_not_taken_for_a_passing_error(page):
    told = "endpoint does not speak S3"
    with _Page(page) as server, pytest.raises(StorageError, match=told):
        store_at(server.url).list("s3://b/x")


def test_body_that_breaks_off_is_asked_for_again(flaky_store):
    assert flaky_store.read_bytes("s3://bucket/x") == _Flaky.content
    assert _Flaky.n_gets == _Flaky.n_broken + 1


def test_body_that_always_breaks_off_is_an_error_in_the_end(flaky_store, monkeypatch):
    monkeypatch.setattr(_Flaky, "n_broken", 1_000)
    with pytest.raises(StorageError, match=r"request failed \[s3://bucket/x\]"):
        flaky_store.read_bytes("s3://bucket/x")
    assert _Flaky.n_gets == 8


IN_A_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the waits between two tries move on; gives its reading."""
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))

    def wait(seconds):
        clock.now_s += seconds
        if clock.now_s > clock.back_at_s and clock.server is None:
            clock.server = serve(clock.port)

    clock.server, clock.back_at_s = None, float("inf")
    monkeypatch.setattr(s3_client, "sleep", wait)
    yield clock
    if clock.server is not None:
        end(clock.server)


@pytest.mark.parametrize("has_answered", [False, True])
def test_pod_waits_half_an_hour_for_a_store_that_is_away(clock, caplog, has_answered):
    server = serve()
    store = store_at(url_of(server), IN_A_POD)
    if has_answered:
        assert store.read_bytes("s3://bucket/x") == _Flaky.content
    end(server)
    with socket.socket() as keeper:  # refuses callers, keeps the port
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(server.server_address)
        with pytest.raises(StorageError, match="not reachable") as caught:
            store.read_bytes("s3://bucket/x")
        assert AWAY_S <= clock.now_s < AWAY_S + 30
        assert may_pass(caught.value)
        assert caplog.text.count("asking again") == 1, "nobody must wonder what it waits for"
        clock.now_s, clock.back_at_s, clock.port = 0.0, AWAY_S - 60, server.server_port
        assert store.read_bytes("s3://bucket/x") == _Flaky.content
    assert clock.now_s > AWAY_S - 60


@pytest.mark.parametrize("status", [400, 403, 501])
def test_pod_does_not_wait_for_what_cannot_pass(clock, status):
    class Refusing(StandIn):
        def answer(self, request):
            return Answer(status)

    with Refusing() as server, pytest.raises(StorageError):
        store_at(server.url, IN_A_POD).read_bytes("s3://bucket/x")
    assert clock.now_s < 10


def test_store_that_has_answered_before_is_waited_for(monkeypatch):
    server = serve()
    store = store_at(url_of(server))
    assert store.read_bytes("s3://bucket/x") == _Flaky.content
    end(server)
    # bound and not listening: it refuses callers and keeps the port from other servers
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(server.server_address)
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            waits.append(serve(server.server_port))

    monkeypatch.setattr(s3_client, "sleep", wait)
    with keeper:
        assert store.read_bytes("s3://bucket/x") == _Flaky.content
    *seconds, again = waits
    end(again)
    assert seconds == sorted(seconds), "waits grow"
    assert len(seconds) == 3
