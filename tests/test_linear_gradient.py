"""The theorem `linear-gradient`: it holds where it should, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deqlib import linear
from deqlib.linear import LinearDEQ
from deqlib.theorems import THEOREMS, verify
from deqlib.theorems.linear_gradient import Instance, Loss, Model, exact_gradient, log_cosh, squared

THEOREM = THEOREMS["linear-gradient"]
DRAWS = 300


def test_it_holds() -> None:
    verdict = verify(THEOREM, DRAWS, seed=11)
    assert verdict.holds, verdict
    assert verdict.least_slack["invertible"] > 0.05


def test_the_bounds_are_not_loose_by_orders_of_magnitude() -> None:
    """|D(2h) − D(h)| is three times the truncation error of D(h), so 1/3 is what must be seen."""
    verdict = verify(THEOREM, DRAWS, seed=11)
    assert 0.3 < verdict.tightness < 0.34
    # Rounding stays below a tenth of what the bound allows, but is not negligible beside it.
    automatic = [m["closed form = automatic differentiation"] for m in verdict.measurements]
    assert 1e-4 < max(m.tightness for m in automatic) < 0.1


@pytest.mark.parametrize("name", list(THEOREM.hypotheses))
def test_each_hypothesis_is_necessary(name: str) -> None:
    assert THEOREM.hypotheses[name].necessary
    verdict = verify(THEOREM, DRAWS, seed=12, drop=name)
    assert verdict.failures == DRAWS
    assert verdict.vacuous == 0
    # Not by rounding: the gradients differ by more than a thousandth of their size.
    for m in verdict.measurements:
        gap = m["closed form = automatic differentiation"]
        assert gap.measured > 1e6 * gap.bound


def test_a_truncated_forward_pass_only_breaks_the_gradient() -> None:
    """The formula is taken at the exact F, so its own identity survives."""
    verdict = verify(THEOREM, 30, seed=13, drop="exact-equilibrium")
    assert all(m["∇W (I−W)ᵀ = ∇U Uᵀ"].margin >= 0 for m in verdict.measurements)


def test_the_worst_instance_can_be_replayed() -> None:
    verdict = verify(THEOREM, 40, seed=14)
    again = verify(THEOREM, 40, seed=14)
    assert verdict.worst_margin == again.worst_margin
    assert verdict.replay() == dict(verdict.measurements[verdict.worst_index])


def test_a_start_at_the_minimiser_is_vacuous() -> None:
    """Where G = 0 every formula agrees with every other; `verify` must not count that."""

    class AtTheMinimiser(type(THEOREM)):
        def draw(self, generator: torch.Generator, n: int) -> list[Instance]:
            model = Model(linear.equilibrium_map, exact_gradient)
            return [
                replace(one, model=model, ell=squared_around(linear.equilibrium_map(one.theta)))
                for one in super().draw(generator, n)
            ]

    verdict = verify(AtTheMinimiser(), 20, seed=15)
    assert verdict.vacuous == 20
    assert not verdict.holds


def squared_around(F: Tensor) -> Loss:
    return squared(torch.eye(F.shape[1], dtype=F.dtype), F)


MISTAKES = {
    "adjoint left out": lambda P, U, F, G: (G @ F.mT, G),
    "adjoint not transposed": lambda P, U, F, G: (
        torch.linalg.solve(P, G) @ F.mT,
        torch.linalg.solve(P, G),
    ),
    "U where F belongs": lambda P, U, F, G: (
        torch.linalg.solve(P.mT, G) @ U.mT,
        torch.linalg.solve(P.mT, G),
    ),
    "gradient in P": lambda P, U, F, G: (
        -torch.linalg.solve(P.mT, G) @ F.mT,
        torch.linalg.solve(P.mT, G),
    ),
    "half of it": lambda P, U, F, G: (
        torch.linalg.solve(P.mT, G) @ F.mT / 2,
        torch.linalg.solve(P.mT, G) / 2,
    ),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_wrong_formula_is_caught(mistake: str) -> None:
    def wrong(theta: LinearDEQ, ell: Loss) -> LinearDEQ:
        F = linear.equilibrium_map(theta)
        P = linear.resolvent_inverse(theta)
        return LinearDEQ(*MISTAKES[mistake](P, theta.U, F, ell.slope(F)))

    class Mistaken(type(THEOREM)):
        def draw(self, generator: torch.Generator, n: int) -> list[Instance]:
            return [
                replace(one, model=Model(linear.equilibrium_map, wrong))
                for one in super().draw(generator, n)
            ]

    verdict = verify(Mistaken(), 40, seed=16)
    # For p = 1 there is nothing to transpose: those instances cannot see that mistake.
    assert verdict.failures > 20, verdict


@pytest.mark.parametrize("kind", ["squared", "log_cosh"])
def test_the_losses_know_their_slopes(kind: str) -> None:
    g = torch.Generator().manual_seed(17)
    X, Y = (torch.randn(9, k, generator=g, dtype=torch.float64) for k in (3, 2))
    F = torch.randn(2, 3, generator=g, dtype=torch.float64)
    S, A, _ = linear.regression(X, Y)
    ell = squared(S, A) if kind == "squared" else log_cosh(X, Y)
    expected: Tensor = torch.func.grad(ell.value)(F)
    torch.testing.assert_close(ell.slope(F), expected)
