"""Theorem `positive-adjoint`: every D ≥ 0 does, a negative one does not, and single samples do."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from deqlib import one_point, single_index
from deqlib.activations import relu, tanh
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems import THEOREMS, one_point_monotonicity, positive_adjoint, verify
from deqlib.theorems.positive_adjoint import KINDS, PositiveAdjoint
from deqlib.theorems.secant_identity import problems, solved
from deqlib.theorems.single_index_problems import random_problems

THEOREM = PositiveAdjoint()
BOUND, RUN = "⟨g_D, δ⟩ ≥ Δ* E[D (z − y)²]", "no step on one sample increases ‖δ‖"


def test_is_registered() -> None:
    assert isinstance(THEOREMS["positive-adjoint"], PositiveAdjoint)


def test_holds_on_600_draws_and_is_attained() -> None:
    verdict = verify(THEOREM, draws=600, seed=1, progress=False)
    assert verdict.holds, str(verdict)
    ratios = {name: max(m[name].tightness for m in verdict.measurements) for name in (
        BOUND, "λ_max(Q_D) ≤ Λ_D", "‖δ‖² − ‖δ₊‖² ≥ ηD(z − y)²(2Δ* − ηD‖(z, x)‖²)",
    )}  # fmt: skip
    assert min(ratios.values()) > 0.9, ratios


BROKEN = {
    "monotone": {BOUND, "Q_D ⪰ 0", RUN},
    "equilibrium": {"g_D = Q_D δ"},
    "realisable": {"g_D = Q_D δ", RUN},
    "positive": {BOUND, "Q_D ⪰ 0", RUN},
    "in-ball": {"λ_max(Q_D) ≤ Λ_D"},
    "short-step": {RUN},
}


@pytest.mark.parametrize("name", sorted(THEOREM.drop))
def test_fails_without_each_hypothesis_where_it_is_used(name: str) -> None:
    verdict = verify(THEOREM, draws=40, seed=2, drop=name, progress=False)
    broken = [{k for k, m in found.items() if not m.margin >= 0} for found in verdict.measurements]
    assert sum(BROKEN[name] <= some for some in broken) > 0.75 * verdict.draws, str(verdict)
    if name == "short-step":
        assert all(some == {RUN} for some in broken)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
@pytest.mark.parametrize("d", [1, 200])
def test_each_adjoint_from_one_to_two_hundred_inputs(kind: int, d: int) -> None:
    generator = Generator().manual_seed(kind)
    for pair in solved(problems(generator, 9, sizes=(d,), inside=True)):
        number = torch.tensor(kind)
        D = positive_adjoint.adjoint(pair.link, pair.theta.a, pair.u, number, generator)
        assert float(D.min()) >= 0
        assert THEOREM.margin(positive_adjoint.stepped(pair, D, generator)) >= 0


@pytest.mark.parametrize(("terms", "kept"), [(1, True), (2, False), (3, True), (4, False)])
def test_odd_numbers_of_terms_keep_the_sign_for_every_a(terms: int, kept: bool) -> None:
    """tanh with a from −6 to 0.9, one sample: the smallest cosine between direction and δ."""
    generator = Generator().manual_seed(3)
    n = 4000

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        chance = torch.rand(shape, generator=generator, dtype=torch.float64)
        return low + (high - low) * chance

    theta, target = (SingleIndexDEQ(draw(-6, 0.9, n), draw(-3, 3, n, 2)) for _ in range(2))
    X = torch.randn(n, 6, 2, generator=generator, dtype=torch.float64)
    y = single_index.predict(tanh, target, X)
    u = single_index.preactivation(tanh, theta.a[:, None], single_index.index(theta, X))
    D = single_index.truncated_slope(tanh, theta.a[:, None], u, terms)
    g = single_index.flat(single_index.pull_back(D, tanh(u), X, y))
    delta = single_index.flat(theta) - single_index.flat(target)
    cosines = (g * delta).sum(-1) / (g.norm(dim=-1) * delta.norm(dim=-1))
    assert bool(cosines.min() > 0) == kept
    if not kept:
        assert float(cosines.min()) < -0.95


def test_the_adjoint_one_revives_a_dead_relu() -> None:
    pair = one_point_monotonicity.dead(Generator().manual_seed(4))
    for D, alive in ((relu.derivative(pair.u), False), (torch.ones_like(pair.u), True)):
        g = single_index.flat(single_index.pull_back(D, relu(pair.u), pair.X, pair.y))
        assert bool(g @ pair.delta > 0.01) == alive


def test_twenty_thousand_steps_on_single_samples_never_increase_the_distance() -> None:
    """Forty runs at once, samples drawn at random, five hundred steps each."""
    generator = Generator().manual_seed(5)
    batch = random_problems(generator, 40, tanh, 2, radius=(0.3, 0.9))
    theta, rows = batch.start, torch.arange(40)
    before = first = single_index.distance(theta, batch.target)
    for _ in range(500):
        pick = torch.randint(batch.y.shape[-1], (40,), generator=generator)
        x, y = batch.X[rows, pick], batch.y[rows, pick]
        u = single_index.preactivation(tanh, theta.a, (x * theta.w).sum(-1))
        D = single_index.slope(tanh, theta.a, u)
        zx = torch.cat([tanh(u)[:, None], x], dim=1)
        eta = batch.gap / (D * zx.square().sum(-1))  # half the longest step
        push = (eta * D * (tanh(u) - y))[:, None] * zx
        theta = single_index.unflat(single_index.flat(theta) - push)
        after = single_index.distance(theta, batch.target)
        assert bool((after <= before + 1e-14).all())
        before = after
    assert bool((after < first).all())
    assert float((after / first).median()) < 0.8


def test_near_the_target_the_direction_is_linear_with_the_matrix_of_d_d_star() -> None:
    """D ≡ 1: g = E[D D* (y, x)(y, x)ᵀ] δ + O(‖δ‖²), so its smallest eigenvalue is the rate."""
    one = random_problems(Generator().manual_seed(6), 1, tanh, 3, radius=(1e-4, 2e-4)).one(0)
    v = single_index.preactivation(tanh, one.target.a, one.X @ one.target.w)
    D_star = single_index.slope(tanh, one.target.a, v)
    M = one_point.weighted_moment(D_star, one.X, one.y)
    delta = single_index.flat(one.start) - single_index.flat(one.target)
    for part in (1.0, 0.1, 0.01):
        theta = single_index.unflat(single_index.flat(one.target) + part * delta)
        z = single_index.predict(tanh, theta, one.X)
        g = single_index.flat(single_index.pull_back(torch.ones_like(z), z, one.X, one.y))
        assert float((g - part * M @ delta).norm() / (part * M @ delta).norm()) < 1e-3 * part
