"""Training a linear deep equilibrium model: gradient descent on the population loss.

The hand-written loop knows the formula of the gradient and nothing else: no refusal of wrong
input, no stop at a loss that is not finite. The matrix products alone are those of one step,
(F − A) S and q Fᵀ, with their operands given.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Contender
from deqlib import linear, rates
from deqlib.dynamics import gradient_descent
from deqlib.linear import LinearDEQ

SIZES = ((10, 10), (100, 100), (500, 500))  # (state p, inputs d)
TARGET = (1e-9,)  # relative distance of the end points from the reference loop's


def problem(p: int, d: int, seed: int = 0) -> tuple[LinearDEQ, Tensor, Tensor, float]:
    g = torch.Generator().manual_seed(seed)
    start = linear.random_start(g, p, d)
    A = torch.randn(p, d, generator=g, dtype=torch.float64) / d**0.5
    S = linear.second_moment(torch.randn(4 * d, d, generator=g, dtype=torch.float64))
    return start, S, A, float(1 / (4 * rates.smoothness(start, S, A)))


def by_hand(start: LinearDEQ, S: Tensor, A: Tensor, eta: float, steps: int) -> LinearDEQ:
    W, U, eye = start.W, start.U, torch.eye(len(start.W), dtype=start.W.dtype)
    for _ in range(steps):
        LU, pivots = torch.linalg.lu_factor(eye - W)
        F = torch.linalg.lu_solve(LU, pivots, U)
        q = torch.linalg.lu_solve(LU, pivots, (F - A) @ S, adjoint=True)
        W, U = W - eta * (q @ F.T), U - eta * q
    return LinearDEQ(W, U)


def with_autograd(start: LinearDEQ, S: Tensor, A: Tensor, eta: float, steps: int) -> LinearDEQ:
    W, U, eye = start.W, start.U, torch.eye(len(start.W), dtype=start.W.dtype)
    for _ in range(steps):
        W, U = W.detach().requires_grad_(), U.detach().requires_grad_()
        E = torch.linalg.solve(eye - W, U) - A
        gW, gU = torch.autograd.grad(0.5 * ((E @ S) * E).sum(), (W, U))
        with torch.no_grad():
            W, U = W - eta * gW, U - eta * gU
    return LinearDEQ(W, U)


def with_deqlib(
    start: LinearDEQ, S: Tensor, A: Tensor, eta: float, steps: int, **gradient: Any
) -> LinearDEQ:
    return gradient_descent(
        lambda theta: linear.loss(theta, S, A),
        start,
        eta,
        steps,
        record_every=steps,
        progress=False,
        **gradient,
    ).end


def distance(start: LinearDEQ, exact: LinearDEQ, end: LinearDEQ) -> tuple[float]:
    moved = torch.cat([(exact.W - start.W).flatten(), (exact.U - start.U).flatten()])
    off = torch.cat([(end.W - exact.W).flatten(), (end.U - exact.U).flatten()])
    return (float(off.norm() / moved.norm()),)


def contenders(p: int, d: int, steps: int) -> list[Contender]:
    start, S, A, eta = problem(p, d)
    exact = by_hand(start, S, A, eta, steps)
    errors = partial(distance, start, exact)
    both = lambda theta: linear.loss_and_gradient(theta, S, A)  # noqa: E731
    run = partial(with_deqlib, start, S, A, eta, steps, loss_and_grad=both)

    def products(_: float) -> LinearDEQ:
        for _ in range(steps):
            _, _ = start.U @ S, start.U @ A.T
        return exact

    return [  # nothing to tune: every step is exact
        Contender("deqlib", lambda _: run(), errors, "deqlib", tol=0),
        Contender("hand-written loop", lambda _: by_hand(start, S, A, eta, steps), errors, tol=0),
        Contender("autograd", lambda _: with_autograd(start, S, A, eta, steps), errors, tol=0),
        Contender("matrix products alone", products, errors, "reference", tol=0),
    ]
