"""Theorem `grassmannian-flow`: with C = cI training is a Riemannian gradient flow of F alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from deqlib import grassmann, linear
from deqlib.dynamics import gradient_flow
from deqlib.linear import LinearDEQ
from deqlib.rates import gram
from deqlib.theorems.base import Hypothesis, Measurement, Theorem

EPS = torch.finfo(torch.float64).eps
RTOL, ATOL = 1e-10, 1e-13
PATH = 1e-6
"""Two integrations of one path agree to this: their tolerance, times what its errors grow by."""
POINTS = 9
"""How many points of each path are measured."""
DESCENT_STEPS = 10

TRAININGS = ("flow", "weight decay", "two rates", "descent")
"""How W and U move: by their gradient flow, or (the hypothesis dropped) otherwise."""


@dataclass(frozen=True)
class Problem:
    """One loss ℓ(F) = E h(Fx − y) or a batch of them, h(r) = ½r² or log cosh r, and its slope."""

    X: Tensor
    Y: Tensor
    robust: bool

    def loss(self, F: Tensor) -> Tensor:
        r = self.X @ F.mT - self.Y
        if self.robust:
            r = r.abs()
            return (r + torch.log1p(torch.exp(-2 * r)) - torch.log(r.new_tensor(2.0))).sum(
                (-2, -1)
            ) / r.shape[-2]
        return 0.5 * r.square().sum((-2, -1)) / r.shape[-2]

    def slope(self, F: Tensor) -> Tensor:
        """G = ∂ℓ/∂F."""
        r = self.X @ F.mT - self.Y
        return (torch.tanh(r) if self.robust else r).mT @ self.X / r.shape[-2]


@dataclass(frozen=True)
class Instance:
    """One loss, one start F₀ in two gauges with the same C, and what training did with them."""

    C: Tensor
    theta: LinearDEQ
    """Recorded path of the parameters, (POINTS, 2, …): the two gauges side by side."""
    G: Tensor
    """∂ℓ/∂F along it, in the problem's own clock."""
    step: LinearDEQ
    """The velocities (Ẇ, U̇) of training there."""
    reduced: Tensor
    """F (POINTS, p, d) as the Riemannian gradient flow with constant c = tr C/p has it."""
    training: str


