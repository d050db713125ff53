"""Pages escape what they show: what each shows is tested beside it, here that none can forget."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESOURCES = ROOT / "src" / "iceaggr" / "resources"
TEMPLATES = sorted([*RESOURCES.glob("*.j2"), *RESOURCES.glob("*.html")])
SOURCES = sorted((ROOT / "src").rglob("*.py"))
# figures that matplotlib drew, as SVG
OWN_FIGURES = r"(plots|maps)\.\w+\(|raw$|drawn$"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
def test_template_exempts_nothing_from_escaping(path):
    assert not re.search(r"\|\s*safe|autoescape|<script", path.read_text())


def test_every_template_environment_escapes():
    made = {path.name: path.read_text().count("Environment(\n") for path in SOURCES}
    made = {name: count for name, count in made.items() if count}
    escaping = {path.name: path.read_text().count("autoescape=True") for path in SOURCES}
    assert set(made) == {"pages.py"}
    assert made == {name: escaping[name] for name in made}


def test_only_our_own_figures_are_put_in_as_they_are():
    found = [a for p in SOURCES for a in re.findall(r"\bMarkup\(([^)]*)", p.read_text())]
    assert found
    assert all(re.match(OWN_FIGURES, argument) for argument in found), found
