"""What went wrong with S3, in words: endpoint, bucket, credentials or object."""

from __future__ import annotations

import re
from dataclasses import replace
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from iceaggr.errors import StorageError
from iceaggr.service_settings import without_credentials
from iceaggr.storage.s3_refusals import (
    CONFIGURATION,
    DENIED,
    EXPIRED,
    MISSING,
    MOVED,
    NO_TLS,
    NOT_REACHABLE,
    NOT_S3,
    NOT_TRUSTED,
    REFUSALS,
)
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
_NOT_IMPLEMENTED = 501
# Refused although nothing is wrong with what was asked: the request was damaged on its way.
_DAMAGED_REQUEST = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InvalidDigest",
    "RequestTimeout",
    "XAmzContentSHA256Mismatch",
}


class NotS3Error(BotoCoreError):
    """An answer of status 200 lacks what every S3 service says there: it is a page, not S3."""

    fmt = "an answer without {field}"


def error_code(error: Exception) -> str:
    """Name the S3 error code, or '' for an error that is not S3's."""
    return str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""


def is_missing(error: Exception) -> bool:
    """Tell whether S3 said that there is no such object."""
    return error_code(error) in MISSING


def is_expired(error: Exception) -> bool:
    """Tell whether S3 said that the credentials were good once."""
    return error_code(error) in EXPIRED


def is_wordless(error: Exception) -> bool:
    """Tell whether the request was refused without a reason, as every HEAD request is.

    Expired credentials look like that, too: a bare 400 from AWS, a bare 403 elsewhere. The same
    asked by GET is answered with one.
    """
    return error_code(error) in DENIED | MOVED


def is_transient(error: Exception) -> bool:
    """Tell whether the same request may succeed a little later."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return (status >= 500 and status != _NOT_IMPLEMENTED) or status == 429 or is_damaged(error)
    return isinstance(error, UNREACHABLE + BROKEN)


def is_damaged(error: Exception) -> bool:
    """Tell whether the store says that the request came to it damaged: it is there, and listens."""
    return error_code(error) in _DAMAGED_REQUEST


def explain(error: Exception, uri: str, endpoint: str) -> StorageError:
    """Turn a boto3 error into one line; secrets are never part of it."""
    told = _worded(error, uri, endpoint)
    told.may_pass = is_transient(error)
    return told


def _worded(error: Exception, uri: str, endpoint: str) -> StorageError:
    code = error_code(error)
    lists = isinstance(error, ClientError) and error.operation_name == "ListObjectsV2"
    # a list that is taken for the request of an object: the endpoint's path is taken for the bucket
    if code == "NoSuchBucket" or (lists and code in MISSING):
        return missing_bucket(uri, endpoint)
    for codes, refusal in REFUSALS:
        if code in codes:
            return refusal.of(uri, endpoint, code, _region(error))
    words = without_credentials(" ".join(str(error).split()))
    for kinds, refusal in CONFIGURATION:
        if isinstance(error, kinds):
            return refusal.of(uri, endpoint, words)
    if isinstance(error, SSLError):
        untrusted = "CERTIFICATE_VERIFY_FAILED" in words
        return (NOT_TRUSTED if untrusted else NO_TLS).of(uri, endpoint, words)
    if isinstance(error, UNREACHABLE):
        hint = _lower_case_hint(uri)
        also = f"{NOT_REACHABLE.remedy}. {hint}" if hint else NOT_REACHABLE.remedy
        return replace(NOT_REACHABLE, remedy=also).of(uri, endpoint)
    if isinstance(error, NotS3Error):
        return NOT_S3.of(uri, endpoint, str(error))
    if isinstance(error, ResponseParserError):
        return NOT_S3.of(uri, endpoint, "an answer that is not XML as S3 sends it")
    return _unexpected(error, uri, endpoint)


def _region(error: Exception) -> str:
    """Name the region that the store says the bucket is in, '' if it does not say."""
    response = error.response if isinstance(error, ClientError) else {}
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    said = response.get("Error", {})
    # Amazon's sentence ends in: the region 'us-east-1' is wrong; expecting 'eu-west-1'
    expected = re.search(r"expecting '([\w-]+)'", said.get("Message") or "")
    words = expected[1] if expected else ""
    return str(said.get("Region") or headers.get("x-amz-bucket-region") or words)


def _lower_case_hint(uri: str) -> str:
    """Say that a bucket in capitals is an unlikely one, '' where it has none."""
    bucket, _ = bucket_and_key(uri)
    if bucket == bucket.lower():
        return ""
    return f"Most buckets are in lower case: write s3://{bucket.lower()}"


def missing_bucket(uri: str, endpoint: str) -> StorageError:
    """Explain that the bucket, not the object, is what is missing."""
    bucket, _ = bucket_and_key(uri)
    remedy = "Create the bucket, or check AWS_ENDPOINT_URL and the URI"
    if in_lower_case := _lower_case_hint(uri):
        remedy = f"{in_lower_case}, or create this one"
    elif path := urlsplit(endpoint).path.strip("/"):
        remedy = f"AWS_ENDPOINT_URL ends in a path, /{path}: leave it out if it is a bucket"
    return StorageError(
        "bucket not found",
        where=uri,
        found=f"no bucket {bucket!r} at {endpoint}",
        expected="a bucket of that name",
        remedy=remedy,
    )


def _unexpected(error: Exception, uri: str, endpoint: str) -> StorageError:
    if isinstance(error, ClientError):
        reply = error.response["Error"]
        found = f"{reply.get('Code')}: {reply.get('Message', '')}".strip()
        if not is_transient(error):
            return StorageError(
                "object store refused the request",
                where=uri,
                found=f"{found} from {endpoint}",
                expected="an answer to the request",
                remedy="Look up the store's code: the same request fails again",
            )
    else:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return StorageError(
        "object store request failed",
        where=uri,
        found=f"{found} from {endpoint}",
        expected="an answer to the request",
        remedy="Check the object store's log, then run the step again: it resumes",
    )
