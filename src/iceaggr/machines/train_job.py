"""A TrainJob, the training command on several machines: the object, and how it runs to its end.

The object is built from the models of Trainer's own API package, which its SDK is made of, too. The
SDK itself is not used: `TrainerClient.train` takes environment variables as plain values only, and
ours come from secrets; patches of the runtime must not carry variables for the training container
(kubeflow/trainer pull request 2614). Nor can it name the pod that owns the job or the processes of
a machine. Apart from these three it sends the very same object, and it reads, follows and deletes
ours: tests/machines/test_trainer_sdk.py.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from kubeflow_trainer_api import models
from pydantic import ValidationError

from iceaggr.errors import ConfigError, TrainingError
from iceaggr.machines.job_api import JobApi, KubernetesError, MainPod
from iceaggr.patience import ask_patiently, away_s, may_pass
from iceaggr.service_settings import SecretKey
from iceaggr.signals import Interruption, TrainingInterruptedError

RUNTIME = "iceaggr"
"""ClusterTrainingRuntime that manifests/trainer installs."""
RUN_LABEL = "iceaggr/run-id"
_API_VERSION = "trainer.kubeflow.org/v1alpha1"
_LONGEST_NAME = 44  # a pod's name adds "-node-0-0-xxxxx" and may have 63 characters


@dataclass(frozen=True)
class Machines:
    """What each of the machines is.

    n_nodes: machines.  n_gpus: on each.  cpu, memory: Kubernetes quantities, on each
    node_selector, tolerations: where the pods may run
    """

    n_nodes: int
    n_gpus: int
    gpu_type: str
    cpu: str
    memory: str
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class TrainJobOrder:
    """One training on several machines.

    run_id: of the pipeline run; the same run always has the same job, so a retry finds it
    image: of the training pods.  command: of each
    deadline_s: after which the job is ended
    environment: variables by name; owner: pod that takes the job with it when it is deleted
    service_account: of the training pods, where keys come by workload identity; empty = default
    """

    run_id: str
    image: str
    command: list[str]
    machines: Machines
    deadline_s: int
    environment: dict[str, str | SecretKey] = field(default_factory=dict)
    owner: tuple[str, str] | None = None
    service_account: str = ""

    @property
    def name(self) -> str:
        """Name the job by its run."""
        return job_name(self.run_id)


def job_name(run_id: str) -> str:
    """Name the job of a run, in characters that Kubernetes allows."""
    clean = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    return f"iceaggr-{clean}"[:_LONGEST_NAME].rstrip("-")


def build_train_job(order: TrainJobOrder) -> dict[str, Any]:
    """Build the object to send. Raises: ConfigError if the machines cannot be described so."""
    try:
        job = models.TrainerV1alpha1TrainJob.from_dict(_document(order))
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            "machines cannot be described so",
            where=".".join(map(str, first["loc"])),
            found=repr(first.get("input")),
            expected=first["msg"],
            remedy="Correct the value in the run form",
        ) from None
    assert job is not None, "from_dict gives None for None only"
    built: dict[str, Any] = job.to_dict()
    return built


def _document(order: TrainJobOrder) -> dict[str, Any]:
    machines = order.machines
    resources: dict[str, str] = {"cpu": machines.cpu, "memory": machines.memory}
    if machines.n_gpus:
        resources[machines.gpu_type] = str(machines.n_gpus)
    metadata: dict[str, Any] = {"name": order.name, "labels": {RUN_LABEL: order.name[8:]}}
    if order.owner is not None:
        name, uid = order.owner
        owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}
        metadata["ownerReferences"] = [owner]
    return {
        "apiVersion": _API_VERSION,
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"name": RUNTIME, "kind": "ClusterTrainingRuntime"},
            "activeDeadlineSeconds": order.deadline_s,
            "trainer": {
                "image": order.image,
                "command": order.command,
                "numNodes": machines.n_nodes,
                "numProcPerNode": max(1, machines.n_gpus),
                "resourcesPerNode": {"requests": resources, "limits": resources},
                "env": [_variable(n, v) for n, v in sorted(order.environment.items())],
            },
            **_placement(machines, order.service_account),
        },
    }


def _placement(machines: Machines, service_account: str) -> dict[str, Any]:
    pod: dict[str, Any] = {}
    if service_account:
        pod["serviceAccountName"] = service_account
    if machines.node_selector:
        pod["nodeSelector"] = machines.node_selector
    if machines.tolerations:
        pod["tolerations"] = [_whole(toleration) for toleration in machines.tolerations]
    if not pod:
        return {}
    job = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    patch = {"template": {"spec": {"replicatedJobs": [job]}}}
    return {"runtimePatches": [{"manager": "iceaggr/pipeline", "trainingRuntimeSpec": patch}]}


def _whole(values: dict[str, Any]) -> dict[str, Any]:
    # numbers inside a list parameter of KFP arrive as floats: 300 seconds as 300.0
    return {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in values.items()
    }


def _variable(name: str, value: str | SecretKey) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": name, "value": value}
    reference = {"name": value.name, "key": value.key, "optional": True}
    return {"name": name, "valueFrom": {value.kind: reference}}


# Its run: launch or adopt, show the log, wait, clean up when asked to stop.
#
# The log is that of a TrainJob's first pod as it grows, across restarts and broken connections.

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)$")
_Moment = tuple[float, int]


class PodLog:
    """Which lines of which pod have been shown: each once, whole, in order.

    A server may end a stream while its pod goes on writing. The log is then read again from its
    beginning, and what the time stamps call old is left out; a count of lines would fail when the
    node rotates the log.
    """

    def __init__(self, api: JobApi, job: str, say: Callable[[str], None]) -> None:
        self._api, self._job, self._say = api, job, say
        self._shown_until: dict[str, _Moment] = {}
        self._finished: set[str] = set()
        self._interrupted = False

    def follow(self, over: threading.Event, pause_s: float) -> None:
        """Show lines until over is set, then what is still missing."""
        while True:
            last_round = over.is_set()
            try:
                pod = self._api.main_pod(self._job)
                if pod is not None and pod.name not in self._finished:
                    self._show(pod, last=last_round)
                self._interrupted = False
            except KubernetesError as error:
                # a log is a convenience: what counts is the state of the job
                if not self._interrupted:
                    self._say(f"log of TrainJob {self._job} interrupted: {error}")
                self._interrupted = True
            if last_round:
                return
            over.wait(pause_s)

    def _show(self, pod: MainPod, last: bool) -> None:
        complete = last or pod.ended
        for stamped in self._api.log_lines(pod.name, follow=not last):
            stamp, _, line = stamped.partition(" ")
            moment = _moment(stamp)
            # no stamp: words of the node, not of the program; they come with each reading
            new = complete if moment is None else moment > self._shown_until.get(pod.name, (0.0, 0))
            if not new:
                continue
            if not line.endswith("\n") and not complete:
                return  # cut on its way: the next reading brings it whole
            self._say((line if moment else stamped).removesuffix("\n"))
            if moment is not None:
                self._shown_until[pod.name] = moment
        if pod.ended:
            self._finished.add(pod.name)


def _moment(stamp: str) -> _Moment | None:
    """Read the time of a line: seconds, and nanoseconds, which datetime would round."""
    match = _STAMP.match(stamp)
    if match is None:
        return None
    seconds, fraction, zone = match.groups()
    whole = datetime.fromisoformat(seconds + zone.replace("Z", "+00:00")).timestamp()
    return whole, int((fraction or "0").ljust(9, "0"))


_PATIENCE_S = 600.0
_END_OF_LOG_S = 50.0
_Answer = TypeVar("_Answer")


def run_train_job(
    api: JobApi, order: TrainJobOrder, say: Callable[[str], None], pause_s: float = 5.0
) -> None:
    """Train on several machines and wait for the end.

    A job of this run that is there already is adopted: it goes on while its launcher is retried.
    One that failed is replaced, and goes on from its last checkpoint. After SIGTERM the job is
    deleted; its processes then save a checkpoint. say: receives the lines of the log of rank 0.
    Raises: TrainingError if the job fails or disappears; TrainingInterruptedError after SIGTERM;
    KubernetesError.
    """
    job = build_train_job(order)
    with Interruption() as stop, _log_follower(api, order.name, say, pause_s):
        _launch_or_adopt(api, job, say, stop, pause_s)
        ended, reason = _wait(api, order.name, stop, pause_s)
        if stop.requested and not ended:
            _patiently(lambda: api.delete(order.name), pause_s)
            raise TrainingInterruptedError(
                "training was asked to stop",
                where=f"TrainJob {order.name}",
                remedy="The same call goes on from its last checkpoint",
            )
    if ended != "Complete":
        raise TrainingError(
            "training on several machines failed",
            where=f"TrainJob {order.name}",
            found=reason,
            expected="a TrainJob that completes",
            remedy="The log above is that of rank 0; `kubectl describe trainjob` tells more",
        )


def _launch_or_adopt(
    api: JobApi,
    job: dict[str, Any],
    say: Callable[[str], None],
    stop: Interruption,
    pause_s: float,
) -> None:
    def launch() -> None:
        # a request whose answer was lost may have made the job: the next round finds it
        if stop.requested or _is_there(api, job, say):
            return
        # a job that is being deleted keeps its name until its pods are gone
        raise JobLeavingError(
            "the TrainJob of an earlier attempt does not go away",
            where=f"TrainJob {job['metadata']['name']}",
            found="a TrainJob that is being deleted",
            expected="none of that name",
            remedy="See what holds its pods: `kubectl describe trainjob`",
        )

    _patiently(launch, pause_s, stop.wait)


class JobLeavingError(TrainingError):
    """The name of the job is still taken by one that is being deleted."""

    may_pass = True


def _is_there(api: JobApi, job: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Create or adopt the job, True when it is ours; a failed one is on its way out then."""
    name = job["metadata"]["name"]
    if api.create(job):
        say(f"TrainJob {name} created")
        return True
    present = api.get(name)
    if present is None or present["metadata"].get("deletionTimestamp"):
        return False
    if end_of(present)[0] == "Failed":
        say(f"TrainJob {name} of an earlier attempt failed: replaced")
        api.delete(name)
        return False
    owners = job["metadata"].get("ownerReferences", [])
    if owners and present["metadata"].get("ownerReferences") != owners:
        # the pod of the earlier attempt may be cleared away, and would take the job along
        api.adopt(name, owners[0])
    say(f"TrainJob {name} is there already: adopted")
    return True


