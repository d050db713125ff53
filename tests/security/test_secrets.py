"""Planted secrets are in nothing that a run, a submission or a failure leaves behind."""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import yaml

from iceaggr import cli
from iceaggr.errors import IceaggrError
from iceaggr.steps.context import make_context
from iceaggr.steps.plan_shards import run_plan_shards
from iceaggr.storage import open_store
from iceaggr.tracking.registry import ModelRegistry
from launch.commands import _app
from launch.kfp_api import Connection, connect
from launch.settings import run_values
from pipeline import make_pipeline
from tests.events.raw_layout import write_raw_layout
from tests.launch.kfp_stand_in import KfpStandIn
from tests.manifests.rendering import MANIFESTS, OVERLAYS
from tests.security.canary import PLANTED, CommandLines, files_below, leaks, objects_below
from tests.stand_in import Answer, HttpError, StandIn
from tests.test_end_to_end import small_config

ROOT = Path(__file__).parents[2]
PRIVATE = ("credentials.json", "s3_identities.json", "env.sh")
"""Files of the local services that hold keys on purpose, readable by their owner only."""
KFP_TOKEN, KFP_COOKIE = "canary-kfp-token-2b3c4d5e", "authservice_session=canary-cookie-6f7a8b9c"
SEVERAL_VERBS = """
import json, sys, pipeline
from launch.commands import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["pipeline.py", *arguments]
    try:
        main(pipeline.make_pipeline)
    except SystemExit as end:
        if end.code:
            raise
"""
STATIC = {"AWS_ACCESS_KEY_ID": "canaryaccess0123", "AWS_SECRET_ACCESS_KEY": "canarysecret/4567+89"}


def run(command, environment, folder, timeout=500):
    """Run a command with its home and its temporary files in one folder; its output lies there."""
    for name in ("home", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("ab") as output:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **environment, **own},
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    return done.returncode


@pytest.mark.integration
def test_run_leaves_no_secret_behind(local_services, local_services_folder, tmp_path):
    raw_uri = write_raw_layout(tmp_path / "raw", n_files=1, n_events_per_file=60, mean_pulses=30)
    name = f"canary-{tmp_path.name}"
    work_uri = f"s3://iceaggr/{name}/work"
    order = {"raw_uri": raw_uri, "work_uri": work_uri, "folder": str(tmp_path / "run")}
    order |= {"run_id": name, "tracked": True, "model_name": name}
    planted = {k: v for k, v in PLANTED.items() if "USER" not in k and "SESSION" not in k}
    with CommandLines() as lines:
        command = ["-m", "tests.faults.one_run", json.dumps(order)]
        assert run(command, local_services.env | planted, tmp_path) == 0, read(tmp_path)
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    secrets = PLANTED | {key: local_services.env[key] for key in keys}
    store = open_store(local_services.env)
    kept = [*objects_below(store, work_uri), *objects_below(store, "s3://mlflow")]
    assert len(kept) > 20
    produced = [*kept, *files_below(tmp_path), *files_below(local_services_folder, PRIVATE)]
    produced += lines.found()
    # what is no secret is found everywhere: the search reaches these places
    reached = " ".join(leaks(produced, {"name": name}))
    for place in ("mlflow.sqlite", "summary.json", "s3://iceaggr", "s3://mlflow", "arguments"):
        assert place in reached
    assert leaks(produced, secrets) == []


def read(folder):
    return (folder / "output.txt").read_text()[-3000:]


@pytest.mark.slow
@pytest.mark.integration
def test_local_pipeline_leaves_no_secret_behind(tmp_path):
    """As `make run`: own services, KFP's local runner, its log and its processes."""
    state = tmp_path / "state"
    (state / "services").mkdir(parents=True, mode=0o700)
    pair = {"access_key": STATIC["AWS_ACCESS_KEY_ID"]}
    pair |= {"secret_key": STATIC["AWS_SECRET_ACCESS_KEY"]}
    (state / "services" / "credentials.json").write_text(json.dumps(pair))
    (state / "services" / "credentials.json").chmod(0o600)
    config = small_config(tmp_path, "canary", "canary")
    options = ["--config", str(config), "--simulate-events", "1200"]
    environment = {**PLANTED, "ICEAGGR_STATE_FOLDER": str(state)}
    environment |= dict.fromkeys(("AWS_SESSION_TOKEN", "MLFLOW_TRACKING_URI"), "")
    with CommandLines() as lines:
        assert run(["pipeline.py", "run", *options], environment, tmp_path) == 0, read(tmp_path)
    produced = [*files_below(tmp_path, PRIVATE), *lines.found()]
    assert {"kfp.log", "mlflow.sqlite"} <= {Path(place).name for place, _ in produced}
    assert leaks(produced, PLANTED | STATIC) == []


