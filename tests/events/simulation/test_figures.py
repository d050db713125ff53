import numpy as np
import pytest

from benchmarks.simulation_figures import FIGURES, figures_table, measure_figures
from iceaggr.detector import C_M_PER_NS, ICE, N_GROUP, icecube86
from iceaggr.events.simulation.light import cherenkov
from iceaggr.storage import open_store


@pytest.fixture(scope="module")
def measured(sample):
    folder, _ = sample
    return measure_figures(open_store(), f"file://{folder}")


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_figure_stays_in_its_band(measured, figure):
    assert figure.low <= measured[figure.name] <= figure.high


def test_table_shows_every_figure_and_marks_what_is_outside(measured):
    assert len(figures_table(measured).splitlines()) == len(FIGURES) + 2
    assert "**no**" in figures_table(measured | {"time, median, ns": 0.0})


def test_charges_have_the_public_steps(columns):
    steps = (columns("train/batch_1.parquet")["charge"] - 0.025) / 0.05
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-6)


def test_dead_sensors_are_silent(columns):
    detector = icecube86()
    seen = np.unique(columns("train/batch_1.parquet")["sensor_id"])
    assert detector.in_use[seen].all()
    assert len(seen) > 4_900


def residuals(columns):
    """Distance from the true muon and time against its Cherenkov light, coincident first hits."""
    meta, truth = columns("train_meta.parquet"), columns("truth/batch_1.parquet")
    batch, xyz = columns("train/batch_1.parquet"), icecube86().xyz_m
    zenith, azimuth = truth["muon_zenith"], truth["muon_azimuth"]
    travel = -np.stack(
        [np.cos(azimuth) * np.sin(zenith), np.sin(azimuth) * np.sin(zenith), np.cos(zenith)], 1
    )
    vertex = np.stack([truth[f"vertex_{k}_m"] for k in "xyz"], 1)
    for k in np.flatnonzero(truth["muon_energy_gev"] > 1_000):
        rows = slice(meta["first_pulse_index"][k], meta["last_pulse_index"][k] + 1)
        good = ~batch["auxiliary"][rows]
        time = batch["time"][rows][good].astype(float)
        sensor, first = np.unique(batch["sensor_id"][rows][good], return_index=True)
        way = xyz[sensor] - vertex[k]
        along = way @ travel[k]
        distance = np.sqrt(np.maximum((way**2).sum(1) - along**2, 0))
        cosine, sine = cherenkov(ICE)
        slope = (N_GROUP - cosine) / sine
        late = time[first] - (along + slope * distance) / C_M_PER_NS
        near = distance < 25
        if near.sum() >= 4:
            yield distance, late - np.median(late[near])


def test_first_light_follows_the_cherenkov_cone_of_the_true_muon(columns):
    parts = list(residuals(columns))
    assert len(parts) > 20
    distance, late = (np.concatenate(column) for column in zip(*parts, strict=True))
    near, far = late[distance < 25], late[(distance > 60) & (distance < 110)]
    spread = 0.5 * np.subtract(*np.quantile(near, [0.84, 0.16]))
    # tens of nanoseconds close to the track, scattered and therefore late farther away
    assert spread < 80
    assert np.median(far) > np.median(near) + 50
