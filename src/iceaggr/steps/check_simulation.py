"""Is the simulation as hard as the public set? Figures side by side, each with its range.

Real figures are published, or measured on the set's own files. Two rows compare with counts of its
few labelled events, to which nothing is fitted. Tables and sources: docs/physics.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.stats import ks_2samp

from iceaggr.angles import opening_angle
from iceaggr.batches.collation import iter_batches
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import BatchConfig
from iceaggr.detector import icecube86
from iceaggr.errors import RawDataError
from iceaggr.evaluation.event_table import true_direction
from iceaggr.events.reading import read_raw_events
from iceaggr.events.simulation import SimulationConfig, simulate
from iceaggr.interfaces import ObjectStore
from iceaggr.progress import StepProgress
from iceaggr.reconstruction import FitResult, charge_weighted_line_fit, ensemble_fit, line_fit
from iceaggr.storage import open_store
from iceaggr.storage.uris import file_uri

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FITS: dict[str, Callable[[EventBatch], FitResult]] = {
    "line fit": line_fit,
    "line fit weighted by charge": charge_weighted_line_fit,
    "hit cleaning with an ensemble of fits": ensemble_fit,
}
"""Fits whose mean angle is published for the public set."""
FEW_EVENTS = 5_000
"""With fewer, errors are so large that most figures are inside, and extremes are not reached."""
N_GROUPS = 20
"""Statistical errors are the spread of a figure between so many parts of the events."""
FEW_MODULES = 8
_QUIET_FROM_NS, _QUIET_TO_NS = 6_000, 9_500
"""Before the trigger and inside every ordinary readout: only noise."""
_EARLY_FIRST_PULSE_NS = 6_900
_ANY = float("inf")


@dataclass(frozen=True)
class Sample:
    """E events and their N pulses, in the order of the files.

    n_pulses: (E,) int64.  cos_zenith: (E,) float64 of the label.  angles_rad: per fit (E,) float64
    event: (N,) int64 row.  sensor_id, time_ns: (N,) int64.  charge_pe: (N,) float64
    auxiliary: (N,) bool
    """

    n_pulses: Ints
    cos_zenith: Floats
    angles_rad: dict[str, Floats]
    event: Ints
    sensor_id: Ints
    time_ns: Ints
    charge_pe: Floats
    auxiliary: npt.NDArray[np.bool_]

    def part(self, first: int, last: int) -> Sample:
        """Take the events from first to before last."""
        end = np.concatenate([[0], np.cumsum(self.n_pulses)])
        pulses = slice(int(end[first]), int(end[last]))
        return Sample(
            self.n_pulses[first:last],
            self.cos_zenith[first:last],
            {name: angles[first:last] for name, angles in self.angles_rad.items()},
            self.event[pulses] - first,
            self.sensor_id[pulses],
            self.time_ns[pulses],
            self.charge_pe[pulses],
            self.auxiliary[pulses],
        )


@dataclass(frozen=True)
class Figure:
    """A figure of the public set, as printed, and the range that the simulation stays in."""

    name: str
    real: str
    low: float
    high: float
    of: Callable[[Sample], float]
    """Measures it on a sample."""


@dataclass(frozen=True)
class Measured:
    """A figure of a simulation with its statistical error, NaN for extremes."""

    figure: Figure
    value: float
    error: float

    @property
    def inside(self) -> bool:
        """Tell whether the figure is in its range, or less than two errors outside."""
        allowed = 0.0 if np.isnan(self.error) else 2.0 * self.error
        return bool(self.figure.low - allowed <= self.value <= self.figure.high + allowed)


# What is measured on a sample.


def _mean_angle(fit: str) -> Callable[[Sample], float]:
    return lambda sample: float(sample.angles_rad[fit].mean())


def _pulses(share: float) -> Callable[[Sample], float]:
    return lambda sample: float(np.quantile(sample.n_pulses, share))


def _first_pulse(share: float) -> Callable[[Sample], float]:
    return lambda sample: float(np.quantile(_first_pulses(sample), share))


def _pulse_time(share: float) -> Callable[[Sample], float]:
    return lambda sample: float(np.quantile(sample.time_ns, share))


def _share_of_pulses(lowest: int, highest: float) -> Callable[[Sample], float]:
    """Share of events, in per cent, with so many pulses."""

    def share(sample: Sample) -> float:
        return 100.0 * float(((sample.n_pulses >= lowest) & (sample.n_pulses <= highest)).mean())

    return share


def _sensors_with(lowest: int, highest: float) -> Callable[[Sample], float]:
    """Share of the sensors of all events, in per cent, with so many pulses."""

    def share(sample: Sample) -> float:
        place = sample.event * icecube86().n_sensors + sample.sensor_id
        _, n = np.unique(place, return_counts=True)
        return 100.0 * float(((n >= lowest) & (n <= highest)).mean())

    return share


def _first_pulses(sample: Sample) -> Ints:
    return sample.time_ns[np.cumsum(sample.n_pulses) - sample.n_pulses]


def _clean(sample: Sample, place: Ints) -> Ints:
    """Count the places with a pulse that is not auxiliary, (E,). place: (N,) module or string."""
    clean = ~sample.auxiliary
    n_places = int(place.max(initial=0)) + 1
    found = np.unique(sample.event[clean] * n_places + place[clean]) // n_places
    return np.bincount(found, minlength=len(sample.n_pulses))


def _few_modules(sample: Sample) -> float:
    return 100.0 * float((_clean(sample, sample.sensor_id) < FEW_MODULES).mean())


def _one_string(sample: Sample) -> float:
    detector = icecube86()
    string = detector.string_keys()[detector.sensor_idx(sample.sensor_id)]
    return 100.0 * float((_clean(sample, string) <= 1).mean())


def _dark_hits(sample: Sample) -> float:
    ordinary = _first_pulses(sample) < _EARLY_FIRST_PULSE_NS
    quiet = (sample.time_ns >= _QUIET_FROM_NS) & (sample.time_ns < _QUIET_TO_NS)
    counted = int((quiet & ordinary[sample.event]).sum())
    return counted / max(int(ordinary.sum()), 1) / ((_QUIET_TO_NS - _QUIET_FROM_NS) / 12_000)


HARDNESS = (
    Figure("line fit, mean angle, rad", "1.214 [a]", 1.194, 1.234, _mean_angle("line fit")),
    Figure(
        "line fit weighted by charge, rad",
        "1.214 [a]",
        1.194,
        1.234,
        _mean_angle("line fit weighted by charge"),
    ),
    Figure(
        "hit cleaning, ensemble of fits, rad",
        "1.183 [a]",
        1.163,
        1.203,
        _mean_angle("hit cleaning with an ensemble of fits"),
    ),
    Figure("pulses, 1 % quantile", "30 [b]", 24, 35, _pulses(0.01)),
    Figure("pulses, 10 % quantile", "40 [b]", 38, 42, _pulses(0.10)),
    Figure("pulses, 25 % quantile", "48 [b]", 47, 50, _pulses(0.25)),
    Figure("pulses, 50 % quantile", "63 [b]", 61, 65, _pulses(0.50)),
    Figure("events of at most 39 pulses, %", "9.3 [b]", 6.3, 12.3, _share_of_pulses(0, 39)),
    Figure("pulses, smallest", "22 of 10,000 [b]", 4, 30, lambda s: float(s.n_pulses.min())),
    Figure("events below 8 clean modules, %", "5 of 15 [c]", 20, 45, _few_modules),
    Figure("events on one string, %", "4 of 15 [c]", 15, 38, _one_string),
)
"""How hard events are. [a] public notebooks on the competition; [b] the meta file of 10,000 events;
[c] its twelve labelled events and three test events. Wanted: within 0.02 rad, 3 percentage points
of events, or the statistical error, for [c] the one of 15 events. Ranges of quantiles are the real
quantiles 3 points below and above."""

PUBLISHED = (
    Figure("pulses, 80 % quantile", "about 100", 85, 115, _pulses(0.80)),
    Figure("pulses, 90 % quantile", "about 144", 120, 170, _pulses(0.90)),
    Figure("pulses, 95 % quantile", "221", 170, 290, _pulses(0.95)),
    Figure("pulses, mean", "164", 100, 240, lambda s: float(s.n_pulses.mean())),
    Figure("events above 1000 pulses, %", "1.124", 0.7, 1.6, _share_of_pulses(1001, _ANY)),
    Figure("auxiliary pulses, %", "28", 20, 36, lambda s: 100.0 * float(s.auxiliary.mean())),
    Figure(
        "auxiliary pulses per event",
        "46 (28 % of 164)",
        36,
        56,
        lambda s: float(s.auxiliary.sum() / len(s.n_pulses)),
    ),
    Figure("sensors with one pulse, %", "78", 72, 84, _sensors_with(1, 1)),
    Figure("sensors with 2-3 pulses, %", "16", 12, 20, _sensors_with(2, 3)),
    Figure("sensors with 4-10 pulses, %", "4", 2, 6.5, _sensors_with(4, 10)),
    Figure("sensors with more pulses, %", "2", 1, 4, _sensors_with(11, _ANY)),
    Figure("time, first quartile, ns", "10545", 10_000, 11_100, _pulse_time(0.25)),
    Figure("time, median, ns", "11760", 10_800, 12_600, _pulse_time(0.50)),
    Figure("time, third quartile, ns", "13764", 12_400, 15_000, _pulse_time(0.75)),
    Figure("time, smallest, ns", "5714", 5_690, 5_800, _pulse_time(0.0)),
    Figure("time, largest, ns", "77785 to 84577", 45_000, 100_000, _pulse_time(1.0)),
    Figure("first pulse, first quartile, ns", "5973", 5_920, 6_020, _first_pulse(0.25)),
    Figure("first pulse, median, ns", "6129", 6_060, 6_200, _first_pulse(0.50)),
    Figure("first pulse, third quartile, ns", "6405", 6_300, 6_520, _first_pulse(0.75)),
    Figure("first pulse, mean, ns", "6748", 6_550, 6_950, lambda s: float(_first_pulses(s).mean())),
    Figure("charge, smallest, p.e.", "0.025", 0.025, 0.025, lambda s: float(s.charge_pe.min())),
    Figure("charge, largest, p.e.", "2762", 800, 2_900, lambda s: float(s.charge_pe.max())),
    Figure("charge, mean, p.e.", "3.9", 2, 7, lambda s: float(s.charge_pe.mean())),
    Figure("dark hits in 12 us", "36 (derived)", 30, 42, _dark_hits),
)
"""How pulses look. Source: public notebooks on the competition data, and its description."""


def read_sample(store: ObjectStore, raw_uri: str) -> Sample:
    """Read a labelled raw folder whole and fit every event.

    Memory holds all pulses of the folder: meant for samples of up to a million events.
    """
    raw_uri = raw_uri.rstrip("/")
    meta = _read(store, f"{raw_uri}/train_meta.parquet")
    n_files = int(meta["batch_id"].to_numpy().max())
    pulses = pa.concat_tables(
        _read(store, f"{raw_uri}/train/batch_{k + 1}.parquet") for k in range(n_files)
    )
    n_pulses = meta["last_pulse_index"].to_numpy() - meta["first_pulse_index"].to_numpy() + 1
    return Sample(
        n_pulses=n_pulses.astype(np.int64),
        cos_zenith=np.cos(meta["zenith"].to_numpy().astype(np.float64)),
        angles_rad=_angles(store, raw_uri),
        event=np.repeat(np.arange(len(n_pulses)), n_pulses),
        sensor_id=pulses["sensor_id"].to_numpy().astype(np.int64),
        time_ns=pulses["time"].to_numpy().astype(np.int64),
        charge_pe=pulses["charge"].to_numpy().astype(np.float64),
        auxiliary=pulses["auxiliary"].to_numpy(),
    )


def _read(store: ObjectStore, uri: str) -> pa.Table:
    with store.open_input(uri) as source:
        return pq.read_table(source)


def _angles(store: ObjectStore, raw_uri: str) -> dict[str, Floats]:
    """Measure the angle of each fit to the label, radians, one (E,) array per fit."""
    chunks = read_raw_events(store, raw_uri, "train", icecube86())
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in FITS}
    for batch in iter_batches(chunks, icecube86(), BatchConfig(n_events=1024)):
        for name, fit in FITS.items():
            direction = fit(batch).direction.double()
            parts[name].append(opening_angle(direction, true_direction(batch)))
    return {name: torch.cat(part).numpy() for name, part in parts.items()}


def measure(figures: Iterable[Figure], sample: Sample) -> list[Measured]:
    """Measure figures, each with the spread between parts of the sample as its error."""
    edges = np.linspace(0, len(sample.n_pulses), N_GROUPS + 1).astype(int).tolist()
    parts = [sample.part(a, b) for a, b in pairwise(edges) if b > a]
    return [Measured(f, f.of(sample), _error(f, parts)) for f in figures]


def _error(figure: Figure, parts: list[Sample]) -> float:
    if "smallest" in figure.name or "largest" in figure.name:
        return float("nan")
    values = [figure.of(part) for part in parts]
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class RealMeta:
    """Real events, known by their meta rows: n_pulses (R,), cos_zenith (R,), both float64."""

    n_pulses: Floats
    cos_zenith: Floats


def read_real_meta(real_meta: Path) -> RealMeta:
    """Read rows of the competition's meta file. Raises: RawDataError if it is none."""
    names = ["first_pulse_index", "last_pulse_index", "zenith"]
    try:
        table = pq.read_table(real_meta, columns=names)
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise RawDataError(
            "this is no meta file",
            where=str(real_meta),
            found=str(error).splitlines()[0][:100],
            expected=f"parquet with {', '.join(names)}",
            remedy="Name rows of the competition's train_meta.parquet with --real-meta",
        ) from error
    first, last, zenith = (table[name].to_numpy().astype(np.float64) for name in names)
    return RealMeta(last - first + 1, np.cos(zenith))


