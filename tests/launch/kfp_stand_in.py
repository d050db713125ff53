"""A Kubeflow Pipelines API that keeps its state in memory and speaks real HTTP.

Every request body must be one that the official client's models can hold, without unknown fields;
every answer is made from these models.
"""

from __future__ import annotations

import datetime
import json
import re
import ssl
import uuid
from collections.abc import Callable

import kfp_server_api as api

from tests.launch.argo_run import ArgoRun
from tests.launch.kfp_messages import CLIENT, check_package, strict, uploaded_file
from tests.stand_in import Answer, HttpError, Request, StandIn

V2 = "/apis/v2beta1"


class KfpStandIn(StandIn):
    """State and behaviour of the server; `url` once it is started."""

    def __init__(self, tls: ssl.SSLContext | None = None, multi_user: bool = False) -> None:
        super().__init__(tls)
        self.multi_user = multi_user
        self.required_headers: dict[str, str] = {}
        self.states: list[str] = []
        self.pipelines: list[api.V2beta1Pipeline] = []
        self.versions: list[api.V2beta1PipelineVersion] = []
        self.experiments: list[api.V2beta1Experiment] = []
        self.runs: list[api.V2beta1Run] = []
        self.schedules: list[api.V2beta1RecurringRun] = []
        self.login_page = False
        self.health = {"tag_name": "2.17.0", "commit_sha": "unknown", "pipeline_store": "database"}
        self.page_size = 2
        # by run: what Argo holds, and whether the server hands it and the logs of pods out
        self.workflows: dict[str, ArgoRun] = {}
        self.old_api = True
        self.pod_logs = True
        self.refuses_plugins = False
        self.frames: list[Callable[[api.V2beta1Run], None]] = []

    def answer(self, request: Request) -> Answer:
        if self.login_page:
            return Answer(200, b"<html>log in</html>", "text/html")
        for name, value in self.required_headers.items():
            if request.headers.get(name) != value:
                raise HttpError(403 if request.headers.get(name) else 401, "not allowed")
        body = request.body
        if "multipart" in request.headers.get("Content-Type", ""):
            body = uploaded_file(request.headers["Content-Type"], body)
        for method, pattern, name in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and method == request.method:
                if name == "read_log":
                    return Answer(200, self.read_log(*match.groups()), "text/plain")
                made = getattr(self, name)(request.query, body, *match.groups())
                return Answer.of(CLIENT.sanitize_for_serialization(made))
        raise HttpError(404, f"no route {request.path}")

    # what the API does

    def get_healthz(self, query, body):
        # like the real one: more than the client's model holds
        return {**self.health, "multi_user": self.multi_user}

    def list_pipelines(self, query, body):
        found = [p for p in self.pipelines if _matches(p, query)]
        return api.V2beta1ListPipelinesResponse(pipelines=found or None, total_size=len(found))

    def create_pipeline(self, query, body):
        made = strict("V2beta1Pipeline", body)
        if any(_named(p, made.display_name, made.namespace) for p in self.pipelines):
            raise HttpError(409, f"pipeline {made.display_name} already exists")
        made.pipeline_id = _id()
        self.pipelines.append(made)
        return made

    def upload_pipeline(self, query, body):
        check_package(body)
        # Source: the API server's index of pipelines: name and namespace
        if any(_named(p, query["name"], query.get("namespace")) for p in self.pipelines):
            raise HttpError(409, f"pipeline {query['name']} already exists")
        made = api.V2beta1Pipeline(
            pipeline_id=_id(), display_name=query["name"], namespace=query.get("namespace")
        )
        self.pipelines.append(made)
        # like the real one: uploading a pipeline makes its first version, named like itself
        self._add_version(made.pipeline_id, query["name"])
        return made

    def upload_version(self, query, body):
        check_package(body)
        self._pipeline(query["pipelineid"])
        if any(v.display_name == query["name"] for v in self.versions):
            raise HttpError(409, f"pipeline version {query['name']} already exists")
        return self._add_version(query["pipelineid"], query["name"])

    def list_versions(self, query, body, pipeline_id):
        self._pipeline(pipeline_id)
        mine = [v for v in self.versions if v.pipeline_id == pipeline_id]
        items, token = self._page(mine, query)
        return api.V2beta1ListPipelineVersionsResponse(
            pipeline_versions=items, next_page_token=token, total_size=len(mine)
        )

    def list_experiments(self, query, body):
        found = [e for e in self.experiments if _matches(e, query)]
        return api.V2beta1ListExperimentsResponse(experiments=found or None)

    def create_experiment(self, query, body):
        made = strict("V2beta1Experiment", body)
        if self.multi_user and not made.namespace:
            raise HttpError(400, "namespace is empty")
        if any(_named(e, made.display_name, made.namespace) for e in self.experiments):
            raise HttpError(409, f"experiment {made.display_name} already exists")
        made.experiment_id = _id()
        self.experiments.append(made)
        return made

    def create_run(self, query, body):
        made = strict("V2beta1Run", body)
        self._check_reference(made.pipeline_version_reference)
        self._experiment(made.experiment_id)
        self._check_plugins(made)
        made.run_id, made.state = _id(), "PENDING"
        made.created_at = datetime.datetime.now(datetime.UTC)
        self.runs.append(made)
        return made

    def get_run(self, query, body, run_id):
        run = next((r for r in self.runs if r.run_id == run_id), None)
        if run is None:
            raise HttpError(404, f"run {run_id} not found")
        run.state = self.states.pop(0) if self.states else run.state
        if self.frames:
            self.frames.pop(0)(run)
        if run_id in self.workflows:
            run.run_details = api.V2beta1RunDetails(
                task_details=self.workflows[run_id].task_details(run_id)
            )
        return run

    def get_run_v1(self, query, body, run_id):
        # Source: toApiRunDetailV1 in api_converter.go
        if not self.old_api:
            raise HttpError(404, "Not Found")
        held = self.workflows.get(run_id)
        return {
            "run": {"id": run_id},
            "pipeline_runtime": {"workflow_manifest": held.manifest() if held else ""},
        }

    def read_log(self, run_id, pod):
        # Source: ReadLog in resource_manager.go: a pod that is gone is an error of the server
        held = self.workflows.get(run_id)
        if not self.pod_logs or held is None or pod not in held.logs:
            raise HttpError(500, f"failed to read logs from pod {pod}")
        return held.logs[pod].encode()

    def list_runs(self, query, body):
        asked = query.get("experiment_id")
        found = [r for r in self.runs if asked in (None, r.experiment_id) and _matches(r, query)]
        if query.get("sort_by") == "created_at desc":
            found = found[::-1]
        items, token = self._page(found, query)
        return api.V2beta1ListRunsResponse(runs=items, next_page_token=token)

    def create_recurring_run(self, query, body):
        made = strict("V2beta1RecurringRun", body)
        self._check_reference(made.pipeline_version_reference)
        self._experiment(made.experiment_id)
        # Source: the API server accepts 1..10 and robfig/cron v1 with seconds first
        if not 1 <= int(made.max_concurrency) <= 10:
            raise HttpError(400, "max_concurrency must be in 1..10")
        if len(made.trigger.cron_schedule.cron.split()) != 6:
            raise HttpError(400, "bad cron expression")
        self._check_plugins(made)
        made.recurring_run_id = _id()
        made.status = "ENABLED" if made.mode == "ENABLE" else "DISABLED"
        made.created_at = datetime.datetime.now(datetime.UTC)
        self.schedules.append(made)
        return made

    def list_recurring_runs(self, query, body):
        if self.multi_user and not query.get("namespace"):
            raise HttpError(400, "namespace is empty")
        found = [s for s in self.schedules if _matches(s, query)]
        items, token = self._page(found, query)
        return api.V2beta1ListRecurringRunsResponse(recurring_runs=items, next_page_token=token)

    def disable_recurring_run(self, query, body, schedule_id):
        self._schedule(schedule_id).status = "DISABLED"
        return {}

    def delete_recurring_run(self, query, body, schedule_id):
        self.schedules.remove(self._schedule(schedule_id))
        return {}

    # internals

    def _add_version(self, pipeline_id, name):
        made = api.V2beta1PipelineVersion(
            pipeline_id=pipeline_id, pipeline_version_id=_id(), display_name=name
        )
        self.versions.append(made)
        return made

    def _page(self, items, query):
        start = int(query.get("page_token") or 0)
        end = start + min(self.page_size, int(query.get("page_size") or 10))
        return items[start:end] or None, str(end) if end < len(items) else None

    def _pipeline(self, pipeline_id):
        return _only([p for p in self.pipelines if p.pipeline_id == pipeline_id], "pipeline")

    def _experiment(self, experiment_id):
        found = [e for e in self.experiments if e.experiment_id == experiment_id]
        return _only(found, "experiment")

    def _schedule(self, schedule_id):
        found = [s for s in self.schedules if s.recurring_run_id == schedule_id]
        return _only(found, "recurring run")

    def _check_plugins(self, made):
        if self.refuses_plugins and made.plugins_input:
            raise HttpError(400, "plugins_input: no plugin mlflow")

    def _check_reference(self, reference):
        found = [
            v
            for v in self.versions
            if v.pipeline_id == reference.pipeline_id
            and v.pipeline_version_id == reference.pipeline_version_id
        ]
        _only(found, "pipeline version")


