"""How the label columns of a meta file are meant, and their translation into the project's own.

The project's labels are azimuth from x towards y in 0..2 pi and zenith from straight up in 0..pi,
in radians, of the direction that the neutrino came from. Files of other conventions are read as
`data.label_reading` says; this is the only place that translates them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import get_args

import numpy as np
import numpy.typing as npt

from iceaggr.config.sections import LabelWord

Angles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

# float32 angles round up: 2 pi itself becomes 6.2831855
ROUNDING = 1e-6
MAX_AZIMUTH = 2 * np.pi + ROUNDING
MAX_ZENITH = np.pi + ROUNDING

WORDS: tuple[LabelWord, ...] = get_args(LabelWord)
SENTENCES: Mapping[LabelWord, str] = {
    "degrees": "both columns are in degrees",
    "columns_swapped": "the column azimuth holds the zenith, and zenith the azimuth",
    "azimuth_from_minus_pi": "azimuth runs from -pi to pi",
    "elevation": "zenith holds the angle above the horizon, -pi/2 to pi/2",
    "particle": "the direction is where the particle travels to",
    "mirror_x": "the x axis is reversed",
    "mirror_y": "the y axis is reversed: azimuth grows clockwise, seen from above",
    "mirror_z": "the z axis is reversed: zenith is measured from straight down",
    "x_y_swapped": "azimuth is measured from y towards x, as on a compass",
}
"""What each word of `data.label_reading` says about the file."""
MIN_EVENTS_OF_CHANCE, N_SIGMA_OF_CHANCE = 2000, 4.0
"""Cascades alone, the hardest events, agree by 7 standard errors among so many."""
_VALUES: tuple[LabelWord, ...] = WORDS[:4]
_MIRRORS: tuple[LabelWord, ...] = ("mirror_x", "mirror_y", "mirror_z")
MIN_SHARE_IN_RANGE = 0.99
"""Of the labels that a suggested reading must hold; a few may be damaged."""
MIN_EVENTS_OF_COSINE = 30
"""So many angles above the horizon are not all below 1 rad."""


@dataclass(frozen=True)
class LabelReading:
    """The words of `data.label_reading`, in the order in which they are applied; none = our own."""

    words: tuple[LabelWord, ...] = ()

    @classmethod
    def of(cls, words: Iterable[LabelWord]) -> LabelReading:
        """Make a reading of words in any order."""
        given = set(words)
        return cls(tuple(word for word in WORDS if word in given))

    def __contains__(self, word: LabelWord) -> bool:
        return word in self.words

    def changed(self, *words: LabelWord) -> LabelReading:
        """Add each word that is not there, and leave out each that is."""
        return LabelReading.of(set(self.words) ^ set(words))

    @property
    def setting(self) -> str:
        """Write the setting as it stands in a YAML file."""
        return f"data.label_reading: [{', '.join(self.words)}]"

    @property
    def sentence(self) -> str:
        """Say what the words mean."""
        if not self.words:
            return "azimuth and zenith in radians, of where the neutrino came from"
        return "; ".join(SENTENCES[word] for word in self.words)

    def apply(self, azimuth: Angles, zenith: Angles) -> tuple[Angles, Angles]:
        """Translate the columns of a file.

        azimuth, zenith: (B,) float64 as in the columns of these names. Returns (B,) radians;
        what is out of the range of this reading stays out of 0..2 pi and 0..pi.
        """
        if not self.words:
            return azimuth, zenith
        if "degrees" in self:
            azimuth, zenith = np.deg2rad(azimuth), np.deg2rad(zenith)
        if "columns_swapped" in self:
            azimuth, zenith = zenith, azimuth
        if "elevation" in self:
            zenith = np.pi / 2 - zenith
        if ("particle" in self) != ("mirror_z" in self):
            zenith = np.pi - zenith
        return self._turned(azimuth), zenith

    def undo(self, azimuth: Angles, zenith: Angles) -> tuple[Angles, Angles]:
        """Give back what the columns of the file hold, the azimuth in the reading's own turn."""
        if not self.words:
            return azimuth, zenith
        if ("particle" in self) != ("mirror_z" in self):
            zenith = np.pi - zenith
        if "elevation" in self:
            zenith = np.pi / 2 - zenith
        azimuth = self._turned_back(azimuth)
        if "columns_swapped" in self:
            azimuth, zenith = zenith, azimuth
        if "degrees" in self:
            azimuth, zenith = np.rad2deg(azimuth), np.rad2deg(zenith)
        return azimuth, zenith

    def in_range(self, azimuth: Angles, zenith: Angles) -> Mask:
        """Tell which values of the columns are possible: (B,) bool, False for what is missing."""
        azimuth, zenith = self.apply(azimuth, zenith)
        return in_range(azimuth, zenith)

    def wanted(self) -> str:
        """Say which values the columns may have."""
        unit, half = ("deg", "180") if "degrees" in self else ("rad", "pi = 3.1416")
        full = "360" if "degrees" in self else "2 pi = 6.2832"
        around = f"-{half} to {half}" if "azimuth_from_minus_pi" in self else f"0 to {full}"
        quarter = "90" if "degrees" in self else "pi/2 = 1.5708"
        up_down = f"-{quarter} to {quarter}" if "elevation" in self else f"0 to {half}"
        if "columns_swapped" in self:
            around, up_down = up_down, around
        return f"azimuth from {around} {unit}, zenith from {up_down} {unit}"

    def _turned(self, azimuth: Angles) -> Angles:
        low, high = self._turn()
        sign, offset = self._around()
        inside = _within(azimuth, low, high)
        turned = np.mod(offset + sign * np.where(inside, azimuth, 0.0), 2 * np.pi)
        # what is out of range stays so: an azimuth of 4 where -pi to pi is meant is none
        outside = np.where((azimuth > high) & (low < 0), azimuth + 2 * np.pi, azimuth)
        return np.where(inside, turned, outside)

    def _turned_back(self, azimuth: Angles) -> Angles:
        low, high = self._turn()
        sign, offset = self._around()
        inside = _within(azimuth, 0.0, MAX_AZIMUTH)
        back = np.mod(sign * (np.where(inside, azimuth, 0.0) - offset), 2 * np.pi)
        back = np.where(back > high, back - 2 * np.pi, back)
        outside = np.where((azimuth > high) & (low < 0), azimuth - 2 * np.pi, azimuth)
        return np.where(inside, back, outside)

    def _turn(self) -> tuple[float, float]:
        if "azimuth_from_minus_pi" in self:
            return -np.pi - ROUNDING, np.pi + ROUNDING
        return 0.0, MAX_AZIMUTH

    def _around(self) -> tuple[float, float]:
        """Give sign and offset of the azimuth: ours = offset + sign * theirs."""
        sign, offset = 1.0, 0.0
        if "particle" in self:
            offset += np.pi
        if "mirror_x" in self:
            sign, offset = -sign, np.pi - offset
        if "mirror_y" in self:
            sign, offset = -sign, -offset
        if "x_y_swapped" in self:
            sign, offset = -sign, np.pi / 2 - offset
        return sign, offset


