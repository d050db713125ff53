"""Short waits: a fault costs the same number of tries as in production, in a fiftieth of the time.

With ICEAGGR_REAL_WAITS=1 every wait between tries lasts as long as it does for a user.
"""

import os
import time
from types import SimpleNamespace

import pytest

from iceaggr.storage import open_store, s3_client, s3_store
from tests.events.raw_layout import write_raw_layout
from tests.faults.fault_proxy import FaultProxy


def shortened(seconds):
    time.sleep(seconds / 50)


@pytest.fixture
def short_waits(monkeypatch):
    """Limits of a second instead of a minute, and short waits between tries."""
    # the real store answers in time on a busy machine, too: what is slow is slow on purpose
    monkeypatch.setattr(s3_client, "READ_TIMEOUT_S", 1.0)
    monkeypatch.setattr(s3_store, "PATIENCE_S", 0.3)
    monkeypatch.setattr(s3_store, "SLOWEST_BYTES_PER_S", 1 << 20)
    if os.environ.get("ICEAGGR_REAL_WAITS") != "1":
        monkeypatch.setattr(s3_client, "sleep", shortened)
        monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=shortened))


@pytest.fixture
def proxy(object_store_service, short_waits, monkeypatch):
    """A proxy in front of the real store, which `open_store` uses from now on."""
    with FaultProxy(object_store_service.s3_endpoint, stall_s=1.8) as proxy:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.setenv(name, proxy.uri)
        yield proxy


@pytest.fixture(scope="session")
def raw_files(tmp_path_factory):
    """Two small raw files with page checksums, as the simulation writes them."""
    folder = tmp_path_factory.mktemp("raw-for-faults")
    write_raw_layout(folder, n_files=2, n_events_per_file=60, mean_pulses=40, page_checksums=True)
    return folder


@pytest.fixture
def raw_in_bucket(raw_files, object_store_service):
    """The same in the store."""
    store = open_store(object_store_service.env)
    uri = "s3://iceaggr/faults/raw"
    for path in sorted(raw_files.rglob("*")):
        if path.is_file():
            store.upload(path, f"{uri}/{path.relative_to(raw_files)}")
    return uri
