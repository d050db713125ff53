"""Train variants of a configuration on the same events and compare them, paired.

Usage, on shards that `iceaggr shard` and `iceaggr stats` have left in FOLDER:

    python benchmarks/ablations.py FOLDER [--rows benchmarks/ablations.yaml] [--only ROW ...]
        [--seeds 0 1] [--table]

Each variant runs on one thread for a fixed number of events, so a busy machine changes nothing but
the time. What is finished is kept in FOLDER/ablations and not trained again; --table only prints.
"""

from __future__ import annotations

if __name__ == "__main__":
    from iceaggr.entry import begin

    begin()

import argparse
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from iceaggr.batches import EventLoader
from iceaggr.config import ExperimentConfig
from iceaggr.config.experiment import parse_config
from iceaggr.evaluation.calibration import coverage, probability_inside
from iceaggr.evaluation.event_table import concatenate, join_truth, predict_batch, score_batch
from iceaggr.events.truth import read_truth
from iceaggr.interfaces import NullTracker
from iceaggr.models.bundle import load_model
from iceaggr.normalization_document import Normalization
from iceaggr.steps.run_folder import RunFolder
from iceaggr.steps.training_inputs import load_training_inputs, read_manifest
from iceaggr.training import train

BASE = "base"
SPLITS = ("validation", "test")
"""Nothing here chooses by the validation split, so both judge."""


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path, default=Path(__file__).with_name("ablations.yaml"))
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    plan = yaml.safe_load(asked.rows.read_text(encoding="utf-8"))
    names = list(plan["rows"]) if asked.only is None else asked.only
    if not asked.table:
        for name in names:
            for seed in asked.seeds:
                train_row(RunFolder.open(asked.folder), plan, name, seed)
    print(table(asked.folder, [BASE, *(name for name in plan["rows"] if name != BASE)]))


def train_row(run: RunFolder, plan: dict[str, Any], name: str, seed: int) -> None:
    """Train one variant with one seed and keep the opening angle of every judged event."""
    target = _result(run.path, name, seed)
    if target.is_file():
        return
    target.parent.mkdir(exist_ok=True)
    context = run.context()
    config = variant(context.config, plan["rows"][name], plan["n_epochs"], seed)
    inputs = load_training_inputs(context, run.manifest, run.normalization, NullTracker())
    folder_uri = target.with_suffix("").as_uri()
    inputs = replace(inputs, config=config, output_uri=folder_uri)
    if config.normalization.preset == "seed":
        inputs = replace(inputs, normalization=Normalization.seed())
    began = time.process_time()
    result = train(inputs)
    seconds = time.process_time() - began
    events = judge(run, result.model_uri, config)
    facts = {"row": name, "seed": seed, "n_events_seen": result.n_events_seen, "core_s": seconds}
    target.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
    events.to_parquet(target)
    print(f"{name}, seed {seed}: {events['opening_angle_deg'].mean():.2f} deg, {seconds:.0f} s")


def variant(
    base: ExperimentConfig, changes: dict[str, dict[str, Any]], n_epochs: int, seed: int
) -> ExperimentConfig:
    """Lay a row's changes over the base, with a length counted in events, not in minutes."""
    settings = base.model_dump(mode="json")
    for section, fields in changes.items():
        settings[section] |= fields
    fixed = {"n_epochs": n_epochs, "max_minutes": 0, "seed": seed, "max_validation_events": 500}
    settings["training"] |= fixed
    settings["batches"] |= {"seed": seed, "n_workers": 0}
    return parse_config(settings)


def judge(run: RunFolder, model_uri: str, config: ExperimentConfig) -> pd.DataFrame:
    """Score the events that the variant has not trained on, with their topology."""
    store = run.context().open_store()
    loaded = load_model(store, model_uri)
    manifest = read_manifest(run.manifest)
    loaded.model.eval()
    parts = [
        score_batch(batch, predict_batch(loaded.model, batch, torch.device("cpu")))
        for split in SPLITS
        for batch in EventLoader(store, manifest, split, loaded.detector, config.batches).epoch(0)
    ]
    events = join_truth(concatenate(parts), read_truth(store, run.raw_uri))
    return events[["event_id", "opening_angle_deg", "kappa", "topology"]]


def table(folder: Path, names: list[str]) -> str:
    """Write one row per variant: means over the seeds and the paired difference from the base."""
    found = {name: _finished(folder, name) for name in names}
    base = found[BASE]
    lines = [
        "| variant | seeds | mean | cascades mean | tracks mean | tracks median "
        "| minus base, paired | between seeds | cov50 / cov90 | core s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(name, runs, base) for name, runs in found.items() if runs]
    return "\n".join(lines)


def _line(name: str, runs: dict[int, pd.DataFrame], base: dict[int, pd.DataFrame]) -> str:
    every = pd.concat(runs.values())
    tracks = every[every["topology"] == "track"]["opening_angle_deg"]
    cascades = every[every["topology"] == "cascade"]["opening_angle_deg"]
    means = [events["opening_angle_deg"].mean() for events in runs.values()]
    spread = f"{max(means) - min(means):.2f}" if len(means) > 1 else ""
    shared = sorted(set(runs) & set(base))
    difference = ""
    if name != BASE and shared:
        # seeds judge the same events: average them first, so that an event counts once
        gain = np.mean([_angles(runs[seed]) - _angles(base[seed]) for seed in shared], axis=0)
        difference = f"{gain.mean():+.2f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.2f}"
    angle_rad = np.radians(every["opening_angle_deg"].to_numpy())
    inside = coverage(probability_inside(angle_rad, every["kappa"].to_numpy()), (0.5, 0.9))
    seconds = np.mean([events.attrs["core_s"] for events in runs.values()])
    return (
        f"| {name} | {len(runs)} | {every['opening_angle_deg'].mean():.2f} | {cascades.mean():.1f} "
        f"| {tracks.mean():.1f} | {tracks.median():.2f} | {difference} | {spread} "
        f"| {inside[0].share:.2f} / {inside[1].share:.2f} | {seconds:.0f} |"
    )


def _angles(events: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    return events.sort_values("event_id")["opening_angle_deg"].to_numpy()


def _finished(folder: Path, name: str) -> dict[int, pd.DataFrame]:
    runs = {}
    for path in sorted((folder / "ablations").glob(f"{_slug(name)}-seed*.parquet")):
        events = pd.read_parquet(path)
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        events.attrs["core_s"] = facts["core_s"]
        runs[int(facts["seed"])] = events
    return runs


def _result(folder: Path, name: str, seed: int) -> Path:
    return folder.absolute() / "ablations" / f"{_slug(name)}-seed{seed}.parquet"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", name.lower())


if __name__ == "__main__":
    from iceaggr.entry import run

    run(main)
