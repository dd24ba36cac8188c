"""Theorem `single-index-gradient`: it holds, breaks where it must, and no mutant of D passes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from test_mutants import mutated

from deqlib import single_index
from deqlib.activations import leaky_relu
from deqlib.single_index import SingleIndexDEQ
from deqlib.theorems import THEOREMS, verify
from deqlib.theorems import single_index_gradient as module
from deqlib.theorems.single_index_gradient import Problem, SingleIndexGradient, differentiate

THEOREM = SingleIndexGradient()
DIFFERENCES = "closed form = finite differences"


def test_holds() -> None:
    assert isinstance(THEOREMS["single-index-gradient"], SingleIndexGradient)
    verdict = verify(THEOREM, 200, seed=1, progress=False)
    assert verdict.holds, str(verdict)
    # The tolerances are no blank cheques: each is a small part of the gradient that it judges.
    for one in THEOREM.draw(torch.Generator().manual_seed(1), 60):
        size = float(one.closed.norm())
        assert one.allowed[0] < 1e-9 * (1 + size)
        assert one.allowed[1] < 1e-3 * (1 + size)
        assert abs(one.twice - one.once) < 1e-4 * (1 + size)


@pytest.mark.parametrize("name", list(THEOREM.hypotheses))
def test_every_instance_fails_without(name: str) -> None:
    verdict = verify(THEOREM, 24, seed=2, drop=name, progress=False)
    assert verdict.failures == 24
    failing = Counter(w for ms in verdict.measurements for w in ms if not ms[w].margin >= 0)
    assert (
        failing[DIFFERENCES] == 24
    )  # the loss itself contradicts the formula, not only an adjoint


@pytest.mark.parametrize(("leak", "a"), [(0.2, -1.5), (0.2, 0.6), (0.7, 0.5)])
def test_at_a_kink_differences_take_the_mean_of_both_slopes(leak: float, a: float) -> None:
    """One input with u = 0: D is α/(1 − aα) on one side and 1/(1 − a) on the other."""
    X = torch.tensor([[0.0, 1.0]], dtype=torch.float64)  # orthogonal to w = (1, 0)
    theta = SingleIndexDEQ(
        torch.tensor([a], dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    )
    y, towards = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[0.0, 0.0, 1.0]]).double()
    (one,) = differentiate(Problem(leaky_relu(leak), theta, X[None], y, towards))
    left, right = leak / (1 - a * leak), 1 / (1 - a)
    assert float(one.closed @ towards[0]) == pytest.approx(-right)
    # Beside the mean of both slopes stands a term of the size of the step.
    assert one.once == pytest.approx(-(left + right) / 2, abs=10 * module.STEP)


MUTANTS = {
    "D = φ′": ("return rise / (1 - a * rise)", "return rise"),
    "D = 1/(1 − aφ′)": ("return rise / (1 - a * rise)", "return 1 / (1 - a * rise)"),
    "D = φ′/(1 + aφ′)": ("return rise / (1 - a * rise)", "return rise / (1 + a * rise)"),
    "D = φ′/(1 − a)": ("return rise / (1 - a * rise)", "return rise / (1 - a)"),
    "no z in the a-part": ("(weight * z).mean(-1)", "weight.mean(-1)"),
    "y for z in the a-part": ("(weight * z).mean(-1)", "(weight * y).mean(-1)"),
    "sum for mean": ("(X.mT @ weight[..., None])[..., 0] / weight.shape[-1]",
                     "(X.mT @ weight[..., None])[..., 0]"),
    "residual with the wrong sign": ("weight = (z - y) * D", "weight = (y - z) * D"),
    "the paper's factor 2": ("weight = (z - y) * D", "weight = 2 * (z - y) * D"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_formula_is_caught(mutant: str) -> None:
    with mutated(single_index, *MUTANTS[mutant]):
        verdict = verify(THEOREM, 30, seed=3, progress=False)
    assert verdict.failures >= 24, str(verdict)
    assert verify(THEOREM, 30, seed=3, progress=False).holds


def test_a_wrong_bound_of_the_unrolled_network_would_be_seen() -> None:
    """The bound is within a factor of a million of the measured error: a layer less shows."""
    verdict = verify(THEOREM, 60, seed=4, progress=False)
    assert max(m["closed form = unrolled layers"].tightness for m in verdict.measurements) > 1e-2
