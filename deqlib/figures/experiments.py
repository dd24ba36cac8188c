"""Figures of the chapter on the paper's experiments: predictions dashed, runs in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from deqlib.figures.style import CYCLE, INK, bound_line, new, style

LINES = ("-", "--", "-.", ":", (0, (1, 1)))
MARKERS = "os^Dv"
PALE = "#AAAAAA"


class Plane(NamedTuple):
    """One run in the plane (w, a): its path (K,), the circle of its start and a predicted one."""

    w: ArrayLike
    a: ArrayLike
    start: float
    predicted: float


def _circle(axis: Axes, radius: float, **options: object) -> None:
    turn = np.linspace(0, 2 * np.pi, 200)
    axis.plot(radius * np.cos(turn), 1 + radius * np.sin(turn), **options)  # type: ignore[arg-type]


def planes(panels: Mapping[str, Plane], slope: float) -> Figure:
    """Runs of a scalar linear DEQ: iterates, the line of minimisers w = slope·(1 − a), circles."""
    figure, axes = new(1, len(panels), width=7.0, height=3.7)
    with style():
        for axis, (title, panel) in zip(axes[0], panels.items(), strict=True):
            w, a = np.asarray(panel.w), np.asarray(panel.a)
            reach = 1.3 * panel.predicted
            span = np.array([-reach, reach])
            _circle(axis, panel.start, color=PALE, linewidth=1.2, label="circle of the start")
            _circle(axis, panel.predicted, color=INK, linestyle=(0, (5, 3)), linewidth=1.2,
                    label="predicted circle")  # fmt: skip
            axis.plot(slope * span, 1 - span, color=CYCLE[2], linewidth=1.2, label="minimisers")
            axis.plot(w, a, ".-", color=CYCLE[1], linewidth=0.8, markersize=5, label="descent")
            axis.plot(w[0], a[0], "s", color=CYCLE[0], markersize=6, zorder=5, label="start")
            axis.plot(0, 1, "x", color=INK, label="singular point")
            axis.set(title=title, xlabel="$w$", xlim=(-reach, reach), ylim=(1 - reach, 1 + reach))
            axis.set_aspect("equal")
        axes[0, 0].set_ylabel("$a$")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def ends(start: ArrayLike, end: ArrayLike, edge: float, chosen: int) -> Figure:
    """Radius before and after descent, a vertical line a start; the chosen one in colour."""
    first, last = np.asarray(start), np.asarray(end)
    order = np.argsort(last)
    figure, axes = new(height=3.3)
    axis = axes[0, 0]
    with style():
        for position, k in enumerate(order):
            color = CYCLE[1] if k == chosen else "#777777"
            width = 2.4 if k == chosen else 1.2
            axis.plot([position, position], [first[k], last[k]], color=color, linewidth=width)
            axis.plot(position, first[k], "o", color="white", markeredgecolor=color)
            axis.plot(position, last[k], "o", color=color)
        bound_line(axis, [-0.5, len(order) - 0.5], [edge, edge], label="edge radius")
        axis.plot([], [], "o", color="white", markeredgecolor="#777777", label="start")
        axis.plot([], [], "o", color="#777777", label="after 200 steps")
        axis.plot([], [], "o", color=CYCLE[1], label=f"seed {chosen}, shown in the paper")
        axis.set_yscale("log")
        axis.set_xticks(range(len(order)), [str(k) for k in order], fontsize=9)
        axis.set(xlabel="seed of the start", ylabel="distance from the singular point")
        axis.legend(loc="upper left")
    return figure


def risk_and_radius(
    runs: Mapping[str, tuple[ArrayLike, ArrayLike]], predicted: Sequence[float]
) -> Figure:
    """Two panels over the steps: the risk, and the distance from the singular point.

    ``runs[name]`` holds (risks, radii), one a step; ``predicted`` the radius foretold for each.
    """
    figure, axes = new(1, 2, height=3.3)
    with style():
        for (name, (risk, radius)), foretold, color, line in zip(
            runs.items(), predicted, CYCLE, LINES, strict=False
        ):
            r, k = np.asarray(risk), np.arange(len(np.asarray(risk)))
            shown = r > 1e-26
            axes[0, 0].semilogy(k[shown], r[shown], linestyle=line, color=color, label=name)
            axes[0, 1].plot(k, np.asarray(radius), linestyle=line, color=color, label=name)
            label = "predicted" if color == CYCLE[0] else "_again"
            bound_line(axes[0, 1], k[[0, -1]], [foretold, foretold], label=label)
        axes[0, 0].set(title="risk", xlabel="step")
        axes[0, 1].set(title="distance from the singular point", xlabel="step", ylim=(0, None))
        axes[0, 0].legend(loc="lower left")
        axes[0, 1].legend(loc="center right")
    return figure


def distances(panels: Mapping[str, tuple[ArrayLike, ArrayLike, float]]) -> Figure:
    """Distance from the target over the steps, one panel a run, beside the slope of the Hessian.

    ``panels[name]`` holds (steps, distances, predicted rate a step).
    """
    figure, axes = new(1, len(panels), height=3.3)
    with style():
        for axis, (title, (steps, error, rate)) in zip(axes[0], panels.items(), strict=True):
            k, e = np.asarray(steps, dtype=float), np.asarray(error)
            keep = e > 1e-12
            axis.semilogy(k[keep], e[keep], "o-", color=CYCLE[0], markersize=4, label="descent")
            last = np.flatnonzero(keep)[-1]
            span = np.linspace(k[0], k[last], 200)
            line = e[last] * np.exp(-rate * (span - k[last]))
            inside = line < 3 * e[0]
            bound_line(axis, span[inside], line[inside], label="slope of the Hessian")
            axis.set(title=title, xlabel="step")
            axis.ticklabel_format(axis="x", style="plain")
        axes[0, 0].set_ylabel(r"$\|\theta-\theta_\star\|$")
        axes[0, 0].legend(loc="lower left")
    return figure


def pairs(panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]]) -> Figure:
    """Mean square error over the steps: one panel a link, one curve a model."""
    figure, axes = new(1, len(panels), width=7.4, height=2.9, sharey=True)
    with style():
        for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
            for (name, (steps, risk)), color, line in zip(
                curves.items(), CYCLE, LINES, strict=False
            ):
                k, r = np.asarray(steps), np.asarray(risk)
                keep = (k > 0) & (r > 1e-17)
                axis.loglog(k[keep], r[keep], linestyle=line, color=color, label=name)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("step")
        axes[0, 0].set(ylabel="mean square error", ylim=(1e-17, 10))
        axes[0, 0].legend(loc="lower left", fontsize=9, handlelength=1.6)
    return figure


def stalls(runs: Mapping[str, tuple[ArrayLike, ArrayLike]], slope: float, radius: float) -> Figure:
    """Where runs of several backward passes end, (w, a) each (starts,), and the flow's circle."""
    figure, axes = new(height=3.7)
    axis = axes[0, 0]
    with style():
        turn = np.linspace(-np.pi / 2, 0, 200)
        axis.plot(radius * np.cos(turn), 1 + radius * np.sin(turn), color=PALE, linewidth=4,
                  label="circle of the flow")  # fmt: skip
        P = np.array([1.8, 2.3])
        axis.plot(slope * P, 1 - P, color=CYCLE[2], linewidth=1.4, label="minimisers")
        bound_line(axis, [1.9, 2.4], [-1, -1], label="$a=-1$")
        for (name, (w, a)), color, marker in zip(runs.items(), CYCLE, MARKERS, strict=False):
            axis.plot(w, a, marker, color=color, markersize=6, alpha=0.8, label=name)
        axis.set(xlim=(2.05, 2.33), ylim=(-1.18, -0.94), xlabel="$w$", ylabel="$a$")
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9.5)
    return figure


