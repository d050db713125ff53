"""Ports on loopback: the usual ones when they are free, other ones when not."""

from __future__ import annotations

import random
import socket
from collections.abc import Mapping

from iceaggr.errors import ServiceError

LOOPBACK = "127.0.0.1"
# Below the range that the kernel hands to outgoing connections, which could take one meanwhile.
_SEARCHED = range(20_000, 32_000)
_MAX_TRIES = 200


def is_free(port: int) -> bool:
    """Tell whether nothing listens on a loopback port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def choose_ports(wanted: Mapping[str, int]) -> dict[str, int]:
    """Give every name its wanted port, or another free one if that is taken or 0.

    Raises: ServiceError if hardly any port is free.
    """
    chosen: dict[str, int] = {}
    for name, port in wanted.items():
        taken = set(chosen.values())
        tries = [port, *random.sample(_SEARCHED, _MAX_TRIES)]
        free = (p for p in tries if p and p not in taken and is_free(p))
        found = next(free, None)
        if found is None:
            raise ServiceError(
                f"no free port for {name}",
                where=LOOPBACK,
                found=f"{_MAX_TRIES} ports of {_SEARCHED.start}-{_SEARCHED.stop} tried",
                expected="one that nobody listens on",
                remedy="Stop the processes that hold them: see `ss -ltn`",
            )
        chosen[name] = found
    return chosen
