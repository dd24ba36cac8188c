"""Solve z = f(z) for a whole batch of states, each by itself, and say how it ended.

Three methods, in the order of the book:

    Picard      z ← z + β (f(z) − z)                     linear rate, one evaluation a step
    Anderson    extrapolates the last few Picard steps   faster where Picard crawls
    Newton      z ← z + t (I − J)⁻¹ (f(z) − z)           quadratic rate, small states only

Nothing is shared between the samples of a batch: a sample stops when it has converged or failed,
stays where it is from then on, and would have given the same answer alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from math import inf, isfinite
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.linalg import vector_norm

Map = Callable[[Tensor], Tensor]
# (z, g, ‖g‖) with g = f(z) − z, all (samples, n), ↦ the next z; a row of NaN says "I am stuck".
Step = Callable[[Tensor, Tensor, Tensor], Tensor]

GROWTH = 1e8
"""A residual above GROWTH · (1 + ‖z0‖ + ‖f(z0) − z0‖) counts as divergence."""


class Status(IntEnum):
    """How the solve of one sample ended."""

    CONVERGED = 0
    MAX_ITER = 1
    DIVERGED = 2
    NOT_FINITE = 3
    STALLED = 4

    @property
    def sentence(self) -> str:
        return {
            Status.CONVERGED: "converged",
            Status.MAX_ITER: "reached max_iter",
            Status.DIVERGED: "diverged",
            Status.NOT_FINITE: "met NaN or infinity",
            Status.STALLED: "stalled at a singular Jacobian or at rounding level",
        }[self]


@dataclass(frozen=True)
class FixedPoint:
    """What `solve` returns.

    z           (*batch, *state)  the point; where a sample failed, the point of smallest residual
    residual    (*batch)          ‖f(z) − z‖₂ of exactly this z; infinite if f(z0) was not finite
    iterations  (*batch) int64    evaluations of f that the sample used
    status      (*batch) int64    one `Status` a sample
    """

    z: Tensor
    residual: Tensor
    iterations: Tensor
    status: Tensor

    @property
    def converged(self) -> Tensor:
        """(*batch) bool."""
        return self.status == Status.CONVERGED


class NotConvergedError(RuntimeError):
    """Some samples did not converge; `result` holds what was found, status by status."""

    def __init__(self, what: str, result: Any) -> None:
        status, residual = result.status.flatten(), result.residual.flatten()
        failed = status != Status.CONVERGED
        counts = ((s, int((status == s).sum())) for s in Status if s != Status.CONVERGED)
        reasons = ", ".join(f"{count} {s.sentence}" for s, count in counts if count)
        super().__init__(
            f"{what}: {int(failed.sum())} of {status.numel()} samples did not converge "
            f"({reasons}); largest residual {float(residual[failed].max()):.3g}, "
            f"most iterations {int(result.iterations.max())}"
        )
        self.result = result


def default_tol(dtype: torch.dtype) -> float:
    """eps^(2/3): 3.7e-11 in float64, 2.4e-5 in float32. The relative tolerance if none is given."""
    return float(torch.finfo(dtype).eps) ** (2 / 3)


# ------------------------------------------------------------------------------------- the methods


class Method(Protocol):
    """A rule for the next point.

    descends  whether a bad trial point is the method's own to repair
    every     a step moves on by so many evaluations of f, the one at its start included
    """

    descends: ClassVar[bool]

    @property
    def every(self) -> int: ...

    def start(self, f: Map, z: Tensor) -> Step:
        """Begin at z (samples, n); f maps (samples, n) to itself. Returns the step with memory."""
        ...


@dataclass(frozen=True)
class Picard:
    """z ← z + β (f(z) − z). Where every eigenvalue of (1 − β) I + βJ at the equilibrium is below 1
    in modulus, a start close enough converges.

    damping  β > 0; 1 is the plain iteration z ← f(z).
    every    `solve` judges every so many-th point only, at least 1. Where f is a few operations on
             small tensors, judging costs as much as f, and 4 saves much of it at the price of up to
             three evaluations too many.
    """

    damping: float = 1.0
    every: int = 1
    descends: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _positive("damping", self.damping)
        _count("every", self.every)

    def start(self, f: Map, z: Tensor) -> Step:
        def step(z: Tensor, g: Tensor, r: Tensor) -> Tensor:
            first = z = g.mul_(self.damping).add_(z)
            for _ in range(self.every - 1):
                z = torch.lerp(z, f(z), self.damping)
            if z is not first and not z.isfinite().all():  # then it is judged before it gets there
                z = torch.where(z.isfinite().all(dim=1, keepdim=True), z, first)
            return z

        return step


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration (type II), with safeguards.

    With g_k = f(z_k) − z_k and the last differences as columns of ΔZ and ΔG,

        γ = argmin ‖g − ΔG γ‖²,     z ← z + β g − (ΔZ + β ΔG) γ.

    The normal equations are solved with the columns of ΔG scaled to length one, so that an old,
    long difference does not drown a new, short one, and with `ridge` added to the diagonal of the
    Gram matrix, which is then 1: the ridge is relative, and the units of f do not matter. A sample
    takes the Picard step instead where the Gram matrix is singular or where the extrapolation is
    not finite or longer than TRUST · ‖g‖; it forgets its history where its residual has become
    more than 10 times the one before.

    memory   number of differences kept, at least 1
    ridge    at least 0; None means eps^(2/3) of the dtype
    damping  β > 0

    Source: Walker and Ni, Anderson acceleration for fixed-point iterations, SINUM 2011.
    """

    memory: int = 5
    ridge: float | None = None
    damping: float = 1.0
    descends: ClassVar[bool] = False
    every: ClassVar[int] = 1
    TRUST: ClassVar[float] = 1e6

    def __post_init__(self) -> None:
        _count("memory", self.memory)
        _positive("damping", self.damping)
        if self.ridge is not None and not (isfinite(self.ridge) and self.ridge >= 0):
            raise ValueError(f"ridge is {self.ridge}; it must be None or a finite number >= 0")

    def start(self, f: Map, z: Tensor) -> Step:
        m, beta = self.memory, self.damping
        ridge = default_tol(z.dtype) if self.ridge is None else self.ridge
        dG = z.new_zeros(z.shape[0], m, z.shape[1])  # rows are the differences; a zero row is free
        dP = torch.zeros_like(dG)  # those of the Picard steps z + β g, ΔZ + β ΔG
        gram = z.new_zeros(z.shape[0], m, m)  # ΔG ΔGᵀ, a row and a column of which change in a step
        eye = ridge * torch.eye(m, dtype=z.dtype, device=z.device)
        k, p_old, g_old, r_old = 0, z, z, vector_norm(z, dim=1)

        def step(z: Tensor, g: Tensor, r: Tensor) -> Tensor:
            nonlocal k, p_old, g_old, r_old
            p = torch.add(z, g, alpha=beta)
            if k > 0:
                i = (k - 1) % m
                torch.sub(p, p_old, out=dP[:, i])
                torch.sub(g, g_old, out=dG[:, i])
                wild = r > 10 * r_old
                if wild.any():
                    dP[wild], dG[wild], gram[wild] = 0, 0, 0
                gram[:, i] = gram[:, :, i] = (dG @ dG[:, i, :, None])[..., 0]
            k, p_old, g_old, r_old = k + 1, p, g, r
            length = gram.diagonal(dim1=1, dim2=2).sqrt()
            free = length == 0  # its γ is 0, whatever
            length = torch.where(free, 1, length)[..., None]
            Q = gram / length / length.mT + torch.diag_embed(free.to(z.dtype)) + eye
            L, info = torch.linalg.cholesky_ex(Q)
            gamma = torch.cholesky_solve(dG @ g[..., None] / length, L) / length
            to = torch.baddbmm(p[:, None], gamma.mT, dP, alpha=-1)[:, 0]
            sound = (info == 0) & (vector_norm(to - z, dim=1) <= self.TRUST * r)  # NaN is not
            return torch.where(sound[:, None], to, p)

        return step


