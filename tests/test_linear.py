"""deqlib.linear beside autograd, numpy and its own formulas, on drawn and on hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqlib import linear
from deqlib.dynamics import autograd
from deqlib.linear import LinearDEQ

EPS = torch.finfo(torch.float64).eps
property_test = settings(deadline=None, derandomize=True, max_examples=60)
sizes = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


def problem(
    seed: int, p: int, d: int, batch: tuple[int, ...] = ()
) -> tuple[LinearDEQ, Tensor, Tensor]:
    """A start, a second moment of full rank and a target map."""
    g = torch.Generator().manual_seed(seed)
    theta = linear.random_start(g, p, d, batch=batch)
    S = linear.second_moment(torch.randn(*batch, 3 * d + 3, d, generator=g, dtype=torch.float64))
    return theta, S, torch.randn(*batch, p, d, generator=g, dtype=torch.float64)


def kappa(theta: LinearDEQ) -> float:
    return float(torch.linalg.cond(linear.resolvent_inverse(theta)).max())


def tolerance(theta: LinearDEQ) -> float:
    """Two solves with P each multiply the rounding error by about p κ(P); 100 covers the sums."""
    return 100 * theta.W.shape[-1] * EPS * kappa(theta) ** 2


# Equilibria ------------------------------------------------------------------------------------


@property_test
@given(seed=seeds, p=sizes, d=sizes)
def test_the_equilibrium_solves_its_equation(seed: int, p: int, d: int) -> None:
    theta, _, _ = problem(seed, p, d)
    X = torch.randn(7, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = linear.predict(theta, X)
    assert z.shape == (7, p)
    gap = z - (z @ theta.W.mT + X @ theta.U.mT)
    assert float(gap.norm()) <= tolerance(theta) * float(1 + z.norm())


@property_test
@given(seed=seeds, p=sizes, d=sizes)
def test_the_equilibrium_is_the_limit_of_picard(seed: int, p: int, d: int) -> None:
    theta, _, _ = problem(seed, p, d)  # ‖W‖₂ ≤ 0.9: 400 steps leave 0.9⁴⁰⁰ = 5e-19
    F = torch.zeros_like(theta.U)
    for _ in range(400):
        F = theta.W @ F + theta.U
    gap = F - linear.equilibrium_map(theta)
    assert float(gap.norm()) <= tolerance(theta) * float(1 + F.norm())


@pytest.mark.parametrize("batch", [(3,), (2, 3), (0,)])
def test_a_batch_is_a_loop(batch: tuple[int, ...]) -> None:
    theta, S, A = problem(1, 3, 4, batch)
    X = torch.randn(*batch, 5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    G = A @ S

    def everything(t: LinearDEQ, S: Tensor, A: Tensor, X: Tensor, G: Tensor) -> tuple[Tensor, ...]:
        z = linear.predict(t, X)
        return (
            linear.resolvent_inverse(t),
            linear.equilibrium_map(t),
            z,
            linear.loss(t, S, A),
            *linear.gradient(t, S, A),
            *linear.gradient_from(t, G),
            *linear.direction(z, z, X),
            linear.invariant(t),
            linear.rows(t),
            linear.second_moment(X),
        )

    together = everything(theta, S, A, X, G)
    for one in together:
        assert one.shape[: len(batch)] == batch
    for i in np.ndindex(*batch):
        alone = everything(LinearDEQ(theta.W[i], theta.U[i]), S[i], A[i], X[i], G[i])
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b[i], rtol=1e-12, atol=1e-13)


def test_one_problem_serves_a_batch_of_starts() -> None:
    theta, _, _ = problem(3, 2, 4, (5,))
    _, S, A = problem(4, 2, 4)
    wide = linear.loss(theta, S.expand(5, 4, 4), A.expand(5, 2, 4))
    torch.testing.assert_close(linear.loss(theta, S, A), wide)


# Loss and gradient -------------------------------------------------------------------------------


@property_test
@given(seed=seeds, p=sizes, d=sizes)
def test_loss_and_floor_make_the_mean_squared_error(seed: int, p: int, d: int) -> None:
    theta, _, _ = problem(seed, p, d)
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(3 * d + 3, d, generator=g, dtype=torch.float64)
    Y = torch.randn(3 * d + 3, p, generator=g, dtype=torch.float64)
    S, A, floor = linear.regression(X, Y)
    error = 0.5 * (linear.predict(theta, X) - Y).square().sum(-1).mean()
    assert float(floor) >= 0
    # The normal equations hold to about κ(X)·eps, which a well-posed Gaussian X keeps small.
    torch.testing.assert_close(linear.loss(theta, S, A) + floor, error, rtol=1e-9, atol=1e-12)


@property_test
@given(seed=seeds, p=sizes, d=sizes)
def test_the_gradient_is_autograds(seed: int, p: int, d: int) -> None:
    theta, S, A = problem(seed, p, d)
    closed = linear.gradient(theta, S, A)
    automatic = autograd(lambda t: linear.loss(t, S, A))(theta)
    size = float(closed.W.norm() + closed.U.norm())
    for a, b in zip(closed, automatic, strict=True):
        assert float((a - b).norm()) <= tolerance(theta) * (1 + size)


@property_test
@given(seed=seeds, p=sizes, d=sizes)
def test_gradient_from_serves_any_loss(seed: int, p: int, d: int) -> None:
    theta, _, _ = problem(seed, p, d)

    def ell(F: Tensor) -> Tensor:  # not quadratic
        return torch.log(torch.cosh(F)).sum() + F.sin().sum()

    F = linear.equilibrium_map(theta)
    closed = linear.gradient_from(theta, torch.tanh(F) + F.cos())
    automatic = autograd(lambda t: ell(linear.equilibrium_map(t)))(theta)
    size = float(closed.W.norm() + closed.U.norm())
    for a, b in zip(closed, automatic, strict=True):
        assert float((a - b).norm()) <= tolerance(theta) * (1 + size)


@property_test
@given(seed=seeds, p=sizes, d=sizes)
def test_the_exact_adjoint_makes_direction_the_gradient(seed: int, p: int, d: int) -> None:
    theta, _, _ = problem(seed, p, d)
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(3 * d + 3, d, generator=g, dtype=torch.float64)
    S, A, _ = linear.regression(X, X @ torch.randn(d, p, generator=g, dtype=torch.float64))
    z = linear.predict(theta, X)
    q = torch.linalg.solve(linear.resolvent_inverse(theta).mT, (z - X @ A.mT).mT).mT
    closed = linear.gradient(theta, S, A)
    for a, b in zip(linear.direction(q, z, X), closed, strict=True):
        assert float((a - b).norm()) <= tolerance(theta) * float(1 + closed.U.norm() + z.norm())


@property_test
@given(seed=seeds, p=sizes, d=sizes)
def test_a_change_of_gauge_changes_nothing_the_loss_can_see(seed: int, p: int, d: int) -> None:
    theta, S, A = problem(seed, p, d)
    g = torch.Generator().manual_seed(seed)
    gauge = torch.eye(p, dtype=torch.float64)
    gauge = gauge + 0.2 / p * torch.randn(p, p, generator=g, dtype=torch.float64)
    P = linear.resolvent_inverse(theta)
    other = LinearDEQ(torch.eye(p, dtype=torch.float64) - gauge @ P, gauge @ theta.U)
    allowed = tolerance(theta) * float(torch.linalg.cond(gauge)) ** 2
    before, after = linear.loss(theta, S, A), linear.loss(other, S, A)
    assert float((after - before).abs()) <= allowed * float(1 + before)


def test_the_invariant_is_the_gram_matrix_of_the_rows() -> None:
    theta, _, _ = problem(5, 3, 2, (4,))
    N = linear.rows(theta)
    assert N.shape == (4, 3, 5)
    torch.testing.assert_close(linear.invariant(theta), N @ N.mT)


# Regression ------------------------------------------------------------------------------------


@property_test
@given(seed=seeds, p=sizes, d=sizes)
def test_regression_is_numpys_least_squares(seed: int, p: int, d: int) -> None:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(3 * d + 3, d, generator=g, dtype=torch.float64)
    Y = torch.randn(3 * d + 3, p, generator=g, dtype=torch.float64)
    S, A, floor = linear.regression(X, Y)
    expected, residuals, _, _ = np.linalg.lstsq(X.numpy(), Y.numpy(), rcond=None)
    np.testing.assert_allclose(A.numpy(), expected.T, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(S.numpy(), X.numpy().T @ X.numpy() / len(X), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(float(floor), residuals.sum() / (2 * len(X)), rtol=1e-9)


def test_regression_takes_batches() -> None:
    g = torch.Generator().manual_seed(6)
    X = torch.randn(2, 3, 9, 4, generator=g, dtype=torch.float64)
    Y = torch.randn(2, 3, 9, 2, generator=g, dtype=torch.float64)
    S, A, floor = linear.regression(X, Y)
    assert (S.shape, A.shape, floor.shape) == ((2, 3, 4, 4), (2, 3, 2, 4), (2, 3))
    one = linear.regression(X[1, 2], Y[1, 2])
    torch.testing.assert_close(A[1, 2], one.A)


# The end point for one output ------------------------------------------------------------------


@pytest.mark.parametrize("a0", [-0.5, 0.4, 1.5])
def test_the_sphere_limit_is_on_the_sphere_and_has_no_loss(a0: float) -> None:
    _, S, A = problem(7, 1, 3)
    theta = LinearDEQ(torch.tensor([[a0]]).double(), torch.tensor([[0.3, -0.2, 0.9]]).double())
    end = linear.sphere_limit(theta, A)
    torch.testing.assert_close(linear.invariant(end), linear.invariant(theta))
    assert float(linear.loss(end, S, A)) < 1e-28
    assert (end.W < 1) == (theta.W < 1)


# Starts, dtypes, transforms --------------------------------------------------------------------


@property_test
@given(seed=seeds, p=sizes, d=sizes)
def test_random_starts_are_as_promised(seed: int, p: int, d: int) -> None:
    theta = linear.random_start(torch.Generator().manual_seed(seed), p, d, batch=(4,))
    assert theta.W.shape == (4, p, p)
    assert theta.U.shape == (4, p, d)
    assert bool((torch.linalg.matrix_norm(theta.W, 2) <= 0.9 + 1e-12).all())
    assert bool(
        (torch.linalg.svdvals(linear.resolvent_inverse(theta))[..., -1] > 0.1 - 1e-12).all()
    )
    again = linear.random_start(torch.Generator().manual_seed(seed), p, d, batch=(4,))
    assert torch.equal(theta.W, again.W)


def test_float32_stays_float32_and_agrees() -> None:
    theta, S, A = problem(8, 3, 4)
    single = LinearDEQ(theta.W.float(), theta.U.float())
    value = linear.loss(single, S.float(), A.float())
    assert value.dtype == torch.float32
    close = {"rtol": 1e-4, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(value, linear.loss(theta, S, A), **close)
    for a, b in zip(
        linear.gradient(single, S.float(), A.float()), linear.gradient(theta, S, A), strict=True
    ):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, **close)


def test_vmap_is_the_batch() -> None:
    theta, S, A = problem(9, 3, 4, (5,))
    torch.testing.assert_close(torch.vmap(linear.loss)(theta, S, A), linear.loss(theta, S, A))
    mapped = torch.vmap(linear.gradient)(theta, S, A)
    for a, b in zip(mapped, linear.gradient(theta, S, A), strict=True):
        torch.testing.assert_close(a, b)


def test_func_grad_and_hessian() -> None:
    theta, S, A = problem(10, 2, 3)
    gradient = torch.func.grad(linear.loss)(theta, S, A)
    for a, b in zip(gradient, linear.gradient(theta, S, A), strict=True):
        torch.testing.assert_close(a, b)
    hessian = torch.func.jacrev(torch.func.grad(linear.loss))(theta, S, A)
    assert hessian.W.U.shape == (2, 2, 2, 3)
    jacobian = torch.func.jacrev(linear.gradient)(theta, S, A)
    torch.testing.assert_close(hessian.W.U, jacobian.W.U)


# Refusals: a sentence that names the argument ---------------------------------------------------

I2 = torch.eye(2, dtype=torch.float64)
GOOD = LinearDEQ(0.5 * I2, torch.ones(2, 3, dtype=torch.float64))
I3 = torch.eye(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: linear.loss((I2, I2), I2, I2), TypeError, "theta is a tuple"),
        (lambda: linear.equilibrium_map(LinearDEQ(I2[0], I2)), ValueError, r"W has shape \(2,\)"),
        (lambda: linear.equilibrium_map(LinearDEQ(GOOD.U, I2)), ValueError, r"W has shape \(2, 3"),
        (lambda: linear.equilibrium_map(LinearDEQ(I3, GOOD.U)), ValueError, r"U has shape \(2, 3"),
        (lambda: linear.equilibrium_map(LinearDEQ(I2, GOOD.U)), ValueError, "eigenvalue 1"),
        (lambda: linear.invariant(LinearDEQ(I2, I2.float())), TypeError, "one floating-point type"),
        (lambda: linear.rows(LinearDEQ(I2.long(), I2.long())), TypeError, "one floating-point"),
        (lambda: linear.loss(GOOD, I2, GOOD.U), ValueError, r"S has shape \(2, 2\)"),
        (lambda: linear.gradient(GOOD, I3, I3), ValueError, r"A has shape \(3, 3\)"),
        (lambda: linear.gradient_from(GOOD, I2), ValueError, r"G has shape \(2, 2\)"),
        (lambda: linear.predict(GOOD, I2), ValueError, r"X has shape \(2, 2\)"),
        (lambda: linear.sphere_limit(GOOD, GOOD.U), ValueError, "p = 2"),
        (
            lambda: linear.sphere_limit(LinearDEQ(I2[:1, :1], I2[:1]), I2[:1]),
            ValueError,
            "W is 1",
        ),
        (lambda: linear.regression(I3, I2), ValueError, "same n"),
        (lambda: linear.regression(I3[:2], I3[:2]), ValueError, "rank 2"),
        (lambda: linear.regression(I3 * torch.nan, I3), ValueError, "X holds NaN"),
        (lambda: linear.regression(I3, I3 / 0), ValueError, "Y holds NaN or infinity"),
    ],
)
def test_wrong_input_is_refused_in_words(call, error, sentence) -> None:
    with pytest.raises(error, match=sentence):
        call()


@property_test
@given(seed=seeds, p=sizes, d=sizes, batch=st.sampled_from([(), (3,), (2, 2)]))
def test_loss_and_gradient_are_the_loss_and_the_gradient(
    seed: int, p: int, d: int, batch: tuple[int, ...]
) -> None:
    theta, S, A = problem(seed, p, d, batch)
    value, slope = linear.loss_and_gradient(theta, S, A)
    accuracy = {"rtol": tolerance(theta), "atol": tolerance(theta)}
    torch.testing.assert_close(value, linear.loss(theta, S, A), **accuracy)
    assert value.shape == batch
    exact = linear.gradient(theta, S, A)
    assert torch.equal(slope.W, exact.W)
    assert torch.equal(slope.U, exact.U)


def test_the_gradient_of_a_singular_problem_is_refused() -> None:
    S, A = torch.eye(GOOD.U.shape[-1], dtype=torch.float64), torch.zeros_like(GOOD.U)
    for function in (linear.gradient, linear.loss_and_gradient):
        with pytest.raises(ValueError, match="eigenvalue 1"):
            function(LinearDEQ(I2, GOOD.U), S, A)


def test_one_singular_problem_of_a_batch_is_refused() -> None:
    W = torch.stack([0.5 * I2, I2, 0.2 * I2])
    with pytest.raises(ValueError, match="Batch element 1"):
        linear.equilibrium_map(LinearDEQ(W, GOOD.U.expand(3, 2, 3)))
