"""The object store of the `standalone` overlay on this machine, with the manifest's arguments."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

from iceaggr.local_services.processes import LOOPBACK, choose_ports, start_process
from iceaggr.local_services.services import PORTS, remove_sockets
from manifests.new_credentials import identities
from tests.manifests.rendering import find, render
from tests.manifests.waiting import LostPortError, wait_until_well

MAX_STARTS = 5


@contextmanager
def object_store_server(folder, keys):
    """Run the manifest's command with these users; gives the address."""
    (folder / "data").mkdir()
    (folder / "identities.json").write_text(identities(keys))
    process, ports = _started(folder)
    try:
        yield f"http://{LOOPBACK}:{ports['s3']}"
    finally:
        process.stop(1.0)
        remove_sockets(ports)


def _started(folder):
    """Start the store, on other ports if somebody took one between our looking and its binding."""
    server = find(render("standalone"), "StatefulSet", "object-store")
    (container,) = server["spec"]["template"]["spec"]["containers"]
    probe = container["readinessProbe"]["httpGet"]["path"]
    # like a pod, it finds no keys in its environment, which it would take for an administrator's
    plain = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    for start in range(1, MAX_STARTS + 1):
        ports = choose_ports(dict.fromkeys(PORTS, 0))
        command = _command(container, folder, ports)
        process = start_process("weed", command, folder / "log", plain)
        try:
            url = f"http://{LOOPBACK}:{ports['s3']}{probe}"
            wait_until_well(process, url, folder / "log", within_s=180)
            return process, ports
        except BaseException as error:
            process.stop(1.0)
            remove_sockets(ports)
            if not isinstance(error, LostPortError) or start == MAX_STARTS:
                raise
    raise AssertionError("never here: the last start returns or raises")


def _command(container, folder, ports):
    _, *flags = container["command"]
    arguments = [
        argument.replace("/data", str(folder / "data"))
        .replace("/etc/seaweedfs", str(folder))
        .replace("=8333", f"={ports['s3']}")
        for argument in container["args"]
    ]
    for name in ("master", "volume", "filer"):
        arguments.append(f"-{name}.port={ports[name]}")
        arguments.append(f"-{name}.port.grpc={ports[f'{name}_grpc']}")
    arguments.append(f"-s3.port.grpc={ports['s3_grpc']}")
    return [str(Path(sys.executable).parent / "weed"), *flags, *arguments]
