"""The small model of the tests of prediction: untrained, its normalisation fitted to raw events."""

import pytest
import torch

from iceaggr.config import ExperimentConfig, ModelConfig
from iceaggr.detector import icecube86
from iceaggr.events.reading import read_raw_events
from iceaggr.models import build_model
from iceaggr.models.bundle import save_model
from iceaggr.models.hierarchical import DirectionModel
from iceaggr.normalization_document import Normalization
from iceaggr.shards.sketches import merge_sketches
from iceaggr.shards.sketching import sketch_events
from iceaggr.shards.statistics import fit_normalization
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout

SETTINGS = ExperimentConfig.model_validate(
    {"data": {"test_share": 0.4, "max_rejected_share": 0.2}, "evaluation": {"n_bootstrap": 123}}
)
"""What the small model says that it was trained with."""


def small_model(normalization: Normalization) -> DirectionModel:
    """Build a network that predicts in no time, the same each time."""
    torch.manual_seed(0)
    config = ModelConfig(d_model=8, n_heads=1, n_dom_layers=1, n_event_layers=1, dropout=0.0)
    return build_model(config, normalization)


@pytest.fixture(scope="session")
def trained_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model, for events like those of `write_raw_layout`."""
    store = open_store()
    trained = write_raw_layout(tmp_path_factory.mktemp("trained"), seed=5)
    sketches = [sketch_events(chunk, icecube86()) for chunk in read_raw_events(store, trained)]
    model = small_model(fit_normalization(merge_sketches(sketches)))
    facts = {"experiment": SETTINGS.model_dump(mode="json")}
    uri = (tmp_path_factory.mktemp("model") / "saved").as_uri()
    return save_model(store, uri, model, icecube86().to_csv(), facts)
