"""One-point matrices: they are what they are said to be, at θ*, near it and far from it."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from deqlib import implicit, one_point, single_index
from deqlib.activations import gelu, leaky_relu, relu, softsign, tanh
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems.single_index_problems import STRICT, Problem, random_problems

SMOOTH = [link for link in STRICT if link.name not in ("softsign", "leaky ReLU 0.2")]


def problem(link, d: int = 3, seed: int = 0, **options) -> Problem:
    return random_problems(Generator().manual_seed(seed), 1, link, d, **options).one(0)


def implicit_loss(one: Problem, theta: Tensor) -> Tensor:
    """½ E(z − y)² with z from `implicit.equilibrium`: no formula of Part III enters."""
    a, s = theta[0], one.X @ theta[1:]
    solved = implicit.equilibrium(
        lambda z: one.link(a * z + s), torch.zeros_like(s), method="newton", tol=1e-13,
        state_ndim=0,
    )  # fmt: skip
    return 0.5 * (solved.z - one.y).square().mean()


@pytest.mark.parametrize("link", STRICT, ids=lambda link: link.name)
def test_gradient_is_q_times_delta(link) -> None:
    for seed, d in enumerate((1, 2, 7)):
        one = problem(link, d, seed)
        delta = single_index.flat(one.start) - single_index.flat(one.target)
        Q = one_point.one_point_matrix(link, one.start, one.target, one.X)
        theta = single_index.flat(one.start).requires_grad_()
        (g,) = torch.autograd.grad(implicit_loss(one, theta), theta)
        assert torch.allclose(Q @ delta, g, rtol=1e-9, atol=1e-12 * float(Q.norm()))
        strict = one_point.strict_matrix(link, one.start, one.target, one.X)
        assert float(delta @ strict @ delta) == pytest.approx(float(g @ delta), rel=1e-9)
        assert float(torch.linalg.eigvalsh(strict)[0]) > 0


@pytest.mark.parametrize("link", SMOOTH, ids=lambda link: link.name)
def test_hessian_at_the_target_is_that_of_two_backward_passes(link) -> None:
    one = problem(link)
    H = one_point.hessian(link, one.target, one.X)
    theta = single_index.flat(one.target)
    twice = torch.autograd.functional.hessian(lambda t: implicit_loss(one, t), theta)
    assert torch.allclose(H, twice, rtol=1e-8, atol=1e-10 * float(H.norm()))
    assert torch.allclose(H, one_point.one_point_matrix(link, one.target, one.target, one.X))
    assert torch.allclose(H, one_point.strict_matrix(link, one.target, one.target, one.X))


@pytest.mark.parametrize("link", STRICT, ids=lambda link: link.name)
def test_matrices_are_continuous_where_the_two_models_meet(link) -> None:
    """At distances from 1e-3 to 1e-13 the secant slope is never worse than its smoothness.

    A kink of φ′ makes Q jump for the samples at it, so the links with one are left out of the
    comparison with H and only have to satisfy the identity.
    """
    one = problem(link, 2)
    H = one_point.hessian(link, one.target, one.X)
    away = single_index.flat(one.start) - single_index.flat(one.target)
    for power in range(3, 14):
        theta = single_index.unflat(single_index.flat(one.target) + 10.0**-power * away)
        Q = one_point.one_point_matrix(link, theta, one.target, one.X)
        if link in SMOOTH:
            assert float((Q - H).norm() / H.norm()) < 30 * 10.0**-power + 1e-8
        delta = single_index.flat(theta) - single_index.flat(one.target)
        g = single_index.flat(single_index.gradient(link, theta, one.X, one.y))
        # z − y is known to rounding, which is 1e-16/‖δ‖ of it, times what D and κ* do to it.
        assert float((g - Q @ delta).norm() / g.norm()) < 1e-9 + 1e-12 * 10.0**power


def test_secant_slope_across_a_bend_is_the_quotient() -> None:
    """Between ∓h the slope of softsign is 1/(1 + h) exactly; the derivative between is 1."""
    h = 10.0 ** -torch.arange(3, 9, dtype=torch.float64)
    assert torch.allclose(softsign.secant(h, -h), 1 / (1 + h), rtol=1e-9, atol=0)
    leaky = leaky_relu(0.2)
    assert torch.allclose(leaky.secant(h, -3 * h), torch.tensor(0.4, dtype=h.dtype))
    u = torch.linspace(-3, 3, 13, dtype=torch.float64)
    for width in (1e-4, 1e-6, 1e-9, 1e-12, 0.0):
        middle = tanh.derivative(u + width / 2)
        assert torch.allclose(tanh.secant(u + width, u), middle, rtol=1e-8, atol=1e-11)


def test_gaps_are_the_distances_to_the_ends() -> None:
    target = SingleIndexDEQ(torch.tensor([0.3, -1.0]), torch.zeros(2, 3))
    near, far = one_point.gaps(leaky_relu(0.2), target)
    assert torch.allclose(near, torch.tensor([0.7, 2.0]))
    assert torch.allclose(far, torch.tensor([4.7, 6.0]))
    assert bool(one_point.gaps(tanh, target)[1].isinf().all())


def test_gelu_is_refused_where_the_theory_does_not_reach() -> None:
    target = SingleIndexDEQ(torch.tensor(0.3), torch.zeros(2))
    with pytest.raises(ValueError, match="link is GELU, which is not monotone"):
        one_point.gaps(gelu, target)


def test_a_batch_is_its_members() -> None:
    batch = random_problems(Generator().manual_seed(1), 5, tanh, 4)
    for matrix in (one_point.one_point_matrix, one_point.strict_matrix):
        whole = matrix(tanh, batch.start, batch.target, batch.X)
        for i in range(5):
            one = batch.one(i)
            assert torch.allclose(whole[i], matrix(tanh, one.start, one.target, one.X))
    whole = one_point.hessian(tanh, batch.target, batch.X)
    assert torch.allclose(whole[3], one_point.hessian(tanh, batch.one(3).target, batch.X[3]))


def test_moment_is_singular_exactly_where_the_target_is_linear() -> None:
    one = problem(tanh, 3)
    assert float(torch.linalg.eigvalsh(one_point.moment(one.X, one.y))[0]) > 1e-8
    linear = one.X @ one.target.w
    assert abs(float(torch.linalg.eigvalsh(one_point.moment(one.X, linear))[0])) < 1e-12


def test_a_dead_relu_has_no_gradient_and_the_matrix_says_so() -> None:
    X = single_index.random_inputs(Generator().manual_seed(2), 40, 2, "gaussian").abs()
    dead = SingleIndexDEQ(torch.tensor(0.5).double(), torch.tensor([-1.0, -1.0]).double())
    target = SingleIndexDEQ(torch.tensor(0.2).double(), torch.tensor([1.0, -1.0]).double())
    assert bool((one_point.one_point_matrix(relu, dead, target, X) == 0).all())


def test_constants_bound_the_matrices_in_the_ball() -> None:
    """m ≤ λ_min(Q̃) and λ_max(Q) ≤ Λ for starts at every radius below Δ*."""
    generator = Generator().manual_seed(3)
    for link in STRICT:
        batch = random_problems(generator, 40, link, 3, radius=(0.05, 0.99))
        near, far = one_point.gaps(link, batch.target)
        lam = torch.linalg.eigvalsh(one_point.moment(batch.X, batch.y))
        Q = one_point.one_point_matrix(link, batch.start, batch.target, batch.X)
        strict = one_point.strict_matrix(link, batch.start, batch.target, batch.X)
        m = one_point.contraction(lam[:, 0], far, batch.radius)
        top = one_point.smoothness(lam[:, -1], near, batch.radius)
        assert bool((torch.linalg.eigvalsh(Q)[:, -1] <= top).all())
        assert bool((torch.linalg.eigvalsh(strict)[:, 0] >= m).all())
        assert bool((m > 0).all()) == (link.alpha > 0)


@pytest.mark.parametrize("terms", range(1, 6))
def test_truncated_slope_is_the_cut_geometric_series(terms) -> None:
    u = torch.linspace(-3, 3, 50, dtype=torch.float64)
    for a in (-4.0, -0.7, 0.6):
        self_weight = torch.tensor(a, dtype=torch.float64)
        t = a * tanh.derivative(u)
        exact = single_index.slope(tanh, self_weight, u)
        D = single_index.truncated_slope(tanh, self_weight, u, terms)
        assert torch.allclose(D, exact * (1 - t**terms), rtol=1e-12, atol=1e-13)
        if terms % 2:
            assert bool((D >= 0).all())
        else:
            assert bool(((D >= 0) == (t >= -1)).all())


def test_truncated_slope_refuses_no_terms() -> None:
    one = torch.zeros(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="terms is 0; it must be at least 1"):
        single_index.truncated_slope(tanh, one, one, 0)
