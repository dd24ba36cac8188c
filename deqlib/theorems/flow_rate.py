"""Theorem `flow-rate`: gradient flow of a linear DEQ converges exponentially, from everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from deqlib import linear, rates
from deqlib.dynamics import gradient_flow
from deqlib.linear import LinearDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem

SIZES = ((1, 1), (2, 2), (1, 4), (3, 2), (2, 3), (4, 5))
"""(p, d) of the problems that are drawn, in turn."""
RECORDS = 41
FALLEN = 1e-12
"""Records in which L is below this part of L₀ are left out: they are the integrator's error."""
ROUNDING = 1e-8
"""‖∇L‖² = 2μ(F)L exactly for p = d = 1, and L is known to this precision where it is kept.

The lengths, too, are integrated to ten times the tolerance 1e-9 of a step, of the whole path.
"""


@dataclass(frozen=True)
class Problem:
    """One start and one least-squares problem: W (p, p), U (p, d), S (d, d), A (p, d)."""

    theta: LinearDEQ
    S: Tensor
    A: Tensor


# Draws, shared with `descent-rate` and `adaptive-descent` --------------------------------------


def uniform(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def log_uniform(generator: Generator, low: float, high: float) -> float:
    return math.exp(uniform(generator, math.log(low), math.log(high)))


def normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(generator: Generator, n: int) -> Tensor:
    return torch.linalg.qr(normal(generator, n, n)).Q


def spectrum(generator: Generator, d: int, kappa: float) -> Tensor:
    """d eigenvalues between 1 and 1/kappa, both ends included."""
    inner = torch.rand(d, generator=generator, dtype=torch.float64)
    inner[0] = 0.0
    inner[-1] = 1.0 if d > 1 else 0.0
    return kappa**-inner


def random_problem(generator: Generator, p: int, d: int, kappa: float = 30.0) -> Problem:
    """Any scale of [I − W, U], either sign of det(I − W), κ(S) between 1 and `kappa`."""
    start = linear.random_start(generator, p, d, scale=log_uniform(generator, 0.1, 3))
    size = log_uniform(generator, 0.5, 2)
    P, U = size * linear.resolvent_inverse(start), size * start.U
    if uniform(generator, 0, 1) < 0.5:
        P[0], U[0] = -P[0], U[0]  # the other component of the invertible matrices
    Q = rotation(generator, d)
    values = log_uniform(generator, 0.3, 3) * spectrum(
        generator, d, log_uniform(generator, 1, kappa)
    )
    A = log_uniform(generator, 0.1, 2) * normal(generator, p, d)
    return Problem(_parameters(P, U), (Q * values) @ Q.mT, A)


def slow_problem(generator: Generator, p: int, d: int) -> Problem:
    """A problem on which the constant μ is nearly attained.

    C = cI; the target has a row without entries and an input without weight, S is smallest for
    that input, and all that is wrong with the start is a small weight there.
    """
    values = spectrum(generator, d, log_uniform(generator, 1, 10))
    A = torch.zeros(p, d, dtype=torch.float64)
    if p > 1 and d > 1:
        A[0, 0] = uniform(generator, 0.5, 3)
    F = A.clone()
    F[-1, -1] += uniform(generator, 0.02, 0.1)
    P = _gauge(rotation(generator, p), F, log_uniform(generator, 0.5, 4))
    Q = rotation(generator, d)
    return Problem(_parameters(P, P @ F @ Q.mT), (Q * values) @ Q.mT, A @ Q.mT)


def near_minimiser(generator: Generator, p: int, d: int, relative: float) -> Problem:
    """A random problem whose start is moved to within `relative` of a minimiser."""
    one = random_problem(generator, p, d)
    P = linear.resolvent_inverse(one.theta)
    R = normal(generator, p, d)
    R *= relative * (1 + one.A.norm()) / R.norm()
    return replace(one, theta=_parameters(P, P @ (one.A + R)))


def _parameters(P: Tensor, U: Tensor) -> LinearDEQ:
    return LinearDEQ(torch.eye(P.shape[-1], dtype=P.dtype) - P, U)


def _gauge(P: Tensor, F: Tensor, c: float) -> Tensor:
    """√c C^(−½) P: the matrix with which [P, PF] has C = cI and the same map F."""
    values, vectors = torch.linalg.eigh(P @ rates.gram(F.mT) @ P.mT)
    return c**0.5 * (vectors / values.sqrt()) @ vectors.mT @ P


def problems(generator: Generator, n: int) -> list[Problem]:
    """n problems of mixed sizes: two random ones, then a slow one, and so on."""
    return [
        (slow_problem if index % 3 == 2 else random_problem)(
            generator, *SIZES[int(torch.randint(len(SIZES), (), generator=generator))]
        )
        for index in range(n)
    ]


def by_size(many: Sequence[Problem]) -> Iterator[tuple[list[int], Problem]]:
    """Problems of equal size stacked, with their positions: each stack can be run at once."""
    groups: dict[torch.Size, list[int]] = {}
    for index, one in enumerate(many):
        groups.setdefault(one.A.shape, []).append(index)
    for where in groups.values():
        some = [many[i] for i in where]
        yield (
            where,
            Problem(
                LinearDEQ(
                    torch.stack([s.theta.W for s in some]), torch.stack([s.theta.U for s in some])
                ),
                torch.stack([s.S for s in some]),
                torch.stack([s.A for s in some]),
            ),
        )


# Flows ------------------------------------------------------------------------------------------


class Loss(Protocol):
    """(θ, S, A) ↦ (*batch)."""

    def __call__(self, theta: LinearDEQ, S: Tensor, A: Tensor) -> Tensor: ...


class Field(Protocol):
    """(θ, S, A) ↦ the direction that the parameters move against."""

    def __call__(self, theta: LinearDEQ, S: Tensor, A: Tensor) -> LinearDEQ: ...


class Travel(NamedTuple):
    """Parameters and the length (*batch, 1) of the path that led to them."""

    W: Tensor
    U: Tensor
    length: Tensor


@dataclass(frozen=True)
class Run:
    """A problem and its flow: times (T,), parameters with a leading time, lengths, losses (T,)."""

    problem: Problem
    t: Tensor
    theta: LinearDEQ
    length: Tensor
    loss: Tensor
    squared: bool = True
    exact: bool = True


def squared_norm(g: LinearDEQ) -> Tensor:
    return g.W.square().sum((-2, -1)) + g.U.square().sum((-2, -1))


def quartic(theta: LinearDEQ, S: Tensor, A: Tensor) -> Tensor:
    """The square of the squared loss: smooth, with the same minimisers, but not PL."""
    return linear.loss(theta, S, A).square()


def quartic_gradient(theta: LinearDEQ, S: Tensor, A: Tensor) -> LinearDEQ:
    twice = 2 * linear.loss(theta, S, A)[..., None, None]
    return linear.gradient_from(theta, twice * (linear.equilibrium_map(theta) - A) @ S)


def jacobian_free(theta: LinearDEQ, S: Tensor, A: Tensor) -> LinearDEQ:
    """(G Fᵀ, G): the direction with q = G, as if (I − W)⁻ᵀ were the identity."""
    F = linear.equilibrium_map(theta)
    G = (F - A) @ S
    return LinearDEQ(G @ F.mT, G)


def decayed(theta: LinearDEQ, S: Tensor, A: Tensor) -> LinearDEQ:
    """The gradient with weight decay 1/2 on W and U."""
    g = linear.gradient(theta, S, A)
    return LinearDEQ(g.W + theta.W / 2, g.U + theta.U / 2)


def flow(
    many: Sequence[Problem],
    loss: Loss = linear.loss,
    field: Field = linear.gradient,
    longest: float = 200.0,
    until: float = math.inf,
) -> list[Run]:
    """Integrate for a time 3/μ, or `longest` of the problem's fastest units, or `until`."""
    runs: dict[int, Run] = {}
    for where, stack in by_size(many):
        start, S, A = stack.theta, stack.S, stack.A
        C_low = rates.extremes(linear.invariant(start))[0]
        size = 1 + torch.linalg.matrix_norm(A, 2).square()
        fastest = torch.maximum(
            rates.local_smoothness(start, S, A)[0], rates.extremes(S)[1] * size.square() / C_low
        )
        mu = smallest_positive(S) / rates.extremes(linear.invariant(start))[1]
        # Each problem runs on a clock of its own.
        clock = torch.minimum(3 / mu, longest / fastest).clamp_max(until)

        def height(s: Travel, S: Tensor = S, A: Tensor = A) -> Tensor:
            return loss(LinearDEQ(s.W, s.U), S, A)

        def velocity(s: Travel, S: Tensor = S, A: Tensor = A, clock: Tensor = clock) -> Travel:
            g = field(LinearDEQ(s.W, s.U), S, A)
            speed = clock * squared_norm(g).sqrt()
            unit = clock[:, None, None]
            return Travel(unit * g.W, unit * g.U, -speed[:, None])

        run = gradient_flow(
            height,
            Travel(*start, torch.zeros(len(where), 1, dtype=torch.float64)),
            1.0,
            grad=velocity,
            times=torch.linspace(0, 1, RECORDS, dtype=torch.float64).square(),
            batch_ndim=1,
            progress=False,
        )
        for j, index in enumerate(where):
            runs[index] = Run(
                many[index],
                run.t * clock[j],
                LinearDEQ(run.theta.W[:, j], run.theta.U[:, j]),
                run.theta.length[:, j, 0],
                run.loss[:, j],
            )
    return [runs[index] for index in range(len(many))]


def smallest_positive(S: Tensor) -> Tensor:
    """The smallest eigenvalue of S (*batch, d, d) that is not 0 up to rounding."""
    values = torch.linalg.eigvalsh(S)
    positive = values > 1e-12 * values[..., -1:]
    return torch.where(positive, values, torch.inf).amin(-1)


def filled(S: Tensor) -> Tensor:
    """S (*batch, d, d) with its zero eigenvalues raised to the smallest positive one.

    A positive definite S comes back as it is. For a singular one this makes every constant that
    is computed from S speak of the inputs that the data do show.
    """
    values, vectors = torch.linalg.eigh(S)
    least = smallest_positive(S)[..., None]
    missing = (vectors * (values < least * (1 - 1e-9))[..., None, :]) @ vectors.mT
    return S + least[..., None] * missing


def det_sign(theta: LinearDEQ) -> Tensor:
    return torch.linalg.det(linear.resolvent_inverse(theta)).sign()


class FlowRate(Theorem[Run]):
    label = "flow-rate"
    title = "Exponential convergence of gradient flow"
    kind = "rate"
    chapter = "08_linear_convergence"
    statement = (
        r"Let $C=(I-W_0)(I-W_0)^\top+U_0U_0^\top$ and $\mu=\lambda_{\min}(S)/\lambda_{\max}(C)$. "
        r"From every start with $I-W_0$ invertible, gradient flow on the squared loss satisfies "
        r"$\|\nabla L\|^2\ge2\mu L$ and $L(t)\le e^{-2\mu t}L(0)$; the path from time $t$ on has "
        r"length at most $\sqrt{2L(t)/\mu}$; and it ends at $U_\infty=P_\infty A$, "
        r"$P_\infty(I+AA^\top)P_\infty^\top=C$."
    )
    hypotheses = {
        "invertible-start": Hypothesis(r"$I-W_0$ is invertible."),
        "definite": Hypothesis(
            r"$S$ is positive definite (without it the rate holds with the smallest positive "
            r"eigenvalue, but the end is another one)."
        ),
        "squared-loss": Hypothesis(r"$L=\frac12\mathrm{tr}\,(F-A)S(F-A)^\top$."),
        "exact-gradient": Hypothesis(
            r"The parameters move along $-\nabla L$: exact adjoint, nothing added."
        ),
    }
    open_questions = (
        r"Does every run, and not only a generic one, decay no faster than $\mu_{\rm sharp}$ "
        "({doc}`/notebooks/08_linear_convergence`)?",
    )
    least_activity = 1e-3

    def draw(self, generator: Generator, n: int) -> list[Run]:
        return flow(problems(generator, n))

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Run]]]:
        return {
            "invertible-start": _singular,
            "definite": _blind,
            "squared-loss": _quartic,
            "exact-gradient": _inexact,
        }

    def slack(self, instance: Run) -> dict[str, float]:
        singular = torch.linalg.svdvals(linear.resolvent_inverse(instance.problem.theta))
        low, high = rates.extremes(instance.problem.S)
        return {
            "invertible-start": float(singular[-1] / singular[0]) - 1e-12,
            "definite": float(low / high) - 1e-12,
            "squared-loss": 1.0 if instance.squared else -1.0,
            "exact-gradient": 1.0 if instance.exact else -1.0,
        }

    def measure(self, instance: Run) -> dict[str, Measurement]:
        start, S, A = instance.problem.theta, instance.problem.S, instance.problem.A
        if len(instance.t) == 0:  # no equilibrium at the start, hence no loss and no flow
            return {"L(t) ≤ exp(−2μt) L₀": Measurement(math.nan, math.nan, 1.0)}
        kept = instance.loss > FALLEN * instance.loss[0]
        t, L = instance.t[kept], instance.loss[kept]
        theta = LinearDEQ(*(part[kept] for part in instance.theta))
        length = instance.length[kept]

        # Where S is singular, its zero eigenvalues count as the smallest positive one.
        least, whole = smallest_positive(S), filled(S)
        mu = rates.pl_constant(start, whole)
        quotient = squared_norm(_gradient(instance)(theta, S, A)) / (2 * L)
        fine = rates.pl_constant_at(theta, whole.expand(len(t), -1, -1))
        rate = torch.log(L[0] / L[1:]) / (2 * t[1:])
        still = (2 / mu).sqrt() * (L.sqrt() - L[-1].sqrt())  # bounds what is left of the path
        gone = length[-1] - length
        at = (gone[:-1] / still[:-1]).argmax()
        sharp = rates.hessian_spectrum(LinearDEQ(theta.W[-1], theta.U[-1]), whole, A)[0]

        C = linear.invariant(start)
        P = linear.resolvent_inverse(theta)[-1]
        off = torch.linalg.matrix_norm(P @ rates.gram(A.mT) @ P.mT - C, 2)
        r = (2 * L[-1] / least).sqrt()
        reach = rates.extremes(C)[1] * r * (2 * torch.linalg.matrix_norm(A, 2) + r)
        turned = (det_sign(theta) != det_sign(start)).sum()
        activity = float(torch.log(L[0] / L[-1]).abs())

        def said(measured: Tensor, bound: Tensor | float, **more: object) -> Measurement:
            return Measurement(float(measured), float(bound), activity, **more)  # type: ignore[arg-type]

        return {
            "‖∇L‖² ≥ 2μL": said(quotient.min(), mu, lower=True),
            "‖∇L‖² ≥ 2μ(F)L": said((quotient / fine).min(), 1 - ROUNDING, lower=True),
            "L(t) ≤ exp(−2μt) L₀": said(rate.min(), mu, lower=True, sharp=float(sharp)),
            "length ≤ √(2L/μ)": said(gone[at], still[at] + ROUNDING * still[0]),
            "P(I + AAᵀ)Pᵀ → C": said(off, reach),
            "det(I − W) keeps its sign": said(turned, 0.5),
        }


