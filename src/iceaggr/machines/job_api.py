"""The few requests to Kubernetes that a TrainJob needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import urllib3
from kubernetes import client, config

from iceaggr.errors import TrainingError
from iceaggr.patience import FIRST_CONTACT_S, ask_patiently, away_s, may_pass

_GROUP, _VERSION, _PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
_PATH = ("group", "version", "namespace", "plural", "name")
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TIMEOUT_S = (5, 30)
"""To connect, and to answer."""
_QUESTION_S = 5
_LONGEST_QUOTE = 300
_NOT_FOUND, _CONFLICT, _FIRST_SERVER_ERROR, _TOO_MANY = 404, 409, 500, 429


class KubernetesError(TrainingError):
    """Kubernetes refused a request.

    status: HTTP status of its answer; None where there was none
    """

    def __init__(self, what: str, *, status: int | None = None, **facts: Any) -> None:
        super().__init__(what, **facts)
        self.status = status


class KubernetesAwayError(KubernetesError):
    """Kubernetes is out of reach or out of order, maybe only for now."""

    may_pass = True


class MainPod(NamedTuple):
    """The pod of rank 0; ended: it writes no more."""

    name: str
    ended: bool


class JobApi:
    """TrainJobs of one namespace."""

    def __init__(self, api_client: Any, namespace: str) -> None:
        self.namespace = namespace
        self._objects = client.CustomObjectsApi(api_client)
        self._core = client.CoreV1Api(api_client)

    @staticmethod
    def of_this_pod() -> JobApi:
        """Connect with the service account of the pod that this runs in.

        Raises: KubernetesError outside a cluster.
        """
        try:
            config.load_incluster_config()
        except config.ConfigException as error:
            raise KubernetesError(
                "several machines need a cluster",
                where="train_nodes",
                found=str(error),
                expected="a pod with a service account",
                remedy="Train on one machine here: train_nodes 1",
            ) from None
        return JobApi(client.ApiClient(), _NAMESPACE_FILE.read_text(encoding="utf-8").strip())

    def create(self, job: dict[str, Any]) -> bool:
        """Create a job; False when one of this name is there already."""
        what = f"creating TrainJob {job['metadata']['name']}"
        create = self._objects.create_namespaced_custom_object
        return self._ask(what, create, job, but=_CONFLICT) is not None

    def get(self, name: str) -> dict[str, Any] | None:
        """Read a job, None when there is none."""
        get = self._objects.get_namespaced_custom_object
        job: dict[str, Any] | None = self._ask(f"reading TrainJob {name}", get, name)
        return job

    def delete(self, name: str) -> None:
        """Delete a job and its pods; an absent one is no error."""
        delete = partial(
            self._objects.delete_namespaced_custom_object, propagation_policy="Foreground"
        )
        self._ask(f"deleting TrainJob {name}", delete, name)

    def _ask(
        self, what: str, request: Callable[..., Any], subject: object, but: int = _NOT_FOUND
    ) -> Any:
        """Make a request about a job; None if it is refused with the status `but`."""
        try:
            with _errors(what):
                return request(*self._where(), subject, _request_timeout=_TIMEOUT_S)
        except KubernetesError as error:
            if error.status != but:
                raise
            return None

    def adopt(self, name: str, owner: dict[str, Any]) -> None:
        """Make a job belong to another pod, which takes it along when it is deleted."""
        patch = [{"op": "add", "path": "/metadata/ownerReferences", "value": [owner]}]
        with _errors(f"adopting TrainJob {name}"):
            # not patch_namespaced_custom_object(), which cannot name the kind of patch
            self._objects.api_client.call_api(
                "/apis/{group}/{version}/namespaces/{namespace}/{plural}/{name}",
                "PATCH",
                dict(zip(_PATH, [*self._where(), name], strict=True)),
                header_params={"Content-Type": "application/json-patch+json"},
                body=patch,
                auth_settings=["BearerToken"],
                response_type="object",
                _request_timeout=_TIMEOUT_S,
            )

    def account_of(self, pod: str) -> str:
        """Name the service account that a pod runs with; waits for an API server that is away."""
        found = ask_patiently(
            lambda: self._read_pod(pod),
            is_away=may_pass,
            patience_s=away_s(FIRST_CONTACT_S),
        )
        return str(found.spec.service_account_name or "")

    def _read_pod(self, pod: str) -> Any:
        with _errors(f"reading pod {pod}"):
            return self._core.read_namespaced_pod(pod, self.namespace, _request_timeout=_TIMEOUT_S)

    def main_pod(self, name: str) -> MainPod | None:
        """Find the pod of rank 0, None until it has started; after a restart, the newest."""
        labels = (
            f"jobset.sigs.k8s.io/jobset-name={name},"
            "jobset.sigs.k8s.io/replicatedjob-name=node,"
            "batch.kubernetes.io/job-completion-index=0"
        )
        with _errors(f"listing the pods of TrainJob {name}"):
            pods = self._core.list_namespaced_pod(
                self.namespace, label_selector=labels, _request_timeout=_TIMEOUT_S
            ).items
        started = [pod for pod in pods if pod.status.phase != "Pending"]
        newest = max(started, key=lambda pod: pod.metadata.creation_timestamp, default=None)
        if newest is None:
            return None
        return MainPod(str(newest.metadata.name), newest.status.phase in ("Succeeded", "Failed"))

    def log_lines(self, pod: str, follow: bool) -> Iterator[str]:
        """Read the log of a pod, each line after a time stamp and a blank.

        Lines keep their newline: one without it is the last, or was cut on its way.
        follow: go on while the pod writes, unless the server ends the stream before
        """
        with _errors(f"log of pod {pod}"):
            stream = self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                container="node",
                follow=follow,
                timestamps=True,
                _preload_content=False,
            )
            rest = b""
            for part in stream.stream():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace") + "\n"
            if rest:
                yield rest.decode(errors="replace")

    def _where(self) -> tuple[str, str, str, str]:
        return _GROUP, _VERSION, self.namespace, _PLURAL


def cluster_without_runtime(runtime: str) -> str:
    """Name the cluster of kubectl's settings if it lacks a ClusterTrainingRuntime.

    Returns '' where the runtime is there, and where nothing can be known: no settings, no answer,
    no right to ask.
    """
    settings = client.Configuration()
    settings.retries = False
    try:
        config.load_kube_config(client_configuration=settings)
        _, context = config.list_kube_config_contexts()
        client.CustomObjectsApi(client.ApiClient(settings)).get_cluster_custom_object(
            _GROUP, _VERSION, "clustertrainingruntimes", runtime, _request_timeout=_QUESTION_S
        )
    except client.ApiException as error:
        return str(context["name"]) if error.status == _NOT_FOUND else ""
    except (config.ConfigException, urllib3.exceptions.HTTPError, OSError):
        return ""
    return ""


def _words_of(error: client.ApiException) -> str:
    """Quote the server's message, '' without one."""
    try:
        message = json.loads(error.body)["message"]
    except (KeyError, TypeError, ValueError):
        return ""
    return f": {' '.join(str(message).split())[:_LONGEST_QUOTE]}"


def _remedy(status: int | None, said: str) -> str:
    if status == _NOT_FOUND or "runtime" in said.lower():
        # without Trainer the server does not know the kind, without the runtime its webhook refuses
        return (
            "Install Kubeflow Trainer and our part for it (docs/runbook.md, section 3), or train on"
            " one machine: train_nodes 1"
        )
    return "Does the service account have the rights of manifests/base?"


@contextmanager
def _errors(where: str) -> Iterator[None]:
    try:
        yield
    except client.ApiException as error:
        away = error.status in (0, _TOO_MANY) or (error.status or 0) >= _FIRST_SERVER_ERROR
        raise (KubernetesAwayError if away else KubernetesError)(
            f"Kubernetes refused the request ({error.reason}){(said := _words_of(error))}",
            where=where,
            status=error.status,
            found=error.status,
            expected="status 200 or 201",
            remedy=_remedy(error.status, said),
        ) from None
    except urllib3.exceptions.HTTPError as error:
        raise KubernetesAwayError(
            "Kubernetes cannot be reached",
            where=where,
            found=" ".join(str(error).split())[:200],
            expected="an answer of the API server",
            remedy="Check the cluster, then run the step again: it adopts the job",
        ) from None
