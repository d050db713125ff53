"""The command line of the schedule job makes the schedule at an API that speaks KFP's protocol."""

import os
import re
import subprocess
import sys

import pytest

from tests.launch.kfp_stand_in import KfpStandIn
from tests.manifests.rendering import MANIFESTS, OVERLAYS, find, render


def job_command(overlay: str, changes: dict[str, str], token_file) -> list[str]:
    """Give the job's command as the kubelet would start it, but in this checkout."""
    documents = render(overlay)
    job = find(documents, "CronJob", "iceaggr-schedule")["spec"]["jobTemplate"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    settings = find(documents, "ConfigMap", "iceaggr-schedule")["data"] | changes
    arguments = [
        re.sub(r"\$\((\w+)\)", lambda match: settings[match[1]], argument)
        .replace("/var/run/secrets/kubeflow/pipelines/token", str(token_file))
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
        changes = {"KFP_HOST": server.url, "CONFIG": "best.yaml", "TRAIN_START_FROM": "champion"}
        command = job_command(overlay, changes, token_file)
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
    assert parameters["train_start_from"] == "champion"
    assert schedule.service_account == "iceaggr-runner"
