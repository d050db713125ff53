import json
import os
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch

from iceaggr.config import ModelConfig, parse_config
from iceaggr.detector import WATER, icecube86
from iceaggr.errors import DetectorError, ModelError, StorageError
from iceaggr.models import build_model
from iceaggr.models.bundle import load_model, save_model
from iceaggr.models.kappa_map import KappaMap
from iceaggr.models.seed_frame import dom_statistics, find_seeds, seed_frame
from iceaggr.normalization_document import Normalization
from iceaggr.storage import open_store
from tests.batches.batch_builder import random_event_batch
from tests.models.sealing import edit_sealed

CONFIG = ModelConfig(d_model=16, n_heads=2, n_dom_layers=1, n_event_layers=1)
GEOMETRY = resources.files("iceaggr.resources").joinpath("icecube86.csv").read_text()


@pytest.fixture
def saved(tmp_path: Path):
    store, uri = open_store(), f"{tmp_path.as_uri()}/model"
    model = build_model(CONFIG, Normalization.seed()).eval()
    save_model(store, uri, model, GEOMETRY, {"run": "abc", "mean_deg": 60.5})
    return store, uri, model, tmp_path / "model"


def test_loaded_model_predicts_the_same_bits(saved) -> None:
    store, uri, model, _ = saved
    loaded = load_model(store, uri + "/")
    batch = random_event_batch(10)
    with torch.no_grad():
        assert torch.equal(loaded.model(batch).vector, model(batch).vector)
    assert loaded.facts == {"run": "abc", "mean_deg": 60.5}
    assert loaded.detector.n_sensors == 5160
    assert not loaded.model.training


def test_map_of_kappa_travels_with_a_model_and_is_applied_once(saved) -> None:
    store, uri, model, folder = saved
    assert "kappa_map" not in json.loads((folder / "model.json").read_text())
    batch = random_event_batch(10)
    with torch.no_grad():
        own = model(batch)
    assert load_model(store, uri).model.kappa_map is None, "a model of before has none"
    model.kappa_map = KappaMap(log_kappa=(0.0,), log_factor=(-0.7,))
    save_model(store, uri, model, GEOMETRY, {})
    for _ in range(2):
        loaded = load_model(store, uri).model
        with torch.no_grad():
            told = loaded(batch)
        torch.testing.assert_close(told.kappa, own.kappa * 0.4965853)
        torch.testing.assert_close(told.direction, own.direction)
        # as a model that is fetched and kept elsewhere
        save_model(store, uri, loaded, GEOMETRY, {})


def test_loaded_model_knows_the_medium_of_its_detector(saved) -> None:
    store, uri, model, _ = saved
    wet = replace(icecube86(), stated_medium=WATER)
    save_model(store, uri, model, wet.to_csv(), {})
    assert load_model(store, uri).detector.stated_medium == WATER


def test_seeds_of_a_model_use_the_medium_of_their_events() -> None:
    batch = random_event_batch(10)
    wet, statistics = replace(batch, medium=WATER), dom_statistics(batch)
    config = CONFIG.model_copy(update={"seed": "line_fit"})
    seeds = find_seeds(batch, config)
    frames = [seed_frame(told, statistics, seeds).expected_ns for told in (batch, wet)]
    # behind the point of light: the same way at the other group velocity, but for the common zero
    event, centre = batch.dom_event_idx(), seeds.point_m
    radius = torch.linalg.vector_norm(batch.xyz_m - centre[event], dim=-1)
    later = (frames[1] - frames[0])[:, 1] - radius * (1.3797 - 1.35634) / 0.299792458
    of_first = later[event == 0]
    torch.testing.assert_close(of_first, of_first[:1].expand_as(of_first), rtol=0, atol=0.05)


def test_load_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no saved model here"):
        load_model(open_store(), tmp_path.as_uri())


@pytest.mark.parametrize("name", ["weights.safetensors", "geometry.csv"])
def test_load_refuses_a_damaged_file(saved, name: str) -> None:
    store, uri, _, folder = saved
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(ModelError, match=rf"damaged.*{name}"):
        load_model(store, uri)


