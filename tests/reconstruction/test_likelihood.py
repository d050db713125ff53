import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from iceaggr.angles import opening_angle
from iceaggr.detector import ICE, WATER, Medium
from iceaggr.reconstruction import improved_line_fit, likelihood_fit
from iceaggr.reconstruction.hypotheses import PointSource, TrackSource, cherenkov_time
from iceaggr.reconstruction.likelihood import (
    TimedHits,
    arrival_table,
    centred_hits,
    evaluate,
    fit_point,
    fit_track,
)
from tests.batches.batch_builder import (
    DomHits,
    Event,
    assemble,
    random_event_batch,
    random_events,
    track_event_batch,
    track_events,
)


@pytest.mark.parametrize("distance", [10.0, 40.0, 90.0])
@pytest.mark.parametrize("delay", [-20.0, 0.0, 15.0, 120.0, 800.0])
def test_arrival_table_matches_quadrature(distance: float, delay: float) -> None:
    blur = 20.0
    gamma = stats.gamma(distance / ICE.scattering_m, scale=1 / ICE.delay_rate)
    # over equal shares of probability, where the density itself may diverge at zero
    shares = (np.arange(200_000) + 0.5) / 200_000
    expected = np.log(stats.norm.pdf(delay - gamma.ppf(shares), scale=blur).mean())
    terms = arrival_table(blur, ICE).lookup(torch.tensor([delay]), torch.tensor([distance]))
    assert float(terms.log_density) == pytest.approx(expected, abs=0.03)


def test_arrival_density_is_normalised_and_survival_is_its_integral() -> None:
    times = torch.linspace(-200, 5900, 60_000)
    terms = arrival_table(20.0, ICE).lookup(times, torch.full_like(times, 60.0))
    density = terms.log_density.exp().double().numpy()
    assert integrate.trapezoid(density, times.numpy()) == pytest.approx(1.0, abs=0.02)
    after = integrate.trapezoid(density[20_000:], times.numpy()[20_000:])
    assert float(terms.log_survival[20_000].exp()) == pytest.approx(after, rel=0.03)


def test_curvature_is_the_sum_of_squared_scores_and_symmetric() -> None:
    hits = centred_hits(track_event_batch(20, seed=4, noise_share=0.3)).hits
    source, table = sources(20)[0], arrival_table(60.0, ICE)
    value = evaluate(source, hits, table)
    pulls, inverse_width = source.prior()
    total = torch.zeros(20, 5, 5)
    for row in range(len(hits.fit)):
        fit = hits.fit[row : row + 1]
        one = TrackSource(*(part[fit] for part in vars(source).values()))
        hit = [getattr(hits, name)[row : row + 1] for name in ("xyz_m", "time_ns", "noise")]
        alone = TimedHits(torch.zeros_like(fit), *hit, hits.photons[row : row + 1], 1)
        score = evaluate(one, alone, table).gradient[0] - pulls[fit][0] * inverse_width
        total[fit] += torch.outer(score, score)
    expected = total + torch.diag(inverse_width.square())
    reach = float(expected.abs().max())
    torch.testing.assert_close(value.curvature, expected, rtol=1e-3, atol=1e-6 * reach)
    assert torch.equal(value.curvature, value.curvature.mT)


def sources(n_fits: int) -> list:
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(n_fits, 7, generator=generator)
    travel = torch.nn.functional.normalize(draw[:, :3], dim=-1)
    position, start = 40 * draw[:, 3:6], torch.zeros(n_fits, 3)
    return [
        TrackSource(travel, position, 50 * draw[:, 6], start),
        PointSource(position, 50 * draw[:, 6], start),
    ]


