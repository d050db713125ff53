"""A reader under test: sound examples of its input, how to damage them, and what it must not do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from iceaggr.errors import IceaggrError
from tests.fuzz.damage import Damage

MODULES = {
    "raw_pulses": "raw_targets",
    "meta": "raw_targets",
    "geometry": "raw_targets",
    "truth": "raw_targets",
    "sharding": "raw_targets",
    "manifest": "shard_targets",
    "shard": "shard_targets",
    "sketch": "shard_targets",
    "plan": "shard_targets",
    "config": "settings_targets",
    "normalization": "settings_targets",
    "documents": "settings_targets",
    "bundle": "model_targets",
    "checkpoint": "model_targets",
    "loader_state": "model_targets",
    "served_pulses": "model_targets",
}
"""Every target, and the module whose function of that name makes it."""

PARTS = ("what", "where", "found", "expected", "remedy")
"""What an error of ours must tell, each of them."""


@dataclass(frozen=True)
class Target:
    """One reader of bytes that come from outside.

    seeds: sound inputs; the reader must accept each
    damage: breaks one thing in the meaning of an input
    read: reads the bytes and checks what it got; an IceaggrError is a refusal, as it should be,
    and any other exception, a failed assertion above all, is a finding
    """

    name: str
    seeds: tuple[bytes, ...]
    damage: Damage
    read: Callable[[bytes], None]

    def accepts(self, data: bytes) -> bool:
        """Read an input; False when it was refused with an error of ours."""
        try:
            self.read(data)
        except IceaggrError as error:
            # the error itself must not outlive this block: pydantic's, behind it, would keep this
            # frame and the frame keep it, in a circle that no collector sees
            lacking = [part for part in PARTS if getattr(error, part) in ("", None)]
            words = str(error)
        else:
            return True
        assert not lacking, f"no {lacking[0]}: {words}"
        return False


@cache
def load_target(name: str) -> Target:
    """Make a target; what it needs is imported only now."""
    module = import_module(f"tests.fuzz.{MODULES[name]}")
    target: Target = getattr(module, name)()
    assert target.name == name
    return target
