"""Theorem `stable-branches`: it holds on any stable selection and breaks where it must."""

from __future__ import annotations

import pytest
import torch
from test_mutants import mutated

from deqlib import branches, single_index
from deqlib.theorems import THEOREMS, stable_branches, verify
from deqlib.theorems.stable_branches import StableBranches

THEOREM = StableBranches()


@pytest.fixture(scope="module")
def verdict():
    return verify(THEOREM, 200, seed=1, progress=False)


def test_registered():
    assert isinstance(THEOREMS["stable-branches"], StableBranches)


def test_holds(verdict):
    assert verdict.holds, str(verdict)
    # The lower bound is nearly attained, and the identity errs far below its tolerance.
    assert max(m["⟨g, δ⟩ ≥ Δ* E[D(z − y)²]"].tightness for m in verdict.measurements) > 0.95
    assert max(m["g = Q δ"].tightness for m in verdict.measurements) < 0.1


def test_most_draws_lie_beyond_the_ball_and_on_more_than_one_branch():
    many = THEOREM.draw(torch.Generator().manual_seed(2), 81)  # nine links, three rounds of three
    beyond = [one for one in many if float(one.theta.a) * one.link.beta > 1]
    assert len(beyond) == 54
    mixed = 0
    for one in beyond:
        s = single_index.index(one.theta, one.X)
        outer = branches.equilibria(one.link, float(one.theta.a), s)
        several = outer.stable.sum(-1) > 1
        mixed += bool((one.u[several] == outer.u[several][:, 0]).any()) and bool(
            (one.u[several] != outer.u[several][:, 0]).any()
        )
    assert mixed > 15


@pytest.mark.parametrize("name", THEOREM.hypotheses)
def test_fails_without(name):
    verdict = verify(THEOREM, 24, seed=2, drop=name, progress=False)
    assert verdict.failures > verdict.draws / 2, str(verdict)


def test_the_identity_needs_no_stability_and_no_bound_on_the_target():
    for name in ("stable", "target", "monotone"):
        verdict = verify(THEOREM, 24, seed=3, drop=name, progress=False)
        assert all(m["g = Q δ"].margin >= 0 for m in verdict.measurements)


def test_without_stability_the_sign_turns():
    verdict = verify(THEOREM, 40, seed=4, drop="stable", progress=False)
    turned = sum(m["cos(g, δ) ≥ 0"].margin < 0 for m in verdict.measurements)
    assert turned > 20


MUTANTS = {
    "a* left out of the weight": (branches, "D * bar / (1 - target.a[..., None] * bar)", "D * bar"),
    "a in the place of a*": (
        branches, "(1 - target.a[..., None] * bar)", "(1 - theta.a[..., None] * bar)",
    ),
    "slope with 1 + a φ′": (
        single_index, "return rise / (1 - a * rise)", "return rise / (1 + a * rise)",
    ),
    "pull-back without z": (
        single_index, "(weight * z).mean(-1), (X.mT", "weight.mean(-1), (X.mT",
    ),
    "Δ* with β for 1/β": (
        stable_branches, "gap = float(1 / link.beta - target.a)",
        "gap = float(2 / link.beta - target.a)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name):
    module, old, new = MUTANTS[name]
    with mutated(module, old, new):
        try:
            caught = not verify(THEOREM, 18, seed=5, progress=False).holds
        except (ValueError, RuntimeError, IndexError):
            caught = True
    assert caught
    assert verify(THEOREM, 18, seed=5, progress=False).holds
