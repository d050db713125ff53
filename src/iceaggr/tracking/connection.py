"""The connection to the tracking server: quick to say that it is absent, plain about why."""

from __future__ import annotations

import inspect
import logging
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request, verify_rest_response

from iceaggr.errors import TrackingError
from iceaggr.patience import ask_patiently, away_s, may_pass
from iceaggr.service_settings import (
    fill_environment,
    refuse_credentials,
    tracking_server,
    without_credentials,
)

_PROBE_TIMEOUT_S = 5.0
_OLDEST = 3
"""Major version of MLflow whose servers know logged models, which registering needs."""
_REFUSED_RECORD = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "MALFORMED_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
_AWAY_STATUS = (408, 502, 503, 504)
_FAILING_STATUS = (429, 500)
# what MLflow answers with 503 although no waiting helps: it was started so
_SWITCHED_OFF = ("--serve-artifacts", "--artifacts-only", "Artifact serving is not configured")
# how MLflow and requests write the status of an answer into a text, where that is all that is left
_STATUS_IN_TEXT = (
    re.compile(r"failed with error code (\d{3}) != "),
    re.compile(r"too many (\d{3}) error responses"),
    re.compile(r"\b(\d{3}) (?:Client|Server) Error\b"),
)
_NO_CONNECTION_IN_TEXT = re.compile(
    r"Max retries exceeded|Connection refused|Connection aborted|Connection reset|timed out"
)
# what requests says last, after the objects and calls that it came through
_INNERMOST = re.compile(
    r"Caused by \w+\([\"']?(?:<[^>]*>: |HTTPS?Connection\([^)]*\): )?(.+?)[\"']?\)+$"
)
_UNTRUSTED = re.compile(r"SSLError|CERTIFICATE_VERIFY_FAILED|Tunnel connection failed: 4")
# PostgreSQL and MySQL whose encoding lacks our signs; MLflow answers them with 500
_LACKS_SIGNS = re.compile(
    r"codec can't encode|UntranslatableCharacter|has no equivalent in encoding"
    r"|Incorrect string value"
)
LACKS_SIGNS_REMEDY = (
    "Make MLflow's database anew with ENCODING 'UTF8' (PostgreSQL: SHOW server_encoding) and"
    " restart the server"
)
PATIENCE_S = 90.0
"""How long, outside a pod, the registry waits for its server, which it cannot do without."""
_OUR_DEFAULTS = {
    # MLflow's own would repeat a request for minutes; the outbox and `patient` repeat instead
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # files pass through the server: the addresses that it would give out for its object store are
    # those of its own network
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class ServerAwayError(TrackingError):
    """No tracking server answers, or what stands before it says so (502 to 504)."""

    may_pass = True


class ServerFailingError(TrackingError):
    """The server answers with an error of its own (500, 429), which may pass: it starts, or its
    database does.
    """

    may_pass = True


def _answers(error: Exception) -> bool:
    """Tell whether something answers at the address, so that it is the right one."""
    cause = error.__cause__
    return may_pass(error) and isinstance(cause, Exception) and status_of(cause) > 0


def _let_servers_tell_their_errors() -> None:
    """Make MLflow's client hand on each answer of a server.

    By default it repeats a request that was answered with 429 or 5xx, and after the last time it
    tells 'too many 500 error responses' instead of what the server said.
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(http_request).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.default is not parameter.empty
    }
    if "retry_codes" in defaults:
        http_request.__defaults__ = tuple((defaults | {"retry_codes": frozenset()}).values())


def connect(tracking_uri: str, patience_s: float = 0.0, failing_s: float = 0.0) -> MlflowClient:
    """Open a client after a quick probe; an empty URI means that of `iceaggr.service_settings`.

    patience_s: how long to wait for a server that is away or failing; failing_s: at
    least so long for one that answers, even if with an error: its address is right.
    Sets in this process what MLflow reads from its variables: our login where the platform gives
    none, and our defaults of MLFLOW_* unless they are set already. Quiets its notes.
    Raises: ConfigError if the address holds a password; TrackingError if the server is too old;
    ServerAwayError, ServerFailingError about five seconds after the patience is over.
    """
    uri = tracking_uri or tracking_server()
    if not uri:
        raise TrackingError(
            "no tracking server given",
            where="MLFLOW_TRACKING_URI",
            found="nothing",
            expected="MLFLOW_TRACKING_URI in the environment, or an address",
            remedy="Set it, or start the local services with `make up`; on a cluster,"
            " mlflow-tracking-uri in settings.env",
        )
    refuse_password(uri)
    fill_environment()
    for name, value in _OUR_DEFAULTS.items():
        os.environ.setdefault(name, value)
    _let_servers_tell_their_errors()
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its progress notes are not ours
    if uri.startswith(("http://", "https://")):
        version = ask_patiently(
            lambda: ask_patiently(
                lambda: server_version(uri), is_away=_answers, patience_s=failing_s
            ),
            is_away=may_pass,
            patience_s=patience_s,
        )
        if version and int(version.partition(".")[0]) < _OLDEST:
            raise TrackingError(
                "tracking server is too old",
                where=uri,
                found=f"MLflow {version}",
                expected=f"MLflow {_OLDEST}.0 or later",
                remedy="Upgrade the server: it does not know the models of MLflow 3",
            )
    with as_tracking_error("tracking server refused the connection", uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def refuse_password(tracking_uri: str) -> None:
    """Refuse a server whose address holds a password, before it is written down anywhere.

    Raises: ConfigError.
    """
    # a folder may be named anything; a server or a database may not
    if not tracking_uri.startswith(("file:", "/")):
        refuse_credentials(
            tracking_uri,
            where="MLFLOW_TRACKING_URI",
            remedy="Give them in MLFLOW_TRACKING_USERNAME and _PASSWORD, or in _TOKEN",
        )


def server_version(uri: str) -> str:
    """Ask a server for its version, as MLflow's own client asks: with its certificates and proxies.

    Returns '' if it answers otherwise; what it wants from us shows at the first real request.
    Raises: TrackingError, ServerAwayError within about five seconds, ServerFailingError.
    """
    with as_tracking_error("tracking server not reachable", uri):
        answer = http_request(
            get_default_host_creds(uri),
            "/version",
            "GET",
            max_retries=0,
            timeout=_PROBE_TIMEOUT_S,
            raise_on_status=False,
        )
        if answer.status_code in _AWAY_STATUS:
            answer.raise_for_status()
    if answer.status_code in _FAILING_STATUS:
        with as_tracking_error("tracking server fails", uri):
            verify_rest_response(answer, "/version")
    text = str(answer.text).strip()
    return text if answer.status_code == 200 and re.fullmatch(r"\d+\.\d+\S{0,30}", text) else ""


@contextmanager
def as_tracking_error(failed: str, where: str) -> Iterator[None]:
    """Tell MLflow's errors as TrackingError, in one line; of the kind that says if it may pass."""
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        kind = _kind(error)
        raise kind(
            failed,
            where=where,
            found=_words(error),
            expected="an answer without an error",
            remedy=_remedy(error, kind),
        ) from error


def patient(method: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Repeat a method that may run twice, while the server is away or failing.

    Waits for PATIENCE_S, in a pod for `patience.AWAY_S`.
    """

    @wraps(method)
    def repeating(*arguments: Arguments.args, **options: Arguments.kwargs) -> Answer:
        return ask_patiently(
            lambda: method(*arguments, **options),
            is_away=may_pass,
            patience_s=away_s(PATIENCE_S),
        )

    return repeating


def _kind(error: Exception) -> type[TrackingError]:
    """Sort an error: away is no connection, a time-out, 502 to 504; failing is 500 or 429."""
    text, status = str(error), status_of(error)
    for_good = any(words in text for words in _SWITCHED_OFF)
    if for_good or _UNTRUSTED.search(text) or _LACKS_SIGNS.search(text):
        return TrackingError
    if status in _AWAY_STATUS or (not status and _is_no_connection(error)):
        return ServerAwayError
    return ServerFailingError if status in _FAILING_STATUS else TrackingError


def status_of(error: Exception) -> int:
    """Give the HTTP status of the answer that an error tells of, 0 if there was none."""
    if isinstance(error, requests.RequestException) and error.response is not None:
        return int(error.response.status_code)
    for pattern in _STATUS_IN_TEXT:
        if found := pattern.search(str(error)):
            return int(found[1])
    return int(error.get_http_status_code()) if isinstance(error, RestException) else 0


def _is_no_connection(error: Exception) -> bool:
    # MLflow wraps what requests raised, now and then as a text only
    lost = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    chain = (error, error.__cause__, error.__context__)
    told = _NO_CONNECTION_IN_TEXT.search(str(error))
    return told is not None or any(isinstance(one, lost) for one in chain)


def _words(error: Exception) -> str:
    """Give the server's own words, with the status of its answer if they do not tell it."""
    words = " ".join(str(error).split())
    if inner := _INNERMOST.search(words):
        words = inner[1]
    words, status = without_credentials(words)[:500], status_of(error)
    return words if not status or str(status) in words else f"HTTP {status}: {words}"


def _remedy(error: Exception, kind: type[TrackingError]) -> str:
    text, status = str(error), status_of(error)
    if "SSLError" in text or "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            "Name the authority's certificate in MLFLOW_TRACKING_SERVER_CERT_PATH or"
            " REQUESTS_CA_BUNDLE"
        )
    if _LACKS_SIGNS.search(text):
        return LACKS_SIGNS_REMEDY
    if any(words in text for words in _SWITCHED_OFF):
        return "Start the server with --serve-artifacts and --artifacts-destination"
    if status == 404 and getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
        return "Check the name; the tracking server's pages list what there is"
    if status in (401, 403, 407):
        return "Check the credentials in MLFLOW_TRACKING_USERNAME, _PASSWORD or _TOKEN"
    if kind is ServerAwayError:
        return "Check MLFLOW_TRACKING_URI, or start the local services with `make up`"
    return "Check the tracking server's log and MLFLOW_TRACKING_URI"


def is_refused_for_good(error: Exception) -> bool:
    """Tell whether a record can never be accepted, whoever sends it and whenever.

    A server that asks for other credentials is none of that: its records wait.
    """
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSED_RECORD
    if isinstance(error, requests.RequestException):
        return status_of(error) in (400, 404, 413)
    return True


# What the first step finds out about the tracking server, before a day's work relies on it.
#
# A database that cannot hold our signs, or a server that keeps no files, would refuse the results
# of the last step. So the first one writes a text and a file of the kind that the last one writes.

NOTE_TAG = "mlflow.note.content"
PLAIN_NOTE = "The pipeline works on this run."
NOTE = f"{PLAIN_NOTE} Angles come in ° ± their error; the verdict (gain ≥ so many σ) comes last."
"""Holds a sign of each kind that our texts have beyond ASCII: Latin, Greek, mathematical."""
SETTINGS_FILE = "settings.json"
_HERE = ("localhost", "127.0.0.1", "::1", "[::1]")
_WITH_SCHEME = ("mlflow-artifacts:", "http:", "https:", "s3:", "gs:", "wasbs:", "abfss:", "dbfs:")


def check_server(client: MlflowClient, run_id: str, settings: str, patience_s: float) -> None:
    """Write a text with our signs and a file into a run, and read them back.

    settings: text of the file, which stays with the run.
    patience_s: how long to wait for a server that is away or failing.
    Raises: TrackingError that names what the server cannot keep, and why.
    """

    def check() -> None:
        _check_place_of_files(client, run_id)
        _check_signs(client, run_id)
        _check_files(client, run_id, settings)

    ask_patiently(check, is_away=may_pass, patience_s=patience_s)


def _check_place_of_files(client: MlflowClient, run_id: str) -> None:
    """Refuse a server without an artifact store: each client would keep files on its own disk."""
    server = client.tracking_uri
    with as_tracking_error("cannot read the run", run_id):
        place = str(client.get_run(run_id).info.artifact_uri)
    is_here = not server.startswith(("http:", "https:")) or urlsplit(server).hostname in _HERE
    if place.startswith(_WITH_SCHEME) or is_here:
        return
    raise TrackingError(
        "tracking server has no artifact store",
        where=server,
        found=f"files of runs go to {place}, a folder of each client's own disk",
        expected="a server that takes files, or an object store that all can reach",
        remedy="Start the server with --serve-artifacts and --artifacts-destination, then use a new"
        " experiment: an experiment keeps its place",
    )


def _check_signs(client: MlflowClient, run_id: str) -> None:
    """Write our signs after a plain text: if only they fail, it is the database's encoding."""
    with as_tracking_error("cannot write into the run", run_id):
        client.set_tag(run_id, NOTE_TAG, PLAIN_NOTE)
    try:
        with as_tracking_error("cannot write into the run", run_id):
            client.set_tag(run_id, NOTE_TAG, NOTE)
            found = client.get_run(run_id).data.tags[NOTE_TAG]
    except TrackingError as error:
        if isinstance(error, ServerAwayError):
            raise
        with as_tracking_error("cannot write into the run", run_id):
            client.set_tag(run_id, NOTE_TAG, PLAIN_NOTE)  # fails, too, if it is another trouble
        # the error becomes a tag of the run itself, and must not hold what the server refuses
        words = f"{error.found}".encode("ascii", "replace").decode()
        raise _without_signs(client, words) from None  # a failing server may recover, this one not
    if found != NOTE:
        raise _without_signs(client, ascii(found))


def _without_signs(client: MlflowClient, found: str) -> TrackingError:
    return TrackingError(
        "tracking server cannot keep texts with signs such as plus-minus or degrees",
        where=client.tracking_uri,
        found=found,
        expected="a database in UTF-8, which plain text alone does not need",
        remedy=LACKS_SIGNS_REMEDY,
    )


def _check_files(client: MlflowClient, run_id: str, settings: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="iceaggr-first-step-") as scratch,
        as_tracking_error("tracking server cannot keep files", client.tracking_uri),
    ):
        path = Path(scratch, SETTINGS_FILE)
        path.write_text(settings, encoding="utf-8")
        client.log_artifact(run_id, str(path))
        back = mlflow.artifacts.download_artifacts(
            run_id=run_id,
            artifact_path=SETTINGS_FILE,
            dst_path=str(Path(scratch, uuid.uuid4().hex)),
            tracking_uri=client.tracking_uri,
        )
        found = Path(back).read_text(encoding="utf-8")
    if found != settings:
        raise TrackingError(
            "tracking server gives back another file than it was given",
            where=f"{client.tracking_uri}, run {run_id}, {SETTINGS_FILE}",
            found=f"{len(found)} characters",
            expected=f"the {len(settings)} characters that were sent",
            remedy="Check the server's --artifacts-destination",
        )
