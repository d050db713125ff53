"""Models, checkpoints and positions that are loaded again, and pulses that a model is served."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from iceaggr.batches import EventLoader, iter_batches
from iceaggr.config import parse_config
from iceaggr.interfaces import NullTracker
from iceaggr.models import build_model
from iceaggr.models.bundle import DOCUMENT, GEOMETRY, WEIGHTS, load_model, save_model
from iceaggr.normalization_document import Normalization
from iceaggr.training import TrainingInputs
from iceaggr.training.device import choose_device, joined_processes
from iceaggr.training.keeper import RunState
from iceaggr.training.run import build_parts
from tests.fuzz.contracts import check_batch, check_detector
from tests.fuzz.damage import (
    damage_arrow,
    damage_bytes,
    damage_csv,
    damage_json,
    damage_part,
    pack,
    unpack,
)
from tests.fuzz.memory_store import MemoryStore
from tests.fuzz.raw_targets import GEOMETRY as GEOMETRY_CSV
from tests.fuzz.raw_targets import small_detector, sound_pulses
from tests.fuzz.shard_targets import small_events
from tests.fuzz.target import Target
from tests.models.sealing import seal
from tests.training.small_runs import manifest_of, write_shard

MODEL_URI = "file:///model"
FOLDER_URI = "file:///run"
SETTINGS: dict[str, Any] = {
    "batches": {"n_events": 2, "n_workers": 0},
    "model": {"d_model": 8, "n_heads": 1, "n_dom_layers": 1, "n_event_layers": 1, "dropout": 0},
    "training": {"device": "cpu"},
}


def _saved_model() -> MemoryStore:
    torch.manual_seed(0)
    store, config = MemoryStore(), parse_config(SETTINGS)
    model = build_model(config.model, Normalization.seed())
    facts = {"experiment": config.model_dump(mode="json")}
    save_model(store, MODEL_URI, model, GEOMETRY_CSV, facts)
    return store


def damage_tensors(data: bytes, rng: Any) -> bytes:
    """Break the JSON header of a safetensors file, or one number of its data."""
    n_header = int.from_bytes(data[:8], "little")
    if not 8 < n_header < len(data) or rng.random() < 0.1:
        return damage_bytes(data, rng)
    header, numbers = data[8 : 8 + n_header], bytearray(data[8 + n_header :])
    if rng.random() < 0.5 or len(numbers) < 8:
        header = damage_json(header, rng)
    else:
        start = rng.randrange(len(numbers) // 4) * 4
        strange = rng.choice([np.nan, np.inf, -np.inf, 1e38, 0.0])
        numbers[start : start + 4] = np.float32(strange).tobytes()
    return len(header).to_bytes(8, "little") + header + bytes(numbers)


def bundle() -> Target:
    names = (DOCUMENT, WEIGHTS, GEOMETRY)
    saved, events = _saved_model(), small_events()

    def read(data: bytes) -> None:
        parts = dict(zip(names, unpack(data, len(names)), strict=True))
        _seal(parts)
        store = MemoryStore({f"{MODEL_URI}/{name}": part for name, part in parts.items()})
        loaded = load_model(store, MODEL_URI)
        check_detector(loaded.detector)
        assert not loaded.model.training
        assert all(value.isfinite().all() for value in loaded.model.state_dict().values())
        if loaded.detector.n_sensors == small_detector().n_sensors:
            batches = iter_batches(iter([events]), loaded.detector, parse_config({}).batches)
            with torch.no_grad():
                assert len(loaded.model(next(batches)).vector) == events.n_events

    parts = [saved.read_bytes(f"{MODEL_URI}/{name}") for name in names]
    damage = damage_part([damage_json, damage_tensors, damage_csv])
    return Target("bundle", (pack(parts),), damage, read)


def _seal(parts: dict[str, bytes]) -> None:
    """Write the right hashes into a damaged model, or no reader would look any further."""
    try:
        document = json.loads(parts[DOCUMENT])
        for name in document["sha256"]:
            document["sha256"][name] = hashlib.sha256(parts[name]).hexdigest()
        parts[DOCUMENT] = json.dumps(seal(document)).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return


def _inputs(store: MemoryStore) -> TrainingInputs:
    shards = [write_shard(store, FOLDER_URI, split, small_events()) for split in _SPLITS]
    return TrainingInputs(
        config=parse_config(SETTINGS),
        store=store,
        manifest=manifest_of(shards),
        detector=small_detector(),
        geometry_csv=GEOMETRY_CSV,
        normalization=Normalization.seed(),
        tracker=NullTracker(),
        output_uri=FOLDER_URI,
    )


_SPLITS = ("train", "validation")
_TENSORS = ("model.safetensors", "optimizer.safetensors")


def checkpoint() -> Target:
    inputs = _inputs(MemoryStore())
    store: MemoryStore = inputs.store  # type: ignore[assignment]
    group = joined_processes(use_gpu=False, launched=False).__enter__()
    parts = build_parts(inputs, group, choose_device(inputs.config.training, 0))
    folder = parts.keeper.folder.uri
    parts.keeper.save(RunState())
    state_uri = next(uri for uri in store.objects if uri.endswith("/state.json"))
    step = state_uri.rsplit("/", 1)[0]
    uris = (f"{folder}/latest.json", state_uri, *(f"{step}/{name}" for name in _TENSORS))

    def read(data: bytes) -> None:
        files = dict(zip(uris, unpack(data, len(uris)), strict=True))
        _seal_checkpoint(files, uris)
        store.objects |= files
        state = parts.keeper.restore()
        assert state.step >= 0
        assert 0 <= state.progress <= 1
        assert all(v.isfinite().all() for v in parts.step.model.state_dict().values())
        _use(state, inputs)

    seed = pack([store.read_bytes(uri) for uri in uris])
    damage = damage_part([damage_json, damage_json, damage_tensors, damage_tensors])
    return Target("checkpoint", (seed,), damage, read)


def _use(state: RunState, inputs: TrainingInputs) -> None:
    """Go on where a restored state says, as the loop does."""
    loader = EventLoader(
        inputs.store, inputs.manifest, "train", inputs.detector, inputs.config.batches
    )
    for batch in loader.epoch(state.epoch, state.loader_position):
        check_batch(batch)


def _seal_checkpoint(files: dict[str, bytes], uris: tuple[str, ...]) -> None:
    latest, state, *tensors = uris
    try:
        document = json.loads(files[state])
        for uri in tensors:
            name = uri.rsplit("/", 1)[1]
            if name in document["files"]:
                document["files"][name] = hashlib.sha256(files[uri]).hexdigest()
        files[state] = json.dumps(document).encode()
        pointer = json.loads(files[latest])
        pointer["state_sha256"] = hashlib.sha256(files[state]).hexdigest()
        files[latest] = json.dumps(pointer).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        return


def loader_state() -> Target:
    inputs = _inputs(MemoryStore())

    def read(data: bytes) -> None:
        try:
            state = RunState.from_document(json.loads(data))
        except (ValueError, RecursionError):
            return  # the reader of checkpoints, which has a target of its own, words these
        _use(state, inputs)

    state = RunState(epoch=1, loader_position={"epoch": 1, "n_events_done": 2})
    seeds = (json.dumps(state.to_document()), json.dumps(RunState().to_document()))
    return Target("loader_state", tuple(s.encode() for s in seeds), damage_json, read)


def served_pulses() -> Target:
    """The registered model behind MLflow's front door: pulses as a client sends them."""
    from iceaggr.tracking.pyfunc_model import RawPulseModel

    model = RawPulseModel()
    loaded = load_model(_saved_model(), MODEL_URI)
    model._model, model._detector = loaded.model, loaded.detector
    model._batching = parse_config(SETTINGS).batches

    def read(data: bytes) -> None:
        try:
            with pa.ipc.open_file(pa.py_buffer(data)) as file:
                table = file.read_all()
                table.validate(
                    full=True
                )  # Arrow ends the process when it works on what is not valid
                frame = table.to_pandas()
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError):
            return  # a client that cannot make a table sends none
        answer = model.predict(None, frame)
        assert answer["event_id"].tolist() == pd.unique(frame["event_id"]).tolist()
        numbers = answer[["azimuth", "zenith", "kappa"]].to_numpy(np.float64)
        answered = ~np.isnan(numbers).any(axis=1)
        assert np.isfinite(numbers[answered]).all()
        assert np.isnan(numbers[~answered]).all()

    table = pa.Table.from_pandas(sound_pulses(), preserve_index=False)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return Target("served_pulses", (sink.getvalue().to_pybytes(),), damage_arrow, read)
