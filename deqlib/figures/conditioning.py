"""Figures of the chapter on conditioning: where I − W may go, and how deep the network becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike
from torch import Tensor

from deqlib.figures.style import CYCLE, INK, bound_line, new, style


def half_planes(W: Tensor, U: Tensor, A: float, reach: float = 3.2) -> Figure:
    """Paths of training for one output and one input, in the plane (u, 1 − a).

    W, U : (T, runs, 1, 1). Where 1 − a = 0 there is no equilibrium and the loss is infinite; in
    the shaded strip Picard's iteration converges; the dotted line holds the minimisers.
    """
    figure, axes = new(width=6.0, height=5.2)
    axis = axes[0, 0]
    P, u = 1 - W[..., 0, 0], U[..., 0, 0]
    grid = np.linspace(-reach, reach, 400)
    x, y = np.meshgrid(grid, grid)
    with style(), np.errstate(divide="ignore", invalid="ignore"):
        axis.contour(
            x, y, np.log10((x / y - A) ** 2 + 1e-9), levels=[-2, -1, 0, 1, 2],
            colors="#BBBBBB", linewidths=0.7, linestyles="solid",
        )  # fmt: skip
        axis.axhspan(0, 2, color="#DCEBF5", linewidth=0, zorder=0)
        axis.axhline(0, color=CYCLE[1], linewidth=2.4)
        axis.text(reach, 0.06, "wall: $a=1$, loss infinite", ha="right", color=CYCLE[1])
        axis.text(0.1 - reach, 1.75, "Picard converges: $|a|<1$", color=CYCLE[0])
        axis.plot(A * grid, grid, linestyle=":", color=INK, label="minimisers")
        for i in range(P.shape[1]):
            above = bool(P[0, i] > 0)
            axis.plot(u[:, i], P[:, i], color=CYCLE[0] if above else CYCLE[3])
            axis.plot(u[0, i], P[0, i], "o", markersize=4, color=CYCLE[0] if above else CYCLE[3])
            axis.plot(u[-1, i], P[-1, i], "s", markersize=5, color=INK, zorder=5)
        axis.set_xlim(-reach, reach)
        axis.set_ylim(-reach, reach)
        axis.set_aspect("equal")
        axis.grid(False)
        axis.set_xlabel("$u$")
        axis.set_ylabel("$1-a$")
        axis.legend(loc="lower right")
    return figure


def bands(t: ArrayLike, runs: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """Singular values of I − W during training, inside the band that the theorem allows.

    runs : for each title the curves "low" (σ_min), "high" (σ_max), "floor" and "ceiling"; above,
    and "F" (‖F‖) and "Phi" (its bound) below. The first time, 0, is left out: the axis is
    logarithmic.
    """
    time = np.asarray(t, dtype=float)[1:]
    figure, axes = new(2, len(runs), width=7.2, height=4.6, sharex=True, sharey="row")
    with style():
        for column, (title, run) in enumerate(runs.items()):
            curves = {
                k: np.asarray(v, dtype=float) * np.ones(len(time) + 1) for k, v in run.items()
            }
            top, bottom = axes[0, column], axes[1, column]
            low, high = curves["floor"][1:], curves["ceiling"][1:]
            top.fill_between(time, low, high, color="#DCEBF5", linewidth=0)
            bound_line(top, time, low, "bounds")
            bound_line(top, time, high, "_")
            top.loglog(time, curves["high"][1:], color=CYCLE[0], label=r"$\sigma_{\max}$")
            top.loglog(time, curves["low"][1:], color=CYCLE[1], label=r"$\sigma_{\min}$")
            top.set_title(title)
            bottom.loglog(time, curves["F"][1:], color=CYCLE[2], label=r"$\|F\|_2$")
            bound_line(bottom, time, curves["Phi"][1:], r"$\Phi$")
            bottom.set_xlabel("time $t$")
        axes[0, 0].set_ylabel("singular values of $I-W$")
        axes[1, 0].set_ylabel(r"$\|F\|_2$")
        axes[0, 0].legend(loc="lower right", fontsize=10)
        axes[1, -1].legend(loc="upper right", fontsize=10)
    return figure


def decays(
    t: ArrayLike, curves: Mapping[str, ArrayLike], bounds: Sequence[ArrayLike], ylabel: str
) -> Figure:
    """Quantities (logarithmic) over time, each with its own bound dashed."""
    figure, axes = new(height=3.4)
    axis = axes[0, 0]
    with style():
        for i, ((name, values), bound) in enumerate(zip(curves.items(), bounds, strict=True)):
            axis.semilogy(t, values, color=CYCLE[i], label=name)
            bound_line(axis, t, bound, "_" if i else "bound")
        axis.set_xlabel("time $t$")
        axis.set_ylabel(ylabel)
        axis.legend(loc="lower left")
    return figure


def depths(t: ArrayLike, radii: Mapping[str, ArrayLike], counts: Mapping[str, ArrayLike]) -> Figure:
    """ρ(W) and the evaluations that Picard's iteration needs, over training time.

    counts : NaN where the iteration does not converge; there the curve has a gap.
    """
    time = np.asarray(t, dtype=float)
    figure, axes = new(2, 1, width=7.0, height=5.2, sharex=True)
    with style():
        for (name, rho), count, style_ in zip(
            radii.items(), counts.values(), ("-", "-", "-.", ":"), strict=False
        ):
            axes[0, 0].semilogx(time[1:], np.asarray(rho)[1:], style_, label=name)
            axes[1, 0].loglog(time[1:], np.asarray(count)[1:], style_)
        bound_line(axes[0, 0], time[[1, -1]], [1, 1], "_")
        axes[0, 0].text(time[1], 1.03, "Picard diverges above", va="bottom")
        axes[0, 0].set_ylabel(r"spectral radius $\rho(W)$")
        axes[1, 0].set_ylabel("evaluations of the layer")
        axes[1, 0].set_xlabel("time $t$")
        axes[1, 0].legend(*axes[0, 0].get_legend_handles_labels(), loc="upper left", fontsize=10)
    return figure


def turning(F: Tensor, targets: Tensor, angle: ArrayLike, rounds: ArrayLike) -> Figure:
    """Left: the map F (T, 2, 1) chasing ``targets`` (k, 2, 1). Right: how far I − W has turned."""
    figure, axes = new(1, 2, height=3.3)
    with style():
        left, right = axes[0]
        left.plot(F[:, 0, 0], F[:, 1, 0], color=CYCLE[0])
        left.plot(targets[:, 0, 0], targets[:, 1, 0], "s", color=CYCLE[1], label="targets")
        left.set_xlabel("$F_1$")
        left.set_ylabel("$F_2$")
        left.set_aspect("equal")
        left.margins(0.25)
        left.legend(loc="upper right")
        right.plot(rounds, angle, color=CYCLE[0])
        right.set_xlabel("rounds")
        right.set_ylabel("turn of $O$ (degrees)")
    return figure


KINDS = (
    "converges throughout",
    "fails on the way",
    "fails from some time on",
    "fails at the start",
)
_SHADES = ("#BBD8EC", "#F3D58B", "#E9B08F", "#EEEEEE")


def classes(a: Tensor, u: Tensor, A: float) -> Tensor:
    """One output, one input: which of `KINDS` each start (a, u) is, 0 to 3, in closed form.

    The map F = u/(1 − a) moves monotonically from its start to A, and 1 − a = ±r/√(1 + F²).
    """
    P = 1 - a
    F, r = u / P, torch.hypot(P, u)
    smallest = torch.where(F * A <= 0, 0.0, torch.minimum(F.abs(), torch.full_like(F, abs(A))))
    highest, end = r / (1 + smallest.square()).sqrt(), r / (1 + A * A) ** 0.5
    kind = torch.where(highest >= 2, 1, 0)
    kind = torch.where(end >= 2, 2, kind)
    return torch.where((P <= 0) | (P >= 2), 3, kind)


def safety(targets: Sequence[float], reach: float = 3.2) -> Figure:
    """The plane of starts (a, u) for one output and one input, one panel a target A.

    Colours say whether Picard's iteration converges throughout training; the dashed arc is r = 2.
    """
    figure, axes = new(1, len(targets), width=7.2, height=3.6, sharey=True)
    a = torch.linspace(-1.6, 1.4, 241, dtype=torch.float64)
    u = torch.linspace(-reach, reach, 321, dtype=torch.float64)
    colours = ListedColormap(_SHADES)
    phi = np.linspace(-np.pi / 2, np.pi / 2, 200)
    with style():
        for axis, A in zip(axes[0], targets, strict=True):
            kinds = classes(a[None, :].expand(321, -1), u[:, None].expand(-1, 241), A)
            axis.pcolormesh(a, u, kinds, cmap=colours, vmin=-0.5, vmax=3.5, rasterized=True)
            bound_line(axis, 1 - 2 * np.cos(phi), 2 * np.sin(phi), "$r=2$")
            axis.plot(a, (1 - a) * A, ":", color=INK)
            axis.set_title(f"$A={A:g}$")
            axis.set_xlabel("$a_0$")
            axis.set_ylim(-reach, reach)
            axis.grid(False)
        axes[0, 0].set_ylabel("$u_0$")
        patches = [Patch(color=c, label=k) for c, k in zip(_SHADES, KINDS, strict=True)]
        figure.legend(handles=patches, loc="outside lower center", ncols=2, fontsize=10)
    return figure
