"""Figures of flow and descent: paths, the edge of stability, bounds beside measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from deqlib.figures.style import CYCLE, INK, bound_line, new, style


def _bowl(axis: Axes, curvatures: tuple[float, float], reach: tuple[float, float]) -> None:
    """Level lines of ½(λ₁x² + λ₂y²)."""
    x, y = np.meshgrid(np.linspace(-reach[0], reach[0], 121), np.linspace(-reach[1], reach[1], 121))
    value = 0.5 * (curvatures[0] * x**2 + curvatures[1] * y**2)
    axis.contour(x, y, np.sqrt(value), levels=8, colors="#BBBBBB", linewidths=0.7)
    axis.set(xlim=(-reach[0], reach[0]), ylim=(-reach[1], reach[1]))
    axis.grid(False)


def flow_and_descents(
    curvatures: tuple[float, float],
    flow: tuple[Tensor, Tensor, Tensor],
    descents: Mapping[str, tuple[Tensor, Tensor, Tensor]],
) -> Figure:
    """Paths in a bowl (left) and the loss against time (right).

    A path is (time (T,), theta (T, 2), loss (T,)); the time of descent step k is kη.
    """
    figure, axes = new(1, 2, height=3.6)
    with style():
        left, right = axes[0]
        _bowl(left, curvatures, (2.3, 1.4))
        for (label, (time, theta, loss)), colour in zip(descents.items(), CYCLE[1:], strict=False):
            left.plot(*theta.T, "o-", color=colour, markersize=3.2, linewidth=1.0)
            right.semilogy(time, loss, "o-", color=colour, markersize=3.2, linewidth=1.0,
                           label=label)  # fmt: skip
        time, theta, loss = flow
        left.plot(*theta.T, color=CYCLE[0], linewidth=2.6, label="flow")
        right.semilogy(time, loss, color=CYCLE[0], linewidth=2.6, label="flow")
        left.plot(0, 0, "*", color=INK, markersize=10)
        left.set(xlabel=r"$\theta_1$", ylabel=r"$\theta_2$", title="the path")
        right.set(xlabel=r"time $t = k\eta$", ylabel="loss", title="the loss")
        right.set_xlim(0, float(time[-1]))
        right.legend(fontsize=9.5, loc="lower left")
    return figure


def edge_of_stability(
    step: Tensor, measured: Tensor, exact: Tensor, marks: Mapping[str, float]
) -> Figure:
    """Loss after a fixed number of steps against the step size: runs (dots) and formula (line)."""
    figure, axes = new(height=3.4)
    with style():
        axis = axes[0, 0]
        axis.semilogy(step, exact, color=INK, linewidth=1.2, label="formula")
        axis.semilogy(step, measured, ".", color=CYCLE[0], markersize=5, label="runs, one batch")
        axis.axhline(1, color="#999999", linewidth=0.8)
        for (label, where), colour in zip(marks.items(), (CYCLE[2], CYCLE[1]), strict=True):
            axis.axvline(where, color=colour, linewidth=1.6, linestyle="--", label=label)
        axis.set(xlabel=r"step size $\eta\,\lambda_{\max}$", ylabel="loss / loss at the start")
        axis.legend(loc="upper left")
    return figure


def landscape(x: Tensor, loss: Tensor, curvature: Tensor, ratio: Tensor, proved: float) -> Figure:
    """A loss of one variable, where it is not convex, and its ratio ‖∇L‖²/2(L − L*)."""
    figure, axes = new(1, 2)
    with style():
        left, right = axes[0]
        left.plot(x, loss, color=CYCLE[0])
        left.fill_between(x, 0, float(loss.max()), where=(curvature < 0).numpy(), color=CYCLE[1],
                          alpha=0.18, linewidth=0, label="curvature < 0")  # fmt: skip
        left.set(xlabel=r"$x$", title=r"$L(x) = x^2 + 3\sin^2 x$", ylim=(0, float(loss.max())))
        left.legend(loc="upper center")
        right.semilogy(x, ratio, color=CYCLE[0], label="measured")
        bound_line(right, [float(x[0]), float(x[-1])], [proved, proved], r"$\mu$ proved by hand")
        low = int(ratio.argmin())
        right.plot(x[low], ratio[low], "o", color=CYCLE[1], label="least value")
        right.set(xlabel=r"$x$", title=r"$L'(x)^2\,/\,2L(x)$", ylim=(0.05, 150))
        right.legend(loc="upper center", ncols=1, fontsize=9.5)
    return figure


def following(
    step: Tensor, errors: Mapping[str, Tensor], bounds: Mapping[str, Tensor],
    time: Tensor, error: Tensor, bound: Tensor,
) -> Figure:  # fmt: skip
    """Distance of descent from the flow: against the step (left), against time (right)."""
    figure, axes = new(1, 2, height=3.5)
    with style():
        left, right = axes[0]
        for (label, values), colour, marker in zip(errors.items(), CYCLE, "os", strict=False):
            left.loglog(step, values, marker, color=colour, markersize=5, label=label)
            left.loglog(step, bounds[label], color=colour, linestyle=(0, (5, 3)), linewidth=1.4)
        left.set(xlabel=r"step size $\eta$", ylabel=r"largest $\|\theta_k - \theta(k\eta)\|$",
                 title="dashed: the bounds")  # fmt: skip
        left.legend(fontsize=9.5)
        right.semilogy(time[1:], error[1:], color=CYCLE[1], label="measured")
        bound_line(right, time[1:], bound[1:])
        right.set(xlabel=r"time $t = k\eta$", title="leaving a maximum")
        right.legend(loc="lower right")
    return figure


def invariant_tells(
    loss: Mapping[str, Tensor], drift: Mapping[str, Tensor], distance: Mapping[str, Tensor]
) -> Figure:
    """Distance to the flow's own end against the final loss (left), the drift (right)."""
    figure, axes = new(1, 2, height=3.6, sharey=True)
    with style():
        left, right = axes[0]
        for (label, gap), colour, marker in zip(distance.items(), CYCLE, "os^D", strict=False):
            left.loglog(loss[label] + 1e-33, gap, marker, color=colour, markersize=3.2, alpha=0.7,
                        linewidth=0, label=label)  # fmt: skip
            right.loglog(drift[label], gap, marker, color=colour, markersize=3.2, alpha=0.7,
                         linewidth=0)  # fmt: skip
        left.set(xlabel="loss at the end", ylabel="distance to the flow's end",
                 title="the loss says nothing")  # fmt: skip
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=4,
                      fontsize=9.5, markerscale=2, handletextpad=0.1)  # fmt: skip
        right.set(xlabel=r"change of the invariant", title="the invariant tells")
    return figure


