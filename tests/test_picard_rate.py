"""Theorem `picard-rate`: it holds, it breaks where it must, and it catches wrong solvers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from deqlib import fixed_point
from deqlib.theorems import THEOREMS, picard_rate, verify
from deqlib.theorems.picard_rate import PicardRate

THEOREM = PicardRate()
NECESSARY = [name for name, h in THEOREM.hypotheses.items() if h.necessary]
UNNECESSARY = [name for name, h in THEOREM.hypotheses.items() if not h.necessary]
RATE = "‖z_k − z*‖ ≤ q^k ‖z_0 − z*‖"
ERROR = "‖z_k − z*‖ ≤ ‖f(z_k) − z_k‖/(1 − L)"


def test_registered():
    assert isinstance(THEOREMS["picard-rate"], PicardRate)


def test_holds_and_is_attained():
    verdict = verify(THEOREM, 300, seed=1)
    assert verdict.holds, str(verdict)
    assert verdict.worst_margin >= 0
    for name in (RATE, ERROR, "‖f(z_k) − z_k‖ ≤ q^k ‖f(z_0) − z_0‖"):
        assert max(m[name].tightness for m in verdict.measurements) > 1 - 1e-6
    counts = "evaluations ≤ 1 + ⌈log(ε/r_0)/log q⌉"
    assert max(m[counts].tightness for m in verdict.measurements) == 1


def test_worst_instance_replays():
    verdict = verify(THEOREM, 40, seed=3)
    again = verdict.replay()
    assert again == verdict.measurements[verdict.worst_index]
    assert again[verdict.worst_conclusion].margin == verdict.worst_margin
    assert THEOREM.margin(verdict.worst) == verdict.worst_margin


@pytest.mark.parametrize("name", NECESSARY)
def test_every_instance_fails_without(name):
    verdict = verify(THEOREM, 40, seed=2, drop=name)
    assert not verdict.holds
    assert verdict.failures == verdict.draws


@pytest.mark.parametrize("name", UNNECESSARY)
def test_stands_without(name):
    verdict = verify(THEOREM, 60, seed=2, drop=name)
    assert verdict.holds, str(verdict)


def test_every_hypothesis_can_be_dropped():
    assert set(THEOREM.drop) == set(THEOREM.hypotheses) == set(NECESSARY) | set(UNNECESSARY)


def test_failures_are_the_predicted_ones():
    generator = torch.Generator().manual_seed(4)

    def failing(name: str) -> set[str]:
        (one,) = THEOREM.drop[name](generator, 1)
        return {what for what, m in THEOREM.measure(one).items() if not m.margin >= 0}

    # Another norm: everything converges, only the constants are wrong.
    assert RATE in failing("same-norm")
    assert "every start converges" not in failing("same-norm")
    # An open set: the solver sees nothing, and yet no point of D is an equilibrium.
    assert failing("closed") == {"z* is an equilibrium in D"}
    # Not a self-map: the iterates walk out of D.
    assert "every start converges" in failing("self-map")


# Mutants: solvers that are wrong in one place -----------------------------------------------------


@dataclass(frozen=True)
class WrongStep(fixed_point.Picard):
    """Picard with another step than z + β g."""

    factor: float = 1.0

    def start(self, f: Any, z: torch.Tensor) -> Any:
        return lambda z, g, r: z + self.factor * g


def wrong_step(change: Callable[[float], float]) -> Callable[..., fixed_point.FixedPoint]:
    def solve(f: Any, z0: Any, *, method: Any, **options: Any) -> fixed_point.FixedPoint:
        wrong = WrongStep(damping=method.damping, factor=change(method.damping))
        return fixed_point.solve(f, z0, method=wrong, **options)

    return solve


def wrong_report(change: Callable[..., fixed_point.FixedPoint]) -> Callable[..., Any]:
    def solve(f: Any, z0: Any, **options: Any) -> fixed_point.FixedPoint:
        return change(fixed_point.solve(f, z0, **options))

    return solve


def stops_early(f: Any, z0: Any, **options: Any) -> fixed_point.FixedPoint:
    """Stops at the square root of the tolerance and claims to have converged."""
    found = fixed_point.solve(f, z0, **{**options, "atol": options["atol"] ** 0.5})
    return replace(found, residual=found.residual.clamp(max=options["atol"]))


MUTANTS = {
    "damping of the wrong sign": wrong_step(lambda tau: -tau),
    "damping ignored": wrong_step(lambda tau: 1.0),
    "1 − τ for τ": wrong_step(lambda tau: 1 - tau),
    "half a step": wrong_step(lambda tau: tau / 2),
    "residual squared": wrong_report(lambda s: replace(s, residual=s.residual.square())),
    "residual per entry": wrong_report(
        lambda s: replace(s, residual=s.residual / s.z.shape[-1] ** 0.5)
    ),
    "point moved after it was certified": wrong_report(lambda s: replace(s, z=s.z * (1 + 1e-6))),
    "one evaluation too few": wrong_report(lambda s: replace(s, iterations=s.iterations - 1)),
    "never converged": wrong_report(
        lambda s: replace(s, status=torch.ones_like(s.status))
    ),
    "stops early": stops_early,
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_catches(name, monkeypatch):
    monkeypatch.setattr(picard_rate, "solve", MUTANTS[name])
    assert not verify(THEOREM, 20, seed=5).holds
