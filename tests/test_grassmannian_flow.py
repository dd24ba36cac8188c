"""The geometry of the equilibrium map, against an independent library, and its theorem."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pymanopt.manifolds import Grassmann
from torch import Generator, Tensor

from deqlib import grassmann, linear
from deqlib.dynamics import gradient_flow
from deqlib.linear import LinearDEQ
from deqlib.theorems import THEOREMS, verify
from deqlib.theorems.grassmannian_flow import GrassmannianFlow

THEOREM = GrassmannianFlow()
SIZES = [(1, 1), (1, 3), (2, 2), (3, 2), (2, 4)]


def normal(seed: int, *shape: int) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def horizontal(F: Tensor, X: Tensor) -> np.ndarray:
    """The velocity X of F as the library writes it: a tangent at the basis frame(F)ᵀ.

    Of all velocities of an orthonormal basis that move the subspace like X the one orthogonal to
    the subspace: Z = [−QFᵀ, Q] with Q = P X (I + FᵀF)⁻¹ and P = (I + FFᵀ)^(−½).
    """
    p = F.shape[0]
    P = grassmann.frame(F)[:, :p]
    Q = P @ torch.linalg.solve(torch.eye(F.shape[1], dtype=F.dtype) + F.T @ F, X.T).T
    return torch.cat([-Q @ F.T, Q], dim=1).T.numpy()


def chart(point: np.ndarray, p: int) -> Tensor:
    """F of the subspace that the columns of the point span."""
    N = torch.as_tensor(point).T
    return torch.linalg.solve(N[:, :p], N[:, p:])


def test_is_registered() -> None:
    assert isinstance(THEOREMS["grassmannian-flow"], GrassmannianFlow)


def test_holds_on_200_draws() -> None:
    verdict = verify(THEOREM, draws=200, seed=0, progress=False)
    assert verdict.holds, str(verdict)
    starts = [m["Ḟ = −grad ℓ/c at the start"] for m in verdict.measurements]
    assert max(m.bound for m in starts) < 1e-8
    assert max(m.tightness for m in starts) > 1e-3


@pytest.mark.parametrize("name", sorted(THEOREM.drop))
def test_fails_without_each_hypothesis(name: str) -> None:
    without = verify(THEOREM, draws=24, seed=1, drop=name, progress=False)
    assert without.failures == without.draws, str(without)
    assert without.worst_margin < -1e3


def test_only_the_metric_needs_an_isotropic_start() -> None:
    """Ḟ = −(PᵀP)⁻¹GK holds for every C; it is `velocity`, against Ẇ and U̇ themselves."""
    for one in THEOREM.drop["isotropic"](Generator().manual_seed(0), 16):
        F = linear.equilibrium_map(one.theta)
        P = linear.resolvent_inverse(one.theta)
        moved = torch.linalg.solve(P, one.step.U + one.step.W @ F)
        assert torch.allclose(grassmann.velocity(one.theta, one.G), moved, rtol=1e-8)


@pytest.mark.parametrize(("p", "d"), SIZES)
def test_metric_and_distance_are_the_librarys(p: int, d: int) -> None:
    F, X, Y, other = (normal(k, p, d) for k in range(4))
    manifold = Grassmann(p + d, p)
    point = grassmann.frame(F).T.numpy()
    assert np.allclose(point.T @ point, np.eye(p), atol=1e-13)
    theirs = manifold.inner_product(point, horizontal(F, X), horizontal(F, Y))
    assert np.isclose(float(grassmann.metric(F, X, Y)), theirs, rtol=1e-12)
    theirs = manifold.dist(point, grassmann.frame(other).T.numpy())
    assert np.isclose(float(grassmann.distance(F, other)), theirs, rtol=1e-7)


@pytest.mark.parametrize(("p", "d"), SIZES)
def test_gradient_is_the_librarys(p: int, d: int) -> None:
    """Project the ordinary gradient of ℓ(chart(N)) in the ambient space, as the library does."""
    F, A, S = normal(0, p, d), normal(1, p, d), linear.second_moment(normal(2, 3 * d, d))
    N = grassmann.frame(F).clone().requires_grad_()
    map_of = torch.linalg.solve(N[:, :p], N[:, p:])
    loss = 0.5 * (((map_of - A) @ S) * (map_of - A)).sum()
    (ambient,) = torch.autograd.grad(loss, N)
    point = N.detach().T.numpy()
    theirs = Grassmann(p + d, p).euclidean_to_riemannian_gradient(point, ambient.T.numpy())
    ours = horizontal(F, grassmann.gradient(F, (F - A) @ S))
    assert np.allclose(ours, theirs, rtol=1e-11, atol=1e-12)


def test_training_follows_the_librarys_flow() -> None:
    """Steps of −h grad ℓ along the library's geodesics approach F(t) of training, at order one."""
    p, d, c, t_end = 2, 3, 1.7, 0.5
    F0, A, S = normal(3, p, d), normal(4, p, d), linear.second_moment(normal(5, 9, d))
    gauge = torch.linalg.qr(normal(6, p, p)).Q
    trained = gradient_flow(
        lambda theta: linear.loss(theta, S, A),
        grassmann.lift(F0, c * torch.eye(p, dtype=torch.float64), gauge),
        t_end,
        grad=lambda theta: linear.gradient(theta, S, A),
        progress=False,
    ).end
    target = grassmann.frame(linear.equilibrium_map(trained)).T.numpy()
    manifold = Grassmann(p + d, p)
    errors = []
    for steps in (200, 400):
        point = grassmann.frame(F0).T.numpy()
        for _ in range(steps):
            F = chart(point, p)
            # The library's own projection, at its own basis of the subspace.
            N = torch.as_tensor(point).T.clone().requires_grad_()
            R = torch.linalg.solve(N[:, :p], N[:, p:]) - A
            (ambient,) = torch.autograd.grad(0.5 * ((R @ S) * R).sum(), N)
            grad = manifold.euclidean_to_riemannian_gradient(point, ambient.T.numpy())
            point = manifold.exp(point, -t_end / steps / c * grad)
        assert torch.isfinite(F).all()
        errors.append(manifold.dist(point, target))
    assert errors[1] < 2e-3
    assert 1.9 < errors[0] / errors[1] < 2.1


def test_lift_and_gauge_are_inverse() -> None:
    F, root = normal(0, 4, 3, 2), normal(1, 4, 3, 3)
    C, O = root @ root.mT + torch.eye(3), torch.linalg.qr(normal(2, 4, 3, 3)).Q  # noqa: E741
    theta = grassmann.lift(F, C, O)
    assert torch.allclose(linear.equilibrium_map(theta), F, rtol=1e-10)
    assert torch.allclose(linear.invariant(theta), C, rtol=1e-10)
    assert torch.allclose(grassmann.gauge(theta), O, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "call",
    [
        lambda F: grassmann.metric(F, F, F.mT),
        lambda F: grassmann.gradient(F, F[:1]),
        lambda F: grassmann.lift(F, torch.eye(5)),
        lambda F: grassmann.distance(F, F[:, :1]),
        lambda F: grassmann.velocity(LinearDEQ(torch.zeros(2, 2), F), F.mT),
    ],
)
def test_wrong_shapes_are_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="shape"):
        call(torch.ones(2, 3))
