"""Saves a run and brings it back: state, settings, random states, weights, optimiser, average."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from iceaggr.errors import TrainingError
from iceaggr.training.checkpoint import Checkpoint, CheckpointFolder
from iceaggr.training.distributed import Processes
from iceaggr.training.guards import not_finite
from iceaggr.training.optimizer import optimizer_tensors, restore_optimizer
from iceaggr.training.rounding import Rounding, go_on_with
from iceaggr.training.state import (
    RunState,
    check_identity,
    random_state,
    restore_random_state,
)
from iceaggr.training.step import OptimiserStep

logger = logging.getLogger(__name__)

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
            "optimizer": optimizer_tensors(step.optimizer, step.model),
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
        restore_optimizer(step.optimizer, step.model, tensors["optimizer"])
        if step.average is not None:
            step.average.load(tensors["average"])
