import dataclasses

import numpy as np
import pytest
import torch

from iceaggr.angles import opening_angle
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import LossConfig, ModelConfig
from iceaggr.losses import direction_loss
from iceaggr.models import DirectionModel, build_model, seed_frame
from iceaggr.normalization_document import Normalization
from tests.batches.batch_builder import (
    DomHits,
    Event,
    assemble,
    random_event_batch,
    random_events,
    track_event_batch,
)

PLAIN = ModelConfig(d_model=32, n_heads=4, n_dom_layers=2, n_event_layers=2, dropout=0.0)
EVERYTHING = {
    "dom_statistics": True,
    "fourier_bands": 4,
    "event_token": True,
    "relative_bias": True,
    "seed": "likelihood",
    "seed_frame": True,
    "seed_head": True,
    "seed_alternatives": True,
    "point_fit": True,
    "vector_readout": True,
}
PHYSICS = PLAIN.model_copy(update=EVERYTHING)
STATISTICS_ONLY = PHYSICS.model_copy(update={"n_dom_layers": 0})
CONFIGS = pytest.mark.parametrize(
    "config", [PLAIN, PHYSICS, STATISTICS_ONLY], ids=["plain", "physics", "statistics_only"]
)


def built(config: ModelConfig, seed: int = 0) -> DirectionModel:
    torch.manual_seed(seed)
    model = build_model(config, Normalization.seed())
    if model.event_transformer.bias is not None:
        torch.nn.init.normal_(model.event_transformer.bias.table.weight)
    if model.event_transformer.vector_weights is not None:
        torch.nn.init.normal_(model.event_transformer.vector_weights.weight, std=0.05)
    return model.eval()


def predict(model: DirectionModel, batch: EventBatch) -> torch.Tensor:
    with torch.no_grad():
        return model(batch).vector


@CONFIGS
def test_model_ignores_batch_mates_and_event_order(config: ModelConfig) -> None:
    model, events = built(config), random_events(40, seed=1)
    together = predict(model, assemble(events))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = predict(model, assemble([events[i] for i in order]))
    torch.testing.assert_close(shuffled, together[order], rtol=1e-5, atol=1e-5)
    alone = torch.cat([predict(model, assemble([event])) for event in events[:6]])
    torch.testing.assert_close(alone, together[:6], rtol=1e-4, atol=1e-5)


@CONFIGS
def test_model_ignores_the_order_of_doms(config: ModelConfig) -> None:
    model, events = built(config), random_events(30, seed=2)
    rng = np.random.default_rng(0)
    shuffled = [
        Event(e.event_id, [e.doms[i] for i in rng.permutation(len(e.doms))], e.direction)
        for e in events
    ]
    torch.testing.assert_close(
        predict(model, assemble(shuffled)), predict(model, assemble(events)), rtol=1e-3, atol=1e-3
    )


@CONFIGS
def test_chunked_equals_unchunked_in_value_and_gradient(config: ModelConfig) -> None:
    batch = random_event_batch(40, seed=3)
    whole = built(config)
    chunked = built(config.model_copy(update={"max_rows_per_chunk": 37}))
    torch.testing.assert_close(predict(chunked, batch), predict(whole, batch), rtol=1e-5, atol=1e-6)
    for model in (whole, chunked):
        model(batch).vector.square().sum().backward()
    for (name, first), second in zip(whole.named_parameters(), chunked.parameters(), strict=True):
        assert first.grad is not None, f"{name} is never used"
        assert second.grad is not None
        scale = float(first.grad.abs().max()) + 1e-6
        assert float((first.grad - second.grad).abs().max()) < 1e-4 * scale, name


@CONFIGS
def test_chunked_equals_unchunked_with_dropout_frozen_by_seed(config: ModelConfig) -> None:
    # recomputation must draw the same dropout as the first pass: the gradient is then a true one
    config = config.model_copy(update={"dropout": 0.3, "max_rows_per_chunk": 64})
    model, batch = built(config).train(), random_event_batch(20, seed=4)
    weight = model.head.out.bias

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        return model(batch).vector.double().square().sum()

    loss().backward()
    assert weight.grad is not None
    analytic = float(weight.grad[0])
    step = 1e-3
    with torch.no_grad():
        weight[0] += step
        above = float(loss())
        weight[0] -= 2 * step
        below = float(loss())
    assert analytic == pytest.approx((above - below) / (2 * step), rel=0.02, abs=1e-3)


