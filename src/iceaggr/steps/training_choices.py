"""What the form of a run may choose about training, laid over its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from iceaggr.config import ExperimentConfig
from iceaggr.config.sections import MAX_MINUTES
from iceaggr.errors import ConfigError

AS_CONFIGURED = "configured"
STARTS = (AS_CONFIGURED, "scratch", "champion")


def parse_count(text: str, where: str, least: int = 0, also: str = "") -> int:
    """Read a number of GPUs or machines, which KFP hands on as text.

    also: a word that the caller takes instead, for the error.  Raises: ConfigError.
    """
    # isdigit alone lets pass what int does not read, such as a superscript
    if not (text.isascii() and text.isdigit() and len(text) < 5) or int(text) < least:
        raise ConfigError(
            "bad number",
            where=where,
            found=repr(text),
            expected=f"a whole number from {least}" + (f", or {also}" if also else ""),
            remedy="Correct the value, in the run form or on the command line",
        )
    return int(text)


def _check_gpu_count(text: str) -> str:
    if text != AS_CONFIGURED:
        parse_count(text, where="gpu_count", also=AS_CONFIGURED)
    return text


GpuCount = Annotated[str, AfterValidator(_check_gpu_count)]
"""GPUs of each machine as text, one process each; "0" = CPU, "configured" = one process on
training.device. KFP drops numbers, so it stays text from the form to the pod."""


def _check_minutes(minutes: float) -> float:
    if not 0 <= minutes <= MAX_MINUTES:
        raise ConfigError(
            "bad limit of training",
            where="max_train_minutes",
            found=minutes,
            expected=f"0 or more minutes, and an end within a year ({MAX_MINUTES:,.0f})",
            remedy="Give minutes, 0 for no limit",
        )
    return minutes


def _check_start(start: str) -> str:
    if start not in STARTS:
        raise ConfigError(
            "training cannot start from this",
            where="start_from",
            found=repr(start),
            expected=f"one of {', '.join(map(repr, STARTS))}",
            remedy="Choose one of them",
        )
    return start


@dataclass(frozen=True)
class TrainingChoices:
    """The choices of one run, checked when they are made.

    max_minutes: wall-clock limit of training; 0 = as configured
    start_from: "scratch", "champion", or "configured" for training.start_from
    Raises: ConfigError unless the minutes are not negative, gpu_count is a whole number and
    start_from one of the three.
    """

    max_minutes: Annotated[float, AfterValidator(_check_minutes)] = 0.0
    gpu_count: GpuCount = AS_CONFIGURED
    start_from: Annotated[str, AfterValidator(_check_start)] = AS_CONFIGURED

    @property
    def n_processes(self) -> int:
        """Count the processes of each machine."""
        return 1 if self.gpu_count == AS_CONFIGURED else max(1, int(self.gpu_count))

    def applied_to(self, config: ExperimentConfig) -> ExperimentConfig:
        """Lay the choices over the settings.

        Raises: ConfigError if training.device contradicts the number of GPUs.
        """
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


def chosen_words(configured: Mapping[str, Any], used: Mapping[str, Any]) -> str:
    """Say what a training had instead of its configuration, '' if it had what was configured.

    configured, used: the section `training`, as given and as `applied_to` left it.
    """
    return ", ".join(
        f"training.{name} {value} (configured {configured[name]})"
        for name, value in used.items()
        if name in configured and value != configured[name]
    )
