from __future__ import annotations

import pytest

from iceaggr.config.experiment import parse_config
from iceaggr.errors import ConfigError


@pytest.mark.parametrize("name", ["", "x" * 101, "a\x1b[31mb", "a\0b", "a\nb"])
def test_name_has_printable_characters_and_not_too_many(name: str) -> None:
    with pytest.raises(ConfigError, match=r"bad value for name.*1 to 100 printable characters"):
        parse_config({"name": name})


@pytest.mark.parametrize("name", ["a/b", "../../etc/x", "..", " x", "a\\b"])
def test_name_leads_nowhere(name: str) -> None:
    with pytest.raises(ConfigError, match=r"bad value for name.*no / or"):
        parse_config({"name": name})


@pytest.mark.parametrize("name", ["laptop", "Größe 1 (µ)", "rate=1e-3, seed.2"])
def test_name_may_be_any_other(name: str) -> None:
    assert parse_config({"name": name}).name == name


@pytest.mark.parametrize("name", ["", "a\nb", " a", "x" * 101, "a/b", "a:b", "a@b", "it's"])
def test_registered_name_is_one_that_the_registry_can_find(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"promotion\.model_name.*(printable|in it: models:/NAME)"
    ):
        parse_config({"promotion": {"model_name": name}})


def test_events_are_left_for_training() -> None:
    shares = {"validation_share": 0.45, "test_share": 0.45}
    assert parse_config({"data": shares}).data.test_share == 0.45
    with pytest.raises(ConfigError, match=r"at most 0\.9 together, not 0\.92"):
        parse_config({"data": {**shares, "test_share": 0.47}})


@pytest.mark.parametrize(("field", "most"), [("n_workers", 256), ("n_batches_ahead", 4096)])
def test_threads_and_batches_have_a_limit(field: str, most: int) -> None:
    assert getattr(parse_config({"batches": {field: most}}).batches, field) == most
    with pytest.raises(ConfigError, match=rf"{field} .*found 1000000, expected {most} or less"):
        parse_config({"batches": {field: 1_000_000}})


def test_cache_is_a_local_folder_and_a_secret_in_its_uri_is_not_quoted() -> None:
    uri = "s3://KEY:canary/1@bucket/cache"
    with pytest.raises(ConfigError, match="a local folder, not a URI") as refused:
        parse_config({"batches": {"cache_folder": uri}})
    assert "canary" not in str(refused.value)


def test_unknown_key_is_named_without_its_value() -> None:
    with pytest.raises(ConfigError, match="unknown key hf_token") as refused:
        parse_config({"hf_token": "canary-1"})
    assert "canary" not in str(refused.value)
