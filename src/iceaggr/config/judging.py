"""Settings of evaluation and promotion."""

from __future__ import annotations

from pydantic import Field, field_validator

from iceaggr.config.bounds import MAX_EVENTS, Seed
from iceaggr.config.section import Section


class EvaluationConfig(Section):
    """How held-out events are scored."""

    n_bootstrap: int = Field(1000, ge=100, le=100_000)
    """Bootstrap samples behind each interval; 4 KiB of memory each."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Probability that an interval covers the true value."""
    max_events: int = Field(0, ge=0, le=MAX_EVENTS)
    """Stop after the minibatch that completes this many test events; 0 = all."""
    min_events_per_bin: int = Field(100, ge=2, le=1_000_000)
    """A bin with fewer events is marked as small in tables."""
    likelihood_fit: bool = True
    """Score the Pandel likelihood fit too, by far the slowest baseline (milliseconds per event)."""
    n_displays: int = Field(2, ge=0, le=6)
    """Event displays for each of the best, the median and the worst events."""
    seed: Seed = 0
    """Seed of the bootstrap, the random baseline and the choice of displayed events."""


class PromotionConfig(Section):
    """When a challenger replaces the champion."""

    model_name: str = "iceaggr-direction"
    """Name in the model registry."""
    min_gain_deg: float = Field(0.01, ge=0, le=180)
    """Smallest paired gain in mean opening angle, in degrees, that is worth a promotion."""
    min_sigma: float = Field(1.0, ge=0, le=1000)
    """The paired gain in mean opening angle must exceed this many of its standard errors."""
    max_calibration_loss: float = Field(0.02, ge=0, le=1)
    """By how much the challenger's mean coverage error may exceed the champion's."""
    max_calibration_gap: float = Field(0.25, gt=0, le=1)
    """No model is promoted whose coverage at 50, 68 and 90 % is off by more than this on average;
    models of loss.kind angle, which trains no kappa, are not asked."""
    min_shared_events: int = Field(500, ge=2, le=MAX_EVENTS)
    """Against a champion of another split: fewest events that are test events of both splits."""

    @field_validator("model_name")
    @classmethod
    def _name_can_be_registered(cls, name: str) -> str:
        if not (0 < len(name) <= 100 and name.isprintable() and name == name.strip()):
            raise ValueError("1 to 100 printable characters, no blank at either end")
        if set(name) & set("/\\:@'"):
            raise ValueError("no / \\ : @ or ' in it: models:/NAME@ALIAS names it")
        return name
