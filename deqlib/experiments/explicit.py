"""The earlier experiments: the DEQ σ(a z + w x) beside the explicit model σ(w x), five links.

n = 1000 inputs N(0, 1) by the run's seed, y = σ(2x), start (w, a) = (−0.1, 0), step 0.1 on the mean
square. The explicit model is the DEQ whose self-weight stays 0.
"""

from __future__ import annotations

import numpy as np
import torch

from deqlib.activations import Link, gelu, leaky_relu, logistic, relu, tanh
from deqlib.dynamics import gradient_descent
from deqlib.experiments.protocol import Protocol, Record, every, single_index_records, vector
from deqlib.single_index import Objective, SingleIndexDEQ

LINKS: dict[str, Link] = {
    "tanh": tanh,
    "sigmoid": logistic,
    "ReLU": relu,
    "leaky ReLU": leaky_relu(0.01),
    "GELU": gelu,
}
TARGET = SingleIndexDEQ(vector(0.0), vector([2.0]))
START = SingleIndexDEQ(vector(0.0), vector([-0.1]))
STEP = 0.1
MILESTONES = (0, 10, 20, 50, 100, 200, 400, 1000, 2000, 4000)


class Explicit(Objective):
    """The loss of a model whose self-weight is not trained."""

    def gradient(self, theta: SingleIndexDEQ) -> SingleIndexDEQ:
        """(0, ∂L/∂w)."""
        full = super().gradient(theta)
        return SingleIndexDEQ(torch.zeros_like(full.a), full.w)


def run(variant: str, seed: int, steps: int) -> list[Record]:
    """One link, one of the two models: ``variant`` is "link, model"."""
    link, model = variant.split(", ")
    X = vector(np.random.default_rng(seed).normal(size=(1000, 1)))
    kind = Explicit if model == "explicit" else Objective
    loss = kind(LINKS[link], X, LINKS[link](X @ TARGET.w))
    found = gradient_descent(
        loss.loss, START, 2 * STEP, steps, grad=loss.gradient,
        record_every=every(MILESTONES, steps), throw=False, progress=False,
    )  # fmt: skip
    return single_index_records(found, loss, TARGET)


PROTOCOLS = (
    Protocol(
        "explicit", "The DEQ beside the explicit model of the same link.",
        run, tuple(f"{link}, {model}" for link in LINKS for model in ("DEQ", "explicit")),
        42, 1, 4000, MILESTONES, 0.8,
    ),
)  # fmt: skip
