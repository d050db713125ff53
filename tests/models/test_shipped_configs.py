"""The networks of configs/, narrower: an event's prediction is its own.

Most of the events are hard ones, of few hits and much noise: there a fit that takes other steps
because a sum was rounded otherwise ends degrees away.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from iceaggr.angles import opening_angle
from iceaggr.config import load_config
from iceaggr.models import DirectionModel, build_model
from iceaggr.models.hierarchical import DirectionOutput
from iceaggr.normalization_document import Normalization
from tests.batches.batch_builder import Event, assemble, random_events, track_events

CONFIGS = Path(__file__).parents[2] / "configs"
NARROW = {"d_model": 32, "n_heads": 4, "dropout": 0.0}
SHIPPED = pytest.mark.parametrize("name", ["laptop", "best", "baseline_1m"])
N_EVENTS = 120


@cache
def shipped_model(name: str) -> DirectionModel:
    config = load_config(CONFIGS / f"{name}.yaml").model
    depth = {"n_event_layers": min(config.n_event_layers, 2)}
    torch.manual_seed(0)
    model = build_model(config.model_copy(update={**NARROW, **depth}), Normalization.seed())
    event_transformer = model.event_transformer
    if event_transformer.bias is not None:
        torch.nn.init.normal_(event_transformer.bias.table.weight)
    if event_transformer.vector_weights is not None:
        torch.nn.init.normal_(event_transformer.vector_weights.weight, std=0.05)
    return model.eval()


@cache
def events() -> list[Event]:
    tracks = track_events(N_EVENTS // 2, seed=1, delay_ns=150.0, noise_share=1.5)
    return [*random_events(N_EVENTS // 2, seed=1), *tracks]


def predict(name: str, chosen: list[Event]) -> DirectionOutput:
    with torch.no_grad():
        return shipped_model(name)(assemble(chosen))


def assert_same_predictions(
    found: DirectionOutput, expected: DirectionOutput, rows: torch.Tensor | None = None
) -> None:
    direction, kappa = expected.direction, expected.kappa
    if rows is not None:
        direction, kappa = direction[rows], kappa[rows]
    angle = torch.rad2deg(opening_angle(found.direction, direction))
    assert float(angle.max()) < 0.01
    torch.testing.assert_close(found.kappa, kappa, rtol=1e-3, atol=1e-4)


@SHIPPED
def test_prediction_ignores_the_order_of_doms(name: str) -> None:
    expected = predict(name, events())
    for seed in range(2):
        rng = np.random.default_rng(seed)
        shuffled = [
            Event(e.event_id, [e.doms[i] for i in rng.permutation(len(e.doms))], e.direction)
            for e in events()
        ]
        assert_same_predictions(predict(name, shuffled), expected)


@SHIPPED
def test_prediction_ignores_batch_mates_their_order_and_padding(name: str) -> None:
    model, together = shipped_model(name), predict(name, events())
    batch = assemble(events())
    packing = model.event_transformer.layers.packing(batch.event_dom_offsets, batch.n_doms)
    assert any(group.is_real is not None for chunk in packing.chunks for group in chunk.groups)
    order = torch.randperm(N_EVENTS, generator=torch.Generator().manual_seed(0))
    assert_same_predictions(predict(name, [events()[i] for i in order]), together, order)
    for few in (1, 7):
        rows = torch.arange(0, N_EVENTS, 6)[:21]
        for part in rows.split(few):
            mates = predict(name, [events()[i] for i in part])
            assert_same_predictions(mates, together, part)
