"""Where a cluster keeps what the steps need to know: names of objects and keys, never a value.

The variables have names of our own: those of MLflow and AWS belong to the platform, which may set
them in the same container. `iceaggr.service_settings` says which of the two counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iceaggr.service_settings import PLUGIN_VARIABLE, plugin_settings

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
