"""Figures of the conservation law: spheres, rows, and what replaces the law when it breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from deqlib.figures.style import CYCLE, INK, bound_line, new, style


def _space(radii: Sequence[float], lower: bool, height: float) -> tuple[Figure, Any]:
    with style():
        figure = plt.figure(figsize=(7.0, height))
        axis = figure.add_subplot(projection="3d", computed_zorder=False)
    draw_space(axis, radii, lower)
    return figure, axis


def draw_space(axis: Any, radii: Sequence[float], lower: bool) -> None:
    """Axes (u₁, u₂, 1 − a) with a wire sphere per radius and the singular plane a = 1."""
    longitude = np.linspace(0, 2 * np.pi, 121)
    south = -75 if lower else 0
    for radius in radii:
        for latitude in np.radians(np.arange(south, 76, 15)):
            ring = radius * np.cos(latitude)
            axis.plot(
                ring * np.cos(longitude), ring * np.sin(longitude), radius * np.sin(latitude),
                color="#9AA5B1", linewidth=0.6, alpha=0.6, zorder=1,
            )  # fmt: skip
        arc = np.radians(np.linspace(-90 if lower else 0, 90, 61))
        for angle in np.radians(np.arange(0, 360, 30)):
            axis.plot(
                radius * np.cos(arc) * np.cos(angle), radius * np.cos(arc) * np.sin(angle),
                radius * np.sin(arc), color="#9AA5B1", linewidth=0.5, alpha=0.45, zorder=1,
            )  # fmt: skip
    r = max(radii)
    square = np.array([[-r, r], [-r, r]])
    axis.plot_surface(square, square.T, 0 * square, color="#E69F00", alpha=0.16, zorder=0)
    axis.text(-r, r, 0, "a = 1", color="#8A5A00", zorder=5)
    axis.scatter([0], [0], [0], marker="x", s=45, color=INK, zorder=6)
    axis.set(
        xlabel="$u_1$", ylabel="$u_2$", zlabel="$1-a$",
        xlim=(-r, r), ylim=(-r, r), zlim=(-r if lower else 0, r),
    )  # fmt: skip
    axis.set_box_aspect((1, 1, 1 if lower else 0.5), zoom=1.12 if lower else 1.25)
    axis.view_init(elev=16, azim=-66)
    axis.locator_params(nbins=5)


def draw_ray(axis: Any, A: Tensor, r: float, both: bool) -> None:
    """The minimisers u = (1 − a) A, up to the sphere of radius r."""
    end = np.array([*A.flatten().tolist(), 1.0])
    end *= 1.12 * r / np.linalg.norm(end)
    points = np.stack([-end if both else 0 * end, end])
    axis.plot(*points.T, color=INK, linewidth=1.4, linestyle=(0, (5, 3)), zorder=4,
              label="minimisers, $u=(1-a)A$")  # fmt: skip


def sphere_paths(W: Tensor, U: Tensor, A: Tensor) -> Figure:
    """Paths (T, runs, 1, 1), (T, runs, 1, 2) of flows in the space (u₁, u₂, 1 − a).

    Shows that each path stays on the sphere on which it starts, and ends where that sphere meets
    the line of minimisers. The cross is the singular point a = 1, u = 0.
    """
    P, u = (1 - W[..., 0, 0]).numpy(), U[..., 0, :].numpy()
    radii = np.sqrt(P[0] ** 2 + (u[0] ** 2).sum(-1))
    distinct = sorted(set(np.round(radii, 6)))
    figure, axis = _space(distinct, True, 6.0)
    for i in range(P.shape[1]):
        colour = CYCLE[distinct.index(np.round(radii[i], 6)) % len(CYCLE)]
        axis.plot(u[:, i, 0], u[:, i, 1], P[:, i], color=colour, linewidth=2.4, zorder=3)
        axis.scatter(*u[0, i], P[0, i], color="white", edgecolor=colour, s=36, zorder=6)
        axis.scatter(*u[-1, i], P[-1, i], color=colour, edgecolor="white", s=46, zorder=7)
    draw_ray(axis, A, max(distinct), True)
    axis.scatter([], [], [], color="white", edgecolor=INK, s=36, label="start")
    axis.scatter([], [], [], color=INK, edgecolor="white", s=46, label="end")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(-0.05, 0.98))
    return figure


def one_sphere(paths: Mapping[str, tuple[Tensor, Tensor]], radius: float) -> Figure:
    """Paths W (T, 1, 1), U (T, 1, 2) from one start, by name, on the upper half of one sphere."""
    figure, axis = _space([radius], False, 4.6)
    for (name, (W, U)), colour in zip(paths.items(), CYCLE, strict=False):
        P, u = (1 - W[:, 0, 0]).numpy(), U[:, 0, :].numpy()
        axis.plot(u[:, 0], u[:, 1], P, color=colour, linewidth=2.6, zorder=3, label=name)
        axis.scatter(*u[-1], P[-1], color=colour, edgecolor="white", s=50, zorder=7)
        axis.scatter(*u[0], P[0], color="white", edgecolor=INK, s=45, zorder=8)
    axis.legend(frameon=False, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.08))
    return figure


def row_geometry(t: Tensor, entries: Tensor, lengths: Tensor, angles: Tensor) -> Figure:
    """What moves above, what stays below: entries (T, m), lengths (T, p), angles (T, k) in °."""
    figure, axes = new(3, 1, height=6.2, sharex=True)
    top, middle, bottom = axes[:, 0]
    top.plot(t, entries, color="#7A8793", linewidth=1.1)
    top.set_title("every entry of $N=[I-W,\\;U]$ moves", loc="left")
    for i in range(lengths.shape[1]):
        middle.plot(t, lengths[:, i], color=CYCLE[i], label=f"row {i + 1}")
    middle.set_title("the length of each row stays", loc="left")
    middle.set(ylim=(0, 1.3 * float(lengths.max())))
    middle.legend(frameon=False, ncols=lengths.shape[1], loc="lower right")
    pairs = [(i, j) for i in range(lengths.shape[1]) for j in range(i + 1, lengths.shape[1])]
    for k, (i, j) in enumerate(pairs):
        bottom.plot(t, angles[:, k], color=CYCLE[3 + k], label=f"rows {i + 1}, {j + 1}")
    bottom.set_title("the angle between two rows stays (degrees)", loc="left")
    bottom.set(ylim=(0, 180), xlabel="time t")
    bottom.set_yticks([0, 90, 180])
    bottom.legend(frameon=False, ncols=3, loc="lower right")
    for axis in (top, middle, bottom):
        axis.margins(x=0.01)
    return figure


def drift_against_tolerance(rtol: Sequence[float], drift: Sequence[float],
                            budget: Sequence[float]) -> Figure:  # fmt: skip
    """Relative drift of C against the integrator's tolerance, beside what the tolerance allows."""
    figure, axes = new(height=3.4)
    axis = axes[0, 0]
    axis.loglog(rtol, drift, "o-", label="measured drift of C")
    bound_line(axis, rtol, budget, label="budget: 2|N| × local error × steps")
    axis.set(xlabel="rtol of the integrator", ylabel="relative drift of C")
    axis.invert_xaxis()
    axis.legend(frameon=False)
    return figure


