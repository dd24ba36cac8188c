"""No step diverges with one output: it holds, it breaks as stated, and the check can fail."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Generator

from deqlib import linear, rates
from deqlib.linear import LinearDEQ
from deqlib.theorems import THEOREMS, Verdict, verify
from deqlib.theorems.any_step import (
    STEPS,
    AnyStep,
    loss_sum_bound,
    map_threshold,
    radius_bound,
    size,
)

LAW = AnyStep()
SUM = "Σ L ≤ (ρ_K² − ρ₀²)/(4η²λ)"
RADIUS = "r_K² ≤ (17/16) max(r₀², 4ηΛ* + 2η²Λ*L*/r₀²)"


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return verify(LAW, draws=200, seed=0, progress=False)


def test_is_registered() -> None:
    assert isinstance(THEOREMS["any-step"], AnyStep)


def test_holds_on_200_draws(verdict: Verdict) -> None:
    assert verdict.holds, str(verdict)


def test_draws_reach_hard_cases() -> None:
    ones = LAW.draw(Generator().manual_seed(0), 200)
    starts = [LinearDEQ(one.theta.W[0], one.theta.U[0]) for one in ones]
    safe = [
        one.eta * 4 * float(rates.smoothness(start, one.S, one.A))
        for one, start in zip(ones, starts, strict=True)
    ]
    assert max(safe) > 1e4  # steps ten thousand times the provable one
    rising = [bool((one.loss.diff() > 0).any()) for one in ones]
    assert sum(rising) > 50  # the loss is far from monotone
    assert {one.S.shape[0] for one in ones} == {1, 2, 3, 5}


def test_the_sum_bound_is_nearly_attained() -> None:
    """A = 0, a short map, a small step: the two inequalities of the proof become equalities."""
    S, A = torch.eye(1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    theta = LinearDEQ(torch.zeros(1, 1).double(), torch.full((1, 1), 0.01).double())
    eta, total, first = 0.001, 0.0, size(theta)
    for _ in range(20_000):
        total += float(linear.loss(theta, S, A))
        g = linear.gradient(theta, S, A)
        theta = LinearDEQ(theta.W - eta * g.W, theta.U - eta * g.U)
    ratio = total / float(loss_sum_bound(first, size(theta), eta, S))
    assert 0.99 < ratio <= 1


def test_the_radius_is_bounded_by_the_worst_loss(verdict: Verdict) -> None:
    """Within a factor of two of the truth somewhere, and far from it where it must cover a jump."""
    ratios = [m[RADIUS].tightness for m in verdict.measurements]
    assert 0.5 < max(ratios) <= 1
    jumped = [one for one in LAW.draw(Generator().manual_seed(0), 200)
              if float(size(one.theta)[1] / size(one.theta)[0]) > 100]  # fmt: skip
    assert len(jumped) > 3


def test_the_radius_bound_by_hand() -> None:
    """S = 1, A = 0, L* = 2: Φ* = 2 and Λ* = 25; r₀ = 5."""
    S, A = torch.eye(1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    theta = LinearDEQ(torch.tensor([[-3.0]]).double(), torch.tensor([[3.0]]).double())
    worst = torch.tensor(2.0, dtype=torch.float64)
    small, large = (float(radius_bound(theta, worst, eta, S, A)) for eta in (0.01, 1.0))
    assert small == pytest.approx(17 / 16 * 25)
    assert large == pytest.approx(17 / 16 * (100 + 4))


@pytest.mark.parametrize("name", ["trained-self-weight", "plain-descent", "defined"])
def test_fails_without_each_necessary_hypothesis(name: str) -> None:
    without = verify(LAW, draws=16, seed=1, drop=name, progress=False)
    assert without.failures == without.draws, str(without)


def test_stands_for_more_outputs_which_is_evidence() -> None:
    assert not LAW.hypotheses["one-output"].necessary
    assert verify(LAW, draws=24, seed=1, drop="one-output", progress=False).holds


def test_with_fixed_self_weight_the_loss_runs_away() -> None:
    for one in LAW.drop["trained-self-weight"](Generator().manual_seed(3), 8):
        assert len(one.loss) < STEPS + 1 or one.loss[-1] > 1e3 * one.loss[0]
        assert not math.isfinite(LAW.measure(one)[SUM].measured) or one.loss[-1] > one.loss[0]


def test_the_threshold_of_the_lemma_is_of_the_right_size() -> None:
    """Below F̄ a step may lengthen the map, so that the lemma needs a threshold at all."""
    S, A = torch.eye(1, dtype=torch.float64), torch.full((1, 1), 2.0, dtype=torch.float64)
    F = 0.2 * map_threshold(S, A)
    theta = LinearDEQ(torch.zeros(1, 1).double(), F.reshape(1, 1))
    g = linear.gradient(theta, S, A)
    after = linear.equilibrium_map(LinearDEQ(theta.W - g.W, theta.U - g.U))
    assert after.norm() > F


def test_wrong_steps_and_sums_are_caught() -> None:
    for one in LAW.draw(Generator().manual_seed(2), 12):
        assert LAW.margin(replace(one, eta=1.01 * one.eta)) < 0
        more = LAW.measure(replace(one, loss=10 * one.loss / one.loss[0] * 1e3))
        assert LAW.measure(one)[SUM].margin >= 0
        assert more[SUM].measured > LAW.measure(one)[SUM].measured
