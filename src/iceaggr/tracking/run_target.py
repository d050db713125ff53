"""Which run a tracker writes to, and opening it: at once, or later when the server is back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlflow import MlflowClient

from iceaggr.errors import TrackingError
from iceaggr.patience import ask_patiently, may_pass
from iceaggr.tracking.connection import as_tracking_error, connect
from iceaggr.tracking.outbox import Record
from iceaggr.tracking.run_lookup import experiment_id, find_or_create_run
from iceaggr.tracking.sending import RunSender

STUMBLE_S = 1.0
"""A server that has just answered may stumble over one request."""
_FILE = "run.json"
_ENDED = {"FINISHED", "FAILED", "KILLED"}


@dataclass(frozen=True)
class RunTarget:
    """Everything that finds or makes a run, on whatever day its server answers.

    run_id: '' until the run is open, unless Kubeflow's plugin made the run.
    """

    tracking_uri: str
    experiment_name: str
    pipeline_run_id: str
    run_name: str
    run_id: str = ""

    def open(
        self, patience_s: float = 0.0, failing_s: float = STUMBLE_S
    ) -> tuple[MlflowClient, RunTarget]:
        """Find or create the run. Returns a client, and the target with the run's id.

        patience_s, failing_s: how long to wait for a server that is away, or that answers with
        errors of its own.
        Raises: TrackingError, within seconds after the patience, if no server answers.
        """
        client = connect(self.tracking_uri, patience_s, failing_s)
        return client, ask_patiently(
            lambda: self._opened(client), is_away=may_pass, patience_s=max(patience_s, failing_s)
        )

    def _opened(self, client: MlflowClient) -> RunTarget:
        with as_tracking_error("cannot open the run", client.tracking_uri):
            run_id = self.run_id
            if not run_id:
                experiment = experiment_id(client, self.experiment_name)
                run_id = find_or_create_run(client, experiment, self.pipeline_run_id, self.run_name)
        return replace(self, run_id=run_id)

    def save(self, spool: Path) -> None:
        """Write the target beside the records that are for it."""
        (spool / _FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")


def load_target(spool: Path) -> RunTarget:
    """Read what `save` wrote. Raises: OSError, ValueError, TypeError."""
    return RunTarget(**json.loads((spool / _FILE).read_text(encoding="utf-8")))


class LateSender:
    """Sends records to a run that it opens before the first of them, if nobody has before.

    So a step that begins while the server is away goes on, and its records follow.
    """

    def __init__(self, target: RunTarget, spool: Path) -> None:
        self._target = target
        self._spool = spool
        self._opened: tuple[MlflowClient, RunSender] | None = None
        target.save(spool)

    @property
    def run_id(self) -> str:
        """Name the run, '' as long as it could not be opened."""
        return self._target.run_id

    @property
    def client(self) -> MlflowClient:
        """Give the client of the run's server. Raises: TrackingError until the run is open."""
        if self._opened is None:
            raise TrackingError(
                "the run is not open yet",
                where=self._target.run_name,
                found="no answer of the server so far",
                expected="a run",
                remedy="Wait for the server, or open the tracker with must_answer",
            )
        return self._opened[0]

    def open(self, patience_s: float = 0.0, failing_s: float = STUMBLE_S) -> RunSender:
        """Open the run and set it running again if it had ended.

        patience_s, failing_s: as `RunTarget.open` takes them.  Raises: TrackingError.
        """
        client, target = self._target.open(patience_s, failing_s)
        with as_tracking_error("cannot open the run", client.tracking_uri):
            if client.get_run(target.run_id).info.status in _ENDED:
                client.update_run(target.run_id, status="RUNNING")
        target.save(self._spool)
        sender = RunSender(client, target.run_id)
        self._target, self._opened = target, (client, sender)
        return sender

    def send(self, records: list[Record]) -> None:
        """Send records, opening the run if need be; whatever fails is to be tried again."""
        sender = self._opened[1] if self._opened else self.open()
        sender.send(records)
