"""Evaluation: what a model is worth on events that nobody trained on."""

from iceaggr.evaluation.comparison import Comparison, compare_runs
from iceaggr.evaluation.evaluation import Evaluation, evaluate
from iceaggr.evaluation.event_table import predict_batches, stream_predictions
from iceaggr.evaluation.promotion import Verdict, decide_promotion
from iceaggr.evaluation.report import ReportContext
from iceaggr.events.truth import read_truth

__all__ = [
    "Comparison",
    "Evaluation",
    "ReportContext",
    "Verdict",
    "compare_runs",
    "decide_promotion",
    "evaluate",
    "predict_batches",
    "read_truth",
    "stream_predictions",
]
