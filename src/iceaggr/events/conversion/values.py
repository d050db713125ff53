"""Values of foreign columns, checked: a null is never a number, and nothing is rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from iceaggr.errors import RawDataError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_RUN_BITS, _EVENT_BITS, _SUB_BITS = 20, 32, 11
"""Of an id that is made of run, event and part of the event: 63 bits together."""
_OTHER_COLUMN = "Mend the source, or name another column with the flag"


def whole_numbers(column: Any, place: str, where: str) -> Ints:
    """Take ids: (n,) int64.

    place: table, column and flag.  where: the file.
    Raises: RawDataError if one is null, no number, has a fraction or exceeds 64 signed bits.
    """
    column = _plain(column)
    if column.null_count or pa.types.is_null(column.type):
        found = f"null in {column.null_count:,} of {len(column):,} rows read"
        raise _refused("an id is missing", place, where, found)
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        try:
            return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False), np.int64)
        except pa.ArrowInvalid:
            raise _refused("an id exceeds 64 bits", place, where, str(pc.max(column))) from None
    values = _as_float(column, place, where)
    # up to 2^53 every whole number is a float64
    wrong = ~((np.abs(values) <= 2.0**53) & (values == np.floor(values)))
    if wrong.any():
        found = f"{values[wrong][0]:g}"
        raise _refused("an id is no whole number", place, where, found)
    return values.astype(np.int64)


def numbers(column: Any, place: str, where: str) -> Floats:
    """Take measured values: (n,) float64, NaN where one is null. Raises: RawDataError for text."""
    return _as_float(_plain(column), place, where)


def flags(column: Any, place: str, where: str) -> Floats:
    """Take flags: (n,) float64, 0 or 1, NaN where one is null. Raises: RawDataError for others."""
    values = _as_float(_plain(column), place, where)
    wrong = ~(np.isnan(values) | (values == 0) | (values == 1))
    if wrong.any():
        raise _refused("a flag is neither 0 nor 1", place, where, f"{values[wrong][0]:g}")
    return values


def combined_ids(columns: list[Ints], place: str, where: str) -> Ints:
    """Make one id of run, event and, if there is a third, part of the event: (n,) int64.

    The same event has the same id in whatever file it lies.
    Raises: RawDataError if one does not fit into its bits.
    """
    sub = columns[2] if len(columns) > 2 else np.zeros_like(columns[0])
    parts = ((columns[0], _RUN_BITS), (columns[1], _EVENT_BITS), (sub, _SUB_BITS))
    for values, n_bits in parts:
        wrong = (values < 0) | (values >= 1 << n_bits)
        if wrong.any():
            what = "run and event make no id"
            raise _refused(what, place, where, f"{values[wrong][0]}, not 0 to {(1 << n_bits) - 1}")
    shifted = columns[0] << (_EVENT_BITS + _SUB_BITS)
    return np.asarray(shifted | (columns[1] << _SUB_BITS) | sub, np.int64)


def _plain(column: Any) -> Any:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column


def _as_float(column: Any, place: str, where: str) -> Floats:
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise _refused("a column holds no numbers", place, where, f"{kind} {column[0]}")
    # not `cast`, which refuses integers beyond 2^53
    values = column.cast(pa.float64()) if pa.types.is_decimal(kind) else column
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)


def _refused(what: str, place: str, where: str, found: str) -> RawDataError:
    return RawDataError(
        what,
        where=f"{where} {place}",
        found=found,
        expected="numbers; ids whole and in every row",
        remedy=_OTHER_COLUMN,
    )
