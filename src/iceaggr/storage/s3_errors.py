"""What went wrong with S3, in words: endpoint, bucket, credentials or object."""

from __future__ import annotations

from dataclasses import dataclass

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.parsers import ResponseParserError

from iceaggr.errors import StorageError
from iceaggr.storage.uris import bucket_and_key

UNREACHABLE = (EndpointConnectionError, ConnectTimeoutError)
BROKEN = (
    ConnectionClosedError,
    ReadTimeoutError,
    IncompleteReadError,
    ResponseStreamingError,
    ResponseParserError,
    HTTPClientError,
    ConnectionError,
    TimeoutError,
)
_WORDLESS = {"400", "403"}
_BAD_CREDENTIALS = _WORDLESS | {
    "AccessDenied",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "507"}
# Refused although nothing is wrong with what was asked: the request was damaged on its way.
_DAMAGED_REQUEST = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InvalidDigest",
    "RequestTimeout",
    "XAmzContentSHA256Mismatch",
}
_MISSING = {"404", "NoSuchKey", "NotFound"}


class NotS3Error(BotoCoreError):
    """An answer of status 200 lacks what every S3 service says there: it is a page, not S3."""

    fmt = "an answer without {field}"


@dataclass(frozen=True)
class _Refusal:
    """The parts of an error; {code}, {endpoint} and {bucket} stand for what was met."""

    what: str
    found: str
    expected: str
    remedy: str

    def of(self, uri: str, endpoint: str, code: str = "") -> StorageError:
        """Word the error of one URI."""
        met = {"endpoint": endpoint, "bucket": bucket_and_key(uri)[0], "code": code}
        return StorageError(
            self.what,
            where=uri,
            found=self.found.format(**met),
            expected=self.expected.format(**met),
            remedy=self.remedy,
        )


_REFUSALS = (
    (
        _MISSING,
        _Refusal(
            "object not found",
            "no such key at {endpoint}",
            "an object",
            "Check the URI, and that the step that writes it has run",
        ),
    ),
    (
        {"PreconditionFailed", "412"},
        _Refusal(
            "object was replaced while it was read",
            "{code} from {endpoint}",
            "the same content from the first byte to the last",
            "Let its writer finish, then run the step again",
        ),
    ),
    (
        _BAD_CREDENTIALS,
        _Refusal(
            "object store refused the credentials",
            "{code} from {endpoint}",
            "a key that may use bucket {bucket}",
            "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, on a cluster the secret"
            " iceaggr-object-store or the pod's identity, and whether they expired",
        ),
    ),
    (
        _EXPIRED,
        _Refusal(
            "credentials of the object store have expired",
            "{code} from {endpoint}",
            "a session token that is still valid",
            "Renew AWS_SESSION_TOKEN and its keys, then run the step again: it resumes",
        ),
    ),
    (
        _FULL,
        _Refusal(
            "object store is full",
            "{code} from {endpoint}",
            "free space for bucket {bucket}",
            "Free space or raise the quota, then run the step again: it resumes",
        ),
    ),
)
_NO_CREDENTIALS = _Refusal(
    "no credentials for the object store",
    "none for {endpoint}",
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
    "Set them, on a cluster in the secret iceaggr-object-store, or start the local services with"
    " `make up`",
)
_NOT_REACHABLE = _Refusal(
    "object store not reachable",
    "no answer from {endpoint}",
    "a running S3 service",
    "Check AWS_ENDPOINT_URL, on a cluster object-store-endpoint in settings.env, or start the local"
    " services with `make up`",
)
_NOT_S3 = _Refusal(
    "endpoint does not speak S3",
    "{code} from {endpoint}",
    "an answer as an S3 service gives it",
    "Check AWS_ENDPOINT_URL: another service's port, or a login page before the store, answers so",
)


def error_code(error: Exception) -> str:
    """Name the S3 error code, or '' for an error that is not S3's."""
    return str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""


def is_missing(error: Exception) -> bool:
    """Tell whether S3 said that there is no such object."""
    return error_code(error) in _MISSING


def is_expired(error: Exception) -> bool:
    """Tell whether S3 said that the credentials were good once."""
    return error_code(error) in _EXPIRED


def is_wordless(error: Exception) -> bool:
    """Tell whether the request was refused without a reason, as every HEAD request is.

    Expired credentials look like that, too: a bare 400 from AWS, a bare 403 elsewhere.
    """
    return error_code(error) in _WORDLESS


def is_transient(error: Exception) -> bool:
    """Tell whether the same request may succeed a little later."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or error_code(error) in _DAMAGED_REQUEST
    return isinstance(error, UNREACHABLE + BROKEN)


def explain(error: Exception, uri: str, endpoint: str) -> StorageError:
    """Turn a boto3 error into one line; secrets are never part of it."""
    code = error_code(error)
    if code == "NoSuchBucket":
        return missing_bucket(uri, endpoint)
    for codes, refusal in _REFUSALS:
        if code in codes:
            return refusal.of(uri, endpoint, code)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return _NO_CREDENTIALS.of(uri, endpoint)
    if isinstance(error, UNREACHABLE):
        return _NOT_REACHABLE.of(uri, endpoint)
    if isinstance(error, NotS3Error):
        return _NOT_S3.of(uri, endpoint, str(error))
    if isinstance(error, ResponseParserError):
        return _NOT_S3.of(uri, endpoint, "an answer that is not XML as S3 sends it")
    return _unexpected(error, uri, endpoint)


def missing_bucket(uri: str, endpoint: str) -> StorageError:
    """Explain that the bucket, not the object, is what is missing."""
    bucket, _ = bucket_and_key(uri)
    return StorageError(
        "bucket not found",
        where=uri,
        found=f"no bucket {bucket!r} at {endpoint}",
        expected="a bucket of that name",
        remedy="Create the bucket, or check AWS_ENDPOINT_URL and the URI",
    )


def _unexpected(error: Exception, uri: str, endpoint: str) -> StorageError:
    if isinstance(error, ClientError):
        reply = error.response["Error"]
        found = f"{reply.get('Code')}: {reply.get('Message', '')}".strip()
    else:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return StorageError(
        "object store request failed",
        where=uri,
        found=f"{found} from {endpoint}",
        expected="an answer to the request",
        remedy="Check the object store's log, then run the step again: it resumes",
    )
