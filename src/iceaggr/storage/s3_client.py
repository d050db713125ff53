"""The connection to S3: settings from the environment, one client per process, patient retries."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from time import sleep
from typing import Any, TypeVar
from urllib.parse import urlsplit

import botocore.session
from botocore.config import Config
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES
from botocore.exceptions import BotoCoreError, ClientError, PartialCredentialsError

from iceaggr.errors import StorageError
from iceaggr.patience import ask_patiently, away_s, is_in_a_pod
from iceaggr.service_settings import refuse_credentials, store_settings, without_credentials
from iceaggr.storage.s3_errors import (
    BucketInEndpointError,
    NotS3Error,
    explain,
    is_damaged,
    is_expired,
    is_transient,
    is_wordless,
)

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
"""Without a single byte; a body that trickles has a limit of its own."""
_PATIENT_ATTEMPTS = 8
_WORDLESS_ATTEMPTS = 2
"""A refusal without a reason may mean expired credentials, but more often means wrong ones."""
_TELL_AFTER = 3
"""Failures after which the log says what is waited for; single ones are daily life."""
_LONGEST_WAIT_S = 20.0
_FIRST_CONTACT_WAIT_S = 5.0
_PATIENCE_S = 300.0
"""No further attempt after this time: a store that hangs lets each one last minutes."""
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
# Not every S3 service knows the newer checksum headers; uploads carry Content-MD5 instead.
_CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")
_REDIRECTS = (301, 302, 307)
_SAID_BY_S3 = {
    "HeadObject": "ETag",
    "GetObject": "ETag",
    "PutObject": "ETag",
    "UploadPart": "ETag",
    "CompleteMultipartUpload": "ETag",
    "CreateMultipartUpload": "UploadId",
    "ListObjectsV2": "IsTruncated",
}
"""What no S3 service leaves out of its answer, and a page for people does not have."""

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class S3Client:
    """Makes requests and tells failures as StorageError.

    botocore repeats a failed request twice by itself. Beyond that we wait for a store that is away:
    in a pod for `patience.AWAY_S`, since nobody starts a failed step again. On a machine of one's
    own about a minute and a half (five minutes if it accepts requests and never answers), if it
    has answered this process before; one that was never there is a wrong address, and says so.
    Credentials that have expired are read anew, unless they stand in the environment,
    which cannot change. Shared by threads; a forked process reconnects.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._lock = threading.Lock()
        self._client: Any = None
        self._pid = 0
        self._has_answered = False

    @property
    def endpoint(self) -> str:
        """Name the endpoint, for messages."""
        in_use = self._client.meta.endpoint_url if self._client else "AWS S3"
        return _endpoint_url(store_settings(self._environment)) or in_use

    def call(self, uri: str, request: Callable[[Any], Answer]) -> Answer:
        """Run `request(boto3_client)`. Raises: StorageError naming the URI and the endpoint."""
        try:
            return self.attempt(request)
        except (ClientError, BotoCoreError, OSError) as error:
            raise explain(error, uri, self.endpoint) from error

    def attempt(self, request: Callable[[Any], Answer]) -> Answer:
        """Run a request like `call`, but let boto3's own error out."""
        failures = itertools.count(1)

        def ask() -> Answer:
            answer = request(self._connected())
            self._has_answered = True
            return answer

        return ask_patiently(
            ask,
            is_away=lambda error: self._may_come_back(error, next(failures)),
            patience_s=away_s(_PATIENCE_S, self._environment),
            longest_pause_s=_LONGEST_WAIT_S,
            sleep=self._pause,
            say=lambda words: log.warning(
                "object store %s does not answer well: %s",
                self.endpoint,
                without_credentials(words),
            ),
            tell_after=_TELL_AFTER,
        )

    def _may_come_back(self, error: Exception, n_failed: int) -> bool:
        """Tell whether the same request may succeed later, maybe with credentials read anew."""
        self._has_answered |= isinstance(error, ClientError)
        if self._renew(error, n_failed) or is_damaged(error):
            return n_failed < _PATIENT_ATTEMPTS
        if not is_transient(error):
            return False
        has_time = self._has_answered and n_failed < _PATIENT_ATTEMPTS
        return has_time or is_in_a_pod(self._environment)

    def _pause(self, wait_s: float) -> None:
        sleep(wait_s if self._has_answered else min(wait_s, _FIRST_CONTACT_WAIT_S))

    def note_answer(self) -> None:
        """Remember that the store is there although the request has not ended yet."""
        self._has_answered = True

    def _renew(self, error: Exception, n_failed: int) -> bool:
        """Drop the connection and its credentials, if the next one may find better ones."""
        expired = is_expired(error) or (n_failed <= _WORDLESS_ATTEMPTS and is_wordless(error))
        if not expired or store_settings(self._environment).get("AWS_ACCESS_KEY_ID"):
            return False
        with self._lock:
            self._client = None
        return True

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None or self._pid != os.getpid():
                session = _session(self._environment)
                settings = store_settings(self._environment)
                self._client, self._pid = _new_client(session, settings), os.getpid()
            return self._client


def _endpoint_url(environment: Mapping[str, str]) -> str | None:
    """Read the endpoint: AWS_ENDPOINT_URL_S3 before AWS_ENDPOINT_URL; None means AWS itself."""
    return environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or None


