"""Theorem `approximate-backward`: a truncated or damped adjoint keeps the law and the curve."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from deqlib import linear, rates
from deqlib.dynamics import gradient_flow
from deqlib.linear import LinearDEQ
from deqlib.theorems import flow_rate
from deqlib.theorems.base import Hypothesis, Measurement, Theorem

EPS = torch.finfo(torch.float64).eps
RTOL, ATOL = 1e-9, 1e-12
RECORDS = 41
SCHEMES: dict[str, tuple[int, float]] = {
    "JFB": (1, 1.0),
    "two terms": (2, 1.0),
    "three terms": (3, 1.0),
    "damped, two": (2, 0.5),
    "damped, five": (5, 0.5),
}
"""name ↦ (m, λ): how many steps of the adjoint iteration, and how much of each is taken."""


class Clocked(NamedTuple):
    """A linear DEQ with a clock: the third part τ (*batch) integrates what is asked of it."""

    W: Tensor
    U: Tensor
    tau: Tensor


def approximate_adjoint(theta: LinearDEQ, G: Tensor, m: Tensor, lam: Tensor) -> Tensor:
    """m steps of v ← (1 − λ) v + λ (G + Wᵀ v) from v = 0: an inexact solution of v = G + Wᵀ v.

    JFB is m = 1, the Neumann series of m terms λ = 1. m and λ have the batch shape of theta.
    """
    v = torch.zeros_like(G)
    lam = lam[..., None, None]
    for j in range(int(m.max())):
        onward = (1 - lam) * v + lam * (G + theta.W.mT @ v)
        v = torch.where((j < m)[..., None, None], onward, v)
    return v


def positivity(theta: LinearDEQ, m: Tensor, lam: Tensor) -> Tensor:
    """c = λ_min(sym χ(P)) of χ(P) = I − (I − λP)^m, of shape (*batch)."""
    P = linear.resolvent_inverse(theta)
    eye = torch.eye(P.shape[-1], dtype=P.dtype).expand_as(P)
    left = eye - lam[..., None, None] * P
    power = eye
    for j in range(int(m.max())):
        power = torch.where((j < m)[..., None, None], power @ left, power)
    chi = eye - power
    return rates.extremes((chi + chi.mT) / 2)[0]


def step_direction(
    theta: LinearDEQ, S: Tensor, A: Tensor, m: Tensor, lam: Tensor, *, exact: bool = True
) -> LinearDEQ:
    """(q Fᵀ, q) with the approximate adjoint q: what the weights move against."""
    F = linear.equilibrium_map(theta) if exact else theta.U  # one Picard step
    q = approximate_adjoint(theta, (F - A) @ S, m, lam)
    return LinearDEQ(q @ F.mT, q)


@dataclass(frozen=True)
class Instance:
    """A start, a problem, a scheme (m, λ), and the record of its run to time t_end.

    clock : ∫ c₊ dt up to the end, c = `positivity`; least : the smallest c on the records.
    """

    theta: LinearDEQ
    S: Tensor
    A: Tensor
    m: int
    lam: float
    t_end: float
    end: LinearDEQ
    clock: float
    least: float
    steps: int
    exact: bool = True
    euler: bool = False


class ApproximateBackward(Theorem[Instance]):
    label = "approximate-backward"
    title = "Approximate backward passes"
    kind = "rate"
    chapter = "09_every_step"
    statement = (
        r"With the adjoint $q=\chi(P)^\top P^{-\top}G$, $\chi(P)=I-(I-\lambda P)^m$, the flow "
        r"keeps $C$, and $L(t)\le e^{-2\mu\int c}L_0$ with $c=\lambda_{\min}(\mathrm{sym}\,"
        r"\chi(P))$; for one output it runs along the curve of the exact flow."
    )
    hypotheses = {
        "positive": Hypothesis(
            r"$\mathrm{sym}\,\chi(P(t))\succ0$ along the path (for the decay of the loss)."
        ),
        "exact-forward": Hypothesis("The forward pass returns the equilibrium."),
        "continuous-time": Hypothesis("Time is continuous."),
    }
    open_questions = (
        r"For $p\ge2$, from which starts does descent with the Jacobian-free adjoint converge "
        "({doc}`/notebooks/09_every_step`)?",
    )
    least_activity = 1e-4

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        return _positive(self._anywhere, generator, n)

    @staticmethod
    def _anywhere(generator: Generator, n: int) -> list[Instance]:
        """Runs of all sizes and schemes in turn, on most of which sym χ stays positive."""
        found: list[Instance] = []
        sizes = [(1, 1), (1, 4), (2, 2), (3, 2), (2, 5)]
        groups = len(sizes) + 1
        count = len(range(len(sizes), n, groups))
        if count:
            found += _run(*_slowest(generator, count), 3.0, *_schemes(count, 0, ("two terms",)))
        for index, (p, d) in enumerate(sizes):
            count = len(range(index, n, groups))
            if count:
                start, S, A = _problems(generator, count, p, d)
                found += _run(start, S, A, 3.0, *_schemes(count, index))
        return found

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        return {
            "positive": self._wrong_sign,
            "exact-forward": lambda g, n: _positive(self._inexact, g, n),
            "continuous-time": lambda g, n: [_euler(one) for one in self.draw(g, n)],
        }

    def _inexact(self, generator: Generator, n: int) -> list[Instance]:
        """One Picard step for a forward pass, for a short while; all of one size as a batch."""
        groups: dict[torch.Size, list[Instance]] = {}
        for one in self.draw(generator, n):
            groups.setdefault(one.A.shape, []).append(one)
        found: list[Instance] = []
        for some in groups.values():
            start = LinearDEQ(
                torch.stack([one.theta.W for one in some]),
                torch.stack([one.theta.U for one in some]),
            )
            S, A = torch.stack([one.S for one in some]), torch.stack([one.A for one in some])
            m, lam = torch.tensor([one.m for one in some]), torch.tensor([one.lam for one in some])
            found += _run(start, S, A, some[0].t_end / 100, m, lam.double(), exact=False)
        return found

    @staticmethod
    def _wrong_sign(generator: Generator, n: int) -> list[Instance]:
        """One output beyond the singular line, and JFB from neighbours of a matrix start."""
        scalars, matrices = (n + 1) // 2, n // 2
        found: list[Instance] = []
        start, S, A = _problems(generator, scalars, 1, 3)
        start, schemes = LinearDEQ(2 - start.W, start.U), _schemes(scalars, 0)
        # The climb ends on the singular line; S sets the clock so that P moves by a tenth or so.
        speed = flow_rate.squared_norm(step_direction(start, S, A, *schemes)).sqrt()
        clock = 0.1 * linear.resolvent_inverse(start).abs() / speed[:, None, None]
        found += _run(start, clock * S, A, 1.0, *schemes)
        if matrices:
            noise = 0.002 * torch.randn(matrices, 2, 4, generator=generator, dtype=torch.float64)
            base = matrix_start()
            start = LinearDEQ(base[0].W + noise[..., :2], base[0].U + noise[..., 2:3])
            A = base[1] + noise[..., 3:]
            S = torch.ones(matrices, 1, 1, dtype=torch.float64)
            one = torch.ones(matrices)
            found += _run(start, S, A, 1e-4, one.long(), one.double())
        return found

    # Hypotheses and conclusions ---------------------------------------------------------------

    def slack(self, instance: Instance) -> dict[str, float]:
        return {
            "positive": instance.least,
            "exact-forward": 1.0 if instance.exact else -1.0,
            "continuous-time": -1.0 if instance.euler else 1.0,
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        theta, end, S, A = instance.theta, instance.end, instance.S, instance.A
        C, rows = linear.invariant(theta), linear.rows(theta)
        length = float(torch.stack([rows.norm(), linear.rows(end).norm()]).max())
        moved = float((linear.rows(end) - rows).norm() / rows.norm())
        # The integrator's budget, as in `conservation-law`: nothing amplifies an error in C.
        count = (theta.W.numel() + theta.U.numel() + 1) ** 0.5
        allowed = instance.steps * 2 * length * count * (RTOL * length + ATOL) / float(C.norm())
        drift = float((linear.invariant(end) - C).norm() / C.norm())
        L0, L = float(linear.loss(theta, S, A)), float(linear.loss(end, S, A))
        mu = float(rates.pl_constant(theta, S))
        bound = math.exp(-2 * mu * instance.clock) * L0
        found = {
            "q = χ(P)ᵀP⁻ᵀG": self._series(instance, moved),
            "C is constant": Measurement(drift, allowed, moved),
            "L ≤ exp(−2μ∫c) L₀": Measurement(L, bound * (1 + 1e-7), abs(1 - L / L0)),
        }
        if theta.W.shape[-1] == 1 and instance.exact and not instance.euler:
            found["on the curve of the exact flow"] = self._curve(instance, moved)
        return found

    @staticmethod
    def _series(instance: Instance, moved: float) -> Measurement:
        """The adjoint at the start against the closed form of its series.

        Each of the m steps rounds to p·eps of the terms, which are powers of I − λP at most; the
        exact adjoint errs by κ(P).
        """
        theta, S, A = instance.theta, instance.S, instance.A
        m, lam = torch.tensor(instance.m), torch.tensor(instance.lam, dtype=torch.float64)
        exact, q = linear.gradient(theta, S, A).U, step_direction(theta, S, A, m, lam).U
        P = linear.resolvent_inverse(theta)
        p = P.shape[-1]
        left = torch.eye(p, dtype=P.dtype) - instance.lam * P
        chi = torch.eye(p, dtype=P.dtype) - torch.linalg.matrix_power(left, instance.m)
        size = (1 + torch.linalg.matrix_norm(left, 2)) ** instance.m * exact.norm()
        error = float((q - chi.mT @ exact).norm() / size)
        return Measurement(error, 10 * instance.m * p * EPS * float(torch.linalg.cond(P)), moved)

    @staticmethod
    def _curve(instance: Instance, moved: float) -> Measurement:
        """Distance to the exact flow at time τ = ∫χ dt, relative to the radius."""
        if instance.least <= 0:  # the clock runs backwards: the statement does not speak of it
            return Measurement(0.0, 1.0, moved)
        S, A = instance.S, instance.A
        exact = gradient_flow(
            lambda theta: linear.loss(theta, S, A), instance.theta, instance.clock,
            grad=lambda theta: linear.gradient(theta, S, A),
            times=torch.tensor([0.0, instance.clock], dtype=torch.float64),
            rtol=RTOL, atol=ATOL, progress=False,
        ).end  # fmt: skip
        radius = linear.rows(instance.theta).norm()
        gap = float((linear.rows(exact) - linear.rows(instance.end)).norm() / radius)
        return Measurement(gap, 1e-5, moved)


def matrix_start() -> tuple[LinearDEQ, Tensor]:
    """A start and a target (p = 2, d = 1, S = 1) from which JFB raises the loss.

    ρ(W) = 0.9, so Picard and the Neumann series converge, but I − W + (I − W)ᵀ is indefinite.
    """
    W = torch.tensor([[0.9, 0.0], [-1.7, 0.6]], dtype=torch.float64)
    U = torch.tensor([[0.2], [-0.4]], dtype=torch.float64)
    return LinearDEQ(W, U), torch.tensor([[4.0], [1.0]], dtype=torch.float64)


def _positive(
    draw: Callable[[Generator, int], list[Instance]], generator: Generator, n: int
) -> list[Instance]:
    """n instances along whose path sym χ stays positive; the others are drawn again."""
    found: list[Instance] = []
    while len(found) < n:
        found += [one for one in draw(generator, n) if one.least > 0]
    return found[:n]


def _schemes(n: int, first: int, names: Sequence[str] = tuple(SCHEMES)) -> tuple[Tensor, Tensor]:
    """(m, λ) of n problems, the named schemes in turn."""
    pairs = [SCHEMES[names[(first + i) % len(names)]] for i in range(n)]
    return (
        torch.tensor([m for m, _ in pairs]),
        torch.tensor([lam for _, lam in pairs], dtype=torch.float64),
    )


def _problems(generator: Generator, n: int, p: int, d: int) -> tuple[LinearDEQ, Tensor, Tensor]:
    """Starts with ‖W‖ < 0.9, targets near the map of the start, inputs of condition up to 30.

    Near enough that a problem of several outputs keeps sym χ positive; one output starts
    anywhere.
    """
    start = linear.random_start(generator, p, d, batch=(n,))
    normal = torch.randn(n, p + d, d, generator=generator, dtype=torch.float64)
    uniform = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    if p > 1:
        start = LinearDEQ(0.4 * start.W, start.U)
    basis = torch.linalg.qr(normal[:, :d]).Q
    spectrum = 30 ** (-uniform[:, :1] * torch.linspace(0, 1, d, dtype=torch.float64))
    S = (basis * spectrum[:, None, :]) @ basis.mT
    shift = (1.0 if p == 1 else 0.25) * (0.3 + uniform[:, 1, None, None])
    A = linear.equilibrium_map(start) + shift * normal[:, d:]
    if p == 1:
        # S sets the clock: no run is stiff, its fastest rate at either end is at most 100.
        first, _ = rates.local_smoothness(start, S, A)
        _, last = rates.hessian_spectrum(linear.sphere_limit(start, A), S, A)
        S = S * (100 / torch.maximum(first, last)).clamp(max=1)[:, None, None]
    return start, S, A


def _slowest(generator: Generator, n: int) -> tuple[LinearDEQ, Tensor, Tensor]:
    """p = d = 2, where two Neumann terms attain the decay: the error lies where χ is smallest.

    P is symmetric with one eigenvalue near 1, where χ = 1, and one of 1.5 to 1.8, where χ is least
    and P largest; only that output is wrong, by little.
    """
    uniform = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    Q = torch.linalg.qr(torch.randn(n, 2, 2, generator=generator, dtype=torch.float64)).Q
    values = torch.stack([0.9 + 0.2 * uniform[:, 0], 1.5 + 0.3 * uniform[:, 1]], dim=-1)
    P = (Q * values[:, None, :]) @ Q.mT
    eye = torch.eye(2, dtype=torch.float64)
    A = Q[:, :, 1:] * (0.02 + 0.1 * uniform[:, 2, None, None]) * eye[:1]
    return LinearDEQ(eye - P, torch.zeros_like(P)), eye.expand(n, 2, 2), A


def _run(
    start: LinearDEQ,
    S: Tensor,
    A: Tensor,
    t_end: float,
    m: Tensor,
    lam: Tensor,
    *,
    exact: bool = True,
) -> list[Instance]:
    """Integrate a batch of problems of one size and hand each its record."""

    def field(state: Clocked) -> Clocked:
        theta = LinearDEQ(state.W, state.U)
        step = step_direction(theta, S, A, m, lam, exact=exact)
        return Clocked(*step, -positivity(theta, m, lam).clamp_min(0))

    n = len(m)
    run = gradient_flow(
        lambda state: linear.loss(LinearDEQ(state.W, state.U), S, A),
        Clocked(*start, torch.zeros(n, dtype=torch.float64)), t_end,
        grad=field, times=torch.linspace(0, t_end, RECORDS, dtype=torch.float64),
        rtol=RTOL, atol=ATOL, batch_ndim=1, progress=False,
    )  # fmt: skip
    least = positivity(LinearDEQ(run.theta.W, run.theta.U), m, lam).amin(0)
    return [
        Instance(
            LinearDEQ(start.W[i], start.U[i]), S[i], A[i], int(m[i]), float(lam[i]), t_end,
            LinearDEQ(run.end.W[i], run.end.U[i]), float(run.end.tau[i]), float(least[i]),
            run.steps, exact,
        )
        for i in range(n)
    ]  # fmt: skip


def _euler(one: Instance) -> Instance:
    """The same problem in thirty steps instead of a flow; the clock is the flow's."""
    theta, eta = one.theta, one.t_end / 30
    m, lam = torch.tensor(one.m), torch.tensor(one.lam, dtype=torch.float64)
    for _ in range(30):
        g = step_direction(theta, one.S, one.A, m, lam)
        theta = LinearDEQ(theta.W - eta * g.W, theta.U - eta * g.U)
    return replace(one, end=theta, euler=True)
