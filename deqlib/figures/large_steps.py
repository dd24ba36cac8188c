"""Figures on large steps and approximate backward passes: what the radius does about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from deqlib.figures.style import CYCLE, INK, bound_line, new, style


def near_singular(u: Tensor, a: Tensor, slope: float, edge: float) -> Figure:
    """One run of descent (p = d = 1) that starts near the singular point, and its radius.

    Left, the iterates (u, a) (K,), the line of minimisers u = slope·(1 − a), the circle of the
    start and the circle of radius ``edge``. Right, the radius over the steps, with both levels.
    """
    figure, axes = new(1, 2, width=7.0, height=3.5)
    plane, radius = axes[0]
    r = (u.square() + (1 - a).square()).sqrt()
    turn = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
    reach = 1.25 * float(r.max())
    with style():
        for size, color, line in ((float(r[0]), "#888888", "-"), (edge, INK, (0, (5, 3)))):
            plane.plot(size * turn.cos(), 1 + size * turn.sin(), color=color, linestyle=line,
                       linewidth=1.2)  # fmt: skip
        span = torch.tensor([-reach, reach], dtype=torch.float64)
        plane.plot(slope * span, 1 - span, color=CYCLE[2], linewidth=1.2, label="minimisers")
        plane.plot(u, a, ".-", color=CYCLE[1], linewidth=0.8, markersize=5)
        plane.plot(u[0], a[0], "s", color=CYCLE[0], markersize=6, label="start", zorder=5)
        plane.plot(0, 1, "x", color=INK, label="singular point")
        plane.set(xlim=(-reach, reach), ylim=(1 - reach, 1 + reach), xlabel="$u$", ylabel="$a$")
        plane.set_aspect("equal")
        radius.axhline(float(r[0]), color="#888888", linewidth=1.2, label="flow")
        radius.plot(r, ".-", color=CYCLE[1], label="descent")
        bound_line(radius, [0, len(r) - 1], [edge, edge], label="predicted edge")
        radius.set(xlabel="step", ylabel="radius $r_k$", ylim=(0, None))
        radius.legend(loc="lower right")
        plane.legend(loc="lower left", fontsize=8.5, handlelength=1.2, borderaxespad=0)
    return figure


def absorbed(step: Tensor, start: Tensor, end: Tensor) -> Figure:
    """Radius over edge radius, before and after training, against the step size.

    step : η over the largest step that the minimiser of the flow would bear, (n,).
    start, end : r₀ and r_∞ over the edge radius of that η, (n,).
    """
    figure, axes = new(height=3.6)
    axis = axes[0, 0]
    with style():
        axis.loglog(step, start, ".", color=CYCLE[5], markersize=5, label="at the start")
        axis.loglog(step, end, ".", color=CYCLE[1], markersize=5, label="at the end")
        low, high = float(step.min()), float(step.max())
        bound_line(axis, [low, high], [1, 1], label="edge of stability")
        axis.set(xlabel="step size / what the flow's limit bears", ylabel="radius / edge radius")
        axis.legend(loc="upper left")
    return figure


def schemes(paths: Mapping[str, tuple[Tensor, Tensor]], slope: float) -> Figure:
    """Where flows with several backward passes go along one circle (p = d = 1).

    ``paths[name]`` holds (u, a), each (T,). One panel a scheme: path, its end, and the minimisers.
    """
    figure, axes = new(1, len(paths), width=7.0, height=3.3, sharey=True)
    with style():
        for axis, (name, (u, a)) in zip(axes[0], paths.items(), strict=True):
            r = float((u[0].square() + (1 - a[0]).square()).sqrt())
            turn = torch.linspace(-torch.pi / 2, 0, 90, dtype=torch.float64)
            axis.plot(r * turn.cos(), 1 + r * turn.sin(), color="#BBBBBB", linewidth=5)
            P = torch.tensor([0.0, 1.1 * r], dtype=torch.float64)
            axis.plot(slope * P, 1 - P, color=CYCLE[2], linewidth=1.2)
            axis.axhline(-1, color=INK, linestyle=(0, (1, 2)), linewidth=1.0)
            axis.plot(u, a, color=CYCLE[1])
            axis.plot(u[-1], a[-1], "o", color=CYCLE[1], markersize=7)
            axis.set(title=name, xlabel="$u$", xlim=(1.6, 3.1), ylim=(-1.5, 0.3))
        axes[0, 0].set_ylabel("$a$")
    return figure


def step_panels(panels: Sequence[tuple[str, Tensor, Tensor]], edge: Sequence[float]) -> Figure:
    """Loss (above) and radius (below) over the steps, one column a step size.

    panels : (title, loss (K, n), radius (K, n)) with one line a start; edge : edge radius of each.
    """
    figure, axes = new(2, len(panels), width=7.0, height=4.6, sharex=True, sharey="row")
    with style():
        for column, (title, loss, radius) in enumerate(panels):
            top, low = axes[0, column], axes[1, column]
            for i in range(loss.shape[1]):
                top.semilogy(loss[:, i].clamp_min(1e-14), color=CYCLE[i], linewidth=1.3)
                low.semilogy(radius[:, i], color=CYCLE[i], linewidth=1.3)
            bound_line(low, [0, len(loss) - 1], [edge[column]] * 2)
            top.set_title(title)
            low.set_xlabel("step")
            low.minorticks_off()
            low.set_yticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
            low.set_ylim(0.15, 5)
        axes[0, 0].set_ylabel("loss")
        axes[1, 0].set_ylabel("radius $r_k$")
    return figure
