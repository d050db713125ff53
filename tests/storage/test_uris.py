from __future__ import annotations

import os

import pytest

from iceaggr.errors import ConfigError, StorageError
from iceaggr.storage import open_folder, open_store
from iceaggr.storage.uris import (
    AllowedPlaces,
    file_uri,
    lies_within,
    refuse_among_raw,
    refuse_work_among_raw,
)

REFUSED = "URI outside the places that are allowed"


def test_without_a_setting_every_place_is_allowed():
    places = AllowedPlaces("")
    for uri in ("s3://any/thing", "file:///any/thing"):
        places.check(uri)


@pytest.mark.parametrize(
    "uri",
    ["s3://iceaggr", "s3://iceaggr/", "s3://iceaggr/work/a", "s3://data/raw", "s3://data/raw/b"],
)
def test_allowed_buckets_and_folders_pass(uri):
    AllowedPlaces("s3://iceaggr, s3://data/raw").check(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://iceaggr2/a",
        "s3://data/rawer",
        "s3://data",
        "s3://data/",
        "s3://ICEAGGR/a",
        "file:///etc",
    ],
)
def test_other_buckets_folders_and_schemes_are_refused(uri):
    with pytest.raises(StorageError, match=rf"{REFUSED}.*{uri}.*s3://iceaggr, s3://data/raw"):
        AllowedPlaces("s3://iceaggr,s3://data/raw").check(uri)


