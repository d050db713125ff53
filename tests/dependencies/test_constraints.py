import re
import tomllib
from importlib.metadata import version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.dependencies.closure import EXTRAS, ROOT, closure, constraints

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_everything_that_is_installed_is_pinned():
    installed = closure(EXTRAS)
    assert len(installed) > 100
    assert installed - set(constraints()) == set()


def test_what_is_installed_is_what_is_pinned():
    pinned = constraints()
    installed = {name: version(name).partition("+")[0] for name in closure(EXTRAS)}
    assert installed == {name: pinned[name] for name in installed}


def test_every_dependency_of_the_project_fits_its_pin():
    pinned = constraints()
    extras = PROJECT["optional-dependencies"].values()
    asked = [*PROJECT["dependencies"], *(text for texts in extras for text in texts)]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_pins_are_exact_sorted_and_unique():
    for name in ("constraints.txt", "audit-tools.txt"):
        lines = (ROOT / name).read_text().split()
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
        names = [canonicalize_name(line.split("==")[0]) for line in lines]
        assert names == sorted(set(names)), name
