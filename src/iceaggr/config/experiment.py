"""The whole configuration, and reading it from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from iceaggr.config.data import BatchConfig, DataConfig, NormalizationConfig
from iceaggr.config.judging import EvaluationConfig, PromotionConfig
from iceaggr.config.model import LossConfig, ModelConfig
from iceaggr.config.section import Section
from iceaggr.config.training import LearningCheckConfig, TrainingConfig
from iceaggr.errors import ConfigError


class ExperimentConfig(Section):
    """Everything that a run depends on besides its data."""

    name: str = "experiment"
    """Shown in MLflow and in reports."""
    data: DataConfig = DataConfig()
    normalization: NormalizationConfig = NormalizationConfig()
    batches: BatchConfig = BatchConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    learning_check: LearningCheckConfig = LearningCheckConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: PromotionConfig = PromotionConfig()

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ExperimentConfig:
        if self.model.d_model % self.model.n_heads:
            raise ValueError(
                f"model.d_model {self.model.d_model} is not a multiple of "
                f"model.n_heads {self.model.n_heads}"
            )
        return self


def parse_config(settings: dict[str, Any], where: str = "configuration") -> ExperimentConfig:
    """Validate settings. Raises: ConfigError naming the field, the value and what is allowed."""
    try:
        return ExperimentConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole file)"
        unknown = first["type"] == "extra_forbidden"
        raise ConfigError(
            f"unknown key {field}" if unknown else f"bad value for {field}",
            where=where,
            found=None if unknown else repr(first.get("input")),
            expected="a field of the section" if unknown else first["msg"],
            remedy="See src/iceaggr/config/ for every field and its meaning",
        ) from None


def load_config(path: str | Path) -> ExperimentConfig:
    """Read a YAML configuration. Raises: ConfigError if it is missing, not YAML or not valid."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            "configuration file not found", where=str(path), remedy="Presets are in configs/"
        )
    try:
        settings = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise ConfigError("configuration is not YAML", where=str(path), found=line) from None
    if not isinstance(settings, dict):
        raise ConfigError(
            "configuration has no sections",
            where=str(path),
            found=type(settings).__name__,
            expected="a mapping",
        )
    return parse_config(settings, where=str(path))
