"""The part of a Kubernetes API that TrainJobs need: state in memory, real HTTP.

A job that is created must be one that Trainer's own models can hold, without unknown fields, and
keep the rules of its resource definition that matter here.
"""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from kubeflow_trainer_api import models

JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/runs/trainjobs"
PODS = "/api/v1/namespaces/runs/pods"
CREATED = "2026-01-01T00:00:00Z"


def check_job(job: dict) -> None:
    """Check an object as the API server would. Raises AssertionError saying what is wrong."""
    parsed = models.TrainerV1alpha1TrainJob.from_dict(job)
    assert parsed.to_dict() == job, "fields that Trainer does not know"
    assert job["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    # Source: RFC 1035 labels, and room for what JobSet adds to a pod's name
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    assert len(job["metadata"]["name"]) + len("-node-0-0-xxxxx") <= 63
    trainer = job["spec"]["trainer"]
    assert trainer["numNodes"] >= 1
    assert job["spec"]["activeDeadlineSeconds"] >= 1
    # Source: kubeflow/trainer#2614, variables of the training container cannot be patched
    for patch in job["spec"].get("runtimePatches", []):
        for replicated in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            assert "containers" not in replicated["template"]["spec"]["template"]["spec"]


class KubernetesStandIn:
    """State and behaviour; `url` is its address."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict] = {}
        self.created: list[dict] = []
        self.requests: list[str] = []
        self.failures: list[tuple[str, str, int]] = []
        self.pods: list[dict] = []
        self.logs: dict[str, list[str]] = {}
        self.removal_s = 0.0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )

    def __enter__(self) -> KubernetesStandIn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

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

    def fail(self, method: str, path: str, status: int) -> None:
        """Answer the next request of this kind with an error."""
        self.failures.append((method, path, status))

    def count(self, method: str) -> int:
        """Count the requests of one method."""
        return sum(request.startswith(method) for request in self.requests)

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes):
        for failure in self.failures:
            if failure[0] == method and re.fullmatch(failure[1], path):
                self.failures.remove(failure)
                return failure[2], {"message": "made to fail"}
        if path == JOBS and method == "POST":
            return self._create(json.loads(body))
        if path.startswith(JOBS + "/"):
            return self._one_job(method, path.removeprefix(JOBS + "/"))
        if path == PODS:
            assert "jobset.sigs.k8s.io/replicatedjob-name=node" in query["labelSelector"]
            return 200, {"kind": "PodList", "apiVersion": "v1", "items": self.pods}
        return 404, {"message": f"no route {path}"}

    def _create(self, job: dict):
        name = job["metadata"]["name"]
        if name in self.jobs:
            return 409, {"message": "already exists"}
        try:
            check_job(job)
        except (AssertionError, ValueError) as error:
            return 422, {"message": str(error)}
        self.created.append(job)
        self.jobs[name] = json.loads(json.dumps(job))
        self.jobs[name]["metadata"]["creationTimestamp"] = CREATED
        return 201, self.jobs[name]

    def _one_job(self, method: str, name: str):
        job = self.jobs.get(name)
        if job is not None and time.monotonic() > job.get("gone_at", float("inf")):
            del self.jobs[name]
            job = None
        if job is None:
            return 404, {"message": "not found"}
        if method == "DELETE":
            job["metadata"]["deletionTimestamp"] = CREATED
            if self.removal_s:
                job["gone_at"] = time.monotonic() + self.removal_s
            else:
                del self.jobs[name]
        return 200, {key: value for key, value in job.items() if key != "gone_at"}


def _handler(server: KubernetesStandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            server.requests.append(f"{self.command} {parts.path}")
            if parts.path.endswith("/log"):
                self._stream(parts.path.split("/")[-2])
                return
            status, document = server.answer(self.command, parts.path, query, body)
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, pod: str) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            text = "\n".join(server.logs[pod]).encode()
            # cut anywhere, as a network does
            for part in [text[i : i + 7] for i in range(0, len(text), 7)]:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815

    return Handler
