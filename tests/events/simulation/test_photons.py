"""Photomultiplier and noise against closed forms of the published numbers."""

import numpy as np
import pytest
from scipy.stats import kstest, norm, poisson

from iceaggr.detector import C_M_PER_NS, N_GROUP
from iceaggr.events.simulation import photons as photons_module
from iceaggr.events.simulation.ice import icecube_site
from iceaggr.events.simulation.pairs import Pairs
from iceaggr.events.simulation.photons import Photons, draw_afterpulses, draw_noise, draw_photons
from iceaggr.events.simulation.pulses import form_pulses
from tests.events.simulation.conftest import LEVEL, near_share


def one_pair(
    expected_pe: float, xi: float = 1.5, rho: float = 4e-3, cosine: float = 0.0, shape: float = 0.0
) -> Pairs:
    row = np.array([0])
    values = (expected_pe, 1000.0, xi, rho, 50.0, cosine, shape)
    return Pairs(row, row, *(np.array([value]) for value in values))


def test_photomultiplier_has_the_published_jitter_late_and_prepulses():
    """3.5 % are 25 to 160 ns late, 0.3 % come 32 ns early with a twentieth of the charge.

    Source: arXiv:1612.05093, PMT section; jitter of 2 ns from IceTray PMTRes, main peak.
    """
    pair = one_pair(400_000.0, rho=1e9)
    photons = draw_photons(pair, 1_000_000, icecube_site(), np.random.default_rng(9))
    shift, n = photons.time_ns - 1000, len(photons.pe)
    early, late = photons.pe < 1, shift > 12
    assert early.mean() == near_share(0.003, n)
    np.testing.assert_allclose(photons.pe[early], 0.05)
    assert shift[early].mean() == pytest.approx(-32, abs=4 * 2 / np.sqrt(early.sum()))
    assert late.mean() == near_share(0.035, n)
    spread = 135 / np.sqrt(12)
    assert shift[late].mean() == pytest.approx(92.5, abs=4 * spread / np.sqrt(late.sum()))
    # the fourth moment of an even spread is 1.8 of the squared variance
    error = spread * np.sqrt(0.8 / 4 / late.sum())
    assert shift[late].std() == pytest.approx(np.hypot(spread, 2), abs=4 * error)
    rest = shift[~early & ~late]
    assert kstest(rest / 2, "norm").pvalue > LEVEL


def test_light_of_a_shower_is_smeared_by_its_published_length():
    """Behind the shower its length counts 1 + n_group times; a Gamma profile of steps X0 / b.

    Source: PPC f2k.cxx: X0 = 0.3915 m, b = 0.63207.
    """
    shape = 6.4
    pair = one_pair(400_000.0, rho=1e9, cosine=-1.0, shape=shape)
    shift = draw_photons(pair, 1_000_000, icecube_site(), np.random.default_rng(10)).time_ns - 1000
    of_length = shape * (0.3915 / 0.63207 * (1 + N_GROUP) / C_M_PER_NS) ** 2
    mean = 0.035 * 92.5 - 0.003 * 32
    expected = of_length + 2**2 + 0.035 * (92.5**2 + 135**2 / 12) + 0.003 * 32**2 - mean**2
    from_mean = shift - shift.mean()
    error = np.sqrt(((from_mean**4).mean() - shift.var() ** 2) / len(shift))
    assert shift.var() == pytest.approx(expected, abs=4 * error)
    assert shift.mean() == pytest.approx(mean, abs=4 * shift.std() / np.sqrt(len(shift)))


def test_delays_follow_the_pandel_distribution():
    photons = draw_photons(one_pair(200_000.0), 1_000_000, icecube_site(), np.random.default_rng(1))
    delay = photons.time_ns[photons.pe == 1] - 1000
    # late pulses add 3.5 % of 92.5 ns
    np.testing.assert_allclose(delay.mean(), 1.5 / 4e-3 + 0.035 * 92.5, rtol=0.01)
    np.testing.assert_allclose(delay.std(), np.sqrt(1.5) / 4e-3, rtol=0.02)
    assert (delay > -10).mean() > 0.999


def test_bright_pair_keeps_its_light_in_fewer_photons():
    photons = draw_photons(one_pair(50_000.0), 300, icecube_site(), np.random.default_rng(2))
    assert 200 < len(photons.pe) < 400
    np.testing.assert_allclose(photons.pe.sum(), 50_000, rtol=0.25)


def test_afterpulses_follow_in_microseconds_and_in_number():
    photons = draw_photons(one_pair(100_000.0), 1_000_000, icecube_site(), np.random.default_rng(3))
    after = draw_afterpulses(photons, np.random.default_rng(4))
    n = 0.06 * photons.pe.sum()
    assert len(after.pe) == pytest.approx(n, abs=4 * np.sqrt(n))
    np.testing.assert_allclose((after.time_ns - 1000).mean(), 6_400, rtol=0.05)


# Weight, mean and spread in ns of each peak. Source: IceTray PMTResponseSimulator.
AFTERPULSES = (
    (10, 500, 200), (2.03, 540, 20), (3.96, 660, 20), (6.5, 1_100, 100), (4.5, 1_300, 200),
    (8.5, 1_650, 225), (8.95, 2_075, 300), (5.15, 2_850, 500), (3, 4_750, 700),
    (5, 6_150.3, 400), (17.442, 7_833.4, 944.59),
)  # fmt: skip


