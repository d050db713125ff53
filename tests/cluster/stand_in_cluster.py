"""A cluster that keeps its state in memory and speaks real HTTP: Kubeflow Pipelines and pods.

A run goes its way as it is looked at: it waits, trains in a pod, trains again in another one if
that was deleted, and leaves a summary, as the real steps do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import kfp_server_api as api
import yaml

from iceaggr.interfaces import ObjectStore
from iceaggr.storage import open_store
from tests.cluster.proof import Cluster
from tests.launch.kfp_stand_in import V2, KfpStandIn
from tests.stand_in import Answer, HttpError, Request, StandIn

_PODS = "/api/v1/namespaces/runs/pods"
_LOOKS = 2
"""How often a training pod is looked at until it is done."""


class RunsStandIn(KfpStandIn):
    """The pipelines API, whose runs have pods."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__()
        self.store = store
        self.page_size = 100
        self.pods: dict[str, list[dict]] = {}
        self.n_champions = 0

    def answer(self, request: Request) -> Answer:
        if request.path.endswith(":terminate") and request.method == "POST":
            self._end(self._run(request.path.split("/")[-1].partition(":")[0]), "FAILED")
            return Answer.of({})
        if request.path == f"{V2}/runs" and request.method == "GET":
            self._fire_schedules()
        return super().answer(request)

    def get_run(self, query, body, run_id):
        run = super().get_run(query, body, run_id)
        if run.state in ("PENDING", "RUNNING"):
            self._go_on(run)
        return run

    def _run(self, run_id):
        return next(run for run in self.runs if run.run_id == run_id)

    def _go_on(self, run):
        pods = self.pods.setdefault(run.run_id, [])
        if run.state == "PENDING":
            run.state = "RUNNING"
        elif not [pod for pod in pods if not pod["deleted"]]:
            lines = ["resuming at step 409 from s3://x"] if pods else []
            pods.append(_pod(run, "train-model", len(pods), [*lines, "train_model 10 % epoch 1"]))
        else:
            pods[-1]["looks"] += 1
            if pods[-1]["looks"] == _LOOKS:
                self._end(run, "SUCCEEDED")

    def _end(self, run, state):
        pods = self.pods.setdefault(run.run_id, [])
        for pod in pods:
            pod["status"]["phase"] = "Succeeded" if state == "SUCCEEDED" else "Failed"
        pods.append(_pod(run, "close-run", 0, ["closed"]))
        run.state = state
        if state == "SUCCEEDED":
            self._leave_summary(run)

    def _leave_summary(self, run):
        values = run.runtime_config.parameters
        from_champion = values.get("train_start_from") == "champion"
        summary = {
            "n_events_test": 7,
            "model_uri": f"models:/iceaggr-direction/{self.n_champions + 1}",
            "reason": "promoted",
            "margin_deg": 0.1 if self.n_champions else None,
            "started_from": "champion models:/iceaggr-direction/1" if from_champion else "scratch",
        }
        self.n_champions += 1
        uri = f"{values['work_uri']}/runs/{run.run_id}/summary.json"
        self.store.write_bytes(uri, json.dumps(summary).encode())

    def _fire_schedules(self):
        for schedule in self.schedules:
            if not [r for r in self.runs if r.recurring_run_id == schedule.recurring_run_id]:
                body = {
                    "display_name": schedule.display_name,
                    "experiment_id": schedule.experiment_id,
                    "pipeline_version_reference": {
                        "pipeline_id": schedule.pipeline_version_reference.pipeline_id,
                        "pipeline_version_id": (
                            schedule.pipeline_version_reference.pipeline_version_id
                        ),
                    },
                }
                run = self.create_run({}, json.dumps(body).encode())
                run.recurring_run_id = schedule.recurring_run_id
                run.runtime_config = schedule.runtime_config


class PodsStandIn(StandIn):
    """The part of Kubernetes that lists, reads and deletes the pods of runs."""

    def __init__(self, runs: RunsStandIn) -> None:
        super().__init__()
        self._runs = runs

    def answer(self, request: Request) -> Answer:
        present = {
            pod["metadata"]["name"]: pod
            for pods in self._runs.pods.values()
            for pod in pods
            if not pod["deleted"]
        }
        name, _, rest = request.path.removeprefix(f"{_PODS}").strip("/").partition("/")
        if name and name not in present:
            raise HttpError(404, f"no pod {name}")
        if rest == "log":
            return Answer(body="\n".join(present[name]["lines"]).encode(), kind="text/plain")
        if request.method == "DELETE":
            present[name]["deleted"] = True
            return Answer.of(present[name])
        wanted = request.query["labelSelector"].removeprefix("pipeline/runid=")
        items = [p for p in present.values() if p["metadata"]["labels"]["pipeline/runid"] == wanted]
        return Answer.of({"kind": "PodList", "apiVersion": "v1", "items": items})


def _pod(run: api.V2beta1Run, step: str, attempt: int, lines: list[str]) -> dict:
    node = f"iceaggr-direction-x.root.direction.{step}.executor({attempt})"
    return {
        "metadata": {
            "name": f"{run.run_id}-{step}-{attempt}",
            "labels": {"pipeline/runid": run.run_id},
            "annotations": {"workflows.argoproj.io/node-name": node},
        },
        "spec": {"containers": [{"name": "main"}]},
        "status": {"phase": "Running"},
        "lines": lines,
        "looks": 0,
        "deleted": False,
    }


@contextmanager
def stand_in_cluster(folder: Path, store: Mapping[str, str]) -> Iterator[Cluster]:
    """Start both servers, and lead the kubeconfig of this process to the second.

    store: variables that lead to a real object store
    """
    with RunsStandIn(open_store(store)) as runs, PodsStandIn(runs) as pods:
        kubeconfig = folder / "kubeconfig"
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                    "clusters": [{"name": "here", "cluster": {"server": pods.url}}],
                    "users": [{"name": "me", "user": {}}],
                }
            )
        )
        # the client reads the variable when it is imported
        place = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
        with mock.patch(place, str(kubeconfig)):
            yield Cluster(
                endpoint=runs.url,
                namespace="runs",
                raw_uri="s3://iceaggr/raw",
                work_uri="s3://iceaggr/proof",
                environment={**store, "ICEAGGR_IMAGE": "registry.example.org/physics/iceaggr:1"},
                pause_s=0.05,
                patience_s=120.0,
            )