@dataclass(frozen=True)
class Newton:
    """z ← z + t s with (I − J) s = f(z) − z, J = ∂f/∂z; t = 1, ½, ¼, … until ‖f(z) − z‖ falls.

    J is formed by n products a step (n = size of the state), which `iterations` does not count:
    it counts the points at which f was evaluated. A trial point where f is not finite is a step
    too long. A sample whose I − J is singular, or for which no t ≥ 2⁻³⁰ lowers the residual, is
    STALLED.
    """

    descends: ClassVar[bool] = True
    every: ClassVar[int] = 1

    def start(self, f: Map, z: Tensor) -> Step:
        base, s, r_base = z, torch.zeros_like(z), z.new_full(z.shape[:1], inf)
        t = torch.ones_like(r_base)

        def step(z: Tensor, g: Tensor, r: Tensor) -> Tensor:
            nonlocal base, s, r_base, t
            better = r < (1 - 1e-4 * t) * r_base  # false for NaN
            if better.any():
                A = torch.eye(z.shape[1], dtype=z.dtype, device=z.device) - jacobian(f, z)
                new, _ = torch.linalg.solve_ex(A, g)  # not finite where A is singular
                base = torch.where(better[:, None], z, base)
                s = torch.where(better[:, None], new, s)
                r_base = torch.where(better, r, r_base)
            t = torch.where(better, 1.0, t / 2)
            return torch.where(t[:, None] < 2.0**-30, torch.nan, base + t[:, None] * s)

        return step


