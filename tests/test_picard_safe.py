"""Theorem `picard-safe`: it holds for one output, and two outputs break it."""

from __future__ import annotations

import math

import pytest
import torch

from deqlib import linear
from deqlib.linear import LinearDEQ
from deqlib.theorems import THEOREMS, picard_safe, verify
from deqlib.theorems.picard_safe import PicardSafe, example, length_bound, reach
from deqlib.theorems.sphere_limit import flow

THEOREM = PicardSafe()
NECESSARY = [name for name, h in THEOREM.hypotheses.items() if h.necessary]
REACH = "P(t) ≤ r cos((arctan|A| − ω₀)₊)"


def scalar(a: float, u: list[float]) -> LinearDEQ:
    return LinearDEQ(torch.tensor([[a]]).double(), torch.tensor([u]).double())


def test_registered() -> None:
    assert isinstance(THEOREMS["picard-safe"], PicardSafe)


def test_holds_and_is_attained() -> None:
    verdict = verify(THEOREM, 200, seed=1)
    assert verdict.holds, str(verdict)
    assert max(m[REACH].tightness for m in verdict.measurements) > 0.9999
    drawn = THEOREM.draw(torch.Generator().manual_seed(1), 200)
    radii = torch.stack([linear.rows(one.start).norm() for one in drawn])
    assert int((radii > 2).sum()) > 15  # not only the simple case r < 2


@pytest.mark.parametrize("name", NECESSARY)
def test_every_instance_fails_without(name: str) -> None:
    without = verify(THEOREM, 10, seed=2, drop=name)
    assert all(m["ρ(W(t)) < 1"].margin < 0 for m in without.measurements)


def test_stands_without_full_rank() -> None:
    verdict = verify(THEOREM, 20, seed=2, drop="full-rank")
    assert verdict.holds, str(verdict)


def test_reach_by_hand() -> None:
    # On the way from the pole a = 0 (P = r = 1) to the ray nothing exceeds P₀.
    assert float(reach(scalar(0.0, [0.0]), torch.tensor([[3.0]]).double())) == pytest.approx(1)
    # Beyond the ray, seen from the pole: the pole may be ahead, and only r is left.
    u0 = math.sqrt(8.0)
    assert float(reach(scalar(0.0, [u0]), torch.tensor([[1.0]]).double())) == pytest.approx(
        3 * math.cos(math.pi / 4 - (math.atan(u0) - math.pi / 4))
    )
    assert float(reach(scalar(0.0, [-u0]), torch.tensor([[1.0]]).double())) == pytest.approx(3)


def test_the_example_with_two_outputs() -> None:
    theta, S, A = example()
    path = flow(LinearDEQ(theta.W[None], theta.U[None]), S[None], A[None],
                torch.tensor([0.0, 0.5], dtype=torch.float64))  # fmt: skip
    rho = torch.linalg.eigvals(path.W[:, 0]).abs().amax(-1)
    assert float(rho[0]) == pytest.approx(0.583, abs=1e-3)
    assert float(rho[1]) == pytest.approx(1.905, abs=2e-3)
    assert float(linear.loss(LinearDEQ(path.W[1], path.U[1]), S, A)) < 1e-4
    assert float(torch.linalg.eigvalsh(linear.invariant(theta))[-1]) < 4


def test_path_length_for_several_outputs() -> None:
    """‖W(t) − W₀‖ ≤ √(2L₀/μ), so ‖W₀‖₂ + √(2L₀/μ) < 1 keeps ‖W(t)‖₂ < 1."""
    g = torch.Generator().manual_seed(0)
    theta = linear.random_start(g, 3, 2, batch=(60,), scale=0.5)
    start = LinearDEQ(0.5 * theta.W, theta.U)
    S = torch.diag(torch.tensor([1.0, 0.5])).double().expand(60, 2, 2)
    F = linear.equilibrium_map(start)
    A = F + 0.3 * torch.randn(F.shape, generator=g, dtype=torch.float64)
    path = flow(start, S, A, torch.linspace(0, 10, 21, dtype=torch.float64))
    bound = length_bound(start, S, A)
    moved = (path.W - start.W).flatten(2).norm(dim=-1).amax(0)
    assert bool((moved <= bound).all())
    promised = torch.linalg.matrix_norm(start.W, 2) + bound < 1
    assert int(promised.sum()) > 5
    assert float(torch.linalg.matrix_norm(path.W[:, promised], 2).max()) < 1


MUTANTS = {
    "angle left out": lambda theta, A: linear.rows(theta)[..., 0, :].norm(dim=-1)
    * A.norm(dim=(-2, -1)).atan().cos(),
    "angle doubled in sign": lambda theta, A: linear.rows(theta)[..., 0, :].norm(dim=-1)
    * (A.norm(dim=(-2, -1)).atan() + 0.2).cos(),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_catches_a_reach_that_is_too_short(name: str, monkeypatch) -> None:
    drawn = THEOREM.draw(torch.Generator().manual_seed(5), 30)
    monkeypatch.setattr(picard_safe, "reach", MUTANTS[name])
    assert any(THEOREM.margin(one) < 0 for one in drawn)
