"""Figures of the chapter on finite samples and noisy targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from deqlib.figures.style import CYCLE, INK, bound_line, new, style

LINES = ("-", "--", "-.", ":")
MARKERS = "os^Dv"


def plateaus(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]], levels: Mapping[str, float]
) -> Figure:
    """Distance to θ* over the step for several samples, and the level where each should end.

    curves : name → (steps, distances); a name that stands in ``levels`` gets its level dotted.
    """
    figure, axes = new(height=3.5)
    axis = axes[0, 0]
    with style():
        for (name, (k, away)), color, line in zip(curves.items(), CYCLE, LINES, strict=False):
            axis.semilogy(k, away, line, color=color, label=name)
            if name in levels:
                axis.axhline(levels[name], color=color, linestyle=(0, (1, 2)), linewidth=1.4)
        axis.set_ylim(bottom=3e-4)
        axis.set_xlabel("step $k$")
        axis.set_ylabel(r"distance $\|\theta_k-\theta^*\|$")
        axis.legend(loc="lower left", fontsize=9)
    return figure


def ball(
    k: ArrayLike,
    away: Mapping[str, ArrayLike],
    bounds: Mapping[str, ArrayLike],
    levels: Mapping[str, float],
) -> Figure:
    """Descent's distance to θ* beside the bounds on it and where they end."""
    figure, axes = new(height=3.7)
    axis = axes[0, 0]
    with style():
        for (name, values), color in zip(away.items(), CYCLE, strict=False):
            axis.semilogy(k, values, color=color, label=name)
        for (name, values), line in zip(
            bounds.items(), ((0, (5, 3)), (0, (5, 2, 1, 2))), strict=False
        ):
            axis.semilogy(k, values, linestyle=line, color=INK, linewidth=1.4, label=name)
        for (name, value), color in zip(levels.items(), CYCLE[2:], strict=False):
            axis.axhline(value, color=color, linestyle=(0, (1, 2)), linewidth=1.6, label=name)
        axis.set_xlabel("step $k$")
        axis.set_ylabel(r"distance $\|\theta_k-\theta^*\|$")
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    return figure


def radii(n: ArrayLike, bounds: Mapping[str, ArrayLike], seen: Mapping[str, ArrayLike]) -> Figure:
    """Bounds (dark), the prediction and the measured distance of the fit over the sample size."""
    figure, axes = new(height=3.5)
    axis = axes[0, 0]
    with style():
        for (name, values), line in zip(
            bounds.items(), ((0, (5, 3)), (0, (5, 2, 1, 2))), strict=False
        ):
            axis.loglog(n, values, linestyle=line, color=INK, linewidth=1.4, label=name)
        for (name, values), color, marker in zip(seen.items(), CYCLE, MARKERS, strict=False):
            axis.loglog(n, values, marker=marker, color=color, markersize=5, label=name)
        axis.set_xlabel("samples $n$")
        axis.set_ylabel("distance from $\\theta^*$")
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    return figure


Series = tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]


def scaling(panels: Mapping[str, Mapping[str, Series]], ylabels: Sequence[str]) -> Figure:
    """Measured values with error bars over n, each with its predicted line, one panel a quantity.

    panels : title → name → (n, measured, standard error, predicted).
    """
    figure, axes = new(1, len(panels), height=3.5)
    with style():
        for axis, ylabel, (title, series) in zip(axes[0], ylabels, panels.items(), strict=True):
            for (name, (n, seen, error, line)), color, marker in zip(
                series.items(), CYCLE, MARKERS, strict=False
            ):
                axis.plot(n, line, color=color, linewidth=1.2)
                axis.errorbar(
                    n, seen, yerror(seen, error), fmt=marker, color=color, markersize=4.5,
                    capsize=3, label=name,
                )  # fmt: skip
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_title(title)
            axis.set_xlabel("samples $n$")
            axis.set_ylabel(ylabel)
            axis.legend(loc="lower left", fontsize=9)
    return figure


def yerror(seen: ArrayLike, error: ArrayLike) -> np.ndarray:
    """Two standard errors up and down, the lower end kept above zero for a logarithmic axis."""
    value, twice = np.asarray(seen), 2 * np.asarray(error)
    return np.stack([np.minimum(twice, 0.95 * value), twice])


