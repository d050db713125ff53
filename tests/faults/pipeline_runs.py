"""A tiny run of the pipeline's own steps, and all that it leaves, for comparing two runs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iceaggr.steps.close_run import run_close_run
from iceaggr.steps.compute_statistics import run_compute_statistics
from iceaggr.steps.context import RunContext, make_context
from iceaggr.steps.evaluate_model import run_evaluate_model
from iceaggr.steps.plan_shards import run_plan_shards, run_shard_events
from iceaggr.steps.promote_model import run_promote_model
from iceaggr.steps.train_model import run_check_learning, run_train_model
from iceaggr.steps.training_choices import TrainingChoices
from iceaggr.storage import open_store

STEPS = (
    "plan_shards",
    "shard_events",
    "compute_statistics",
    "check_learning",
    "train_model",
    "evaluate_model",
    "promote_model",
    "close_run",
)
UNTRACKED_STEPS = STEPS[:-2]
CHECK_PAGE = "check.html"
"""Losses before and after, gradient norm and verdict of the learning check; no time is in it."""

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"n_events_per_shard": 16, "test_share": 0.2},
    "batches": {"n_events": 16, "n_workers": 1, "max_doms_per_event": 32, "n_mixed_shards": 2},
    "model": {
        **{"d_model": 16, "n_heads": 2, "n_dom_layers": 1, "n_event_layers": 1, "dropout": 0.1},
        **{"seed": "line_fit", "seed_frame": True, "seed_head": True},
    },
    "learning_check": {"n_steps": 10, "n_events_per_batch": 8, "n_batches": 1, "min_loss_drop": 0},
    "training": {
        "n_epochs": 2,
        "learning_rate": 1e-3,
        "device": "cpu",
    },
    "evaluation": {"n_bootstrap": 100, "refine_events": 0},
    "promotion": {"model_name": "tiny-model", "first_beats_fits": False},
}


@dataclass(frozen=True)
class TinyRun:
    """One run: where it reads and writes, and the folder of its documents."""

    raw_uri: str
    work_uri: str
    folder: Path
    run_id: str
    tracked: bool = False
    model_name: str = "tiny-model"
    checkpoint_every_minutes: float = 10.0

    def context(self) -> RunContext:
        """Open the run as a step does."""
        every = {"checkpoint_every_minutes": self.checkpoint_every_minutes}
        config = {
            **TINY,
            "training": {**TINY["training"], **every},
            "promotion": {**TINY["promotion"], "model_name": self.model_name},
        }
        return make_context(self.run_id, "faults", self.work_uri, config, tracked=self.tracked)

    def run(self, steps: Iterable[str] = UNTRACKED_STEPS) -> None:
        """Run steps, one after the other."""
        for step in steps:
            self.run_step(step)

    def run_step(self, step: str) -> None:
        """Run one step with the documents of the steps before it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        getattr(self, f"_{step}")(self.context())

    def _plan_shards(self, context: RunContext) -> None:
        units = run_plan_shards(context, self.raw_uri)
        (self.folder / "units.json").write_text(json.dumps(units))

    def _shard_events(self, context: RunContext) -> None:
        for number, unit in enumerate(json.loads((self.folder / "units.json").read_text())):
            run_shard_events(context, unit, self.folder / f"unit-{number}.json")

    def _compute_statistics(self, context: RunContext) -> None:
        run_compute_statistics(
            context,
            sorted(self.folder.glob("unit-*.json")),
            manifest_path=self.folder / "manifest.json",
            normalization_path=self.folder / "normalization.json",
            data_card_path=self.folder / "card.html",
        )

    def _check_learning(self, context: RunContext) -> None:
        run_check_learning(context, *self._documents(), self.folder / CHECK_PAGE)

    def _train_model(self, context: RunContext) -> None:
        run_train_model(
            context,
            *self._documents(),
            model_path=self.folder / "model.json",
            choices=TrainingChoices(),
        )

    def _evaluate_model(self, context: RunContext) -> None:
        run_evaluate_model(
            context,
            self.folder / "manifest.json",
            self.folder / "model.json",
            self.raw_uri,
            evaluation_path=self.folder / "evaluation.json",
            report_path=self.folder / "report.html",
        )

    def _promote_model(self, context: RunContext) -> None:
        names = ("manifest", "model", "evaluation")
        run_promote_model(
            context,
            *(self.folder / f"{name}.json" for name in names),
            summary_path=self.folder / "summary.json",
            verdict_path=self.folder / "verdict.md",
        )

    def _close_run(self, context: RunContext) -> None:
        run_close_run(context, "SUCCEEDED")

    def _documents(self) -> tuple[Path, Path]:
        return self.folder / "manifest.json", self.folder / "normalization.json"


def results(run: TinyRun) -> dict[str, Any]:
    """Collect what a run has made, with its own names taken out: equal for equal runs.

    Shards, sketches and quarantine byte for byte, normalisation, every weight and every event of
    the evaluation by hash, the page of the learning check, and the figures.
    """
    store = open_store()
    found: dict[str, Any] = {}
    for stored in store.list(f"{run.work_uri}/shards/"):
        name = stored.uri.removeprefix(run.work_uri)
        if not name.endswith("/manifest.json"):  # it names its own URIs: compared below
            found[name] = _sha256(store.read_bytes(stored.uri))
    for name in ("units", "unit-0", "manifest", "normalization", "evaluation"):
        path = run.folder / f"{name}.json"
        if path.exists():
            text = path.read_text().replace(run.work_uri, "WORK").replace(run.run_id, "RUN")
            text = re.sub(r'"reused": ?(true|false)', "", text)
            # these cover URIs and the names of runs
            found[name] = re.sub(r'"(content_sha256|model_digest)": ?"\w+"', "", text)
    page = run.folder / CHECK_PAGE
    if page.exists():
        found[CHECK_PAGE] = page.read_text()
    for name in ("training/model/weights.safetensors", "evaluation/events.parquet"):
        uri = f"{run.context().run_uri}/{name}"
        if store.stat(uri) is not None:
            found[name] = _sha256(store.read_bytes(uri))
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
