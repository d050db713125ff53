"""Tables of the public competition layout, made from simulated events."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from iceaggr.detector import icecube86
from iceaggr.events.simulation.block import SimulatedEvents
from iceaggr.events.simulation.ice import Floats
from iceaggr.events.simulation.interactions import INTERACTIONS, inside_array
from iceaggr.events.simulation.sensors import Ints


def _pulse_schema() -> pa.Schema:
    """Describe the pulses with the event id as pandas index, as in the competition's files."""
    empty = pd.DataFrame(
        {
            "sensor_id": np.zeros(0, np.int16),
            "time": np.zeros(0, np.int64),
            "charge": np.zeros(0, np.float64),
            "auxiliary": np.zeros(0, np.bool_),
        },
        index=pd.Index(np.zeros(0, np.int64), name="event_id"),
    )
    return pa.Schema.from_pandas(empty)


PULSE_SCHEMA = _pulse_schema()


def pulse_table(events: SimulatedEvents, event_id: Ints) -> pa.Table:
    """Build the rows of a batch file: one per pulse. event_id: (E,) int64."""
    columns = [
        events.sensor_id,
        events.time_ns,
        events.charge_pe,
        events.auxiliary,
        np.repeat(event_id, events.n_pulses),
    ]
    return pa.Table.from_arrays([pa.array(c) for c in columns], schema=PULSE_SCHEMA)


def meta_table(events: SimulatedEvents, event_id: Ints, source_file: int, labels: bool) -> pa.Table:
    """Build the rows of the meta file for one whole batch file; the last index is inclusive."""
    end = np.cumsum(events.n_pulses)
    columns: dict[str, Ints | Floats] = {
        "batch_id": np.full(len(event_id), source_file, dtype=np.int64),
        "event_id": event_id,
        "first_pulse_index": end - events.n_pulses,
        "last_pulse_index": end - 1,
    }
    if labels:
        columns["azimuth"], columns["zenith"] = _angles(events.truth.origin)
    return pa.table(columns)


def truth_table(events: SimulatedEvents, event_id: Ints) -> pa.Table:
    """Build the rows of the truth file, which only evaluation may read.

    Angles are radians and point to the origin, as the label does; muon columns are NaN for
    cascades. visible_energy_gev is the electromagnetic energy with the light of the cascade, plus,
    for tracks, the energy with which the muon reaches the array.
    """
    truth = events.truth
    track = truth.is_track
    muon_azimuth, muon_zenith = _angles(-truth.travel)
    cosine = np.clip(-(truth.origin * truth.travel).sum(axis=1), -1.0, 1.0)
    contained = inside_array(truth.vertex_m)
    cascade_seen = np.where(track & ~contained, 0.0, truth.cascade_gev)
    nan = math.nan
    return pa.table(
        {
            "event_id": event_id,
            "energy_gev": truth.energy_gev,
            "topology": np.where(track, "track", "cascade"),
            "interaction": np.array(INTERACTIONS)[truth.code],
            "vertex_x_m": truth.vertex_m[:, 0],
            "vertex_y_m": truth.vertex_m[:, 1],
            "vertex_z_m": truth.vertex_m[:, 2],
            "contained": contained,
            "inelasticity": truth.inelasticity,
            "visible_energy_gev": cascade_seen + events.muon_at_array_gev,
            "muon_energy_gev": np.where(track, events.muon_at_array_gev, nan),
            "muon_azimuth": np.where(track, muon_azimuth, nan),
            "muon_zenith": np.where(track, muon_zenith, nan),
            "neutrino_muon_angle": np.where(track, np.arccos(cosine), nan),
        }
    )


def geometry_csv() -> bytes:
    """Write the built-in detector as the competition's sensor table, in metres."""
    detector = icecube86()
    table = pd.DataFrame(detector.xyz_m, columns=["x", "y", "z"])
    table.insert(0, "sensor_id", detector.sensor_id)
    return table.to_csv(index=False).encode()


def _angles(direction: Floats) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    # here and not above: worker processes, which only need the physics, start without torch
    import torch

    from iceaggr.angles import azimuth_zenith

    azimuth, zenith = azimuth_zenith(torch.from_numpy(direction))
    return azimuth.numpy(), zenith.numpy()
