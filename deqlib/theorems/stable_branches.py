"""Theorem `stable-branches`: one-point monotonicity for any self-weight, on stable equilibria."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from deqlib import activations, branches, one_point, single_index
from deqlib.activations import Link
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.single_index_problems import STRICT, directions, log_uniform, uniform

EPS = torch.finfo(torch.float64).eps
SOLVED = 1e-9
"""A residual of u = a φ(u) + s above this, relative to its terms, is no equilibrium."""
BISTABLE = tuple(
    link for link in STRICT if link.name in ("tanh", "arctan", "softsign", "0.3 s + 0.7 tanh s")
)
"""Odd links that are concave on [0, ∞): for a β > 1 three equilibria where |s| is small."""


@dataclass(frozen=True)
class Instance:
    """Two models on one sample, with an equilibrium of each chosen for every input.

    X (n, d); u and v (n): pre-activations of the chosen equilibria of θ and of the target θ*.
    y (n): what z = φ(u) is compared with; φ(v) where it is realisable.
    """

    link: Link
    X: Tensor
    theta: SingleIndexDEQ
    target: SingleIndexDEQ
    u: Tensor
    v: Tensor
    y: Tensor


class StableBranches(Theorem[Instance]):
    label = "stable-branches"
    title = "One-point monotonicity on stable branches"
    kind = "bound"
    chapter = "14_outside_the_ball"
    statement = (
        r"Let $a$ be any number, and choose for every input any solution of $z=\varphi(az+w^\top x)"
        r"$ with $a\varphi'<1$. Then $g=\mathbb E[(z-y)D(z,x)]$, $D=\varphi'/(1-a\varphi')$, is "
        r"$g=Q\delta$ with $Q=\mathbb E[D\frac{\bar\varphi}{1-a^*\bar\varphi}(z,x)(z,x)^\top]"
        r"\succeq0$, and $\langle g,\delta\rangle\ge\Delta^*\,\mathbb E[D(z-y)^2]\ge0$ with "
        r"$\Delta^*=1/\beta-a^*$; a step $\eta\le1/\lambda_{\max}(Q)$ takes $\|\delta\|^2$ to at "
        r"most $\|\delta\|^2-\eta\langle g,\delta\rangle$."
    )
    hypotheses = {
        "monotone": Hypothesis(r"$\varphi$ is non-decreasing, with slopes at most $\beta$."),
        "equilibrium": Hypothesis(r"Every $z$ solves $z=\varphi(az+w^\top x)$."),
        "stable": Hypothesis(r"At every $z$ chosen, $a\varphi'<1$."),
        "target": Hypothesis(r"The target has $a^*<1/\beta$."),
        "realisable": Hypothesis(r"$y$ is the equilibrium of the target, without noise."),
    }
    open_questions = (
        r"Does descent from beyond $a=1/\beta$ arrive? The distance cannot grow; that it goes "
        "to zero is measured ({ref}`sec-branch-train`), not proved.",
        "Must a run with leaky ReLU from beyond the distance of the singular point escape it "
        "({prf:ref}`leaky-basin`)?",
    )

    def draw(self, generator: Generator, n: int) -> list[Instance]:
        """Every link in turn; two in three beyond a β = 1, with a random stable equilibrium for
        each input (an input without one is left out)."""
        return [
            _instance(generator, STRICT[i % len(STRICT)], beyond=(i // len(STRICT)) % 3 > 0)
            for i in range(n)
        ]

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Instance]]]:
        return {
            "monotone": lambda generator, n: [_falling(generator) for _ in range(n)],
            "equilibrium": lambda generator, n: [_unsolved(generator, i) for i in range(n)],
            "stable": lambda generator, n: [_unstable(generator, i) for i in range(n)],
            "target": lambda generator, n: [_far_target(generator, i) for i in range(n)],
            "realisable": lambda generator, n: [_noisy(generator, i) for i in range(n)],
        }

    def slack(self, instance: Instance) -> dict[str, float]:
        link, theta, target = instance.link, instance.theta, instance.target
        gain = theta.a * link.derivative(instance.u)
        far = _residual(link, target, instance.X, instance.v)
        return {
            "monotone": link.alpha + SOLVED,
            "equilibrium": SOLVED - _residual(link, theta, instance.X, instance.u),
            "stable": float(1 - gain.max()),
            "target": float(1 / link.beta - target.a),
            "realisable": SOLVED - max(far, float((instance.y - link(instance.v)).abs().max())),
        }

    def measure(self, instance: Instance) -> dict[str, Measurement]:
        link, X, theta, target = instance.link, instance.X, instance.theta, instance.target
        u, v, y = instance.u, instance.v, instance.y
        z, D = link(u), single_index.slope(link, theta.a, u)
        delta = single_index.flat(theta) - single_index.flat(target)
        g = single_index.flat(single_index.pull_back(D, z, X, y))
        Q = branches.one_point_matrix(link, theta, target, X, u, v)
        bar = link.secant(u, v)
        lead = (1 - target.a * bar).abs()
        # Each term of Q δ is weight · ⟨δ, (z, x)⟩ · (z, x), and ⟨δ, (z, x)⟩ is formed from terms of
        # this size. The quotient φ̄ adds the rounding of z − y, magnified by 1/(1 − a*φ̄).
        length = torch.cat([z[:, None], X], dim=1).norm(dim=1)
        terms = length * (delta.norm() + single_index.flat(target).norm()) + u.abs() + v.abs()
        lost = (D * bar).abs() / lead * terms + D.abs() * (z.abs() + y.abs()) / lead
        rounding = float(64 * EPS * (lost * length).mean())
        inner = float(g @ delta)
        amount = float((D.abs() * (z - y).square()).mean())
        gap = float(1 / link.beta - target.a)
        forced = gap * float((D * (z - y).square()).mean()) / amount
        slip = rounding * float(delta.norm()) / amount
        size = float(torch.linalg.eigvalsh(Q).abs().max())
        after = float((delta - g / size).square().sum() / delta.square().sum())
        allowed = 1 - inner / size / float(delta.square().sum())
        activity = float((z - y).square().mean().sqrt() / (z.square() + y.square()).mean().sqrt())
        return {
            "g = Q δ": Measurement(float((g - Q @ delta).norm()), rounding, activity),
            "⟨g, δ⟩ ≥ Δ* E[D(z − y)²]": Measurement(
                inner / amount, forced - slip, activity, lower=True
            ),
            # As 1 + cos ≥ 1, so that the margin is the cosine.
            "cos(g, δ) ≥ 0": Measurement(
                1 + inner / float(g.norm() * delta.norm()), 1 - EPS, activity, lower=True
            ),
            "‖δ − g/λ‖² ≤ ‖δ‖² − ⟨g, δ⟩/λ": Measurement(
                after, allowed + 2 * rounding / size / float(delta.norm()) + 64 * EPS, activity
            ),
        }


def _residual(link: Link, theta: SingleIndexDEQ, X: Tensor, u: Tensor) -> float:
    """max |u − a φ(u) − s|/(1 + |u| + |a φ(u)|)."""
    pulled, s = theta.a * link(u), single_index.index(theta, X)
    return float(((u - pulled - s).abs() / (1 + u.abs() + pulled.abs())).max())


# Draws ------------------------------------------------------------------------------------------


def random_target(generator: Generator, link: Link, d: int) -> SingleIndexDEQ:
    """a* uniform in [−2, 0.8]/β and ‖w*‖ log-uniform in [0.3, 3]/β."""
    a = uniform(generator, -2, 0.8) / link.beta
    return SingleIndexDEQ(a, log_uniform(generator, 0.3, 3) / link.beta * directions(generator, d))


def pick(generator: Generator, allowed: Tensor, u: Tensor) -> Tensor:
    """For each row of u (n, K) one of the allowed entries, at random; each row must have one."""
    score = torch.rand(u.shape, generator=generator, dtype=torch.float64)
    chosen = torch.where(allowed, score, -1).argmax(-1, keepdim=True)
    return u.gather(-1, chosen)[:, 0]


def _size(generator: Generator) -> int:
    return int(torch.randint(1, 5, (), generator=generator))


def _instance(generator: Generator, link: Link, beyond: bool) -> Instance:
    """A random pair; with ``beyond``, a is between 1/β and 4/β, and below 0.9/α where α > 0."""
    d = _size(generator)
    target = random_target(generator, link, d)
    top = 4 / link.beta if link.alpha == 0 else min(4 / link.beta, 0.9 / link.alpha)
    low, high = (1 / link.beta, top) if beyond else (-2 / link.beta, 0.95 / link.beta)
    a = uniform(generator, low, high)
    kind = single_index.INPUTS[int(torch.randint(3, (), generator=generator))]
    while True:
        w = log_uniform(generator, 0.3, 3) / link.beta * directions(generator, d)
        theta = SingleIndexDEQ(a, w)
        X = single_index.random_inputs(generator, 160, d, kind)
        all_of_them = branches.equilibria(link, float(a), single_index.index(theta, X))
        rows = all_of_them.stable.any(-1).nonzero()[:40, 0]
        if len(rows) >= 8:
            break
    u = pick(generator, all_of_them.stable[rows], all_of_them.u[rows])
    return _paired(link, X[rows], theta, target, u)


def _paired(
    link: Link, X: Tensor, theta: SingleIndexDEQ, target: SingleIndexDEQ, u: Tensor
) -> Instance:
    v = single_index.preactivation(link, target.a, single_index.index(target, X))
    return Instance(link, X, theta, target, u, v, link(v))


# ------------------------------------------------------------ instances with one hypothesis less


def _falling(generator: Generator) -> Instance:
    """GELU, with z where it falls and y where it rises: D < 0, and the secant rises."""
    link, n = activations.gelu, 40
    a, far = uniform(generator, -0.8, 0.8, 2) / link.beta
    u = uniform(generator, -2.5, -0.9, n)
    w = -log_uniform(generator, 0.3, 3, 1)
    X = ((u - a * link(u)) / w)[:, None]
    target = SingleIndexDEQ(far, log_uniform(generator, 0.3, 3, 1))
    keep = X[:, 0] > 0
    return _paired(link, X[keep], SingleIndexDEQ(a, w), target, u[keep])


def _unsolved(generator: Generator, i: int) -> Instance:
    """Picard's iteration cut off after two steps from z = 0, where that is not nearly enough."""
    while True:
        one = _instance(generator, STRICT[i % len(STRICT)], beyond=False)
        s = single_index.index(one.theta, one.X)
        u = one.theta.a * one.link(one.theta.a * one.link(s) + s) + s
        if _residual(one.link, one.theta, one.X, u) > 1e-3:
            return Instance(one.link, one.X, one.theta, one.target, u, one.v, one.y)


