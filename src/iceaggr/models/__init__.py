"""The network: pulses -> DOM transformer -> event transformer -> direction."""

from iceaggr.models.direction_output import DirectionOutput
from iceaggr.models.hierarchical import DirectionModel, build_model

__all__ = ["DirectionModel", "DirectionOutput", "build_model"]
