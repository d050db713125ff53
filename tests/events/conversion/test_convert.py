import json
import re
import sqlite3
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from iceaggr.batches import EventLoader, iter_batches
from iceaggr.config import BatchConfig, DataConfig
from iceaggr.errors import RawDataError
from iceaggr.events.conversion import convert, plan_conversion
from iceaggr.events.label_reading import LabelReading
from iceaggr.events.layout import load_detector
from iceaggr.events.reading import read_raw_events
from iceaggr.events.truth import read_truth
from iceaggr.storage import open_store
from tests.events.conversion.foreign_files import (
    SHARED,
    converted,
    expected,
    frames,
    settings,
    write_parts,
    write_sqlite,
)
from tests.shards.raw_shards import read_all, shard_all

STORE = open_store()
ZENITH = "initial_state_zenith"
PROMETHEUS = SHARED / "prometheus-events.db"
OSC_NEXT = SHARED / "real" / "oscNext_genie_level7_v02_first_5_frames.db"


def topics(notes):
    return [note.split(":")[0] for note in notes]


def test_what_the_source_never_has_goes_on_and_stays_with_the_events(tmp_path):
    pulses, truth = frames()
    path = write_sqlite(tmp_path / "a.db", pulses.drop(columns=["charge", "auxiliary"]), truth)
    found, _, notes = converted(tmp_path / "raw", path)
    assert topics(notes) == ["charge", "auxiliary", "geometry", "label"]
    assert (found["charge"] == 1).all()
    assert not found["auxiliary"].any()
    assert shard_all((tmp_path / "raw").as_uri(), tmp_path / "out").notes == notes


def test_a_file_without_the_charge_that_others_have_is_refused(tmp_path):
    pulses, truth = frames()
    first = write_sqlite(tmp_path / "a.db", pulses, truth)
    second = write_sqlite(
        tmp_path / "b.db",
        *(t.drop(columns="charge", errors="ignore") for t in frames(first_id=500)),
    )
    with pytest.raises(RawDataError, match=r"lacks column charge.*\[.*b.db\]"):
        converted(tmp_path / "raw", first, second)


def test_columns_tables_and_units_as_named(tmp_path):
    pulses, truth = frames()
    pulses = pulses.assign(t=pulses["t"] / 1000, sensor_pos_x=pulses["sensor_pos_x"] * 100)
    pulses["sensor_pos_y"] *= 100
    pulses["sensor_pos_z"] *= 100
    pulses = pulses.rename(columns={"t": "when", "event_no": "nr"})
    truth = truth.rename(columns={"event_no": "number", "initial_state_zenith": "theta"})
    truth[["theta", "initial_state_azimuth"]] *= 180 / np.pi
    path = write_sqlite(tmp_path / "a.db", pulses, truth, ("A", "B"))
    columns = {"event_id": "nr", "truth_event_id": "number", "time_ns": "when", "zenith": "theta"}
    units = {"time": "us", "position": "cm", "angle": "deg"}
    found, meta, notes = converted(
        tmp_path / "raw", path, pulses="A", truth="B", columns=columns, units=units
    )
    raw, rows = expected(*frames())
    pd.testing.assert_frame_equal(found, raw, check_dtype=False)
    pd.testing.assert_frame_equal(meta, rows, check_dtype=False)
    assert topics(notes).count("unit") == 6
    geometry = pd.read_csv(tmp_path / "raw" / "sensor_geometry.csv")
    assert geometry["z"].min() == -2000


