"""What a run shards, noted in its folder: its work units, and the settings they have in common.

Kubeflow keeps a whole run in one Kubernetes object of at most 1 MiB, of which each work unit takes
its part. So a unit's task is told its run alone and reads the settings here. And what was planned
must have been sharded, all of it.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from iceaggr.errors import ShardError
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.coverage import SHARD_AGAIN
from iceaggr.steps.context import RunContext, make_context
from iceaggr.steps.documents import parse_document
from iceaggr.storage import open_store


class WorkUnits(BaseModel):
    """The work units of a run as plan_shards gave them, and what it was told of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="list of work units")

    work_units: tuple[str, ...] = Field(min_length=1)
    experiment_name: str
    run_name: str = ""
    config: dict[str, Any]


def write_work_units(store: ObjectStore, context: RunContext, work_units: list[str]) -> None:
    """Note in the run's folder what is to be sharded. Raises: StorageError."""
    document = WorkUnits(
        work_units=tuple(work_units),
        experiment_name=context.experiment_name,
        run_name=context.name,
        config=context.config.model_dump(mode="json"),
    )
    store.write_bytes(
        _uri(context.work_uri, context.run_id), document.model_dump_json(indent=1).encode()
    )


def read_work_units(store: ObjectStore, context: RunContext) -> tuple[str, ...]:
    """Read what was to be sharded. Raises: ShardError if nothing was planned; StorageError."""
    return _read(store, _uri(context.work_uri, context.run_id)).work_units


def planned_context(run_id: str, work_uri: str) -> RunContext:
    """Build the context of a step that is told its run alone.

    Raises: ShardError if nothing was planned; ConfigError, StorageError.
    """
    place = make_context(run_id, "", work_uri, {})  # checks the folder before anything is read
    plan = _read(open_store(), _uri(place.work_uri, run_id))
    return make_context(run_id, plan.experiment_name, work_uri, plan.config, plan.run_name)


def _read(store: ObjectStore, uri: str) -> WorkUnits:
    if store.stat(uri) is None:
        raise ShardError(
            "no plan of this run",
            where=uri,
            found="no such object",
            expected="the list of work units that plan_shards wrote",
            remedy=SHARD_AGAIN,
        )
    return parse_document(WorkUnits, store.read_bytes(uri), uri)


def _uri(work_uri: str, run_id: str) -> str:
    return f"{work_uri}/runs/{run_id}/work_units.json"
