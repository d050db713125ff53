"""The small JSON documents between the later steps: where the model and the evaluation lie."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from iceaggr.errors import IceaggrError

D = TypeVar("D", bound=BaseModel)


class ModelPointer(BaseModel):
    """Where a trained model lies, and how its training began and ended."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_uri: str
    manifest_digest: str
    mlflow_run_id: str
    n_steps: int
    stopped_because: str
    started_from: str


class AngleRow(BaseModel):
    """Opening angles of one method on the test events, in degrees, with standard errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    mean_deg: float
    mean_error_deg: float
    median_deg: float
    median_error_deg: float
    p68_deg: float
    p68_error_deg: float


class EvaluationPointer(BaseModel):
    """The headline of an evaluation and where its table of events lies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    events_uri: str
    report_uri: str
    n_events: int
    table: tuple[AngleRow, ...]

    def row(self, name: str) -> AngleRow:
        """Find the row of a method. Raises: IceaggrError if the evaluation lacks it."""
        for row in self.table:
            if row.name == name:
                return row
        raise IceaggrError(
            "the evaluation lacks a method",
            found=[row.name for row in self.table],
            expected=name,
        )


def read_document(kind: type[D], path: Path) -> D:
    """Read a document. Raises: IceaggrError if the file is missing or not of this kind."""
    try:
        return kind.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise IceaggrError(
            f"{kind.__name__} not found", where=str(path), remedy="Run the step that writes it"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise IceaggrError(
            f"not a {kind.__name__}",
            where=str(path),
            found=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
        ) from None
