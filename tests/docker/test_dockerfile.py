"""The recipe of the image, read: what it may fetch, what it leaves, who it runs as."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker" / "Dockerfile").read_text()


def instructions(text):
    """Join continued lines, drop comments; gives (instruction, rest)."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def problems(text):
    """List what makes an image that cannot be trusted."""
    steps = instructions(text)
    stages = [rest.split()[-1] for name, rest in steps if name == "FROM"]
    found = []
    for name, rest in steps:
        if name == "ADD":
            found.append(f"ADD fetches and unpacks: {rest}")
        if re.search(r"\b(curl|wget|git clone)\b|https?://|\| *(ba)?sh\b", rest):
            found.append(f"downloads: {rest}")
        if name == "FROM" and rest.split()[0] not in [*stages, "${BASE_IMAGE}"]:
            found.append(f"another base: {rest}")
        if "pip install" in rest and not re.search(r"-c constraints.txt|--no-deps", rest):
            found.append(f"unpinned: {rest}")
        if re.search(r"\b(ARG|ENV)\b.*(PASSWORD|SECRET|TOKEN)", f"{name} {rest}"):
            found.append(f"secret in a layer: {rest}")
        if re.search(r":latest\b", rest) or re.search(r"chmod.*(\+s|777|4755)|sudo", rest):
            found.append(f"moving tag or loose rights: {rest}")
    base = dict(re.findall(r"^ARG (BASE_IMAGE)=(\S+)$", text, re.MULTILINE)).get("BASE_IMAGE", "")
    if not re.search(r":\d[\w.-]*$|@sha256:[0-9a-f]{64}$", base):
        found.append(f"base without a version: {base!r}")
    last = steps[max(i for i, (name, _) in enumerate(steps) if name == "FROM") :]
    users = [rest.split(":")[0] for name, rest in last if name == "USER"]
    if not users or not users[-1].isdecimal() or int(users[-1]) == 0:
        found.append(f"ends as user {users[-1:] or 'root'}")
    if any("pip" in rest for name, rest in last if name in ("RUN", "CMD", "ENTRYPOINT")):
        found.append("pip at run time")
    return found


def test_dockerfile_has_no_problem():
    assert problems(TEXT) == []


def stage(name):
    """Give the instructions of one stage."""
    steps = instructions(TEXT)
    begins = next(i for i, (word, rest) in enumerate(steps) if rest.endswith(f" AS {name}"))
    ends = [i for i, (word, _) in enumerate(steps) if word == "FROM" and i > begins]
    return steps[begins + 1 : min(ends, default=len(steps))]


def test_dockerfile_installs_dependencies_without_anything_that_changes_often():
    steps = stage("dependencies")
    assert [rest for name, rest in steps if name == "COPY"] == [
        "constraints.txt ./",
        "pyproject.toml ./",
    ]
    installs = [i for i, (_, rest) in enumerate(steps) if "pip install" in rest]
    assert "${TORCH}" in steps[installs[0]][1]
    assert steps.index(("COPY", "pyproject.toml ./")) > installs[0]
    # nor are we a part of it: what it leaves of us would be mistaken for us
    assert not any(" . " in f"{steps[i][1]} " for i in installs)


def test_dockerfile_takes_pip_out_of_what_is_kept():
    kept = [rest for name, rest in stage("runtime") if name == "COPY" and "--from=" in rest]
    assert {re.search(r"--from=(\w+)", rest)[1] for rest in kept} == {"dependencies", "application"}
    assert "pip uninstall --yes pip setuptools" in stage("dependencies")[-1][1]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("USER 1000:0", "USER root", "ends as user"),
        ("USER 1000:0", "", "ends as user"),
        ("debian:12-slim", "debian:latest", "base without a version"),
        ("debian:12-slim", "debian", "base without a version"),
        ("COPY src src", "ADD https://example.org/src.tar src", "ADD fetches"),
        ("COPY src src", "RUN curl -s example.org | sh", "downloads"),
        ("-c constraints.txt -r requirements.txt", "-r requirements.txt", "unpinned"),
        ("ARG COMMIT", "ARG GIT_TOKEN", "secret in a layer"),
        ('CMD ["iceaggr", "--help"]', 'CMD ["sh", "-c", "pip install x"]', "pip at run time"),
    ],
)
def test_problems_are_found(old, new, problem):
    assert old in TEXT
    assert any(found.startswith(problem) for found in problems(TEXT.replace(old, new)))