ROUTES = [
    ("GET", f"{V2}/healthz", "get_healthz"),
    ("GET", f"{V2}/pipelines", "list_pipelines"),
    ("POST", f"{V2}/pipelines/upload", "upload_pipeline"),
    ("POST", f"{V2}/pipelines/upload_version", "upload_version"),
    ("GET", f"{V2}/pipelines/([^/]+)/versions", "list_versions"),
    ("POST", f"{V2}/pipelines", "create_pipeline"),
    ("GET", "/apis/v1beta1/runs/([^/]+)", "get_run_v1"),
    ("GET", "/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", "read_log"),
    ("GET", f"{V2}/experiments", "list_experiments"),
    ("POST", f"{V2}/experiments", "create_experiment"),
    ("POST", f"{V2}/runs", "create_run"),
    ("GET", f"{V2}/runs", "list_runs"),
    ("GET", f"{V2}/runs/([^/:]+)", "get_run"),
    ("POST", f"{V2}/recurringruns", "create_recurring_run"),
    ("GET", f"{V2}/recurringruns", "list_recurring_runs"),
    ("POST", f"{V2}/recurringruns/([^/:]+):disable", "disable_recurring_run"),
    ("DELETE", f"{V2}/recurringruns/([^/:]+)", "delete_recurring_run"),
]


def _matches(item, query: dict[str, str]) -> bool:
    predicates = json.loads(query.get("filter") or "{}").get("predicates", [])
    for predicate in predicates:
        # the SDK writes the operation as the enum's number or its name
        assert predicate["operation"] in ("EQUALS", 1), predicate
        if getattr(item, predicate["key"]) != predicate["stringValue"]:
            return False
    return True


def _named(item, name, namespace) -> bool:
    return (item.display_name, item.namespace or None) == (name, namespace or None)


def _only(found, what: str):
    if len(found) != 1:
        raise HttpError(404, f"{what} not found")
    return found[0]


def _id() -> str:
    return str(uuid.uuid4())
