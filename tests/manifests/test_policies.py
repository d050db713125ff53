"""The policy documents, enforced by a real SeaweedFS with the arguments of the manifest."""

import json
import time
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from iceaggr.config import ExperimentConfig
from iceaggr.errors import StorageError
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.shards.planning import plan_shards
from iceaggr.shards.writing import shard_unit
from iceaggr.storage import open_store
from manifests.new_credentials import identities, new_keys
from tests.events.raw_layout import write_raw_layout
from tests.faults.pipeline_runs import STEPS, TinyRun
from tests.manifests.object_store_server import object_store_server
from tests.manifests.tracking_server import tracking_server
from tests.manifests.waiting import answers

pytestmark = pytest.mark.integration

MULTIPART_BYTES = 5 << 20
RAW_URI = "s3://iceaggr/raw/simulated"
WORK_URI = "s3://iceaggr/work"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The object store of the `standalone` overlay; gives its address and the keys of its users."""
    keys = new_keys()
    with object_store_server(tmp_path_factory.mktemp("seaweedfs"), keys) as url:
        admin = open_store(environment(url, keys["admin"]))
        deadline = time.monotonic() + 60
        for bucket in ("iceaggr", "mlflow"):
            make_bucket(admin, bucket, deadline)
        yield url, keys


def environment(url, pair):
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": pair["access-key-id"],
        "AWS_SECRET_ACCESS_KEY": pair["secret-access-key"],
    }


def make_bucket(admin, bucket, deadline):
    while True:
        try:
            return admin.ensure_bucket(f"s3://{bucket}")
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.fixture(scope="module")
def clients(store):
    url, keys = store
    return {
        user: boto3.client(
            "s3",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id=pair["access-key-id"],
            aws_secret_access_key=pair["secret-access-key"],
            config=Config(proxies={}, retries={"total_max_attempts": 2}),
        )
        for user, pair in keys.items()
    }


@pytest.fixture(scope="module", autouse=True)
def contents(clients):
    clients["ingest"].put_object(Bucket="iceaggr", Key="raw/events", Body=b"raw")
    clients["pipeline"].put_object(Bucket="iceaggr", Key="work/shard", Body=b"shard")
    clients["tracking"].put_object(Bucket="mlflow", Key="artifact", Body=b"artifact")


def multipart(client, bucket, key):
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    where = {"Bucket": bucket, "Key": key, "UploadId": upload}
    part = client.upload_part(PartNumber=1, Body=b"x" * MULTIPART_BYTES, **where)
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    client.complete_multipart_upload(MultipartUpload=parts, **where)


ACTIONS = {
    "list": lambda c, bucket, key: c.list_objects_v2(Bucket=bucket, Prefix=key),
    "read": lambda c, bucket, key: c.get_object(Bucket=bucket, Key=key),
    "write": lambda c, bucket, key: c.put_object(Bucket=bucket, Key=key, Body=b"new"),
    "write once": lambda c, bucket, key: c.put_object(
        Bucket=bucket, Key=key, Body=b"new", IfNoneMatch="*"
    ),
    "write parts": multipart,
    "delete": lambda c, bucket, key: c.delete_object(Bucket=bucket, Key=key),
    "make bucket": lambda c, bucket, key: c.create_bucket(Bucket=bucket),
    "delete bucket": lambda c, bucket, key: c.delete_bucket(Bucket=bucket),
}

ALLOWED = [
    ("pipeline", "list", "iceaggr", "raw/"),
    ("pipeline", "read", "iceaggr", "raw/events"),
    ("pipeline", "list", "iceaggr", "work/"),
    ("pipeline", "read", "iceaggr", "work/shard"),
    ("pipeline", "write", "iceaggr", "work/model"),
    ("pipeline", "write once", "iceaggr", "work/once"),
    ("pipeline", "write parts", "iceaggr", "work/checkpoint"),
    ("pipeline", "delete", "iceaggr", "work/model"),
    ("ingest", "write", "iceaggr", "raw/more"),
    ("ingest", "write parts", "iceaggr", "raw/many"),
    ("ingest", "list", "iceaggr", "raw/"),
    ("tracking", "write", "mlflow", "model"),
    ("tracking", "read", "mlflow", "artifact"),
    ("tracking", "delete", "mlflow", "model"),
]
REFUSED = [
    ("pipeline", "write", "iceaggr", "raw/events"),
    ("pipeline", "write parts", "iceaggr", "raw/events"),
    ("pipeline", "delete", "iceaggr", "raw/events"),
    ("pipeline", "write", "iceaggr", "elsewhere/x"),
    ("pipeline", "read", "iceaggr", "elsewhere/x"),
    ("pipeline", "list", "mlflow", ""),
    ("pipeline", "read", "mlflow", "artifact"),
    ("pipeline", "write", "mlflow", "x"),
    ("pipeline", "make bucket", "another", ""),
    ("pipeline", "delete bucket", "mlflow", ""),
    ("ingest", "delete", "iceaggr", "raw/events"),
    ("ingest", "read", "iceaggr", "work/shard"),
    ("ingest", "write", "iceaggr", "work/shard"),
    ("tracking", "read", "iceaggr", "work/shard"),
    ("tracking", "write", "iceaggr", "raw/events"),
]


def label(case):
    return " ".join(case)


@pytest.mark.parametrize("case", ALLOWED, ids=label)
def test_policy_allows(clients, case):
    user, action, bucket, key = case
    ACTIONS[action](clients[user], bucket, key)


@pytest.mark.parametrize("case", REFUSED, ids=label)
def test_policy_refuses(clients, case):
    user, action, bucket, key = case
    with pytest.raises(ClientError, match="AccessDenied"):
        ACTIONS[action](clients[user], bucket, key)


def test_policy_lets_the_pipeline_tell_an_absent_object_from_a_forbidden_one(store):
    url, keys = store
    mine = open_store(environment(url, keys["pipeline"]))
    assert mine.stat("s3://iceaggr/work/absent") is None
    assert mine.read_bytes("s3://iceaggr/raw/events") == b"raw"


def test_policies_suffice_from_raw_events_to_shards(store):
    url, keys = store
    ingest = open_store(environment(url, keys["ingest"]))
    simulate(ingest, RAW_URI, SimulationConfig(n_events=100, n_events_per_file=50, seed=1))
    pipeline = open_store(environment(url, keys["pipeline"]))
    config = ExperimentConfig().data
    units = plan_shards(pipeline, RAW_URI, config, WORK_URI)
    manifests = [shard_unit(pipeline, unit, WORK_URI, config) for unit in units]
    assert sum(manifest.n_events("train") for manifest in manifests) > 0


@pytest.mark.slow
def test_policies_suffice_from_raw_events_to_a_champion(store, clients, tmp_path, monkeypatch):
    """All eight steps with the keys of the pipeline, artifacts through a server with its own."""
    url, keys = store
    write_raw_layout(tmp_path / "raw", n_files=1, n_events_per_file=60, mean_pulses=30)
    ingest = open_store(environment(url, keys["ingest"]))
    for path in (p for p in (tmp_path / "raw").rglob("*") if p.is_file()):
        ingest.upload(path, f"s3://iceaggr/raw/whole/{path.relative_to(tmp_path / 'raw')}")
    before = {user: contents_of(clients["admin"], user) for user in ("iceaggr", "mlflow")}
    tiny = TinyRun("s3://iceaggr/raw/whole", WORK_URI, tmp_path / "run", "rights", tracked=True)
    with tracking_server(tmp_path, environment(url, keys["tracking"])) as tracking_uri:
        rights = environment(url, keys["pipeline"]) | {"MLFLOW_TRACKING_URI": tracking_uri}
        rights["ICEAGGR_ALLOWED_URIS"] = "s3://iceaggr"
        for name, value in rights.items():
            monkeypatch.setenv(name, value)
        tiny.run(STEPS)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["promoted"]
    after = {user: contents_of(clients["admin"], user) for user in ("iceaggr", "mlflow")}
    written = {key for key in after["iceaggr"] if key not in before["iceaggr"]}
    assert written
    assert all(key.startswith("work/") for key in written)
    assert before["iceaggr"].items() <= after["iceaggr"].items(), "nothing else was touched"
    assert any("weights.safetensors" in key for key in after["mlflow"])


@pytest.mark.parametrize("work_uri", ["s3://iceaggr/raw/simulated", "s3://mlflow/work"])
def test_pipeline_cannot_write_where_raw_events_or_artifacts_are(
    store, clients, tmp_path, work_uri
):
    url, keys = store
    before = [contents_of(clients["admin"], bucket) for bucket in ("iceaggr", "mlflow")]
    mine = open_store(environment(url, keys["pipeline"]))
    for write in (
        lambda: mine.write_bytes(f"{work_uri}/plans/x.json", b"{}"),
        lambda: mine.write_bytes_if_absent(f"{work_uri}/shards/x", b"x"),
        lambda: mine.upload(Path(__file__), f"{work_uri}/shards/y"),
        lambda: mine.delete(f"{work_uri}/batch_1.parquet"),
    ):
        with pytest.raises(StorageError, match=r"refused the credentials.*AccessDenied"):
            write()
    assert [contents_of(clients["admin"], bucket) for bucket in ("iceaggr", "mlflow")] == before


def contents_of(client, bucket):
    """List the keys and tags of a bucket; the tests' own objects come and go."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {entry["Key"]: entry["ETag"] for page in pages for entry in page.get("Contents", [])}


def test_store_refuses_unknown_keys_and_strangers(store, clients):
    url, _ = store
    stranger = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="nobody",
        aws_secret_access_key="nothing",
        config=Config(proxies={}),
    )
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        stranger.list_objects_v2(Bucket="iceaggr")
    assert not answers(f"{url}/iceaggr/raw/events")


def test_identities_name_a_policy_for_everybody_but_the_administrator():
    document = json.loads(identities(new_keys()))
    without = [user["name"] for user in document["identities"] if "policyNames" not in user]
    assert without == ["admin"]
    named = {policy["name"] for policy in document["policies"]}
    assert named == {"pipeline", "ingest", "tracking"}
