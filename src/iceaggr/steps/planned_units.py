"""The list of a run's work units: what was planned must have been sharded, all of it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from iceaggr.errors import ShardError
from iceaggr.interfaces import ObjectStore
from iceaggr.shards.coverage import SHARD_AGAIN
from iceaggr.steps.context import RunContext
from iceaggr.steps.documents import parse_document


class WorkUnits(BaseModel):
    """The work units of a run, as plan_shards gave them."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="list of work units")

    work_units: tuple[str, ...] = Field(min_length=1)


def write_work_units(store: ObjectStore, context: RunContext, work_units: list[str]) -> None:
    """Note in the run's folder what is to be sharded. Raises: StorageError."""
    document = WorkUnits(work_units=tuple(work_units))
    store.write_bytes(_uri(context), document.model_dump_json(indent=1).encode())


def read_work_units(store: ObjectStore, context: RunContext) -> tuple[str, ...]:
    """Read what was to be sharded. Raises: ShardError if nothing was planned; StorageError."""
    uri = _uri(context)
    if store.stat(uri) is None:
        raise ShardError(
            "no plan of this run",
            where=uri,
            found="no such object",
            expected="the list of work units that plan_shards wrote",
            remedy=SHARD_AGAIN,
        )
    return parse_document(WorkUnits, store.read_bytes(uri), uri).work_units


def _uri(context: RunContext) -> str:
    return f"{context.run_uri}/work_units.json"
