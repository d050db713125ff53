"""Which events a model has not been trained with, also if its split was another one than today's.

A model that was trained with another salt or other shares has seen most of the events that are test
events now: judged on those, it would win by what it remembers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from iceaggr.shards.split import SPLIT_FIELDS, TEST, split_idx


def split_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Read from a saved model's facts the split that it was trained with: salt and shares.

    Returns an empty dict if the model does not say all of it.
    """
    data = facts.get("experiment", {}).get("data", {})
    return {name: data[name] for name in SPLIT_FIELDS} if data.keys() >= {*SPLIT_FIELDS} else {}


def kept_for_testing(
    split: Mapping[str, Any], event_id: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Tell which events are test events of a split that `split_of` gave.

    event_id: (N,) int64. Returns (N,) bool.
    """
    return split_idx(event_id, *(split[name] for name in SPLIT_FIELDS)) == TEST