def test_afterpulses_of_every_ion_come_at_the_measured_times():
    n = 3_000_000
    zero, row = np.zeros(n), np.zeros(n, int)
    photons = Photons(row, row, zero, np.ones(n), np.zeros(n, bool))
    time = draw_afterpulses(photons, np.random.default_rng(4), by_ion=True).time_ns
    # 0.06 per photo-electron. Source: arXiv:1612.05093, PMT section
    assert len(time) == pytest.approx(0.06 * n, abs=4 * np.sqrt(0.06 * n))
    weight, mean, spread = np.array(AFTERPULSES).T

    def below(limit: np.ndarray) -> np.ndarray:
        """Share of folded Gaussians below each limit."""
        of_peak = norm(mean, spread).cdf(limit[:, None]) - norm(-mean, spread).sf(limit[:, None])
        return of_peak @ weight / weight.sum()

    # each peak within its own spread and within twice of it, whatever else is there
    for width in (spread, 2 * spread):
        low, high = np.maximum(mean - width, 0), mean + width
        share = below(high) - below(low)
        counts = np.array([((time > a) & (time < b)).sum() for a, b in zip(low, high, strict=True)])
        error = np.sqrt(share * (1 - share) / len(time))
        np.testing.assert_array_less(np.abs(counts / len(time) - share), 4 * error)


def test_simple_afterpulses_come_after_6_us_with_a_spread_of_2():
    n = 200_000
    zero, row = np.zeros(n), np.zeros(n, int)
    photons = Photons(row, row, zero, np.ones(n), np.zeros(n, bool))
    time = draw_afterpulses(photons, np.random.default_rng(5)).time_ns
    inside = time[(time > 300) & (time < 11_000)]
    low, high = norm(6_000, 2_000).cdf([300, 11_000])
    share = (norm(6_000, 2_000).cdf(inside) - low) / (high - low)
    assert kstest(share, "uniform").pvalue > LEVEL
    assert len(inside) / len(time) == near_share(high - low, len(time))


def test_recorded_dark_hits_have_the_published_rate():
    """Standard modules record 560 Hz, those of high efficiency 780. Source: arXiv:1612.05093."""
    n_events, window_s = 1_000, 20e-6
    zero, site = np.zeros(n_events), icecube_site()
    rng = np.random.default_rng(5)
    pulses = form_pulses(draw_noise(zero, zero + window_s * 1e9, site, rng), site, rng)
    inside = (pulses.time_ns >= 0) & (pulses.time_ns <= window_s * 1e9)
    efficient = site.sensors.efficiency > 1
    for kind, published_hz in ((~efficient, 560), (efficient, 780)):
        of_kind = inside & kind[pulses.sensor]
        place = pulses.event[of_kind] * site.sensors.n_sensors + pulses.sensor[of_kind]
        # the hits of a burst come together: their numbers on a sensor add up in squares
        _, n_on_sensor = np.unique(place, return_counts=True)
        seconds = n_events * window_s * kind.sum()
        error_hz = np.sqrt((n_on_sensor**2).sum()) / seconds
        # the recorded share was measured to 3 %
        assert of_kind.sum() / seconds == pytest.approx(
            published_hz, abs=4 * error_hz + 0.03 * published_hz
        )


@pytest.fixture(scope="module")
def rare_noise():
    """Noise of twelve seconds at a thousandth of its rate: no two bursts of a sensor overlap.

    Groups of hits on a sensor less than 3 ms apart: (G,) sensor and size; (K,) gaps inside, in s.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photons_module, "_RECORDED_SHARE", 1_000 * photons_module._RECORDED_SHARE)
        rng = np.random.default_rng(6)
        noise = draw_noise(np.zeros(1), np.full(1, 12e9), icecube_site(), rng)
    order = np.lexsort((noise.time_ns, noise.sensor))
    sensor, time_s = noise.sensor[order], 1e-9 * noise.time_ns[order]
    same = (np.diff(sensor) == 0) & (np.diff(time_s) < 3e-3)
    start = np.flatnonzero(np.append(True, ~same))
    return sensor[start], np.diff(np.append(start, len(sensor))), np.diff(time_s)[same]


def test_dark_hits_are_single_or_in_bursts_at_the_published_rates(rare_noise):
    """250 Hz of single hits and 310 Hz in bursts of 3.5. Source: arXiv:1612.05093.

    280 to 340 Hz and 3.3 to 3.8 hits there; high efficiency 780 Hz to 560 in all.
    """
    sensor, size, _ = rare_noise
    efficient = icecube_site().sensors.efficiency > 1
    n_standard = (~efficient).sum() + efficient.sum() * 780 / 560
    seconds = 12 * n_standard / 1_000 / photons_module._RECORDED_SHARE
    n_bursts = 310 / 3.5 * seconds
    expected = np.array([250 * seconds, 0, 0, 0, 0, 0, 0])
    more = np.arange(6)
    expected[:6] += n_bursts * poisson(2.5).pmf(more)
    expected[6] = n_bursts * poisson(2.5).sf(5)
    counts = np.append(np.bincount(size)[1:7], (size > 6).sum())
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected)).all()
    share = efficient.sum() * 780 / 560 / n_standard
    assert efficient[sensor].mean() == near_share(share, len(sensor))


def test_gaps_in_a_burst_are_log_normal_about_a_microsecond(rare_noise):
    """log10 of the gap in seconds: -6.0 +- 0.85. Source: arXiv:1612.05093."""
    _, _, gap_s = rare_noise
    assert len(gap_s) > 10_000
    assert kstest(np.log10(gap_s), norm(-6.0, 0.85).cdf).pvalue > LEVEL


def test_dark_hits_come_in_bursts_on_one_sensor():
    n_events = 300
    zero = np.zeros(n_events)
    noise = draw_noise(zero, zero + 20_000, icecube_site(), np.random.default_rng(6))
    key = noise.event * icecube_site().sensors.n_sensors + noise.sensor
    _, count = np.unique(key, return_counts=True)
    # Poisson noise alone would repeat on a sensor in about 1 % of the cases
    assert (count > 1).mean() > 0.1
