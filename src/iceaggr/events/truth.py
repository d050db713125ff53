"""Simulated truth: the side files that only evaluation uses, checked when a run is planned.

Nobody trains on them, so a value that cannot be would show after the whole training. Whatever
evaluation would refuse is refused before anything is sharded, by the same checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from iceaggr.errors import RawDataError
from iceaggr.events.layout import is_copy
from iceaggr.events.schema import (
    FLAG,
    IDENTITY,
    NUMBER,
    TEXT,
    check_columns,
    exact_integers,
    open_parquet,
    reading_again,
)
from iceaggr.interfaces import ObjectStore

TRUTH_FOLDER = "truth"
TOPOLOGIES = ("track", "cascade")
"""Values of the topology column, in the order of figures and tables."""
INTERACTIONS = ("cc", "nc")
"""Values of the interaction column, charged and neutral current, in the order of tables."""
FLAVOURS = (-16, -14, -12, 12, 14, 16)
"""PDG ids of the neutrinos: electron 12, muon 14, tau 16, antineutrinos negative."""
MAX_ENERGY_GEV = 1e12
"""Three times the cosmic ray of the highest energy seen, 3.2e11 GeV; beyond it the unit is another.
Source: Bird et al. 1995, "Detection of a cosmic ray with measured energy well beyond...".
"""

_OLD_INTERACTIONS = {"nu_mu_cc": "cc", "nu_e_cc": "cc", "nu_nc": "nc"}
"""What simulations of earlier versions wrote into the interaction column."""
_OTHERWISE = "or move the truth folder away: evaluation then goes without it"

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def read_truth(store: ObjectStore, raw_uri: str) -> pd.DataFrame | None:
    """Read `truth/batch_N.parquet` below a raw URI: event_id and those of TRUTH_COLUMNS present.

    Returns None where there is no such folder, as in real data.
    Raises: RawDataError if a file is not parquet, lacks event_id, has a column of another kind or a
    value that cannot be, or if an event has two rows.
    """
    uris = _truth_uris(store, raw_uri)
    if not uris:
        return None
    tables = [_read_file(store, uri) for uri in uris]
    _refuse_repeated(uris, [_ids_of(table) for table in tables])
    # what pandas noted in the files about its own types may be damaged
    frames = [table.replace_schema_metadata(None).to_pandas() for table in tables]
    truth = pd.concat(frames, ignore_index=True)
    if "interaction" in truth:
        truth["interaction"] = truth["interaction"].astype(object).replace(_OLD_INTERACTIONS)
    return truth


def read_truth_ids(store: ObjectStore, raw_uri: str) -> Ids | None:
    """Check all truth files one by one and keep their event ids only.

    Returns (T,) int64, ascending; None where there is no truth.  Raises: as `read_truth`.
    """
    uris = _truth_uris(store, raw_uri)
    if not uris:
        return None
    ids = [_ids_of(_read_file(store, uri)) for uri in uris]
    return _refuse_repeated(uris, ids)


def _truth_uris(store: ObjectStore, raw_uri: str) -> list[str]:
    folder_uri = f"{raw_uri.rstrip('/')}/{TRUTH_FOLDER}/"
    uris = [found.uri for found in store.list(folder_uri) if found.uri.endswith(".parquet")]
    return [uri for uri in uris if not is_copy(uri.removeprefix(folder_uri))]


def _ids_of(table: Any) -> Ids:
    ids: Ids = table.column("event_id").to_numpy()
    return ids


@reading_again
def _read_file(store: ObjectStore, uri: str) -> Any:
    """Read the columns of a truth file that are used, event_id as int64, every value checked."""
    with open_parquet(store, uri) as file:
        schema = file.schema_arrow
        known = {name: kind for name, (kind, _, _) in _COLUMNS.items() if name in schema.names}
        check_columns(schema, {"event_id": IDENTITY, **known}, uri)
        table = file.read(columns=["event_id", *known]).select(["event_id", *known])
        table = table.set_column(0, "event_id", _whole_ids(table.column("event_id"), uri))
        for name, (_, is_sound, expected) in _COLUMNS.items():
            if name in known:
                bad = np.flatnonzero(~is_sound(table.column(name)))
                if len(bad):
                    raise _impossible(table, name, bad, expected, uri)
        return table


def _whole_ids(column: Any, uri: str) -> Any:
    try:
        ids = exact_integers(column, "event_id", uri).cast(pa.int64())
    except pa.ArrowInvalid:
        ids = None
    if ids is None or ids.null_count:
        beyond = "numbers beyond 64 signed bits"
        raise RawDataError(
            "truth column event_id holds what is no id",
            where=f"{uri} event_id",
            found=f"{ids.null_count} nulls" if ids is not None else beyond,
            expected="in every row the id of an event, at most 2^63 - 1",
            remedy=f"Write the truth file anew, {_OTHERWISE}",
        )
    return ids


def _numbers(column: Any) -> npt.NDArray[np.float64]:
    """Convert to float64; nulls become NaN."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return np.asarray(column.to_numpy(), np.float64)


def _is_energy(column: Any) -> Mask:
    values = _numbers(column)
    return np.asarray((values > 0) & (values <= MAX_ENERGY_GEV))  # False for NaN


def _is_topology(column: Any) -> Mask:
    known = pa.array(TOPOLOGIES, pa.large_string())
    return np.asarray(pc.is_in(column.cast(pa.large_string()), known).to_numpy(), bool)


