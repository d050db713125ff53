import platform
import subprocess
import sys

import numpy as np
import pytest

from iceaggr.events.workspace import Workspace

# counts the pages that the kernel hands out while 20 arrays of 1 MiB come and go
_COUNT_FAULTS = """
import resource, sys
import numpy as np
from iceaggr.events.workspace import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    arrays = [np.ones(1 << 20, np.uint8) for _ in range(20)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_workspace_gives_the_same_memory_again():
    workspace = Workspace()
    first = workspace.array("time", 1000, np.int64)
    again = workspace.array("time", 1100, np.float64)
    assert (len(first), first.dtype, len(again), again.dtype) == (1000, np.int64, 1100, np.float64)
    assert np.shares_memory(first, again)


def test_workspace_keeps_arrays_of_other_names_apart():
    workspace = Workspace()
    time, flag = workspace.array("time", 10, np.int64), workspace.array("flag", 10, np.bool_)
    time[:] = 7
    flag[:] = True
    assert not np.shares_memory(time, flag)
    assert time.tolist() == [7] * 10


def test_workspace_grows_when_more_is_asked_for():
    workspace = Workspace()
    workspace.array("time", 10, np.int64)
    assert len(workspace.array("time", 100_000, np.int64)) == 100_000
    assert len(workspace.array("time", 0, np.int64)) == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these options")
def test_keep_freed_memory_spares_most_fresh_pages():
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", _COUNT_FAULTS, mode]))
        for mode in ("plain", "kept")
    }
    assert faults["kept"] < 0.2 * faults["plain"]
