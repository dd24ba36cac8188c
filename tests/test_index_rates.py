"""The constants of `single-index-rate`: each against an independent computation or a search."""

from __future__ import annotations

import pytest
import torch

from deqlib import activations, index_rates, one_point, rates, single_index
from deqlib.dynamics import gradient_descent
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems.single_index_problems import (
    STRICT,
    Problem,
    directions,
    random_problems,
    uniform,
)

B, D = 12, 3
by_link = pytest.mark.parametrize("link", STRICT, ids=lambda link: link.name)


def drawn(link: activations.Link, seed: int = 0, batch: int = B) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    return random_problems(generator, batch, link, D, radius=(0.05, 0.8))


def in_the_ball(many: Problem, seed: int, count: int) -> SingleIndexDEQ:
    """Points at distances up to ρ₀ from each target, a third of them on the sphere; (count, B)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, len(many.gap), 1 + D)
    part = uniform(generator, 0, 1.5, *shape[:2]).clamp(max=1) * many.radius
    star = single_index.flat(many.target)
    return single_index.unflat(star + part[..., None] * directions(generator, *shape))


@by_link
def test_reach_holds_every_preactivation_of_the_ball_and_no_more(link) -> None:
    many = drawn(link)
    low, high = index_rates.reach(link, many.target, many.X, many.radius)
    theta = in_the_ball(many, 1, 300)
    s = single_index.index(theta, many.X)
    u = single_index.preactivation(link, theta.a[..., None], s)
    assert bool(((low <= u) & (u <= high)).all())
    # Attained: the model of the ball that gives `high` is the point of its hyperplane next to θ*.
    for end in (low, high):
        row = torch.cat([link(end)[..., None], many.X], dim=-1)  # ⟨θ, row⟩ = u
        star = single_index.flat(many.target)[:, None]
        off = end - (row * star).sum(-1)
        nearest = star + (off / row.square().sum(-1))[..., None] * row
        away = (nearest - star).norm(dim=-1)
        assert torch.allclose(away, many.radius[:, None].expand_as(away), rtol=1e-6)
        at = single_index.unflat(nearest)
        back = single_index.preactivation(link, at.a, (at.w * many.X).sum(-1))
        assert torch.allclose(back, end, rtol=1e-6, atol=1e-9)


def test_reach_refuses_a_ball_that_is_too_large() -> None:
    many = drawn(activations.tanh)
    with pytest.raises(ValueError, match="below Δ"):
        index_rates.reach(activations.tanh, many.target, many.X, many.gap)


@pytest.mark.parametrize(
    "link", [x for x in activations.LINKS.values() if x.monotone], ids=lambda x: x.name
)
def test_slopes_rise_up_to_one_point_and_fall_from_there_on(link) -> None:
    """What `least_slope` rests on: between two points no slope is below both ends'."""
    generator = torch.Generator().manual_seed(2)
    ends = uniform(generator, -12, 12, 2, 400)
    low, high = ends.amin(0), ends.amax(0)
    inner = low + (high - low) * torch.linspace(0, 1, 60, dtype=torch.float64)[:, None]
    least = index_rates.least_slope(link, low, high)
    # 1 − tanh² loses what lies below the rounding of 1.
    assert bool((link.derivative(inner).amin(0) >= least - 1e-15).all())


@by_link
def test_both_matrices_lie_within_the_constants_all_over_the_ball(link) -> None:
    many = drawn(link)
    known = index_rates.constants(link, many.target, many.X, many.radius)
    theta = in_the_ball(many, 3, 100)
    low = rates.extremes(one_point.strict_matrix(link, theta, many.target, many.X))[0]
    high = rates.extremes(one_point.one_point_matrix(link, theta, many.target, many.X))[1]
    assert bool((low >= known.m - 1e-14 * high).all())
    assert bool((high <= known.Lam).all())
    # Within reach of being attained, so that a wrong power or factor would show.
    assert float((known.m / low.amin(0)).max()) > 0.1
    assert float((high.amax(0) / known.Lam).max()) > 0.1


@by_link
def test_the_three_contractions_are_ordered(link) -> None:
    many = drawn(link)
    known = index_rates.constants(link, many.target, many.X, many.radius)
    by_event = index_rates.truncated_contraction(link, many.target, many.X, many.radius)
    one_slope = one_point.contraction(
        known.lam, 1 / known.alpha.amin(-1) - many.target.a, many.radius
    )
    uniform_slope = one_point.contraction(
        known.lam, one_point.gaps(link, many.target)[1], many.radius
    )
    assert bool((uniform_slope <= one_slope * (1 + 1e-9)).all())
    assert bool((one_slope <= by_event * (1 + 1e-9)).all())
    assert bool((by_event <= known.m * (1 + 1e-9)).all())
    assert bool((by_event > 0).all())


@by_link
def test_contraction_tends_to_the_sharp_rate_as_the_ball_shrinks(link) -> None:
    many = drawn(link)
    sharp = rates.extremes(one_point.hessian(link, many.target, many.X))[0]
    off = [
        float((1 - index_rates.contraction(link, many.target, many.X, r * many.gap) / sharp).max())
        for r in (1e-3, 1e-4)
    ]
    assert 0 < off[1] < 0.02
    # First order in the radius: a tenth of the ball, about a tenth of the loss.
    assert off[1] < 0.2 * off[0]