def distances(sample: Sample, real: RealMeta) -> list[Measured]:
    """Compare whole distributions with those of real events, by Kolmogorov's distance."""
    of_cosine = ks_2samp(sample.cos_zenith, real.cos_zenith).statistic
    of_pulses = ks_2samp(sample.n_pulses, real.n_pulses).statistic
    n_real = len(real.n_pulses)
    # where both are of one distribution, the distance is this on average
    noise = 0.87 * np.sqrt(1.0 / len(sample.n_pulses) + 1.0 / n_real)
    return [
        Measured(replace(figure, real=f"0 ({n_real:,} events)"), float(found), float(noise))
        for figure, found in zip(_DISTANCES, (of_pulses, of_cosine), strict=True)
    ]


_DISTANCES = (
    Figure("pulses, distance of distributions", "0", 0.0, 0.03, lambda _: _ANY),
    Figure("cos zenith, distance of distributions", "0", 0.0, 0.03, lambda _: _ANY),
)
"""Largest difference of the shares below any value; 3 percentage points are wanted."""


LEGEND = """
inside: in the range, or less than two statistical errors outside. [a] public notebooks on the
competition; [b] rows of its meta file; [c] its twelve labelled events and three test events.
docs/physics.md says what each figure is."""


def figures_table(measured: Iterable[Measured]) -> str:
    """Lay out the comparison as a Markdown table: real, simulated with its error, range, inside."""
    lines = ["| figure | real | simulated | range | inside |", "|---|---|---|---|---|"]
    for row in measured:
        figure, inside = row.figure, "yes" if row.inside else "**no**"
        error = "" if np.isnan(row.error) else f" ± {_digits(row.error, row.value)}"
        value = f"{_digits(row.value, row.value)}{error}"
        lines.append(
            f"| {figure.name} | {figure.real} | {value} | {figure.low:g} to {figure.high:g}"
            f" | {inside} |"
        )
    return "\n".join(lines)


