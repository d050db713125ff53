"""The drift table of the statistics step: against the data set before, for a retry too."""

from __future__ import annotations

from pathlib import Path

import pytest

from iceaggr.config import ExperimentConfig
from iceaggr.detector import icecube86
from iceaggr.shards.sketches import split_sketches_to_json
from iceaggr.shards.sketching import sketch_events
from iceaggr.steps.compute_statistics import run_compute_statistics
from iceaggr.steps.context import RunContext
from iceaggr.storage import open_store
from tests.shards.dom_events_builder import random_dom_events
from tests.shards.shard_manifest_builder import manifest_of


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    work_uri = (tmp_path / "work").as_uri()
    return RunContext("run", "x", work_uri, ExperimentConfig(), tracked=False)


def data_card(context: RunContext, folder: Path, seed: int, place: str = "a") -> str:
    """Run the step on a data set of its own, and give its data card."""
    sketches = {"train": sketch_events(random_dom_events(200, seed=seed), icecube86())}
    sketch_uri = (folder / f"sketch-{seed}.json").as_uri()
    open_store().write_bytes(sketch_uri, split_sketches_to_json(sketches).encode())
    unit, card = folder / "unit.json", folder / "card.html"
    manifest = manifest_of(sketches, uri=f"s3://{place}/b.parquet", sketch_uri=sketch_uri)
    unit.write_text(manifest.to_json())
    run_compute_statistics(
        context,
        [unit],
        manifest_path=folder / "manifest.json",
        normalization_path=folder / "normalization.json",
        data_card_path=card,
    )
    return card.read_text()


def test_retry_compares_with_the_data_set_before_while_that_exists(
    context: RunContext, tmp_path: Path
) -> None:
    assert "Drift" not in data_card(context, tmp_path, seed=1)
    first = data_card(context, tmp_path, seed=2)
    drift = first[first.index("Drift") :].partition("</table>")[0]
    # the same shards from raw files of another place: another manifest of the same digest
    assert drift in data_card(context, tmp_path, seed=2, place="elsewhere")
    (tmp_path / "sketch-1.json").unlink()
    assert "Drift" not in data_card(context, tmp_path, seed=2)
