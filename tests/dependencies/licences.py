"""Licence of every dependency; `python -m tests.dependencies.licences` writes docs/licences.md."""

from __future__ import annotations

import re
from importlib.metadata import distribution

from tests.dependencies.closure import EXTRAS, ROOT, closure, constraints

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
    "kubeflow": "Apache-2.0",
    "kubeflow-katib-api": "Apache-2.0",
    "psycopg2-binary": "LGPL-3.0-or-later",
}
NOT_INSTALLED = {
    "atheris": "fuzzing",
    "kubeflow": "test against Trainer's SDK",
    "kubeflow-katib-api": "test against Trainer's SDK",
    "psycopg2-binary": "image: tracking server",
}

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
    """Write a line of the table for each dependency."""
    pinned = constraints()
    needed, everything = closure(()), closure(EXTRAS)
    users = {name: "runs" if name in needed else "tests, local services" for name in everything}
    users |= NOT_INSTALLED
    return [
        f"| {name} | {pinned[name]} | {licence_of(name)} | {users[name]} |"
        for name in sorted(users)
    ]


def write() -> None:
    """Replace the table in the document."""
    text = DOCUMENT.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    head = ["| package | version | licence | for |", "|---|---|---|---|"]
    DOCUMENT.write_text(before + BEGIN + "\n".join([*head, *rows()]) + "\n" + END + after)


if __name__ == "__main__":
    write()