def _wait(api: JobApi, name: str, stop: Interruption, pause_s: float) -> tuple[str, str]:
    """Wait for the end: ("Complete" or "Failed", reason), or ("", "") when asked to stop."""
    while not stop.requested:
        # the job runs on without us; only a long silence is an error
        job = _patiently(lambda: {} if stop.requested else api.get(name), pause_s, stop.wait)
        if job is None:
            raise TrainingError(
                "the TrainJob was deleted by somebody",
                where=f"TrainJob {name}",
                found="no such TrainJob",
                expected="one that ends by itself",
                remedy="Run the step again: training goes on from its checkpoint",
            )
        ended = end_of(job)
        if ended[0]:
            return ended
        stop.wait(pause_s)
    return "", ""


def _patiently(
    request: Callable[[], _Answer], pause_s: float, sleep: Callable[[float], object] = time.sleep
) -> _Answer:
    """Repeat a request while the server is away. Raises: KubernetesAwayError after a long time."""
    return ask_patiently(
        request,
        is_away=may_pass,
        patience_s=away_s(_PATIENCE_S),
        first_pause_s=min(0.5, pause_s),
        longest_pause_s=pause_s,
        sleep=sleep,
    )


def stop_train_job(api: JobApi, run_id: str, pause_s: float = 5.0) -> bool:
    """Delete the job of a run if it still works; True if it did. An ended one keeps its logs."""
    name = job_name(run_id)
    job = _patiently(lambda: api.get(name), pause_s)
    if job is None or end_of(job)[0]:
        return False
    _patiently(lambda: api.delete(name), pause_s)
    return True


def end_of(job: dict[str, Any]) -> tuple[str, str]:
    """Read how a job ended: ("Complete" or "Failed", reason), or ("", "") while it works."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition.get("type") in ("Complete", "Failed") and condition.get("status") == "True":
            words = f"{condition.get('reason', '')}: {condition.get('message', '')}"
            return str(condition["type"]), words.strip(": ")
    return "", ""


@contextmanager
def _log_follower(
    api: JobApi, name: str, say: Callable[[str], None], pause_s: float
) -> Iterator[None]:
    over = threading.Event()
    follow = PodLog(api, name, say).follow
    thread = threading.Thread(target=follow, args=(over, pause_s), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        # the end of the log may still be on its way; a log that hangs must not keep the step
        thread.join(_END_OF_LOG_S)
