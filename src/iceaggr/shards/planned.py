"""What a plan says of the raw files, and whether they are still what was planned."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from iceaggr.errors import RawDataError
from iceaggr.interfaces import ObjectStore


class PlanPart(BaseModel):
    """What every part of a plan is: frozen, and without fields that nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedObject(PlanPart):
    """One object among the raw files, as it was when planned."""

    uri: str
    n_bytes: int = Field(ge=0)
    etag: str


class PlannedFile(PlannedObject):
    """One batch file, and how many of its events are used."""

    batch_id: int
    n_events: int = Field(ge=0)
    n_events_used: int = Field(ge=0)

    @model_validator(mode="after")
    def _uses_no_more_than_there_are(self) -> PlannedFile:
        if self.n_events_used > self.n_events:
            raise ValueError(f"at most {self.n_events} events used")
        return self


def check_unchanged(store: ObjectStore, planned: PlannedObject) -> None:
    """Compare a batch file or the meta file with the plan.

    Raises: RawDataError if it is gone or another one.
    """
    stored = store.stat(planned.uri)
    if stored is None:
        raise RawDataError(
            "raw file is missing",
            where=planned.uri,
            found="no such object",
            expected=f"{planned.n_bytes} bytes, as planned",
            remedy="Copy it back, or run plan_shards again",
        )
    if (stored.etag, stored.n_bytes) != (planned.etag, planned.n_bytes):
        found = f"tag {stored.etag}, {stored.n_bytes} bytes"
        expected = f"tag {planned.etag}, {planned.n_bytes} bytes"
        raise changed_after_plan(planned.uri, found, expected)


def changed_after_plan(uri: str, found: str, expected: str) -> RawDataError:
    """Word the error of a raw file that is not the planned one."""
    return RawDataError(
        "raw file changed after it was planned",
        where=uri,
        found=found,
        expected=expected,
        remedy="Run plan_shards again once nobody writes to the raw files",
    )
