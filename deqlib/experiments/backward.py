"""The protocols with approximate backward passes.

The exact adjoint of z = φ(u), u = a z + wᵀx, is D = φ′/(1 − s) with s = aφ′(u). Each method puts
another factor in the place of 1/(1 − s).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from deqlib.activations import tanh
from deqlib.dynamics import gradient_descent
from deqlib.experiments.protocol import Protocol, Record, every, single_index_records, vector
from deqlib.single_index import Objective, SingleIndexDEQ, pull_back

FACTORS: dict[str, Callable[[Any], Any]] = {
    "exact": lambda s: 1 / (1 - s),
    "JFB": lambda s: s**0,
    "two terms": lambda s: 1 + s,
    "three terms": lambda s: 1 + s + s**2,
    "damped two terms": lambda s: 0.5 * (1 + 0.5 + 0.5 * s),
}
"""Backward factor of each method, for numbers and for tensors."""

LINEAR_STEP = 0.02
LINEAR_MILESTONES = (0, 10, 100, 1000, 5000)
TANH_STEP = 0.2
TANH_MILESTONES = (0, 100, 1000, 5000, 10_000, 20_000, 40_000)


def linear_start(seed: int) -> tuple[float, float]:
    """(w, a): √8 and 0, its four neighbours at distance 0.025, then neighbours drawn at random."""
    h = 0.025
    if seed < 5:
        dw, da = ((0.0, 0.0), (h, 0.0), (-h, 0.0), (0.0, h), (0.0, -h))[seed]
    else:
        dw, da = np.random.default_rng(seed).uniform(-h, h, 2)
    return 8**0.5 + float(dw), float(da)


def run_linear(variant: str, seed: int, steps: int) -> list[Record]:
    """z = a z + w x with x = 1 and target 1: descent on (z − 1)², in plain numbers."""
    factor = FACTORS[variant]
    w, a = linear_start(seed)
    kept = every(LINEAR_MILESTONES, steps)
    records = []
    for step in range(steps + 1):
        z = w / (1 - a)
        if step % kept == 0:
            off, radius = abs(w - (1 - a)) / 2**0.5, (w**2 + (1 - a) ** 2) ** 0.5
            records.append(Record(step, w, a, None, (z - 1) ** 2, None, off, radius))
        q = factor(a) * 2 * (z - 1)
        w, a = w - LINEAR_STEP * q, a - LINEAR_STEP * q * z
    return records


class Approximate(Objective):
    """The loss with a method's direction in the place of its gradient."""

    def __init__(self, method: str, X: torch.Tensor, y: torch.Tensor) -> None:
        super().__init__(tanh, X, y)
        self.factor = FACTORS[method]

    def gradient(self, theta: SingleIndexDEQ) -> SingleIndexDEQ:
        """E[(z − y) φ′ factor(aφ′) (z, x)], from D = φ′/(1 − aφ′)."""
        D, a = self.slope(theta), theta.a[..., None]
        rise = D / (1 + a * D)
        z = self.link(self.preactivation(theta))
        return pull_back(rise * self.factor(a * rise), z, self.X, self.y)


def tanh_problem(
    seed: int,
) -> tuple[SingleIndexDEQ, SingleIndexDEQ, torch.Tensor, torch.Tensor]:
    """Start, target, training and evaluation inputs: d = 20, 8000 inputs each, in that order."""
    rng = np.random.default_rng(seed)
    xi = rng.normal(size=20)
    xi = xi / np.linalg.norm(xi)
    delta = rng.normal(size=20)
    delta = 0.2 * delta / np.linalg.norm(delta)
    X, fresh = rng.normal(size=(8000, 20)), rng.normal(size=(8000, 20))
    start = SingleIndexDEQ(vector(0.15), vector(xi + delta))
    return start, SingleIndexDEQ(vector(0.0), vector(xi)), vector(X), vector(fresh)


def run_tanh(variant: str, seed: int, steps: int) -> list[Record]:
    """z = tanh(a z + wᵀx) on y = tanh(ξᵀx)."""
    start, target, X, fresh = tanh_problem(seed)
    loss = Approximate(variant, X, torch.tanh(X @ target.w))
    run = gradient_descent(
        loss.loss, start, 2 * TANH_STEP, steps, grad=loss.gradient,
        record_every=every(TANH_MILESTONES, steps), throw=False, progress=False,
    )  # fmt: skip
    return single_index_records(run, loss, target, fresh)


PROTOCOLS = (
    Protocol(
        "linear-counter-example", "Five backward passes on a linear DEQ from (√8, 0).",
        run_linear, tuple(FACTORS), 0, 5, 5000, LINEAR_MILESTONES, 0.01,
    ),
    Protocol(
        "tanh", "Five backward passes on a tanh DEQ with 20 inputs.",
        run_tanh, tuple(FACTORS), 100, 5, 40_000, TANH_MILESTONES, 22,
    ),
)  # fmt: skip
