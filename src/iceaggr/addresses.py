"""Addresses of services: where they may not hold a password, and how to show one that does.

An address is printed, logged, kept with a run and sent to other services, so that a password in
it is a password told. Each service has variables of its own for credentials.
"""

from __future__ import annotations

import re

from iceaggr.errors import ConfigError

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
