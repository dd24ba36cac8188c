"""The implicit layer z = tanh(W z + x), forward and backward.

Every contender gets the same W, x and cotangent and returns z and the gradients in W and x. The
reference is float64: z by Picard down to rounding, the adjoint by its own iteration down to
rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from benchmarks.timing import Contender, best_peer
from deqlib.fixed_point import Anderson, Method, Picard
from deqlib.implicit import Equilibrium, equilibrium

SIZES = ((64, 64), (256, 256), (1024, 256))  # (state, batch)
RATES = (0.5, 0.95)
TARGET = (1e-6, 1e-6)
"""Largest relative residual of a sample; relative error of the gradients in W and in x."""
MAX_ITER = 1000
LOOPED = 20

Result = tuple[Tensor, Tensor, Tensor]


class Problem(NamedTuple):
    W: Tensor
    x: Tensor
    c: Tensor  # the cotangent: the loss is ⟨c, z⟩


def problem(n: int, batch: int, rho: float, seed: int = 0) -> Problem:
    """W normal, scaled to spectral radius rho; x normal with deviation 0.3; c normal."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(n, n, generator=g, dtype=torch.float64)
    W = W * (rho / torch.linalg.eigvals(W).abs().max())
    x = 0.3 * torch.randn(batch, n, generator=g, dtype=torch.float64)
    return Problem(W, x, torch.randn(batch, n, generator=g, dtype=torch.float64))


