r"""The six tasks of the problem set: how to draw an instance, and how to judge an answer.

A task is one function that the student writes. ``draw`` makes its calls from a generator: the
arguments, and the parts in which the answer is judged. What is right is computed by deqlib, in the
process of the grader; the student's process sees the arguments of one call at a time and nothing
else. A part returns None where the answer is right, and otherwise a sentence about what is wrong
that does not give the right answer away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from deqlib import fixed_point, linear, rates, single_index
from deqlib.activations import LINKS
from deqlib.linear import LinearDEQ

TIGHT = 1e-6
"""Relative error allowed: five digits below what two sound float64 methods differ by."""

Judge = Callable[[Any], str | None]


@dataclass(frozen=True)
class Part:
    """Points for one property of an answer."""

    name: str
    points: int
    judge: Judge


@dataclass(frozen=True)
class Call:
    """One call of the student's function, and how its result is judged."""

    arguments: dict[str, Any]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Task:
    """One function of the problem set."""

    name: str
    title: str
    draw: Callable[[Generator], list[Call]]

    @property
    def points(self) -> int:
        calls = self.draw(torch.Generator().manual_seed(0))
        return sum(part.points for call in calls for part in call.parts)


# --- reading an answer -------------------------------------------------------------------------


def entry(value: Any, key: str) -> Any:
    """``value[key]``, or a sentence as a ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"returned {_kind(value)}; a dict with the key {key!r} is due")
    if key not in value:
        raise ValueError(f"returned a dict without the key {key!r}")
    return value[key]


def array(value: Any, shape: tuple[int, ...], name: str) -> Tensor:
    """Nested lists of numbers as a finite float64 tensor of this shape."""
    try:
        found = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name} is {_kind(value)}; numbers are due") from None
    if found.shape != shape:
        due = f"shape {shape}" if shape else "a single number"
        raise ValueError(f"{name} has shape {tuple(found.shape)}; {due} is due")
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity")
    return found


def _kind(value: Any) -> str:
    return "nothing (None)" if value is None else f"a {type(value).__name__}"


def _wrong(found: Tensor, right: Tensor, name: str, allowed: float) -> str | None:
    scale = max(float(torch.linalg.vector_norm(right)), 1e-8)
    error = float(torch.linalg.vector_norm(found - right)) / scale
    if error <= allowed:
        return None
    return f"{name} is off by {error:.1e} of its size; {allowed:.0e} is allowed"


def near(key: str, right: Tensor, points: int, what: str, allowed: float = TIGHT) -> Part:
    """The entry ``key`` must be ``right`` up to a relative error."""

    def judge(value: Any) -> str | None:
        return _wrong(array(entry(value, key), tuple(right.shape), key), right, key, allowed)

    return Part(what, points, judge)


def equal(key: str, right: bool | str, points: int, what: str) -> Part:
    """The entry ``key`` must be this word or truth value."""

    def judge(value: Any) -> str | None:
        found = entry(value, key)
        if type(found) is not type(right):
            kind = "True or False" if isinstance(right, bool) else "a string"
            return f"{key} is {_kind(found)}; {kind} is due"
        return None if found == right else f"{key} is {found!r}, which is not so here"

    return Part(what, points, judge)


# --- drawing -----------------------------------------------------------------------------------


def normal(g: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def uniform(g: Generator, low: float, high: float) -> float:
    return float(low + (high - low) * torch.rand((), generator=g, dtype=torch.float64))


def with_norm(W: Tensor, norm: float) -> Tensor:
    return W * (norm / float(torch.linalg.matrix_norm(W, 2)))


def orthogonal(g: Generator, n: int) -> Tensor:
    return torch.linalg.qr(normal(g, n, n))[0]


def moment(g: Generator, d: int, kappa: float) -> Tensor:
    """A second moment with condition number ``kappa``."""
    Q = orthogonal(g, d)
    values = torch.logspace(0, 1, d, base=kappa, dtype=torch.float64)
    S = (Q * values) @ Q.mT
    return (S + S.mT) / 2


# --- task 1: solve -----------------------------------------------------------------------------


def draw_solve(g: Generator) -> list[Call]:
    n, tol = 6, 1e-10
    W, b = with_norm(normal(g, n, n), uniform(g, 0.5, 0.9)), normal(g, n)

    def layer(z: Tensor) -> Tensor:
        return torch.tanh(z @ W.mT + b)

    exact = fixed_point.solve(layer, torch.zeros(1, n, dtype=W.dtype), tol=1e-14, atol=1e-14).z[0]
    arguments = {"W": W, "b": b, "tol": tol, "max_steps": 1000}

    def true_residual(value: Any, W: Tensor, b: Tensor) -> float:
        z = array(entry(value, "z"), (n,), "z")
        return float(torch.linalg.vector_norm(torch.tanh(W @ z + b) - z))

    def reported(W: Tensor, b: Tensor) -> Judge:
        def judge(value: Any) -> str | None:
            said = float(array(entry(value, "residual"), (), "residual"))
            true = true_residual(value, W, b)
            if abs(said - true) <= 1e-12 + 1e-3 * true:
                return None
            return f"reports the residual {said:.1e}, but that of the z it returns is {true:.1e}"

        return judge

    good = Call(
        arguments,
        (
            near("z", exact, 3, "finds the equilibrium of a contraction"),
            Part("reports the residual of the z that it returns", 2, reported(W, b)),
            equal("converged", True, 1, "says that it has converged"),
        ),
    )
    # −Q diag(c) Qᵀ with c > 1: one equilibrium, which the layers step over for ever. After 7 steps
    # they have not settled on a cycle yet, so the residuals of neighbouring states differ.
    Q = orthogonal(g, n)
    scales = torch.tensor([uniform(g, 1.5, 3.0) for _ in range(n)], dtype=torch.float64)
    V, c = -(Q * scales) @ Q.mT, 0.05 * normal(g, n)

    def no_lie(value: Any) -> str | None:
        true, said = true_residual(value, V, c), entry(value, "converged")
        if not isinstance(said, bool):
            return f"converged is {_kind(said)}; True or False is due"
        if said != (true <= tol):
            return f"says converged = {said}, but the residual of its z is {true:.1e}"
        return None

    hard = Call(
        {"W": V, "b": c, "tol": tol, "max_steps": 7},
        (
            Part("does not call a failure a success (layers that oscillate)", 3, no_lie),
            Part("reports the residual of its z there, too", 1, reported(V, c)),
        ),
    )
    return [good, hard]


# --- task 2: differentiate ---------------------------------------------------------------------


def draw_gradient(g: Generator) -> list[Call]:
    n, d = 5, 3
    calls = []
    for norm, what, points in [
        (uniform(g, 0.6, 0.9), "of a contraction", (2, 2, 1)),
        (uniform(g, 4.0, 6.0), "where repeating the layer does not converge", (2, 2, 1)),
    ]:
        W, U, x, v = with_norm(normal(g, n, n), norm), normal(g, n, d), normal(g, d), normal(g, n)
        z = torch.tanh(0.4 * normal(g, n))
        b = torch.atanh(z) - W @ z - U @ x  # so z is an equilibrium, whatever W is
        D = torch.diag(1 - z.square())
        q = D @ torch.linalg.solve(torch.eye(n, dtype=z.dtype) - (D @ W).mT, v)
        calls.append(
            Call(
                {"z": z, "W": W, "U": U, "b": b, "x": x, "v": v},
                (
                    near("b", q, points[0], f"gradient in b, {what}"),
                    near("W", torch.outer(q, z), points[1], f"gradient in W, {what}"),
                    near("U", torch.outer(q, x), points[2], f"gradient in U, {what}"),
                ),
            )
        )
    return calls


# --- task 3: the invariant as a detective ------------------------------------------------------


def draw_conservation(g: Generator) -> list[Call]:
    p, d = 2, 3
    S, A = moment(g, d, 5.0), normal(g, p, d)
    start = linear.random_start(g, p, d)
    calls = []
    kinds = ["flow", "descent", "other"]
    for i in torch.randperm(3, generator=g).tolist():
        kind = kinds[i]
        path = [start]
        eta = 0.2 / float(sum(rates.local_smoothness(start, S, A)))
        for _ in range(40):
            path.append(_advance(path[-1], eta, kind, S, A))
        W, U = torch.stack([t.W for t in path]), torch.stack([t.U for t in path])
        C = linear.invariant(LinearDEQ(W, U))
        drift = torch.linalg.matrix_norm(C - C[0]).amax() / torch.linalg.matrix_norm(C[0])
        name = {"flow": "an exact flow", "descent": "descent", "other": "weight decay"}[kind]
        parts = [equal("kind", kind, 2, f"recognises {name}")]
        if kind != "flow":  # the flow's drift is rounding, and has no digits
            parts.append(near("drift", drift, 2, f"measures the drift along {name}"))
        calls.append(Call({"W": W, "U": U}, tuple(parts)))
    return calls


def _advance(theta: LinearDEQ, eta: float, kind: str, S: Tensor, A: Tensor) -> LinearDEQ:
    if kind == "flow":  # N moves by a rotation of its row space: NNᵀ is kept exactly
        g, N = linear.gradient(theta, S, A), linear.rows(theta)
        G = torch.cat([-g.W, g.U], dim=-1)
        p = N.shape[-2]
        pinv = torch.linalg.pinv(N)
        turn = pinv @ G - (pinv @ G).mT
        N = N @ torch.linalg.matrix_exp(-eta * turn)
        return LinearDEQ(torch.eye(p, dtype=N.dtype) - N[:, :p], N[:, p:])
    g = linear.gradient(theta, S, A)
    kept = 1 - (0.2 * eta if kind == "other" else 0.0)
    return LinearDEQ(kept * theta.W - eta * g.W, kept * theta.U - eta * g.U)


# --- task 4: where the flow ends ---------------------------------------------------------------


def draw_limit(g: Generator) -> list[Call]:
    calls = []
    for side, what in [
        (uniform(g, -0.5, 0.6), "start with a < 1"),
        (uniform(g, 1.4, 2.5), "start beyond the wall, a > 1"),
        (uniform(g, -9.0, -6.0), "start far out"),
    ]:
        d = 3
        a = torch.tensor(side, dtype=torch.float64)
        u, A = normal(g, d), normal(g, d)
        end = linear.sphere_limit(LinearDEQ(a.reshape(1, 1), u.reshape(1, d)), A.reshape(1, d))
        first = what == "start with a < 1"
        parts = [
            near("a", end.W.reshape(()), 2 if first else 1, f"a at the end, {what}"),
            near("u", end.U.reshape(d), 1, f"u at the end, {what}"),
            equal("picard", bool(abs(end.W) < 1), 1, f"whether layers converge there, {what}"),
        ]
        calls.append(Call({"a": a, "u": u, "A": A}, tuple(parts)))
    return calls


# --- task 5: step sizes ------------------------------------------------------------------------


def draw_steps(g: Generator) -> list[Call]:
    calls = []
    for d, points in [(1, (2, 2, 1)), (4, (2, 2, 1))]:
        S, A = uniform(g, 0.5, 2.0) * moment(g, d, 8.0), normal(g, 1, d)
        a, u = torch.tensor(uniform(g, -0.5, 0.5), dtype=torch.float64), normal(g, 1, d)
        theta = LinearDEQ(a.reshape(1, 1), u)
        omega, gamma = rates.local_smoothness(theta, S, A)
        end = linear.sphere_limit(theta, A)
        edge = 2 / rates.hessian_spectrum(end, S, A)[1]
        size = "one input" if d == 1 else f"{d} inputs"
        calls.append(
            Call(
                {"a": a, "u": u.reshape(d), "A": A.reshape(d), "S": S},
                (
                    near("edge", edge, points[0], f"the edge at the flow's end, {size}"),
                    near(
                        "proved",
                        1 / (4 * rates.smoothness(theta, S, A)),
                        points[1],
                        f"the step proved safe, {size}",
                    ),
                    near(
                        "local", 1 / (2 * omega + 4 * gamma), points[2], f"the local step, {size}"
                    ),
                ),
            )
        )
    return calls


# --- task 6: the learned link and one-point monotonicity ---------------------------------------


def draw_one_point(g: Generator) -> list[Call]:
    calls = []
    link = LINKS["tanh"]
    for low, high, what, points in [
        (-0.8, 0.7, "a moderate self-weight", (2, 2, 1)),
        (-60.0, -30.0, "a self-weight far below -1", (2, 2, 1)),
    ]:
        d, n = 2, 12
        theta = single_index.SingleIndexDEQ(
            torch.tensor(uniform(g, low, high), dtype=torch.float64), normal(g, d)
        )
        target = single_index.SingleIndexDEQ(
            torch.tensor(uniform(g, -0.5, 0.6), dtype=torch.float64), normal(g, d)
        )
        X = normal(g, n, d)
        u = single_index.preactivation(link, theta.a, single_index.index(theta, X))
        z, y = link(u), single_index.predict(link, target, X)
        D = single_index.slope(link, theta.a, u)
        grad = single_index.gradient(link, theta, X, y)
        delta = single_index.flat(theta) - single_index.flat(target)
        inner = (single_index.flat(grad) * delta).sum()
        bound = (1 - target.a) * (D * (z - y).square()).mean()
        calls.append(
            Call(
                {"a": theta.a, "w": theta.w, "a_star": target.a, "w_star": target.w, "X": X},
                (
                    near("z", z, points[0], f"the equilibria, {what}"),
                    near("inner", inner, points[1], f"the inner product, {what}"),
                    near("bound", bound, points[2], f"its lower bound, {what}"),
                ),
            )
        )
    return calls


TASKS = (
    Task("solve_equilibrium", "Solve, and say how it went", draw_solve),
    Task("implicit_gradient", "Differentiate without a tape", draw_gradient),
    Task("conservation_report", "The invariant as a detective", draw_conservation),
    Task("predict_limit", "Foretell the end of training", draw_limit),
    Task("step_sizes", "Three step sizes", draw_steps),
    Task("one_point", "Never away from the target", draw_one_point),
)


def calls(seed: int) -> Iterator[tuple[Task, list[Call]]]:
    """All tasks with the instances of this seed; each task has a generator of its own."""
    for number, task in enumerate(TASKS):
        yield task, task.draw(torch.Generator().manual_seed(seed * len(TASKS) + number))
