"""The loss landscape of the linear DEQ, and how descent comes down it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor

from deqlib import linear
from deqlib.dynamics import gradient_flow
from deqlib.figures.style import CYCLE, INK, bound_line, new, style
from deqlib.linear import LinearDEQ

A_RANGE, U_RANGE = (-1.3, 3.3), (-2.3, 2.3)
"""The window of the (a, u) plane, centred on the singular point (1, 0)."""
LEVELS = np.array([-9, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 2, 9])
RAY = {"color": CYCLE[1], "linewidth": 2.6}


def _scalar(a: Tensor, u: Tensor) -> LinearDEQ:
    """z = a z + u x with one state and one input."""
    return LinearDEQ(a[..., None, None], u[..., None, None])


def draw_landscape(
    axis: Axes, target: float, cmap: str | Colormap = "Blues", ray: Mapping[str, Any] = RAY
) -> None:
    """log₁₀ of ½ (u/(1−a) − A)², the singular line, its point and the minimisers."""
    # An even number of columns keeps a = 1 off the grid.
    a = torch.linspace(*A_RANGE, 300, dtype=torch.float64)
    u = torch.linspace(*U_RANGE, 300, dtype=torch.float64)
    aa, uu = torch.meshgrid(a, u, indexing="xy")
    A = torch.tensor([[target]], dtype=torch.float64)
    value = linear.loss(_scalar(aa, uu), torch.ones(1, 1, dtype=torch.float64), A)
    axis.contourf(a, u, value.clamp_min(1e-8).log10(), levels=LEVELS, cmap=cmap, vmin=-3.5, vmax=4)
    ends = np.array(A_RANGE)
    axis.plot(ends, (1 - ends) * target, **ray)
    axis.axvline(1, color=INK, linewidth=1.6, linestyle=(0, (2, 2)))
    axis.plot(1, 0, "o", markersize=7, markerfacecolor="white", markeredgecolor=INK)
    axis.set(xlim=A_RANGE, ylim=U_RANGE, aspect="equal", xlabel="$a$", ylabel="$u$")
    axis.grid(visible=False)


def scalar_landscape(target: float = 1.0) -> Figure:
    """The loss of z = a z + u x over the (a, u) plane, with its minimisers and −∇L as arrows.

    Left: levels of log L, which are rays from (1, 0). Right: the unit vectors of −∇L, which are
    tangent to the circles around (1, 0).
    """
    figure, ((left, right),) = new(1, 2, height=3.7, sharey=True)
    with style():
        draw_landscape(left, target)
        left.set_title("levels of $L$")
        paper = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
        left.text(-1.1, 0.5, "minimisers", color=CYCLE[1], bbox=paper)
        left.text(1.15, -2.0, "$a=1$: no\nequilibrium", color=INK, bbox=paper)
        left.text(1.25, 0.25, "(1, 0)", color=INK, bbox=paper)
        draw_landscape(right, target)
        right.set_title("the direction of $-\\nabla L$")
        grid = torch.linspace(-2.1, 2.1, 12, dtype=torch.float64)
        a, u = (x.reshape(-1) for x in torch.meshgrid(1 + grid, grid, indexing="xy"))
        one = torch.ones(1, 1, dtype=torch.float64)
        g = linear.gradient(_scalar(a, u), one, target * one)
        size = (g.W.square() + g.U.square()).sqrt()
        right.quiver(
            a, u, -(g.W / size).squeeze(), -(g.U / size).squeeze(),
            scale=17, width=0.006, color=INK, zorder=3,
        )  # fmt: skip
        for radius in (0.8, 1.6):
            right.add_patch(Circle((1, 0), radius, fill=False, edgecolor=CYCLE[2], linewidth=1.8))
        right.set_ylabel("")
    return figure


def start_and_target(
    targets: Sequence[float] = (-1.0, 0.5, 2.0),
    starts: Sequence[tuple[float, float]] = ((0.0, 0.0), (-0.6, -1.2), (1.6, 1.4), (2.6, -0.9)),
) -> Figure:
    """Gradient flow in the scalar landscape from the same starts to several targets."""
    columns = len(targets)
    figure, axes = new(1, columns, width=7.0 if columns > 1 else 4.2,
                       height=2.9 if columns > 1 else 4.2, sharey=True)  # fmt: skip
    first = torch.tensor(starts, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    with style():
        for axis, target in zip(axes[0], targets, strict=True):
            draw_landscape(axis, target)
            A = target * one
            run = gradient_flow(
                partial(linear.loss, S=one, A=A),
                _scalar(first[:, 0], first[:, 1]),
                40.0,
                grad=partial(linear.gradient, S=one, A=A),
                times=torch.cat([torch.zeros(1), torch.logspace(-4, 1.6, 120)]).clamp_max(40.0),
                batch_ndim=1,
                progress=False,
            )
            path_a, path_u = run.theta.W[:, :, 0, 0], run.theta.U[:, :, 0, 0]
            axis.plot(path_a, path_u, color=CYCLE[6], linewidth=1.8)
            axis.plot(path_a[0], path_u[0], "o", color=CYCLE[6], markersize=4.5)
            axis.plot(path_a[-1], path_u[-1], "*", color=CYCLE[6], markersize=10)
            axis.set_title(f"$A = {target:g}$")
        for axis in axes[0, 1:]:
            axis.set_ylabel("")
    return figure


def roads_to_the_singular_line(
    distance: Tensor, roads: Mapping[str, Tensor], bound: Tensor
) -> Figure:
    """L against |1 − a| on several roads to the line a = 1; ``bound`` belongs to the first."""
    figure, ((axis,),) = new(1, 1, height=3.2)
    with style():
        for (name, values), marker in zip(roads.items(), "os^v", strict=False):
            axis.loglog(distance, values, marker=marker, markersize=5, markevery=8, label=name)
        bound_line(axis, distance, bound, label="lower bound for the first", zorder=3)
        axis.set(xlabel="$|1-a|$", ylabel="$L$", ylim=(1e-3, None))
        axis.invert_xaxis()
        axis.legend()
    return figure


def descent(
    runs: Mapping[str, tuple[Tensor, Tensor]], rates: Mapping[str, float], floor: float
) -> Figure:
    """Excess loss against step number, with the linearised rate drawn through a late point.

    runs: name ↦ (step numbers, excess losses). rates: name ↦ predicted factor of L in one step.
    """
    figure, ((axis,),) = new(1, 1, height=3.6)
    with style():
        for color, (name, (steps, excess)) in zip(CYCLE, runs.items(), strict=False):
            seen = excess > floor
            axis.semilogy(steps[seen], excess[seen], color=color, label=name)
            if name in rates:
                at = int(seen.sum()) // 2
                line = excess[at] * rates[name] ** (steps - steps[at])
                shown = seen & (line < 1)
                bound_line(axis, steps[shown], line[shown], label="_")
        axis.plot([], [], linestyle=(0, (5, 3)), color=INK, linewidth=1.4, label="linearised rate")
        axis.set(xlabel="step", ylabel="excess loss $L$", ylim=(floor, 3))
        axis.legend(loc="upper right")
    return figure


def truncation_gap(order: Tensor, gap: Tensor, radius: float) -> Figure:
    """Relative gap between the formula and the true gradient of a forward pass cut at k steps."""
    figure, ((axis,),) = new(1, 1, height=3.0)
    with style():
        axis.semilogy(order, gap, "o-", markersize=3.5, label="|formula − true gradient| / |true|")
        reference = gap[len(gap) // 2] * radius ** (order - order[len(order) // 2])
        bound_line(axis, order, reference, label="slope $\\rho(W)^k$")
        axis.set(xlabel="Picard steps $k$ of the forward pass", ylabel="relative gap")
        axis.legend()
    return figure
