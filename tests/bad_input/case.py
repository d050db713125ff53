"""One kind of bad input: what is damaged, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.bad_input.scene import Scene


@dataclass(frozen=True)
class Stops:
    """The step stops with an error of which every part is there; each is a regular expression."""

    where: str
    found: str
    expected: str
    remedy: str
    words = "an error"


@dataclass(frozen=True)
class Quarantines:
    """Pulses and events are rejected, written out with their reason and counted."""

    pulses: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    words = "quarantine"


@dataclass(frozen=True)
class Accepts:
    """The input is sound after all; `check` looks at what came of it."""

    check: Callable[[Scene], None]
    words = "sound data"


@dataclass(frozen=True)
class Case:
    """A row of the table in cases.md and a test.

    name: identity of the test.  damaged, outcome: the words of the table
    damage: breaks the scene.  enter: the way in, as a user goes it
    """

    name: str
    damaged: str
    outcome: str
    damage: Callable[[Scene], object]
    expect: Stops | Quarantines | Accepts
    enter: Callable[[Scene], object] = Scene.shard
