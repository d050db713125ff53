"""Saves a run and brings it back: state, settings, random states, weights, optimiser, average."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from iceaggr.config import ExperimentConfig
from iceaggr.errors import TrainingError
from iceaggr.models.kappa_map import KappaMap
from iceaggr.training.checkpoint import Checkpoint, CheckpointFolder
from iceaggr.training.device import Processes, device_name
from iceaggr.training.guards import not_finite
from iceaggr.training.inputs import TrainingInputs
from iceaggr.training.step import OptimiserStep, optimizer_tensors, restore_optimizers
from iceaggr.validation import flattened, shown

# What the rounding of a run depends on besides its settings, noted in every checkpoint.
#
# Sums are rounded in another order with another number of threads, another version of torch or
# another kind of processor. A run that is resumed with the same ones ends with the same bits.

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rounding:
    """What one process computes with.

    n_threads: of a CPU; 0 on a GPU, where they do not matter
    device: model of the GPU, or what torch tells of the processor
    """

    n_threads: int
    torch_version: str
    device: str

    @classmethod
    def present(cls, device: torch.device) -> Rounding:
        """Look at this process."""
        on_cpu = device.type == "cpu"
        return cls(
            n_threads=torch.get_num_threads() if on_cpu else 0,
            torch_version=str(torch.__version__),
            device=_processor() if on_cpu else device_name(device),
        )

    def changes_since(self, earlier: Rounding) -> list[str]:
        """Name what differs, with the earlier value and the present one."""
        both = [(f.name, getattr(earlier, f.name), getattr(self, f.name)) for f in fields(self)]
        return [f"{name} was {before}, is {now}" for name, before, now in both if before != now]


_STORED = TypeAdapter(list[Rounding])


def go_on_with(stored: Any, rank: int, device: torch.device, *, set_threads: bool) -> list[str]:
    """Compute as the attempt before did where this machine can; returns what differs, in words.

    stored: what a checkpoint notes of every process; None in those of older versions
    set_threads: take over the earlier number of threads if there are as many cores
    Raises: ValueError, LookupError if it is damaged.
    """
    present = Rounding.present(device)
    if stored is None:
        logger.info("the checkpoint does not say with how many threads it was computed, nor where")
        return []
    earlier = _STORED.validate_python(stored)[rank]
    differs_elsewhere = (earlier.torch_version, earlier.device) != (
        present.torch_version,
        present.device,
    )
    if earlier.n_threads != present.n_threads and set_threads and not differs_elsewhere:
        present = _with_threads(earlier.n_threads, device)
    return present.changes_since(earlier)


def _with_threads(n_threads: int, device: torch.device) -> Rounding:
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if 1 <= n_threads <= (n_cores or 1):
        logger.info(
            "computing with %d threads as before, not %d", n_threads, torch.get_num_threads()
        )
        torch.set_num_threads(n_threads)
    return Rounding.present(device)


@contextmanager
def fixed_threads() -> Iterator[None]:
    """Fix the number of threads while a block runs, and put it back afterwards."""
    n_threads = torch.get_num_threads()
    # said aloud, MKL keeps to it; by itself it takes fewer for some sizes
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _processor() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    # not every version that we support tells the model
    tell = getattr(torch.cpu, "get_capabilities", None)
    name = str(tell().get("cpu_name", "")) if tell is not None else ""
    return f"{name} {capability}".strip()


# Where a run stands: everything besides tensors that a resumed run needs, as readable JSON.

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
    kappa_map: what the last validation says kappa has to be, if it said so
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
    kappa_map: KappaMap | None = None

    @property
    def is_finished(self) -> bool:
        """Tell whether the run has ended and its last weights are validated."""
        return bool(self.stopped) and self.validated_step == self.step

    def to_document(self) -> dict[str, Any]:
        """Give the state as plain JSON values."""
        plain = self.kappa_map and self.kappa_map.model_dump(mode="json")
        return asdict(self) | {"kappa_map": plain}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> RunState:
        """Read a state. Raises: ValueError if a field is missing, unknown or impossible."""
        if not isinstance(document, dict):
            raise ValueError(f"state {shown(document)}")
        wrong = {f.name for f in fields(cls)} ^ (set(document) | _LATER)
        if wrong:
            raise ValueError(f"missing or unknown field {sorted(wrong)[0]}")
        state = _STATE.validate_python(document)
        counts = (state.step, state.epoch, state.n_batches_in_epoch, state.n_events_seen)
        if min(counts) < 0 or not 0 <= state.progress <= 1 or state.validated_step < -1:
            raise ValueError(f"step, epoch, batches, events {counts}, progress {state.progress}")
        return state


_STATE = TypeAdapter(RunState)
_LATER = {"kappa_map"}
"""Fields that checkpoints of before do not have."""


def run_identity(inputs: TrainingInputs, world_size: int) -> dict[str, Any]:
    """Describe what makes two attempts the same run: settings, start, data, detector."""
    start = inputs.start
    return {
        **_settings(inputs.config),
        **({"start": {"model": start.name, "sha256": start.digest()}} if start else {}),
        "normalization_document": json.loads(inputs.normalization.to_json()),
        "manifest_digest": inputs.manifest.digest(),
        "geometry_sha256": hashlib.sha256(inputs.geometry_csv.encode()).hexdigest(),
        "n_processes": world_size,
    }


def _settings(config: ExperimentConfig) -> dict[str, dict[str, Any]]:
    sections = config.model_dump(mode="json")
    return {
        name: {k: v for k, v in sections[name].items() if k not in _NOT_IDENTITY.get(name, ())}
        for name in ("normalization", "batches", "model", "loss", "training")
    }


def check_identity(stored: dict[str, Any], present: dict[str, Any], where: str) -> None:
    """Refuse to resume another run.

    A setting that the stored run does not know came later: it had the default, the old behaviour.
    Raises: TrainingError naming the first setting that differs.
    """
    found, expected = flattened(stored), flattened(present)
    usual = flattened(_settings(ExperimentConfig()))
    for key in sorted(found.keys() | expected.keys()):
        was, is_now = found.get(key, usual.get(key, "nothing")), expected.get(key, "nothing")
        if was != is_now:
            raise TrainingError(
                f"checkpoint of another run: {key or 'its identity'} differs",
                where=where,
                found=shown(was),
                expected=shown(is_now),
                remedy="Give this run its own output folder, or restore the setting",
            )


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


_WORDS = TypeAdapter(list[str])


class Keeper:
    """Checkpoints of one run; only the main process writes, every process reads.

    rounding_changes: where an attempt went on with another rounding than the one before, in words;
    empty = the run is, bit for bit, what it would be undisturbed on a CPU
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        step: OptimiserStep,
        identity: dict[str, Any],
        processes: Processes,
    ) -> None:
        self.folder = folder
        self.step = step
        self.identity = identity
        self.processes = processes
        self.rounding_changes: list[str] = []

    def save(self, state: RunState) -> None:
        """Write a checkpoint; every process must call it together, for its random state.

        Raises: TrainingError if anything to be written is not finite; the old one is kept.
        """
        self.step.check_kept(f"checkpoint of step {state.step}")
        everyone = self.processes.gather_objects(
            (random_state(), asdict(Rounding.present(self.step.device)))
        )
        if not self.processes.is_main:
            return
        document = {
            "state": state.to_document(),
            "identity": self.identity,
            "random_states": [states for states, _ in everyone],
            "rounding": [rounding for _, rounding in everyone],
            "rounding_changes": self.rounding_changes,
        }
        uri = self.folder.write(state.step, Checkpoint(document, self._tensors()))
        logger.info("checkpoint of step %d: %s", state.step, uri)

    def restore(self) -> RunState:
        """Bring the newest checkpoint back, or give the state of a new run if none was ever made.

        Raises: TrainingError if it is lost, damaged, or of another run.
        """
        checkpoint = self.folder.read_latest()
        where = self.folder.uri
        if checkpoint is None:
            return RunState()
        document = checkpoint.document
        try:
            check_identity(document["identity"], self.identity, where)
            state = RunState.from_document(document["state"])
            self._load(checkpoint.tensors)
            restore_random_state(document["random_states"][self.processes.rank])
            changes = self._compare_rounding(document)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise TrainingError(
                "checkpoint does not fit this program",
                where=where,
                found=" ".join(str(error).split()),
                expected="a checkpoint of the same model and version",
                remedy="Resume it with the version that wrote it, or use an empty output folder",
            ) from error
        logger.info("resuming at step %d from %s", state.step, where)
        self._note(changes, state.step)
        return state

    def _compare_rounding(self, document: dict[str, Any]) -> list[str]:
        self.rounding_changes = _WORDS.validate_python(document.get("rounding_changes", []))
        # a run that ends by the clock is never the same twice: it takes the threads there are
        steps_decide = self.step.config.training.max_minutes == 0
        return go_on_with(
            document.get("rounding"),
            self.processes.rank,
            self.step.device,
            set_threads=steps_decide,
        )

    def _note(self, changes: list[str], step: int) -> None:
        everyone = self.processes.gather_objects(changes)
        # the same in many processes is said once
        words = "; ".join(dict.fromkeys(change for mine in everyone for change in mine))
        if words:
            self.rounding_changes = [*self.rounding_changes, f"from step {step} on: {words}"]
            logger.warning("step %d: %s: the run goes on, but not bit for bit", step, words)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        step = self.step
        tensors = {
            "model": dict(step.model.state_dict()),
            "optimizer": optimizer_tensors(step.optimizers, step.model),
        }
        if step.average is not None:
            tensors["average"] = step.average.tensors
        return tensors

    def _load(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        step = self.step
        for group, named in tensors.items():
            spoiled = not_finite(named.items())
            if spoiled:
                raise ValueError(f"{spoiled} is not finite ({group})")
        step.model.load_state_dict(tensors["model"])
        restore_optimizers(step.optimizers, step.model, tensors["optimizer"])
        if step.average is not None:
            step.average.load(tensors["average"])