@CONFIGS
def test_model_is_finite_for_the_smallest_events(config: ModelConfig) -> None:
    def dom(sensor: int, times: list[float], auxiliary: bool) -> DomHits:
        n = len(times)
        return DomHits(sensor, np.array(times), np.full(n, 0.025), np.full(n, auxiliary))

    up = np.array([0.0, 0.0, 1.0])
    events = [
        Event(0, [dom(10, [10_000.0], True)], up),
        Event(1, [dom(10, [10_000.0, 10_000.0], False)], up),
        Event(2, [dom(10, [10_000.0], False), dom(11, [10_000.0], False)], up),
        Event(3, [dom(i, [9_000.0 + i], False) for i in range(4)], up),
    ]
    model = built(config).train()
    output = model(assemble(events))
    direction_loss(output, assemble(events).direction, LossConfig(), 0.0).sum().backward()
    assert torch.isfinite(output.vector).all()
    lengths = torch.linalg.vector_norm(output.direction, dim=-1)
    torch.testing.assert_close(lengths, torch.ones(4))
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    "config",
    [PLAIN, PHYSICS, STATISTICS_ONLY, PHYSICS.model_copy(update={"event_token": False})],
    ids=["plain", "physics", "statistics_only", "without_token"],
)
def test_no_batch_leaves_a_weight_without_a_gradient(config: ModelConfig) -> None:
    # processes that train together wait for the gradient of each weight from every one of them
    hit = DomHits(10, np.array([10_000.0]), np.full(1, 0.025), np.full(1, False))
    batch = assemble([Event(i, [hit], np.array([0.0, 0.0, 1.0])) for i in range(3)])
    model = built(config).train()
    direction_loss(model(batch), batch.direction, LossConfig(), 0.0).sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_time_offset_changes_nothing_in_the_frame_of_the_seed() -> None:
    config = STATISTICS_ONLY.model_copy(update={"fourier_bands": 0})
    events = random_events(20, seed=6)
    later = [
        Event(
            e.event_id,
            [DomHits(d.sensor_idx, d.time_ns + 4096, d.charge_pe, d.auxiliary) for d in e.doms],
            e.direction,
        )
        for e in events
    ]
    model = built(config)
    first, second = predict(model, assemble(events)), predict(model, assemble(later))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "n_steps"), [(PLAIN, 150), (STATISTICS_ONLY, 40)], ids=["plain", "statistics_only"]
)
def test_model_overfits_one_batch(config: ModelConfig, n_steps: int) -> None:
    batch = track_event_batch(4, seed=7)
    assert batch.direction is not None
    model = built(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, n_steps)
    for _ in range(n_steps):
        loss = direction_loss(model(batch), batch.direction, LossConfig()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        angle = opening_angle(model(batch).direction, batch.direction).mean()
    assert float(angle) < 0.15, "random predictions have 1.57"


def test_seed_head_starts_near_the_seed() -> None:
    batch = track_event_batch(50, seed=8)
    torch.manual_seed(0)
    model = build_model(STATISTICS_ONLY, Normalization.seed()).eval()
    frame = model.inputs(batch, model.normalizer(batch)).rotation
    assert frame is not None
    with torch.no_grad():
        angle = opening_angle(model(batch).direction, frame[:, 2])
    assert float(angle.max()) < 0.3


def test_seeds_are_fitted_once_and_recalled_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[int] = []
    fit = seed_frame.find_seeds

    def counted(batch: EventBatch, config: ModelConfig) -> seed_frame.Seeds:
        fitted.extend(batch.event_id.tolist())
        return fit(batch, config)

    monkeypatch.setattr(seed_frame, "find_seeds", counted)
    events = [e for e in random_events(40, seed=11) if e.doms]
    model, fresh = built(STATISTICS_ONLY), built(STATISTICS_ONLY)
    model.inputs.remember_seeds()
    model.features_of(assemble(events[:20]))
    model.features_of(assemble(events[20:]))
    assert sorted(fitted) == sorted(e.event_id for e in events)
    mixed = assemble(events[::-3])
    recalled = model.features_of(mixed)
    assert len(fitted) == len(events), "a known event was fitted again"
    expected = fresh.features_of(mixed)
    for name in ("doms", "events", "rotation", "vectors"):
        assert torch.equal(getattr(recalled, name), getattr(expected, name)), name


def test_memory_of_seeds_is_bounded() -> None:
    events = random_events(30, seed=12)
    memory = seed_frame.SeedMemory(STATISTICS_ONLY, max_events=12)
    for batch in (assemble(events[:10]), assemble(events[10:]), assemble(events[5:15])):
        found, expected = memory.seeds(batch), seed_frame.find_seeds(batch, STATISTICS_ONLY)
        assert torch.equal(found.fit.direction, expected.fit.direction)
        assert torch.equal(found.alternatives, expected.alternatives)
        assert torch.equal(found.point_m, expected.point_m)
    assert len(memory) == 12


def test_bfloat16_autocast_leaves_the_features_alone_and_the_prediction_close() -> None:
    batch = track_event_batch(20, seed=10, noise_share=0.3)
    model = built(PHYSICS)
    plain = model.inputs(batch, model.normalizer(batch))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model.inputs(batch, model.normalizer(batch))
        output = model(batch)
    for name in ("pulses", "doms", "events", "places", "rotation"):
        assert torch.equal(getattr(cast, name), getattr(plain, name)), name
    with torch.no_grad():
        angle = opening_angle(output.direction, model(batch).direction)
    assert output.vector.dtype == torch.float32
    assert float(angle.max()) < 0.05


def test_giant_event_gives_the_same_prediction_in_chunks() -> None:
    rng = np.random.default_rng(9)
    doms = []
    for sensor in range(600):
        n = int(rng.integers(1, 60))
        doms.append(
            DomHits(
                sensor,
                np.sort(rng.uniform(6000, 60_000, n)),
                rng.uniform(0.3, 50, n),
                rng.random(n) < 0.1,
            )
        )
    giant = assemble([Event(0, doms, np.array([0.0, 0.0, 1.0])), *random_events(3, seed=9)])
    whole = built(PLAIN.model_copy(update={"max_rows_per_chunk": 10**9}))
    chunked = built(PLAIN.model_copy(update={"max_rows_per_chunk": 500}))
    torch.testing.assert_close(predict(chunked, giant), predict(whole, giant), rtol=1e-4, atol=1e-5)


def test_n_flops_counts_a_plain_layer() -> None:
    batch = assemble(random_events(1, seed=1, max_doms=1, max_pulses=2))
    model = built(
        ModelConfig(
            d_model=8, n_heads=1, n_dom_layers=0, n_event_layers=1, dom_statistics=True, dropout=0.0
        )
    )
    assert model.n_flops(batch) == 2 * 12 * 8 * 8 + 4 * 8


def far_normalization() -> Normalization:
    """An array whose middle is 3 km below the origin of its coordinates."""
    deep = Normalization.seed().z_m.model_copy(update={"centre": -3_000.0})
    return Normalization.seed().model_copy(update={"z_m": deep})


def moved_down(batch: EventBatch) -> EventBatch:
    return dataclasses.replace(batch, xyz_m=batch.xyz_m - torch.tensor([0.0, 0.0, 3_000.0]))


@CONFIGS
def test_array_far_from_its_origin_is_seen_as_one_about_it(config: ModelConfig) -> None:
    batch = track_event_batch(n_events=8, seed=3)
    near = built(config)
    far = DirectionModel(config, far_normalization()).eval()
    far.load_state_dict(near.state_dict() | {
        "normalizer.centre": far.normalizer.centre,
        "inputs.origin_m": torch.tensor([0.0, 0.0, -3_000.0]),
    })  # fmt: skip
    torch.testing.assert_close(
        predict(far, moved_down(batch)), predict(near, batch), rtol=2e-2, atol=2e-2
    )
    assert "inputs.origin_m" not in near.state_dict()


def test_model_from_before_origins_predicts_as_it_did() -> None:
    batch = moved_down(track_event_batch(n_events=8, seed=3))
    old = {**DirectionModel(PHYSICS, far_normalization()).state_dict()}
    old.pop("inputs.origin_m")
    model = DirectionModel(PHYSICS, far_normalization()).eval()
    model.load_state_dict(old)
    assert model.inputs.origin_m is not None
    assert not model.inputs.origin_m.any()
    shift = torch.tensor([0.0, 0.0, -3_000.0])
    moved = DirectionModel(PHYSICS, far_normalization()).eval()
    moved.load_state_dict(old | {"inputs.origin_m": shift})
    assert not torch.allclose(predict(model, batch), predict(moved, batch))