def test_local_folder_is_compared_behind_its_links(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to("/etc")
    places = AllowedPlaces((tmp_path / "data").as_uri())
    places.check(f"{tmp_path.as_uri()}/data/shard")
    for name in ("data/link/passwd", "data2/shard", "other"):
        with pytest.raises(StorageError, match=REFUSED):
            places.check(f"{tmp_path.as_uri()}/{name}")


def test_folder_for_temporary_files_is_everybodys_and_not_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("theirs/model.json", "iceaggr-model-x/model.json"):
        with pytest.raises(StorageError, match=REFUSED):
            AllowedPlaces("s3://iceaggr").check(f"{tmp_path.as_uri()}/{name}")


def test_folder_that_was_fetched_into_is_opened_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("ICEAGGR_ALLOWED_URIS", "s3://iceaggr")
    (tmp_path / "100 % of it").mkdir()
    (tmp_path / "100 % of it" / "model.json").write_bytes(b"{}")
    store = open_folder(tmp_path / "100 % of it")
    uri = file_uri(tmp_path / "100 % of it" / "model.json")
    assert store.read_bytes(uri) == b"{}"
    for other in (f"{tmp_path.as_uri()}/model.json", "s3://iceaggr/model.json"):
        with pytest.raises(StorageError, match=REFUSED):
            store.read_bytes(other)
    with pytest.raises(StorageError, match=REFUSED):
        open_store().read_bytes(uri)


@pytest.mark.parametrize("setting", [",", " ", " , ,"])
def test_setting_that_names_nothing_is_refused_and_does_not_open_everything(setting):
    with pytest.raises(StorageError, match=rf"no place is allowed .*found {setting!r}"):
        open_store({"ICEAGGR_ALLOWED_URIS": setting})


def test_setting_with_a_secret_is_refused_without_quoting_it():
    with pytest.raises(StorageError, match=r"a password or a token .*s3://\*\*\*@bucket") as error:
        open_store({"ICEAGGR_ALLOWED_URIS": "s3://a,s3://KEY:canary@bucket"})
    assert "canary" not in str(error.value)


def test_setting_that_is_no_uri_is_told_at_once():
    with pytest.raises(
        StorageError, match=r"not a storage URI \[ICEAGGR_ALLOWED_URIS\].*'iceaggr'"
    ):
        open_store({"ICEAGGR_ALLOWED_URIS": "s3://a, iceaggr"})


def test_every_method_of_the_store_refuses(tmp_path):
    outside = f"{tmp_path.as_uri()}/outside"
    (tmp_path / "outside").write_bytes(b"kept")
    local = tmp_path / "local"
    local.write_bytes(b"new")
    store = open_store({"ICEAGGR_ALLOWED_URIS": "s3://iceaggr"})
    calls = [
        lambda: store.list(outside),
        lambda: store.stat(outside),
        lambda: store.read_bytes(outside),
        lambda: store.write_bytes(outside, b"new"),
        lambda: store.write_bytes_if_absent(outside, b"new"),
        lambda: store.open_input(outside),
        lambda: store.upload(local, outside),
        lambda: store.download(outside, local),
        lambda: store.delete(outside),
        lambda: store.ensure_bucket(outside),
    ]
    public = [name for name in dir(store) if not name.startswith("_")]
    assert len(calls) == len(public), "a new method is tried here, too"
    for call in calls:
        with pytest.raises(StorageError, match=REFUSED):
            call()
    assert (tmp_path / "outside").read_bytes() == b"kept"
    assert local.read_bytes() == b"new"


@pytest.mark.integration
def test_allowed_bucket_is_read_and_written_and_another_is_not_asked(object_store_service):
    store = open_store({**object_store_service.env, "ICEAGGR_ALLOWED_URIS": "s3://iceaggr/here"})
    store.write_bytes("s3://iceaggr/here/object", b"1")
    assert [entry.n_bytes for entry in store.list("s3://iceaggr/here")] == [1]
    for uri in ("s3://iceaggr/there/object", "s3://mlflow/object"):
        with pytest.raises(StorageError, match=REFUSED):
            store.read_bytes(uri)


# What counts as among the raw events, whatever way leads there.


@pytest.mark.parametrize(
    ("uri", "folder_uri", "within"),
    [
        ("s3://b/raw", "s3://b/raw", True),
        ("s3://b/raw/", "s3://b/raw", True),
        ("s3://b/raw/train/x", "s3://b/raw/", True),
        ("s3://b/work", "s3://b", True),
        ("s3://b/work", "s3://b/raw", False),
        ("s3://b/raw-2", "s3://b/raw", False),
        ("s3://b", "s3://b/raw", False),
        ("s3://other/raw", "s3://b/raw", False),
        ("file:///b/raw", "s3://b/raw", False),
        ("file:///b/raw//x/", "file:///b/raw", True),
        ("file:///b/./raw/x", "file://localhost/b/raw/", True),
        ("file:///b/r%61w/x", "file:///b/raw", True),
        ("file:///b/rawer", "file:///b/raw", False),
        ("file:///b", "file:///b/raw", False),
    ],
)
def test_lies_within_compares_whole_parts_of_places(uri, folder_uri, within):
    assert lies_within(uri, folder_uri) == within


def test_lies_within_follows_links(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "alias").symlink_to("raw")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "raw" / "train").symlink_to("../elsewhere")
    raw_uri = (tmp_path / "raw").as_uri()
    assert lies_within((tmp_path / "alias" / "new").as_uri(), raw_uri)
    assert lies_within((tmp_path / "raw" / "new").as_uri(), (tmp_path / "alias").as_uri())
    # the batch files lie there
    assert lies_within((tmp_path / "elsewhere").as_uri(), raw_uri)
    assert not lies_within((tmp_path / "new").as_uri(), raw_uri)


def test_lies_within_refuses_to_climb():
    with pytest.raises(StorageError, match="URI climbs out of its folder"):
        lies_within("file:///raw/../work", "file:///raw")


def test_work_folder_may_hold_the_raw_folder_but_not_where_it_writes(tmp_path):
    work = tmp_path / "work"
    refuse_work_among_raw((work / "raw").as_uri(), work.as_uri(), "work_uri")
    refuse_work_among_raw("s3://iceaggr/raw/simulated-100", "s3://iceaggr/work", "work_uri")
    with pytest.raises(ConfigError, match=r"\[work_uri\]: found .*work/shards in .*work/shards"):
        refuse_work_among_raw((work / "shards").as_uri(), work.as_uri(), "work_uri")


def test_refusal_says_what_lies_where():
    found = "--work-uri.: found s3://b/raw/w in s3://b/raw, expected a place outside"
    with pytest.raises(ConfigError, match=f"among the raw events .{found}.*give another place"):
        refuse_among_raw("s3://b/raw", "s3://b/raw/w", "--work-uri")


def test_name_that_no_file_can_have_is_compared_all_the_same(tmp_path):
    raw_uri = tmp_path.as_uri()
    assert lies_within(f"{raw_uri}/{'x' * 300}", raw_uri)
    assert not lies_within(f"file:///{'x' * 300}", raw_uri)
    assert os.listdir(tmp_path) == []