def _ellipse(axis: Axes, centre: ArrayLike, covariance: ArrayLike, label: str) -> None:
    """The curve that holds 95 % of a two-dimensional normal distribution."""
    values, vectors = np.linalg.eigh(np.asarray(covariance))
    t = np.linspace(0, 2 * np.pi, 200)
    circle = np.sqrt(-2 * np.log(0.05)) * np.stack([np.cos(t), np.sin(t)])
    x, y = np.asarray(centre)[:, None] + vectors @ (np.sqrt(values)[:, None] * circle)
    bound_line(axis, x, y, label=label)


Cloud = tuple[str, ArrayLike, ArrayLike, ArrayLike]


def clouds(rows: Sequence[Sequence[Cloud]]) -> Figure:
    """Fitted (a, w) of many samples, one panel each: (title, points (R, 2), centre, covariance)."""
    figure, axes = new(len(rows), len(rows[0]), height=2.6 * len(rows) + 0.3)
    with style():
        for line, panels in zip(axes, rows, strict=True):
            for axis, (title, points, centre, covariance) in zip(line, panels, strict=True):
                a, w = np.asarray(points).T
                axis.plot(a, w, "o", color=CYCLE[0], markersize=2.5, alpha=0.45, label="fits")
                _ellipse(axis, centre, covariance, "predicted, 95 %")
                axis.plot(*np.asarray(centre), "+", color=CYCLE[1], markersize=11, mew=2.2)
                axis.set_title(title)
            line[0].set_ylabel("$w$")
        for axis in axes[-1]:
            axis.set_xlabel("$a$")
        axes[0, 0].legend(loc="upper right", fontsize=8)
    return figure


def links(s: ArrayLike, panels: Mapping[str, tuple[ArrayLike, Mapping[str, ArrayLike]]]) -> Figure:
    """A teacher's link, the links that other students learned, and below by how much they miss it.

    panels : title → (teacher's outputs, name → student's outputs), all over ``s``.
    """
    figure, axes = new(2, len(panels), height=4.6, sharex=True, height_ratios=(3, 2))
    with style():
        for (top, bottom), (title, (teacher, students)) in zip(axes.T, panels.items(), strict=True):
            top.plot(s, teacher, color=INK, linewidth=3, alpha=0.35, label="teacher")
            for (name, values), color, line in zip(students.items(), CYCLE, LINES, strict=False):
                top.plot(s, values, line, color=color, label=name)
                bottom.plot(s, np.asarray(values) - np.asarray(teacher), line, color=color)
            top.set_title(title)
            top.legend(loc="upper left", fontsize=9)
            bottom.set_xlabel(r"teacher's index $s$")
        axes[0, 0].set_ylabel("output")
        axes[1, 0].set_ylabel("output $-$ teacher")
    return figure


def failures(panels: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]], ylabel: str) -> Figure:
    """Distances where one hypothesis is missing, beside what the theorem would allow."""
    figure, axes = new(2, -(-len(panels) // 2), height=5.0)
    with style():
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, (title, (k, away, bound)) in zip(axes.flat, panels.items(), strict=False):
            axis.plot(k, away, color=CYCLE[1], label="measured")
            bound_line(axis, k, bound)
            if np.nanmax(np.asarray(away)) > 20 * np.nanmin(np.asarray(away)):
                axis.set_yscale("log")
            else:
                axis.ticklabel_format(axis="y", useOffset=False)
            axis.set_title(title)
            axis.set_xlabel("step $k$")
        for line in axes:
            line[0].set_ylabel(ylabel)
        axes[0, 0].legend(loc="best", fontsize=9)
    return figure


def scores(panels: Mapping[str, Mapping[str, ArrayLike]], xlabels: Sequence[str]) -> Figure:
    """Scores on each held-out fold (dots) and their mean (bar), one line a method."""
    figure, axes = new(1, len(panels), height=3.3)
    with style():
        for axis, xlabel, (title, methods) in zip(axes[0], xlabels, panels.items(), strict=True):
            for row, (name, values) in enumerate(methods.items()):
                color = CYCLE[0] if name.startswith("DEQ") else CYCLE[3]
                value = np.asarray(values)
                spread = np.linspace(-0.22, 0.22, len(value))
                axis.plot(value, row + spread, "o", color=color, markersize=3, alpha=0.5)
                axis.plot([value.mean()] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=2)
            axis.set_yticks(range(len(methods)), list(methods))
            axis.invert_yaxis()
            axis.set_title(title)
            axis.set_xlabel(xlabel)
    return figure
