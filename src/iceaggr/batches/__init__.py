"""Batches: EventBatch, collation, and the loader that feeds training and evaluation."""

from iceaggr.batches.collation import collate, iter_batches
from iceaggr.batches.event_batch import EventBatch, segment_idx
from iceaggr.batches.loader import EventLoader, Position

__all__ = ["EventBatch", "EventLoader", "Position", "collate", "iter_batches", "segment_idx"]
