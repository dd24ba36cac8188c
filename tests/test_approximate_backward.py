"""Approximate backward passes: the law, the decay and the curve, and where they end."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from deqlib import linear
from deqlib.linear import LinearDEQ
from deqlib.theorems import THEOREMS, Verdict, verify
from deqlib.theorems import approximate_backward as module
from deqlib.theorems.approximate_backward import (
    SCHEMES,
    ApproximateBackward,
    approximate_adjoint,
    matrix_start,
    positivity,
)

LAW = ApproximateBackward()
DECAY, CONSTANT = "L ≤ exp(−2μ∫c) L₀", "C is constant"


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return verify(LAW, draws=60, seed=0, progress=False)


def test_is_registered() -> None:
    assert isinstance(THEOREMS["approximate-backward"], ApproximateBackward)


def test_holds_on_60_draws(verdict: Verdict) -> None:
    assert verdict.holds, str(verdict)
    assert sum("on the curve of the exact flow" in m for m in verdict.measurements) == 20
    assert max(m[CONSTANT].bound for m in verdict.measurements) < 1e-5


def test_every_scheme_and_size_is_drawn() -> None:
    ones = LAW.draw(Generator().manual_seed(0), 50)
    assert {(one.m, one.lam) for one in ones} == set(SCHEMES.values())
    assert {one.theta.W.shape[0] for one in ones} == {1, 2, 3}


@pytest.mark.parametrize("name", sorted(LAW.drop))
def test_fails_without_each_hypothesis(name: str) -> None:
    without = verify(LAW, draws=10, seed=1, drop=name, progress=False)
    assert without.failures == without.draws, str(without)
    concerned = DECAY if name == "positive" else CONSTANT
    assert all(m[concerned].margin < 0 for m in without.measurements)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_the_adjoint_is_a_polynomial_times_the_exact_one(name: str) -> None:
    """q = χ(P)ᵀ P⁻ᵀ G with χ(P) = I − (I − λP)^m, against its own formula."""
    m, lam = SCHEMES[name]
    generator = Generator().manual_seed(5)
    theta = linear.random_start(generator, 3, 2)
    G = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    P = linear.resolvent_inverse(theta)
    chi = torch.eye(3).double() - torch.linalg.matrix_power(torch.eye(3).double() - lam * P, m)
    exact = torch.linalg.solve(P.mT, G)
    q = approximate_adjoint(theta, G, torch.tensor(m), torch.tensor(lam, dtype=torch.float64))
    assert torch.allclose(q, chi.mT @ exact, rtol=0, atol=1e-12)
    least = torch.linalg.eigvalsh((chi + chi.mT) / 2)[0]
    c = positivity(theta, torch.tensor(m), torch.tensor(lam, dtype=torch.float64))
    assert torch.allclose(c, least, rtol=0, atol=1e-12)


def test_the_matrix_start_converges_as_a_series_but_is_not_positive() -> None:
    theta, _ = matrix_start()
    assert float(torch.linalg.eigvals(theta.W).abs().max()) == pytest.approx(0.9)
    assert float(positivity(theta, torch.tensor(1), torch.tensor(1.0).double())) < 0


def test_a_wrong_adjoint_keeps_the_law_and_loses_the_curve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The law does not see the adjoint; the curve, for one output, only its sign and speed."""

    def shuffled(theta: LinearDEQ, G: torch.Tensor, m: torch.Tensor, lam: torch.Tensor):  # type: ignore[no-untyped-def]
        return approximate_adjoint(theta, G.flip(-1), m, lam)

    monkeypatch.setattr(module, "approximate_adjoint", shuffled)
    start, S, A = module._problems(Generator().manual_seed(1), 5, 1, 4)
    for one in module._run(start, S, A, 0.02, *module._schemes(5, 0)):
        if one.least > 0:
            found = LAW.measure(one)
            assert found[CONSTANT].margin >= 0
            assert found["on the curve of the exact flow"].margin < 0
