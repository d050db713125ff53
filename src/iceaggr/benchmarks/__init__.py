"""Benchmarks: how fast and how large, as JSON-able figures."""
