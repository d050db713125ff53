"""The files of a source as tables: which belong to it, and HDF5 and Parquet in their layouts.

HDF5 comes as plain datasets, as compound ones (IceTray, h5py), and as those of pandas.

pandas notes the names of its columns as pickles. They are looked at opcode by opcode and never run,
so that a file from elsewhere cannot do anything.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from iceaggr.errors import RawDataError
from iceaggr.events.conversion.tables import (
    ROWS_PER_READ,
    Columns,
    JoinedTable,
    SourceTable,
    reading_source,
    sqlite_tables,
    unreadable,
)
from iceaggr.events.schema import ParquetReader
from iceaggr.events.sources import ROW

SUFFIXES = {
    "SQLite": (".db", ".sqlite", ".sqlite3", ".db3"),
    "Parquet": (".parquet", ".pq"),
    "HDF5": (".h5", ".hdf5", ".hdf", ".he5"),
}
_SKIPPED = (".", "_", "~")
"""A folder or file whose name begins so is a copy, a checkpoint or an unfinished rest."""
_NUMBERED = re.compile(r"(.*?)[._-]*\d.*")
_NAMELESS = ("", "part", "batch", "chunk", "file", "data")


_HDF5_DAMAGE = (OSError, RuntimeError, KeyError, ValueError)
_TEXT_OPCODES = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_NONE = b"N."
"""A pickle of None, which pandas writes for an index without a name."""

_Take = Callable[[Any, slice], Any]
"""Reads some rows of a column from the open file: (n,) array."""


@dataclass(frozen=True)
class _Hdf5Table:
    path: Path
    name: str
    takes: dict[str, _Take]
    n_rows: int
    n_events: int = 0

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.takes)

    def read(self, columns: Sequence[str], first_row: int) -> Iterator[Columns]:
        with reading_source(self.path, *_HDF5_DAMAGE), _open(self.path) as file:
            for start in range(0, self.n_rows, ROWS_PER_READ):
                rows = slice(start, min(start + ROWS_PER_READ, self.n_rows))
                yield {name: self._array(file, name, rows) for name in columns}

    def _array(self, file: Any, name: str, rows: slice) -> Any:
        try:
            values = np.ascontiguousarray(self.takes[name](file, rows))
        except OSError as error:
            if "plugin" not in str(error) and "filter" not in str(error):
                raise
            raise RawDataError(
                "HDF5 file is compressed by a filter that is not installed",
                where=f"{self.path} {self.name}",
                found=" ".join(str(error).split())[:200],
                expected="no compression, gzip (zlib), lzf or szip",
                remedy="Write it anew: ptrepack --complib zlib --complevel 5 OLD.h5 NEW.h5",
            ) from None
        return pa.array(values.astype(values.dtype.newbyteorder("=")))


def _open(path: Path) -> Any:
    import h5py

    return h5py.File(path, "r")


def hdf5_tables(path: Path) -> list[SourceTable]:
    """Find the tables of an HDF5 file. Raises: RawDataError if it cannot be read."""
    with reading_source(path, *_HDF5_DAMAGE), _open(path) as file:
        return list(_tables_in(path, file, ""))


def _tables_in(path: Path, group: Any, name: str) -> Iterator[SourceTable]:
    """Look at a group and those below it; `name` is the group's, '' for the file itself."""
    import h5py

    kind = _text(group.attrs.get("pandas_type"))
    if kind == "frame_table":
        yield _compound(path, group["table"], name, _index_name(group.attrs.get("info")))
        return
    if kind == "frame":
        yield _fixed(path, group, name)
        return
    plain: dict[str, Any] = {}
    for key in group:
        if key.startswith("_i_") or key == "__I3Index__":  # indices of PyTables and of IceTray
            continue
        child, child_name = group[key], f"{name}/{key}".lstrip("/")
        if isinstance(child, h5py.Group):
            yield from _tables_in(path, child, child_name)
        elif child.dtype.names and child.ndim == 1:
            yield _compound(path, child, child_name, "")
        elif child.ndim == 1 and child.dtype.kind in "iufb":
            plain[key] = child
    for n_rows in sorted({len(child) for child in plain.values()}):
        takes = {k: _plain(c.name) for k, c in plain.items() if len(c) == n_rows}
        yield _Hdf5Table(path, name or path.stem, takes, n_rows)


def _plain(place: str) -> _Take:
    return lambda file, rows: file[place][rows]


def _compound(path: Path, dataset: Any, name: str, index_name: str) -> SourceTable:
    """Take a dataset of records; pandas puts columns of one type together into a block."""
    place = dataset.name
    takes: dict[str, _Take] = {}
    for field, (kind, *_) in dataset.dtype.fields.items():
        noted = _texts(dataset.attrs.get(f"{field}_kind"))
        n_values = int(np.prod(kind.shape)) if kind.shape else 1
        if kind.base.kind not in "iufb":
            continue
        if kind.shape and len(noted) == n_values:
            takes |= {column: _in_block(place, field, k) for k, column in enumerate(noted)}
        elif not kind.shape:
            own = index_name if field == "index" and index_name else field
            takes[own] = _in_record(place, field)
    return _Hdf5Table(path, name, takes, len(dataset))


def _in_record(place: str, field: str) -> _Take:
    return lambda file, rows: file[place].fields(field)[rows]


