"""Make the secrets of the `standalone` overlay: new random keys, printed as one YAML stream.

python manifests/new_credentials.py | kubectl create --filename -

Nothing is stored here; each call makes other keys, so `create`, which replaces none that is there:
the database keeps the password that it was made with. The policies of manifests/policies/ go along.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iceaggr.entry import begin

    begin()

import argparse
import json
import secrets
from pathlib import Path
from typing import Any

import yaml

SERVICES_NAMESPACE = "iceaggr"
_DATABASE_SECRET = "iceaggr-mlflow-database"
_POLICIES = Path(__file__).parent / "policies"
# key pair -> its policy; the administrator only makes the buckets
_USERS = {"pipeline": "pipeline", "ingest": "ingest", "tracking": "tracking", "admin": ""}


def identities(keys: dict[str, dict[str, str]]) -> str:
    """Write SeaweedFS's configuration: each user with the policy of its name.

    keys: user -> access-key-id and secret-access-key
    """
    users: list[dict[str, Any]] = []
    for user, policy in _USERS.items():
        pair = keys[user]
        rights: dict[str, Any] = {"policyNames": [policy]} if policy else {"actions": ["Admin"]}
        credential = {
            "accessKey": pair["access-key-id"],
            "secretKey": pair["secret-access-key"],
        }
        users.append({"name": user, "credentials": [credential], **rights})
    policies = [
        {"name": policy, "content": (_POLICIES / f"{policy}.json").read_text(encoding="utf-8")}
        for policy in _USERS.values()
        if policy
    ]
    return json.dumps({"identities": users, "policies": policies})


def new_keys() -> dict[str, dict[str, str]]:
    """Draw a key pair for each user."""
    return {
        user: {
            "access-key-id": secrets.token_hex(10).upper(),
            "secret-access-key": secrets.token_hex(20),
        }
        for user in _USERS
    }


def secret_objects(keys: dict[str, dict[str, str]], run_namespace: str) -> list[dict[str, Any]]:
    """Describe the secrets that the manifests name."""
    # hexadecimal: it becomes part of a URL
    password = {"password": secrets.token_hex(20)}
    return [
        *object_store_secrets(keys, run_namespace),
        _secret(_DATABASE_SECRET, SERVICES_NAMESPACE, password),
    ]


def object_store_secrets(
    keys: dict[str, dict[str, str]], run_namespace: str
) -> list[dict[str, Any]]:
    """Describe the secrets that may be replaced later: the keys of the object store."""
    here = SERVICES_NAMESPACE
    return [
        _secret("iceaggr-object-store-identities", here, {"identities.json": identities(keys)}),
        _secret("iceaggr-object-store-admin", here, keys["admin"]),
        _secret("iceaggr-object-store-ingest", here, keys["ingest"]),
        _secret("iceaggr-mlflow-object-store", here, keys["tracking"]),
        _secret("iceaggr-object-store", run_namespace, keys["pipeline"]),
    ]


def _secret(name: str, namespace: str, values: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/part-of": "iceaggr"},
        },
        "type": "Opaque",
        "stringData": values,
    }


def main() -> None:
    """Print the objects."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-namespace", default="kubeflow", help="where the steps run")
    parser.add_argument(
        "--rotate",
        action="store_true",
        help="only the keys of the object store, to replace the present ones with `kubectl apply`",
    )
    given = parser.parse_args()
    make_objects = object_store_secrets if given.rotate else secret_objects
    print(yaml.safe_dump_all(make_objects(new_keys(), given.run_namespace)))


if __name__ == "__main__":
    from iceaggr.entry import run

    run(main)
