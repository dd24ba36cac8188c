"""Differentiate an equilibrium without keeping the solver's tape.

Let z(θ) solve z = f(z, θ). Differentiating both sides gives dz = J dz + ∂_θf dθ with J = ∂_z f,
so, wherever I − J is invertible (the implicit function theorem),

    dz = (I − J)⁻¹ ∂_θf dθ.

The right-hand side knows the equilibrium only, not how it was found: no iterate of the solver is
kept, and the memory is that of one evaluation of f. Backwards, a gradient g with respect to z
becomes

    ∇_θ = (∂_θf)ᵀ u,     (I − Jᵀ) u = g,

one linear system a sample, solved by products with Jᵀ alone. The solution u is itself a
differentiable function of g, z and θ, by the same theorem, and so there are derivatives of every
order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from deqlib.fixed_point import (
    FixedPoint,
    Map,
    Method,
    NotConvergedError,
    Status,
    checked_method,
    default_tol,
    jacobian,
    solve,
)


@dataclass(frozen=True)
class LinearSolve:
    """The report of one linear solve of a backward pass, per sample.

    residual    (*batch)        ‖g − (I − Jᵀ) u‖₂ of the u that was used, computed afresh
    iterations  (*batch) int64  products with the Jacobian that the sample used
    status      (*batch) int64  one `Status` a sample; a sample whose forward solve diverged or
                                was not finite keeps that status, has u = 0 and so no gradient
    transposed  bool            True for (I − Jᵀ) u = g; False for (I − J) u = g, which occurs in
                                second and higher derivatives
    """

    residual: Tensor
    iterations: Tensor
    status: Tensor
    transposed: bool

    @property
    def converged(self) -> Tensor:
        """(*batch) bool."""
        return self.status == Status.CONVERGED


@dataclass(frozen=True)
class Equilibrium:
    """What `equilibrium` returns.

    z        (*batch, *state)  differentiable in every tensor that f uses
    forward  the `FixedPoint` report, with the same z without gradient
    adjoint  empty at first; every backward pass appends the `LinearSolve` reports of its solves
    """

    z: Tensor
    forward: FixedPoint
    adjoint: list[LinearSolve] = field(default_factory=list)


def equilibrium(
    f: Map,
    z0: Tensor,
    *,
    method: str | Method = "anderson",
    tol: float | None = None,
    atol: float | None = None,
    max_iter: int = 1000,
    adjoint_max_iter: int = 1000,
    state_ndim: int = 1,
    adjoint: str | Method | None = None,
    direct_below: int = 32,
    throw: bool = True,
) -> Equilibrium:
    """The solution of z = f(z), differentiable in every tensor that f uses.

    Parameters of modules, leaves and intermediate results that f closes over are found by watching
    f as it runs; nothing has to be listed. z0 receives no gradient: an equilibrium does not
    remember where the search for it began. f is evaluated once more at the end, to see that its
    gradient can be had, and once in the backward pass. An f compiled by torch.compile is compiled
    in the forward solve; the backward pass uses it as it was written.

    f, z0, method, tol, atol, max_iter, state_ndim  as in `fixed_point.solve`
    adjoint_max_iter  most products with Jᵀ in one solve of (I − Jᵀ) u = g
    adjoint           how (I − Jᵀ) u = g is solved. None: states with fewer than direct_below
                      entries form I − J and factor it, the others use BiCGStab, which converges
                      also where iterating does not. A method of `solve`, or its name, iterates
                      u ← Jᵀu + g; "picard" costs least a product, and it needs the spectral radius
                      of J to be below 1 and not close to it
    direct_below      see adjoint
    throw             whether a solve that fails, forward or backward, raises NotConvergedError

    The adjoint's criterion is the forward one's, ‖g − (I − Jᵀ)u‖ ≤ tol ‖u‖, and besides ≤ √tol ‖g‖,
    which a huge u from a singular I − J does not meet.

    With throw=False a sample whose forward solve diverged or was not finite contributes zero
    gradient, and one that stopped at max_iter the formula's value at the returned z.

    Returns an `Equilibrium`. Raises as `solve` does, and RuntimeError if f reaches a tensor that
    requires a gradient by a way that torch does not show (an autograd.Function of your own, a
    compiled module): hand it such a tensor as w.view_as(w).
    """
    for name, value, least in (
        ("adjoint_max_iter", adjoint_max_iter, 3),  # one step of BiCGStab and its check
        ("direct_below", direct_below, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; it must be an integer >= {least}")
    if adjoint is not None:
        adjoint = checked_method(adjoint, "adjoint")
    watched = _Watched(f)
    forward = solve(
        watched if torch.is_grad_enabled() else f,
        z0,
        method=method,
        tol=tol,
        atol=atol,
        max_iter=max_iter,
        state_ndim=state_ndim,
        throw=throw,
    )
    result = Equilibrium(forward.z, forward)
    if not torch.is_grad_enabled():
        return result
    problem = _Problem(
        f=f,
        used=watched.used,
        forward=forward,
        bad=(forward.status == Status.DIVERGED) | (forward.status == Status.NOT_FINITE),
        tol=default_tol(z0.dtype) if tol is None else tol,
        max_iter=adjoint_max_iter,
        method=adjoint,
        direct=z0.shape[z0.ndim - state_ndim :].numel() < direct_below,
        throw=throw,
        reports=result.adjoint,
    )
    fz, hidden = problem.examined()
    if hidden is not None:  # f uses other tensors at the equilibrium than at z0
        problem = replace(problem, used=_tensors_used(f, forward.z)[1])
        fz, hidden = problem.examined()
    problem.check(fz, hidden)
    if not problem.used:
        return result
    # As views: where f is part of another equilibrium's f, its modes see view_as and not apply.
    z = _Implicit.apply(problem, forward.z, *(t.view_as(t) for t in problem.used))
    return Equilibrium(z, forward, result.adjoint)


# ----------------------------------------------------------------- f as a function of what it uses


class _Swap(TorchFunctionMode):
    """While active, every tensor handed to a torch function goes through `swap` first."""

    def __init__(self, swap: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.swap = swap

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if not kwargs and not any(isinstance(a, tuple | list | dict) for a in args):
            return func(*[self.swap(a) if isinstance(a, Tensor) else a for a in args])
        args, kwargs = tree_map_only(Tensor, self.swap, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _eagerly() -> AbstractContextManager:
    """While active, a compiled f runs as it was written, where the modes above see its tensors."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):  # torch >= 2.6
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


