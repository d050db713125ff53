"""Files that a connection reads: tokens, cookies, the server's authority.

What is wrong with one is told without its content, which nobody else may see.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path

from iceaggr.errors import ConfigError

# what a header of a request may hold; of anything else the HTTP client quotes the whole header
_HEADER_TEXT = re.compile(rb"[\x20-\x7e]+")


def read_credential(path: Path, option: str) -> str:
    """Read the one line that becomes a header of each request. Raises: ConfigError."""
    where = f"{option} {path}"
    text = _read(path, where).strip()
    if not text:
        raise ConfigError("file is empty", where=where, found="nothing", expected="one line")
    if not _HEADER_TEXT.fullmatch(text):
        lines = len(text.splitlines())
        raise ConfigError(
            "file holds no credential",
            where=where,
            found=f"{lines} lines" if lines > 1 else "other characters than printable ASCII",
            expected="the token or the cookies alone: one line of printable ASCII",
            remedy="A table of cookies, as curl keeps it, is none: write NAME=VALUE; NAME=VALUE",
        )
    return text.decode("ascii")


def check_authority(path: Path, option: str) -> None:
    """Check that a file holds certificates of authorities. Raises: ConfigError."""
    where = f"{option} {path}"
    _read(path, where)
    try:
        ssl.create_default_context(cafile=str(path))
    except ssl.SSLError:
        raise ConfigError(
            "file holds no certificate",
            where=where,
            found="nothing that begins with BEGIN CERTIFICATE, or a damaged one",
            expected="the certificate authority of the server in PEM format",
        ) from None


def _read(path: Path, where: str) -> bytes:
    if not path.is_file():
        raise ConfigError("file not found", where=where)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError("file cannot be read", where=where, found=error.strerror) from None