@pytest.mark.parametrize("number", [0, 1], ids=["track", "point"])
def test_geometry_derivatives_match_finite_differences(number: int) -> None:
    source = sources(20)[number]
    xyz = 100 * torch.randn(60, 3, generator=torch.Generator().manual_seed(2))
    fit = torch.arange(60) % 20
    geometry = source.geometry(xyz, fit, ICE)
    n_parameters = geometry.arrival_by.shape[1]
    for parameter in range(n_parameters - 1):
        size = 1e-3 if number == 0 and parameter < 2 else 0.3
        step = torch.zeros(20, n_parameters)
        step[:, parameter] = size
        above, below = (source.moved(s).geometry(xyz, fit, ICE) for s in (step, -step))
        slope = (above.arrival_ns - below.arrival_ns) / (2 * size)
        torch.testing.assert_close(
            geometry.arrival_by[:, parameter],
            slope,
            rtol=0.02,
            atol=0.02 * float(slope.abs().max()),
        )
        slope = (above.distance_m - below.distance_m) / (2 * size)
        torch.testing.assert_close(
            geometry.distance_by[:, parameter],
            slope,
            rtol=0.02,
            atol=0.02 * float(slope.abs().max()),
        )


@pytest.mark.parametrize("number", [0, 1], ids=["track", "point"])
def test_likelihood_gradient_matches_finite_differences(number: int) -> None:
    batch = track_event_batch(20, seed=4, noise_share=0.3)
    hits = centred_hits(batch).hits
    source, table = sources(20)[number], arrival_table(60.0, ICE)
    value = evaluate(source, hits, table)
    n_parameters = value.gradient.shape[1]
    for parameter in range(n_parameters):
        size = 2e-3 if number == 0 and parameter < 2 else 0.5
        step = torch.zeros(20, n_parameters)
        step[:, parameter] = size
        above, below = (evaluate(source.moved(s), hits, table).cost for s in (step, -step))
        slope = (above - below) / (2 * size)
        error = (slope - value.gradient[:, parameter]).abs()
        # the table is piecewise bilinear, its derivatives are tabulated apart
        assert float(error.median()) < 0.05 * float(slope.abs().median()) + 1e-3


def test_likelihood_fit_beats_the_improved_line_fit_on_tracks() -> None:
    batch = track_event_batch(100, seed=5, delay_ns=60.0, noise_share=0.3)
    assert batch.direction is not None
    angle = torch.rad2deg(opening_angle(likelihood_fit(batch).direction, batch.direction))
    seed = torch.rad2deg(opening_angle(improved_line_fit(batch).direction, batch.direction))
    assert float(angle.median()) < 0.8 * float(seed.median())
    assert float(angle.median()) < 1.0


def test_likelihood_fits_ignore_in_which_order_hits_are_added_up() -> None:
    # as on a GPU, whose threads add up in any order
    events = [*track_events(150, seed=6, delay_ns=100.0, noise_share=1.0), *random_events(150)]
    batch = assemble(events)
    centred, first = centred_hits(batch), improved_line_fit(batch)
    hits = centred.hits
    order = torch.randperm(len(hits.fit), generator=torch.Generator().manual_seed(0))
    shuffled = {f.name: getattr(hits, f.name)[order] for f in fields(hits) if f.name != "n_fits"}
    mixed = replace(centred, hits=replace(hits, **shuffled))
    track, again = fit_track(centred, first, [first]), fit_track(mixed, first, [first])
    moved = torch.rad2deg(opening_angle(track.direction, again.direction)) > 0.01
    shift = torch.linalg.vector_norm(fit_point(centred) - fit_point(mixed), dim=-1) > 0.1
    # the last few rows of a vectorised function may round differently
    assert int(moved.sum()) <= 1
    assert int(shift.sum()) <= 1


