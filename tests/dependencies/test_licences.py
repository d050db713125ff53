import pytest

from tests.dependencies.closure import EXTRAS, closure
from tests.dependencies.licences import (
    BEGIN,
    DOCUMENT,
    END,
    LIBRARY_ONLY,
    NOT_INSTALLED,
    PERMISSIVE,
    licence_of,
    names_in,
    rows,
)


def test_no_licence_is_incompatible_with_ours():
    strange = {
        name: names_in(licence_of(name)) - PERMISSIVE - LIBRARY_ONLY
        for name in closure(EXTRAS) | set(NOT_INSTALLED)
    }
    assert {name: found for name, found in strange.items() if found} == {}


def test_what_may_only_be_used_as_a_library_is_known_by_name():
    bound = {
        n for n in closure(EXTRAS) | set(NOT_INSTALLED) if names_in(licence_of(n)) & LIBRARY_ONLY
    }
    assert bound == {"certifi", "hypothesis", "pathspec", "psycopg2-binary"}


def test_document_lists_every_dependency_under_its_licence():
    table = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].splitlines()
    assert set(rows()) - set(table) == set(), "run `python -m tests.dependencies.licences`"
    assert len(table) == len(set(table))


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("MIT", {"MIT"}),
        ("(Apache-2.0 OR BSD-2-Clause) AND MIT", {"Apache-2.0", "BSD-2-Clause", "MIT"}),
        ("Apache-2.0 WITH LLVM-exception AND GPL-2.0-only", {"Apache-2.0", "GPL-2.0-only"}),
    ],
)
def test_names_in_an_expression_are_told_apart(expression, names):
    assert names_in(expression) == names
