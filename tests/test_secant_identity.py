"""Theorem `secant-identity`: it holds to rounding at every size, and breaks where it must."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from deqlib import activations, one_point
from deqlib.theorems import THEOREMS, verify
from deqlib.theorems.secant_identity import SecantIdentity, along, problems, solved

THEOREM = SecantIdentity()


def test_is_registered() -> None:
    assert isinstance(THEOREMS["secant-identity"], SecantIdentity)


def test_holds_on_400_draws() -> None:
    verdict = verify(THEOREM, draws=400, seed=1, progress=False)
    assert verdict.holds, str(verdict)
    # The allowance is not a thousand times too large: some instance uses a twentieth of it.
    assert verdict.tightness > 0.05


@pytest.mark.parametrize("name", ["equilibria", "same-link"])
def test_fails_without(name: str) -> None:
    verdict = verify(THEOREM, draws=50, seed=2, drop=name, progress=False)
    assert verdict.failures == verdict.draws, str(verdict)


@pytest.mark.parametrize("name", ["admissible", "monotone"])
def test_needs_neither(name: str) -> None:
    """Both are needed for what follows from the identities, not for the identities."""
    assert verify(THEOREM, draws=200, seed=3, drop=name, progress=False).holds


def test_another_link_breaks_only_what_speaks_of_the_secant() -> None:
    verdict = verify(THEOREM, draws=20, seed=4, drop="same-link", progress=False)
    for found in verdict.measurements:
        broken = {name for name, m in found.items() if not m.margin >= 0}
        assert broken == {name for name in found if name.startswith("z − y")}


@pytest.mark.parametrize("d", [1, 30, 200])
def test_holds_from_one_to_two_hundred_inputs(d: int) -> None:
    batches = problems(Generator().manual_seed(d), 18, sizes=(d,))
    for pair in solved(batches):
        assert THEOREM.margin(pair) >= 0


def test_by_hand_on_one_sample() -> None:
    """φ(s) = s: z = wx/(1 − a), y = w*x/(1 − a*), φ̄ = 1."""
    link = activations.identity
    a, w, a_star, w_star, x = 0.5, 1.0, -1.0, 3.0, 2.0
    z, y = w * x / (1 - a), w_star * x / (1 - a_star)
    delta = torch.tensor([a - a_star, w - w_star], dtype=torch.float64)
    X = torch.tensor([[x]], dtype=torch.float64)
    u, v = torch.tensor([z]).double(), torch.tensor([y]).double()
    gain = one_point.gain(link, torch.tensor(a_star).double(), u, v)
    assert float(gain * along(delta, u, X)) == pytest.approx(z - y)
    gain = one_point.gain(link, torch.tensor(a).double(), u, v)
    assert float(gain * along(delta, v, X)) == pytest.approx(z - y)
