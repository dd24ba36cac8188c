"""Figures of the chapter on solving for the equilibrium."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from deqlib.figures.style import CYCLE, INK, bound_line, new, style


def cobwebs(
    cases: Sequence[tuple[float, float]],
    *,
    s: float = 0.3,
    start: float = -1.2,
    steps: int = 30,
    columns: int = 3,
    reach: float = 1.5,
) -> Figure:
    """Picard's iteration on z = tanh(a z + s), one panel a pair (a, τ).

    Each panel shows the map z ↦ (1 − τ) z + τ tanh(a z + s), the diagonal, and the staircase that
    the iteration climbs from `start`: up to the map, across to the diagonal, and so on.
    """
    rows = -(-len(cases) // columns)
    figure, axes = new(rows, columns, width=6.2, height=2.4 * rows + 0.2, sharex=True, sharey=True)
    grid = torch.linspace(-reach, reach, 301, dtype=torch.float64)
    with style():
        for axis, (a, tau) in zip(axes.flat, cases, strict=False):

            def step(z: Tensor, a: float = a, tau: float = tau) -> Tensor:
                return (1 - tau) * z + tau * torch.tanh(a * z + s)

            z = torch.tensor(start, dtype=torch.float64)
            path = [(float(z), float(z))]
            for _ in range(steps):
                up = step(z)
                path += [(float(z), float(up)), (float(up), float(up))]
                z = up
            axis.plot(grid, grid, color=INK, linewidth=1.0)
            axis.plot(grid, step(grid), color=CYCLE[0])
            axis.plot(*zip(*path, strict=True), color=CYCLE[1], linewidth=1.1)
            axis.plot(start, start, "o", color=CYCLE[1], markersize=4)
            axis.set_title(f"$a={a:g}$" + (f", $\\tau={tau:g}$" if tau != 1 else ""))
            axis.set_aspect("equal")
            axis.set_xlim(-reach, reach)
            axis.set_ylim(-reach, reach)
        for axis in axes[-1]:
            axis.set_xlabel("$z_k$")
        for axis in axes[:, 0]:
            axis.set_ylabel("$z_{k+1}$")
    return figure


def histories(
    curves: Mapping[str, Sequence[float]],
    bound: tuple[str, ArrayLike] | None = None,
    *,
    ylabel: str = r"residual $\|f(z_k)-z_k\|$",
    xlabel: str = "evaluations of $f$",
    floor: float = 1e-15,
    legend: str = "upper right",
) -> Figure:
    """Size of a residual or an error (logarithmic) over the steps, with a bound dashed."""
    figure, axes = new(width=6.2, height=3.4)
    axis = axes[0, 0]
    with style():
        for (name, values), marker in zip(curves.items(), "os^Dv", strict=False):
            shown = np.maximum(np.asarray(values, dtype=float), floor)
            axis.semilogy(
                np.arange(len(shown)), shown, marker=marker, markersize=3.5, label=name,
                markevery=max(1, len(shown) // 12),
            )  # fmt: skip
        if bound is not None:
            bound_line(axis, np.arange(len(np.asarray(bound[1]))), bound[1], label=bound[0])
        axis.set_xlabel(xlabel)
        axis.set_ylabel(ylabel)
        axis.legend(loc=legend)
    return figure


def certificates(factor: ArrayLike, ratios: Mapping[str, ArrayLike]) -> Figure:
    """Error over residual at the point where a solver stopped, against the contraction factor.

    Both axes are logarithmic in the distance of the factor L from 1; the bounds 1/(1 − L) above
    and 1/(1 + L) below are dashed.
    """
    L = np.asarray(factor, dtype=float)
    figure, axes = new(width=6.2, height=3.4)
    axis = axes[0, 0]
    with style():
        for (name, ratio), marker in zip(ratios.items(), "os^", strict=False):
            axis.loglog(1 / (1 - L), ratio, marker, markersize=5, label=name)
        order = np.sort(L)
        bound_line(axis, 1 / (1 - order), 1 / (1 - order), label="bounds $1/(1-L)$, $1/(1+L)$")
        bound_line(axis, 1 / (1 - order), 1 / (1 + order), label="_")
        axis.set_xlabel("$1/(1-L)$")
        axis.set_ylabel("error / residual")
        axis.legend(loc="upper left")
    return figure


def damping(
    eigenvalues: Sequence[float], tau: ArrayLike, measured: tuple[ArrayLike, ArrayLike]
) -> Figure:
    """The factor |1 − τ(1 − λ)| of each eigenvalue λ over the damping τ, the largest in black.

    measured : damping values and the factors by which the error really shrank a step.
    """
    grid = np.asarray(tau, dtype=float)
    factors = np.abs(1 - grid * (1 - np.asarray(eigenvalues)[:, None]))
    figure, axes = new(width=6.2, height=3.4)
    axis = axes[0, 0]
    with style():
        axis.axhspan(1, 2.0, color="#F1E4DC", linewidth=0)
        axis.text(grid[-1], 1.03, "diverges", ha="right", va="bottom", color=CYCLE[1])
        for i, line in enumerate(factors):
            axis.plot(grid, line, color=CYCLE[5], linewidth=1.1, label="_" if i else "each $λ$")
        axis.plot(grid, factors.max(axis=0), color=INK, linewidth=2.0, label="largest: the rate")
        axis.plot(*measured, "o", color=CYCLE[1], markersize=5, label="measured")
        axis.set_ylim(0, 1.6)
        axis.set_xlabel(r"damping $\tau$")
        axis.set_ylabel(r"factor $|1-\tau(1-\lambda)|$")
        axis.legend(loc="lower left")
    return figure
