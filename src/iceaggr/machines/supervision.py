"""Keep a training going on this machine: restart its process from its checkpoint.

Kubeflow Pipelines 2.17 tells Argo to retry a step only when its pod is lost (retryPolicy OnError),
never when its process fails. So the step itself stays small and idle, and its work runs in a child
process. What is worth another attempt gets one: death by a signal, memory that ran out, errors of
CUDA and NCCL, a store that was away, an unexpected crash. A wrong setting fails at once.

The child leaves a note on why it ended (`note_ending`); one that was killed leaves none.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel, ConfigDict

from iceaggr import errors
from iceaggr.errors import IceaggrError, PartnerError, TrainingError, as_machine_error
from iceaggr.patience import AWAY_S, ask_patiently, may_pass
from iceaggr.signals import (
    EXIT_CODE_INTERRUPTED,
    Interruption,
    TrainingInterruptedError,
    held_by_launcher,
    without_launchers,
)

ENDINGS_VARIABLE = "ICEAGGR_ENDINGS"
"""Names the folder in which a supervised process notes why it ended."""
RESTARTS_VARIABLE = "ICEAGGR_RESTARTS"
"""Tells a supervised process, as JSON, why those before it ended."""
_GRACE_S = 90.0
# errors caused by a GPU, a network link or a partner: another attempt may succeed
_OF_HARDWARE = re.compile(
    r"CUDA|NCCL|CUDNN|CUBLAS|GLOO|ProcessGroup|Dist\w*Error|connection|time[d ]*out", re.IGNORECASE
)
# how a process ends that SIGTERM reached: in order, by a step's own handling, before it had any
_ASKED_TO_STOP = (EXIT_CODE_INTERRUPTED, 128 + signal.SIGTERM, -signal.SIGTERM)
RESTARTED = "training process ended: "
"""Begins the line that tells of a restart: errors in the log above it were overcome."""
# of control groups, second and first version
_OOM_COUNTERS = ("memory.events", "memory.oom_control")


@dataclass(frozen=True)
class Limits:
    """How often a process is restarted.

    n_restarts: in all.  n_in_vain: in a row without a newer checkpoint
    n_crashes_in_vain: the same for an unexpected error of the program, which will be met again
    first_pause_s: before a restart, doubled with each one in vain
    store_away_s: how long an object store may be away
    """

    n_restarts: int = 50
    n_in_vain: int = 3
    n_crashes_in_vain: int = 1
    first_pause_s: float = 5.0
    store_away_s: float = AWAY_S


LIMITS = Limits()


class Ending(BaseModel):
    """Why a process ended, in the parts of an IceaggrError.

    kind: name of the class in `iceaggr.errors`.  expected_error: False for a crash of the program
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    what: str
    where: str = ""
    found: str | None = None
    expected: str | None = None
    remedy: str = ""
    may_pass: bool = False
    expected_error: bool = True

    @staticmethod
    def of(error: BaseException) -> Ending:
        """Describe an error; an unexpected one may be the machine's fault, and may pass."""
        told = error if isinstance(error, IceaggrError) else as_machine_error(error)
        if told is None:
            words = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"[:500]
            return Ending(kind="TrainingError", what=words, may_pass=True, expected_error=False)
        kinds = [each.__name__ for each in type(told).__mro__ if each.__module__ == errors.__name__]
        found, expected = (
            None if value is None else str(value) for value in (told.found, told.expected)
        )
        return Ending(
            kind=kinds[0],
            what=told.what,
            where=told.where,
            found=found,
            expected=expected,
            remedy=told.remedy,
            may_pass=may_pass(told),
        )

    def as_error(self, addition: str = "") -> IceaggrError:
        """Give the error again. addition: further words on what was found."""
        found = "; ".join(filter(None, [self.found, addition])) or None
        kind: type[IceaggrError] = getattr(errors, self.kind)
        return kind(
            self.what, where=self.where, found=found, expected=self.expected, remedy=self.remedy
        )


