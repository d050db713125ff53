"""What counts as learning and what as ruin: judged at each validation and over the training curve.

Whoever knows nothing has an angle of 90 degrees and a negative log-likelihood of ln(4 pi) = 2.53
nats per event (`loss_of_ignorance`). Above that, confidence is worse than none. A model that starts
at a classical fit has a second mark: the angle of that fit on the same events. The mean angle alone
would say nothing there: a ruined network that still follows its seed beats any constant by far.

A young or an overfitted network may lie a little beyond a mark. Ruin lies far beyond it.
"""

from __future__ import annotations

from iceaggr.config import ExperimentConfig, LossConfig, TrainingConfig
from iceaggr.errors import TrainingError
from iceaggr.losses import NATS_OF_IGNORANCE, trains_kappa
from iceaggr.training.validation import ValidationResult

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
