"""Ends the steps of the pipeline at random moments, again and again, and compares their retries.

    python -m tests.faults.killing '{"raw_uri": ..., "folder": ..., "n": 20, "n_no_memory": 5, ...}'

The first process imports everything once and forks one child per attempt. Prints the outcomes as
one line of JSON; a retry that differs from the undisturbed run ends the program with an error.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import time
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

# imported before the first fork, so that children need not
import iceaggr.evaluation.evaluation  # noqa: F401
import iceaggr.shards.data_card  # noqa: F401
import iceaggr.tracking.registry  # noqa: F401
from iceaggr.storage import open_store
from iceaggr.tracking import registry
from tests.faults.endings import KINDS, Child, has_cgroups, virtual_bytes
from tests.faults.pipeline_runs import CHECK_PAGE, STEPS, TinyRun, results

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
EARLY = ("plan_shards", "shard_events")
CHECKPOINTS = ("training/checkpoints/latest.json", "training/checkpoints/step-1/state.json")
MADE: dict[str, tuple[str, ...]] = {
    "plan_shards": ("units",),
    "shard_events": ("/shards/", "unit-0"),
    "compute_statistics": ("manifest", "normalization"),
    "check_learning": (CHECK_PAGE,),
    "train_model": ("training/",),
    "evaluate_model": ("evaluation",),
    "promote_model": ("summary",),
    "close_run": (),
}
"""What is compared of each step; close_run, which makes nothing, is looked at in its own way."""
DOCUMENTS = {
    "plan_shards": ("units.json",),
    "shard_events": ("unit-*.json",),
    "compute_statistics": ("manifest.json", "normalization.json", "card.html"),
    "check_learning": (CHECK_PAGE,),
    "train_model": ("model.json",),
    "evaluate_model": ("evaluation.json", "report.html", "*.csv"),
    "promote_model": ("summary.json", "verdict.md"),
    "close_run": (),
}
"""What each step leaves in the folder of a run: taken away before the step is tried."""
MAX_TRIES = 6


@dataclass
class Measured:
    """What one undisturbed step takes; less where a step that should have met its end did not."""

    seconds: float
    memory_bytes: int
    address_bytes: int


class Endings:
    """Ends steps and compares what their retries leave with an undisturbed run."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.random = random.Random(settings["seed"])
        self.folder = folder = Path(settings["folder"])
        self.steps = tuple(settings["steps"])
        raw_uri, work_uri = settings["raw_uri"], settings["work_uri"]
        tracked = "promote_model" in self.steps
        self.quiet = TinyRun(
            raw_uri,
            f"{work_uri}/quiet",
            folder / "quiet",
            f"quiet-{uuid.uuid4().hex[:8]}",
            tracked=tracked,
            model_name=f"quiet-{uuid.uuid4().hex[:8]}",
            checkpoint_every_minutes=1e-9,
        )
        self.measured: dict[str, Measured] = {}
        self.outcomes: dict[str, dict[str, Counter[str]]] = {}
        self.errors: Counter[str] = Counter()
        self._n_runs = 0

    def measure(self, steps: tuple[str, ...]) -> None:
        """Run all steps once, undisturbed."""
        for step in steps:
            log = self.folder / f"quiet-{step}.log"
            self.folder.mkdir(parents=True, exist_ok=True)
            size = self.folder / "address"
            child = Child(lambda step=step, size=size: _measured(self.quiet, step, size), log)
            code = child.finish()
            assert code == 0, f"{step}: {log.read_text()}"
            self.measured[step] = Measured(
                time.monotonic() - child.began, child.last_peak_bytes, int(size.read_text())
            )
        self.expected = _all_results(self.quiet)

    def end_and_retry(self, step: str, kind: str) -> None:
        """End one step at a random moment; run it again; compare. Counts the outcome."""
        counts = self.outcomes.setdefault(step, {}).setdefault(kind, Counter())
        for _ in range(MAX_TRIES):
            run = self._run_before(step)
            log = self.folder / f"{step}-{kind}.log"
            code = self._end(run, step, kind, log)
            if code == 0:
                counts["finished before"] += 1
                continue  # and `_end` knows better now what the step takes
            counts["killed" if code < 0 else f"exit {code}"] += 1
            if code > 0:
                self.errors[f"{kind}: {_last_line(log)}"] += 1
            self._retry_and_compare(run, step, kind)
            return
        counts["never met"] += 1

    def report(self) -> str:
        """Give the outcomes so far as one line of JSON."""
        return json.dumps({"outcomes": self.outcomes, "errors": self.errors.most_common(40)})

    def _end(self, run: TinyRun, step: str, kind: str, log: Path) -> int:
        known, share = self.measured[step], self.random.uniform(0.02, 0.98)
        call = _quietly(run, step)
        if kind in SIGNALS:
            return _signalled(Child(call, log), SIGNALS[kind], share, known)
        scale = "memory_bytes" if kind == "oom_kill" else "address_bytes"
        limit = int(share * getattr(known, scale))
        child = Child(call, log, **{scale: limit})
        code = child.finish() if kind == "oom_kill" else child.wait(10 + 10 * known.seconds)
        if code == 0:
            setattr(known, scale, limit)
        if code is None:
            code = child.end(signal.SIGKILL)
            self.outcomes[step][kind]["hung"] += 1
            # CPython waits for ever for a thread that has no memory to begin with; the kernel's
            # killer, which is what limits containers, leaves nothing that could wait
            assert kind == "no_memory", f"{step} hangs: {log.read_text(encoding='utf-8')}"
        return code

    def _run_before(self, step: str) -> TinyRun:
        """A run that has come to a step: documents of the undisturbed one, a place of its own."""
        self._n_runs += 1
        name = f"{step.replace('_', '-')}-{self._n_runs}"
        run = replace(
            self.quiet,
            folder=self.folder / name,
            run_id=f"{name}-{uuid.uuid4().hex[:8]}",
            tracked=step in ("promote_model", "close_run"),
            model_name=f"{name}-{uuid.uuid4().hex[:8]}",
        )
        if step in EARLY:
            run = replace(run, work_uri=f"{self.quiet.work_uri}-{name}")
        shutil.copytree(self.quiet.folder, run.folder)
        for later in STEPS[STEPS.index(step) :]:
            for path in (path for name in DOCUMENTS[later] for path in run.folder.glob(name)):
                path.unlink()
        if step == "shard_events":
            child = Child(_quietly(run, "plan_shards"), self.folder / "plan.log")
            assert child.finish() == 0
        if step == "close_run":
            for name in ("summary.json", *CHECKPOINTS):
                open_store().write_bytes(f"{run.context().run_uri}/{name}", b"{}")
        return run

    def _retry_and_compare(self, run: TinyRun, step: str, kind: str) -> None:
        log = self.folder / f"{step}-{kind}-retry.log"
        code = Child(_quietly(run, step), log).finish()
        assert code == 0, f"retry of {step} after {kind} ended with {code}: {log.read_text()}"
        found, expected = _made_by(step, _all_results(run)), _made_by(step, self.expected)
        assert bool(expected) == bool(MADE[step]), f"nothing to compare {step} with"
        assert found == expected, f"{step} after {kind}: {found} instead of {expected}"
        if step == "promote_model":
            _check_promoted_once(run.model_name)
        if step == "close_run":
            left = open_store().list(f"{run.context().run_uri}/training/checkpoints/")
            assert not left, f"checkpoints left: {left}"
        shutil.rmtree(run.folder)


