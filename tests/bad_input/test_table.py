"""The documentation lists exactly the cases that are tested."""

from tests.bad_input.cases import GROUPS
from tests.bad_input.table import DOCUMENT, table


def test_documented_table_is_the_tested_one():
    written = DOCUMENT.read_text(encoding="utf-8")
    assert written == table(), "run python -m tests.bad_input.table"


def test_every_case_has_a_name_of_its_own():
    names = [case.name for cases in GROUPS.values() for case in cases]
    assert len(names) == len(set(names)) >= 40
