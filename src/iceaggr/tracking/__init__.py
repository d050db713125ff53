"""Experiment tracking and the model registry, on MLflow (the only importers of it)."""

from iceaggr.tracking.run import MlflowTracker, open_tracker

__all__ = ["MlflowTracker", "open_tracker"]