def broken_laws(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]],
) -> Figure:
    """Small multiples of (t, measured, predicted or None) relative changes of C, by name."""
    figure, axes = new((len(curves) + 1) // 2, 2, height=1.9 * ((len(curves) + 1) // 2))
    for axis, (name, (t, measured, predicted)) in zip(axes.flat, curves.items(), strict=False):
        axis.plot(t, measured, color=CYCLE[0], linewidth=3.2, alpha=0.75, label="measured")
        if predicted is None:
            axis.text(0.95, 0.1, "no law", transform=axis.transAxes, ha="right")
        else:
            axis.plot(t, predicted, color=INK, linestyle=(0, (4, 3)), linewidth=1.5,
                      label="predicted")  # fmt: skip
        axis.set_title(name, loc="left")
        axis.set_ylim(bottom=0)
        axis.ticklabel_format(axis="y", scilimits=(-2, 3))
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    axes[0, 0].legend(loc="lower right", frameon=False)
    for axis in axes[-1]:
        axis.set_xlabel("time t")
    return figure


def descent_circles(P: Tensor, u: Tensor, A: float, steps: Sequence[float],
                    radii: Sequence[float]) -> Figure:  # fmt: skip
    """Iterates (T, rows, columns) of descent in the plane (u, 1 − a).

    One row a starting radius, one column a step size; the thin circle is the flow's.
    """
    rows, columns = len(radii), len(steps)
    figure, axes = new(rows, columns, height=2.1 * rows)
    angle = np.linspace(-0.15, np.pi + 0.15, 200)
    for i in range(rows):
        for j in range(columns):
            axis, x, y = axes[i, j], u[:, i, j].numpy(), P[:, i, j].numpy()
            r0, r1 = np.hypot(x[0], y[0]), np.hypot(x[-1], y[-1])
            reach = 1.15 * max(r0, np.hypot(x, y).max())
            axis.plot(r0 * np.cos(angle), r0 * np.sin(angle), color="#9AA5B1", linewidth=1)
            top = reach / np.hypot(1, A)
            axis.plot([-A * top, A * top], [-top, top], color=INK, linestyle=(0, (5, 3)), lw=1.2)
            axis.plot(x, y, ".-", color=CYCLE[0], markersize=4, linewidth=0.9)
            axis.plot(x[0], y[0], "o", color="white", markeredgecolor=CYCLE[0])
            axis.plot(x[-1], y[-1], "o", color=CYCLE[1])
            axis.axhline(0, color="#8A5A00", linewidth=0.8)
            axis.set(xlim=(-reach, reach), ylim=(-0.35 * reach, reach), aspect="equal")
            axis.set_title(f"$\\eta$={steps[j]:g}\n$r$: {r0:.2f} → {r1:.2f}", fontsize=10)
            axis.locator_params(nbins=3)
        axes[i, 0].set_ylabel("$1-a$")
    for axis in axes[-1]:
        axis.set_xlabel("$u$")
    return figure
