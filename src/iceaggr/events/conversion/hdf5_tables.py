"""HDF5 files as tables: plain datasets, compound ones (IceTray, h5py), and those of pandas.

pandas notes the names of its columns as pickles. They are looked at opcode by opcode and never run,
so that a file from elsewhere cannot do anything.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from iceaggr.errors import RawDataError
from iceaggr.events.conversion.tables import ROWS_PER_READ, Columns, SourceTable, reading_source

_DAMAGE = (OSError, RuntimeError, KeyError, ValueError)
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
        with reading_source(self.path, *_DAMAGE), _open(self.path) as file:
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
    with reading_source(path, *_DAMAGE), _open(path) as file:
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
