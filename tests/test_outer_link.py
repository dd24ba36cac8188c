"""Theorem `outer-link` and the functions of `deqlib.outer_link`."""

from __future__ import annotations

import math

import pytest
import torch
from test_mutants import mutated

from deqlib import activations, linear, outer_link, rates, single_index
from deqlib.dynamics import gradient_flow
from deqlib.linear import LinearDEQ
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems import THEOREMS, verify
from deqlib.theorems.outer_link import OuterLink, attained, bent

THEOREM = OuterLink()
LAW, LOSS, LIMIT = "C is constant", "L(t) ≤ e^(−2μt) L₀", "N(t) → N_∞"
ANGLE, PL = "tan(ω/2) ≤ e^(−ct) tan(ω₀/2)", "‖∇L‖² ≥ 2μL"
RISES, CONTRACTS = "‖N_k − N*‖ never increases", "d₊² ≤ (1 − ηα²λP′/P³) d²"


def normal(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def model(a: float, *w: float) -> LinearDEQ:
    return LinearDEQ(torch.tensor([[a]]).double(), torch.tensor([w]).double())


def test_registered() -> None:
    assert isinstance(THEOREMS["outer-link"], OuterLink)


def test_holds_and_both_rates_are_attained() -> None:
    verdict = verify(THEOREM, 200, seed=1)
    assert verdict.holds, str(verdict)
    angles = [m[ANGLE].tightness for m in verdict.measurements if ANGLE in m]
    assert max(angles) > 0.99
    assert max(m[PL].tightness for m in verdict.measurements) > 0.9999
    # One and two outputs, both sides of the singular matrices.
    drawn = THEOREM.draw(torch.Generator().manual_seed(1), 60)
    assert {one.flow.path.W.shape[-1] for one in drawn} == {1, 2}
    assert {bool(one.flow.path.W[0, 0, 0] > 1) for one in drawn} == {True, False}
    assert {bool(one.descent.P_star > 0) for one in drawn} == {True, False}


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("sloped", LIMIT),
        ("full-rank", LIMIT),
        ("realisable", LOSS),
        ("plain-flow", LAW),
        ("near", RISES),
        ("short-step", CONTRACTS),
    ],
)
def test_fails_without(name: str, broken: str) -> None:
    verdict = verify(THEOREM, 24, seed=2, drop=name)
    assert verdict.failures >= 20
    assert sum(m[broken].margin < 0 for m in verdict.measurements) > 12


