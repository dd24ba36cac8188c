"""Theorem `radius-drift` and the functions of `deqlib.drift`."""

from __future__ import annotations

import math

import pytest
import torch
from test_mutants import mutated

from deqlib import activations, drift, one_point, single_index
from deqlib.dynamics import gradient_flow
from deqlib.single_index import Objective, SingleIndexDEQ
from deqlib.theorems import THEOREMS, verify
from deqlib.theorems.radius_drift import ADJOINTS, CURVED, STRAIGHT, RadiusDrift, hard_tanh

THEOREM = RadiusDrift()
STEP = "r₊² = r² + 2ηE[q(cφ(u) − u)] + η²‖g‖²"
FLOW = "r² moves by the integral of the drift"
CONSTANT = "r² is constant for a straight link"


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_registered() -> None:
    assert isinstance(THEOREMS["radius-drift"], RadiusDrift)


def test_holds_for_every_link_and_adjoint_drawn() -> None:
    verdict = verify(THEOREM, 200, seed=1)
    assert verdict.holds, str(verdict)
    drawn = THEOREM.draw(torch.Generator().manual_seed(1), 200)
    assert {one.law.link.name for one in drawn} == {link.name for link, _ in CURVED}
    assert {one.constant.link.name for one in drawn} == {link.name for link, *_ in STRAIGHT}
    assert {one.law.adjoint for one in drawn} | {one.constant.adjoint for one in drawn} == set(
        ADJOINTS
    )


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("exact-equilibrium", {STEP, FLOW, CONSTANT}),
        ("plain-step", {STEP}),  # the flow has no optimiser
        ("continuous-time", {FLOW, CONSTANT}),
        ("straight", {CONSTANT}),
    ],
)
def test_fails_without(name: str, broken: set[str]) -> None:
    verdict = verify(THEOREM, 24, seed=2, drop=name)
    failing = {what for ms in verdict.measurements for what, m in ms.items() if m.margin < 0}
    assert failing == broken
    assert verdict.failures >= 22


