from dataclasses import replace

import numpy as np
import pytest
import torch

from iceaggr.angles import opening_angle
from iceaggr.detector import icecube86
from iceaggr.reconstruction import (
    ensemble_fit,
    improved_line_fit,
    line_fit,
    tensor_of_inertia,
)
from iceaggr.reconstruction.line_fit import FALLBACK_DIRECTION
from tests.batches.batch_builder import DomHits, Event, assemble, track_event_batch, track_events

FITS = pytest.mark.parametrize(
    "fit", [line_fit, improved_line_fit, tensor_of_inertia, ensemble_fit]
)


def angles_deg(result, batch) -> torch.Tensor:
    return torch.rad2deg(opening_angle(result.direction, batch.direction))


def plane_wave(sensors: list[int], travel: np.ndarray, extra: list[DomHits]) -> Event:
    """DOMs hit exactly when a point passes them at half the speed of light."""
    xyz = icecube86().xyz_m[sensors]
    times = 10_000 + xyz @ travel / 0.15
    doms = [
        DomHits(sensor, times[i : i + 1], np.array([1.0]), np.array([False]))
        for i, sensor in enumerate(sensors)
    ]
    return Event(0, doms + extra, -travel)


def test_line_fit_points_back_along_one_string() -> None:
    down = np.array([0.0, 0.0, -1.0])
    result = line_fit(assemble([plane_wave(list(range(100, 118)), down, [])]))
    # the string is slightly tilted, nothing else limits an exact line
    assert float(result.direction[0, 2]) == pytest.approx(1.0, abs=1e-4)
    assert result.ok.all()


def test_line_fit_matches_least_squares() -> None:
    batch = track_event_batch(1, seed=3)
    time = batch.time_ns.double().numpy()
    xyz = batch.xyz_m.double().numpy()[batch.pulse_dom_idx().numpy()]
    design = np.stack([np.ones_like(time), time], axis=1)
    velocity = np.linalg.lstsq(design, xyz, rcond=None)[0][1]
    expected = -velocity / np.linalg.norm(velocity)
    np.testing.assert_allclose(line_fit(batch).direction[0].numpy(), expected, atol=1e-4)


@FITS
def test_fit_finds_clean_tracks(fit) -> None:
    batch = track_event_batch(100, seed=1)
    assert float(angles_deg(fit(batch), batch).median()) < 2.0


def test_plain_fit_leaves_auxiliary_noise_aside() -> None:
    batch = track_event_batch(100, seed=2, noise_share=0.6)
    assert float(angles_deg(line_fit(batch), batch).median()) < 2.0


def test_improved_fit_withstands_triggering_noise_that_ruins_the_plain_fit() -> None:
    batch = track_event_batch(100, seed=2, noise_share=0.15)
    batch = replace(batch, auxiliary=torch.zeros_like(batch.auxiliary))
    plain, improved = line_fit(batch), improved_line_fit(batch)
    assert float(angles_deg(improved, batch).median()) < 2.0
    assert float(angles_deg(plain, batch).median()) > 5.0


def test_improved_fit_drops_a_late_triggering_hit() -> None:
    sensors = list(range(100, 118))
    down = np.array([0.0, 0.0, -1.0])
    late = DomHits(99, np.array([25_000.0]), np.array([1.0]), np.array([False]))
    batch = assemble([plane_wave(sensors, down, [late])])
    assert float(angles_deg(improved_line_fit(batch), batch)[0]) < 0.5
    # along one string the late hit bends nothing, but it slows the plain fit down
    assert float(improved_line_fit(batch).time_ns) < float(line_fit(batch).time_ns)


def test_ensemble_withstands_lonely_and_late_hits_that_ruin_the_plain_fit() -> None:
    batch = track_event_batch(100, seed=2, noise_share=0.15)
    batch = replace(batch, auxiliary=torch.zeros_like(batch.auxiliary))
    angle = angles_deg(ensemble_fit(batch), batch)
    assert float(angle.median()) < 2.0
    assert float(angles_deg(line_fit(batch), batch).median()) > 5.0


def test_ensemble_drops_lonely_hits_and_averages_what_is_left() -> None:
    sensors = list(range(100, 118))
    down = np.array([0.0, 0.0, -1.0])
    clean = assemble([plane_wave(sensors, down, [])])
    # a string away, and a microsecond and a half before the light
    far, early = (
        DomHits(sensor, np.array([time]), np.array([9.0]), np.array([False]))
        for sensor, time in ((3000, 10_000.0), (99, 6_000.0))
    )
    noisy = assemble([plane_wave(sensors, down, [far, early])])
    expected = ensemble_fit(clean).direction
    torch.testing.assert_close(ensemble_fit(noisy).direction, expected, rtol=0, atol=1e-5)
    assert float(angles_deg(line_fit(noisy), noisy)[0]) > 5.0


def test_ensemble_is_the_mean_direction_of_its_fits() -> None:
    batch = track_event_batch(5, seed=7, noise_share=0.3)
    found = ensemble_fit(batch).direction
    unit = torch.linalg.vector_norm(found, dim=-1)
    torch.testing.assert_close(unit, torch.ones(5), rtol=0, atol=1e-6)
    # all charges alike and above one photo-electron: the charge selections are the plain ones
    alike = replace(batch, charge_pe=torch.full_like(batch.charge_pe, 2.0))
    by_two = ensemble_fit(replace(batch, charge_pe=torch.full_like(batch.charge_pe, 4.0)))
    torch.testing.assert_close(ensemble_fit(alike).direction, by_two.direction)
    dim = ensemble_fit(replace(batch, charge_pe=torch.full_like(batch.charge_pe, 0.1)))
    assert not torch.allclose(dim.direction, by_two.direction)


@FITS
def test_fit_flags_events_that_have_no_direction(fit) -> None:
    def dom(sensor: int, time: float) -> DomHits:
        return DomHits(sensor, np.array([time]), np.array([1.0]), np.array([False]))

    up = np.array([0.0, 0.0, 1.0])
    events = [
        Event(0, [dom(5, 1e4)], up),
        Event(1, [dom(5, 1e4), dom(6, 1e4)], up),
        Event(2, [DomHits(7, np.array([1e4, 2e4]), np.ones(2), np.zeros(2, bool))], up),
    ]
    result = fit(assemble(events))
    assert not result.ok.any()
    assert result.n_failed == 3
    torch.testing.assert_close(result.direction, torch.tensor([FALLBACK_DIRECTION] * 3))


@FITS
def test_fit_of_an_event_ignores_its_batch_mates(fit) -> None:
    batch = track_event_batch(12, seed=5, noise_share=0.3)
    events = track_events(12, seed=5, noise_share=0.3)
    alone = torch.cat([fit(assemble([event])).direction for event in events])
    torch.testing.assert_close(fit(batch).direction, alone, rtol=0, atol=1e-6)
