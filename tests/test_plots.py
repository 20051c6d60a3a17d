"""The plots of the notebooks, as a reader sees them."""

import pandas as pd
import pytest

from lora_ops.plots import plot_loss


@pytest.mark.parametrize("losses", [[6.8, 3.0, 0.78], [0.31, 0.3, 0.29], [30.0, 2.0, 0.002]])
def test_plot_loss_names_losses_without_overlap(losses: list[float]) -> None:
    rows = pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses})
    figure = plot_loss(rows, rows.tail(1), "finance")
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    low, high = axis.get_view_interval()
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    shown = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]
    boxes = sorted((text.get_window_extent() for text in shown), key=lambda box: box.y0)
    assert len(boxes) > 1
    assert all(below.y1 <= above.y0 for below, above in zip(boxes, boxes[1:], strict=False))
