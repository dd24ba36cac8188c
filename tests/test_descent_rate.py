"""Theorem `descent-rate`: it holds, its step is attained up to 8, it breaks where it must."""

from __future__ import annotations

import pytest
import torch

from deqlib import linear, rates
from deqlib.dynamics import gradient_descent
from deqlib.linear import LinearDEQ
from deqlib.theorems import THEOREMS, descent_rate, verify
from deqlib.theorems.descent_rate import DescentRate

THEOREM = DescentRate()


@pytest.fixture(scope="module")
def verdict():
    return verify(THEOREM, 200, seed=1, progress=False)


def test_registered():
    assert isinstance(THEOREMS["descent-rate"], DescentRate)


def test_holds(verdict):
    assert verdict.holds, str(verdict)
    # The bound on ‖Γ‖ is nearly attained; the identities hold to rounding.
    assert max(m["η‖Γ‖ ≤ 1/4"].tightness for m in verdict.measurements) > 0.9
    for name in ("F₊ − F = −ηM(I + ηΓ)⁻¹qK", "L₊ − L is exact", "C₊ = C + η²∇∇ᵀ"):
        assert all(m[name].margin >= 0 for m in verdict.measurements)


@pytest.mark.parametrize("name", THEOREM.hypotheses)
def test_fails_without(name):
    verdict = verify(THEOREM, 24, seed=2, drop=name, progress=False)
    assert verdict.failures > verdict.draws / 2, str(verdict)


def test_identities_hold_for_any_step_and_any_loss():
    for name in ("small-step", "squared-loss"):
        verdict = verify(THEOREM, 12, seed=3, drop=name, progress=False)
        for m in verdict.measurements:
            assert m["L₊ − L is exact"].margin >= 0
            assert m["C₊ = C + η²∇∇ᵀ"].margin >= 0


@pytest.mark.parametrize(("times", "descends"), [(7.99, True), (8.01, False)])
def test_eight_times_the_step_is_the_edge_in_the_best_case(times, descends):
    """A = 0, U₀ → 0, one weight: Λ → λ_max(Hessian), and 8/(4Λ) = 2/λ_max."""
    one = torch.ones(1, 1, dtype=torch.float64)
    start, S, A = LinearDEQ(0 * one, 1e-4 * one), one, 0 * one
    eta = times / (4 * rates.smoothness(start, S, A))
    run = gradient_descent(
        lambda t: linear.loss(t, S, A), start, eta, 200,
        grad=lambda t: linear.gradient(t, S, A), progress=False,
    )  # fmt: skip
    assert bool((run.loss.diff() < 0).all()) == descends


def test_a_reader_who_forgets_that_unseen_inputs_do_not_count_takes_too_long_steps():
    generator = torch.Generator().manual_seed(4)
    for run in THEOREM.drop["definite"](generator, 5):
        one = run.problem
        assert float(torch.linalg.eigvalsh(one.S)[0]) < 1e-12
        assert bool((run.loss.diff() > 0).any())
        # With the inputs that are seen, and their own C, the theorem applies.
        values, vectors = torch.linalg.eigh(one.S)
        V = vectors[:, values > 1e-12]
        seen = descent_rate.Problem(linear.restrict(one.theta, V), V.mT @ one.S @ V, one.A @ V)
        (right,) = descent_rate.descend([seen], descent_rate.safe_step)
        assert THEOREM.margin(right) >= 0


def test_constants_for_singular_and_definite_problems_agree_where_both_apply():
    generator = torch.Generator().manual_seed(5)
    one = descent_rate._random(generator)
    assert float(descent_rate.smoothness(one)) == float(rates.smoothness(one.theta, one.S, one.A))