def _digits(number: float, of_size: float) -> str:
    if abs(of_size) >= 100:
        return f"{number:.0f}"
    return f"{number:.1f}" if abs(of_size) >= 10 else f"{number:.3f}"


def run_check_simulation(
    config: SimulationConfig, real_meta: Path | None = None, raw_uri: str = ""
) -> bool:
    """Simulate events, or read those of raw_uri, print the figures; tell whether all are inside.

    Raises: RawDataError if the meta file is none, or raw events cannot be read.
    """
    store = open_store()
    real = read_real_meta(real_meta) if real_meta else None
    with (
        tempfile.TemporaryDirectory(prefix="iceaggr-check-") as folder,
        StepProgress("check-simulation") as progress,
    ):
        if not raw_uri:
            raw_uri = f"{file_uri(Path(folder))}/raw"
            summary = simulate(
                store, raw_uri, config, lambda n: progress.update(n, config.n_events, f"{n:,}")
            )
            print(f"{summary.events_per_second:.0f} events/s, preset {config.preset}")
        sample = read_sample(store, raw_uri)
        progress.conclude(f"{len(sample.n_pulses):,} events measured")
    measured = list(_all_figures(sample, real))
    print(figures_table(measured))
    print(LEGEND)
    if len(sample.n_pulses) < FEW_EVENTS:
        print(
            f"warning: {len(sample.n_pulses):,} events decide little; take {FEW_EVENTS:,} or more"
        )
    return all(row.inside for row in measured)


def _all_figures(sample: Sample, real: RealMeta | None) -> Iterator[Measured]:
    yield from measure(HARDNESS, sample)
    if real is not None:
        yield from distances(sample, real)
    yield from measure(PUBLISHED, sample)