def test_units_in_the_names_of_columns_are_used(tmp_path):
    pulses, truth = frames()
    pulses = pulses.rename(columns={"t": "time_us"}).assign(time_us=pulses["t"] / 1000)
    truth["zenith_deg"] = np.degrees(truth.pop("initial_state_zenith"))
    truth["azimuth_deg"] = np.degrees(truth.pop("initial_state_azimuth"))
    found, meta, _ = converted(tmp_path / "raw", write_sqlite(tmp_path / "a.db", pulses, truth))
    raw, rows = expected(*frames())
    pd.testing.assert_frame_equal(found, raw, check_dtype=False)
    pd.testing.assert_frame_equal(meta, rows, check_dtype=False)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"pulses": "totl"}, r"no table totl \[--pulses\]"),
        ({"truth": "merged_photons"}, r"merged_photons lacks columns for truth \[--truth\]"),
        (
            {"columns": {"time_ns": "tt"}},
            r"no table has a column tt \[--column time_ns=tt\].*columns sensor",
        ),
        ({"columns": {"time": "t"}}, r"--column time=t\].*Did you mean time_ns"),
        ({"units": {"time": "min"}}, r"unknown unit of time \[--unit time=min\]"),
        ({"units": {"angles": "deg"}}, r"--unit angles=deg\].*Did you mean angle"),
        ({"sensor_ids": "position"}, r"--sensor-ids position.*no geometry"),
    ],
)
def test_errors_name_the_flag(tmp_path, chosen, words):
    path = write_sqlite(tmp_path / "a.db", *frames())
    with pytest.raises(RawDataError, match=words):
        converted(tmp_path / "raw", path, **chosen)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("table", "column", "value", "words"),
    [
        ("pulses", "event_no", None, r"an id is missing.*event_no \(--column event_id"),
        ("pulses", "sensor_id", None, r"an id is missing.*sensor_id \(--column sensor_id"),
        ("truth", "event_no", None, r"an id is missing"),
        ("pulses", "event_no", 100.5, r"no whole number.*100.5"),
        ("truth", "event_no", 2.0**60, r"no whole number"),
        ("pulses", "t", "late", r"mixes what does not belong together|no numbers"),
        ("pulses", "auxiliary", 3, r"neither 0 nor 1.*found 3"),
        ("pulses", "sensor_pos_x", None, r"place of a sensor is missing"),
        ("pulses", "event_no", 77, r"without truth.*such as 77"),
    ],
)
@pytest.mark.parametrize("as_file", ["sqlite", "parquet"])
def test_a_null_or_another_wrong_value_is_an_error(tmp_path, table, column, value, words, as_file):
    pulses, truth = frames()
    changed = pulses if table == "pulses" else truth
    if as_file == "parquet" and isinstance(value, str):
        changed[column] = changed[column].astype(str)
    else:
        changed[column] = changed[column].astype(object if isinstance(value, str) else "float64")
    changed.loc[2, column] = np.nan if value is None else value
    if as_file == "sqlite":
        path = write_sqlite(tmp_path / "a.db", pulses, truth)
    else:
        path = write_parts(tmp_path / "in", pulses, truth, n_parts=1)
    with pytest.raises(RawDataError, match=words):
        converted(tmp_path / "raw", path)
    assert not (tmp_path / "raw").exists()


def test_of_nubenchs_tables_of_pulses_the_one_with_noise_is_used(tmp_path):
    pulses, truth = frames()
    path = write_sqlite(tmp_path / "merged.db", pulses, truth)
    connection = sqlite3.connect(path)
    pulses[::2].to_sql("pulses_no_noise", connection, index=False)
    connection.close()
    assert len(converted(tmp_path / "raw", path)[0]) == len(pulses)
    tested = converted(tmp_path / "test", path, pulses="pulses_no_noise")[0]
    assert len(tested) == len(pulses[::2])


def test_several_tables_of_pulses_are_a_question(tmp_path):
    pulses, truth = frames()
    path = write_sqlite(tmp_path / "a.db", pulses, truth, ("InIcePulses", "truth"))
    connection = sqlite3.connect(path)
    pulses[::2].to_sql("CleanedPulses", connection, index=False)
    connection.close()
    with pytest.raises(RawDataError, match=r"several tables could be the pulses \[--pulses\]"):
        converted(tmp_path / "raw", path)
    assert len(converted(tmp_path / "raw", path, pulses="CleanedPulses")[0]) == len(pulses[::2])


