"""Theorem `one-point-monotonicity`: descent never points away from the target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from deqlib import activations, one_point, single_index
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems import secant_identity
from deqlib.theorems.base import Hypothesis, Measurement, Theorem
from deqlib.theorems.secant_identity import Pair, along, problems, secant_rounding, solved
from deqlib.theorems.single_index_problems import (
    STRICT,
    Problem,
    directions,
    log_uniform,
    random_problems,
    uniform,
)

EPS = torch.finfo(torch.float64).eps
STEPS = 10


@dataclass(frozen=True)
class Run(Pair):
    """A pair of models, and ‖θ_k − θ*‖ of a descent from θ, as long as it stays in {a < 1/β}."""

    distance: Tensor | None = None


class OnePointMonotonicity(Theorem[Run]):
    label = "one-point-monotonicity"
    title = "One-point monotonicity"
    kind = "bound"
    chapter = "12_one_point_monotonicity"
    statement = (
        r"Let $Q=\mathbb E\big[\frac{D\bar\varphi}{1-a^*\bar\varphi}(z,x)(z,x)^\top\big]$. Then "
        r"$\nabla L=Q\,\delta$ with $Q\succeq0$, $\langle\nabla L,\delta\rangle\ge"
        r"\Delta^*\,\mathbb E[D(z-y)^2]\ge0$ and "
        r"$\|\nabla L\|^2\le\lambda_{\max}(Q)\,\langle\nabla L,\delta\rangle$. So "
        r"$\|\theta-\theta^*\|$ increases neither along the flow, while $a<1/\beta$, nor in a "
        r"step of descent with $\eta\le2/\lambda_{\max}(Q)$. If $\varphi'>0$ and $\lambda>0$, then "
        r"$\theta^*$ is the only critical point with $a<1/\beta$. Where $\varphi'$ is continuous, "
        r"$Q(\theta^*)=\nabla^2L(\theta^*)$."
    )
    hypotheses = {
        "monotone": Hypothesis(r"$\varphi$ is non-decreasing, with slopes in $[\alpha,\beta]$."),
        "equilibrium": Hypothesis("$z$ is the exact equilibrium of the model."),
        "realisable": Hypothesis(
            r"$y$ is the equilibrium of a model $\theta^*$ with the same $\varphi$ and $x$."
        ),
        "admissible": Hypothesis(r"$a<1/\beta$ and $a^*<1/\beta$."),
        "positive-slope": Hypothesis(r"$\varphi'>0$ (for strictness alone)."),
        "identifiable": Hypothesis(
            r"$\lambda=\lambda_{\min}(\mathbb E[(y,x)(y,x)^\top])>0$ (for strictness alone)."
        ),
    }
    open_questions = (
        "What is the exact basin of the target, and what happens at its edge "
        "({doc}`/notebooks/12_one_point_monotonicity`)?",
    )

    def draw(self, generator: Generator, n: int) -> list[Run]:
        """Every link, starts inside and outside the ball around θ*, and a descent from each."""
        runs = []
        for batch in problems(generator, n):
            paths = descended(batch, generator)
            runs += [run_of(one, path) for one, path in zip(solved([batch]), paths, strict=True)]
        return runs

    @property
    def drop(self) -> dict[str, Callable[[Generator, int], list[Run]]]:
        return {
            "monotone": lambda g, n: [run_of(falling(g)) for _ in range(n)],
            "equilibrium": _unsolved,
            "realisable": noisy,
            "admissible": _unstable,
            "positive-slope": lambda g, n: [run_of(dead(g)) for _ in range(n)],
            "identifiable": _unidentifiable,
        }

    def slack(self, instance: Run) -> dict[str, float]:
        link = instance.link
        own, _ = secant_identity.residuals(instance)
        low, high = torch.linalg.eigvalsh(one_point.moment(instance.X, instance.y))[[0, -1]]
        return {
            "monotone": 1.0 if link.monotone else -1.0,
            "equilibrium": float(1 - (own / secant_identity.rounding(instance)).max()),
            "realisable": secant_identity.same_outputs(instance),
            "admissible": secant_identity.room(instance),
            "positive-slope": float(link.derivative(instance.u).min()),
            "identifiable": float(low / high) - 1e-13,
        }

    def measure(self, instance: Run) -> dict[str, Measurement]:
        link, X, y, u, v = instance.link, instance.X, instance.y, instance.u, instance.v
        theta, target, delta = instance.theta, instance.target, instance.delta
        z, D = link(u), single_index.slope(link, theta.a, u)
        bar, a_star = link.secant(u, v), target.a
        near = 1 / link.beta - a_star

        g = single_index.flat(single_index.pull_back(D, z, X, y))
        Q = one_point.adjoint_matrix(link, target, X, u, v, D)
        strict = one_point.strict_adjoint_matrix(link, theta, target, X, u, v, D)
        descent = g @ delta
        wrong = allowances(instance, D)
        lam, top = torch.linalg.eigvalsh(strict)[[0, -1]]
        largest = torch.linalg.eigvalsh(Q)[-1]

        def said(measured: Tensor, bound: Tensor, lower: bool = False) -> Measurement:
            return Measurement(float(measured), float(bound), instance.activity, lower=lower)

        quadratic = (D * (1 - a_star * bar) * bar * (u - v).square()).mean()
        squared_error = near * (D * (z - y).square()).mean()
        # The eigenvalues of a matrix of size 1 + d err by (1 + d) eps of the largest.
        floor = 10 * len(delta) * EPS
        found = {
            "∇L = Qδ": said((g - Q @ delta).norm(), wrong["gradient"]),
            "⟨∇L, δ⟩ = E[D (1 − a*φ̄)/φ̄ (z − y)²]": said(
                (descent - quadratic).abs(), wrong["descent"]
            ),
            "⟨∇L, δ⟩ = δᵀQ̃δ": said((descent - delta @ strict @ delta).abs(), wrong["strict"]),
            "⟨∇L, δ⟩ ≥ Δ* E[D (z − y)²]": said(descent, squared_error - wrong["descent"], True),
            "‖∇L‖² ≤ λ_max(Q) ⟨∇L, δ⟩": said(
                g.square().sum(), largest * (descent + wrong["descent"]) * (1 + floor)
            ),
            "Q̃ ≻ 0": Measurement(
                float(lam / top) if top > 0 else 0.0, floor, instance.activity, lower=True
            ),
            "‖∇L‖ ≥ λ_min(Q̃) ‖δ‖": said(
                g.norm(), lam * delta.norm() - wrong["strict"] / delta.norm(), True
            ),
        }
        if instance.distance is not None and len(instance.distance) > 1:
            path = instance.distance
            size = path[0] + single_index.flat(target).norm()
            found["‖θ_k − θ*‖ does not increase"] = Measurement(
                float(path.diff().max()), float(100 * EPS * size), float(1 - path[-1] / path[0])
            )
        D_star = single_index.slope(link, a_star, v)
        at_target = one_point.adjoint_matrix(link, target, X, v, v, D_star)
        H = one_point.weighted_moment(D_star.square(), X, link(v))
        found["Q(θ*) = E[D*² (y, x)(y, x)ᵀ]"] = said((at_target - H).norm(), 100 * EPS * H.norm())
        return found


def allowances(pair: Pair, D: Tensor) -> dict[str, Tensor]:
    """What rounding allows in the sums over the sample that belong to an adjoint D (n).

    Sample by sample the terms differ by what `secant_identity.rounding` and `secant_rounding`
    allow; and a sum of n products of vectors of length 1 + d errs by (n + d) eps times the sum of
    their sizes.
    """
    link, X, y, u, v, delta = pair.link, pair.X, pair.y, pair.u, pair.v, pair.delta
    z, D = link(u), D.abs()
    bar, a, a_star = link.secant(u, v).abs(), pair.theta.a, pair.target.a
    terms, ends = secant_identity.rounding(pair), secant_rounding(pair)
    summed = (len(y) + len(delta)) * EPS
    r = (z.square() + X.square().sum(-1)).sqrt()
    r_y = (y.square() + X.square().sum(-1)).sqrt()
    gap = (z - y).abs()
    gain = one_point.gain(link, a_star, u, v).abs()
    gradient = (D * r * (gain * terms + (1 + gain * a_star.abs()) * 2 * ends)).mean()
    gradient = gradient + summed * (D * r * (gap + gain * r * delta.norm())).mean()
    # z − y = φ̄(u − v) up to `ends`, and ⟨δ, (z, x)⟩ = u − v − a*(z − y) up to `terms`.
    reach = (u - v).abs() + 2 * a_star.abs() * gap
    descent = (D * (gap * terms + ends * (2 * reach + a_star.abs() * ends))).mean()
    descent = descent + summed * (D * gap * (r * delta.norm() + reach)).mean()
    weight = D * (1 - a_star * bar).abs() * bar / (1 - a * bar).square()
    error = terms + a.abs() * ends
    move = along(delta, y, X).abs()
    strict = descent + (weight * error * (2 * move + error)).mean()
    strict = strict + summed * (weight * r_y.square()).mean() * delta.square().sum()
    return {"gradient": gradient, "descent": descent, "strict": strict}


# Draws ------------------------------------------------------------------------------------------


def run_of(pair: Pair, distance: Tensor | None = None) -> Run:
    return Run(pair.link, pair.X, pair.theta, pair.target, pair.u, pair.v, pair.y, distance)


def descended(batch: Problem, generator: Generator) -> list[Tensor]:
    """‖θ_k − θ*‖ along descents with steps drawn between 0 and 2/λ_max(Q(θ_k)), each up to where
    it leaves {a < 1/β}."""
    link, X, target, theta = batch.link, batch.X, batch.target, batch.start
    v = single_index.preactivation(link, target.a[:, None], single_index.index(target, X))
    away, u = [single_index.distance(theta, target)], None
    inside = torch.ones_like(batch.gap, dtype=torch.bool)
    count = torch.ones_like(batch.gap, dtype=torch.int64)
    for _ in range(STEPS):
        s = single_index.index(theta, X)
        u = single_index.preactivation(link, theta.a[:, None], s, start=u)
        D = single_index.slope(link, theta.a[:, None], u)
        largest = torch.linalg.eigvalsh(one_point.adjoint_matrix(link, target, X, u, v, D))[:, -1]
        eta = uniform(generator, 0, 2, len(largest)) / largest
        g = single_index.flat(single_index.pull_back(D, link(u), X, batch.y))
        moved = single_index.unflat(single_index.flat(theta) - eta[:, None] * g)
        inside = inside & single_index.admissible(link, moved.a)
        count = count + inside
        theta = SingleIndexDEQ(
            torch.where(inside, moved.a, theta.a), torch.where(inside[:, None], moved.w, theta.w)
        )
        away.append(single_index.distance(theta, target))
    path = torch.stack(away)
    return [path[: count[i], i] for i in range(len(count))]


def falling(generator: Generator, *, low: float = -1.0, high: float = 0.5) -> Pair:
    """GELU where it falls: u to the right of its lowest point, v far to the left, and z < y.

    φ′(u) > 0 and φ̄ < 0 on every sample. One input, near 1; self-weights between low and high.
    """
    link = activations.gelu
    X = 1 + 0.1 * uniform(generator, -1, 1, 8, 1)
    models = []
    for at in (uniform(generator, -0.6, -0.35), uniform(generator, -4, -2.5)):
        a = uniform(generator, low, high)
        models.append(SingleIndexDEQ(a, (at - a * link(at))[None]))
    theta, target = models
    u, v = (single_index.preactivation(link, one.a, X @ one.w) for one in models)
    return Pair(link, X, theta, target, u, v, link(v))


def _unsolved(generator: Generator, n: int) -> list[Run]:
    pairs = solved(problems(generator, n))
    return [run_of(secant_identity.unsolved(one, generator)) for one in pairs]


def noisy(generator: Generator, n: int) -> list[Run]:
    """Labels with noise of the size of the targets' own spread; starts close to the target."""
    runs = []
    for pair in solved(problems(generator, n, inside=True)):
        noise = torch.randn(len(pair.y), generator=generator, dtype=torch.float64)
        runs.append(replace(run_of(pair), y=pair.y + 0.5 * pair.y.std() * noise))
    return runs


