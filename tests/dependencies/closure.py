"""What is installed because of us: our dependencies, theirs, and so on."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = "iceaggr"
EXTRAS = ("local", "dev")
"""What `make setup` installs besides the project itself."""


def constraints(name: str = "constraints.txt") -> dict[str, str]:
    """Read the pinned version of each package."""
    lines = (ROOT / name).read_text().split()
    pairs = (line.split("==") for line in lines)
    return {canonicalize_name(package): version for package, version in pairs}


def closure(extras: tuple[str, ...]) -> set[str]:
    """Follow the requirements of the installed packages, as far as they hold on this machine."""
    asked: dict[str, set[str]] = {}
    waiting: list[tuple[str, set[str]]] = [(PROJECT, set(extras))]
    while waiting:
        name, wanted = waiting.pop()
        known = asked.setdefault(name, set())
        if name in asked and wanted <= known and "" in known:
            continue
        known |= wanted | {""}
        waiting += _required_by(name, known)
    return set(asked) - {PROJECT}


def _required_by(name: str, extras: set[str]) -> list[tuple[str, set[str]]]:
    found = []
    for text in distribution(name).requires or []:
        required = Requirement(text)
        marker = required.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            found.append((canonicalize_name(required.name), set(required.extras)))
    return found
