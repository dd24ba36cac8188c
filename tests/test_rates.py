"""The constants of Part II: each against an independent computation, each able to fail."""

from __future__ import annotations

import pytest
import torch

from deqlib import linear, rates
from deqlib.dynamics import gradient_descent
from deqlib.linear import LinearDEQ

B, p, d = 40, 3, 4


@pytest.fixture
def problems() -> tuple[LinearDEQ, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    theta = linear.random_start(g, p, d, batch=(B,))
    A = torch.randn(B, p, d, generator=g, dtype=torch.float64)
    X = torch.randn(B, 12, d, generator=g, dtype=torch.float64)
    return theta, linear.second_moment(X), A


def test_root_squares_to_S(problems) -> None:
    _, S, _ = problems
    half = rates.root(S)
    assert torch.allclose(half @ half, S, rtol=1e-12, atol=1e-12)
    assert torch.allclose(half, half.mT)


def test_hessian_spectrum_is_that_of_the_hessian(problems) -> None:
    """Autograd's Hessian at a minimiser: p² zeros, and extremes as the formula says."""
    theta, S, A = problems
    at = LinearDEQ(theta.W, linear.resolvent_inverse(theta) @ A)
    low, high = rates.hessian_spectrum(at, S, A)
    for i in range(3):

        def flat(v: torch.Tensor, i: int = i) -> torch.Tensor:
            W, U = v.split([p * p, p * d])
            return linear.loss(LinearDEQ(W.reshape(p, p), U.reshape(p, d)), S[i], A[i])

        v = torch.cat([at.W[i].flatten(), at.U[i].flatten()])
        values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(flat, v))
        # An eigenvalue of a symmetric matrix is off by about its size times eps.
        assert float(values[: p * p].abs().max()) < 1e-12 * float(values[-1])
        assert float(values[p * p]) == pytest.approx(float(low[i]), rel=1e-9)
        assert float(values[-1]) == pytest.approx(float(high[i]), rel=1e-9)


def test_pl_constants_are_ordered_and_hold(problems) -> None:
    theta, S, A = problems
    g = linear.gradient(theta, S, A)
    squared = g.W.square().sum((-2, -1)) + g.U.square().sum((-2, -1))
    ratio = squared / (2 * linear.loss(theta, S, A))
    fine, coarse = rates.pl_constant_at(theta, S), rates.pl_constant(theta, S)
    assert bool((coarse <= fine).all())
    assert bool((fine <= ratio * (1 + 1e-12)).all())
    # Not vacuous: somewhere the refined constant is within a factor of 30 of the truth.
    assert float((ratio / fine).min()) < 30


def test_every_inequality_of_the_descent_proof_has_slack_along_a_run(problems) -> None:
    start, S, A = problems
    eta = 1 / (4 * rates.smoothness(start, S, A))
    theta = start
    for _ in range(30):
        slacks = rates.descent_slacks(theta, start, eta, S, A)
        for name, slack in vars(slacks).items():
            assert float(slack.min()) > 0, name
        g, step = linear.gradient(theta, S, A), eta[:, None, None]
        theta = LinearDEQ(theta.W - step * g.W, theta.U - step * g.U)


def test_a_step_a_thousand_times_larger_breaks_an_inequality(problems) -> None:
    start, S, A = problems
    eta = 1e3 / (4 * rates.smoothness(start, S, A))
    slacks = rates.descent_slacks(start, start, eta, S, A)
    assert min(float(slack.min()) for slack in vars(slacks).values()) < 0


def test_adaptive_step_descends_by_half_the_gradient(problems) -> None:
    theta, S, A = problems
    run = gradient_descent(
        lambda t: linear.loss(t, S, A),
        theta,
        rates.adaptive_step(S, A),
        50,
        grad=lambda t: linear.gradient(t, S, A),
        batch_ndim=1,
    )
    assert bool((run.loss.diff(dim=0) < 0).all())
    assert float((run.loss[-1] / run.loss[0]).max()) < 0.9


def test_edge_radius_is_where_the_hessian_meets_two_over_the_step() -> None:
    g = torch.Generator().manual_seed(1)
    S = linear.second_moment(torch.randn(9, d, generator=g, dtype=torch.float64))
    A = torch.randn(1, d, generator=g, dtype=torch.float64)
    eta = 0.7
    r = rates.edge_radius(eta, S, A)
    P = r / (1 + A.square().sum()).sqrt()
    at = LinearDEQ((1 - P).reshape(1, 1), P * A)
    assert float(rates.hessian_spectrum(at, S, A)[1]) == pytest.approx(2 / eta, rel=1e-12)