@dataclass(frozen=True)
class _Attempt:
    """How one attempt ended. ending: its note, None if it left none."""

    code: int
    was_out_of_memory: bool
    ending: Ending | None

    @property
    def reason(self) -> str:
        """Say why it ended."""
        if self.ending is not None:
            return self.ending.what + (f": {self.ending.found}" if self.ending.found else "")
        if self.was_out_of_memory:
            return "killed by the kernel, out of memory"
        if self.code in _ASKED_TO_STOP:
            return "it was asked to stop, by somebody else than its step (SIGTERM)"
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        return f"exit code {self.code}"

    def n_in_vain(self, limits: Limits) -> int:
        """Count how often such an end is followed by a restart without a newer checkpoint."""
        ending = self.ending
        if ending is None or ending.expected_error or _OF_HARDWARE.search(ending.what):
            return limits.n_in_vain
        return limits.n_crashes_in_vain


def note_ending(error: BaseException, rank: int, environment: Mapping[str, str]) -> bool:
    """Leave a note for the supervisor, which tells the error then. Returns False if there is none.

    On several machines nobody supervises: each process tells its own error.
    """
    folder = environment.get(ENDINGS_VARIABLE)
    if not folder:
        return False
    Path(folder, f"{rank}.json").write_text(Ending.of(error).model_dump_json(), encoding="utf-8")
    return True


def restarts_so_far(environment: Mapping[str, str]) -> list[str]:
    """List why the processes before this one ended, empty for the first."""
    told: list[str] = json.loads(environment.get(RESTARTS_VARIABLE, "[]"))
    return told


def supervise(
    command: list[str],
    environment: Mapping[str, str],
    n_steps_saved: Callable[[], int],
    say: Callable[[str], None],
    limits: Limits,
) -> None:
    """Run a command to its good end, restarting it where that is worth it.

    SIGTERM is passed on: the child saves a checkpoint and leaves. If this process is killed, the
    child ends at once.
    n_steps_saved: reads the step of the newest checkpoint
    Raises: TrainingInterruptedError after SIGTERM; the child's own error if it cannot pass, or once
    the limits are reached; TrainingError if it was killed that often; StorageError.
    """
    restarts: list[str] = []
    n_in_vain = 0
    with held_by_launcher() as launcher, Interruption() as interruption:
        saved = _read_saved(n_steps_saved, interruption, limits)
        # not `ask_patiently`: what limits it is progress between two restarts, not time
        while True:
            told = {**environment, **launcher, RESTARTS_VARIABLE: json.dumps(restarts)}
            attempt = _attempt(command, told, interruption)
            if attempt.code == 0:
                return
            _stop_if_asked(interruption)
            if attempt.ending is not None and not attempt.ending.may_pass:
                raise attempt.ending.as_error()
            before, saved = saved, _read_saved(n_steps_saved, interruption, limits)
            n_in_vain = 0 if saved > before else n_in_vain + 1
            if n_in_vain > attempt.n_in_vain(limits) or len(restarts) == limits.n_restarts:
                raise _given_up(attempt, len(restarts), n_in_vain)
            pause_s = limits.first_pause_s * 2 ** max(0, n_in_vain - 1)
            place = f"from step {saved}" if saved >= 0 else "from the beginning"
            restarts.append(f"{attempt.reason} ({place})")
            say(f"{RESTARTED}{attempt.reason}. Restart {len(restarts)} {place} in {pause_s:.0f} s")
            interruption.wait(pause_s)
            _stop_if_asked(interruption)


def _read_saved(
    n_steps_saved: Callable[[], int], interruption: Interruption, limits: Limits
) -> int:
    """Read the step of the newest checkpoint, waiting for a store that is away."""
    return ask_patiently(
        n_steps_saved,
        is_away=lambda error: may_pass(error) and not interruption.requested,
        patience_s=limits.store_away_s,
        sleep=interruption.wait,
    )


