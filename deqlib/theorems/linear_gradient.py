"""Theorem `linear-gradient`: the gradient of a linear DEQ in closed form, and its horizontality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from deqlib import linear
from deqlib.linear import LinearDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem

EPS = torch.finfo(torch.float64).eps
PICARD_STEPS = 5


@dataclass(frozen=True)
class Instance:
    """A start, a problem, a direction to differentiate along, and the map that is trained."""

    theta: LinearDEQ
    S: Tensor
    A: Tensor
    towards: LinearDEQ
    forward: Callable[[LinearDEQ], Tensor]


def truncated_map(theta: LinearDEQ) -> Tensor:
    """F_k = U + W U + … + W^(k−1) U: the map after k Picard steps from zero."""
    F = torch.zeros_like(theta.U)
    for _ in range(PICARD_STEPS):
        F = theta.W @ F + theta.U
    return F


class LinearGradient(Theorem[Instance]):
    label = "linear-gradient"
    title = "The gradient of a linear DEQ"
    kind = "identity"
    chapter = "05_linear_deq"
    statement = (
        r"For $L(W,U)=\ell(F)$ with $F=(I-W)^{-1}U$ and $G=\partial\ell/\partial F$: "
        r"$\nabla_U L=q:=(I-W)^{-\top}G$, $\nabla_W L=qF^\top$, and therefore "
        r"$\nabla_W L\,(I-W)^\top=\nabla_U L\,U^\top$."
    )
    hypotheses = {
        "invertible": Hypothesis("I − W is invertible", necessary=True),
        "exact-equilibrium": Hypothesis("the loss is evaluated at the exact equilibrium map F"),
    }

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        return [self._draw_one(generator, linear.equilibrium_map) for _ in range(n)]

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        return {
            "exact-equilibrium": lambda generator, n: [
                self._draw_one(generator, truncated_map) for _ in range(n)
            ],
            "invertible": self._draw_singular,
        }

    def _draw_one(
        self, generator: Generator, forward: Callable[[LinearDEQ], Tensor]
    ) -> Instance:
        p, d = (int(torch.randint(1, 6, (), generator=generator)) for _ in range(2))
        theta = linear.random_start(generator, p, d)
        X = torch.randn(4 * d, d, generator=generator, dtype=torch.float64)
        A = torch.randn(p, d, generator=generator, dtype=torch.float64)
        towards = LinearDEQ(
            *(torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in theta)
        )
        return Instance(theta, linear.second_moment(X), A, towards, forward)

    def _draw_singular(self, generator: Generator, n: int) -> list[Instance]:
        """W with eigenvalue 1 to within rounding: the formula's right-hand side is not defined."""
        instances = []
        for _ in range(n):
            one = self._draw_one(generator, linear.equilibrium_map)
            p = one.theta.W.shape[0]
            V = torch.linalg.qr(torch.randn(p, p, generator=generator, dtype=torch.float64))[0]
            eigenvalues = torch.rand(p, generator=generator, dtype=torch.float64) * 0.9
            eigenvalues[0] = 1.0
            W = V @ torch.diag(eigenvalues) @ V.T
            instances.append(
                Instance(LinearDEQ(W, one.theta.U), one.S, one.A, one.towards, one.forward)
            )
        return instances
