"""The line fit against the labels: other conventions are found, sound data raise no alarm."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from iceaggr.detector import icecube86
from iceaggr.errors import RawDataError
from iceaggr.events.label_reading import AS_DOCUMENTED, LabelReading
from iceaggr.events.layout import find_layout, load_detector
from iceaggr.events.reading import read_raw_events
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.reconstruction.label_fit import (
    MIN_EVENTS,
    FittedLabels,
    doubtful_labels,
    fit_labels,
    fit_lines,
    judge_labels,
    refuse_other_labels,
)
from iceaggr.storage import open_store
from tests.bad_input.scene import iceaggr
from tests.shards.dom_events_builder import random_dom_events

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no sample data at {SHARED}")


@cache
def fitted(
    cascade_share: float,
    max_energy_gev: float = 1e7,
    n_events: int = 900,
    flag: bool | None = None,
) -> FittedLabels:
    """Simulate events and fit them once for all tests. flag: auxiliary of every pulse, if given."""
    with TemporaryDirectory() as folder:
        uri = (Path(folder) / "raw").as_uri()
        config = SimulationConfig(
            n_events=n_events,
            preset="easy",
            cascade_share=cascade_share,
            max_energy_gev=max_energy_gev,
            n_processes=1,
        )
        simulate(open_store(), uri, config)
        chunks = list(read_raw_events(open_store(), uri))
    if flag is not None:
        chunks = [replace(c, auxiliary=np.full(c.n_pulses, flag)) for c in chunks]
    return FittedLabels.joined([fit_lines(chunk, icecube86()) for chunk in chunks])


def mislabelled(labels: FittedLabels, reading: LabelReading) -> FittedLabels:
    """Give labels as a file of another convention holds them."""
    return FittedLabels(labels.direction, *reading.undo(labels.azimuth, labels.zenith))


@pytest.mark.parametrize("cascade_share", [0.0, 0.5], ids=["tracks", "both"])
@pytest.mark.parametrize(
    "words",
    [
        ("particle",),
        ("mirror_x",),
        ("mirror_y",),
        ("mirror_z",),
        ("mirror_x", "mirror_y"),
        ("x_y_swapped",),
        ("particle", "x_y_swapped"),
    ],
    ids="-".join,
)
def test_labels_of_another_convention_are_found_and_named(words, cascade_share) -> None:
    labels = mislabelled(fitted(cascade_share), LabelReading(words))
    found = judge_labels(labels)
    assert found.better is not None
    assert found.better.reading == LabelReading(words)
    with pytest.raises(RawDataError, match="do not point the way") as caught:
        refuse_other_labels(found, "azimuth and zenith")
    assert f"data.label_reading: [{', '.join(words)}]" in caught.value.remedy
    assert "data.accept_label_reading: true" in caught.value.remedy
    assert judge_labels(fitted(cascade_share), AS_DOCUMENTED).better is None


@pytest.mark.parametrize("flag", [False, True])
def test_reversed_labels_are_found_where_no_flag_tells_noise_from_signal(flag) -> None:
    labels = fitted(0.3, n_events=300, flag=flag)
    assert judge_labels(labels).better is None
    assert not doubtful_labels(judge_labels(labels))
    found = judge_labels(mislabelled(labels, LabelReading(("particle",))))
    assert found.better is not None
    assert found.better.reading.words == ("particle",)


def test_reversed_cascades_are_found() -> None:
    found = judge_labels(mislabelled(fitted(1.0, n_events=2500), LabelReading(("particle",))))
    assert found.better is not None
    assert found.better.reading.words == ("particle",)


@pytest.mark.parametrize(
    ("chosen", "word"), [("azimuth", "columns_swapped"), ("zenith", "elevation")]
)
def test_values_that_happen_to_be_in_range_are_found(chosen, word) -> None:
    labels = fitted(0.0)
    limit = {"azimuth": np.pi, "zenith": np.pi / 2}[chosen]
    use = getattr(labels, chosen) < limit
    part = FittedLabels(labels.direction[use], labels.azimuth[use], labels.zenith[use])
    found = judge_labels(mislabelled(part, LabelReading((word,))))
    assert found.better is not None
    assert found.better.reading.words == (word,)


def test_declared_reading_that_is_wrong_is_taken_back() -> None:
    labels = fitted(0.5)
    for declared in (LabelReading(("particle",)), LabelReading(("degrees",))):
        as_read = FittedLabels(labels.direction, *declared.apply(labels.azimuth, labels.zenith))
        found = judge_labels(as_read, declared)
        assert found.better is not None
        assert found.better.reading == AS_DOCUMENTED


@pytest.mark.parametrize(
    ("cascade_share", "max_energy_gev"),
    [(0.5, 1e7), (0.0, 1e7), (1.0, 1e7), (0.5, 300.0), (1.0, 300.0)],
    ids=["preset", "tracks", "cascades", "low", "low-cascades"],
)
def test_sound_simulation_raises_no_alarm(cascade_share, max_energy_gev) -> None:
    labels = fitted(cascade_share, max_energy_gev)
    assert judge_labels(labels).better is None
    for use in (labels.zenith < 0.8, labels.zenith < np.pi / 2, labels.azimuth < 1.0):
        part = FittedLabels(labels.direction[use], labels.azimuth[use], labels.zenith[use])
        assert judge_labels(part).better is None


def test_noise_raises_no_alarm() -> None:
    for seed in range(5):
        found = fit_labels([random_dom_events(300, seed=seed)], icecube86())
        assert found.n_events > MIN_EVENTS
        assert found.better is None
        assert re.search("300 events .*2,000 events would tell", doubtful_labels(found))
        events = random_dom_events(300, seed=seed)
        bare = replace(events, auxiliary=np.zeros(events.n_pulses, bool))
        assert fit_labels([bare], icecube86()).better is None
    labels = fitted(0.5)
    rng = np.random.default_rng(0)
    for _ in range(50):
        other, use = rng.permutation(len(labels.azimuth)), rng.integers(0, 900, 300)
        mixed = FittedLabels(labels.direction, labels.azimuth[other], labels.zenith[other])
        part = FittedLabels(mixed.direction[use], mixed.azimuth[use], mixed.zenith[use])
        assert judge_labels(part).better is None


def test_biased_fit_does_not_condemn_the_labels_of_one_half_of_the_sky() -> None:
    """Fits that all point up say nothing about labels that all point down."""
    rng = np.random.default_rng(2)
    direction = rng.normal(size=(2000, 3)) * 0.3 + [0, 0, 1]
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    zenith = np.pi - np.arccos(rng.uniform(0, 1, 2000))
    labels = FittedLabels(direction, rng.uniform(0, 2 * np.pi, 2000), zenith)
    assert judge_labels(labels).better is None


def test_labels_of_other_events_agree_nowhere() -> None:
    labels = fitted(0.0, n_events=2500)
    assert not judge_labels(labels).agrees_nowhere
    shifted = FittedLabels(labels.direction, np.roll(labels.azimuth, 1), np.roll(labels.zenith, 1))
    assert judge_labels(shifted).agrees_nowhere
    assert judge_labels(shifted).better is None
    assert doubtful_labels(judge_labels(shifted)).endswith("Do they belong to these events?")
    few = FittedLabels(*(getattr(shifted, f.name)[:1500] for f in fields(shifted)))
    said = doubtful_labels(judge_labels(few))
    assert re.search("1,500 events.*in any reading.*Do they belong to these.*2,000", said)
    assert not doubtful_labels(judge_labels(labels))


def test_few_or_unlabelled_events_are_not_judged() -> None:
    assert fit_labels([], icecube86()).n_events == 0
    few = random_dom_events(MIN_EVENTS - 1, seed=1)
    assert fit_labels([few], icecube86()).rows == ()
    assert "could not be judged" in doubtful_labels(fit_labels([few], icecube86()))
    unlabelled = random_dom_events(100, seed=1, labelled=False)
    assert fit_labels([unlabelled], icecube86()).n_events == 0
    assert fit_labels([few, few, few], icecube86(), max_events=40).n_events <= 40


@needs_shared
def test_real_training_events_raise_no_alarm() -> None:
    uri = (SHARED / "real" / "competition_train").as_uri()
    detector = load_detector(open_store(), find_layout(open_store(), uri).geometry_uri)
    chunks = list(read_raw_events(open_store(), uri))
    parts = [fit_lines(chunk, detector) for chunk in chunks]
    few = FittedLabels.joined(parts)
    assert judge_labels(few).better is None
    many = FittedLabels.joined(parts * 5)  # enough to be judged, though they are no other events
    assert judge_labels(many).better is None


@needs_shared
@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("prometheus-events.db", []),
        ("prometheus_parquet/merged", []),
        ("real/oscNext_genie_level7_v02_first_5_frames.db", ["--geometry", "icecube86"]),
    ],
)
def test_events_of_other_detectors_raise_no_alarm(source, options, tmp_path: Path) -> None:
    uri = tmp_path.as_uri()
    iceaggr("convert", str(SHARED / source), "--out", uri, "--yes", *options)
    detector = load_detector(open_store(), f"{uri}/sensor_geometry.csv")
    chunks = list(read_raw_events(open_store(), uri, detector=detector))
    parts = [fit_lines(chunk, detector) for chunk in chunks]
    few = FittedLabels.joined(parts)
    assert len(few.azimuth) > 0
    assert judge_labels(few).better is None
    assert judge_labels(FittedLabels.joined(parts * 6)).better is None
