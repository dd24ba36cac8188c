"""Theorem `noise-ball` and `deqlib.noise`: they hold, are nearly attained, and break."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from test_mutants import mutated

from deqlib import activations, noise, one_point, single_index
from deqlib.dynamics import RunStoppedError, gradient_descent
from deqlib.fixed_point import NotConvergedError
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems import THEOREMS, noise_ball, verify
from deqlib.theorems.noise_ball import NoiseBall
from deqlib.theorems.single_index_problems import SLOPED, random_problems

THEOREM = NoiseBall()
BY_NORM = "‖δ₊‖ ≤ (1 − ηm/2)‖δ‖ + η‖e‖"
BY_ENERGY = "‖δ₊‖² ≤ (1 − ηm)‖δ‖² + ηmR²"
BALL = "‖δ‖ ≤ ρ"


SMOOTH_LEAKY = activations.smooth_leaky_relu(0.2)


def problems(seed: int, batch: int, link=SMOOTH_LEAKY, d: int = 3, **options):
    generator = torch.Generator().manual_seed(seed)
    return generator, random_problems(generator, batch, link, d, **options)


@pytest.fixture(scope="module")
def verdict():
    return verify(THEOREM, 200, seed=1, progress=False)


def test_registered():
    assert isinstance(THEOREMS["noise-ball"], NoiseBall)


def test_holds_and_is_nearly_attained(verdict):
    assert verdict.holds, str(verdict)

    def tightest(name):
        return max(m[name].tightness for m in verdict.measurements)

    assert tightest(BY_NORM) > 0.999  # from θ*, one step is η e exactly
    assert tightest("‖e‖ ≤ √E[ξ²]·√λ⁺Δ*/(Δ* − ρ)²") > 0.9
    assert tightest("‖θ̂ − θ*‖ ≤ R") > 0.7
    assert tightest("‖θ̂ − θ*‖ ≤ ‖e(θ̂)‖/m") > 0.6


def test_either_smallness_of_the_noise_is_enough():
    """Among the instances some satisfy only R < ρ and some only 2‖e‖ ≤ mρ."""
    norm_only = energy_only = 0
    for one in THEOREM.draw(torch.Generator().manual_seed(2), 90):
        known = noise_ball.constants(one.problem, one.rho, one.alpha, one.lam)
        R = noise.energy_radius(one.size, known.m, known.near, known.far, one.rho)
        largest = noise_ball._pulls(one)[noise_ball._inside(one)].max()
        by_norm, by_energy = bool(2 * largest <= known.m * one.rho), bool(one.rho > R)
        norm_only += by_norm and not by_energy
        energy_only += by_energy and not by_norm
    assert norm_only >= 3
    assert energy_only >= 20


FAILING = {
    "sloped": (BY_NORM, BY_ENERGY),
    "identifiable": (BY_NORM, BY_ENERGY),
    "start-in-ball": (BY_NORM, BY_ENERGY),
    "small-noise": (BALL,),
    "small-step": (BY_NORM, BY_ENERGY),
}


@pytest.mark.parametrize("name", THEOREM.hypotheses)
def test_fails_without(name):
    """And in the conclusion that speaks of it, not in some other one."""
    verdict = verify(THEOREM, 18, seed=2, drop=name, progress=False)
    for conclusion in FAILING[name]:
        failures = sum(not m[conclusion].margin >= 0 for m in verdict.measurements)
        assert failures > verdict.draws / 2, f"{conclusion}: {verdict}"


def test_the_recursions_hold_where_noise_is_loud():
    """They need the ball, not small noise: as long as an iterate is in it, the next one obeys."""
    verdict = verify(THEOREM, 24, seed=3, drop="small-noise", progress=False)
    for m in verdict.measurements:
        assert m["∇L = Qδ − e"].margin >= 0


def test_a_kinked_link_obeys_the_recursions():
    generator, problem = problems(4, 12, activations.leaky_relu(0.2))
    rho, lam = problem.radius, noise_ball.smallest(problem)
    known = noise_ball.constants(problem, rho, 0.2, lam)
    xi = torch.randn(problem.y.shape, generator=generator, dtype=torch.float64)
    xi = noise_ball._scaled(generator, problem, xi, rho, known)
    for one in noise_ball.descend(problem, xi, rho, 1 / known.smooth, 0.2, lam):
        measured = THEOREM.measure(one)
        for name in (BY_NORM, BY_ENERGY, BALL, "∇L = Qδ − e"):
            assert measured[name].margin >= 0, name


def test_long_runs_end_within_both_radii():
    generator, problem = problems(5, 6, activations.smooth_leaky_relu(0.6), 1, radius=(0.3, 0.5))
    rho, lam = problem.radius, noise_ball.smallest(problem)
    known = noise_ball.constants(problem, rho, 0.6, lam)
    xi = torch.randn(problem.y.shape, generator=generator, dtype=torch.float64)
    xi = noise_ball._scaled(generator, problem, xi, rho, known)
    objective = single_index.Objective(problem.link, problem.X, problem.y + xi)
    run = gradient_descent(
        objective.loss, problem.start, 1 / known.smooth, 1500, grad=objective.gradient,
        batch_ndim=1, record_every=10, progress=False,
    )  # fmt: skip
    theta = SingleIndexDEQ(*run.theta)
    away = (single_index.flat(theta) - single_index.flat(problem.target)).norm(dim=-1)
    e = noise.noise_pull(problem.link, theta, problem.X, xi).norm(dim=-1).amax(0)
    R = noise.energy_radius(xi.square().mean(-1).sqrt(), known.m, known.near, known.far, rho)
    q = 1 - known.m / known.smooth
    k = run.t[:, None]
    by_energy = q**k * rho.square() + (1 - q**k) * R.square()
    r = 1 - known.m / known.smooth / 2
    by_norm = r**k * rho + (1 - r**k) * 2 * e / known.m
    assert bool((away.square() <= by_energy * (1 + 1e-9)).all())
    assert bool((away <= by_norm * (1 + 1e-9)).all())
    assert float((away[-1] / rho).max()) < 1


# deqlib.noise ------------------------------------------------------------------------------------


def test_noise_pull_is_what_noise_adds_to_the_gradient():
    generator, problem = problems(6, 5, activations.tanh)
    xi = torch.randn(problem.y.shape, generator=generator, dtype=torch.float64)
    theta, X = problem.start, problem.X
    clean = single_index.flat(single_index.gradient(problem.link, theta, X, problem.y))
    noisy = single_index.flat(single_index.gradient(problem.link, theta, X, problem.y + xi))
    e = noise.noise_pull(problem.link, theta, X, xi)
    assert torch.allclose(clean - noisy, e, rtol=1e-10, atol=1e-13)


def test_the_pull_at_the_target_has_the_covariance_of_the_prediction():
    """Cov e(θ*) = σ² H/n, hence E‖H⁻¹e‖² = predicted_rms²; 4,000 draws know it to 5 %."""
    generator, problem = problems(7, 1, activations.tanh, 2)
    one = problem.one(0)
    H = one_point.hessian(one.link, one.target, one.X)
    xi = 0.3 * torch.randn(4000, len(one.y), generator=generator, dtype=torch.float64)
    many = SingleIndexDEQ(one.target.a.expand(4000), one.target.w.expand(4000, -1))
    e = noise.noise_pull(one.link, many, one.X, xi)
    covariance = e.mT @ e / 4000
    expected = 0.09 * H / len(one.y)
    assert float((covariance - expected).norm() / expected.norm()) < 0.1
    rms = torch.linalg.solve(H, e.mT).square().sum(0).mean().sqrt()
    predicted = noise.predicted_rms(H, 0.3, len(one.y))
    assert float(rms) == pytest.approx(float(predicted), rel=0.05)
    with_inverse = 0.3 * (torch.trace(torch.linalg.inv(H)) / len(one.y)) ** 0.5
    assert float(predicted) == pytest.approx(float(with_inverse))


def test_the_fit_is_the_prediction_up_to_the_square_of_the_noise():
    generator, problem = problems(8, 6, activations.smooth_leaky_relu(0.2))
    H = one_point.hessian(problem.link, problem.target, problem.X)
    xi = 0.02 * torch.randn(problem.y.shape, generator=generator, dtype=torch.float64)
    off = []
    for scale in (1.0, 0.5, 0.25):
        y = problem.y + scale * xi
        found = noise.fit(problem.link, problem.X, y, problem.start, tol=1e-11)
        assert bool(found.converged.all())
        e = noise.noise_pull(problem.link, problem.target, problem.X, scale * xi)
        moved = single_index.flat(found.theta) - single_index.flat(problem.target)
        off.append((moved - torch.linalg.solve(H, e)).norm(dim=-1))
    assert bool(((off[1] / off[0] - 0.25).abs() < 0.1).all())
    assert bool(((off[2] / off[1] - 0.25).abs() < 0.05).all())


def test_fit_agrees_with_an_independent_solver():
    generator, problem = problems(9, 3, activations.tanh, 2)
    xi = 0.1 * torch.randn(problem.y.shape, generator=generator, dtype=torch.float64)
    y = problem.y + xi
    found = noise.fit(problem.link, problem.X, y, problem.start)
    assert bool(found.converged.all())
    for i in range(3):

        def residual(v, i=i):
            theta = single_index.unflat(torch.as_tensor(v))
            return (single_index.predict(problem.link, theta, problem.X[i]) - y[i]).numpy()

        start = single_index.flat(problem.start)[i].numpy()
        other = least_squares(
            residual, start, bounds=([-np.inf] * 3, [1.0, np.inf, np.inf]), xtol=1e-12, ftol=1e-12
        )
        assert np.allclose(other.x, single_index.flat(found.theta)[i].numpy(), atol=1e-5)


def test_fit_finds_the_target_from_a_far_start_without_noise():
    _, problem = problems(10, 20, activations.tanh, 3)
    far = SingleIndexDEQ(-problem.target.a.abs() - 2, -problem.target.w)
    found = noise.fit(problem.link, problem.X, problem.y, far)
    assert bool(found.converged.all())
    assert float(single_index.distance(found.theta, problem.target).max()) < 1e-6


def test_fit_reports_what_has_not_converged():
    _, problem = problems(11, 4, activations.tanh)
    found = noise.fit(problem.link, problem.X, problem.y + 0.3, problem.start, max_iter=2)
    assert found.iterations == 2
    assert not bool(found.converged.any())


@pytest.mark.parametrize(
    "link",
    [activations.tanh, activations.softplus, activations.leaky_relu(0.2)],
    ids=lambda link: link.name,
)
def test_curvature_is_the_derivative_of_the_gradient(link):
    _, problem = problems(13, 3, link)
    y, X = problem.y + 0.5, problem.X
    at = single_index.flat(problem.start)

    def gradient(v):
        return single_index.flat(single_index.gradient(link, single_index.unflat(v), X, y))

    units = 1e-5 * torch.eye(at.shape[-1], dtype=torch.float64)
    slopes = torch.stack([(gradient(at + e) - gradient(at - e)) / 2e-5 for e in units], dim=-1)
    u = single_index.preactivation(link, at[:, :1], single_index.index(single_index.unflat(at), X))
    G, J = noise.curvature(link, at[:, 0], u, X, y)
    # Central differences err by h² = 1e-10 and by rounding eps/h = 1e-11.
    assert torch.allclose(J, slopes, rtol=1e-7, atol=1e-8)
    assert torch.allclose(G, one_point.hessian(link, single_index.unflat(at), X), rtol=1e-12)
    assert not torch.allclose(G, slopes, rtol=1e-2, atol=1e-2)


def noisy_tanh(B=100):
    """Hundred noisy samples and a student whose a and w are hard to tell apart."""
    generator = torch.Generator().manual_seed(21)
    teacher = SingleIndexDEQ(
        torch.tensor(0.3, dtype=torch.float64), torch.tensor([1.0, -0.6, 0.4], dtype=torch.float64)
    )
    many = SingleIndexDEQ(teacher.a.expand(B), teacher.w.expand(B, 3))
    X = single_index.random_inputs(generator, 100, 3, "gaussian", batch=(B,))
    xi = 0.3 * torch.randn(B, 100, generator=generator, dtype=torch.float64)
    return X, single_index.predict(activations.tanh, many, X) + xi, many


def test_fit_settles_at_large_misfits_where_gauss_and_newton_overshoot(monkeypatch):
    X, y, start = noisy_tanh()
    found = noise.fit(activations.tanh, X, y, start)
    g = single_index.flat(single_index.gradient(activations.tanh, found.theta, X, y)).norm(dim=-1)
    # ∇L is a mean of terms of size 1: at the minimiser it is rounding, whatever the valley.
    assert float(g[found.converged].max()) < 1e-12
    assert bool((found.step[found.converged] <= 1e-10).all())
    settled = int(found.converged.sum())
    monkeypatch.setattr(noise, "NEAR", 0.0)  # Gauss–Newton alone
    alone = noise.fit(activations.tanh, X, y, start)
    assert settled >= int(alone.converged.sum()) + 3


def test_fit_says_when_there_is_no_minimiser():
    """The best student of a line clipped at ±1 lies at infinity (chapter 16)."""
    generator = torch.Generator().manual_seed(14)
    X = single_index.random_inputs(generator, 200, 2, "gaussian")
    unit = torch.tensor([0.8, -0.6], dtype=torch.float64)
    start = SingleIndexDEQ(torch.tensor(0.0, dtype=torch.float64), unit)
    found = noise.fit(activations.tanh, X, (X @ unit).clamp(-1, 1), start)
    assert bool(found.runaway)
    assert not bool(found.converged)
    # A teacher of the student's kind has a minimiser: itself.
    target = SingleIndexDEQ(start.a - 5, 6 * unit)
    y = single_index.predict(activations.tanh, target, X)
    found = noise.fit(activations.tanh, X, y, start)
    assert bool(found.converged)
    assert not bool(found.runaway)
    # A search cut off early has not run away, it has not arrived.
    cut = noise.fit(activations.tanh, X, y, start, max_iter=2)
    assert not bool(cut.runaway | cut.converged)


def test_fit_refuses_a_start_without_an_equilibrium():
    _, problem = problems(12, 2, activations.tanh)
    start = SingleIndexDEQ(torch.full((2,), 1.5, dtype=torch.float64), problem.start.w)
    with pytest.raises(ValueError, match=r"a is 1\.5"):
        noise.fit(problem.link, problem.X, problem.y, start)


# Mutants -----------------------------------------------------------------------------------------

MUTANTS = {
    "pull: sign": (noise, "weight = xi * single", "weight = -xi * single"),
    "pull: adjoint left out": (
        noise, "weight = xi * single_index.slope(link, a, u)", "weight = xi + 0 * u"
    ),
    "pull: pre-activation in place of z": (
        noise, "(weight * link(u)).mean(-1)", "(weight * u).mean(-1)"
    ),
    "largest pull: λ⁺ in place of its root": (noise, "size * lam_plus.sqrt()", "size / lam_plus"),
    "largest pull: without 1/(Δ* − ρ)²": (
        noise, "* near / (near - rho).square()", "/ near"
    ),
    "radius: without T*": (noise, "(far / ((near - rho) * m))", "(1 / ((near - rho) * m))"),
    "radius: m in place of its root": (
        noise, "(far / ((near - rho) * m)).sqrt()", "(far / (near - rho)).sqrt() * m"
    ),
    "constants: m with λ⁺": (noise_ball, "contraction(lam, far", "contraction(lam_plus, far"),
    "constants: m without the cube": (one_point, "lam * far / (far + rho) ** 3", "lam * far"),
    "gradient: adjoint left out": (
        single_index, "pull_back(slope(link, theta.a[..., None], u), link(u), X, y)",
        "pull_back(1 + 0 * u, link(u), X, y)",
    ),
    "descent: steps 40 times too long": (noise_ball, "start, eta, STEPS", "start, 40 * eta, STEPS"),
    "fit: twice the noise": (
        noise_ball, "problem.X, y, problem.target, tol", "problem.X, y + xi, problem.target, tol"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MUTANTS))
def test_mutant_is_caught(name):
    module, old, new = MUTANTS[name]
    with mutated(module, old, new):
        try:
            caught = not verify(THEOREM, 60, seed=5, progress=False).holds
        except (ValueError, RunStoppedError, NotConvergedError):
            caught = True
    assert caught, name


def test_without_a_mutation_the_same_check_holds():
    assert verify(THEOREM, 60, seed=5, progress=False).holds


def test_all_sloped_links_of_the_book_have_explicit_constants():
    for link in SLOPED:
        _, problem = problems(13, 3, link)
        known = noise_ball.constants(
            problem, problem.radius, link.alpha, noise_ball.smallest(problem)
        )
        assert bool((known.m > 0).all())
        assert bool((known.m <= known.smooth).all())
