r"""Approximate backward passes: a few terms in place of the adjoint's linear system.

The exact gradient of a loss through z = f(z, θ) is (∂_θf)ᵀ u with (I − Jᵀ) u = g, J = ∂_z f, and g
the gradient with respect to z. A scheme with m terms and damping λ takes m steps of

    v ← (1 − λ) v + λ (g + Jᵀ v)        from v = 0

and uses v for u: v = Σ_{j<m} λ ((1 − λ) I + λJᵀ)ʲ g, which costs m − 1 products with Jᵀ. One term
with λ = 1 is u = g, Jacobian-free backpropagation; m terms with λ = 1 are those of the Neumann
series; λ < 1 is the phantom gradient. Where every eigenvalue of (1 − λ) I + λJ lies inside the unit
circle, v tends to u as m grows. For a few terms nothing of the kind is promised.

Sources: Wu Fung et al., JFB, AAAI 2022; Geng et al., On training implicit models, NeurIPS 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from deqlib.fixed_point import Map, Method, solve
from deqlib.implicit import Equilibrium, equilibrium


@dataclass(frozen=True)
class Scheme:
    """m terms of the adjoint's iteration with damping λ.

    terms    m, at least 1
    damping  λ, a finite number > 0; 1 is the Neumann series
    """

    terms: int
    damping: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.terms, bool) or not isinstance(self.terms, int) or self.terms < 1:
            raise ValueError(f"terms is {self.terms!r}; it must be an integer >= 1")
        if not (isfinite(self.damping) and self.damping > 0):
            raise ValueError(f"damping is {self.damping!r}; it must be a finite number > 0")


SCHEMES: dict[str, Scheme] = {
    "neumann-1": Scheme(1),
    "neumann-2": Scheme(2),
    "neumann-3": Scheme(3),
    "damped-2": Scheme(2, 0.5),
    "phantom-5": Scheme(5, 0.5),
}
"""The five backward passes of the paper's image experiment, by name. "neumann-1" is JFB."""


def scheme_named(scheme: str | Scheme) -> Scheme:
    """The scheme of that name, or the scheme itself.

    Raises:
        ValueError: for a name that is not in `SCHEMES`.
        TypeError: for anything but a name or a `Scheme`.
    """
    if isinstance(scheme, Scheme):
        return scheme
    if not isinstance(scheme, str):
        raise TypeError(f"scheme is a {type(scheme).__name__}; it must be a name or a Scheme")
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; it must be one of {sorted(SCHEMES)} or a Scheme")
    return SCHEMES[scheme]


def approximate_adjoint(f: Map, z: Tensor, g: Tensor, scheme: str | Scheme) -> Tensor:
    """v = Σ_{j<m} λ ((1 − λ) I + λJᵀ)ʲ g, the scheme's u, of the shape of z; without gradient.

    f acts on each sample of z (*batch, *state) by itself; J is its Jacobian at z, which need not be
    an equilibrium; g has the shape of z.

    Raises:
        ValueError: where g and z, or f(z) and z, differ in shape, or g is not finite.
    """
    m, lam = scheme_named(scheme).terms, scheme_named(scheme).damping
    _check(z, g, "g")
    v = lam * g.detach()
    if m == 1:
        return v  # before f is asked anything: this is what JFB saves
    transposed = _Transposed(f, z)
    for _ in range(m - 1):
        v = (1 - lam) * v + lam * (g.detach() + transposed(v))
    return v


def adjoint_residual(f: Map, z: Tensor, g: Tensor, u: Tensor, *, state_ndim: int = 1) -> Tensor:
    """‖g − (I − Jᵀ) u‖₂ per sample, (*batch): how far u is from solving the adjoint's system.

    One product with Jᵀ. Arguments as in `approximate_adjoint`; the state of one sample has
    state_ndim dimensions.

    Raises:
        ValueError: where g, u or f(z) do not have the shape of z, or are not finite.
    """
    _check(z, g, "g")
    _check(z, u, "u")
    left = (g - u).detach() + _Transposed(f, z)(u.detach())
    return vector_norm(left.flatten(z.ndim - state_ndim), dim=-1)


