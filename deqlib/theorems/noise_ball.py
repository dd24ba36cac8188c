"""Theorem `noise-ball`: with noisy targets, descent enters a ball whose radius the noise sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from deqlib import activations, noise, one_point, single_index
from deqlib.dynamics import gradient_descent
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.single_index_problems import (
    Problem,
    directions,
    log_uniform,
    random_problems,
    uniform,
)

EPS = torch.finfo(torch.float64).eps
STEPS = 30
FITTED = 1e-9  # relative accuracy of a fit
SMOOTH = (
    activations.smooth_leaky_relu(0.2), activations.linear_plus_tanh(0.3),
    activations.weakly_nonlinear(0.5), activations.linear_plus_tanh(0.7),
    activations.smooth_leaky_relu(0.6), activations.weakly_nonlinear(2.0),
)  # fmt: skip
"""Differentiable links with α > 0: their fits are critical points in the plain sense."""
NOISES = ("normal", "slow", "steep", "heavy", "other link", "balanced")


@dataclass(frozen=True)
class Noisy:
    """A problem, its noise ξ (n,), the ball's radius ρ, the step η, the run (K + 1, 1 + d), a fit.

    ``alpha`` and ``lam`` are the α and λ of the constants: the link's and the sample's own, except
    where a hypothesis is dropped and they are what a careless reader takes.
    """

    problem: Problem
    xi: Tensor
    rho: Tensor
    eta: Tensor
    run: Tensor
    fit: Tensor
    alpha: float
    lam: Tensor

    @property
    def size(self) -> Tensor:
        """√E[ξ²]."""
        return self.xi.square().mean(-1).sqrt()

    def one(self, i: int) -> Noisy:
        """Instance i of a batch."""
        return Noisy(
            self.problem.one(i), self.xi[i], self.rho[i], self.eta[i], self.run[:, i], self.fit[i],
            self.alpha, self.lam[i],
        )  # fmt: skip


@dataclass(frozen=True)
class Constants:
    """near = Δ*, far = T*, m and Λ of the ball of radius ρ, λ⁺."""

    near: Tensor
    far: Tensor
    m: Tensor
    smooth: Tensor
    lam_plus: Tensor


def constants(problem: Problem, rho: Tensor, alpha: float, lam: Tensor) -> Constants:
    """The theorem's constants from the noiseless outputs, for one problem or a batch."""
    near, _ = one_point.gaps(problem.link, problem.target)
    far = 1 / alpha - problem.target.a
    lam_plus = torch.linalg.eigvalsh(one_point.moment(problem.X, problem.y))[..., -1]
    m = one_point.contraction(lam, far, rho)
    return Constants(near, far, m, one_point.smoothness(lam_plus, near, rho), lam_plus)


def smallest(problem: Problem) -> Tensor:
    """λ; where it is 0, the smallest positive eigenvalue of A_y, as a careless reader takes it."""
    values = torch.linalg.eigvalsh(one_point.moment(problem.X, problem.y))
    positive = torch.where(values > 1e-12 * values[..., -1:], values, torch.inf)
    return positive.amin(-1)


def descend(
    problem: Problem, xi: Tensor, rho: Tensor, eta: Tensor, alpha: float, lam: Tensor
) -> list[Noisy]:
    """Descent on a batch of problems with targets y° + ξ, and a fit; one instance a problem."""
    y = problem.y + xi
    objective = single_index.Objective(problem.link, problem.X, y)
    run = gradient_descent(
        objective.loss, problem.start, eta, STEPS, grad=objective.gradient, batch_ndim=1,
        throw=False, progress=False,
    )  # fmt: skip
    theta = single_index.flat(SingleIndexDEQ(*run.theta))
    missing = torch.full((STEPS + 1 - len(theta), *theta.shape[1:]), torch.nan).to(theta)
    theta = torch.cat([theta, missing])
    late = torch.arange(STEPS + 1)[:, None] > run.stopped  # a run that ended holds no later point
    theta = torch.where(late[..., None], torch.nan, theta)
    found = noise.fit(problem.link, problem.X, y, problem.target, tol=FITTED)
    fit = torch.where(found.converged[:, None], single_index.flat(found.theta), torch.nan)
    batch = Noisy(problem, xi, rho, eta, theta, fit, alpha, lam)
    return [batch.one(i) for i in range(len(rho))]


