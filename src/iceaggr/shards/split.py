"""The split of an event: a pure function of its id, where raw events bring no split of their own.

An event never changes split when data grows, files are renamed or the order changes, so next
month's model is still judged on events that nobody trained on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from iceaggr.errors import RawDataError
from iceaggr.shards.encoding import SPLITS

TRAIN, VALIDATION, TEST = (SPLITS.index(name) for name in ("train", "validation", "test"))
SPLIT_FIELDS = ("split_salt", "validation_share", "test_share")
"""The settings of a split, as `data` and the manifest call them, in the order of `split_idx`."""

MIN_EVENTS_OF_SPLIT = 2
"""Each figure has an error beside it, and one event has none."""
CERTAINTY = 0.999
"""Of the number of events that is named: a hash may put few of some events into a split."""


def refuse_small_splits(
    n_events: Mapping[str, int], validation_share: float, test_share: float, where: str
) -> None:
    """Refuse data of which a split would have no event or one.

    n_events: of each of SPLITS.
    Raises: RawDataError naming the splits, and a number of events that would do.
    """
    small = [name for name in SPLITS if n_events.get(name, 0) < MIN_EVENTS_OF_SPLIT]
    if not small:
        return
    counts = ", ".join(f"{name} {n_events.get(name, 0):,}" for name in SPLITS)
    shares = {
        "train": 1 - validation_share - test_share,
        "validation": validation_share,
        "test": test_share,
    }
    enough = max(events_that_fill(share) for share in shares.values())
    settings = [f"data.{name}_share" for name in small if name != "train"]
    or_raise = f", or raise {' and '.join(settings)}" if settings else ""
    raise RawDataError(
        f"too few events for the split{'s' * (len(small) > 1)} {' and '.join(small)}",
        where=where,
        found=f"{sum(n_events.values()):,} events: {counts}",
        expected=f"at least {MIN_EVENTS_OF_SPLIT} in each split, for figures with an error",
        remedy=f"Give {enough:,} events or more{or_raise}; to learn, a network needs thousands",
    )


def events_that_fill(share: float) -> int:
    """Count the events of which a split of this share almost surely has two."""
    # P(none or one) of n independent events, each in the split with this probability
    n_events = MIN_EVENTS_OF_SPLIT
    while (1 - share) ** (n_events - 1) * (1 + (n_events - 1) * share) > 1 - CERTAINTY:
        n_events = math.ceil(1.05 * n_events)
    return n_events


def split_idx(
    event_id: npt.NDArray[np.int64],
    salt: str,
    validation_share: float,
    test_share: float,
    is_test: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.int8]:
    """Assign events to splits by a salted hash of their id.

    The hash spreads the id over [0, 1): below test_share is test, the top validation_share is
    validation. The two ends are apart, so changing one share never moves an event between the
    other split and train.
    event_id: (B,) int64.  is_test: (B,) bool, the split that the raw events bring: it alone says
    what is test, and the hash takes validation out of the rest.
    Returns (B,) int8, index in SPLITS.
    """
    share = (mixed_bits(event_id, salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    split = np.full(len(event_id), TRAIN, np.int8)
    split[share >= 1 - validation_share] = VALIDATION
    split[share < test_share if is_test is None else is_test] = TEST
    return split


def mixed_bits(event_id: npt.NDArray[np.int64], salt: str) -> npt.NDArray[np.uint64]:
    """Mix every bit of the id into every bit of the result.

    Source: the finaliser of SplitMix64, Steele, Lea and Flood, "Fast splittable pseudorandom
    number generators", OOPSLA 2014 (variant 13 of Stafford); the salt is its seed.
    """
    seed = int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "little")
    mixed = event_id.astype(np.uint64)
    mixed = (mixed * np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(seed)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
