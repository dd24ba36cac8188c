"""What a user of deqlib can do for speed, one thing at a time, and what each gave.

Every lever runs beside the same work without it, at the same accuracy, and counts only what is done
again at every call: a program that needs compiling is compiled before. A lever that does not run on
this machine (torch.compile asks for a C++ compiler) is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks import flows, layer, training
from benchmarks.layer import Problem, Result
from benchmarks.timing import Contender
from deqlib import linear
from deqlib.fixed_point import solve
from deqlib.linear import LinearDEQ

PLAIN = "as it comes"

# ---------------------------------------------------------------------------- the implicit layer


@cache
def compiled(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(f)  # not before it is used: only to import the compiler takes seconds


def tanh_layer(z: Tensor, W: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(z @ W.T + x)


def with_compiled_f(p: Problem, tol: float) -> Result:
    W, x = layer.leaves(p)
    f = compiled(tanh_layer)
    return layer.finish(layer.solved(lambda z: f(z, W, x), p, tol, "deqlib, Picard").z, W, x, p.c)


def problem_last(p: Problem, tol: float) -> Result:
    """The samples are the columns in memory; deqlib sees the transposed view."""
    W, x = layer.leaves(p)
    z0 = torch.zeros_like(p.x.T.contiguous()).T
    f = lambda z: torch.tanh(W @ z.T + x.T).T  # noqa: E731
    return layer.finish(layer.solved(f, p, tol, "deqlib, Picard", z0).z, W, x, p.c)


def from_float32(p: Problem, tol: float) -> Result:
    """The forward solve starts at the equilibrium of the same layer in float32."""
    W, x = layer.leaves(p)
    W32, x32 = p.W.float(), p.x.float()
    near = solve(
        lambda z: torch.tanh(z @ W32.T + x32),
        torch.zeros_like(x32),
        method="picard",
        tol=max(tol, 1e-6),
    ).z.double()
    f = lambda z: torch.tanh(z @ W.T + x)  # noqa: E731
    return layer.finish(layer.solved(f, p, tol, "deqlib, Picard", near).z, W, x, p.c)


def warm(p: Problem, before: Tensor, tol: float) -> Result:
    """The forward solve starts at the equilibrium before W changed a little."""
    W, x = layer.leaves(p)
    f = lambda z: torch.tanh(z @ W.T + x)  # noqa: E731
    return layer.finish(layer.solved(f, p, tol, "deqlib, Picard", before).z, W, x, p.c)


def of_the_layer(p: Problem) -> list[Contender]:
    found = layer.errors(p, layer.reference(p))
    step = 1e-3 * torch.randn(p.W.shape, generator=torch.Generator().manual_seed(2)).double()
    before = layer.reference(p._replace(W=p.W * (1 + step)))[0]
    ways = {
        PLAIN: lambda tol: layer.with_deqlib(p, tol, "deqlib, Picard"),
        "judged every 4th evaluation": lambda tol: layer.with_deqlib(
            p, tol, "deqlib, Picard, every 4"
        ),
        "adjoint iterated too": lambda tol: layer.with_deqlib(p, tol, "deqlib, Picard twice"),
        "both": lambda tol: layer.with_deqlib(p, tol, "deqlib, Picard twice, every 4"),
        "f compiled by torch": partial(with_compiled_f, p),
        "problems last in memory": partial(problem_last, p),
        "started from float32": partial(from_float32, p),
        "started from before a small change of W": partial(warm, p, before),
    }
    return [Contender(name, run, found) for name, run in ways.items()]


# -------------------------------------------------------------------------------- training, flows


def of_training(p: int, d: int, steps: int) -> list[Contender]:
    start, S, A, eta = training.problem(p, d)
    exact = training.by_hand(start, S, A, eta, steps)
    errors = partial(training.distance, start, exact)
    apart = {"grad": lambda theta: linear.gradient(theta, S, A)}
    together = {"loss_and_grad": lambda theta: linear.loss_and_gradient(theta, S, A)}
    run = partial(training.with_deqlib, start, S, A, eta, steps)
    return [
        Contender(PLAIN, lambda _: run(**apart), errors, tol=0),
        Contender("loss and gradient share one LU", lambda _: run(**together), errors, tol=0),
    ]


def written_out(y: Tensor, S: Tensor, A: Tensor) -> Tensor:
    """The gradient for p = 2, with problems last: y (4 + 2d, N), S (d, d, N), A (2, d, N).

    P⁻¹ is the adjugate over the determinant, and every operation is elementwise over the problems.
    """
    a, b, c, e = 1 - y[0], -y[1], -y[2], 1 - y[3]  # P = [[a, b], [c, e]]
    det = a * e - b * c
    U = y[4:].reshape(2, -1, y.shape[1])
    F = torch.stack([e * U[0] - b * U[1], a * U[1] - c * U[0]]) / det
    G = ((F - A)[:, :, None] * S).sum(1)
    q = torch.stack([e * G[0] - c * G[1], a * G[1] - b * G[0]]) / det
    W = (q[:, None] * F[None]).sum(2)
    return torch.cat([W.reshape(4, -1), q.reshape(-1, y.shape[1])])


def of_flows(count: int) -> list[Contender]:
    start, S, A = flows.problems(count)
    errors = flows.distance(flows.with_deqlib(start, S, A, 1e-12))
    S_last, A_last = (t.movedim(0, -1).contiguous() for t in (S, A))
    shapes = [t.shape for t in start]

    def with_gradient(prepared: Callable[..., Callable], tol: float) -> Tensor:
        rule = prepared(written_out)

        def grad(theta: LinearDEQ) -> LinearDEQ:
            y = flows.joined(theta).T.contiguous()
            W, U = rule(y, S_last, A_last).T.split([4, len(y) - 4], dim=1)
            return LinearDEQ(W.reshape(shapes[0]), U.reshape(shapes[1]))

        return flows.with_deqlib(start, S, A, tol, grad)

    return [
        Contender(PLAIN, lambda tol: flows.with_deqlib(start, S, A, tol), errors),
        Contender("problems last, P⁻¹ written out", partial(with_gradient, lambda f: f), errors),
        Contender(
            "the same, compiled by torch",
            partial(with_gradient, compiled),
            errors,
        ),
    ]