def _gradient(instance: Run) -> Field:
    return linear.gradient if instance.squared else quartic_gradient


# ------------------------------------------------------------ instances with one hypothesis less


def _singular(generator: Generator, n: int) -> list[Run]:
    """I − W₀ has a row of zeros: most inputs have no equilibrium at all."""
    nothing = torch.zeros(0, dtype=torch.float64)
    runs = []
    for one in problems(generator, n):
        W = one.theta.W.clone()
        W[0] = torch.eye(len(W), dtype=W.dtype)[0]
        theta = LinearDEQ(W, one.theta.U)
        runs.append(Run(replace(one, theta=theta), nothing, theta, nothing, nothing))
    return runs


def blinded(one: Problem, generator: Generator, weight: float = 0.0) -> Problem:
    """The same problem with data that never show one direction v of the inputs: Sv = 0.

    `weight` is added to every row of U₀ along v.
    """
    v = normal(generator, one.S.shape[0])
    v = v / v.norm()
    away = torch.eye(len(v), dtype=v.dtype) - torch.outer(v, v)
    theta = LinearDEQ(one.theta.W, one.theta.U + weight * v)
    return replace(one, theta=theta, S=away @ one.S @ away)


def weak_starts(generator: Generator, n: int) -> list[Problem]:
    """Starts so near a minimiser that the square of the squared loss pulls less than μ asks."""
    some = []
    for _ in range(n):
        one = near_minimiser(generator, *SIZES[int(torch.randint(6, (), generator=generator))], 0.1)
        omega, _ = rates.local_smoothness(one.theta, one.S, one.A)
        wanted = 0.01 * rates.pl_constant(one.theta, one.S) / omega
        now = linear.loss(one.theta, one.S, one.A)
        P, F = linear.resolvent_inverse(one.theta), linear.equilibrium_map(one.theta)
        F = one.A + (F - one.A) * (wanted / now).sqrt().clamp(max=1)
        some.append(replace(one, theta=_parameters(P, P @ F)))
    return some


