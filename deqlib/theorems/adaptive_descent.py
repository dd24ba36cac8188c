"""Theorem `adaptive-descent`: a step computed from the current iterate, and still linear."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from deqlib import linear, rates
from deqlib.dynamics import StepState, gradient_descent
from deqlib.linear import LinearDEQ
from deqlib.theorems import descent_rate, flow_rate
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.descent_rate import EPS, Run, path
from deqlib.theorems.flow_rate import Field, Loss, Problem, by_size, det_sign, squared_norm

STEPS = 60
DESCENT = 0.72
"""The least value of 1/(1 + e) − (1 − 4e)/(4(1 − e)²) on [0, 1/4] is 0.7238…"""


@dataclass
class Recorded:
    """The rule η = times/(2ω + 4γ), which remembers the steps that it gave."""

    times: Tensor
    rule: Callable[[StepState[Any]], Tensor]
    taken: list[Tensor] = field(default_factory=list)

    def __call__(self, state: StepState[Any], /) -> Tensor:
        self.taken.append(self.times * self.rule(state))
        return self.taken[-1]


def descend(
    many: Sequence[Problem],
    times: float | Tensor = 1.0,
    along: Field = linear.gradient,
    loss: Loss = linear.loss,
) -> list[Run]:
    """Steps of `times`/(2ω + 4γ), one sequence of steps a problem."""
    factor = torch.as_tensor(times, dtype=torch.float64).expand(len(many))
    runs: dict[int, Run] = {}
    for where, stack in by_size(many):
        rule = Recorded(factor[where], rates.adaptive_step(stack.S, stack.A))
        run = gradient_descent(
            partial(loss, S=stack.S, A=stack.A),
            stack.theta,
            rule,
            STEPS,
            grad=partial(along, S=stack.S, A=stack.A),
            batch_ndim=1,
            throw=False,
            progress=False,
        )
        eta = torch.stack(rule.taken)
        for j, index in enumerate(where):
            theta = LinearDEQ(run.theta.W[:, j], run.theta.U[:, j])
            runs[index] = Run(many[index], eta[:, j], theta, run.loss[:, j])
    return [runs[index] for index in range(len(many))]


class AdaptiveDescent(Theorem[Run]):
    label = "adaptive-descent"
    title = "Gradient descent with a step read off the iterate"
    kind = "rate"
    chapter = "08_linear_convergence"
    statement = (
        r"At each iterate let $\omega=\|(I-W)^{-1}\|_2^2\,\lambda_{\max}(K^{1/2}SK^{1/2})$, "
        r"$\gamma=\|\Gamma\|_2$ and $\eta=1/(2\omega+4\gamma)$. From every start with $I-W_0$ "
        r"invertible, $L_{k+1}\le L_k-0.72\,\eta_k\|\nabla L_k\|^2$, the steps stay above "
        r"$1/(6\Lambda)$, $C_0\preceq C_k\preceq C_0+gI$ with "
        r"$g=\lambda_{\min}(C_0)(e^{25L_0/(36\lambda_{\max}(S))}-1)$, and with "
        r"$\Theta=\lambda_{\max}(C_0)+g$ "
        r"$L_{k+1}\le(1-1.44\,\eta_k\lambda_{\min}(S)/\Theta)L_k$."
    )
    hypotheses = {
        "invertible-start": Hypothesis(r"$I-W_0$ is invertible."),
        "definite": Hypothesis(r"$S$ is positive definite."),
        "squared-loss": Hypothesis(r"$L=\frac12\mathrm{tr}\,(F-A)S(F-A)^\top$."),
        "exact-gradient": Hypothesis(
            r"Each step is $-\eta\nabla L$: exact adjoint, nothing added."
        ),
        "local-step": Hypothesis(r"$\eta_k=1/(2\omega_k+4\gamma_k)$."),
    }
    open_questions = (
        r"Is $\frac34$ the constant of the adaptive step for $p\ge2$, too "
        "({doc}`/notebooks/08_linear_convergence`)?",
    )
    least_activity = 1e-4

    def draw(self, generator: Generator, n: int) -> list[Run]:
        """In turn: random problems, nearly attained rates, best and worst cases of the step."""
        return descend(descent_rate.mixed(generator, n))

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Run]]]:
        return {
            "invertible-start": descent_rate._singular,
            "definite": _blind,
            "squared-loss": _quartic,
            "exact-gradient": _inexact,
            "local-step": _long_steps,
        }

    def slack(self, instance: Run) -> dict[str, float]:
        start, S, A = instance.problem.theta, instance.problem.S, instance.problem.A
        singular = torch.linalg.svdvals(linear.resolvent_inverse(start))
        low, high = rates.extremes(S)
        longest = 1.0
        if len(instance.eta):
            before = LinearDEQ(*(part[:-1] for part in instance.theta))
            omega, gamma = rates.local_smoothness(before, S, A)
            longest = float((instance.eta * (2 * omega + 4 * gamma)).max())
        return {
            "invertible-start": float(singular[-1] / singular[0]) - 1e-12,
            "definite": float(low / high) - 1e-12,
            "squared-loss": 1.0 if instance.squared else -1.0,
            "exact-gradient": 1.0 if instance.exact else -1.0,
            "local-step": 1 + 1e-9 - longest,
        }

    def measure(self, instance: Run) -> dict[str, Measurement]:
        start, S, A = instance.problem.theta, instance.problem.S, instance.problem.A
        if len(instance.eta) == 0:
            return {"L₊ ≤ (1 − 1.44 ημ″)L": Measurement(math.nan, math.nan, 1.0)}
        ceiling = rates.adaptive_ceiling(start, S, A)
        mu = flow_rate.smallest_positive(S) / ceiling
        L, eta = instance.loss, instance.eta
        before = LinearDEQ(*(part[:-1] for part in instance.theta))
        gradient = linear.gradient if instance.squared else flow_rate.quartic_gradient
        squared = squared_norm(gradient(before, S, A))
        seen = L[:-1] > flow_rate.FALLEN * L[0]
        fall = (L[:-1] - L[1:])[seen]
        drop = fall / (eta * squared)[seen]
        contraction = fall / (eta * L[:-1])[seen]
        turn = eta * rates.local_smoothness(before, S, A)[1]
        C = linear.invariant(instance.theta)
        growth = rates.extremes(C - C[0])[1].max()
        allowed_growth = ceiling - rates.extremes(C[0])[1] + 100 * EPS * C[0].norm()
        least = 1 / (6 * descent_rate.smoothness(instance.problem))
        length, allowed = path(instance, (4 / mu).sqrt())
        turned = (det_sign(instance.theta) != det_sign(start)).sum()
        activity = float(torch.log(L[-1] / L[0]).abs())
        activity = activity if math.isfinite(activity) else 1.0

        def said(measured: Tensor, bound: Tensor | float, lower: bool = False) -> Measurement:
            return Measurement(float(measured), float(bound), activity, lower=lower)

        return {
            "η‖Γ‖ ≤ 1/4": said(turn.max(), 0.25 * (1 + 1e-12)),
            "L − L₊ ≥ 0.72 η‖∇L‖²": said(drop.min(), DESCENT, lower=True),
            "L₊ ≤ (1 − 1.44 ημ″)L": said(contraction.min(), 2 * DESCENT * mu, lower=True),
            "η ≥ 1/(6Λ)": said(eta.min(), least, lower=True),
            "C ⪯ C₀ + (Θ − λ_max(C₀))I": said(growth, allowed_growth),
            "length ≤ √(4L/μ″)": said(length, allowed),
            "det(I − W) keeps its sign": said(turned, 0.5),
        }


# ------------------------------------------------------------ instances with one hypothesis less


def _blind(generator: Generator, n: int) -> list[Run]:
    return descend([run.problem for run in descent_rate._blind(generator, n)])


def _quartic(generator: Generator, n: int) -> list[Run]:
    """The square of the squared loss, from a start so near that its pull has become weak."""
    some = flow_rate.weak_starts(generator, n)
    runs = descend(some, 1.0, flow_rate.quartic_gradient, flow_rate.quartic)
    return [replace(run, squared=False) for run in runs]


def _inexact(generator: Generator, n: int) -> list[Run]:
    """In turn: the Jacobian-free adjoint where I − W is not monotone, and weight decay."""
    free, heavy = descent_rate.misled(generator, n)
    first = iter(descend(free, 1.0, flow_rate.jacobian_free))
    second = iter(descend(heavy, 1.0, flow_rate.decayed))
    return [replace(next(second if i % 2 else first), exact=False) for i in range(n)]


def _long_steps(generator: Generator, n: int) -> list[Run]:
    """Near a minimiser, where the rule's step is a quarter of the edge: 5 to 8 times as long."""
    some = descent_rate.near_starts(generator, n)
    return descend(some, 5 + 3 * torch.rand(n, generator=generator, dtype=torch.float64))
