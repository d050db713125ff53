"""The file of the predictions: never among the raw events, and whole or absent."""

import errno
import resource
import signal
from pathlib import Path

import pyarrow as pa
import pytest

from iceaggr.errors import ConfigError
from iceaggr.evaluation.event_table import PREDICTION_SCHEMA, write_predictions
from iceaggr.steps.predict import check_output


@pytest.mark.parametrize("name", ["test/batch_1.parquet", "test_meta.parquet", "new/../new.csv"])
def test_output_among_the_raw_events_is_refused(tmp_path: Path, name: str) -> None:
    raw = tmp_path / "raw 100 %"
    for folder in ("test", "new"):
        (raw / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to(raw)
    for output in (raw / name, tmp_path / "link" / name):
        for uri in (raw.as_uri(), (tmp_path / "link").as_uri()):
            with pytest.raises(ConfigError, match=r"among the raw events \[--output .*outside the"):
                check_output(output, uri)
    assert sorted(path.name for path in raw.rglob("*")) == ["new", "test"]


def test_output_beside_the_raw_events_or_of_events_elsewhere_is_taken(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    check_output(tmp_path / "raw.parquet", (tmp_path / "raw").as_uri())
    check_output(tmp_path / "raw" / "x.csv", "s3://bucket/raw")


def test_full_disk_is_that_of_the_predictions(tmp_path: Path) -> None:
    def tables():
        yield pa.table({name: [] for name in PREDICTION_SCHEMA.names}, schema=PREDICTION_SCHEMA)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # from here on a write fails

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match=r"File too large.*out\.parquet") as caught:
            write_predictions(tables(), tmp_path / "out.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_is_not_called_the_output(tmp_path: Path) -> None:
    def tables():
        raise OSError(errno.EIO, "Input/output error", "/raw/batch_1.parquet")
        yield

    for name in ("out.parquet", "out.csv"):
        with pytest.raises(OSError, match=r"error: '/raw/batch_1\.parquet'"):
            write_predictions(tables(), tmp_path / name)
    assert not list(tmp_path.iterdir())
