"""Figures of the chapter on digits: vector equilibria beyond the theory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from deqlib.figures.style import CYCLE, INK, bound_line, new, style

LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = "os^DvP"


def reading(
    image: ArrayLike, shares: ArrayLike, residual: ArrayLike, title: str = "one digit"
) -> Figure:
    """One digit (8, 8), its class probabilities after k rounds (k, 10), the residual after each."""
    shares = np.asarray(shares)
    figure, axes = new(1, 3, width=9.4, height=2.9, width_ratios=(1.1, 1.7, 1.7))
    picture, middle, right = axes[0]
    with style():
        picture.imshow(np.asarray(image), cmap="gray_r", interpolation="nearest")
        picture.set_title(title)
        picture.set_xticks([])
        picture.set_yticks([])
        picture.grid(False)
        rounds = np.arange(len(shares))
        best = np.argsort(shares.max(0))[::-1][:4]
        for label, color, line in zip(best, CYCLE, LINES, strict=False):
            middle.plot(
                rounds, shares[:, label], linestyle=line, color=color, marker=".", label=f"{label}"
            )
        middle.set_title("what is read after $k$ rounds")
        middle.set_xlabel("rounds $k$")
        middle.set_ylabel("probability")
        middle.legend(
            title="class", fontsize=9, title_fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0)
        )
        right.semilogy(rounds, residual, color=INK, marker=".")
        right.set_title("how far from at rest")
        right.set_xlabel("rounds $k$")
        right.set_ylabel(r"$\|f(z_k)-z_k\|$")
    return figure


def scores(methods: Mapping[str, ArrayLike], xlabel: str) -> Figure:
    """A score for each seed (dots) and their mean (bar), one line a method."""
    figure, axes = new(width=7.0, height=2.7)
    axis = axes[0, 0]
    with style():
        for row, (name, values) in enumerate(methods.items()):
            value = np.asarray(values)
            spread = np.linspace(-0.2, 0.2, len(value)) if len(value) > 1 else np.zeros(1)
            color = CYCLE[0] if "equilibrium" in name else CYCLE[1]
            axis.plot(value, row + spread, "o", color=color, markersize=5, alpha=0.7)
            axis.plot([value.mean()] * 2, [row - 0.34, row + 0.34], color=INK, linewidth=2)
        axis.set_yticks(range(len(methods)), list(methods))
        axis.invert_yaxis()
        axis.set_xlabel(xlabel)
    return figure


Panel = Mapping[str, tuple[ArrayLike, ArrayLike]]


def along(panels: Mapping[str, Panel], *, columns: int = 2) -> Figure:
    """Quantities along training, one panel each: title → name → (epochs, values (seeds, epochs)).

    A thick line is the mean over the seeds, thin ones are the seeds.
    """
    rows = -(-len(panels) // columns)
    figure, axes = new(rows, columns, width=8.4, height=2.6 * rows + 0.2)
    with style():
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
            for (name, (epoch, values)), color, line in zip(
                curves.items(), CYCLE, LINES, strict=False
            ):
                value = np.atleast_2d(np.asarray(values))
                axis.plot(epoch, value.T, color=color, linewidth=0.6, alpha=0.5)
                axis.plot(epoch, value.mean(0), linestyle=line, color=color, label=name)
            axis.set_title(title)
            axis.set_xlabel("epoch")
        axes[0, 0].legend(fontsize=9)
    return figure


def updates(
    epochs: ArrayLike, panels: Mapping[str, tuple[Mapping[str, ArrayLike], Mapping[str, ArrayLike]]]
) -> Figure:
    """Angle and length of each scheme's gradient beside the exact one, along training.

    panels : title → (name → angles in degrees, name → ratios of lengths), one value an epoch.
    """
    figure, axes = new(2, len(panels), width=8.4, height=5.2, sharex=True, sharey="row")
    with style():
        for (top, bottom), (title, (angles, lengths)) in zip(axes.T, panels.items(), strict=True):
            for (name, angle), color, line, marker in zip(
                angles.items(), CYCLE, LINES, MARKERS, strict=False
            ):
                options: dict = dict(linestyle=line, color=color, marker=marker, markersize=4)
                top.plot(epochs, angle, label=name, **options)
                bottom.plot(epochs, lengths[name], **options)
            bound_line(bottom, epochs, np.ones(len(np.asarray(epochs))), label="exact")
            top.set_title(title)
            bottom.set_xlabel("epoch")
        axes[0, 0].set_ylabel("angle to the exact\ngradient (degrees)")
        axes[1, 0].set_ylabel("length beside\nthe exact one")
        axes[0, -1].legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def reversed_training(curves: Mapping[str, ArrayLike]) -> Figure:
    """The loss over the steps for each backward pass, the exact one first: name → losses."""
    figure, axes = new(width=7.4, height=3.3)
    axis = axes[0, 0]
    with style():
        colors = (INK, *CYCLE)  # the exact gradient comes first
        for (name, loss), color, line in zip(curves.items(), colors, LINES, strict=False):
            axis.plot(
                np.arange(len(np.asarray(loss))), loss, linestyle=line, color=color, label=name
            )
        axis.set_xlabel("step")
        axis.set_ylabel("cross-entropy")
        axis.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
