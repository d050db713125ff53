"""What went wrong with S3, in words: endpoint, bucket, credentials or object.

Source: the error codes of Amazon S3 ("Error responses" of its API reference), which MinIO, Ceph and
SeaweedFS have taken over, and those of stores that have a few of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    InvalidConfigError,
    LoginError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError

from iceaggr.errors import StorageError
from iceaggr.service_settings import without_credentials
from iceaggr.storage.uris import bucket_and_key

DENIED = {"400", "401", "403", "405"}
MOVED = {"301", "307"}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
MISSING = {"404", "NoSuchKey", "NotFound"}


class BucketInEndpointError(BotoCoreError):
    """The endpoint's address names the bucket, which the URI names already."""

    fmt = "{endpoint}, which names bucket {bucket}"


@dataclass(frozen=True)
class Refusal:
    """One cause, and the parts of its error; words in braces stand for what was met: see `of`.

    causes: codes of the store, or errors of the library
    """

    causes: Any
    what: str
    expected: str
    remedy: str
    found: str = "{code}"

    def of(self, uri: str, endpoint: str, code: str = "", region: str = "") -> StorageError:
        """Word the error of one URI.

        code: the store's, or the words of the library.  region: the one that the store names.
        """
        bucket = bucket_and_key(uri)[0]
        met = {"endpoint": endpoint, "bucket": bucket, "code": code, "lower": bucket.lower()}
        met["region"] = region or f"the one of bucket {bucket}"
        return StorageError(
            self.what,
            where=uri,
            found=self.found.format(**met),
            expected=self.expected.format(**met),
            remedy=self.remedy.format(**met),
        )


