"""What the runbook's chapter 'after installing, prove it' does, by API, on any cluster.

One small run, one with its training pod deleted, a schedule that retrains from the champion, and a
run that is terminated. The command line is the user's; what it leads to is read from Kubeflow
Pipelines, from Kubernetes, and from the summary that a run leaves in its work folder.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubernetes import client, config

from iceaggr.storage import open_store
from launch.kfp_api import Connection, connect

ROOT = Path(__file__).parents[2]
ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
_RUN_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NODE_NAME = "workflows.argoproj.io/node-name"


@dataclass(frozen=True)
class Cluster:
    """Where to prove it, and how long to wait.

    endpoint: of Kubeflow Pipelines.  namespace: of the runs
    raw_uri, work_uri: raw events that are there, and a folder that may be written to
    environment: variables of the command line: image, store
    pause_s: between two looks.  patience_s: for a run of a few minutes
    """

    endpoint: str
    namespace: str
    raw_uri: str
    work_uri: str
    environment: Mapping[str, str] = field(default_factory=dict)
    pause_s: float = 5.0
    patience_s: float = 3600.0

    @property
    def kfp(self) -> Any:
        """Connect to Kubeflow Pipelines."""
        return connect(Connection(self.endpoint))

    @property
    def pods(self) -> client.CoreV1Api:
        """Connect to Kubernetes as kubectl does."""
        return client.CoreV1Api(config.new_client_from_config())

    def call(self, *words: str) -> str:
        """Call `pipeline.py` as a user does; gives what it printed."""
        done = subprocess.run(
            [sys.executable, str(ROOT / "pipeline.py"), *words, "--host", self.endpoint],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, f"{words[0]}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def settings(self, **others: str) -> list[str]:
        """Give the options of a small run: one short training on one machine, a small model."""
        values = {
            "raw_uri": self.raw_uri,
            "work_uri": self.work_uri,
            "train_cpu": "1",
            "train_memory": "4Gi",
            "evaluate_cpu": "1",
            "evaluate_memory": "4Gi",
            "config.training.n_epochs": "1",
            # what follows starts from its champion, however little one epoch teaches
            "config.promotion.first_beats_fits": "false",
            **others,
        }
        return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]

    def submit(self, *options: str, **others: str) -> str:
        """Start a run; gives its id."""
        account = ("--service-account", "iceaggr-runner")
        printed = self.call("submit", *account, *self.settings(**others), *options)
        found = _RUN_ID.findall(printed)
        assert found, f"no run in: {printed}"
        return found[-1]

    def until(self, what: str, look: Callable[[], Any]) -> Any:
        """Look until there is something; gives it."""
        deadline = time.monotonic() + self.patience_s
        while time.monotonic() < deadline:
            if found := look():
                return found
            time.sleep(self.pause_s)
        raise AssertionError(f"waited {self.patience_s:.0f} s in vain for {what}")

    def state(self, run_id: str) -> str:
        """Give the state of a run as Kubeflow Pipelines tells it."""
        return str(self.kfp.get_run(run_id).state)

    def end_of(self, run_id: str) -> str:
        """Wait for the end of a run; gives its last state."""

        def look() -> str:
            state = self.state(run_id)
            return state if state in ENDED else ""

        return str(self.until(f"the end of run {run_id}", look))

    def summary(self, run_id: str) -> dict[str, Any]:
        """Read the summary that a run that succeeded left."""
        store = open_store({**os.environ, **self.environment})
        text = store.read_bytes(f"{self.work_uri}/runs/{run_id}/summary.json")
        return dict(json.loads(text))

    def pods_of(self, run_id: str, step: str) -> list[Any]:
        """List the pods in which a step of a run works or worked, without KFP's drivers."""
        found = self.pods.list_namespaced_pod(
            self.namespace, label_selector=f"pipeline/runid={run_id}"
        ).items
        node = re.compile(rf"\.{re.escape(step)}\.executor")
        return [p for p in found if node.search((p.metadata.annotations or {}).get(_NODE_NAME, ""))]

    def training_pod(self, run_id: str, other_than: str = "") -> str:
        """Wait until a pod trains, and not only starts; gives its name."""

        def look() -> str:
            for pod in self.pods_of(run_id, "train-model"):
                name = str(pod.metadata.name)
                works = name != other_than and pod.status.phase == "Running"
                # what the log says of steps comes from the loop itself
                if works and re.search(r"train_model .*epoch", self.log(name)):
                    return name
            assert self.state(run_id) not in ENDED, f"run {run_id} ended before it trained"
            return ""

        return str(self.until(f"the training pod of run {run_id}", look))

    def log(self, pod: str) -> str:
        """Read what a pod has said so far."""
        return str(self.pods.read_namespaced_pod_log(pod, self.namespace, container="main"))

    def runs_of_schedule(self, name: str) -> list[Any]:
        """List the runs that a schedule has started."""
        ids = {s.recurring_run_id for s in self._schedules() if s.display_name == name}
        runs = self.kfp.list_runs(page_size=100, sort_by="created_at desc").runs or []
        return [run for run in runs if run.recurring_run_id in ids]

    def schedule_names(self) -> set[str]:
        """List the schedules there are."""
        return {str(schedule.display_name) for schedule in self._schedules()}

    def _schedules(self) -> list[Any]:
        return list(self.kfp.list_recurring_runs(page_size=100).recurring_runs or [])


def cluster_of_environment() -> Cluster | None:
    """Describe the cluster that the environment names; None without one.

    KF_PIPELINES_ENDPOINT and a kubeconfig name it, AWS_* lead to its object store from here.
    """
    endpoint = os.environ.get("KF_PIPELINES_ENDPOINT", "")
    kubeconfig = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
    if not (endpoint and kubeconfig.is_file()):
        return None
    return Cluster(
        endpoint=endpoint,
        namespace=os.environ.get("ICEAGGR_RUN_NAMESPACE", "kubeflow"),
        raw_uri=os.environ.get("ICEAGGR_RAW_URI", "s3://iceaggr/raw"),
        work_uri=os.environ.get("ICEAGGR_WORK_URI", "s3://iceaggr/work/proof").rstrip("/"),
    )
