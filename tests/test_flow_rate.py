"""Theorem `flow-rate`: it holds, it is attained, it breaks where it must."""

from __future__ import annotations

import pytest
import torch

from deqlib import linear, rates
from deqlib.linear import LinearDEQ
from deqlib.theorems import THEOREMS, flow_rate, verify
from deqlib.theorems.flow_rate import FlowRate, det_sign, filled

THEOREM = FlowRate()
RATE = "L(t) ≤ exp(−2μt) L₀"
LIMIT = "P(I + AAᵀ)Pᵀ → C"


@pytest.fixture(scope="module")
def verdict():
    return verify(THEOREM, 200, seed=1, progress=False)


def test_registered():
    assert isinstance(THEOREMS["flow-rate"], FlowRate)


def test_holds_and_is_attained(verdict):
    assert verdict.holds, str(verdict)
    for name in ("‖∇L‖² ≥ 2μL", RATE, "length ≤ √(2L/μ)", "‖∇L‖² ≥ 2μ(F)L"):
        assert max(m[name].tightness for m in verdict.measurements) > 0.999, name


def test_draws_are_mixed():
    starts = flow_rate.problems(torch.Generator().manual_seed(2), 120)
    assert {tuple(one.A.shape) for one in starts} == set(flow_rate.SIZES)
    positive = sum(float(det_sign(one.theta)) > 0 for one in starts)
    assert 30 < positive < 90  # both components of the invertible matrices
    kappa = torch.tensor([float(torch.linalg.cond(one.S)) for one in starts])
    assert float(kappa.min()) < 1.5
    assert float(kappa.max()) > 15


@pytest.mark.parametrize("name", THEOREM.hypotheses)
def test_fails_without(name):
    verdict = verify(THEOREM, 24, seed=2, drop=name, progress=False)
    assert verdict.failures > verdict.draws / 2, str(verdict)


def test_a_blind_direction_spoils_the_end_and_not_the_rate():
    verdict = verify(THEOREM, 24, seed=2, drop="definite", progress=False)
    assert all(m[RATE].margin >= 0 for m in verdict.measurements)
    assert any(m[LIMIT].margin < 0 for m in verdict.measurements)


def test_the_sharp_rate_is_met_where_the_flow_ran_long_enough():
    """‖∇L‖²/2L at the end lies at the smallest eigenvalue of the Hessian or above it."""
    ratios = []
    for run in THEOREM.draw(torch.Generator().manual_seed(3), 60):
        one = run.problem
        low, _ = rates.hessian_spectrum(run.theta, one.S, one.A)
        g = linear.gradient(run.theta, one.S, one.A)
        quotient = flow_rate.squared_norm(g) / (2 * run.loss)
        kept = run.loss > flow_rate.FALLEN * run.loss[0]
        if float(run.loss[-1] / run.loss[0]) < 1e-3:
            ratios.append(float(quotient[kept][-1] / low[kept][-1]))
    assert len(ratios) > 10
    assert min(ratios) > 0.97
    assert sum(ratio < 1.05 for ratio in ratios) > len(ratios) / 3


def test_rate_is_attained_for_every_size_of_the_target():
    """C = 3I, S = diag(1, 0.05), A = diag(a, 0): μ_sharp = μ whatever a is."""
    S = torch.diag(torch.tensor([1.0, 0.05], dtype=torch.float64))
    for a in (0.5, 5.0, 50.0):
        A = torch.diag(torch.tensor([a, 0.0], dtype=torch.float64))
        values, vectors = torch.linalg.eigh(rates.gram(A.mT))
        P = 3**0.5 * (vectors / values.sqrt()) @ vectors.mT
        at = LinearDEQ(torch.eye(2, dtype=torch.float64) - P, P @ A)
        low, _ = rates.hessian_spectrum(at, S, A)
        assert float(low / rates.pl_constant(at, S)) == pytest.approx(1, rel=1e-9)


def test_filled_leaves_a_definite_matrix_alone_and_lifts_zeros():
    S = torch.diag(torch.tensor([3.0, 0.5], dtype=torch.float64))
    assert torch.equal(filled(S), S)
    singular = torch.diag(torch.tensor([3.0, 0.5, 0.0], dtype=torch.float64))
    lifted = torch.diag(torch.tensor([3.0, 0.5, 0.5], dtype=torch.float64))
    assert torch.allclose(filled(singular), lifted)
