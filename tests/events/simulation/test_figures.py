import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iceaggr.detector import C_M_PER_NS, ICE, N_GROUP, icecube86
from iceaggr.errors import RawDataError
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.events.simulation.light import cherenkov
from iceaggr.steps.check_simulation import (
    HARDNESS,
    PUBLISHED,
    distances,
    figures_table,
    measure,
    read_real_meta,
    read_sample,
)
from iceaggr.storage import open_store
from tests.bad_input.scene import iceaggr
from tests.events.simulation.conftest import near_share

N_HARD_EVENTS = 3_000


@pytest.fixture(scope="module")
def easy(sample):
    return read_sample(open_store(), f"file://{sample[0]}")


@pytest.fixture(scope="module")
def hard_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("competition") / "raw"
    config = SimulationConfig(n_events=N_HARD_EVENTS, n_events_per_file=2_000, seed=1)
    simulate(open_store(), f"file://{folder}", config)
    return folder


@pytest.fixture(scope="module")
def hard(hard_folder):
    return read_sample(open_store(), f"file://{hard_folder}")


def outside(figures, sample) -> list[str]:
    return [row.figure.name for row in measure(figures, sample) if not row.inside]


def test_every_figure_of_the_competition_preset_stays_in_its_range(hard):
    assert outside([*HARDNESS, *PUBLISHED], hard) == []


def test_pulses_of_the_easy_preset_look_as_published_but_its_events_are_too_easy(easy):
    assert outside(PUBLISHED, easy) == []
    assert {"line fit, mean angle, rad", "events below 8 clean modules, %"} <= set(
        outside(HARDNESS, easy)
    )


def test_figures_are_those_of_a_plain_count(hard, hard_folder):
    values = {row.figure.name: row.value for row in measure([*HARDNESS, *PUBLISHED], hard)}
    meta = pq.read_table(hard_folder / "train_meta.parquet").to_pandas()
    n_pulses = meta["last_pulse_index"] - meta["first_pulse_index"] + 1
    assert values["events of at most 39 pulses, %"] == pytest.approx(
        100 * (n_pulses <= 39).sum() / N_HARD_EVENTS
    )
    batches = [pq.read_table(hard_folder / f"train/batch_{k}.parquet") for k in (1, 2)]
    pulses = pa.concat_tables(batches).to_pandas().reset_index()
    clean = pulses[~pulses["auxiliary"]]
    modules = clean.groupby("event_id")["sensor_id"].nunique()
    strings = (clean["sensor_id"] // 60).groupby(clean["event_id"]).nunique()
    found = values["events below 8 clean modules, %"]
    assert found == pytest.approx(100 * (modules < 8).sum() / N_HARD_EVENTS)
    found = values["events on one string, %"]
    assert found == pytest.approx(100 * (strings <= 1).sum() / N_HARD_EVENTS)


def test_dim_events_are_as_frequent_as_published(hard, easy):
    """11.2 % have at most 39 pulses, counted from first to last index: at most 40 pulses.

    Source: a public notebook on the whole set; 11.0 % of 10,000 rows of its meta file, of which
    1 % have fewer than 30 pulses.
    """
    assert (hard.n_pulses - 1 <= 39).mean() == near_share(0.112, N_HARD_EVENTS)
    assert (hard.n_pulses < 30).mean() == near_share(0.01, N_HARD_EVENTS)
    # the least trigger: three hits of DeepCore; the easy preset asks for eight
    for sample, n_least in ((hard, 3), (easy, 8)):
        clean = np.bincount(sample.event[~sample.auxiliary], minlength=len(sample.n_pulses))
        assert clean[sample.n_pulses < 60].min() == n_least


def test_error_is_that_of_the_mean(hard):
    row = measure(HARDNESS[:1], hard)[0]
    angles = hard.angles_rad["line fit"]
    assert row.value == pytest.approx(angles.mean())
    assert row.error == pytest.approx(angles.std() / np.sqrt(len(angles)), rel=0.5)


def test_table_shows_every_figure_and_marks_what_is_outside(hard):
    rows = measure(HARDNESS, hard)
    assert len(figures_table(rows).splitlines()) == len(HARDNESS) + 2
    assert "**no**" not in figures_table(rows)
    assert "**no**" in figures_table([replace(rows[0], value=1.0)])


def real_meta(path, n_pulses, zenith):
    last = np.cumsum(n_pulses) - 1
    columns = {"first_pulse_index": last - n_pulses + 1, "last_pulse_index": last}
    pq.write_table(pa.table(columns | {"zenith": zenith}), path)
    return path


def test_distance_is_the_largest_difference_of_shares(hard, tmp_path):
    zenith = np.arccos(hard.cos_zenith)
    same = real_meta(tmp_path / "same.parquet", hard.n_pulses, zenith)
    assert [row.value for row in distances(hard, read_real_meta(same))] == pytest.approx(
        [0, 0], abs=1e-3
    )
    twice = real_meta(tmp_path / "twice.parquet", 1_000 * hard.n_pulses, np.pi - zenith)
    of_pulses, of_cosine = distances(hard, read_real_meta(twice))
    assert of_pulses.value > 0.9
    assert not of_pulses.inside
    assert of_cosine.value < 0.2
    with pytest.raises(RawDataError, match="this is no meta file"):
        read_real_meta(tmp_path / "absent.parquet")


def test_command_prints_the_table_and_fails_outside_the_ranges(hard_folder, sample, capsys):
    iceaggr("check-simulation", "--raw-uri", f"file://{hard_folder}")
    shown = capsys.readouterr().out
    assert re.search(r"\| line fit, mean angle, rad \| 1\.214 .* \| yes \|", shown)
    with pytest.raises(SystemExit) as ended:
        iceaggr("check-simulation", "--raw-uri", f"file://{sample[0]}")
    assert ended.value.code == 1
    assert "**no**" in capsys.readouterr().out


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
