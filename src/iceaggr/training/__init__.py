"""Training: a manifest in, a model out; resumable, guarded, watched."""

from iceaggr.signals import EXIT_CODE_INTERRUPTED, TrainingInterruptedError
from iceaggr.training.inputs import (
    TrainingInputs,
    TrainingProgress,
    TrainingResult,
    normalization_shift,
    start_from_model,
)
from iceaggr.training.learning_check import (
    LearningRow,
    check_learning,
    learning_check_html,
    learning_check_table,
    learning_check_text,
)
from iceaggr.training.run import train

__all__ = [
    "EXIT_CODE_INTERRUPTED",
    "LearningRow",
    "TrainingInputs",
    "TrainingInterruptedError",
    "TrainingProgress",
    "TrainingResult",
    "check_learning",
    "learning_check_html",
    "learning_check_table",
    "learning_check_text",
    "normalization_shift",
    "start_from_model",
    "train",
]
