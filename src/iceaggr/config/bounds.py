"""Bounds that several sections share. Every number of a configuration has a lower and an upper one.

What lies beyond them is a slip of the keyboard: it would end a step hours later, out of memory or
in an error of a library that knows no field. Each upper bound leaves room for any detector, data
set and machine of today.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MAX_SEED = 2**31 - 1
"""Every random generator takes the seeds up to here, and the few numbers after it."""
MAX_EVENTS = 10**10
"""Seventy times the events of the public set."""
MAX_MINUTES = 525_600.0
"""A year."""
MAX_LEARNING_RATE = 1.0
"""A step of AdamW moves each weight by about the learning rate, and weights are below one."""

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
LearningRate = Annotated[float, Field(gt=0, le=MAX_LEARNING_RATE)]
