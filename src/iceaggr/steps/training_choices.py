"""What the form of a run may choose about training, laid over its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from iceaggr.config import ExperimentConfig
from iceaggr.config.sections import MAX_MINUTES
from iceaggr.errors import ConfigError

AS_CONFIGURED = "configured"
STARTS = (AS_CONFIGURED, "scratch", "champion")


@dataclass(frozen=True)
class TrainingChoices:
    """The choices of one run.

    max_minutes: wall-clock limit of training; 0 = as configured
    gpu_count: GPUs of each machine as text, one process each; "0" = CPU, "configured" = one process
        on training.device
    start_from: "scratch", "champion", or "configured" for training.start_from
    """

    max_minutes: float = 0.0
    gpu_count: str = AS_CONFIGURED
    start_from: str = AS_CONFIGURED

    @property
    def n_processes(self) -> int:
        """Count the processes of each machine. Raises: ConfigError if gpu_count is no number."""
        self._check()
        return 1 if self.gpu_count == AS_CONFIGURED else max(1, int(self.gpu_count))

    def applied_to(self, config: ExperimentConfig) -> ExperimentConfig:
        """Lay the choices over the settings.

        Raises: ConfigError unless gpu_count is a whole number that training.device does not
        contradict, the minutes are not negative and start_from is one of the three.
        """
        self._check()
        changes: dict[str, object] = {"device": self._device(config.training.device)}
        if self.max_minutes:
            changes["max_minutes"] = self.max_minutes
        if self.start_from != AS_CONFIGURED:
            changes["start_from"] = self.start_from
        return config.model_copy(update={"training": config.training.model_copy(update=changes)})

    def _device(self, configured: str) -> str:
        if self.gpu_count == AS_CONFIGURED:
            return configured
        chosen = "cuda" if int(self.gpu_count) else "cpu"
        if configured not in (chosen, "auto"):
            raise ConfigError(
                "the settings name another device than the run has",
                where="training.device and gpu_count",
                found=f"device {configured} and {int(self.gpu_count)} GPUs",
                expected="a GPU or more for cuda, none for cpu, any number for auto",
                remedy="Change one of the two: 0 GPUs mean the CPU",
            )
        return chosen

    def _check(self) -> None:
        if self.gpu_count != AS_CONFIGURED and not _is_count(self.gpu_count):
            raise ConfigError(
                "bad GPU count",
                where="gpu_count",
                found=repr(self.gpu_count),
                expected=f"0, 1, ... or {AS_CONFIGURED}",
                remedy="Give the number of GPUs of the step, 0 for none",
            )
        if not 0 <= self.max_minutes <= MAX_MINUTES:
            raise ConfigError(
                "bad limit of training",
                where="max_train_minutes",
                found=self.max_minutes,
                expected=f"0 or more minutes, and an end within a year ({MAX_MINUTES:,.0f})",
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


def _is_count(text: str) -> bool:
    # isdigit alone lets pass what int does not read, such as a superscript
    return text.isascii() and text.isdigit() and len(text) < 5
