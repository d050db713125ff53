"""docs/manifests.md names every object and every setting that an operator meets."""

import re

import pytest

from tests.manifests.rendering import MANIFESTS, OVERLAYS, render

TEXT = (MANIFESTS.parent / "docs" / "manifests.md").read_text()
SETTINGS = sorted((MANIFESTS / "overlays").glob("*/*/s*.env"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_explained(overlay):
    rows = [line for line in TEXT.splitlines() if line.startswith("| ")]
    for document in render(overlay, trainer=True):
        kind, name = document["kind"], document["metadata"]["name"]
        explained = [r for r in rows if re.search(rf"\b{kind}\b", r.split("|")[1])]
        assert any(f"`{name}`" in row.split("|")[1] for row in explained), f"{kind} {name}"


def test_every_setting_is_explained():
    assert len(SETTINGS) == 4
    for path in SETTINGS:
        for line in path.read_text().splitlines():
            assert f"| `{line.partition('=')[0]}` |" in TEXT, f"{path.parent.name}: {line}"