def ratios(values: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Measured / bound for each conclusion (rows) and family (colours): dots left of 1 hold."""
    figure, axes = new(height=3.8)
    with style():
        axis = axes[0, 0]
        conclusions = list(values)
        for row, conclusion in enumerate(conclusions):
            families = list(values[conclusion].items())
            for j, ((label, ratio), colour) in enumerate(zip(families, CYCLE, strict=False)):
                spread = np.linspace(-0.1, 0.1, len(ratio)) + 0.25 * (j - (len(families) - 1) / 2)
                axis.semilogx(ratio, row + spread, ".", color=colour, markersize=4,
                              label=label if row == 0 else None)  # fmt: skip
        axis.axvline(1, color=INK, linestyle=(0, (5, 3)), linewidth=1.4)
        axis.set_yticks(range(len(conclusions)), conclusions)
        axis.invert_yaxis()
        axis.set(xlabel="measured / bound (dashed: the bound)", xlim=(1e-4, 2.5))
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=3,
                      markerscale=3, handletextpad=0.1)  # fmt: skip
    return figure


def broken(
    floors: Mapping[float, tuple[Tensor, float]],
    time: Tensor,
    tails: Mapping[int, Tensor],
) -> Figure:
    """Without smoothness: descent stalls at a floor (left). Without PL: power laws (right)."""
    figure, axes = new(1, 2, height=3.5)
    with style():
        left, right = axes[0]
        for (eta, (loss, floor)), colour in zip(floors.items(), CYCLE, strict=False):
            left.semilogy(loss, color=colour, label=rf"$\eta = {eta:g}$")
            left.axhline(floor, color=INK, linestyle=(0, (5, 3)), linewidth=1.2)
        left.set(xlabel="step $k$", ylabel="loss", title=r"$|x|^{3/2}$: not smooth",
                 ylim=(1e-9, 3))  # fmt: skip
        left.legend()
        for (p, loss), colour in zip(tails.items(), CYCLE, strict=False):
            right.loglog(time[1:], loss[1:], color=colour, label=rf"$p = {p}$")
            slope = -p / (p - 2)
            guide = float(loss[-1]) * (time / time[-1]) ** slope
            late = time > float(time[-1]) / 300
            right.loglog(time[late], 3 * guide[late], color=INK, linestyle=(0, (5, 3)),
                         linewidth=1.2)  # fmt: skip
        right.set(xlabel="time $t$", title=r"$|x|^p/p$: no PL inequality")
        right.legend(loc="lower left")
    return figure


def steps_needed(
    step: Tensor, measured: Mapping[float, Tensor], exact: Mapping[float, Tensor]
) -> Figure:
    """Steps until the loss has fallen by a fixed factor, against η λ_max, for several κ."""
    figure, axes = new(height=3.5)
    with style():
        axis = axes[0, 0]
        for (kappa, count), colour in zip(measured.items(), CYCLE, strict=False):
            axis.semilogy(step, exact[kappa], color=colour, linewidth=1.2)
            axis.semilogy(step, count, ".", color=colour, markersize=6,
                          label=rf"$\kappa = {kappa:g}$")  # fmt: skip
        axis.axvline(2, color=INK, linestyle="--", linewidth=1.2)
        axis.set(xlabel=r"step size $\eta\,\lambda_{\max}$", ylabel="steps until loss / $10^8$")
        axis.legend(ncols=2)
    return figure


def paths(panels: Sequence[tuple[str, tuple[float, float], Tensor, Tensor]]) -> Figure:
    """Small multiples: (title, curvatures, flow (T, 2), descent (K, 2)) a panel, two a row."""
    rows = -(-len(panels) // 2)
    figure, axes = new(rows, 2 if len(panels) > 1 else 1, height=0.4 + 2.3 * rows)
    with style():
        for axis, (title, curvatures, flow, descent) in zip(axes.flat, panels, strict=False):
            _bowl(axis, curvatures, (2.3, 1.4))
            axis.plot(*descent.T, "o-", color=CYCLE[1], markersize=3, linewidth=1.0)
            axis.plot(*flow.T, color=CYCLE[0], linewidth=2.2)
            axis.set_title(title)
    return figure


__all__ = [
    "broken",
    "edge_of_stability",
    "flow_and_descents",
    "following",
    "invariant_tells",
    "landscape",
    "paths",
    "ratios",
    "steps_needed",
]