def to_rounding(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    for _ in range(5000):
        z, old = f(z), z
        if vector_norm(z - old) <= 1e-14 * vector_norm(z):
            return z
    raise RuntimeError("the reference did not converge")


def reference(p: Problem) -> Result:
    z = to_rounding(lambda z: torch.tanh(z @ p.W.T + p.x), torch.zeros_like(p.x))
    slope = 1 - z * z
    u = to_rounding(lambda u: p.c + (slope * u) @ p.W, p.c)
    return z, (slope * u).T @ z, slope * u


def errors(p: Problem, exact: Result) -> Callable[[Result], tuple[float, float]]:
    def measure(found: Result) -> tuple[float, float]:
        z, *grads = found
        gap = vector_norm(torch.tanh(z @ p.W.T + p.x) - z, dim=1) / vector_norm(z, dim=1)
        off = [
            float(vector_norm(g - e) / vector_norm(e))
            for g, e in zip(grads, exact[1:], strict=True)
        ]
        return float(gap.max()), max(off)

    return measure


# ---------------------------------------------------------------------------------- in torch


def leaves(p: Problem) -> tuple[Tensor, Tensor]:
    return p.W.clone().requires_grad_(), p.x.clone().requires_grad_()


def finish(z: Tensor, W: Tensor, x: Tensor, c: Tensor) -> Result:
    z.backward(c)
    assert W.grad is not None
    assert x.grad is not None
    return z.detach(), W.grad, x.grad


DEQLIB: dict[str, tuple[Method, Method | None]] = {  # the forward method and the adjoint's
    "deqlib, Picard": (Picard(), None),
    "deqlib, Picard, every 4": (Picard(every=4), None),
    "deqlib, Picard twice": (Picard(), Picard()),
    "deqlib, Picard twice, every 4": (Picard(every=4), Picard(every=4)),
    "deqlib, Anderson": (Anderson(), None),
}


def with_deqlib(p: Problem, tol: float, name: str) -> Result:
    W, x = leaves(p)
    return finish(solved(lambda z: torch.tanh(z @ W.T + x), p, tol, name).z, W, x, p.c)


def solved(
    f: Callable[[Tensor], Tensor], p: Problem, tol: float, name: str, z0: Tensor | None = None
) -> Equilibrium:
    method, adjoint = DEQLIB[name]
    z0 = torch.zeros_like(p.x) if z0 is None else z0
    return equilibrium(f, z0, method=method, tol=tol, max_iter=MAX_ITER, adjoint=adjoint)


def evaluations(p: Problem, tol: float, name: str) -> int:
    """Of f and of products with its Jacobian, forward and backward."""
    W, x = leaves(p)
    e = solved(lambda z: torch.tanh(z @ W.T + x), p, tol, name)
    e.z.backward(p.c)
    return int(e.forward.iterations.max()) + int(e.adjoint[0].iterations.max())


def unrolled(p: Problem, tol: float) -> Result:
    """Picard under autograd: the gradient of the iterates, all of which are kept."""
    W, x = leaves(p)
    z = torch.zeros_like(x)
    for _ in range(MAX_ITER):
        z, old = torch.tanh(z @ W.T + x), z
        with torch.no_grad():
            if (vector_norm(z - old, dim=1) <= tol * vector_norm(z, dim=1)).all():
                break
    return finish(z, W, x, p.c)


def hand_written(p: Problem, tol: float, every: int = 4) -> Result:
    """The layer's own derivative, in place, checked every few steps: for this layer alone."""
    z, f = torch.tanh(p.x), torch.empty_like(p.x)
    for k in range(MAX_ITER):
        torch.addmm(p.x, z, p.W.T, out=f).tanh_()
        z, f = f, z
        if k % every == 0 and (vector_norm(f - z, dim=1) <= tol * vector_norm(z, dim=1)).all():
            break
    slope, u = 1 - z * z, p.c
    for k in range(MAX_ITER):
        u, old = torch.addmm(p.c, slope * u, p.W), u
        if k % every == 0 and (vector_norm(u - old, dim=1) <= tol * vector_norm(u, dim=1)).all():
            break
    return z, (slope * u).T @ z, slope * u


def direct(p: Problem, tol: float) -> Result:
    """Newton with every sample's Jacobian formed and factored, forward and backward."""
    z, eye = torch.zeros_like(p.x), torch.eye(len(p.W), dtype=p.W.dtype)
    for _ in range(MAX_ITER):
        f = torch.tanh(z @ p.W.T + p.x)
        A = eye - (1 - f * f)[:, :, None] * p.W
        if (vector_norm(f - z, dim=1) <= tol * vector_norm(z, dim=1)).all():
            break
        z = z + torch.linalg.solve(A, f - z)
    slope = 1 - f * f
    u = torch.linalg.solve(A.mT, p.c)
    return z, (slope * u).T @ z, slope * u


def with_torchdeq(p: Problem, tol: float, solver: str) -> Result:
    W, x = leaves(p)
    z, _ = deq(solver, tol)(lambda z: torch.tanh(z @ W.T + x), torch.zeros_like(x))
    return finish(z[-1], W, x, p.c)


@cache
def deq(solver: str, tol: float) -> Any:
    import torchdeq

    return torchdeq.get_deq(
        ift=True,
        f_solver=solver,
        b_solver=solver,
        f_max_iter=MAX_ITER,
        b_max_iter=MAX_ITER,
        f_tol=tol,
        b_tol=tol,
        f_stop_mode="rel",
        b_stop_mode="rel",
    ).train()


# ------------------------------------------------------------------------------------ in jax


@cache
def compiled(package: str, tol: float) -> Callable:
    """(W, x, c) ↦ (z, gradients), compiled; both of the package's tolerances follow ``tol``."""
    import jax
    import jax.numpy as jnp

    def f(z: Any, W: Any, x: Any) -> Any:
        return jnp.tanh(z @ W.T + x)

    if package.startswith("jaxopt"):
        import jaxopt

        linear = {"CG": "solve_normal_cg", "BiCGStab": "solve_bicgstab"}[package.split()[-1]]
        solver = jaxopt.FixedPointIteration(
            f,
            maxiter=MAX_ITER,
            tol=tol,
            implicit_diff_solve=partial(getattr(jaxopt.linear_solve, linear), tol=tol),
        )

        def solve(W: Any, x: Any) -> Any:
            return solver.run(jnp.zeros_like(x), W, x).params
    else:
        import lineax
        import optimistix

        norm = optimistix.two_norm
        adjoint = optimistix.ImplicitAdjoint(lineax.BiCGStab(tol, tol, norm))

        def solve(W: Any, x: Any) -> Any:
            return optimistix.fixed_point(
                lambda z, args: f(z, *args),
                optimistix.FixedPointIteration(tol, tol),
                jnp.zeros_like(x),
                (W, x),
                max_steps=MAX_ITER,
                adjoint=adjoint,
                throw=False,
            ).value

    def loss(W: Any, x: Any, c: Any) -> Any:
        z = solve(W, x)
        return (z * c).sum(), z

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def arrays(p: Problem) -> list[Any]:
    import jax

    jax.config.update("jax_enable_x64", True)  # before the first array
    return jax.block_until_ready([jax.dlpack.from_dlpack(t) for t in p])


@cache
def compiled_f() -> Callable:
    import jax
    import jax.numpy as jnp

    def loop(W: Any, x: Any, z: Any) -> Any:
        return jax.lax.fori_loop(0, LOOPED, lambda _, z: jnp.tanh(z @ W.T + x), z)

    f = jax.jit(loop)
    return lambda W, x, z: jax.block_until_ready(f(W, x, z))


def with_jax(p: Problem, tol: float, package: str) -> Result:
    import jax

    (_, z), (gW, gx) = jax.block_until_ready(compiled(package, tol)(*arrays(p)))
    return tuple(torch.from_dlpack(a) for a in (z, gW, gx))  # type: ignore[return-value]


# --------------------------------------------------------------------------------- the rows


def contenders(p: Problem) -> list[Contender]:
    """Whoever can be imported, on one problem."""
    found = errors(p, reference(p))
    ways: list[tuple[str, str, str, Callable[..., Result], tuple]] = [
        *((name, "deqlib", "torch", with_deqlib, (name,)) for name in DEQLIB),
        ("unrolled autograd", "peer", "torch", unrolled, ()),
        ("torchdeq, Picard", "peer", "torchdeq", with_torchdeq, ("fixed_point_iter",)),
        ("torchdeq, Anderson", "peer", "torchdeq", with_torchdeq, ("anderson",)),
        ("jaxopt, normal CG", "peer", "jaxopt", with_jax, ("jaxopt CG",)),
        ("jaxopt, BiCGStab", "peer", "jaxopt", with_jax, ("jaxopt BiCGStab",)),
        ("optimistix, BiCGStab", "peer", "optimistix", with_jax, ("optimistix",)),
        ("hand-written loop", "reference", "torch", hand_written, ()),
    ]
    if len(p.W) <= 64:
        ways.append(("direct solve", "peer", "torch", direct, ()))
    everyone = [
        Contender(name, lambda tol, way=way, args=args: way(p, tol, *args), found, role)
        for name, role, package, way, args in ways
        if find_spec(package)
    ]
    return everyone + one_evaluation(p)


def one_evaluation(p: Problem) -> list[Contender]:
    """tanh(z Wᵀ + x) once, called in torch and in a compiled loop: what the kernels make of it."""
    z = p.c
    once = [
        Contender("one f in torch", lambda _: torch.tanh(z @ p.W.T + p.x), role="reference", tol=0)
    ]
    held: list[Any] = []

    def in_xla(_: float) -> Any:
        if not held:  # jax is not imported before it runs
            held.extend(arrays(p))
        return compiled_f()(*held)

    if find_spec("jax"):
        once.append(Contender("one f in XLA", in_xla, role="reference", tol=0, scale=1 / LOOPED))
    return once


def why(p: Problem, contenders: list[Contender]) -> str:
    """Where deqlib's time goes on this problem, from the times themselves."""
    time = {c.name: median(c.seconds) for c in contenders}
    ours = min((c for c in contenders if c.role == "deqlib"), key=lambda c: time[c.name])
    peer = best_peer(contenders)
    count = evaluations(p, ours.tol, ours.name)
    kernels = count * time["one f in torch"]
    said = [
        f"{count} evaluations and products with the Jacobian, each at the time of one f in torch, "
        f"are {kernels / time[ours.name]:.2f} of deqlib's time"
    ]
    if peer is not None:
        said[0] += f" and {kernels / time[peer.name]:.2f} times all of the peer's"
    if "one f in XLA" in time:
        share = time["one f in XLA"] / time["one f in torch"]
        said.append(f"one f in a compiled loop takes {share:.2f} of its time in torch")
    return "; ".join(said)
