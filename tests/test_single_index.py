"""deqlib.single_index: equilibria beside other solvers, the gradient four ways, wrong input."""

from __future__ import annotations

from dataclasses import replace

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import Tensor

from deqlib import activations, implicit, single_index
from deqlib.activations import LINKS, Link, gelu, leaky_relu, relu, softplus, tanh
from deqlib.dynamics import gradient_descent
from deqlib.fixed_point import Newton, NotConvergedError, Status
from deqlib.single_index import Objective, SingleIndexDEQ

EPS = torch.finfo(torch.float64).eps
property_test = settings(deadline=None, derandomize=True, max_examples=40)
every_link = pytest.mark.parametrize("link", list(LINKS.values()), ids=list(LINKS))


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def least(link: Link) -> float:
    """Where a begins in these tests: −50, or 0.999/α for a link that falls somewhere."""
    return -50.0 if link.alpha >= 0 else 0.999 / link.alpha


def scalars(link: Link, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """a from `least` to 0.999/β, a third crowded at the upper end; s normal with deviation 3."""
    g = generator(seed)
    low, high = least(link), 0.999 / link.beta
    a = low + (high - low) * torch.rand(n, generator=g, dtype=torch.float64)
    a[: n // 3] = high * (1 - 10 ** (-3 * torch.rand(n // 3, generator=g, dtype=torch.float64)))
    return a, 3 * torch.randn(n, generator=g, dtype=torch.float64)


def steepness(link: Link, a: Tensor) -> tuple[Tensor, Tensor]:
    ends = 1 - a * link.alpha, 1 - a * link.beta
    return torch.minimum(*ends), torch.maximum(*ends)


# The equilibrium ---------------------------------------------------------------------------------


@every_link
def test_a_million_equilibria_and_some_of_them_by_brent(link: Link) -> None:
    a, s = scalars(link, 10**6, seed=0)
    u = single_index.preactivation(link, a, s)
    assert bool(u.isfinite().all())
    # What the docstring promises of all: the residual is at rounding level.
    residual = (u - a * link(u) - s).abs()
    scale = u.abs() + (a * link(u)).abs() + s.abs() + link.beta * (a * u).abs()
    assert float((residual / scale).max()) <= 8 * EPS

    some = torch.randint(len(a), (60,), generator=generator(1)).tolist()
    for one, shift, found in zip(a[some].tolist(), s[some].tolist(), u[some].tolist(), strict=True):

        def g(v: float, one: float = one, shift: float = shift) -> float:
            return v - one * float(link(torch.tensor(v, dtype=torch.float64))) - shift

        m = min(1 - one * link.alpha, 1 - one * link.beta)
        far = 1.01 * abs(g(shift)) / m + 1e-9
        root = brentq(g, shift - far, shift + far, xtol=1e-300, rtol=4 * EPS, maxiter=500)
        z, reference = (float(link(torch.tensor(v, dtype=torch.float64))) for v in (found, root))
        assert z == pytest.approx(reference, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("gap", [1e-3, 1e-8, 1e-12])
@pytest.mark.parametrize("s", [1e-3, 0.3, -2.0])
def test_towards_the_vertical_tangent_in_fifty_digits(gap: float, s: float) -> None:
    """a = 1 − gap for tanh, against mpmath: g is known to rounding, so u to rounding over g′."""
    a = 1 - gap
    u = float(single_index.preactivation(tanh, double(a), double(s)))
    with mpmath.workdps(50):
        exact = mpmath.findroot(
            lambda v: v - mpmath.mpf(a) * mpmath.tanh(v) - mpmath.mpf(s), mpmath.mpf(u)
        )
        rise = 1 - mpmath.mpf(a) * (1 - mpmath.tanh(exact) ** 2)
        allowed = 8 * EPS * (2 * abs(exact) + abs(s)) / rise
        assert abs(exact - u) <= allowed


@every_link
@pytest.mark.parametrize("s", [1e6, -1e6, 1e-300, -1e-300, 0.0, 5e-324])
@pytest.mark.parametrize("part", [0.0, 0.5, 1 - 1e-3, 1 - 1e-9, 1 - 1e-15, -1.0])
def test_extreme_inputs(link: Link, s: float, part: float) -> None:
    """part of 1/β, or −1 for the lower end; the index from the largest to the least there is."""
    a = double(part / link.beta if part >= 0 else least(link))
    u = single_index.preactivation(link, a, double(s))
    m, M = steepness(link, a)
    residual = float((u - a * link(u) - s).abs())
    size = float(u.abs() + (a * link(u)).abs() + abs(s) + link.beta * (a * u).abs())
    assert residual <= 8 * EPS * size + 4 * 5e-324 * float(M)
    if link.name == "identity" and abs(s) > 1e-300:
        assert float(u) == pytest.approx(s / float(1 - a), rel=4 * EPS / float(m))


@every_link
def test_a_warm_start_gives_the_same_to_rounding(link: Link) -> None:
    a, s = scalars(link, 2000, seed=2)
    cold = single_index.preactivation(link, a, s)
    m, _ = steepness(link, a)
    rounding = 32 * EPS * (cold.abs() + (a * link(cold)).abs() + s.abs()) * (1 + a.abs()) / m
    noise = torch.randn(2000, generator=generator(3), dtype=torch.float64)
    for start in (cold, cold + 1e-6 * noise, cold + 100 * noise, torch.full_like(s, torch.nan)):
        warm = single_index.preactivation(link, a, s, start=start)
        assert bool(((warm - cold).abs() <= rounding).all())


def test_the_solver_needs_no_true_derivative() -> None:
    """The bracket alone leads to the root: with a derivative from nowhere it takes longer."""
    wrong = replace(tanh, derivative=lambda s: torch.full_like(s, 0.37))
    a, s = scalars(tanh, 2000, seed=4)
    u = single_index.preactivation(tanh, a, s)
    v = single_index.preactivation(wrong, a, s, max_iter=2000)
    rounding = (
        64 * EPS * (u.abs() + (a * tanh(u)).abs() + s.abs()) * (1 + a.abs()) / (1 - a).clamp(max=1)
    )
    assert bool(((u - v).abs() <= rounding).all())


@every_link
def test_single_precision(link: Link) -> None:
    a, s = scalars(link, 20_000, seed=5)
    a, s = a.float(), s.float()
    u = single_index.preactivation(link, a, s)
    assert u.dtype == torch.float32
    exact = single_index.preactivation(link, a.double(), s.double())
    m, _ = steepness(link, a.double())
    size = exact.abs() + (a * link(exact)).abs() + s.abs() + link.beta * (a * exact).abs()
    assert bool(((u - exact).abs() <= 16 * torch.finfo(torch.float32).eps * size / m).all())


def test_shapes_broadcast_and_may_be_empty() -> None:
    a, s = double(-3.0, 0.5)[:, None], double(-1.0, 0.2, 4.0)
    u = single_index.preactivation(tanh, a, s)
    assert u.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = single_index.preactivation(tanh, a[i, 0], s[j])
            assert alone.shape == ()
            assert float(alone) == float(u[i, j])  # a point does not see its neighbours
    assert single_index.preactivation(tanh, a, torch.zeros(0, dtype=torch.float64)[None]).shape == (
        2,
        0,
    )


def test_nothing_is_recorded_for_autograd() -> None:
    a = double(0.5).requires_grad_()
    assert not single_index.preactivation(tanh, a, double(1.0)).requires_grad


# Wrong input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("link", "a"),
    [(tanh, 1.0), (tanh, 3.0), (gelu, 1 / gelu.alpha), (gelu, -20.0), (gelu, 1 / gelu.beta)],
)
def test_an_inadmissible_a_gets_a_sentence_or_nan(link: Link, a: float) -> None:
    many, s = double(-0.3, a, 0.2), double(0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match=f"slopes of {link.name} reach"):
        single_index.preactivation(link, many, s)
    u = single_index.preactivation(link, many, s, throw=False)
    assert u.isnan().tolist() == [False, True, False]
    alone = single_index.preactivation(link, many[[0, 2]], s[[0, 2]])
    assert torch.equal(u[[0, 2]], alone)
    with pytest.raises(ValueError, match="a times a slope"):
        single_index.learned_link(link, a)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_gets_a_sentence_or_nan(bad: float) -> None:
    for a, s in ((double(0.1, bad), double(1.0, 1.0)), (double(0.1, 0.1), double(1.0, bad))):
        with pytest.raises(ValueError, match="both must be finite"):
            single_index.preactivation(tanh, a, s)
        u = single_index.preactivation(tanh, a, s, throw=False)
        assert u.isnan().tolist() == [False, True]
    with pytest.raises(ValueError, match="must be finite"):
        single_index.learned_link(tanh, bad)


def test_other_wrong_input_gets_a_sentence() -> None:
    one, X, y = double(0.5), torch.ones(4, 3).double(), torch.ones(4).double()
    theta = SingleIndexDEQ(one[0], torch.ones(3).double())
    with pytest.raises(TypeError, match="one floating-point type"):
        single_index.preactivation(tanh, one, one.float())
    with pytest.raises(TypeError, match="one floating-point type"):
        single_index.preactivation(tanh, torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(
        TypeError, match=r"link is a function; it must be a deqlib\.activations\.Link"
    ):
        single_index.preactivation(lambda s: s, one, one)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start has shape"):
        single_index.preactivation(tanh, one, one, start=torch.zeros(2).double())
    with pytest.raises(TypeError, match=r"theta is a tuple; it must be a SingleIndexDEQ"):
        single_index.predict(tanh, (one[0], X[0]), X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"X has shape \(4, 2\)"):
        single_index.predict(tanh, theta, X[:, :2])
    with pytest.raises(ValueError, match="a has shape"):
        single_index.predict(tanh, SingleIndexDEQ(one, theta.w), X)
    with pytest.raises(TypeError, match="one floating-point type"):
        single_index.predict(tanh, SingleIndexDEQ(theta.a.float(), theta.w), X)
    with pytest.raises(ValueError, match="X has shape"):
        Objective(tanh, X, y[:3])
    with pytest.raises(ValueError, match="kind is 'dull'"):
        single_index.random_inputs(generator(0), 3, 2, "dull")


def test_too_few_evaluations_raise_and_say_how_many() -> None:
    a, s = scalars(tanh, 100, seed=6)
    with pytest.raises(NotConvergedError, match="reached max_iter") as caught:
        single_index.preactivation(tanh, a, s, max_iter=2, throw=False)
    report = caught.value.result
    assert set(report.status.tolist()) == {int(Status.MAX_ITER)}
    assert 0 < len(report.status) <= 100
    assert float(report.residual.max()) > 1e-6


# The learned link --------------------------------------------------------------------------------


@every_link
@pytest.mark.parametrize("part", [-5.0, -0.7, 0.4, 0.9])
def test_the_learned_link_is_a_link(link: Link, part: float) -> None:
    a = max(part / link.beta, least(link) / 1.1)
    h = single_index.learned_link(link, a)
    h.check(generator(7))
    assert h.monotone == link.monotone
    s = 3 * torch.randn(500, generator=generator(8), dtype=torch.float64)
    z = single_index.equilibrium(link, torch.full_like(s, a), s)
    assert torch.equal(h(s), z)
    assert float((z - link(a * z + s)).abs().max()) <= 1e-12 * (1 + abs(a))


@pytest.mark.parametrize("a", [-4.0, -0.5, 0.6])
def test_the_learned_link_of_leaky_relu_is_leaky_again(a: float) -> None:
    leak = 0.2
    s = torch.linspace(-5, 5, 101, dtype=torch.float64)
    expected = torch.where(s >= 0, s / (1 - a), leak * s / (1 - leak * a))
    assert torch.allclose(single_index.learned_link(leaky_relu(leak), a)(s), expected, rtol=1e-13)


def test_learning_twice_adds_the_self_weights() -> None:
    """z = h_a(b z + s) says z = φ((a + b) z + s): (h_a)_b = h_{a+b}."""
    s = torch.linspace(-3, 3, 61, dtype=torch.float64)
    once = single_index.learned_link(tanh, -1.3)
    for b in (-2.0, 0.9, 2.1):
        twice = single_index.learned_link(once, b)
        assert torch.allclose(twice(s), single_index.learned_link(tanh, b - 1.3)(s), atol=1e-13)


# Loss and gradient -------------------------------------------------------------------------------


def problem(link: Link, seed: int, d: int = 3) -> tuple[SingleIndexDEQ, Tensor, Tensor]:
    """Four models with a in [−4, 0.8]/β, 12 inputs each, and labels of no model's making."""
    g = generator(seed)
    a = torch.rand(4, generator=g, dtype=torch.float64)
    a = (0.8 * a - 4 * (1 - a)) / link.beta
    a = a.clamp(min=0.8 / link.alpha) if link.alpha < 0 else a
    w = torch.randn(4, d, generator=g, dtype=torch.float64)
    theta = SingleIndexDEQ(a, w)
    X = single_index.random_inputs(g, 60, d, "gaussian", batch=(4,))
    far = single_index.index(theta, X).abs().topk(12).indices  # away from kinks, which are at 0
    X = X.gather(-2, far[..., None].expand(4, 12, d))
    return theta, X, torch.randn(4, 12, generator=g, dtype=torch.float64)


@every_link
def test_gradients_agree_four_ways(link: Link) -> None:
    """Closed form, adjoint solve, unrolled layers, differences: 1e-10 where nothing is truncated.

    The layers' factor is at most 5/6 here (m ≥ 0.1, M ≤ 1 or m = 1, M ≤ 5), so 200 of them leave
    200·(5/6)²⁰⁰ < 1e-13; the differences of fourth order with h = 1e-3 err by 1e-12·∂⁵L/30 and by
    rounding, 1e-16/h.
    """
    theta, X, y = problem(link, seed=9)
    closed = single_index.flat(single_index.gradient(link, theta, X, y))
    leaf = single_index.flat(theta).requires_grad_()
    at = single_index.unflat(leaf)

    def layer(z: Tensor) -> Tensor:
        return link(at.a[:, None] * z + single_index.index(at, X))

    z = implicit.equilibrium(layer, torch.zeros_like(y), method=Newton(), tol=1e-14, state_ndim=0).z
    (adjoint,) = torch.autograd.grad(0.5 * (z - y).square().mean(-1).sum(), leaf)
    m, M = steepness(link, theta.a)
    tau, state = (2 / (m + M))[:, None], torch.zeros_like(y)
    for _ in range(200):
        state = state + tau * (layer(state) - state)
    (unrolled,) = torch.autograd.grad(0.5 * (state - y).square().mean(-1).sum(), leaf)

    def loss(vector: Tensor) -> Tensor:
        return single_index.loss(link, single_index.unflat(vector), X, y)

    h, differences = 1e-3, torch.zeros_like(closed)
    for i, e in enumerate(torch.eye(closed.shape[-1], dtype=torch.float64)):
        point = leaf.detach()
        one, two = (loss(point + k * h * e) - loss(point - k * h * e) for k in (1, 2))
        differences[:, i] = (8 * one - two) / (12 * h)

    scale = 1 + closed.norm()
    assert float((closed - adjoint).norm() / scale) <= 1e-10
    assert float((closed - unrolled).norm() / scale) <= 1e-10
    kinked = link.name in ("ReLU", "leaky ReLU 0.2")
    if kinked:  # a difference is blind to a kink only if no input crosses it
        u = single_index.preactivation(link, theta.a[:, None], single_index.index(theta, X))
        assert float(u.abs().min()) > 4 * h
    assert float((closed - differences).norm() / scale) <= (
        1e-6 if link.name == "softsign" else 1e-9
    )


def test_gradient_at_an_inadmissible_model() -> None:
    theta, X, y = problem(tanh, seed=10)
    theta.a[2] = 1.2
    with pytest.raises(ValueError, match=r"a is 1\.2"):
        single_index.gradient(tanh, theta, X, y)
    found = single_index.gradient(tanh, theta, X, y, throw=False)
    assert single_index.flat(found).isnan().any(-1).tolist() == [False, False, True, False]
    assert single_index.loss(tanh, theta, X, y, throw=False).isnan().tolist() == [
        False, False, True, False,
    ]  # fmt: skip


@property_test
@given(seed=st.integers(0, 2**31), d=st.integers(1, 5))
def test_flat_and_back_and_distance(seed: int, d: int) -> None:
    theta, _, _ = problem(softplus, seed, d)
    back = single_index.unflat(single_index.flat(theta))
    assert torch.equal(back.a, theta.a)
    assert torch.equal(back.w, theta.w)
    moved = SingleIndexDEQ(theta.a + 3, theta.w)
    assert torch.allclose(single_index.distance(theta, moved), torch.full((4,), 3.0).double())


@pytest.mark.parametrize("kind", single_index.INPUTS)
def test_random_inputs_have_mean_zero_and_variance_one(kind: str) -> None:
    X = single_index.random_inputs(generator(11), 200_000, 2, kind)
    # Standard errors: 1/√n for the mean; √(E x⁴ − 1)/√n for the square, with E x⁴ at most 9.
    assert float(X.mean(0).abs().max()) < 5 / 200_000**0.5
    assert float((X.square().mean(0) - 1).abs().max()) < 5 * 8**0.5 / 200_000**0.5
    assert (float(X.abs().max()) <= 3**0.5) == (kind == "bounded")


# Objective ---------------------------------------------------------------------------------------


def counting(link: Link) -> tuple[Link, list[int]]:
    """The link, and a list that grows with every derivative asked for: once a Newton step."""
    calls: list[int] = []

    def derivative(s: Tensor) -> Tensor:
        calls.append(len(s))
        return link.derivative(s)

    return replace(link, derivative=derivative), calls


def test_objective_is_the_functions_and_solves_once() -> None:
    link, calls = counting(softplus)
    theta, X, y = problem(softplus, seed=12)
    objective = Objective(link, X, y)
    loss = objective.loss(theta)
    steps = len(calls)
    assert steps > 2
    gradient = objective.gradient(SingleIndexDEQ(theta.a.clone(), theta.w.clone()))
    assert len(calls) == steps  # D was found with the equilibrium
    assert torch.allclose(loss, single_index.loss(softplus, theta, X, y), rtol=1e-13)
    expected = single_index.gradient(softplus, theta, X, y)
    assert torch.allclose(single_index.flat(gradient), single_index.flat(expected), rtol=1e-12)
    # Nearby the search begins from there: a step or two.
    calls.clear()
    objective.loss(SingleIndexDEQ(theta.a + 1e-9, theta.w))
    assert len(calls) <= 2


@pytest.mark.parametrize("part", ["a", "w", "X", "u"])
def test_objective_notices_what_changes_in_place(part: str) -> None:
    theta, X, y = problem(softplus, seed=13)
    objective = Objective(softplus, X, y)
    objective.loss(theta)
    match part:
        case "a":
            theta.a.sub_(0.5)
        case "w":
            theta.w.numpy()[...] *= 2  # a write that torch does not see
        case "X":
            X.mul_(2)
        case "u":
            objective.preactivation(theta).zero_()
    expected = single_index.loss(softplus, theta, X, y)
    assert torch.allclose(objective.loss(theta), expected, rtol=1e-12)


def test_objective_forgets_nothing_when_shapes_and_types_change() -> None:
    theta, X, y = problem(softplus, seed=14)
    objective = Objective(softplus, X[0], y[0])
    for at in (theta, SingleIndexDEQ(theta.a[0], theta.w[0]), theta):
        expected = single_index.loss(softplus, at, X[0], y[0])
        assert torch.allclose(objective.loss(at), expected, rtol=1e-12)
    objective.X, objective.y = X[0].float(), y[0].float()
    single = SingleIndexDEQ(theta.a.float(), theta.w.float())
    assert objective.loss(single).dtype == torch.float32


def test_objective_recovers_from_an_inadmissible_model() -> None:
    theta, X, y = problem(tanh, seed=15)
    objective = Objective(tanh, X, y)
    outside = SingleIndexDEQ(torch.full_like(theta.a, 1.5), theta.w)
    assert bool(objective.loss(outside).isnan().all())
    expected = single_index.loss(tanh, theta, X, y)
    assert torch.allclose(objective.loss(theta), expected, rtol=1e-12)


def test_descent_learns_a_teacher() -> None:
    g, link = generator(16), activations.linear_plus_tanh(0.3)
    X = single_index.random_inputs(g, 80, 2, "gaussian")
    target = SingleIndexDEQ(torch.tensor(0.3).double(), double(1.6, -0.8))
    objective = Objective(link, X, single_index.predict(link, target, X))
    start = SingleIndexDEQ(target.a - 0.4, target.w + 0.3)
    run = gradient_descent(
        objective.loss, start, 0.5, 500, grad=objective.gradient, progress=False
    )  # fmt: skip
    distance = single_index.distance(run.theta, target)
    assert bool((distance.diff() <= 0).all())
    assert float(distance[-1]) < 0.1 * float(distance[0])


def test_relu_is_solved_in_closed_form() -> None:
    a, s = scalars(relu, 1000, seed=17)
    expected = torch.relu(s) / (1 - a)
    assert torch.allclose(single_index.equilibrium(relu, a, s), expected, rtol=1e-11)
    assert activations.relu is relu
