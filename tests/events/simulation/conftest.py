"""One simulated sample, shared by the tests of its layout, physics and summary figures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from iceaggr.events.simulation import SimulationConfig, SimulationSummary, simulate
from iceaggr.storage import open_store

SAMPLE = SimulationConfig(
    preset="easy", n_events=4_000, n_events_per_file=1_700, seed=1, n_processes=2
)
LEVEL = 1e-3
"""A right draw fails a test of this level once in a thousand seeds; the seeds are fixed."""


def near_share(share: float, n: int):
    """Accept a count of n draws within four of its binomial errors, as a share."""
    return pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n))


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimulationSummary]:
    folder = tmp_path_factory.mktemp("simulated") / "raw"
    return folder, simulate(open_store(), f"file://{folder}", SAMPLE)


@pytest.fixture(scope="session")
def columns(sample: tuple[Path, SimulationSummary]) -> Callable[[str], dict]:
    folder, _ = sample

    def read(name: str) -> dict:
        table = pq.read_table(folder / name)
        return {column: table[column].to_numpy() for column in table.column_names}

    return read
