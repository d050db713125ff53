import os

import pytest

from iceaggr.errors import StorageError
from iceaggr.storage import open_store


def test_link_that_leads_nowhere_is_no_absent_file(tmp_path):
    (tmp_path / "geometry.csv").symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match=r"not a file .*geometry.csv.*a link that leads nowhere"):
        open_store().stat((tmp_path / "geometry.csv").as_uri())


def test_pipe_is_no_absent_file(tmp_path):
    os.mkfifo(tmp_path / "geometry.csv")
    with pytest.raises(StorageError, match=r"not a file .*geometry.csv.*a device, pipe or socket"):
        open_store().stat((tmp_path / "geometry.csv").as_uri())
