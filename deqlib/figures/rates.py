"""Figures of the chapter on linear convergence of flow and descent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from deqlib.figures.style import CYCLE, INK, bound_line, new, style


def losses(t: ArrayLike, loss: ArrayLike, groups: Mapping[str, Sequence[int]]) -> Figure:
    """Losses (T, runs) over time, logarithmic, one colour and line style a group of runs."""
    curves = np.asarray(loss)
    figure, axes = new(height=3.4)
    axis = axes[0, 0]
    with style():
        for (name, members), color, line in zip(groups.items(), CYCLE, ("-", "-."), strict=False):
            for j, member in enumerate(members):
                axis.semilogy(
                    t, curves[:, member], line, color=color, linewidth=1.5,
                    label=name if j == 0 else "_",
                )  # fmt: skip
        axis.set_xlabel("time $t$")
        axis.set_ylabel("loss $L(t)$")
        axis.legend(loc="upper right")
    return figure


def _diagonal(axis: Axes, label: str) -> None:
    """The line y = x over the range of what has been drawn, on logarithmic axes."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    low = max(min(axis.get_xlim()[0], axis.get_ylim()[0]), 1e-12)
    high = max(axis.get_xlim()[1], axis.get_ylim()[1])
    bound_line(axis, [low, high], [low, high], label=label)
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)


def measured_against(
    bound: Mapping[str, tuple[ArrayLike, ArrayLike]], sharp: tuple[ArrayLike, ArrayLike]
) -> Figure:
    """Two clouds of rates: measured over the theorem's bound, and final over the sharp value.

    bound : for each kind of problem, (bounds, measured rates); points lie above the diagonal.
    sharp : (sharp rates, rates at the end of the run); points lie on the diagonal.
    """
    figure, axes = new(1, 2, height=3.5)
    left, right = axes[0]
    with style():
        for (name, (x, y)), color, marker in zip(bound.items(), CYCLE, "o^", strict=False):
            left.plot(x, y, marker, color=color, markersize=3, alpha=0.5, label=name)
        _diagonal(left, "bound")
        left.set_xlabel(r"bound $\mu$")
        left.set_ylabel("measured rate")
        left.legend(loc="lower right", fontsize=9, markerscale=2)
        right.plot(*sharp, "o", color=CYCLE[2], markersize=3, alpha=0.5)
        _diagonal(right, "equal")
        right.set_xlabel(r"sharp rate $\mu_{\rm sharp}$")
        right.set_ylabel("rate at the end")
        right.legend(loc="lower right", fontsize=9)
    return figure


def slacks(steps: ArrayLike, values: Mapping[str, ArrayLike]) -> Figure:
    """The slack of every inequality of a proof along one run, as a part of its larger side."""
    figure, axes = new(height=4.2)
    axis = axes[0, 0]
    lines = ("-", "--", "-.", ":")
    with style():
        for j, (name, value) in enumerate(values.items()):
            axis.plot(
                steps, value, lines[j // 2 % 4], color=CYCLE[j % len(CYCLE)], label=name
            )  # fmt: skip
        axis.axhline(0, color=INK, linewidth=1.2)
        axis.set_ylim(-0.05, 1.05)
        axis.set_xlabel("step $k$")
        axis.set_ylabel("slack / larger side")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncol=2, fontsize=10)
    return figure


def multiples(values: ArrayLike, least: float) -> Figure:
    """How often the proved step may be doubled before some step raises the loss."""
    figure, axes = new(height=3.1)
    axis = axes[0, 0]
    exponents = np.log2(np.asarray(values))
    bins = np.arange(np.floor(exponents.min()) - 0.5, exponents.max() + 1)
    with style():
        axis.hist(exponents, bins=bins, color=CYCLE[0], rwidth=0.85)
        axis.axvline(np.log2(least), color=INK, linestyle=(0, (5, 3)), label="best case: 8")
        ticks = np.arange(2, exponents.max() + 1, 2)
        axis.set_xticks(ticks, [f"$2^{{{int(k)}}}$" for k in ticks])
        axis.set_xlabel(r"largest multiple of $1/(4\Lambda)$ that still descends")
        axis.set_ylabel("problems")
        axis.legend(loc="upper right")
    return figure


