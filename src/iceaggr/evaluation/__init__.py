"""Evaluation: what a model is worth on events that nobody trained on."""