def _new_client(session: botocore.session.Session, environment: Mapping[str, str]) -> Any:
    endpoint = _endpoint_url(environment)
    refuse_credentials(
        endpoint or "",
        where="AWS_ENDPOINT_URL",
        remedy="Give the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    )
    try:
        client = _client_at(endpoint, session, environment)
    except ValueError:
        raise StorageError(
            "not an endpoint address",
            where="AWS_ENDPOINT_URL",
            found=repr(endpoint),
            expected="http://host:port or https://host:port",
            remedy="Correct the environment variable",
        ) from None
    found = client.meta.endpoint_url
    if endpoint is None and not _is_amazons(found):
        client = _client_at(found, session, environment)  # a file of the user's names another store
    client.meta.events.register("provide-client-params.s3", partial(_refuse_bucket_in, found))
    client.meta.events.register_first("needs-retry.s3", _refuse_aimless_redirect)
    client.meta.events.register("after-call.s3", _refuse_what_is_not_s3)
    return client


def _client_at(
    endpoint: str | None, session: botocore.session.Session, environment: Mapping[str, str]
) -> Any:
    region = session.get_config_variable("region") or "us-east-1"
    settings = _settings(endpoint, session, environment)
    return session.create_client("s3", region, endpoint_url=endpoint, config=settings)


def _is_amazons(endpoint: str) -> bool:
    return (urlsplit(endpoint).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _refuse_bucket_in(endpoint: str, params: Mapping[str, Any], **_: Any) -> None:
    """Refuse an endpoint that names the bucket: it would be there twice, or part of the key."""
    bucket, address = params.get("Bucket", ""), urlsplit(endpoint)
    in_path = address.path.rstrip("/").endswith(f"/{bucket}")
    in_host = _is_amazons(endpoint) and (address.hostname or "").startswith(f"{bucket}.s3")
    if bucket and (in_path or in_host):
        raise BucketInEndpointError(endpoint=endpoint, bucket=bucket)


def _refuse_aimless_redirect(response: Any, operation: Any, **_: Any) -> None:
    """Stop at a redirect that does not say to which region, as Ceph sends it.

    botocore asks for the region by a HEAD request, is redirected, asks again, without an end.
    """
    if response and response[0].status_code in _REDIRECTS:
        answer, parsed = response
        if "x-amz-bucket-region" not in answer.headers:
            raise ClientError(parsed, operation.name)


def _refuse_what_is_not_s3(
    http_response: Any, parsed: Mapping[str, Any], model: Any, **_: Any
) -> None:
    field = _SAID_BY_S3.get(model.name)
    # botocore calls it 500 when a body is no XML; a damaged answer of a store still says it is XML
    is_page = http_response.raw.status < 300 and "xml" not in http_response.headers.get(
        "content-type", "xml"
    )
    answered = http_response.status_code < 300 or is_page
    if field and answered and field not in parsed:
        raise NotS3Error(field=field)


def _settings(
    endpoint: str | None, session: botocore.session.Session, environment: Mapping[str, str]
) -> Config:
    """Make our settings; where the user's configuration says something, that counts."""
    host = urlsplit(endpoint).hostname if endpoint else None
    in_files = session.get_scoped_config()
    ours: dict[str, Any] = {
        name: "when_required"
        for name in _CHECKSUMS
        if name not in in_files and f"AWS_{name.upper()}" not in environment
    }
    # few stores besides Amazon's have a name in the DNS for each bucket
    if endpoint and "addressing_style" not in (session.get_config_variable("s3") or {}):
        ours["s3"] = {"addressing_style": "path"}
    return Config(
        retries={"mode": "standard", "total_max_attempts": 3},
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=32,
        tcp_keepalive=True,
        proxies={} if host in _LOOPBACK else None,
        **ours,
    )


def _session(environment: Mapping[str, str]) -> botocore.session.Session:
    """Read the settings: those of the environment, and of the files that it names.

    Keys that are not in it are looked for by boto3 itself: files, pod identity, instance.
    """
    session = botocore.session.Session()
    settings = session.get_component("config_store")
    if environment is not os.environ:
        _take_settings_of(environment, settings)
    environment = store_settings(environment)
    # botocore knows AWS_DEFAULT_REGION alone
    if region := environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"):
        settings.set_config_variable("region", region)
    access_key, secret_key, token = (environment.get(name) for name in _KEYS)
    if access_key and secret_key:
        session.set_credentials(access_key, secret_key, token)
    elif access_key or secret_key:
        missing = _KEYS[1] if access_key else _KEYS[0]
        raise PartialCredentialsError(provider="environment", cred_var=missing)
    return session


def _take_settings_of(environment: Mapping[str, str], settings: Any) -> None:
    """Let a mapping replace the environment of the process, which botocore would read."""
    for setting, (_, named, default, convert) in BOTOCORE_DEFAUT_SESSION_VARIABLES.items():
        names = [named] if isinstance(named, str) else named or ()
        given = [environment[name] for name in names if name in environment]
        if given:
            settings.set_config_variable(setting, convert(given[0]) if convert else given[0])
        elif any(name in os.environ for name in names):
            settings.set_config_variable(setting, default)
    if not _endpoint_url(environment) and _endpoint_url(os.environ):
        settings.set_config_variable("ignore_configured_endpoint_urls", True)