def turned_starts(generator: Generator, n: int) -> list[Problem]:
    """Starts from which the Jacobian-free direction leads uphill: I − W is far from monotone."""
    some = []
    for _ in range(n):
        W = torch.tensor([[0.9, 0.0], [-1.7, 0.6]], dtype=torch.float64)
        U = torch.tensor([[0.2], [-0.4]], dtype=torch.float64)
        A = torch.tensor([[4.0], [1.0]], dtype=torch.float64)
        theta = LinearDEQ(W + 0.003 * normal(generator, 2, 2), U + 0.003 * normal(generator, 2, 1))
        scale = log_uniform(generator, 0.5, 2) * torch.ones(1, 1, dtype=torch.float64)
        some.append(Problem(theta, scale, A + 0.03 * normal(generator, 2, 1)))
    return some


def _blind(generator: Generator, n: int) -> list[Run]:
    """Data that never show one direction of the inputs."""
    sizes = ((2, 2), (1, 4), (2, 3), (3, 4))
    return flow([blinded(random_problem(generator, *sizes[i % 4]), generator, 2) for i in range(n)])


def _quartic(generator: Generator, n: int) -> list[Run]:
    """The square of the squared loss."""
    runs = flow(weak_starts(generator, n), quartic, quartic_gradient)
    return [replace(run, squared=False) for run in runs]


def _inexact(generator: Generator, n: int) -> list[Run]:
    """In turn: the Jacobian-free adjoint where I − W is not monotone, and weight decay."""
    free = turned_starts(generator, (n + 1) // 2)
    heavy = [near_minimiser(generator, *SIZES[i % 6], 0.01) for i in range(n // 2)]
    first = iter(flow(free, field=jacobian_free, longest=50))
    second = iter(flow(heavy, field=decayed, until=0.1))
    return [replace(next(second if i % 2 else first), exact=False) for i in range(n)]
