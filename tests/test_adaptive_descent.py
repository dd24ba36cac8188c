"""Theorem `adaptive-descent`: it holds, it breaks where it must, its steps are longer."""

from __future__ import annotations

import pytest
import torch

from deqlib import rates
from deqlib.linear import LinearDEQ
from deqlib.theorems import THEOREMS, adaptive_descent, verify
from deqlib.theorems.adaptive_descent import AdaptiveDescent

THEOREM = AdaptiveDescent()


def test_registered():
    assert isinstance(THEOREMS["adaptive-descent"], AdaptiveDescent)


def test_holds():
    verdict = verify(THEOREM, 200, seed=1, progress=False)
    assert verdict.holds, str(verdict)
    for name in ("L − L₊ ≥ 0.72 η‖∇L‖²", "L₊ ≤ (1 − 1.44 ημ″)L", "η ≥ 1/(6Λ)"):
        assert max(m[name].tightness for m in verdict.measurements) > 0.9, name


@pytest.mark.parametrize("name", THEOREM.hypotheses)
def test_fails_without(name):
    verdict = verify(THEOREM, 24, seed=2, drop=name, progress=False)
    assert verdict.failures > verdict.draws / 2, str(verdict)


def test_the_constant_is_the_least_value_of_the_bracket():
    e = torch.linspace(0, 0.25, 100_001, dtype=torch.float64)
    bracket = 1 / (1 + e) - (1 - 4 * e) / (4 * (1 - e) ** 2)
    assert adaptive_descent.DESCENT < float(bracket.min()) < 0.724


def test_steps_are_never_shorter_than_two_thirds_of_the_constant_ones():
    for run in THEOREM.draw(torch.Generator().manual_seed(3), 40):
        one = run.problem
        constant = 1 / (4 * rates.smoothness(one.theta, one.S, one.A))
        assert float(run.eta.min() / constant) > 2 / 3


def test_at_a_minimiser_the_step_is_a_quarter_of_the_edge_of_stability():
    generator = torch.Generator().manual_seed(4)
    for run in THEOREM.draw(generator, 12):
        one = run.problem
        P = torch.eye(one.A.shape[0], dtype=torch.float64) - one.theta.W
        at = LinearDEQ(one.theta.W, P @ one.A)
        omega, gamma = rates.local_smoothness(at, one.S, one.A)
        edge = 2 / rates.hessian_spectrum(at, one.S, one.A)[1]
        assert float(gamma) < 1e-10 * float(omega)
        assert float(1 / (2 * omega + 4 * gamma) / edge) == pytest.approx(0.25, rel=1e-9)
