"""A light-weight physics simulation that writes the public competition layout."""

from iceaggr.events.simulation.config import SimulationConfig, SimulationSummary
from iceaggr.events.simulation.run import simulate

__all__ = ["SimulationConfig", "SimulationSummary", "simulate"]
