"""Theorem `positive-adjoint`: any backward pass of the right sign keeps one-point monotonicity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from deqlib import one_point, single_index
from deqlib.activations import Link
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems import one_point_monotonicity, secant_identity
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.one_point_monotonicity import allowances
from deqlib.theorems.secant_identity import Pair, problems, solved
from deqlib.theorems.single_index_problems import (
    STRICT,
    Problem,
    directions,
    log_uniform,
    random_problems,
    uniform,
)

EPS = torch.finfo(torch.float64).eps
STEPS = 12
KINDS = ("exact", "Jacobian-free", "one", "two terms", "three terms", "random")
"""Adjoints that are drawn. Where two terms are negative, three stand in for them."""


@dataclass(frozen=True)
class Directed(Pair):
    """A pair of models with an adjoint.

    D        : (n) the adjoint on every sample.
    eta      : (n) a step size for a step on that sample alone.
    distance : (STEPS + 1) ‖θ_k − θ*‖ along steps on one sample each, or None.
    """

    D: Tensor
    eta: Tensor
    distance: Tensor | None = None


def bounds(pair: Pair, D: Tensor) -> tuple[Tensor, Tensor]:
    """m_D = λ d₋ T*/(T* + ρ)² and Λ_D = λ⁺ d₊ Δ*/(Δ* − ρ)² with d₋ ≤ D ≤ d₊; m_D = 0 for α = 0."""
    link, target, rho = pair.link, pair.target, pair.delta.norm()
    lam = torch.linalg.eigvalsh(one_point.moment(pair.X, pair.y))
    near = 1 / link.beta - target.a
    m = torch.zeros_like(rho)
    if link.alpha > 0:
        far = 1 / link.alpha - target.a
        m = lam[0].clamp_min(0) * D.min() * far / (far + rho) ** 2
    return m, lam[-1] * D.max() * near / (near - rho) ** 2


def longest_step(pair: Pair, D: Tensor) -> Tensor:
    """(n): 2Δ*/(D ‖(z, x)‖²), the longest step of the theorem on each sample; 1 where D = 0."""
    near = 1 / pair.link.beta - pair.target.a
    squared = pair.link(pair.u).square() + pair.X.square().sum(-1)
    pull = D.abs() * squared
    return torch.where(pull > 0, 2 * near / pull, 1.0)


class PositiveAdjoint(Theorem[Directed]):
    label = "positive-adjoint"
    title = "Any positive adjoint"
    kind = "bound"
    chapter = "12_one_point_monotonicity"
    statement = (
        r"For every $D\ge0$ the direction $g_D=\mathbb E[(z-y)D(z,x)]$ is $Q_D\,\delta$ with "
        r"$Q_D=\mathbb E\big[\frac{D\bar\varphi}{1-a^*\bar\varphi}(z,x)(z,x)^\top\big]\succeq0$, "
        r"and $\langle g_D,\delta\rangle\ge\Delta^*\,\mathbb E[D(z-y)^2]\ge0$. If "
        r"$d_-\le D\le d_+$ and $\rho=\|\delta\|<\Delta^*$, then "
        r"$m_D\|\delta\|^2\le\langle g_D,\delta\rangle$ and "
        r"$\lambda_{\max}(Q_D)\le\Lambda_D$ with "
        r"$m_D=\lambda d_-T^*/(T^*+\rho)^2$ and "
        r"$\Lambda_D=\lambda^+d_+\Delta^*/(\Delta^*-\rho)^2$. A step on one sample with "
        r"$\eta\le2\Delta^*/(D\|(z,x)\|^2)$ never increases $\|\delta\|$."
    )
    least_activity = 1e-9  # a run of a dozen steps on saturated samples hardly moves
    hypotheses = {
        "monotone": Hypothesis(r"$\varphi$ is non-decreasing, with slopes in $[\alpha,\beta]$."),
        "equilibrium": Hypothesis("$z$ is the exact equilibrium of the model."),
        "realisable": Hypothesis(
            r"$y$ is the equilibrium of a model $\theta^*$ with the same $\varphi$, $a^*<1/\beta$."
        ),
        "positive": Hypothesis(r"$D\ge0$ on every sample."),
        "in-ball": Hypothesis(r"$\|\theta-\theta^*\|<\Delta^*$ (for $\Lambda_D$ and $m_D$ alone)."),
        "short-step": Hypothesis(
            r"$\eta\le2\Delta^*/(D\|(z,x)\|^2)$ (for steps on one sample alone)."
        ),
    }

    def draw(self, generator: Generator, n: int) -> list[Directed]:
        """Every link with the adjoints of `KINDS` in turn, and a run of steps on one sample."""
        found = []
        for batch in problems(generator, n, inside=True):
            kind = (torch.arange(len(batch.y)) + int(torch.randint(6, (), generator=generator))) % 6
            paths = one_by_one(batch, kind, generator)
            for pair, k, path in zip(solved([batch]), kind, paths, strict=True):
                D = adjoint(pair.link, pair.theta.a, pair.u, k, generator)
                found.append(stepped(pair, D, generator, path))
        return found

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Directed]]]:
        return {
            "monotone": _falling,
            "equilibrium": _unsolved,
            "realisable": lambda g, n: [free(one, g) for one in one_point_monotonicity.noisy(g, n)],
            "positive": lambda g, n: [truncated(g, 2 + 2 * (i % 2)) for i in range(n)],
            "in-ball": lambda g, n: [free(far(g), g) for _ in range(n)],
            "short-step": _long_steps,
        }

    def slack(self, instance: Directed) -> dict[str, float]:
        own, _ = secant_identity.residuals(instance)
        near = 1 / instance.link.beta - instance.target.a
        too_long = (instance.eta / longest_step(instance, instance.D)).max()
        realisable = secant_identity.same_outputs(instance) if near > 0 else float(near)
        smallest = float(instance.D.min())
        return {
            "monotone": 1.0 if instance.link.monotone else -1.0,
            "equilibrium": float(1 - (own / secant_identity.rounding(instance)).max()),
            "realisable": realisable,
            "positive": smallest if smallest < 0 else 1.0,
            "in-ball": float(1 - instance.delta.norm() / near),
            "short-step": float(1 + 1e-9 - too_long),
        }

    def measure(self, instance: Directed) -> dict[str, Measurement]:
        link, X, y, u, v = instance.link, instance.X, instance.y, instance.u, instance.v
        delta, D, target = instance.delta, instance.D, instance.target
        z, near, squared = link(u), 1 / link.beta - target.a, delta.square().sum()
        g = single_index.flat(single_index.pull_back(D, z, X, y))
        Q = one_point.adjoint_matrix(link, target, X, u, v, D)
        eigenvalues = torch.linalg.eigvalsh(Q)
        m, smooth = bounds(instance, D)
        descent, wrong = g @ delta, allowances(instance, D)
        floor = 100 * len(delta) * EPS

        def said(measured: Tensor, bound: Tensor, lower: bool = False) -> Measurement:
            return Measurement(float(measured), float(bound), instance.activity, lower=lower)

        least = near * (D * (z - y).square()).mean()
        moved = (delta - g / smooth).square().sum()
        found = {
            "g_D = Q_D δ": said((g - Q @ delta).norm(), wrong["gradient"]),
            "Q_D ⪰ 0": said(eigenvalues[0], -floor * eigenvalues.abs().max(), True),
            "⟨g_D, δ⟩ ≥ Δ* E[D (z − y)²]": said(descent, least - wrong["descent"], True),
            "⟨g_D, δ⟩ ≥ m_D ‖δ‖²": said(descent, m * squared - wrong["descent"], True),
            "λ_max(Q_D) ≤ Λ_D": said(eigenvalues[-1], smooth * (1 + floor)),
            "‖δ − g_D/Λ_D‖² ≤ (1 − m_D/Λ_D)‖δ‖²": said(
                moved, (1 - m / smooth) * squared * (1 + floor)
            ),
            **single_steps(instance, said),
        }
        if instance.distance is not None:
            path = instance.distance
            size = path[0] + single_index.flat(target).norm()
            found["no step of a run increases ‖δ‖"] = Measurement(
                float(path.diff().max()), float(floor * size), float(1 - path[-1] / path[0])
            )
        return found


def single_steps(
    instance: Directed, said: Callable[[Tensor, Tensor, bool], Measurement]
) -> dict[str, Measurement]:
    """The step on each sample alone: what it takes off ‖δ‖², on the sample that fits worst."""
    link, X, y, D, eta = instance.link, instance.X, instance.y, instance.D, instance.eta
    delta, z = instance.delta, link(instance.u)
    near = 1 / link.beta - instance.target.a
    rows = torch.cat([z[:, None], X], dim=1)
    r = rows.square().sum(-1)
    push = eta * D * (z - y)
    fallen = delta.square().sum() - (delta - push[:, None] * rows).square().sum(-1)
    least = eta * D * (z - y).square() * (2 * near - eta * D * r)
    rounding = 2 * push.abs() * secant_identity.rounding(instance)
    rounding = rounding + 8 * len(delta) * EPS * (delta.norm() + push.abs() * r.sqrt()).square()
    i = int(((fallen - least) / (least.abs() + rounding)).argmin())
    j = int((fallen / rounding).argmin())
    return {
        "‖δ‖² − ‖δ₊‖² ≥ ηD(z − y)²(2Δ* − ηD‖(z, x)‖²)": said(
            fallen[i] + rounding[i], least[i], True
        ),
        "no step on one sample increases ‖δ‖": said(-fallen[j], rounding[j], False),
    }


# Draws ------------------------------------------------------------------------------------------


def adjoint(link: Link, a: Tensor, u: Tensor, kind: Tensor, generator: Generator) -> Tensor:
    """Adjoints by their number in `KINDS`: u, a and kind broadcast; never negative for a β < 1.

    The random ones are log-uniform over two decades, and a fifth of them are 0.
    """
    two, three = (single_index.truncated_slope(link, a, u, terms) for terms in (2, 3))
    free = link.derivative(u)
    chance = torch.rand((2, *u.shape), generator=generator, dtype=torch.float64)
    drawn = torch.where(chance[0] < 0.2, 0, link.beta * 10 ** (2 * chance[1] - 1))
    every = torch.stack(
        [
            single_index.slope(link, a, u), free, link.beta * torch.ones_like(u),
            torch.where(two >= 0, two, three), three, drawn,
        ]
    )  # fmt: skip
    return torch.take_along_dim(every, kind.expand(u.shape)[None], dim=0)[0]


def stepped(
    pair: Pair, D: Tensor, generator: Generator, distance: Tensor | None = None
) -> Directed:
    """The pair with the adjoint D and steps up to the longest of the theorem."""
    eta = uniform(generator, 0.1, 1, len(D)) * longest_step(pair, D)
    return Directed(
        pair.link, pair.X, pair.theta, pair.target, pair.u, pair.v, pair.y, D, eta, distance
    )


def free(pair: Pair, generator: Generator) -> Directed:
    """The pair with the Jacobian-free adjoint."""
    return stepped(pair, pair.link.derivative(pair.u), generator)


def one_by_one(batch: Problem, kind: Tensor, generator: Generator) -> list[Tensor]:
    """‖θ_k − θ*‖ of every problem over steps on one random sample each, between half the longest
    step of the theorem and the longest."""
    link, theta, target = batch.link, batch.start, batch.target
    near = batch.gap
    away = [single_index.distance(theta, target)]
    for _ in range(STEPS):
        pick = torch.randint(batch.y.shape[-1], (len(batch.y),), generator=generator)
        x, y = batch.X[torch.arange(len(pick)), pick], batch.y[torch.arange(len(pick)), pick]
        u = single_index.preactivation(link, theta.a, (x * theta.w).sum(-1))
        D = adjoint(link, theta.a, u, kind, generator)
        rows = torch.cat([link(u)[:, None], x], dim=1)
        part = uniform(generator, 0.5, 1, len(D))
        eta = torch.where(D > 0, part * 2 * near / (D * rows.square().sum(-1)), 0)
        move = (eta * D * (link(u) - y))[:, None] * rows
        theta = single_index.unflat(single_index.flat(theta) - move)
        away.append(single_index.distance(theta, target))
    return list(torch.stack(away).T)


def _falling(generator: Generator, n: int) -> list[Directed]:
    """GELU where it falls, in the ball: both self-weights between −6 and −4."""
    return [
        free(one_point_monotonicity.falling(generator, low=-6, high=-4), generator)
        for _ in range(n)
    ]


def _unsolved(generator: Generator, n: int) -> list[Directed]:
    pairs = solved(problems(generator, n, inside=True))
    return [free(secant_identity.unsolved(one, generator), generator) for one in pairs]


def truncated(generator: Generator, terms: int) -> Directed:
    """An even number of terms where a is far below −1/β: their sum is negative on every sample."""
    link = STRICT[int(torch.randint(len(STRICT), (), generator=generator))]
    d = 1 + int(torch.randint(4, (), generator=generator))
    X = torch.randn(8 * (d + 2), d, generator=generator, dtype=torch.float64)
    a = uniform(generator, -12, -6, 2) / link.beta
    w = log_uniform(generator, 0.3, 1, 2, 1) / link.beta * directions(generator, 2, d)
    theta, target = (SingleIndexDEQ(a[i], w[i]) for i in (0, 1))
    u, v = (single_index.preactivation(link, one.a, X @ one.w) for one in (theta, target))
    pair = Pair(link, X, theta, target, u, v, link(v))
    return stepped(pair, single_index.truncated_slope(link, theta.a, u, terms), generator)


def far(generator: Generator) -> Pair:
    """A target just below 1/β, so that its ball is small, and weights at several times Δ*."""
    link = STRICT[int(torch.randint(len(STRICT), (), generator=generator))]
    d = 1 + int(torch.randint(4, (), generator=generator))
    batch = random_problems(generator, 1, link, d)
    near = log_uniform(generator, 0.02, 0.1, 1) / link.beta
    target = SingleIndexDEQ(1 / link.beta - near, batch.target.w)
    away = uniform(generator, 10, 30, 1, 1) * near * directions(generator, 1, d)
    start = SingleIndexDEQ(target.a, target.w + away)
    y = single_index.predict(link, target, batch.X)
    return solved([Problem(link, batch.X, target, start, y)])[0]


def _long_steps(generator: Generator, n: int) -> list[Directed]:
    """Steps of three to thirty times the longest of the theorem, with the Jacobian-free adjoint."""
    found = []
    for pair in solved(problems(generator, n, inside=True)):
        one = free(pair, generator)
        times = log_uniform(generator, 3, 30)
        found.append(replace(one, eta=times * longest_step(one, one.D)))
    return found