METHODS: dict[str, Callable[[], Method]] = {
    "picard": Picard,
    "anderson": Anderson,
    "newton": Newton,
}


def jacobian(f: Map, z: Tensor, *, state_ndim: int = 1) -> Tensor:
    """J[..., i, j] = ∂f_i/∂z_j of every sample: (*batch, n, n), n the number of state entries.

    The samples must be independent, as in `solve`: one reverse pass of f then gives row i of all
    of them. The result carries no gradient.
    """
    batch, n = z.shape[: z.ndim - state_ndim], z.shape[z.ndim - state_ndim :].numel()
    J = z.new_zeros(*batch, n, n)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        fz = f(z)
        if fz.requires_grad:  # else f is constant
            rows = fz.reshape(*batch, n)
            for i in range(n):
                one = torch.zeros_like(rows)
                one[..., i] = 1
                (row,) = torch.autograd.grad(
                    rows, z, one, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                J[..., i, :] = row.reshape(*batch, n)
    return J


def solve(
    f: Map,
    z0: Tensor,
    *,
    method: str | Method = "anderson",
    tol: float | None = None,
    atol: float | None = None,
    max_iter: int = 1000,
    state_ndim: int = 1,
    throw: bool = True,
) -> FixedPoint:
    """Find z with ‖f(z) − z‖₂ ≤ tol ‖z‖₂ + atol, in every sample of the batch.

    The promise is about the residual. Where f is a contraction with factor ρ < 1, the error obeys
    ‖z − z*‖ ≤ ‖f(z) − z‖ / (1 − ρ). Nothing is recorded for autograd: see `implicit.equilibrium`.

    f           maps (*batch, *state) to the same shape, each sample by itself
    z0          (*batch, *state) where to start, float32 or float64, finite
    method      "picard", "anderson", "newton", or a Picard(...), Anderson(...), Newton()
    tol         relative tolerance, at least eps of the dtype; None means eps^(2/3)
    atol        absolute tolerance, for equilibria at 0; None means 10 eps
    max_iter    most evaluations of f
    state_ndim  how many trailing dimensions make up the state of one sample; 0 for scalar states
    throw       whether to raise NotConvergedError if any sample fails, or only to report it

    Returns a `FixedPoint`. A converged sample's z is the point at which the criterion held. A
    failed sample's z is the point of smallest residual among those tried (z0 if f(z0) was not
    finite): always finite. A sample fails as DIVERGED where its residual exceeds
    GROWTH · (1 + ‖z0‖ + ‖f(z0) − z0‖), as NOT_FINITE where f returns NaN or infinity, as STALLED
    where Newton cannot go on, and as MAX_ITER otherwise. The others do not notice.

    Raises TypeError or ValueError for wrong input, NotConvergedError as `throw` says.
    """
    method = checked_method(method)
    tol, atol = _tolerances(z0, tol, atol, state_ndim)
    _count("max_iter", max_iter)
    batch = z0.shape[: z0.ndim - state_ndim]
    B, n = batch.numel(), z0.shape[z0.ndim - state_ndim :].numel()

    def flat(v: Tensor) -> Tensor:
        fv = f(v.reshape(z0.shape))
        _same_kind(fv, z0)
        return fv.reshape(B, n)

    with torch.no_grad():
        z = best = z0.detach().reshape(B, n)
        residual = z.new_full((B,), inf)  # of best
        status = torch.full((B,), Status.MAX_ITER, device=z.device)
        iterations = torch.zeros_like(status)  # of the finished samples, until the loop is over
        active, all_active = torch.ones_like(status, dtype=torch.bool), True
        limit = GROWTH * (1 + vector_norm(z, dim=1))
        step = method.start(flat, z)

        def settle(which: Tensor, verdict: Status, evaluations: int) -> None:
            nonlocal status, active, all_active, iterations
            ends = active & which
            status = torch.where(ends, verdict, status)
            iterations = torch.where(ends, evaluations, iterations)
            active = active & ~which
            all_active = all_active and bool(active.all())

        for k in range(0, max_iter if B else 0, method.every):  # k evaluations came before
            g = flat(z) - z
            r = vector_norm(g, dim=1)
            size = vector_norm(z, dim=1)
            enough = atol + tol * size
            better = r < residual
            # As most steps go: every sample is better than ever and not yet done. Then nothing
            # ends, for a residual below an earlier one is finite and below the limit.
            usual = better & (r > enough)
            if k > 0 and bool((usual if all_active else usual | ~active).all()):
                best = z  # where a sample has finished, z is its best point
                residual = r if all_active else torch.where(active, r, residual)
            else:
                if not size.isfinite().all():
                    settle(~z.isfinite().all(dim=1), Status.STALLED, k)
                done = (r <= enough) & size.isfinite()
                keep = active & (done | better)
                best, residual = torch.where(keep[:, None], z, best), torch.where(keep, r, residual)
                settle(done, Status.CONVERGED, k + 1)
                if k == 0:
                    limit = (limit + GROWTH * r).clamp(max=torch.finfo(z.dtype).max)
                within = (r <= limit) & size.isfinite()  # then f(z) is finite too
                if (k == 0 or not method.descends) and not (within | ~active).all():
                    settle(~g.isfinite().all(dim=1), Status.NOT_FINITE, k + 1)
                    settle(~within, Status.DIVERGED, k + 1)
                if not active.any():
                    break
            if k + method.every >= max_iter:
                iterations = torch.where(active, k + 1, iterations)
                break
            z = step(z, g, r) if all_active else torch.where(active[:, None], step(z, g, r), best)

    per_sample = (a.reshape(batch) for a in (residual, iterations, status))
    result = FixedPoint(best.reshape(z0.shape), *per_sample)
    if throw and not result.converged.all():
        raise NotConvergedError(f"solve with {method}, tol={tol:.3g}, max_iter={max_iter}", result)
    return result


# ---------------------------------------------------------------------------- refusing wrong input


def checked_method(method: str | Method, argument: str = "method") -> Method:
    """The method of that name, or the method itself; ``argument`` is what an error calls it."""
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"{argument} is {method!r}; it must be one of {sorted(METHODS)}")
        return METHODS[method]()
    if not callable(getattr(method, "start", None)):
        raise TypeError(
            f"{argument} is {method!r}; it must be a name or a Picard, Anderson or Newton"
        )
    return method


