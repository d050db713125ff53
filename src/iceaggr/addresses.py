"""Addresses of services: where they may not hold a password, and how to show one that does.

An address is printed, logged, kept with a run and sent to other services, so that a password in
it is a password told. Each service has variables of its own for credentials.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from iceaggr.errors import ConfigError

_CREDENTIALS = re.compile(r"(?<=://)[^/\s@\"']*@(?=[^\s])")


def without_credentials(text: str) -> str:
    """Replace `user:password@` in every address of a text by `***@`."""
    return _CREDENTIALS.sub("***@", text)


def refuse_credentials(address: str, where: str, remedy: str) -> None:
    """Refuse an address with user or password in it, without quoting them.

    where: variable or option that gave the address.  remedy: where credentials belong instead.
    Raises: ConfigError.
    """
    try:
        found = "@" in urlsplit(address).netloc
    except ValueError:  # a broken host is told by whoever connects to it
        found = "@" in address
    if found:
        raise ConfigError(
            "address holds a user or a password",
            where=where,
            found=without_credentials(address),
            expected="http://host:port or https://host:port",
            remedy=remedy,
        )
