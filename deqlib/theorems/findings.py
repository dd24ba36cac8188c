"""What the book states and does not prove: laws to leading order, and what was only ever seen.

Each is drawn, measured and broken like a theorem, and each check can fail. But 200 instances are
not a proof, and the ledger keeps these apart: ``asymptotic`` is derived to leading order, without
an error bound; ``evidence`` is measured alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from deqlib import (
    activations,
    branches,
    drift,
    linear,
    noise,
    one_point,
    outer_link,
    rates,
    single_index,
)  # fmt: skip
from deqlib.dynamics import Trajectory, gradient_flow
from deqlib.linear import LinearDEQ
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems.base import Hypothesis, Instance, Measurement, Theorem
from deqlib.theorems.single_index_problems import directions, log_uniform, uniform
from deqlib.theorems.sphere_limit import random_moment, settle

Draw = Callable[[Generator, int], list[Any]]


class Finding(Theorem[Instance]):
    """A statement that is measured and not proved: its kind is ``asymptotic`` or ``evidence``."""

    where: ClassVar[str]
    """Where the book makes it, as a reference in MyST."""


# The slow law --------------------------------------------------------------------------------

EPSILONS = (0.1, 0.02, 0.004)
ORDER = 8.0
"""What "of order ε" is taken to mean on the problems drawn: a relative error of at most 8 ε,
where 6 ε is the largest that 4000 of them show."""


@dataclass(frozen=True)
class Bent:
    """A weakly nonlinear problem: inputs X (n, d), target θ* and a P away from P*.

    seen: the inputs that κ is formed with, those of the sample.
    """

    X: Tensor
    target: SingleIndexDEQ
    P: Tensor
    seen: Tensor


class SlowLaw(Finding[Bent]):
    label = "slow-law"
    title = "The slow drift along the ray"
    kind = "asymptotic"
    chapter = "15_drifting_sphere"
    where = "{prf:ref}`drift-slow-law`"
    statement = (
        r"For $\varphi(s)=s+\varepsilon\tanh s$ and small $\varepsilon$, gradient flow near the "
        r"ray of the linear model's minimisers moves by "
        r"$\dot P=-\varepsilon^2\kappa(P-P^*)/(P^3P^*)$, and the smallest eigenvalue of the "
        r"Hessian at the target is $\varepsilon^2\kappa/P^{*4}$, both up to a relative error of "
        r"order $\varepsilon$ (on what is drawn, at most $8\varepsilon$)."
    )
    hypotheses = {
        "own-sample": Hypothesis(r"$\kappa$ is formed with the inputs of the sample itself."),
    }
    open_questions = (
        "The slow law is derived to leading order. What is a bound on its error, and from which "
        r"$\varepsilon$ on does it hold ({prf:ref}`drift-slow-law`)?",
    )

    def draw(self, generator: Generator, n: int) -> list[Bent]:
        return [self._one(generator) for _ in range(n)]

    @property
    def drop(self) -> dict[str, Draw]:
        return {"own-sample": lambda g, n: [self._one(g, other=True) for _ in range(n)]}

    @staticmethod
    def _one(generator: Generator, other: bool = False) -> Bent:
        d = int(torch.randint(1, 5, (), generator=generator))
        X = single_index.random_inputs(generator, 80, d, "gaussian")
        P_star = uniform(generator, 0.7, 1.4)
        b = log_uniform(generator, 0.5, 2) * directions(generator, d)
        side = 1 if float(uniform(generator, 0, 1)) < 0.5 else -1
        P = P_star * torch.exp(side * uniform(generator, 0.1, 0.4))
        seen = single_index.random_inputs(generator, 20, d, "gaussian") if other else X
        return Bent(X, SingleIndexDEQ(1 - P_star, P_star * b), P, seen)

    def slack(self, instance: Bent) -> dict[str, float]:
        return {"own-sample": 1.0 if instance.seen is instance.X else -1.0}

    def measure(self, instance: Bent) -> dict[str, Measurement]:
        X, target, P = instance.X, instance.target, instance.P
        P_star = 1 - target.a
        kappa = drift.slow_constant(torch.tanh, target, instance.seen)
        off: dict[str, list[float]] = {"speed": [], "rate": []}
        for epsilon in EPSILONS:
            link = activations.weakly_nonlinear(epsilon)
            y = single_index.predict(link, target, X)
            low = rates.extremes(one_point.hessian(link, target, X))[0]
            rate = low * P_star**4 / (epsilon**2 * kappa)
            off["rate"].append(float((rate - 1).abs()) / epsilon)
            # What relaxes at a rate of order 1 has relaxed: w is the best one for this a.
            at = SingleIndexDEQ(1 - P, P * target.w / P_star)
            for _ in range(5):
                u = single_index.preactivation(link, at.a, single_index.index(at, X))
                rows = single_index.slope(link, at.a, u)[:, None] * X
                step = torch.linalg.lstsq(rows, (link(u) - y)[:, None]).solution[:, 0]
                at = SingleIndexDEQ(at.a, at.w - step)
            slope = single_index.gradient(link, at, X, y).a  # −dL/dP along the best w
            speed = slope / (1 + target.w.square().sum() / P_star**2)
            law = -(epsilon**2) * kappa * (P - P_star) / (P**3 * P_star)
            off["speed"].append(float((speed / law - 1).abs()) / epsilon)
        moved = float((P / P_star - 1).abs())
        return {
            f"the {name}: relative error over ε": Measurement(max(errors), ORDER, moved)
            for name, errors in off.items()
        }


# From the zero start -------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A run of training: parameters along it, and what the check reads off it.

    path : parameters (T, p, ·).
    worst: the quantity that must stay below `bound`.
    """

    path: LinearDEQ
    worst: float
    bound: float
    plain: bool = True


