"""Names and URIs that come from outside stay in the folder they belong to."""

import json
import os
from pathlib import Path

import pytest

from iceaggr.config import DataConfig, ExperimentConfig
from iceaggr.errors import IceaggrError, ShardError, StorageError
from iceaggr.models.bundle import load_model
from iceaggr.shards.manifest import parse_manifest
from iceaggr.shards.planning import load_work_unit, plan_shards
from iceaggr.shards.writing import shard_unit
from iceaggr.steps.documents import ModelPointer
from iceaggr.steps.run_folder import RunFolder
from iceaggr.storage import open_store
from iceaggr.storage.uris import file_uri, inside
from iceaggr.tracking.run import fetch_run_file
from iceaggr.tracking.unsent import replay, send_kept
from tests.events.raw_layout import write_raw_layout
from tests.stand_in import Answer, StandIn

CLIMBS = "URI climbs out of its folder"
OUTSIDE = "URI outside the places that are allowed"


@pytest.mark.parametrize(
    "uri",
    [
        "file:///data/../etc/passwd",
        "file:///data/%2e%2e/etc/passwd",
        "file:///data/..",
        "s3://iceaggr/raw/../work/shard",
        "s3://iceaggr/..",
        "s3://../key",
    ],
)
def test_uri_with_dots_is_refused_by_reading_and_writing(uri):
    store = open_store({})
    for call in (store.read_bytes, store.stat, store.list, store.delete):
        with pytest.raises(StorageError, match=CLIMBS):
            call(uri)
    with pytest.raises(StorageError, match=CLIMBS):
        store.write_bytes(uri, b"")


def test_names_with_dots_in_them_are_ordinary(tmp_path):
    store, uri = open_store({}), f"{tmp_path.as_uri()}/a..b/..c/d.."
    store.write_bytes(uri, b"1")
    assert [entry.uri for entry in store.list(tmp_path.as_uri())] == [uri]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "", "a/.."])
def test_inside_refuses_names_that_leave_the_folder(tmp_path, name):
    with pytest.raises(StorageError, match="name leaves its folder"):
        inside(tmp_path, name)


