"""Parquet files as tables: flat ones, and those that hold a whole event in each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from iceaggr.errors import RawDataError
from iceaggr.events.conversion.tables import ROWS_PER_READ, Columns, SourceTable, reading_source
from iceaggr.events.sources import ROW

_EVENTS_PER_READ = 1 << 10
_DAMAGE = (pa.ArrowException, OSError, ValueError)

_Path = tuple[str, ...]
"""The top-level column and the field within it that a column of ours is read from."""


@dataclass(frozen=True)
class _ParquetTable:
    """The columns of one file that have one shape.

    scalars: one value per row of the file.  lists: one list per row, all of one length.
    """

    path: Path
    name: str
    scalars: dict[str, _Path]
    lists: dict[str, _Path]
    n_file_rows: int
    is_nested: bool

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.scalars, *self.lists, *([ROW] if self.is_nested else []))

    @property
    def n_rows(self) -> int:
        return self.n_file_rows

    @property
    def n_events(self) -> int:
        return self.n_file_rows if self.is_nested else 0

    def read(self, columns: Sequence[str], first_row: int) -> Iterator[Columns]:
        wanted = {name: (self.scalars | self.lists)[name] for name in columns if name != ROW}
        if self.lists and not any(name in self.lists for name in wanted):
            wanted |= dict([next(iter(self.lists.items()))])  # its lengths say how many there are
        top = list(dict.fromkeys(path[0] for path in wanted.values()))
        n_rows = _EVENTS_PER_READ if self.lists else ROWS_PER_READ
        with reading_source(self.path, *_DAMAGE), pq.ParquetFile(self.path) as file:
            for rows in file.iter_batches(n_rows, columns=top or None):
                arrays = {name: _field(rows.column(p[0]), p[1:]) for name, p in wanted.items()}
                arrays[ROW] = pa.array(range(first_row, first_row + rows.num_rows))
                first_row += rows.num_rows
                whole = self._flat(arrays) if self.lists else arrays
                yield {name: whole[name] for name in columns}

    def _flat(self, arrays: Columns) -> Columns:
        """Give every element of the lists a row of its own."""
        name, lengths = next((n, a) for n, a in arrays.items() if n in self.lists)
        parents = pc.list_parent_indices(lengths)
        flat = {}
        for other, array in arrays.items():
            if other not in self.lists:
                flat[other] = array.take(parents)
                continue
            flat[other] = pc.list_flatten(array)
            if not pc.list_parent_indices(array).equals(parents):
                raise RawDataError(
                    "lists of one event differ in length",
                    where=f"{self.path} {self.name}",
                    found=f"{name} and {other}",
                    expected="one value per pulse in each",
                    remedy="Mend the file, or name other columns with --column FIELD=COLUMN",
                )
        return flat


def _field(array: Any, path: _Path) -> Any:
    """Take a field of a struct, or of the structs in lists."""
    for name in path:
        if pa.types.is_struct(array.type):
            array = pc.struct_field(array, name)
        else:
            inner = pc.struct_field(array.flatten(), name)
            lengths = pc.fill_null(pc.list_value_length(array), 0).to_pylist()
            offsets = [0]
            for length in lengths:
                offsets.append(offsets[-1] + length)
            array = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), inner)
    return array


def parquet_tables(path: Path, name: str) -> list[SourceTable]:
    """Find the tables of a Parquet file.

    name: of the table that its flat columns make. Lists make a table of pulses beside it, a struct
    one of the struct's own name (as Prometheus writes them: `photons` and `mc_truth`).
    Raises: RawDataError if it cannot be read.
    """
    with reading_source(path, *_DAMAGE), pq.ParquetFile(path) as file:
        schema, n_rows = file.schema_arrow, file.metadata.num_rows
    flat: dict[str, _Path] = {f.name: (f.name,) for f in schema if not pa.types.is_nested(f.type)}
    groups: dict[str, tuple[dict[str, _Path], dict[str, _Path]]] = {}
    for top in schema:
        if pa.types.is_struct(top.type):
            scalars = [f.name for f in top.type if not pa.types.is_nested(f.type)]
            lists = [f.name for f in top.type if _is_list(f.type)]
            groups[top.name] = (flat | _paths(top.name, scalars), _paths(top.name, lists))
        elif _is_list(top.type) and pa.types.is_struct(top.type.value_type):
            lists = [f.name for f in top.type.value_type]
            groups[top.name] = (flat, _paths(top.name, lists))
        elif _is_list(top.type):
            groups.setdefault(f"{name} (lists)", (flat, {}))[1][top.name] = (top.name,)
    nested = bool(groups)
    tables: list[SourceTable] = [
        _ParquetTable(path, group, scalars, lists, n_rows, is_nested=True)
        for group, (scalars, lists) in groups.items()
    ]
    if flat:
        tables.insert(0, _ParquetTable(path, name, flat, {}, n_rows, is_nested=nested))
    return tables


def _paths(top: str, names: list[str]) -> dict[str, _Path]:
    return {name: (top, name) for name in names}


def _is_list(kind: Any) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and not (
        pa.types.is_list(kind.value_type) or pa.types.is_large_list(kind.value_type)
    )
