"""The part of a Kubernetes API that TrainJobs need: state in memory, real HTTP.

A job that is created must be one that Trainer's own models can hold, without unknown fields, and
keep the limits of its resource definition.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import jsonschema
from kubeflow_trainer_api import models

from tests.stand_in import Answer, HttpError, Request, StandIn

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/runs/trainjobs"
PODS = "/api/v1/namespaces/runs/pods"
SCHEMA = Path(__file__).parents[2] / "manifests" / "schemas" / "trainjob.json"
CREATED = "2026-01-01T00:00:00Z"


def check_job(job: dict) -> None:
    """Check an object as the API server would.

    Raises: AssertionError or jsonschema's ValidationError saying what is wrong.
    """
    parsed = models.TrainerV1alpha1TrainJob.from_dict(job)
    assert parsed.to_dict() == job, "fields that Trainer does not know"
    jsonschema.validate(job, json.loads(SCHEMA.read_text()))
    # room for what JobSet adds to a pod's name
    assert len(job["metadata"]["name"]) + len("-node-0-0-xxxxx") <= 63
    assert job["spec"]["activeDeadlineSeconds"] >= 1
    names = [variable["name"] for variable in job["spec"]["trainer"].get("env", [])]
    assert len(names) == len(set(names)), "an environment variable twice"


class KubernetesStandIn(StandIn):
    """State and behaviour; `url` is its address."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, dict] = {}
        self.created: list[dict] = []
        self.pods: list[dict] = []
        self.logs: dict[str, list[str]] = {}
        self.log_cuts: list[int] = []
        self.removal_s = 0.0

    def end(self, name: str, kind: str, reason: str = "Because", message: str = "of it") -> None:
        """Let a job end: Complete or Failed."""
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        self.jobs[name]["status"] = {"conditions": [{**condition, "lastTransitionTime": CREATED}]}

    def add_pod(self, name: str, phase: str, lines: list[str], created: str = CREATED) -> None:
        """Add a pod of rank 0."""
        self.pods.append(
            {
                "metadata": {"name": name, "creationTimestamp": created},
                "status": {"phase": phase},
                "spec": {"containers": [{"name": "node", "image": "x"}]},
            }
        )
        self.logs[name] = lines

    def answer(self, request: Request) -> Answer:
        method, path = request.method, request.path
        if path == JOBS and method == "POST":
            return self._create(json.loads(request.body))
        if path.startswith(JOBS + "/"):
            if method == "PATCH":
                return self._patch(path.removeprefix(JOBS + "/"), request)
            return self._one_job(method, path.removeprefix(JOBS + "/"))
        if path == PODS:
            assert "jobset.sigs.k8s.io/replicatedjob-name=node" in request.query["labelSelector"]
            return Answer.of({"kind": "PodList", "apiVersion": "v1", "items": self.pods})
        if path.endswith("/log"):
            return self._log(path.split("/")[-2], request.query)
        if path.startswith(PODS + "/"):
            return Answer.of(self._launcher(path.removeprefix(PODS + "/")))
        raise HttpError(404, f"no route {path}")

    def _log(self, pod: str, query: dict[str, str]) -> Answer:
        """Answer with what there is, and end the stream, as a server does that is restarted."""
        assert query["timestamps"] == "True"
        stamps = (f"2026-01-01T00:00:00.{n:09d}Z" for n in itertools.count(1))
        lines = [f"{stamp} {line}\n" for stamp, line in zip(stamps, self.logs[pod], strict=False)]
        text = "".join(lines).encode()
        if self.log_cuts:
            text = text[: self.log_cuts.pop(0)]
        # cut anywhere, as a network does
        return Answer(parts=tuple(text[i : i + 7] for i in range(0, len(text), 7)))

    def _launcher(self, name: str) -> dict:
        if name != "launcher":
            raise HttpError(404, f"no pod {name}")
        containers = [{"name": "main", "image": "x"}]
        return {
            "metadata": {"name": name},
            "spec": {"serviceAccountName": "iceaggr-runner", "containers": containers},
        }

    def _create(self, job: dict) -> Answer:
        name = job["metadata"]["name"]
        if name in self.jobs:
            raise HttpError(409, "already exists")
        try:
            check_job(job)
        except (AssertionError, ValueError, jsonschema.ValidationError) as error:
            raise HttpError(422, str(error)) from None
        self.created.append(job)
        self.jobs[name] = json.loads(json.dumps(job))
        self.jobs[name]["metadata"] |= {"namespace": "runs", "creationTimestamp": CREATED}
        return Answer.of(self.jobs[name], 201)

    def _patch(self, name: str, request: Request) -> Answer:
        # own resources know no strategic merge
        assert request.headers["Content-Type"] == "application/json-patch+json"
        (change,) = json.loads(request.body)
        assert (change["op"], change["path"]) == ("add", "/metadata/ownerReferences")
        self.jobs[name]["metadata"]["ownerReferences"] = change["value"]
        return Answer.of(self.jobs[name])

    def _one_job(self, method: str, name: str) -> Answer:
        job = self.jobs.get(name)
        if job is not None and time.monotonic() > job.get("gone_at", float("inf")):
            del self.jobs[name]
            job = None
        if job is None:
            raise HttpError(404, "not found")
        if method == "DELETE":
            job["metadata"]["deletionTimestamp"] = CREATED
            if self.removal_s:
                job["gone_at"] = time.monotonic() + self.removal_s
            else:
                del self.jobs[name]
        return Answer.of({key: value for key, value in job.items() if key != "gone_at"})