AS_DOCUMENTED = LabelReading()
"""Radians of where the neutrino came from."""


@dataclass(frozen=True)
class ReadingFit:
    """How one reading of the labels agrees with the line fit.

    share_in_range: of the labels; the figures are None where a reading holds less than 99 %
    mean_angle_deg, agreement: with their standard errors
    gain, gain_error: of the agreement, against the labels as they are read, event by event
    """

    reading: LabelReading
    share_in_range: float
    mean_angle_deg: float | None = None
    mean_angle_error_deg: float | None = None
    agreement: float | None = None
    agreement_error: float | None = None
    gain: float = 0.0
    gain_error: float = 0.0
    n_events: int = 0

    @property
    def n_sigma(self) -> float:
        """Give the gain in standard errors."""
        return self.gain / self.gain_error if self.gain_error else 0.0

    @property
    def agrees(self) -> bool:
        """Tell that labels and line fit agree by more than chance allows."""
        if self.agreement is None or not self.agreement_error:
            return False
        return self.agreement >= N_SIGMA_OF_CHANCE * self.agreement_error


@dataclass(frozen=True)
class LabelFit:
    """The judgement on a sample of events.

    n_events: labelled events whose hits fix a line.  rows: one per reading, the present one first;
    none for too few events.  better: the reading that fits instead, None where the present
    one stands.  alike: readings that fit as well as the better one.
    """

    n_events: int
    rows: tuple[ReadingFit, ...] = ()
    better: ReadingFit | None = None
    alike: tuple[LabelReading, ...] = ()

    @property
    def agrees_nowhere(self) -> bool:
        """Tell that no reading agrees with the fit by more than chance allows."""
        return not any(row.agrees for row in self.rows)

    def found(self) -> str:
        """Say how much better the other reading is; '' where there is none."""
        if self.better is None:
            return ""
        present, better = self.rows[0], self.better
        also = "".join(f", or as well if {reading.sentence}" for reading in self.alike)
        return (
            f"{present.mean_angle_deg:.1f} deg on average between labels and line fit, agreement"
            f" {present.agreement:.3f}; but {better.mean_angle_deg:.1f} deg and"
            f" {better.agreement:.3f} if {better.reading.sentence}{also} ({better.n_sigma:.0f}"
            f" standard errors better, over {self.n_events:,} events)"
        )


