"""Theorem `conservation-law`: training a linear DEQ conserves (I−W)(I−W)ᵀ + UUᵀ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from deqlib import linear
from deqlib.dynamics import gradient_flow
from deqlib.linear import LinearDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem

EPS = torch.finfo(torch.float64).eps
RTOL, ATOL = 1e-9, 1e-12
STEPS = 25

Adjoint = Callable[[LinearDEQ, Tensor, Tensor, Tensor], Tensor]
"""(θ, X, z, Y) ↦ q (n, p): what a backward pass claims the adjoint of each sample to be."""
Optimiser = Callable[[list[Tensor]], torch.optim.Optimizer]


# Adjoints. The first four are gradients, each of its own loss; the others are gradients of nothing.


def exact_adjoint(slope: Callable[[Tensor, Tensor], Tensor]) -> Adjoint:
    """q = (I − W)⁻ᵀ ∂ℓ(z, y)/∂z: the true backward pass of the loss with this slope."""

    def adjoint(theta: LinearDEQ, X: Tensor, z: Tensor, Y: Tensor) -> Tensor:
        return torch.linalg.solve(linear.resolvent_inverse(theta).mT, slope(z, Y).mT).mT

    return adjoint


def squared(z: Tensor, y: Tensor) -> Tensor:
    """Slope of ½|z − y|²."""
    return z - y


def huber(z: Tensor, y: Tensor) -> Tensor:
    """Slope of Huber's loss with threshold 1."""
    return (z - y).clamp(-1, 1)


def logistic(z: Tensor, y: Tensor) -> Tensor:
    """Slope of log(1 + exp(−y z))."""
    return -y * torch.sigmoid(-y * z)


def log_cosh(z: Tensor, y: Tensor) -> Tensor:
    """Slope of log cosh(z − y)."""
    return torch.tanh(z - y)


def jacobian_free(theta: LinearDEQ, X: Tensor, z: Tensor, Y: Tensor) -> Tensor:
    """JFB: q = ∂ℓ/∂z, as if (I − W)⁻ᵀ were the identity."""
    return z - Y


def neumann(theta: LinearDEQ, X: Tensor, z: Tensor, Y: Tensor) -> Tensor:
    """Two terms of the Neumann series, q = (I + Wᵀ) ∂ℓ/∂z."""
    return (z - Y) + (z - Y) @ theta.W


def garbage(theta: LinearDEQ, X: Tensor, z: Tensor, Y: Tensor) -> Tensor:
    """An adjoint that has nothing to do with any loss."""
    return torch.sin(3 * X.sum(-1, keepdim=True) + z) + theta.U.mean() * Y


ADJOINTS: dict[str, Adjoint] = {
    "squared loss": exact_adjoint(squared),
    "Huber loss": exact_adjoint(huber),
    "logistic loss": exact_adjoint(logistic),
    "log-cosh loss": exact_adjoint(log_cosh),
    "Jacobian-free": jacobian_free,
    "two Neumann terms": neumann,
    "garbage": garbage,
}


def plain(learning_rate: float) -> Optimiser:
    """Gradient descent as torch has it, for W and U alike."""
    return lambda parameters: torch.optim.SGD(parameters, lr=learning_rate)


def picard(theta: LinearDEQ, X: Tensor) -> Tensor:
    """An inexact forward pass: three Picard steps from zero."""
    z = torch.zeros(X.shape[0], theta.W.shape[0], dtype=X.dtype)
    for _ in range(3):
        z = z @ theta.W.mT + X @ theta.U.mT
    return z


@dataclass(frozen=True)
class Instance:
    """A start, data, and everything that a training run consists of."""

    theta: LinearDEQ
    X: Tensor
    Y: Tensor
    adjoint: str
    optimiser: Optimiser
    learning_rate: float
    t_end: float
    forward: Callable[[LinearDEQ, Tensor], Tensor]
    tie: Callable[[LinearDEQ], LinearDEQ] | None = None
    """Maps a direction to one that keeps a tied parametrisation; absent when W and U are free."""
    euler: bool = False
    """Replace the flow by descent: the hypothesis of continuous time, dropped."""
    plain: bool = True


