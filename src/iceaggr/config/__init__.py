"""Configuration: one frozen model per component, one sentence per field, unknown keys refused.

A configuration file is YAML with the sections of `ExperimentConfig`; what it leaves out keeps the
default of the field. `configs/` holds the presets. Nothing else in the project reads settings.
"""

from iceaggr.config.experiment import ExperimentConfig, load_config, parse_config
from iceaggr.config.sections import (
    BatchConfig,
    DataConfig,
    EvaluationConfig,
    LearningCheckConfig,
    LossConfig,
    ModelConfig,
    NormalizationConfig,
    PromotionConfig,
    Section,
    TrainingConfig,
)

__all__ = [
    "BatchConfig",
    "DataConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "LearningCheckConfig",
    "LossConfig",
    "ModelConfig",
    "NormalizationConfig",
    "PromotionConfig",
    "Section",
    "TrainingConfig",
    "load_config",
    "parse_config",
]
