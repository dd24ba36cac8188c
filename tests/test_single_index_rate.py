"""Theorem `single-index-rate`: it holds, its constants are attained, it breaks where it must."""

from __future__ import annotations

import pytest
import torch
from test_mutants import mutated

from deqlib import index_rates, one_point, rates, single_index
from deqlib.theorems import THEOREMS, verify
from deqlib.theorems.single_index_problems import STRICT, random_problems
from deqlib.theorems.single_index_rate import SingleIndexRate, safe_descents, spread

THEOREM = SingleIndexRate()
DRAWS = 36  # every link with every kind of problem once


@pytest.fixture(scope="module")
def verdict():
    return verify(THEOREM, 200, seed=1, progress=False)


def test_registered():
    assert isinstance(THEOREMS["single-index-rate"], SingleIndexRate)


def test_holds(verdict):
    assert verdict.holds, str(verdict)


@pytest.mark.parametrize(
    ("conclusion", "tight"),
    [
        ("Q ⪯ Λ", 0.99),
        ("Q̃ ⪰ m", 0.99),
        ("m ≥ λT*/(T* + ρ₀)³", 0.99),
        ("‖δ‖² − ‖δ₊‖² ≥ η(2 − ηΛ)⟨∇L, δ⟩", 0.99),
        ("‖δ₊‖² ≤ (1 − η(2 − ηΛ)m)‖δ‖²", 0.5),
    ],
)
def test_is_nearly_attained(verdict, conclusion, tight):
    assert max(m[conclusion].tightness for m in verdict.measurements) > tight


@pytest.mark.parametrize("name", THEOREM.hypotheses)
def test_fails_without(name):
    verdict = verify(THEOREM, 40, seed=2, drop=name, progress=False)
    assert verdict.failures > verdict.draws / 2, str(verdict)


def failing(name, conclusion):
    verdict = verify(THEOREM, 40, seed=3, drop=name, progress=False)
    return sum(not m[conclusion].margin >= 0 for m in verdict.measurements)


@pytest.mark.parametrize(
    ("name", "conclusion"),
    [
        ("strict-link", "‖δ₊‖² ≤ (1 − η(2 − ηΛ)m)‖δ‖²"),
        ("realisable", "a − a* ≤ ρ₀"),
        ("identifiable", "‖δ₊‖² ≤ (1 − η(2 − ηΛ)m)‖δ‖²"),
        ("inside-the-ball", "a stays below 1/β"),
        ("exact-gradient", "‖δ₊‖² ≤ (1 − η(2 − ηΛ)m)‖δ‖²"),
        ("small-step", "‖δ‖² − ‖δ₊‖² ≥ η(2 − ηΛ)⟨∇L, δ⟩"),
    ],
)
def test_fails_for_the_reason_that_the_chapter_gives(name, conclusion):
    assert failing(name, conclusion) >= 10


@pytest.mark.parametrize("link", STRICT, ids=lambda link: link.name)
def test_near_the_target_a_step_along_an_eigenvector_multiplies_by_its_sharp_factor(link):
    """The Jacobian of a step at θ* is I − ηH, with H = Q(θ*)."""
    many = random_problems(torch.Generator().manual_seed(4), 6, link, 3)
    values, vectors = torch.linalg.eigh(one_point.hessian(link, many.target, many.X))
    eta = 1 / one_point.smoothness(
        rates.extremes(one_point.moment(many.X, many.y))[1], many.gap, 0 * many.gap
    )
    for which in (0, -1):
        delta = 1e-5 * many.gap[:, None] * vectors[..., which]
        theta = single_index.unflat(single_index.flat(many.target) + delta)
        g = single_index.flat(single_index.gradient(link, theta, many.X, many.y))
        # Q(θ) = H + O(‖δ‖): relative to λ_max(H), a few times 1e-5 of the condition of the ball.
        off = (g - values[:, which, None] * delta).norm(dim=-1) / (
            values[:, -1] * delta.norm(dim=-1)
        )
        assert float(off.max()) < 1e-3
        factor = (delta - eta[:, None] * g).norm(dim=-1) / delta.norm(dim=-1)
        assert torch.allclose(factor, 1 - eta * values[:, which], rtol=1e-3)


M, LAM = "lam * far / (far + rho) ** 3", "lam * near / (near - rho) ** 3"
GAIN, FLOOR = "eta * (2 - eta * Lam)", "least / (finite + rho)"
# Two mistakes are left out. With ρ in the place of the upper T* of m the bound is weaker, and still
# true. And a wrong Q̃ is no wrong constant: its identity is the concern of `one-point-monotonicity`.
MUTANTS = {
    # one_point.py: the explicit constants ------------------------------------------------------
    "m: square for the cube": (one_point, M, "lam * far / (far + rho) ** 2"),
    "m: twice": (one_point, M, f"2 * {M}"),
    "m: without ρ": (one_point, M, "lam / far**2"),
    "m: T* − ρ below": (one_point, M, "lam * far / (far - rho) ** 3"),
    "T*: 1/α": (one_point, "1 / link.alpha - a", "1 / link.alpha + 0 * a"),
    "T*: Δ* in its place": (one_point, "1 / link.alpha - a", "1 / link.beta - a"),
    "Λ: without Δ*": (one_point, LAM, "lam / (near - rho) ** 3"),
    "Λ: square for the cube": (one_point, LAM, "lam * near / (near - rho) ** 2"),
    "Λ: without ρ": (one_point, LAM, "lam / near**2"),
    "Λ: half": (one_point, LAM, f"0.5 * {LAM}"),
    "Q: without a*": (
        one_point, "D * gain(link, target.a[..., None], u, v)", "D * link.secant(u, v)",
    ),
    # index_rates.py ----------------------------------------------------------------------------
    "Λ: λ for λ⁺": (
        index_rates, "one_point.smoothness(lam_plus, near", "one_point.smoothness(lam, near",
    ),
    "m(x): square for the cube": (index_rates, FLOOR, "least / finite"),
    "m(x): twice": (index_rates, FLOOR, f"2 * {FLOOR}"),
    "T(x): the largest slope for the least": (index_rates, "1 / alpha,", "1 / alpha.amax(),"),
    "α(x): the slope at the target": (index_rates, "target, X, rho))", "target, X, 0 * rho))"),
    "α(x): the larger end": (
        index_rates, "torch.minimum(link.derivative", "torch.maximum(link.derivative",
    ),
    "gain: 2η": (index_rates, GAIN, "eta * 2"),
    "gain: η(2 − ηΛ/2)": (index_rates, GAIN, "eta * (2 - 0.5 * eta * Lam)"),
}  # fmt: skip


class Descents(SingleIndexRate):
    """The theorem without its flows, which take most of the time and see no formula alone."""

    def draw(self, generator, n):
        return spread(generator, n, STRICT, lambda *batch: safe_descents(*batch)[1])


@pytest.mark.parametrize("name", list(MUTANTS))
def test_mutant_is_caught(name):
    module, old, new = MUTANTS[name]
    with mutated(module, old, new):
        try:
            caught = not verify(Descents(), DRAWS, seed=5, progress=False).holds
        except ValueError:  # a mutant may break what the draws promise
            caught = True
    assert caught, f"not noticed: {name}"


def test_without_a_mutation_the_same_check_holds():
    assert verify(Descents(), DRAWS, seed=5, progress=False).holds
