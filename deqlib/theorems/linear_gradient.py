"""Theorem `linear-gradient`: the gradient of a linear DEQ in closed form, and its horizontality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from deqlib import linear
from deqlib.dynamics import autograd
from deqlib.linear import LinearDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem

EPS = torch.finfo(torch.float64).eps
STEP = 1e-4
"""Step of the central differences; their truncation error is measured, see `measure`."""


class Loss(NamedTuple):
    """A function ℓ of F, and its gradient G there."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


class Model(NamedTuple):
    """A forward map θ ↦ F, and what (θ, ∇ℓ) is claimed to make of ∇(ℓ ∘ forward)."""

    forward: Callable[[LinearDEQ], Tensor]
    gradient: Callable[[LinearDEQ, Loss], LinearDEQ]


@dataclass(frozen=True)
class Instance:
    """A start θ, a loss ℓ, a direction to differentiate along, and a model."""

    theta: LinearDEQ
    ell: Loss
    towards: LinearDEQ
    model: Model


def squared(S: Tensor, A: Tensor) -> Loss:
    """ℓ(F) = ½ tr((F − A) S (F − A)ᵀ), whose G is (F − A) S."""
    return Loss(lambda F: 0.5 * (((F - A) @ S) * (F - A)).sum(), lambda F: (F - A) @ S)


def log_cosh(X: Tensor, Y: Tensor) -> Loss:
    """ℓ(F) = E log cosh(F x − y), whose G is E[tanh(F x − y) xᵀ]: not quadratic, realisable or not.

    log cosh r = |r| + log(1 + e^(−2|r|)) − log 2 does not overflow.
    """

    def value(F: Tensor) -> Tensor:
        r = (X @ F.mT - Y).abs()
        return (r + torch.log1p(torch.exp(-2 * r))).sum() / len(X)

    return Loss(value, lambda F: torch.tanh(X @ F.mT - Y).mT @ X / len(X))


def exact_gradient(theta: LinearDEQ, ell: Loss) -> LinearDEQ:
    """The theorem's formula, as deqlib computes it."""
    return linear.gradient_from(theta, ell.slope(linear.equilibrium_map(theta)))


def truncated_map(theta: LinearDEQ) -> Tensor:
    """F₅ = U + W U + … + W⁴ U: the map after five Picard steps from zero."""
    F = torch.zeros_like(theta.U)
    for _ in range(5):
        F = theta.W @ F + theta.U
    return F


def least_norm_map(theta: LinearDEQ) -> Tensor:
    """F = P⁺ U: of all solutions of P F ≈ U in least squares the shortest, P singular or not."""
    return torch.linalg.pinv(linear.resolvent_inverse(theta), rtol=1e-12) @ theta.U


def least_norm_gradient(theta: LinearDEQ, ell: Loss) -> LinearDEQ:
    """The theorem's formula with P⁺ in place of P⁻¹."""
    F = least_norm_map(theta)
    q = torch.linalg.pinv(linear.resolvent_inverse(theta), rtol=1e-12).mT @ ell.slope(F)
    return LinearDEQ(W=q @ F.mT, U=q)


