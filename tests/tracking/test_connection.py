"""Which troubles of a server are waited for, which are told at once, and in whose words."""

import json
import ssl
import subprocess
import threading
import time
import uuid

import mlflow
import pytest

from iceaggr import patience
from iceaggr.errors import TrackingError
from iceaggr.patience import may_pass
from iceaggr.steps import context as step_context
from iceaggr.steps.context import make_context
from iceaggr.tracking import connection
from iceaggr.tracking import run as tracking_run
from iceaggr.tracking.connection import (
    NOTE,
    NOTE_TAG,
    SETTINGS_FILE,
    ServerAwayError,
    ServerFailingError,
    as_tracking_error,
    check_server,
    connect,
)
from iceaggr.tracking.registry import ModelRegistry
from iceaggr.tracking.run import open_tracker
from tests.stand_in import Answer, StandIn
from tests.tracking.gate import Gate
from tests.tracking.outage import Door

pytestmark = pytest.mark.integration
STARTING = json.dumps(
    {"error_code": "INTERNAL_ERROR", "message": "the database system is starting up"}
)


def opened(uri):
    return open_tracker(uri, "connection tests", uuid.uuid4().hex, "a run", "plan_shards")


def for_a_while(status, text, seconds, only=""):
    """Answer so until the time is over, to what has `only` in its path."""
    until = time.monotonic() + seconds

    def answer(method, path, body):
        return (status, text) if only in path and time.monotonic() < until else None

    return answer


@pytest.mark.parametrize(
    ("status", "only"), [(500, "/version"), (500, "/api/"), (503, "/version"), (503, "/api/")]
)
def test_server_that_starts_is_waited_for(mlflow_service, status, only):
    with Gate(mlflow_service.mlflow_uri, for_a_while(status, STARTING, 3.0, only)) as gate:
        began = time.monotonic()
        with opened(gate.uri) as tracker:
            assert tracker.run_id
        assert time.monotonic() - began > 2.5


@pytest.mark.parametrize(("step", "insists"), [("plan_shards", True), ("train_model", False)])
def test_first_step_of_a_pod_waits_as_long_as_a_training_and_no_other_is_held_up(
    mlflow_service, monkeypatch, tmp_path, step, insists
):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(patience, "FIRST_CONTACT_S", 0.1)
    monkeypatch.setattr(tracking_run, "FIRST_CONTACT_S", 0.1)
    monkeypatch.setattr(step_context, "FIRST_CONTACT_S", 0.1)
    monkeypatch.setattr(patience, "AWAY_S", 120.0)
    with Gate(mlflow_service.mlflow_uri, lambda *_: (500, STARTING)) as gate:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.uri)

        def recover():
            gate.answer = lambda *_: None

        timer = threading.Timer(8.0 if insists else 60.0, recover)
        timer.start()
        context = make_context(uuid.uuid4().hex, "connection tests", tmp_path.as_uri(), {})
        began = time.monotonic()
        with context.tracking(step) as tracker:
            assert bool(tracker.run_id) == insists
            assert insists == (time.monotonic() - began > 7.0)
            timer.cancel()
            recover()


@pytest.mark.parametrize(
    ("status", "kind"),
    [(500, ServerFailingError), (429, ServerFailingError)]
    + [(status, ServerAwayError) for status in (502, 503, 504)],
)
def test_trouble_that_lasts_is_told_in_the_servers_words(mlflow_service, monkeypatch, status, kind):
    monkeypatch.setattr(connection, "PATIENCE_S", 0.5)
    with Gate(mlflow_service.mlflow_uri) as gate:
        registry = ModelRegistry(gate.uri)
        # what stands before a server speaks no JSON
        words = STARTING if kind is ServerFailingError else "<h1>no healthy upstream</h1>"
        gate.answer = lambda *_: (status, words)
        gate.asked.clear()
        with pytest.raises(kind, match=r"database system is starting|no healthy upstream") as told:
            registry.champion("a model")
        assert may_pass(told.value)
        assert len(gate.asked) > 1
        if status == 500:
            assert " away" not in str(told.value)


