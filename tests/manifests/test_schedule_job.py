"""The command line of the schedule job makes the schedule at an API that speaks KFP's protocol."""

import os
import re
import subprocess
import sys

import pytest

from tests.launch.kfp_stand_in import KfpStandIn
from tests.manifests.rendering import MANIFESTS, OVERLAYS, find, render


def job_command(
    overlay: str, changes: dict[str, str], token_file, more_parameters: dict[str, str] | None = None
) -> list[str]:
    """Give the job's command as the kubelet would start it, but in this checkout."""
    documents = render(overlay)
    job = find(documents, "CronJob", "iceaggr-schedule")["spec"]["jobTemplate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    settings = find(documents, "ConfigMap", "iceaggr-schedule")["data"] | changes
    parameters = token_file.with_name("parameters.env")
    parameters.write_text(
        find(documents, "ConfigMap", "iceaggr-schedule-parameters")["data"]["parameters.env"]
        + "".join(f"{name}={value}\n" for name, value in (more_parameters or {}).items())
    )
    arguments = [
        re.sub(r"\$\((\w+)\)", lambda match: settings[match[1]], argument)
        .replace("/var/run/secrets/kubeflow/pipelines/token", str(token_file))
        .replace("/etc/iceaggr/parameters.env", str(parameters))
        .replace("/opt/application", str(MANIFESTS.parent))
        for argument in container["args"]
    ]
    program, script, *verb = container["command"]
    assert (program, script) == ("python3", "/opt/application/pipeline.py")
    return [sys.executable, str(MANIFESTS.parent / "pipeline.py"), *verb, *arguments]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_schedule_job_makes_the_schedule_once(overlay, tmp_path):
    token_file = tmp_path / "token"
    token_file.write_text("a-token")
    with KfpStandIn(multi_user=overlay == "existing") as server:
        changes = {"KFP_HOST": server.url, "CONFIG": "best.yaml"}
        more = {"train_nodes": "2", "config.training.n_epochs": "3"}
        command = job_command(overlay, changes, token_file, more)
        environment = {**os.environ, "ICEAGGR_IMAGE": "registry/iceaggr:7.1.0"}
        first, second = (
            subprocess.run(
                command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
            )
            for _ in range(2)
        )
        assert first.returncode == 0, first.stderr
        assert "schedule iceaggr-weekly created: 0 0 3 * * 0" in first.stdout
        assert second.returncode == 0, second.stderr
        assert "schedule iceaggr-weekly unchanged" in second.stdout
        (schedule,) = server.schedules
    parameters = schedule.runtime_config.parameters
    assert parameters["raw_uri"] == "s3://iceaggr/raw"
    assert parameters["config"]["name"] == "best"
    assert parameters["config"]["training"]["n_epochs"] == 3
    assert (parameters["train_nodes"], parameters["train_gpu_count"]) == ("2", "0")
    assert parameters["train_start_from"] == "configured"
    assert schedule.service_account == "iceaggr-runner"


def test_schedule_job_refuses_an_unknown_parameter_before_anything_is_sent(tmp_path):
    token_file = tmp_path / "token"
    token_file.write_text("a-token")
    with KfpStandIn() as server:
        command = job_command(
            "standalone", {"KFP_HOST": server.url}, token_file, {"train_gpu_cuont": "1"}
        )
        environment = {**os.environ, "ICEAGGR_IMAGE": "registry/iceaggr:7.1.0"}
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert server.requests == []
    assert done.returncode == 1
    assert re.search(
        r"unknown parameter .*parameters\.env line \d+: train_gpu_cuont\]", done.stderr
    )
    assert "Did you mean train_gpu_count?" in done.stderr


def test_schedule_job_mounts_what_its_command_line_names():
    for overlay in OVERLAYS:
        documents = render(overlay)
        job = find(documents, "CronJob", "iceaggr-schedule")["spec"]["jobTemplate"]["spec"]
        pod = job["template"]["spec"]
        (path,) = [a.partition("=")[2] for a in pod["containers"][0]["args"] if "--set-file" in a]
        folder, _, name = path.rpartition("/")
        (mount,) = [m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == folder]
        (volume,) = [v for v in pod["volumes"] if v["name"] == mount["name"]]
        assert name in find(documents, "ConfigMap", volume["configMap"]["name"])["data"]
