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
STEPS = 10
TRIES = 20
"""How often a run that ends where it began is drawn again, before it is left to be vacuous."""

Adjoint = Callable[[LinearDEQ, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(θ, X, z, Y, t) ↦ q (n, p): what a backward pass claims the adjoint of each sample to be."""
Optimiser = Callable[[list[Tensor]], torch.optim.Optimizer]
State = tuple[Tensor, Tensor, Tensor]
"""(W, U, t): the parameters and the clock."""


# Adjoints. The first four are gradients, each of its own loss; the others are gradients of nothing.


def exact_adjoint(slope: Callable[[Tensor, Tensor], Tensor]) -> Adjoint:
    """q = (I − W)⁻ᵀ ∂ℓ(z, y)/∂z: the true backward pass of the loss with this slope."""

    def adjoint(theta: LinearDEQ, X: Tensor, z: Tensor, Y: Tensor, t: Tensor) -> Tensor:
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


def jacobian_free(theta: LinearDEQ, X: Tensor, z: Tensor, Y: Tensor, t: Tensor) -> Tensor:
    """JFB: q = ∂ℓ/∂z, as if (I − W)⁻ᵀ were the identity."""
    return z - Y


def neumann(theta: LinearDEQ, X: Tensor, z: Tensor, Y: Tensor, t: Tensor) -> Tensor:
    """Two terms of the Neumann series, q = (I + Wᵀ) ∂ℓ/∂z."""
    return (z - Y) + (z - Y) @ theta.W


def garbage(theta: LinearDEQ, X: Tensor, z: Tensor, Y: Tensor, t: Tensor) -> Tensor:
    """An adjoint that has nothing to do with any loss, and changes with time."""
    return torch.sin(3 * X.sum(-1, keepdim=True) + z + 5 * t) + theta.U.mean() * Y


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


def symmetric(step: LinearDEQ) -> LinearDEQ:
    """Training W = (B + Bᵀ)/2 through B moves W along the symmetric part of its gradient."""
    return LinearDEQ((step.W + step.W.mT) / 2, step.U)


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
        r"Let $(I-W)z=Ux$ and let $q(x,t)\in\mathbb R^p$ be arbitrary. If "
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
            # A symmetric W is no constraint when p = 1, so here p ≥ 2.
            return lambda generator, n: [
                change(self._one(generator, index, least_p=2), index) for index in range(n)
            ]

        return {
            "exact-equilibrium": each(self._truncated),
            "plain-step": each(self._other_optimiser),
            "free-parameters": each(self._tied),
            "continuous-time": each(lambda one, _: replace(one, euler=True)),
        }

    def _one(self, generator: Generator, index: int, least_p: int = 1) -> Instance:
        """The first of `_any` that ends elsewhere than it began, by flow and by descent alike.

        A q that changes with time may lead back to the start, where C is the old one whatever law
        the way obeyed. Such a run is no evidence, and is drawn again.
        """
        for _ in range(TRIES):
            one = self._any(generator, index, least_p)
            start, end, *_ = self._descend(one)
            if min(_moved(start, end), self._flow_drift(one).activity) >= self.least_activity:
                break
        return one

    def _any(self, generator: Generator, index: int, least_p: int) -> Instance:
        """Any size, any adjoint; every third start nearly singular, κ(S) up to 10⁴ and beyond.

        The run lasts for the time in which the first speed covers half the distance from I − W to
        the singular matrices: an arbitrary q may lead there, and no integrator could follow.
        """

        def uniform() -> float:
            return float(torch.rand((), generator=generator, dtype=torch.float64))

        p = int(torch.randint(least_p, 5, (), generator=generator))
        d = int(torch.randint(1, 5, (), generator=generator))
        theta = linear.random_start(generator, p, d)
        if index % 3 == 2:
            left, sigma, right = torch.linalg.svd(linear.resolvent_inverse(theta))
            sigma[-1] = 10 ** -(0.5 + uniform())
            P = left @ torch.diag(sigma) @ right
            theta = LinearDEQ(torch.eye(p, dtype=P.dtype) - P, theta.U)
        scales = torch.logspace(0, -2 * uniform(), d, dtype=torch.float64)
        X = torch.randn(12, d, generator=generator, dtype=torch.float64) * scales
        Y = torch.randn(12, p, generator=generator, dtype=torch.float64).sign() * 2
        adjoint = list(ADJOINTS)[index % len(ADJOINTS)]
        one = Instance(theta, X, Y, adjoint, plain(1.0), 1.0, 1.0, linear.predict)
        first = self.field(one, theta, torch.zeros((), dtype=torch.float64))
        distance = torch.linalg.svdvals(linear.resolvent_inverse(theta))[-1]
        t_end = min(0.5, float(distance / torch.cat([first.W, first.U], dim=-1).norm() / 2))
        rate = t_end / STEPS
        return replace(one, optimiser=plain(rate), learning_rate=rate, t_end=t_end)

    @staticmethod
    def _truncated(one: Instance, index: int) -> Instance:
        # ‖W‖₂ = 0.8, so that three Picard steps are well short of the equilibrium.
        W = one.theta.W * (0.8 / torch.linalg.matrix_norm(one.theta.W, 2))
        return replace(one, theta=LinearDEQ(W, one.theta.U), forward=picard)

    @staticmethod
    def _tied(one: Instance, index: int) -> Instance:
        W = (one.theta.W + one.theta.W.mT) / 2
        W = W * (0.8 / torch.linalg.matrix_norm(W, 2))
        return replace(one, theta=LinearDEQ(W, one.theta.U), tie=symmetric)

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
        P, z = linear.resolvent_inverse(theta), instance.forward(theta, X)
        forced = X @ theta.U.mT
        # Relative to the terms that are subtracted, as a backward stable solver promises it.
        residual = (z @ P.mT - forced).norm() / (P.norm() * z.norm() + forced.norm())
        return {
            "exact-equilibrium": 1e-12 - float(residual),
            "plain-step": 1.0 if instance.plain else -1.0,
            "free-parameters": 1.0 if instance.tie is None else -1.0,
            "continuous-time": -1.0 if instance.euler else 1.0,
        }

    def field(self, instance: Instance, theta: LinearDEQ, t: Tensor) -> LinearDEQ:
        """(E[q zᵀ], E[q xᵀ]): the direction that W and U move against."""
        z = instance.forward(theta, instance.X)
        q = ADJOINTS[instance.adjoint](theta, instance.X, z, instance.Y, t)
        step = linear.direction(q, z, instance.X)
        return step if instance.tie is None else instance.tie(step)

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        start, end, grown, rounding = self._descend(instance)
        C = linear.invariant(start)
        change = linear.invariant(end) - C
        moved = _moved(start, end)
        identity = Measurement(float((change - grown).norm() / C.norm()), rounding, moved)
        if instance.euler:
            constant = Measurement(float(change.norm() / C.norm()), rounding, moved)
        else:
            constant = self._flow_drift(instance)
        return {"C is constant": constant, "C₊ = C + η² g gᵀ": identity}

    def _flow_drift(self, instance: Instance) -> Measurement:
        """Relative change of C along the integrated flow, and what its tolerance allows.

        q may depend on time, so the clock is integrated along. Should q drive I − W to a singular
        matrix all the same, C is read at the last step before.
        """
        theta, clock = instance.theta, torch.zeros((), dtype=torch.float64)

        def against(state: State) -> State:
            W, U, t = state
            return (*self.field(instance, LinearDEQ(W, U), t), -torch.ones_like(t))

        run = gradient_flow(
            lambda state: state[1].sum(),  # a finite number to watch: q need not have a loss
            (*theta, clock),
            instance.t_end,
            grad=against,
            times=torch.tensor([0.0, instance.t_end], dtype=torch.float64),
            rtol=RTOL,
            atol=ATOL,
            max_steps=1000,
            dense=False,
            progress=False,
            throw=False,
        )
        end = LinearDEQ(*run.end[:2])
        C = linear.invariant(theta)
        # C is constant along every solution, so the local error e of a step changes it by at most
        # 2|N||e| (to first order), and no later step amplifies that. The integrator keeps the root
        # mean square of e over the m unknowns below rtol|θ| + atol, so |e| ≤ √m (rtol|θ| + atol);
        # |N|² = tr C on the way, and |θ| ≤ |N| + |I|.
        length = float(linear.rows(theta).norm())
        unknowns = sum(x.numel() for x in theta) + 1
        size = length + theta.W.shape[0] ** 0.5 + instance.t_end
        local = unknowns**0.5 * (RTOL * size + ATOL)
        allowed = run.steps * 2 * length * local / float(C.norm())
        drift = float((linear.invariant(end) - C).norm() / C.norm())
        return Measurement(drift, allowed, _moved(theta, end))

    def _descend(self, instance: Instance) -> tuple[LinearDEQ, LinearDEQ, Tensor, float]:
        """K optimiser steps: start, end, η² Σ g gᵀ, and the rounding error of C relative to C.

        A step rounds N, by eps|N|, and so C by 2 eps|N|². It also solves with P: a backward
        stable z leaves a residual of p·eps|P||z|, which enters C as 2η|q| times itself. The two
        add up to about 2p·eps(|N|² + η|g||N|); twice that is allowed, for the products' rounding.
        """
        W, U = (x.clone() for x in instance.theta)
        optimiser = instance.optimiser([W, U])
        eta = instance.learning_rate
        grown, rounded = torch.zeros_like(W), 0.0
        for k in range(STEPS):
            theta, t = LinearDEQ(W, U), torch.tensor(k * eta, dtype=W.dtype)
            N = linear.rows(theta)
            W.grad, U.grad = self.field(instance, theta, t)
            g = torch.cat([-W.grad, U.grad], dim=-1)
            grown += eta**2 * g @ g.mT
            rounded += float(N.norm() + eta * g.norm()) ** 2
            optimiser.step()
        C = linear.invariant(instance.theta)
        rounding = 4 * W.shape[0] * EPS * rounded / float(C.norm())
        return instance.theta, LinearDEQ(W, U), grown, rounding


def _moved(start: LinearDEQ, end: LinearDEQ) -> float:
    """How far [I − W, U] went, relative to its length."""
    return float((linear.rows(end) - linear.rows(start)).norm() / linear.rows(start).norm())