class RecordingKfp(KfpStandIn):
    """Keeps what is sent to it, without the headers, where credentials belong."""

    def __init__(self):
        super().__init__()
        self.bodies = []

    def answer(self, request):
        self.bodies.append((f"body of {request.path}", f"{request.query}".encode() + request.body))
        return super().answer(request)


def test_submission_and_compiled_graph_hold_no_secret(tmp_path):
    secrets = {"token": KFP_TOKEN, "cookies": KFP_COOKIE}
    for way, secret in secrets.items():
        (tmp_path / way).write_text(secret)
    folder = tmp_path / "produced"
    with RecordingKfp() as server, CommandLines() as lines:
        common = ["--host", server.url, "--experiment", "x"]
        orders = [
            ["compile", "--output", str(folder / "ir.yaml")],
            ["submit", *common, "--token-file", str(tmp_path / "token")],
            ["schedule", "--cron", "0 0 3 * * 0", *common, "--cookies-file", f"{tmp_path}/cookies"],
        ]
        environment = PLANTED | STATIC | {"ICEAGGR_IMAGE": "registry/iceaggr:7.1.0"}
        assert run(["-c", SEVERAL_VERBS, json.dumps(orders)], environment, folder) == 0
        used = " ".join(value for headers in server.seen_headers for value in headers.values())
        assert all(secret in used for secret in secrets.values()), "they were sent as headers"
        assert len(server.runs) == len(server.schedules) == 1
        produced = [*server.bodies, *files_below(folder), *lines.found()]
    assert any(place.endswith("ir.yaml") for place, _ in produced)
    assert leaks(produced, PLANTED | STATIC | secrets) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_hold_no_secret(overlay):
    command = ["kubectl", "kustomize", str(MANIFESTS / "overlays" / overlay)]
    try:
        done = subprocess.run(command, env=os.environ | PLANTED | STATIC, capture_output=True)
    except FileNotFoundError:
        pytest.skip("kubectl is not installed")
    assert done.returncode == 0, done.stderr
    documents = list(yaml.safe_load_all(done.stdout))
    assert not [d["metadata"]["name"] for d in documents if d["kind"] == "Secret"]
    assert leaks([("rendered", done.stdout), ("errors", done.stderr)], PLANTED | STATIC) == []


# failures: the sentence that users see, and the traceback behind it


def told(error, capsys):
    """All that a failure shows: its sentence, its parts, its causes, and what was printed."""
    shown = capsys.readouterr()
    trace = "".join(traceback.format_exception(error.value))
    parts = [str(error.value), repr(vars(error.value)), trace, shown.out, shown.err]
    return [("failure", "\n".join(parts).encode())]


IN_URI = {"key": "AKIACANARY0123", "secret": "canary/secret+89"}
URIS = {
    "keys": f"s3://{IN_URI['key']}:{IN_URI['secret']}@bucket/x",
    "keys, another service": f"https://{IN_URI['key']}:{IN_URI['secret']}@host/bucket/x",
    "signature": f"s3://bucket/x?X-Amz-Credential={IN_URI['key']}&X-Amz-Signature=canary/secret+89",
}


