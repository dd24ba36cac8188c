"""The one style of the book's figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours (Color Universal Design, 2008), the darkest first."""
INK = "#222222"

_SETTINGS: Any = {
    "axes.prop_cycle": plt.cycler(color=CYCLE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "font.size": 10.5,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this block in the book's style; the caller's own settings are left alone."""
    with plt.rc_context(_SETTINGS):
        yield


def new(
    rows: int = 1, columns: int = 1, *, width: float = 7.0, height: float = 3.4, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure in the book's style and its axes as a (rows, columns) array. Sizes in inches."""
    with style():
        figure, axes = plt.subplots(
            rows, columns, figsize=(width, height), squeeze=False, **options
        )
    return figure, axes


def bound_line(axis: Axes, x: Any, y: Any, label: str = "bound", **options: Any) -> None:
    """A theorem's bound: always dashed and dark, so that it is told from a measurement."""
    axis.plot(x, y, linestyle=(0, (5, 3)), color=INK, linewidth=1.4, label=label, **options)
