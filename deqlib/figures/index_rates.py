"""Figures of the chapter on linear convergence of the single-index model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from deqlib.figures.style import CYCLE, INK, bound_line, new, style

Curve = tuple[ArrayLike, ArrayLike]
LINES = ("-", "--", "-.", ":")


def _distance_axis(axis: Axes, xlabel: str = "step $k$") -> None:
    axis.set_yscale("log")
    axis.set_xlabel(xlabel)
    axis.grid(True)


def distances(curves: Mapping[str, Curve]) -> Figure:
    """Distances to the target over the step, logarithmic, the name of each curve at its end."""
    figure, axes = new(height=3.7)
    axis = axes[0, 0]
    with style():
        for j, (name, (k, values)) in enumerate(curves.items()):
            axis.plot(k, values, LINES[j % 2], color=CYCLE[j % len(CYCLE)], label=name)
        _distance_axis(axis)
        axis.set_ylabel(r"$\|\delta_k\|/\rho_0$")
        axis.set_ylim(bottom=1e-6)
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9.5)
    return figure


def both_constants(upper: Mapping[str, Curve], lower: Mapping[str, Curve]) -> Figure:
    """Left: λ_max(Q) against Λ, below the diagonal; right: λ_min(Q̃) against m, above it.

    Each maps a group's name to (constants, measured values). Constants below 1e-12 stand at the
    edge.
    """
    figure, axes = new(1, 2, height=3.5)
    names = (
        (r"constant $\Lambda$", r"$\lambda_{\max}(Q)$ at the start"),
        ("constant $m$", r"$\lambda_{\min}(\tilde Q)$ at the start"),
    )
    with style():
        for axis, groups, (xlabel, ylabel) in zip(axes[0], (upper, lower), names, strict=True):
            for (name, (x, y)), color, marker in zip(groups.items(), CYCLE, "o^s", strict=False):
                x = np.maximum(np.asarray(x), 1e-12)
                axis.plot(x, y, marker, color=color, markersize=3, alpha=0.5, label=name)
            axis.set_xscale("log")
            axis.set_yscale("log")
            ends = [
                min(axis.get_xlim()[0], axis.get_ylim()[0]),
                max(axis.get_xlim()[1], axis.get_ylim()[1]),
            ]
            bound_line(axis, ends, ends, label="equal")
            axis.set_xlim(*ends)
            axis.set_ylim(*ends)
            axis.set_xlabel(xlabel)
            axis.set_ylabel(ylabel)
        axes[0, 0].legend(loc="upper left", fontsize=9, markerscale=2)
    return figure


def shrinking(panels: Mapping[str, tuple[ArrayLike, Mapping[str, ArrayLike]]]) -> Figure:
    """m/λ_min(H) over ρ/Δ*, one panel a link, one curve a way to bound the slopes."""
    figure, axes = new(1, len(panels), height=3.3, sharey=True)
    with style():
        for axis, (title, (radius, curves)) in zip(axes[0], panels.items(), strict=True):
            for j, (name, values) in enumerate(curves.items()):
                axis.loglog(radius, values, LINES[j % 4], color=CYCLE[j], label=name)
            axis.axhline(1, color=INK, linewidth=1)
            axis.set_title(title)
            axis.set_xlabel(r"$\rho/\Delta^*$")
            axis.set_ylim(1e-8, 3)
        axes[0, 0].set_ylabel(r"$m/\lambda_{\min}(H)$")
        axes[0, 0].legend(loc="lower left", fontsize=9)
    return figure


def protocol(
    measured: Curve, promised: Mapping[str, Curve], paths: Mapping[str, Curve],
    target: Sequence[float], radius: float, border: float,
) -> Figure:  # fmt: skip
    """Left: distance over the step with what was promised; right: the paths in the plane (w, a).

    The circle is the ball of the theorem, the horizontal line the border a = 1/β.
    """
    figure, axes = new(1, 2, height=3.5, gridspec_kw={"width_ratios": (1.15, 1)})
    left, right = axes[0]
    with style():
        left.plot(*measured, color=CYCLE[0], label="measured")
        for j, (name, curve) in enumerate(promised.items()):
            if j == 0:
                bound_line(left, *curve, label=name)
            else:
                left.plot(*curve, LINES[2 + j % 2], color=CYCLE[j], linewidth=2, label=name)
        _distance_axis(left)
        left.set_ylabel(r"$\|\delta_k\|$")
        left.legend(loc="lower left", fontsize=9)
        for j, (name, (w, a)) in enumerate(paths.items()):
            color = CYCLE[1 if j else 0]
            right.plot(w, a, LINES[j], color=color, label=name)
            right.plot(np.asarray(w)[0], np.asarray(a)[0], "o", color=color, markersize=5)
        right.plot(*target, "*", color=INK, markersize=11)
        turn = np.linspace(0, 2 * np.pi, 200)
        right.plot(
            target[0] + radius * np.cos(turn), target[1] + radius * np.sin(turn),
            color=INK, linewidth=1, linestyle=":", label="the ball",
        )  # fmt: skip
        bound_line(right, right.get_xlim(), [border, border], label=r"$a=1/\beta$")
        right.set_xlabel("$w$")
        right.set_ylabel("$a$")
        right.set_aspect("equal")
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncol=2, fontsize=9)
    return figure


def clipped(curves: Mapping[str, Curve], selves: Mapping[str, Curve], ceiling: float) -> Figure:
    """Left: distances of clipped runs; right: their self-weights, with the ceiling dashed."""
    figure, axes = new(1, 2, height=3.3)
    left, right = axes[0]
    with style():
        for j, (name, (k, values)) in enumerate(curves.items()):
            left.plot(k, values, LINES[j % 4], color=CYCLE[j], label=name)
            right.plot(*selves[name], LINES[j % 4], color=CYCLE[j])
        _distance_axis(left)
        left.set_xscale("log")
        left.set_ylabel(r"$\|\delta_k\|$")
        left.legend(loc="lower left", fontsize=9)
        bound_line(right, right.get_xlim(), [ceiling, ceiling], label=r"ceiling $\bar a$")
        right.set_xscale("log")
        right.set_xlabel("step $k$")
        right.set_ylabel("self-weight $a_k$")
        right.legend(loc="lower right", fontsize=9)
    return figure


def long_steps(curves: Mapping[str, Curve]) -> Figure:
    """Distances to the target for several step sizes, the stable ones solid."""
    figure, axes = new(height=3.5)
    axis = axes[0, 0]
    with style():
        for j, (name, (k, values)) in enumerate(curves.items()):
            axis.plot(
                k, values, color=CYCLE[j % len(CYCLE)], label=name,
                linewidth=1.8 if j < 3 else 1.0, alpha=1.0 if j < 3 else 0.85,
            )  # fmt: skip
        _distance_axis(axis)
        axis.set_ylabel(r"$\|\delta_k\|$")
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9.5)
    return figure


def broken(panels: Mapping[str, tuple[Curve, Curve]]) -> Figure:
    """One panel a missing hypothesis: ‖δ_k‖/ρ₀ along one run, and what the theorem would promise.

    panels : title → (measured, promised).
    """
    figure, axes = new(2, 3, height=4.6)
    with style():
        for j, (axis, (title, (measured, promised))) in enumerate(
            zip(axes.flat, panels.items(), strict=True)
        ):
            axis.plot(*measured, color=CYCLE[1], marker=".", markersize=3, label="measured")
            bound_line(axis, *promised, label="promised")
            axis.set_title(title, fontsize=10)
            axis.ticklabel_format(useOffset=False)
            if j % 3 == 0:
                axis.set_ylabel(r"$\|\delta_k\|/\rho_0$")
            if j >= 3:
                axis.set_xlabel("step $k$")
        axes[0, 0].legend(fontsize=9)
    return figure


def grid(panels: Sequence[tuple[str, Curve, Mapping[str, Curve]]], columns: int = 3) -> Figure:
    """Small semilogarithmic panels: title, measured curve, and named curves promised for it."""
    rows = -(-len(panels) // columns)
    figure, axes = new(rows, min(columns, len(panels)), height=2.5 * rows, sharey=True)
    with style():
        for axis, (title, measured, promised) in zip(axes.flat, panels, strict=True):
            axis.plot(*measured, color=CYCLE[0], label="measured")
            for j, (name, curve) in enumerate(promised.items()):
                if j == 0:
                    bound_line(axis, *curve, label=name)
                else:
                    axis.plot(*curve, ":", color=CYCLE[1], linewidth=2, label=name)
            axis.set_yscale("log")
            axis.set_title(title, fontsize=10)
        for axis in axes[-1]:
            axis.set_xlabel("step $k$")
        for axis in axes[:, 0]:
            axis.set_ylabel(r"$\|\delta_k\|/\rho_0$")
        axes[0, 0].legend(loc="lower left", fontsize=8.5)
    return figure
