"""Changing model.json as somebody would who knows how it is sealed: only what it says can tell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEAL = "content_sha256"


def seal(document: dict[str, Any]) -> dict[str, Any]:
    """Give a document the hash of all the rest of it."""
    rest = {name: value for name, value in document.items() if name != SEAL}
    content = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return rest | {SEAL: hashlib.sha256(content.encode()).hexdigest()}


def edit_sealed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a document and seal it anew."""
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(seal(document)), encoding="utf-8")