def _unstable(generator: Generator, n: int) -> list[Run]:
    """tanh with a between 1.5 and 3, on the branch with aφ′ > 1 between its two folds."""
    runs = []
    batches = problems(generator, n, links=(activations.tanh,))
    for pair in solved(batches):
        a = uniform(generator, 1.5, 3)
        fold = torch.acosh(a.sqrt())
        u = 0.9 * fold * uniform(generator, -1, 1, len(pair.y))
        theta = SingleIndexDEQ(a, pair.theta.w)
        runs.append(run_of(secant_identity.at_preactivations(pair, theta, u)))
    return runs


def dead(generator: Generator) -> Pair:
    """ReLU on positive inputs with negative weights: no sample is active, and the gradient is 0."""
    link, d = activations.relu, 3
    X = log_uniform(generator, 0.2, 2, 24, d)
    w_star = log_uniform(generator, 0.5, 2, d)
    w_star[0] = -((X[:, 1:] @ w_star[1:]) / X[:, 0]).median()  # active on half of the samples
    target = SingleIndexDEQ(uniform(generator, -1, 0.8), w_star)
    theta = SingleIndexDEQ(uniform(generator, -1, 0.8), -log_uniform(generator, 0.1, 2, d))
    u, v = (single_index.preactivation(link, one.a, X @ one.w) for one in (theta, target))
    return Pair(link, X, theta, target, u, v, link(v))