def descents(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    bounds: Mapping[str, tuple[ArrayLike, ArrayLike]],
) -> Figure:
    """Bands of L_k/L₀ over the step, on logarithmic axes, with the bounds of one problem.

    curves : name → (steps, (T, problems)); the band holds the middle nine tenths.
    bounds : name → (steps, values).
    """
    figure, axes = new(height=3.6)
    axis = axes[0, 0]
    with style():
        for (name, (k, values)), color in zip(curves.items(), CYCLE, strict=False):
            low, middle, high = np.quantile(np.asarray(values), (0.05, 0.5, 0.95), axis=1)
            axis.fill_between(k, low, high, color=color, alpha=0.2, linewidth=0)
            axis.plot(k, middle, color=color, label=name)
        for name, (k, values) in bounds.items():
            bound_line(axis, k, values, label=name)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_ylim(1e-9, 10)
        axis.set_xlabel("step $k$")
        axis.set_ylabel("$L_k/L_0$")
        axis.legend(loc="lower left")
    return figure


def predictions(panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]]) -> Figure:
    """Loss over time, one panel a data set; the first curve is measured, the others predicted."""
    figure, axes = new(1, len(panels), height=3.3)
    with style():
        for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
            for j, (name, (t, values)) in enumerate(curves.items()):
                if j == 0:
                    axis.semilogy(t, values, color=CYCLE[0], label=name)
                elif j == 1:
                    bound_line(axis, t, values, label=name)
                else:
                    axis.semilogy(t, values, ":", color=CYCLE[1], linewidth=2, label=name)
            axis.set_ylim(1e-9, 3)
            axis.set_title(title)
            axis.set_xlabel("time $t$")
        axes[0, 0].set_ylabel("$L(t)/L(0)$")
        axes[0, 0].legend(loc="lower left", fontsize=9)
    return figure


def failures(
    panels: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], *, xlabels: Sequence[str]
) -> Figure:
    """What happens to the loss where one hypothesis is missing, beside what the bound says."""
    figure, axes = new(2, -(-len(panels) // 2), height=5.2)
    with style():
        for axis, xlabel, (title, (t, loss, bound)) in zip(
            axes.flat, xlabels, panels.items(), strict=False
        ):
            axis.semilogy(t, loss, color=CYCLE[1], label="measured")
            bound_line(axis, t, bound)
            if np.ptp(np.log10(np.asarray(loss))) < 0.5:
                axis.set_yscale("linear")
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.set_title(title)
            axis.set_xlabel(xlabel)
        axes[0, 0].set_ylabel("$L/L_0$")
        axes[1, 0].set_ylabel("$L/L_0$")
        axes[0, 0].legend(loc="lower left")
    return figure


def grid(
    rows: Mapping[str, Sequence[tuple[str, ArrayLike, ArrayLike, ArrayLike, ArrayLike]]],
) -> Figure:
    """Small multiples of (title, t, L/L₀, bound, sharp line), one row a key."""
    columns = len(next(iter(rows.values())))
    figure, axes = new(len(rows), columns, height=2.5 * len(rows) + 0.2, sharey=True)
    with style():
        for line, (name, panels) in zip(axes, rows.items(), strict=True):
            for axis, (title, t, loss, bound, sharp) in zip(line, panels, strict=True):
                axis.semilogy(t, loss, color=CYCLE[0], label="measured")
                bound_line(axis, t, bound)
                axis.semilogy(t, sharp, ":", color=CYCLE[1], linewidth=2, label="sharp slope")
                axis.set_ylim(1e-6, 3)
                axis.set_title(title)
            line[0].set_ylabel(name)
        for axis in axes[-1]:
            axis.set_xlabel("time $t$")
        axes[0, 0].legend(loc="lower left", fontsize=9)
    return figure
