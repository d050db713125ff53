"""What a refusal of an object store means, and what to do about it: one entry for each cause.

Source: the error codes of Amazon S3 ("Error responses" of its API reference), which MinIO, Ceph and
SeaweedFS have taken over, and those of stores that have a few of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from botocore.exceptions import (
    BotoCoreError,
    ConfigParseError,
    CredentialRetrievalError,
    InvalidConfigError,
    LoginError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    SSOError,
    TokenRetrievalError,
)

from iceaggr.errors import StorageError
from iceaggr.storage.uris import bucket_and_key

DENIED = {"400", "401", "403", "405"}
MOVED = {"301", "307"}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "507"}
MISSING = {"404", "NoSuchKey", "NotFound"}


class BucketInEndpointError(BotoCoreError):
    """The endpoint's address names the bucket, which the URI names already."""

    fmt = "{endpoint}, which names bucket {bucket}"


@dataclass(frozen=True)
class Refusal:
    """The parts of an error; words in braces stand for what was met: see `of`."""

    what: str
    found: str
    expected: str
    remedy: str

    def of(self, uri: str, endpoint: str, code: str = "", region: str = "") -> StorageError:
        """Word the error of one URI.

        code: the store's, or the words of the library.  region: the one that the store names.
        """
        bucket = bucket_and_key(uri)[0]
        met = {"endpoint": endpoint, "bucket": bucket, "code": code, "lower": bucket.lower()}
        met["region"] = region or "the one of bucket " + bucket
        return StorageError(
            self.what,
            where=uri,
            found=self.found.format(**met),
            expected=self.expected.format(**met),
            remedy=self.remedy.format(**met),
        )


