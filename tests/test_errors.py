"""Errors say what, where, found, expected and remedy, wherever one is raised."""

import ast
from pathlib import Path

import pytest

from iceaggr.errors import IceaggrError

SOURCE = Path(__file__).parents[1] / "src" / "iceaggr"
PARTS = {"where", "found", "expected", "remedy"}
NO_FAILURE = {"TrainingInterruptedError"}
"""Asked for by SIGTERM: there is nothing that was found instead of something."""


def family(trees):
    """Collect the names of IceaggrError and all that descend from it."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    names = {"IceaggrError"}
    while True:
        found = {c.name for c in classes if {getattr(b, "id", "") for b in c.bases} & names}
        if found <= names:
            return names - NO_FAILURE
        names |= found


def lacking(path, tree, names):
    """List the errors of a file that are made without one of their parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names:
            given = {keyword.arg for keyword in node.keywords}
            if absent := PARTS - given:
                yield f"{path.relative_to(SOURCE)}:{node.lineno} lacks {', '.join(sorted(absent))}"


def test_every_error_is_made_with_all_its_parts():
    trees = {path: ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
    names = family(trees.values())
    assert {"RawDataError", "DamagedFileError", "KubernetesAwayError"} <= names
    incomplete = [line for path, tree in trees.items() for line in lacking(path, tree, names)]
    assert not incomplete, "\n".join(incomplete)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({}, "file is damaged."),
        ({"where": "a.parquet"}, "file is damaged [a.parquet]."),
        ({"found": 1, "expected": 2}, "file is damaged: found 1, expected 2."),
        (
            {"where": "a", "found": 0, "expected": 2, "remedy": "Copy it again"},
            "file is damaged [a]: found 0, expected 2. Copy it again",
        ),
    ],
)
def test_error_is_one_sentence_of_its_parts(parts, sentence):
    assert str(IceaggrError("file is damaged", **parts)) == sentence
