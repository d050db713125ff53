"""What a shell sets for other stores and servers does not reach ours."""

import os
import subprocess
import urllib.request

import pytest

from iceaggr.local_services.environment import client_settings, of_a_run, shell_script
from iceaggr.local_services.services import LocalServices
from iceaggr.storage import open_store

FOREIGN = {
    "AWS_PROFILE": "gone",
    "AWS_SESSION_TOKEN": "of another store",
    "AWS_CA_BUNDLE": "/gone/ca.pem",
    "AWS_CONFIG_FILE": "/gone/config",
    "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:9",
    "AWS_MAX_ATTEMPTS": "many",
    "AWS_USE_DUALSTACK_ENDPOINT": "true",
    "MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9",
    "MLFLOW_RUN_ID": "0" * 32,
    "MLFLOW_TRACKING_TOKEN": "of another server",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "soon",
    "REQUESTS_CA_BUNDLE": "/gone/ca.pem",
    "SSL_CERT_FILE": "/gone/ca.pem",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "no_proxy": "example.org",
    "KFP_MLFLOW_CONFIG": "{}",
}
SETTINGS = client_settings(
    "http://127.0.0.1:1", "http://127.0.0.1:2", "key", "secret with 'quotes'"
)


def test_run_keeps_its_shell_but_for_the_settings_of_other_services():
    shell = {**FOREIGN, "PATH": "/bin", "OMP_NUM_THREADS": "1", "ICEAGGR_STATE_FOLDER": "x"}
    assert of_a_run(shell, SETTINGS) == {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "1",
        "ICEAGGR_STATE_FOLDER": "x",
        **SETTINGS,
    }


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_shell_that_sources_the_settings_has_no_others(tmp_path, shell):
    (tmp_path / "env.sh").write_text(shell_script(SETTINGS), encoding="utf-8")
    done = subprocess.run(
        [shell, "-euc", ". ./env.sh; env -0"],
        cwd=tmp_path,
        env={**FOREIGN, "PATH": os.environ["PATH"], "KEPT": "two\nlines"},
        capture_output=True,
        text=True,
        check=True,
    )
    seen = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    assert {n: v for n, v in seen.items() if n not in ("PATH", "PWD", "SHLVL", "_", "OLDPWD")} == {
        **SETTINGS,
        "KEPT": "two\nlines",
    }


@pytest.mark.integration
def test_services_work_in_a_shell_that_is_set_up_for_others(tmp_path, monkeypatch):
    (tmp_path / "boto3.py").write_text("raise ImportError('another one')", encoding="utf-8")
    for name, value in {**FOREIGN, "PYTHONPATH": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with LocalServices(tmp_path / "state") as addresses:
        open_store(addresses.env).write_bytes("s3://iceaggr/x", b"1")
        # the server hands what it is given on to the store
        artifact = f"{addresses.mlflow_uri}/api/2.0/mlflow-artifacts/artifacts/x"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        direct.open(urllib.request.Request(artifact, b"2", method="PUT"), timeout=60).close()
        assert open_store(addresses.env).read_bytes("s3://mlflow/x") == b"2"
