"""The connection to the tracking server: quick to say that it is absent, plain about why."""

from __future__ import annotations

import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from iceaggr.addresses import refuse_credentials, without_credentials
from iceaggr.errors import TrackingError
from iceaggr.patience import ask_patiently
from iceaggr.service_settings import fill_environment, tracking_server

_PROBE_TIMEOUT_S = 5.0
_REFUSED_FOR_GOOD = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "MALFORMED_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
_NOT_ALLOWED = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}
PATIENCE_S = 90.0
"""How long the registry, which cannot do without its server, waits for one that is away."""
# MLflow's own defaults repeat a request for minutes; the outbox repeats instead, without blocking.
_QUICK_REQUESTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class ServerAwayError(TrackingError):
    """No tracking server answers; it may come back."""


def is_away(error: TrackingError) -> bool:
    """Tell whether the same may succeed later: the server was away, and refused nothing."""
    if isinstance(error, ServerAwayError):
        return True
    cause = error.__cause__
    if not isinstance(cause, Exception) or getattr(cause, "error_code", "") in _NOT_ALLOWED:
        return False
    return not is_refused_for_good(cause)


def connect(tracking_uri: str, patience_s: float = 0.0) -> MlflowClient:
    """Open a client after a quick probe; an empty URI means that of `iceaggr.service_settings`.

    patience_s: how long to wait for a server that is away.
    Sets in this process what MLflow reads from its variables: our login where the platform gives
    none, and quick-failing MLFLOW_HTTP_* defaults unless they are set already. Quiets its notes.
    Raises: ConfigError if the address holds a password; TrackingError; ServerAwayError about five
    seconds after the patience is over.
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
    for name, value in _QUICK_REQUESTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # its progress notes are not ours
    if uri.startswith(("http://", "https://")):
        ask_patiently(
            lambda: _probe(uri),
            is_away=lambda error: isinstance(error, ServerAwayError),
            patience_s=patience_s,
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


def _probe(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_PROBE_TIMEOUT_S):
            return
    except urllib.error.HTTPError:
        return  # it answers; what it wants from us shows at the first real request
    except (OSError, ValueError) as error:
        raise ServerAwayError(
            "tracking server not reachable",
            where=uri,
            found=str(getattr(error, "reason", error)),
            expected=f"an MLflow server that answers within {_PROBE_TIMEOUT_S:.0f} s",
            remedy="Check MLFLOW_TRACKING_URI, or start the local services with `make up`",
        ) from None


@contextmanager
def as_tracking_error(failed: str, where: str) -> Iterator[None]:
    """Tell MLflow's errors as TrackingError, in one line."""
    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        raise TrackingError(
            failed,
            where=where,
            found=without_credentials(" ".join(str(error).split()))[:500],
            expected="an answer without an error",
            remedy=_remedy(error),
        ) from error


def patient(method: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Repeat a method that may run twice, for a minute and a half, while the server is away."""

    @wraps(method)
    def repeating(*arguments: Arguments.args, **options: Arguments.kwargs) -> Answer:
        return ask_patiently(
            lambda: method(*arguments, **options),
            is_away=lambda error: isinstance(error, TrackingError) and is_away(error),
            patience_s=PATIENCE_S,
        )

    return repeating


def _remedy(error: Exception) -> str:
    code = getattr(error, "error_code", "")
    if code == "RESOURCE_DOES_NOT_EXIST":
        return "Check the name; the tracking server's pages list what there is"
    if code in _NOT_ALLOWED:
        return "Check the credentials in MLFLOW_TRACKING_USERNAME, _PASSWORD or _TOKEN"
    return "Check the tracking server's log and MLFLOW_TRACKING_URI"


def is_refused_for_good(error: Exception) -> bool:
    """Tell whether sending the same again can never succeed."""
    if isinstance(error, MlflowException):
        return error.error_code in _REFUSED_FOR_GOOD
    if isinstance(error, requests.RequestException):
        status = error.response.status_code if error.response is not None else 0
        return status in (400, 404, 413)
    return True
