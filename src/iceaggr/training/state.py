"""Where a run stands: everything besides tensors that a resumed run needs, as readable JSON."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from pydantic import TypeAdapter

from iceaggr.errors import TrainingError
from iceaggr.training.inputs import TrainingInputs
from iceaggr.validation import shown

# Settings that may change between two attempts of one run without changing its result.
_NOT_IDENTITY = {
    "training": {
        "device",
        "n_checkpoints_kept",
        "checkpoint_every_minutes",
        "checkpoint_every_n_epochs",
        "log_every_n_steps",
        "stop_if_diverged",
        "start_from",  # what came of it counts: the weights, below
    },
    "model": {"max_rows_kept"},  # what is not kept is recomputed with the same random numbers
    "batches": {"n_workers", "n_batches_ahead", "cache_folder", "cache_gib"},
}


@dataclass
class RunState:
    """Counters of a run; NaN is stored as null.

    step: optimiser steps done.  epoch: epochs completed
    n_batches_in_epoch: done of the present epoch; loader_position: where to go on in it
    n_events_left_out: at ends of epochs, when fewer events than processes were left
    progress: share of the run that is done, as the schedule saw it last
    validated_step: step of the last validation, -1 before the first
    validation_due: an epoch has ended and its validation has not
    validation_s: seconds the longest validation took, for keeping time for the last one
    stopped: why the run ended; empty while it goes on
    """

    step: int = 0
    epoch: int = 0
    n_batches_in_epoch: int = 0
    loader_position: dict[str, int] | None = None
    n_events_seen: int = 0
    n_events_left_out: int = 0
    elapsed_s: float = 0.0
    progress: float = 0.0
    validated_step: int = -1
    validation_due: bool = False
    validation_s: float = 0.0
    best_validation_opening_angle_deg: float | None = None
    last_validation_opening_angle_deg: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    stopped: str = ""

    @property
    def is_finished(self) -> bool:
        """Tell whether the run has ended and its last weights are validated."""
        return bool(self.stopped) and self.validated_step == self.step

    def to_document(self) -> dict[str, Any]:
        """Give the state as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> RunState:
        """Read a state. Raises: ValueError if a field is missing, unknown or impossible."""
        if not isinstance(document, dict):
            raise ValueError(f"state {shown(document)}")
        wrong = {f.name for f in fields(cls)} ^ set(document)
        if wrong:
            raise ValueError(f"missing or unknown field {sorted(wrong)[0]}")
        state = _STATE.validate_python(document)
        counts = (state.step, state.epoch, state.n_batches_in_epoch, state.n_events_seen)
        if min(counts) < 0 or not 0 <= state.progress <= 1 or state.validated_step < -1:
            raise ValueError(f"step, epoch, batches, events {counts}, progress {state.progress}")
        return state


_STATE = TypeAdapter(RunState)


def run_identity(inputs: TrainingInputs, world_size: int) -> dict[str, Any]:
    """Describe what makes two attempts the same run: settings, start, data, detector."""
    sections = inputs.config.model_dump(mode="json")
    kept = {
        name: {k: v for k, v in sections[name].items() if k not in _NOT_IDENTITY.get(name, ())}
        for name in ("normalization", "batches", "model", "loss", "training")
    }
    start = inputs.start
    return {
        **kept,
        **({"start": {"model": start.name, "sha256": start.digest()}} if start else {}),
        "normalization_document": json.loads(inputs.normalization.to_json()),
        "manifest_digest": inputs.manifest.digest(),
        "geometry_sha256": hashlib.sha256(inputs.geometry_csv.encode()).hexdigest(),
        "n_processes": world_size,
    }


def check_identity(stored: dict[str, Any], present: dict[str, Any], where: str) -> None:
    """Refuse to resume another run.

    Raises: TrainingError naming the first setting that differs.
    """
    found, expected = _flat(stored), _flat(present)
    for key in sorted(found.keys() | expected.keys()):
        if found.get(key, "nothing") != expected.get(key, "nothing"):
            raise TrainingError(
                f"checkpoint of another run: {key or 'its identity'} differs",
                where=where,
                found=shown(found.get(key, "nothing")),
                expected=shown(expected.get(key, "nothing")),
                remedy="Give this run its own output folder, or restore the setting",
            )


def _flat(document: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(document, list):
        document = {str(index): value for index, value in enumerate(document)}
    if not isinstance(document, dict):
        return {prefix: document}
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def random_state() -> dict[str, str]:
    """Read torch's random state on the CPU and, if there is one, on the present GPU: base64."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {
        name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()
    }


def restore_random_state(states: dict[str, str]) -> None:
    """Put a random state back. Raises: ValueError if it is damaged."""
    try:
        decoded = {name: base64.b64decode(text, validate=True) for name, text in states.items()}
        tensors = {
            name: torch.frombuffer(bytearray(data), dtype=torch.uint8)
            for name, data in decoded.items()
        }
        torch.set_rng_state(tensors["cpu"])
        if torch.cuda.is_available() and "cuda" in tensors:
            torch.cuda.set_rng_state(tensors["cuda"])
    except (LookupError, TypeError, AttributeError, RuntimeError, binascii.Error) as error:
        raise ValueError(f"random state: {error}") from None
