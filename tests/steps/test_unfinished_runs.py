from dataclasses import replace

import pytest

from iceaggr.config import ExperimentConfig
from iceaggr.steps import unfinished_runs
from iceaggr.steps.close_run import run_close_run
from iceaggr.steps.context import RunContext
from iceaggr.steps.unfinished_runs import (
    KEPT_DAYS,
    delete_given_up,
    delete_temporary,
    note_unfinished,
)
from iceaggr.storage.file_store import FileStore

LEFT = (
    "checkpoints/step-1/model.safetensors",
    "checkpoints/latest.json",
    "has_checkpoints.json",
    "request/request.json",
    "start/model.json",
    "start.json",
)


@pytest.fixture
def failed(tmp_path):
    """A failed run with all that a retry needs, and its note."""
    context = RunContext("failed-run", "x", tmp_path.as_uri(), ExperimentConfig(), tracked=False)
    store = context.open_store()
    for name in (*LEFT, "model/m.json"):
        store.write_bytes(f"{context.run_uri}/training/{name}", b"x")
    note_unfinished(store, context, "FAILED")
    return context


@pytest.fixture
def later(failed):
    return replace(failed, run_id="later-run")


@pytest.fixture
def days_pass(monkeypatch):
    """Let time pass for the module under test."""
    real = unfinished_runs.time.time

    def pass_(days):
        monkeypatch.setattr(unfinished_runs.time, "time", lambda: real() + days * 24 * 3600)

    return pass_


def left(context):
    found = context.open_store().list(f"{context.run_uri}/training/")
    return {item.uri.split("/training/")[1] for item in found}


def notes(context):
    return context.open_store().list(f"{context.work_uri}/unfinished_runs/")


def test_delete_given_up_leaves_a_run_that_may_be_retried(failed, later, days_pass):
    days_pass(KEPT_DAYS - 1)
    assert delete_given_up(later.open_store(), later) == 0
    assert len(left(failed)) == len(LEFT) + 1


def test_delete_given_up_deletes_what_no_retry_came_for(failed, later, days_pass):
    days_pass(KEPT_DAYS + 1)
    assert delete_given_up(later.open_store(), later) == len(LEFT) - 1
    assert left(failed) == {"model/m.json"}
    assert notes(failed) == []


def test_delete_given_up_leaves_a_run_that_went_on(failed, later, days_pass):
    newer = f"{failed.run_uri}/training/checkpoints/latest.json"
    failed.open_store().write_bytes(newer, b"newer")
    days_pass(KEPT_DAYS + 1)
    assert delete_given_up(later.open_store(), later) == 0
    assert len(left(failed)) == len(LEFT) + 1


class StoppingStore(FileStore):
    """Is killed at the n-th deletion."""

    def __init__(self, n_deletions):
        self.n_left = n_deletions

    def delete(self, uri):
        if self.n_left == 0:
            raise KeyboardInterrupt
        self.n_left -= 1
        super().delete(uri)


@pytest.mark.parametrize("n_deletions", range(len(LEFT) - 1))
def test_delete_temporary_killed_half_way_keeps_the_pointer_and_is_repeated(failed, n_deletions):
    with pytest.raises(KeyboardInterrupt):
        delete_temporary(StoppingStore(n_deletions), failed.run_uri)
    # with it the rest is an incomplete checkpoint: neither a beginning nor a mark without one
    assert "checkpoints/latest.json" in left(failed)
    assert delete_temporary(failed.open_store(), failed.run_uri) == len(LEFT) - 1 - n_deletions
    assert left(failed) == {"start.json", "model/m.json"}


def test_close_run_forgets_a_run_whose_retry_succeeded(failed):
    failed.open_store().write_bytes(f"{failed.run_uri}/summary.json", b"{}")
    assert run_close_run(failed, "COMPLETE") == "FINISHED"
    assert notes(failed) == []


@pytest.mark.parametrize("state", ["FAILED", "RUNNING"])
def test_close_run_notes_a_run_without_success(later, state):
    run_close_run(later, state)
    assert [item.uri.rpartition("/")[2] for item in notes(later)] == [
        "failed-run.json",
        "later-run.json",
    ]


def test_close_run_closes_although_a_note_of_another_run_is_damaged(failed, later, capfd):
    failed.open_store().write_bytes(notes(failed)[0].uri, b"{}")
    assert run_close_run(later, "FAILED") == "FAILED"
    told = capfd.readouterr().out
    assert "those of earlier runs stay: not the note about an unfinished run" in told
