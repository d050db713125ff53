"""What the form of a run may choose about training, laid over its configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass

from iceaggr.config import ExperimentConfig
from iceaggr.errors import ConfigError

AS_CONFIGURED = "configured"
STARTS = (AS_CONFIGURED, "scratch", "champion")


@dataclass(frozen=True)
class TrainingChoices:
    """The choices of one run.

    max_minutes: wall-clock limit of training; 0 = as configured
    gpu_count: GPUs of each machine as text, one process each; "0" = CPU
    start_from: "scratch", "champion", or "configured" for training.start_from
    """

    max_minutes: float = 0.0
    gpu_count: str = "0"
    start_from: str = AS_CONFIGURED

    def applied_to(self, config: ExperimentConfig) -> ExperimentConfig:
        """Lay the choices over the settings.

        Raises: ConfigError unless gpu_count is a whole number, the minutes are not negative and
        start_from is one of the three.
        """
        self._check()
        changes: dict[str, object] = {"device": "cuda" if int(self.gpu_count) else "cpu"}
        if self.max_minutes:
            changes["max_minutes"] = self.max_minutes
        if self.start_from != AS_CONFIGURED:
            changes["start_from"] = self.start_from
        return config.model_copy(update={"training": config.training.model_copy(update=changes)})

    def _check(self) -> None:
        if not self.gpu_count.isdigit():
            raise ConfigError(
                "bad GPU count",
                where="gpu_count",
                found=repr(self.gpu_count),
                expected='"0", "1", ...',
                remedy="Give the number of GPUs of the step, 0 for none",
            )
        if not 0 <= self.max_minutes < math.inf:
            raise ConfigError(
                "bad limit of training",
                where="max_train_minutes",
                found=self.max_minutes,
                expected="0 or more minutes, and an end",
                remedy="Give minutes, 0 for no limit",
            )
        if self.start_from not in STARTS:
            raise ConfigError(
                "training cannot start from this",
                where="start_from",
                found=repr(self.start_from),
                expected=f"one of {', '.join(map(repr, STARTS))}",
                remedy="Choose one of them",
            )
