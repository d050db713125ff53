import numpy as np
import pandas as pd
import pytest

from iceaggr.errors import RawDataError
from iceaggr.events import unique_ids
from iceaggr.events.unique_ids import refuse_repeated_ids
from iceaggr.storage import open_store
from tests.events.raw_tables import meta_frame

N_EVENTS = 30


def write_meta(tmp_path, ids_of_batches, **options):
    """Write a meta file: the event ids of batch 1, of batch 2, and so on."""
    parts = [
        meta_frame([2] * len(ids), batch_id=batch_id, event_id=np.array(ids))
        for batch_id, ids in enumerate(ids_of_batches, start=1)
    ]
    path = tmp_path / "train_meta.parquet"
    pd.concat(parts).to_parquet(path, index=False, **options)
    return path.as_uri()


def interleaved(n_batches):
    """Ids of which every batch has some everywhere."""
    return [list(range(batch, N_EVENTS * n_batches, n_batches)) for batch in range(n_batches)]


@pytest.mark.parametrize("options", [{"row_group_size": 30}, {"row_group_size": 7}, {}])
@pytest.mark.parametrize("statistics", [True, False])
def test_ids_that_differ_are_accepted_whatever_the_row_groups(tmp_path, options, statistics):
    for ids in (interleaved(4), [list(range(30)), list(range(30, 60)), list(range(60, 90))]):
        uri = write_meta(tmp_path, ids, write_statistics=statistics, **options)
        refuse_repeated_ids(open_store(), uri, range(1, len(ids) + 1))


@pytest.mark.parametrize("options", [{"row_group_size": 30}, {"row_group_size": 7}, {}])
@pytest.mark.parametrize("limit", [1 << 24, 40])
@pytest.mark.parametrize("places", [((0, 0), (3, 29)), ((1, 15), (2, 15))])
def test_one_repeated_id_is_found_and_named_with_its_files(
    tmp_path, monkeypatch, options, limit, places
):
    monkeypatch.setattr(unique_ids, "MAX_IDS_TOGETHER", limit)
    ids = interleaved(4)
    (batch, row), (other, other_row) = places
    ids[other][other_row] = ids[batch][row]
    uri = write_meta(tmp_path, ids, **options)
    found = rf"event_id {ids[batch][row]} in batch_id {batch + 1}, {other + 1},"
    with pytest.raises(RawDataError, match=rf"occurs twice in the raw files \[.*{found}"):
        refuse_repeated_ids(open_store(), uri, [1, 2, 3, 4])


def test_batches_that_are_not_used_do_not_count(tmp_path):
    uri = write_meta(tmp_path, [[1, 2, 3], [4, 5, 6], [3, 7, 8]], row_group_size=2)
    refuse_repeated_ids(open_store(), uri, [1, 2])
    with pytest.raises(RawDataError, match="event_id 3 in batch_id 1, 3,"):
        refuse_repeated_ids(open_store(), uri, [1, 3])


def test_row_groups_that_cannot_share_an_id_are_not_read(tmp_path, monkeypatch):
    ids = [list(range(100 * batch, 100 * batch + 30)) for batch in range(5)]
    uri = write_meta(tmp_path, ids, row_group_size=30)
    monkeypatch.setattr(unique_ids, "_read", None)  # nothing may be read
    refuse_repeated_ids(open_store(), uri, [1, 2, 3, 4, 5])
