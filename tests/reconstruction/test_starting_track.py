"""The likelihood of a track that starts inside, against a direct sum and its two limits."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import gamma

from iceaggr.detector import C_M_PER_NS
from iceaggr.events.simulation.pairs import lit_by_cascades, lit_by_tracks
from iceaggr.reconstruction import photon_likelihood
from iceaggr.reconstruction.hypotheses import Line
from iceaggr.reconstruction.photon_likelihood import DomPhotons, Links, evaluate, link
from tests.reconstruction.test_photon_likelihood import SITE, drawn, seen_by, track

FAR_M = 1e4
"""A reach that leaves out no pair of a source and a DOM."""


@cache
def starting() -> tuple[Line, DomPhotons, Links]:
    """A bright muon of 5 TeV from a cascade of 1 TeV, with smaller losses along its way."""
    line = track()
    energy = np.full(len(line.fit), 20.0)
    energy[0] = 1e3
    line = replace(line, energy_gev=energy, muon_light=np.full(1, 3.0))
    seen, _ = seen_by(line, 150.0)
    links = link(line, seen, FAR_M)
    seen = drawn(line, seen, links, 5)
    trust = np.random.default_rng(6).uniform(0.3, 1.0, len(seen.fit))
    return line, replace(seen, trust=trust), links


def cost(line: Line, seen: DomPhotons) -> float:
    return float(evaluate(line, seen, link(line, seen, FAR_M), with_slopes=False).cost[0])


def test_cost_is_the_direct_sum_over_the_muon_and_its_cascades() -> None:
    """-ln L = sum of mu - sum over photons of ln(sum over sources of mu p(t) + noise)."""
    line, seen, links = starting()
    tracks, sensor = line.tracks(), seen.sensor
    zero = np.zeros(len(sensor), int)
    parts = [
        lit_by_cascades(line.cascades(), zero + k, sensor, SITE, seen.smooth)
        for k in range(len(line.fit))
    ]
    way = SITE.sensors.xyz_m[sensor] - tracks.nearest_m[0]
    along = way @ tracks.travel[0]
    distance = np.sqrt((way**2).sum(axis=1) - along**2)
    muon = lit_by_tracks(tracks, zero, sensor, along, distance, SITE)
    start_ns = line.time_ns[0] - float(line.vertex_m[0] @ line.travel[0]) / C_M_PER_NS
    parts.append(
        replace(muon, arrival_ns=muon.arrival_ns + start_ns, expected_pe=3 * muon.expected_pe)
    )
    mu, arrival, xi, rho = (
        np.array([getattr(part, name) for part in parts])
        for name in ("expected_pe", "arrival_ns", "xi", "rho_per_ns")
    )
    want = (seen.trust * mu.sum(axis=0)).sum()
    for dom, time, photons in zip(seen.dom, seen.time_ns, seen.photons, strict=True):
        late = time - arrival[:, dom]
        # a clock that is soft by 2 ns about zero
        softened = gamma(xi[:, dom], scale=1 / rho[:, dom]).pdf(2 * np.logaddexp(0, late / 2))
        density = (mu[:, dom] * softened * expit(late / 2)).sum()
        noise = 1e-6 + 0.02 * seen.count[dom] / 2_500
        want -= seen.trust[dom] * photons * np.log(density + noise)
    assert len(seen.time_ns) > 150
    found = evaluate(line, seen, links, with_slopes=False).cost[0]
    assert found == pytest.approx(want, rel=1e-7)


def test_vertex_far_outside_is_an_infinite_track() -> None:
    line, seen, _ = starting()
    whole = [cost(replace(line, first_m=np.array([first])), seen) for first in (-2e3, -2e4)]
    assert whole[0] == pytest.approx(whole[1], abs=1e-9)
    # the photons come from a track that starts inside: the likelihood knows it
    assert cost(line, seen) < whole[0] - 5


def test_vertex_moved_back_along_a_muon_changes_nothing() -> None:
    """The muon has then lost dE/dx = a + b E when it begins to shine. Source: hep-ph/0407075."""
    line, seen, _ = starting()
    back_m, b = 300.0, 0.363e-3 * 0.917
    critical = 0.259 / 0.363e-3
    moved = replace(
        line,
        vertex_m=line.vertex_m - back_m * line.travel,
        time_ns=line.time_ns - back_m / C_M_PER_NS,
        along_m=line.along_m + back_m,
        first_m=line.first_m + back_m,
        last_m=line.last_m + back_m,
        muon_gev=(line.muon_gev + critical) * np.exp(b * back_m) - critical,
    )
    assert cost(moved, seen) == pytest.approx(cost(line, seen), abs=1e-5)


def test_without_its_muon_it_is_the_cascades() -> None:
    line, seen, _ = starting()
    none = replace(line, muon_gev=np.zeros(1))
    dark = replace(line, muon_light=np.full(1, 1e-20))
    assert cost(dark, seen) == pytest.approx(cost(none, seen), rel=1e-9)
    first = replace(none, energy_gev=np.where(np.arange(len(line.fit)) == 0, 1e3, 1e-9))
    only = replace(none, fit=none.fit[:1], along_m=none.along_m[:1], energy_gev=line.energy_gev[:1])
    assert cost(first, seen) == pytest.approx(cost(only, seen), rel=1e-6)
    # the photons are those of a muon and its cascades
    assert cost(line, seen) < min(cost(none, seen), cost(only, seen)) - 5


def test_charge_is_turned_into_photons_by_the_moments_of_its_distribution() -> None:
    """30 % exponential of mean 0.4, the rest a Gaussian of 1 +- 0.3. Source: arXiv:1612.05093."""
    mean, second = 0.3 * 0.4 + 0.7, 0.3 * 2 * 0.4**2 + 0.7 * (1 + 0.3**2)
    assert pytest.approx(1 / mean) == photon_likelihood.PHOTONS_PER_PE
    # a Poisson number of charges has the variance n E[q^2], n photons of mean charge n E[q]^2
    assert pytest.approx(second / mean**2, abs=0.005) == photon_likelihood.SPREAD