@pytest.mark.parametrize(
    ("table", "other", "flag"),
    [
        ("hits", "hits_clean", "pulses"),
        ("photons", "pulses", "pulses"),
        ("mc_truth", "truth", "truth"),
    ],
)
def test_of_two_tables_that_would_do_none_is_taken_in_silence(tmp_path, table, other, flag):
    pulses, truth = frames()
    names = (table, "labels") if flag == "pulses" else ("hits", table)
    path = write_sqlite(tmp_path / "a.db", pulses, truth, names)
    with closing(sqlite3.connect(path)) as connection:
        (pulses if flag == "pulses" else truth).to_sql(other, connection, index=False)
    words = rf"several tables could be the {flag} .*{table} \(.*; {other} \("
    with pytest.raises(RawDataError, match=words):
        converted(tmp_path / "raw", path)
    assert len(converted(tmp_path / "raw", path, **{flag: other})[1]) == len(truth)


def test_names_with_blanks_and_units_are_known(tmp_path):
    pulses, truth = frames()
    path = write_sqlite(tmp_path / "a.db", pulses, truth)
    plain = converted(tmp_path / "plain", path)
    names = {"event_no": "Event Number", "sensor_id": "OM", "t": "t_us", "charge": "npe"}
    names |= {f"sensor_pos_{axis}": f"OM_{axis}_cm" for axis in "xyz"}
    pulses = pulses.assign(t=pulses["t"] / 1000).drop(columns=["sensor_string_id"])
    for axis in "xyz":
        pulses[f"sensor_pos_{axis}"] *= 100
    angles = {"initial_state_azimuth": "phi_deg", "initial_state_zenith": "theta_deg"}
    truth[list(angles)] = np.degrees(truth[list(angles)])
    truth = truth.rename(columns={**angles, "event_no": "Event Number"})
    path = write_sqlite(tmp_path / "b.db", pulses.rename(columns=names), truth, ("hits", "labels"))
    found = converted(tmp_path / "raw", path)
    pd.testing.assert_frame_equal(plain[0], found[0])
    pd.testing.assert_frame_equal(plain[1], found[1])


@pytest.mark.parametrize(
    ("renamed", "words"),
    [
        ({"t": "when"}, r"nearest, hits, .* as time_ns\b.*--pulses hits --column time_ns=NAME$"),
        (
            {"event_no": "nr", "t": "when"},
            r"as event_id, time_ns.*event_id=NAME --column t",
        ),
        (
            {"initial_state_zenith": "up"},
            r"nearest, labels, .* zenith.*--truth labels --column z",
        ),
    ],
)
def test_the_nearest_table_is_named_with_the_fields_that_it_lacks(tmp_path, renamed, words):
    pulses, truth = (frame.rename(columns=renamed) for frame in frames())
    path = write_sqlite(tmp_path / "a.db", pulses, truth, ("hits", "labels"))
    with pytest.raises(RawDataError) as caught:
        converted(tmp_path / "raw", path)
    assert re.search(words, str(caught.value).split("; --unlabelled")[0])


def test_a_null_time_or_charge_is_a_missing_value_that_sharding_counts(tmp_path):
    pulses, truth = frames()
    pulses.loc[0, "t"] = np.nan
    pulses.loc[1, "charge"] = np.nan
    pulses["auxiliary"] = pulses["auxiliary"].astype("Int64")
    pulses.loc[2, "auxiliary"] = pd.NA
    converted(tmp_path / "raw", write_sqlite(tmp_path / "a.db", pulses, truth))
    source = shard_all((tmp_path / "raw").as_uri(), tmp_path / "out").source_files[0]
    assert source.n_pulses_in == len(pulses)
    assert sum(source.rejected_pulses.values()) == 3