def _flow(theta: LinearDEQ, S: Tensor, A: Tensor, times: Tensor) -> Trajectory[LinearDEQ]:
    return gradient_flow(
        lambda at: linear.loss(at, S, A), theta, float(times[-1]), times=times,
        grad=lambda at: linear.gradient(at, S, A), rtol=1e-6, atol=1e-9, batch_ndim=1,
        progress=False,
    )  # fmt: skip


class PicardFromZero(Finding[Trained]):
    label = "picard-from-zero"
    title = "Picard's iteration along training from zero"
    kind = "evidence"
    chapter = "07_well_conditioned"
    where = "{prf:ref}`picard-zero-open`"
    statement = (
        r"Along gradient flow from $W=0$, $U=0$ with two or three outputs and any $S$, "
        r"$\rho(W(t))\le1-(1+\|A\|_2^2)^{-1/2}<1$."
    )
    hypotheses = {"zero-start": Hypothesis(r"$W_0=0$ and $U_0=0$.")}

    def draw(self, generator: Generator, n: int) -> list[Trained]:
        return self._train(generator, n, 0.0)

    @property
    def drop(self) -> dict[str, Draw]:
        # A large U₀ puts the sphere, and with it I − W at the end, far out.
        return {"zero-start": lambda generator, n: self._train(generator, n, 6.0)}

    @staticmethod
    def _train(generator: Generator, n: int, size: float) -> list[Trained]:
        found = []
        for p, count in ((2, (n + 1) // 2), (3, n // 2)):
            if not count:
                continue
            A = torch.randn(count, p, p, generator=generator, dtype=torch.float64)
            norm = uniform(generator, 0.5, 3, count)
            A = A * (norm / torch.linalg.matrix_norm(A, 2))[:, None, None]
            S = random_moment(generator, count, p, 10.0)
            eye = torch.eye(p, dtype=torch.float64)
            guess = torch.linalg.inv(rates.root(rates.gram(A.mT)))
            S = settle(S, A, LinearDEQ(eye - guess, guess @ A))
            U = (
                size
                * torch.linalg.qr(
                    torch.randn(count, p, p, generator=generator, dtype=torch.float64)
                ).Q
            )
            times = torch.cat([torch.zeros(1), torch.logspace(-3, 0.6, 25)]).double()
            run = _flow(LinearDEQ(torch.zeros_like(U), U), S, A, times)
            rho = torch.linalg.eigvals(run.theta.W).abs().amax(-1).amax(0)
            bound = 1 - (1 + norm.square()).rsqrt()
            found += [
                Trained(
                    LinearDEQ(run.theta.W[:, i], run.theta.U[:, i]), float(rho[i]), float(bound[i])
                )
                for i in range(count)
            ]
        return found

    def slack(self, instance: Trained) -> dict[str, float]:
        return {"zero-start": 1e-12 - float(instance.path.U[0].norm() + instance.path.W[0].norm())}

    def measure(self, instance: Trained) -> dict[str, Measurement]:
        N = linear.rows(instance.path)
        moved = float((N[-1] - N[0]).norm() / N[0].norm())
        # 1e-4: what the integrator's tolerance of 1e-6 may add up to.
        return {
            "ρ(W) ≤ 1 − (1 + ‖A‖²)^(−½)": Measurement(
                instance.worst, instance.bound * (1 + 1e-4), moved
            )
        }


# Links outside that saturate -----------------------------------------------------------------


class SaturatingOutside(Finding[Trained]):
    label = "saturating-outside"
    title = "A saturating link outside, beyond the cap"
    kind = "evidence"
    chapter = "15_drifting_sphere"
    where = "{ref}`sec-drift-saturating`"
    statement = (
        r"For $\hat y=\tanh(F x)$ and one output, gradient flow from a start with "
        r"$\omega_0\ge\arctan(1/|A|)$, on the target's side of $a=1$, still ends where the sphere "
        r"of the start meets the ray of minimisers."
    )
    hypotheses = {"plain-flow": Hypothesis(r"$a$ and $w$ follow $-\nabla L$, with one rate.")}

    def draw(self, generator: Generator, n: int) -> list[Trained]:
        return self._train(generator, n, 1.0)

    @property
    def drop(self) -> dict[str, Draw]:
        return {"plain-flow": lambda generator, n: self._train(generator, n, 5.0)}

    @staticmethod
    def _train(generator: Generator, n: int, rate: float) -> list[Trained]:
        X = torch.randn(n, 40, 2, generator=generator, dtype=torch.float64)
        A = (log_uniform(generator, 0.5, 1.5, n, 1) * directions(generator, n, 2))[:, None, :]
        ray = torch.cat([torch.ones(n, 1, 1).double(), A], dim=-1)[:, 0]
        ray = ray / ray.norm(dim=-1, keepdim=True)
        least = torch.atan(1 / A[:, 0].norm(dim=-1))
        start = ray.clone()
        todo = torch.ones(n, dtype=torch.bool)
        while bool(todo.any()):
            v = directions(generator, n, 3)
            v[:, 0] = v[:, 0].abs()
            angle = torch.acos((v * ray).sum(-1).clamp(-1, 1))
            new = todo & (angle > least) & (v[:, 0] > 0.05)
            start[new] = v[new]
            todo = todo & ~new
        theta = LinearDEQ(1 - start[:, :1, None], start[:, None, 1:])
        tanh, Y = activations.tanh, torch.tanh(X @ A.mT)

        def field(at: LinearDEQ) -> LinearDEQ:
            g = outer_link.gradient(tanh, at, X, Y)
            return LinearDEQ(rate * g.W, g.U)

        run = gradient_flow(
            lambda at: outer_link.loss(tanh, at, X, Y), theta, 60.0, grad=field, batch_ndim=1,
            rtol=1e-7, progress=False, times=torch.tensor([0.0, 60.0], dtype=torch.float64),
        )  # fmt: skip
        miss = (linear.rows(run.theta)[-1, :, 0] - ray).norm(dim=-1)
        return [
            Trained(
                LinearDEQ(run.theta.W[:, i], run.theta.U[:, i]), float(miss[i]), 1e-5, rate == 1
            )
            for i in range(n)
        ]

    def slack(self, instance: Trained) -> dict[str, float]:
        return {"plain-flow": 1.0 if instance.plain else -1.0}

    def measure(self, instance: Trained) -> dict[str, Measurement]:
        N = linear.rows(instance.path)
        moved = float((N[-1] - N[0]).norm() / N[0].norm())
        return {"‖N(60) − N_∞‖/r": Measurement(instance.worst, instance.bound, moved)}


# Beyond the edge -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Walk:
    """Distances to the target (STEPS + 1) of a descent on the outer branch, and its noise."""

    distance: Tensor
    noise: float


class ArrivalBeyond(Finding[Walk]):
    label = "arrival-beyond"
    title = "Descent from beyond the edge arrives"
    kind = "evidence"
    chapter = "14_outside_the_ball"
    where = "{ref}`sec-branch-train`"
    statement = (
        r"For tanh, starts with $1<a_0<3$ on the outer branch, a target with $a^*<\frac12$ and the "
        r"step $1/\lambda_{\max}(Q)$, descent comes to a hundredth of its first distance within "
        r"3000 steps."
    )
    hypotheses = {"realisable": Hypothesis(r"$y$ is the equilibrium of the target.")}
    steps: ClassVar[int] = 3000

    def draw(self, generator: Generator, n: int) -> list[Walk]:
        return self._descend(generator, n, 0.0)

    @property
    def drop(self) -> dict[str, Draw]:
        return {"realisable": lambda generator, n: self._descend(generator, n, 0.5)}

    def _descend(self, generator: Generator, n: int, size: float) -> list[Walk]:
        tanh = activations.tanh
        X = torch.randn(n, 40, 1, generator=generator, dtype=torch.float64)
        target = SingleIndexDEQ(
            uniform(generator, -0.5, 0.5, n), log_uniform(generator, 1, 3, n, 1)
        )
        a, w = uniform(generator, 1, 3, n), log_uniform(generator, 0.1, 1, n, 1)
        v = single_index.preactivation(tanh, target.a[:, None], single_index.index(target, X))
        xi = size * torch.randn(n, 40, generator=generator, dtype=torch.float64)
        y, here, star = (
            torch.tanh(v) + xi,
            torch.cat([a[:, None], w], -1),
            single_index.flat(target),
        )
        found = [(here - star).norm(dim=-1)]
        for _ in range(self.steps):
            theta = single_index.unflat(here)
            u = branches.outer_branch(tanh, theta.a[:, None], single_index.index(theta, X))
            D = single_index.slope(tanh, theta.a[:, None], u)
            g = single_index.flat(single_index.pull_back(D, torch.tanh(u), X, y))
            Q = branches.one_point_matrix(tanh, theta, target, X, u, v)
            here = here - g / torch.linalg.eigvalsh(Q)[:, -1:]
            found.append((here - star).norm(dim=-1))
        distance = torch.stack(found, dim=1)
        return [Walk(one, size) for one in distance]

    def slack(self, instance: Walk) -> dict[str, float]:
        return {"realisable": 1.0 if instance.noise == 0 else -1.0}

    def measure(self, instance: Walk) -> dict[str, Measurement]:
        left = float(instance.distance.min() / instance.distance[0])
        return {"‖δ_3000‖/‖δ_0‖": Measurement(left, 0.01, 1.0)}


# Many noisy samples --------------------------------------------------------------------------


@dataclass(frozen=True)
class Noisy:
    """Fits to many draws of the noise on one sample.

    ratio : mean ‖θ̂ − θ*‖² to σ² tr H⁻¹/n; NaN where a fit did not converge.
    spread: its standard error, from the predicted law.
    """

    ratio: float
    spread: float
    independent: bool


class NoiseLevel(Finding[Noisy]):
    label = "noise-level"
    title = "The mean square error of a noisy fit"
    kind = "asymptotic"
    chapter = "16_samples_and_noise"
    where = "{prf:ref}`noise-asymptotics`"
    statement = (
        r"With independent noise of variance $\sigma^2$ on $n$ labels, the mean square of "
        r"$\|\hat\theta-\theta^*\|$ is $\sigma^2\operatorname{tr}H^{-1}/n$ up to terms of higher "
        r"order (checked for a smooth leaky ReLU, $\sigma=0.05$, $n=100$)."
    )
    hypotheses = {"independent": Hypothesis("The noise is independent from sample to sample.")}
    open_questions = (
        "The leading term of the error of a noisy fit is proved. What bounds the mean of its "
        "square? Rare fits lie far away, and for tanh they are seen "
        "({doc}`/notebooks/16_samples_and_noise`).",
    )

    def draw(self, generator: Generator, n: int) -> list[Noisy]:
        return [self._fits(generator, True) for _ in range(n)]

    @property
    def drop(self) -> dict[str, Draw]:
        return {"independent": lambda g, n: [self._fits(g, False) for _ in range(n)]}

    @staticmethod
    def _fits(generator: Generator, independent: bool, runs: int = 100, n: int = 100) -> Noisy:
        link, sigma = activations.smooth_leaky_relu(0.2), 0.05
        target = SingleIndexDEQ(
            uniform(generator, -0.5, 0.5), log_uniform(generator, 0.5, 2) * directions(generator, 2)
        )
        X = single_index.random_inputs(generator, n, 2, "gaussian")
        many = SingleIndexDEQ(target.a.expand(runs), target.w.expand(runs, 2))
        shape = (runs, n) if independent else (runs, 1)
        xi = sigma * torch.randn(shape, generator=generator, dtype=torch.float64)
        y = single_index.predict(link, target, X) + xi.expand(runs, n)
        fits = noise.fit(link, X.expand(runs, n, 2), y, many, tol=1e-6)
        V = torch.linalg.inv(one_point.hessian(link, target, X))
        away = single_index.distance(fits.theta, many).square()
        error = torch.where(fits.converged, away, torch.nan).mean()
        # A squared length of a normal vector with covariance V has the variance 2 tr V².
        spread = (2 * torch.trace(V @ V) / runs).sqrt() / torch.trace(V)
        ratio = error * n / (sigma**2 * torch.trace(V))
        return Noisy(float(ratio), float(spread), independent)

    def slack(self, instance: Noisy) -> dict[str, float]:
        return {"independent": 1.0 if instance.independent else -1.0}

    def measure(self, instance: Noisy) -> dict[str, Measurement]:
        # Five standard errors of the mean over the runs, and what is of higher order in σ.
        bound = 5 * instance.spread + 0.05
        return {
            "mean ‖θ̂ − θ*‖² to σ² tr H⁻¹/n, less 1": Measurement(
                abs(instance.ratio - 1), bound, instance.ratio
            ),
        }


FINDINGS: dict[str, Finding[Any]] = {
    finding.label: finding
    for finding in (
        PicardFromZero(),
        ArrivalBeyond(),
        SlowLaw(),
        SaturatingOutside(),
        NoiseLevel(),
    )
}
"""Every finding by its label, in the order of the book."""
