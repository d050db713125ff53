import numpy as np

from iceaggr.events.workspace import Workspace


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
