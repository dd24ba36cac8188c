"""Theorem `descent-rate`: gradient descent with a step from the start alone converges linearly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor

from deqlib import linear, rates
from deqlib.dynamics import gradient_descent
from deqlib.linear import LinearDEQ
from deqlib.theorems import flow_rate
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.flow_rate import Field, Loss, Problem, by_size, det_sign, squared_norm

EPS = torch.finfo(torch.float64).eps
STEPS = 150


@dataclass(frozen=True)
class Run:
    """A problem and its descent: steps η (K,), iterates (K + 1, …), losses (K + 1,)."""

    problem: Problem
    eta: Tensor
    theta: LinearDEQ
    loss: Tensor
    squared: bool = True
    exact: bool = True


def descend(
    many: Sequence[Problem],
    step: Callable[[Problem], Tensor],
    field: Field = linear.gradient,
    loss: Loss = linear.loss,
) -> list[Run]:
    """Constant steps, one a problem: `step` maps a stack of problems to (*batch,) step sizes."""
    runs: dict[int, Run] = {}
    for where, stack in by_size(many):
        eta = step(stack)
        run = gradient_descent(
            partial(loss, S=stack.S, A=stack.A),
            stack.theta,
            eta,
            STEPS,
            grad=partial(field, S=stack.S, A=stack.A),
            batch_ndim=1,
            throw=False,
            progress=False,
        )
        for j, index in enumerate(where):
            theta = LinearDEQ(run.theta.W[:, j], run.theta.U[:, j])
            runs[index] = Run(many[index], eta[j].expand(len(run.t) - 1), theta, run.loss[:, j])
    return [runs[index] for index in range(len(many))]


def smoothness(one: Problem) -> Tensor:
    """Λ; for a singular S the Λ of a careless reader, who takes the smallest positive eigenvalue.

    The inputs that the data show have a Λ of their own, with C of the restricted U; careless is
    to leave the unrestricted C in it.
    """
    if float(flow_rate.smallest_positive(one.S) - rates.extremes(one.S)[0]) < 1e-14:
        return rates.smoothness(one.theta, one.S, one.A)
    values, vectors = torch.linalg.eigh(one.S)
    V = vectors[:, values > 1e-12 * values[-1]]
    seen = linear.restrict(one.theta, V)
    C_seen, C = linear.invariant(seen), linear.invariant(one.theta)
    return (
        rates.smoothness(seen, V.mT @ one.S @ V, one.A @ V)
        * rates.extremes(C_seen)[0]
        / rates.extremes(C)[0]
    )


def safe_step(stack: Problem) -> Tensor:
    """η = 1/(4Λ), the largest step of the theorem."""
    return 1 / (4 * rates.smoothness(stack.theta, stack.S, stack.A))


def careless_step(stack: Problem) -> Tensor:
    """The same with the Λ of `smoothness`, for problems that may have a singular S."""
    parts = zip(*stack.theta, stack.S, stack.A, strict=True)
    return torch.stack(
        [1 / (4 * smoothness(Problem(LinearDEQ(W, U), S, A))) for W, U, S, A in parts]
    )


class DescentRate(Theorem[Run]):
    label = "descent-rate"
    title = "Linear convergence of gradient descent"
    kind = "rate"
    chapter = "08_linear_convergence"
    statement = (
        r"Let $\Phi=\|A\|_2+\sqrt{2L_0/\lambda_{\min}(S)}$ and "
        r"$\Lambda=\lambda_{\max}(S)(1+\Phi^2)^2/\lambda_{\min}(C_0)$. From every start with "
        r"$I-W_0$ invertible and for every step $\eta\le\frac1{4\Lambda}$, "
        r"$L_{k+1}\le L_k-\frac\eta2\|\nabla L_k\|^2$, "
        r"$C_0\preceq C_k\preceq C_0+2\eta L_0I\preceq\frac{17}{16}C_0$, and "
        r"$L_k\le(1-\eta\mu')^kL_0$ with "
        r"$\mu'=\lambda_{\min}(S)/(\lambda_{\max}(C_0)+2\eta L_0)\ge\frac{16}{17}\mu$."
    )
    hypotheses = {
        "invertible-start": Hypothesis(r"$I-W_0$ is invertible."),
        "definite": Hypothesis(r"$S$ is positive definite."),
        "squared-loss": Hypothesis(r"$L=\frac12\mathrm{tr}\,(F-A)S(F-A)^\top$."),
        "exact-gradient": Hypothesis(
            r"Each step is $-\eta\nabla L$: exact adjoint, nothing added."
        ),
        "small-step": Hypothesis(r"$0<\eta\le1/(4\Lambda)$."),
    }
    open_questions = (
        r"With several outputs, what happens for steps between $\frac1{4\Lambda}$ and the edge "
        "of stability, and beyond it ({doc}`/notebooks/08_linear_convergence`)?",
    )
    least_activity = 1e-6

    def draw(self, generator: Generator, n: int) -> list[Run]:
        """In turn: random problems, nearly attained rates, best and worst cases of the step."""
        return descend(mixed(generator, n), safe_step)

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Run]]]:
        return {
            "invertible-start": _singular,
            "definite": _blind,
            "squared-loss": _quartic,
            "exact-gradient": _inexact,
            "small-step": _long_steps,
        }

    def slack(self, instance: Run) -> dict[str, float]:
        start, S = instance.problem.theta, instance.problem.S
        singular = torch.linalg.svdvals(linear.resolvent_inverse(start))
        low, high = rates.extremes(S)
        invertible = float(singular[-1] / singular[0]) - 1e-12
        small = 1.0
        if len(instance.eta):
            small = float(1 + 1e-9 - (4 * smoothness(instance.problem) * instance.eta).max())
        return {
            "invertible-start": invertible,
            "definite": float(low / high) - 1e-12,
            "squared-loss": 1.0 if instance.squared else -1.0,
            "exact-gradient": 1.0 if instance.exact else -1.0,
            "small-step": small,
        }

    def measure(self, instance: Run) -> dict[str, Measurement]:
        start, S, A = instance.problem.theta, instance.problem.S, instance.problem.A
        if len(instance.eta) == 0:
            return {"L ≤ (1 − ημ′)^k L₀": Measurement(math.nan, math.nan, 1.0)}
        L, eta = instance.loss, instance.eta
        ceiling = rates.extremes(linear.invariant(start))[1] + 2 * eta[0] * L[0]
        mu = flow_rate.smallest_positive(S) / ceiling
        before = LinearDEQ(*(part[:-1] for part in instance.theta))
        squared = squared_norm(_gradient(instance)(before, S, A))
        k = torch.arange(1, len(L), dtype=L.dtype)
        # Where L is known only up to rounding, what happens to it says nothing.
        seen = L[:-1] > flow_rate.FALLEN * L[0]
        rate = (-torch.log(L[1:] / L[0]) / k)[seen]
        drop = ((L[:-1] - L[1:]) / (eta * squared))[seen]
        length, allowed = path(instance, (8 / mu).sqrt())
        C = linear.invariant(instance.theta)
        growth = rates.extremes(C - C[0])[1].max()
        activity = float(-torch.log(L[-1] / L[0]))
        activity = abs(activity) if math.isfinite(activity) else 1.0
        turned = (det_sign(instance.theta) != det_sign(start)).sum()

        def said(measured: Tensor, bound: Tensor | float, lower: bool = False) -> Measurement:
            return Measurement(float(measured), float(bound), activity, lower=lower)

        return {
            "η‖Γ‖ ≤ 1/4": said((eta * rates.local_smoothness(before, S, A)[1]).max(), 0.25),
            "L − L₊ ≥ (η/2)‖∇L‖²": said(drop.min(), 0.5, lower=True),
            "L ≤ (1 − ημ′)^k L₀": said(rate.min(), -torch.log1p(-eta[0] * mu), lower=True),
            "C ⪯ C₀ + 2ηL₀": said(growth, 2 * eta[0] * L[0] + 100 * EPS * C[0].norm()),
            "length ≤ √(8L/μ′)": said(length, allowed),
            "det(I − W) keeps its sign": said(turned, 0.5),
            **step_identities(instance, activity),
        }


def path(instance: Run, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Length of the whole polygon of iterates, and factor·(√L₀ − √L_K), which bounds it."""
    moved = LinearDEQ(*(part.diff(dim=0) for part in instance.theta))
    return squared_norm(moved).sqrt().sum(), factor * (
        instance.loss[0].sqrt() - instance.loss[-1].sqrt()
    )