class NoiseBall(Theorem[Noisy]):
    label = "noise-ball"
    title = "Descent with noisy targets"
    kind = "rate"
    chapter = "16_samples_and_noise"
    statement = (
        r"Let $y_i=h_{a^*}(w^{*\top}x_i)+\xi_i$, let $m,\Lambda$ be the constants of the ball of "
        r"radius $\rho<\Delta^*$, $e(\theta)=\mathbb E[\xi D(z,x)]$, "
        r"$\|e\|\le\bar\epsilon$ in the ball, and "
        r"$R^2=\mathbb E[\xi^2]\,T^*/((\Delta^*-\rho)m)$. If $2\bar\epsilon\le m\rho$ or $R<\rho$, "
        r"descent with $\eta\le1/\Lambda$ from the ball stays in it, "
        r"$\|\delta_{k+1}\|\le(1-\frac{\eta m}2)\|\delta_k\|+\eta\|e(\theta_k)\|$, "
        r"$\|\delta_{k+1}\|^2\le(1-\eta m)\|\delta_k\|^2+\eta mR^2$, and every critical point in "
        r"the ball has $\|\hat\theta-\theta^*\|\le\min\{\|e(\hat\theta)\|/m,R\}$."
    )
    hypotheses = {
        "sloped": Hypothesis(r"The slopes of $\varphi$ lie in $[\alpha,\beta]$, $\alpha>0$."),
        "identifiable": Hypothesis(
            r"$\lambda=\lambda_{\min}(\mathbb E[(y^\circ,x)(y^\circ,x)^\top])>0$."
        ),
        "start-in-ball": Hypothesis(r"$\|\theta_0-\theta^*\|\le\rho<\Delta^*$."),
        "small-noise": Hypothesis(r"$2\bar\epsilon\le m\rho$ or $R<\rho$."),
        "small-step": Hypothesis(r"$0<\eta\le1/\Lambda$."),
    }
    open_questions = (
        r"Is the largest pull of the noise over the ball of order $1/\sqrt n$ "
        "({doc}`/notebooks/16_samples_and_noise`)?",
        "Has descent one end for labels that no model of the link produces "
        "({doc}`/notebooks/16_samples_and_noise`)?",
    )
    least_activity = 1e-9  # of ρ; positions are known to about 1e-15

    def draw(self, generator: Generator, n: int) -> list[Noisy]:
        """Every link in turn, with six kinds of noise and up to the allowed size of it."""
        found = []
        for problem in _problems(generator, n):
            count, lam = len(problem.y), smallest(problem)
            rho, problem = _ball(generator, problem)
            alpha = problem.link.alpha
            known = constants(problem, rho, alpha, lam)
            xi = _scaled(generator, problem, _noises(generator, problem), rho, known)
            eta = uniform(generator, 0.3, 1, count) / known.smooth
            found += descend(problem, xi, rho, eta, alpha, lam)
        return found

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Noisy]]]:
        return {
            "sloped": _flat,
            "identifiable": _blind,
            "start-in-ball": _outside,
            "small-noise": _loud,
            "small-step": _long_steps,
        }

    def slack(self, instance: Noisy) -> dict[str, float]:
        problem, rho = instance.problem, instance.rho
        known = constants(problem, rho, instance.alpha, instance.lam)
        values = torch.linalg.eigvalsh(one_point.moment(problem.X, problem.y))
        R = noise.energy_radius(instance.size, known.m, known.near, known.far, rho)
        largest = _pulls(instance)[_inside(instance)].max()
        return {
            "sloped": problem.link.alpha,
            "identifiable": float(values[0] / values[-1]) - 1e-12,
            "start-in-ball": float(
                torch.minimum(1 + 1e-9 - problem.radius / rho, 1 - rho / known.near)
            ),
            "small-noise": float(torch.maximum(1 - 2 * largest / (known.m * rho), 1 - R / rho)),
            "small-step": float(1 + 1e-9 - instance.eta * known.smooth),
        }

    def measure(self, instance: Noisy) -> dict[str, Measurement]:
        problem, rho, eta = instance.problem, instance.rho, instance.eta
        known = constants(problem, rho, instance.alpha, instance.lam)
        m = known.m
        R = noise.energy_radius(instance.size, m, known.near, known.far, rho)
        target = single_index.flat(problem.target)
        delta = (instance.run - target).norm(dim=-1)
        pulls = _pulls(instance)
        pull = pulls[: len(delta) - 1]
        activity = float((instance.run[-1] - instance.run[0]).norm() / rho)
        activity = 1.0 if activity != activity else activity  # the run ended: enough happened

        # ‖δ‖ is known to eps ‖θ‖, so its change per step is known to that over η.
        blur = 8 * EPS * (delta[0] + target.norm()) / eta
        by_norm = ((delta.diff() / eta + m / 2 * delta[:-1]) / pull).max()
        gained = delta[1:].square() - (1 - eta * m) * delta[:-1].square()
        by_energy = (gained / (eta * m * R.square())).max()
        rounding = (4 * blur * delta.max() / (m * R.square())).nan_to_num(0.0)

        inside = _inside(instance)
        most = noise.largest_pull(instance.size, known.lam_plus, known.near, rho)
        e0 = noise.noise_pull(problem.link, problem.target, problem.X, instance.xi)
        H = one_point.hessian(problem.link, problem.target, problem.X)
        sharp = float(torch.linalg.lstsq(H, e0).solution.norm())
        end = (instance.fit - target).norm()
        fitted = 10 * FITTED * (1 + target.norm())
        error, allowed = _identity(instance)
        return {
            "∇L = Qδ − e": Measurement(error, allowed, activity),
            "‖e‖ ≤ √E[ξ²]·√λ⁺Δ*/(Δ* − ρ)²": Measurement(
                float(pulls[inside].max()), float(most), activity
            ),
            "‖δ₊‖ ≤ (1 − ηm/2)‖δ‖ + η‖e‖": Measurement(
                float(by_norm), float(1 + (blur / pull).max().nan_to_num(0.0)), activity
            ),
            "‖δ₊‖² ≤ (1 − ηm)‖δ‖² + ηmR²": Measurement(
                float(by_energy), float(1 + rounding), activity
            ),
            "‖δ‖ ≤ ρ": Measurement(float(delta.max()), float(rho * (1 + 1e-9)), activity),
            "‖θ̂ − θ*‖ ≤ ‖e(θ̂)‖/m": Measurement(
                float(end), float(pulls[-1] / m + fitted), activity, sharp=sharp
            ),
            "‖θ̂ − θ*‖ ≤ R": Measurement(float(end), float(R + fitted), activity, sharp=sharp),
        }