def equilibrium_with(
    f: Map,
    z0: Tensor,
    *,
    scheme: str | Scheme = "exact",
    method: str | Method = "anderson",
    tol: float | None = None,
    atol: float | None = None,
    max_iter: int = 1000,
    state_ndim: int = 1,
) -> Equilibrium:
    """The solution of z = f(z), differentiated by a scheme of `SCHEMES` or by a `Scheme`.

    scheme="exact" is `implicit.equilibrium` and nothing else. Otherwise the forward solve is the
    same, and a gradient g with respect to z becomes (∂_θf)ᵀ v with v = `approximate_adjoint` of g.
    The gradient is then not that of any loss in general; there are no second derivatives, and
    asking for one raises RuntimeError. Nothing is solved backwards, so the list `adjoint` stays
    empty; `adjoint_residual` measures what the scheme left.

    f, z0, method, tol, atol, max_iter, state_ndim  as in `fixed_point.solve`

    Raises as `solve` does, NotConvergedError included, and as `scheme_named` does.
    """
    options: dict[str, Any] = dict(
        method=method, tol=tol, atol=atol, max_iter=max_iter, state_ndim=state_ndim
    )
    if scheme == "exact":
        return equilibrium(f, z0, **options)
    chosen = scheme_named(scheme)
    forward = solve(f, z0, **options)
    fz = f(forward.z) if torch.is_grad_enabled() else forward.z
    if not fz.requires_grad:
        return Equilibrium(forward.z, forward)
    return Equilibrium(_Approximate.apply(f, chosen, forward.z, fz), forward)


class _Approximate(torch.autograd.Function):
    """The equilibrium z; a gradient g goes on to f(z), held at this z, as the scheme's v."""

    @staticmethod
    def forward(ctx: Any, f: Map, scheme: Scheme, z: Tensor, fz: Tensor) -> Tensor:
        z = z.clone()
        ctx.f, ctx.scheme = f, scheme
        ctx.save_for_backward(z)  # as this function's output, so that v is seen to depend on θ
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        (z,) = ctx.saved_tensors
        return None, None, None, _Adjoint.apply(ctx.f, ctx.scheme, z, g)


class _Adjoint(torch.autograd.Function):
    """v = `approximate_adjoint`; to differentiate it is refused.

    torch's once_differentiable would not do: autograd.grad walks only the paths that lead to its
    inputs, passes by the node that raises, and returns a number.
    """

    @staticmethod
    def forward(ctx: Any, f: Map, scheme: Scheme, z: Tensor, g: Tensor) -> Tensor:
        return approximate_adjoint(f, z, g, scheme)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple:
        raise RuntimeError(
            "an approximate backward pass has no second derivative; use scheme='exact'"
        )


class _Transposed:
    """v ↦ Jᵀ v, J the Jacobian of f at z. One evaluation of f serves every product."""

    def __init__(self, f: Map, z: Tensor) -> None:
        with torch.enable_grad():
            self.z = z.detach().requires_grad_()
            self.fz = f(self.z)
        if self.fz.shape != z.shape:
            raise ValueError(
                f"f(z) has shape {tuple(self.fz.shape)}; it must have that of z, {tuple(z.shape)}"
            )

    def __call__(self, v: Tensor) -> Tensor:
        if not self.fz.requires_grad:  # f is constant
            return torch.zeros_like(v)
        (Jv,) = torch.autograd.grad(
            self.fz, self.z, v, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return Jv


def _check(z: Tensor, v: Tensor, name: str) -> None:
    if v.shape != z.shape:
        raise ValueError(
            f"{name} has shape {tuple(v.shape)}; it must have that of z, {tuple(z.shape)}"
        )
    if not bool(v.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity; every entry must be finite")