def step_identities(instance: Run, activity: float) -> dict[str, Measurement]:
    """The exact formulas for one step, from the start: errors beside what rounding allows.

    They hold for every step; tried with 1, 10 and 100 times the instance's.
    """
    start, S, A = instance.problem.theta, instance.problem.S, instance.problem.A
    etas = instance.eta[0] * torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    g = linear.gradient(start, S, A)
    Delta, change, _ = rates.exact_step(start, etas, S, A)
    step = etas[:, None, None]
    after = LinearDEQ(start.W - step * g.W, start.U - step * g.U)
    F, F_after = linear.equilibrium_map(start), linear.equilibrium_map(after)
    L, L_after = linear.loss(start, S, A), linear.loss(after, S, A)
    N, N_after = linear.rows(start), linear.rows(after)
    grown = N @ N.mT + step.square() * (g.W @ g.W.mT + g.U @ g.U.mT)
    kappa = torch.linalg.cond(linear.resolvent_inverse(after)).maximum(
        torch.linalg.cond(linear.resolvent_inverse(start))
    )
    # A solve with P errs by about p·eps·κ(P), relative to the size of what it returns.
    rounding = 1e3 * EPS * kappa
    size = F.norm().maximum(F_after.norm(dim=(-2, -1))) + A.norm()
    wrong_F = (F_after - F - Delta).norm(dim=(-2, -1)) / size
    wrong_L = (L_after - L - change).abs() / (size.square() * rates.extremes(S)[1])
    wrong_C = (N_after @ N_after.mT - grown).norm(dim=(-2, -1)) / grown.norm(dim=(-2, -1))

    def said(wrong: Tensor) -> Measurement:
        at = (wrong / rounding).argmax()
        return Measurement(float(wrong[at]), float(rounding[at]), activity)

    return {
        "F₊ − F = −ηM(I + ηΓ)⁻¹qK": said(wrong_F),
        "L₊ − L is exact": said(wrong_L),
        "C₊ = C + η²∇∇ᵀ": said(wrong_C),
    }