def _is_flag(column: Any) -> Mask:
    return np.isin(_numbers(column), (0, 1))


def _is_interaction(column: Any) -> Mask:
    known = pa.array([*INTERACTIONS, *_OLD_INTERACTIONS], pa.large_string())
    return np.asarray(pc.is_in(column.cast(pa.large_string()), known).to_numpy(), bool)


def _is_flavour(column: Any) -> Mask:
    return np.isin(_numbers(column), FLAVOURS)


def _is_finite(column: Any) -> Mask:
    return np.isfinite(_numbers(column))


def _between(low: float, high: float) -> Callable[[Any], Mask]:
    """Accept a range, and what is missing: a cascade has no muon. float32 rounds pi up."""

    def is_inside(column: Any) -> Mask:
        values = _numbers(column)
        return np.asarray(np.isnan(values) | ((values >= low) & (values <= high + 1e-6)))

    return is_inside


_OR_NOTHING = "or nothing where there is no muon"
_SHARE = (NUMBER, _between(0, 1), "0 to 1, or nothing where it is not known")
_PLACE = (NUMBER, _is_finite, "metres in every row")
_COLUMNS: dict[str, tuple[Any, Callable[[Any], Mask], str]] = {
    "energy_gev": (
        NUMBER,
        _is_energy,
        f"a number above 0 and at most {MAX_ENERGY_GEV:g} in every row",
    ),
    "topology": (TEXT, _is_topology, f"{' or '.join(TOPOLOGIES)} in every row"),
    "contained": (FLAG, _is_flag, "true or false in every row"),
    "neutrino_muon_angle": (NUMBER, _between(0, np.pi), f"0 to pi, {_OR_NOTHING}"),
    "interaction": (TEXT, _is_interaction, f"{' or '.join(INTERACTIONS)} in every row"),
    "flavour": (NUMBER, _is_flavour, "a PDG id: 12, 14 or 16, antineutrinos negative"),
    "muon_azimuth": (NUMBER, _between(-np.pi, 2 * np.pi), f"-pi to 2 pi, {_OR_NOTHING}"),
    "muon_zenith": (NUMBER, _between(0, np.pi), f"0 to pi, {_OR_NOTHING}"),
    "inelasticity": _SHARE,
    "visible_inelasticity": _SHARE,
    "bjorken_x": _SHARE,
    "vertex_x_m": _PLACE,
    "vertex_y_m": _PLACE,
    "vertex_z_m": _PLACE,
    "coincident_muon": (FLAG, _is_flag, "true or false in every row"),
    "coincident_muon_azimuth": (NUMBER, _between(-np.pi, 2 * np.pi), f"-pi to 2 pi, {_OR_NOTHING}"),
    "coincident_muon_zenith": (NUMBER, _between(0, np.pi), f"0 to pi, {_OR_NOTHING}"),
}
TRUTH_COLUMNS = tuple(_COLUMNS)
"""Simulated truth that evaluation uses when the truth file has it.

energy_gev: of the neutrino.  topology: `track` or `cascade`.  contained: vertex inside the array
neutrino_muon_angle: kinematic angle of tracks, radians.  interaction: `cc` or `nc`.  flavour: PDG
muon_azimuth, muon_zenith: of the neutrino's own muon, radians, to the origin as labels are
inelasticity: share of the energy that the hadrons take; visible_inelasticity: of what is seen
bjorken_x: share of the nucleon's momentum that the struck quark has
vertex_x_m, vertex_y_m, vertex_z_m: of the interaction, metres
coincident_muon: light of an atmospheric muon is in the same readout; coincident_muon_azimuth and
coincident_muon_zenith: of its bundle, radians, to the origin
"""


def _impossible(table: Any, name: str, bad: Any, expected: str, uri: str) -> RawDataError:
    row = int(bad[0])
    value, event_id = table.column(name)[row].as_py(), table.column("event_id")[row].as_py()
    more = f", and {len(bad) - 1:,} more of {table.num_rows:,} rows" if len(bad) > 1 else ""
    return RawDataError(
        f"truth column {name} holds a value that cannot be",
        where=f"{uri} {name}",
        found=f"{_shown(value)} of event_id {event_id} (row {row}){more}",
        expected=expected,
        remedy=f"Correct it in the truth file, leave the column out, {_OTHERWISE}",
    )


def _shown(value: Any) -> str:
    return repr(value)[:60] if value is not None else "null"


def _refuse_repeated(uris: list[str], ids: list[Ids]) -> Ids:
    """Give all ids in ascending order. Raises: RawDataError naming an id of two rows."""
    together = np.sort(np.concatenate(ids))
    twice = together[1:][together[1:] == together[:-1]]
    if len(twice):
        rows = [int(np.count_nonzero(part == twice[0])) for part in ids]
        raise RawDataError(
            "truth lists an event twice",
            where=" and ".join(_holders(uris, rows)),
            found=f"event_id {twice[0]} in {sum(rows)} rows, and {len(twice) - 1:,} more",
            expected="one row per event_id over all truth files",
            remedy=f"Remove what was added twice, {_OTHERWISE}",
        )
    return together


def _holders(uris: list[str], rows: list[int]) -> Iterator[str]:
    return (uri for uri, n_rows in zip(uris, rows, strict=True) if n_rows)
