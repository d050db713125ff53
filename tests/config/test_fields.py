"""Every field of the configuration is read by something: no setting that changes nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from iceaggr import config
from iceaggr.config import ExperimentConfig, Section

ROOT = Path(__file__).parents[2]
# the simulation, which other tests import, has a section of its own
SECTIONS = sorted(
    (one for one in Section.__subclasses__() if one.__module__.startswith("iceaggr.config.")),
    key=lambda section: section.__name__,
)


def attributes_read(tree: ast.AST) -> set[str]:
    """Collect the names of all attributes that code reads."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@pytest.fixture(scope="module")
def read_outside_config() -> set[str]:
    own = Path(config.__file__).parent
    files = [path for room in ("src", "components") for path in (ROOT / room).rglob("*.py")]
    users = [path for path in files if not path.is_relative_to(own)]
    assert len(users) > 100
    return set().union(*(attributes_read(ast.parse(path.read_text())) for path in users))


def test_every_section_is_part_of_an_experiment() -> None:
    parts = {field.annotation for field in ExperimentConfig.model_fields.values()}
    assert set(SECTIONS) - {ExperimentConfig} <= parts


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_is_read_outside_the_configuration(
    section: type[Section], read_outside_config: set[str]
) -> None:
    assert section.model_fields
    assert sorted(set(section.model_fields) - read_outside_config) == []


def test_attributes_read_leaves_out_what_is_only_written_or_named() -> None:
    code = "a.written = 1\nf(named=2)\n'text'\nx = a.read + b.deeper.still"
    assert attributes_read(ast.parse(code)) == {"read", "deeper", "still"}
