"""Packing: ragged segments sorted by length, so that equal lengths are attended together.

Linear layers see flat rows without any padding. Attention sees groups: neighbouring lengths
padded by at most a stated share, or not at all. Fused attention needs neither order nor groups.
Chunks bound the memory: segments never interact, so a chunk may be computed, forgotten and
recomputed alone. Letters: R rows, S segments, L length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from iceaggr.batches.event_batch import segment_idx
from iceaggr.config import ModelConfig

PADDING_SHARE = {"cpu": 0.06, "cuda": 0.25}
"""Padded rows tolerated to save calls: a call costs a GPU more than a few rows do."""
MAX_PAIRS = 8_000_000
"""Query-key pairs attended in one call."""


@dataclass(frozen=True)
class RowLimits:
    """Rows computed at once, and rows whose activations wait in memory for the backward pass."""

    per_chunk: int
    kept: int

    @classmethod
    def of(cls, config: ModelConfig, device: torch.device) -> RowLimits:
        """Take the configured limits, and those that suit the device where they are 0."""
        usual = _USUAL_LIMITS.get(device.type, _USUAL_LIMITS["cuda"])
        return cls(config.max_rows_per_chunk or usual.per_chunk, config.max_rows_kept or usual.kept)


_USUAL_LIMITS = {"cpu": RowLimits(4096, 32_768), "cuda": RowLimits(262_144, 1_048_576)}
"""On a CPU a chunk stays in its cache; a GPU wants few launches, and has the memory."""


@dataclass(frozen=True)
class Group:
    """Segments attended in one call.

    start, stop: packed rows, relative to the chunk.  n, length: padded shape.
    gather: (n, L) int64 rows relative to the chunk, or None when all lengths are equal
    is_real: (n, L) bool, False = padding; None when all lengths are equal
    real_rows: (stop - start,) int64, where is_real lies when flattened; None likewise
    """

    start: int
    stop: int
    n: int
    length: int
    gather: Tensor | None = None
    is_real: Tensor | None = None
    real_rows: Tensor | None = None

    def pad(self, rows: Tensor) -> Tensor:
        """Shape the chunk's rows (R, ...) into (n, L, ...); padding repeats a real row."""
        if self.gather is None:
            return rows[self.start : self.stop].view(self.n, self.length, *rows.shape[1:])
        # index_select has the cheaper backward pass
        flat = rows.index_select(0, self.gather.flatten())
        return flat.view(self.n, self.length, *rows.shape[1:])

    def unpad(self, padded: Tensor) -> Tensor:
        """Undo `pad`: (n, L, ...) into (stop - start, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.real_rows is None else flat.index_select(0, self.real_rows)


@dataclass(frozen=True)
class Chunk:
    """Whole segments that are computed together.

    rows: (R,) int64, original row of each packed row; a slice where they keep their order
    segment: (R,) int64, segment of each packed row, counted from 0 in the chunk
    offsets: (S+1,) int64, packed rows of segment s are [offsets[s], offsets[s+1])
    groups: what is attended together; empty where attention is fused
    """

    rows: Tensor | slice
    segment: Tensor
    offsets: Tensor
    groups: tuple[Group, ...] = ()

    @property
    def n_segments(self) -> int:
        """Count the segments (S)."""
        return self.offsets.shape[0] - 1

    def take(self, values: Tensor) -> Tensor:
        """Pick the chunk's rows of the whole, (all rows, ...) to (R, ...)."""
        if isinstance(self.rows, slice):
            return values[self.rows]
        return values.index_select(0, self.rows)


@dataclass(frozen=True)
class Packing:
    """All chunks, and the segments in packed order. segment_order: (S,) int64, None = as given."""

    chunks: tuple[Chunk, ...]
    segment_order: Tensor | None = None

    def restore(self, packed: Tensor) -> Tensor:
        """Put one row per segment, (S, ...) in packed order, back into the original order."""
        if self.segment_order is None:
            return packed
        restored = torch.empty_like(packed)
        return restored.index_copy(0, self.segment_order, packed)


