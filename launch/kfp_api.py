"""A connection to the Kubeflow Pipelines API, with errors a person can act on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp
import urllib3
from kfp.client import ServiceAccountTokenVolumeCredentials
from kfp_server_api.exceptions import ApiException

from iceaggr.errors import ConfigError, IceaggrError


class SubmissionError(IceaggrError):
    """The Kubeflow Pipelines API refused a request or could not be reached."""


@dataclass(frozen=True)
class Connection:
    """How to reach the API; exactly one way of authentication, or none inside a cluster.

    host: address of the KFP API or UI; empty = KF_PIPELINES_ENDPOINT, else the in-cluster service
    namespace: namespace of runs on a multi-user installation; empty = single-user
    token_file: file with a bearer token
    service_account_token_file: projected token of a service account, refreshed by the kubelet
    cookies_file: file with the cookie of a browser session
    ca_file: certificate authority of the server; verification is never switched off
    """

    host: str = ""
    namespace: str = ""
    token_file: Path | None = None
    service_account_token_file: Path | None = None
    cookies_file: Path | None = None
    ca_file: Path | None = None


def connect(connection: Connection) -> kfp.Client:
    """Open the client and ask the server whether it is well.

    Raises: ConfigError for a missing file or two ways of authentication; SubmissionError if the
    server does not answer or refuses the credentials.
    """
    given = {
        "--token-file": connection.token_file,
        "--service-account-token-file": connection.service_account_token_file,
        "--cookies-file": connection.cookies_file,
    }
    _check_authentication(given)
    arguments: dict[str, Any] = {"host": connection.host or None, "verify_ssl": True}
    if connection.namespace:
        arguments["namespace"] = connection.namespace
    if connection.token_file:
        arguments["existing_token"] = connection.token_file.read_text().strip()
    if connection.service_account_token_file:
        arguments["credentials"] = ServiceAccountTokenVolumeCredentials(
            path=str(connection.service_account_token_file)
        )
    if connection.cookies_file:
        arguments["cookies"] = connection.cookies_file.read_text().strip()
    if connection.ca_file:
        arguments["ssl_ca_cert"] = str(connection.ca_file)
    where = connection.host or os.environ.get("KF_PIPELINES_ENDPOINT", "in-cluster service")
    with api_errors(where), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = kfp.Client(**arguments)
        # not client.get_kfp_healthz(): it retries for a minute before it admits defeat
        client._healthz_api.healthz_service_get_healthz(_request_timeout=20)
    return client


def _check_authentication(given: dict[str, Path | None]) -> None:
    used = {name: path for name, path in given.items() if path is not None}
    if len(used) > 1:
        raise ConfigError(
            "two ways of authentication", found=", ".join(used), expected="at most one"
        )
    for name, path in used.items():
        if not path.is_file():
            raise ConfigError("file not found", where=f"{name} {path}")


_REMEDIES = {
    401: "Give a valid token: --token-file, --service-account-token-file or --cookies-file",
    403: "Ask for the rights to create runs in this namespace, or give another --namespace",
    404: "Is this the address of a Kubeflow Pipelines 2.x API?",
}


@contextmanager
def api_errors(where: str) -> Iterator[None]:
    """Turn what the client raises into one sentence; it never quotes request headers."""
    try:
        yield
    except ApiException as error:
        body = " ".join(str(error.body or error.reason).split())[:300]
        raise SubmissionError(
            "Kubeflow Pipelines refused the request",
            where=where,
            found=f"HTTP {error.status}: {body}",
            remedy=_REMEDIES.get(error.status or 0, ""),
        ) from None
    except urllib3.exceptions.HTTPError as error:
        reason = getattr(error, "reason", None) or error
        raise SubmissionError(
            "Kubeflow Pipelines cannot be reached",
            where=where,
            found=" ".join(str(reason).split())[:300],
            remedy="Check --host and, for TLS, --ca-file",
        ) from None