@pytest.mark.parametrize("uri", URIS.values(), ids=list(URIS))
@pytest.mark.parametrize(
    "command",
    [
        ["iceaggr", "shard", "--folder", "FOLDER/run", "--raw-uri", "URI"],
        ["iceaggr", "shard", "--folder", "FOLDER/run", "--raw-uri", "s3://b", "--work-uri", "URI"],
        ["iceaggr", "simulate", "--events", "3", "--out", "URI"],
        ["iceaggr", "predict", "--model", "URI", "--raw-uri", "URI", "--output", "FOLDER/x.csv"],
        ["pipeline", "run", "--raw-uri", "URI"],
        ["pipeline", "run", "--raw-uri", "s3://b/raw", "--work-uri", "URI"],
    ],
    ids=lambda words: " ".join(words[:4]),
)
def test_storage_uri_with_a_secret_is_refused_before_it_is_written(
    tmp_path, monkeypatch, capsys, command, uri
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program, *words = [
        word.replace("URI", uri).replace("FOLDER", str(tmp_path)) for word in command
    ]
    app = cli.app if program == "iceaggr" else _app(make_pipeline)
    with pytest.raises(
        IceaggrError, match=r"a password or a token|not a storage URI|no step"
    ) as error:
        app(words, standalone_mode=False)
    assert "***" in str(error.value)
    assert leaks([*told(error, capsys), *files_below(tmp_path)], IN_URI) == []


@pytest.mark.parametrize("uri", URIS.values(), ids=list(URIS))
@pytest.mark.parametrize("name", ["raw_uri", "work_uri"])
def test_storage_uri_with_a_secret_is_refused_before_it_is_sent(tmp_path, capsys, name, uri):
    """What submit, schedule and `manifests` give to every run."""
    parameters = {name: {"parameterType": "STRING"}}
    (tmp_path / "file").write_text(f"{name}={uri}\n")
    for arguments in (([f"{name}={uri}"], None, None), ([], None, tmp_path / "file")):
        with pytest.raises(IceaggrError, match=r"invalid value .*found .*\*\*\*") as error:
            run_values(parameters, *arguments)
        assert leaks(told(error, capsys), IN_URI) == []


@pytest.mark.parametrize("uri", URIS.values(), ids=list(URIS))
def test_step_refuses_a_storage_uri_with_a_secret_before_it_is_tracked(uri, capsys):
    with pytest.raises(IceaggrError, match=r"\*\*\*") as error:
        make_context("run", "x", uri, {})
    assert leaks(told(error, capsys), IN_URI) == []
    context = make_context("run", "x", "s3://bucket/work", {})
    with pytest.raises(IceaggrError, match=r"\*\*\*") as error:
        run_plan_shards(context, uri)
    assert leaks(told(error, capsys), IN_URI) == []


@pytest.mark.integration
@pytest.mark.parametrize("token", ["", PLANTED["AWS_SESSION_TOKEN"]])
@pytest.mark.parametrize("endpoint", ["real", "http://127.0.0.1:9", "http://user-canary:9pass@h:1"])
def test_object_store_that_refuses_is_told_without_keys(local_services, capsys, token, endpoint):
    url = local_services.s3_endpoint if endpoint == "real" else endpoint
    environment = {**STATIC, "AWS_SESSION_TOKEN": token, "AWS_ENDPOINT_URL": url}
    store = open_store(environment)
    for call in (store.list, store.read_bytes, lambda uri: store.write_bytes(uri, b"x")):
        with pytest.raises(IceaggrError, match=r"credentials|not reachable|a password") as error:
            call("s3://iceaggr/canary/object")
        secrets = STATIC | {"endpoint": "user-canary:9pass"} | ({"token": token} if token else {})
        assert leaks(told(error, capsys), secrets) == []


class RefusingServer(StandIn):
    """A tracking server that answers every request with one status."""

    status = 403

    def answer(self, request):
        if request.path == "/health":
            return Answer(200, b"OK", "text/plain")
        raise HttpError(self.status, "not for you")


@pytest.mark.parametrize("status", [401, 403, 500])
@pytest.mark.parametrize("way", ["token", "password"])
def test_tracking_server_that_refuses_is_told_without_credentials(
    tmp_path, monkeypatch, capsys, status, way
):
    names = {"token": ("TOKEN",), "password": ("USERNAME", "PASSWORD")}[way]
    for name in (f"MLFLOW_TRACKING_{name}" for name in names):
        monkeypatch.setenv(name, PLANTED[name])
    with RefusingServer() as server:
        server.status = status
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        monkeypatch.setattr("iceaggr.tracking.run.FIRST_CONTACT_S", 1.0)
        monkeypatch.setattr("iceaggr.tracking.connection.PATIENCE_S", 1.0)
        run_of = make_context("run", "canary", tmp_path.as_uri(), {"name": "canary"})
        # a server that fails is asked again, and its answer to the first question is told
        told_as = "tracking server fails" if status == 500 else "cannot open the run"
        refused = pytest.raises(IceaggrError, match=told_as)
        with refused as error, run_of.tracking("plan_shards"):
            pass
        produced = told(error, capsys)
        told_as = "tracking server fails" if status == 500 else "champion"
        with pytest.raises(IceaggrError, match=told_as) as error:
            ModelRegistry.champion.__wrapped__(ModelRegistry(), "model")
        produced += told(error, capsys)
        used = [headers.get("Authorization") for headers in server.seen_headers]
        assert any(used), "credentials were sent"
    assert leaks([*produced, *files_below(tmp_path)], PLANTED) == []


@pytest.mark.parametrize("status", [401, 403, 500])
@pytest.mark.parametrize("way", ["token_file", "cookies_file"])
def test_kubeflow_that_refuses_is_told_without_credentials(tmp_path, capsys, status, way):
    secret = {"token_file": KFP_TOKEN, "cookies_file": KFP_COOKIE}[way]
    (tmp_path / "secret").write_text(secret)
    with KfpStandIn() as server:
        server.fail("GET", ".*", status)
        with pytest.raises(IceaggrError, match=f"HTTP {status}") as error:
            connect(Connection(server.url, **{way: tmp_path / "secret"}))
        assert leaks(told(error, capsys), {"KFP": secret}) == []
