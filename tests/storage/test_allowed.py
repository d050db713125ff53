import pytest

from iceaggr.errors import StorageError
from iceaggr.storage import open_folder, open_store
from iceaggr.storage.allowed import AllowedPlaces
from iceaggr.storage.uris import file_uri

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
