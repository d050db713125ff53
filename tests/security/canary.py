"""Secrets that are planted to be searched for, and the search."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

Found = Iterable[tuple[str, bytes]]
"""What was produced: (name, content)."""

PLANTED = {
    "AWS_SESSION_TOKEN": "canary/session+token==0a1b2c3d",
    "MLFLOW_TRACKING_USERNAME": "canary-user-5e6f7a8b",
    "MLFLOW_TRACKING_PASSWORD": "canary pass&word/1c2d3e4f",
    "MLFLOW_TRACKING_TOKEN": "canary-mlflow-token-9a8b7c6d",
    "DATABASE_PASSWORD": "canary-database-4d5e6f7a",
}


def spellings(secret: str) -> set[bytes]:
    """Spell a secret as it may be hidden: plain, in a URL, in JSON, in any base64."""
    plain = secret.encode()
    found = {plain, quote(secret).encode(), quote(secret, safe="").encode()}
    for before in range(3):  # base64 of a longer text depends on where the secret begins in it
        coded = base64.b64encode(b"\0" * before + plain)
        found.add(coded[4 if before else 0 : len(coded) // 4 * 4 - 4])
    return found | {plain.replace(b"/", rb"\/")}


def leaks(produced: Found, secrets: Mapping[str, str]) -> list[str]:
    """Name each place that holds a secret: `secret in place`."""
    spelled = {name: spellings(secret) for name, secret in secrets.items()}
    return sorted(
        f"{name} in {place}"
        for place, content in produced
        for name, forms in spelled.items()
        if any(form in content for form in forms)
    )


def files_below(folder: Path, private: Iterable[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Read all files; those that hold secrets on purpose are for their owner's eyes only."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        if path.name in private:
            assert path.stat().st_mode & 0o077 == 0, f"{path} can be read by others"
            continue
        with suppress(FileNotFoundError):  # a running service clears up behind itself
            content = path.read_bytes()
            yield str(path), str(path.relative_to(folder)).encode() + b"\n" + content


def objects_below(store: object, uri: str) -> Iterator[tuple[str, bytes]]:
    """Read all objects."""
    for entry in store.list(uri):  # type: ignore[attr-defined]
        yield entry.uri, store.read_bytes(entry.uri)  # type: ignore[attr-defined]


class CommandLines:
    """Collects the arguments of all processes of this machine while the block runs."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def found(self) -> list[tuple[str, bytes]]:
        """Give the command lines seen."""
        return [(f"arguments {line[:200]!r}", line) for line in sorted(self._seen)]

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self._seen.add(path.read_bytes())
                except OSError:  # it has ended
                    continue
