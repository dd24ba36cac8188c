"""The logistic protocols: z = σ(a z + w x) on y = σ(2x), so that the target is (w, a) = (2, 0).

Inputs and start as in `deqlib.experiments.scalar_linear`.
"""

from __future__ import annotations

import torch

from deqlib.activations import logistic
from deqlib.dynamics import gradient_descent
from deqlib.experiments.protocol import Protocol, Record, every, single_index_records, vector
from deqlib.experiments.scalar_linear import inputs, start
from deqlib.single_index import Objective, SingleIndexDEQ

TARGET = SingleIndexDEQ(vector(0.0), vector([2.0]))
FAR = 20.0
NEAR_STEP, FAR_STEP = 0.1, 2.0
MILESTONES = (
    0, 100, 200, 500, 1000, 2000, 4000, 5000, 6000, 7000, 8000, 10_000, 20_000, 30_000, 40_000,
)  # fmt: skip


def objective(seed: int) -> Objective:
    """The loss on the inputs of this seed."""
    X = inputs(seed)
    return Objective(logistic, X, torch.sigmoid(X @ TARGET.w))


def _descend(seed: int, offset: float, step: float, steps: int) -> list[Record]:
    loss = objective(seed)
    drawn = start(seed + 1, 0.0)
    theta = SingleIndexDEQ(drawn.W[0, 0], drawn.U[0] + offset)
    run = gradient_descent(
        loss.loss, theta, 2 * step, steps, grad=loss.gradient,
        record_every=every(MILESTONES, steps), throw=False, progress=False,
    )  # fmt: skip
    return single_index_records(run, loss, TARGET)


def run_near(variant: str, seed: int, steps: int) -> list[Record]:
    """From near (0, 0), step 0.1."""
    return _descend(seed, 0.0, NEAR_STEP, steps)


def run_far(variant: str, seed: int, steps: int) -> list[Record]:
    """From near (20, 0), step 2."""
    return _descend(seed, FAR, FAR_STEP, steps)


PROTOCOLS = (
    Protocol(
        "sigmoid", "Logistic DEQ from near the origin.",
        run_near, ("exact",), 42, 1, 40_000, MILESTONES, 9, stride=2,
    ),
    Protocol(
        "sigmoid-far", "Logistic DEQ from w near 20.",
        run_far, ("exact",), 42, 1, 40_000, MILESTONES, 9, stride=2,
    ),
)  # fmt: skip
