"""Figures on the derivative of an equilibrium: what it costs, how wrong it is, where it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from deqlib.figures.style import CYCLE, INK, bound_line, new, style
from deqlib.theorems import Verdict

Series = Sequence[float] | Tensor


def cost_of_depth(
    depths: Sequence[int],
    recorded: Series,
    recorded_implicit: float,
    errors: Series,
    error_implicit: float,
) -> Figure:
    """Memory and error of the gradient through k recorded steps, beside the implicit gradient.

    Left: bytes that autograd keeps. Right: relative error of the gradient, logarithmic.
    """
    figure, axes = new(1, 2, height=3.3)
    with style():
        left, right = axes[0]
        left.plot(depths, [b / 1024 for b in recorded], "o-", markersize=4, label="unrolled")
        left.axhline(recorded_implicit / 1024, color=CYCLE[1], label="implicit")
        left.set(xlabel="steps $k$", ylabel="kept by autograd (KiB)", ylim=(0, None))
        left.legend()
        right.semilogy(depths, errors, "o-", markersize=4, label="unrolled")
        right.axhline(error_implicit, color=CYCLE[1], label="implicit")
        right.set(xlabel="steps $k$", ylabel="relative error of gradient")
    return figure


def inexact_gradient(curves: Sequence[tuple[str, str, Series, Series, Series]]) -> Figure:
    """Error of a gradient against the residual of one of its two solves, with the bound.

    curves : (title, axis label, residuals, measured, bound), one panel each.
    """
    figure, axes = new(1, len(curves), height=3.3, sharey=True)
    with style():
        for axis, (title, label, residuals, measured, bound) in zip(axes[0], curves, strict=True):
            axis.loglog(residuals, measured, "o", markersize=5, label="measured")
            bound_line(axis, residuals, bound)
            axis.set(title=title, xlabel=label)
        axes[0, 0].set_ylabel("error of the gradient")
        axes[0, 0].legend()
    return figure


def unrolled_error(
    steps: Series,
    linear: Series,
    formula: Series,
    power: Series,
    layer: Series,
    bound: Series,
) -> Figure:
    """Error of the gradient through k steps. Left: scalar linear. Right: a tanh layer, its bound.

    ``formula`` is the exact error of the left panel and ``power`` is ρᵏ with the same start.
    """
    figure, axes = new(1, 2, height=3.4)
    with style():
        left, right = axes[0]
        left.semilogy(steps, linear, "o", markersize=4, label="measured")
        left.semilogy(steps, formula, color=CYCLE[1], label=r"$k\rho^{k-1}$ formula")
        left.semilogy(steps, power, ":", color=CYCLE[2], label=r"$\rho^k$ alone")
        left.set(title=r"scalar, linear, $\rho=0.8$", xlabel="steps $k$", ylabel="error")
        right.semilogy(steps, layer, "o", markersize=4, label="measured")
        bound_line(right, steps, bound)
        right.set(title=r"tanh layer, $\rho=0.8$", xlabel="steps $k$")
        for axis in (left, right):
            axis.legend()
    return figure


def neumann_angles(
    factors: Series, angles: Mapping[int, Tensor], batch: Mapping[int, Tensor]
) -> Figure:
    """Largest angle (degrees) between a truncated and the exact gradient, over the contraction ρ.

    angles[k], batch[k] : (len(factors),) for one sample and for a batch; dashed: arcsin ρᵏ.
    """
    figure, axes = new(1, 2, height=3.5, sharey=True)
    fine = torch.linspace(float(factors[0]), float(factors[-1]), 200, dtype=torch.float64)
    with style():
        panels = (("one sample", angles), ("a batch of 16, 95 % cancelled", batch))
        for axis, (title, measured) in zip(axes[0], panels, strict=True):
            for color, (k, angle) in zip(CYCLE, measured.items(), strict=False):
                name = "JFB, $k=1$" if k == 1 else f"$k={k}$"
                axis.plot(factors, angle, "o-", markersize=4, color=color, label=name)
                axis.plot(
                    fine,
                    torch.rad2deg(torch.asin(fine**k)),
                    linestyle=(0, (5, 3)),
                    linewidth=1.2,
                    color=color,
                )
            axis.axhline(90, color=INK, linewidth=0.8)
            axis.set(title=title, xlabel=r"contraction factor $\rho$", ylim=(0, 185))
        axes[0, 0].set_ylabel("largest angle (degrees)")
        axes[0, 0].legend()
    return figure


def verdict_strip(verdict: Verdict) -> Figure:
    """For each conclusion of a theorem, measured/bound of every instance: all left of 1."""
    names: dict[str, list[float]] = {}
    for measured in verdict.measurements:
        for name, m in measured.items():
            names.setdefault(name, []).append(max(m.tightness, 1e-12))
    figure, axes = new(1, 1, height=0.55 * len(names) + 0.9)
    jitter = np.random.default_rng(0)
    with style():
        axis = axes[0, 0]
        for row, (color, ratios) in enumerate(zip(CYCLE, names.values(), strict=False)):
            heights = row + 0.5 * (jitter.random(len(ratios)) - 0.5)
            axis.plot(ratios, heights, "o", markersize=3, alpha=0.6, color=color)
        axis.axvline(1, color=INK, linestyle=(0, (5, 3)), linewidth=1.4)
        axis.set(xscale="log", xlabel="measured / bound")
        axis.set_yticks(range(len(names)), [_broken(name) for name in names], fontsize=10)
        axis.invert_yaxis()
    return figure


def _broken(name: str) -> str:
    """The name on two lines, broken before its relation sign."""
    for sign in (" = ", " ≤ "):
        if sign in name:
            left, right = name.split(sign, 1)
            return f"{left}\n{sign.strip()} {right}"
    return name


@dataclass(frozen=True)
class Branch:
    """The equilibria of a scalar model over its parameter, and one point of them.

    z, theta : (m,) points of the curve z = f(z, θ), in order along it.
    at       : (θ, z), where a hypothesis fails.
    claims   : slopes of the tangents that are claimed at this point.
    """

    title: str
    theta: Tensor
    z: Tensor
    at: tuple[float, float]
    claims: Mapping[str, float]


def branches(panels: Sequence[Branch], reach: float = 0.5) -> Figure:
    """Where the branch of equilibria has no derivative: one panel a reason."""
    figure, axes = new(1, len(panels), height=3.0)
    with style():
        for axis, branch in zip(axes[0], panels, strict=True):
            axis.plot(branch.theta, branch.z, label="equilibria")
            span = torch.tensor([-reach, reach], dtype=torch.float64)
            for color, (name, slope) in zip(CYCLE[1:], branch.claims.items(), strict=False):
                axis.plot(
                    branch.at[0] + span,
                    branch.at[1] + slope * span,
                    linestyle=(0, (3, 2)),
                    color=color,
                    label=name,
                )
            axis.plot(*branch.at, "o", color=INK, markersize=6)
            axis.set(title=branch.title, xlabel=r"$\theta$")
            _legend_if_needed(axis)
        axes[0, 0].set_ylabel("equilibrium $z$")
    return figure


def neumann_errors(terms: Series, curves: Mapping[float, tuple[Tensor, Tensor]]) -> Figure:
    """Relative error of k Neumann terms, over k: one panel a contraction factor ρ.

    curves[ρ] = (measured, bound ρᵏ), each (len(terms),).
    """
    figure, axes = new(1, len(curves), height=3.0, sharey=True)
    with style():
        for axis, (rho, (measured, bound)) in zip(axes[0], curves.items(), strict=True):
            axis.semilogy(terms, measured, "o-", markersize=4, label="measured")
            bound_line(axis, terms, bound, label=r"$\rho^k$")
            axis.set(title=rf"$\rho={rho:g}$", xlabel="Neumann terms $k$", ylim=(1e-8, 2))
        axes[0, 0].set_ylabel("relative error of gradient")
        axes[0, -1].legend(loc="lower left")
    return figure


def _legend_if_needed(axis: Axes) -> None:
    if len(axis.get_legend_handles_labels()[1]) > 1:
        axis.legend(fontsize=10, loc="upper left")