MUTANTS = {
    "sign": ("centre * link(u) - u", "u - centre * link(u)"),
    "factor 2": ("return 2 * (q *", "return (q *"),
    "z in place of u": ("centre * link(u) - u)", "centre * link(u) - link(u))"),
    "c left out": ("centre * link(u) - u", "link(u) - u"),
    "c on the wrong term": ("centre * link(u) - u", "link(u) - centre * u"),
    "derivative in place of the link": ("centre * link(u) - u", "centre * link.derivative(u) - u"),
    "sum in place of the mean": ("- u)).mean(-1)", "- u)).sum(-1)"),
    "radius: sign of c": ("(c - theta.a).square()", "(c + theta.a).square()"),
    "radius: w not squared": ("theta.w.square().sum(-1)", "theta.w.abs().sum(-1)"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_catches(name: str) -> None:
    old, new = MUTANTS[name]
    with mutated(drift, old, new):
        assert not verify(THEOREM, 12, seed=5).holds


def test_drift_is_the_derivative_along_the_negative_gradient() -> None:
    """The same by a central difference, with the gradient from the library."""
    link, X, y = activations.tanh, normal(0, 9, 2), normal(1, 9)
    theta = SingleIndexDEQ(numbers(0.3)[0], numbers(0.8, -0.5))
    g = single_index.gradient(link, theta, X, y)
    u = single_index.preactivation(link, theta.a, single_index.index(theta, X))
    q = (link(u) - y) * single_index.slope(link, theta.a, u)
    h = 1e-5
    for c in (-0.7, 0.0, 1.0):
        ahead, behind = (
            drift.squared_radius(SingleIndexDEQ(theta.a - s * g.a, theta.w - s * g.w), c)
            for s in (h, -h)
        )
        quotient = float(ahead - behind) / (2 * h)  # exact for a quadratic, up to eps/h
        assert float(drift.drift(link, u, q, c)) == pytest.approx(quotient, abs=1e-10)


@pytest.mark.parametrize("link", [activations.relu, hard_tanh])
def test_plain_gradient_flow_of_a_link_with_kinks_keeps_its_sphere(link) -> None:
    """Realisable targets, so that no sample rests on a kink of the loss."""
    X = normal(3, 6, 2)
    target = SingleIndexDEQ(numbers(0.2)[0], numbers(0.9, 0.4))
    start = SingleIndexDEQ(numbers(-0.3)[0], numbers(0.2, 0.9))
    y = single_index.predict(link, target, X)
    task = Objective(link, X, y)
    run = gradient_flow(
        task.loss, start, 1.0, grad=task.gradient, rtol=1e-6, atol=1e-8, progress=False
    )
    r2 = drift.squared_radius(run.theta)
    assert float((r2 - r2[0]).abs().max()) < 1e-5  # some hundred steps of 1e-6 and less
    assert float(single_index.distance(run.end, start)) > 0.05


def test_error_alone_wakes_a_dead_relu_and_leaves_the_sphere() -> None:
    X = normal(4, 20, 2).abs()
    target = SingleIndexDEQ(numbers(0.3)[0], numbers(0.5, 1.0))
    dead = SingleIndexDEQ(numbers(0.3)[0], numbers(-1.0, -1.0))
    link = activations.relu
    y = single_index.predict(link, target, X)
    g = single_index.gradient(link, dead, X, y)
    assert not bool(single_index.flat(g).any())  # zero, not small
    u = single_index.preactivation(link, dead.a, single_index.index(dead, X))
    awake = single_index.pull_back(torch.ones_like(u), link(u), X, y)
    delta = single_index.flat(dead) - single_index.flat(target)
    assert float(single_index.flat(awake) @ delta) > 0.1
    assert float(drift.drift(link, u, link(u) - y)) < -0.1


def test_slow_constant_is_the_curvature_that_is_left() -> None:
    """λ_min(H) = ε²κ/P*⁴ (1 + O(ε)), and κ by a regression of its own."""
    X = normal(5, 300, 2)
    target = SingleIndexDEQ(numbers(0.4)[0], numbers(0.5, -0.3))
    kappa = float(drift.slow_constant(torch.tanh, target, X))
    b = target.w / 0.6
    tau = torch.tanh(X @ b)
    coefficients = torch.linalg.solve(X.T @ X, X.T @ tau)
    by_hand = (tau - X @ coefficients).square().mean() / (1 + b @ b)
    assert kappa == pytest.approx(float(by_hand), rel=1e-10)
    errors = []
    for epsilon in (0.2, 0.1, 0.05, 0.025):
        H = one_point.hessian(activations.weakly_nonlinear(epsilon), target, X)
        errors.append(abs(float(torch.linalg.eigvalsh(H)[0]) / (epsilon**2 * kappa / 0.6**4) - 1))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.6 * errors[-2] < 0.36 * errors[-3]


def test_slow_time_solves_its_equation() -> None:
    rate, P_star = numbers(0.03)[0], numbers(0.7)[0]
    for start in (1.9, 0.2):
        P = torch.linspace(start, 0.7, 50, dtype=torch.float64)[:-1]
        t = drift.slow_time(P, numbers(start)[0], P_star, rate)
        assert float(t[0]) == pytest.approx(0, abs=1e-12)
        assert bool((t.diff() > 0).all())
        h = 1e-6
        ahead = drift.slow_time(P + h, numbers(start + h)[0], P_star, rate)
        behind = drift.slow_time(P - h, numbers(start + h)[0], P_star, rate)
        speed = 2 * h / (ahead - behind)
        law = -rate * (P - 0.7) / (P**3 * 0.7)
        assert float((speed / law - 1).abs().max()) < 1e-6
    with pytest.raises(ValueError, match="must lie between"):
        drift.slow_time(numbers(0.6), numbers(1.9), P_star, rate)


def test_refuses_adjoints_of_another_sample() -> None:
    with pytest.raises(ValueError, match=r"q has shape \(3,\) and u \(4,\)"):
        drift.drift(activations.tanh, numbers(1, 2, 3, 4), numbers(1, 2, 3))


def test_squared_radius_by_hand() -> None:
    theta = SingleIndexDEQ(numbers(0.5)[0], numbers(3.0, 4.0))
    assert float(drift.squared_radius(theta)) == 25.25
    assert float(drift.squared_radius(theta, 2.5)) == 29
    assert math.isclose(float(drift.squared_radius(theta, 0.0)), 25.25)
