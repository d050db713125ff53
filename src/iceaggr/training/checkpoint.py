"""Checkpoints in object storage: safetensors and readable JSON, whole or not at all.

    <output>/checkpoints/latest.json                      written last: names the newest folders
    <output>/checkpoints/step-00000120-4f1c.../model.safetensors
                                              /optimizer.safetensors
                                              /average.safetensors   (with an average of weights)
                                              /state.json            counters, settings, hashes

A folder's name ends in the hash of its state.json, which holds the hashes of the tensors, so no
object is ever written twice with different content, and a kill at any moment leaves latest.json
pointing at a complete checkpoint. The first one is written before the first step: from then on a
folder without latest.json means a loss, not a beginning.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from iceaggr.errors import StorageError, TrainingError
from iceaggr.interfaces import ObjectStore
from iceaggr.verified import read_verified

FORMAT_VERSION = 1
_REMEDY = "Restore the folder from a copy, or start again in an empty output folder"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    document: JSON values: state, identity, random states
    tensors: per group ("model", "optimizer", "average") the named tensors
    """

    document: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


class CheckpointFolder:
    """Writes, finds and prunes the checkpoints below one output folder."""

    def __init__(self, store: ObjectStore, output_uri: str, n_kept: int) -> None:
        self.store = store
        self.uri = f"{output_uri.rstrip('/')}/checkpoints"
        self.latest_uri = f"{self.uri}/latest.json"
        self.n_kept = n_kept

    def write(self, step: int, checkpoint: Checkpoint) -> str:
        """Write a checkpoint, make it the latest, delete what is older. Returns its folder URI."""
        packed = {
            f"{group}.safetensors": save({k: t.detach().contiguous() for k, t in tensors.items()})
            for group, tensors in checkpoint.tensors.items()
        }
        files = {name: hashlib.sha256(data).hexdigest() for name, data in packed.items()}
        document = {"format_version": FORMAT_VERSION, "files": files, **checkpoint.document}
        state = json.dumps(document, indent=1, allow_nan=False).encode()
        digest = hashlib.sha256(state).hexdigest()
        name = f"step-{step:08d}-{digest[:16]}"
        for file_name, data in packed.items():
            self.store.write_bytes(f"{self.uri}/{name}/{file_name}", data)
        self.store.write_bytes(f"{self.uri}/{name}/state.json", state)
        folders = [name, *(f for f in self._folders() if f != name)][: self.n_kept]
        pointer = {"format_version": FORMAT_VERSION, "state_sha256": digest, "folders": folders}
        self.store.write_bytes(self.latest_uri, json.dumps(pointer, indent=1).encode())
        self._prune(folders)
        return f"{self.uri}/{name}"

    def read_latest(self) -> Checkpoint | None:
        """Read the newest checkpoint, or None when no step was ever made here.

        Raises: TrainingError if it is incomplete, damaged or of another format.
        """
        if self.store.stat(self.latest_uri) is None:
            self._check_nothing_lost()
            return None
        pointer = self._read_json(self.latest_uri)
        self._check_version(pointer, self.latest_uri)
        try:
            folder, digest = f"{self.uri}/{pointer['folders'][0]}", pointer["state_sha256"]
        except (KeyError, IndexError, TypeError):
            raise _damaged(self.latest_uri, "no folder named") from None
        document = self._read_json(f"{folder}/state.json", sha256=digest)
        self._check_version(document, folder)
        files = document.pop("files", {})
        tensors = {
            name.removesuffix(".safetensors"): self._read_tensors(f"{folder}/{name}", sha256)
            for name, sha256 in files.items()
        }
        return Checkpoint(document, tensors)

    def _read_tensors(self, uri: str, sha256: str) -> dict[str, Tensor]:
        data = self._read(uri, sha256)
        try:
            return dict(load(data))
        except SafetensorError as error:
            raise _damaged(uri, str(error)) from None

    def _read_json(self, uri: str, sha256: str | None = None) -> dict[str, Any]:
        data = self._read(uri, sha256)
        try:
            document = json.loads(data)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise _damaged(uri, f"not JSON: {error}") from None
        if not isinstance(document, dict):
            raise _damaged(uri, type(document).__name__)
        return document

    def _read(self, uri: str, sha256: str | None) -> bytes:
        try:
            if self.store.stat(uri) is None:
                raise _damaged(uri, "nothing")
            if sha256 is None:
                return self.store.read_bytes(uri)
            data, found = read_verified(self.store, uri, sha256)
        except StorageError as error:
            raise TrainingError(
                "checkpoint cannot be read", where=uri, found=error.what, remedy=error.remedy
            ) from error
        if found != sha256:
            raise _damaged(uri, "content of another hash")
        return data

    def _check_version(self, document: dict[str, Any], where: str) -> None:
        version = document.get("format_version")
        if version != FORMAT_VERSION:
            raise TrainingError(
                "checkpoint of another format",
                where=where,
                found=f"version {version}",
                expected=f"version {FORMAT_VERSION}",
                remedy="Resume it with the version of iceaggr that wrote it",
            )

    def _check_nothing_lost(self) -> None:
        # a kill during the very first write leaves a folder of step 0: nothing is lost then
        for entry in self.store.list(f"{self.uri}/"):
            name = entry.uri.removeprefix(f"{self.uri}/").split("/")[0]
            if name.startswith("step-") and not name.startswith("step-00000000-"):
                raise _damaged(self.latest_uri, f"nothing, though there is {name}")

    def _folders(self) -> list[str]:
        if self.store.stat(self.latest_uri) is None:
            return []
        return list(self._read_json(self.latest_uri).get("folders", []))

    def _prune(self, kept: list[str]) -> None:
        for entry in self.store.list(f"{self.uri}/"):
            name = entry.uri.removeprefix(f"{self.uri}/").split("/")[0]
            if name.startswith("step-") and name not in kept:
                self.store.delete(entry.uri)


def _damaged(where: str, found: str) -> TrainingError:
    return TrainingError(
        "checkpoint is damaged",
        where=where,
        found=found,
        expected="a complete checkpoint",
        remedy=_REMEDY,
    )
