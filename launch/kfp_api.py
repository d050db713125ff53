"""A connection to the Kubeflow Pipelines API."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shlex
import ssl
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import kfp
import typer
import urllib3
from kfp.client import ServiceAccountTokenVolumeCredentials
from kfp_server_api import V2beta1GetHealthzResponse
from kfp_server_api.exceptions import ApiException

from iceaggr.errors import ConfigError, IceaggrError
from iceaggr.patience import ask_patiently, first_contact_s, is_in_a_pod
from iceaggr.service_settings import refuse_credentials, without_credentials

# What the Kubeflow Pipelines API refuses, as errors a person can act on.

HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"
_FIRST_SERVER_ERROR = 500
_TOO_MANY_REQUESTS = 429
_REMEDIES = {
    401: "Give a valid token: --token-file, --service-account-token-file or --cookies-file",
    403: "Ask for the rights to create runs in this namespace, or give another --namespace",
    400: "The server did not accept the values, see above",
    404: "Is this the address of a Kubeflow Pipelines 2.x API?",
}
_SERVER_REMEDY = "See the server's log, then try again: what was done so far is kept"


class SubmissionError(IceaggrError):
    """The Kubeflow Pipelines API refused a request or could not be reached."""


class ServerAwayError(SubmissionError):
    """The server is out of reach or out of order, maybe only for now."""


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
            remedy=f"Check --host or {HOST_VARIABLE} and, for TLS, --ca-file",
        ) from None


def all_pages(ask: Callable[..., Any], name: str, most: int = sys.maxsize) -> Iterator[Any]:
    """Give what a list of the API holds, page after page.

    ask: a method of the client.  name: of the list in its answer.  most: pages
    """
    token: str | None = ""
    for _ in range(most):
        page = ask(page_token=token, page_size=100)
        yield from getattr(page, name) or []
        token = page.next_page_token
        if not token:
            return


def _sentence_of(error: ApiException) -> str:
    body = error.body or error.reason or ""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)
    with contextlib.suppress(ValueError, AttributeError):
        document = json.loads(text)
        text = str(document.get("message") or document.get("error") or text)
    return " ".join(text.split())[:300]


# Files that a connection reads: tokens, cookies, the server's authority.
#
# Errors never quote the content of these files.

# allowed in a request header; for anything else the HTTP client's error quotes the whole header
_HEADER_TEXT = re.compile(rb"[\x20-\x7e]+")


def read_credential(path: Path, option: str) -> str:
    """Read the one line that becomes a header of each request. Raises: ConfigError."""
    where = f"{option} {path}"
    text = _read(path, where).strip()
    if not text:
        raise ConfigError("file is empty", where=where, found="nothing", expected="one line")
    if not _HEADER_TEXT.fullmatch(text):
        lines = len(text.splitlines())
        raise ConfigError(
            "file holds no credential",
            where=where,
            found=f"{lines} lines" if lines > 1 else "characters that are not printable ASCII",
            expected="the token or the cookies alone: one line of printable ASCII",
            remedy="Write cookies as NAME=VALUE; NAME=VALUE, not as curl's cookie table",
        )
    return text.decode("ascii")


def check_authority(path: Path, option: str) -> None:
    """Check that a file holds certificates of authorities. Raises: ConfigError."""
    where = f"{option} {path}"
    _read(path, where)
    try:
        ssl.create_default_context(cafile=str(path))
    except ssl.SSLError:
        raise ConfigError(
            "file holds no certificate",
            where=where,
            found="no BEGIN CERTIFICATE, or a damaged certificate",
            expected="the certificate authority of the server in PEM format",
        ) from None


def _read(path: Path, where: str) -> bytes:
    if not path.is_file():
        raise ConfigError("file not found", where=where)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError("file cannot be read", where=where, found=error.strerror) from None


# The connection: address, credentials, version of the server.

_UI_VARIABLE = "KF_PIPELINES_UI_ENDPOINT"
# of the service of the API server, which has no pages: HTTP, and its neighbour for gRPC
_API_PORTS = (8888, 8887)
_PROBE_TIMEOUT_S = (5, 20)
"""To connect, and to answer."""
PROVED_VERSION = (2, 17)
"""Oldest version of the server that ran the whole graph: 2.14 to 2.16 lose the `OneOf` of the
trained model, after hours of training."""


@dataclass(frozen=True)
class Connection:
    """How to reach the API; at most one way of authentication, and verification is never off."""

    host: Annotated[
        str,
        typer.Option(help="Address of KFP; empty = KF_PIPELINES_ENDPOINT, else this cluster"),
    ] = ""
    namespace: Annotated[str, typer.Option(help="Your namespace, where KFP has several users")] = ""
    token_file: Annotated[Path | None, typer.Option(help="File with a bearer token")] = None
    service_account_token_file: Annotated[
        Path | None, typer.Option(help="File with a projected service account token")
    ] = None
    cookies_file: Annotated[Path | None, typer.Option(help="File with the cookie of a session")] = (
        None
    )
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificate authority of the server, PEM")
    ] = None

    @property
    def given_host(self) -> str:
        """Give the address as the user gave it, empty = that of this cluster."""
        return self.host or os.environ.get(HOST_VARIABLE, "")

    def as_options(self) -> str:
        """Write the options of the command line that give this connection, files by their names."""
        given = {f"--{name.replace('_', '-')}": value for name, value in vars(self).items()}
        return "".join(
            f" {name} {shlex.quote(str(value))}" for name, value in given.items() if value
        )


class _Client(kfp.Client):
    """KFP's client, with one attempt to see whether the server is there: the base tries for long.

    run_namespace: of the runs; empty = that of the client's own context, if any.  The base has one
    argument for this and for the namespace of the API server, and takes `kubeflow` for none.
    """

    _context_setting: dict[str, Any]

    def __init__(self, run_namespace: str, **arguments: Any) -> None:
        self._run_namespace = run_namespace
        self.server_tag = ""
        super().__init__(**arguments)

    def _load_context_setting_or_default(self) -> None:
        try:
            super()._load_context_setting_or_default()
            self._context_setting = {"namespace": "", **self._context_setting}
        except (ValueError, TypeError, OSError) as error:
            raise ConfigError(
                "the saved settings of KFP's client cannot be read",
                where=self._LOCAL_KFP_CONTEXT,
                found=" ".join(str(error).split()),
                expected="a JSON object",
                remedy="Delete the file",
            ) from None
        if self._run_namespace:
            self._context_setting["namespace"] = self._run_namespace

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        answer = self._healthz_api.healthz_service_get_healthz(
            _preload_content=False, _request_timeout=_PROBE_TIMEOUT_S
        )
        try:
            health = json.loads(answer.data)
            # the API server tells its tag by the one name, the UI in front of it by the other
            self.server_tag = str(health.get("apiServerTagName") or health.get("tag_name") or "")
            return V2beta1GetHealthzResponse(multi_user=bool(health.get("multi_user")))
        except (ValueError, AttributeError):
            # without a valid session a login answers with its page and status 200
            raise SubmissionError(
                "this is not the Kubeflow Pipelines API, or it asks for a login first",
                where=self._existing_config.host,
                found=f"{answer.headers.get('Content-Type', 'no content type')} instead of JSON",
                remedy="Check --host, and give --token-file or --cookies-file",
            ) from None


def connect(connection: Connection) -> kfp.Client:
    """Open the client and ask the server whether it is well.

    Raises: ConfigError for no address, a file that is missing or holds something else, two ways of
    authentication, a password in the address or a missing namespace;
    SubmissionError if the server does not answer (in a pod: within the minute that a first contact
    may take) or refuses the credentials.
    """
    credentials = _credentials(connection)
    # each of its attempts is a warning to urllib3; what comes of them is told by us, once
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    check_address(connection)
    _check_presence(connection)
    client, health = ask_patiently(
        lambda: _open(connection, credentials),
        is_away=lambda error: isinstance(error, ServerAwayError),
        patience_s=first_contact_s(),
    )
    if health.multi_user and not client.get_user_namespace():
        raise ConfigError(
            "this installation has several users: the namespace of the run is missing",
            where="--namespace",
            found="nothing",
            expected="the namespace of your profile",
        )
    return client


def _open(connection: Connection, credentials: dict[str, Any]) -> tuple[kfp.Client, Any]:
    with api_errors(address(connection)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(io.StringIO()):
            client = _Client(
                connection.namespace, host=connection.host or None, verify_ssl=True, **credentials
            )
        return client, client.get_kfp_healthz()


def check_version(client: kfp.Client, *, accept_older: bool) -> str:
    """Check that the server is one that can run the graph. Returns a word of caution, '' if fine.

    accept_older: whether the user knows.  Raises: ConfigError for a version below PROVED_VERSION.
    """
    tag = client.server_tag
    told = re.match(r"v?(\d+)\.(\d+)", tag)
    proved = ".".join(map(str, PROVED_VERSION))
    if told is None:
        return (
            f"the server does not report its version ({tag or 'no tag'}); the graph needs Kubeflow"
            f" Pipelines {proved} or newer"
        )
    version = (int(told[1]), int(told[2]))
    if version >= PROVED_VERSION:
        newer = version[0] > PROVED_VERSION[0]
        return f"Kubeflow Pipelines {tag} is untested; {proved} was tested" if newer else ""
    if accept_older:
        return f"Kubeflow Pipelines {tag} is older than {proved}; you accepted that"
    raise ConfigError(
        "Kubeflow Pipelines is too old for the graph: a run would fail after its training",
        where=client._existing_config.host,
        found=tag,
        expected=f"{proved} or newer",
        remedy="Ask for an upgrade, or try anyway with --accept-older-kfp",
    )


def _check_presence(connection: Connection) -> None:
    if not (connection.given_host or is_in_a_pod()):
        raise ConfigError(
            "no address of Kubeflow Pipelines",
            where=f"--host or {HOST_VARIABLE}",
            found="neither is set, and this is not a pod of a cluster",
            expected="http://host:port or https://host",
        )
    refuse_credentials(
        address(connection),
        where=f"--host or {HOST_VARIABLE}",
        remedy="Give --token-file or --cookies-file",
    )


def address(connection: Connection) -> str:
    """Name the server for messages and links."""
    return connection.given_host or "the service of this cluster"


def check_address(connection: Connection) -> None:
    """Check that the given address says how to speak to the server. Raises: ConfigError."""
    _check_scheme(connection.given_host, f"--host or {HOST_VARIABLE}")


def _check_scheme(given: str, where: str) -> None:
    scheme, mark, rest = given.partition("://")
    # lower case: KFP's client puts https:// before everything that does not begin with http
    if given and not (scheme in ("http", "https") and rest.strip("/")):
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
    host = connection.given_host
    if given or not host:
        return given.rstrip("/")
    with contextlib.suppress(ValueError):  # an invalid port is reported when a client connects
        if urlsplit(host).port in _API_PORTS:
            return ""
    return host.rstrip("/")


def run_link(ui: str, run_id: str) -> str:
    """Give the page of a run in the UI."""
    return f"{ui}/#/runs/details/{run_id}"


def _credentials(connection: Connection) -> dict[str, Any]:
    """Read the files of a connection into arguments of the client. Raises: ConfigError."""
    ways = {
        "--token-file": connection.token_file,
        "--service-account-token-file": connection.service_account_token_file,
        "--cookies-file": connection.cookies_file,
    }
    used = {name: path for name, path in ways.items() if path is not None}
    if len(used) > 1:
        raise ConfigError(
            "two ways of authentication", found=", ".join(used), expected="at most one"
        )
    texts = {name: read_credential(path, name) for name, path in used.items()}
    arguments: dict[str, Any] = {
        "existing_token": texts.get("--token-file"),
        "cookies": texts.get("--cookies-file"),
    }
    if connection.service_account_token_file:
        # read again for each request: the kubelet renews it
        path = str(connection.service_account_token_file)
        arguments["credentials"] = ServiceAccountTokenVolumeCredentials(path=path)
    if connection.ca_file:
        check_authority(connection.ca_file, "--ca-file")
        arguments["ssl_ca_cert"] = str(connection.ca_file)
    return arguments
