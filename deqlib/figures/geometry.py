"""Figures of the geometry behind training, and of the read-out's saddle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from deqlib.figures.style import CYCLE, INK, bound_line, new, style
from deqlib.rates import root

GREY = "#9AA5B1"
VIEW = (24, -60)  # elevation and azimuth of the camera, in degrees


def _ellipses(S: Tensor, A: Tensor, levels: Sequence[float]) -> list[np.ndarray]:
    """The level sets ½(F − A) S (F − A)ᵀ = level as curves (points, 2)."""
    angle = np.linspace(0, 2 * np.pi, 241)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    stretch = np.linalg.inv(root(S).numpy())
    return [A.numpy().reshape(2) + np.sqrt(2 * level) * circle @ stretch for level in levels]


def _facing(points: np.ndarray) -> np.ndarray:
    elevation, azimuth = np.radians(VIEW)
    camera = np.array(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth),
         np.sin(elevation)]
    )  # fmt: skip
    seen: np.ndarray = points @ camera > -0.02
    return seen


def _curve(axis: Any, points: np.ndarray, colour: str, width: float, order: int) -> None:
    """A curve on the sphere: strong in front, faint behind."""
    front = _facing(points)
    for mask, alpha in ((front, 1.0), (~front, 0.22)):
        shown = np.where(mask[:, None], points, np.nan)
        axis.plot(*shown.T, color=colour, linewidth=width, alpha=alpha, zorder=order)


def hemisphere(W: Tensor, U: Tensor, S: Tensor, A: Tensor, levels: Sequence[float]) -> Figure:
    """The unit sphere of directions (u₁, u₂, 1 − a), level sets of the loss, and paths on it.

    Paths W (T, runs, 1, 1), U (T, runs, 1, 2). A level set is an ellipse of the plane 1 − a = 1,
    seen from the centre; all of them squeeze together at the equator, where the loss is infinite.
    """
    P, u = (1 - W[..., 0, 0]).numpy(), U[..., 0, :].numpy()
    with style():
        figure = plt.figure(figsize=(7.0, 5.2))
        axis: Any = figure.add_subplot(projection="3d", computed_zorder=False)
    longitude, latitude = np.meshgrid(np.linspace(0, 2 * np.pi, 61), np.linspace(0, np.pi / 2, 16))
    axis.plot_surface(
        np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude),
        np.sin(latitude), color="#DCE6F0", alpha=0.35, linewidth=0, zorder=0,
    )  # fmt: skip
    angle = np.linspace(0, 2 * np.pi, 241)
    equator = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    _curve(axis, equator, "#8A5A00", 2.4, 2)
    for ellipse in _ellipses(S, A, levels):
        points = np.concatenate([ellipse, np.ones((len(ellipse), 1))], 1)
        _curve(axis, points / np.linalg.norm(points, axis=1, keepdims=True), GREY, 1.2, 3)
    for i in range(P.shape[1]):
        path = np.concatenate([u[:, i], P[:, i, None]], 1)
        path /= np.linalg.norm(path, axis=1, keepdims=True)
        colour = CYCLE[i % len(CYCLE)]
        _curve(axis, path, colour, 2.6, 5)
        axis.scatter(*path[0], color="white", edgecolor=colour, s=40, zorder=6)
    best = np.array([*A.flatten().tolist(), 1.0])
    axis.scatter(*(best / np.linalg.norm(best)), color=INK, marker="*", s=130, zorder=8)
    axis.text2D(0.03, 0.93, "brown rim: the equator, $a=1$, where $L=\\infty$\nstar: the minimiser",
                transform=axis.transAxes, va="top")  # fmt: skip
    axis.set(xlabel="$u_1/r$", ylabel="$u_2/r$", zlabel="$(1-a)/r$",
             xlim=(-1, 1), ylim=(-1, 1), zlim=(0, 1))  # fmt: skip
    axis.set_box_aspect((1, 1, 0.5), zoom=1.25)
    axis.view_init(*VIEW)
    axis.locator_params(nbins=4)
    return figure


def planes(
    panels: Mapping[str, Tensor], S: Tensor, A: Tensor, levels: Sequence[float], limit: float = 3.0
) -> Figure:
    """Paths (T, runs, 2) of F in its plane over the level sets of the loss, one panel a name."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new(rows, columns, height=3.5 * rows if columns == 2 else 4.6,
                       sharex=True, sharey=True)  # fmt: skip
    for axis, (name, F) in zip(axes.flat, panels.items(), strict=False):
        for ellipse in _ellipses(S, A, levels):
            axis.plot(*ellipse.T, color=GREY, linewidth=0.9)
        for i in range(F.shape[1]):
            axis.plot(F[:, i, 0], F[:, i, 1], color=CYCLE[i % len(CYCLE)], linewidth=2)
            axis.plot(*F[0, i], "o", color="white", markeredgecolor=CYCLE[i % len(CYCLE)])
        axis.plot(*A.flatten(), "*", color=INK, markersize=12)
        axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        axis.set_title(name)
    for axis in axes[-1]:
        axis.set_xlabel("$F_1$")
    for axis in axes[:, 0]:
        axis.set_ylabel("$F_2$")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    return figure


