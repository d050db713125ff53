"""Learning rate and the share of the run that is done.

Everything that changes during a run (learning rate, mix of losses) is a function of one number,
the progress in [0, 1]:

    progress = max(steps done / steps planned, time used / time available)

Steps planned are all epochs, each as long as the first; time available is `max_minutes` less what
the last validation is expected to take. Progress never falls. Without a time limit it depends on
the step alone, and a run is reproducible and resumes bit for bit; with one it depends on the
clock, and a repeated run differs slightly.
"""

from __future__ import annotations

import math

from iceaggr.config import TrainingConfig

START_SHARE = 1 / 25
"""one_cycle starts at this share of the peak rate."""
MAX_RESERVED_SHARE = 0.5
"""The last validation may claim at most this share of the time limit."""


class Pace:
    """Says how much of a run is done; never goes backwards."""

    def __init__(self, n_steps_planned: int, limit_s: float, reached: float = 0.0) -> None:
        self.n_steps_planned = n_steps_planned
        self.limit_s = limit_s
        self.reached = reached
        self.time_is_up = False

    def advance(self, step: int, elapsed_s: float, reserve_s: float) -> float:
        """Give the progress after `step` steps and `elapsed_s` seconds.

        reserve_s: seconds to keep for the last validation and checkpoint.
        """
        done = step / self.n_steps_planned
        if self.limit_s > 0:
            reserve_s = min(reserve_s, MAX_RESERVED_SHARE * self.limit_s)
            time_share = elapsed_s / (self.limit_s - reserve_s)
            self.time_is_up = time_share >= 1
            done = max(done, time_share)
        self.reached = min(1.0, max(self.reached, done))
        return self.reached


def learning_rate_at(progress: float, config: TrainingConfig) -> float:
    """Give the learning rate at a progress in [0, 1].

    one_cycle: linear from 1/25 of the peak to the peak during warm-up, then a half cosine to zero.
    Raises: ValueError if the progress is outside [0, 1].
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress is {progress}, expected 0..1")
    if config.schedule == "constant":
        return config.learning_rate
    warmup = config.warmup_share
    if progress < warmup:
        return config.learning_rate * (START_SHARE + (1 - START_SHARE) * progress / warmup)
    share = (progress - warmup) / (1 - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
