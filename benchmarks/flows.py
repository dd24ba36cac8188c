"""A thousand gradient flows of linear deep equilibrium models to t = 5, at equal accuracy.

Error: the largest relative distance, over the problems, of an end point from a run at a tolerance
of 1e-12. The loop of scipy integrations runs some of the problems, drawn at random, and its time is
scaled up to all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from benchmarks.timing import Contender
from deqlib import linear
from deqlib.dynamics import gradient_flow
from deqlib.linear import LinearDEQ

TARGET = (1e-6,)
T_END = 5.0


def problems(count: int, p: int = 2, d: int = 3) -> tuple[LinearDEQ, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    start = linear.random_start(g, p, d, batch=(count,))
    A = torch.randn(count, p, d, generator=g, dtype=torch.float64)
    return start, linear.second_moment(torch.randn(count, 20, d, generator=g).double()), A


def joined(theta: LinearDEQ) -> Tensor:
    return torch.cat([theta.W.flatten(1), theta.U.flatten(1)], dim=1)


def with_deqlib(
    start: LinearDEQ,
    S: Tensor,
    A: Tensor,
    tol: float,
    grad: Callable[[LinearDEQ], LinearDEQ] | None = None,
) -> Tensor:
    end = gradient_flow(
        lambda theta: linear.loss(theta, S, A),
        start,
        T_END,
        grad=grad or (lambda theta: linear.gradient(theta, S, A)),
        times=torch.tensor([T_END], dtype=torch.float64),
        rtol=tol,
        atol=tol,
        batch_ndim=1,
        dense=False,
        progress=False,
    ).end
    return joined(end)


def distance(exact: Tensor) -> Callable[[Tensor], tuple[float]]:
    return lambda end: (float(((end - exact).norm(dim=1) / exact.norm(dim=1)).max()),)


def contenders(count: int, looped: int) -> list[Contender]:
    start, S, A = problems(count)
    p, d = start.U.shape[-2:]
    flow = partial(with_deqlib, start, S, A)
    exact = flow(1e-12)
    some = torch.randperm(count, generator=torch.Generator().manual_seed(1))[:looped]

    def errors(end: Tensor) -> tuple[float]:
        return distance(exact if len(end) == count else exact[some])(end)

    y0, Sn, An = joined(start).numpy(), S.numpy(), A.numpy()

    def one_by_one(tol: float) -> Tensor:
        ends = []
        for i in some.tolist():

            def field(t: float, y: np.ndarray, S: Any = Sn[i], A: Any = An[i]) -> np.ndarray:
                W, U = y[: p * p].reshape(p, p), y[p * p :].reshape(p, d)
                P = np.eye(p) - W
                F = np.linalg.solve(P, U)
                q = np.linalg.solve(P.T, (F - A) @ S)
                return -np.concatenate([(q @ F.T).ravel(), q.ravel()])

            run = solve_ivp(field, (0, T_END), y0[i], "DOP853", rtol=tol, atol=tol, t_eval=[T_END])
            ends.append(run.y[:, -1])
        return torch.tensor(np.array(ends))

    def with_diffrax(tol: float) -> Tensor:
        import jax

        jax.config.update("jax_enable_x64", True)
        arrays = [jax.dlpack.from_dlpack(t.contiguous()) for t in (joined(start), S, A)]
        return torch.from_dlpack(jax.block_until_ready(compiled(p, d, tol)(*arrays)))

    ways = [
        Contender("deqlib, one batched run", flow, errors, "deqlib"),
        Contender("loop of scipy DOP853", one_by_one, errors, scale=count / looped),
    ]
    if find_spec("diffrax"):
        ways.append(Contender("diffrax, vmapped Dopri8", with_diffrax, errors))
    return ways


@cache
def compiled(p: int, d: int, tol: float) -> Any:
    import diffrax
    import jax
    import jax.numpy as jnp

    def field(t: Any, y: Any, args: Any) -> Any:
        S, A = args
        W, U = y[: p * p].reshape(p, p), y[p * p :].reshape(p, d)
        P = jnp.eye(p) - W
        F = jnp.linalg.solve(P, U)
        q = jnp.linalg.solve(P.T, (F - A) @ S)
        return -jnp.concatenate([(q @ F.T).ravel(), q.ravel()])

    def run(y: Any, S: Any, A: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri8(),
            0.0,
            T_END,
            0.01,
            y,
            (S, A),
            stepsize_controller=diffrax.PIDController(rtol=tol, atol=tol),
            max_steps=100_000,
            adjoint=diffrax.DirectAdjoint(),
        ).ys[0]

    return jax.jit(jax.vmap(run))
