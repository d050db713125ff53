from __future__ import annotations

import io
import math
from dataclasses import replace

from rich.console import Console

from iceaggr.training import TrainingPrinter, TrainingProgress
from iceaggr.training.progress import progress_line

POINT = TrainingProgress(
    share=0.25,
    step=50,
    n_steps_planned=200,
    epoch=1,
    n_epochs=4,
    elapsed_s=12.0,
    loss=1.23456,
    opening_angle_deg=70.5,
    validation_opening_angle_deg=math.nan,
    learning_rate=3e-4,
    gradient_norm=0.5,
    events_per_s=1234.5,
    data_wait_share=0.031,
)


def test_line_says_what_there_is_and_what_is_not_there_yet() -> None:
    line = progress_line(POINT)
    for words in ("step 50/200", "epoch 2/4", "loss 1.2346", "validation not yet", "waiting 3 %"):
        assert words in line
    later = replace(POINT, validation_opening_angle_deg=65.4321)
    assert "validation 65.43 deg" in progress_line(later)


def test_printer_writes_one_line_per_point_without_a_terminal() -> None:
    out = io.StringIO()
    with TrainingPrinter(Console(file=out, width=40)) as show:
        show(POINT)
        show(replace(POINT, step=100))
    lines = out.getvalue().splitlines()
    assert [line[:12] for line in lines] == ["step 50/200 ", "step 100/200"]


def test_printer_draws_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200)
    with TrainingPrinter(console) as show:
        show(POINT)
    assert "25 %" in out.getvalue()
    assert "step 50/200" in out.getvalue()
