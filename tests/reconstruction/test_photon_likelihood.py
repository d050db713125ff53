"""Densities, derivatives, bound and fits of the likelihood of all photons, and its refinement."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import integrate, stats

from iceaggr.angles import mean_cosine, sphere_density
from iceaggr.detector import C_M_PER_NS, WATER, Detector, icecube86
from iceaggr.events.simulation.ice import Site, icecube_site, site_of
from iceaggr.events.simulation.light import cascade_emission, smooth_emission
from iceaggr.events.simulation.pairs import cascade_pairs, track_pairs
from iceaggr.events.simulation.photons import draw_photons
from iceaggr.reconstruction import photon_likelihood
from iceaggr.reconstruction.hypotheses import (
    N_PARAMETERS,
    Line,
    across,
    even_directions,
    points_of_light,
)
from iceaggr.reconstruction.photon_likelihood import (
    DomPhotons,
    Links,
    delay_terms,
    direction_bound_rad,
    evaluate,
    light_at,
    link,
    minimise,
    typical_photons,
)
from iceaggr.reconstruction.refinement import (
    FAILED_SHARE,
    MIN_CHARGE_PE,
    Prior,
    Refiner,
    Scatter,
    failed_share,
    refine,
    scatter,
    triggering_charge_pe,
    worth_refining,
)
from tests.batches.batch_builder import DomHits, Event, assemble

SITE = icecube_site()


def angle_deg(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.rad2deg(np.arccos(np.clip((first * second).sum(axis=-1), -1.0, 1.0)))


# Densities.


@pytest.mark.parametrize("xi", [0.2, 1.0, 2.5, 8.0])
def test_density_of_delays_integrates_to_one_and_is_the_gamma_far_from_zero(xi: float) -> None:
    rho = 0.004

    def density(t: float) -> float:
        return float(np.exp(delay_terms(*(np.array([v]) for v in (t, xi, rho))).log_density[0]))

    pieces = [integrate.quad(density, a, b, limit=400)[0] for a, b in SPANS]
    assert sum(pieces) == pytest.approx(1.0, abs=2e-3)
    for t in (50.0, 400.0, 2000.0):
        assert density(t) == pytest.approx(stats.gamma(xi, scale=1 / rho).pdf(t), rel=1e-6)


SPANS = ((-60.0, 0.0), (0.0, 20.0), (20.0, 300.0), (300.0, 3000.0), (3000.0, 20_000.0))


@pytest.mark.parametrize("ramp", [2.0, 30.0])
def test_slopes_of_the_density_match_finite_differences(ramp: float) -> None:
    rng = np.random.default_rng(0)
    t, xi, rho = rng.uniform(-40, 800, 50), rng.uniform(0.2, 6, 50), rng.uniform(0.003, 0.02, 50)
    terms = delay_terms(t, xi, rho, ramp)
    for k, (size, slope) in enumerate(
        ((1e-4, terms.by_ns), (1e-5, terms.by_xi), (1e-7, terms.by_rho))
    ):
        high, low = ([t, xi, rho] for _ in range(2))
        high[k], low[k] = high[k] + size, low[k] - size
        difference = delay_terms(*high, ramp).log_density - delay_terms(*low, ramp).log_density
        np.testing.assert_allclose(slope, difference / (2 * size), rtol=1e-3, atol=1e-4)


def test_smooth_emission_keeps_the_light_and_loses_the_steps() -> None:
    cosine = np.linspace(-1.0, 1.0, 200_001)
    for width in (0.05, 0.4):
        smooth = smooth_emission(cosine, width)
        assert smooth.mean() == pytest.approx(1.0, abs=0.05)
        assert (
            np.abs(np.diff(smooth)).max() < 0.01 < np.abs(np.diff(cascade_emission(cosine))).max()
        )


# One event: its photons, drawn from the simulation's own light.


def cascade(travel=(0.3, 0.5, -0.81), vertex=(20.0, 10.0, 150.0), energy=1e4) -> Line:
    axis = np.array([travel]) / np.linalg.norm(travel)
    line = points_of_light(np.array([vertex]), axis, np.array([1e4]))
    return replace(line, energy_gev=np.array([energy]))


def seen_by(line: Line, reach_m: float, site: Site = SITE) -> tuple[DomPhotons, Links]:
    """All DOMs around a line, without a photon yet."""
    sources = line.cascades().vertex_m
    way = np.linalg.norm(site.sensors.xyz_m[None] - sources[:, None], axis=2).min(axis=0)
    sensor = np.flatnonzero(way < reach_m)
    zero = np.zeros(len(sensor))
    none = np.zeros(0)
    seen = DomPhotons(
        zero.astype(np.int64), sensor, zero, zero + 1, none.astype(int), none, none, 1, site
    )
    return seen, link(line, seen, reach_m + 50)


def drawn(line: Line, seen: DomPhotons, links: Links, seed: int) -> DomPhotons:
    """Draw photons as the likelihood expects them."""
    rng = np.random.default_rng(seed)
    state = light_at(line, seen, links)
    n = rng.poisson(np.exp(state[:, 0]))
    pair = np.repeat(np.arange(len(n)), n)
    time = state[pair, 1] + rng.standard_gamma(state[pair, 2]) / state[pair, 3]
    order = np.lexsort((time, links.dom[pair]))
    dom, time = links.dom[pair][order], time[order]
    count = np.bincount(dom, minlength=len(seen.fit)).astype(float)
    return replace(seen, dom=dom, time_ns=time, photons=np.ones(len(dom)), count=count)


@cache
def one_cascade() -> tuple[Line, DomPhotons, Links]:
    line = cascade(energy=3000.0)
    seen, links = seen_by(line, 250.0)
    return line, drawn(line, seen, links, 1), links


def test_likelihood_of_one_pulse_by_closed_form() -> None:
    line, seen, links = one_cascade()
    state = light_at(line, seen, links)
    expected = np.exp(state[:, 0])
    brightest = int(expected.argmax())
    late = 40.0
    pulse = replace(
        seen,
        dom=np.array([links.dom[brightest]]),
        time_ns=np.array([state[brightest, 1] + late]),
        photons=np.array([3.0]),
        count=np.zeros(len(seen.fit)),
    )
    gamma = stats.gamma(state[brightest, 2], scale=1 / state[brightest, 3])
    noise = photon_likelihood.NOISE_PER_NS
    want = expected.sum() - 3 * np.log(expected[brightest] * gamma.pdf(late) + noise)
    assert evaluate(line, pulse, links).cost[0] == pytest.approx(want, rel=1e-6)
    # a dark DOM counts: the same event with ten times the light is less likely
    brighter = replace(line, energy_gev=10 * line.energy_gev)
    assert evaluate(brighter, pulse, links).cost[0] > want


@pytest.mark.parametrize("muon", [False, True])
def test_gradient_matches_finite_differences(muon: bool) -> None:
    line, seen, links = one_cascade()
    if muon:
        line = replace(
            line, muon_gev=np.array([1e4]), last_m=np.array([400.0]), first_m=np.array([0.0])
        )
        links = link(line, seen, 250.0)
    seen = replace(seen, ramp_ns=20.0, smooth=0.4)
    value = evaluate(line, seen, links)
    for k, size in enumerate((0.5, 0.5, 0.5, 0.03, 0.03, 0.2, 0.01)):
        step = np.zeros((1, N_PARAMETERS))
        step[0, k] = size
        above, below = (evaluate(line.moved(s), seen, links).cost[0] for s in (step, -step))
        curvature = np.sqrt(value.curvature[0, k, k])
        assert value.gradient[0, k] == pytest.approx(
            (above - below) / (2 * size), abs=0.05 * abs(value.gradient[0, k]) + 0.3 * curvature
        )
    assert np.linalg.eigvalsh(value.curvature[0]).min() > 0


def test_bound_of_a_point_on_a_sphere_of_sensors_is_analytic(monkeypatch) -> None:
    # light 1 + a cos(angle) of a known place, time and amount, seen alike from everywhere
    directions, a, photons = even_directions(2000), 0.5, 3.0
    axis = np.array([[0.0, 0.6, 0.8]])
    line = points_of_light(np.zeros((1, 3)), axis, np.zeros(1))
    fit = np.zeros(2000, np.int64)
    none = np.zeros(0)
    seen = DomPhotons(fit, fit, fit + 0.0, fit + 1.0, none.astype(int), none, none, 1, SITE)
    row = np.arange(2000)
    links = Links(fit, row, row[:0], row, row, row, fit + 1)

    def light(moved: Line, seen: DomPhotons, links: Links) -> np.ndarray:
        flat = np.ones(2000)
        number = np.log(photons * (1 + a * directions @ moved.travel[0]))
        return np.column_stack([number, 0 * flat, 20 * flat, 0.01 * flat])

    monkeypatch.setattr(photon_likelihood, "light_at", light)
    found = direction_bound_rad(line, seen, links, max_photons=1e9)[0]
    # per axis: sum mu (a sin(angle) cos(phi) / (1 + a cos(angle)))^2, averaged over the sphere
    mean = integrate.quad(lambda c: a * a * (1 - c * c) / (1 + a * c) / 4, -1, 1)[0]
    assert found == pytest.approx(np.sqrt(2 / (2000 * photons * mean)), rel=0.01)


def two_sources(line: Line, moved: Line, turn_ns: tuple[float, float]) -> np.ndarray:
    """Light of two sources at one DOM, alike but for how a turn moves their arrival."""
    turned = (moved.travel - line.travel)[0] @ across(line.travel)[0][0]
    arrival = np.array(turn_ns) * turned
    flat = np.ones(2)
    return np.column_stack([np.log(50.0) * flat, arrival, 30.0 * flat, 0.01 * flat])


@pytest.mark.parametrize("turn_ns", [(300.0, 300.0), (300.0, -300.0)])
def test_bound_knows_arrival_times_but_not_the_source_of_a_photon(monkeypatch, turn_ns) -> None:
    line = points_of_light(np.zeros((1, 3)), np.array([[0.0, 0.6, 0.8]]), np.zeros(1))
    fit, none = np.zeros(1, np.int64), np.zeros(0)
    seen = DomPhotons(fit, fit, fit + 0.0, fit + 1.0, none.astype(int), none, none, 1, SITE)
    pair = np.zeros(2, np.int64)
    links = Links(pair, pair, pair[:0], np.arange(2), pair, fit, fit + 2)
    monkeypatch.setattr(
        photon_likelihood, "light_at", lambda moved, *_: two_sources(line, moved, turn_ns)
    )
    monkeypatch.setattr(photon_likelihood, "STRAY_SHARE", 0.0)
    typical = typical_photons(line, seen, links, 1e9)
    assert (typical.photons * typical.trust[typical.dom]).sum() == pytest.approx(100.0)
    information = evaluate(line, typical, links).curvature[0]
    # of one photon of a Gamma of shape 30: rho^2 / (xi - 2); of time, where both move alike
    of_time = 100.0 * 0.01**2 / 28
    assert information[5, 5] == pytest.approx(of_time, rel=0.12)
    alike = turn_ns[0] == turn_ns[1]
    assert information[3, 3] == pytest.approx(of_time * 300.0**2 * alike, rel=0.12, abs=1e-6)
    # no more than so many photons of one DOM
    few = evaluate(line, typical_photons(line, seen, links, 10.0), links).curvature[0]
    assert few[5, 5] == pytest.approx(of_time / 10, rel=0.12)


def test_fit_finds_a_cascade_and_errs_by_its_bound() -> None:
    truth, seen, links = one_cascade()
    angles = []
    for seed in range(6):
        photons = drawn(truth, seen, links, seed)
        step = np.random.default_rng(seed).normal(size=(1, N_PARAMETERS))
        line = truth.moved(step * [3.0, 3.0, 3.0, 0.2, 0.2, 5.0, 0.2])
        for ramp, smooth in ((30.0, 0.6), (10.0, 0.2), (2.0, 0.05)):
            line, _ = minimise(line, replace(photons, ramp_ns=ramp, smooth=smooth), links, 10)
        angles.append(angle_deg(line.travel, truth.travel)[0])
        assert line.energy_gev[0] == pytest.approx(truth.energy_gev[0], rel=0.15)
    bound = np.rad2deg(direction_bound_rad(truth, seen, links, 1e9)[0])
    assert 0.2 * bound < np.sqrt(np.mean(np.square(angles))) < 2.5 * bound


def test_step_that_does_not_help_is_undone() -> None:
    truth, seen, links = one_cascade()
    start = truth.moved(np.array([[20.0, 0.0, 0.0, 1.0, 0.0, 50.0, 1.0]]))
    costs = [minimise(start, seen, links, n)[1].cost[0] for n in range(4)]
    assert costs == sorted(costs, reverse=True)
    assert costs[3] < costs[0]


def test_order_of_fits_and_a_turn_of_everything_change_no_likelihood() -> None:
    line, seen, links = one_cascade()
    cost = evaluate(line, seen, links).cost[0]
    turn = np.deg2rad(37.0)
    matrix = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    sensors = replace(SITE.sensors, xyz_m=SITE.sensors.xyz_m @ matrix.T)
    turned = replace(line, vertex_m=line.vertex_m @ matrix.T, travel=line.travel @ matrix.T)
    moved = replace(seen, site=replace(SITE, sensors=sensors))
    assert evaluate(turned, moved, links).cost[0] == pytest.approx(cost, rel=1e-9)


# Whole events: refinement.


def event_of(line: Line, seed: int) -> Event:
    """Photons of a line as the simulation draws them, as triggering pulses of one p.e. each."""
    tracks = line.tracks()
    pairs = [cascade_pairs(line.cascades(), SITE)]
    if line.muon_gev[0] > 0:
        muon = track_pairs(tracks, SITE)
        start = line.time_ns[0] - (line.vertex_m * line.travel).sum() / C_M_PER_NS
        pairs.append(replace(muon, arrival_ns=muon.arrival_ns + start))
    doms: dict[int, list[float]] = {}
    for part in pairs:
        photons = draw_photons(part, 10**6, SITE, np.random.default_rng(seed))
        for sensor, time in zip(photons.sensor, photons.time_ns, strict=True):
            doms.setdefault(int(SITE.sensors.sensor_id[sensor]), []).append(float(time))
    hits = [
        DomHits(
            sensor, np.sort(times).round(), np.full(len(times), 0.825), np.zeros(len(times), bool)
        )
        for sensor, times in sorted(doms.items())
    ]
    return Event(seed, hits, -line.travel[0])


def track() -> Line:
    travel = np.array([[0.6, 0.5, -0.6245]]) / np.linalg.norm([0.6, 0.5, -0.6245])
    n, zero = 12, np.zeros(1)
    return Line(
        np.array([[-150.0, -120.0, 150.0]]),
        travel,
        np.array([1e4]),
        np.zeros(n, np.int64),
        np.linspace(0.0, 400.0, n),
        np.full(n, 150.0),
        np.array([5e3]),
        zero,
        np.array([420.0]),
        zero + 1,
    )


def guess(line: Line, by_rad: float) -> np.ndarray:
    step = np.zeros((1, N_PARAMETERS))
    step[0, 3] = by_rad
    return -line.moved(step).travel


@pytest.mark.parametrize(
    ("line", "hypothesis", "limit_deg"), [(cascade(), 1, 12.0), (track(), 2, 1.5)]
)
def test_refinement_finds_the_hypothesis_and_the_direction(line, hypothesis, limit_deg) -> None:
    batch = assemble([event_of(line, 3)])
    start = guess(line, 0.25)
    found = refine(batch, SITE, start, np.array([20.0]))
    assert found.hypothesis[0] == hypothesis
    assert (
        angle_deg(found.direction, -line.travel)[0] < limit_deg < angle_deg(start, -line.travel)[0]
    )
    # the network's own confidence is in it, and what the photons tell beside it
    assert found.kappa[0] > 20.0 * 5


def test_events_that_are_too_dim_stay_as_predicted_bit_for_bit() -> None:
    batch = assemble([event_of(cascade(energy=20.0), 1), event_of(cascade(energy=1e4), 2)])
    assert worth_refining(batch, MIN_CHARGE_PE[SITE.medium.name]).tolist() == [False, True]
    charge = triggering_charge_pe(batch)
    assert charge[0] < MIN_CHARGE_PE[SITE.medium.name] < charge[1]
    first = int(batch.dom_pulse_offsets[batch.event_dom_offsets[1]])
    assert charge[0] == pytest.approx(float(batch.charge_pe[:first].sum()), rel=1e-5)
    start = np.concatenate([guess(cascade(), 0.2)] * 2)
    found = refine(batch, SITE, start, np.array([2.0, 2.0]))
    assert np.array_equal(found.direction[0], start[0])
    assert found.kappa[0] == 2.0
    assert found.hypothesis.tolist() == [0, 1]


def test_dim_events_are_refined_in_water_and_not_in_ice() -> None:
    batch, start = assemble([event_of(cascade(energy=20.0), 1)]), guess(cascade(), 0.2)
    assert triggering_charge_pe(batch) == pytest.approx(9.9)
    waters = replace(icecube86(), stated_medium=WATER)
    for detector, is_refined, words in (
        (
            icecube86(),
            False,
            "0 of 1 events with at least 30 p.e. that triggered, the default in ice",
        ),
        (waters, True, "1 of 1 events with at least 6 p.e. that triggered, the default in water"),
    ):
        found = refine(batch, site_of(detector), start, np.array([2.0]))
        assert bool(found.hypothesis[0]) == is_refined
        refiner = Refiner(detector)
        refiner.n_events += np.bincount(found.hypothesis, minlength=3)
        assert refiner.words().startswith(words)


def test_event_that_no_hypothesis_describes_stays_as_predicted(monkeypatch) -> None:
    line = cascade(energy=2e3)
    start = guess(line, 0.2)
    monkeypatch.setattr(
        Prior, "combined", lambda self, line, *_: (np.nan * line.travel, self.kappa + np.nan)
    )
    found = refine(assemble([event_of(line, 2)]), SITE, start, np.array([2.0]))
    assert found.hypothesis.tolist() == [0]
    np.testing.assert_array_equal(found.direction, start)
    assert found.kappa.tolist() == [2.0]


def test_confident_network_is_not_overruled_and_a_silent_one_says_nothing() -> None:
    line, seen, links = one_cascade()
    value = evaluate(line, seen, links)
    off = guess(line, 0.3)
    direction, kappa = Prior(off, np.array([1e9])).combined(line, value, 2.0)
    assert angle_deg(direction, off)[0] < 1.0
    assert kappa[0] >= 1e9
    silent, alone = Prior(off, np.array([0.0])).combined(line, value, 2.0)
    assert angle_deg(silent, -line.travel)[0] == pytest.approx(0.0, abs=1e-5)
    # two equal pieces of information: half way, and twice as sure
    even = replace(value, curvature=np.diag([1.0, 1, 1, 90.0, 90.0, 1, 1])[None])
    alone = Prior(off, np.array([0.0])).combined(line, even, 2.0)[1]
    middle, both = Prior(off, alone).combined(line, even, 2.0)
    assert both[0] == pytest.approx(2 * alone[0], rel=1e-6)
    assert angle_deg(middle, -line.travel)[0] == pytest.approx(
        angle_deg(off, -line.travel)[0] / 2, rel=0.05
    )


@pytest.mark.parametrize(("misfit", "unexplained"), [(1.0, 0.0), (1.5, 0.4)])
@pytest.mark.parametrize("off_rad", [0.1, 0.6, 2.8])
def test_answer_has_the_mean_cosine_of_the_posterior_with_failed_fits(
    off_rad: float, misfit: float, unexplained: float
) -> None:
    line, seen, links = one_cascade()
    information, network = 200.0, 8.0
    # so stiff in all else that the direction's errors are those of its own two angles
    value = replace(
        evaluate(line, seen, links),
        curvature=np.diag([1.0, 1, 1, information, information, 1, 1])[None],
    )
    off = np.cos(off_rad) * line.travel + np.sin(off_rad) * across(line.travel)[0]
    prior = Prior(-off, np.array([network]))
    about = Scatter(np.array([misfit]), np.array([unexplained]))
    direction, kappa = prior.weighed(line, value, 1.0, about)
    sky = even_directions(400_000)
    of_fit = sphere_density(np.array([information / misfit**2]), sky @ -line.travel[0])
    of_network = sphere_density(prior.kappa, sky @ prior.origin[0])

    def mean(share: float) -> np.ndarray:
        posterior = ((1 - share) * of_fit + share / (4 * np.pi)) * of_network
        return posterior @ sky / posterior.sum()

    chosen = mean(FAILED_SHARE)
    chosen /= np.linalg.norm(chosen)
    assert np.linalg.norm(chosen - direction[0]) < 0.015
    claimed = mean(failed_share(prior.kappa, about.unexplained)[0]) @ chosen
    assert mean_cosine(kappa)[0] == pytest.approx(claimed, abs=0.015)
    # a fit on the other side of the sky is none, one beside the network's is told apart from it
    assert (kappa[0] > 1.5 * network) == (off_rad < 1)
    assert (angle_deg(direction, prior.origin)[0] < 1) == (off_rad == 2.8)


def test_more_fits_fail_where_light_is_unexplained_and_the_network_unsure() -> None:
    none, some, all_of_it = (np.full(4, share) for share in (0.0, 0.3, 1.0))
    kappa = np.array([0.0, 1.0, 8.0, 1e3])
    for unexplained, share in ((none, 0.1), (some, 0.6), (all_of_it, 0.98)):
        found = failed_share(kappa, unexplained)
        assert found[[0, 2]] == pytest.approx([share, share / 2])
        assert (np.diff(found) < 0).all()
        assert found[3] < 1e-3


def test_scatter_of_chance_is_no_misfit_and_a_second_source_is_one() -> None:
    line = cascade(energy=2e4)
    beside = replace(line, vertex_m=line.vertex_m + np.array([[60.0, 0.0, 0.0]]))
    seen, links = seen_by(line, 250.0)
    own = [drawn(line, seen, links, seed).count for seed in range(20)]
    other = drawn(beside, seen, link(beside, seen, 300.0), 50).count

    def compared(count: np.ndarray, n_far: float = 0.0) -> Scatter:
        return scatter(line, replace(seen, count=count), links, np.array([count.sum() + n_far]))

    by_chance = [compared(count) for count in own]
    # chi2 per degree of freedom, where none below 1 counts
    assert 1.0 <= np.mean([one.misfit[0] for one in by_chance]) < 1.15
    mixed = compared(own[0] + other)
    assert mixed.misfit[0] > 3
    # of what the other source sends, the first one's scatter explains little
    share = other.sum() / (own[0] + other).sum()
    assert mixed.unexplained[0] == pytest.approx(share, abs=0.15)
    assert compared(own[0], n_far=own[0].sum()).unexplained[0] > 0.5


def test_faintest_event_that_can_be_asked_for_has_a_finite_answer() -> None:
    one = DomHits(SITE.sensors.sensor_id[100], *(np.array([x]) for x in (1e4, 1.5, False)))
    start = guess(cascade(), 0.2)
    found = refine(assemble([Event(1, [one], -start[0])]), SITE, start, np.array([2.0]), 1.0)
    assert np.isfinite(found.direction).all()
    assert np.isfinite(found.kappa).all()


def test_order_of_doms_changes_no_refinement() -> None:
    event = event_of(cascade(energy=4e3), 5)
    start, kappa = guess(cascade(), 0.2), np.array([2.0])
    mixed = replace(event, doms=event.doms[::-1])
    first, second = (refine(assemble([e]), SITE, start, kappa) for e in (event, mixed))
    np.testing.assert_array_equal(first.direction, second.direction)


def test_likelihood_of_another_detector_is_finite() -> None:
    known = icecube86()
    few = known.xyz_m[:600]
    detector = Detector(
        np.arange(600), few, known.string_id[:600], np.ones(600), np.ones(600, bool)
    )
    site = site_of(detector)
    line = cascade(vertex=tuple(few.mean(axis=0)))
    seen, links = seen_by(line, 250.0, site)
    value = evaluate(line, drawn(line, seen, links, 1), links)
    assert np.isfinite(value.cost).all()
    assert np.isfinite(value.gradient).all()
