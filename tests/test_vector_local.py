"""The vector state: its gradient, the identity, the local theorem and what breaks it."""

from __future__ import annotations

import pytest
import torch
from test_mutants import mutated

from deqlib import activations, vector_state
from deqlib.implicit import equilibrium as differentiable
from deqlib.theorems import THEOREMS, vector_local, verify
from deqlib.theorems.vector_local import VectorLocal
from deqlib.vector_state import VectorDEQ

THEOREM = VectorLocal()


@pytest.fixture(scope="module")
def verdict():
    return verify(THEOREM, 200, seed=1, progress=False)


def test_registered():
    assert isinstance(THEOREMS["vector-local"], VectorLocal)


def test_holds(verdict):
    assert verdict.holds, str(verdict)
    assert max(m["⟨∇L, δ⟩ ≥ γ E‖z − y‖²"].tightness for m in verdict.measurements) > 0.9
    assert max(m["‖∇L‖² ≤ Λ⟨∇L, δ⟩"].tightness for m in verdict.measurements) > 0.5


@pytest.mark.parametrize("name", THEOREM.hypotheses)
def test_fails_without(name):
    verdict = verify(THEOREM, 24, seed=2, drop=name, progress=False)
    assert verdict.failures > verdict.draws / 2, str(verdict)


@pytest.mark.parametrize("name", ["local", "nearly-linear"])
def test_the_distance_really_grows(name):
    """Not only the constants are wrong there: descent moves away from the target."""
    for run in THEOREM.drop[name](torch.Generator().manual_seed(3), 24):
        assert float(run.distances[1]) > float(run.distances[0])


def test_constants_inside_the_theorem_are_not_careless():
    for run in THEOREM.draw(torch.Generator().manual_seed(4), 12):
        one = run.problem
        rho = run.distances[0].sqrt()
        exact = vector_state.constants(one.link, one.target, one.X, one.y, rho)
        for ours, theirs in zip(vector_local.careless(one), exact, strict=True):
            assert float(ours) == pytest.approx(float(theirs), rel=1e-12)


@pytest.mark.parametrize("link", [activations.tanh, activations.smooth_leaky_relu(0.2)])
def test_gradient_is_that_of_autograd(link):
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    W = normal(3, 3)
    W = 0.8 * W / torch.linalg.matrix_norm(W, 2)
    theta, X, y = VectorDEQ(W, normal(3, 2)), normal(10, 2), normal(10, 3)
    z = vector_state.equilibrium(link, theta, X)
    ours = vector_state.gradient(link, theta, X, y, z)
    W, U = (part.clone().requires_grad_() for part in theta)
    state = differentiable(lambda z: link(z @ W.mT + X @ U.mT), torch.zeros_like(y), tol=1e-13)
    vector_state.loss(y, state.z).backward()
    assert torch.allclose(ours.W, W.grad, rtol=1e-9, atol=1e-11)
    assert torch.allclose(ours.U, U.grad, rtol=1e-9, atol=1e-11)


def test_rotations_turn_every_error():
    """(I − ωR_t)⁻¹(I − ωR_(−t)) with cos t = ω has the symmetric part (1 − 2ω²) I."""
    eye = torch.eye(2, dtype=torch.float64)
    for omega in (0.5, 0.75, 0.9, 0.99):
        size = torch.tensor(omega, dtype=torch.float64)
        W, V = (omega * vector_local.turn(sign * torch.acos(size)) for sign in (1, -1))
        M = torch.linalg.solve(eye - W, eye - V)
        assert torch.allclose((M + M.T) / 2, (1 - 2 * omega**2) * eye, atol=1e-12)


def test_wrong_input_gets_a_sentence():
    eye, X = torch.eye(2, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
    theta = VectorDEQ(eye, torch.ones(2, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="spectral norm 1; with slopes of tanh up to 1"):
        vector_state.equilibrium(activations.tanh, theta, X)
    with pytest.raises(ValueError, match="they must be"):
        vector_state.equilibrium(activations.tanh, theta, torch.ones(4, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="need a positive bound"):
        vector_state.constants(activations.tanh, theta, X, X, torch.tensor(0.1))


MUTANTS = {
    "adjoint without its transpose": (
        vector_state, "theta.W.mT[..., None, :, :] * rise", "theta.W[..., None, :, :] * rise",
    ),
    "Jacobian-free adjoint": (
        vector_state, "return rise * torch.linalg.solve(system, error[..., None])[..., 0]",
        "return rise * error",
    ),
    "gradient of U with z": (vector_state, "q.mT @ X / n)", "(q.mT @ z / n) @ theta.U)"),
    "form with W for W*": (vector_state, "e @ target.W.mT", "e @ theta.W.mT"),
    "γ without ρ below": (
        vector_local, "gamma = 1 - ((room / 2).clamp(max=bend) + rho) / (room - rho)",
        "gamma = 1 + ((room / 2).clamp(max=bend) + rho) / (room - rho)",
    ),
    "Λ with the power 1 of κ − ρ": (
        vector_state, "(gamma * (room - rho) ** 4)", "(10 * gamma * (room - rho))",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name):
    module, old, new = MUTANTS[name]
    with mutated(module, old, new):
        try:
            caught = not verify(THEOREM, 18, seed=5, progress=False).holds
        except (ValueError, RuntimeError):
            caught = True
    assert caught
    assert verify(THEOREM, 18, seed=5, progress=False).holds