REFUSALS = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "ENDPOINT_NOT_FOUND",
    501: "NOT_IMPLEMENTED",
}


@pytest.mark.parametrize("status", REFUSALS)
def test_refusal_is_told_at_once(mlflow_service, status):
    words = json.dumps({"error_code": REFUSALS[status], "message": f"words of {status}"})
    with Gate(mlflow_service.mlflow_uri) as gate:
        registry = ModelRegistry(gate.uri)
        gate.answer = lambda *_: (status, words)
        gate.asked.clear()
        with pytest.raises(TrackingError, match=f"words of {status}") as told:
            registry.fetch("models:/a@champion", None)
        assert not may_pass(told.value)
        assert len(gate.asked) == 1


@pytest.mark.parametrize(
    "words",
    [
        "Endpoint: /x disabled due to the mlflow server running with `--no-serve-artifacts`. To"
        " enable artifacts server functionality, run `mlflow server` with `--serve-artifacts`",
        "Endpoint: /x disabled due to the mlflow server running in `--artifacts-only` mode.",
        '{"detail": "Artifact serving is disabled. Run `mlflow server` with `--serve-artifacts`"}',
    ],
)
def test_server_that_was_started_without_it_is_no_server_that_is_away(mlflow_service, words):
    with Gate(mlflow_service.mlflow_uri) as gate:
        registry = ModelRegistry(gate.uri)
        gate.answer = lambda *_: (503, words)
        gate.asked.clear()
        with pytest.raises(TrackingError, match="--serve-artifacts") as told:
            registry.champion("a model")
        assert not may_pass(told.value)
        assert len(gate.asked) == 1


def test_server_of_mlflow_2_is_told_before_anything_is_done(mlflow_service):
    with Gate(mlflow_service.mlflow_uri, for_a_while(200, "2.22.0", 600, "/version")) as gate:
        with pytest.raises(TrackingError, match=r"too old .*found MLflow 2\.22\.0"):
            opened(gate.uri)
        assert [path for _, path in gate.asked] == ["/version"]


def test_server_that_does_not_tell_its_version_is_taken(mlflow_service):
    with (
        Gate(mlflow_service.mlflow_uri, for_a_while(404, "<html>", 600, "/version")) as gate,
        opened(gate.uri) as tracker,
    ):
        assert tracker.run_id


