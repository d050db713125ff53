"""Each cause for which an object store refuses is told as that cause, with one remedy.

The bodies are those that Amazon S3, MinIO, Ceph and Alibaba answer with.
"""

import socket
from pathlib import Path

import pytest

from iceaggr.errors import StorageError
from iceaggr.storage import open_store
from tests.launch.certificates import certificate
from tests.stand_in import Answer, Request, StandIn

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "not-to-be-printed"}


class RefusingStore(StandIn):
    """Refuses every request with one error, whose words a HEAD request does not get."""

    def __init__(
        self, status: int, code: str, message: str = "", more: str = "", **options
    ) -> None:
        super().__init__(**options)
        self.status = status
        self.body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{code}</Code><Message>{message}</Message>{more}"
            "<RequestId>4442587FB7D0A2F9</RequestId></Error>"
        ).encode()

    def answer(self, request: Request) -> Answer:
        body = b"" if request.method == "HEAD" else self.body
        return Answer(self.status, body, "application/xml")


REFUSALS = {
    "clock": (
        (403, "RequestTimeTooSkewed", "The difference between the request time and the current"),
        r"clocks of this machine and .* differ.*RequestTimeTooSkewed.*machine's clock",
    ),
    "region of the signature": (
        (
            400,
            "AuthorizationHeaderMalformed",
            "The authorization header is malformed; the region 'us-east-1' is wrong; expecting"
            " 'eu-west-1'",
            "<Region>eu-west-1</Region>",
        ),
        r"bucket is in another region.*AuthorizationHeaderMalformed.*region eu-west-1.*AWS_REGION",
    ),
    "region of the endpoint": (
        (
            301,
            "PermanentRedirect",
            "The bucket you are attempting to access must be addressed using the specified"
            " endpoint. Please send all future requests to this endpoint.",
            "<Endpoint>b.s3.eu-west-1.amazonaws.com</Endpoint><Bucket>b</Bucket>",
        ),
        r"bucket is in another region.*PermanentRedirect.*AWS_REGION",
    ),
    "archive": (
        (
            403,
            "InvalidObjectState",
            "The operation is not valid for the object's storage class",
            "<StorageClass>GLACIER</StorageClass>",
        ),
        r"object lies in an archive.*InvalidObjectState.*restore-object",
    ),
    "account": (
        (403, "AccountProblem", "There is a problem with your AWS account"),
        r"account or bucket at the object store is blocked.*AccountProblem.*who pays",
    ),
    "disabled bucket": (
        (403, "AllAccessDisabled", "All access to this object has been disabled"),
        r"account or bucket .* is blocked.*AllAccessDisabled.*bucket b\b.*who pays",
    ),
    "suspended user of Ceph": ((403, "UserSuspended"), r"account .* is blocked.*UserSuspended"),
    "unknown key": (
        (403, "InvalidAccessKeyId", "The Access Key Id you provided does not exist"),
        r"refused the credentials.*InvalidAccessKeyId.*does not know the access key",
    ),
    "wrong secret": (
        (403, "SignatureDoesNotMatch"),
        r"refused the credentials.*SignatureDoesNotMatch.*Check AWS_SECRET_ACCESS_KEY",
    ),
    "token of another session": (
        (400, "InvalidToken", "The provided token is malformed or otherwise invalid."),
        r"refused the session token.*InvalidToken.*Unset AWS_SESSION_TOKEN",
    ),
    "expired token": ((400, "ExpiredToken"), r"have expired.*ExpiredToken.*Renew"),
    "policy": ((403, "AccessDenied", "Access Denied"), r"refused the credentials.*AccessDenied"),
    "name of the bucket": (
        (400, "InvalidBucketName", "The specified bucket is not valid."),
        r"refused the bucket's name.*InvalidBucketName",
    ),
    "path style": (
        (403, "SecondLevelDomainForbidden", "Please use virtual hosted style to access."),
        r"wants the bucket in the host name.*SecondLevelDomain.*addressing_style = virtual",
    ),
    "anything else": (
        (403, "RequestPayerRequired", "Somebody must pay."),
        r"refused the request.*RequestPayerRequired: Somebody must pay\..*Look up the store's code",
    ),
}
ASKING = {
    "stat": lambda store: store.stat("s3://b/raw/x"),
    "list": lambda store: store.list("s3://b/raw"),
    "read": lambda store: store.read_bytes("s3://b/raw/x"),
    "open": lambda store: store.open_input("s3://b/raw/x"),
    "write": lambda store: store.write_bytes("s3://b/raw/x", b"1"),
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING.keys())
@pytest.mark.parametrize(("refusal", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_cause_of_a_refusal_is_told_whatever_was_asked(refusal, words, ask):
    with RefusingStore(*refusal) as server:
        store = open_store({"AWS_ENDPOINT_URL": server.url, **KEYS})
        with pytest.raises(StorageError, match=words) as caught:
            ask(store)
    assert "not-to-be-printed" not in str(caught.value)
    assert "s3://b/raw" in str(caught.value)


def test_bucket_in_capitals_is_told():
    with (
        RefusingStore(404, "NoSuchBucket", "The specified bucket does not exist") as server,
        pytest.raises(StorageError, match=r"bucket not found.*'IceAggr'.*write s3://iceaggr"),
    ):
        open_store({"AWS_ENDPOINT_URL": server.url, **KEYS}).list("s3://IceAggr/raw")


def test_bucket_in_capitals_is_told_while_the_store_is_away():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        settings = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{nobody.getsockname()[1]}", **KEYS}
        words = r"not reachable.*AWS_ENDPOINT_URL.*Most buckets are in lower case: write s3://buck"
        with pytest.raises(StorageError, match=words):
            open_store(settings).list("s3://Buck/raw")
        with pytest.raises(StorageError) as caught:
            open_store(settings).list("s3://buck/raw")
        assert "lower case" not in str(caught.value)


def test_endpoint_with_the_bucket_in_its_path_is_refused_before_a_request():
    with RefusingStore(500, "InternalError") as server:
        store = open_store({"AWS_ENDPOINT_URL": f"{server.url}/b/", **KEYS})
        for ask in ASKING.values():
            with pytest.raises(StorageError, match=r"endpoint names the bucket.*names bucket b\b"):
                ask(store)
        assert not server.requests


@pytest.mark.parametrize("code", ["NoSuchBucket", "NoSuchKey"])
def test_endpoint_with_another_bucket_in_its_path_is_suspected(code):
    with (
        RefusingStore(404, code) as server,
        pytest.raises(StorageError, match=r"bucket not found.*ends in a path, /other"),
    ):
        open_store({"AWS_ENDPOINT_URL": f"{server.url}/other", **KEYS}).list("s3://b/raw")


@pytest.mark.parametrize("uri", ["s3://b/raw ", "s3://b/raw\n", " s3://b/raw", "s3://b "])
def test_blank_around_a_uri_is_refused(uri):
    with pytest.raises(StorageError, match=r"blank around a storage URI|not a storage URI"):
        open_store(KEYS).list(uri)


@pytest.mark.parametrize("key", [r"raw\x", "./x", "raw/./x", "raw/."])
def test_key_that_stores_change_is_refused_before_a_request(key):
    with RefusingStore(500, "InternalError") as server:
        store = open_store({"AWS_ENDPOINT_URL": server.url, **KEYS})
        for ask in (store.stat, store.list, store.read_bytes, store.open_input, store.delete):
            with pytest.raises(StorageError, match="not a name for every object store"):
                ask(f"s3://b/{key}")
        assert not server.requests


@pytest.fixture
def aws_files(tmp_path, monkeypatch):
    """Write the configuration file of a user, who has set nothing else."""

    def write(text: str, **variables: str) -> Path:
        for name in (*KEYS, "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        (tmp_path / "config").write_text(text, encoding="utf-8")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return tmp_path / "config"

    return write


def test_profile_that_is_not_there_is_told(aws_files):
    aws_files("", AWS_PROFILE="gone", **KEYS)
    with pytest.raises(StorageError, match=r"profile of the AWS.*\(gone\).*Unset AWS_PROFILE"):
        open_store().list("s3://b/raw")


def test_profile_of_the_process_is_nothing_to_a_store_with_settings_of_its_own(aws_files):
    aws_files("", AWS_PROFILE="gone", AWS_SESSION_TOKEN="foreign", AWS_CA_BUNDLE="/gone")
    with RefusingStore(403, "AccessDenied") as server:
        store = open_store({"AWS_ENDPOINT_URL": server.url, **KEYS})
        with pytest.raises(StorageError, match="AccessDenied"):
            store.list("s3://b/raw")
        assert "x-amz-security-token" not in {name.lower() for name in server.seen_headers[-1]}


def test_expired_sign_in_is_told(aws_files, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    aws_files(
        "[profile me]\nsso_start_url = https://x.awsapps.com/start\nsso_region = us-east-1\n"
        "sso_account_id = 123456789012\nsso_role_name = physicist\nregion = us-east-1\n",
        AWS_PROFILE="me",
    )
    with pytest.raises(StorageError, match=r"sign-in at AWS has expired.*aws sso login"):
        open_store().list("s3://b/raw")


def test_unreadable_configuration_is_told(aws_files):
    aws_files("no section\n", **KEYS)
    with pytest.raises(StorageError, match=r"AWS configuration cannot be used.*config"):
        open_store().list("s3://b/raw")


def test_certificate_of_an_unknown_authority_is_told_and_can_be_trusted(tmp_path, aws_files):
    trusted, context = certificate(tmp_path)
    with RefusingStore(403, "AccessDenied", tls=context) as server:
        aws_files("", AWS_ENDPOINT_URL=server.url, **KEYS)
        with pytest.raises(StorageError, match=r"is not trusted.*AWS_CA_BUNDLE"):
            open_store().list("s3://b/raw")
        aws_files("", AWS_CA_BUNDLE=str(trusted), AWS_ENDPOINT_URL=server.url, **KEYS)
        with pytest.raises(StorageError, match="AccessDenied"):
            open_store().list("s3://b/raw")


def test_https_address_of_a_server_without_tls_is_told():
    with RefusingStore(403, "AccessDenied") as server:
        store = open_store({"AWS_ENDPOINT_URL": server.url.replace("http:", "https:"), **KEYS})
        with pytest.raises(StorageError, match=r"does not speak TLS.*Write http://"):
            store.list("s3://b/raw")


def test_settings_of_the_configuration_file_are_honoured(aws_files):
    with RefusingStore(403, "AccessDenied") as server:
        aws_files(
            f"[profile me]\nregion = eu-west-1\nendpoint_url = {server.url}\n",
            AWS_PROFILE="me",
            **KEYS,
        )
        with pytest.raises(StorageError, match=f"AccessDenied from {server.url}"):
            open_store().list("s3://b/raw")
        assert "/eu-west-1/s3/" in server.seen_headers[-1]["Authorization"]
        assert server.requests[-1] == "GET /b", "other stores take paths"


def test_virtual_hosted_store_works_where_the_configuration_asks_for_it(aws_files, monkeypatch):
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: resolve("localhost", *rest, **more)
    )
    with RefusingStore(403, "AccessDenied") as server:
        aws_files(
            "[default]\ns3 =\n  addressing_style = virtual\n", AWS_ENDPOINT_URL=server.url, **KEYS
        )
        with pytest.raises(StorageError, match="AccessDenied"):
            open_store().list("s3://bucket/raw")
        assert server.seen_headers[-1]["Host"].startswith("bucket.localhost:")
