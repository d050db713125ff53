from __future__ import annotations

import json

import pytest
import torch

from iceaggr.errors import TrainingError
from iceaggr.models.kappa_map import KappaMap
from iceaggr.training.keeper import RunState, check_identity, random_state, restore_random_state


def test_state_survives_json() -> None:
    state = RunState(step=7, loader_position={"epoch": 1, "n_events_done": 32}, metrics={"a": None})
    assert RunState.from_document(json.loads(json.dumps(state.to_document()))) == state
    state.kappa_map = KappaMap(log_kappa=(0.0, 2.0), log_factor=(0.1, -0.2))
    assert RunState.from_document(json.loads(json.dumps(state.to_document()))) == state


def test_state_from_before_the_map_of_kappa_has_none() -> None:
    document = RunState(step=7).to_document()
    del document["kappa_map"]
    assert RunState.from_document(document) == RunState(step=7)


def test_state_refuses_a_missing_field() -> None:
    document = RunState().to_document()
    del document["loader_position"]
    with pytest.raises(ValueError, match="missing or unknown field loader_position"):
        RunState.from_document(document)


def test_random_state_continues_the_same_numbers() -> None:
    torch.manual_seed(5)
    torch.rand(3)
    states = json.loads(json.dumps(random_state()))
    expected = torch.rand(10)
    torch.manual_seed(99)
    restore_random_state(states)
    assert torch.equal(torch.rand(10), expected)


@pytest.mark.parametrize("states", [{}, {"cpu": "not base64!"}, {"cpu": "AAAA"}])
def test_damaged_random_state_is_refused(states: dict[str, str]) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="random state"):
        restore_random_state(states)
    assert torch.equal(torch.get_rng_state(), before)


def test_identity_lets_the_same_run_pass() -> None:
    identity = {"model": {"d_model": 8, "rates": [1.0, 2.0]}, "manifest_digest": "ab"}
    check_identity(json.loads(json.dumps(identity)), identity, "somewhere")


def test_setting_that_came_later_had_its_default_before() -> None:
    stored = {"training": {"learning_rate": 0.1}}
    present = {"training": {"learning_rate": 0.1, "optimizer": "adamw"}}
    check_identity(stored, present, "somewhere")
    present["training"]["optimizer"] = "muon"
    with pytest.raises(TrainingError, match=r"training\.optimizer.*found 'adamw'.*ted 'muon'"):
        check_identity(stored, present, "somewhere")


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ({"model": {"d_model": 16}, "manifest_digest": "ab"}, r"model\.d_model.*found 16.*ted 8"),
        (
            {"model": {"d_model": 8}, "manifest_digest": "cd"},
            "manifest_digest.*found 'cd'.*ted 'ab'",
        ),
        ({"model": {"d_model": 8}}, "manifest_digest.*found 'nothing'"),
    ],
)
def test_identity_names_what_differs(stored: dict[str, object], named: str) -> None:
    present = {"model": {"d_model": 8}, "manifest_digest": "ab"}
    with pytest.raises(TrainingError, match=f"checkpoint of another run: {named}"):
        check_identity(stored, present, "somewhere")
