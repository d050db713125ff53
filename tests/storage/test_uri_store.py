"""What every backend must do, on the file system always and on a real S3 store when asked."""

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iceaggr.errors import StorageError
from iceaggr.storage import open_store
from iceaggr.storage.file_store import PARTIAL_PREFIX
from iceaggr.storage.s3_store import PART_BYTES, READ_AHEAD_BYTES

AWKWARD_NAMES = ["plain", "two words", "ünïcode-π", "per%cent", "per%41cent", "a+b&c=d", "x#y?z"]


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.integration)])
def root(request, tmp_path):
    if request.param == "file":
        return tmp_path.as_uri()
    request.getfixturevalue("object_store_service")
    return f"s3://iceaggr/tests/{tmp_path.name}"


@pytest.fixture
def store():
    return open_store()


def test_write_then_read_returns_the_same_bytes(store, root):
    data = os.urandom(100_000)
    store.write_bytes(f"{root}/a/b.bin", data)
    assert store.read_bytes(f"{root}/a/b.bin") == data


def test_write_replaces_an_object_and_changes_its_etag(store, root):
    uri = f"{root}/x"
    store.write_bytes(uri, b"one")
    before = store.stat(uri)
    time.sleep(0.05)  # the clock of files stands still for milliseconds on older kernels
    store.write_bytes(uri, b"two")
    after = store.stat(uri)
    assert (before.uri, before.n_bytes) == (uri, 3)
    assert before.etag != after.etag
    assert store.stat(uri) == after


def test_empty_object_is_an_object(store, root):
    store.write_bytes(f"{root}/empty", b"")
    assert store.read_bytes(f"{root}/empty") == b""
    assert store.stat(f"{root}/empty").n_bytes == 0
    with store.open_input(f"{root}/empty") as file:
        assert file.read() == b""


@pytest.mark.parametrize("name", AWKWARD_NAMES)
def test_listed_uri_opens_the_object_it_was_listed_for(store, root, name, tmp_path):
    if root.startswith("file://"):
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / name).write_bytes(name.encode())
    else:
        store.write_bytes(f"{root}/d/{name}", name.encode())
    (entry,) = store.list(f"{root}/d")
    assert store.read_bytes(entry.uri) == name.encode()


def test_list_is_sorted_and_stays_inside_the_folder(store, root):
    names = ["train/b", "train/a", "train/deep/c", "train_meta.parquet", "trainX"]
    for name in names:
        store.write_bytes(f"{root}/{name}", b"1")
    expected = [f"{root}/train/a", f"{root}/train/b", f"{root}/train/deep/c"]
    assert [entry.uri for entry in store.list(f"{root}/train")] == expected
    assert [entry.uri for entry in store.list(f"{root}/train/")] == expected


def test_list_of_an_absent_folder_is_empty(store, root):
    assert store.list(f"{root}/nothing/here") == []


def test_stat_is_none_when_absent(store, root):
    assert store.stat(f"{root}/nothing") is None


@pytest.mark.parametrize("read", ["read_bytes", "open_input"])
def test_reading_names_the_uri_when_absent(store, root, read):
    with pytest.raises(StorageError, match=r"not found \[.*/no such thing\]"):
        getattr(store, read)(f"{root}/no such thing")


def test_write_if_absent_has_one_winner_among_threads(store, root):
    uri, start = f"{root}/claim", threading.Barrier(8)

    def claim(worker):
        start.wait()
        return store.write_bytes_if_absent(uri, f"worker {worker}".encode())

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(claim, range(8)))
    assert won.count(True) == 1
    assert store.read_bytes(uri) == f"worker {won.index(True)}".encode()


def test_open_input_seeks_like_a_file(store, root):
    data = os.urandom(3 * READ_AHEAD_BYTES + 17)
    store.write_bytes(f"{root}/big", data)
    with store.open_input(f"{root}/big") as file:
        for first, n_bytes in [(5, 10), (len(data) - 8, 8), (3, READ_AHEAD_BYTES + 5), (0, 1)]:
            file.seek(first)
            assert file.read(n_bytes) == data[first : first + n_bytes]
            assert file.tell() == first + n_bytes
        file.seek(-4, os.SEEK_END)
        assert file.read(100) == data[-4:]
        assert file.read(100) == b""
        file.seek(7)
        assert file.read() == data[7:]


