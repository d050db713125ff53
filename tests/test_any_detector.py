"""Every detector of the benchmark, from simulated events to a model that learns."""

import json
from pathlib import Path

import pytest

from iceaggr import cli
from iceaggr.built_in_detectors import built_in_detector
from iceaggr.config import load_config
from iceaggr.events.simulation import SimulationConfig, block, run, simulate
from iceaggr.models import build_model
from iceaggr.normalization_document import Normalization, parse_normalization
from iceaggr.steps.run_folder import RunFolder
from iceaggr.storage import open_store

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("name", ["triangle", "flower-xl"])
def test_smallest_and_largest_detector_learn_without_a_special_setting(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    for module in (block, run):
        monkeypatch.setattr(module, "N_EVENTS_PER_BLOCK", 60)
    raw_uri = f"file://{tmp_path}/raw"
    config = SimulationConfig(
        n_events=120, n_processes=1, detector=name, flavour="numu",
        min_energy_gev=10, max_energy_gev=1e5, spectral_index=1.2,
    )  # fmt: skip
    simulate(open_store(), raw_uri, config)
    settings = load_config(CONFIGS / "nubench_small.yaml").model_dump()
    # fewer and shorter steps than the preset has, for the time that they take
    settings["learning_check"] |= {"n_steps": 20, "n_events_per_batch": 32, "n_batches": 1}
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(settings))
    folder = tmp_path / "run"
    cli.shard(raw_uri, folder, config=file)
    cli.stats(folder)
    cli.check(folder)
    scaled = parse_normalization(RunFolder.open(folder).normalization.read_bytes())
    low_m, high_m = built_in_detector(name).bounds_m
    scalings = (scaled.x_m, scaled.y_m, scaled.z_m)
    # of the data: the middle lies in the array, whose longest side is some widths long
    for low, high, scaling in zip(low_m, high_m, scalings, strict=True):
        assert low <= scaling.centre <= high
        assert 1 < (high_m - low_m).max() / scaling.scale < 10


@pytest.mark.parametrize(
    ("preset", "low", "high"), [("nubench", 9e6, 11e6), ("nubench_small", 2e5, 6e5)]
)
def test_presets_have_the_size_that_they_promise(preset, low, high):
    config = load_config(CONFIGS / f"{preset}.yaml")
    assert low < build_model(config.model, Normalization.seed()).n_parameters() < high