def holonomy(radii: Tensor, angles: Tensor, predicted: Tensor, frames: Tensor, path: Tensor) -> Figure:  # fmt: skip  # noqa: E501
    """A loop of F, and by how much the weights come back turned.

    Left: F (T, 2) on a circle, and at some of its points the first row of the gauge O (T, 2).
    Right: total angle in degrees against the radius of the loop, beside the solid angle.
    """
    figure, axes = new(1, 2, height=3.6)
    left, right = axes[0]
    left.plot(*path.T, color=GREY)
    every = max(1, (len(path) - 1) // 12)
    for k in range(0, len(path), every):
        last = k + every >= len(path)
        left.annotate(
            "", path[k] + 0.55 * frames[k], path[k],
            arrowprops={"arrowstyle": "-|>", "color": CYCLE[1] if last else CYCLE[0], "lw": 1.6},
        )  # fmt: skip
    left.plot(*path[0], "o", color=INK)
    reach = float(path.abs().max()) + 0.7
    left.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal",
             xlabel="$F_1$", ylabel="$F_2$", title="once around")  # fmt: skip
    right.plot(radii, angles, "o", color=CYCLE[0], label="measured")
    bound_line(right, radii, predicted, label="solid angle")
    right.set(xlabel="radius of the loop", ylabel="rotation (degrees)", title="turned by")
    right.legend(loc="lower right")
    return figure


def saddle(
    paths: Mapping[str, tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]], target: float
) -> Figure:
    """Read-out with one state: paths in the (u, v) plane, and the loss beside its bound.

    By name: t (T), u (T), v (T), loss (T), and the bound (T) or None where there is no gap.
    """
    figure, axes = new(2, 1, height=7.0, gridspec_kw={"height_ratios": [1.1, 1]})
    top, bottom = axes[:, 0]
    grid = np.linspace(-1.6, 1.6, 200)
    top.plot(grid, -grid, color=GREY, linewidth=1)
    top.plot(grid, grid, color=GREY, linewidth=1)
    top.text(-0.4, -1.33, "between the grey lines\nthe gap is open", color="#5B6770")
    for (name, (t, u, v, loss, bound)), colour in zip(paths.items(), CYCLE, strict=False):
        top.plot(u, v, color=colour, linewidth=2.2)
        top.plot(u[0], v[0], "o", color="white", markeredgecolor=colour)
        top.plot(u[-1], v[-1], "o", color=colour)
        bottom.semilogy(t, loss, color=colour, label=name)
        if bound is not None:
            bound_line(bottom, t, bound, label="_", alpha=0.8)
    top.plot(0, 0, "X", color=INK, markersize=9)
    top.text(0.06, 0.06, "saddle")
    top.set(xlim=(-1.6, 1.6), ylim=(-1.4, 0.4), xlabel="$u$", ylabel="$v$")
    top.set_title("where training goes")
    top.set_aspect("equal")
    bound_line(bottom, [], [], label="bound")
    bottom.set(xlabel="time t", ylabel="loss", ylim=(1e-6, 6 * target**2))
    bottom.set_title("the loss, and what the gap promises")
    bottom.legend(loc="lower right")
    return figure
