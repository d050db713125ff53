"""Whose variables count, and that ours never meet the platform's in one container."""

import json
import os
import subprocess
import sys

import pytest
import yaml

import pipeline
from iceaggr.errors import ConfigError, TrackingError
from iceaggr.machines.train_job import build_train_job
from iceaggr.service_settings import (
    SecretKey,
    attached_run_id,
    environment_references,
    fill_environment,
    plugin_references,
    refuse_credentials,
    store_settings,
    tracking_server,
    without_credentials,
)
from iceaggr.storage import open_store
from iceaggr.tracking.connection import connect
from iceaggr.tracking.run import open_tracker
from launch import kfp_api
from launch.submission import compile_text
from tests.machines.test_train_job import order

ADDRESS = "http://ana:canary-pass@127.0.0.1:9/path"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (ADDRESS, "http://***@127.0.0.1:9/path"),
        (f"no answer from {ADDRESS}: refused", "no answer from http://***@127.0.0.1:9/path: ref"),
        ("postgresql+psycopg2://m:canary-pass@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("https://token@host", "https://***@host"),
        ("http://u:p/canary@host and s3://bucket/a@b", "http://***@host and s3://bucket/a@b"),
        ("http://u:p@canary@host/x", "http://***@host/x"),
        ("file:///raw/a@b", "file:///raw/a@b"),
        ("s3://KEY:canary-pass@bucket/a@b", "s3://***@bucket/a@b"),
        ("s3://KEY:canary/pass+1@bucket/a@b", "s3://***@b"),
        ("s3://KEY:canary/pass", "s3://***"),
        ("--set raw_uri=s3://KEY:canary/pass@bucket/a", "--set raw_uri=s3://***@bucket/a"),
        ("https://b.host/a?X-Amz-Signature=canary, or", "https://b.host/a?***"),
        ("s3://b/a?a=1&Signature=canary", "s3://b/a?***"),
        ("s3://b/a?b: s3://c", "s3://b/a?b: s3://c"),
        ("s3://a,file:///data", "s3://a,file:///data"),
        ("s3://bucket: no such", "s3://bucket: no such"),
        ("s3://arn:aws:s3:eu:1:accesspoint/n", "s3://arn:aws:s3:eu:1:accesspoint/n"),
        ("mail ana@example.org", "mail ana@example.org"),
    ],
)
def test_without_credentials_masks_what_stands_before_the_host_only(text, shown):
    assert without_credentials(text).startswith(shown)
    assert "canary" not in without_credentials(text)


@pytest.mark.parametrize("address", ["", "http://host:1", "https://host/path", "host"])
def test_refuse_credentials_lets_a_plain_address_pass(address):
    refuse_credentials(address, where="X", remedy="Y")


@pytest.mark.parametrize(
    "address",
    [
        ADDRESS,
        "https://token@host",
        "http://a:b@[::1",
        "https://ana:p/canary-pass@host:5000",
        "https://ana:p#canary-pass@host:5000",
        "https://ana:p@canary-pass@host:5000",
        "https://ana:p 'canary-pass@host:5000",
        "https:/ana:canary-pass@host",
        "ana:canary-pass@host:5000",
    ],
)
def test_refuse_credentials_does_not_quote_them(address):
    with pytest.raises(ConfigError, match=r"address holds a user or a password \[X\]") as refused:
        refuse_credentials(address, where="X", remedy="Y")
    assert not {"canary-pass", "token", "a:b"} & set(
        str(refused.value).replace("@", "/").split("/")
    )


@pytest.mark.parametrize("address", ["https://host/?token=canary", "https://host#canary"])
def test_refuse_credentials_does_not_quote_a_query(address):
    with pytest.raises(ConfigError, match=r"address holds a query \[X\].*https://host") as refused:
        refuse_credentials(address, where="X", remedy="Y")
    assert "canary" not in str(refused.value)