class ConservationLaw(Theorem[Instance]):
    label = "conservation-law"
    title = "The conservation law of linear DEQs"
    kind = "identity"
    chapter = "06_conservation_law"
    statement = (
        r"Let $z=(I-W)^{-1}Ux$ and let $q(x,t)\in\mathbb R^p$ be arbitrary. If "
        r"$\dot W=-\mathbb E[qz^\top]$ and $\dot U=-\mathbb E[qx^\top]$, then "
        r"$C=(I-W)(I-W)^\top+UU^\top$ is constant. One step of size $\eta$ along the same "
        r"direction, $g=[-\mathbb E[qz^\top],\,\mathbb E[qx^\top]]$, gives "
        r"$C_+=C+\eta^2\,gg^\top$ exactly."
    )
    hypotheses = {
        "exact-equilibrium": Hypothesis(r"The forward pass returns $z$ with $(I-W)z=Ux$."),
        "plain-step": Hypothesis(
            r"The parameters move along $-(\mathbb E[qz^\top],\mathbb E[qx^\top])$ itself, with "
            r"one rate for both: no momentum, no weight decay, no preconditioner."
        ),
        "free-parameters": Hypothesis(r"$W$ and $U$ are the parameters; they are not tied."),
        "continuous-time": Hypothesis(
            r"Time is continuous (for the constancy; the step identity replaces it for descent)."
        ),
    }
    least_activity = 1e-3

    # Draws ------------------------------------------------------------------------------------

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        return [self._one(generator, index) for index in range(n)]

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        def each(change: Callable[[Instance, int], Instance]) -> Callable[..., list[Instance]]:
            return lambda generator, n: [
                change(one, index) for index, one in enumerate(self.draw(generator, n))
            ]

        return {
            "exact-equilibrium": each(lambda one, _: replace(one, forward=picard)),
            "plain-step": each(self._other_optimiser),
            "free-parameters": each(lambda one, _: replace(one, tie=symmetric)),
            "continuous-time": each(lambda one, _: replace(one, euler=True)),
        }

    def _one(self, generator: Generator, index: int) -> Instance:
        # The tied case needs p ≥ 2, and one size range for all keeps the draws comparable.
        p = int(torch.randint(2, 5, (), generator=generator))
        d = int(torch.randint(1, 5, (), generator=generator))
        theta = linear.random_start(generator, p, d)
        X = torch.randn(12, d, generator=generator, dtype=torch.float64)
        Y = torch.randn(12, p, generator=generator, dtype=torch.float64).sign() * 2
        name = list(ADJOINTS)[index % len(ADJOINTS)]
        learning_rate = 0.02
        return Instance(
            theta, X, Y, name, plain(learning_rate), learning_rate, 0.5, linear.predict
        )

    @staticmethod
    def _other_optimiser(one: Instance, index: int) -> Instance:
        rate = one.learning_rate
        others: list[Optimiser] = [
            lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
            lambda parameters: torch.optim.SGD(parameters, lr=rate, weight_decay=0.1),
            lambda parameters: torch.optim.Adam(parameters, lr=rate),
            lambda parameters: torch.optim.SGD(
                [{"params": parameters[:1], "lr": 2 * rate}, {"params": parameters[1:], "lr": rate}]
            ),
        ]
        return replace(one, optimiser=others[index % len(others)], plain=False)

    # Hypotheses and conclusions ---------------------------------------------------------------

    def slack(self, instance: Instance) -> dict[str, float]:
        theta, X = instance.theta, instance.X
        z = instance.forward(theta, X)
        forced = X @ theta.U.mT
        residual = (z @ linear.resolvent_inverse(theta).mT - forced).norm() / forced.norm()
        return {
            "exact-equilibrium": 1e-12 - float(residual),
            "plain-step": 1.0 if instance.plain else -1.0,
            "free-parameters": 1.0 if instance.tie is None else -1.0,
            "continuous-time": -1.0 if instance.euler else 1.0,
        }

    def field(self, instance: Instance, theta: LinearDEQ) -> LinearDEQ:
        """(E[q zᵀ], E[q xᵀ]): the direction that W and U move against."""
        z = instance.forward(theta, instance.X)
        q = ADJOINTS[instance.adjoint](theta, instance.X, z, instance.Y)
        step = linear.direction(q, z, instance.X)
        return step if instance.tie is None else instance.tie(step)

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        drift, allowed, moved = (
            self._descent_drift(instance) if instance.euler else self._flow_drift(instance)
        )
        excess, rounding, moved_by_steps = self._step_identity(instance)
        return {
            "C is constant": Measurement(drift, allowed, moved),
            "C₊ = C + η² g gᵀ": Measurement(excess, rounding, moved_by_steps),
        }

    def _flow_drift(self, instance: Instance) -> tuple[float, float, float]:
        """Relative change of C along the integrated flow, and what its tolerance allows."""
        start = instance.theta
        run = gradient_flow(
            lambda theta: theta.U.sum(),  # a finite number to watch: q need not have a loss
            start,
            instance.t_end,
            grad=lambda theta: self.field(instance, theta),
            times=torch.tensor([0.0, instance.t_end]),
            rtol=RTOL,
            atol=ATOL,
        )
        C = linear.invariant(start)
        length = float(torch.stack([linear.rows(start).norm(), linear.rows(run.end).norm()]).max())
        # C is constant along every solution of the flow, so a step's local error e changes C by
        # at most 2|N||e| and nothing amplifies it later. The integrator keeps the root mean
        # square of e below rtol|N| + atol: |e| ≤ √(number of parameters)·(rtol|N| + atol).
        count = sum(x.numel() for x in start) ** 0.5
        allowed = run.steps * 2 * length * count * (RTOL * length + ATOL) / float(C.norm())
        drift = float((linear.invariant(run.end) - C).norm() / C.norm())
        return drift, allowed, _moved(start, run.end)

    def _descent_drift(self, instance: Instance) -> tuple[float, float, float]:
        """The same for descent with steps of 0.02: not constant, by far more than rounding."""
        start, end, _ = self._descend(instance)
        C = linear.invariant(start)
        drift = float((linear.invariant(end) - C).norm() / C.norm())
        return drift, 1e3 * STEPS * EPS, _moved(start, end)

    def _step_identity(self, instance: Instance) -> tuple[float, float, float]:
        """‖C_K − C₀ − η² Σ g gᵀ‖/‖C₀‖ over K steps of the optimiser, and its rounding error."""
        start, end, grown = self._descend(instance)
        C = linear.invariant(start)
        excess = float((linear.invariant(end) - C - grown).norm() / C.norm())
        kappa = float(torch.linalg.cond(linear.resolvent_inverse(start)))
        # Each step solves with P (relative error about p·eps·κ) and adds two outer products.
        return excess, 1e3 * STEPS * EPS * kappa, _moved(start, end)

    def _descend(self, instance: Instance) -> tuple[LinearDEQ, LinearDEQ, Tensor]:
        """K optimiser steps: start, end and η² Σ g gᵀ."""
        W, U = (x.clone() for x in instance.theta)
        optimiser = instance.optimiser([W, U])
        grown = torch.zeros_like(W)
        for _ in range(STEPS):
            W.grad, U.grad = self.field(instance, LinearDEQ(W, U))
            g = torch.cat([-W.grad, U.grad], dim=-1)
            grown += instance.learning_rate**2 * g @ g.mT
            optimiser.step()
        return instance.theta, LinearDEQ(W, U), grown


def symmetric(step: LinearDEQ) -> LinearDEQ:
    """Training W = (B + Bᵀ)/2 through B moves W along the symmetric part of its gradient."""
    return LinearDEQ((step.W + step.W.mT) / 2, step.U)


def _moved(start: LinearDEQ, end: LinearDEQ) -> float:
    """How far [I − W, U] went, relative to its length."""
    return float((linear.rows(end) - linear.rows(start)).norm() / linear.rows(start).norm())
