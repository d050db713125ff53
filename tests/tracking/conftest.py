"""A small saved model, and its registration, shared by the tests of the registry."""

from importlib import resources

import pytest
import torch

from iceaggr.config import ExperimentConfig, ModelConfig
from iceaggr.models.bundle import save_model
from iceaggr.models.hierarchical import build_model
from iceaggr.models.kappa_map import KappaMap
from iceaggr.normalization_document import Normalization
from iceaggr.storage import open_store

TINY = ModelConfig(d_model=16, n_heads=2, n_dom_layers=1, n_event_layers=1, dropout=0.0)


@pytest.fixture(scope="session")
def geometry_csv():
    return resources.files("iceaggr.resources").joinpath("icecube86.csv").read_text()


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory, geometry_csv):
    """The folder URI of a model with random weights that depends on all of its input."""
    torch.manual_seed(0)
    experiment = ExperimentConfig(model=TINY)
    model = build_model(TINY, Normalization.seed())
    model.kappa_map = KappaMap(log_kappa=(0.0,), log_factor=(-0.7,))
    facts = {"experiment": experiment.model_dump(mode="json")}
    folder = (tmp_path_factory.mktemp("saved") / "model").as_uri()
    return save_model(open_store(), folder, model, geometry_csv, facts)
