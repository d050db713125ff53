"""The drift table of the statistics step: against the data set before, for a retry too."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from iceaggr.config import ExperimentConfig
from iceaggr.detector import icecube86
from iceaggr.errors import ShardError
from iceaggr.events.dom_events import DomEvents
from iceaggr.events.joining import take_range
from iceaggr.shards.encoding import encode_shard
from iceaggr.shards.format import shard_hash
from iceaggr.shards.manifest import ShardManifest, Split, parse_manifest
from iceaggr.shards.merging import merge_manifests
from iceaggr.shards.planned import PlannedFile, PlannedObject
from iceaggr.shards.planning import ShardPlan
from iceaggr.shards.sketches import split_sketches_to_json
from iceaggr.shards.sketching import sketch_events
from iceaggr.steps.compute_statistics import run_compute_statistics
from iceaggr.steps.context import RunContext
from iceaggr.steps.planned_units import write_work_units
from iceaggr.storage import open_store
from tests.shards.dom_events_builder import random_dom_events
from tests.shards.shard_manifest_builder import manifest_of


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    work_uri = (tmp_path / "work").as_uri()
    return RunContext("run", "x", work_uri, ExperimentConfig(), tracked=False)


def plan_of(manifest: ShardManifest, work_uri: str) -> str:
    """Store a plan of the raw files of a manifest; gives its one work unit."""
    files = [
        PlannedFile(
            uri=source.uri,
            batch_id=index,
            n_bytes=source.n_bytes,
            etag=source.etag,
            n_events=source.n_events_in,
            n_events_used=source.n_events_in,
        )
        for index, source in enumerate(manifest.source_files)
    ]
    plan = ShardPlan(
        raw_uri="s3://a",
        meta=PlannedObject(uri="s3://a/train_meta.parquet", n_bytes=1, etag="etag"),
        geometry_uri="icecube86",
        labelled=True,
        notes=(),
        files=tuple(files),
    )
    data = json.dumps(plan.model_dump()).encode()
    uri = f"{work_uri}/plans/{hashlib.sha256(data).hexdigest()[:16]}.json"
    open_store().write_bytes(uri, data)
    return f"{uri}#0:{len(files)}"


def parts_of(events: DomEvents) -> dict[Split, DomEvents]:
    """Give train events the two validation and two test events that a data set must have."""
    held_out = random_dom_events(4, seed=0, first_event_id=10_000)
    return {
        "train": events,
        "validation": take_range(held_out, 0, 2),
        "test": take_range(held_out, 2, 4),
    }


def with_shards(
    manifest: ShardManifest, parts: dict[Split, DomEvents], folder: Path
) -> ShardManifest:
    """Write the shards of a manifest that has an account only."""
    entries = []
    for entry in manifest.shards:
        data = encode_shard(parts[entry.split])
        uri = (folder / f"{shard_hash(data)}.arrow").as_uri()
        open_store().write_bytes(uri, data)
        update = {"uri": uri, "n_bytes": len(data), "blake3": shard_hash(data)}
        entries.append(entry.model_copy(update=update))
    return manifest.model_copy(update={"shards": tuple(entries)})


def data_card(context: RunContext, folder: Path, seed: int, place: str = "a") -> str:
    """Run the step on a data set of its own, and give its data card."""
    parts = parts_of(random_dom_events(200, seed=seed))
    sketches = {split: sketch_events(events, icecube86()) for split, events in parts.items()}
    sketch_uri = (folder / f"sketch-{seed}.json").as_uri()
    open_store().write_bytes(sketch_uri, split_sketches_to_json(sketches).encode())
    unit, card = folder / "unit.json", folder / "card.html"
    manifest = manifest_of(sketches, uri=f"s3://{place}/b.parquet", sketch_uri=sketch_uri)
    manifest = with_shards(manifest, parts, folder)
    unit.write_text(manifest.to_json())
    write_work_units(open_store(), context, [plan_of(manifest, context.work_uri)])
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


def test_run_that_was_not_planned_is_refused(context: RunContext, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no plan of this run \[.*runs/run/work_units\.json\]"):
        run_compute_statistics(
            context,
            [],
            manifest_path=tmp_path / "manifest.json",
            normalization_path=tmp_path / "normalization.json",
            data_card_path=tmp_path / "card.html",
        )


def test_raw_file_unlike_the_others_is_told_on_the_card_and_in_the_last_line(
    context: RunContext, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = []
    for number in range(3):
        events = random_dom_events(60, seed=number)
        if number == 1:
            events = replace(events, charge_pe=1000 * events.charge_pe)
        parts = parts_of(events)
        sketches = {split: sketch_events(of, icecube86()) for split, of in parts.items()}
        sketch_uri = (tmp_path / f"sketch-{number}.json").as_uri()
        open_store().write_bytes(sketch_uri, split_sketches_to_json(sketches).encode())
        manifest = manifest_of(sketches, uri=f"s3://a/<b>{number}", sketch_uri=sketch_uri)
        manifest = with_shards(manifest, parts, tmp_path)
        source = manifest.source_files[0].model_copy(update={"content_key": str(number)})
        units.append(tmp_path / f"unit-{number}.json")
        units[-1].write_text(manifest.model_copy(update={"source_files": (source,)}).to_json())
    whole = merge_manifests(parse_manifest(unit.read_text(), str(unit)) for unit in units)
    write_work_units(open_store(), context, [plan_of(whole, context.work_uri)])
    documents = {f"{name}_path": tmp_path / name for name in ("manifest", "normalization")}
    run_compute_statistics(context, units, data_card_path=tmp_path / "card.html", **documents)
    card = (tmp_path / "card.html").read_text()
    assert "Look at these raw files: 1 of 3 is unlike the others." in card
    assert re.search(r"<li>s3://a/&lt;b&gt;1 \(64 events\): charge_pe has mean 1[\d,.]+", card)
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line.endswith("; warning: 1 raw file is unlike the others, see the data card")
