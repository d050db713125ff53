"""Checkpoints in object storage: safetensors and readable JSON, whole or not at all.

    <output>/checkpoints/latest.json                      written last: names the newest folders
    <output>/checkpoints/step-00000120-4f1c.../model.safetensors
                                              /optimizer.safetensors
                                              /average.safetensors   (with an average of weights)
                                              /state.json            counters, settings, hashes
    <output>/has_checkpoints.json                         once the first one is complete

A folder's name ends in the hash of its state.json, which holds the hashes of the tensors, so no
object is ever written twice with different content, and a kill at any moment leaves latest.json
pointing at a complete checkpoint. The first one is written before the first step: from then on a
folder without latest.json means a loss, not a beginning. The loss of the whole folder shows in
has_checkpoints.json beside it, written after the first latest.json and before the first step.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from iceaggr.errors import StorageError, TrainingError
from iceaggr.interfaces import ObjectStore
from iceaggr.paths import TrainingPaths, checkpoint_name
from iceaggr.validation import read_json_object, read_verified, sha256_of, shown

FORMAT_VERSION = 1
_FOLDER = re.compile(r"step-\d{8,}-[0-9a-f]{16}")
_TENSOR_FILES = {f"{group}.safetensors" for group in ("model", "optimizer", "average")}
_STATE = "state.json"
_MARK = {"note": "Without checkpoints/ this run starts anew only once this file is deleted."}
_RESTORE = "Restore the folder from a copy"
_REMEDY = f"{_RESTORE}, or start again in an empty output folder"


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
        paths = TrainingPaths(output_uri)
        self.uri = paths.checkpoints_uri
        self.latest_uri = paths.latest_checkpoint_uri
        self.mark_uri = paths.has_checkpoints_uri
        self.n_kept = n_kept

    def write(self, step: int, checkpoint: Checkpoint) -> str:
        """Write a checkpoint, make it the latest, delete what is older. Returns its folder URI."""
        packed = {
            f"{group}.safetensors": save({k: t.detach().contiguous() for k, t in tensors.items()})
            for group, tensors in checkpoint.tensors.items()
        }
        files = {name: sha256_of(data) for name, data in packed.items()}
        document = {"format_version": FORMAT_VERSION, "files": files, **checkpoint.document}
        state = json.dumps(document, indent=1, allow_nan=False).encode()
        digest = sha256_of(state)
        name = checkpoint_name(step, digest)
        for file_name, data in packed.items():
            self.store.write_bytes(f"{self.uri}/{name}/{file_name}", data)
        self.store.write_bytes(f"{self.uri}/{name}/{_STATE}", state)
        folders = [name, *(f for f in self._folders() if f != name)][: self.n_kept]
        pointer = {"format_version": FORMAT_VERSION, "state_sha256": digest, "folders": folders}
        self.store.write_bytes(self.latest_uri, json.dumps(pointer, indent=1).encode())
        # after the pointer: a kill in between leaves a run that resumes, not a mark without one
        if self.store.stat(self.mark_uri) is None:
            self.store.write_bytes(self.mark_uri, json.dumps(_MARK, indent=1).encode())
        self._prune(folders)
        return f"{self.uri}/{name}"

    def read_latest(self) -> Checkpoint | None:
        """Read the newest checkpoint, or None when no step was ever made here.

        Raises: TrainingError if it is lost, incomplete, damaged or of another format.
        """
        if self.store.stat(self.latest_uri) is None:
            self._check_nothing_lost()
            return None
        pointer = self._read_json(self.latest_uri)
        self._check_version(pointer, self.latest_uri)
        folders, digest = self._folders_of(pointer), str(pointer.get("state_sha256"))
        folder = f"{self.uri}/{folders[0]}"
        document = self._read_json(f"{folder}/{_STATE}", sha256=digest)
        self._check_version(document, folder)
        files = document.pop("files", {})
        if not isinstance(files, dict) or not {*files} <= _TENSOR_FILES:
            raise _damaged(f"{folder}/{_STATE}", f"files {shown(files)}")
        tensors = {
            name.removesuffix(".safetensors"): self._read_tensors(f"{folder}/{name}", str(sha256))
            for name, sha256 in files.items()
        }
        return Checkpoint(document, tensors)

    def _read_tensors(self, uri: str, sha256: str) -> dict[str, Tensor]:
        data = self._read(uri, sha256)
        try:
            return dict(load(data))
        except (SafetensorError, KeyError, ValueError, OverflowError) as error:
            raise _damaged(uri, f"{type(error).__name__}: {error}"[:300]) from None

    def _read_json(self, uri: str, sha256: str | None = None) -> dict[str, Any]:
        return read_json_object(self._read(uri, sha256), lambda found: _damaged(uri, found))

    def _read(self, uri: str, sha256: str | None) -> bytes:
        try:
            if self.store.stat(uri) is None:
                raise _damaged(uri, "nothing")
            if sha256 is None:
                return self.store.read_bytes(uri)
            data, found = read_verified(self.store, uri, sha256)
        except StorageError as error:
            raise TrainingError(
                "checkpoint cannot be read",
                where=uri,
                found=error.what,
                expected="a complete checkpoint",
                remedy=error.remedy,
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
                found=f"version {shown(version)}",
                expected=f"version {FORMAT_VERSION}",
                remedy="Resume it with the version of iceaggr that wrote it",
            )

    def _check_nothing_lost(self) -> None:
        # a kill during the very first write leaves a folder of step 0: nothing is lost then
        for entry in self.store.list(f"{self.uri}/"):
            name = entry.uri.removeprefix(f"{self.uri}/").split("/")[0]
            if name.startswith("step-") and not name.startswith("step-00000000-"):
                raise _damaged(self.latest_uri, f"nothing, though there is {name}")
        if self.store.stat(self.mark_uri) is not None:
            raise TrainingError(
                "no checkpoint to resume from",
                where=self.latest_uri,
                found=f"nothing, though {self.mark_uri} says that there was one",
                expected="the checkpoints of the earlier attempt",
                remedy=f"{_RESTORE}, or delete {self.mark_uri} to start anew on purpose",
            )

    def _folders(self) -> list[str]:
        if self.store.stat(self.latest_uri) is None:
            return []
        return self._folders_of(self._read_json(self.latest_uri))

    def _folders_of(self, pointer: dict[str, Any]) -> list[str]:
        """List the folders that a pointer names; they lie here, whatever it says."""
        names = pointer.get("folders")
        if not isinstance(names, list) or not names:
            raise _damaged(self.latest_uri, f"folders {shown(names)}")
        for name in names:
            if not isinstance(name, str) or not _FOLDER.fullmatch(name):
                raise _damaged(self.latest_uri, f"folder {shown(name)}")
        return names

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
