"""Figures of the chapter on one-point monotonicity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch
from numpy.typing import ArrayLike

from deqlib.figures.style import CYCLE, INK, bound_line, new, style

PAPER = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}


def _plane(
    axis: Axes,
    a: ArrayLike,
    w: ArrayLike,
    loss: ArrayLike,
    curvature: ArrayLike | None,
    target: tuple[float, float],
    radius: float,
) -> None:
    """Levels of log L over the (a, w) plane, the target and the ball; convex parts outlined."""
    levels = np.log10(np.asarray(loss).T.clip(1e-6))
    axis.contourf(a, w, levels, levels=12, cmap="Blues", alpha=0.75)
    axis.contour(a, w, levels, levels=12, colors="white", linewidths=0.5, linestyles="solid")
    if curvature is not None:
        convex = (np.asarray(curvature).T >= 0).astype(float)
        axis.contourf(a, w, convex, levels=[0.5, 1.5], colors=[CYCLE[4]], alpha=0.85)
    axis.add_patch(
        Circle(target, radius, fill=False, edgecolor=INK, linewidth=1.4, linestyle=(0, (5, 3)))
    )
    axis.plot(*target, "*", markersize=13, color=CYCLE[1], markeredgecolor="white", zorder=5)
    axis.grid(visible=False)
    axis.set(
        xlim=(np.min(np.asarray(a)), 1.06), ylim=(np.min(np.asarray(w)), np.max(np.asarray(w)))
    )
    axis.axvline(1, color=INK, linewidth=1.6, linestyle=(0, (2, 2)))
    axis.set_xlabel("self-weight $a$")


def landscape(
    a: ArrayLike,
    w: ArrayLike,
    loss: ArrayLike,
    curvature: ArrayLike,
    target: tuple[float, float],
    radius: float,
    paths: tuple[ArrayLike, ArrayLike],
    distance: ArrayLike,
) -> Figure:
    """The loss over the (a, w) plane with paths of descent, and their distances to the target.

    loss, curvature : (a, w) the loss and the smallest eigenvalue of its Hessian.
    paths           : a and w of the iterates, (T, runs) each; distance (T, runs).
    """
    figure, axes = new(1, 2, height=3.9, width=8.0)
    left, right = axes[0]
    colors = (CYCLE[0], CYCLE[2], CYCLE[3], CYCLE[6])
    with style():
        _plane(left, a, w, loss, curvature, target, radius)
        for i, (x, y) in enumerate(
            zip(np.asarray(paths[0]).T, np.asarray(paths[1]).T, strict=True)
        ):
            left.plot(x, y, color=INK, linewidth=1.1)
            left.plot(x[0], y[0], "o", color=colors[i % 4], markersize=5, markeredgecolor="white")
        left.set_ylabel("input weight $w$")
        left.set_title("levels of $\\log L$; convex: orange")
        for i, curve in enumerate(np.asarray(distance).T):
            right.plot(np.arange(len(curve)), curve, color=colors[i % 4], linewidth=1.3)
        right.set_xscale("symlog", linthresh=1)
        right.set_xlim(0, len(np.asarray(distance)) - 1)
        right.set_ylim(0, None)
        right.set_xlabel("step $k$ (logarithmic from 1 on)")
        right.set_ylabel("$\\|\\theta_k-\\theta^*\\|$")
        right.set_title("distance to the target")
    return figure


def _cloud(axis: Axes, groups: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    """Points of several groups on logarithmic axes, with the diagonal."""
    for (name, (x, y)), color, marker in zip(groups.items(), CYCLE, "o^sD", strict=False):
        axis.loglog(x, y, marker, color=color, markersize=3, alpha=0.55, label=name)
    low = max(min(axis.get_xlim()[0], axis.get_ylim()[0]), 1e-14)
    high = max(axis.get_xlim()[1], axis.get_ylim()[1])
    bound_line(axis, [low, high], [low, high], label="bound")
    axis.set(xlim=(low, high), ylim=(low, high))


def bounds(
    inner: Mapping[str, tuple[ArrayLike, ArrayLike]],
    top: Mapping[str, tuple[ArrayLike, ArrayLike]],
) -> Figure:
    """Measured against bound, for ⟨∇L, δ⟩/‖δ‖² from below and ‖∇L‖²/⟨∇L, δ⟩ from above."""
    figure, axes = new(1, 2, height=3.7, width=7.6)
    left, right = axes[0]
    with style():
        _cloud(left, inner)
        left.set_xlabel(r"$\Delta^*\,\mathbb{E}[D(z-y)^2]\,/\,\|\delta\|^2$")
        left.set_ylabel(r"$\langle\nabla L,\delta\rangle\,/\,\|\delta\|^2$")
        left.legend(loc="upper left", fontsize=9, markerscale=2)
        _cloud(right, top)
        right.set_xlabel(r"$\lambda_{\max}(Q)$")
        right.set_ylabel(r"$\|\nabla L\|^2\,/\,\langle\nabla L,\delta\rangle$")
    return figure


def search(history: Mapping[str, ArrayLike]) -> Figure:
    """The smallest cosine that a search has found so far, one curve a number of samples."""
    figure, axes = new(height=3.0, width=6.2)
    axis = axes[0, 0]
    with style():
        for (name, values), line in zip(history.items(), ("-", "--", "-.", ":"), strict=False):
            curve = np.asarray(values)
            axis.loglog(np.arange(1, len(curve) + 1), curve, line, label=name)
        axis.set_xlabel("round of the search")
        axis.set_ylabel(r"smallest $\cos(\nabla L,\delta)$")
        axis.legend(loc="lower left")
    return figure


def basin(
    gap: ArrayLike,
    angle: ArrayLike,
    panels: Mapping[str, tuple[ArrayLike, ArrayLike]],
    radius: float,
) -> Figure:
    """Where descents go from starts (a₀, angle of w₀), one panel a length of w₀.

    gap    : 1/β − a₀, on a logarithmic axis; angle in degrees.
    panels : name ↦ (fates (gap, angle): 1 enters the ball, 2 crosses; distances to θ*).
    radius : Δ*, drawn as the level of the distance.
    """
    figure, axes = new(1, len(panels), height=3.7, width=7.6, sharey=True)
    colors = ListedColormap(["#FFFFFF", CYCLE[5], CYCLE[1]])
    with style():
        for axis, (name, (fate, distance)) in zip(axes[0], panels.items(), strict=True):
            axis.pcolormesh(
                angle, gap, np.asarray(fate), cmap=colors, vmin=0, vmax=2, shading="nearest",
                rasterized=True,
            )  # fmt: skip
            axis.contour(
                angle, gap, np.asarray(distance), levels=[radius], colors=INK, linewidths=1.6,
                linestyles=[(0, (5, 3))],
            )  # fmt: skip
            axis.set_yscale("log")
            axis.set_xlabel("angle from $w^*$ to $w_0$ (degrees)")
            axis.set_xticks([-180, -90, 0, 90, 180])
            axis.set_title(name)
            axis.grid(visible=False)
        axes[0, 0].invert_yaxis()  # the panels share it
        axes[0, 0].set_ylabel(r"$1/\beta-a_0$ (the edge is above)")
        handles = [
            Patch(facecolor=CYCLE[5], label="reaches the ball, converges"),
            Patch(facecolor=CYCLE[1], label=r"crosses $a=1/\beta$"),
            Patch(facecolor="white", edgecolor=INK, linestyle="--", label=r"the ball $\Delta^*$"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncol=3, fontsize=9.5)
    return figure


def adjoints(
    panels: Mapping[str, Mapping[str, ArrayLike]], *, ylabel: str = r"$\|\delta_k\|/\|\delta_0\|$"
) -> Figure:
    """Distances to the target over the step, one panel a setting, one curve an adjoint."""
    figure, axes = new(1, len(panels), height=3.6, width=8.4)
    lines = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
    with style():
        for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
            for i, (name, values) in enumerate(curves.items()):
                curve = np.asarray(values)
                axis.semilogy(
                    np.arange(len(curve)), curve, linestyle=lines[i % 5],
                    color=(*CYCLE[:5], CYCLE[6])[i % 6], label=name,
                )  # fmt: skip
            axis.set_title(title)
            axis.set_xlabel("step $k$")
            axis.legend(fontsize=8.5)
        axes[0, 0].set_ylabel(ylabel)
    return figure


def falling_secant(
    s: ArrayLike, value: ArrayLike, u: Sequence[float], v: Sequence[float], cosines: ArrayLike
) -> Figure:
    """GELU with a secant that falls, and the cosines of random problems of that kind.

    u, v : (pre-activation, output) of the model and of the target.
    """
    figure, axes = new(1, 2, height=3.1, width=7.4)
    left, right = axes[0]
    with style():
        left.plot(s, value, color=CYCLE[0])
        left.plot([v[0], u[0]], [v[1], u[1]], "--", color=CYCLE[1], linewidth=1.6)
        left.plot(*u, "o", color=CYCLE[1], markersize=7)
        left.plot(*v, "s", color=CYCLE[1], markersize=7)
        left.annotate("model: $(u,z)$", u, (10, -4), textcoords="offset points")
        left.annotate("target: $(v,y)$", v, (-6, 11), textcoords="offset points")
        left.set_xlabel("pre-activation")
        left.set_title("GELU")
        right.hist(np.asarray(cosines), bins=np.linspace(-1, 0, 21), color=CYCLE[0], rwidth=0.9)
        right.set_xlabel(r"$\cos(\nabla L,\delta)$")
        right.set_ylabel("problems")
        right.set_title("never positive")
    return figure


def failures(panels: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Distance to the target and loss along descents that miss one hypothesis, relative to the
    start; one panel a hypothesis."""
    figure, axes = new(1, len(panels), height=3.1, width=8.2)
    with style():
        for axis, (title, (distance, loss)) in zip(axes[0], panels.items(), strict=True):
            for values, line, name in ((distance, "-", "distance"), (loss, "-.", "loss")):
                curve = np.asarray(values)
                axis.plot(np.arange(len(curve)), curve / curve[0], line, label=name)
            axis.axhline(1, color=INK, linewidth=0.8)
            axis.set_ylim(0, None)
            axis.set_title(title)
            axis.set_xlabel("step $k$")
        axes[0, 0].set_ylabel("relative to the start")
        axes[0, 0].legend(fontsize=9)
    return figure


def explore(
    panels: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike, tuple[float, float], float]],
) -> Figure:
    """Landscapes (a, w, loss, target, radius of the ball), one panel a link."""
    figure, axes = new(1, len(panels), height=3.4, width=8.4 if len(panels) > 1 else 4.4)
    with style():
        for axis, (title, (a, w, loss, target, radius)) in zip(
            axes[0], panels.items(), strict=True
        ):
            _plane(axis, a, w, loss, None, target, radius)
            axis.set_title(title)
        axes[0, 0].set_ylabel("input weight $w$")
    return figure
