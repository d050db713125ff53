"""iceaggr: from raw IceCube pulses to a registered direction-reconstruction model."""

__version__ = "0.1.0"
