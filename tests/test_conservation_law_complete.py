"""Theorem `conservation-law-complete`: the dimension is right, and every restriction lowers it."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from deqlib import linear
from deqlib.theorems import THEOREMS, conservation_law_complete, verify
from deqlib.theorems.conservation_law_complete import (
    ConservationLawComplete,
    brackets,
    from_rows,
    generated,
    gradient_fields,
    span_dimension,
    unit_slopes,
)

THEOREM = ConservationLawComplete()
NECESSARY = [name for name, h in THEOREM.hypotheses.items() if h.necessary]


def point(p: int, d: int, seed: int = 0) -> torch.Tensor:
    return linear.rows(linear.random_start(torch.Generator().manual_seed(seed), p, d))


def test_registered() -> None:
    assert isinstance(THEOREMS["conservation-law-complete"], ConservationLawComplete)


def test_holds_with_equality() -> None:
    verdict = verify(THEOREM, 200, seed=1)
    assert verdict.holds, str(verdict)
    name = "dim span ≥ pd + p(p−1)/2"
    assert all(m[name].tightness == 1 for m in verdict.measurements)


@pytest.mark.parametrize("name", NECESSARY)
def test_every_instance_fails_without(name: str) -> None:
    assert verify(THEOREM, 12, seed=2, drop=name).failures == 12


def test_stands_for_any_adjoint() -> None:
    verdict = verify(THEOREM, 20, seed=2, drop="exact-adjoint")
    assert verdict.holds, str(verdict)


def test_brackets_are_what_going_round_a_small_loop_does() -> None:
    """Forth along X, forth along Y, back along X, back along Y: ε²[X, Y] + O(ε³)."""
    N, (B1, B2) = point(2, 2), unit_slopes(2, 2)[[0, 3]]

    def along(B: torch.Tensor, N: torch.Tensor, t: float) -> torch.Tensor:
        for _ in range(10):  # Runge and Kutta's classical method
            h = t / 10
            k1 = gradient_fields(B[None], N)[0]
            k2 = gradient_fields(B[None], N + h / 2 * k1)[0]
            k3 = gradient_fields(B[None], N + h / 2 * k2)[0]
            N = N + h / 6 * (k1 + 2 * k2 + 2 * k3 + gradient_fields(B[None], N + h * k3)[0])
        return N

    expected = brackets(partial(gradient_fields, B1[None]), partial(gradient_fields, B2[None]), N)[
        0, 0
    ]
    gaps = []
    for eps in (2e-3, 1e-3):
        end = along(B2, along(B1, along(B2, along(B1, N, eps), eps), -eps), -eps)
        gaps.append(float(((end - N) / eps**2 - expected).norm() / expected.norm()))
    assert gaps[0] < 0.1
    assert gaps[1] == pytest.approx(gaps[0] / 2, rel=0.2)  # first order in ε


def test_nested_brackets_are_right() -> None:
    """Derivatives of brackets by central differences: nesting must not lose a term."""
    X = partial(gradient_fields, unit_slopes(3, 2)[:2])
    N, towards = point(3, 2), point(3, 2, seed=1)

    def level(N: torch.Tensor) -> torch.Tensor:
        return brackets(X, X, N)

    jacobian = torch.func.jacrev(level)(N)
    exact = (jacobian * towards).sum((-2, -1))
    h = 1e-5
    difference = (level(N + h * towards) - level(N - h * towards)) / (2 * h)
    assert torch.allclose(exact, difference, atol=1e-7 * float(difference.abs().max()))


def test_what_restricted_losses_conserve() -> None:
    """One input direction of two: U in the other. One output of two: the corner of PᵀP."""
    N, slopes = point(2, 2), unit_slopes(2, 2).reshape(2, 2, 2, 2)
    one_input = generated(partial(gradient_fields, slopes[:, 0]), 2)(N)
    assert span_dimension(one_input) == 2 + 1  # p + p(p−1)/2: as if d were 1
    assert float(one_input[:, :, 3].abs().max()) == 0
    one_output = generated(partial(gradient_fields, slopes[0]), 2)(N)
    assert span_dimension(one_output) == 4  # pd: one law more
    P = N[:, :2]
    corner = 2 * (one_output[:, :, 1] * P[:, 1]).sum(-1)
    assert float(corner.abs().max()) < 1e-11 * float(one_output.abs().max())


def test_rows_and_parameters_are_inverse_to_each_other() -> None:
    N = point(3, 2)
    assert torch.equal(linear.rows(from_rows(N)), N)


def wrong_sign(slopes: torch.Tensor, N: torch.Tensor) -> torch.Tensor:
    g = [linear.gradient_from(from_rows(N), B) for B in slopes]
    return torch.stack([torch.cat([one.W, one.U], dim=-1) for one in g])


def half_speed(slopes: torch.Tensor, N: torch.Tensor) -> torch.Tensor:
    return gradient_fields(slopes, N) * torch.tensor([1.0] * N.shape[0] + [0.5] * (
        N.shape[1] - N.shape[0]
    ))  # fmt: skip


@pytest.mark.parametrize("wrong", [wrong_sign, half_speed])
def test_catches_wrong_fields(wrong, monkeypatch) -> None:
    draw = THEOREM._one

    def mutant(*args):
        one = draw(*args)
        return conservation_law_complete.Instance(one.N, one.slopes, wrong, one.depth)

    monkeypatch.setattr(THEOREM, "_one", mutant)
    assert not verify(THEOREM, 10, seed=5).holds
