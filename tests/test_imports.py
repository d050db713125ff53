"""Imports point one way: no circle of files or of folders, and the heavy clients in their rooms."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "src" / "iceaggr"
PLACES = (LIBRARY, *(ROOT / name for name in ("components", "launch", "manifests", "benchmarks")))
FILES = [ROOT / "pipeline.py", *sorted(path for place in PLACES for path in place.rglob("*.py"))]

CLIENT_ROOMS = {
    "boto3": {"storage"},
    "botocore": {"storage"},
    "mlflow": {"tracking"},
    "kfp": set(),
    "kubernetes": {"machines"},
}
"""Which rooms of the library may import a client of a service."""

PHYSICS = ("events", "shards", "batches", "reconstruction", "models", "training", "evaluation")
SERVICES = ("tracking", "machines", "steps", "local_services")
"""Data, model and training code knows services as the protocols of `interfaces` only."""


def module_name(path: Path) -> str:
    relative = path.relative_to(ROOT / "src" if path.is_relative_to(LIBRARY) else ROOT)
    return ".".join(relative.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imported_names(path: Path) -> set[str]:
    """List what a file imports, wherever in it: modules, and modules of modules."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(path: Path) -> set[str]:
    """List the modules of ours that a file imports."""
    found = set()
    for name in imported_names(path):
        found |= {name} if name in MODULES else {name.rpartition(".")[0]} & set(MODULES)
    return found - {module_name(path)}


FILE_IMPORTS = {name: own_imports(path) for name, path in MODULES.items()}


def folder(module: str) -> str:
    """Give the folder of a module; a file at the top is a room of its own."""
    path = MODULES[module]
    top = path.parent in (ROOT, LIBRARY)
    return str((path if top else path.parent).relative_to(ROOT))


def circle(imports: Mapping[str, Iterable[str]]) -> list[str]:
    """Find one circle, or nothing."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle_of_files():
    assert circle(FILE_IMPORTS) == []


def test_no_circle_of_folders():
    folders: dict[str, set[str]] = {}
    for module, imported in FILE_IMPORTS.items():
        of_folder = folders.setdefault(folder(module), set())
        of_folder |= {folder(name) for name in imported} - {folder(module)}
    assert circle(folders) == []


def test_a_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert len(FILE_IMPORTS) > 100
    assert sum(map(len, FILE_IMPORTS.values())) > 3 * len(FILE_IMPORTS)


LIBRARY_FILES = [path for path in FILES if path.is_relative_to(LIBRARY)]


@pytest.mark.parametrize("path", LIBRARY_FILES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_module_leaves_clients_to_their_rooms(path: Path) -> None:
    room = path.relative_to(LIBRARY).parts[0].removesuffix(".py")
    for name in imported_names(path):
        client = name.split(".")[0]
        if client in CLIENT_ROOMS:
            assert room in CLIENT_ROOMS[client], f"{room} may not import {name}"
        assert client not in ("components", "launch", "manifests", "pipeline"), name
        if room in PHYSICS:
            assert name.split(".")[:2] not in [["iceaggr", service] for service in SERVICES], name


def test_threads_of_torch_do_not_spin_long_unless_told_to() -> None:
    code = "import iceaggr, os; print(os.environ['GOMP_SPINCOUNT'])"
    for setting, expected in (({}, "30000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        unset = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=unset | setting, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