def _signalled(child: Child, number: int, share: float, known: Measured) -> int:
    """Send a signal after a share of the step's time; its exit code, 0 if it was through before."""
    code = child.wait(share * known.seconds)
    if code is None:
        return child.end(number)
    # the mean of both, since a shared machine is now quick, now slow
    known.seconds = (known.seconds + time.monotonic() - child.began) / 2
    return code


def _measured(run: TinyRun, step: str, size: Path) -> None:
    before = virtual_bytes()
    torch.set_num_threads(1)
    run.run_step(step)
    peak = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if line.startswith("VmPeak")
    )
    size.write_text(str(max(peak - before, 1 << 20)), encoding="utf-8")


def _quietly(run: TinyRun, step: str) -> Any:
    def call() -> None:
        torch.set_num_threads(1)
        run.run_step(step)

    return call


def _all_results(run: TinyRun) -> dict[str, Any]:
    """Collect the results of a run and, where it was promoted, the figures of its summary.

    Left out of the summary are the names of the run and its addresses.
    """
    found, path = results(run), run.folder / "summary.json"
    if path.exists():
        summary = json.loads(path.read_text())
        names = [name for name in summary if name.endswith(("_uri", "_id")) or name == "run_name"]
        found["summary"] = {k: v for k, v in summary.items() if k not in names}
    return found


def _made_by(step: str, found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name.startswith(MADE[step])}


def _check_promoted_once(model_name: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    versions = client.search_model_versions(f"name='{model_name}'")
    assert len(versions) == 1, f"{len(versions)} versions of one model"
    champion = client.get_model_version_by_alias(model_name, "champion")
    assert champion.version == versions[0].version, "the challenger beats the constant direction"
    assert "previous_champion" not in champion.tags, "promoted over itself"
    locks = client.search_registered_models(f"name LIKE '{model_name}.%'")
    assert not locks, f"left in the registry: {[lock.name for lock in locks]}"


def _last_line(log: Path) -> str:
    lines = [
        line
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    return lines[-1][:160] if lines else "(nothing said)"


def main(settings: dict[str, Any]) -> None:
    """Run what the settings ask for: steps, kinds and how often each."""
    torch.set_num_threads(1)
    # a lock whose holder was killed is broken after this long, two minutes in production
    registry.LEASE_S = 3.0
    endings = Endings(settings)
    endings.measure(STEPS[: max(map(STEPS.index, endings.steps)) + 1])
    kinds = [k for k in KINDS if k != "oom_kill" or has_cgroups()]
    for attempt in range(settings["n"]):
        for step in endings.steps:
            for kind in kinds:
                if kind != "no_memory" or attempt < settings["n_no_memory"]:
                    endings.end_and_retry(step, kind)
        (endings.folder / "outcomes.json").write_text(endings.report())
    print(endings.report())


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