def _gradient(instance: Run) -> Field:
    return linear.gradient if instance.squared else flow_rate.quartic_gradient


# Draws ------------------------------------------------------------------------------------------


def mixed(generator: Generator, n: int) -> list[Problem]:
    """In turn: random problems, nearly attained rates, best and worst cases of the step."""
    kinds = (_random, _slow, _stiff, _far, _steep)
    return [kinds[index % 5](generator) for index in range(n)]


def near_starts(generator: Generator, n: int, relative: float = 0.01) -> list[Problem]:
    return [flow_rate.near_minimiser(generator, *_size(generator), relative) for _ in range(n)]


def misled(generator: Generator, n: int) -> tuple[list[Problem], list[Problem]]:
    """Starts for a run with the Jacobian-free adjoint and for one with weight decay, n in all."""
    return flow_rate.turned_starts(generator, (n + 1) // 2), near_starts(generator, n // 2, 1e-3)


def _size(generator: Generator) -> tuple[int, int]:
    return flow_rate.SIZES[int(torch.randint(len(flow_rate.SIZES), (), generator=generator))]


def _random(generator: Generator) -> Problem:
    return flow_rate.random_problem(generator, *_size(generator))


def _slow(generator: Generator) -> Problem:
    return flow_rate.slow_problem(generator, *_size(generator))


def _stiff(generator: Generator) -> Problem:
    """A = 0, U₀ small and C = cI: Λ is the largest eigenvalue of the Hessian, up to 1 + small."""
    p, d = _size(generator)
    F = flow_rate.normal(generator, p, d)
    F *= flow_rate.log_uniform(generator, 1e-3, 1e-1) / F.norm()
    P = flow_rate.log_uniform(generator, 0.5, 2) * flow_rate.rotation(generator, p)
    kappa = flow_rate.log_uniform(generator, 1, 30)
    S = torch.diag(flow_rate.spectrum(generator, d, kappa))
    return Problem(flow_rate._parameters(P, P @ F), S, torch.zeros(p, d, dtype=torch.float64))


def _far(generator: Generator) -> Problem:
    """A = 0 and one large entry of F₀, in the weak one of two states: ‖Γ‖ = Λ F₀²/(1 + F₀²)."""
    F, P = torch.zeros(2, 1, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    F[0] = flow_rate.uniform(generator, 1.5, 4)
    P[0, 0] = flow_rate.log_uniform(generator, 0.3, 3)
    P[1, 1] = flow_rate.uniform(generator, 5, 10) * P[0, 0]  # beyond P[0, 0]²(1 + F₀²) of row 0
    S = flow_rate.log_uniform(generator, 0.3, 3) * torch.ones(1, 1, dtype=torch.float64)
    return Problem(flow_rate._parameters(P, P @ F), S, torch.zeros_like(F))


def _steep(generator: Generator) -> Problem:
    """A large target, and a start that has almost reached it: the valley is steep there."""
    p, d = _size(generator)
    A = flow_rate.normal(generator, p, d)
    A *= flow_rate.uniform(generator, 3, 6) / torch.linalg.matrix_norm(A, 2)
    P = flow_rate.log_uniform(generator, 0.5, 2) * flow_rate.rotation(generator, p)
    values = flow_rate.spectrum(generator, d, flow_rate.log_uniform(generator, 1, 3))
    F = A * (1 + flow_rate.uniform(generator, -1e-2, 1e-2))
    return Problem(flow_rate._parameters(P, P @ F), torch.diag(values), A)


# ------------------------------------------------------------ instances with one hypothesis less


def _still(problem: Problem) -> Run:
    """A start from which no step can be made."""
    nothing = torch.zeros(0, dtype=torch.float64)
    return Run(problem, nothing, problem.theta, nothing)


def _singular(generator: Generator, n: int) -> list[Run]:
    return [_still(run.problem) for run in flow_rate._singular(generator, n)]


def _blind(generator: Generator, n: int) -> list[Run]:
    """Sv = 0 for one direction v, along which U₀ is large: C₀ is, and P₀ is not."""
    some = [flow_rate.random_problem(generator, 1, 2 + i % 3) for i in range(n)]
    return descend([flow_rate.blinded(one, generator, 100) for one in some], careless_step)


def _quartic(generator: Generator, n: int) -> list[Run]:
    """The square of the squared loss, from a start so near that its pull has become weak."""
    some = flow_rate.weak_starts(generator, n)
    runs = descend(some, safe_step, flow_rate.quartic_gradient, flow_rate.quartic)
    return [replace(run, squared=False) for run in runs]


def _inexact(generator: Generator, n: int) -> list[Run]:
    """In turn: the Jacobian-free adjoint where I − W is not monotone, and weight decay."""
    free, heavy = misled(generator, n)
    first = iter(descend(free, safe_step, flow_rate.jacobian_free))
    second = iter(descend(heavy, safe_step, flow_rate.decayed))
    return [replace(next(second if i % 2 else first), exact=False) for i in range(n)]


def _long_steps(generator: Generator, n: int) -> list[Run]:
    """Near a minimiser, with steps between 2.5 and 4 over the Hessian's largest eigenvalue."""

    def step(stack: Problem) -> Tensor:
        times = 2.5 + 1.5 * torch.rand(len(stack.A), generator=generator, dtype=torch.float64)
        return times / rates.hessian_spectrum(stack.theta, stack.S, stack.A)[1]

    return descend(near_starts(generator, n), step)