MUTANTS = {
    "angle: factor 2": ("return link.alpha**2 * low * (1", "return 2 * link.alpha**2 * low * (1"),
    "angle: without its root": ("(-2, -1))).sqrt() / r2", "(-2, -1))) / r2"),
    "angle: r in place of r²": (".sqrt() / r2", ".sqrt() / r2.sqrt()"),
    "PL: α² in place of α³": ("4 * link.alpha**3", "4 * link.alpha**2"),
    "PL: α + β not squared": ("(link.alpha + link.beta) ** 2", "(link.alpha + link.beta)"),
    "PL: λ_min(C) in place of λ_max(C)": (
        "rates.extremes(linear.invariant(theta))[1]", "rates.extremes(linear.invariant(theta))[0]",
    ),
    "PL: largest eigenvalue of S": (
        "low = rates.extremes(linear.second_moment(X))[0]\n    return 4",
        "low = rates.extremes(linear.second_moment(X))[1]\n    return 4",
    ),
    "gradient: φ′ left out": ("((link(z) - Y) * link.derivative(z)).mT", "(link(z) - Y).mT"),
    "gradient: sum in place of the mean": ("@ X / X.shape[-2]", "@ X"),
    "gradient: label's sign": ("((link(z) - Y) * link", "((link(z) + Y) * link"),
    "predict: link left out": (
        "return link(linear.predict(theta, X))", "return linear.predict(theta, X)",
    ),
    "step: 1000 times longer": ("return room**4 /", "return 1000 * room**4 /"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_catches(name: str) -> None:
    old, new = MUTANTS[name]
    with mutated(outer_link, old, new):
        assert not verify(THEOREM, 48, seed=5).holds


def test_pl_constant_is_sharp_and_at_most_four_times_the_plain_one() -> None:
    """α³λ/β comes from two separate bounds on ⟨∂ℓ/∂F, δ⟩; one bound for both is sharp."""
    for alpha, beta in ((0.5, 1.0), (0.2, 1.0), (0.1, 2.0), (1.0, 1.0)):
        link = bent(alpha, beta)
        problem, theta = attained(1, link)
        G = outer_link.map_gradient(link, linear.equilibrium_map(theta), problem.X, problem.Y)
        ratio = G.square().sum() / (2 * outer_link.loss(link, theta, problem.X, problem.Y))
        best = float(outer_link.map_pl_constant(link, problem.X))
        plain = alpha**3 / beta
        assert float(ratio) == pytest.approx(best, rel=1e-4)
        assert plain <= best * (1 + 1e-12) <= 4 * plain * (1 + 1e-12)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_gradient_is_that_of_autograd(p: int) -> None:
    X, Y = normal(1, 7, 2), normal(2, 7, p)
    W, U = (0.3 * normal(3, p, p)).requires_grad_(), normal(4, p, 2).requires_grad_()
    theta = LinearDEQ(W, U)
    link = activations.linear_plus_tanh(0.3)
    expected = torch.autograd.grad(outer_link.loss(link, theta, X, Y), (W, U))
    with torch.no_grad():
        found = outer_link.gradient(link, theta, X, Y)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-14)


def test_identity_link_is_the_linear_model() -> None:
    X, A = normal(5, 9, 2), normal(6, 1, 2)
    theta, link = model(0.4, -0.5, 0.8), activations.identity
    S = linear.second_moment(X)
    Y = X @ A.mT
    assert torch.allclose(outer_link.loss(link, theta, X, Y), linear.loss(theta, S, A))
    mine, theirs = outer_link.gradient(link, theta, X, Y), linear.gradient(theta, S, A)
    assert torch.allclose(mine.W, theirs.W)
    assert torch.allclose(mine.U, theirs.U)
    low = rates.extremes(S)[0]
    assert float(outer_link.map_pl_constant(link, X)) == pytest.approx(float(low))


def test_relu_inside_and_outside_are_one_model() -> None:
    """z = ReLU(a z + wᵀx) and ŷ = ReLU(z), z = a z + wᵀx, agree for a < 1."""
    X = normal(7, 30, 3)
    inside = SingleIndexDEQ(torch.tensor(-0.6).double(), normal(8, 3))
    outside = LinearDEQ(inside.a.reshape(1, 1), inside.w.reshape(1, 3))
    link = activations.relu
    z = single_index.predict(link, inside, X)
    assert torch.allclose(outer_link.predict(link, outside, X)[:, 0], z, atol=1e-14)
    y = normal(9, 30).abs()
    g = single_index.gradient(link, inside, X, y)
    h = outer_link.gradient(link, outside, X, y[:, None])
    assert torch.allclose(h.W.flatten(), g.a.reshape(1))
    assert torch.allclose(h.U[0], g.w)


def test_saturating_link_from_inside_the_cap() -> None:
    """α = 0: from ω₀ < arctan(1/|A|) the flow of a tanh model reaches the point of the sphere."""
    X, A, link = normal(10, 20, 2), torch.tensor([[0.8, -0.4]]).double(), activations.tanh
    theta = model(0.2, 0.1, -0.5)
    N, n = linear.rows(theta)[0], torch.tensor([1.0, 0.8, -0.4]).double()
    omega = torch.acos(N @ n / (N.norm() * n.norm()))
    assert float(omega) < math.atan(1 / float(A.norm()))
    Y = link(X @ A.mT)
    run = gradient_flow(
        lambda at: outer_link.loss(link, at, X, Y), theta, 60.0,
        grad=lambda at: outer_link.gradient(link, at, X, Y), rtol=1e-7, progress=False,
    )  # fmt: skip
    limit = linear.sphere_limit(theta, A)
    assert float((linear.rows(run.end) - linear.rows(limit)).norm()) < 1e-3
    path = linear.rows(run.theta)[:, 0]
    along = path @ n
    assert float((along[1:] - along[:-1]).min()) > -1e-9  # the angle only decreases


def test_constants_by_hand() -> None:
    X = 2**0.5 * torch.tensor([[1.0, 0.0], [0.0, 3.0]]).double()
    S = linear.second_moment(X)
    assert torch.allclose(S, torch.diag(torch.tensor([1.0, 9.0])).double())
    theta, A = model(-2.0, 0.0, 4.0), torch.tensor([[0.0, 3**0.5]]).double()  # r² = 25
    link = activations.weakly_nonlinear(0.5)  # slopes in [1, 1.5]
    assert float(outer_link.angle_rate(link, theta, X, A)) == pytest.approx(2 / 25)
    assert float(outer_link.pl_constant(link, theta, X)) == pytest.approx(4 * 1.5 / 2.5**2 / 25)
    start, P = model(-0.5, 0.0, 3**0.5), torch.tensor(1.0).double()  # ρ = ½, ‖N*‖ = 2
    step = outer_link.safe_step(link, start, X, A, P)
    assert float(step) == pytest.approx(0.5**4 / (2.5**2 * 1.5**2 * 9))


def test_wrong_input_gets_a_sentence() -> None:
    X, theta, link = normal(11, 5, 2), model(0.0, 1.0, 1.0), activations.tanh
    with pytest.raises(ValueError, match=r"Y has shape \(5,\)"):
        outer_link.loss(link, theta, X, torch.zeros(5).double())
    with pytest.raises(TypeError, match="link is a function"):
        outer_link.gradient(lambda s: s, theta, X, torch.zeros(5, 1).double())  # type: ignore[arg-type]
    A = torch.tensor([[1.0, 1.0]]).double()
    with pytest.raises(ValueError, match="must be nearer than"):
        outer_link.safe_step(link, theta, X, A, torch.tensor(-1.0).double())
    with pytest.raises(ValueError, match="I − W is singular"):
        outer_link.predict(link, model(1.0, 0.0, 0.0), X)
