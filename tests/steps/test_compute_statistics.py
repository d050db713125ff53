"""The drift table of the statistics step: against the data set before, for a retry too."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from iceaggr.config import ExperimentConfig
from iceaggr.detector import icecube86
from iceaggr.errors import RawDataError, ShardError
from iceaggr.events.dom_events import DomEvents, take_range
from iceaggr.events.label_reading import LabelReading
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.shards.encoding import encode_shard, shard_hash
from iceaggr.shards.manifest import ShardManifest, Split, merge_manifests, parse_manifest
from iceaggr.shards.planning import PlannedFile, PlannedObject, ShardPlan
from iceaggr.shards.sketches import split_sketches_to_json
from iceaggr.shards.sketching import sketch_events
from iceaggr.steps.compute_statistics import run_compute_statistics
from iceaggr.steps.context import RunContext
from iceaggr.steps.plan_shards import write_work_units
from iceaggr.storage import open_store
from tests.bad_input.scene import iceaggr
from tests.shards.dom_events_builder import random_dom_events
from tests.shards.shard_manifest_builder import manifest_of

# Labels of another convention: stopped by the statistics step, read as declared, or accepted.

N_FILES = 3


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "raw"
    config = SimulationConfig(n_events=1500, n_events_per_file=500, cascade_share=0.1)
    simulate(open_store(), folder.as_uri(), config)
    return folder


class Run:
    """A run over the simulated events with labels that were changed."""

    def __init__(self, raw: Path, folder: Path) -> None:
        self.raw, self.folder = raw, folder
        self.n_runs = 0

    def relabel(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        path = self.raw / "train_meta.parquet"
        change(pd.read_parquet(path)).to_parquet(path, index=False)

    def shard_and_count(self, **data: object) -> str:
        """Give `iceaggr shard` and `iceaggr stats` in a folder of their own; gives the card."""
        self.n_runs += 1
        config = self.last.with_suffix(".yaml")
        config.write_text(yaml.safe_dump({"data": {"n_events_per_shard": 200, **data}}))
        work = (self.folder / "work").as_uri()
        places = ["--folder", str(self.last), "--raw-uri", self.raw.as_uri(), "--work-uri", work]
        iceaggr("shard", *places, "--config", str(config))
        iceaggr("stats", "--folder", str(self.last))
        return (self.last / "data_card.html").read_text()

    @property
    def last(self) -> Path:
        return self.folder / f"run-{self.n_runs}"

    def shards(self) -> set[str]:
        """Name the contents of the shards of the last run."""
        unit = self.last / "units" / "00000.json"
        return {entry.blake3 for entry in parse_manifest(unit.read_text(), str(unit)).shards}


@pytest.fixture
def run(simulated: Path, tmp_path: Path) -> Run:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("train", "sensor_geometry.csv"):
        (raw / name).symlink_to(simulated / name)
    (raw / "train_meta.parquet").write_bytes((simulated / "train_meta.parquet").read_bytes())
    return Run(raw, tmp_path)


@pytest.mark.parametrize("n_events", [5, 12])
def test_splits_of_no_event_or_one_are_refused_at_planning(run: Run, n_events: int) -> None:
    with pytest.raises(RawDataError, match="too few events for the split") as caught:
        run.shard_and_count(n_events=n_events, split_salt="few")
    assert f"{n_events} events: train " in str(caught.value.found)
    assert "Give 92 events or more" in caught.value.remedy
    assert not (run.folder / "work" / "shards").exists()


def test_few_train_events_are_told(run: Run) -> None:
    assert "too few to learn from" in run.shard_and_count(n_events=100)


def of_the_particle(meta: pd.DataFrame) -> pd.DataFrame:
    azimuth = np.mod(meta["azimuth"] + np.pi, 2 * np.pi)
    return meta.assign(azimuth=azimuth, zenith=np.pi - meta["zenith"])


def test_particle_labels_stop_the_run_until_they_are_declared(run: Run) -> None:
    sound = run.shard_and_count()
    assert "Labels against the line fit" in sound
    assert "Check: " not in sound
    run.relabel(of_the_particle)
    with pytest.raises(RawDataError) as caught:
        run.shard_and_count()
    assert "of 3 raw files" in caught.value.where
    assert "the direction is where the particle travels to" in str(caught.value.found)
    assert "data.label_reading: [particle]" in caught.value.remedy
    card = run.shard_and_count(label_reading=["particle"])
    assert "Read as <code>data.label_reading: [particle]</code>" in card
    manifest = parse_manifest((run.last / "manifest.json").read_text(), "manifest")
    assert manifest.label_reading == ("particle",)


def test_shards_of_one_reading_are_not_taken_for_another(run: Run) -> None:
    run.shard_and_count()
    plain = run.shards()
    with pytest.raises(RawDataError, match=r"data\.label_reading: \[\] and shard again"):
        run.shard_and_count(label_reading=["mirror_z"])
    assert not plain & run.shards()


def test_accepted_labels_are_told_and_their_shards_are_reused(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.relabel(of_the_particle)
    with pytest.raises(RawDataError, match="do not point the way"):
        run.shard_and_count()
    card = run.shard_and_count(accept_label_reading=True)
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert "3 raw files: 3 sharded before" in last_line
    assert "warning: labels were accepted" in last_line
    assert "Check: labels were accepted" in card


@pytest.mark.parametrize("words", [("degrees",), ("azimuth_from_minus_pi",)], ids="".join)
def test_labels_out_of_range_and_reversed_are_told_in_one_round(run: Run, words) -> None:
    reading = LabelReading.of((*words, "particle"))

    def change(meta: pd.DataFrame) -> pd.DataFrame:
        azimuth, zenith = (meta[name].to_numpy(float) for name in ("azimuth", "zenith"))
        return meta.assign(
            **dict(zip(("azimuth", "zenith"), reading.undo(azimuth, zenith), strict=True))
        )

    run.relabel(change)
    with pytest.raises(RawDataError, match="were rejected") as caught:
        run.shard_and_count()
    assert f"set data.label_reading: [{words[0]}, particle]" in caught.value.remedy


def test_one_file_of_other_labels_is_named(run: Run) -> None:
    def change(meta: pd.DataFrame) -> pd.DataFrame:
        return of_the_particle(meta).where(meta["batch_id"] == 2, meta)

    run.relabel(change)
    with pytest.raises(RawDataError) as caught:
        run.shard_and_count()
    assert "train/batch_2.parquet" in caught.value.where
    assert "Write the labels of this file like those of the others" in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "example", "words"),
    [
        (
            lambda m: m.assign(
                azimuth=np.where(m["azimuth"] > np.pi, -1, 0) * 2 * np.pi + m.azimuth
            ),
            "such as azimuth -",
            "azimuth_from_minus_pi",
        ),
        (
            lambda m: m.assign(azimuth=np.rad2deg(m.azimuth), zenith=np.rad2deg(m.zenith)),
            "such as azimuth ",
            "degrees",
        ),
    ],
    ids=["signed", "degrees"],
)
def test_labels_out_of_range_are_told_by_value_and_read_as_declared(
    run: Run, change: Callable[[pd.DataFrame], pd.DataFrame], example: str, words: str
) -> None:
    sound = run.shard_and_count()
    run.relabel(change)
    with pytest.raises(RawDataError) as caught:
        run.shard_and_count()
    assert example in str(caught.value.found)
    assert " rad, zenith " in str(caught.value.found)
    assert "azimuth from 0 to 2 pi = 6.2832 rad" in str(caught.value.expected)
    assert f"set data.label_reading: [{words}]" in caught.value.remedy
    declared = run.shard_and_count(label_reading=[words])
    assert table_of(declared)[:40] == table_of(sound)[:40]


def table_of(card: str) -> str:
    """Cut out the figures of the first reading, the one in use."""
    return (
        card.partition("Labels against the line fit")[2]
        .partition("</table>")[0]
        .partition("</td><td>")[2]
    )


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
    write_work_units(open_store(), context, [plan_of(manifest, context.work_uri)], "file:///raw")
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
    write_work_units(open_store(), context, [plan_of(whole, context.work_uri)], "file:///raw")
    documents = {f"{name}_path": tmp_path / name for name in ("manifest", "normalization")}
    run_compute_statistics(context, units, data_card_path=tmp_path / "card.html", **documents)
    card = (tmp_path / "card.html").read_text()
    assert "Look at these raw files: 1 of 3 is unlike the others." in card
    assert re.search(r"<li>s3://a/&lt;b&gt;1 \(64 events\): charge_pe has mean 1[\d,.]+", card)
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line.endswith("; warning: 1 raw file is unlike the others, see the data card")