def test_every_client_refuses_an_address_with_a_password(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {"AWS_ENDPOINT_URL": ADDRESS}
    refused = r"user or a password .*http://\*\*\*@127.0.0.1:9/path"
    with pytest.raises(ConfigError, match=rf"{refused}.*AWS_ACCESS_KEY_ID"):
        open_store(environment).stat("s3://bucket/key")
    with pytest.raises(ConfigError, match=rf"{refused}.*MLFLOW_TRACKING_USERNAME"):
        connect(ADDRESS)
    with pytest.raises(ConfigError, match=refused):
        open_tracker(ADDRESS, "experiment", "run", "name", "step")
    with pytest.raises(ConfigError, match=rf"{refused}.*--token-file"):
        kfp_api.connect(kfp_api.Connection(host=ADDRESS))
    assert not list(tmp_path.iterdir()), "a refused address is written nowhere"


OURS = {
    "ICEAGGR_TRACKING_URI": "http://mlflow.iceaggr:5000",
    "ICEAGGR_TRACKING_USERNAME": "our-user",
    "ICEAGGR_TRACKING_PASSWORD": "our-password",
    "ICEAGGR_OBJECT_STORE_ENDPOINT": "http://object-store.iceaggr:8333",
    "ICEAGGR_OBJECT_STORE_REGION": "eu-north-1",
    "ICEAGGR_OBJECT_STORE_ACCESS_KEY_ID": "our-key",
    "ICEAGGR_OBJECT_STORE_SECRET_ACCESS_KEY": "our-secret",
}
PLUGIN = {
    "endpoint": "http://mlflow.kubeflow:5000",
    "parentRunId": "root",
    "authType": "basic-auth",
    "credentialSecretRef": {"usernameKey": "user", "passwordKey": "word"},
}
WITHOUT_INJECTION = {"KFP_MLFLOW_CONFIG": json.dumps(PLUGIN)}
# Source: kubeflow/pipelines 2.17.0, backend/src/v2/.../plugins/mlflow/handler.go
INJECTED = {
    **WITHOUT_INJECTION,
    "MLFLOW_RUN_ID": "task",
    "MLFLOW_TRACKING_URI": "http://mlflow.kubeflow:5000",
    "MLFLOW_EXPERIMENT_ID": "7",
    "MLFLOW_WORKSPACE": "team",
    "MLFLOW_TRACKING_AUTH": "kubernetes-namespaced",
    "MLFLOW_TRACKING_TOKEN": "platform-token",
    "MLFLOW_TRACKING_USERNAME": "platform-user",
    "MLFLOW_TRACKING_PASSWORD": "platform-password",
}
# Source: the webhooks of EKS (IRSA, pod identity), Azure and GKE workload identity; KFP's launcher
WEBHOOKS = {
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_STS_REGIONAL_ENDPOINTS",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CA_BUNDLE",
    "AZURE_CLIENT_ID",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_AUTHORITY_HOST",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
}
KFP = {"KFP_POD_NAME", "KFP_POD_UID", "KFP_RETRY_INDEX", "ML_PIPELINE_SERVICE_HOST"}


@pytest.fixture(scope="module")
def executors():
    made = pipeline.make_pipeline(cluster=True)
    documents = compile_text(made, made.name).text.split("\n---\n")
    platform = yaml.safe_load(documents[1])["platforms"]["kubernetes"]
    return platform["deploymentSpec"]["executors"]


def variables_of(executor):
    """Give the environment that KFP's driver makes of an executor: name and source."""
    return [
        {"name": pair["envVar"], "valueFrom": {kind: source}}
        for kind in ("secretAsEnv", "configMapAsEnv")
        for source in executor.get(kind, [])
        for pair in source["keyToEnv"]
    ]


def merged(ours, platform):
    """Merge lists of variables by name, as the driver's patch is; tells what Kubernetes refuses."""
    found, refused = {}, []
    for variable in [*ours, *platform]:
        present = found.setdefault(variable["name"], {})
        present |= variable
        if "value" in present and "valueFrom" in present:
            refused.append(variable["name"])
    return refused


def injected_values():
    names = set(INJECTED) | WEBHOOKS | KFP
    return [{"name": name, "value": INJECTED.get(name, "injected")} for name in sorted(names)]


def test_merge_finds_what_kubernetes_refuses():
    ours = [{"name": "MLFLOW_TRACKING_URI", "valueFrom": {"configMapKeyRef": {}}}]
    assert merged(ours, injected_values()) == ["MLFLOW_TRACKING_URI"]


def test_no_variable_of_a_step_meets_one_of_the_platform(executors):
    assert len(executors) >= 9
    for name, executor in executors.items():
        ours = variables_of(executor)
        assert len(ours) == len({variable["name"] for variable in ours}) > 5, name
        assert merged(ours, injected_values()) == [], name
        # a name that is not refused would still hide the platform's value
        assert {v["name"] for v in ours} & {v["name"] for v in injected_values()} == set(), name


def test_no_variable_of_a_train_job_meets_one_of_the_platform():
    trainer = build_train_job(order())["spec"]["trainer"]
    ours = [variable for variable in trainer["env"] if variable["name"] != "PLAIN"]
    webhooks = [{"name": name, "value": "injected"} for name in WEBHOOKS]
    assert merged(ours, webhooks) == []
    assert not {v["name"] for v in ours} & WEBHOOKS


def test_train_job_is_told_what_the_plugin_told_its_launcher():
    environment = {**environment_references(), **plugin_references(INJECTED | OURS)}
    assert environment["MLFLOW_RUN_ID"] == "task"
    assert json.loads(environment["KFP_MLFLOW_CONFIG"]) == PLUGIN
    secret = SecretKey("secretKeyRef", "kfp-mlflow-credentials", "word")
    assert environment["MLFLOW_TRACKING_PASSWORD"] == secret
    assert "platform-password" not in str(environment)
    # and so its pods find the same server and run as the step does
    values = {n: v if isinstance(v, str) else OURS.get(n, "x") for n, v in environment.items()}
    assert tracking_server(values) == tracking_server(INJECTED | OURS)
    assert attached_run_id(values) == "root"
    assert plugin_references(OURS) == {}


@pytest.mark.parametrize(
    ("environment", "run_id"),
    [
        (OURS, ""),
        (OURS | WITHOUT_INJECTION, "root"),
        # all steps of a run write to one run, injected or not
        (OURS | INJECTED, "root"),
        (OURS | {"MLFLOW_RUN_ID": "task"}, "task"),
    ],
)
def test_run_of_the_plugin_is_the_same_for_all_steps(environment, run_id):
    assert attached_run_id(environment) == run_id


@pytest.mark.parametrize(
    ("environment", "server"),
    [
        ({}, ""),
        (OURS, "http://mlflow.iceaggr:5000"),
        (OURS | {"MLFLOW_TRACKING_URI": ""}, "http://mlflow.iceaggr:5000"),
        (OURS | {"MLFLOW_TRACKING_URI": "http://mine"}, "http://mine"),
        (OURS | WITHOUT_INJECTION, PLUGIN["endpoint"]),
        (OURS | INJECTED, PLUGIN["endpoint"]),
        # the run that the plugin made is on its server
        (OURS | WITHOUT_INJECTION | {"MLFLOW_TRACKING_URI": "http://mine"}, PLUGIN["endpoint"]),
        (OURS | {"KFP_MLFLOW_CONFIG": "{}"}, "http://mlflow.iceaggr:5000"),
    ],
)
def test_server_is_the_platforms_first_then_ours(environment, server):
    assert tracking_server(environment) == server


def login_of(environment):
    filled = dict(environment)
    fill_environment(filled)
    return {
        name.removeprefix("MLFLOW_TRACKING_"): filled[name]
        for name in sorted(filled)
        if name.startswith("MLFLOW_TRACKING_") and name != "MLFLOW_TRACKING_URI"
    }


OUR_LOGIN = {"USERNAME": "our-user", "PASSWORD": "our-password"}


@pytest.mark.parametrize(
    ("platform", "login"),
    [
        ({}, OUR_LOGIN),
        ({"MLFLOW_TRACKING_TOKEN": "theirs"}, {"TOKEN": "theirs"}),
        ({"MLFLOW_TRACKING_AUTH": "kubernetes"}, {"AUTH": "kubernetes"}),
        ({"MLFLOW_TRACKING_USERNAME": "theirs"}, {"USERNAME": "theirs"}),
        ({"MLFLOW_TRACKING_URI": "http://mlflow.iceaggr:5000/"}, OUR_LOGIN),
        # our password is for our server
        ({"MLFLOW_TRACKING_URI": "http://mlflow.elsewhere:5000"}, {}),
        (WITHOUT_INJECTION, {}),
    ],
)
def test_login_is_the_platforms_or_ours_and_never_mixed(platform, login):
    assert login_of(OURS | platform) == login


def test_login_without_an_address_of_ours_is_for_the_platforms_server():
    ours = {name: value for name, value in OURS.items() if name != "ICEAGGR_TRACKING_URI"}
    assert login_of(ours | WITHOUT_INJECTION) == OUR_LOGIN


@pytest.mark.parametrize(
    "identity",
    [
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/token", "AWS_ROLE_ARN": "arn:aws:iam::1:role/x"},
        {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials"},
        {"AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "theirs"},
        {"AWS_SESSION_TOKEN": "theirs"},
        {"AWS_PROFILE": "theirs"},
    ],
    ids=lambda identity: next(iter(identity)),
)
def test_keys_are_those_of_the_platform_or_ours_and_never_mixed(identity):
    filled = store_settings(OURS | identity)
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    assert {n: filled[n] for n in keys if n in filled} == {
        n: v for n, v in identity.items() if n in keys
    }


def test_store_is_ours_where_the_platform_says_nothing():
    filled = store_settings(OURS | {"AWS_SESSION_TOKEN": "", "AWS_ENDPOINT_URL": ""})
    assert filled["AWS_ACCESS_KEY_ID"] == "our-key"
    assert filled["AWS_SECRET_ACCESS_KEY"] == "our-secret"
    assert filled["AWS_ENDPOINT_URL_S3"] == "http://object-store.iceaggr:8333"
    assert filled["AWS_DEFAULT_REGION"] == "eu-north-1"


def test_store_of_the_platform_stays():
    theirs = {"AWS_ENDPOINT_URL": "http://theirs", "AWS_REGION": "us-east-1"}
    assert store_settings(OURS | theirs).items() >= theirs.items()
    assert "AWS_ENDPOINT_URL_S3" not in store_settings(OURS | theirs)
    assert "AWS_DEFAULT_REGION" not in store_settings(OURS | theirs)


def test_damaged_plugin_settings_stop_tracking_and_not_storage(tmp_path):
    environment = OURS | {"KFP_MLFLOW_CONFIG": "[1"}
    with pytest.raises(TrackingError, match="KFP_MLFLOW_CONFIG is not a JSON object"):
        fill_environment(environment)
    open_store(environment).write_bytes((tmp_path / "x").as_uri(), b"x")


@pytest.mark.integration
def test_step_works_with_our_names_alone(local_services):
    """In a process of its own, whose variables are those of a pod: only our names."""
    ours = {
        "ICEAGGR_TRACKING_URI": local_services.mlflow_uri,
        "ICEAGGR_OBJECT_STORE_ENDPOINT": local_services.s3_endpoint,
        "ICEAGGR_OBJECT_STORE_ACCESS_KEY_ID": local_services.env["AWS_ACCESS_KEY_ID"],
        "ICEAGGR_OBJECT_STORE_SECRET_ACCESS_KEY": local_services.env["AWS_SECRET_ACCESS_KEY"],
    }
    foreign = ("AWS_", "MLFLOW_", "ICEAGGR_")
    clean = {n: v for n, v in os.environ.items() if not n.startswith(foreign)}
    code = """
from iceaggr.storage import open_store
from iceaggr.tracking.run import open_tracker
open_store().write_bytes("s3://iceaggr/names/ours", b"pulses")
tracker = open_tracker("", "names", "run-names", "run", "plan_shards")
tracker.log_text("words", "page.txt")
assert tracker.finish("FINISHED", 60.0) is None
print(tracker.run_id)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | ours, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
