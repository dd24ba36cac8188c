"""Theorem `implicit-gradient`: it holds, it breaks where it must, and its check notices mutants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from deqlib import implicit
from deqlib.theorems import THEOREMS, verify
from deqlib.theorems import implicit_gradient as module
from deqlib.theorems.implicit_gradient import CURVATURE, TOL, Instance, Layer

THEOREM = THEOREMS["implicit-gradient"]
DIFFERENCES = ("dz = finite difference of z(θ)", "gradient = finite difference of ℓ(z(θ))")


def test_it_holds_on_hundreds_of_draws() -> None:
    verdict = verify(THEOREM, 200, seed=1, progress=False)
    assert verdict.holds, str(verdict)
    assert verdict.tightness > 0.5  # of the crude gradient's bound: not a bound that anything meets
    conclusions = [set(measured) for measured in verdict.measurements]
    assert sum(len(c) == 5 for c in conclusions) > 100  # contractions
    assert sum(len(c) == 3 for c in conclusions) >= 40  # layers on which Picard may diverge


@pytest.mark.parametrize("name", list(THEOREM.hypotheses))
def test_every_hypothesis_is_necessary(name: str) -> None:
    verdict = verify(THEOREM, 12, seed=2, drop=name, progress=False)
    assert verdict.failures == 12, str(verdict)


@pytest.mark.parametrize("name", list(THEOREM.hypotheses))
def test_the_failure_is_seen_by_finite_differences_too(name: str) -> None:
    """Not only the formula against itself: the loss itself moves otherwise than was claimed."""
    verdict = verify(THEOREM, 12, seed=2, drop=name, progress=False)
    seen = sum(min(m[c].margin for c in DIFFERENCES) < 0 for m in verdict.measurements)
    assert seen >= 11


def test_replay_reproduces_the_worst_instance() -> None:
    verdict = verify(THEOREM, 12, seed=3, progress=False)
    again = verdict.replay()[verdict.worst_conclusion]
    assert again.margin == verdict.worst_margin


def test_the_error_of_an_inexact_equilibrium_is_of_first_order_in_the_residual() -> None:
    """A hundredth of the residual makes a hundredth of the error, not a hundredth squared."""
    one = _contraction(seed=4)
    z = module.polished(one, one.theta, one.start)
    exact = module.closed_form(one, z)
    errors = [
        module.closed_form(one, z + h * torch.ones_like(z)).minus(exact).norm()
        for h in (1e-4, 1e-6)
    ]
    assert errors[0] > 1e-6
    assert errors[1] / errors[0] == pytest.approx(1e-2, rel=0.01)


def test_bounds_of_curvature_are_attained_and_not_exceeded() -> None:
    from deqlib.activations import LINKS

    s = torch.linspace(-6, 6, 20001, dtype=torch.float64).requires_grad_()
    for name, bound in CURVATURE.items():
        (first,) = torch.autograd.grad(LINKS[name](s).sum(), s, create_graph=True)
        second = (
            torch.autograd.grad(first.sum(), s, allow_unused=True)[0]
            if first.requires_grad
            else None
        )
        largest = 0.0 if second is None else float(second.abs().max())
        assert largest <= bound * (1 + 1e-12)
        assert largest == pytest.approx(bound, rel=1e-5)


# Mutants ----------------------------------------------------------------------------------------

Solve = Callable[..., torch.Tensor]
solve: Solve = implicit._Problem.solve  # its last two arguments: g, and whether transposed


def jacobian_free(self: Any, *args: Any) -> torch.Tensor:
    solve(self, *args)  # the report is written, its solution thrown away
    return args[-2]


def transposed(self: Any, *args: Any) -> torch.Tensor:
    return solve(self, *args[:-1], not args[-1])


def minus(self: Any, *args: Any) -> torch.Tensor:
    return -solve(self, *args)


def unconverged(self: Any, *args: Any) -> torch.Tensor:
    """An adjoint that stops at a relative error of 1e-4 and says nothing."""
    return solve(self, *args) * (1 + 1e-4)


@pytest.mark.parametrize("mutant", [jacobian_free, transposed, minus, unconverged])
def test_a_wrong_backward_pass_is_caught(mutant: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implicit._Problem, "solve", mutant)
    assert verify(THEOREM, 12, seed=5, progress=False).failures >= 9


def without_slopes(one: Instance, theta: Layer, z: torch.Tensor, u: torch.Tensor) -> Layer:
    return Layer(u.mT @ z, u.mT @ one.X, u.sum(dim=0))


def input_for_state(one: Instance, theta: Layer, z: torch.Tensor, u: torch.Tensor) -> Layer:
    v = one.slopes(theta, z) * u
    return Layer(v.mT @ torch.zeros_like(z), v.mT @ one.X, v.sum(dim=0))


def mean_for_sum(one: Instance, theta: Layer, z: torch.Tensor, u: torch.Tensor) -> Layer:
    v = one.slopes(theta, z) * u
    return Layer(v.mT @ z, v.mT @ one.X, v.mean(dim=0))


@pytest.mark.parametrize("mutant", [without_slopes, input_for_state, mean_for_sum])
def test_a_wrong_closed_form_is_caught(
    mutant: Callable[..., Layer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "pullback", mutant)
    assert not verify(THEOREM, 12, seed=5, progress=False).holds


def test_a_tangent_with_the_adjoint_system_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(one: Instance, z: torch.Tensor) -> torch.Tensor:
        turned = replace(one, theta=one.theta._replace(W=one.theta.W.mT))
        return right(turned, z)

    right = module.tangent
    monkeypatch.setattr(module, "tangent", wrong)
    assert not verify(THEOREM, 12, seed=5, progress=False).holds


@pytest.mark.parametrize("drop", ["H", "K"])
def test_a_bound_that_forgets_curvature_is_caught(
    drop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the adjoint is solved, the whole error of an inexact z comes through H, K and ∇ℓ."""
    one = _contraction(seed=6)
    z = module.polished(one, one.theta, one.start)
    exact = module.closed_form(one, z)
    nudged = z + 1e-4 * torch.ones_like(z)
    r = (one.f(one.theta)(nudged) - nudged).norm(dim=1)
    J, g = one.jacobian(one.theta, nudged), nudged - one.Y
    u = module.exact_adjoint(J, g)
    error = module.pullback(one, one.theta, nudged, u).minus(exact).norm()
    kappa = 1 / (1 - one.factor)
    bound = module.inexact_bound(one, nudged, u, r, torch.zeros_like(r), kappa)
    assert error <= bound
    right = module.constants
    gone = {drop: 0 * getattr(right(one, nudged, r), drop)}
    monkeypatch.setattr(module, "constants", lambda *a: right(*a)._replace(**gone))
    assert module.inexact_bound(one, nudged, u, r, torch.zeros_like(r), kappa) < bound


def _contraction(seed: int) -> Instance:
    generator = torch.Generator().manual_seed(seed)
    one = THEOREM._contraction(generator, module.tanh)
    assert one.factor < 0.9
    assert TOL < 1e-10
    return one