def _unstable(generator: Generator, i: int) -> Instance:
    """Three equilibria each, and nine in ten samples on the middle one."""
    link = BISTABLE[i % len(BISTABLE)]
    d = _size(generator)
    target = random_target(generator, link, d)
    a = uniform(generator, 1.3, 2.5)
    width = branches.folds(link, float(a)).s.abs().max()
    theta = SingleIndexDEQ(a, uniform(generator, 0.2, 0.8) * width * directions(generator, d))
    X = single_index.random_inputs(generator, 160, d, "gaussian")
    found = branches.equilibria(link, float(a), single_index.index(theta, X))
    rows = (found.count == 3).nonzero()[:40, 0]
    middle = uniform(generator, 0, 1, len(rows)) < 0.9
    u = torch.where(middle, found.u[rows, 1], pick(generator, found.stable[rows], found.u[rows]))
    return _paired(link, X[rows], theta, target, u)


def _far_target(generator: Generator, i: int) -> Instance:
    """A target beyond a* β = 1, on its outer branch, and a model that is small on the other side:
    the secant between them is steeper than 1/a*."""
    link = BISTABLE[i % len(BISTABLE)]
    d = _size(generator)
    far, w = (
        uniform(generator, 2, 2.5),
        log_uniform(generator, 0.02, 0.1) * directions(generator, d),
    )
    target = SingleIndexDEQ(far, w)
    theta = SingleIndexDEQ(uniform(generator, -1, 0), -uniform(generator, 2, 6) * w)
    X = single_index.random_inputs(generator, 40, d, "bounded")
    u = single_index.preactivation(link, theta.a, single_index.index(theta, X))
    v = branches.outer_branch(link, target.a, single_index.index(target, X))
    return Instance(link, X, theta, target, u, v, link(v))


def _noisy(generator: Generator, i: int) -> Instance:
    """Next to the target, with noise ten times as large as what is left to learn."""
    one = _instance(generator, STRICT[i % len(STRICT)], beyond=False)
    d = one.X.shape[1]
    away = 0.01 * uniform(generator, 0.1, 1) * one_point.gaps(one.link, one.target)[0]
    theta = single_index.unflat(single_index.flat(one.target) + away * directions(generator, 1 + d))
    u = single_index.preactivation(one.link, theta.a, single_index.index(theta, one.X))
    apart = float((one.link(u) - one.y).square().mean().sqrt())
    noise = torch.randn(len(one.y), generator=generator, dtype=torch.float64)
    y = one.y + 10 * max(apart, math.sqrt(EPS)) * noise
    return Instance(one.link, one.X, theta, one.target, u, one.v, y)
