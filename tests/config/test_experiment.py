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


def test_unknown_key_is_named_without_its_value() -> None:
    with pytest.raises(ConfigError, match="unknown key hf_token") as refused:
        parse_config({"hf_token": "canary-1"})
    assert "canary" not in str(refused.value)