def on_device(value: Any, device: str) -> Any:
    """Copy a tensor, or all tensors of a dataclass."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if not is_dataclass(value):
        return value
    copied = {f.name: on_device(getattr(value, f.name), device) for f in fields(value)}
    return type(value)(**copied)


def test_likelihood_fits_stay_on_the_device_of_the_batch() -> None:
    batch = random_event_batch(5, seed=3)
    # torch computes shapes only on this device, but refuses to mix it with others as with a GPU
    hits = on_device(centred_hits(batch), "meta")
    first = on_device(improved_line_fit(batch), "meta")
    track, point = fit_track(hits, first, [first]), fit_point(hits)
    assert track.direction.is_meta
    assert track.ok.is_meta
    assert point.is_meta


def test_likelihood_fit_keeps_the_line_fit_when_doms_are_few() -> None:
    batch = random_event_batch(30, seed=1, max_doms=4)
    result = likelihood_fit(batch)
    assert not result.ok.any()
    torch.testing.assert_close(result.direction, improved_line_fit(batch).direction)


def test_likelihood_fit_is_finite_for_hits_without_any_order() -> None:
    def dom(sensor: int) -> DomHits:
        return DomHits(sensor, np.array([1e4]), np.array([1.0]), np.array([False]))

    up = np.array([0.0, 0.0, 1.0])
    same_time = assemble([Event(0, [dom(i) for i in range(12)], up)])
    for batch in (same_time, random_event_batch(50, seed=2)):
        result = likelihood_fit(batch)
        for values in (result.direction, result.position_m, result.time_ns):
            assert torch.isfinite(values).all()
        lengths = torch.linalg.vector_norm(result.direction, dim=-1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_light_of_a_muon_in_water_by_closed_form() -> None:
    # the cone moves with c, its light with c / n_group: how late it is 10 m beside the track
    assert math.degrees(WATER.cherenkov_rad) == pytest.approx(42.201, abs=1e-3)
    assert math.degrees(ICE.cherenkov_rad) == pytest.approx(40.724, abs=1e-3)
    assert 1 / WATER.light_ns_per_m == pytest.approx(0.21729, abs=1e-5)
    angle = math.acos(1 / 1.3499)
    way, ahead = 10 / math.sin(angle), 10 / math.tan(angle)
    expected = (-ahead + 1.3797 * way) / 0.299792458
    zero, ten = torch.zeros(1), torch.full((1,), 10.0)
    assert float(cherenkov_time(zero, ten, WATER)) == pytest.approx(expected, rel=1e-6)
    assert float(cherenkov_time(zero, ten, ICE)) == pytest.approx(9.1733 / 0.299792458, rel=1e-4)
    # light of a point, and the mean delay behind it
    source = PointSource(torch.zeros(1, 3), zero, torch.zeros(1, 3))
    place, fit = torch.tensor([[300.0, 0.0, 0.0]]), torch.zeros(1, dtype=torch.int64)
    arrival = float(source.geometry(place, fit, WATER).arrival_ns)
    assert arrival == pytest.approx(300 * 1.3797 / 0.299792458, rel=1e-5)
    assert WATER.delay_rate == pytest.approx(1 / WATER.delay_ns + 0.21729 / 60, rel=1e-4)


@pytest.mark.parametrize(("true", "wrong"), [(WATER, ICE), (ICE, WATER)], ids=["water", "ice"])
def test_tracks_fit_better_with_the_constants_of_their_own_medium(
    true: Medium, wrong: Medium
) -> None:
    batch = assemble(track_events(60, seed=7, medium=true))
    assert batch.direction is not None
    angles, costs = [], []
    for medium in (true, wrong):
        told = replace(batch, medium=medium)
        fit = likelihood_fit(told)
        angles.append(torch.rad2deg(opening_angle(fit.direction, batch.direction)))
        centred = centred_hits(told)
        source = TrackSource(
            -fit.direction,
            fit.position_m - centred.centre_m,
            fit.time_ns - centred.time_zero_ns,
            torch.zeros(60, 3),
        )
        costs.append(evaluate(source, centred.hits, arrival_table(20.0, medium)).cost)
    assert angles[0].mean() < 0.9 * angles[1].mean()
    assert (costs[0] < costs[1]).float().mean() > 0.9