def test_paths_that_users_give_may_climb(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert file_uri(tmp_path / "here" / ".." / "x") == f"{tmp_path.as_uri()}/x"
    run = RunFolder.create(Path("../run"), "file:///raw", "", "experiment", ExperimentConfig())
    assert run.context().work_uri == f"{tmp_path.as_uri()}/run/work"


# unsent tracking records lie in a bucket


def plant_records(folder, records, tracking_uri="http://127.0.0.1:9"):
    folder.mkdir(parents=True)
    target = {"tracking_uri": tracking_uri, "experiment_name": "e", "pipeline_run_id": "r"}
    (folder / "run.json").write_text(json.dumps({**target, "run_name": "n", "run_id": "0" * 32}))
    (folder / "unsent.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_record_that_names_a_file_elsewhere_is_not_sent(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "private").write_text("private")
    # of a path the last two parts count: the folder may have been moved
    record = {"kind": "file", "path": "/spool/../private", "folder": ""}
    plant_records(tmp_path / "spool", [record])
    with pytest.raises(StorageError, match="name leaves its folder"):
        replay(tmp_path / "spool")


@pytest.mark.integration
@pytest.mark.parametrize("name", ["/{outside}", "../../../../../..{outside}"])
def test_object_whose_name_leaves_the_folder_is_not_fetched(object_store_service, tmp_path, name):
    """A key may be any text: the store takes it as it is when it is written by its own client."""
    outside = tmp_path / "outside"
    kept = f"tests/{tmp_path.name}/unsent/one"
    key = f"{kept}/{name.format(outside=outside)}"
    store = open_store()
    listed = _ListsAlso(store, f"s3://iceaggr/{key}")
    store.write_bytes(f"s3://iceaggr/{kept}/run.json", b"{}")
    with pytest.raises(StorageError, match="name leaves its folder"):
        send_kept(listed, f"s3://iceaggr/tests/{tmp_path.name}/unsent")
    assert not outside.exists()


class _ListsAlso:
    """The real store, whose list of objects also holds a key that its servers would not keep."""

    def __init__(self, store, uri):
        self._store, self._uri = store, uri

    def __getattr__(self, name):
        return getattr(self._store, name)

    def list(self, prefix_uri):
        (first, *_) = found = self._store.list(prefix_uri)
        return [type(first)(self._uri, 1, "tag"), *found]


def test_records_are_sent_to_the_server_of_the_environment_only(tmp_path, monkeypatch):
    with _Listener() as theirs, _Listener() as ours:
        record = {"kind": "params", "values": {"config/name": "x"}}
        plant_records(tmp_path / "unsent" / "one", [record], tracking_uri=theirs.url)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", ours.url)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "canary-token")
        assert send_kept(open_store({}), f"{tmp_path.as_uri()}/unsent") == 1
        assert not theirs.requests
        sent = {headers.get("Authorization") for headers in ours.seen_headers}
        assert "Bearer canary-token" in sent


class _Listener(StandIn):
    def answer(self, request):
        return Answer.of({})


# documents that pass between the steps


@pytest.fixture
def planned(tmp_path):
    raw_uri = write_raw_layout(tmp_path / "raw", n_files=1, n_events_per_file=20)
    work_uri = (tmp_path / "work").as_uri()
    (unit,) = plan_shards(open_store({}), raw_uri, DataConfig(), work_uri)
    return unit, work_uri


def limited(uri):
    """Open a store that may touch one place."""
    return open_store({**os.environ, "ICEAGGR_ALLOWED_URIS": uri})


def test_plan_that_names_other_places_is_not_followed(planned):
    unit, work_uri = planned
    store = limited(work_uri)
    assert load_work_unit(store, unit)[1]
    with pytest.raises(StorageError, match=rf"{OUTSIDE}.*/raw/"):
        shard_unit(store, unit, work_uri, DataConfig())
    with pytest.raises(StorageError, match=OUTSIDE):
        load_work_unit(store, "s3://another/plans/0123456789abcdef.json#0:1")
    with pytest.raises(StorageError, match=CLIMBS):
        load_work_unit(store, f"{work_uri}/plans/../../raw/plan.json#0:1")


def test_manifest_whose_hash_is_a_path_is_refused(planned):
    unit, work_uri = planned
    manifest = shard_unit(open_store({}), unit, work_uri, DataConfig())
    text = manifest.to_json()
    for hashed in ("../../../etc/cron", "/etc/cron", "0" * 64 + "\n"):
        document = json.loads(text)
        document["shards"][0]["blake3"] = hashed
        with pytest.raises(ShardError, match=r"damaged shard manifest.*blake3"):
            parse_manifest(json.dumps(document), "manifest")


def test_model_pointer_to_another_place_is_not_followed():
    store = limited("s3://iceaggr/work")
    pointer = ModelPointer(
        model_uri="s3://theirs/model",
        manifest_digest="",
        mlflow_run_id="",
        n_steps=1,
        stopped_because="",
        started_from="scratch",
    )
    with pytest.raises(StorageError, match=rf"{OUTSIDE} \[s3://theirs/model/model.json\]"):
        load_model(store, pointer.model_uri)


# what a tracking server says of its artifacts


class HostileServer(StandIn):
    """An MLflow server that names artifacts outside of the folder they are fetched into."""

    artifact = "evaluation/../../../escaped"

    def answer(self, request):
        run = {"info": {"run_id": "0" * 32, "run_uuid": "0" * 32, "run_name": "n"}, "data": {}}
        run["info"] |= {"experiment_id": "1", "status": "FINISHED", "lifecycle_stage": "active"}
        run["info"] |= {"artifact_uri": f"mlflow-artifacts:/1/{'0' * 32}/artifacts"}
        answers = {
            "/health": {},
            "/api/2.0/mlflow/experiments/search": {"experiments": [{"experiment_id": "1"}]},
            "/api/2.0/mlflow/runs/search": {"runs": [run]},
            "/api/2.0/mlflow/runs/get": {"run": run},
        }
        if request.path in answers:
            return Answer.of(answers[request.path])
        files = [
            {"path": self.artifact, "is_dir": False, "file_size": 1},
            {"path": "evaluation", "is_dir": True},
        ]
        if request.path.endswith("/artifacts/list") or request.path.endswith("/artifacts"):
            return Answer.of({"files": files, "root_uri": run["info"]["artifact_uri"]})
        return Answer(200, b"escaped", "application/octet-stream")


@pytest.mark.parametrize("asked", ["evaluation/../../../escaped", "evaluation"])
def test_artifact_whose_name_climbs_is_not_written(tmp_path, monkeypatch, asked):
    (tmp_path / "a/b/into").mkdir(parents=True)
    with HostileServer() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        with pytest.raises(IceaggrError, match=r"fetch a file of the run.*Invalid path"):
            fetch_run_file("0" * 32, asked, tmp_path / "a/b/into")
        assert server.names("GET", "artifacts"), "it was asked"
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not written
