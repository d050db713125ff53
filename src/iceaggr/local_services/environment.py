"""The environment of the local services, and of a run that uses them: stated, not inherited.

What a shell sets for other stores and servers would reach ours, too: a profile that is not there, a
session token, an endpoint, a run to go on with, a proxy, certificates. A service gets what a
program needs to run on this machine and nothing else; a run keeps its shell without those settings.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from iceaggr.local_services.ports import LOOPBACK

# SeaweedFS reads WEED_*, its HTTP library the proxies, MLflow's server those of gunicorn and flask
_OF_THE_MACHINE = (
    *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LOGNAME", "PATH"),
    *("TEMP", "TMP", "TMPDIR", "TZ", "USER"),
)
_FOREIGN_PREFIXES = ("AWS_", "BOTO_", "KFP_", "MLFLOW_", "_MLFLOW_")
_FOREIGN_NAMES = (
    *("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"),
    *("all_proxy", "https_proxy", "http_proxy", "no_proxy"),
    *("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE"),
    *("DATABRICKS_HOST", "DATABRICKS_TOKEN", "NETRC"),
)


def client_settings(
    s3_endpoint: str, mlflow_uri: str, access_key: str, secret_key: str
) -> dict[str, str]:
    """List all variables by which a process finds the services, and nothing else than them."""
    return {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ENDPOINT_URL_S3": s3_endpoint,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        # the files of ~/.aws speak of other stores
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_TRACKING_URI": mlflow_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "NO_PROXY": f"{LOOPBACK},localhost",
        "no_proxy": f"{LOOPBACK},localhost",
    }


def of_the_store(shell: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Make the object store's environment.

    Its users stand in a file: keys in the environment it would take for an administrator's. It
    looks for settings in its home, which is therefore our folder.
    """
    return _of_the_machine(shell) | {"HOME": str(folder)}


def of_the_server(shell: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Make the MLflow server's environment; it stores the artifacts, so it has the store's keys."""
    return _of_the_machine(shell) | {**settings, "PYTHONUTF8": "1"}


def of_a_run(shell: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """Make the environment of a run that uses the services from that of its shell."""
    return {k: v for k, v in shell.items() if not _is_foreign(k)} | dict(settings)


def shell_script(settings: Mapping[str, str]) -> str:
    """Write what a shell sources, any of the POSIX kind, to use the services."""
    foreign = "|".join(
        [*(f"{prefix}[^=]*" for prefix in _FOREIGN_PREFIXES), *(f"{n}" for n in _FOREIGN_NAMES)]
    )
    clean = f"for name in $(env | sed -nE 's/^({foreign})=.*/\\1/p'); do unset \"$name\"; done\n"
    return clean + "".join(f"export {k}={shlex.quote(v)}\n" for k, v in settings.items())


def _of_the_machine(shell: Mapping[str, str]) -> dict[str, str]:
    return {name: shell[name] for name in _OF_THE_MACHINE if name in shell}


def _is_foreign(name: str) -> bool:
    return name.startswith(_FOREIGN_PREFIXES) or name in _FOREIGN_NAMES
