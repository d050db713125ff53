"""What the documents point to exists: links, their headings, and the files that are named."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FOLDERS = ("src", "components", "launch", "manifests", "benchmarks", "tests")
SOURCES = [
    ROOT / "pipeline.py",
    *(path for name in FOLDERS for path in ROOT.glob(f"{name}/**/*.py")),
]
PYTHON = {f"/{path.relative_to(ROOT).as_posix()}" for path in SOURCES}
DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def anchors(path: Path) -> set[str]:
    """Make the anchors of a document's headings as GitHub does."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in headings}


@DOCUMENT
def test_every_link_leads_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        place = document.parent / name if name else document
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


@DOCUMENT
def test_every_python_file_that_is_named_exists(document: Path) -> None:
    names = set(re.findall(r"[\w/]+\.py\b", document.read_text(encoding="utf-8")))
    gone = [name for name in names if not any(path.endswith(f"/{name}") for path in PYTHON)]
    assert gone == []


def test_every_document_that_the_code_names_exists() -> None:
    files = [*SOURCES, ROOT / "Makefile", *ROOT.glob("docker/*"), *ROOT.glob("configs/*.yaml")]
    files += ROOT.glob("manifests/**/*.yaml")
    for path in files:
        for name in re.findall(r"\bdocs/\w+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{path}: {name}"


def test_the_hooks_before_a_commit_run_what_make_lint_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^lint: setup\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    lint = recipe[1].replace("$(BIN)", ".venv/bin").replace(" .\n", "\n").split("\n\t")
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    assert [line.strip() for line in lint] == hooks
