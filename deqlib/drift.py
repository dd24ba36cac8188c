r"""How the sphere of the linear model moves when the link is not linear.

Letters as in `deqlib.single_index`: z = φ(u), u = a z + wᵀx. For a number c the squared radius is

    r² = (c − a)² + ‖w‖²,

the squared distance from the parameters to the point (a, w) = (c, 0). Training along
−(E[q z], E[q x]), with any q, changes it at the speed 2 E[q (c φ(u) − u)] (`radius-drift`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deqlib.activations import Link, Scalar
from deqlib.single_index import SingleIndexDEQ


def squared_radius(theta: SingleIndexDEQ, c: Tensor | float = 1.0) -> Tensor:
    """r² = (c − a)² + ‖w‖², of shape (*batch)."""
    return (c - theta.a).square() + theta.w.square().sum(-1)


def drift(link: Link, u: Tensor, q: Tensor, c: Tensor | float = 1.0) -> Tensor:
    """d(r²)/dt = 2 E[q (c φ(u) − u)], of shape (*batch).

    Args:
        link: the link φ.
        u: pre-activations (*batch, n) of the samples (`single_index.preactivation`).
        q: adjoints (*batch, n) of the samples: the parameters move along −(E[q z], E[q x]). For
            gradient flow of ½ E(z − y)² it is (z − y) D.
        c: where the sphere is centred, a number or one for each problem (*batch).

    Source: theorem `radius-drift`.
    """
    if q.shape != u.shape:
        raise ValueError(
            f"q has shape {tuple(q.shape)} and u {tuple(u.shape)}; every sample has one of each"
        )
    centre = torch.as_tensor(c, dtype=u.dtype)[..., None]
    return 2 * (q * (centre * link(u) - u)).mean(-1)


def slow_constant(tau: Scalar, target: SingleIndexDEQ, X: Tensor) -> Tensor:
    """κ = E[τ⊥²]/(1 + ‖b*‖²) for the weakly nonlinear link φ(s) = s + ε τ(s), of shape (*batch).

    b* = w*/(1 − a*) is the direction of the linear model's ray of minimisers, and τ⊥ is
    τ(b*ᵀx) less its linear regression on x, all over the sample X (*batch, n, d), n > d. Near the
    target the slowest rate of gradient flow is ε² κ/(1 − a*)⁴ to leading order in ε.
    """
    b = target.w / (1 - target.a)[..., None]
    value = tau((X @ b[..., None])[..., 0])[..., None]
    rest = value - X @ torch.linalg.lstsq(X, value).solution
    return rest.square().mean((-2, -1)) / (1 + b.square().sum(-1))


def slow_time(P: Tensor, P_start: Tensor, P_star: Tensor, rate: Tensor) -> Tensor:
    """When the law Ṗ = −ε²κ (P − P*)/(P³ P*) passes P, in closed form; all broadcast.

    t = (P*/ε²κ) (Ψ(P₀) − Ψ(P)) with Ψ(p) = p³/3 + P* p²/2 + P*² p + P*³ log|p − P*|.
    ``rate`` is ε²κ. P must lie between P₀ (``P_start``) and P*, and differ from P*.
    """

    def primitive(p: Tensor) -> Tensor:
        q = P_star
        return p**3 / 3 + q * p.square() / 2 + q.square() * p + q**3 * (p - q).abs().log()

    if bool(((P - P_star) * (P_start - P_star) <= 0).any()):
        raise ValueError("P has passed P*, or is equal to it; it must lie between P₀ and P*")
    return P_star / rate * (primitive(P_start) - primitive(P))
