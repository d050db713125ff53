"""Axes that can be read."""

from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from iceaggr.evaluation.figure_style import log_x_axis


@pytest.mark.parametrize("high", [90.0, 1500.0, 5500.0, 15_000.0, 900_000.0])
def test_labels_of_a_logarithmic_axis_do_not_touch(high):
    figure = Figure(figsize=(9, 4))
    axes = figure.subplots(1, 2)[1]
    axes.plot([30.0, high], [1.0, 2.0])
    log_x_axis(axes, (1, 2, 5))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    low_end, high_end = axes.get_xlim()
    labels = [
        label.get_window_extent()
        for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        if label.get_text() and low_end <= tick <= high_end
    ]
    assert len(labels) >= 2
    assert all(left.x1 + 2 < right.x0 for left, right in pairwise(labels))