def _points(instance: Noisy) -> Tensor:
    """Iterates and fit, (K + 2, 1 + d)."""
    return torch.cat([instance.run, instance.fit[None]])


def _pulls(instance: Noisy) -> Tensor:
    """‖e‖ at the iterates and at the fit; NaN where there is none."""
    points = _points(instance)
    usable = points.isfinite().all(-1)
    theta = single_index.unflat(torch.where(usable[:, None], points, 0))
    e = noise.noise_pull(instance.problem.link, theta, instance.problem.X, instance.xi)
    return torch.where(usable, e.norm(dim=-1), torch.nan)


def _inside(instance: Noisy) -> Tensor:
    """Which of the points lie in the ball of radius ρ, where the theorem speaks of e.

    The start counts in any case: a run that begins outside must have some ‖e‖ to be held against.
    """
    away = (_points(instance) - single_index.flat(instance.problem.target)).norm(dim=-1)
    inside = away <= instance.rho * (1 + 1e-9)
    inside[0] = True
    return inside


def _identity(instance: Noisy) -> tuple[float, float]:
    """Error of ∇L = Qδ − e at the start, and what rounding allows.

    Every equilibrium errs by about eps (|u| + |z|)/(1 − aβ); the sums behind both sides are at
    most E[D ‖(z, x)‖ (|z| + |y°| + |ξ|)].
    """
    problem, xi = instance.problem, instance.xi
    link, start, X = problem.link, problem.start, problem.X
    g = single_index.flat(single_index.gradient(link, start, X, problem.y + xi))
    Q = one_point.one_point_matrix(link, start, problem.target, X)
    delta = single_index.flat(start) - single_index.flat(problem.target)
    wrong = (g - (Q @ delta - noise.noise_pull(link, start, X, xi))).norm()
    u = single_index.preactivation(link, start.a, single_index.index(start, X))
    D, z = single_index.slope(link, start.a, u), link(u)
    long = (z.square() + X.square().sum(-1)).sqrt()
    size = (D * long * (u.abs() + z.abs() + problem.y.abs() + xi.abs())).mean()
    return float(wrong), float(1e3 * EPS * size / (1 - start.a * link.beta))


# Draws ------------------------------------------------------------------------------------------


