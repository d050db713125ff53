"""The card of a registered model: trained on what, valid for what, its figures, known failures.

Everything on it comes from the run itself: the manifest, the saved model, the evaluation's table of
events, and the test events that the model was most wrong about for its confidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from iceaggr.angles import unit_vector
from iceaggr.batches import EventLoader
from iceaggr.evaluation.calibration import coverage, width_parts
from iceaggr.evaluation.evaluation import energy_words, true_nature
from iceaggr.evaluation.event_display import EventSnapshot, draw_event, snapshot
from iceaggr.evaluation.event_table import angles_of, nats_of, pit_of, true_direction
from iceaggr.events.truth import TOPOLOGIES
from iceaggr.interfaces import ObjectStore
from iceaggr.losses import trains_kappa
from iceaggr.models.bundle import LoadedModel
from iceaggr.pages import render
from iceaggr.shards.manifest import ShardManifest
from iceaggr.steps.champion import batches_of
from iceaggr.steps.documents import AngleRow, EvaluationPointer, ModelPointer

CARD_FILE = "model_card.html"
"""Lies beside the files of the registered model."""
N_FAILURES = 3
SURE_KAPPA, WRONG_DEG = 200.0, 40.0
"""An event is confident and wrong beyond both: kappa 200 claims a median error of 4.8 degrees."""
MOST_OF_EVENTS = (0.01, 0.99)
"""What lies between these quantiles of the test events is called the tested range."""

Facts = dict[str, str]


@dataclass(frozen=True)
class ModelCard:
    """A card as one page with its pictures, and as Markdown for the list of versions."""

    html: str
    text: str


def make_card(
    store: ObjectStore,
    manifest: ShardManifest,
    loaded: LoadedModel,
    pointer: ModelPointer,
    headline: EvaluationPointer,
    events: pd.DataFrame,
    name: str,
) -> ModelCard:
    """Write the card of a model that was just evaluated.

    events: the evaluation's table, one row per test event. name: of the model in the registry.
    Raises: ShardError if a shard of the test split cannot be read.
    """
    sections = {
        "Trained on": trained_on(manifest, loaded, pointer),
        "Valid for": valid_for(loaded, events),
        "Confidence": confidence_facts(loaded, events),
        "Known failures": failure_facts(events),
    }
    if headline.refined:
        sections["Confidence"]["predict --refine"] = headline.refined
    worst = worst_events(events, judges_kappa(loaded))
    found = find_events(store, manifest, loaded, worst)
    rows = worst.set_index("event_id").to_dict("index")
    pictures = [
        draw_event(event, loaded.detector, f"Failure{true_nature(rows[event.event_id])}")
        for event in found
    ]
    title = f"Model card: {name}"
    html = render(
        "model_card.html.j2",
        title=title,
        n_events=len(events),
        rows=headline.table,
        sections=sections,
        pictures=pictures,
        by_confidence=judges_kappa(loaded),
    )
    return ModelCard(html, _markdown(headline.table, len(events), sections))


def judges_kappa(loaded: LoadedModel) -> bool:
    """Tell whether training asked for a true kappa; without settings nobody knows."""
    experiment = loaded.experiment
    return experiment is not None and trains_kappa(experiment.loss)


# What the card says, as pairs of a name and a sentence.


def trained_on(manifest: ShardManifest, loaded: LoadedModel, pointer: ModelPointer) -> Facts:
    """Say which events and settings made the model."""
    sources = manifest.source_files
    folders = sorted({source.uri.rpartition("/")[0] for source in sources})
    more = f" and {len(folders) - 1} more folders" if len(folders) > 1 else ""
    experiment = loaded.experiment
    facts = {
        "events": f"{manifest.n_events('train'):,} of the train split, {len(sources):,} raw files"
        f" in {folders[0] if folders else 'no folder'}{more}",
        "data digest": manifest.digest(),
        "training": f"{pointer.n_steps:,} steps from {pointer.started_from}, ended by"
        f" {pointer.stopped_because}; {loaded.facts.get('n_events_seen', 0):,} events seen",
        "network": f"{loaded.model.n_parameters():,} weights, seed fit {loaded.model.config.seed}",
    }
    if experiment is not None:
        facts["settings"] = f"{experiment.name}, loss {experiment.loss.kind}"
    return facts


def valid_for(loaded: LoadedModel, events: pd.DataFrame) -> Facts:
    """Say for which detector and events the figures hold: the central 98 % of the test events."""
    detector = loaded.detector
    n_used = int(detector.in_use.sum())
    facts = {
        "detector": f"{n_used:,} sensors in {detector.medium_words}, digest"
        f" {detector.digest()[:12]}; no other",
        "pulses per event": _range(events["n_pulses"]),
        "DOMs with a pulse": _range(events["n_doms"]),
        "directions": "the whole sky, labels point to where the neutrino came from",
    }
    if "energy_gev" in events:
        low, high = np.quantile(events["energy_gev"], MOST_OF_EVENTS)
        facts["true energy"] = f"{energy_words(float(low))} to {energy_words(float(high))}"
    facts["beyond"] = "untested; another simulation or real events are another data set"
    return facts


def _range(values: pd.Series[Any]) -> str:
    low, high = np.quantile(values, MOST_OF_EVENTS)
    return f"{low:,.0f} to {high:,.0f}"


def confidence_facts(loaded: LoadedModel, events: pd.DataFrame) -> Facts:
    """Say what kappa is worth: coverage, deciles, and the accuracy of the surer half."""
    if not judges_kappa(loaded):
        return {"kappa": "means nothing here: the loss did not train it"}
    angle_deg, kappa = angles_of(events, "model"), events["kappa"].to_numpy()
    found = coverage(pit_of(events))
    shares = " / ".join(f"{100 * one.share:.1f}" for one in found)
    levels = " / ".join(f"{100 * one.level:.0f}" for one in found)
    ratios = [part.ratio for part in width_parts(np.deg2rad(angle_deg), kappa)]
    surer = angle_deg[kappa >= np.median(kappa)]
    return {
        "coverage": f"{shares} % of events inside their {levels} % regions",
        "found over claimed width": f"{min(ratios):.2f} to {max(ratios):.2f} over"
        f" {len(ratios)} equal parts of the events by kappa; 1 is honest",
        "surer half": f"mean angle {surer.mean():.2f} deg, {angle_deg.mean():.2f} for all",
    }


def failure_facts(events: pd.DataFrame) -> Facts:
    """Count where the model fails: sure and wrong, and the kinds of events it does badly on."""
    angle_deg = angles_of(events, "model")
    sure = events["kappa"].to_numpy() > SURE_KAPPA
    wrong = sure & (angle_deg > WRONG_DEG)
    share = f" ({100 * wrong.sum() / sure.sum():.1f} %)" if sure.any() else ""
    name = f"kappa above {SURE_KAPPA:.0f} and yet more than {WRONG_DEG:.0f} deg wrong"
    facts = {
        name: f"{wrong.sum()} of {sure.sum():,} such sure events{share}",
        "more than 90 deg wrong": f"{100 * np.mean(angle_deg > 90):.1f} % of all events",
    }
    for kind, chosen in _kinds(events).items():
        if n_events := int(chosen.sum()):
            mean = angle_deg[chosen].mean()
            facts[kind] = f"mean {mean:.1f} deg, {n_events:,} event{'s' * (n_events != 1)}"
    return facts


def _kinds(events: pd.DataFrame) -> Mapping[str, Any]:
    """Mark the events of each kind that is hard, (N,) bool, as far as the truth is known."""
    n_pulses = events["n_pulses"].to_numpy()
    few = np.quantile(n_pulses, 0.1)
    kinds = {f"at most {few:.0f} pulses": n_pulses <= few}
    if "topology" in events:
        kinds |= {f"{one}s": events["topology"].to_numpy() == one for one in TOPOLOGIES}
    if "coincident_muon" in events:
        muon = events["coincident_muon"].to_numpy(dtype=bool)
        kinds |= {"with a coincident muon": muon, "without one": ~muon}
    return kinds


def worst_events(events: pd.DataFrame, by_confidence: bool) -> pd.DataFrame:
    """Choose the events that the model was most wrong about, worst first.

    by_confidence: by the negative log-likelihood of the truth, which counts a large angle more the
    surer the model was; else by the angle alone.
    """
    loss = nats_of(events) if by_confidence else angles_of(events, "model")
    return events.iloc[np.argsort(-loss, kind="stable")[:N_FAILURES]]


def find_events(
    store: ObjectStore, manifest: ShardManifest, loaded: LoadedModel, rows: pd.DataFrame
) -> list[EventSnapshot]:
    """Read the pulses of some test events, in the order of the rows of the event table."""
    wanted = {int(row["event_id"]): row for row in rows.to_dict("records")}
    found: dict[int, EventSnapshot] = {}
    loader = EventLoader(store, manifest, "test", loaded.detector, batches_of(loaded))
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            ids = batch.event_id.tolist()
            true = true_direction(batch).numpy() if wanted.keys() & set(ids) else None
            for place, event_id in enumerate(ids):
                if true is not None and event_id in wanted:
                    row = wanted[event_id]
                    event = snapshot(batch, place, true[place], _direction(row))
                    found[event_id] = replace(
                        event, angle_deg=row["opening_angle_deg"], kappa=row["kappa"]
                    )
            if len(found) == len(wanted):
                break
    return [found[event_id] for event_id in wanted if event_id in found]


def _direction(row: Mapping[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    angles = (torch.tensor([row[name]], dtype=torch.float64) for name in ("azimuth", "zenith"))
    return np.asarray(unit_vector(*angles)[0].numpy(), np.float64)


def _markdown(table: tuple[AngleRow, ...], n_events: int, sections: Mapping[str, Facts]) -> str:
    """Write the card for MLflow's description of a version, which shows no pictures."""
    lines = [f"| opening angle, {n_events:,} test events | mean | median |", "|---|---|---|"]
    lines += [
        f"| {row.title} | {row.mean_deg:.2f} ± {row.mean_error_deg:.2f}° "
        f"| {row.median_deg:.2f} ± {row.median_error_deg:.2f}° |"
        for row in table
    ]
    for heading, facts in sections.items():
        lines += ["", f"**{heading}**", ""]
        lines += [f"- {name}: {sentence}" for name, sentence in facts.items()]
    return "\n".join([*lines, "", f"Pictures of failures: {CARD_FILE} among the model's files."])
