from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from iceaggr.errors import StorageError, TrainingError
from iceaggr.storage.file_store import FileStore
from iceaggr.training.checkpoint import Checkpoint, CheckpointFolder


def example(value: float) -> Checkpoint:
    tensors = {
        "model": {"w": torch.full((3, 2), value), "n": torch.tensor([7])},
        "optimizer": {"exp_avg/w": torch.full((3, 2), -value)},
    }
    return Checkpoint({"state": {"note": value}}, tensors)


class FailingStore(FileStore):
    """Fails at the n-th write, as a full disk or a kill would."""

    def __init__(self, n_writes: int) -> None:
        self.n_left = n_writes

    def write_bytes(self, uri: str, data: bytes) -> None:
        if self.n_left == 0:
            raise StorageError("no space left", where=uri)
        self.n_left -= 1
        super().write_bytes(uri, data)


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(FileStore(), f"file://{tmp_path}/run", n_kept=2)


def path_of(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def test_checkpoint_comes_back_as_written(folder: CheckpointFolder) -> None:
    folder.write(5, example(0.1))
    read = folder.read_latest()
    assert read is not None
    assert read.document["state"] == {"note": 0.1}
    for group, tensors in example(0.1).tensors.items():
        assert tensors.keys() == read.tensors[group].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, read.tensors[group][name])


def test_empty_folder_has_no_checkpoint(folder: CheckpointFolder) -> None:
    assert folder.read_latest() is None


def test_only_the_newest_checkpoints_stay(folder: CheckpointFolder) -> None:
    uris = [folder.write(step, example(step)) for step in (1, 2, 3)]
    assert [bool(folder.store.list(f"{uri}/")) for uri in uris] == [False, True, True]


def test_state_is_readable_json_and_nothing_is_pickled(folder: CheckpointFolder) -> None:
    uri = folder.write(1, example(1.0))
    names = [entry.uri.removeprefix(f"{uri}/") for entry in folder.store.list(f"{uri}/")]
    assert names == ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert json.loads(folder.store.read_bytes(f"{uri}/state.json"))["format_version"] == 1


@pytest.mark.parametrize("n_writes", range(4))
def test_interrupted_write_leaves_the_previous_checkpoint(tmp_path: Path, n_writes: int) -> None:
    uri = f"file://{tmp_path}/run"
    CheckpointFolder(FileStore(), uri, 1).write(1, example(1.0))
    with pytest.raises(StorageError, match="no space left"):
        CheckpointFolder(FailingStore(n_writes), uri, 1).write(2, example(2.0))
    read = CheckpointFolder(FileStore(), uri, 1).read_latest()
    assert read is not None
    assert read.document["state"] == {"note": 1.0}
    CheckpointFolder(FileStore(), uri, 1).write(2, example(2.5))
    read = CheckpointFolder(FileStore(), uri, 1).read_latest()
    assert read is not None
    assert float(read.tensors["model"]["w"][0, 0]) == 2.5


@pytest.mark.parametrize("n_writes", range(4))
def test_interrupted_first_write_is_still_a_beginning(tmp_path: Path, n_writes: int) -> None:
    uri = f"file://{tmp_path}/run"
    with pytest.raises(StorageError, match="no space left"):
        CheckpointFolder(FailingStore(n_writes), uri, 1).write(0, example(0.0))
    assert CheckpointFolder(FileStore(), uri, 1).read_latest() is None


def test_kill_before_the_mark_resumes_and_marks_later(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/run"
    with pytest.raises(StorageError, match="no space left"):
        CheckpointFolder(FailingStore(4), uri, 1).write(0, example(0.0))
    folder = CheckpointFolder(FileStore(), uri, 1)
    assert folder.store.stat(folder.mark_uri) is None
    assert folder.read_latest() is not None
    folder.write(0, example(0.0))
    assert folder.store.stat(folder.mark_uri) is not None


@pytest.mark.parametrize("step", [0, 3])
def test_lost_folder_is_an_error_that_names_the_mark(tmp_path: Path, step: int) -> None:
    folder = CheckpointFolder(FileStore(), f"file://{tmp_path}/run", 1)
    folder.write(step, example(1.0))
    path_of(folder.uri).rename(tmp_path / "elsewhere")
    mark = r"run/has_checkpoints\.json"
    with pytest.raises(
        TrainingError,
        match=rf"no checkpoint to resume from.*found nothing, though .*{mark}.*delete .*{mark}",
    ):
        folder.read_latest()
    path_of(folder.mark_uri).unlink()
    assert folder.read_latest() is None


def test_lost_pointer_is_an_error_not_a_beginning(folder: CheckpointFolder) -> None:
    folder.write(3, example(1.0))
    folder.store.delete(folder.latest_uri)
    with pytest.raises(TrainingError, match=r"checkpoint is damaged.*latest\.json.*step-00000003"):
        folder.read_latest()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_missing_object_is_an_error(folder: CheckpointFolder, name: str) -> None:
    uri = folder.write(3, example(1.0))
    folder.store.delete(f"{uri}/{name}")
    with pytest.raises(TrainingError, match=rf"damaged \[.*{name}\]: found nothing"):
        folder.read_latest()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_changed_byte_is_an_error(folder: CheckpointFolder, name: str) -> None:
    path = path_of(folder.write(3, example(1.0))) / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(TrainingError, match=rf"damaged \[.*{name}\].*another hash"):
        folder.read_latest()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format_version": 1}'])
def test_damaged_pointer_is_an_error(folder: CheckpointFolder, text: str) -> None:
    folder.write(3, example(1.0))
    path_of(folder.latest_uri).write_text(text)
    with pytest.raises(TrainingError, match=r"checkpoint is damaged|of another format"):
        folder.read_latest()


def test_other_format_version_is_refused(folder: CheckpointFolder) -> None:
    folder.write(3, example(1.0))
    pointer = json.loads(folder.store.read_bytes(folder.latest_uri))
    pointer["format_version"] = 99
    path_of(folder.latest_uri).write_text(json.dumps(pointer))
    with pytest.raises(TrainingError, match=r"of another format.*found version 99"):
        folder.read_latest()


def test_not_a_number_is_never_written_to_the_state(folder: CheckpointFolder) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        folder.write(1, Checkpoint({"state": float("nan")}, {"model": {}}))
    assert folder.read_latest() is None