def _unidentifiable(generator: Generator, n: int) -> list[Run]:
    """In turn: as many samples as inputs, and the identity; θ has the outputs of θ*."""
    return [
        run_of(too_few_samples(generator) if i % 2 == 0 else on_the_ray(generator))
        for i in range(n)
    ]


def too_few_samples(generator: Generator) -> Pair:
    """d samples of d inputs, and a start with ⟨δ, (y, x)⟩ = 0 on each: it has the same outputs."""
    link = STRICT[int(torch.randint(len(STRICT), (), generator=generator))]
    d = 1 + int(torch.randint(5, (), generator=generator))
    batch = random_problems(generator, 1, link, d, n=d).one(0)
    v = single_index.preactivation(link, batch.target.a, batch.X @ batch.target.w)
    y = link(v)
    move = torch.cat([torch.ones(1, dtype=v.dtype), -torch.linalg.solve(batch.X, y)])
    part = uniform(generator, 0.2, 0.9) * (1 / link.beta - batch.target.a)
    theta = single_index.unflat(single_index.flat(batch.target) + part * move / move.norm())
    u = single_index.preactivation(link, theta.a, batch.X @ theta.w)
    return Pair(link, batch.X, theta, batch.target, u, v, y)


def on_the_ray(generator: Generator) -> Pair:
    """The identity: every (1 − P, P b) with P > 0 has the outputs bᵀx."""
    d = 1 + int(torch.randint(5, (), generator=generator))
    X = torch.randn(8 * (d + 2), d, generator=generator, dtype=torch.float64)
    b = log_uniform(generator, 0.3, 3) * directions(generator, d)
    P = uniform(generator, 0.2, 3, 2)
    theta, target = (SingleIndexDEQ(1 - p, p * b) for p in P)
    u, v = (
        single_index.preactivation(activations.identity, one.a, X @ one.w)
        for one in (theta, target)
    )
    return Pair(activations.identity, X, theta, target, u, v, v)
