"""Approximate backward passes against closed forms, unrolled steps, and wrong input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqlib import backward
from deqlib.backward import (
    SCHEMES,
    Scheme,
    adjoint_residual,
    approximate_adjoint,
    equilibrium_with,
)
from deqlib.fixed_point import NotConvergedError
from deqlib.implicit import equilibrium


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W = 0.4 * normal(0, 4, 4)  # not symmetric: the transpose shows
G = normal(1, 3, 4)
Z = normal(2, 3, 4)
EYE = torch.eye(4, dtype=torch.float64)


def linear_layer(z: Tensor) -> Tensor:
    return z @ W.mT + 1


def test_each_scheme_on_a_linear_layer_in_words() -> None:
    """Rows of G are cotangents: Wᵀ g is the row G W."""
    one, two, three = G, G @ W, G @ W @ W
    expected = {
        "neumann-1": one,
        "neumann-2": one + two,
        "neumann-3": one + two + three,
        "damped-2": 0.75 * one + 0.25 * two,
        "phantom-5": sum(0.5 * G @ torch.matrix_power((EYE + W) / 2, j) for j in range(5)),
    }
    assert set(expected) == set(SCHEMES)
    for name, v in expected.items():
        torch.testing.assert_close(approximate_adjoint(linear_layer, Z, G, name), v)


@pytest.mark.parametrize("m", [1, 2, 4, 7])
@pytest.mark.parametrize("lam", [1.0, 0.5, 0.3])
def test_closed_form_and_residual(m: int, lam: float) -> None:
    """v = χ(P)ᵀ P⁻ᵀ g with χ(P) = I − (I − λP)^m, and g − Pᵀv = ((I − λP)^m)ᵀ g."""
    P = EYE - W
    power = torch.matrix_power(EYE - lam * P, m)
    v = approximate_adjoint(linear_layer, Z, G, Scheme(m, lam))
    torch.testing.assert_close(v, G @ torch.linalg.inv(P) @ (EYE - power))
    left = adjoint_residual(linear_layer, Z, G, v)
    torch.testing.assert_close(left, (G @ power).norm(dim=1))


def test_a_lost_transpose_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward._Transposed, "__call__", lambda self, v: v @ W.mT)
    for name in set(SCHEMES) - {"neumann-1"}:
        scheme = SCHEMES[name]
        power = torch.matrix_power(EYE - scheme.damping * (EYE - W), scheme.terms)
        v = approximate_adjoint(linear_layer, Z, G, name)
        right = G @ torch.linalg.inv(EYE - W) @ (EYE - power)
        assert float((v - right).norm() / right.norm()) > 0.01


def test_many_terms_solve_the_system() -> None:
    v = approximate_adjoint(linear_layer, Z, G, Scheme(400, 0.5))
    torch.testing.assert_close(v, G @ torch.linalg.inv(EYE - W))
    assert float(adjoint_residual(linear_layer, Z, G, v).max()) < 1e-12


@pytest.mark.parametrize("name", SCHEMES)
def test_gradient_is_that_of_damped_steps_unrolled_from_the_equilibrium(name: str) -> None:
    """m steps z ← (1 − λ) z + λ f(z) from the detached equilibrium, differentiated as they are."""
    A = W.clone().requires_grad_()
    s = normal(3, 3, 4).requires_grad_()

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z @ A.mT + s)

    found = equilibrium_with(f, torch.zeros_like(Z), scheme=name, tol=1e-14)
    assert found.adjoint == []
    mine = torch.autograd.grad((G * found.z).sum(), (A, s))
    z, scheme = found.forward.z, SCHEMES[name]
    for _ in range(scheme.terms):
        z = (1 - scheme.damping) * z + scheme.damping * f(z)
    theirs = torch.autograd.grad((G * z).sum(), (A, s))
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.z, z)


def test_exact_is_the_implicit_layer_and_the_schemes_are_not() -> None:
    A = W.clone().requires_grad_()

    def grad(scheme: str | Scheme) -> Tensor:
        z = equilibrium_with(lambda z: torch.tanh(z @ A.mT + 1), Z * 0, scheme=scheme).z
        return torch.autograd.grad((G * z).sum(), A)[0]

    z = equilibrium(lambda z: torch.tanh(z @ A.mT + 1), Z * 0).z
    exact = torch.autograd.grad((G * z).sum(), A)[0]
    torch.testing.assert_close(grad("exact"), exact)
    torch.testing.assert_close(grad(Scheme(300, 0.5)), exact)
    for name in SCHEMES:
        assert float((grad(name) - exact).norm() / exact.norm()) > 0.01


def test_state_of_two_dimensions() -> None:
    z, g = Z.reshape(3, 2, 2), G.reshape(3, 2, 2)

    def f(z: Tensor) -> Tensor:
        return linear_layer(z.reshape(3, 4)).reshape(3, 2, 2)

    v = approximate_adjoint(f, z, g, "neumann-3")
    torch.testing.assert_close(
        v.reshape(3, 4), approximate_adjoint(linear_layer, Z, G, "neumann-3")
    )
    left = adjoint_residual(f, z, g, v, state_ndim=2)
    torch.testing.assert_close(left, adjoint_residual(linear_layer, Z, G, v.reshape(3, 4)))


def test_constant_layer_and_no_gradient() -> None:
    torch.testing.assert_close(approximate_adjoint(lambda z: Z, Z, G, "neumann-3"), G)
    assert not equilibrium_with(linear_layer, Z * 0, scheme="neumann-1").z.requires_grad
    A = W.clone().requires_grad_()
    with torch.no_grad():
        assert not equilibrium_with(lambda z: z @ A.mT + 1, Z, scheme="damped-2").z.requires_grad


def test_one_term_asks_f_nothing() -> None:
    def f(z: Tensor) -> Tensor:
        raise AssertionError("f was evaluated")

    torch.testing.assert_close(approximate_adjoint(f, Z, G, "neumann-1"), G)


def test_no_second_derivative() -> None:
    A = W.clone().requires_grad_()
    z = equilibrium_with(lambda z: torch.tanh(z @ A.mT + 1), Z * 0, scheme="neumann-2").z
    (g,) = torch.autograd.grad(z.square().sum(), A, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(g.sum(), A)


def test_a_failed_forward_solve_is_said() -> None:
    with pytest.raises(NotConvergedError):
        equilibrium_with(lambda z: 3 * z + 1, Z, scheme="neumann-1", method="picard")


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: Scheme(0), ValueError, "terms is 0; it must be an integer >= 1"),
        (lambda: Scheme(True), ValueError, "terms is True"),
        (lambda: Scheme(2, 0.0), ValueError, "damping is 0.0; it must be a finite number > 0"),
        (lambda: Scheme(2, float("nan")), ValueError, "damping is nan"),
        (lambda: backward.scheme_named("jfb"), ValueError, "scheme is 'jfb'; it must be one of"),
        (lambda: backward.scheme_named(3), TypeError, "scheme is a int; it must be a name"),  # type: ignore[arg-type]
        (
            lambda: approximate_adjoint(linear_layer, Z, G[:2], "neumann-1"),
            ValueError,
            r"g has shape \(2, 4\); it must have that of z, \(3, 4\)",
        ),
        (
            lambda: approximate_adjoint(linear_layer, Z, G / 0, "neumann-1"),
            ValueError,
            "g holds NaN or infinity",
        ),
        (
            lambda: approximate_adjoint(lambda z: z[:2], Z, G, "neumann-2"),
            ValueError,
            r"f\(z\) has shape \(2, 4\)",
        ),
        (
            lambda: adjoint_residual(linear_layer, Z, G, G[:1]),
            ValueError,
            r"u has shape \(1, 4\)",
        ),
        (
            lambda: equilibrium_with(linear_layer, Z, scheme="jfb"),
            ValueError,
            "scheme is 'jfb'",
        ),
    ],
)
def test_wrong_input_is_refused(call, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
