"""Raw events from outside: parquet of pulses, meta, truth, geometry, and all of them together."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pandas as pd

from iceaggr.config import DataConfig
from iceaggr.detector import Detector, parse_geometry
from iceaggr.events.cleaning import Account, clean
from iceaggr.events.grouping import group_by_dom
from iceaggr.events.meta import EventTable, count_events, read_event_tables, refuse_repeated_ids
from iceaggr.events.pulses import stream_pulses
from iceaggr.events.truth import read_truth
from iceaggr.shards.manifest import merge_manifests, parse_manifest
from iceaggr.shards.planning import plan_shards
from iceaggr.shards.reading import read_shard
from iceaggr.shards.writing import shard_unit
from tests.events.raw_tables import meta_frame, pulse_frame
from tests.fuzz.contracts import check_account, check_detector, check_events
from tests.fuzz.damage import damage_csv, damage_parquet, damage_part, pack, unpack
from tests.fuzz.memory_store import MemoryStore
from tests.fuzz.target import Target

COUNTS = [3, 1, 0, 5, 2]
N_SENSORS = 12
RAW = "file:///raw"
GEOMETRY = "sensor_id,x,y,z,string,efficiency\n" + "".join(
    f"{i},{17.5 * i},{-3 * i},{500 - 17 * i},{i // 4},{1.35 if i == 5 else 1}\n"
    for i in range(N_SENSORS)
)


def parquet_bytes(frame: pd.DataFrame, **options: object) -> bytes:
    sink = io.BytesIO()
    frame.to_parquet(sink, index=False, **options)
    return sink.getvalue()


def sound_pulses() -> pd.DataFrame:
    """Pulses of five events, one without any, on the sensors of a small detector."""
    return pulse_frame(COUNTS, sensor_id=np.arange(sum(COUNTS), dtype=np.int16) % N_SENSORS)


@cache
def small_detector() -> Detector:
    return parse_geometry(GEOMETRY, "small detector")


def _event_table() -> EventTable:
    store = MemoryStore({"file:///m": parquet_bytes(meta_frame(COUNTS))})
    return read_event_tables(store, "file:///m", [1], labelled=True)[1]


def raw_pulses() -> Target:
    table, detector = _event_table(), small_detector()

    def read(data: bytes) -> None:
        account = Account()
        for chunk in stream_pulses(MemoryStore({"file:///p": data}), "file:///p", 11, table):
            cleaned = clean(chunk, table, detector, True, account)
            if len(cleaned.events):
                check_events(group_by_dom(cleaned, table, detector))
        check_account(account, len(COUNTS), sum(COUNTS))

    frame = sound_pulses()
    wide = frame.astype({"sensor_id": np.int64, "charge": np.float64, "time": np.float64})
    flags = frame.astype({"auxiliary": np.int8, "event_id": np.uint64})
    seeds = (parquet_bytes(frame), parquet_bytes(wide), parquet_bytes(flags, row_group_size=3))
    return Target("raw_pulses", seeds, damage_parquet, read)


def meta() -> Target:
    def read(data: bytes) -> None:
        store = MemoryStore({"file:///m": data})
        counts = count_events(store, "file:///m")
        tables = read_event_tables(store, "file:///m", sorted(counts), labelled=True)
        refuse_repeated_ids(store, "file:///m", sorted(counts))
        if {batch_id: table.n_events for batch_id, table in tables.items()} != counts:
            return  # statistics that lie about the rows: sharding compares both and refuses
        ids = np.concatenate([table.event_id for table in tables.values()])
        assert len(np.unique(ids)) == len(ids)
        for table in tables.values():
            assert (table.n_pulses >= 0).all()
            assert len(np.unique(table.event_id)) == table.n_events
            assert len(table.azimuth) == len(table.zenith) == table.n_events

    two = pd.concat([meta_frame(COUNTS), meta_frame([2, 2], batch_id=2, event_id=[7, 8])])
    seeds = (parquet_bytes(meta_frame(COUNTS)), parquet_bytes(two, row_group_size=3))
    return Target("meta", seeds, damage_parquet, read)


def geometry() -> Target:
    def read(data: bytes) -> None:
        detector = parse_geometry(data, "file:///sensor_geometry.csv")
        check_detector(detector)
        again = parse_geometry(detector.to_csv(), "written again")
        for name in ("sensor_id", "xyz_m", "string_id", "efficiency", "in_use"):
            np.testing.assert_array_equal(getattr(again, name), getattr(detector, name))

    bare = "sensor_id,x,y,z\n3,1,2,3\n1,40,5,6\n"
    partly = "sensor_id,x,y,z,efficiency\n0,1,2,3,\n1,40,5,6,1.35\n"
    seeds = (GEOMETRY.encode(), bare.encode(), partly.encode())
    return Target("geometry", seeds, damage_csv, read)


def truth() -> Target:
    def read(data: bytes) -> None:
        found = read_truth(MemoryStore({f"{RAW}/truth/batch_1.parquet": data}), RAW)
        assert found is not None
        assert pd.api.types.is_integer_dtype(found["event_id"])
        assert not found["event_id"].isna().any()
        assert found["event_id"].is_unique
        angle = found.get("neutrino_muon_angle", pd.Series(dtype=float)).dropna()
        assert pd.api.types.is_numeric_dtype(angle)
        assert angle.between(0, 3.15).all()
        if "energy_gev" in found:
            assert (found["energy_gev"] > 0).all()
            assert np.isfinite(found["energy_gev"].to_numpy(np.float64)).all()
        assert "topology" not in found or found["topology"].isin(["track", "cascade"]).all()
        assert "contained" not in found or found["contained"].isin([0, 1]).all()

    frame = pd.DataFrame(
        {
            "event_id": [100, 101, 102],
            "energy_gev": [1.0, 2.5, 1e6],
            "topology": ["track", "cascade", "track"],
            "contained": [True, False, True],
            "neutrino_muon_angle": [0.1, np.nan, 0.2],
        }
    )
    return Target("truth", (parquet_bytes(frame),), damage_parquet, read)


def sharding() -> Target:
    """The whole way from three raw files to shards."""
    names = ("train_meta.parquet", "train/batch_1.parquet", "sensor_geometry.csv")
    config = DataConfig(n_events_per_shard=2)

    def read(data: bytes) -> None:
        files = zip(names, unpack(data, len(names)), strict=True)
        store = MemoryStore({f"{RAW}/{name}": part for name, part in files})
        units = plan_shards(store, RAW, config, "file:///out")
        manifest = merge_manifests(shard_unit(store, u, "file:///out", config) for u in units)
        assert parse_manifest(manifest.to_json(), "written") == manifest
        for entry in manifest.shards:
            check_events(read_shard(store, entry))
        [source] = manifest.source_files
        assert source.n_pulses_in == source.n_pulses_kept + source.n_pulses_rejected
        assert sum(entry.n_pulses for entry in manifest.shards) == source.n_pulses_kept
        assert sum(entry.n_events for entry in manifest.shards) == source.n_events_kept

    parts = [parquet_bytes(meta_frame(COUNTS)), parquet_bytes(sound_pulses()), GEOMETRY.encode()]
    damage = damage_part([damage_parquet, damage_parquet, damage_csv])
    return Target("sharding", (pack(parts),), damage, read)
