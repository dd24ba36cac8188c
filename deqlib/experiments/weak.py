"""Weak nonlinearity: z = σ_ε(a z + wᵀx) with σ_ε(s) = s + ε tanh s, on y = σ_ε(ξᵀx).

The start lies near the ray of the linear model's minimisers, so that all that is left is to move
along it: slowly, at a rate of order ε².
"""

from __future__ import annotations

import numpy as np
import torch

from deqlib.activations import Link, weakly_nonlinear
from deqlib.dynamics import gradient_descent
from deqlib.experiments.protocol import Protocol, Record, every, single_index_records, vector
from deqlib.single_index import Objective, SingleIndexDEQ

LINKS: dict[str, Link] = {
    "1/2": weakly_nonlinear(1 / 2),
    "1/4": weakly_nonlinear(1 / 4),
    "1/8": weakly_nonlinear(1 / 8),
}
"""ε ↦ σ_ε."""
STEP = 0.05
MILESTONES = (0, 100, 1000, 5000, 10_000, 20_000, 40_000, 60_000)


def problem(seed: int) -> tuple[SingleIndexDEQ, SingleIndexDEQ, torch.Tensor, torch.Tensor]:
    """Start, target, training and evaluation inputs: d = 10, 4096 and 16384, drawn in this order:
    ξ, the inputs, the evaluation inputs, v."""
    rng = np.random.default_rng(seed)
    xi = rng.normal(size=10)
    xi = xi / np.linalg.norm(xi)
    X, fresh = rng.normal(size=(4096, 10)), rng.normal(size=(16384, 10))
    v = rng.normal(size=10)
    v = v - (v @ xi) * xi
    v = v / np.linalg.norm(v)
    along = 0.1 / 2**0.5
    start = SingleIndexDEQ(vector(along), vector(xi - along * xi + 0.03 * v))
    return start, SingleIndexDEQ(vector(0.0), vector(xi)), vector(X), vector(fresh)


def run(variant: str, seed: int, steps: int) -> list[Record]:
    """One ε, exact gradients."""
    link = LINKS[variant]
    start, target, X, fresh = problem(seed)
    loss = Objective(link, X, link(X @ target.w))
    found = gradient_descent(
        loss.loss, start, 2 * STEP, steps, grad=loss.gradient,
        record_every=every(MILESTONES, steps), throw=False, progress=False,
    )  # fmt: skip
    return single_index_records(found, loss, target, fresh)


PROTOCOLS = (
    Protocol(
        "weak-nonlinearity", "σ(s) = s + ε tanh s for three ε.",
        run, tuple(LINKS), 1729, 5, 60_000, MILESTONES, 22,
    ),
)  # fmt: skip
