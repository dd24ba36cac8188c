"""Figures of branches, folds and hysteresis, and of paths that leave the ball."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from deqlib import branches
from deqlib.activations import Link
from deqlib.figures.style import CYCLE, INK, bound_line, new


def _curve(axis: Axes, link: Link, a: float, reach: float) -> None:
    """z against s along u ↦ (u − a φ(u), φ(u)): solid where a φ′ < 1, dotted where not."""
    u = torch.linspace(-12, 12, 6001, dtype=torch.float64)
    s, z = u - a * link(u), link(u)
    stable = a * link.derivative(u) < 1
    for wanted, look in ((stable, "-"), (~stable, ":")):
        axis.plot(
            s, torch.where(wanted, z, torch.nan), look,
            color=CYCLE[0] if look == "-" else CYCLE[1], linewidth=2.2,
        )  # fmt: skip
    fold = branches.folds(link, a)
    axis.plot(fold.s, link(fold.u), "o", color=INK, markersize=6, zorder=5)
    axis.set(xlim=(-reach, reach), xlabel="index $s$", title=f"$a={a:g}$")


def curves(link: Link, many: Sequence[float], reach: float = 1.6) -> Figure:
    """One panel for each self-weight: all equilibria z against the index s, folds as dots."""
    figure, axes = new(1, len(many), width=8.2, height=3.2, sharey=True)
    for axis, a in zip(axes[0], many, strict=True):
        _curve(axis, link, a, reach)
    axes[0, 0].set_ylabel("equilibria $z$")
    axis = axes[0, 0]
    axis.plot([], [], color=CYCLE[0], label="stable")
    axis.plot([], [], ":", color=CYCLE[1], label="unstable")
    axis.plot([], [], "o", color=INK, label="fold")
    axis.legend(loc="upper left", fontsize=9)
    return figure


def one_model(link: Link, a: float, s: float, reach: float = 3.0) -> Figure:
    """Left: all equilibria against s, those at one s marked. Right: z ↦ φ(a z + s) and z."""
    figure, axes = new(1, 2, width=8.2, height=3.6)
    left, right = axes[0]
    _curve(left, link, a, reach)
    found = branches.equilibria(link, a, torch.tensor([s], dtype=torch.float64))
    left.axvline(s, color="#9AA5B1", linewidth=1)
    left.set_ylabel("equilibria $z$")
    z = torch.linspace(-2.5, 2.5, 401, dtype=torch.float64)
    right.plot(z, link(a * z + s), color=CYCLE[2], label="$\\varphi(az+s)$")
    right.plot(z, z, color=INK, linewidth=1, label="$z$")
    for at, good in zip(found.z[found.exists], found.stable[found.exists], strict=True):
        colour = CYCLE[0] if good else CYCLE[1]
        left.plot(s, at, "s", color=colour, markersize=8, zorder=6)
        right.plot(at, at, "s", color=colour, markersize=8, zorder=6)
    right.set(xlabel="$z$", title=f"$s={s:.2f}$: {int(found.count[0])} equilibria")
    right.legend(loc="upper left")
    return figure


def slopes(runs: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Figure:
    """D against the distance of s from where it blows up: name ↦ (distance, D, prediction)."""
    figure, axes = new(1, 1, width=6.4, height=3.5)
    axis = axes[0, 0]
    for i, (name, (gap, D, predicted)) in enumerate(runs.items()):
        axis.loglog(gap, D, "os"[i % 2], color=CYCLE[i], markersize=5, label=name)
        bound_line(axis, gap, predicted, "leading order" if i == 0 else "_")
    axis.set(xlabel="distance of the index $s$ from the singular one", ylabel="slope $D$")
    axis.legend()
    return figure


def hysteresis(
    s: Tensor, rising: Tensor, falling: Tensor, angle: Tensor, share: Tensor, worst: Tensor
) -> Figure:
    """Left: z followed up and down in s. Right: while w turns, how many samples lag, and max D."""
    figure, axes = new(1, 2, width=8.2, height=3.5)
    left, right = axes[0]
    left.plot(s, rising, color=CYCLE[0], label="s rising")
    left.plot(s, falling, "--", color=CYCLE[1], label="s falling")
    left.set(xlabel="index $s$", ylabel="state $z$ kept by the solver", title="one sample")
    left.legend(loc="center")
    degrees = 180 * angle / np.pi
    right.plot(degrees, 100 * share, color=CYCLE[0], label="lagging samples, %")
    right.plot(degrees, worst, color=CYCLE[1], linestyle="--", label="largest $D$")
    right.set(xlabel="angle by which $w$ has turned", title="a sample of inputs")
    right.set_yscale("symlog", linthresh=1)
    right.legend(loc="lower right", fontsize=9)
    right.set_xticks([0, 45, 90, 135, 180])
    return figure


def basin(ceiling: Tensor, highest: Tensor, quotient: Tensor) -> Figure:
    """1 − max a of each run against its bound 1 − ā; colour ρ₀/Δ*."""
    figure, axes = new(1, 1, width=6.6, height=4.0)
    axis = axes[0, 0]
    dots: Any = axis.scatter(
        1 - ceiling,
        1 - highest,
        c=quotient.log10(),
        cmap="cividis",
        s=26,
        edgecolor="white",
        lw=0.4,
    )
    ends = torch.tensor([float((1 - ceiling).min()) / 1.6, 1.6 * float((1 - highest).max())])
    bound_line(axis, ends, ends, "bound")
    axis.set(
        xscale="log", yscale="log", xlabel="bound $1-\\bar a$", ylabel="least $1-a$ of the run"
    )
    bar = figure.colorbar(dots, ax=axis)
    bar.set_label("$\\log_{10}\\,\\rho_0/\\Delta^*$")
    axis.legend(loc="lower right")
    return figure


def beyond(step: Tensor, distance: Tensor, a: Tensor, names: Sequence[str]) -> Figure:
    """Left: distance to the target over the step. Right: the self-weight, and a = 1 dashed."""
    figure, axes = new(1, 2, width=8.2, height=3.5)
    left, right = axes[0]
    for i, name in enumerate(names):
        left.semilogy(step, distance[:, i], color=CYCLE[i])
        right.semilogx(1 + step, a[:, i], color=CYCLE[i], label=name)
    left.set(xlabel="step $k$", ylabel="$\\|\\theta_k-\\theta^*\\|$")
    bound_line(right, [1, float(step[-1])], [1, 1], "$a=1/\\beta$")
    right.set(xlabel="$k+1$", ylabel="self-weight $a_k$")
    right.legend(fontsize=9, title="start $(a_0,w_0)$")
    return figure


def turning(angle: Tensor, loss: Tensor, integral: Tensor) -> Figure:
    """The loss while w turns, and what its gradient, integrated, says it should be."""
    figure, axes = new(1, 1, width=6.6, height=3.5)
    axis = axes[0, 0]
    jumps = (loss.diff().abs() > 10 * loss.diff().abs().median()).nonzero()[:, 0]
    broken = loss.clone()
    broken[jumps] = torch.nan
    axis.plot(180 * angle / np.pi, broken, color=CYCLE[0], label="loss")
    axis.plot(
        180 * angle / np.pi,
        integral,
        "--",
        color=CYCLE[1],
        label="first value + $\\int g\\cdot dw$",
    )
    axis.set(xlabel="angle of $w$ (degrees)", ylabel="loss $L$")
    axis.legend()
    return figure


def apart(step: Tensor, distance: Tensor, loss: Tensor) -> Figure:
    """A descent whose loss falls while the distance to the target grows."""
    figure, axes = new(1, 2, width=8.2, height=3.2)
    axes[0, 0].plot(step, distance, color=CYCLE[1])
    axes[0, 0].set(xlabel="step $k$", ylabel="$\\|\\theta_k-\\theta^*\\|$")
    axes[0, 1].semilogy(step, loss, color=CYCLE[0])
    axes[0, 1].set(xlabel="step $k$", ylabel="loss $L$")
    return figure
