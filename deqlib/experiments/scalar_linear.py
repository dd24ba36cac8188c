"""The linear protocols: z = a z + w x, or with an intercept, on y = 2x (or 2x + 1).

n = 1000 inputs uniform in [0, 1] by the run's seed s (42), y = 2x; the start is an offset plus
normal(0, 0.1) numbers by seed s + 1 (43), drawn in the order (w, a). Step 0.01 on the mean square.
"""

from __future__ import annotations

import numpy as np
import torch

from deqlib import linear
from deqlib.dynamics import gradient_descent
from deqlib.experiments.protocol import Protocol, Record, every, vector
from deqlib.linear import LinearDEQ

STEP = 0.01
SLOPE, LEVEL = 2.0, 1.0
MILESTONES = (0, 1, 2, 5, 10, 20, 50, 100, 150, 200)
STARTS_MILESTONES = (0, 10, 50, 200)
INTERCEPT_MILESTONES = (0, 10, 20, 50, 100, 200, 500, 1000, 2000)


def inputs(seed: int) -> torch.Tensor:
    """(1000, 1) inputs uniform in [0, 1]."""
    return vector(np.random.default_rng(seed).uniform(0, 1, 1000))[:, None]


def start(seed: int, offset: float, numbers: int = 2) -> LinearDEQ:
    """(0, offset) + normal(0, 0.1), drawn in the order (w, a) or (w, a, intercept)."""
    w, a, *intercept = np.random.default_rng(seed).normal(0, 0.1, numbers)
    return LinearDEQ(vector([[offset + a]]), vector([[w, *intercept]]))


def descend(
    theta: LinearDEQ, S: torch.Tensor, A: torch.Tensor, steps: int, milestones: tuple[int, ...]
) -> list[Record]:
    """Descent on the mean square tr((F − A) S (F − A)ᵀ) = 2L, whose gradient is twice ours."""
    run = gradient_descent(
        lambda th: linear.loss(th, S, A), theta, 2 * STEP, steps,
        grad=lambda th: linear.gradient(th, S, A), record_every=every(milestones, steps),
        progress=False,
    )  # fmt: skip
    N = linear.rows(run.theta)[:, 0]
    ray = torch.cat([torch.ones(1, dtype=A.dtype), A[0]])
    ray = ray / ray.norm()
    off = (N - (N @ ray)[:, None] * ray).norm(dim=-1)
    records = []
    for k, step in enumerate(run.t.tolist()):
        w, *intercept = run.theta.U[k, 0].tolist()
        records.append(
            Record(
                int(step), w, float(run.theta.W[k]), intercept[0] if intercept else None,
                2 * float(run.loss[k]), None, float(off[k]), float(N[k].norm()),
            )
        )  # fmt: skip
    return records


def _on_line(data_seed: int, start_seed: int, offset: float, steps: int) -> list[Record]:
    S = linear.second_moment(inputs(data_seed))
    return descend(start(start_seed, offset), S, vector([[SLOPE]]), steps, MILESTONES)


def run_linear(variant: str, seed: int, steps: int) -> list[Record]:
    """From near (0, 0)."""
    return _on_line(seed, seed + 1, 0.0, steps)


def run_near_singular(variant: str, seed: int, steps: int) -> list[Record]:
    """From near the singular point (0, 1)."""
    return _on_line(seed, seed + 1, 1.0, steps)


def run_starts(variant: str, seed: int, steps: int) -> list[Record]:
    """From near (0, 1), with the inputs of seed 42 and only the start drawn anew."""
    return _on_line(42, seed, 1.0, steps)


def run_intercept(variant: str, seed: int, steps: int) -> list[Record]:
    """y = 2x + 1 with z = a z + w x + b: three parameters, a sphere in space."""
    x = inputs(seed)
    S = linear.second_moment(torch.cat([x, torch.ones_like(x)], dim=-1))
    theta = start(seed + 1, 0.0, 3)
    return descend(theta, S, vector([[SLOPE, LEVEL]]), steps, INTERCEPT_MILESTONES)


PROTOCOLS = (
    Protocol(
        "linear", "Scalar linear DEQ from near the origin.",
        run_linear, ("exact",), 42, 1, 200, MILESTONES, 0.1, stride=2,
    ),
    Protocol(
        "linear-near-singular", "The same from near the singular point, beyond the line a = 1.",
        run_near_singular, ("exact",), 42, 1, 200, MILESTONES, 0.1, stride=2,
    ),
    Protocol(
        "linear-starts", "Twenty starts near the singular point, of which the paper shows seed 6.",
        run_starts, ("exact",), 0, 20, 200, STARTS_MILESTONES, 0.1,
    ),
    Protocol(
        "linear-intercept", "The linear DEQ with an intercept: three parameters.",
        run_intercept, ("exact",), 42, 1, 2000, INTERCEPT_MILESTONES, 0.6, stride=2,
    ),
)  # fmt: skip
