"""The conservation law: it holds, it breaks when a hypothesis goes, and the check can fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from deqlib import linear
from deqlib.linear import LinearDEQ
from deqlib.theorems import THEOREMS, Verdict, verify
from deqlib.theorems.conservation_law import ADJOINTS, ConservationLaw, Instance

LAW = ConservationLaw()


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return verify(LAW, draws=200, seed=0, progress=False)


def test_is_registered() -> None:
    assert isinstance(THEOREMS["conservation-law"], ConservationLaw)


def test_holds_on_200_draws(verdict: Verdict) -> None:
    assert verdict.holds, str(verdict)
    assert verdict.failures == verdict.vacuous == 0


def test_every_adjoint_is_drawn(verdict: Verdict) -> None:
    drawn = {one.adjoint for one in LAW.draw(Generator().manual_seed(0), len(ADJOINTS))}
    assert drawn == set(ADJOINTS)


def test_draws_reach_hard_cases() -> None:
    ones = LAW.draw(Generator().manual_seed(0), 200)
    smallest = [float(torch.linalg.svdvals(linear.resolvent_inverse(o.theta))[-1]) for o in ones]
    conditions = [float(torch.linalg.cond(linear.second_moment(o.X))) for o in ones]
    assert min(smallest) < 0.05
    assert max(conditions) > 1e4
    assert {o.theta.W.shape[0] for o in ones} == {1, 2, 3, 4}


def test_rounding_allowance_is_not_generous(verdict: Verdict) -> None:
    identity = [m["C₊ = C + η² g gᵀ"] for m in verdict.measurements]
    assert max(m.bound for m in identity) < 1e-11
    assert max(m.tightness for m in identity) > 0.01
    assert max(m["C is constant"].bound for m in verdict.measurements) < 1e-5


def test_replay_gives_the_same_numbers(verdict: Verdict) -> None:
    again = verdict.replay()
    assert min(m.margin for m in again.values()) == verdict.worst_margin
    assert again == verdict.measurements[verdict.worst_index]


@pytest.mark.parametrize("name", sorted(LAW.drop))
def test_fails_without_each_hypothesis(name: str) -> None:
    assert LAW.hypotheses[name].necessary
    without = verify(LAW, draws=14, seed=1, drop=name, progress=False)
    assert without.failures == without.draws, str(without)
    assert without.worst_margin < -1e3


def test_dropping_time_spares_the_step_identity() -> None:
    without = verify(LAW, draws=14, seed=1, drop="continuous-time", progress=False)
    for measured in without.measurements:
        assert measured["C is constant"].margin < 0
        assert measured["C₊ = C + η² g gᵀ"].margin >= 0


def at_rest(one: Instance) -> Instance:
    """The same instance with targets that the start already meets: the field is zero."""
    return replace(one, adjoint="squared loss", Y=linear.predict(one.theta, one.X))


def test_a_zero_field_counts_as_vacuous() -> None:
    class AtRest(ConservationLaw):
        def draw(self, generator: Generator, n: int) -> list[Instance]:
            return [at_rest(one) for one in super().draw(generator, n)]

    still = verify(AtRest(), draws=7, seed=0, progress=False)
    assert still.vacuous == 7
    assert not still.holds


@pytest.mark.parametrize(
    "wrong",
    [
        lambda P, U: P @ P.mT + 2 * U @ U.mT,
        lambda P, U: P @ P.mT - U @ U.mT,
        lambda P, U: P.mT @ P + U @ U.mT,
        lambda P, U: P @ P.mT,
    ],
    ids=["twice U", "minus U", "wrong side", "without U"],
)
def test_wrong_invariants_are_caught(
    wrong: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mutant(theta: LinearDEQ) -> Tensor:
        return wrong(linear.resolvent_inverse(theta), theta.U)

    ones = LAW.draw(Generator().manual_seed(2), 14)
    monkeypatch.setattr(linear, "invariant", mutant)
    # With p = 1 the wrong side is the right side.
    caught = [LAW.margin(one) < 0 for one in ones if one.theta.W.shape[0] > 1]
    assert caught
    assert all(caught)


def test_a_forward_error_of_one_in_a_million_is_seen() -> None:
    def slightly_off(theta: LinearDEQ, X: Tensor) -> Tensor:
        return linear.predict(theta, X) * (1 + 1e-6)

    for one in LAW.draw(Generator().manual_seed(3), 14):
        assert LAW.slack(one)["exact-equilibrium"] > 0
        off = replace(one, forward=slightly_off)
        assert LAW.slack(off)["exact-equilibrium"] < 0
        assert LAW.margin(off) < 0


def test_the_drift_of_the_flow_alone_can_fail() -> None:
    """An error of one per cent in z passes the integrator but not its budget."""

    def off(theta: LinearDEQ, X: Tensor) -> Tensor:
        return linear.predict(theta, X) * 1.01

    for one in LAW.draw(Generator().manual_seed(4), 7):
        assert LAW.measure(replace(one, forward=off))["C is constant"].margin < 0
