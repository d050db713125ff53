"""Errors say what, where, found, expected and remedy, wherever one is raised."""

import ast
import errno
import os
import signal
import tempfile
from pathlib import Path

import pytest
import torch

from iceaggr.errors import IceaggrError, MachineError, as_machine_error, naming
from iceaggr.progress import StepProgress
from iceaggr.signals import TerminatedError

SOURCE = Path(__file__).parents[1] / "src" / "iceaggr"
PARTS = {"where", "found", "expected", "remedy"}
NO_FAILURE = {"TrainingInterruptedError"}
"""Asked for by SIGTERM: there is nothing that was found instead of something."""


def family(trees):
    """Collect the names of IceaggrError and all that descend from it."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    names = {"IceaggrError"}
    while True:
        found = {c.name for c in classes if {getattr(b, "id", "") for b in c.bases} & names}
        if found <= names:
            return names - NO_FAILURE
        names |= found


def lacking(path, tree, names):
    """List the errors of a file that are made without one of their parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names:
            given = {keyword.arg for keyword in node.keywords}
            if absent := PARTS - given:
                yield f"{path.relative_to(SOURCE)}:{node.lineno} lacks {', '.join(sorted(absent))}"


def test_every_error_is_made_with_all_its_parts():
    trees = {path: ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
    names = family(trees.values())
    assert {"RawDataError", "DamagedFileError", "KubernetesAwayError"} <= names
    incomplete = [line for path, tree in trees.items() for line in lacking(path, tree, names)]
    assert not incomplete, "\n".join(incomplete)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({}, "file is damaged."),
        ({"where": "a.parquet"}, "file is damaged [a.parquet]."),
        ({"found": 1, "expected": 2}, "file is damaged: found 1, expected 2."),
        (
            {"where": "a", "found": 0, "expected": 2, "remedy": "Copy it again"},
            "file is damaged [a]: found 0, expected 2. Copy it again",
        ),
    ],
)
def test_error_is_one_sentence_of_its_parts(parts, sentence):
    assert str(IceaggrError("file is damaged", **parts)) == sentence


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the local disk is full"),
        (OSError(errno.EROFS, "Read-only", "/data/x"), r"read-only \[/data/x\]"),
        (PermissionError(errno.EACCES, "Permission denied", "/y"), r"no permission .* \[/y\]"),
        (OSError(errno.EISDIR, "Is a directory", "/run/a.html"), r"a folder has the name .*html"),
        (OSError(errno.ENAMETOOLONG, "Too long", "/z"), r"too long a name \[/z\]"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files"),
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (RuntimeError("can't start new thread"), "no further thread"),
    ],
)
def test_machine_error_names_what_is_lacking(error, words):
    with pytest.raises(MachineError, match=words), StepProgress("step"):
        raise error


def test_full_disk_without_a_name_may_be_that_of_temporary_files():
    told = as_machine_error(OSError(errno.ENOSPC, "No space left on device"))
    assert f"temporary files go to {tempfile.gettempdir()}" in str(told)
    assert "or set TMPDIR" in str(told)


def test_full_disk_is_the_one_of_the_file_that_was_written():
    told = as_machine_error(OSError(errno.ENOSPC, "No space left on device", "/dev/shm/x.parquet"))
    assert "[/dev/shm/x.parquet]" in str(told)
    assert "temporary" not in str(told)
    assert "TMPDIR" not in str(told)


def test_full_disk_of_a_temporary_file_can_be_avoided(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told = as_machine_error(OSError(errno.ENOSPC, "No space", str(tmp_path / "scratch")))
    assert "or set TMPDIR" in str(told)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_flush_that_names_no_file_is_given_its_name():
    with pytest.raises(OSError, match="No space left") as plain:
        Path("/dev/full").write_text("x", encoding="utf-8")
    assert plain.value.filename is None
    with (
        pytest.raises(MachineError, match=r"disk is full \[/my/document\]"),
        StepProgress("step"),
        naming(Path("/my/document")),
    ):
        raise plain.value


def test_machine_error_knows_torchs_allocator():
    with pytest.raises(MachineError, match="out of memory"), StepProgress("step"):
        torch.empty(1 << 60)


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "x"), RuntimeError("x"), ValueError("x")])
def test_other_errors_stay_what_they_are(error):
    assert as_machine_error(error) is None


def test_sigterm_ends_a_step_so_that_it_cleans_up(capsys):
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)

    with (
        pytest.raises(TerminatedError, match="terminated by SIGTERM") as caught,
        StepProgress("step"),
    ):
        work()
    assert caught.value.code == 143
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) == before
    assert "terminated by SIGTERM" in capsys.readouterr().out


def test_sigterm_that_compiled_code_turns_into_another_error_is_still_told_as_such(capsys):
    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        except BaseException:
            # as matplotlib does with what a callback of its own raises
            raise ValueError("Invalid affine transformation matrix") from None

    with (
        pytest.raises(TerminatedError, match="terminated by SIGTERM") as caught,
        StepProgress("step"),
    ):
        work()
    assert caught.value.code == 143
    assert "terminated by SIGTERM" in capsys.readouterr().out
