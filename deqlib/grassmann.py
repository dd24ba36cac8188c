r"""The equilibrium map F as a point of a Grassmann manifold.

Letters as in `deqlib.linear`. The p × d matrices F are a chart of Gr(p, p + d), the p-dimensional
subspaces of ℝ^(p+d): F stands for the row space of [I, F]. It is also the row space of
N = [I − W, U], whatever the gauge h in (P, U) ↦ (hP, hU).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deqlib import linear
from deqlib.linear import LinearDEQ
from deqlib.rates import gram, root


def _check_same(F: Tensor, **others: Tensor) -> None:
    for name, other in others.items():
        if other.shape[-2:] != F.shape[-2:]:
            raise ValueError(
                f"{name} has shape {tuple(other.shape)}; with F of shape {tuple(F.shape)} it must "
                f"be (*batch, {F.shape[-2]}, {F.shape[-1]})"
            )


def metric(F: Tensor, X: Tensor, Y: Tensor) -> Tensor:
    """⟨X, Y⟩_F = tr((I + FFᵀ)⁻¹ X (I + FᵀF)⁻¹ Yᵀ), of shape (*batch).

    The canonical metric of the Grassmann manifold in the chart F; X and Y are velocities of F,
    all of shape (*batch, p, d). Source: Absil, Mahony & Sepulchre (2004).
    """
    _check_same(F, X=X, Y=Y)
    left = torch.linalg.solve(gram(F.mT), X)
    right = torch.linalg.solve(gram(F), Y.mT).mT
    return (left * right).sum((-2, -1))


def gradient(F: Tensor, G: Tensor) -> Tensor:
    """(I + FFᵀ) G (I + FᵀF): the gradient for `metric` of a function whose ordinary one is G."""
    _check_same(F, G=G)
    return gram(F.mT) @ G @ gram(F)


def velocity(theta: LinearDEQ, G: Tensor) -> Tensor:
    """Ḟ = −(PᵀP)⁻¹ G (I + FᵀF): how F moves when W and U follow their gradient flow.

    With C = cI it is −`gradient`(F, G)/c (theorem `grassmannian-flow`).
    """
    P, F = linear.resolvent_inverse(theta), linear.equilibrium_map(theta)
    _check_same(F, G=G)
    return -torch.linalg.solve(P, torch.linalg.solve(P.mT, G)) @ gram(F)


def lift(F: Tensor, C: Tensor, O: Tensor | None = None) -> LinearDEQ:  # noqa: E741
    """The parameters with map F (*batch, p, d), invariant C (*batch, p, p) and gauge O.

    P = C^½ O (I + FFᵀ)^(−½) and U = PF. Every θ with this F and this C is one of them, for one
    orthogonal O (*batch, p, p); the default is O = I.

    Raises:
        ValueError: C is not of shape (*batch, p, p).
    """
    p = F.shape[-2]
    if C.shape[-2:] != (p, p):
        raise ValueError(f"C has shape {tuple(C.shape)}; it must be (*batch, {p}, {p})")
    left = root(C) if O is None else root(C) @ O
    P = torch.linalg.solve(root(gram(F.mT)), left, left=False)
    return LinearDEQ(W=torch.eye(p, dtype=P.dtype, device=P.device) - P, U=P @ F)


def gauge(theta: LinearDEQ) -> Tensor:
    """O = C^(−½) P (I + FFᵀ)^½, of shape (*batch, p, p): orthogonal, the inverse of `lift`."""
    F = linear.equilibrium_map(theta)
    P = linear.resolvent_inverse(theta) @ root(gram(F.mT))
    return torch.linalg.solve(root(linear.invariant(theta)), P)


def frame(F: Tensor) -> Tensor:
    """(I + FFᵀ)^(−½) [I, F], of shape (*batch, p, p + d): orthonormal rows that span the point."""
    theta = lift(F, torch.eye(F.shape[-2], dtype=F.dtype, device=F.device).expand(gram(F.mT).shape))
    return linear.rows(theta)


def distance(F: Tensor, other: Tensor) -> Tensor:
    """Length of the shortest path between two points: the norm of the principal angles."""
    _check_same(F, other=other)
    cosines = torch.linalg.svdvals(frame(F) @ frame(other).mT).clamp(max=1)
    return cosines.acos().square().sum(-1).sqrt()
