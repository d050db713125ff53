"""A light-weight physics simulation that writes the public competition layout."""

from iceaggr.events.simulation.config import DEFAULT_PRESET, SimulationConfig, SimulationSummary
from iceaggr.events.simulation.run import simulate

__all__ = ["DEFAULT_PRESET", "SimulationConfig", "SimulationSummary", "simulate"]
