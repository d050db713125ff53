"""Damage that keeps the shape of a format, so that a reader is tried beyond its first check.

A fuzzer that only flips bytes seldom gets past a checksum or a parser. These functions read the
sound bytes, break one thing in what they mean, and write them again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

NUMBERS: list[Any] = [0, 1, -1, 2, 255, 5160, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63), 2**64]
NUMBERS += [0.5, -0.5, 1e-46, 1e38, 1e300, 6.2831855, float("nan"), float("inf"), -float("inf")]
WORDS: list[Any] = ["", "x", "0", "1e999", "train", "../..", "ünï cödé ☃", "a b", "s3://", "\0"]
ANYTHING: list[Any] = [*NUMBERS, *WORDS, None, True, False, [], {}, [0], {"a": 1}, [[]]]

Damage = Callable[[bytes, Random], bytes]


def damage_bytes(data: bytes, rng: Random) -> bytes:
    """Flip, cut, double, insert or delete some bytes."""
    data = bytearray(data)
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + rng.choice([1, 2, 4, 8, 64, 1024]))
    kind = rng.randrange(5)
    if kind == 0 and start < len(data):
        data[start] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        data[start:start] = data[start:stop]
    elif kind == 3:
        del data[start:stop]
    else:
        data[start:stop] = bytes(rng.choice([0, 1, 127, 128, 255]) for _ in range(stop - start))
    return bytes(data)


def damage_json(data: bytes, rng: Random) -> bytes:
    """Break one value, key or list of a JSON document."""
    try:
        document = json.loads(data)
    except ValueError:
        return damage_bytes(data, rng)
    return json.dumps(damage_tree(document, rng)).encode()


def damage_yaml(data: bytes, rng: Random) -> bytes:
    """Break one value, key or list of a YAML document."""
    try:
        document = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError):
        return damage_bytes(data, rng)
    return yaml.safe_dump(damage_tree(document, rng), allow_unicode=True).encode()


def damage_tree(document: Any, rng: Random) -> Any:
    """Break one node of nested dictionaries and lists; what is not one is replaced."""
    if not isinstance(document, dict | list) or not document or rng.random() < 0.03:
        return rng.choice(ANYTHING)
    keys: list[Any] = list(document) if isinstance(document, dict) else list(range(len(document)))
    key = rng.choice(keys)
    kind = rng.randrange(12)
    if kind == 0:
        del document[key]
    elif kind == 1 and isinstance(document, dict):
        document[str(rng.choice(WORDS))] = rng.choice(ANYTHING)
    elif kind == 1:
        document.append(document[key])
    elif kind == 2 and isinstance(document, dict):
        document[key] = document[rng.choice(keys)]
    else:
        document[key] = damage_tree(document[key], rng)
    return document


def damage_parquet(data: bytes, rng: Random) -> bytes:
    """Break one thing of a parquet table, or how it is laid out in the file."""
    try:
        table = pq.read_table(io.BytesIO(data))
        damaged = damage_table(table, rng) if rng.random() < 0.9 else table
        sink = io.BytesIO()
        options: dict[str, Any] = {
            "row_group_size": rng.choice([1, 3, 7, 1 << 20]),
            "compression": rng.choice(["snappy", "none", "zstd"]),
            "use_dictionary": rng.random() < 0.5,
            "write_statistics": rng.random() < 0.7,
            "data_page_version": rng.choice(["1.0", "2.0"]),
        }
        pq.write_table(damaged, sink, **options)
        return sink.getvalue()
    except Exception:  # the bytes are no table any more, and Arrow says so in many ways
        return damage_bytes(data, rng)


def damage_arrow(data: bytes, rng: Random) -> bytes:
    """Break one thing of an Arrow IPC file."""
    try:
        with pa.ipc.open_file(pa.py_buffer(data)) as file:
            table = file.read_all()
        table.validate(full=True)  # Arrow ends the process when it works on what is not valid
        damaged = damage_table(table, rng)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, damaged.schema) as writer:
            writer.write_table(damaged, max_chunksize=rng.choice([1, 5, 1 << 20]))
        return bytes(sink.getvalue().to_pybytes())
    except Exception:  # the bytes are no table any more, and Arrow says so in many ways
        return damage_bytes(data, rng)


def damage_table(table: pa.Table, rng: Random) -> pa.Table:
    """Break one cell, column, type or the order of the rows."""
    if not table.num_columns:
        return pa.table({"event_id": [1]})
    name = rng.choice(table.column_names)
    index = table.column_names.index(name)
    kind = rng.randrange(9)
    if kind == 0:
        return table.drop_columns([name])
    if kind == 1:
        return table.rename_columns([str(rng.choice([n, name, "X"])) for n in table.column_names])
    if kind == 2:
        return table.append_column(name, table.column(index))
    if kind == 3:
        types = [pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float64(), pa.string()]
        types += [pa.bool_(), pa.null(), pa.timestamp("ns"), pa.decimal128(20, 2), pa.binary()]
        wanted = rng.choice(types)
        return table.set_column(index, name, table.column(index).cast(wanted, safe=False))
    if kind == 4 and table.num_rows:
        first = rng.randrange(table.num_rows)
        length = rng.choice([0, 1, table.num_rows])
        return pa.concat_tables([table.slice(0, first), table.slice(first + length)])
    if kind == 5 and table.num_rows:
        return pa.concat_tables([table, table.slice(rng.randrange(table.num_rows), 1)])
    if kind == 6 and table.num_rows:
        order = list(range(table.num_rows))
        rng.shuffle(order)
        return table.take(order)
    return _with_other_cell(table, index, rng)


def _with_other_cell(table: pa.Table, index: int, rng: Random) -> pa.Table:
    column = table.column(index).combine_chunks()
    values = column.to_pylist()
    if not values:
        return table
    row = rng.randrange(len(values))
    value = rng.choice([*NUMBERS, None, values[rng.randrange(len(values))]])
    if pa.types.is_list(column.type):
        value = damage_tree(values[row], rng)
    values[row] = value
    try:
        changed = pa.array(values, column.type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        numbers = [v if isinstance(v, int | float) else None for v in values]
        changed = pa.array(np.array(numbers, dtype=np.float64))
    field = table.schema.field(index)
    return table.set_column(index, field.with_type(changed.type), changed)


def damage_csv(data: bytes, rng: Random) -> bytes:
    """Break one cell, line or the header of a CSV file."""
    lines = [line.split(b",") for line in data.split(b"\n")]
    row = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0 and len(lines) > 1:
        del lines[row]
    elif kind == 1:
        lines.insert(row, list(lines[rng.randrange(len(lines))]))
    elif kind == 2:
        lines[row].insert(0, b"7")
    elif kind == 3 and len(lines[row]) > 1:
        del lines[row][rng.randrange(len(lines[row]))]
    else:
        cell = rng.choice([*NUMBERS, *WORDS, '"', "nan", "-inf", "1_0", "0x10", " 3 "])
        lines[row][rng.randrange(len(lines[row]))] = str(cell).encode()
    return b"\n".join(b",".join(cells) for cells in lines)


def pack(parts: list[bytes]) -> bytes:
    """Join several files into one input: their lengths first."""
    return b"".join(f"{len(part):08d}".encode() for part in parts) + b"".join(parts)


def unpack(data: bytes, n_parts: int) -> list[bytes]:
    """Take an input apart again; whatever the bytes are, there are n_parts files."""
    header, rest = data[: 8 * n_parts], data[8 * n_parts :]
    parts = []
    for index in range(n_parts):
        digits = header[8 * index : 8 * index + 8]
        length = int(digits) if digits.isdigit() else len(rest)
        parts.append(rest[:length])
        rest = rest[length:]
    return parts


def damage_part(damages: list[Damage]) -> Damage:
    """Make the damage of an input of several files: one of them is broken, now and then two."""

    def damage(data: bytes, rng: Random) -> bytes:
        parts = unpack(data, len(damages))
        for _ in range(rng.choice([1, 1, 1, 2])):
            index = rng.randrange(len(parts))
            how = damages[index] if rng.random() < 0.9 else damage_bytes
            parts[index] = how(parts[index], rng)
        return pack(parts)

    return damage
