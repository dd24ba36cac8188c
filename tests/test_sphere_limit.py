"""Theorem `sphere-limit`: it holds, is attained, and breaks where it must."""

from __future__ import annotations

import math

import pytest
import torch

from deqlib import linear
from deqlib.linear import LinearDEQ
from deqlib.theorems import THEOREMS, sphere_limit, verify
from deqlib.theorems.sphere_limit import SphereLimit, angle_rate, flow

THEOREM = SphereLimit()
NECESSARY = [name for name, h in THEOREM.hypotheses.items() if h.necessary]
RATE = "tan(ω/2) ≤ e^(−ct) tan(ω₀/2)"


def test_registered() -> None:
    assert isinstance(THEOREMS["sphere-limit"], SphereLimit)


def test_holds_and_is_attained() -> None:
    verdict = verify(THEOREM, 200, seed=1)
    assert verdict.holds, str(verdict)
    assert max(m[RATE].tightness for m in verdict.measurements) > 0.99
    # Both sides of a = 1, and one to five inputs.
    drawn = THEOREM.draw(torch.Generator().manual_seed(1), 200)
    assert {bool(one.start.W > 1) for one in drawn} == {True, False}
    assert {one.A.shape[1] for one in drawn} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("name", NECESSARY)
def test_every_instance_fails_without(name: str) -> None:
    assert verify(THEOREM, 12, seed=2, drop=name).failures == 12


def test_stands_for_a_loss_with_larger_slopes() -> None:
    verdict = verify(THEOREM, 20, seed=2, drop="squared-loss")
    assert verdict.holds, str(verdict)


def test_failures_are_the_predicted_ones() -> None:
    without = verify(THEOREM, 12, seed=3, drop="same-side")
    failing = {what for ms in without.measurements for what, m in ms.items() if m.margin < 0}
    assert failing == {"every distance to the ray decreases"}


def test_time_of_one_input_in_closed_form() -> None:
    """t = −(r²/s) ∫ dF/((1 + F²)²(F − A)), by quadrature, against the integrator's path."""
    theta = LinearDEQ(torch.tensor([[[1.7]]]).double(), torch.tensor([[[0.9]]]).double())
    S, A = torch.tensor([[[0.6]]]).double(), torch.tensor([[[0.8]]]).double()
    times = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    F = linear.equilibrium_map(flow(theta, S, A, times)).flatten()
    r2 = float(linear.invariant(theta))
    for t, end in zip(times[1:].tolist(), F[1:].tolist(), strict=True):
        x = torch.linspace(float(F[0]), end, 20001, dtype=torch.float64)
        integral = torch.trapezoid(1 / ((1 + x**2) ** 2 * (x - 0.8)), x)
        assert float(-r2 / 0.6 * integral) == pytest.approx(t, rel=1e-6)


def test_angle_rate_by_hand() -> None:
    theta = LinearDEQ(torch.tensor([[1 - 3.0]]), torch.tensor([[4.0, 0.0]]))  # r = 5
    S, A = torch.diag(torch.tensor([2.0, 7.0])), torch.tensor([[0.0, math.sqrt(3.0)]])
    assert float(angle_rate(theta, S, A)) == pytest.approx(2 * 2 / 25)


MUTANTS = {
    "1 + |A|² without its root": lambda theta, S, A: (
        angle_rate(theta, S, A) * (1 + A.square().sum()).sqrt()
    ),
    "largest eigenvalue": lambda theta, S, A: angle_rate(theta, S, A)
    * torch.linalg.cond(S),
    "factor 2": lambda theta, S, A: 2 * angle_rate(theta, S, A),
    "r in place of r²": lambda theta, S, A: angle_rate(theta, S, A)
    * linear.rows(theta).norm(),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_catches_a_rate_that_is_too_good(name: str, monkeypatch) -> None:
    monkeypatch.setattr(sphere_limit, "angle_rate", MUTANTS[name])
    assert not verify(THEOREM, 60, seed=5).holds