def _problems(
    generator: Generator, n: int, *, samples: Callable[[int], int] = lambda d: 0
) -> list[Problem]:
    """n problems: every link of `SMOOTH` in turn, with sizes and inputs changing along."""
    found = []
    for i, link in enumerate(SMOOTH):
        count = len(range(i, n, len(SMOOTH)))
        d = (1, 3, 10)[i % 3]
        kind = single_index.INPUTS[(i + i // 3) % 3]
        if count:
            found.append(random_problems(generator, count, link, d, n=samples(d), inputs=kind))
    return found


def _ball(generator: Generator, problem: Problem) -> tuple[Tensor, Problem]:
    """A radius from 0.01 Δ* to 0.95 Δ*, and a start on the sphere, inside it, or at θ*.

    Slow and balanced noise hardly pull at θ*, so with them no run begins there.
    """
    count = len(problem.y)
    rho = log_uniform(generator, 0.01, 0.95, count) * problem.gap
    where = torch.stack([torch.ones(count), torch.rand(count, generator=generator)]).to(rho)
    where = torch.cat([where, torch.zeros(1, count).to(rho)])
    kind = torch.arange(count) % len(NOISES)
    still = (kind == NOISES.index("slow")) | (kind == NOISES.index("balanced"))
    which = torch.randint(6, (count,), generator=generator) % torch.where(still, 2, 3)
    part = where[which, torch.arange(count)]
    delta = single_index.flat(problem.start) - single_index.flat(problem.target)
    return rho, _started(problem, (part * rho / problem.radius)[:, None] * delta)


def _noises(generator: Generator, problem: Problem) -> Tensor:
    """ξ of unit size, of the kinds of `NOISES` in turn.

    slow       D* (y°, x)ᵀv with v the slowest eigenvector of H: it moves the fit furthest.
    steep      the same with the steepest: it makes e largest.
    heavy      Student's t with 3 degrees of freedom.
    other link the targets come from tanh in the place of the link, with the same θ*.
    balanced   normal, without its part in the span of D* (y°, x): e(θ*) = 0.
    """
    link, target, X, y = problem.link, problem.target, problem.X, problem.y
    count, n = y.shape
    normal = torch.randn(count, n, generator=generator, dtype=torch.float64)
    chi = torch.randn(count, n, 3, generator=generator, dtype=torch.float64)
    u = single_index.preactivation(link, target.a[:, None], single_index.index(target, X))
    D = single_index.slope(link, target.a[:, None], u)
    rows = D[..., None] * torch.cat([y[..., None], X], dim=-1)
    ends = rows @ torch.linalg.eigh(rows.mT @ rows).eigenvectors[..., [0, -1]]
    basis = torch.linalg.qr(rows).Q
    other = SingleIndexDEQ(target.a.clamp(max=0.8), target.w)
    kinds = torch.stack(
        [
            normal,
            ends[..., 0],
            ends[..., 1],
            normal / chi.square().mean(-1).sqrt(),
            single_index.predict(activations.tanh, other, X) - y,
            normal - (basis @ (basis.mT @ normal[..., None]))[..., 0],
        ]
    )
    which = torch.arange(count) % len(NOISES)
    xi = kinds[which, torch.arange(count)]
    return xi / xi.square().mean(-1, keepdim=True).sqrt()


def _scaled(
    generator: Generator, problem: Problem, xi: Tensor, rho: Tensor, known: Constants
) -> Tensor:
    """ξ times a number that keeps R < ρ, or, for balanced noise, 2‖e‖ ≤ mρ where descent goes.

    ‖e‖ is bounded there by its largest value at 65 points: the centre, the two ends of the ball's
    a-axis and random points; a half is left for what they miss.
    """
    count = len(rho)
    one = torch.ones(count, dtype=torch.float64)
    by_energy = rho / noise.energy_radius(one, known.m, known.near, known.far, rho)
    centre = single_index.flat(problem.target)
    way = directions(generator, 62, *centre.shape)
    along = torch.zeros(3, *centre.shape, dtype=torch.float64)
    along[1, :, 0], along[2, :, 0] = 1, -1
    theta = single_index.unflat(centre + rho[:, None] * torch.cat([along, way]))
    pull = noise.noise_pull(problem.link, theta, problem.X, xi).norm(dim=-1).amax(0)
    by_pull = known.m * rho / (4 * pull)
    balanced = torch.arange(count) % len(NOISES) == NOISES.index("balanced")
    part = log_uniform(generator, 0.05, 0.999, count)
    return xi * (part * torch.where(balanced, by_pull, by_energy))[:, None]


# ------------------------------------------------------------ instances with one hypothesis less


def _quiet(
    generator: Generator, problem: Problem, rho: Tensor, eta: Tensor | None, alpha: float
) -> list[Noisy]:
    """Noise so small that it explains nothing: R and 2‖e‖/m are at most ‖δ₀‖/20."""
    count, lam = len(rho), smallest(problem)
    known = constants(problem, rho, alpha, lam)
    xi = torch.randn(problem.y.shape, generator=generator, dtype=torch.float64)
    size = xi.square().mean(-1).sqrt()
    R = noise.energy_radius(size, known.m, known.near, known.far, rho)
    most = 2 * noise.largest_pull(size, known.lam_plus, known.near, rho) / known.m
    xi = xi * (problem.radius / (20 * torch.maximum(R, most)))[:, None]
    if eta is None:
        eta = uniform(generator, 0.3, 1, count) / known.smooth
    return descend(problem, xi, rho, eta, alpha, lam)


def _started(problem: Problem, delta: Tensor) -> Problem:
    start = single_index.unflat(single_index.flat(problem.target) + delta)
    return Problem(problem.link, problem.X, problem.target, start, problem.y)


def _flat(generator: Generator, n: int) -> list[Noisy]:
    """ReLU, and α = 1 as if its flat half were not there: every point of a ray fits as well.

    (a, w) and (1 − c(1 − a), c w) give the same outputs, so nothing pulls along the ray.
    """
    problem = random_problems(generator, n, activations.relu, 3)
    ray = torch.cat([-problem.gap[:, None], problem.target.w], dim=-1)
    ray = ray / ray.norm(dim=-1, keepdim=True)
    part = uniform(generator, 0.1, 0.9, n) * problem.gap
    problem = _started(problem, part[:, None] * ray)
    return _quiet(generator, problem, problem.radius, None, 1.0)


def _blind(generator: Generator, n: int) -> list[Noisy]:
    """As many samples as inputs, one too few, and a start from which the samples see nothing."""
    found = []
    for problem in _problems(generator, n, samples=lambda d: d):
        A = one_point.moment(problem.X, problem.y)
        unseen = torch.linalg.eigh(A).eigenvectors[..., 0]
        problem = _started(problem, problem.radius[:, None] * unseen)
        rho = problem.radius
        found += _quiet(generator, problem, rho, None, problem.link.alpha)
    return found


def _outside(generator: Generator, n: int) -> list[Noisy]:
    """A small ball, and a start far outside, next to the edge a = 1/β where the slopes explode."""
    found = []
    for problem in _problems(generator, n):
        count = len(problem.y)
        rho = uniform(generator, 0.02, 0.1, count) * problem.gap
        near = 1 / problem.link.beta - log_uniform(generator, 1e-3, 1e-2, count) * problem.gap
        start = SingleIndexDEQ(near, problem.target.w * uniform(generator, 0, 0.5, count)[:, None])
        problem = Problem(problem.link, problem.X, problem.target, start, problem.y)
        found += _quiet(generator, problem, rho, None, problem.link.alpha)
    return found


def _loud(generator: Generator, n: int) -> list[Noisy]:
    """ξ = c (z₀ − y°) with c > 1 at a start on the sphere: the gradient is −(c − 1) Q δ₀ there."""
    found = []
    for problem in _problems(generator, n):
        count, lam = len(problem.y), smallest(problem)
        rho, alpha = problem.radius, problem.link.alpha
        known = constants(problem, rho, alpha, lam)
        c = uniform(generator, 1.2, 4, count)[:, None]
        xi = c * (single_index.predict(problem.link, problem.start, problem.X) - problem.y)
        eta = uniform(generator, 0.3, 1, count) / known.smooth
        found += descend(problem, xi, rho, eta, alpha, lam)
    return found


def _long_steps(generator: Generator, n: int) -> list[Noisy]:
    """Near θ*, along the steepest direction, with steps of 2.5 to 4 over the largest eigenvalue."""
    found = []
    for problem in _problems(generator, n):
        H = one_point.hessian(problem.link, problem.target, problem.X)
        values, vectors = torch.linalg.eigh(H)
        rho = problem.radius
        problem = _started(problem, 1e-3 * rho[:, None] * vectors[..., -1])
        eta = uniform(generator, 2.5, 4, len(rho)) / values[:, -1]
        found += _quiet(generator, problem, rho, eta, problem.link.alpha)
    return found
