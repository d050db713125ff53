"""A connection to the Kubeflow Pipelines API, with errors a person can act on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kfp
import urllib3
from kfp.client import ServiceAccountTokenVolumeCredentials
from kfp_server_api import V2beta1GetHealthzResponse
from kfp_server_api.exceptions import ApiException

from iceaggr.addresses import refuse_credentials, without_credentials
from iceaggr.errors import ConfigError, IceaggrError

_HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"
_UI_VARIABLE = "KF_PIPELINES_UI_ENDPOINT"
# of the service of the API server, which has no pages: HTTP, and its neighbour for gRPC
_API_PORTS = (8888, 8887)
_PROBE_TIMEOUT_S = 20
_FIRST_SERVER_ERROR = 500
_TOO_MANY_REQUESTS = 429


class SubmissionError(IceaggrError):
    """The Kubeflow Pipelines API refused a request or could not be reached."""


class ServerAwayError(SubmissionError):
    """The server is out of reach or out of order, maybe only for now."""


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


class _Client(kfp.Client):
    """KFP's client, but one attempt to see whether the server is there: the base tries for long."""

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        answer = self._healthz_api.healthz_service_get_healthz(
            _preload_content=False, _request_timeout=_PROBE_TIMEOUT_S
        )
        try:
            health = json.loads(answer.data)
            return V2beta1GetHealthzResponse(multi_user=bool(health.get("multi_user")))
        except (ValueError, AttributeError):
            # behind a login, whoever has no valid session is led to its page: an answer of 200
            raise SubmissionError(
                "this is not the Kubeflow Pipelines API, or it asks for a login first",
                where=self._existing_config.host,
                found=f"{answer.headers.get('Content-Type', 'no content type')} instead of JSON",
                remedy="Check --host, and give --token-file or --cookies-file",
            ) from None


def connect(connection: Connection) -> kfp.Client:
    """Open the client and ask the server whether it is well.

    Raises: ConfigError for no address, a missing or empty file, two ways of authentication, a
    password in the address or a missing namespace;
    SubmissionError if the server does not answer or refuses the credentials.
    """
    _check_files(connection)
    check_address(connection)
    inside = "KUBERNETES_SERVICE_HOST" in os.environ
    if not (connection.host or os.environ.get(_HOST_VARIABLE) or inside):
        raise ConfigError(
            "no address of Kubeflow Pipelines",
            where=f"--host or {_HOST_VARIABLE}",
            found="neither, and this is no pod of a cluster",
            expected="http://host:port or https://host",
        )
    refuse_credentials(
        address(connection),
        where=f"--host or {_HOST_VARIABLE}",
        remedy="Give --token-file or --cookies-file",
    )
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
    with api_errors(address(connection)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            client = _Client(**arguments)
        health = client.get_kfp_healthz()
    if health.multi_user and not client.get_user_namespace():
        raise ConfigError(
            "this installation has several users and needs to know whose run it is",
            where="--namespace",
            found="nothing",
            expected="the namespace of your profile",
        )
    return client


def address(connection: Connection) -> str:
    """Name the server for messages and links."""
    return connection.host or os.environ.get(_HOST_VARIABLE, "") or "the service of this cluster"


def check_address(connection: Connection) -> None:
    """Check that the given address says how to speak to the server. Raises: ConfigError."""
    _check_scheme(
        connection.host or os.environ.get(_HOST_VARIABLE, ""), f"--host or {_HOST_VARIABLE}"
    )


def _check_scheme(given: str, where: str) -> None:
    scheme, mark, rest = given.partition("://")
    if given and not (scheme.lower() in ("http", "https") and rest.strip("/")):
        shown = without_credentials(given) if mark else given.rpartition("@")[2]
        raise ConfigError(
            "not an address of a server",
            where=where,
            found=repr(shown),
            expected="http://host:port or https://host",
            remedy="Write http:// or https:// before it",
        )


def ui_address(connection: Connection, ui: str) -> str:
    """Find the address of the UI, '' if only that of the API is known.

    ui: as the user gave it; empty = KF_PIPELINES_UI_ENDPOINT, else the connection's host, where
    the UI answers requests to the API, too.
    Raises: ConfigError for a password in the address.
    """
    given = ui or os.environ.get(_UI_VARIABLE, "")
    refuse_credentials(given, where=f"--ui or {_UI_VARIABLE}", remedy="Links need no password")
    _check_scheme(given, f"--ui or {_UI_VARIABLE}")
    host = connection.host or os.environ.get(_HOST_VARIABLE, "")
    if given or not host:
        return given.rstrip("/")
    with contextlib.suppress(ValueError):  # a port that is none is told by whoever connects
        if urlsplit(host).port in _API_PORTS:
            return ""
    return host.rstrip("/")


def run_link(ui: str, run_id: str) -> str:
    """Give the page of a run in the UI."""
    return f"{ui}/#/runs/details/{run_id}"


def _check_files(connection: Connection) -> None:
    ways = {
        "--token-file": connection.token_file,
        "--service-account-token-file": connection.service_account_token_file,
        "--cookies-file": connection.cookies_file,
    }
    used = [name for name, path in ways.items() if path is not None]
    if len(used) > 1:
        raise ConfigError(
            "two ways of authentication", found=", ".join(used), expected="at most one"
        )
    for name, path in {**ways, "--ca-file": connection.ca_file}.items():
        if path is not None and not path.is_file():
            raise ConfigError("file not found", where=f"{name} {path}")
        if path is not None and not path.read_bytes().strip():
            raise ConfigError("file is empty", where=f"{name} {path}")


_REMEDIES = {
    401: "Give a valid token: --token-file, --service-account-token-file or --cookies-file",
    403: "Ask for the rights to create runs in this namespace, or give another --namespace",
    400: "The server did not accept the values, see above",
    404: "Is this the address of a Kubeflow Pipelines 2.x API?",
}
_SERVER_REMEDY = "The server's log says more; what was done so far stays, so try again"


@contextmanager
def api_errors(where: str) -> Iterator[None]:
    """Turn what the client raises into one sentence; it never quotes request headers."""
    try:
        yield
    except ApiException as error:
        body = _sentence_of(error)
        status = error.status or 0
        away = status >= _FIRST_SERVER_ERROR or status == _TOO_MANY_REQUESTS
        raise (ServerAwayError if away else SubmissionError)(
            "Kubeflow Pipelines refused the request",
            where=where,
            found=f"HTTP {status}: {body}",
            remedy=_REMEDIES.get(status, _SERVER_REMEDY),
        ) from None
    except urllib3.exceptions.HTTPError as error:
        reason = getattr(error, "reason", None) or error
        raise ServerAwayError(
            "Kubeflow Pipelines cannot be reached",
            where=where,
            found=without_credentials(" ".join(str(reason).split()))[:300],
            remedy=f"Check --host or {_HOST_VARIABLE} and, for TLS, --ca-file",
        ) from None


def _sentence_of(error: ApiException) -> str:
    body = error.body or error.reason or ""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)
    with contextlib.suppress(ValueError, AttributeError):
        document = json.loads(text)
        text = str(document.get("message") or document.get("error") or text)
    return " ".join(text.split())[:300]
