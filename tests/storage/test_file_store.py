"""What only the file system has: links, pipes, and folders that come and go with their objects."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from iceaggr.errors import StorageError
from iceaggr.storage import open_store
from iceaggr.storage.file_store import FileStore

STORE = FileStore()


def test_link_that_leads_nowhere_is_no_absent_file(tmp_path: Path) -> None:
    (tmp_path / "geometry.csv").symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match=r"not a file .*geometry.csv.*a link that leads nowhere"):
        open_store().stat((tmp_path / "geometry.csv").as_uri())


def test_pipe_is_no_absent_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "geometry.csv")
    with pytest.raises(StorageError, match=r"not a file .*geometry.csv.*a device, pipe or socket"):
        open_store().stat((tmp_path / "geometry.csv").as_uri())


@pytest.mark.parametrize("read", [STORE.read_bytes, STORE.open_input])
def test_pipe_is_refused_and_not_waited_for(tmp_path: Path, read) -> None:
    os.mkfifo(tmp_path / "weights")
    with pytest.raises(StorageError, match=r"not a file .*weights.*a device, pipe or socket"):
        read((tmp_path / "weights").as_uri())
    with pytest.raises(StorageError, match="a device, pipe or socket"):
        STORE.download((tmp_path / "weights").as_uri(), tmp_path / "copy")
    with pytest.raises(StorageError, match="a device, pipe or socket"):
        STORE.upload(tmp_path / "weights", (tmp_path / "copy").as_uri())
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"not a file \[.*\]: found a folder"):
        STORE.read_bytes(tmp_path.as_uri())


def test_delete_removes_the_folder_with_its_last_object(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-1"
    for name in ("a", "b"):
        STORE.write_bytes((folder / name).as_uri(), b"x")
    STORE.delete((folder / "a").as_uri())
    assert folder.is_dir()
    STORE.delete((folder / "b").as_uri())
    assert not folder.exists()
    assert folder.parent.is_dir()


def test_delete_leaves_a_folder_that_a_link_names(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    STORE.write_bytes((link / "a").as_uri(), b"x")
    STORE.delete((link / "a").as_uri())
    assert link.is_symlink()
    assert real.is_dir()


def test_writers_deleters_and_listers_of_one_folder_do_not_disturb_each_other(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "shared"

    def write_and_delete(worker: int) -> None:
        uri = (folder / "deep" / f"{worker}").as_uri()
        for turn in range(100):
            if worker % 2:
                STORE.write_bytes(uri, b"x")
            else:
                assert STORE.write_bytes_if_absent(uri, b"x")
            assert STORE.read_bytes(uri) == b"x", turn
            STORE.delete(uri)

    def list_often(_: int) -> None:
        for _ in range(300):
            for entry in STORE.list(tmp_path.as_uri()):
                assert entry.n_bytes == 1

    with ThreadPoolExecutor(6) as pool:
        work = [pool.submit(write_and_delete, worker) for worker in range(4)]
        work.append(pool.submit(list_often, 0))
        for done in work:
            done.result()
    assert STORE.list(tmp_path.as_uri()) == []
    assert not (folder / "deep").exists()