class LinearGradient(Theorem[Instance]):
    label = "linear-gradient"
    title = "The gradient of a linear DEQ"
    kind = "identity"
    chapter = "05_linear_deq"
    statement = (
        r"For $L(W,U)=\ell(F)$ with $F=(I-W)^{-1}U$, $\ell$ differentiable and "
        r"$G=\partial\ell/\partial F$: "
        r"$\nabla_U L=q:=(I-W)^{-\top}G$, $\nabla_W L=qF^\top$, and therefore "
        r"$\nabla_W L\,(I-W)^\top=\nabla_U L\,U^\top$."
    )
    hypotheses = {
        "invertible": Hypothesis(r"$I-W$ is invertible."),
        "exact-equilibrium": Hypothesis(r"The loss is evaluated at the exact equilibrium map $F$."),
    }

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        return [self._one(generator) for _ in range(n)]

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        return {"invertible": self._singular, "exact-equilibrium": self._truncated}

    def _one(self, generator: Generator, least_p: int = 1) -> Instance:
        p = int(torch.randint(least_p, 6, (), generator=generator))
        d = int(torch.randint(1, 6, (), generator=generator))
        theta = linear.random_start(generator, p, d)
        X = torch.randn(4 * d, d, generator=generator, dtype=torch.float64)
        A = torch.randn(p, d, generator=generator, dtype=torch.float64)
        S = linear.second_moment(X)
        noise = torch.randn(4 * d, p, generator=generator, dtype=torch.float64)
        towards = LinearDEQ(
            *(torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in theta)
        )
        if torch.randint(2, (), generator=generator):
            model = Model(linear.equilibrium_map, exact_gradient)
            return Instance(theta, log_cosh(X, X @ A.mT + noise), towards, model)
        # For the squared loss deqlib has a function of its own; it stands trial here.
        model = Model(linear.equilibrium_map, lambda at, _: linear.gradient(at, S, A))
        return Instance(theta, squared(S, A), towards, model)

    def _singular(self, generator: Generator, n: int) -> list[Instance]:
        """P with one row of zeros, and the loss extended there by the least-norm equilibrium."""
        model = Model(least_norm_map, least_norm_gradient)
        instances = []
        for _ in range(n):
            one = self._one(generator, least_p=2)
            W = one.theta.W.clone()
            W[0] = torch.eye(W.shape[0], dtype=W.dtype)[0]
            instances.append(replace(one, theta=LinearDEQ(W, one.theta.U), model=model))
        return instances

    def _truncated(self, generator: Generator, n: int) -> list[Instance]:
        """W of spectral norm 0.9, so that five Picard steps are well short of the equilibrium."""
        instances = []
        for _ in range(n):
            one = self._one(generator)
            W = one.theta.W * (0.9 / torch.linalg.matrix_norm(one.theta.W, 2))
            theta, model = LinearDEQ(W, one.theta.U), Model(truncated_map, one.model.gradient)
            instances.append(replace(one, theta=theta, model=model))
        return instances

    def slack(self, instance: Instance) -> dict[str, float]:
        P = linear.resolvent_inverse(instance.theta)
        F = instance.model.forward(instance.theta)
        residual = (P @ F - instance.theta.U).norm() / instance.theta.U.norm()
        # Where P is singular the least-norm solution is the most exact there is.
        exact = instance.model.forward is least_norm_map or residual < 1e-12
        return {
            "invertible": float(torch.linalg.svdvals(P)[-1]) - 1e-10,
            "exact-equilibrium": 1.0 if exact else -float(residual),
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        theta, towards, model = instance.theta, instance.towards, instance.model
        P = linear.resolvent_inverse(theta)
        sigma = torch.linalg.svdvals(P)
        kappa = float(sigma[0] / sigma[sigma > 1e-12][-1]) if sigma[0] > 1e-12 else 1.0

        def loss(at: LinearDEQ) -> Tensor:
            return instance.ell.value(model.forward(at))

        closed = model.gradient(theta, instance.ell)
        size = float(closed.W.norm() + closed.U.norm())
        activity = size / (1 + float(loss(theta)))

        automatic = autograd(loss)(theta)
        gap = float((closed.W - automatic.W).norm() + (closed.U - automatic.U).norm())
        # Two triangular solves each way, each of relative error about p·eps·κ.
        rounding = 100 * P.shape[0] * EPS * kappa**2

        def difference(h: float) -> float:
            ahead = LinearDEQ(*(x + h * t for x, t in zip(theta, towards, strict=True)))
            behind = LinearDEQ(*(x - h * t for x, t in zip(theta, towards, strict=True)))
            return float(loss(ahead) - loss(behind)) / (2 * h)

        slope = sum(float((g * t).sum()) for g, t in zip(closed, towards, strict=True))
        once, twice = difference(STEP), difference(2 * STEP)
        # D(h) errs by c h² + O(h⁴), so |D(2h) − D(h)| is three times its truncation error.
        truncation = abs(twice - once)
        noise = 100 * EPS * kappa * (1 + float(loss(theta))) / STEP

        horizontal = (closed.W @ P.mT - closed.U @ theta.U.mT).norm()
        scale = float(closed.U.norm() * theta.U.norm()) + float(closed.W.norm() * P.norm())
        return {
            "closed form = automatic differentiation": Measurement(gap, rounding * size, activity),
            "closed form = finite differences": Measurement(
                abs(slope - once), truncation + noise, activity
            ),
            "∇W (I−W)ᵀ = ∇U Uᵀ": Measurement(float(horizontal), rounding * scale, activity),
        }
