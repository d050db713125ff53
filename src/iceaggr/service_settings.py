"""Where a process finds the object store and MLflow: what the platform says, then what we say.

The variables of MLflow and of the AWS tools belong to the platform. Kubeflow's MLflow plugin puts
them into a step, a cloud's webhook puts them into a pod, a person sets them in a shell. If our
ConfigMap and secrets used these names too, a container would have them twice, and Kubernetes
refuses such a pod. So ours have names of our own, ICEAGGR_..., and fill what the platform left
open:

1. what Kubeflow's plugin tells in KFP_MLFLOW_CONFIG: the run that it made is on its server
2. the variables of MLflow and AWS
3. ours

A login is never mixed from two sources: whoever sets a part of it must set all of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from os import environ
from urllib.parse import urlsplit

from iceaggr.errors import ConfigError, TrackingError

# Addresses of services must not hold passwords; one that does is shown without it.
#
# An address is printed, logged, kept with a run and sent to other services: a password in it would
# leak. Each service has variables of its own for credentials.

# to the last @ of an address: a password may hold @ and / itself. Keys of objects may hold @, too.
_CREDENTIALS = re.compile(r"(?<!s3://)(?<!file://)(?<=://)[^\s\"']*@(?=[^\s])")
# before the first slash of a storage URI stands a bucket or a host, and no bucket holds @
_BEFORE_BUCKET = re.compile(r"(?<=://)[^\s/\"']*@")
# nor does one hold a colon (an ARN does): what follows is a secret, which may hold / itself
_KEY_PAIR = re.compile(r"(?<=s3://)(?!arn:)[\w.~%+=-]*:[^\s\"']+")
_SIGNATURE = re.compile(
    r"\?(?=[^\s\"']*(?:x-amz-|awsaccesskeyid=|signature=))[^\s\"']*", re.IGNORECASE
)


def without_credentials(text: str) -> str:
    """Replace `user:password@` in every address in a text by `***@`, and a signature by `?***`."""
    text = _KEY_PAIR.sub(_masked_pair, _BEFORE_BUCKET.sub("***@", text))
    return _SIGNATURE.sub("?***", _CREDENTIALS.sub("***@", text))


def _masked_pair(found: re.Match[str]) -> str:
    _, at, rest = found[0].rpartition("@")
    return f"***@{rest}" if at else "***"


def refuse_credentials(address: str, where: str, remedy: str) -> None:
    """Refuse an address that may hold a user, a password or a token, without quoting them.

    No service needs an @, a query or a fragment in its address, but a password may be written in
    so many ways that no parser finds its end.
    where: variable or option that gave the address.  remedy: where credentials belong instead.
    Raises: ConfigError.
    """
    before, at, host = address.rpartition("@")
    scheme = re.match(r"[a-z][a-z0-9+.-]*:/*", before if at else address)
    plain = re.split(r"[?#]", host, maxsplit=1)[0]
    if at or plain != host:
        start = scheme[0] if scheme else ""
        rest = f"***@{plain}" if at else plain[len(start) :]
        raise ConfigError(
            "address holds a user or a password" if at else "address holds a query",
            where=where,
            found=f"{start}{rest}" + ("?***" if plain != host else ""),
            expected="http://host:port or https://host:port",
            remedy=remedy,
        )


PLUGIN_VARIABLE = "KFP_MLFLOW_CONFIG"
"""Written by Kubeflow's MLflow plugin into every container of a run; it holds no secret."""
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
_OUR_TRACKING = "ICEAGGR_TRACKING_URI"
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class _Setting:
    """Variables that are one setting: ours with the standard name each of them fills.

    also: further standard names, each of which means that the platform made the setting already.
    """

    ours: Mapping[str, str]
    also: tuple[str, ...]

    def additions(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Give our values under the standard names, if the setting is ours to make."""
        # an empty variable says nothing
        if any(environment.get(name) for name in (*self.ours.values(), *self.also)):
            return {}
        found = {name: environment.get(ours, "") for ours, name in self.ours.items()}
        return {name: value for name, value in found.items() if value}


# the name for S3 alone: AWS_ENDPOINT_URL would send the exchange of a web identity there, too
_ENDPOINT = _Setting(
    {"ICEAGGR_OBJECT_STORE_ENDPOINT": "AWS_ENDPOINT_URL_S3"}, ("AWS_ENDPOINT_URL",)
)
_REGION = _Setting({"ICEAGGR_OBJECT_STORE_REGION": "AWS_DEFAULT_REGION"}, ("AWS_REGION",))
_KEYS = _Setting(
    {
        "ICEAGGR_OBJECT_STORE_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID",
        "ICEAGGR_OBJECT_STORE_SECRET_ACCESS_KEY": "AWS_SECRET_ACCESS_KEY",
    },
    # Source: botocore.credentials, the ways of a session that need a variable
    (
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_SHARED_CREDENTIALS_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ),
)
_LOGIN = _Setting(
    {
        "ICEAGGR_TRACKING_USERNAME": "MLFLOW_TRACKING_USERNAME",
        "ICEAGGR_TRACKING_PASSWORD": "MLFLOW_TRACKING_PASSWORD",
        "ICEAGGR_TRACKING_TOKEN": "MLFLOW_TRACKING_TOKEN",
    },
    ("MLFLOW_TRACKING_AUTH",),
)


def store_settings(environment: Mapping[str, str] = environ) -> dict[str, str]:
    """Give the variables, those of AWS filled from ours where the platform set none."""
    filled = dict(environment)
    for setting in (_ENDPOINT, _REGION, _KEYS):
        filled |= setting.additions(environment)
    return filled


def fill_environment(environment: MutableMapping[str, str] = environ) -> None:
    """Fill the variables of MLflow and AWS from ours, for a library that reads them itself.

    Our login goes to our MLflow server only: it is left out where the platform names another one.
    Raises: TrackingError if KFP_MLFLOW_CONFIG is not what the plugin writes.
    """
    server, ours = tracking_server(environment), environment.get(_OUR_TRACKING, "")
    if not ours or _place(ours) == _place(server):
        environment.update(_LOGIN.additions(environment))
    if server:
        environment[TRACKING_VARIABLE] = server
    environment.update(store_settings(environment))  # for artifacts that lie in a bucket


def tracking_server(environment: Mapping[str, str] = environ) -> str:
    """Name the MLflow server, '' without any.

    Raises: TrackingError if KFP_MLFLOW_CONFIG is not what the plugin writes.
    """
    endpoint = str(plugin_settings(environment).get("endpoint") or "")
    return endpoint or environment.get(TRACKING_VARIABLE) or environment.get(_OUR_TRACKING, "")


def plugin_settings(environment: Mapping[str, str] = environ) -> dict[str, object]:
    """Read what Kubeflow's MLflow plugin tells a step, {} without the plugin.

    Raises: TrackingError if it is no JSON object.
    """
    text = environment.get(PLUGIN_VARIABLE, "")
    if not text:
        return {}
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError):
        raise TrackingError(
            "KFP_MLFLOW_CONFIG is not a JSON object",
            where=PLUGIN_VARIABLE,
            found=f"{len(text)} characters",  # which may hold credentials
            expected="what Kubeflow's MLflow plugin writes",
            remedy="Unset it, or correct the MLflow plugin's configuration",
        ) from None


def attached_run_id(environment: Mapping[str, str] = environ) -> str:
    """Name the run that Kubeflow's MLflow plugin made for this pipeline run, '' without the plugin.

    It is the same for all steps. MLFLOW_RUN_ID, which an administrator may have injected, is the
    plugin's run of this step alone; it counts where nothing names that of the whole pipeline.
    Raises: TrackingError if KFP_MLFLOW_CONFIG is not what the plugin writes.
    """
    root = str(plugin_settings(environment).get("parentRunId") or "")
    return root or environment.get("MLFLOW_RUN_ID", "")


def _place(uri: str) -> tuple[str, str, int | None]:
    """Give scheme, host and port, which identify a server; credentials and paths do not."""
    parts = urlsplit(uri)
    try:
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:  # told by whoever connects
        port = None
    return parts.scheme, parts.hostname or parts.path, port


# Where a cluster keeps what the steps need to know: names of objects and keys, never a value.
#
# The variables have names of our own, see above.

SETTINGS_CONFIG_MAP = "iceaggr-settings"
"""ConfigMap in the namespace of the runs."""
OBJECT_STORE_SECRET = "iceaggr-object-store"
"""Secret in the namespace of the runs; absent where pods have an identity of their own."""
TRACKING_SECRET = "iceaggr-mlflow"
"""Secret in the namespace of the runs; absent where MLflow asks for no login."""

SETTINGS_ENVIRONMENT = {
    "mlflow-tracking-uri": "ICEAGGR_TRACKING_URI",
    "object-store-endpoint": "ICEAGGR_OBJECT_STORE_ENDPOINT",
    "object-store-region": "ICEAGGR_OBJECT_STORE_REGION",
    "allowed-uris": "ICEAGGR_ALLOWED_URIS",
    "kfp-api": "ICEAGGR_KFP_API",
}
OBJECT_STORE_ENVIRONMENT = {
    "access-key-id": "ICEAGGR_OBJECT_STORE_ACCESS_KEY_ID",
    "secret-access-key": "ICEAGGR_OBJECT_STORE_SECRET_ACCESS_KEY",
}
TRACKING_ENVIRONMENT = {
    "username": "ICEAGGR_TRACKING_USERNAME",
    "password": "ICEAGGR_TRACKING_PASSWORD",
    "token": "ICEAGGR_TRACKING_TOKEN",
}


# Source: kubeflow/pipelines 2.17.0, backend/src/common/plugins/mlflow/config.go
_PLUGIN_SECRET = "kfp-mlflow-credentials"
_PLUGIN_LOGIN = {
    "tokenKey": "MLFLOW_TRACKING_TOKEN",
    "usernameKey": "MLFLOW_TRACKING_USERNAME",
    "passwordKey": "MLFLOW_TRACKING_PASSWORD",
}
_PLUGIN_PLAIN = (
    PLUGIN_VARIABLE,
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_WORKSPACE",
    "MLFLOW_TRACKING_AUTH",
)


@dataclass(frozen=True)
class SecretKey:
    """Where the value of a variable lies; the value itself never passes through here."""

    kind: str
    name: str
    key: str


def environment_references() -> dict[str, SecretKey]:
    """Give every variable of a step with the object and key that hold its value."""
    sources = (
        ("configMapKeyRef", SETTINGS_CONFIG_MAP, SETTINGS_ENVIRONMENT),
        ("secretKeyRef", OBJECT_STORE_SECRET, OBJECT_STORE_ENVIRONMENT),
        ("secretKeyRef", TRACKING_SECRET, TRACKING_ENVIRONMENT),
    )
    return {
        variable: SecretKey(kind, name, key)
        for kind, name, keys in sources
        for key, variable in keys.items()
    }


def plugin_references(environment: Mapping[str, str]) -> dict[str, str | SecretKey]:
    """Give what Kubeflow's MLflow plugin told this step, for pods that it does not know.

    Returns {} without the plugin. The plugin writes into the containers of the pipeline alone: the
    pods of a TrainJob would track to another run, or without its login.
    Raises: TrackingError if KFP_MLFLOW_CONFIG is not what the plugin writes.
    """
    settings = plugin_settings(environment)
    if not settings:
        return {}
    told: dict[str, str | SecretKey] = {
        name: environment[name] for name in _PLUGIN_PLAIN if environment.get(name)
    }
    keys = settings.get("credentialSecretRef")
    for field, variable in _PLUGIN_LOGIN.items():
        if isinstance(keys, dict) and keys.get(field):
            told[variable] = SecretKey("secretKeyRef", _PLUGIN_SECRET, str(keys[field]))
    return told
