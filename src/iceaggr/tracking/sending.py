"""Turns records of the outbox into MLflow requests, and sorts out what MLflow refuses."""

from __future__ import annotations

import logging
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from iceaggr.tracking.connection import is_refused_for_good
from iceaggr.tracking.outbox import Record

log = logging.getLogger(__name__)
_PARAMS_PER_REQUEST = 100
_OF_A_FAILURE = {"failed_step", "failure", "end_reason"}


class RunSender:
    """Sends records to one run.

    What MLflow refuses for good is counted in `n_refused` and told in the log, because repeating
    it would hold up everything behind it. Any other failure is raised: the outbox tries again.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self.n_refused = 0

    def send(self, records: list[Record]) -> None:
        """Send records: all metrics in one request, the others in their order."""
        metrics = [
            Metric(record["key"], float(record["value"]), record["timestamp_ms"], record["step"])
            for record in records
            if record["kind"] == "metric"
        ]
        if metrics:
            self._send_metrics(metrics)
        for record in records:
            if record["kind"] != "metric":
                self._unless_refused(record)

    def _send_metrics(self, metrics: list[Metric]) -> None:
        try:
            self._client.log_batch(self._run_id, metrics=metrics)
        except MlflowException as error:
            if not is_refused_for_good(error):
                raise
            if len(metrics) == 1:
                self._refuse(f"metric {metrics[0].key}", error)
                return
            half = len(metrics) // 2  # one bad point must not take the good ones with it
            self._send_metrics(metrics[:half])
            self._send_metrics(metrics[half:])

    def _unless_refused(self, record: Record) -> None:
        try:
            getattr(self, f"_send_{record['kind']}")(record)
        except Exception as error:
            if not is_refused_for_good(error):
                raise
            self._refuse(f"{record['kind']} {record.get('name', '')}", error)

    def _refuse(self, what: str, error: Exception) -> None:
        self.n_refused += 1
        log.warning("tracking server refused %s: %s", what, " ".join(str(error).split())[:300])

    def _send_params(self, record: Record) -> None:
        values: dict[str, str] = record["values"]
        known = self._client.get_run(self._run_id).data.params
        new = [Param(key, value) for key, value in values.items() if key not in known]
        for first in range(0, len(new), _PARAMS_PER_REQUEST):
            part = new[first : first + _PARAMS_PER_REQUEST]
            self._client.log_batch(self._run_id, params=part)
        changed = {key: value for key, value in values.items() if known.get(key, value) != value}
        for key, value in changed.items():  # MLflow's params never change: a retry may differ
            log.warning("param %s was %s in this run and is now %s", key, known[key], value)
            self._client.set_tag(self._run_id, f"changed/{key}", value)

    def _send_tags(self, record: Record) -> None:
        tags = [RunTag(key, value) for key, value in record["values"].items()]
        self._client.log_batch(self._run_id, tags=tags)

    def _send_file(self, record: Record) -> None:
        path = Path(record["path"])
        if not path.exists():  # sent before, together with something that failed
            return
        self._client.log_artifact(self._run_id, str(path), record["folder"] or None)
        path.unlink()
        path.parent.rmdir()

    def _send_dataset(self, record: Record) -> None:
        dataset = Dataset(
            name=record["name"],
            digest=record["digest"],
            source_type="object_store",
            source=record["source"],
            profile=record["profile"],
        )
        tags = [InputTag("mlflow.data.context", record["context"])]
        self._client.log_inputs(self._run_id, datasets=[DatasetInput(dataset, tags)])

    def _send_status(self, record: Record) -> None:
        status = record["status"]
        if status == "RUNNING":
            self._client.update_run(self._run_id, status=status)
            return
        if status == "FINISHED":
            # an attempt before this one may have failed, and that is over
            tags = self._client.get_run(self._run_id).data.tags
            for tag in _OF_A_FAILURE & set(tags):
                self._client.delete_tag(self._run_id, tag)
        self._client.set_terminated(self._run_id, status)