def _attempt(
    command: list[str], environment: dict[str, str], interruption: Interruption
) -> _Attempt:
    """Run the command once, to its end."""
    with TemporaryDirectory(prefix="iceaggr-endings-") as folder:
        n_before = _n_oom_kills()
        process = subprocess.Popen(command, env={**environment, ENDINGS_VARIABLE: folder})
        interruption.then = process.terminate
        try:
            if interruption.requested:
                process.terminate()
            code = process.wait()
        finally:
            interruption.then = None
            _end(process)
        return _Attempt(code, _n_oom_kills() > n_before, _read_ending(Path(folder)))


def _read_ending(folder: Path) -> Ending | None:
    """Read why the processes ended: what cannot pass counts before what others suffered from it."""
    notes = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    endings = [Ending.model_validate_json(path.read_bytes()) for path in notes]
    endings.sort(key=lambda ending: (ending.may_pass, ending.kind == PartnerError.__name__))
    return endings[0] if endings else None


def _stop_if_asked(interruption: Interruption) -> None:
    if interruption.requested:
        raise TrainingInterruptedError(
            "training was asked to stop", remedy="The same call goes on from its last checkpoint"
        )


def _given_up(attempt: _Attempt, n_restarts: int, n_in_vain: int) -> IceaggrError:
    tried = f"after {n_restarts} restarts, {n_in_vain} attempts in a row without a newer checkpoint"
    if attempt.ending is not None:
        return attempt.ending.as_error(tried)
    return TrainingError(
        "the training process was ended again and again",
        where="training process",
        found=f"{attempt.reason} {tried}",
        expected="a process that lives until its next checkpoint",
        remedy="Give the step more memory or lower batches.n_events if memory ran out, else see the"
        " lines above; then run the step again: it goes on from its checkpoint",
    )


def _n_oom_kills() -> int:
    """Count the processes that ran out of memory in this control group; 0 where none tells."""
    root = Path("/sys/fs/cgroup")
    # a container sees its own group as the root
    for folder in (root / _own_group(), root, root / "memory"):
        for name in _OOM_COUNTERS:
            try:
                lines = (folder / name).read_text(encoding="utf-8").splitlines()
            except OSError:
                continue
            for line in lines:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def _own_group() -> str:
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "."
    groups = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
    if groups.get("memory"):
        return f"memory/{groups['memory'].lstrip('/')}"
    return groups.get("", "/").lstrip("/") or "."


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# The one command line of training in several processes, and training on this machine.
#
# On several machines Kubeflow Trainer runs the same command; how many machines and processes there
# are, and where they meet, it says in PET_* variables, which torchrun reads as its options.

WORKER_MODULE = "iceaggr.steps.train_model"
TOGETHER = "--together"
"""Tells a worker that torchrun started it for us, so that RANK and its kin are meant for it."""


def torchrun_command(python: str, request_uri: str, n_processes: int | None) -> list[str]:
    """Write the command line.

    request_uri: what to train, see `iceaggr.steps.train_request`
    n_processes: on this machine, which is then the only one; None = PET_* variables tell
    """
    here = ["--standalone", f"--nproc-per-node={n_processes}"] if n_processes else []
    launcher = [python, "-m", "torch.distributed.run", *here]
    return [*launcher, "-m", WORKER_MODULE, TOGETHER, request_uri]


def run_here(
    request_uri: str,
    n_processes: int,
    n_steps_saved: Callable[[], int] = lambda: 0,
    limits: Limits = LIMITS,
) -> None:
    """Train in processes of this machine and wait for their end; restart them if need be.

    n_steps_saved: reads the step of the newest checkpoint
    Raises: what `supervise` raises.
    """
    if n_processes == 1:
        # torchrun itself takes seconds and has nothing to bring together
        command = [sys.executable, "-m", WORKER_MODULE, request_uri]
    else:
        command = torchrun_command(sys.executable, request_uri, n_processes)
    supervise(command, without_launchers(os.environ), n_steps_saved, _say, limits)


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
