"""Conversion of other people's files into the raw layout."""

from iceaggr.events.conversion.convert import ConversionSettings, convert, plan_conversion

__all__ = ["ConversionSettings", "convert", "plan_conversion"]
