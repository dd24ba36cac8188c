"""Figures on the single-index model: learned links, solvers, gradients, and what data can tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from deqlib.figures.style import CYCLE, INK, bound_line, new, style


def _shades(count: int) -> list[tuple[float, ...]]:
    """Dark to light blue-green to yellow, readable without colours by their order alone."""
    return [tuple(color) for color in plt.get_cmap("viridis")(np.linspace(0, 0.88, count))]


def learned_links(
    s: Tensor,
    panels: Mapping[str, Mapping[float, Tensor]],
    limits: Mapping[str, tuple[Tensor, Tensor]],
    *,
    height: float = 2.5,
) -> Figure:
    """Learned links z = h_a(s), a panel a link, a curve a self-weight.

    ``panels[title][a]`` holds z (n,) at s (n,). ``limits[title]`` holds (s, z) of the limit
    a = 1/β, drawn dashed.
    """
    figure, axes = new(1, len(panels), width=7.0, height=3.8)
    with style():
        for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
            for color, (a, z) in zip(_shades(len(curves)), curves.items(), strict=True):
                axis.plot(s, z, color=color, linewidth=1.7, label=f"$a = {a:g}$")
            if title in limits:
                bound_line(axis, *limits[title], label=r"limit $a = 1/\beta$")
            axis.set(title=title, xlabel="index $s$", ylim=(-height, height))
            axis.set_xlim(float(s[0]), float(s[-1]))
            axis.legend(fontsize=8, loc="upper left", handlelength=1.3, labelspacing=0.25)
        axes[0, 0].set_ylabel("$z = h_a(s)$")
    return figure


def slope_ranges(a: Tensor, panels: Mapping[str, tuple[Tensor, Tensor, Tensor, Tensor]]) -> Figure:
    """Slopes of learned links against a: the bounds, and the least and greatest seen.

    ``panels[title]`` holds (lower bound, least seen, greatest seen, upper bound), each (n,).
    """
    figure, axes = new(1, len(panels), width=7.4, height=3.3)
    with style():
        for axis, (title, (low, least, most, high)) in zip(axes[0], panels.items(), strict=True):
            bound_line(axis, a, high, label="bounds")
            bound_line(axis, a, low, label="")
            axis.plot(a[::4], most[::4], "^", color=CYCLE[1], markersize=4, label="greatest seen")
            axis.plot(a[::4], least[::4], "v", color=CYCLE[0], markersize=4, label="least seen")
            axis.set_yscale("symlog", linthresh=0.3, linscale=0.6)
            axis.set_yticks([-0.3, 0, 0.3, 1, 10], ["−0.3", "0", "0.3", "1", "10"])
            axis.minorticks_off()
            axis.set(title=title, xlabel=r"$a\beta$", ylim=(-0.3, 14))
        axes[0, 0].set_ylabel("slope of $h_a$")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


MARKERS = ("o", "s", "^", "D")


def solver_race(
    errors: Mapping[str, Sequence[float]],
    a: Tensor,
    evaluations: Mapping[str, Tensor],
    edge: float,
) -> Figure:
    """Left, error against evaluations of φ for one problem. Right, evaluations needed against a.

    ``errors[method]`` is one error an evaluation; ``evaluations[method]`` (n,) goes with a (n,),
    NaN where the method fails. Below ``edge`` Picard's iteration is not sure to converge.
    """
    figure, axes = new(1, 2, width=7.4, height=3.9)
    with style():
        left, right = axes[0]
        for i, (method, error) in enumerate(errors.items()):
            left.plot(
                range(1, len(error) + 1), error, color=CYCLE[i], marker=MARKERS[i],
                markevery=max(1, len(error) // 12), markersize=4, label=method,
            )  # fmt: skip
        left.set(xlabel="evaluations of the link", ylabel="error of $z$", yscale="log")
        left.set(ylim=(1e-15, 30), title="one problem")
        right.axvspan(float(a.min()), edge, color="#EEEEEE", zorder=0)
        for i, count in enumerate(evaluations.values()):
            right.plot(a, count, color=CYCLE[i], marker=MARKERS[i], markersize=3.5)
        right.set(xlabel="self-weight $a$", ylabel="evaluations needed", yscale="log")
        right.set_xscale("symlog", linthresh=1, linscale=0.8)
        right.set(title="every self-weight", xlim=(float(a.min()), 1.1))
        right.set_xticks([-50, -10, -3, -1, 0, 1], ["−50", "−10", "−3", "−1", "0", "1"])
        right.set_yticks([3, 10, 30, 100, 300, 1000], ["3", "10", "30", "100", "300", "1000"])
        right.minorticks_off()
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def gradient_errors(
    steps: Tensor,
    differences: Mapping[str, Tensor],
    depth: Tensor,
    unrolled: Mapping[str, Tensor],
    bounds: Mapping[str, Tensor],
) -> Figure:
    """Relative error of two approximate gradients: differences against h, unrolling against depth.

    ``differences[title]`` goes with ``steps``; ``unrolled[title]`` and ``bounds[title]`` with
    ``depth``.
    """
    figure, axes = new(1, 2, width=7.2, height=3.8, sharey=True)
    with style():
        left, right = axes[0]
        for i, (title, error) in enumerate(differences.items()):
            left.plot(steps, error, color=CYCLE[i], marker=MARKERS[i], markersize=3.5,
                      label=title)  # fmt: skip
        left.plot(steps, steps**2, color="#777777", linestyle=":", label="$h^2$")
        left.plot(steps, 1e-16 / steps, color="#777777", linestyle="-.", label="$10^{-16}/h$")
        left.set(xscale="log", yscale="log", xlabel="step $h$", title="central differences")
        left.set(ylabel="error of the gradient", ylim=(1e-17, 30))
        for i, (title, error) in enumerate(unrolled.items()):
            bound_line(right, depth, bounds[title], label="bound" if i == 0 else "")
            right.plot(depth, error, color=CYCLE[i], marker=MARKERS[i], markersize=3.5,
                       markevery=max(1, len(depth) // 12), label=title)  # fmt: skip
        right.set(xlabel="layers $K$", title="unrolled layers")
        handles, labels = left.get_legend_handles_labels()
        dashed, name = right.get_legend_handles_labels()
        figure.legend(
            [*handles, dashed[0]], [*labels, name[0]], loc="outside lower center", ncols=5,
            fontsize=9,
        )  # fmt: skip
    return figure


@dataclass(frozen=True)
class Valley:
    """A loss over the plane of (w, a) for one input, and the models that fit as well as the target.

    loss (len(a), len(w)); target (w*, a*); twins (k, 2), points (w, a), k = 0 where there are none.
    """

    title: str
    w: Tensor
    a: Tensor
    loss: Tensor
    target: tuple[float, float]
    twins: Tensor


def valleys(panels: Sequence[Valley]) -> Figure:
    """Contours of log₁₀ of each loss, the target as a dot, models that fit as well as a line."""
    columns = 2
    rows = -(-len(panels) // columns)
    figure, axes = new(rows, columns, width=7.2, height=3.0 * rows)
    with style():
        for axis, one in zip(axes.flat, panels, strict=True):
            _valley(axis, one)
        for axis in axes[:, 0]:
            axis.set_ylabel("self-weight $a$")
        for axis in axes[-1]:
            axis.set_xlabel("input weight $w$")
    return figure


def _valley(axis: Axes, one: Valley) -> None:
    level = one.loss.clamp(min=1e-9).log10()
    axis.contourf(
        one.w, one.a, level, levels=np.arange(-7, 1.6, 0.5), cmap="Greys_r", extend="both"
    )
    axis.contour(one.w, one.a, level, levels=np.arange(-6, 1, 1), colors="white", linewidths=0.5)
    if len(one.twins):
        axis.plot(one.twins[:, 0], one.twins[:, 1], color=CYCLE[4], linewidth=2.2)
    axis.plot(*one.target, "o", color=CYCLE[1], markersize=7, markeredgecolor="white", zorder=5)
    axis.set(title=one.title, xlim=(float(one.w[0]), float(one.w[-1])))
    axis.set(ylim=(float(one.a[0]), float(one.a[-1])))
    axis.grid(False)


def one_link(
    s: Tensor, phi: Callable[[Tensor], Tensor], h: Tensor, D: Tensor, title: str
) -> Figure:
    """A link (thin), the link learned from it, and its slope D, over s (n,)."""
    figure, axes = new(1, 2, width=7.0, height=3.3)
    with style():
        left, right = axes[0]
        left.plot(s, phi(s), color=INK, linewidth=1, label=r"$\varphi$")
        left.plot(s, h, color=CYCLE[0], label="$h_a$")
        left.set(title=title, xlabel="index $s$", ylim=(-4, 4))
        left.legend()
        right.plot(s, D, color=CYCLE[1])
        right.set(title="slope $D$ of $h_a$", xlabel="index $s$")
        right.set_ylim(min(0.0, 1.1 * float(D.min())), max(1.0, 1.1 * float(torch.max(D))))
    return figure