def test_directions_along_the_particle_are_turned_round(tmp_path):
    path = write_sqlite(tmp_path / "a.db", *frames())
    _, plain, _ = converted(tmp_path / "a", path)
    _, turned, notes = converted(tmp_path / "b", path, label_reading=LabelReading(("particle",)))
    np.testing.assert_allclose(turned["zenith"], np.pi - plain["zenith"])
    np.testing.assert_allclose(turned["azimuth"], (plain["azimuth"] + np.pi) % (2 * np.pi))
    assert any("travels to" in note for note in notes)


def test_unit_vectors_are_taken_as_directions(tmp_path):
    pulses, truth = frames()
    zenith, azimuth = truth.pop("initial_state_zenith"), truth.pop("initial_state_azimuth")
    truth["dir_x"] = 2 * np.sin(zenith) * np.cos(azimuth)
    truth["dir_y"] = 2 * np.sin(zenith) * np.sin(azimuth)
    truth["dir_z"] = 2 * np.cos(zenith)
    _, meta, _ = converted(tmp_path / "raw", write_sqlite(tmp_path / "a.db", pulses, truth))
    _, rows = expected(*frames())
    pd.testing.assert_frame_equal(meta, rows, check_dtype=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t * 180 / np.pi, "--unit angle=deg"),
        (lambda t: t.rename(columns=dict(zip(t, list(t)[::-1], strict=True))), "columns_swapped"),
        (
            lambda t: t.assign(initial_state_zenith=np.pi / 2 - t["initial_state_zenith"]),
            "elevation",
        ),
    ],
)
def test_directions_that_are_not_in_radians_are_refused_with_what_would_fit(
    tmp_path, change, words
):
    pulses, truth = frames(40)
    angles = ["initial_state_azimuth", "initial_state_zenith"]
    truth[angles] = change(truth[angles])[angles]
    with pytest.raises(RawDataError, match=f"zenith in radians.*{words}"):
        converted(tmp_path / "raw", write_sqlite(tmp_path / "a.db", pulses, truth))


def test_azimuths_from_minus_pi_are_the_same_directions(tmp_path):
    pulses, truth = frames()
    azimuth = truth["initial_state_azimuth"]
    truth["initial_state_azimuth"] = np.where(azimuth > np.pi, azimuth - 2 * np.pi, azimuth)
    _, meta, _ = converted(tmp_path / "raw", write_sqlite(tmp_path / "a.db", pulses, truth))
    np.testing.assert_allclose(meta["azimuth"], expected(*frames())[1]["azimuth"])


def test_two_halves_are_one_set_with_the_sensors_of_both(tmp_path):
    pulses, truth = frames(40)
    halves = [truth.iloc[:20], truth.iloc[20:]]
    paths = [
        write_sqlite(tmp_path / f"{k}.db", pulses[pulses["event_no"].isin(half["event_no"])], half)
        for k, half in enumerate(halves)
    ]
    whole, meta, _ = converted(tmp_path / "whole", write_sqlite(tmp_path / "w.db", pulses, truth))
    both, meta_both, _ = converted(tmp_path / "both", *paths)
    by = ["event_id", "time", "sensor_id"]
    pd.testing.assert_frame_equal(
        both.sort_values(by, ignore_index=True), whole.sort_values(by, ignore_index=True)
    )
    pd.testing.assert_frame_equal(meta_both, meta)
    geometries = [(tmp_path / n / "sensor_geometry.csv").read_text() for n in ("whole", "both")]
    assert geometries[0] == geometries[1]


def test_ids_that_two_inputs_share_are_refused_or_renumbered(tmp_path):
    paths = [write_sqlite(tmp_path / f"{k}.db", *frames(seed=k)) for k in range(2)]
    with pytest.raises(RawDataError, match=r"two events have one id.*two of the given.*--renumber"):
        converted(tmp_path / "raw", *paths)
    _, meta, _ = converted(tmp_path / "raw", *paths, renumber=True)
    assert meta["event_id"].tolist() == list(range(24))
    _, second = expected(*frames(seed=1))
    np.testing.assert_allclose(meta["azimuth"][12:], second["azimuth"])


def test_events_without_truth_become_a_test_set(tmp_path):
    pulses, truth = frames()
    pulses.to_parquet(tmp_path / "pulses.parquet")
    with pytest.raises(RawDataError, match=r"no table of truth.*--unlabelled"):
        converted(tmp_path / "raw", tmp_path / "pulses.parquet")
    found, meta, _ = converted(tmp_path / "raw", tmp_path / "pulses.parquet", unlabelled=True)
    pd.testing.assert_frame_equal(found, expected(pulses, truth)[0], check_dtype=False)
    assert "azimuth" not in meta
    events = list(read_raw_events(STORE, (tmp_path / "raw").as_uri()))
    assert sum(chunk.n_events for chunk in events) == 11


def test_energies_and_topologies_become_the_truth_of_the_evaluation(tmp_path):
    pulses, truth = frames()
    path = write_sqlite(tmp_path / "a.db", pulses, truth)
    converted(tmp_path / "raw", path, n_events_per_file=5)
    found = read_truth(STORE, (tmp_path / "raw").as_uri()).set_index("event_id")
    truth = truth.set_index("event_no").sort_index()
    np.testing.assert_allclose(found.loc[truth.index, "energy_gev"], truth["initial_state_energy"])
    is_track = found.loc[truth.index, "topology"] == "track"
    assert is_track.tolist() == (truth["interaction"] == 1).tolist()
    assert shard_all((tmp_path / "raw").as_uri(), tmp_path / "out").source_files[2].n_events_in == 2


def test_the_written_files_do_not_hang_on_the_reads(tmp_path, monkeypatch):
    path = write_sqlite(tmp_path / "a.db", *frames(60))
    whole, meta, _ = converted(tmp_path / "a", path, n_events_per_file=7)
    monkeypatch.setattr("iceaggr.events.conversion.tables.ROWS_PER_READ", 5)
    parts, meta_of_parts, _ = converted(tmp_path / "b", path, n_events_per_file=7)
    pd.testing.assert_frame_equal(parts, whole)
    pd.testing.assert_frame_equal(meta_of_parts, meta)


def test_nothing_of_another_set_is_overwritten(tmp_path):
    path = write_sqlite(tmp_path / "a.db", *frames())
    converted(tmp_path / "raw", path)
    before = {p: p.read_bytes() for p in (tmp_path / "raw").rglob("*") if p.is_file()}
    with pytest.raises(RawDataError, match="already holds complete raw events"):
        converted(tmp_path / "raw", path)
    assert {p: p.read_bytes() for p in (tmp_path / "raw").rglob("*") if p.is_file()} == before


