"""A disk-backed queue between a run and its tracking server, so that an outage costs no time.

Every record is appended to a file at once and sent by a background thread, in order. Memory stays
small however long the server is away; what was never sent stays in the file, ready for replay.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from iceaggr.tracking.connection import is_refused_for_good

Record = dict[str, Any]

RECORDS = "unsent.jsonl"
_BATCH_RECORDS = 200
_GATHER_S = 0.5
_LONGEST_WAIT_S = 10.0


class Outbox:
    """Sends records through `send(records)`, which raises to have them sent again later."""

    def __init__(self, send: Callable[[list[Record]], None], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._send = send
        self._path = folder / RECORDS
        self._writer = self._path.open("a", encoding="utf-8")
        self._n_put = 0
        self._n_sent = 0
        self._offset = self._writer.tell()
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._is_closed = False
        self.last_error = ""
        self._thread = threading.Thread(target=self._run, name="tracking-outbox", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Take a record; never waits for the server. Raises: ValueError after `close`."""
        line = json.dumps(record) + "\n"
        with self._changed:
            if self._is_closed:
                raise ValueError("the tracker is finished: nothing more can be logged")
            self._writer.write(line)
            self._writer.flush()
            self._n_put += 1
            self._changed.notify_all()

    def flush(self, within_s: float) -> int:
        """Wait until all is sent or the time is over; returns the number of unsent records."""
        deadline = time.monotonic() + within_s
        with self._changed:
            self._deadline = deadline
            self._changed.notify_all()
            while self._n_sent < self._n_put and (left_s := deadline - time.monotonic()) > 0:
                self._changed.wait(left_s)
            self._deadline = None
            return self._n_put - self._n_sent

    def close(self, within_s: float) -> int:
        """Flush and end; returns how many records stay unsent in the file."""
        n_unsent = self.flush(within_s)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join(timeout=_LONGEST_WAIT_S)
        with self._changed:
            self._writer.close()
            n_unsent = self._n_put - self._n_sent
            self._keep_unsent_only()
        return n_unsent

    def _run(self) -> None:
        # not `ask_patiently`: nobody waits for an answer, and new records join the next attempt
        wait_s = _GATHER_S
        while True:
            with self._changed:
                while self._n_sent == self._n_put and not self._is_closed:
                    self._changed.wait()
                if self._is_closed:
                    return
                self._pause(wait_s)
            records, end = self._read()
            try:
                self._send(records)
            except Exception as error:
                self.last_error = " ".join(str(error).split())[:300]
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                continue
            wait_s = _GATHER_S
            with self._changed:
                self._offset = end
                self._n_sent += len(records)
                self._changed.notify_all()

    def _pause(self, wait_s: float) -> None:
        """Gather more records, or leave a failing server alone; a waiting `flush` ends the pause.

        Called with the lock held.
        """
        someone_waits = self._changed.wait_for(
            lambda: self._is_closed or self._deadline is not None, timeout=wait_s
        )
        if someone_waits and wait_s > _GATHER_S:
            self._changed.wait_for(lambda: self._is_closed, timeout=_GATHER_S)

    def _read(self) -> tuple[list[Record], int]:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            records: list[Record] = []
            while len(records) < _BATCH_RECORDS and (line := file.readline()).endswith(b"\n"):
                records.append(json.loads(line))
            return records, file.tell()

    def _keep_unsent_only(self) -> None:
        unsent = self._path.read_bytes()[self._offset :]
        if unsent:
            self._path.write_bytes(unsent)
        else:
            self._path.unlink()


# Turns records of the outbox into MLflow requests, and sorts out what MLflow refuses.

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
