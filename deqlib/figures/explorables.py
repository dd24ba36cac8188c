"""Figures of the explorables: one setting of the knobs, on the left its picture, on the right what
is measured."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from deqlib.figures.landscape import draw_landscape
from deqlib.figures.models import Layer, draw_cobweb
from deqlib.figures.spheres import draw_ray, draw_space
from deqlib.figures.style import CYCLE, INK, bound_line, new, style

SIZE: dict[str, Any] = {"width": 8.4, "height": 4.1}
FLOW: dict[str, Any] = {"color": CYCLE[0], "linewidth": 2.4}
DESCENT: dict[str, Any] = {"color": CYCLE[1], "linewidth": 0.9, "marker": ".", "markersize": 5}
AMBER = "#8A5A00"
GREYS = LinearSegmentedColormap.from_list("greys", ["#FFFFFF", "#848B94"])
BELOW: dict[str, Any] = {
    "loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "fontsize": 9, "columnspacing": 1.1,
    "handlelength": 1.6,
}  # fmt: skip


def cobweb(layer: Layer, repelling: Tensor, residual: Tensor) -> Figure:
    """The cobweb of a layer, and the residual (K + 1,) of each state on a logarithmic axis.

    ``layer.equilibria`` are those that attract, drawn full; ``repelling`` are drawn hollow.
    """
    figure, axes = new(1, 2, **SIZE)
    left, right = axes[0]
    with style():
        draw_cobweb(left, layer)
        left.plot(
            repelling, repelling, "o", color="white", markeredgecolor=INK, markersize=6, zorder=5
        )
        left.set(xlabel="$z_k$", ylabel="$z_{k+1}$")
        shown = residual.clamp_min(1e-17)
        right.semilogy(shown, **DESCENT)
        right.set(xlabel="step $k$", title="residual $|\\varphi(az_k+b)-z_k|$")
        _decades(right, min(1e-3, float(shown.min())), float(shown.max()))
    return figure


def circle(
    radius: float, A: float, flow: Tensor, descent: Tensor, squares: tuple[Tensor, Tensor]
) -> Figure:
    """One input: paths (T, 2) of flow and descent in the plane (u, 1 − a), and squared radii.

    squares : measured and predicted squared radius (K + 1,) over the step of the descent.
    """
    figure, axes = new(1, 2, **SIZE)
    left, right = axes[0]
    angle = np.linspace(0, 2 * np.pi, 181)
    reach = _reach(radius, descent)
    with style():
        left.plot(radius * np.cos(angle), radius * np.sin(angle), color="#9AA5B1", linewidth=1.2)
        left.axhline(0, color=AMBER, linewidth=1.6, linestyle=(0, (2, 2)), label="$a=1$")
        far = 2 * reach / np.hypot(1, A)
        bound_line(left, [-A * far, A * far], [-far, far], label="minimisers")
        _paths(left, flow, descent)
        left.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
        left.set(xlabel="$u$", ylabel="$1-a$")
        left.legend(ncols=4, **BELOW)
        _squared_radius(right, radius, *squares)
    return figure


def sphere(
    radius: float,
    A: Tensor,
    flow: Tensor,
    descent: Tensor,
    squares: tuple[Tensor, Tensor],
    turn: float,
) -> Figure:
    """Two inputs: paths (T, 3) in the space (u₁, u₂, 1 − a), seen from ``turn`` degrees.

    squares : measured and predicted squared radius (K + 1,) over the step of the descent.
    """
    with style():
        figure = plt.figure(figsize=(SIZE["width"], SIZE["height"]))
        grid = figure.add_gridspec(1, 2, width_ratios=(1.25, 1))
        left: Any = figure.add_subplot(grid[0], projection="3d", computed_zorder=False)
        right = figure.add_subplot(grid[1])
        draw_space(left, [radius], True)
        reach = min(_reach(radius, descent), 2 * radius)
        left.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
        left.view_init(elev=20, azim=turn)
        left.set_zlabel("$1-a$", labelpad=-1)
        draw_ray(left, A, radius, True)
        shown = _cut(descent, reach)
        _paths(left, flow, shown, ended=shown is descent)
        left.legend(loc="upper left", bbox_to_anchor=(-0.12, 1.04), fontsize=9, labelspacing=0.25)
        _squared_radius(right, radius, *squares)
    return figure


def _decades(axis: Axes, low: float, high: float) -> None:
    """A logarithmic axis that holds these values, with few ticks: they are slow to draw."""
    axis.set_ylim(low / 2, 3 * high)
    axis.yaxis.set_major_locator(LogLocator(numticks=8))
    axis.minorticks_off()


def _reach(radius: float, points: Tensor) -> float:
    """Half the width of a window around the sphere: the path is shown up to 3 times the radius."""
    farthest = float(points.norm(dim=-1).max()) if len(points) else 0.0
    return 1.15 * min(max(radius, farthest), 3 * radius)


def _cut(path: Tensor, reach: float) -> Tensor:
    """The path up to where it leaves the cube |x| ≤ reach: axes in space clip nothing."""
    outside = (path.abs().amax(-1) > reach).nonzero()
    if not len(outside):
        return path
    k = int(outside[0, 0])
    before, step = path[k - 1], path[k] - path[k - 1]
    room = (reach * step.sign() - before) / step  # NaN or infinite where the step is 0
    return torch.cat([path[:k], (before + room.nan_to_num(torch.inf).min() * step)[None]])


def _paths(axis: Any, flow: Tensor, descent: Tensor, ended: bool = True) -> None:
    """Flow and descent from one start, in the plane or in space; the ends as dots."""
    if not len(flow):
        return
    axis.plot(*flow.T.numpy(), label="flow", zorder=3, **FLOW)
    axis.plot(*descent.T.numpy(), label="descent", zorder=4, **DESCENT)
    for path, color in ((flow, CYCLE[0]), (descent, CYCLE[1]))[: 1 + ended]:
        end = path[-1:].T.numpy()
        axis.plot(*end, "o", color=color, markeredgecolor="white", markersize=8, zorder=6)
    start = flow[:1].T.numpy()
    axis.plot(*start, "o", color="white", markeredgecolor=INK, markersize=7, zorder=7)


def _squared_radius(axis: Axes, radius: float, measured: Tensor, predicted: Tensor) -> None:
    if not len(measured):
        axis.set_axis_off()
        return
    axis.axhline(radius**2, label="flow", **FLOW)
    axis.plot(measured, label="descent, measured", **DESCENT)
    bound_line(
        axis, np.arange(len(predicted)), predicted, r"$r_0^2+\eta^2\sum|\nabla L|^2$", zorder=5
    )
    axis.set(xlabel="step $k$", title="squared radius")
    axis.set_ylim(0, 1.15 * max([radius**2, *measured.tolist()]))
    axis.legend(ncols=3, **BELOW)


def landscape(
    target: float,
    flow: Tensor,
    descent: Tensor,
    loss: Tensor,
    beside: tuple[Tensor, Tensor],
) -> Figure:
    """Levels of the scalar loss with paths (T, 2) of flow and descent in (a, u), and their losses.

    loss   : (K + 1,) of the descent.
    beside : (k, L): the flow's loss at the times kη, in units of η.
    """
    figure, axes = new(1, 2, **SIZE)
    left, right = axes[0]
    with style():
        dashed = {"color": INK, "linewidth": 1.6, "linestyle": (0, (5, 3)), "label": "minimisers"}
        draw_landscape(left, target, GREYS, dashed)
        left.plot([], [], color=INK, linewidth=1.6, linestyle=(0, (2, 2)), label="$a=1$")
        _paths(left, flow, descent)
        left.legend(ncols=4, **BELOW)
        if not len(loss):
            right.set_axis_off()
            return figure
        steps, beside_loss, loss = beside[0], beside[1].clamp_min(1e-17), loss.clamp_min(1e-17)
        right.semilogy(steps, beside_loss, label="flow at $t=k\\eta$", **FLOW)
        right.semilogy(loss, label="descent", **DESCENT)
        right.legend(ncols=2, **BELOW)
        right.set(xlabel="step $k$", title="loss $L$")
        low = min(float(beside_loss.min()), float(loss.min()))
        high = max(float(beside_loss.max()), float(loss.max()))
        _decades(right, min(low, 1e-3 * high), high)
    return figure


def learned_link(
    index: Tensor,
    z: Tensor,
    phi: Tensor,
    D: Tensor,
    folds: tuple[Tensor, Tensor],
    at: tuple[float, Tensor, Tensor],
    reach: float,
) -> Figure:
    """All equilibria z over the index s, and the slope D of those that are stable.

    index, z : (n,) a curve; phi (n,) the link itself at ``index``
    D        : (n,) slopes φ′/(1 − aφ′), NaN where the equilibrium is unstable
    folds    : indices and equilibria of the folds
    at       : an index s, its equilibria (m,), and which of them are stable (m,)
    """
    figure, axes = new(1, 2, **SIZE)
    left, right = axes[0]
    s, found, stable = at
    inside = index.abs() <= reach
    order = index[inside].argsort()
    with style():
        left.plot(
            index[inside][order], phi[inside][order], color=INK, linewidth=1, label=r"$\varphi$"
        )
        for wanted, look, color, name in (
            (~D.isnan(), "-", CYCLE[0], "stable"),
            (D.isnan(), ":", CYCLE[1], "unstable"),
        ):
            if wanted.any():
                shown = z.masked_fill(~wanted, torch.nan)
                left.plot(index, shown, look, color=color, linewidth=2.4, label=name)
        seen = torch.cat([z[inside & (z.abs() <= 8)], phi[inside & (phi.abs() <= 8)], found])
        low, high = (float(seen.min()), float(seen.max())) if len(seen) else (-1.0, 1.0)
        if folds[0].numel():
            left.plot(*folds, "o", color=INK, markersize=6, zorder=5, label="fold")
        left.plot(
            found[~stable].new_full((int((~stable).sum()),), s), found[~stable], "s",
            color="white", markeredgecolor=CYCLE[1], markersize=7, zorder=6,
        )  # fmt: skip
        left.plot(
            found[stable].new_full((int(stable.sum()),), s), found[stable], "s", color=CYCLE[0],
            markersize=7, zorder=6,
        )  # fmt: skip
        margin = 0.1 * (high - low) + 1e-3
        left.set(xlim=(-reach, reach), ylim=(low - margin, high + margin))
        left.set(xlabel="index $s$", title="equilibria $z$")
        left.legend(ncols=4, **BELOW)
        right.plot(index, D, color=CYCLE[2], linewidth=2.2)
        visible = D[inside & ~D.isnan()]
        top = float(visible.max()) if len(visible) else 1.0
        bottom = float(visible.min()) if len(visible) else 0.0
        right.set(xlim=(-reach, reach), ylim=(min(0.0, 1.1 * bottom), 1.1 * min(max(top, 1.0), 12)))
        right.set(xlabel="index $s$", title="slope $D$ of the stable ones")
        for axis in (left, right):
            axis.axvline(s, color="#9AA5B1", linewidth=1)
    return figure


def rate(
    times: Tensor,
    curves: dict[str, Tensor],
    descent: tuple[Tensor, Tensor],
    levels: tuple[Tensor, Tensor],
    path: Tensor,
    A: Tensor,
) -> Figure:
    """L/L₀ over time on a logarithmic axis, and the path (T, 2) in the plane of maps F.

    curves  : "flow", "bound" and "sharp" (T,) at the times (T,)
    descent : (times kη, L/L₀)
    levels  : (levels, n, 2) points of ellipses of equal loss, and the levels (not drawn)
    """
    figure, axes = new(1, 2, **SIZE)
    left, right = axes[0]
    with style():
        if len(times):
            left.semilogy(times, curves["flow"], label="flow", **FLOW)
            left.semilogy(*descent, label="descent at $t=k\\eta$", **DESCENT)
            bound_line(left, times, curves["bound"], label=r"bound $e^{-2\mu t}$")
            left.semilogy(
                times, curves["sharp"], ":", color=CYCLE[2], linewidth=2.4, label="sharp slope"
            )
            left.set(xlim=(0, float(times[-1])), xlabel="time $t$", title="$L/L_0$")
            left.legend(ncols=2, **BELOW)
            _decades(left, 2e-6, 1)
        else:
            left.set_axis_off()
        for ellipse in levels[0]:
            right.plot(*ellipse.T, color="#9AA5B1", linewidth=0.9)
        if len(path):
            right.plot(*path.T, label="path of the flow", **FLOW)
            right.plot(
                *path[:1].T, "o", color="white", markeredgecolor=INK, markersize=7, label="start"
            )
        right.plot(A[:1], A[1:], "*", color=CYCLE[1], markersize=12, label="target $A$")
        right.set(xlim=(-2.3, 2.3), ylim=(-2.3, 2.3), aspect="equal")
        right.set(xlabel="$F_1$", ylabel="$F_2$")
        right.legend(ncols=3, **BELOW)
    return figure
