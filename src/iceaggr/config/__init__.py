"""Configuration: one frozen model per component, one sentence per field, unknown keys refused.

A configuration file is YAML with the sections of `ExperimentConfig`; what it leaves out keeps the
default of the field. `configs/` holds the presets. Nothing else in the project reads settings.
"""

from iceaggr.config.data import BatchConfig, DataConfig, NormalizationConfig
from iceaggr.config.experiment import ExperimentConfig, load_config, parse_config
from iceaggr.config.judging import EvaluationConfig, PromotionConfig
from iceaggr.config.model import LossConfig, ModelConfig
from iceaggr.config.section import Section
from iceaggr.config.training import LearningCheckConfig, TrainingConfig

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
