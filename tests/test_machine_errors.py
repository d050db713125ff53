import errno
import os
import signal

import pytest
import torch

from iceaggr.machine_errors import MachineError, TerminatedError, as_machine_error
from iceaggr.progress import StepProgress


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the local disk is full"),
        (OSError(errno.EROFS, "Read-only", "/data/x"), r"read-only \[/data/x\]"),
        (PermissionError(errno.EACCES, "Permission denied", "/y"), r"no permission .* \[/y\]"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files"),
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (RuntimeError("can't start new thread"), "no further thread"),
    ],
)
def test_machine_error_names_what_is_lacking(error, words):
    with pytest.raises(MachineError, match=words), StepProgress("step"):
        raise error


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
