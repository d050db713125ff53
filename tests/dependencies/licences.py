"""Licence of every dependency; `python -m tests.dependencies.licences` writes docs/licences.md."""

from __future__ import annotations

import re
from importlib.metadata import distribution

from tests.dependencies.closure import EXTRAS, ROOT, closure

DOCUMENT = ROOT / "docs" / "licences.md"
BEGIN, END = "<!-- licences -->\n", "<!-- end of licences -->\n"

OF_CLASSIFIER = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
STATED = {
    # by their licence files: the metadata of these packages name none, or none that is an SPDX name
    "blake3": "CC0-1.0 OR Apache-2.0",
    "huey": "MIT",
    "kfp-kubernetes": "Apache-2.0",
    "kfp-pipeline-spec": "Apache-2.0",
    "kfp-server-api": "Apache-2.0",
    "kubernetes-validate": "Apache-2.0",
    "protobuf": "BSD-3-Clause",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "skops": "MIT",
    # not part of `make setup`: the tracking server of the image, `make fuzz` and `make test-all`
    "atheris": "Apache-2.0",
    "hatchling": "MIT",
    "kubeflow": "Apache-2.0",
    "kubeflow-katib-api": "Apache-2.0",
    "psycopg2-binary": "LGPL-3.0-or-later",
    "trove-classifiers": "Apache-2.0",
}
NOT_INSTALLED = {
    *("atheris", "hatchling", "kubeflow", "kubeflow-katib-api"),
    *("psycopg2-binary", "trove-classifiers"),
}
"""`make fuzz`, Trainer's SDK in a comparison, the tracking server, what builds the package."""

PERMISSIVE = {
    *("0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC"),
    *("MIT", "MIT-0", "MIT-CMU", "PSF-2.0", "Zlib"),
}
"""May be part of a work under Apache-2.0 when their notices are kept."""
LIBRARY_ONLY = {"MPL-2.0", "LGPL-3.0-or-later"}
"""May be used beside it, unmodified, as an installed package."""


def licence_of(name: str) -> str:
    """Name the licence as an SPDX expression. Raises: ValueError if the package does not say."""
    if name in STATED:
        return STATED[name]
    metadata = distribution(name).metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [c for c in metadata.get_all("Classifier", []) if c.startswith("License ::")]
    named = sorted({OF_CLASSIFIER.get(c.split(" :: ")[-1], "") for c in classifiers} - {""})
    free_text = str(metadata.get("License", "")).strip()
    if named or free_text in PERMISSIVE:
        return " OR ".join(named) or free_text
    raise ValueError(f"{name} does not say its licence: read its files, and state it here")


def names_in(expression: str) -> set[str]:
    """Split an SPDX expression; an exception only adds rights."""
    without_exceptions = re.sub(r" WITH [\w.-]+", "", expression)
    return set(re.findall(r"[\w.-]+", without_exceptions)) - {"AND", "OR"}


def rows() -> list[str]:
    """Write a line of the table for each licence, with the packages under it."""
    needed, everything = closure(()), closure(EXTRAS)
    users = {name: "" if name in needed else "²" for name in everything}
    users |= dict.fromkeys(NOT_INSTALLED, "³")
    packages: dict[str, list[str]] = {}
    for name in sorted(users):
        packages.setdefault(licence_of(name), []).append(name + users[name])
    return [f"| {licence} | {', '.join(packages[licence])} |" for licence in sorted(packages)]


def write() -> None:
    """Replace the table in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    table = "\n".join(["| licence | packages |", "|---|---|", *rows()])
    DOCUMENT.write_text(f"{before}{BEGIN}{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write()
