"""Experiment tracking and the model registry, on MLflow (the only importers of it)."""