def test_an_interrupted_conversion_is_done_again(tmp_path, monkeypatch):
    path = write_sqlite(tmp_path / "a.db", *frames())

    def stop(*_):
        raise KeyboardInterrupt

    plan = plan_conversion([path], settings(n_events_per_file=5))
    with monkeypatch.context() as patch:
        patch.setattr("iceaggr.events.raw_folder.RawFolder.finish", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(STORE, plan, (tmp_path / "raw").as_uri())
    found, _, _ = converted(tmp_path / "raw", path)
    pd.testing.assert_frame_equal(found, expected(*frames())[0], check_dtype=False)
    assert len(list((tmp_path / "raw" / "train").iterdir())) == 1


def test_every_column_is_told_as_used_or_ignored(tmp_path):
    pulses, truth = frames()
    path = write_sqlite(tmp_path / "a.db", pulses.assign(width=8).drop(columns="charge"), truth)
    connection = sqlite3.connect(path)
    pd.DataFrame({"x": [1]}).to_sql("cuts", connection)
    connection.close()
    told = plan_conversion([path], settings(units={"time": "us"})).told
    used = {(table, column): use for table, column, use in told}
    assert used["merged_photons", "width"] == "ignored"
    assert used["merged_photons", "t"] == "time_ns [us], times 1000"
    assert used["merged_photons", "(none)"].startswith("charge: absent")
    assert used["cuts", ""].endswith("ignored")
    assert {(t, c) for t, c, _ in told} >= {("mc_truth", column) for column in truth}


def needs(path):
    return pytest.mark.skipif(not path.exists(), reason=f"no {path}")


@needs(PROMETHEUS)
def test_prometheus_events_go_through_sharding_and_loading(tmp_path):
    converted(tmp_path / "raw", PROMETHEUS, n_events_per_file=20)
    uri = (tmp_path / "raw").as_uri()
    manifest = shard_all(uri, tmp_path / "out", DataConfig(validation_share=0.2))
    assert [source.n_events_in for source in manifest.source_files] == [20, 20, 10]
    assert sum(source.n_pulses_kept for source in manifest.source_files) == 1872
    detector = load_detector(STORE, manifest.geometry_uri)
    assert detector.n_sensors == 503
    config = BatchConfig(n_events=8, n_workers=0)
    loaded = [
        batch
        for split in ("train", "validation", "test")
        for batch in EventLoader(STORE, manifest, split, detector, config).epoch(0)
    ]
    assert sum(batch.n_pulses for batch in loaded) == 1872
    batches = list(iter_batches(read_raw_events(STORE, uri), detector, config))
    assert sum(batch.n_pulses for batch in batches) == 1872


@needs(PROMETHEUS)
def test_prometheus_parquet_is_read_like_its_database(tmp_path):
    pulses, meta, _ = converted(tmp_path / "a", SHARED / "prometheus_parquet")
    connection = sqlite3.connect(PROMETHEUS)
    truth = pd.read_sql("SELECT * FROM mc_truth", connection).set_index("event_no").sort_index()
    connection.close()
    assert len(pulses) == 1872
    assert meta["event_id"].tolist() == sorted(meta["event_id"])
    if set(truth.index) == set(meta["event_id"]):
        np.testing.assert_allclose(meta["azimuth"], truth["injection_azimuth"])


@needs(PROMETHEUS)
def test_prometheus_labels_point_to_the_origin(tmp_path):
    """The light of a starting event lies where the particle goes: against the label."""
    _, meta, _ = converted(tmp_path / "raw", PROMETHEUS)
    connection = sqlite3.connect(PROMETHEUS)
    truth = pd.read_sql("SELECT * FROM mc_truth", connection).set_index("event_no")
    hits = pd.read_sql("SELECT * FROM total", connection).groupby("event_no").mean()
    connection.close()
    meta = meta.set_index("event_id").loc[truth.index]
    vertex = truth[[f"injection_position_{axis}" for axis in "xyz"]].to_numpy()
    light = hits.loc[truth.index, [f"sensor_pos_{axis}" for axis in "xyz"]].to_numpy() - vertex
    azimuth, zenith = meta["azimuth"].to_numpy(), meta["zenith"].to_numpy()
    label = np.stack(
        [np.cos(azimuth) * np.sin(zenith), np.sin(azimuth) * np.sin(zenith), np.cos(zenith)], -1
    )
    assert ((light * label).sum(-1) < 0).mean() > 0.65


@needs(OSC_NEXT)
def test_official_icecube_events_are_known_by_the_places_of_their_sensors(tmp_path):
    pulses, meta, notes = converted(tmp_path / "raw", OSC_NEXT)
    assert len(pulses) == 56
    assert len(meta) == 5
    assert any("the whole table is taken" in note for note in notes)
    connection = sqlite3.connect(OSC_NEXT)
    source = pd.read_sql("SELECT * FROM SRTInIcePulses", connection)
    connection.close()
    ids = 60 * (source["string"] - 1) + source["dom_number"] - 1
    assert sorted(pulses["sensor_id"]) == sorted(ids.astype(int))
    assert pulses["auxiliary"].sum() == (source["hlc"] == 0).sum()
    events = read_all(shard_all((tmp_path / "raw").as_uri(), tmp_path / "out"))
    assert events.n_pulses == 56
    assert json.loads((tmp_path / "raw/source_notes.json").read_text()) == list(notes)