REFUSALS = (
    Refusal(
        MISSING,
        "object not found",
        "an object",
        "Check the URI, and that the step that writes it has run",
        found="no such key at {endpoint}",
    ),
    Refusal(
        {"PreconditionFailed", "412"},
        "object was replaced while it was read",
        "the same content from the first byte to the last",
        "Let its writer finish, then run the step again",
    ),
    Refusal(
        {"InvalidAccessKeyId", "InvalidClientTokenId"},
        "object store refused the credentials",
        "a key that may use bucket {bucket}",
        "Check AWS_ACCESS_KEY_ID and AWS_SESSION_TOKEN, or the profile that they come from,"
        " on a cluster the secret iceaggr-object-store: they may be another store's",
        found="{code}: it does not know the access key",
    ),
    Refusal(
        {"SignatureDoesNotMatch"},
        "object store refused the credentials",
        "a key that may use bucket {bucket}",
        "Check AWS_SECRET_ACCESS_KEY, character by character; a proxy that changes the"
        " request's host does the same",
        found="{code}: the secret key is not that of the access key",
    ),
    Refusal(
        {"InvalidToken"},
        "object store refused the session token",
        "a token of the same session as the keys, or none",
        "Unset AWS_SESSION_TOKEN, or renew it together with both keys",
    ),
    Refusal(
        {"AccessDenied", *DENIED},
        "object store refused the credentials",
        "a key that may use bucket {bucket}",
        "Let the key's policy list, read and write the bucket, or check AWS_ACCESS_KEY_ID and"
        " AWS_SECRET_ACCESS_KEY, on a cluster the secret iceaggr-object-store or the pod's"
        " identity, and whether AWS_SESSION_TOKEN belongs to them",
    ),
    Refusal(
        {"RequestTimeTooSkewed", "RequestNotYetValid", "RequestInTheFuture"},
        "clocks of this machine and of the object store differ",
        "clocks less than 15 minutes apart",
        "Set this machine's clock (`timedatectl`, NTP), or that of the store",
    ),
    Refusal(
        {
            "AuthorizationHeaderMalformed",
            "AuthorizationQueryParametersError",
            "BucketRegionError",
            "IllegalLocationConstraintException",
            "InvalidLocationConstraint",
            "InvalidRegion",
            "PermanentRedirect",
            "TemporaryRedirect",
            *MOVED,
        },
        "bucket is in another region",
        "region {region}",
        "Set AWS_REGION to the bucket's region, and AWS_ENDPOINT_URL, if set, to its address",
    ),
    Refusal(
        {"InvalidObjectState"},
        "object lies in an archive",
        "an object that can be read at once",
        "Restore it first (`aws s3api restore-object`), or copy it to the standard class",
    ),
    Refusal(
        {
            "AccountProblem",
            "AccountSuspended",
            "AllAccessDisabled",
            "NotSignedUp",
            "UserDisable",
            "UserSuspended",
        },
        "account or bucket at the object store is blocked",
        "an account and a bucket in good order",
        "Ask who pays for the account, or the store's support: no setting here helps",
        found="{code} for bucket {bucket}",
    ),
    Refusal(
        {"InvalidBucketName"},
        "object store refused the bucket's name",
        "3 to 63 lower-case letters, digits, hyphens and dots",
        "Write the bucket as it is called: most are in lower case, s3://{lower}",
        found="{code} for {bucket}",
    ),
    Refusal(
        {"PathStyleDomainForbidden", "SecondLevelDomainForbidden", "VirtualHostDomainRequired"},
        "object store wants the bucket in the host name",
        "requests to a host that begins with {bucket}.",
        "Write `s3 =` and, indented below it, `addressing_style = virtual` into the profile"
        " of your AWS configuration file",
    ),
    Refusal(
        EXPIRED,
        "credentials of the object store have expired",
        "a session token that is still valid",
        "Renew AWS_SESSION_TOKEN and its keys, then run the step again: it resumes",
    ),
    Refusal(
        {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "507"},
        "object store is full",
        "free space for bucket {bucket}",
        "Free space or raise the quota, then run the step again: it resumes",
    ),
)
CONFIGURATION = (
    Refusal(
        ProfileNotFound,
        "profile of the AWS configuration not found",
        "a profile in the AWS configuration file",
        "Unset AWS_PROFILE, correct it, or check AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE",
    ),
    Refusal(
        (SSOError, LoginError, TokenRetrievalError),
        "sign-in at AWS has expired",
        "a session that is still valid",
        "Sign in again: `aws sso login`, with --profile where AWS_PROFILE names one",
    ),
    Refusal(
        CredentialRetrievalError,
        "credentials of the object store cannot be fetched",
        "a source of credentials that answers",
        "Check the profile's credential_process or role, or set AWS_ACCESS_KEY_ID and"
        " AWS_SECRET_ACCESS_KEY",
    ),
    Refusal(
        (ConfigParseError, InvalidConfigError),
        "AWS configuration cannot be used",
        "a configuration file as `aws configure` writes it",
        "Correct the file or the variable that is named",
    ),
    Refusal(
        PartialCredentialsError,
        "credentials of the object store are incomplete",
        "both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "Set the one that is missing",
    ),
    Refusal(
        NoCredentialsError,
        "no credentials for the object store",
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
        "Set them, on a cluster in the secret iceaggr-object-store, or start the local services"
        " with `make up`",
        found="none for {endpoint}",
    ),
    Refusal(
        ProxyConnectionError,
        "proxy before the object store not reachable",
        "a proxy that answers, or none",
        "Correct HTTPS_PROXY or HTTP_PROXY, or add the store's host to NO_PROXY",
    ),
    Refusal(
        BucketInEndpointError,
        "endpoint names the bucket",
        "the address of the store alone",
        "Take the bucket out of AWS_ENDPOINT_URL; the URI names it",
    ),
    Refusal(
        ParamValidationError,
        "not a name that a bucket or an object may have",
        "a bucket of 3 to 63 lower-case letters, digits, hyphens and dots",
        "Correct the URI",
    ),
)
"""What fails before a request is sent: the library's error and what it means."""
NOT_TRUSTED = Refusal(
    (),
    "certificate of the object store is not trusted",
    "a certificate whose authority this machine knows",
    "Set AWS_CA_BUNDLE to the PEM file of the authority that signed it",
)
NO_TLS = Refusal(
    (),
    "object store does not speak TLS",
    "TLS behind an https:// address",
    "Write http:// in AWS_ENDPOINT_URL, or check the port",
)
NOT_REACHABLE = Refusal(
    (),
    "object store not reachable",
    "a running S3 service",
    "Check AWS_ENDPOINT_URL, on a cluster object-store-endpoint in settings.env, or start the local"
    " services with `make up`",
    found="no answer from {endpoint}",
)
NOT_S3 = Refusal(
    (),
    "endpoint does not speak S3",
    "an answer as an S3 service gives it",
    "Check AWS_ENDPOINT_URL: another service's port, or a login page before the store, answers so",
)


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
    for refusal in REFUSALS:
        if code in refusal.causes:
            return refusal.of(uri, endpoint, f"{code} from {endpoint}", _region(error))
    words = without_credentials(" ".join(str(error).split()))
    for refusal in CONFIGURATION:
        if isinstance(error, refusal.causes):
            return refusal.of(uri, endpoint, words)
    if isinstance(error, SSLError):
        untrusted = "CERTIFICATE_VERIFY_FAILED" in words
        return (NOT_TRUSTED if untrusted else NO_TLS).of(uri, endpoint, words)
    if isinstance(error, UNREACHABLE):
        hint = _lower_case_hint(uri)
        also = f"{NOT_REACHABLE.remedy}. {hint}" if hint else NOT_REACHABLE.remedy
        return replace(NOT_REACHABLE, remedy=also).of(uri, endpoint)
    if isinstance(error, NotS3Error):
        return NOT_S3.of(uri, endpoint, f"{error} from {endpoint}")
    if isinstance(error, ResponseParserError):
        return NOT_S3.of(uri, endpoint, f"an answer without S3's XML from {endpoint}")
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