REFUSALS = (
    (
        MISSING,
        Refusal(
            "object not found",
            "no such key at {endpoint}",
            "an object",
            "Check the URI, and that the step that writes it has run",
        ),
    ),
    (
        {"PreconditionFailed", "412"},
        Refusal(
            "object was replaced while it was read",
            "{code} from {endpoint}",
            "the same content from the first byte to the last",
            "Let its writer finish, then run the step again",
        ),
    ),
    (
        {"InvalidAccessKeyId", "InvalidClientTokenId"},
        Refusal(
            "object store refused the credentials",
            "{code} from {endpoint}: it does not know the access key",
            "a key that may use bucket {bucket}",
            "Check AWS_ACCESS_KEY_ID and AWS_SESSION_TOKEN, or the profile that they come from,"
            " on a cluster the secret iceaggr-object-store: they may be another store's",
        ),
    ),
    (
        {"SignatureDoesNotMatch"},
        Refusal(
            "object store refused the credentials",
            "{code} from {endpoint}: the secret key is not that of the access key",
            "a key that may use bucket {bucket}",
            "Check AWS_SECRET_ACCESS_KEY, character by character; a proxy that changes the"
            " request's host does the same",
        ),
    ),
    (
        {"InvalidToken"},
        Refusal(
            "object store refused the session token",
            "{code} from {endpoint}",
            "a token of the same session as the keys, or none",
            "Unset AWS_SESSION_TOKEN, or renew it together with both keys",
        ),
    ),
    (
        {"AccessDenied", *DENIED},
        Refusal(
            "object store refused the credentials",
            "{code} from {endpoint}",
            "a key that may use bucket {bucket}",
            "Let the key's policy list, read and write the bucket, or check AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY, on a cluster the secret iceaggr-object-store or the pod's"
            " identity, and whether AWS_SESSION_TOKEN belongs to them",
        ),
    ),
    (
        {"RequestTimeTooSkewed", "RequestNotYetValid", "RequestInTheFuture"},
        Refusal(
            "clocks of this machine and of the object store differ",
            "{code} from {endpoint}",
            "clocks less than 15 minutes apart",
            "Set this machine's clock (`timedatectl`, NTP), or that of the store",
        ),
    ),
    (
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
        Refusal(
            "bucket is in another region",
            "{code} from {endpoint}",
            "region {region}",
            "Set AWS_REGION to the bucket's region, and AWS_ENDPOINT_URL, if set, to its address",
        ),
    ),
    (
        {"InvalidObjectState"},
        Refusal(
            "object lies in an archive",
            "{code} from {endpoint}",
            "an object that can be read at once",
            "Restore it first (`aws s3api restore-object`), or copy it to the standard class",
        ),
    ),
    (
        {
            "AccountProblem",
            "AccountSuspended",
            "AllAccessDisabled",
            "NotSignedUp",
            "UserDisable",
            "UserSuspended",
        },
        Refusal(
            "account or bucket at the object store is blocked",
            "{code} from {endpoint} for bucket {bucket}",
            "an account and a bucket in good order",
            "Ask who pays for the account, or the store's support: no setting here helps",
        ),
    ),
    (
        {"InvalidBucketName"},
        Refusal(
            "object store refused the bucket's name",
            "{code} from {endpoint} for {bucket}",
            "3 to 63 lower-case letters, digits, hyphens and dots",
            "Write the bucket as it is called: most are in lower case, s3://{lower}",
        ),
    ),
    (
        {"PathStyleDomainForbidden", "SecondLevelDomainForbidden", "VirtualHostDomainRequired"},
        Refusal(
            "object store wants the bucket in the host name",
            "{code} from {endpoint}",
            "requests to a host that begins with {bucket}.",
            "Write `s3 =` and, indented below it, `addressing_style = virtual` into the profile"
            " of your AWS configuration file",
        ),
    ),
    (
        EXPIRED,
        Refusal(
            "credentials of the object store have expired",
            "{code} from {endpoint}",
            "a session token that is still valid",
            "Renew AWS_SESSION_TOKEN and its keys, then run the step again: it resumes",
        ),
    ),
    (
        FULL,
        Refusal(
            "object store is full",
            "{code} from {endpoint}",
            "free space for bucket {bucket}",
            "Free space or raise the quota, then run the step again: it resumes",
        ),
    ),
)
CONFIGURATION = (
    (
        ProfileNotFound,
        Refusal(
            "profile of the AWS configuration not found",
            "{code}",
            "a profile in the AWS configuration file",
            "Unset AWS_PROFILE, correct it, or check AWS_CONFIG_FILE and"
            " AWS_SHARED_CREDENTIALS_FILE",
        ),
    ),
    (
        (SSOError, LoginError, TokenRetrievalError),
        Refusal(
            "sign-in at AWS has expired",
            "{code}",
            "a session that is still valid",
            "Sign in again: `aws sso login`, with --profile where AWS_PROFILE names one",
        ),
    ),
    (
        CredentialRetrievalError,
        Refusal(
            "credentials of the object store cannot be fetched",
            "{code}",
            "a source of credentials that answers",
            "Check the profile's credential_process or role, or set AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY",
        ),
    ),
    (
        (ConfigParseError, InvalidConfigError),
        Refusal(
            "AWS configuration cannot be used",
            "{code}",
            "a configuration file as `aws configure` writes it",
            "Correct the file or the variable that is named",
        ),
    ),
    (
        PartialCredentialsError,
        Refusal(
            "credentials of the object store are incomplete",
            "{code}",
            "both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            "Set the one that is missing",
        ),
    ),
    (
        NoCredentialsError,
        Refusal(
            "no credentials for the object store",
            "none for {endpoint}",
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
            "Set them, on a cluster in the secret iceaggr-object-store, or start the local services"
            " with `make up`",
        ),
    ),
    (
        ProxyConnectionError,
        Refusal(
            "proxy before the object store not reachable",
            "{code}",
            "a proxy that answers, or none",
            "Correct HTTPS_PROXY or HTTP_PROXY, or add the store's host to NO_PROXY",
        ),
    ),
    (
        BucketInEndpointError,
        Refusal(
            "endpoint names the bucket",
            "{code}",
            "the address of the store alone",
            "Take the bucket out of AWS_ENDPOINT_URL; the URI names it",
        ),
    ),
    (
        ParamValidationError,
        Refusal(
            "not a name that a bucket or an object may have",
            "{code}",
            "a bucket of 3 to 63 lower-case letters, digits, hyphens and dots",
            "Correct the URI",
        ),
    ),
)
"""What fails before a request is sent: the library's error and what it means."""
NOT_TRUSTED = Refusal(
    "certificate of the object store is not trusted",
    "{code}",
    "a certificate whose authority this machine knows",
    "Set AWS_CA_BUNDLE to the PEM file of the authority that signed it",
)
NO_TLS = Refusal(
    "object store does not speak TLS",
    "{code}",
    "TLS behind an https:// address",
    "Write http:// in AWS_ENDPOINT_URL, or check the port",
)
NOT_REACHABLE = Refusal(
    "object store not reachable",
    "no answer from {endpoint}",
    "a running S3 service",
    "Check AWS_ENDPOINT_URL, on a cluster object-store-endpoint in settings.env, or start the local"
    " services with `make up`",
)
NOT_S3 = Refusal(
    "endpoint does not speak S3",
    "{code} from {endpoint}",
    "an answer as an S3 service gives it",
    "Check AWS_ENDPOINT_URL: another service's port, or a login page before the store, answers so",
)
