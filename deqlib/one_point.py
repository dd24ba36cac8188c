r"""One-point monotonicity: the matrices and constants of Part III.

Letters as in `deqlib.single_index`; y is the equilibrium of a target model θ* = (a*, w*) on the
same inputs, δ = θ − θ*, u_z and u_y are the pre-activations of z and y, and

    φ̄ = (z − y)/(u_z − u_y) ∈ [α, β]

is the slope of the link between them (`Link.secant`; 1/φ̄ is the secant slope ψ̄ of φ⁻¹). Then

    ∇L = Q δ,  Q = E[ D φ̄/(1 − a*φ̄) (z, x)(z, x)ᵀ ] ⪰ 0          (`one-point-monotonicity`)

All functions take leading batch dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deqlib import single_index
from deqlib.activations import Link
from deqlib.single_index import SingleIndexDEQ


def gaps(link: Link, target: SingleIndexDEQ) -> tuple[Tensor, Tensor]:
    """(Δ*, T*) = (1/β − a*, 1/α − a*): how far a* is from the ends; T* is infinite for α = 0.

    Δ* is the radius of the ball around θ* in which convergence is proved.
    """
    a = target.a
    if link.alpha < 0:
        raise ValueError(f"link is {link.name}, which is not monotone; the theory asks for α ≥ 0")
    far = torch.full_like(a, torch.inf) if link.alpha == 0 else 1 / link.alpha - a
    return 1 / link.beta - a, far


def moment(X: Tensor, y: Tensor) -> Tensor:
    """A_y = E[(y, x)(y, x)ᵀ], (*batch, 1 + d, 1 + d), from X (*batch, n, d) and y (*batch, n).

    Its extreme eigenvalues are the λ and λ⁺ of the rates. λ = 0 exactly where c₀y + cᵀx = 0 on the
    whole sample for some (c₀, c) ≠ 0: then θ* cannot be told from its neighbours.
    """
    return weighted_moment(torch.ones_like(y), X, y)


def weighted_moment(weight: Tensor, X: Tensor, z: Tensor) -> Tensor:
    """E[weight (z, x)(z, x)ᵀ], of shape (*batch, 1 + d, 1 + d); weight and z (*batch, n)."""
    rows = torch.cat([z[..., None], X.expand(*z.shape, X.shape[-1])], dim=-1)
    return rows.mT @ (weight[..., None] * rows) / z.shape[-1]


def gain(link: Link, a: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """φ̄/(1 − aφ̄) for the slope φ̄ of the link between the pre-activations u of z and v of y.

    With a = a* it is what z − y is of ⟨δ, (z, x)⟩, and with the model's own a what it is of
    ⟨δ, (y, x)⟩ (theorem `secant-identity`). a, u and v broadcast.
    """
    bar = link.secant(u, v)
    return bar / (1 - a * bar)


def adjoint_matrix(
    link: Link, target: SingleIndexDEQ, X: Tensor, u: Tensor, v: Tensor, D: Tensor
) -> Tensor:
    """Q_D = E[D φ̄/(1 − a*φ̄) (z, x)(z, x)ᵀ], so that E[(z − y) D (z, x)] = Q_D δ.

    u and v (*batch, n) are the pre-activations of z and y, and D (*batch, n) is any adjoint.
    Source: theorem `positive-adjoint`. Q_D ⪰ 0 where D ≥ 0.
    """
    return weighted_moment(D * gain(link, target.a[..., None], u, v), X, link(u))


def strict_adjoint_matrix(
    link: Link,
    theta: SingleIndexDEQ,
    target: SingleIndexDEQ,
    X: Tensor,
    u: Tensor,
    v: Tensor,
    D: Tensor,
) -> Tensor:
    """Q̃_D = E[D (1 − a*φ̄) φ̄/(1 − aφ̄)² (y, x)(y, x)ᵀ], with ⟨E[(z − y) D (z, x)], δ⟩ = δᵀQ̃_D δ.

    Arguments as in `adjoint_matrix`. Source: theorem `positive-adjoint`.
    """
    bar = link.secant(u, v)
    weight = D * (1 - target.a[..., None] * bar) * bar / (1 - theta.a[..., None] * bar).square()
    return weighted_moment(weight, X, link(v))


def one_point_matrix(
    link: Link, theta: SingleIndexDEQ, target: SingleIndexDEQ, X: Tensor
) -> Tensor:
    """Q(θ) = E[D φ̄/(1 − a*φ̄) (z, x)(z, x)ᵀ], so that ∇L(θ) = Q(θ)(θ − θ*).

    Source: theorem `one-point-monotonicity`. Q(θ*) is the Hessian at θ*.
    """
    u, v = _both(link, theta, target, X)
    return adjoint_matrix(link, target, X, u, v, single_index.slope(link, theta.a[..., None], u))


def strict_matrix(link: Link, theta: SingleIndexDEQ, target: SingleIndexDEQ, X: Tensor) -> Tensor:
    """Q̃(θ) = E[D (1 − a*φ̄) φ̄/(1 − aφ̄)² (y, x)(y, x)ᵀ], with ⟨∇L, δ⟩ = δᵀ Q̃ δ.

    Its smallest eigenvalue is the rate at θ; it is positive where φ′ > 0 and λ > 0.
    """
    u, v = _both(link, theta, target, X)
    D = single_index.slope(link, theta.a[..., None], u)
    return strict_adjoint_matrix(link, theta, target, X, u, v, D)


def hessian(link: Link, target: SingleIndexDEQ, X: Tensor) -> Tensor:
    """H = E[D*² (y, x)(y, x)ᵀ], the Hessian of the loss at θ*: its λ_min is the sharp rate."""
    v = single_index.preactivation(link, target.a[..., None], single_index.index(target, X))
    D = single_index.slope(link, target.a[..., None], v)
    return weighted_moment(D.square(), X, link(v))


def contraction(lam: Tensor, far: Tensor, rho: Tensor) -> Tensor:
    """m = λ T*/(T* + ρ)³, of `single-index-rate`: ⟨∇L, δ⟩ ≥ m‖δ‖² in the ball of radius ρ < Δ*.

    For α = 0, where T* is infinite, it is 0.
    """
    return torch.where(far.isfinite(), lam * far / (far + rho) ** 3, 0)


def smoothness(lam: Tensor, near: Tensor, rho: Tensor) -> Tensor:
    """Λ = λ⁺ Δ*/(Δ* − ρ)³, of `single-index-rate`: Q ⪯ Λ in the ball of radius ρ < Δ*."""
    return lam * near / (near - rho) ** 3


def _both(
    link: Link, theta: SingleIndexDEQ, target: SingleIndexDEQ, X: Tensor
) -> tuple[Tensor, Tensor]:
    """The pre-activations u_z and u_y of the rows of X under both models, (*batch, n)."""
    u, v = (
        single_index.preactivation(link, one.a[..., None], single_index.index(one, X))
        for one in (theta, target)
    )
    return u, v
