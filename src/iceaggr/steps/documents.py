"""The small JSON documents between the later steps: where the model and the evaluation lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from iceaggr.errors import ConfigError, EvaluationError, IceaggrError, ModelError, naming
from iceaggr.interfaces import ObjectStore
from iceaggr.storage.file_store import irregular, partial_file, replace_durably
from iceaggr.validation import read_model, read_verified

D = TypeVar("D", bound=BaseModel)


class ModelPointer(BaseModel):
    """Where a trained model lies, and how its training began and ended."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), title="pointer to a trained model"
    )

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
    """The headline of an evaluation: which model, which data, where the table of events lies."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), title="headline of an evaluation"
    )

    model_digest: str = Field(min_length=1)
    data_digest: str = Field(min_length=1)
    events_uri: str
    events_sha256: str = Field(min_length=1)
    report_uri: str
    n_events: int = Field(ge=0)
    table: tuple[AngleRow, ...]
    benchmark: str = ""
    """Markdown: the figures beside the published ones, where the data set has such."""
    refined: str = ""
    """What the kappa of refined events is worth with and without an atmospheric muon, if known."""

    def check_subject(self, model_uri: str, model_digest: str, data_digest: str) -> None:
        """Compare what was evaluated with the model and the data that are to be judged.

        model_digest, data_digest: of the model that lies at model_uri, and of the manifest.
        Raises: EvaluationError if the evaluation is of another model, or of other data.
        """
        for what, evaluated, present in (
            ("model", self.model_digest, model_digest),
            ("data", self.data_digest, data_digest),
        ):
            if evaluated != present:
                raise EvaluationError(
                    f"evaluation is of {'another' if what == 'model' else 'other'} {what}",
                    where=f"evaluation of {model_uri}",
                    found=f"{what} {evaluated[:16]} was evaluated",
                    expected=f"{what} {present[:16]}, which is given now",
                    remedy="Run evaluate_model again: its figures are not those of this model",
                )

    def read_events(self, store: ObjectStore) -> bytes:
        """Read the table of events, a parquet file.

        Raises: EvaluationError if it is not the one that was evaluated; StorageError.
        """
        data, found = read_verified(store, self.events_uri, self.events_sha256)
        if found != self.events_sha256:
            raise EvaluationError(
                "table of test events was changed since the evaluation",
                where=self.events_uri,
                found=f"sha256 {found[:16]}",
                expected=f"sha256 {self.events_sha256[:16]}",
                remedy="Run evaluate_model again; it writes the table anew",
            )
        return data

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


IsOwn = Callable[[Path], bool]
"""Tells whether a file is an earlier result of the same writer, which it may write anew."""


def holds(*words: str) -> IsOwn:
    """Recognise a text of ours by words that every one of its kind holds."""

    def is_own(path: Path) -> bool:
        content = path.read_bytes()
        return all(word.encode() in content for word in words)

    return is_own


def refuse_other_content(path: Path, option: str, is_own: IsOwn) -> None:
    """Refuse to write over a file that is not empty and no earlier result of ours.

    Raises: ConfigError naming the option; OSError if it cannot be read.
    """
    if path.is_file() and path.stat().st_size and not is_own(path):
        with path.open("rb") as file:
            head = file.read(60).decode("utf-8", "replace").strip().split("\n")[0]
        raise ConfigError(
            "a file of something else has this name",
            where=f"{option} {path}",
            found=f"{path.stat().st_size:,} bytes that begin with {head!r}",
            expected="no file, an empty one, or an earlier result",
            remedy="Give another name, or move that file away",
        )


def check_target_file(path: Path, option: str, is_own: IsOwn) -> None:
    """Refuse a file that could not be written in the end, before work is done for it.

    option: that named it. What has the name already stays as it is.
    is_own: asked of what has the name, see `refuse_other_content`.  Raises: ConfigError.
    """
    where, folder = f"{option} {path}", path.absolute().parent
    try:
        if not folder.is_dir():
            raise ConfigError(
                "folder does not exist",
                where=where,
                found=str(folder),
                expected="an existing folder",
                remedy="Create it first",
            )
        obstacle = _no_regular_file(path)
        with partial_file(path):
            pass
    except OSError as error:
        obstacle = f"{error.strerror} (a file was tried in {folder})"
    if obstacle:
        raise ConfigError(
            "cannot write here",
            where=where,
            found=obstacle,
            expected="a file, or the name of a new one, in a folder that this user may write to",
            remedy="Give another place or name",
        )
    refuse_other_content(path, option, is_own)


def _no_regular_file(path: Path) -> str:
    """Say what stands in the place of a file, '' if it is one, or nothing. Raises: OSError."""
    try:
        return irregular(path.stat().st_mode)
    except FileNotFoundError:
        return ""


def write_document(path: Path, text: str) -> None:
    """Write a document of the run, whole: under a temporary name beside it, then renamed.

    Raises: OSError that names the document.
    """
    with naming(path), partial_file(path) as partial:
        partial.write_bytes(text.encode())
        replace_durably(partial, path)


def read_file(path: Path, what: str, remedy: str) -> bytes:
    """Read what an earlier step left.

    what: it is, in words.  remedy: which step writes it.
    Raises: IceaggrError if there is no such file, or it cannot be read.
    """
    try:
        found = _no_regular_file(path)
        if not found:
            return path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        found = "no such file" if missing else str(error.strerror)
    raise IceaggrError(
        f"{what} not found",
        where=str(path),
        found=found,
        expected="the document of an earlier step",
        remedy=remedy,
    )


def read_document(kind: type[D], path: Path) -> D:
    """Read a document. Raises: IceaggrError if the file is missing or not of this kind."""
    data = read_file(path, _words(kind), "Run the step that writes it")
    return parse_document(kind, data, str(path))


def parse_document(kind: type[D], data: bytes, where: str) -> D:
    """Check a document. where: its file or URI. Raises: IceaggrError if it is not of this kind."""
    return read_model(
        kind,
        data,
        lambda problem: IceaggrError(
            f"not the {_words(kind)}",
            where=where,
            found=problem.found_in_field,
            expected=problem.expected,
            remedy="Run the step that writes it again; documents are never edited by hand",
        ),
    )


def _words(kind: type[BaseModel]) -> str:
    """Name a kind of document for people: its title, not its class."""
    return kind.model_config.get("title") or "document"