def test_constants_without_a_slope_or_outside_the_ball() -> None:
    gap = torch.ones(3, dtype=torch.float64)
    far = torch.tensor([1.0, 2.0, torch.inf], dtype=torch.float64)
    weight = index_rates.weight_floor(gap, far, 0.5 * gap)
    assert weight.tolist() == pytest.approx([1 / 1.5**3, 2 / 2.5**3, 0.0])
    # Beyond the ball the largest secant slope may be the worse one: T = 2, ρ = 9, Δ* = 1.
    assert float(index_rates.weight_floor(gap, far, 9 * gap)[1]) == pytest.approx(0.01 / 11)


def test_gain_is_one_over_Lambda_at_the_safe_step_and_ends_at_twice_it() -> None:
    eta, Lam = torch.tensor([0.25, 0.5]), torch.tensor(4.0)
    assert index_rates.gain(eta, Lam).tolist() == [0.25, 0.0]


@by_link
def test_local_step_is_safe_and_at_least_the_constant_one(link) -> None:
    many = drawn(link)
    known = index_rates.constants(link, many.target, many.X, many.radius)
    theta = many.start
    for _ in range(20):
        eta = index_rates.local_step(link, theta, many.X, many.gap)
        assert bool((eta >= 1 / known.Lam).all())
        Q = one_point.one_point_matrix(link, theta, many.target, many.X)
        assert bool((eta * rates.extremes(Q)[1] <= 1 + 1e-9).all())
        g = single_index.gradient(link, theta, many.X, many.y)
        after = SingleIndexDEQ(theta.a - eta * g.a, theta.w - eta[:, None] * g.w)
        before, now = (single_index.distance(one, many.target) for one in (theta, after))
        assert bool((now < before).all())
        theta = after


def test_projected_direction_is_a_step_and_a_clip() -> None:
    theta = SingleIndexDEQ(torch.tensor([0.5, 0.5]), torch.ones(2, 1))

    def grad(theta: SingleIndexDEQ) -> SingleIndexDEQ:
        return SingleIndexDEQ(torch.tensor([-1.0, 1.0]), torch.ones(2, 1))

    g = index_rates.projected(grad, 0.4, 0.7)(theta)
    assert (theta.a - 0.4 * g.a).tolist() == pytest.approx([0.7, 0.1])
    assert (theta.w - 0.4 * g.w).flatten().tolist() == pytest.approx([0.6, 0.6])


@by_link
def test_clipped_descent_contracts_from_far_outside_the_ball(link) -> None:
    many = drawn(link, seed=4)
    generator = torch.Generator().manual_seed(5)
    ceiling = many.target.a + 0.6 * many.gap
    kept = 1 / link.beta - ceiling
    away = uniform(generator, 1.5, 6, B) * many.gap
    theta = single_index.flat(many.target) + away[:, None] * directions(generator, B, 1 + D)
    start = SingleIndexDEQ(torch.minimum(theta[:, 0], ceiling), theta[:, 1:])
    rho = single_index.distance(start, many.target)
    alpha = index_rates.clipped_slope_floor(link, many.target, many.X, rho, kept)
    m = index_rates.contraction(link, many.target, many.X, rho, alpha)
    A = one_point.moment(many.X, many.y)
    Lam = index_rates.clipped_smoothness(rates.extremes(A)[1], many.gap, kept, rho)
    Q = one_point.one_point_matrix(link, start, many.target, many.X)
    S = one_point.strict_matrix(link, start, many.target, many.X)
    assert bool((rates.extremes(Q)[1] <= Lam).all())
    assert bool((rates.extremes(S)[0] >= m - 1e-14 * Lam).all())
    objective = single_index.Objective(link, many.X, many.y)
    run = gradient_descent(
        objective.loss, start, 1 / Lam, 40, batch_ndim=1, progress=False,
        grad=index_rates.projected(objective.gradient, 1 / Lam, ceiling),
    )  # fmt: skip
    assert bool((run.theta.a <= ceiling).all())
    size = single_index.distance(run.theta, many.target)
    # Distances are known to rounding of θ, 1e-15 ‖θ‖ a step.
    assert bool((size[1:] <= (1 - m / Lam).sqrt() * size[:-1] * (1 + 1e-13)).all())
    assert float((size[-1] / size[0]).min()) < 1 - 1e-4


@by_link
def test_every_inequality_of_the_proof_has_slack_along_a_run(link) -> None:
    many = drawn(link)
    known = index_rates.constants(link, many.target, many.X, many.radius)
    eta, theta = 1.5 / known.Lam, many.start
    for _ in range(15):
        slacks = index_rates.step_slacks(link, theta, many.target, many.X, eta, known)
        for name, slack in vars(slacks).items():
            # Where a bound is attained (D of a leaky link), two sides agree up to rounding.
            assert float(slack.min()) > -1e-12, name
        g = single_index.gradient(link, theta, many.X, many.y)
        theta = SingleIndexDEQ(theta.a - eta * g.a, theta.w - eta[:, None] * g.w)


def test_too_long_a_step_or_too_small_a_ball_breaks_an_inequality() -> None:
    link = activations.tanh
    many = drawn(link)
    known = index_rates.constants(link, many.target, many.X, many.radius)
    top = rates.extremes(one_point.one_point_matrix(link, many.start, many.target, many.X))[1]
    args = (link, many.start, many.target, many.X)
    long = index_rates.step_slacks(*args, 1e3 / top, known)
    assert float(long.descent.min()) < 0
    small = index_rates.constants(link, many.target, many.X, 0.05 * many.radius)
    slacks = index_rates.step_slacks(*args, 1 / known.Lam, small)
    assert min(float(slack.min()) for slack in vars(slacks).values()) < 0