def _tolerances(z0: Tensor, tol: float | None, atol: float | None, k: int) -> tuple[float, float]:
    if not isinstance(z0, Tensor):
        raise TypeError(f"z0 is a {type(z0).__name__}; it must be a tensor")
    if z0.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"z0 has dtype {z0.dtype}; it must be float32 or float64")
    if not z0.isfinite().all():
        raise ValueError("z0 holds NaN or infinity; every entry must be finite")
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= z0.ndim:
        raise ValueError(
            f"state_ndim is {k!r}; it must be an integer from 0 to {z0.ndim}, "
            f"the number of dimensions of z0"
        )
    eps = torch.finfo(z0.dtype).eps
    tol = default_tol(z0.dtype) if tol is None else tol
    atol = 10 * eps if atol is None else atol
    if not eps <= tol < 1:
        raise ValueError(
            f"tol is {tol}; it must be below 1 and at least {eps:.3g}, what {z0.dtype} can resolve"
        )
    if not (isfinite(atol) and atol >= 0):
        raise ValueError(f"atol is {atol}; it must be a finite number >= 0")
    return tol, atol


def _same_kind(fz: Tensor, z0: Tensor) -> None:
    if not isinstance(fz, Tensor):
        raise TypeError(f"f returned a {type(fz).__name__}; it must return a tensor")
    for name in ("shape", "dtype", "device"):
        was, must = getattr(fz, name), getattr(z0, name)
        if was != must:
            kind = ValueError if name == "shape" else TypeError
            if name == "shape":
                was, must = tuple(was), tuple(must)
            raise kind(f"f(z) has {name} {was}; it must be that of z0, {must}")


def _positive(name: str, value: float) -> None:
    if not (isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; it must be a finite number > 0")


def _count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be an integer >= 1")
