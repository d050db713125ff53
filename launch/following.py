"""Follow a run of a cluster to its end: each step as it starts and ends, then result or cause.

All of it comes through the API of Kubeflow Pipelines, so a port-forward to it is enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import kfp

from iceaggr.errors import IceaggrError
from iceaggr.patience import ask_patiently
from iceaggr.progress import find_summary
from launch.display import clock
from launch.kfp_api import ServerAwayError, SubmissionError, api_errors
from launch.submission import FINAL_STATES
from launch.workflow import Node, Workflow, own_error, read_log, read_workflow

LAST_STEP = "promote-model"
"""Once it succeeded the run has its result, whatever comes after it."""
_NOT_FOUND = "HTTP 404"
_ANSWER_S = 60
_PATIENCE_S = 600.0
_SECONDS_BETWEEN_QUESTIONS = 60.0
_PENDING_S = 30.0
_STOPPED = ("CANCELING", "CANCELED")


class RunGoesOnError(IceaggrError):
    """The run goes on as far as anybody knows, only the server does not tell of it any more."""


class RunFailedError(SubmissionError):
    """The run ended without its result; summary: the figures, if it came to them."""

    summary: dict[str, Any] | None = None


@dataclass(frozen=True)
class Followed:
    """What is known of a run before it is followed.

    steps: names in the graph.  looped: those of them that run once per item of a loop.
    page: address in the UI, '' if not known.  again: command that looks again.
    namespace: of the pods, '' if not known
    """

    run_id: str
    steps: Collection[str]
    looped: Collection[str] = ()
    page: str = ""
    again: str = ""
    namespace: str = ""


@dataclass(frozen=True)
class Finished:
    """The end of a run that has its result.

    summary: figures, None if the log of the last step cannot be read.
    caution: what failed after the result was complete, '' = nothing
    """

    summary: dict[str, Any] | None
    caution: str = ""


@dataclass
class _Step:
    """A step while it is followed; several tasks in a loop count as one."""

    said: str = ""
    tasks: list[Any] = field(default_factory=list)

    def state(self) -> str:
        states = {str(task.state) for task in self.tasks} - {"SKIPPED"}
        if not states:
            return ""
        if "FAILED" in states:
            return "FAILED"
        return "done" if states == {"SUCCEEDED"} else "started"

    def seconds(self, now: datetime) -> float:
        starts = [t for t in (_moment(task.start_time) for task in self.tasks) if t]
        ends = [_moment(task.end_time) or now for task in self.tasks]
        return max(0.0, (max(ends) - min(starts)).total_seconds()) if starts else 0.0


def follow_run(
    client: kfp.Client,
    followed: Followed,
    say: Callable[[str], None],
    pause_s: float = 10.0,
    patience_s: float = _PATIENCE_S,
) -> Finished:
    """Wait for the end of a run, saying each start and end of a step.

    A server that is away for a while is waited for: the run goes on without us.
    Raises: RunFailedError with the step, its own error and where its log is; RunGoesOnError if the
    server stays away or asks for a new login; SubmissionError if there is no such run.
    """
    watch = _Watch(client, followed, say)
    while True:
        run = watch.ask(pause_s, patience_s)
        if str(run.state) in FINAL_STATES:
            return _end(client, followed, run, say)
        time.sleep(pause_s)


class _Watch:
    """Asks for the state of a run again and again, and says what is new."""

    def __init__(self, client: kfp.Client, followed: Followed, say: Callable[[str], None]) -> None:
        self._client = client
        self._followed = followed
        self._say = say
        self._steps = {name: _Step() for name in followed.steps}
        self._asked_argo = -_SECONDS_BETWEEN_QUESTIONS
        self._waits: dict[str, str] = {}
        self._stopping = False

    def ask(self, pause_s: float, patience_s: float) -> Any:
        """Ask once, or until the server is back, and say what changed. Returns the run."""
        silences: list[str] = []

        def say_away(words: str) -> None:
            silences.append(words)
            self._say(f"{words}; the run goes on")

        try:
            run = ask_patiently(
                lambda: get_run(self._client, self._followed.run_id),
                is_away=lambda error: isinstance(error, ServerAwayError),
                patience_s=patience_s,
                first_pause_s=pause_s,
                longest_pause_s=pause_s,
                say=say_away,
            )
        except SubmissionError as error:
            if _NOT_FOUND in str(error):
                raise
            # an expired token, for example: it says nothing about the run
            raise _goes_on(self._followed, error) from None
        if silences:
            self._say("Kubeflow Pipelines answers again")
        self._show(run)
        return run

    def _show(self, run: Any) -> None:
        now = datetime.now(UTC)
        if str(run.state) in _STOPPED and not self._stopping:
            self._stopping = True
            self._say("the run is being terminated")
        details = tasks_of(run)
        in_loop = any(
            task.display_name.startswith("for-loop-") and str(task.state) in ("PENDING", "RUNNING")
            for task in details
        )
        for name, step in self._steps.items():
            step.tasks = [task for task in details if task.display_name == name]
            state = step.state()
            if state == "done" and name in self._followed.looped and in_loop:
                # others of the loop have not begun yet
                state = "started"
            if state and state != step.said:
                if state != "started" and not step.said:
                    self._tell(name, "started", 0.0, _first_start(step))
                step.said = state
                self._tell_state(name, step, state, now)
        self._tell_waiting(details, now)

    def _tell_state(self, name: str, step: _Step, state: str, now: datetime) -> None:
        if state == "started":
            self._tell(name, state, 0.0, _first_start(step))
            return
        n_tasks = len(step.tasks)
        ends = [end for end in (_moment(task.end_time) for task in step.tasks) if end]
        text = f"{n_tasks} tasks" if n_tasks > 1 else ""
        self._tell(name, state, step.seconds(now), max(ends, default=None), text)

    def _tell(
        self, name: str, state: str, seconds: float, when: datetime | None, text: str = ""
    ) -> None:
        local = (when or datetime.now(UTC)).astimezone()
        took = clock(seconds) if state in ("done", "FAILED") else ""
        self._say(f"{local:%H:%M:%S}  {name:<20} {state:<8} {took:>7}  {text}".rstrip())

    def _tell_waiting(self, details: list[Any], now: datetime) -> None:
        """Say why a pod does not start: Argo knows, and is asked only while one waits."""
        pending = any(
            str(task.state) == "PENDING"
            and (now - (_moment(task.start_time) or now)).total_seconds() > _PENDING_S
            for task in details
        )
        if not pending:
            for name in self._waits:
                self._tell(name, "works", 0.0, None)
            self._waits = {}
        since = time.monotonic() - self._asked_argo
        if not pending or since < _SECONDS_BETWEEN_QUESTIONS:
            return
        self._asked_argo = time.monotonic()
        workflow = read_workflow(self._client, self._followed.run_id)
        waits = (
            workflow.waiting(self._followed.steps)
            if workflow
            else {"a pod": f"see `{pods_command(self._followed, '')}`"}
        )
        for name, why in waits.items():
            if self._waits.get(name) != why:
                self._tell(name, "waits", 0.0, None, why)
        self._waits = waits


def get_run(client: kfp.Client, run_id: str) -> Any:
    """Ask for a run. Raises: SubmissionError, ServerAwayError."""
    # not client.get_run(), which waits for ever on a connection that went silent
    with api_errors(f"state of run {run_id}"):
        return client._run_api.run_service_get_run(run_id, _request_timeout=_ANSWER_S)


def tasks_of(run: Any) -> list[Any]:
    """List what the API tells of the nodes of a run: names, times, states."""
    return (run.run_details.task_details if run.run_details else None) or []


def has_result(run: Any) -> bool:
    """Say whether the result of a run is complete, even if a later step failed."""
    return str(run.state) == "SUCCEEDED" or any(
        task.display_name == LAST_STEP and str(task.state) == "SUCCEEDED" for task in tasks_of(run)
    )


def was_stopped(run: Any, workflow: Workflow | None) -> bool:
    """Say whether somebody terminated a run: the API calls that failed, too."""
    states = {str(run.state), *(str(entry.state) for entry in run.state_history or [])}
    return bool(states.intersection(_STOPPED)) or (workflow is not None and workflow.stopped)


def _end(client: kfp.Client, followed: Followed, run: Any, say: Callable[[str], None]) -> Finished:
    workflow = read_workflow(client, followed.run_id)
    if has_result(run):
        caution = ""
        if str(run.state) != "SUCCEEDED":
            what, _ = _cause(client, followed, run, workflow)
            caution = f"the result is complete, but {what} after it"
        return Finished(_summary(client, followed, workflow), caution)
    what, pod = "the run was terminated by somebody, it did not fail", None
    if not was_stopped(run, workflow):
        what, pod = _cause(client, followed, run, workflow)
    # each on a line of its own, to be copied
    name = workflow.pod_name(pod) if workflow and pod else ""
    command = pods_command(followed, name, workflow.namespace if workflow else "")
    say(f"{'log' if name else 'pods':<9} {command}")
    if followed.page:
        say(f"{'page':<9} {followed.page}")
    where = ", ".join(filter(None, [run.display_name, followed.run_id]))
    failure = RunFailedError(what, where=where)
    failure.summary = _summary(client, followed, workflow)
    raise failure


def _summary(
    client: kfp.Client, followed: Followed, workflow: Workflow | None
) -> dict[str, Any] | None:
    if workflow is None:
        return None
    for pod in reversed(workflow.pods_of(LAST_STEP)):
        lines = read_log(client, followed.run_id, workflow.pod_name(pod), workflow.namespace)
        if (found := find_summary(lines)) is not None:
            return found
    return None


def _cause(
    client: kfp.Client, followed: Followed, run: Any, workflow: Workflow | None
) -> tuple[str, Node | None]:
    """Say why a run failed in a sentence, with the pod that ended it if there is one."""
    pod = workflow.first_failure() if workflow else None
    if workflow is None or pod is None:
        failed = failed_steps(run, followed.steps)
        told = (workflow.message if workflow else "") or _told_by_the_api(run)
        where = f"{failed[0]} failed" if failed else "the run failed before its first step"
        if not failed and workflow is None and not tasks_of(run):
            where = "the run failed, and the server does not report where"
        return f"{where}: {told.rstrip('.')}" if told else where, None
    lines = read_log(client, followed.run_id, workflow.pod_name(pod), workflow.namespace)
    step = workflow.step_of(pod, followed.steps)
    causes = [own_error(lines), pod.message]
    if pod.ended_from_outside:
        causes.reverse()
    why = next(filter(None, [*causes, workflow.message]), "its log ends without an error")
    if not lines and pod.phase == "Error":
        # Kubernetes refused the pod: it has no log
        pod = None
    nothing_ran = not any(str(t.state) == "SUCCEEDED" for t in tasks_of(run))
    if not step and nothing_ran:
        return f"the run failed before its first step: {why.rstrip('.')}", pod
    return f"{step or 'the run'} failed: {why.rstrip('.')}", pod


def failed_steps(run: Any, steps: Collection[str]) -> list[str]:
    """List the steps of a run that failed, in the order of their ends."""
    failed = [t for t in tasks_of(run) if t.display_name in steps and str(t.state) == "FAILED"]
    failed.sort(key=lambda task: _moment(task.end_time) or datetime.max.replace(tzinfo=UTC))
    return [task.display_name for task in failed]


def _told_by_the_api(run: Any) -> str:
    errors = [run.error, *(entry.error for entry in run.state_history or [])]
    return next((" ".join(str(e.message).split()) for e in errors if e and e.message), "")


def pods_command(followed: Followed, pod: str, namespace: str = "") -> str:
    """Write the command that shows a pod's log, or all pods of the run."""
    kubectl = f"kubectl -n {namespace or followed.namespace or 'kubeflow'}"
    if pod:
        return f"{kubectl} logs {pod} -c main"
    return f"{kubectl} describe pods -l pipeline/runid={followed.run_id}"


def _goes_on(followed: Followed, error: IceaggrError) -> RunGoesOnError:
    page = f", or {followed.page}" if followed.page else ""
    return RunGoesOnError(
        "the run goes on, but Kubeflow Pipelines no longer reports its state",
        where=followed.run_id,
        found=f"{error.what} ({error.found})",
        remedy=f"Look again: {followed.again}{page}",
    )


def _first_start(step: _Step) -> datetime | None:
    starts = [t for t in (_moment(task.start_time) for task in step.tasks) if t]
    return min(starts, default=None)


def _moment(time_of: datetime | None) -> datetime | None:
    # the API writes the year 1 or 1970 for what did not happen yet
    if time_of is None or time_of.year <= 1970:
        return None
    return time_of if time_of.tzinfo else time_of.replace(tzinfo=UTC)