def pack(offsets: Tensor, max_rows: int) -> Packing:
    """Plan the packing of segments.

    offsets: (S+1,) int64, no empty segment. max_rows: rows in one chunk (one segment may exceed).
    Raises: ValueError if a segment is empty.
    """
    device = offsets.device
    bounds = offsets.cpu().numpy()
    lengths = np.diff(bounds)
    if len(lengths) and lengths.min() < 1:
        raise ValueError(f"segment {int(lengths.argmin())} is empty, expected at least one row")
    order = np.argsort(lengths, kind="stable")
    chunks, first = [], 0
    for last in _chunk_ends(lengths[order], max_rows):
        chunks.append(_chunk(bounds, order[first:last], device))
        first = last
    return Packing(tuple(chunks), torch.from_numpy(order).to(device))


def pack_in_order(offsets: Tensor, n_rows: int, max_rows: int) -> Packing:
    """Plan chunks of whole segments in their given order, for fused attention.

    offsets: (S+1,) int64, no empty segment. max_rows: rows in one chunk (one segment may exceed).
    A batch that fits into one chunk is planned without waiting for the device.
    """
    n_segments = len(offsets) - 1
    if n_rows <= max_rows:
        return Packing((_chunk_in_order(offsets, 0, n_rows),))
    bounds = offsets.cpu().numpy()
    chunks, first = [], 0
    for last in _chunk_ends(np.diff(bounds), max_rows):
        n_before, n_chunk_rows = int(bounds[first]), int(bounds[last] - bounds[first])
        chunks.append(_chunk_in_order(offsets[first : last + 1] - n_before, n_before, n_chunk_rows))
        first = last
    assert first == n_segments
    return Packing(tuple(chunks))


def _chunk_in_order(offsets: Tensor, first_row: int, n_rows: int) -> Chunk:
    return Chunk(
        slice(first_row, first_row + n_rows),
        segment_idx(offsets, n_rows),
        offsets,
    )


def _chunk_ends(lengths: npt.NDArray[np.int64], max_rows: int) -> list[int]:
    """Cut segments so that each chunk holds at most max_rows rows."""
    ends: list[int] = []
    total = np.concatenate([[0], np.cumsum(lengths)])
    first = 0
    while first < len(lengths):
        last = int(np.searchsorted(total, total[first] + max_rows, side="right")) - 1
        ends.append(max(last, first + 1))
        first = ends[-1]
    return ends


def _chunk(
    bounds: npt.NDArray[np.int64], segments: npt.NDArray[np.int64], device: torch.device
) -> Chunk:
    lengths = bounds[segments + 1] - bounds[segments]
    offsets = np.append(0, np.cumsum(lengths))
    starts = offsets[:-1]
    segment = np.repeat(np.arange(len(segments)), lengths)
    rows = np.arange(lengths.sum()) + (bounds[segments] - starts)[segment]
    groups, first = [], 0
    for last in _group_ends(lengths, PADDING_SHARE.get(device.type, 0.25)):
        groups.append(_group(starts[first:last], lengths[first:last], device))
        first = last
    return Chunk(
        torch.from_numpy(rows).to(device),
        torch.from_numpy(segment).to(device),
        torch.from_numpy(offsets).to(device),
        tuple(groups),
    )


def _group_ends(lengths: npt.NDArray[np.int64], padding_share: float) -> list[int]:
    """Join runs of sorted lengths while the padding and the number of pairs stay small."""
    ends: list[int] = []
    first = 0
    run_ends = np.append(np.flatnonzero(np.diff(lengths)) + 1, len(lengths))
    total = np.concatenate([[0], np.cumsum(lengths)])
    for run, end in enumerate(run_ends):
        length = int(lengths[end - 1])
        most = max(1, MAX_PAIRS // length**2)
        while end - first > most:
            first += most
            ends.append(first)
        if first == end:
            continue
        following = run_ends[run + 1] if run + 1 < len(run_ends) else None
        if following is not None:
            padded = int(lengths[following - 1]) * (following - first)
            if padded <= (total[following] - total[first]) * (1 + padding_share):
                continue
        ends.append(int(end))
        first = int(end)
    return ends


def _group(
    starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], device: torch.device
) -> Group:
    longest = int(lengths[-1])
    start, stop = int(starts[0]), int(starts[-1] + longest)
    if lengths[0] == longest:
        return Group(start, stop, len(lengths), longest)
    slot = np.arange(longest)
    is_real = slot < lengths[:, None]
    gather = starts[:, None] + np.minimum(slot, lengths[:, None] - 1)
    return Group(
        start,
        stop,
        len(lengths),
        longest,
        torch.from_numpy(gather).to(device),
        torch.from_numpy(is_real).to(device),
        torch.from_numpy(np.flatnonzero(is_real)).to(device),
    )
