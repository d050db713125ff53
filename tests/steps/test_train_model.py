import pytest

from iceaggr.errors import TrainingError
from iceaggr.paths import RunPaths
from iceaggr.steps.close_run import delete_temporary
from iceaggr.steps.context import RunContext
from iceaggr.steps.train_model import run_train_model
from iceaggr.steps.training_choices import TrainingChoices
from iceaggr.storage.file_store import FileStore
from tests.training.small_runs import small_config, small_inputs


@pytest.fixture
def attempt(tmp_path):
    """Train one run, as each attempt does; returns what KFP is shown."""
    config = small_config(training={"n_epochs": 1})
    inputs = small_inputs(tmp_path / "data", config)
    manifest, normalization = tmp_path / "manifest.json", tmp_path / "normalization.json"
    manifest.write_text(inputs.manifest.to_json())
    normalization.write_text(inputs.normalization.to_json())
    context = RunContext("run-1", "x", (tmp_path / "work").as_uri(), config, tracked=False)

    def train():
        return run_train_model(
            context,
            manifest,
            normalization,
            model_path=tmp_path / "model.json",
            choices=TrainingChoices(),
        )

    return train


def test_run_train_model_stops_when_the_checkpoints_of_its_run_are_gone(attempt, tmp_path):
    first = attempt()
    folder = tmp_path / "work" / "runs" / "run-1" / "training" / "checkpoints"
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(TrainingError, match=r"no checkpoint to resume .*has_checkpoints\.json"):
        attempt()
    (tmp_path / "elsewhere").rename(folder)
    assert attempt().figures == first.figures


def test_run_train_model_begins_anew_after_the_pipeline_cleaned_up(attempt, tmp_path):
    first = attempt()
    run = tmp_path / "work" / "runs" / "run-1"
    assert delete_temporary(FileStore(), RunPaths(run.as_uri()).training) > 0
    again = attempt()
    assert again.figures["minutes"] != first.figures["minutes"]
    assert again.figures["n_steps"] == first.figures["n_steps"]
    assert (run / "training" / "checkpoints" / "latest.json").exists()