def in_range(azimuth: Angles, zenith: Angles) -> Mask:
    """Tell which labels are possible: azimuth 0..2 pi, zenith 0..pi; (B,) bool."""
    return _within(azimuth, 0.0, MAX_AZIMUTH) & _within(zenith, 0.0, MAX_ZENITH)


def _within(values: Angles, low: float, high: float) -> Mask:
    return np.asarray((values >= low) & (values <= high))


def axis_readings(reading: LabelReading) -> tuple[LabelReading, ...]:
    """List a reading with its axes turned in all 16 ways, the likely ones first."""
    values = [word for word in reading.words if word in _VALUES]
    pairs = combinations(_MIRRORS, 2)
    ways: list[tuple[LabelWord, ...]] = [(), ("particle",), *((m,) for m in _MIRRORS), *pairs]
    found = [*ways, *((*way, "x_y_swapped") for way in ways)]
    return tuple(LabelReading.of((*values, *way)) for way in found)


def value_readings(reading: LabelReading) -> tuple[LabelReading, ...]:
    """List a reading with its columns swapped, in the other unit, and as angle to the horizon."""
    others = [reading.changed(word) for word in ("columns_swapped", "degrees", "elevation")]
    return tuple(r for other in others for r in (other, other.changed("particle")))


def range_remedy(
    azimuth: Angles,
    zenith: Angles,
    reading: LabelReading,
    complete: Callable[[LabelReading], LabelReading] = lambda found: found,
) -> str:
    """Say what to do about labels out of range.

    azimuth, zenith: (B,) as in the columns of the file.  reading: the one that does not hold them.
    complete: adds to a reading whose range fits what else a look at the events says.
    """
    if _of_two_units(azimuth, zenith):
        return "One column looks like degrees, the other like radians: write both in radians"
    if len(zenith) >= MIN_EVENTS_OF_COSINE and _greatest(zenith) <= 1 and zenith.min() < 0:
        return "zenith looks like its own cosine: write the angle, in radians"
    found = fitting_range(azimuth, zenith, reading)
    if found is None:
        return "Write azimuth and zenith in radians, as docs/data_formats.md says"
    share = float(found.in_range(azimuth, zenith).mean())
    found = complete(found)
    all_or_most = "All" if share == 1 else f"{share:.1%} of them"
    return f"{all_or_most} would fit if {found.sentence}: set {found.setting}"


def fitting_range(azimuth: Angles, zenith: Angles, reading: LabelReading) -> LabelReading | None:
    """Find the reading whose range holds the columns of a file, where the present one does not.

    Of several the one in radians and with the fewest words.
    Returns None where no reading holds 99 % of them.
    """
    rest = [word for word in reading.words if word not in _VALUES]
    choices = [
        [word for word, is_so in zip(_VALUES, chosen, strict=True) if is_so]
        for chosen in product((False, True), repeat=len(_VALUES))
    ]
    for words in sorted(choices, key=lambda words: ("degrees" in words, len(words))):
        found = LabelReading.of([*words, *rest])
        if len(azimuth) and found.in_range(azimuth, zenith).mean() >= MIN_SHARE_IN_RANGE:
            return found
    return None


def _of_two_units(azimuth: Angles, zenith: Angles) -> bool:
    """Tell columns of which one is in degrees and the other in radians."""
    greatest = sorted((_greatest(azimuth), _greatest(zenith)))
    return greatest[0] <= MAX_AZIMUTH < greatest[1] <= 360 + ROUNDING


def _greatest(column: Angles) -> float:
    """Give the greatest absolute value, a few damaged ones aside."""
    column = np.abs(column[np.isfinite(column)])
    return float(np.quantile(column, MIN_SHARE_IN_RANGE)) if len(column) else 0.0
