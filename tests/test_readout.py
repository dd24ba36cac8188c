"""The read-out model: gradient, two laws, the bound, the rate, and its saddles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator, Tensor

from deqlib import readout
from deqlib.dynamics import autograd, gradient_flow
from deqlib.readout import ReadoutDEQ
from deqlib.theorems import THEOREMS, verify
from deqlib.theorems.readout import Readout

THEOREM = Readout()


def normal(seed: int, *shape: int) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def scalar(v: float, u: float, P: float = 1.0) -> ReadoutDEQ:
    return ReadoutDEQ(*(torch.tensor([[x]], dtype=torch.float64) for x in (1 - P, u, v)))


ONE = torch.ones(1, 1, dtype=torch.float64)


def test_is_registered() -> None:
    assert isinstance(THEOREMS["readout"], Readout)


def test_holds_on_200_draws() -> None:
    verdict = verify(THEOREM, draws=200, seed=0, progress=False)
    assert verdict.holds, str(verdict)
    ratios = [m["|∇L|² ≥ 2μL"].tightness for m in verdict.measurements]
    assert max(ratios) > 0.99  # sharp
    assert max(m["C is constant"].bound for m in verdict.measurements) < 1e-3


BROKEN = {
    "gradient-flow": {"C is constant", "D is constant"},
    "square": {"|∇L|² ≥ 2μL", "L(t) ≤ exp(−2μt) L₀"},
    "gap": {"L → 0"},
}


@pytest.mark.parametrize("name", sorted(THEOREM.drop))
def test_fails_without_each_hypothesis_where_it_is_used(name: str) -> None:
    without = verify(THEOREM, draws=40, seed=1, drop=name, progress=False)
    assert without.failures > 0.6 * without.draws, str(without)
    broken = {k for ms in without.measurements for k, m in ms.items() if not m.margin >= 0}
    assert broken == BROKEN[name]


def test_gradient_is_automatic_differentiation() -> None:
    theta = ReadoutDEQ(0.3 * normal(0, 5, 3, 3), normal(1, 5, 3, 2), normal(2, 5, 4, 3))
    root = normal(3, 5, 2, 6)
    S, A = root @ root.mT, normal(4, 5, 4, 2)

    def loss(at: ReadoutDEQ) -> Tensor:
        return readout.loss(at, S, A)

    automatic = autograd(loss)(theta)
    for ours, theirs in zip(readout.gradient(theta, S, A), automatic, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_the_scalar_saddle_and_the_escape() -> None:
    ends = {}
    for u in (1.0, 0.99):
        run = gradient_flow(
            lambda theta: readout.loss(theta, ONE, ONE), scalar(-1.0, u), 40.0, progress=False,
            grad=lambda theta: readout.gradient(theta, ONE, ONE),
        )  # fmt: skip
        ends[u] = float(run.loss[-1])
    assert math.isclose(ends[1.0], 0.5, rel_tol=1e-9)
    assert ends[0.99] < 1e-9


def test_the_saddle_of_one_state_has_curvature_one_over_root_two() -> None:
    saddle = scalar(0.0, 0.0, 2**0.5)
    hessian = full_hessian(saddle, ONE, ONE)
    assert math.isclose(float(torch.linalg.eigvalsh(hessian)[0]), -(0.5**0.5), rel_tol=1e-12)
    bound = float(readout.saddle_curvature(saddle, ONE, ONE))
    assert math.isclose(bound, -(0.5**0.5), rel_tol=1e-12)


def full_hessian(theta: ReadoutDEQ, S: Tensor, A: Tensor) -> Tensor:
    shapes = [x.shape for x in theta]
    sizes = [x.numel() for x in theta]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        return readout.loss(
            ReadoutDEQ(*(x.reshape(s) for x, s in zip(parts, shapes, strict=True))), S, A
        )

    flat = torch.cat([x.flatten() for x in theta])
    return torch.autograd.functional.hessian(loss, flat)


def critical_point(seed: int) -> tuple[ReadoutDEQ, Tensor, Tensor]:
    """A random critical point with L > 0: V and U lack rank, and A is placed to match."""
    g = Generator().manual_seed(seed)
    m, d = (int(torch.randint(1, 4, (), generator=g)) for _ in range(2))
    p = min(m, d) + int(torch.randint(0, 3, (), generator=g))

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    r = min(m, d, p) - 1
    V, U = draw(m, r) @ draw(r, p), draw(p, r) @ draw(r, d)
    theta = ReadoutDEQ(0.3 * draw(p, p), U, V)
    Y, Z = readout.factors(theta)
    left = torch.eye(m, dtype=Y.dtype) - Y @ torch.linalg.pinv(Y, rtol=1e-9)
    right = torch.eye(d, dtype=Y.dtype) - torch.linalg.pinv(Z, rtol=1e-9) @ Z
    root = draw(d, d + 2)
    S = root @ root.T
    A = readout.response(theta) - torch.linalg.solve(S, left @ draw(m, d) @ right, left=False)
    return theta, S, A


@pytest.mark.parametrize("seed", range(30))
def test_saddles_are_strict(seed: int) -> None:
    theta, S, A = critical_point(seed)
    assert max(float(x.abs().max()) for x in readout.gradient(theta, S, A)) < 1e-9
    assert float(readout.loss(theta, S, A)) > 1e-6
    lowest = float(torch.linalg.eigvalsh(full_hessian(theta, S, A))[0])
    bound = float(readout.saddle_curvature(theta, S, A))
    assert lowest <= bound * (1 - 1e-9) < 0


def test_no_curvature_bound_without_a_kernel() -> None:
    eye = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="full column rank"):
        readout.saddle_curvature(ReadoutDEQ(0 * eye, eye, eye), eye, 3 * eye)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(TypeError, match="ReadoutDEQ"):
        readout.response((ONE, ONE, ONE))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="V has shape"):
        readout.response(ReadoutDEQ(ONE, ONE, torch.ones(1, 2, dtype=torch.float64)))
