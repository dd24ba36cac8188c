"""Theorem `picard-safe`: with one output, from which starts the forward iteration keeps converging.

For p = 1 Picard's iteration z ← a z + u·x converges if and only if |a| < 1, that is 0 < P < 2 with
P = 1 − a. The conserved radius r and the angle that only decreases bound P during training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from deqlib import linear, rates
from deqlib.fixed_point import solve
from deqlib.linear import LinearDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.sphere_limit import (
    END,
    TOLERANCE,
    WIDTH,
    SphereLimit,
    blind,
    flow,
    random_moment,
    restrict,
    settle,
    sizes,
)

ACCURACY = 1e-6
"""Residual at which the forward iteration stops, relative to the first."""
HOPELESS = 60
"""Evaluations that are granted where ρ(W) reaches 1 on the way: the residual then only grows."""


def reach(theta: LinearDEQ, A: Tensor) -> Tensor:
    """r cos((arctan|A| − ω₀)₊): for one output, |1 − a| never grows beyond it.

    r is the length of N₀ = (1 − a₀, u₀) and ω₀ its angle to the ray of minimisers on its side.
    """
    N = linear.rows(theta)[..., 0, :]
    towards = linear.rows(linear.sphere_limit(theta, A))[..., 0, :]
    unit, n_star = (v / v.norm(dim=-1, keepdim=True) for v in (N, towards))
    omega = 2 * torch.atan2((unit - n_star).norm(dim=-1), (unit + n_star).norm(dim=-1))
    ahead = (A.norm(dim=(-2, -1)).atan() - omega).clamp_min(0)
    return N.norm(dim=-1) * ahead.cos()


def length_bound(theta: LinearDEQ, S: Tensor, A: Tensor) -> Tensor:
    """√(2L₀/μ): the path of (W, U) under gradient flow is no longer, for any p and any start.

    μ = λ/λ_max(C) with the smallest positive eigenvalue λ of S.
    """
    values = torch.linalg.eigvalsh(S)
    positive = torch.where(values > 1e-10 * values[..., -1:], values, torch.inf)
    mu = positive.amin(-1) / rates.extremes(linear.invariant(theta))[1]
    return (2 * linear.loss(theta, S, A) / mu).sqrt()


@dataclass(frozen=True)
class Instance:
    """One problem and the path of its training: parameters (T, p, ·) at the times t (T,)."""

    S: Tensor
    A: Tensor
    t: Tensor
    path: LinearDEQ
    rate: float = 1.0

    @property
    def start(self) -> LinearDEQ:
        return LinearDEQ(self.path.W[0], self.path.U[0])


def example(dtype: torch.dtype = torch.float64) -> tuple[LinearDEQ, Tensor, Tensor]:
    """Two outputs, λ_max(C) < 4, ρ(W₀) = 0.58; training ends at ρ(W) = 1.9: (θ₀, S, A)."""
    W = torch.tensor([[0.7, -0.6], [0.1, 0.4]], dtype=dtype)
    U = torch.tensor([[0.6], [1.6]], dtype=dtype)
    return LinearDEQ(W, U), torch.eye(1, dtype=dtype), torch.tensor([[0.0], [-7.0]], dtype=dtype)


class PicardSafe(Theorem[Instance]):
    label = "picard-safe"
    title = "One output: training that keeps Picard convergent"
    kind = "bound"
    chapter = "07_well_conditioned"
    statement = (
        r"Let $p=1$, $a_0<1$, $r^2=(1-a_0)^2+|u_0|^2$ and $\omega_0$ the angle of "
        r"$(1-a_0,u_0)$ to $(1,A)$. If $r\cos\big((\arctan|A|-\omega_0)_+\big)<2$, for instance if "
        r"$r<2$, then $|a(t)|<1$ along the whole gradient flow and in its limit: Picard's "
        r"iteration converges throughout training."
    )
    hypotheses = {
        "one-output": Hypothesis(r"$p=1$ (for $p\ge2$: $\lambda_{\max}(C)<4$ and $\rho(W_0)<1$)."),
        "below-one": Hypothesis(r"$a_0<1$."),
        "radius": Hypothesis(r"$r\cos\big((\arctan|A|-\omega_0)_+\big)<2$."),
        "plain-flow": Hypothesis(r"$(a,u)$ follow gradient flow, with one rate for both."),
        "full-rank": Hypothesis(r"$S=\mathbb E[xx^\top]$ is invertible.", necessary=False),
    }
    open_questions = (
        r"With $p\ge2$ and inputs that are not isotropic, is $\rho(W(t))<1$ along the whole "
        "flow from $W=0$, $U=0$? A search found no violation ({prf:ref}`picard-zero-open`).",
    )
    least_activity = 1e-4
    times = torch.cat([torch.zeros(1), torch.logspace(-5, 0, 40)]).double() * END / 2

    # Draws ------------------------------------------------------------------------------------

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        return self._run(generator, n, mixed)

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        return {
            "one-output": self._two_outputs,
            "below-one": lambda generator, n: self._run(generator, n, safe, side=-1.0),
            "radius": lambda generator, n: self._run(generator, n, too_long),
            "plain-flow": lambda generator, n: self._run(generator, n, low_and_long, rate=10.0),
            "full-rank": lambda generator, n: self._run(generator, n, safe, singular=True),
        }

    def _run(
        self,
        generator: Generator,
        n: int,
        wanted: Callable[[LinearDEQ, Tensor], Tensor],
        *,
        side: float = 1.0,
        rate: float = 1.0,
        singular: bool = False,
    ) -> list[Instance]:
        """n problems of 1 to 5 inputs whose start and target are ``wanted``, in one batch."""
        d = torch.randint(2 if singular else 1, WIDTH + 1, (n,), generator=generator)
        used = (torch.arange(WIDTH) < d[:, None]).double()[:, None, :]
        many = 2000  # candidates for each problem; the first one that is wanted is taken

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def unit(v: Tensor) -> Tensor:
            return v / v.norm(dim=-1, keepdim=True)

        A = unit(normal(n, many, 1, WIDTH) * used[:, None])
        A = A * sizes(generator, n * many, 0.05, 5.0).reshape(n, many, 1, 1)
        n_star = unit(torch.cat([torch.ones(n, many, 1, 1, dtype=A.dtype), A], dim=-1))
        # N₀ at an angle of up to 90° from n*, in a random direction.
        across = torch.cat([normal(n, many, 1, 1), normal(n, many, 1, WIDTH) * used[:, None]], -1)
        across = unit(across - (across * n_star).sum(-1, keepdim=True) * n_star)
        omega = math.pi / 2 * torch.rand(n, many, 1, 1, generator=generator, dtype=A.dtype)
        N = (omega.cos() * n_star + omega.sin() * across) * sizes(
            generator, n * many, 0.3, 6.0
        ).reshape(n, many, 1, 1)
        candidates = LinearDEQ(1 - N[..., :1], N[..., 1:])
        first = wanted(candidates, A).double().argmax(dim=1)
        pick = torch.arange(n)
        A, N = A[pick, first], side * N[pick, first]
        theta = LinearDEQ(1 - N[..., :1], N[..., 1:])
        S = restrict(random_moment(generator, n, WIDTH, 10.0), used)
        S = settle(S, A, SphereLimit.limit(theta, A))
        if singular:
            S = blind(S, used)
        path = flow(theta, S, A, self.times, rate=rate)
        return [
            Instance(
                S=S[i, :k, :k],
                A=A[i, :, :k],
                t=self.times,
                path=LinearDEQ(path.W[:, i], path.U[:, i, :, :k]),
                rate=rate,
            )
            for i, k in enumerate(d.tolist())
        ]

    def _two_outputs(self, generator: Generator, n: int) -> list[Instance]:
        """`example` with every entry changed by up to two per cent."""

        def near(v: Tensor) -> Tensor:
            noise = torch.rand(n, *v.shape, generator=generator, dtype=v.dtype)
            return v * (1 + 0.02 * (2 * noise - 1))

        theta, S, A = example()
        theta, S, A = LinearDEQ(near(theta.W), near(theta.U)), S.expand(n, 1, 1), near(A)
        times = torch.linspace(0, 0.25, 11, dtype=torch.float64)
        path = flow(theta, S, A, times)
        return [
            Instance(S[i], A[i], times, LinearDEQ(path.W[:, i], path.U[:, i])) for i in range(n)
        ]

    # Hypotheses and conclusions ---------------------------------------------------------------

    def slack(self, instance: Instance) -> dict[str, float]:
        low, high = rates.extremes(instance.S)
        start = instance.start
        if instance.A.shape[0] == 1:
            below, radius = 1 - float(start.W), 2 - float(reach(start, instance.A))
        else:
            below = 1 - float(torch.linalg.eigvals(start.W).abs().max())
            radius = 4 - float(rates.extremes(linear.invariant(start))[1])
        return {
            "one-output": 1.5 - instance.A.shape[0],
            "below-one": below,
            "radius": radius,
            "plain-flow": 1.0 if instance.rate == 1 else -1.0,
            "full-rank": float(low / high) - 1e-10,
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        start, path, A = instance.start, instance.path, instance.A
        p = A.shape[0]
        rho = torch.linalg.eigvals(path.W).abs().amax(-1)
        N = linear.rows(path)
        moved = float((N - N[0]).flatten(1).norm(dim=1).max() / N[0].norm())

        # The forward pass at every record, for an input with U x = (1, …, 1).
        forced = torch.ones(len(rho), p, dtype=A.dtype)
        most = float(rho.max())
        count = 1 + math.ceil(math.log(ACCURACY) / math.log(most)) if most < 0.99 else HOPELESS
        done = solve(
            lambda z: (path.W @ z[..., None])[..., 0] + forced,
            torch.zeros_like(forced),
            method="picard", tol=1e-15, atol=ACCURACY, max_iter=count + 2, throw=False,
        )  # fmt: skip
        failed = float((~done.converged).sum())
        length = float((path.W - path.W[0]).flatten(1).norm(dim=1).max())
        conclusions = {
            "ρ(W(t)) < 1": Measurement(most, 1.0, moved),
            "fewer than one forward pass fails": Measurement(failed, 0.5, moved),
            "‖W(t) − W₀‖ ≤ √(2L₀/μ)": Measurement(
                length, float(length_bound(start, instance.S, A)) * (1 + TOLERANCE), moved
            ),
        }
        if p > 1:
            return conclusions
        P = 1 - path.W[:, 0, 0]
        return {
            **conclusions,
            "P(t) ≤ r cos((arctan|A| − ω₀)₊)": Measurement(
                float(P.max()), float(reach(start, A)) * (1 + TOLERANCE), moved
            ),
            "P(t) > 0": Measurement(float(P.min()), 0.0, moved, lower=True),
            "evaluations ≤ 1 + ⌈log ε/log max|a|⌉": Measurement(
                float(done.iterations.max()), float(count), moved
            ),
        }


def safe(theta: LinearDEQ, A: Tensor) -> Tensor:
    """Hypotheses 2 and 3, with a distance from their edges (|a| near 1 needs many iterations)."""
    P, r = 1 - theta.W[..., 0, 0], linear.rows(theta)[..., 0, :].norm(dim=-1)
    ends = r / (1 + A.square().sum((-2, -1))).sqrt()
    return (reach(theta, A) < 1.97) & (P / r > 0.1) & (P > 0.03) & (ends > 0.03)


def mixed(theta: LinearDEQ, A: Tensor) -> Tensor:
    """As `safe`; every third with r > 2, where the angle is needed."""
    every_third = torch.arange(len(A))[:, None] % 3 == 2
    far = linear.rows(theta)[..., 0, :].norm(dim=-1) > 2.05
    return safe(theta, A) & (far | ~every_third)


def too_long(theta: LinearDEQ, A: Tensor) -> Tensor:
    """A start below a = 1 on a sphere whose minimiser lies below a = −1."""
    P, r = 1 - theta.W[..., 0, 0], linear.rows(theta)[..., 0, :].norm(dim=-1)
    return (r > 2.1 * (1 + A.square().sum((-2, -1))).sqrt()) & (P / r > 0.1)


def low_and_long(theta: LinearDEQ, A: Tensor) -> Tensor:
    """Safe for gradient flow, but with a long u and a small A: P has room to grow."""
    u = theta.U[..., 0, :].norm(dim=-1)
    return safe(theta, A) & (u > 1.0) & (A.norm(dim=(-2, -1)) < 0.5)