def test_load_refuses_a_missing_file(saved) -> None:
    store, uri, _, folder = saved
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match="incomplete"):
        load_model(store, uri)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "another format.*version 99 by 'iceaggr"),
        (
            {"format_version": 1},
            "another format.*version 1 .*Use the version of iceaggr that saved",
        ),
        ({"format_version": True}, "another format.*version True"),
        ({"format_version": 2.0}, r"another format.*version 2\.0"),
        ({"sha256": {}}, r"not the document.*sha256 of \[\]"),
        ({"facts": None}, "not the document.*no facts"),
        ({"model": [1]}, "not the document.*no model"),
        ({"model": {"d_model": 24, "n_heads": 2}}, "does not fit"),
        (
            {"kappa_map": {"log_kappa": [0, 1], "log_factor": [2, 0]}},
            r"does not fit.*found kappa_map.*does not rise",
        ),
        ({"kappa_map": {"log_kappa": [0]}}, r"does not fit.*found kappa_map\.log_factor"),
        ({"model": {"nonsense": 1}}, r"does not fit.*found model\.nonsense: 1, expected"),
        (
            {"normalization": {"preset": "fitted", "time_ns": 3}},
            "does not fit.*not a normalisation document, time_ns: 3, expected",
        ),
    ],
)
def test_load_refuses_a_foreign_document(saved, change: dict, message: str) -> None:
    store, uri, _, folder = saved
    edit_sealed(folder / "model.json", lambda document: document.update(change))
    with pytest.raises(ModelError, match=message):
        load_model(store, uri)


@pytest.mark.parametrize(
    "change",
    [
        {"facts": {"run": "abc", "mean_deg": 6.5}},
        {"saved_by": "iceaggr 7"},
        {"content_sha256": None},
        {"content_sha256": "0" * 64},
        {"remark": "mine"},
    ],
)
def test_load_refuses_a_document_that_was_changed(saved, change: dict) -> None:
    store, uri, _, folder = saved
    document = json.loads((folder / "model.json").read_text()) | change
    (folder / "model.json").write_text(json.dumps(document))
    with pytest.raises(
        ModelError, match=r"changed since it was saved \[.*model\.json\]: found con"
    ):
        load_model(store, uri)


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        ("x", "bad value for the whole configuration"),
        (None, "bad value for the whole configuration"),
        ({"batches": {"max_doms_per_event": -1}}, r"bad value for batches\.max_doms_per_event"),
        ({"batches": {"n_gone": 3}}, r"unknown key batches\.n_gone"),
        ({"data": 7}, "bad value for data"),
    ],
)
def test_load_names_the_version_whose_settings_it_does_not_know(saved, experiment, words) -> None:
    store, uri, _, folder = saved

    def change(document) -> None:
        document["facts"]["experiment"] = experiment
        document["saved_by"] = "iceaggr 9.9"

    edit_sealed(folder / "model.json", change)
    with pytest.raises(ModelError, match=f"{words} .*saved by 'iceaggr 9.9'.* Use the version"):
        load_model(store, uri)


def test_loaded_model_knows_the_settings_of_its_training(tmp_path: Path) -> None:
    experiment = parse_config({"batches": {"max_doms_per_event": 7}})
    model = build_model(CONFIG, Normalization.seed())
    facts = {"experiment": experiment.model_dump(mode="json")}
    uri = save_model(open_store(), f"{tmp_path.as_uri()}/m", model, GEOMETRY, facts)
    assert load_model(open_store(), uri).experiment == experiment
    uri = save_model(open_store(), uri, model, GEOMETRY, {})
    assert load_model(open_store(), uri).experiment is None


@pytest.mark.parametrize("name", ["weights.safetensors", "geometry.csv", "model.json"])
def test_load_does_not_wait_for_a_pipe(saved, name: str) -> None:
    store, uri, _, folder = saved
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises((ModelError, StorageError), match=f"not a file.*{name}|{name}.*not a file"):
        load_model(store, uri)


def test_load_refuses_a_document_that_is_not_json(saved) -> None:
    store, uri, _, folder = saved
    (folder / "model.json").write_text("weights")
    with pytest.raises(ModelError, match="not the document"):
        load_model(store, uri)


def test_save_refuses_a_geometry_that_is_none(tmp_path: Path) -> None:
    model = build_model(CONFIG, Normalization.seed())
    with pytest.raises(DetectorError, match="lacks columns"):
        save_model(open_store(), f"{tmp_path.as_uri()}/m", model, "a,b\n1,2\n", {})
    assert not (tmp_path / "m").exists()
