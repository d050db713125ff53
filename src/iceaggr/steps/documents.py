"""The small JSON documents between the later steps: where the model and the evaluation lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from iceaggr.errors import ConfigError, IceaggrError, ModelError
from iceaggr.validation import first_problem

D = TypeVar("D", bound=BaseModel)


class ModelPointer(BaseModel):
    """Where a trained model lies, and how its training began and ended."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_uri: str
    manifest_digest: str
    mlflow_run_id: str
    n_steps: int = Field(ge=0)
    stopped_because: str
    started_from: str

    def check_data(self, manifest_digest: str, model_facts: Mapping[str, Any]) -> None:
        """Compare what the model was trained on with the data it is to be judged on.

        Raises: ModelError if the pointer, the model's own facts and the manifest disagree: the
        model is of another project or run, or the manifest was exchanged.
        """
        trained_on = str(model_facts.get("manifest_digest", "unknown data"))
        if not self.manifest_digest == manifest_digest == trained_on:
            raise ModelError(
                "model was trained on other data",
                where=self.model_uri,
                found=f"trained on {trained_on}, pointer says {self.manifest_digest}",
                expected=f"the manifest's {manifest_digest}",
                remedy="Give the manifest and the model of one run, or train again",
            )


class AngleRow(BaseModel):
    """Opening angles of one method on the test events, in degrees, with standard errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    n_events: int = Field(ge=0)
    table: tuple[AngleRow, ...]

    def row(self, name: str) -> AngleRow:
        """Find the row of a method. Raises: IceaggrError if the evaluation lacks it."""
        for row in self.table:
            if row.name == name:
                return row
        raise IceaggrError(
            "the evaluation lacks a method",
            where="evaluation",
            found=[row.name for row in self.table],
            expected=name,
            remedy="Run evaluate_model again",
        )


def check_target_folder(path: Path, option: str) -> None:
    """Refuse a file to write whose folder does not exist, before work is done for it.

    option: that named it.  Raises: ConfigError.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(
            "folder does not exist",
            where=f"{option} {path}",
            found=str(folder),
            expected="an existing folder",
            remedy="Create it first",
        )


def read_document(kind: type[D], path: Path) -> D:
    """Read a document. Raises: IceaggrError if the file is missing or not of this kind."""
    try:
        return parse_document(kind, path.read_bytes(), str(path))
    except FileNotFoundError:
        raise IceaggrError(
            f"{kind.__name__} not found",
            where=str(path),
            found="no such file",
            expected="the document of an earlier step",
            remedy="Run the step that writes it",
        ) from None


def parse_document(kind: type[D], data: bytes, where: str) -> D:
    """Check a document. where: its file or URI. Raises: IceaggrError if it is not of this kind."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        problem = first_problem(error, kind)
        raise IceaggrError(
            f"not a {kind.__name__}",
            where=where,
            found=problem.found_in_field,
            expected=problem.expected,
            remedy="Run the step that writes it again; documents are never edited by hand",
        ) from None
