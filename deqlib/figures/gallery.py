"""Figures of the chapter in which every hypothesis is dropped: predictions beside measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from deqlib.figures.style import CYCLE, INK, bound_line, new, style

MARKERS = "os^Dv"
Path = tuple[ArrayLike, ArrayLike, ArrayLike | None]


def paths(panels: Mapping[str, Path], slope: float, radius: float) -> Figure:
    """Paths of one-output training in the plane (u, 1 − a), one panel a trainer.

    panels : title → (u, 1 − a, predicted), where predicted is a radius (drawn dashed), a point
             (u, 1 − a) (drawn as a cross), or None.
    slope  : the target map A; minimisers are the ray u = A (1 − a).
    radius : of the start; gradient flow stays on this circle.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new(rows, columns, height=2.55 * rows, sharex=True, sharey=True)
    angle = np.linspace(0.0, np.pi, 200)
    farthest = max([radius, *(float(np.hypot(u, P).max()) for u, P, _ in panels.values())])
    limit = 1.08 * farthest
    with style():
        for axis, (title, (u, P, predicted)) in zip(axes.flat, panels.items(), strict=False):
            axis.plot(radius * np.sin(angle), radius * np.cos(angle), color="#999999", lw=1.0)
            axis.plot([0, slope * limit], [0, limit], color=CYCLE[2], lw=1.2)
            axis.plot(u, P, color=CYCLE[1], lw=1.3)
            axis.plot(np.asarray(u)[:1], np.asarray(P)[:1], "s", color=CYCLE[0], ms=5)
            axis.plot(np.asarray(u)[-1:], np.asarray(P)[-1:], "o", color=CYCLE[1], ms=5)
            if predicted is not None and np.ndim(predicted) == 0:
                r = float(np.asarray(predicted))
                bound_line(axis, r * np.sin(angle), r * np.cos(angle), label="predicted")
            elif predicted is not None:
                x, y = np.asarray(predicted)
                axis.plot([x], [y], "x", color=INK, ms=9, mew=1.8)
            axis.set_title(title)
            axis.set_aspect("equal")
            axis.set_xlim(0, limit)
            axis.set_ylim(0, limit)
        for axis in axes[-1]:
            axis.set_xlabel("$u$")
        for axis in axes[:, 0]:
            axis.set_ylabel("$1-a$")
        for axis in list(axes.flat)[len(panels) :]:
            axis.set_visible(False)
    return figure


def noisy_descent(k: ArrayLike, radius: Sequence[ArrayLike], loss: Sequence[ArrayLike]) -> Figure:
    """Stochastic gradients: squared radius and excess loss over the step, (measured, predicted)."""
    figure, axes = new(1, 2, height=3.1)
    labels = ("squared radius $r^2$", "excess loss")
    with style():
        for axis, (seen, said), label in zip(axes[0], (radius, loss), labels, strict=True):
            axis.plot(k, seen, color=CYCLE[1], lw=1.4, label="measured")
            bound_line(axis, k, said, label="predicted")
            axis.set_xlabel("step $k$")
            axis.set_ylabel(label)
            axis.legend(fontsize=9)
        axes[0, 1].set_yscale("log")
    return figure


def float_floors(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]], floors: Sequence[float]
) -> Figure:
    """Loss over time in float32 for several steps, each with the floor predicted for it."""
    figure, axes = new(height=3.3)
    axis = axes[0, 0]
    with style():
        for i, (name, (t, loss)) in enumerate(curves.items()):
            axis.semilogy(t, loss, color=CYCLE[i], lw=1.5, label=name)
            if i < len(floors):
                axis.axhline(floors[i], color=CYCLE[i], linestyle=(0, (5, 3)), lw=1.2)
        axis.set_xlabel(r"time $\eta k$")
        axis.set_ylabel("loss")
        axis.legend(loc="upper right", fontsize=9)
    return figure


def lines(
    series: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    xlabel: str,
    ylabel: str,
    *,
    log_x: bool = True,
) -> Figure:
    """Measured values (marks) over x with the line that was predicted for each series (dashed).

    series : name → (x, measured, predicted).
    """
    figure, axes = new(height=3.6)
    axis = axes[0, 0]
    with style():
        for (name, (x, seen, said)), color, marker in zip(
            series.items(), CYCLE, MARKERS, strict=False
        ):
            axis.plot(x, said, color=color, linestyle=(0, (5, 3)), lw=1.3)
            axis.plot(x, seen, marker, color=color, ms=5.5, label=name)
        axis.set_yscale("log")
        if log_x:
            axis.set_xscale("log")
        else:
            axis.set_xticks(
                np.unique(np.concatenate([np.asarray(x) for x, _, _ in series.values()]))
            )
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        axis.legend(fontsize=9)
    return figure


def verdicts(names: Sequence[str], off: ArrayLike, allowed: ArrayLike) -> Figure:
    """How far each measurement is from its prediction, beside what the prediction allowed."""
    figure, axes = new(height=0.27 * len(names) + 0.9)
    axis = axes[0, 0]
    row = np.arange(len(names))[::-1]
    seen, most = np.maximum(np.asarray(off), 1e-9), np.asarray(allowed)
    with style():
        axis.hlines(row, 1e-9, most, color="#BBBBBB", lw=5, label="allowed")
        axis.plot(seen, row, "o", color=CYCLE[1], ms=5, label="measured, relative to predicted")
        axis.set_xscale("log")
        axis.set_xlim(5e-10, 3)
        axis.set_ylim(-0.7, len(names) - 0.3)
        axis.set_yticks(row, names, fontsize=9)
        axis.set_xlabel("distance from the prediction")
        axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.08), ncol=2, fontsize=9)
    return figure
