"""Figures of the chapter on the drifting sphere: what moves it, how slowly, and what keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from deqlib.figures.style import CYCLE, INK, bound_line, new

DASHES = ("-", (0, (6, 2)), (0, (3, 1, 1, 1)), "-.", (0, (1, 1)), (0, (8, 2, 1, 2)))
"""A line style for each curve besides its colour."""


def radii(runs: Mapping[str, tuple[ArrayLike, ArrayLike]], goal: float) -> Figure:
    """r² over time (t, r²), by the link's name; dotted, the value at the target."""
    figure, axes = new(height=3.9, width=7.4)
    axis = axes[0, 0]
    for (name, (t, r2)), colour, dash in zip(runs.items(), CYCLE, DASHES, strict=False):
        axis.semilogx(t, r2, color=colour, linestyle=dash, label=name)
    axis.axhline(goal, color=INK, linestyle=":", linewidth=1.4)
    axis.text(0.012, goal + 0.006, "value at the target", color=INK, fontsize=9.5)
    axis.set(xlabel="time $t$", ylabel="$r^2=(1-a)^2+\\|w\\|^2$")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def speeds(
    runs: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]],
) -> Figure:
    """Speed of r² in log t by the formula (line) and by differences of the path (dots), by name.

    Each entry holds (t, predicted, t of the differences, measured), with t times dr²/dt.
    """
    figure, axes = new(1, len(runs), width=8.4, height=2.9)
    for axis, (name, (t, predicted, middle, measured)), colour in zip(
        axes[0], runs.items(), CYCLE, strict=False
    ):
        axis.semilogx(t, predicted, color=INK, linewidth=1.3, label="$2t\\,E[q(\\varphi(u)-u)]$")
        axis.semilogx(middle, measured, "o", color=colour, markersize=4, label="measured")
        axis.axhline(0, color="#999999", linewidth=0.8)
        axis.set_title(name)
        axis.set_xlabel("time $t$")
    axes[0, 0].legend(fontsize=9, loc="lower left", frameon=False)
    axes[0, 0].set_ylabel("$dr^2/d\\log t$")
    return figure


def fit_or_find(runs: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]]) -> Figure:
    """Loss on the left, distance to the target's parameters on the right, by the link's name."""
    figure, axes = new(1, 2, width=8.2, height=3.3)
    left, right = axes[0]
    for (name, (t, loss, distance)), colour, dash in zip(runs.items(), CYCLE, DASHES, strict=False):
        left.loglog(t, loss, color=colour, linestyle=dash, label=name)
        right.loglog(t, distance, color=colour, linestyle=dash, label=name)
    left.set(xlabel="time $t$", title="loss")
    right.set(xlabel="time $t$", title="distance to $\\theta^*$")
    left.legend(frameon=False)
    return figure


def slow_law(
    runs: Mapping[float, tuple[ArrayLike, ArrayLike]],
    law: tuple[ArrayLike, ArrayLike],
    target: float,
) -> Figure:
    """P = 1 − a over the slow time ε²t: runs by ε, and the law."""
    figure, axes = new(height=3.5)
    axis = axes[0, 0]
    for (epsilon, (t, P)), colour, mark in zip(runs.items(), CYCLE, "osD", strict=False):
        axis.plot(t, P, mark, color=colour, markersize=4.5, label=f"$\\varepsilon={epsilon:g}$")
    bound_line(axis, *law, "slow law")
    axis.axhline(target, color=INK, linestyle=":", linewidth=1.2)
    axis.text(0.0, target + 0.008, "$P^*$", color=INK)
    axis.set(xlabel="slow time $\\varepsilon^2t$", ylabel="$P=1-a$")
    axis.legend(frameon=False)
    return figure


def inside_outside(
    t: ArrayLike,
    radius: Mapping[str, ArrayLike],
    loss: Mapping[str, ArrayLike],
    bound: ArrayLike,
) -> Figure:
    """r² (left) and loss (right) of the two models; dashed, the bound of the second one."""
    figure, axes = new(1, 2, width=8.2, height=3.3)
    left, right = axes[0]
    for name, colour, dash in zip(radius, CYCLE, DASHES, strict=False):
        left.semilogx(t, radius[name], color=colour, linestyle=dash, label=name)
        right.loglog(t, loss[name], color=colour, linestyle=dash, label=name)
    bound_line(right, t, bound, "bound for the link outside")
    left.set(xlabel="time $t$", title="$r^2$")
    right.set(xlabel="time $t$", title="loss relative to $L_0$", ylim=(1e-12, 3))
    left.legend(loc="lower left", frameon=False)
    right.legend(loc="lower left", fontsize=9, frameon=False)
    return figure


def angles(t: ArrayLike, runs: Sequence[tuple[str, ArrayLike, ArrayLike]]) -> Figure:
    """tan(ω/2) relative to the start (title, measured, bound), one panel a run."""
    figure, axes = new(1, len(runs), width=8.4, height=2.9, sharey=True)
    for axis, (title, measured, bound), colour in zip(axes[0], runs, CYCLE, strict=False):
        axis.semilogy(t, measured, color=colour, label="measured")
        bound_line(axis, t, bound, "$e^{-ct}$")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("time $t$")
    axes[0, 0].set_ylabel("$\\tan(\\omega/2)$ / start")
    axes[0, 0].set_ylim(1e-5, 2)
    axes[0, -1].legend(frameon=False)
    return figure