def against_lines(
    runs: Mapping[str, tuple[ArrayLike, ArrayLike]],
    lines: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    predicted: str,
    ylabel: str,
) -> Figure:
    """Distances (K, seeds) over the steps as points with their range, and predicted curves."""
    figure, axes = new(height=3.6)
    axis = axes[0, 0]
    with style():
        for j, (steps, values) in enumerate(lines.values()):
            bound_line(axis, steps, values, label=predicted if j == 0 else "_")
        for (name, (steps, values)), color, marker in zip(
            runs.items(), CYCLE, MARKERS, strict=False
        ):
            v = np.asarray(values)
            middle = v.mean(axis=1)
            spread = np.stack([middle - v.min(axis=1), v.max(axis=1) - middle])
            axis.errorbar(
                steps, middle, spread, fmt=marker, color=color, markersize=5, capsize=3, label=name
            )
        axis.set_yscale("log")
        axis.locator_params(axis="x", nbins=5)
        axis.set(xlabel="step", ylabel=ylabel)
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def steps_and_rays(runs: Sequence[tuple[str, ArrayLike, ArrayLike]], slope: float) -> Figure:
    """Paths of descent with several step sizes in the plane (w, a), for turning knobs."""
    figure, axes = new(width=7.0, height=3.6)
    axis = axes[0, 0]
    with style():
        reach = max(0.3, *(float(np.hypot(w, 1 - np.asarray(a)).max()) for _, w, a in runs))
        span = np.array([-reach, reach])
        axis.plot(slope * span, 1 - span, color=CYCLE[2], linewidth=1.2, label="minimisers")
        for (name, w, a), color in zip(runs, CYCLE, strict=False):
            axis.plot(w, a, ".-", color=color, linewidth=0.8, markersize=4, label=name)
        axis.plot(0, 1, "x", color=INK)
        axis.set(
            xlim=(-1.1 * reach, 1.1 * reach), ylim=(1 - 1.1 * reach, 1 + 1.1 * reach),
            xlabel="$w$", ylabel="$a$",
        )  # fmt: skip
        axis.set_aspect("equal")
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
