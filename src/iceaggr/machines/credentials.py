"""Where a cluster keeps what the steps need to know: names of objects and keys, never a value."""

from __future__ import annotations

from dataclasses import dataclass

SETTINGS_CONFIG_MAP = "iceaggr-settings"
"""ConfigMap in the namespace of the runs."""
OBJECT_STORE_SECRET = "iceaggr-object-store"
"""Secret in the namespace of the runs; absent where pods have an identity of their own."""
TRACKING_SECRET = "iceaggr-mlflow"
"""Secret in the namespace of the runs; absent where MLflow asks for no login."""

SETTINGS_ENVIRONMENT = {
    "mlflow-tracking-uri": "MLFLOW_TRACKING_URI",
    "object-store-endpoint": "AWS_ENDPOINT_URL",
    "object-store-region": "AWS_DEFAULT_REGION",
    "allowed-uris": "ICEAGGR_ALLOWED_URIS",
}
OBJECT_STORE_ENVIRONMENT = {
    "access-key-id": "AWS_ACCESS_KEY_ID",
    "secret-access-key": "AWS_SECRET_ACCESS_KEY",
}
TRACKING_ENVIRONMENT = {
    "username": "MLFLOW_TRACKING_USERNAME",
    "password": "MLFLOW_TRACKING_PASSWORD",
    "token": "MLFLOW_TRACKING_TOKEN",
}


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