def first_step(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    context = make_context(uuid.uuid4().hex, "first steps", tmp_path.as_uri(), {"name": "signs"})
    with context.tracking("plan_shards") as tracker:
        return tracker


def test_first_step_leaves_a_note_and_the_settings(mlflow_service, tmp_path, monkeypatch):
    tracker = first_step(mlflow_service.mlflow_uri, tmp_path, monkeypatch)
    assert tracker.client.get_run(tracker.run_id).data.tags[NOTE_TAG] == NOTE
    kept = mlflow.artifacts.load_text(f"runs:/{tracker.run_id}/{SETTINGS_FILE}")
    assert json.loads(kept)["name"] == "signs"


def test_first_step_tells_a_database_that_refuses_our_signs(mlflow_service, tmp_path, monkeypatch):
    words = "'ascii' codec can't encode character '\\xb1' in position 5 of the note ±"
    refusal = json.dumps({"error_code": "INTERNAL_ERROR", "message": words})

    def refuse_signs(method, path, body):
        text = json.loads(body)["value"] if path.endswith("/set-tag") else ""
        return None if text.isascii() else (500, refusal)

    monkeypatch.setattr(step_context, "FIRST_CONTACT_S", 0.5)
    monkeypatch.setattr(step_context, "FINISH_WITHIN_S", 0.5)
    with Gate(mlflow_service.mlflow_uri, refuse_signs) as gate:
        with pytest.raises(TrackingError, match=r"UTF-8.*ENCODING 'UTF8'") as told:
            first_step(gate.uri, tmp_path, monkeypatch)
        assert "'ascii' codec" in str(told.value)
        assert str(told.value).isascii(), "it becomes a tag on this very server"


@pytest.mark.parametrize(
    "words",
    [
        "'ascii' codec can't encode character '\\u2192' in position 64: ordinal not in range(128)",
        "(psycopg2.errors.UntranslatableCharacter) character with byte sequence 0xe2 0x86 0x92",
        '(pymysql.err.DataError) (1366, "Incorrect string value: \\xE2\\x86 for column value")',
    ],
)
def test_database_without_our_signs_is_told_at_once_wherever_it_shows(mlflow_service, words):
    """As a PostgreSQL in SQL_ASCII was seen to answer, already when the experiment is made."""
    text = json.dumps({"error_code": "INTERNAL_ERROR", "message": words})
    with Gate(mlflow_service.mlflow_uri, for_a_while(500, text, 600, "/experiments/")) as gate:
        with pytest.raises(TrackingError, match="ENCODING 'UTF8'") as told:
            opened(gate.uri)
        assert not may_pass(told.value)
        assert str(told.value).isascii()


def test_first_step_tells_a_server_without_its_artifact_store(
    mlflow_service, tmp_path, monkeypatch
):
    words = "Artifact serving is disabled. Run `mlflow server` with `--serve-artifacts` to enable."
    gate = Gate(mlflow_service.mlflow_uri, for_a_while(503, words, 600, "/mlflow-artifacts/"))
    with gate, pytest.raises(TrackingError, match=r"cannot keep files.*Artifact serving is disab"):
        first_step(gate.uri, tmp_path, monkeypatch)


def test_first_step_tells_a_server_that_leaves_files_to_each_clients_disk(mlflow_service):
    tracker = opened(mlflow_service.mlflow_uri)

    class Elsewhere:
        tracking_uri = "https://mlflow.example.org"

        def get_run(self, run_id):
            found = tracker.client.get_run(run_id)
            found.info._artifact_uri = "/var/lib/mlflow/artifacts/7/x"
            return found

    with pytest.raises(TrackingError, match=r"no artifact store.*/var/lib/mlflow/artifacts"):
        check_server(Elsewhere(), tracker.run_id, "{}", 0.0)
    tracker.finish()


@pytest.fixture
def authority(tmp_path):
    """A certificate that nobody trusts, and its key."""
    names = [str(tmp_path / name) for name in ("key.pem", "authority.pem")]
    options = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *options]
    subprocess.run([*command, "-keyout", names[0], "-out", names[1]], check=True)
    return names


class Version(StandIn):
    def answer(self, _):
        return Answer(body=b"3.17.2", kind="text/plain")


@pytest.fixture
def private_server(authority):
    """The address of a server whose certificate is of that authority."""
    settings = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    settings.load_cert_chain(authority[1], authority[0])
    with Version(settings) as server:
        yield server.url.replace("localhost", "127.0.0.1")


def test_certificate_that_is_not_trusted_is_told_at_once(private_server):
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_SERVER_CERT_PATH") as told:
        connect(private_server, patience_s=60.0)
    assert not may_pass(told.value)


@pytest.mark.parametrize(
    "variable",
    ["REQUESTS_CA_BUNDLE", "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_INSECURE_TLS"],
)
def test_probe_trusts_what_mlflow_trusts(private_server, authority, monkeypatch, variable):
    value = "true" if variable.endswith("TLS") else authority[1]
    monkeypatch.setenv(variable, value)
    connect(private_server)


def test_probe_goes_past_the_proxy_where_requests_do(mlflow_service, monkeypatch):
    """NO_PROXY with a net, which requests understands and urllib does not."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.0/8")
    connect(mlflow_service.mlflow_uri)


def test_no_connection_is_told_in_few_words():
    with pytest.raises(ServerAwayError) as told:
        connect("http://127.0.0.1:9")
    assert "Connection refused" in told.value.found
    assert len(told.value.found) < 100


def test_server_that_falls_silent_is_away(mlflow_service, monkeypatch):
    door = Door(mlflow_service.mlflow_uri)
    door.open()
    client = connect(door.uri)
    door.shut()
    with pytest.raises(ServerAwayError), as_tracking_error("cannot ask", door.uri):
        client.search_experiments()
