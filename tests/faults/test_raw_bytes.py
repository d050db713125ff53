"""Single flipped bits in raw files: none goes unnoticed where the pages carry checksums."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest

from iceaggr.errors import IceaggrError
from iceaggr.events.meta import count_events, read_event_tables
from iceaggr.events.pulses import stream_pulses
from iceaggr.events.reading import missing_meta_rows
from iceaggr.storage import open_store
from tests.events.raw_layout import write_raw_layout

N_FLIPS = 60


def content(raw_uri):
    """Hash all that sharding reads of batch 1 and of the meta file."""
    store, meta_uri = open_store(), f"{raw_uri}/train_meta.parquet"
    found = hashlib.sha256(repr(count_events(store, meta_uri)).encode())
    tables = read_event_tables(store, meta_uri, [1], labelled=True)
    if 1 not in tables:
        raise missing_meta_rows("batch_1", 1, meta_uri)
    found.update(tables[1].digest().encode())
    n_pulses = int(tables[1].n_pulses.sum())
    for chunk in stream_pulses(store, f"{raw_uri}/train/batch_1.parquet", n_pulses, tables[1]):
        for column in vars(chunk.pulses).values():
            found.update(np.ascontiguousarray(column).tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("name", ["train/batch_1.parquet", "train_meta.parquet"])
def test_flipped_bit_is_an_error_or_changes_nothing(name, tmp_path):
    raw_uri = write_raw_layout(tmp_path, 1, 60, mean_pulses=40, page_checksums=True)
    expected, path = content(raw_uri), tmp_path / name
    data, draw, n_errors = path.read_bytes(), random.Random(1), 0
    for _ in range(N_FLIPS):
        at = draw.randrange(len(data))
        flipped = bytes([data[at] ^ (1 << draw.randrange(8))])
        path.write_bytes(data[:at] + flipped + data[at + 1 :])
        try:
            assert content(raw_uri) == expected, f"byte {at}"
        except IceaggrError:
            n_errors += 1
    assert n_errors > N_FLIPS / 4
