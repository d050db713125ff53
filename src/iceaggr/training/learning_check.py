"""The learning check: a few dozen steps that must lower the loss before an expensive run starts.

A few fixed batches are revisited, without dropout, and the mean loss over exactly these events is
measured before and after. The events are their own population, so the fall carries no sampling
noise: a sound model with sound inputs lowers it at any reasonable learning rate, by 50 steps at
1e-5 already. What falls with badly scaled inputs is luck of memorising, so those do not count as
learning: the input check that guards training judges them first, and its verdict stands in the row.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from iceaggr.batches import EventLoader
from iceaggr.batches.event_batch import EventBatch
from iceaggr.config import ExperimentConfig, TrainingConfig
from iceaggr.errors import TrainingError
from iceaggr.losses import direction_loss
from iceaggr.models import DirectionModel, build_model
from iceaggr.models.normalizer import Normalizer
from iceaggr.normalization_document import Normalization
from iceaggr.pages import render
from iceaggr.training.device import autocast, choose_device, positioned
from iceaggr.training.guards import check_batch
from iceaggr.training.inputs import TrainingInputs
from iceaggr.training.step import build_optimizers
from iceaggr.training.validation import NotLearningError, with_few_events

logger = logging.getLogger(__name__)

LEARNS, NOT_FINITE, NO_FALL, REFUSED = "learns", "not finite", "does not learn", "inputs refused"


@dataclass(frozen=True)
class LearningRow:
    """One short run.

    inputs: preset of the normalisation: fitted, seed or raw
    first_loss, last_loss: means over the fixed events, in the unit of the loss
    finite: every loss and gradient norm was finite
    gradient_norm: largest before clipping
    refusal: what the input check says about the batches; empty when it lets them pass
    verdict: "learns", "does not learn", "not finite" or "inputs refused"
    """

    learning_rate: float
    inputs: str
    first_loss: float
    last_loss: float
    finite: bool
    gradient_norm: float
    refusal: str
    verdict: str

    @property
    def change(self) -> float:
        """Give last minus first loss: negative is good."""
        return self.last_loss - self.first_loss


def learning_check_table(
    inputs: TrainingInputs, on_row: Callable[[LearningRow, int], None] | None = None
) -> list[LearningRow]:
    """Try every configured learning rate, with the run's normalisation and with raw inputs.

    Rows are ordered by inputs, then rate. Each starts from the same weights.
    on_row: called with each row when it is done, and the number of all rows.
    Raises: ShardError if the train split is empty or a shard is damaged.
    """
    batches = fixed_batches(inputs, _device(inputs.config.training))
    kinds = [inputs.normalization]
    if inputs.normalization.preset != "raw":
        kinds.append(Normalization.raw())
    tries = [(kind, rate) for kind in kinds for rate in inputs.config.learning_check.learning_rates]
    rows = []
    for normalization, rate in tries:
        rows.append(try_rate(inputs.config, batches, normalization, rate))
        if on_row is not None:
            on_row(rows[-1], len(tries))
    return rows


def check_learning(inputs: TrainingInputs) -> LearningRow:
    """Try the configured learning rate on the real shards; logs the row to the tracker.

    Raises: TrainingError in one clear sentence if an input is refused, or the loss is not finite
    or does not fall; of few events it says that these are the first cause.
    """
    config = inputs.config
    rate = config.training.learning_rate
    batches = fixed_batches(inputs, _device(config.training))
    row = try_rate(config, batches, inputs.normalization, rate)
    inputs.tracker.log_metrics(
        {
            f"train_check/{name}": value
            for name in ("first_loss", "last_loss", "gradient_norm")
            if math.isfinite(value := getattr(row, name))
        }
    )
    if row.verdict == LEARNS:
        return row
    failure = NotLearningError(
        f"the learning check failed: {row.verdict}",
        where=f"{config.learning_check.n_steps} steps at training.learning_rate {rate:g}",
        found=row.refusal or f"loss {row.first_loss:.4f} before, {row.last_loss:.4f} after",
        expected=f"a finite loss that falls by {config.learning_check.min_loss_drop:g}",
        remedy="Check the inputs (data card, normalisation) and labels, then lower the rate",
    )
    # inputs that are refused are wrong however many events there are
    is_refused = row.verdict == REFUSED
    raise failure if is_refused else with_few_events(failure, inputs.manifest.n_events("train"))


def fixed_batches(inputs: TrainingInputs, device: torch.device) -> list[EventBatch]:
    """Read the few batches of the train split that all rows share, and put them on the device."""
    check = inputs.config.learning_check
    small = inputs.config.batches.model_copy(
        update={"n_events": check.n_events_per_batch, "max_doms_per_batch": 0}
    )
    loader = EventLoader(inputs.store, inputs.manifest, "train", inputs.detector, small)
    batches: list[EventBatch] = []
    with closing(positioned(loader, 0)) as loaded:
        for batch, _ in loaded:
            batches.append(batch.to(device))
            if len(batches) == check.n_batches:
                break
    return batches


def try_rate(
    config: ExperimentConfig,
    batches: list[EventBatch],
    normalization: Normalization,
    learning_rate: float,
) -> LearningRow:
    """Take the configured number of steps at one learning rate, from fresh weights.

    Steps are taken whatever the input check says, so that the table can show what happens.
    """
    refusal = _refusal(batches, normalization, config)
    run = _ShortRun(config, batches, normalization, learning_rate)
    first = run.loss()
    norms = run.take_steps()
    last = run.loss()
    finite = all(map(math.isfinite, (first, last, *norms)))
    row = LearningRow(
        learning_rate=learning_rate,
        inputs=normalization.preset,
        first_loss=first,
        last_loss=last,
        finite=finite,
        gradient_norm=max(norms) if finite else math.nan,
        refusal=refusal,
        verdict=_verdict(refusal, finite, first - last, config.learning_check.min_loss_drop),
    )
    logger.info("%s inputs at rate %g: %s", row.inputs, row.learning_rate, row.verdict)
    return row


def _device(config: TrainingConfig) -> torch.device:
    # the check is a step of its own, and cheap: it runs without the GPU that training will ask for
    wanted = "auto" if config.device == "cuda" else config.device
    return choose_device(config.model_copy(update={"device": wanted}))


def _verdict(refusal: str, finite: bool, fall: float, min_fall: float) -> str:
    if not finite:
        return NOT_FINITE
    if refusal:
        return REFUSED
    return LEARNS if fall > min_fall else NO_FALL


def _refusal(
    batches: list[EventBatch], normalization: Normalization, config: ExperimentConfig
) -> str:
    normalizer = Normalizer(normalization).to(batches[0].time_ns.device)
    for batch in batches:
        try:
            check_batch(batch, normalizer, config.normalization, "learning check")
        except TrainingError as error:
            return str(error)
    return ""


class _ShortRun:
    """A fresh model without dropout on a few batches."""

    def __init__(
        self,
        config: ExperimentConfig,
        batches: list[EventBatch],
        normalization: Normalization,
        learning_rate: float,
    ) -> None:
        self.config = config
        self.batches = batches
        self.device = batches[0].time_ns.device
        torch.manual_seed(config.training.seed)
        without_dropout = config.model.model_copy(update={"dropout": 0.0})
        self.model: DirectionModel = build_model(without_dropout, normalization).to(self.device)
        self.model.inputs.remember_seeds()
        settings: TrainingConfig = config.training.model_copy(
            update={"learning_rate": learning_rate}
        )
        self.optimizers = build_optimizers(self.model, settings)

    def loss(self) -> float:
        """Average the loss over all events with the present weights."""
        with torch.no_grad():
            return float(torch.cat([self._event_loss(batch) for batch in self.batches]).mean())

    def take_steps(self) -> list[float]:
        """Take the steps, batches in turn; returns the gradient norms up to a bad one."""
        norms: list[float] = []
        limit = self.config.training.max_gradient_norm
        for step in range(self.config.learning_check.n_steps):
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            self._event_loss(self.batches[step % len(self.batches)]).mean().backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)))
            if not math.isfinite(norms[-1]):
                break
            for optimizer in self.optimizers:
                optimizer.step()
        return norms

    def _event_loss(self, batch: EventBatch) -> Tensor:
        if batch.direction is None:
            raise TrainingError(
                "the learning check needs labelled events",
                where="train split",
                found="events without a direction",
                expected="labelled events",
                remedy="Shard raw events that have labels",
            )
        with autocast(self.device, self.config.training):
            return direction_loss(self.model(batch), batch.direction, self.config.loss, 0.0)


# The learning check's table as text and as one self-contained HTML page.

HEADINGS = ("inputs", "learning rate", "loss before", "loss after", "change", "gradient", "verdict")


def learning_check_text(rows: Sequence[LearningRow]) -> str:
    """Format the rows as an aligned table, one line each, and below it why inputs are refused."""
    lines = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*aligned, *_refusals(rows)])


def learning_check_html(rows: Sequence[LearningRow], name: str = "") -> str:
    """Format the rows as a page that needs no other file; every text is escaped.

    name: of the experiment, for the title.
    """
    return render(
        "learning_check.html.j2",
        title=f"Learning check {name}".strip(),
        headings=HEADINGS,
        rows=[_cells(row) for row in rows],
        learns=LEARNS,
        refusals=_refusals(rows),
    )


def _refusals(rows: Sequence[LearningRow]) -> list[str]:
    """Say once for each kind of inputs why the input check refuses them."""
    return list(dict.fromkeys(f"{row.inputs}: {row.refusal}" for row in rows if row.refusal))


def _cells(row: LearningRow) -> tuple[str, ...]:
    return (
        row.inputs,
        f"{row.learning_rate:g}",
        f"{row.first_loss:.4f}",
        f"{row.last_loss:.4f}",
        f"{row.change:+.4f}",
        f"{row.gradient_norm:.3g}",
        row.verdict,
    )
