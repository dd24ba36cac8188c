"""Theorem `sphere-limit`: with one output, where gradient flow ends and how its angle shrinks.

For p = 1 the parameters are one vector N = (P, u), P = 1 − a, of constant length r. The minimisers
form the ray through n* = sign(P₀)(1, A)/√(1 + |A|²). ω is the angle between N and n*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from deqlib import linear, rates
from deqlib.dynamics import gradient_flow
from deqlib.linear import LinearDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem

RTOL, ATOL = 1e-10, 1e-13
TOLERANCE = 1e-6
"""What the integrator's tolerance of 1e-10 a step may add up to over some thousands of steps."""
END = 25.0
"""Length of a run; time is scaled so that the loss ends as e^(−2t), see `settle`."""
WIDTH = 5
"""All problems are integrated as one batch, filled up with inputs that are always 0."""


@dataclass(frozen=True)
class Instance:
    """One problem, the path of its training and the points of the ray to measure from.

    start, path : parameters (p, ·) and (T, p, ·); t (T,) the times.
    towards     : (K,) values of P* of minimisers (1 − P*, P* A), relative to sign(P₀) r.
    rate        : how much faster W learns than U: 1 for gradient flow.
    curved      : the loss is E[½e² + log cosh e] in place of E[½e²], e = z − A x.
    """

    start: LinearDEQ
    S: Tensor
    A: Tensor
    t: Tensor
    path: LinearDEQ
    towards: Tensor
    rate: float = 1.0
    curved: bool = False


def flow(
    theta: LinearDEQ,
    S: Tensor,
    A: Tensor,
    times: Tensor,
    *,
    rate: float = 1.0,
    curved: bool = False,
) -> LinearDEQ:
    """Gradient flow of a batch of problems (n, …) at the given times: parameters (T, n, …)."""
    # A sample of d inputs with second moment S: the rows of √d S^½.
    X = rates.root(S) * S.shape[-1] ** 0.5

    def field(at: LinearDEQ) -> LinearDEQ:
        if not curved:
            g = linear.gradient(at, S, A)
        else:
            R = linear.equilibrium_map(at) - A
            bend = torch.tanh(R @ X.mT) @ X / S.shape[-1]
            g = linear.gradient_from(at, R @ S + bend)
        return LinearDEQ(rate * g.W, g.U)

    return gradient_flow(
        lambda at: linear.loss(at, S, A), theta, float(times[-1]), grad=field, times=times,
        rtol=RTOL, atol=ATOL, batch_ndim=1,
    ).theta  # fmt: skip


def settle(S: Tensor, A: Tensor, limit: LinearDEQ) -> Tensor:
    """S scaled so that near ``limit`` the loss decays as e^(−2t): the slowest rate is 1.

    A factor on S is a factor on time and changes no path.
    """
    return S / rates.hessian_spectrum(limit, S, A)[0][..., None, None]


def random_moment(generator: Generator, n: int, d: int, condition: float) -> Tensor:
    """n random S (n, d, d) with log-uniform condition numbers in [1, ``condition``]."""
    Q = torch.linalg.qr(torch.randn(n, d, d, generator=generator, dtype=torch.float64)).Q
    size = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    steps = torch.rand(n, d, generator=generator, dtype=torch.float64)
    # Relative to the largest, so that the condition number is what was drawn.
    steps = (steps - steps.amin(1, keepdim=True)) / (
        steps.amax(1, keepdim=True) - steps.amin(1, keepdim=True)
    ).clamp_min(1e-12)
    return (Q * (condition ** (size * steps))[:, None, :]) @ Q.mT


def restrict(S: Tensor, used: Tensor) -> Tensor:
    """S (n, d, d) of the inputs in ``used`` (n, 1, d) alone; the others get variance 1."""
    return S * used * used.mT + torch.diag_embed(1 - used[:, 0])


def blind(S: Tensor, used: Tensor) -> Tensor:
    """S with the weakest direction among the inputs in ``used`` lost: its variance becomes 0."""
    values, vectors = torch.linalg.eigh(S)
    inside = (vectors * used.mT).square().sum(-2) > 0.5
    weakest = torch.where(inside, values, torch.inf).argmin(-1, keepdim=True)
    return (vectors * values.scatter(-1, weakest, 0.0)[:, None, :]) @ vectors.mT


