import numpy as np

from iceaggr.events.simulation.pulses import Pulses
from iceaggr.events.simulation.trigger import read_out, trigger_times


def hits(times: list[list[float]], extra: list[list[float]] | None = None) -> Pulses:
    """Coincident first hits of each event, and further hits outside any coincidence."""
    extra = extra or [[] for _ in times]
    event = [k for k, group in enumerate(times) for _ in group]
    event += [k for k, group in enumerate(extra) for _ in group]
    time = np.array([t for group in [*times, *extra] for t in group], dtype=float)
    n_coincident = sum(len(group) for group in times)
    coincident = np.arange(len(time)) < n_coincident
    sensor = np.arange(len(time))
    return Pulses(np.array(event), sensor, time, np.ones(len(time)), coincident, coincident)


def evenly(n: int, step: float, start: float = 0.0) -> list[float]:
    return [start + k * step for k in range(n)]


def test_eight_coincident_hits_within_five_microseconds_trigger():
    first, last = trigger_times(hits([evenly(8, 714), evenly(7, 10), evenly(8, 715)]), 3)
    assert first.tolist() == [0, np.inf, np.inf]
    assert last.tolist() == [7 * 714, -np.inf, -np.inf]


def test_hits_of_different_events_do_not_add_up():
    first, _ = trigger_times(hits([evenly(5, 10), evenly(5, 10)]), 2)
    assert not np.isfinite(first).any()


def test_trigger_extends_while_hits_go_on():
    first, last = trigger_times(hits([evenly(30, 600, start=50)]), 1)
    assert first[0] == 50
    assert last[0] == 50 + 29 * 600


def test_readout_spans_four_before_to_six_after():
    coincident, lone = evenly(8, 100), [-4_100.0, -500.0, 6_500.0, 6_800.0]
    clocks = []
    for seed in range(30):
        kept = read_out(hits([coincident], [lone]), 1, np.random.default_rng(seed))
        trigger = kept.time_ns[kept.hlc][0]
        clocks.append(trigger)
        relative = (kept.time_ns - trigger).tolist()
        assert -4_100 not in relative
        assert 6_500 in relative
        assert 6_800 not in relative
        assert kept.n_outside[0] == len(lone) + 8 - len(relative)
    near = [clock for clock in clocks if 9_715 <= clock <= 9_995]
    assert len(near) >= 24
    assert min(clocks) >= 9_715


def test_pulses_come_out_sorted_by_time():
    kept = read_out(hits([evenly(8, 100)], [[350.0, 20.0]]), 1, np.random.default_rng(0))
    assert (np.diff(kept.time_ns) >= 0).all()


def test_events_without_trigger_leave_nothing():
    kept = read_out(hits([evenly(8, 10), evenly(3, 10)]), 2, np.random.default_rng(0))
    assert kept.triggered.tolist() == [0]
    assert (kept.event == 0).all()


def test_few_events_are_late_parts_of_longer_readouts():
    rng = np.random.default_rng(1)
    kept = read_out(hits([evenly(8, 10)] * 4_000), 4_000, rng)
    first = kept.time_ns[::8]
    late = (first > 11_000).mean()
    assert 0.015 < late < 0.04
