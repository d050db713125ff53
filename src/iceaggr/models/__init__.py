"""The network: pulses -> DOM transformer -> event transformer -> direction."""

from iceaggr.models.hierarchical import DirectionModel, DirectionOutput, build_model

__all__ = ["DirectionModel", "DirectionOutput", "build_model"]
