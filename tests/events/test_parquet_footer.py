from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iceaggr.errors import RawDataError
from iceaggr.events.parquet_footer import read_row_groups
from iceaggr.storage import open_store

N_ROWS = 50


def write(tmp_path, columns, **options):
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=20, **options)
    return path


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"use_dictionary": False}])
def test_row_groups_are_those_that_arrow_sees(tmp_path, dtype, options):
    values = np.random.default_rng(0).integers(-100, 100, N_ROWS).astype(dtype)
    path = write(tmp_path, {"other": np.arange(N_ROWS) / 2, "number": values}, **options)
    metadata = pq.read_metadata(path)
    groups = read_row_groups(open_store(), path.as_uri())
    assert [group.index for group in groups] == [0, 1, 2]
    for group in groups:
        arrow = metadata.row_group(group.index)
        assert group.n_rows == arrow.num_rows
        statistics = arrow.column(1).statistics
        assert group.bounds["number"] == (statistics.min, statistics.max)
        assert group.bounds["other"] is None


@pytest.mark.parametrize(
    ("column", "options"),
    [
        (pa.array([1, None, 3]), {}),
        (pa.array([1, 2, 3]), {"write_statistics": False}),
        (pa.array([1.0, 2.0, 3.0]), {}),
        (pa.array(["a", "b", "c"]), {}),
    ],
)
def test_bounds_are_unknown_where_the_footer_does_not_tell(tmp_path, column, options):
    path = write(tmp_path, {"column": column}, **options)
    assert read_row_groups(open_store(), path.as_uri())[0].bounds == {"column": None}


def test_columns_of_structs_and_lists_have_dotted_paths(tmp_path):
    path = write(tmp_path, {"pair": [{"a": 1, "b": 2}], "number": [7]})
    bounds = read_row_groups(open_store(), path.as_uri())[0].bounds
    assert bounds == {"pair.a": (1, 1), "pair.b": (2, 2), "number": (7, 7)}


@pytest.mark.parametrize("cut", [0, 3, 12, -1])
def test_footer_that_is_cut_names_the_file(tmp_path, cut):
    path = write(tmp_path, {"number": np.arange(N_ROWS)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(RawDataError, match=r"damaged, truncated or not parquet \[.*table.parquet"):
        read_row_groups(open_store(), path.as_uri())


@pytest.mark.parametrize("seed", range(40))
def test_footer_with_a_changed_byte_is_refused_or_read(tmp_path, seed):
    path = write(tmp_path, {"number": np.arange(N_ROWS)})
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    data[rng.integers(len(data) - 400, len(data) - 8)] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    with suppress(RawDataError):
        assert all(group.n_rows >= 0 for group in read_row_groups(open_store(), path.as_uri()))
