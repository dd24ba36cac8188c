"""Theorem `one-point-monotonicity`: it holds, its bounds are attained, each hypothesis is used."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from deqlib import one_point, single_index
from deqlib.activations import arctan, gelu, relu, smooth_leaky_relu, tanh
from deqlib.dynamics import Outcome, gradient_descent, gradient_flow
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems import THEOREMS, one_point_monotonicity, verify
from deqlib.theorems.one_point_monotonicity import OnePointMonotonicity, run_of
from deqlib.theorems.secant_identity import Pair, problems, solved
from deqlib.theorems.single_index_problems import random_problems

THEOREM = OnePointMonotonicity()
BOUND, TOP, STRICT = "⟨∇L, δ⟩ ≥ Δ* E[D (z − y)²]", "‖∇L‖² ≤ λ_max(Q) ⟨∇L, δ⟩", "Q̃ ≻ 0"


def scalar(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def cosine(pair: Pair) -> float:
    D = single_index.slope(pair.link, pair.theta.a, pair.u)
    g = single_index.flat(single_index.pull_back(D, pair.link(pair.u), pair.X, pair.y))
    return float(g @ pair.delta / (g.norm() * pair.delta.norm()))


def test_is_registered() -> None:
    assert isinstance(THEOREMS["one-point-monotonicity"], OnePointMonotonicity)


def test_holds_on_600_draws_and_is_attained() -> None:
    verdict = verify(THEOREM, draws=600, seed=1, progress=False)
    assert verdict.holds, str(verdict)
    for name in (BOUND, TOP):
        assert max(m[name].tightness for m in verdict.measurements) > 0.999


BROKEN = {
    "monotone": {BOUND, TOP, STRICT},
    "equilibrium": {"∇L = Qδ"},
    "realisable": {"∇L = Qδ"},
    "admissible": {BOUND, TOP, STRICT},
    "positive-slope": {STRICT},
    "identifiable": {STRICT},
}


@pytest.mark.parametrize("name", sorted(THEOREM.drop))
def test_fails_without_each_hypothesis_where_it_is_used(name: str) -> None:
    verdict = verify(THEOREM, draws=40, seed=2, drop=name, progress=False)
    broken = [{k for k, m in found.items() if not m.margin >= 0} for found in verdict.measurements]
    assert sum(BROKEN[name] <= some for some in broken) > 0.9 * verdict.draws, str(verdict)
    if name in ("positive-slope", "identifiable"):  # strictness alone
        assert all(some == {STRICT} for some in broken)


@pytest.mark.parametrize("d", [1, 50, 200])
def test_holds_from_one_to_two_hundred_inputs(d: int) -> None:
    for pair in solved(problems(Generator().manual_seed(d), 9, sizes=(d,))):
        assert THEOREM.margin(run_of(pair)) >= 0


@pytest.mark.parametrize("link", [tanh, arctan, smooth_leaky_relu(0.2)], ids=lambda x: x.name)
def test_distance_falls_along_flows_and_the_ball_is_invariant(link) -> None:
    batch = random_problems(Generator().manual_seed(4), 6, link, 3, radius=(0.3, 0.9))
    objective = single_index.Objective(link, batch.X, batch.y)
    run = gradient_flow(
        objective.loss, batch.start, 10.0, grad=objective.gradient, rtol=1e-9, batch_ndim=1,
        dense=False, progress=False,
    )  # fmt: skip
    distance = single_index.distance(run.theta, batch.target)
    assert float((distance.diff(dim=0) / distance[0]).max()) < 1e-6
    assert bool((run.theta.a <= batch.target.a + batch.radius).all())
    assert bool((distance[-1] < 0.999 * distance[0]).all())


def test_the_radius_cannot_be_enlarged() -> None:
    """tanh, one input: starts just outside the ball, next to a = 1, from which a moves on across 1.

    At a = 1 the state is (3wx)^(1/3): for w < w*³x²/3 it lies below y ≈ w*x, and ȧ > 0.
    """
    size = scalar(0.5, 0.35, 0.2, 0.1, 0.05)
    X = scalar(0.5, 1.0, 1.5, 2.0)[:, None].expand(5, 4, 1)
    target = SingleIndexDEQ(torch.zeros(5, dtype=torch.float64), size[:, None])
    start = SingleIndexDEQ(torch.full_like(size, 1 - 1e-7), size[:, None] ** 3 / 30)
    ratio = single_index.distance(start, target)  # Δ* = 1
    assert bool(((ratio > 1) & (ratio < (1 + size.square()).sqrt())).all())
    objective = single_index.Objective(tanh, X, single_index.predict(tanh, target, X))
    eta = 1e-8 / objective.gradient(start).a.abs()
    run = gradient_descent(
        objective.loss, start, eta, 40, grad=objective.gradient, batch_ndim=1, throw=False,
        progress=False,
    )  # fmt: skip
    assert bool((run.outcome == Outcome.NOT_FINITE).all())  # the next iterate has a > 1
    distance = single_index.distance(run.theta, target)
    assert bool((distance.diff(dim=0) <= 1e-15).all())


def test_gelu_counter_example() -> None:
    """One sample: the gradient points exactly away from the target."""
    theta = SingleIndexDEQ(scalar(-0.757)[0], scalar(0.497))
    target = SingleIndexDEQ(scalar(-0.649)[0], scalar(-3.096))
    found = []
    for x in torch.linspace(-2, 2, 41, dtype=torch.float64):
        X = x.reshape(1, 1)
        u, v = (single_index.preactivation(gelu, one.a, X @ one.w) for one in (theta, target))
        pair = Pair(gelu, X, theta, target, u, v, gelu(v))
        found.append(cosine(pair) if float(x) else 0.0)
    assert min(found) < -0.99
    generator = Generator().manual_seed(5)
    cosines = [cosine(one_point_monotonicity.falling(generator)) for _ in range(200)]
    assert max(cosines) < 0
    assert min(cosines) < -0.5


def test_a_dead_relu_is_critical_though_wrong() -> None:
    pair = one_point_monotonicity.dead(Generator().manual_seed(6))
    assert pair.link is relu
    g = single_index.gradient(relu, pair.theta, pair.X, pair.y)
    assert float(single_index.flat(g).norm()) == 0
    assert float(single_index.loss(relu, pair.theta, pair.X, pair.y)) > 0.01


def test_without_identifiability_there_are_other_minimisers() -> None:
    generator = Generator().manual_seed(7)
    for draw in (one_point_monotonicity.too_few_samples, one_point_monotonicity.on_the_ray):
        pair = draw(generator)
        assert float(pair.delta.norm()) > 0.01
        assert float(single_index.loss(pair.link, pair.theta, pair.X, pair.y)) < 1e-25
        smallest = torch.linalg.eigvalsh(one_point.moment(pair.X, pair.y))[0]
        assert abs(float(smallest)) < 1e-12