def _tensors_used(f: Map, z: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """f(z), and the tensors with a gradient that f hands to torch functions on the way.

    Under no_grad nothing that f makes itself requires a gradient; what does was there before.
    """
    used: dict[int, Tensor] = {}

    def note(t: Tensor) -> Tensor:
        if t.requires_grad:
            used[id(t)] = t  # also keeps t alive, so that its id stays its own
        return t

    with torch.no_grad(), _eagerly(), _Swap(note):
        fz = f(z)
    return note(fz).detach(), tuple(used.values())


class _Watched:
    """f, which notes at its first call what `_tensors_used` finds."""

    def __init__(self, f: Map) -> None:
        self.f, self.called = f, False
        self.used: tuple[Tensor, ...] = ()

    def __call__(self, z: Tensor) -> Tensor:
        if self.called:
            return self.f(z)
        self.called = True
        fz, self.used = _tensors_used(self.f, z)
        return fz


def _leaves(t: Tensor) -> Iterator[Tensor]:
    """The leaves of the autograd graph of t."""
    if t.requires_grad and t.is_leaf:
        yield t
    nodes, met = [t.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in met:
            met.add(node)
            nodes += [parent for parent, _ in node.next_functions]
            if hasattr(node, "variable"):
                yield node.variable


Graph = tuple[Tensor, list[Tensor], Tensor]  # z, the tensors used, and f(z)


@dataclass(frozen=True)
class _Problem:
    """One equilibrium: f, the tensors it uses, and how its linear systems are to be solved."""

    f: Map
    used: tuple[Tensor, ...]
    forward: FixedPoint
    bad: Tensor  # (*batch) bool: samples without a gradient
    tol: float
    max_iter: int
    method: Method | None
    direct: bool
    throw: bool
    reports: list[LinearSolve]

    def at(self, z: Tensor, c: Sequence[Tensor]) -> Tensor:
        """f(z) with the tensors c in place of those it uses: a pure function of z and c.

        In the rows of bad samples NaN and infinity become 0, else 0 · NaN in the gradient of a
        shared parameter would undo the rule that these samples contribute nothing.
        """
        stand_in = {id(t): s for t, s in zip(self.used, c, strict=True)}
        bad, any_bad = self.bad, bool(self.bad.any())

        def swap(t: Tensor) -> Tensor:
            t = stand_in.get(id(t), t)
            if any_bad and t.is_floating_point() and t.shape[: bad.ndim] == bad.shape:
                rows = bad.reshape(bad.shape + (1,) * (t.ndim - bad.ndim))
                hide = rows & ~t.isfinite()
                return t.masked_fill(hide, 0) if hide.any() else t
            return t

        with _eagerly(), _Swap(swap):
            fz = self.f(z)
        return swap(fz)

    def examined(self) -> tuple[Tensor, Tensor | None]:
        """f(z) at the equilibrium, and a leaf it depends on besides z and the c, if any."""
        with torch.enable_grad():
            z = self.forward.z.detach().requires_grad_()
            c = [t.detach().requires_grad_() for t in self.used]
            fz = self.at(z, c)
        known = {id(t) for t in (z, *c)}
        return fz.detach(), next((leaf for leaf in _leaves(fz) if id(leaf) not in known), None)

    def check(self, fz: Tensor, hidden: Tensor | None) -> None:
        """Refuse an f whose gradient would come out wrong without a word."""
        if hidden is not None:
            raise RuntimeError(
                f"f uses a tensor of shape {tuple(hidden.shape)} that requires a gradient in a "
                "way that torch does not show (an autograd.Function of its own, a compiled "
                "module, a leaf made inside f); hand it over as w.view_as(w)"
            )
        good = ~self.bad
        if good.all():
            return
        with torch.no_grad():
            as_it_is = self.f(self.forward.z)
        if not torch.allclose(fz[good], as_it_is[good], rtol=1e-3, atol=1e-5):
            raise RuntimeError(
                "f gives good samples other values once NaN and infinity are hidden from the bad "
                "ones; its gradient cannot be trusted, so remove the bad samples first"
            )

    def solve(self, graph: Graph, g: Tensor, transposed: bool) -> Tensor:
        """u with (I − Jᵀ) u = g, or (I − J) u = g; appends its report."""
        z, c, fz = graph
        batch = self.bad.shape
        B, n = batch.numel(), g.shape[len(batch) :].numel()
        b = g.reshape(B, n)
        skip = self.bad.reshape(B) | ~b.isfinite().all(dim=1)
        b = b.masked_fill(skip[:, None], 0)
        scale = b.abs().amax(dim=1)  # the squares of a small cotangent would underflow
        scale = torch.where(scale > 0, scale, 1)
        b = b / scale[:, None]

        most = self.tol**0.5 * vector_norm(b, dim=1)

        def accepted(residual: Tensor, u: Tensor) -> Tensor:
            return residual <= torch.minimum(self.tol * vector_norm(u, dim=1), most)

        if self.method is None and self.direct:
            J = jacobian(lambda z: self.at(z, c), z, state_ndim=z.ndim - len(batch))
            J = J.reshape(B, n, n)
            A = torch.eye(n, dtype=z.dtype, device=z.device) - (J.mT if transposed else J)
            u, _ = torch.linalg.solve_ex(A, b)
            u = torch.where(u.isfinite().all(dim=1, keepdim=True), u, 0)
            residual = vector_norm(b - (A @ u[..., None])[..., 0], dim=1)
            status = torch.where(accepted(residual, u), Status.CONVERGED, Status.STALLED)
            iterations = torch.full_like(status, n)
        else:
            out, of = fz, z
            if not transposed:  # J v is the derivative of Jᵀw in w, at any w
                with torch.enable_grad():
                    of = torch.zeros_like(fz).requires_grad_()
                    (out,) = _vjp(fz, [z], of)

            def J_times(v: Tensor) -> Tensor:
                return _vjp(out, [of], v.reshape(g.shape))[0].reshape(B, n)

            if self.method is None:
                u, residual, iterations, status = _bicgstab(
                    lambda v: v - J_times(v), b, accepted, self.max_iter
                )
            else:
                found = solve(
                    lambda v: b + J_times(v),
                    b,
                    method=self.method,
                    tol=self.tol,
                    atol=0.0,
                    max_iter=self.max_iter,
                    throw=False,
                )
                u, residual, iterations, status = (
                    found.z, found.residual, found.iterations, found.status
                )  # fmt: skip
                huge = found.converged & ~accepted(residual, u)
                status = torch.where(huge, Status.STALLED, status)

        failed = torch.where(self.bad, self.forward.status, Status.NOT_FINITE).reshape(B)
        norm = vector_norm(g.reshape(B, n), dim=1).nan_to_num(nan=torch.inf)
        report = LinearSolve(
            residual=torch.where(skip, norm, scale * residual).reshape(batch),
            iterations=torch.where(skip, 0, iterations).reshape(batch),
            status=torch.where(skip, failed, status).reshape(batch),
            transposed=transposed,
        )
        self.reports.append(report)
        if self.throw and not report.converged.all():
            raise NotConvergedError(
                f"adjoint of an equilibrium, tol={self.tol:.3g}, max_iter={self.max_iter}", report
            )
        return (scale[:, None] * u).reshape(g.shape)


# ------------------------------------------------------------------- the implicit function theorem


def _vjp(out: Tensor, inputs: Sequence[Tensor], v: Tensor) -> list[Tensor]:
    """vᵀ ∂out/∂input for each input; recorded if and only if gradients are enabled."""
    if not out.requires_grad:
        return [torch.zeros_like(t) for t in inputs]
    return list(
        torch.autograd.grad(
            out,
            inputs,
            v,
            create_graph=torch.is_grad_enabled(),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    )


def _graph(problem: _Problem, z: Tensor, c: Sequence[Tensor]) -> Graph:
    """Aliases of z and c and the graph of f between them.

    A gradient with respect to an alias is partial: it does not see that z depends on c.
    """
    with torch.enable_grad():
        z, c = z.view_as(z), [t.view_as(t) for t in c]
        return z, c, problem.at(z, c)


class _Implicit(torch.autograd.Function):
    """The identity on the equilibrium z, with the derivative dz = (I − J)⁻¹ ∂_c f dc."""

    @staticmethod
    def forward(ctx: Any, problem: _Problem, z: Tensor, *c: Tensor) -> Tensor:
        z = z.clone()
        ctx.problem = problem
        ctx.save_for_backward(z, *c)  # z is saved as this function's output: it depends on c
        return z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        problem, (z, *c) = ctx.problem, ctx.saved_tensors
        z_, c_, fz = _graph(problem, z, c)
        u = _Solve.apply(problem, (z_, c_, fz), True, g, z, *c)
        grads = _vjp(fz, c_, u)
        if problem.bad.any() and not all(t.isfinite().all() for t in grads):
            raise FloatingPointError(
                "f's gradient is not finite although its failed samples were given the weight 0; "
                "remove them from the batch"
            )
        return None, None, *grads


class _Solve(torch.autograd.Function):
    """u = (I − Jᵀ)⁻¹ g if transposed, (I − J)⁻¹ g if not, differentiable in g, z and c."""

    @staticmethod
    def forward(
        ctx: Any,
        problem: _Problem,
        graph: Graph,
        transposed: bool,
        g: Tensor,
        z: Tensor,
        *c: Tensor,
    ) -> Tensor:
        u = problem.solve(graph, g, transposed)
        ctx.problem, ctx.transposed = problem, transposed
        ctx.save_for_backward(u, z, *c)
        return u

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple:
        # (I − Jᵀ) du = dg + d(Jᵀ) u. With (I − J) v = h this is ⟨h, du⟩ = ⟨v, dg⟩ + ⟨v, d(Jᵀ) u⟩,
        # and the last term is the derivative of ⟨Jᵀ a, b⟩ at a = u, b = v held fixed. Without the
        # transpose u and v change places.
        problem, (u, z, *c) = ctx.problem, ctx.saved_tensors
        z_, c_, fz = _graph(problem, z, c)
        v = _Solve.apply(problem, (z_, c_, fz), not ctx.transposed, h, z, *c)
        a, b = (u, v) if ctx.transposed else (v, u)
        with torch.enable_grad():
            (Ja,) = _vjp(fz, [z_], a)
        return None, None, None, v, *_vjp(Ja, [z_, *c_], b)


# ------------------------------------------------------------------------------- the Krylov method


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(dim=1, keepdim=True)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where that is not finite."""
    return (a / b).nan_to_num(0, 0, 0)


def _bicgstab(
    A: Map, b: Tensor, accepted: Callable[[Tensor, Tensor], Tensor], max_iter: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve A u = b, (samples, n), by products with A alone: BiCGStab, each sample by itself.

    The residual r that the recursion carries drifts from the true one. Where r claims success, or
    where the recursion breaks down, b − A u is computed afresh: it decides, and the sample starts
    again from it if it falls short. A start that gained nothing on the one before is STALLED.

    Returns u (the best point whose true residual was computed), ‖b − A u‖, the products used, and
    the status. Source: van der Vorst, Bi-CGSTAB, SISSC 1992.
    """
    eps = torch.finfo(b.dtype).eps
    best, residual = torch.zeros_like(b), vector_norm(b, dim=1)
    done = accepted(residual, best)
    status = torch.where(done, Status.CONVERGED, Status.MAX_ITER)
    active = ~done
    iterations = torch.zeros_like(status)  # of finished samples; before that, true residuals formed
    asked = products = 0
    r = torch.where(active[:, None], b, 0)  # 0 in a finished sample, and so are p, v, s and t
    u, shadow, p, rho, least = best.clone(), r, r.clone(), _dot(r, r), eps * residual
    running = bool(active.any())
    while running:
        v = A(p)
        alpha = _ratio(rho, _dot(shadow, v))
        s = torch.addcmul(r, alpha, v, value=-1)
        t = A(s)
        omega = _ratio(_dot(t, s), _dot(t, t))
        u.addcmul_(alpha, p).addcmul_(omega, s)
        r = torch.addcmul(s, omega, t, value=-1)
        rho, rho_old = _dot(shadow, r), rho
        beta = _ratio(rho, rho_old) * _ratio(alpha, omega)
        p.addcmul_(omega, v, value=-1).mul_(beta).add_(r)
        products += 2

        size = vector_norm(r, dim=1)
        healthy = (rho.abs() > (least * size)[:, None]) & (beta != 0) & beta.isfinite()
        ask = active & (accepted(size, u) | ~healthy[:, 0])
        last = torch.zeros_like(active)
        if products + asked + 3 > max_iter:
            last = active & (products + iterations + 3 > max_iter)
            ask |= last
        if ask.any():
            true = b - A(torch.where(ask[:, None], u, 0))
            size = vector_norm(true, dim=1)
            asked += 1
            iterations += ask.to(iterations.dtype)
            done = ask & accepted(size, u)
            gained = ask & (size < 0.9 * residual)
            keep = ask & (done | (size < residual))
            best, residual = torch.where(keep[:, None], u, best), torch.where(keep, size, residual)
            status = torch.where(done, Status.CONVERGED, status)
            status = torch.where(ask & ~done & ~gained & ~last, Status.STALLED, status)
            ends = done | (ask & ~gained) | last
            iterations += products * ends
            active = active & ~ends
            again, on = (ask & active)[:, None], active[:, None]
            r = torch.where(again, true, torch.where(on, r, 0))
            p = torch.where(again, true, torch.where(on, p, 0))
            shadow = torch.where(again, true, torch.where(on, shadow, 0))
            rho = _dot(shadow, r)
            least = eps * vector_norm(shadow, dim=1)
            running = bool(active.any())
    return best, residual, iterations, status
