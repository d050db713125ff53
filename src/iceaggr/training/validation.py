"""Validation: the same bounded set of held-out events each time, beside the best constant."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iceaggr.angles import best_constant_direction, opening_angle
from iceaggr.config import ExperimentConfig, LossConfig, TrainingConfig
from iceaggr.errors import TrainingError
from iceaggr.losses import NATS_OF_IGNORANCE, direction_loss, trains_kappa, von_mises_fisher_loss
from iceaggr.models import DirectionOutput
from iceaggr.models.kappa_map import KappaMap, fit_kappa_map
from iceaggr.shards.split import MIN_EVENTS_OF_SPLIT
from iceaggr.training.device import Processes, autocast, placed, positioned
from iceaggr.training.guards import check_batch, check_predictions
from iceaggr.training.inputs import BatchSource

N_FOR_CONSTANT = 5_000
"""Events by which the best constant direction is chosen at most, at each validation."""


@dataclass(frozen=True)
class ValidationResult:
    """Scores on the validation events, angles in degrees.

    opening_angle_deg, median_opening_angle_deg: of the model
    constant_opening_angle_deg: mean of the best constant direction on the same events
    gain_deg, gain_error_deg: constant minus model, event by event: mean and its standard error
    mean_vector_length: length of the mean predicted unit vector; 1 = always the same direction
    mean_z, true_mean_z: mean z of the predicted and the true unit vectors
    negative_log_likelihood, negative_log_likelihood_error: von Mises-Fisher with the predicted
        kappa, nats: mean and its standard error; whoever knows nothing has ln(4 pi) = 2.53
    seed_opening_angle_deg: mean of the classical fit that the model starts from, on the same
        events; None for a model that starts from none
    gain_over_seed_deg, gain_over_seed_error_deg: seed minus model, event by event, or None
    kappa_map: what these events say kappa has to be, None where nothing is known of it
    """

    n_events: int
    loss: float
    opening_angle_deg: float
    median_opening_angle_deg: float
    constant_opening_angle_deg: float
    gain_deg: float
    gain_error_deg: float
    mean_vector_length: float
    mean_z: float
    true_mean_z: float
    negative_log_likelihood: float
    negative_log_likelihood_error: float
    seconds: float
    seed_opening_angle_deg: float | None = None
    gain_over_seed_deg: float | None = None
    gain_over_seed_error_deg: float | None = None
    kappa_map: KappaMap | None = None

    @property
    def information_nats(self) -> float:
        """Give what the predictions know beyond nothing; negative = confidence worse than none."""
        return NATS_OF_IGNORANCE - self.negative_log_likelihood

    def metrics(self) -> dict[str, float]:
        """Name the scores as points of curves; what a model does not have is left out."""
        scores = {**vars(self), "information_nats": self.information_nats}
        return {
            f"validation/{name}": float(value)
            for name, value in scores.items()
            if isinstance(value, (int, float))
        }


@dataclass(frozen=True)
class ValidatedBatch:
    """What a validation keeps of a batch, on the CPU.

    event_id, loss: (B,).  vector: (B, 3) predicted.  true: (B, 3) unit vectors
    seed: (B, 3) unit vectors of the classical fit that the model starts from, or None
    """

    event_id: Tensor
    vector: Tensor
    true: Tensor
    loss: Tensor
    seed: Tensor | None


@dataclass(frozen=True)
class Validator:
    """Runs the model over the validation events.

    loader: batches of the validation split of this process
    n_events: events of the whole split; each process stops after the batch that completes its share
        of `n_events_planned`
    """

    loader: BatchSource
    normalizer: nn.Module
    config: ExperimentConfig
    device: torch.device
    processes: Processes
    n_events: int

    def n_events_planned(self, is_last: bool = False) -> int:
        """Count the events that a validation reads at least, over all processes.

        is_last: the weights are final. A few sure and wrong events rule the surest kappas, so that
        the map needs more events than the curve of a training.
        """
        training = self.config.training
        limit = training.max_validation_events
        if is_last and trains_kappa(self.config.loss):
            limit = max(limit, training.max_kappa_map_events)
        return min(self.n_events, limit)

    def run(
        self,
        model: nn.Module,
        progress: float,
        interrupted: Callable[[], bool],
        is_last: bool = False,
    ) -> ValidationResult | None:
        """Score the model; None if the run was asked to stop meanwhile.

        is_last: as for `n_events_planned`
        Raises: TrainingError if there are fewer than two validation events, an input is bad, or a
        prediction is not finite.
        """
        started = time.monotonic()
        was_training = model.training
        model.eval()
        with torch.no_grad():
            parts = self._collect(model, progress, interrupted, is_last)
        model.train(was_training)
        if self.processes.any(interrupted()):
            return None
        # cat per name over all processes: a process may have had nothing
        everyone = [part for own in self.processes.gather_objects(parts) for part in own]
        if not everyone:
            raise TrainingError(
                "the validation split is empty",
                where="manifest",
                found="0 events",
                expected="at least one batch",
                remedy="Use more events or a larger data.validation_share",
            )
        together = _joined(everyone)
        if len(together.loss) < MIN_EVENTS_OF_SPLIT:
            raise TrainingError(
                "the validation split has one event",
                where="manifest",
                found="1 event",
                expected="at least two: a figure without an error judges nothing",
                remedy="Use more events or a larger data.validation_share",
            )
        # every process sees all events here, so that all of them stop
        check_predictions(together.vector, together.loss, together.event_id, "validation")
        kappa_map = _map_of(together) if trains_kappa(self.config.loss) else None
        return _score(together, time.monotonic() - started, kappa_map)

    def _collect(
        self, model: nn.Module, progress: float, interrupted: Callable[[], bool], is_last: bool
    ) -> list[ValidatedBatch]:
        limit = math.ceil(self.n_events_planned(is_last) / self.processes.world_size)
        parts = []
        n_events = 0
        # epoch 0 whatever the epoch of training: always the same events in the same order
        with closing(positioned(self.loader, 0)) as batches:
            for loaded in placed(batches, self.device):
                if loaded.host.n_events == 0:
                    continue
                batch = loaded.placed
                check_batch(loaded.host, self.normalizer, self.config.normalization, "validation")
                assert batch.direction is not None, "check_batch lets only labelled events pass"
                with autocast(self.device, self.config.training):
                    output = model(batch)
                    loss = direction_loss(output, batch.direction, self.config.loss, progress)
                seed = None if output.seed is None else output.seed.float().cpu()
                parts.append(
                    ValidatedBatch(
                        event_id=batch.event_id.cpu(),
                        vector=output.vector.float().cpu(),
                        true=batch.direction.cpu(),
                        loss=loss.float().cpu(),
                        seed=seed,
                    )
                )
                n_events += batch.n_events
                if n_events >= limit or interrupted():
                    break
        return parts


def _joined(parts: list[ValidatedBatch]) -> ValidatedBatch:
    seeds = [part.seed for part in parts if part.seed is not None]
    return ValidatedBatch(
        event_id=torch.cat([part.event_id for part in parts]),
        vector=torch.cat([part.vector for part in parts]),
        true=torch.cat([part.true for part in parts]),
        loss=torch.cat([part.loss for part in parts]),
        seed=torch.cat(seeds) if seeds else None,
    )


def _score(events: ValidatedBatch, seconds: float, kappa_map: KappaMap | None) -> ValidationResult:
    true = events.true.double()
    predicted = DirectionOutput(events.vector).direction.double()
    angle = _angle_deg(predicted, true)
    constant = _angle_deg(best_constant_direction(true, N_FOR_CONSTANT).expand_as(true), true)
    gain, gain_error = _mean_and_error(constant - angle)
    nats, nats_error = _mean_and_error(von_mises_fisher_loss(events.vector, true).double())
    mean_vector = predicted.mean(dim=0)
    return ValidationResult(
        n_events=len(angle),
        loss=float(events.loss.double().mean()),
        opening_angle_deg=float(angle.mean()),
        median_opening_angle_deg=float(angle.median()),
        constant_opening_angle_deg=float(constant.mean()),
        gain_deg=gain,
        gain_error_deg=gain_error,
        mean_vector_length=float(mean_vector.norm()),
        mean_z=float(mean_vector[2]),
        true_mean_z=float(true[:, 2].mean()),
        negative_log_likelihood=nats,
        negative_log_likelihood_error=nats_error,
        seconds=seconds,
        kappa_map=kappa_map,
        **_seed_scores(events.seed, true, angle),
    )


def _seed_scores(seed: Tensor | None, true: Tensor, angle_deg: Tensor) -> dict[str, float]:
    if seed is None:
        return {}
    of_seed = _angle_deg(seed.double(), true)
    gain, error = _mean_and_error(of_seed - angle_deg)
    return {
        "seed_opening_angle_deg": float(of_seed.mean()),
        "gain_over_seed_deg": gain,
        "gain_over_seed_error_deg": error,
    }


def _map_of(events: ValidatedBatch) -> KappaMap | None:
    output, true = DirectionOutput(events.vector.double()), events.true.double()
    cosine = (output.direction * true).sum(-1) / torch.linalg.vector_norm(true, dim=-1)
    return fit_kappa_map(output.kappa.numpy(), cosine.numpy())


def _angle_deg(predicted: Tensor, true: Tensor) -> Tensor:
    return torch.rad2deg(opening_angle(predicted, true))


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    """Average over events: (N,) float64 to the mean and its standard error."""
    n_events = len(values)
    error = float(values.std() / math.sqrt(n_events)) if n_events > 1 else math.inf
    return float(values.mean()), error


# What counts as learning and what as ruin: judged at each validation and over the training curve.
#
# Whoever knows nothing has an angle of 90 degrees and a negative log-likelihood of ln(4 pi) = 2.53
# nats per event (`loss_of_ignorance`). Above that, confidence is worse than none. A model that
# starts at a classical fit has a second mark: the angle of that fit on the same events. The mean
# angle alone would say nothing there: a ruined network that still follows its seed beats any
# constant by far.
#
# A young or an overfitted network may lie a little beyond a mark. Ruin lies far beyond it.

DIVERGED_NATS = 5.0
"""Ruin: a likelihood of validation events this much worse than ignorance; that of an overfitted
network, whose training loss is fine, may lie some nats beyond the mark."""
DIVERGED_LOSS = 1.0
"""Ruin: a training loss this much above that of ignorance, per unit of the likelihood in it."""
DIVERGED_DEG = 5.0
"""Ruin: the mean opening angle this much worse than that of the fit the model started from."""
N_DIVERGED_WINDOWS = 3
"""Windows of the training curve in a row that are ruin; a single one may be a spike."""
N_SIGMA = 2.0
"""Standard errors that a difference on the validation events must exceed."""

MIN_EVENTS_TO_LEARN = 1000
"""Train events below which a run that does not learn has its first cause in that."""


class NotLearningError(TrainingError):
    """Training diverged, or did not get better than knowing nothing."""


def divergence(
    result: ValidationResult, loss: LossConfig, progress: float, train_excess: float | None = None
) -> str:
    """Say in words why a validation shows a ruined model; empty when it does not.

    progress: share of the training done, which tells whether the loss asks for a true kappa.
    train_excess: training loss minus that of ignorance at the last point of the curve, if any: a
    network that is too sure of new events but right about those it trained with is overfitted.
    """
    if _is_overfitted(train_excess):
        return ""
    excess = -result.information_nats
    error = result.negative_log_likelihood_error
    is_false = trains_kappa(loss, progress) and excess > max(DIVERGED_NATS, N_SIGMA * error)
    if is_false:
        return f"confidence is far worse than none: {_nats(result)}"
    lost = -(result.gain_over_seed_deg or 0.0)
    if lost > max(DIVERGED_DEG, N_SIGMA * (result.gain_over_seed_error_deg or 0.0)):
        return f"far worse than the fit that the model started from: {_against_seed(result)}"
    return ""


def learning_problem(
    result: ValidationResult,
    config: ExperimentConfig,
    progress: float,
    train_excess: float | None = None,
) -> str:
    """Say what is wrong with a validation in words; empty when the model learns.

    Learning means a smaller mean opening angle than the best constant on the same events, and not
    a larger one than the seed's, a spread of directions, and a likelihood not below that of
    ignorance where the loss trains kappa; differences count beyond two standard errors. Against
    seed and ignorance an overfitted model may fall behind: it learns, if by heart.
    train_excess: as for `divergence`
    """
    limit = config.training.max_mean_vector_length
    if result.mean_vector_length > limit:
        return (
            f"predictions have collapsed to one direction: their mean vector has length "
            f"{result.mean_vector_length:.3f}, more than {limit:g}"
        )
    if not result.gain_deg > N_SIGMA * result.gain_error_deg:
        return (
            f"no better than the best constant prediction: {result.opening_angle_deg:.2f} against "
            f"{result.constant_opening_angle_deg:.2f} degrees, gain {result.gain_deg:.2f} "
            f"+- {result.gain_error_deg:.2f}"
        )
    if _is_overfitted(train_excess):
        return ""
    lost = -(result.gain_over_seed_deg or 0.0)
    if lost > N_SIGMA * (result.gain_over_seed_error_deg or 0.0):
        return f"worse than the fit that the model started from: {_against_seed(result)}"
    excess = -result.information_nats
    error = result.negative_log_likelihood_error
    if trains_kappa(config.loss, progress) and excess > N_SIGMA * error:
        return f"confidence is worse than none: {_nats(result)}"
    return ""


def _is_overfitted(train_excess: float | None) -> bool:
    return train_excess is not None and train_excess < 0


def too_few_to_learn_from(n_train_events: int) -> list[str]:
    """Say that a train split is too small to learn from: one sentence, or none."""
    if n_train_events >= MIN_EVENTS_TO_LEARN:
        return []
    return [
        f"{n_train_events:,} train events are too few to learn from, a network needs thousands:"
        " figures of this run are luck"
    ]


def with_few_events(error: NotLearningError, n_train_events: int) -> TrainingError:
    """Word an error of a run that does not learn by its first cause, where that is few events."""
    if n_train_events >= MIN_EVENTS_TO_LEARN:
        return error
    return NotLearningError(
        f"too few events to learn from, and {error.what}",
        where=error.where,
        found=f"{n_train_events:,} train events; {error.found}",
        expected=f"at least {MIN_EVENTS_TO_LEARN:,} train events, better a hundred times as many",
        remedy="Give more events; no learning rate makes up for them",
    )


def check_validation(
    result: ValidationResult,
    config: ExperimentConfig,
    progress: float,
    step: int,
    train_excess: float | None = None,
) -> str:
    """Stop a run that is ruined or does not learn, as configured; returns the problem in words.

    Raises: TrainingError for ruin with stop_if_diverged, and for what is not learning from step
    `stop_if_not_learning_after_n_steps` on.
    """
    where = f"step {step}, {result.n_events} validation events"
    ruin = divergence(result, config.loss, progress, train_excess)
    if ruin and config.training.stop_if_diverged:
        raise _diverged(where, ruin)
    problem = ruin or learning_problem(result, config, progress, train_excess)
    limit = config.training.stop_if_not_learning_after_n_steps
    if problem and limit and step >= limit:
        raise NotLearningError(
            "the model does not learn",
            where=where,
            found=problem,
            expected=f"learning after {limit} steps",
            remedy="Check inputs and labels first (iceaggr check), then the learning rate",
        )
    return problem


def ruinous_excess(loss: LossConfig, progress: float) -> float:
    """Give how far above `loss_of_ignorance` the mean training loss of a window is ruin.

    In the unit of the loss. Without a likelihood in it, what lies above every loss: an angle
    cannot tell ruin from bad luck with few events.
    """
    if not trains_kappa(loss, progress):
        return float("inf")
    is_share = loss.kind != "von_mises_fisher" and progress >= loss.angle_from_progress
    return DIVERGED_LOSS * (loss.likelihood_share if is_share else 1.0)


def check_windows(n_diverged: int, excess: float, training: TrainingConfig, step: int) -> None:
    """Stop a run whose training loss stays far above that of ignorance, as configured.

    n_diverged: windows of the training curve in a row for which that holds; excess: of the last.
    Raises: TrainingError after N_DIVERGED_WINDOWS of them.
    """
    if n_diverged >= N_DIVERGED_WINDOWS and training.stop_if_diverged:
        found = f"a training loss {excess:,.3g} above that of knowing nothing, the last of"
        raise _diverged(f"step {step}", f"{found} {n_diverged} windows in a row")


def _diverged(where: str, found: str) -> TrainingError:
    return NotLearningError(
        "training has diverged",
        where=where,
        found=found,
        expected="predictions that say more than knowing nothing does",
        remedy="The last good checkpoint is kept; start a run with a lower training.learning_rate",
    )


def _nats(result: ValidationResult) -> str:
    return (
        f"negative log-likelihood {result.negative_log_likelihood:,.3f} +- "
        f"{result.negative_log_likelihood_error:,.3f} nats per event, {NATS_OF_IGNORANCE:.3f} is "
        "that of knowing nothing"
    )


def _against_seed(result: ValidationResult) -> str:
    return (
        f"{result.opening_angle_deg:.2f} against {result.seed_opening_angle_deg:.2f} degrees, gain "
        f"{result.gain_over_seed_deg:.2f} +- {result.gain_over_seed_error_deg:.2f}"
    )
