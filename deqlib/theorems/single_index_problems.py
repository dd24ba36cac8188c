"""What the theorems of Part III are drawn from: a link, a sample of inputs, a target and a start.

Problems of one shape (link, n, d) are kept as one batch, since a batch costs hardly more than one
problem: `Problem` holds a batch, and `Problem.one` a problem of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from deqlib import activations, one_point, single_index
from deqlib.activations import Link
from deqlib.single_index import SingleIndexDEQ

STRICT = (
    activations.tanh, activations.logistic, activations.arctan, activations.softsign,
    activations.softplus, activations.leaky_relu(0.2), activations.smooth_leaky_relu(0.2),
    activations.linear_plus_tanh(0.3), activations.weakly_nonlinear(0.5),
)  # fmt: skip
"""The links with φ′ > 0 that are not linear: for them θ* is the only critical point."""
SLOPED = tuple(link for link in STRICT if link.alpha > 0)
"""Those with a positive lower slope bound, for which all constants are explicit."""


@dataclass(frozen=True)
class Problem:
    """Fit z = φ(a z + wᵀx) to a target model on a sample, from a start. One, or a batch of them.

    X (*batch, n, d), target θ* and start θ₀ (*batch), y (*batch, n) the target's equilibria.
    """

    link: Link
    X: Tensor
    target: SingleIndexDEQ
    start: SingleIndexDEQ
    y: Tensor

    def one(self, i: int) -> Problem:
        """Problem i of a batch."""
        return Problem(
            self.link, self.X[i], SingleIndexDEQ(self.target.a[i], self.target.w[i]),
            SingleIndexDEQ(self.start.a[i], self.start.w[i]), self.y[i],
        )  # fmt: skip

    @property
    def radius(self) -> Tensor:
        """ρ₀ = ‖θ₀ − θ*‖, (*batch)."""
        return single_index.distance(self.start, self.target)

    @property
    def gap(self) -> Tensor:
        """Δ* = 1/β − a*, (*batch): the radius of the ball of the theorems."""
        return one_point.gaps(self.link, self.target)[0]


def uniform(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def log_uniform(generator: Generator, low: float, high: float, *shape: int) -> Tensor:
    return low * (high / low) ** torch.rand(shape, generator=generator, dtype=torch.float64)


def directions(generator: Generator, *shape: int) -> Tensor:
    """Unit vectors, uniform on the sphere; the last dimension is theirs."""
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    return normal / normal.norm(dim=-1, keepdim=True)


def random_problems(
    generator: Generator,
    batch: int,
    link: Link,
    d: int,
    *,
    n: int = 0,
    inputs: str = "gaussian",
    radius: tuple[float, float] = (0.05, 0.95),
) -> Problem:
    """A batch of random problems of one link and size.

    a* is uniform in [−2, 0.8]/β and ‖w*‖ log-uniform in [0.3, 3]/β; the start lies in a uniform
    direction at a distance of a uniform part in ``radius`` of Δ*, so it is inside the ball of the
    theorems where radius[1] ≤ 1. n = 0 takes 8 (d + 2) samples.
    """
    beta = link.beta
    X = single_index.random_inputs(generator, n or 8 * (d + 2), d, inputs, batch=(batch,))
    a = uniform(generator, -2, 0.8, batch) / beta
    w = log_uniform(generator, 0.3, 3, batch, 1) / beta * directions(generator, batch, d)
    target = SingleIndexDEQ(a, w)
    part = uniform(generator, *radius, batch)
    away = (part * (1 / beta - a))[:, None] * directions(generator, batch, 1 + d)
    start = single_index.unflat(single_index.flat(target) + away)
    return Problem(link, X, target, start, single_index.predict(link, target, X))


def mixed(
    generator: Generator,
    count: int,
    *,
    links: Sequence[Link] = STRICT,
    sizes: Sequence[int] = (1, 3, 10),
    radius: tuple[float, float] = (0.05, 0.95),
) -> list[Problem]:
    """``count`` problems in batches of one shape: every link in turn, with sizes and kinds of
    inputs changing from batch to batch. Returns the batches; unbatch with `Problem.one`."""
    found: list[Problem] = []
    for i, link in enumerate(links):
        share = len(range(i, count, len(links)))
        if share:
            d = sizes[i % len(sizes)]
            kind = single_index.INPUTS[(i // len(sizes)) % len(single_index.INPUTS)]
            found.append(random_problems(generator, share, link, d, inputs=kind, radius=radius))
    return found