def sizes(generator: Generator, n: int, low: float, high: float) -> Tensor:
    """n log-uniform numbers in [low, high]."""
    u = torch.rand(n, generator=generator, dtype=torch.float64)
    return low * (high / low) ** u


def angle_rate(theta: LinearDEQ, S: Tensor, A: Tensor) -> Tensor:
    """c = λ_min(S)√(1 + |A|²)/r², with r² = P² + |u|²: tan(ω/2) decays at least as e^(−ct)."""
    r2 = linear.invariant(theta)[..., 0, 0]
    return rates.extremes(S)[0] * (1 + A.square().sum((-2, -1))).sqrt() / r2


class SphereLimit(Theorem[Instance]):
    label = "sphere-limit"
    title = "One output: the limit in closed form"
    kind = "rate"
    chapter = "07_well_conditioned"
    statement = (
        r"For $p=1$ and $a_0\ne1$, gradient flow converges to $a_\infty=1-P_\infty$, "
        r"$u_\infty=P_\infty A$ with $P_\infty=\operatorname{sign}(1-a_0)\,r/\sqrt{1+|A|^2}$ and "
        r"$r^2=(1-a_0)^2+|u_0|^2$; its angle $\omega$ to the ray of minimisers satisfies "
        r"$\tan\frac\omega2\le e^{-ct}\tan\frac{\omega_0}2$ with "
        r"$c=\lambda_{\min}(S)\sqrt{1+|A|^2}/r^2$, and its distance to every minimiser on its "
        r"side of $a=1$ decreases."
    )
    hypotheses = {
        "one-output": Hypothesis(r"$p=1$: the state is one number."),
        "plain-flow": Hypothesis(r"$(a,u)$ follow gradient flow, with one rate for both."),
        "full-rank": Hypothesis(r"$S=\mathbb E[xx^\top]$ is invertible."),
        "same-side": Hypothesis(r"The minimiser lies on the start's side of $a=1$."),
        "squared-loss": Hypothesis(
            r"The loss is $\frac12\mathbb E(z-Ax)^2$ (or any other with at least its slopes).",
            necessary=False,
        ),
    }
    least_activity = 1e-3
    times = torch.cat([torch.zeros(1), torch.logspace(-7, 0, 70)]).double() * END

    # Draws ------------------------------------------------------------------------------------

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        return self._run(generator, n)

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        def turned(generator: Generator, n: int) -> list[Instance]:
            return [replace(one, towards=-one.towards) for one in self.draw(generator, n)]

        return {
            "one-output": lambda generator, n: self._run(generator, n, p=2),
            "plain-flow": lambda generator, n: self._run(generator, n, rate=3.0),
            "full-rank": lambda generator, n: self._run(generator, n, singular=True),
            "same-side": turned,
            "squared-loss": lambda generator, n: self._run(generator, n, curved=True),
        }

    def _run(
        self,
        generator: Generator,
        n: int,
        *,
        p: int = 1,
        rate: float = 1.0,
        singular: bool = False,
        curved: bool = False,
    ) -> list[Instance]:
        """n problems with 1 to 5 inputs, integrated as one batch.

        Every sixth starts at u = 0 with S = I, where the rate is attained.
        """
        least = 1 if p == 1 and not singular else 2
        d = torch.randint(least, WIDTH + 1, (n,), generator=generator)
        used = (torch.arange(WIDTH) < d[:, None]).double()[:, None, :]
        special = (torch.arange(n) % 6 == 5) & (p == 1) & (not singular) & (rate == 1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        length = sizes(generator, n, 0.2, 2.0)[:, None, None]
        A = normal(n, p, WIDTH) * used
        A = A / torch.linalg.matrix_norm(A, 2)[:, None, None] * length
        # Orthogonal, with one singular value up to twice the others.
        Q = torch.linalg.qr(normal(n, p, p)).Q * normal(n, 1, 1).sign()
        stretch = 1 + torch.rand(n, p, generator=generator, dtype=torch.float64)
        P = stretch[:, :, None] * Q * sizes(generator, n, 0.05, 1.0)[:, None, None]
        U = normal(n, p, WIDTH) * used * sizes(generator, n, 0.1, 2.0)[:, None, None]
        U = torch.where(special[:, None, None], 0.0, U)
        theta = LinearDEQ(torch.eye(p, dtype=P.dtype) - P, U)

        S = random_moment(generator, n, WIDTH, 10.0 if p == 1 else 2.0)
        S = restrict(S, used)
        S = torch.where(special[:, None, None], torch.eye(WIDTH, dtype=S.dtype), S)
        S = settle(S, A, self.limit(theta, A))
        if singular:
            S = blind(S, used)
        path = flow(theta, S, A, self.times, rate=rate, curved=curved)
        towards = torch.tensor([0.1, 0.5, 1.0, 2.0, 10.0], dtype=torch.float64)
        return [
            Instance(
                start=LinearDEQ(theta.W[i], theta.U[i, :, :k]),
                S=S[i, :k, :k],
                A=A[i, :, :k],
                t=self.times,
                path=LinearDEQ(path.W[:, i], path.U[:, i, :, :k]),
                towards=towards,
                rate=rate,
                curved=curved,
            )
            for i, k in enumerate(d.tolist())
        ]

    @staticmethod
    def limit(theta: LinearDEQ, A: Tensor) -> LinearDEQ:
        """The closed form; for p > 1, what it would be if the orthogonal factor O of
        P = C^½ O (I + FFᵀ)^(−½) did not turn on the way (for p = 1 it is the sign of P)."""
        if A.shape[-2] == 1:
            return linear.sphere_limit(theta, A)
        half, F = rates.root(linear.invariant(theta)), linear.equilibrium_map(theta)
        before = linear.resolvent_inverse(theta) @ rates.root(rates.gram(F.mT))  # C^½ O
        turn = torch.linalg.solve(half, before)
        P = torch.linalg.solve(rates.root(rates.gram(A.mT)), (half @ turn).mT).mT
        return LinearDEQ(torch.eye(P.shape[-1], dtype=P.dtype) - P, P @ A)

    # Hypotheses and conclusions ---------------------------------------------------------------

    def slack(self, instance: Instance) -> dict[str, float]:
        low, high = rates.extremes(instance.S)
        return {
            "one-output": 1.5 - instance.A.shape[0],
            "plain-flow": 1.0 if instance.rate == 1 else -1.0,
            "full-rank": float(low / high) - 1e-10,
            "same-side": float(instance.towards.min()),
            "squared-loss": -1.0 if instance.curved else 1.0,
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        start, A, S = instance.start, instance.A, instance.S
        N = linear.rows(instance.path)
        r = float(N[0].norm())
        target = linear.rows(self.limit(start, A))
        moved = float((N - N[0]).flatten(1).norm(dim=1).max()) / r
        at_end = float((N[-1] - target).norm()) / r
        conclusions = {"N(t) → N_∞": Measurement(at_end, TOLERANCE, moved)}
        if A.shape[0] > 1:
            return conclusions

        n_star = target[0] / target[0].norm()
        unit = N[:, 0] / N[:, 0].norm(dim=1, keepdim=True)
        # tan(ω/2) = |v − n*|/|v + n*| for unit vectors: exact for small angles too.
        tangent = (unit - n_star).norm(dim=1) / (unit + n_star).norm(dim=1)
        c = float(angle_rate(start, S, A))
        # Very early, and below 1e-6, the integrator's error is a visible part of the exponent.
        seen = (tangent > 1e-6) & (instance.t > 1e-4 * END)
        exponent = float((-(tangent[seen] / tangent[0]).log() / instance.t[seen]).min())

        toward_ray = instance.towards[:, None] * n_star * r
        distance = (N[:, 0, None, :] - toward_ray).norm(dim=-1)
        rise = float((distance[1:] - distance[:-1]).max()) / r

        # ⟨∇L, N − N*⟩ = (P*/P)·⟨G, F − A⟩ at the start, with the gradient as deqlib computes it.
        g = linear.gradient(start, S, A)
        slope = torch.cat([-g.W, g.U], dim=-1)[0] @ (N[0, 0] - toward_ray).mT
        exact = toward_ray[:, 0] / N[0, 0, 0] * 2 * linear.loss(start, S, A)
        gap = float(((slope - exact) / exact).abs().max())
        return {
            **conclusions,
            "tan(ω/2) ≤ e^(−ct) tan(ω₀/2)": Measurement(
                exponent, c * (1 - TOLERANCE), moved, lower=True
            ),
            "the angle only decreases": Measurement(
                float((tangent[1:] - tangent[:-1]).max() / tangent[0]), TOLERANCE, moved
            ),
            "every distance to the ray decreases": Measurement(rise, TOLERANCE, moved),
            "⟨∇L, N − N*⟩ = (P*/P)·2L": Measurement(gap, TOLERANCE, moved),
        }
