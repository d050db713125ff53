"""Imports point one way, and the heavy clients stay in their rooms."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "iceaggr"
# A room may import rooms of its own rank or lower ranks only.
RANKS = {
    "errors": 0,
    "angles": 0,
    "entry": 0,
    "interfaces": 0,
    "light_in_ice": 0,
    "resources": 0,
    "validation": 0,
    "addresses": 1,
    "machine_errors": 1,
    "patience": 1,
    "service_settings": 1,
    "progress": 1,
    "signals": 1,
    "verified": 1,
    "storage": 1,
    "detector": 1,
    "config": 1,
    "events": 2,
    "shards": 2,
    "batches": 2,
    "normalization": 2,
    "reconstruction": 3,
    "losses": 3,
    "models": 3,
    "training": 4,
    "evaluation": 4,
    "tracking": 5,
    "local_services": 5,
    "benchmarks": 5,
    "machines": 5,
    "steps": 6,
    "cli_options": 7,
    "cli": 7,
    "cli_convert": 7,
    "cli_steps": 7,
    "__main__": 8,
}
CLIENT_ROOMS = {
    "boto3": {"storage"},
    "botocore": {"storage"},
    "mlflow": {"tracking"},
    "kfp": set(),
    "kubernetes": {"machines"},
}


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


SOURCES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_module_imports_only_rooms_below_it(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in RANKS, f"new room {own}: give it a rank"
    for module in imported_modules(path):
        if module.startswith("iceaggr.") and room(module) in RANKS:
            assert RANKS[room(module)] <= RANKS[own], f"{own} may not import {module}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_module_leaves_clients_to_their_rooms(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for module in imported_modules(path):
        client = module.split(".")[0]
        if client in CLIENT_ROOMS:
            assert own in CLIENT_ROOMS[client], f"{own} may not import {module}"


def test_threads_of_torch_do_not_spin_long_unless_told_to() -> None:
    code = "import iceaggr, os; print(os.environ['GOMP_SPINCOUNT'])"
    for setting, expected in (({}, "30000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        unset = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=unset | setting, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
