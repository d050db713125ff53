import pytest

from iceaggr.errors import StorageError
from iceaggr.storage import open_store
from iceaggr.storage.allowed import AllowedPlaces

REFUSED = "URI outside the places that are allowed"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Let the folder for temporary files, always allowed, be none of the test's own folders."""
    own = tmp_path / "tmp"
    own.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(own))
    return tmp_path


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


def test_local_folder_is_compared_behind_its_links(elsewhere):
    (elsewhere / "data").mkdir()
    (elsewhere / "data" / "link").symlink_to("/etc")
    places = AllowedPlaces((elsewhere / "data").as_uri())
    places.check(f"{elsewhere.as_uri()}/data/shard")
    for name in ("data/link/passwd", "data2/shard", "other"):
        with pytest.raises(StorageError, match=REFUSED):
            places.check(f"{elsewhere.as_uri()}/{name}")


def test_own_temporary_files_are_always_allowed(elsewhere):
    AllowedPlaces("s3://iceaggr").check(f"{elsewhere.as_uri()}/tmp/model/model.json")


def test_setting_that_is_no_uri_is_told_at_once():
    with pytest.raises(
        StorageError, match=r"not a storage URI \[ICEAGGR_ALLOWED_URIS\].*'iceaggr'"
    ):
        open_store({"ICEAGGR_ALLOWED_URIS": "s3://a, iceaggr"})


def test_every_method_of_the_store_refuses(elsewhere):
    outside = f"{elsewhere.as_uri()}/outside"
    (elsewhere / "outside").write_bytes(b"kept")
    local = elsewhere / "local"
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
    assert (elsewhere / "outside").read_bytes() == b"kept"
    assert local.read_bytes() == b"new"


@pytest.mark.integration
def test_allowed_bucket_is_read_and_written_and_another_is_not_asked(object_store_service):
    store = open_store({**object_store_service.env, "ICEAGGR_ALLOWED_URIS": "s3://iceaggr/here"})
    store.write_bytes("s3://iceaggr/here/object", b"1")
    assert [entry.n_bytes for entry in store.list("s3://iceaggr/here")] == [1]
    for uri in ("s3://iceaggr/there/object", "s3://mlflow/object"):
        with pytest.raises(StorageError, match=REFUSED):
            store.read_bytes(uri)