def _in_block(place: str, field: str, k: int) -> _Take:
    def take(file: Any, rows: slice) -> Any:
        values = file[place].fields(field)[rows]
        return values.reshape(len(values), -1)[:, k]

    return take


def _fixed(path: Path, group: Any, name: str) -> SourceTable:
    """Take a table that pandas wrote as one array for each type of column."""
    takes: dict[str, _Take] = {}
    index = group.get("axis1")
    noted = _text(index.attrs.get("name")) if index is not None else ""
    if noted and index is not None and index.dtype.kind in "iuf":
        takes[noted] = _plain(index.name)
    for number in range(int(group.attrs.get("nblocks", 0))):
        values = group[f"block{number}_values"]
        if values.ndim == 2 and values.dtype.kind in "iufb":
            for k, column in enumerate(group[f"block{number}_items"][:]):
                takes[_text(column)] = _column_of(values.name, k)
    return _Hdf5Table(path, name, takes, len(index) if index is not None else 0)


def _column_of(place: str, k: int) -> _Take:
    return lambda file, rows: file[place][rows, k]


def _text(noted: Any) -> str:
    if noted is None or not isinstance(noted, bytes | str) or noted == _NONE:
        return ""
    return noted.decode() if isinstance(noted, bytes) else noted


def _texts(noted: Any) -> list[str]:
    """List the strings in a pickle without running it."""
    if not isinstance(noted, bytes):
        return []
    try:
        return [str(a) for op, a, _ in pickletools.genops(noted) if op.name in _TEXT_OPCODES]
    except ValueError:
        return []


def _index_name(info: Any) -> str:
    texts = _texts(info)
    at = texts.index("index_name") + 1 if "index_name" in texts else len(texts)
    return texts[at] if at < len(texts) else ""


# Parquet files as tables: flat ones, and those that hold a whole event in each row.

_EVENTS_PER_READ = 1 << 10
_PARQUET_DAMAGE = (pa.ArrowException, OSError, ValueError)

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
        with reading_source(self.path, *_PARQUET_DAMAGE), pq.ParquetFile(self.path) as file:
            reader = ParquetReader(file, str(self.path))
            for rows in reader.iter_batches(n_rows, columns=top or None):
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
    with reading_source(path, *_PARQUET_DAMAGE), pq.ParquetFile(path) as file:
        reader = ParquetReader(file, str(path))
        schema, n_rows = reader.schema_arrow, reader.n_rows
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


# Which files belong to a source, and which format each has.


def open_tables(inputs: Sequence[Path]) -> dict[str, JoinedTable]:
    """Find the tables in all files, and in the files of all folders: name -> table.

    Raises: RawDataError if a file cannot be read or is of no known format.
    """
    found: dict[str, list[tuple[int, SourceTable]]] = {}
    for number, given in enumerate(inputs):
        for path in _files(given):
            tables = _tables_of(path, given)
            if not tables:
                raise unreadable(path, "no table in it", "tables of pulses and of truth")
            for table in tables:
                found.setdefault(table.name, []).append((number, table))
    return {name: JoinedTable(name, tuple(parts)) for name, parts in found.items()}


def _files(given: Path) -> list[Path]:
    if given.is_file():
        return [given]
    if not given.exists():
        raise unreadable(given, "nothing of this name", "a file or a folder")
    known = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
    files = [
        path
        for path in sorted(given.rglob("*"), key=_in_order)
        if path.suffix.lower() in known
        and path.is_file()
        and not any(part.startswith(_SKIPPED) for part in path.relative_to(given).parts)
    ]
    if not files:
        raise unreadable(given, "no such file in the folder", f"files that end in {_endings()}")
    if any(path.name in ("train_meta.parquet", "test_meta.parquet") for path in files):
        raise RawDataError(
            "the folder holds the raw layout already",
            where=str(given),
            found="train_meta.parquet or test_meta.parquet",
            expected="events in another layout",
            remedy=f"Use it as it is: --raw-uri {given.absolute().as_uri()}",
        )
    return files


def _in_order(path: Path) -> list[Any]:
    """Sort part 10 after part 9."""
    return [(int(t), "") if t.isdecimal() else (-1, t) for t in re.split(r"(\d+)", str(path))]


def _endings() -> str:
    return ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)


def _tables_of(path: Path, given: Path) -> Sequence[SourceTable]:
    with path.open("rb") as file:
        head = file.read(16)
    suffix = path.suffix.lower()
    if head.startswith(b"SQLite format 3\0") or suffix in SUFFIXES["SQLite"]:
        return sqlite_tables(path)
    if head.startswith(b"PAR1") or suffix in SUFFIXES["Parquet"]:
        return parquet_tables(path, table_name(path, given))
    if head.startswith(b"\x89HDF\r\n\x1a\n") or suffix in SUFFIXES["HDF5"]:
        return hdf5_tables(path)
    raise unreadable(path, f"begins with {head[:8]!r}", "SQLite, Parquet or HDF5")


def table_name(path: Path, given: Path) -> str:
    """Name the table that a file is a part of: `total_3.parquet` and `total/part-3.parquet`."""
    numbered = _NUMBERED.fullmatch(path.stem)
    stem = numbered[1] if numbered else path.stem
    return stem if stem.lower() not in _NAMELESS else (path.parent.name or given.name or path.stem)