class GrassmannianFlow(Theorem[Instance]):
    label = "grassmannian-flow"
    title = "Training as a gradient flow on the Grassmann manifold"
    kind = "identity"
    chapter = "10_geometry_and_readout"
    statement = (
        r"Let $I-W$ be invertible, $F=(I-W)^{-1}U$, $G=\nabla\ell(F)$ and $C=cI$. Under gradient "
        r"flow of $\ell(F)$ in $(W,U)$, $\dot F=-\frac1c(I+FF^\top)\,G\,(I+F^\top F)$: the "
        r"Riemannian gradient flow of $\ell$ for $c$ times the canonical metric of "
        r"$\mathrm{Gr}(p,p+d)$. So the path of $F$ depends on the start through $F_0$ and $c$ "
        r"alone, and $\|\dot W\|^2+\|\dot U\|^2$ is its squared speed."
    )
    hypotheses = {
        "gradient-flow": Hypothesis(
            r"$\dot W=-\nabla_WL$ and $\dot U=-\nabla_UL$: the exact gradient, one rate, "
            r"continuous time."
        ),
        "isotropic": Hypothesis(r"$C_0=cI$ for a number $c>0$."),
    }
    least_activity = 1e-3

    # Draws ------------------------------------------------------------------------------------

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        return self._train(generator, n, isotropic=True, trainings=("flow",))

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        return {
            "gradient-flow": lambda g, n: self._train(
                g, n, isotropic=True, trainings=TRAININGS[1:]
            ),
            # A 1 × 1 matrix C is always isotropic, so here p ≥ 2.
            "isotropic": lambda g, n: self._train(
                g, n, isotropic=False, trainings=("flow",), least_p=2
            ),
        }

    def _train(
        self,
        generator: Generator,
        n: int,
        *,
        isotropic: bool,
        trainings: Sequence[str],
        least_p: int = 1,
    ) -> list[Instance]:
        """Eight groups of problems, each of one size and one kind of loss, as one batch a group."""
        groups = min(n, 8)
        instances: list[Instance] = []
        for k in range(groups):
            p, d = (int(torch.randint(low, 5, (), generator=generator)) for low in (least_p, 1))
            size = n // groups + (k < n % groups)
            training = trainings[k % len(trainings)]
            problem, F, C = _problems(generator, size, p, d, k % 2 == 1, isotropic)
            gauges = torch.stack([_rotations(generator, size, p) for _ in range(2)])
            instances += _run(problem, F, C, gauges, training)
        return instances

    # Hypotheses and conclusions ---------------------------------------------------------------

    def slack(self, instance: Instance) -> dict[str, float]:
        C = instance.C
        p = C.shape[-1]
        uneven = (C - torch.eye(p, dtype=C.dtype) * C.trace() / p).norm() / C.norm()
        return {
            "gradient-flow": 1.0 if instance.training == "flow" else -1.0,
            "isotropic": 1e-12 - float(uneven),
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        theta, G, (Wdot, Udot) = instance.theta, instance.G, instance.step
        p = instance.C.shape[-1]
        c = instance.C.trace() / p
        P, F = linear.resolvent_inverse(theta), linear.equilibrium_map(theta)
        # P F = U, so P Ḟ = U̇ + Ẇ F, whatever moves W and U.
        Fdot = torch.linalg.solve(P, Udot + Wdot @ F)
        riemannian = -grassmann.gradient(F, G) / c
        size = Fdot.norm(dim=(-2, -1))
        off = (Fdot - riemannian).norm(dim=(-2, -1)) / size
        speed = Wdot.square().sum((-2, -1)) + Udot.square().sum((-2, -1))
        ground = c * grassmann.metric(F, Fdot, Fdot)
        scale = 1 + F[0, 0].norm()
        moved = float((F[-1, 0] - F[0, 0]).norm() / scale)

        # The start knows only rounding, amplified by two solves with P and by K, K'.
        kappa = float(torch.linalg.cond(P[0]).max() * torch.linalg.cond(gram(F[0])).max())
        rounding = 100 * p * EPS * kappa**2
        gap = float((F[:, 0] - F[:, 1]).norm(dim=(-2, -1)).max() / scale)
        apart = float((F[:, 0] - instance.reduced).norm(dim=(-2, -1)).max() / scale)
        return {
            "Ḟ = −grad ℓ/c at the start": Measurement(float(off[0].max()), rounding, moved),
            "Ḟ = −grad ℓ/c along the path": Measurement(float(off.max()), PATH, moved),
            "|Ẇ|² + |U̇|² = c⟨Ḟ, Ḟ⟩": Measurement(
                float((speed / ground - 1).abs().max()), PATH, moved
            ),
            "F(t) is the Riemannian flow": Measurement(apart, PATH, moved),
            "F(t) is the same in both gauges": Measurement(gap, PATH, moved),
        }


def _rotations(generator: Generator, n: int, p: int) -> Tensor:
    normal = torch.randn(n, p, p, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(normal).Q


def _problems(
    generator: Generator, n: int, p: int, d: int, robust: bool, isotropic: bool
) -> tuple[Problem, Tensor, Tensor]:
    """Data with κ(S) up to 10⁴ and beyond, F₀ of length up to 3, and C with eigenvalues in
    [0.1, 10]."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator, dtype=torch.float64)

    scales = 10 ** (-2 * uniform(1, 1) * torch.linspace(0, 1, d, dtype=torch.float64))
    X = normal(3 * d + 2, d) * scales
    Y = X @ normal(p, d).mT * 1.5 + 0.3 * normal(3 * d + 2, p)
    F = normal(p, d)
    F = F * (3 * uniform(1, 1) / F.norm(dim=(-2, -1), keepdim=True))
    eigenvalues = 10 ** (2 * uniform(p) - 1)
    if isotropic:
        eigenvalues = eigenvalues[:, :1].expand(n, p)
    else:
        eigenvalues[:, 0], eigenvalues[:, 1] = 0.1 + eigenvalues[:, 1] / 2, eigenvalues[:, 1] + 0.2
    Q = _rotations(generator, n, p)
    return Problem(X, Y, robust), F, (Q * eigenvalues[:, None, :]) @ Q.mT


def _run(
    problem: Problem, F0: Tensor, C: Tensor, gauges: Tensor, training: str
) -> Iterator[Instance]:
    """Train n problems in two gauges each, (2, n, …), and integrate their reduced flows (n, …).

    Each problem has its own clock, in which the first speed of F covers half of 1 + ‖F₀‖ in one
    unit of time.
    """
    p = C.shape[-1]
    c = C.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    first = grassmann.gradient(F0, problem.slope(F0)) / c
    size = F0.norm(dim=(-2, -1), keepdim=True)
    clock = 0.5 * (1 + size) / first.norm(dim=(-2, -1), keepdim=True)

    def update(theta: LinearDEQ) -> LinearDEQ:
        """What W and U move against, in each problem's own clock."""
        F = linear.equilibrium_map(theta)
        G = clock * problem.slope(F)
        g = linear.gradient_from(theta, G)
        if training == "weight decay":
            return LinearDEQ(W=g.W + 0.1 * theta.W, U=g.U + 0.1 * theta.U)
        return LinearDEQ(W=2 * g.W, U=g.U) if training == "two rates" else g

    theta = grassmann.lift(F0, C, gauges)
    times = torch.linspace(0, 1, POINTS, dtype=torch.float64)
    if training == "descent":
        kept = [theta]
        for k in range(DESCENT_STEPS):
            theta = LinearDEQ(
                *(x - g / DESCENT_STEPS for x, g in zip(theta, update(theta), strict=True))
            )
            if k >= DESCENT_STEPS - POINTS + 1:
                kept.append(theta)
        path = LinearDEQ(*(torch.stack(parts) for parts in zip(*kept, strict=True)))
    else:
        path = gradient_flow(
            lambda theta: problem.loss(linear.equilibrium_map(theta)),
            theta,
            1.0,
            grad=update,
            times=times,
            rtol=RTOL,
            atol=ATOL,
            batch_ndim=2,
            dense=False,
            progress=False,
        ).theta
    reduced = gradient_flow(
        lambda state: problem.loss(state[0]),
        (F0,),
        1.0,
        grad=lambda state: (clock / c * grassmann.gradient(state[0], problem.slope(state[0])),),
        times=times,
        rtol=RTOL,
        atol=ATOL,
        batch_ndim=1,
        dense=False,
        progress=False,
    ).theta[0]
    G = clock * problem.slope(linear.equilibrium_map(path))
    moves = LinearDEQ(*(-x for x in update(path)))
    for i in range(len(C)):
        yield Instance(
            C=C[i].reshape(p, p),
            theta=LinearDEQ(path.W[:, :, i], path.U[:, :, i]),
            G=G[:, :, i],
            step=LinearDEQ(moves.W[:, :, i], moves.U[:, :, i]),
            reduced=reduced[:, i],
            training=training,
        )
