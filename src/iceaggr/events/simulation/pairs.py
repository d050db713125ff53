"""Pairs of a light source and a sensor that sees it: expected light and how late it comes."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from iceaggr.detector import C_M_PER_NS, ICE
from iceaggr.events.simulation import light
from iceaggr.events.simulation.ice import Floats, Ints, Site
from iceaggr.events.simulation.light import CONTINUOUS_B_PER_M, muon_energy

MIN_EXPECTED_PE = 0.004
"""Pairs with less light are left out; their sum is below one photon for nearly every event."""
_TRACK_RADIUS_M, _TRACK_RADIUS_IN_WATER_M = 160.0, 220.0
_TRACKS_AT_ONCE = 64
_PAIRS_AT_ONCE = 20_000
_RADII_M = np.array([40, 55, 70, 85, 100, 120, 140, 165, 190, 230, 270, 330, 400, 550, 1800.0])
_CLEAR_ATTENUATION_M = 50.0
_PEAK_EMISSION = 5.0
"""Of a cascade at the Cherenkov angle, relative to an even one."""

# Pandel constants. Tracks: IceTray rpdf, "H2" ice. Cascades: AMANDA cascade reconstruction
# (M. Kowalski, thesis, Humboldt University Berlin 2004), quoted from general knowledge. In water
# both are scaled as those of tracks are in `iceaggr.detector.WATER`.
_TRACK_TAU_NS, _TRACK_LAMBDA_M = 556.7, 33.29
_CASCADE_TAU_NS, _CASCADE_LAMBDA_M = 450.0, 47.0
_PANDEL_ABSORPTION_M = 98.0


@dataclass
class Pairs:
    """K pairs. event: (K,) row of the event; sensor: (K,) row of the live sensor; all else float64.

    expected_pe: (K,) mean photo-electrons.  arrival_ns: (K,) of unscattered light
    xi, rho_per_ns: (K,) of the Pandel gamma distribution of the delay
    distance_m, cosine: (K,) from the source, angle to its axis.  shape: (K,) of the longitudinal
    profile, 0 for tracks.
    """

    event: Ints
    sensor: Ints
    expected_pe: Floats
    arrival_ns: Floats
    xi: Floats
    rho_per_ns: Floats
    distance_m: Floats
    cosine: Floats
    shape: Floats


@dataclass
class Tracks:
    """M muon tracks: event (M,), nearest point to the centre (M, 3) m, travel (M, 3) unit,
    vertex, first and last metre along the line (M,), energy at the vertex (M,) GeV.
    Time zero is when the muon is, or would be, at the nearest point.
    """

    event: Ints
    nearest_m: Floats
    travel: Floats
    vertex_m: Floats
    first_m: Floats
    last_m: Floats
    energy_gev: Floats


@dataclass
class Cascades:
    """C cascades: event (C,), vertex (C, 3) m, axis (C, 3) unit, time (C,) ns, energy (C,) GeV."""

    event: Ints
    vertex_m: Floats
    axis: Floats
    time_ns: Floats
    energy_gev: Floats


def concatenate_pairs(parts: list[Pairs]) -> Pairs:
    """Join pairs of several kinds of source."""
    names = [f.name for f in fields(Pairs)]
    return Pairs(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def track_pairs(tracks: Tracks, site: Site) -> Pairs:
    """Pair tracks with the sensors that see them."""
    return _bright(lit_by_tracks(tracks, *_near_tracks(tracks, site), site))


def lit_by_tracks(
    tracks: Tracks, row: Ints, sensor: Ints, along: Floats, distance: Floats, site: Site
) -> Pairs:
    """Compute the light of tracks at sensors by the Cherenkov geometry, however little it is.

    row, sensor: (K,) of the track and the live sensor; along, distance: (K,) metres along the
    track's line and from it. The light of an unscattered photon leaves the track at the Cherenkov
    angle; where that point lies before the start or after the end, it leaves from there, weakened
    with the gap.
    """
    sensors, medium = site.sensors, site.medium
    cosine, sine = light.cherenkov(medium)
    ideal = along - distance / (sine / cosine)
    emitted = np.clip(ideal, tracks.first_m[row], tracks.last_m[row])
    gap = np.abs(emitted - ideal)
    path = np.hypot(along - emitted, distance)
    emission_z = tracks.nearest_m[row, 2] + emitted * tracks.travel[row, 2]
    sensor_z = sensors.xyz_m[sensor, 2]
    scattering_m, absorption_m = site.lengths.mean_lengths(emission_z, sensor_z)
    energy = muon_energy(tracks.energy_gev[row], emitted - tracks.vertex_m[row], site.matter)
    brightness = light.muon_track_light(energy, CONTINUOUS_B_PER_M * energy)
    upward = (sensor_z - emission_z) / path
    expected = (
        light.PHOTONS_PER_M
        * light.relative_yield(medium)
        * light.DOM_AREA_M2
        * brightness
        * light.track_flux(distance, scattering_m, absorption_m, medium)
        * np.exp(-gap / np.minimum(scattering_m, absorption_m))
        * _acceptance(upward, path * sine, scattering_m, site)
        * sensors.efficiency[sensor]
    )
    # effective distance with the angle at the PMT; Source: IceTray rpdf
    effective = 0.8395 * distance + 3.094
    if site.looks_down:
        effective = effective - 3.946 * upward + 4.636 * upward**2
    # beyond the end only scattered light arrives, with the delay of its longer way
    effective = effective + gap
    xi, rho = _pandel(effective, _TRACK_LAMBDA_M, _TRACK_TAU_NS, scattering_m, absorption_m, site)
    arrival = (emitted + medium.n_group * path) / C_M_PER_NS
    zero = np.zeros(len(row))
    return Pairs(tracks.event[row], sensor, expected, arrival, xi, rho, distance, zero, zero)


def cascade_pairs(cascades: Cascades, site: Site) -> Pairs:
    """Pair cascades with the sensors that see them."""
    shape = light.shower_shape(cascades.energy_gev)
    centre = _mean_points(cascades.vertex_m, cascades.axis, shape, site)
    row, sensor = _near_cascades(centre, cascades.energy_gev, site)
    # in pieces that stay in the processor's cache
    pieces = [slice(k, k + _PAIRS_AT_ONCE) for k in range(0, max(len(row), 1), _PAIRS_AT_ONCE)]
    return concatenate_pairs(
        [_bright(lit_by_cascades(cascades, row[at], sensor[at], site)) for at in pieces]
    )


def _mean_points(vertex_m: Floats, axis: Floats, shape: Floats, site: Site) -> Floats:
    """Find the mean point of the longitudinal profile, from which a cascade shines: (C, 3) m."""
    return vertex_m + (shape * light.SHOWER_STEP_M / site.matter)[:, None] * axis


def lit_by_cascades(
    cascades: Cascades, row: Ints, sensor: Ints, site: Site, smooth: float = 0.0
) -> Pairs:
    """Compute the light of cascades at sensors, however little it is.

    row, sensor: (K,) of the cascade and the live sensor.  smooth: width in the cosine over which
    the emission is averaged, for fits, which need slopes where the table has steps.
    """
    shape, axis = light.shower_shape(cascades.energy_gev[row]), cascades.axis[row]
    centre = _mean_points(cascades.vertex_m[row], axis, shape, site)
    sensors, medium = site.sensors, site.medium
    way = sensors.xyz_m[sensor] - centre
    distance = np.maximum(np.linalg.norm(way, axis=1), 0.5)
    cosine = np.clip((way * axis).sum(axis=1) / distance, -1.0, 1.0)
    scattering_m, absorption_m = site.lengths.mean_lengths(centre[:, 2], sensors.xyz_m[sensor, 2])
    if smooth:
        emission = light.smooth_emission(cosine, smooth, medium)
    else:
        emission = light.cascade_emission(cosine, medium)
    photons = light.PHOTONS_PER_M * light.CASCADE_M_PER_GEV * cascades.energy_gev[row]
    photons = photons * light.relative_yield(medium) / site.matter
    expected = (
        photons
        * light.DOM_AREA_M2
        * _blended_emission(emission, cosine, distance, scattering_m)
        * light.point_flux(distance, scattering_m, absorption_m)
        * _acceptance(way[:, 2] / distance, distance, scattering_m, site)
        * sensors.efficiency[sensor]
    )
    # light sent away from the sensor has to turn round: it comes later, the more the farther back
    turn = 1.0 + 0.5 * np.maximum(light.cherenkov(medium)[0] - cosine, 0.0)
    xi, rho = _pandel(
        distance * turn, _CASCADE_LAMBDA_M, _CASCADE_TAU_NS, scattering_m, absorption_m, site
    )
    start = cascades.time_ns[row] + shape * light.SHOWER_STEP_M / site.matter / C_M_PER_NS
    arrival = start + medium.n_group * distance / C_M_PER_NS
    event = cascades.event[row]
    return Pairs(event, sensor, expected, arrival, xi, rho, distance, cosine, shape)


def _blended_emission(
    emission: Floats, cosine: Floats, distance: Floats, scattering_m: Floats
) -> Floats:
    """Blend the emission profile with an even one: direction fades over two scattering lengths.

    A forward bias of the scattered part remains, 1 + cos(angle)/2 of an effective scatterer.
    """
    direct = np.exp(-distance / (2.0 * scattering_m))
    return np.asarray(direct * emission + (1.0 - direct) * (1.0 + 0.5 * cosine))


def _acceptance(upward: Floats, distance: Floats, scattering_m: Floats, site: Site) -> Floats:
    if not site.looks_down:
        return np.full(len(upward), light.ISOTROPIC_ACCEPTANCE)
    return light.arrival_acceptance(upward, distance, scattering_m)


def _pandel(
    effective_m: Floats,
    lambda_m: float,
    tau_ns: float,
    scattering_m: Floats,
    absorption_m: Floats,
    site: Site,
) -> tuple[Floats, Floats]:
    """Scale the Pandel constants from the ice they were fitted in to the medium on the path."""
    reference_scattering, reference_absorption = site.pandel_lengths
    tau_ns = tau_ns * (site.medium.delay_ns / ICE.delay_ns)
    xi = effective_m / (lambda_m * scattering_m / reference_scattering)
    absorption = _PANDEL_ABSORPTION_M * absorption_m / reference_absorption
    return xi, 1.0 / tau_ns + C_M_PER_NS / site.medium.n_group / absorption


def _bright(pairs: Pairs) -> Pairs:
    keep = pairs.expected_pe >= MIN_EXPECTED_PE
    return Pairs(**{f.name: getattr(pairs, f.name)[keep] for f in fields(Pairs)})


def _near_tracks(tracks: Tracks, site: Site) -> tuple[Ints, Ints, Floats, Floats]:
    """Find (track, sensor) within reach: rows, metre along the line, distance from it."""
    sensors = site.sensors.xyz_m
    radius = _TRACK_RADIUS_M if site.medium == ICE else _TRACK_RADIUS_IN_WATER_M
    # single precision only chooses the pairs; their geometry is computed in double below
    x, y, z = sensors.T.astype(np.float32)
    nearest, travel = tracks.nearest_m.astype(np.float32), tracks.travel.astype(np.float32)
    first = tracks.first_m.astype(np.float32) - radius
    last = tracks.last_m.astype(np.float32) + 2 * radius
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(tracks.event), _TRACKS_AT_ONCE):
        at = slice(start, start + _TRACKS_AT_ONCE)
        dx, dy, dz = (p - nearest[at, k, None] for k, p in enumerate((x, y, z)))
        along = dx * travel[at, 0, None] + dy * travel[at, 1, None] + dz * travel[at, 2, None]
        square = dx * dx + dy * dy + dz * dz - along * along
        near: npt.NDArray[np.bool_] = square < radius**2
        near &= (along > first[at, None]) & (along < last[at, None])
        row, column = np.nonzero(near)
        rows.append(row + start)
        columns.append(column)
    row, sensor = np.concatenate(rows), np.concatenate(columns)
    way = sensors[sensor] - tracks.nearest_m[row]
    exact = (way * tracks.travel[row]).sum(axis=1)
    square = (way * way).sum(axis=1) - exact * exact
    return row, sensor, exact, np.sqrt(np.maximum(square, 0.25))


def _near_cascades(centre_m: Floats, energy_gev: Floats, site: Site) -> tuple[Ints, Ints]:
    """Find (cascade, sensor) within the reach of the cascade's light, by classes of brightness."""
    faintest = 0.01 * 15.0 * _RADII_M * np.exp(_RADII_M / _CLEAR_ATTENUATION_M) / (88.0 * 0.34)
    if site.medium != ICE:
        faintest = _faintest_in_water(site)
    level = np.searchsorted(faintest[:-1], energy_gev)
    rows, columns = [], []
    for k, radius in enumerate(_RADII_M):
        members = np.flatnonzero(level == k)
        if len(members) == 0:
            continue
        tree = cKDTree(centre_m[members])
        found = tree.sparse_distance_matrix(site.sensors.tree, radius, output_type="ndarray")
        rows.append(members[found["i"]])
        columns.append(found["j"].astype(np.int64))
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(rows), np.concatenate(columns)


def _faintest_in_water(site: Site) -> Floats:
    """Give the energy that shows at each radius, (R,) GeV: direct light at the peak of emission."""
    flux = np.exp(-_RADII_M / site.medium.absorption_m) / (4.0 * np.pi * _RADII_M**2)
    photons = light.PHOTONS_PER_M * light.relative_yield(site.medium) * light.CASCADE_M_PER_GEV
    seen = photons * light.DOM_AREA_M2 * light.ISOTROPIC_ACCEPTANCE * flux / site.matter
    return MIN_EXPECTED_PE / (_PEAK_EMISSION * seen)
