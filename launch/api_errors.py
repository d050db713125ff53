"""What the Kubeflow Pipelines API refuses, as errors a person can act on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import urllib3
from kfp_server_api.exceptions import ApiException

from iceaggr.addresses import without_credentials
from iceaggr.errors import IceaggrError

HOST_VARIABLE = "KF_PIPELINES_ENDPOINT"
_FIRST_SERVER_ERROR = 500
_TOO_MANY_REQUESTS = 429
_REMEDIES = {
    401: "Give a valid token: --token-file, --service-account-token-file or --cookies-file",
    403: "Ask for the rights to create runs in this namespace, or give another --namespace",
    400: "The server did not accept the values, see above",
    404: "Is this the address of a Kubeflow Pipelines 2.x API?",
}
_SERVER_REMEDY = "The server's log says more; what was done so far stays, so try again"


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


def _sentence_of(error: ApiException) -> str:
    body = error.body or error.reason or ""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)
    with contextlib.suppress(ValueError, AttributeError):
        document = json.loads(text)
        text = str(document.get("message") or document.get("error") or text)
    return " ".join(text.split())[:300]
