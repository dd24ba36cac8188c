"""Theorem `well-conditioned`: it holds with equality for one output, and breaks where it must."""

from __future__ import annotations

import pytest
import torch

from deqlib import linear, rates
from deqlib.theorems import THEOREMS, verify, well_conditioned
from deqlib.theorems.well_conditioned import WellConditioned, ceiling, floor, guaranteed_floor

THEOREM = WellConditioned()
FLOOR = "λ_min(C)/(1 + ‖F‖²) ≤ σ_min(I − W)²"
BOUND = "‖F‖ ≤ Φ"


def test_registered() -> None:
    assert isinstance(THEOREMS["well-conditioned"], WellConditioned)


def test_holds_and_is_attained() -> None:
    verdict = verify(THEOREM, 120, seed=1)
    assert verdict.holds, str(verdict)
    for name in (FLOOR, "σ_max(I − W)² ≤ λ_max(C)", BOUND):
        assert max(m[name].tightness for m in verdict.measurements) > 0.99
    # The draw is what it says: near-singular starts, and starts where Picard diverges.
    starts = [one.start for one in THEOREM.draw(torch.Generator().manual_seed(1), 120)]
    sigma = [float(torch.linalg.svdvals(linear.resolvent_inverse(s))[-1]) for s in starts]
    rho = [float(torch.linalg.eigvals(s.W).abs().max()) for s in starts]
    assert sum(x < 0.1 for x in sigma) > 10
    assert sum(x > 1.1 for x in rho) > 30


@pytest.mark.parametrize("name", THEOREM.hypotheses)
def test_every_instance_fails_without(name: str) -> None:
    assert verify(THEOREM, 15, seed=2, drop=name).failures == 15


def test_failures_are_the_predicted_ones() -> None:
    def failing(name: str) -> set[str]:
        without = verify(THEOREM, 10, seed=3, drop=name)
        return {what for ms in without.measurements for what, m in ms.items() if m.margin < 0}

    # Uphill the law still holds, so what is said with the F of the moment stands.
    assert BOUND in failing("loss-falls")
    assert FLOOR not in failing("loss-falls")
    assert "σ_max(I − W)² ≤ λ_max(C)" in failing("plain-flow")
    assert BOUND in failing("full-rank")


def test_blind_directions_are_mended_by_working_in_the_range() -> None:
    """The instances that fail without full rank satisfy the bounds after `linear.restrict`."""
    for one in THEOREM.drop["full-rank"](torch.Generator().manual_seed(4), 10):
        values, vectors = torch.linalg.eigh(one.S)
        V = vectors[:, values > 1e-10 * values[-1]]
        path, S, A = linear.restrict(one.flow, V), V.mT @ one.S @ V, one.A @ V
        start = linear.LinearDEQ(path.W[0], path.U[0])
        norm = torch.linalg.matrix_norm(linear.equilibrium_map(path), 2)
        sigma = torch.linalg.svdvals(linear.resolvent_inverse(path))[:, -1].square()
        assert float(norm.max()) <= float(rates.map_bound(start, S, A)) * (1 + 1e-6)
        assert float(sigma.min()) >= float(guaranteed_floor(start, S, A)) * (1 - 1e-6)


def test_one_output_is_an_equality() -> None:
    theta = linear.random_start(torch.Generator().manual_seed(0), 1, 3, batch=(50,))
    P = linear.resolvent_inverse(theta)[:, 0, 0]
    assert torch.allclose(floor(theta, linear.equilibrium_map(theta)), P.square())
    assert bool((ceiling(theta) >= P.square()).all())


MUTANTS = {
    "‖F‖ in place of ‖F‖²": lambda theta, F: rates.extremes(linear.invariant(theta))[0]
    / (1 + torch.linalg.matrix_norm(F, 2)),
    "λ_max(C) in place of λ_min(C)": lambda theta, F: floor(theta, F)
    * torch.linalg.cond(linear.invariant(theta)),
    "1 left out": lambda theta, F: rates.extremes(linear.invariant(theta))[0]
    / torch.linalg.matrix_norm(F, 2).square(),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_catches_a_floor_that_is_too_high(name: str, monkeypatch) -> None:
    monkeypatch.setattr(well_conditioned, "floor", MUTANTS[name])
    assert not verify(THEOREM, 15, seed=5).holds
