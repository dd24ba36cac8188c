"""Figures on the models themselves: layers, equilibria, and how the one approaches the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from deqlib.figures.style import CYCLE, INK, bound_line, new, style

Map = Callable[[Tensor], Tensor]
THIN: dict[str, Any] = {"linewidth": 0.9, "color": INK}


@dataclass(frozen=True)
class Layer:
    """A scalar layer z ↦ f(z) to be drawn on [low, high].

    title       above the panel
    f           elementwise
    low, high   range of both axes
    orbit       (K + 1,) the states z₀, z₁, …, z_K of a network made of it, or None
    equilibria  (m,) the solutions of z = f(z) in the range, or None
    """

    title: str
    f: Map
    low: float
    high: float
    orbit: Tensor | None = None
    equilibria: Tensor | None = None


def depths(
    s: Tensor,
    networks: Mapping[str, Sequence[Tensor]],
    equilibria: Mapping[str, Tensor],
    shown: Sequence[int] = (1, 2, 5, 20),
) -> Figure:
    """What networks of several depths compute, and the equilibrium, as functions of s = w x.

    One panel a network: ``networks[title][k]`` (n,) is the output of depth k at the inputs s (n,),
    ``equilibria[title]`` (n,) the equilibrium, drawn wide and pale beneath.
    """
    figure, axes = new(1, len(networks), width=7.0, height=3.5)
    with style():
        for axis, (title, layers) in zip(axes[0], networks.items(), strict=True):
            axis.plot(s, equilibria[title], color="#BBBBBB", linewidth=7, label="equilibrium")
            for color, k in zip(CYCLE, shown, strict=False):
                axis.plot(s, layers[k], color=color, linewidth=1.5, label=f"depth {k}")
            axis.set(title=title, xlabel="input $s = w x$")
        axes[0, 0].set_ylabel("output $z$")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9.5)
    return figure


def cobwebs(layers: Sequence[Layer], columns: int = 2) -> Figure:
    """Graph of each layer with the diagonal: dots where they cross, a staircase for the states.

    A layer's step is drawn up or down to the graph, then across to the diagonal.
    """
    rows = -(-len(layers) // columns)
    figure, axes = new(rows, columns, width=3.2 * columns, height=3.0 * rows)
    with style():
        for axis, layer in zip(axes.flat, layers, strict=False):
            draw_cobweb(axis, layer)
        for axis in axes.flat[len(layers) :]:
            axis.remove()
        for axis in axes[:, 0]:
            axis.set_ylabel("next state")
        for axis in axes[-1]:
            axis.set_xlabel("state $z$")
    return figure


def draw_cobweb(axis: Axes, layer: Layer) -> None:
    """One panel of `cobwebs`."""
    z = torch.linspace(layer.low, layer.high, 401, dtype=torch.float64)
    axis.plot(z, z, **THIN)
    axis.plot(z, layer.f(z), color=CYCLE[0], linewidth=2.2)
    if layer.orbit is not None:
        corners = layer.orbit.repeat_interleave(2)
        axis.plot(corners[:-1], corners[1:], color=CYCLE[1], linewidth=1.1)
        axis.plot(corners[0], corners[0], "s", color=CYCLE[1], markersize=5)
    if layer.equilibria is not None:
        axis.plot(layer.equilibria, layer.equilibria, "o", color=INK, markersize=6, zorder=5)
    axis.set(title=layer.title, xlim=(layer.low, layer.high), ylim=(layer.low, layer.high))
    axis.set_aspect("equal")


def depth_error(panels: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Figure:
    """Relative error against depth, in logarithmic scale: measured, bound above and bound below.

    ``panels[title]`` holds three tensors (K + 1,): ‖F − F_k‖/‖F‖, ‖W‖₂ᵏ and ρᵏ ‖yᴴF‖/‖F‖.
    """
    figure, axes = new(1, len(panels), width=7.0, height=3.5, sharey=True)
    with style():
        for axis, (title, (measured, above, below)) in zip(axes[0], panels.items(), strict=True):
            bound_line(axis, range(len(above)), above, label=r"bound $\|W\|_2^k$")
            axis.plot(measured, color=CYCLE[1], label="measured")
            axis.plot(below, color=CYCLE[0], linestyle=":", label=r"from below, $\propto\rho(W)^k$")
            axis.set(title=title, xlabel="depth $k$", yscale="log")
            axis.set(xlim=(0, len(measured) - 1), ylim=(1e-9, 30 * float(measured.max())))
        axes[0, 0].set_ylabel(r"$\|F-F_k\|\,/\,\|F\|$")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def rates(measured: Tensor, radius: Tensor, norm: Tensor) -> Figure:
    """Two predictions of the factor by which one layer shrinks the error, against the measured one.

    All (n,). On the diagonal a prediction is right; above 1 it does not even promise convergence.
    """
    figure, axes = new(1, 1, width=5.6, height=4.4)
    axis = axes[0, 0]
    with style():
        top = 1.6 * float(norm.max())
        axis.axhspan(1, top, color="#EEEEEE", zorder=0)
        axis.text(0.29, 0.98 * top, "a norm above 1 promises nothing", va="top")
        axis.plot(measured, norm, "x", color=CYCLE[1], markersize=4, label=r"norm $\|W\|_2$")
        axis.plot(measured, radius, "o", color=CYCLE[0], markersize=3, label=r"radius $\rho(W)$")
        axis.plot([0.28, 1], [0.28, 1], **THIN)
        axis.set(xlabel="measured factor per layer", ylabel="predicted factor")
        axis.set(xscale="log", yscale="log", xlim=(0.28, 1), ylim=(0.28, top))
        ticks = {0.3: "0.3", 0.5: "0.5", 0.7: "0.7", 1: "1", 2: "2", 5: "5"}
        axis.minorticks_off()
        axis.set_yticks(list(ticks), list(ticks.values()))
        axis.set_xticks(list(ticks)[:4], list(ticks.values())[:4])
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def fold(weights: Sequence[float], highest: float = 3.0) -> Figure:
    """Equilibria of z = tanh(a z + s): the curves of z against s, and the map of how many.

    Left, one curve for each a in ``weights``: s = artanh z − a z, dashed where a φ′ > 1. Right, the
    cusp |s| = s_c(a) = a z_c − artanh z_c with z_c² = 1 − 1/a, up to a = ``highest``; inside it
    there are three equilibria.
    """
    figure, axes = new(1, 2, width=7.0, height=3.6)
    curves, regions = axes[0]
    z = torch.linspace(-0.9999, 0.9999, 4001, dtype=torch.float64)
    with style():
        for color, a in zip(CYCLE, weights, strict=False):
            s = torch.atanh(z) - a * z
            unstable = a * (1 - z.square()) > 1
            curves.plot(s.masked_fill(unstable, torch.nan), z, color=color, label=f"$a={a:g}$")
            curves.plot(s.masked_fill(~unstable, torch.nan), z, color=color, linestyle=(0, (2, 2)))
        curves.set(xlim=(-2.2, 2.2), xlabel="input $s$", ylabel="equilibrium $z$")
        curves.legend(loc="upper left", fontsize=9.5, handlelength=1.2, borderaxespad=0)

        above = torch.linspace(1, highest, 400, dtype=torch.float64)
        zc = (1 - 1 / above).sqrt()
        sc = above * zc - torch.atanh(zc)
        regions.fill_between(above, -sc, sc, color=CYCLE[4], alpha=0.45, linewidth=0)
        regions.plot(above, sc, color=INK)
        regions.plot(above, -sc, color=INK)
        regions.text(highest - 0.1, 0, "three", ha="right", va="center")
        regions.text(0.1, 0, "one equilibrium", ha="center", va="center")
        regions.set(xlim=(-1, highest), ylim=(-2.2, 2.2), xlabel="self-weight $a$", ylabel="$s$")
    return figure


def late_layers(panels: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Figure:
    """Where the layers end up, against the self-weight a: the orbit diagram of z ← φ(a z + s).

    ``panels[title]`` holds a (n,), the outputs of T late depths (T, n) and the equilibrium (n,).
    One dot a depth: a single dot on the curve is convergence, two are an oscillation.
    """
    figure, axes = new(1, len(panels), width=7.0, height=3.6)
    with style():
        for axis, (title, (a, outputs, equilibrium)) in zip(axes[0], panels.items(), strict=True):
            flat = a.expand_as(outputs).reshape(-1)
            axis.plot(flat, outputs.reshape(-1), ".", color=CYCLE[1], markersize=1.2)
            axis.plot(a, equilibrium, color=CYCLE[0], label="equilibrium")
            axis.plot([], [], ".", color=CYCLE[1], label="outputs of late layers")
            axis.set(title=title, xlabel="self-weight $a$")
        axes[0, 0].set_ylabel("output $z$")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure
