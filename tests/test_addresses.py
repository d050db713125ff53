import pytest

from iceaggr.addresses import refuse_credentials, without_credentials
from iceaggr.errors import ConfigError
from iceaggr.storage import open_store
from iceaggr.tracking.connection import connect
from iceaggr.tracking.run import open_tracker
from launch import kfp_api

ADDRESS = "http://ana:canary-pass@127.0.0.1:9/path"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (ADDRESS, "http://***@127.0.0.1:9/path"),
        (f"no answer from {ADDRESS}: refused", "no answer from http://***@127.0.0.1:9/path: ref"),
        ("postgresql+psycopg2://m:canary-pass@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("https://token@host", "https://***@host"),
        ("http://u:p/canary@host and s3://bucket/a@b", "http://***@host and s3://bucket/a@b"),
        ("http://u:p@canary@host/x", "http://***@host/x"),
        ("file:///raw/a@b", "file:///raw/a@b"),
        ("s3://KEY:canary-pass@bucket/a@b", "s3://***@bucket/a@b"),
        ("s3://KEY:canary/pass+1@bucket/a@b", "s3://***@b"),
        ("s3://KEY:canary/pass", "s3://***"),
        ("--set raw_uri=s3://KEY:canary/pass@bucket/a", "--set raw_uri=s3://***@bucket/a"),
        ("https://b.host/a?X-Amz-Signature=canary, or", "https://b.host/a?***"),
        ("s3://b/a?a=1&Signature=canary", "s3://b/a?***"),
        ("s3://b/a?b: s3://c", "s3://b/a?b: s3://c"),
        ("s3://a,file:///data", "s3://a,file:///data"),
        ("s3://bucket: no such", "s3://bucket: no such"),
        ("s3://arn:aws:s3:eu:1:accesspoint/n", "s3://arn:aws:s3:eu:1:accesspoint/n"),
        ("mail ana@example.org", "mail ana@example.org"),
    ],
)
def test_without_credentials_masks_what_stands_before_the_host_only(text, shown):
    assert without_credentials(text).startswith(shown)
    assert "canary" not in without_credentials(text)


@pytest.mark.parametrize("address", ["", "http://host:1", "https://host/path", "host"])
def test_refuse_credentials_lets_a_plain_address_pass(address):
    refuse_credentials(address, where="X", remedy="Y")


@pytest.mark.parametrize(
    "address",
    [
        ADDRESS,
        "https://token@host",
        "http://a:b@[::1",
        "https://ana:p/canary-pass@host:5000",
        "https://ana:p#canary-pass@host:5000",
        "https://ana:p@canary-pass@host:5000",
        "https://ana:p 'canary-pass@host:5000",
        "https:/ana:canary-pass@host",
        "ana:canary-pass@host:5000",
    ],
)
def test_refuse_credentials_does_not_quote_them(address):
    with pytest.raises(ConfigError, match=r"address holds a user or a password \[X\]") as refused:
        refuse_credentials(address, where="X", remedy="Y")
    assert not {"canary-pass", "token", "a:b"} & set(
        str(refused.value).replace("@", "/").split("/")
    )


@pytest.mark.parametrize("address", ["https://host/?token=canary", "https://host#canary"])
def test_refuse_credentials_does_not_quote_a_query(address):
    with pytest.raises(ConfigError, match=r"address holds a query \[X\].*https://host") as refused:
        refuse_credentials(address, where="X", remedy="Y")
    assert "canary" not in str(refused.value)


def test_every_client_refuses_an_address_with_a_password(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {"AWS_ENDPOINT_URL": ADDRESS}
    refused = r"user or a password .*http://\*\*\*@127.0.0.1:9/path"
    with pytest.raises(ConfigError, match=rf"{refused}.*AWS_ACCESS_KEY_ID"):
        open_store(environment).stat("s3://bucket/key")
    with pytest.raises(ConfigError, match=rf"{refused}.*MLFLOW_TRACKING_USERNAME"):
        connect(ADDRESS)
    with pytest.raises(ConfigError, match=refused):
        open_tracker(ADDRESS, "experiment", "run", "name", "step")
    with pytest.raises(ConfigError, match=rf"{refused}.*--token-file"):
        kfp_api.connect(kfp_api.Connection(host=ADDRESS))
    assert not list(tmp_path.iterdir()), "a refused address is written nowhere"
