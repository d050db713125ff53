from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest

from iceaggr.errors import ShardError
from iceaggr.events.dom_events import take_range
from iceaggr.shards.encoding import decode_shard, encode_shard, shard_pieces, shard_schema
from tests.shards.dom_events_builder import random_dom_events


@pytest.mark.parametrize("charge_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("n_events", [1, 7, 300])
def test_decode_shard_gives_every_value_of_encode_shard(charge_dtype, labelled, n_events):
    events = random_dom_events(n_events, 1, labelled=labelled, charge_dtype=charge_dtype)
    found = decode_shard(encode_shard(events), "test")
    for field in fields(events):
        left, right = getattr(found, field.name), getattr(events, field.name)
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype, field.name


def test_decode_shard_gives_every_value_of_a_slice():
    events = random_dom_events(50, 1)
    found = decode_shard(encode_shard(take_range(events, 13, 31)), "test")
    np.testing.assert_array_equal(found.auxiliary, take_range(events, 13, 31).auxiliary)
    assert found.event_id.tolist() == list(range(13, 31))


def test_decode_shard_copies_neither_times_nor_charges():
    data = encode_shard(random_dom_events(50, 1))
    whole = np.frombuffer(data, np.uint8)
    events = decode_shard(data, "test")
    assert np.shares_memory(events.time_ns, whole)
    assert np.shares_memory(events.charge_pe, whole)


def test_encode_shard_writes_the_same_bytes_again():
    assert encode_shard(random_dom_events(50, 1)) == encode_shard(random_dom_events(50, 1))


def test_encode_shard_writes_what_any_arrow_reader_opens():
    events = random_dom_events(20, 1)
    table = pa.ipc.open_file(pa.py_buffer(encode_shard(events))).read_all()
    assert table.schema.equals(shard_schema({"charge_pe": pa.float32()}), check_metadata=True)
    table.validate(full=True)
    first = table.to_pylist()[0]
    assert first["event_id"] == 0
    assert [dom["sensor_id"] for dom in first["doms"]] == events.sensor_id[
        : events.event_dom_offsets[1]
    ].tolist()
    assert first["doms"][0]["pulses"][0] == {
        "time_ns": int(events.time_ns[0]),
        "charge_pe": float(events.charge_pe[0]),
        "auxiliary": bool(events.auxiliary[0]),
    }


def test_encode_shard_writes_no_label_as_null():
    data = encode_shard(random_dom_events(5, 1, labelled=False))
    assert pa.ipc.open_file(pa.py_buffer(data)).read_all().column("azimuth").null_count == 5


@pytest.mark.parametrize("damage", [b"", b"not arrow at all", "truncated"])
def test_decode_shard_names_the_shard_when_it_is_damaged(damage):
    data = encode_shard(random_dom_events(20, 1))[:-50] if damage == "truncated" else damage
    with pytest.raises(ShardError, match=r"damaged shard \[some/shard\]"):
        decode_shard(data, "some/shard")


def test_decode_shard_refuses_another_schema():
    sink = pa.BufferOutputStream()
    table = pa.table({"event_id": [1]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ShardError, match="found schema event_id: int64"):
        decode_shard(sink.getvalue(), "some/shard")


def test_decode_shard_refuses_another_format_version():
    data = encode_shard(random_dom_events(1, 1))
    with pa.ipc.open_file(pa.py_buffer(data)) as file:
        table = file.read_all().replace_schema_metadata({b"iceaggr_shard_version": b"99"})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ShardError, match="found format b'99'"):
        decode_shard(sink.getvalue(), "some/shard")


def test_decode_shard_refuses_an_event_without_doms():
    events = random_dom_events(3, 1)
    offsets = events.event_dom_offsets.copy()
    offsets[1] = offsets[2]
    with pytest.raises(ShardError, match="list offsets out of order"):
        decode_shard(encode_shard(replace(events, event_dom_offsets=offsets)), "some/shard")


def test_shard_pieces_do_not_copy_times_and_charges():
    events = random_dom_events(300, 1)
    pieces = shard_pieces(events)
    assert b"".join(pieces) == encode_shard(events)
    for name in ("time_ns", "charge_pe"):
        views = [np.frombuffer(piece, np.uint8) for piece in pieces]
        shared = [np.shares_memory(view, getattr(events, name)) for view in views]
        assert sum(shared) == 1, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"charge_pe": np.nan}, "charge_pe nan to nan"),
        ({"charge_pe": 0}, "charge_pe 0.0 to"),
        ({"charge_pe": np.inf}, "charge_pe .* to inf"),
        ({"time_ns": -1}, "time_ns -1 to"),
        ({"time_ns": 10**9}, "time_ns .* to 1000000000"),
        ({"azimuth": 7.0}, "azimuth .* to 7.0"),
        ({"zenith": -0.5}, "zenith -0.5 to"),
    ],
)
def test_decode_shard_refuses_a_value_that_sharding_never_writes(change, message):
    events = random_dom_events(5, 1)
    [(name, value)] = change.items()
    values = getattr(events, name).copy()
    values[-1] = value
    place = rf"\[here, event_id {events.event_id[-1]}\]"
    with pytest.raises(ShardError, match=f"damaged shard {place}: found {message}"):
        decode_shard(encode_shard(replace(events, **{name: values})), "here")


@pytest.mark.parametrize(
    ("name", "message"),
    [("time_ns", "pulses out of order"), ("sensor_id", "DOMs out of order")],
)
def test_decode_shard_refuses_what_is_not_sorted(name, message):
    events = random_dom_events(5, 1)
    values = getattr(events, name)[::-1].copy()
    with pytest.raises(ShardError, match=message):
        decode_shard(encode_shard(replace(events, **{name: values})), "here")


def test_decode_shard_refuses_an_event_that_occurs_twice():
    events = random_dom_events(5, 1)
    twice = replace(events, event_id=np.array([1, 2, 3, 2, 5]))
    with pytest.raises(ShardError, match="event_id twice"):
        decode_shard(encode_shard(twice), "here")
