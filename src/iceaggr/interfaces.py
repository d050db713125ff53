"""The two seams of the library: object storage and experiment tracking, handed in from outside.

Data, model and training code know these protocols only, so they import neither boto3 nor mlflow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

Content = bytes | memoryview | Sequence[bytes | memoryview]
"""What an object is to hold, in one piece or in several."""


def pieces_of(content: Content) -> Sequence[bytes | memoryview]:
    """Give content as a sequence of pieces."""
    return [content] if isinstance(content, bytes | memoryview) else content


@dataclass(frozen=True)
class StoredObject:
    """One object in storage: its URI, size in bytes and the store's content tag."""

    uri: str
    n_bytes: int
    etag: str


class ObjectStore(Protocol):
    """Reads and writes whole objects by URI (`file:///...` or `s3://bucket/key`).

    URIs are plain strings: pathlib would fold the two slashes of a scheme into one.
    Every method raises StorageError, naming the URI and the remedy.
    """

    def list(self, prefix_uri: str) -> list[StoredObject]:
        """List all objects inside a folder, at any depth, sorted by URI; [] when absent.

        The prefix is a folder, with or without its slash: `.../train` never lists
        `.../train_meta.parquet`.
        """

    def stat(self, uri: str) -> StoredObject | None:
        """Describe one object, or None when it does not exist."""

    def read_bytes(self, uri: str, compare_tag: bool = True) -> bytes:
        """Read a whole object. Raises: StorageError if it does not exist.

        compare_tag: False spares the store's own comparison of content and tag, for a caller that
        compares the content with a hash itself.
        """

    def write_bytes(self, uri: str, data: Content) -> None:
        """Write a whole object atomically: readers see the old one or the new one.

        data: the bytes, or pieces to be written one after the other; free to be changed by the
        caller afterwards, the store keeps no view of it.
        """

    def write_bytes_if_absent(self, uri: str, data: bytes) -> bool:
        """Write only if nothing is there; False when another writer was first."""

    def open_input(self, uri: str) -> BinaryIO:
        """Open an object for reading with seek; only the ranges read are transferred."""

    def upload(self, path: Path, uri: str) -> None:
        """Copy a local file into storage atomically, in bounded memory."""

    def download(self, uri: str, path: Path) -> None:
        """Copy an object to a local file: temporary name first, then rename."""

    def delete(self, uri: str) -> None:
        """Delete one object; deleting an absent one is no error."""


class Tracker(Protocol):
    """Receives what a run wants to show: parameters, curves, tables, files."""

    @property
    def run_id(self) -> str:
        """Name the tracked run; '' if there is none, or its server has not answered yet."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record the settings of the run, nested keys joined by '/'."""
        return

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record one point of each curve."""
        return

    def log_text(self, text: str, artifact_path: str) -> None:
        """Store a text or HTML page with the run."""
        return

    def log_file(self, path: Path, artifact_folder: str) -> None:
        """Store a local file with the run."""
        return

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Mark the run, for searching and comparing."""
        return

    def log_dataset(
        self, name: str, digest: str, source_uri: str, context: str, facts: Mapping[str, object]
    ) -> None:
        """Record which data went in, and what for."""
        return


class NullTracker(Tracker):
    """Tracks nothing: library calls on a laptop need no server."""

    run_id = ""