def test_open_input_serves_parquet_row_groups(store, root, tmp_path):
    table = pa.table({"a": range(50_000), "b": [float(i) for i in range(50_000)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=10_000)
    store.upload(tmp_path / "t.parquet", f"{root}/t.parquet")
    with store.open_input(f"{root}/t.parquet") as file:
        assert pq.ParquetFile(file).read_row_group(3) == table.slice(30_000, 10_000)


def test_upload_and_download_keep_a_large_file(store, root, tmp_path):
    data = os.urandom(2 * PART_BYTES + 12_345)
    (tmp_path / "up").write_bytes(data)
    store.upload(tmp_path / "up", f"{root}/large")
    store.download(f"{root}/large", tmp_path / "sub" / "down")
    assert store.stat(f"{root}/large").n_bytes == len(data)
    assert (tmp_path / "sub" / "down").read_bytes() == data
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["down"]


def test_download_leaves_nothing_when_the_object_is_absent(store, root, tmp_path):
    with pytest.raises(StorageError, match="not found"):
        store.download(f"{root}/absent", tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_upload_names_the_local_file_when_absent(store, root, tmp_path):
    with pytest.raises(StorageError, match=r"nothing at .*no-such-file"):
        store.upload(tmp_path / "no-such-file", f"{root}/x")
    assert store.stat(f"{root}/x") is None


def test_delete_twice_is_no_error(store, root):
    store.write_bytes(f"{root}/x", b"1")
    store.delete(f"{root}/x")
    store.delete(f"{root}/x")
    assert store.stat(f"{root}/x") is None


def test_store_works_after_pickling_and_from_threads(store, root):
    copy = pickle.loads(pickle.dumps(store))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: copy.write_bytes(f"{root}/t/{i:02d}", bytes([i])), range(32)))
    read = [store.read_bytes(entry.uri) for entry in store.list(f"{root}/t")]
    assert read == [bytes([i]) for i in range(32)]


def test_store_with_given_settings_refuses_to_be_pickled():
    with pytest.raises(TypeError, match="secrets"):
        pickle.dumps(open_store({"AWS_SECRET_ACCESS_KEY": "x"}))


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("/data/x", "Write file:///data/x"),
        ("data/x", "Give the URI with its scheme"),
        ("http://host/x", "Give the URI with its scheme"),
        ("file://relative/x", "Give the URI with its scheme"),
        ("s3://", "Give the URI with its scheme"),
        ("s3://bucket-only", "Give the URI with its scheme"),
    ],
)
def test_bad_uri_is_explained(store, uri, remedy):
    with pytest.raises(StorageError, match=f"not a storage URI .*found '{uri}'.*{remedy}"):
        store.read_bytes(uri)


def test_file_uri_may_be_percent_encoded(store, tmp_path):
    (tmp_path / "two words %").write_bytes(b"1")
    assert store.read_bytes((tmp_path / "two words %").as_uri()) == b"1"
    assert store.read_bytes(f"file://{tmp_path}/two words %25") == b"1"


def test_unfinished_write_is_not_listed(store, tmp_path):
    (tmp_path / f"{PARTIAL_PREFIX}abc").write_bytes(b"half")
    (tmp_path / "done").write_bytes(b"1")
    assert [entry.uri for entry in store.list(f"file://{tmp_path}")] == [f"file://{tmp_path}/done"]


def test_failed_write_leaves_the_old_file_and_no_other(store, tmp_path):
    (tmp_path / "target").mkdir()
    with pytest.raises(StorageError, match=r"cannot write \[.*/target\]: found Is a directory"):
        store.write_bytes(f"file://{tmp_path}/target", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_list_follows_links_but_not_in_circles(store, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_bytes(b"1")
    (tmp_path / "data" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert [entry.uri for entry in store.list(f"file://{tmp_path}/link")] == [
        f"file://{tmp_path}/link/x"
    ]
