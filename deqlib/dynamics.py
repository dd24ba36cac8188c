"""Gradient flow and gradient descent, many problems at once.

Parameters are a tuple (or NamedTuple) of tensors that share their first ``batch_ndim``
dimensions: one entry of the batch is one problem, with its own loss and its own fate. A problem
whose loss stops being finite is frozen at its last finite point and reported; the others go on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from scipy.integrate import DOP853
from torch import Tensor
from tqdm import tqdm  # not tqdm.auto: its notebook bar ignores "only in a terminal"

Params = TypeVar("Params", bound=tuple[Tensor, ...])
Loss = Callable[[Params], Tensor]
Gradient = Callable[[Params], Params]
LossAndGradient = Callable[[Params], tuple[Tensor, Params]]


class Outcome(IntEnum):
    """How a problem's run ended."""

    FINISHED = 0
    NOT_FINITE = 1
    """The loss or the parameters stopped being finite."""
    STUCK = 2
    """The integrator could not go on: a singularity, or its cap on steps."""


class RunStoppedError(RuntimeError):
    """Some problem did not finish. ``trajectory`` holds everything that was computed."""

    def __init__(self, message: str, trajectory: Trajectory[Any]) -> None:
        super().__init__(message)
        self.trajectory = trajectory


@dataclass(frozen=True)
class Trajectory(Generic[Params]):
    """A recorded run.

    t       : (T,) times of a flow, step numbers of a descent.
    theta   : the parameters' own tuple type; each tensor has shape (T, *batch, …).
    loss    : (T, *batch).
    outcome : (*batch) of `Outcome`.
    stopped : (*batch) time (or step) of the last valid point; t[-1] where the run finished.
    steps   : steps taken (an integrator's accepted steps, or descent steps).
    """

    t: Tensor
    theta: Params
    loss: Tensor
    outcome: Tensor
    stopped: Tensor
    steps: int
    dense: Callable[[float], Params] | None = field(default=None, repr=False)

    @property
    def finished(self) -> Tensor:
        """(*batch) bool: the run reached its end with a finite loss."""
        return self.outcome == Outcome.FINISHED

    @property
    def end(self) -> Params:
        """The parameters at the last record."""
        return _like(self.theta, [part[-1] for part in self.theta])

    def at(self, t: float) -> Params:
        """The parameters of a flow at any t in [0, t_end], from dense output of order 7."""
        if self.dense is None:
            raise ValueError(
                "this trajectory has no dense output (a descent, or a flow run with dense=False); "
                "index theta by record instead"
            )
        return self.dense(t)


def _like(theta: Params, parts: Sequence[Tensor]) -> Params:
    """A tuple of the same type as theta with other tensors."""
    make: Any = type(theta)
    return make(*parts) if hasattr(theta, "_fields") else make(parts)


def _check(theta: tuple[Tensor, ...], batch_ndim: int) -> torch.Size:
    if not isinstance(theta, tuple) or not theta or not all(torch.is_tensor(p) for p in theta):
        raise TypeError(f"theta0 is a {type(theta).__name__}; it must be a tuple of tensors")
    shapes = [tuple(p.shape) for p in theta]
    if batch_ndim < 0 or any(len(s) < batch_ndim or s[:batch_ndim] != shapes[0][:batch_ndim]
                             for s in shapes):  # fmt: skip
        raise ValueError(
            f"theta0 has tensors of shapes {shapes}; their first batch_ndim = {batch_ndim} "
            "dimensions must exist and agree"
        )
    for i, p in enumerate(theta):
        if not p.dtype.is_floating_point or not bool(p.isfinite().all()):
            raise ValueError(f"theta0[{i}] must hold finite floating-point numbers")
        if p.dtype != theta[0].dtype or p.device != theta[0].device:
            raise ValueError(
                f"theta0[{i}] is {p.dtype} on {p.device} and theta0[0] is {theta[0].dtype} on "
                f"{theta[0].device}; all must agree"
            )
        if p.numel() == 0:
            raise ValueError(f"theta0[{i}] has shape {tuple(p.shape)}; it must not be empty")
    return theta[0].shape[:batch_ndim]


def _spread(mask: Tensor, part: Tensor) -> Tensor:
    """A (*batch) tensor with trailing axes, so that it broadcasts against one parameter."""
    return mask.reshape(mask.shape + (1,) * (part.ndim - mask.ndim))


def _finite(theta: tuple[Tensor, ...], value: Tensor) -> Tensor:
    """(*batch) bool: loss and parameters are finite."""
    ok = value.isfinite()
    for part in theta:
        ok = ok & part.isfinite().reshape(*value.shape, -1).all(-1)
    return ok


def _evaluate(loss: Loss[Params], theta: Params, batch: torch.Size) -> Tensor:
    return _one_each("loss", loss(theta), batch)


def _one_each(name: str, value: Tensor, batch: torch.Size) -> Tensor:
    if value.shape != batch:
        raise ValueError(
            f"{name} returned shape {tuple(value.shape)}; with this batch it must be {tuple(batch)}"
        )
    return value


def autograd(loss: Loss[Params]) -> Gradient[Params]:
    """The gradient of each problem's loss by automatic differentiation.

    A parameter that the loss does not use has gradient 0.
    """

    return lambda theta: _autograd_both(loss)(theta)[1]


def _autograd_both(loss: Loss[Params]) -> LossAndGradient[Params]:
    """Each problem's loss and its gradient from one evaluation."""

    def both(theta: Params) -> tuple[Tensor, Params]:
        with torch.enable_grad():
            parts = [p.detach().requires_grad_() for p in theta]
            value = loss(_like(theta, parts))
            grads = torch.autograd.grad(value.sum(), parts, materialize_grads=True)
        return value.detach(), _like(theta, grads)

    return both


def _direction(loss: Loss[Params], grad: Gradient[Params] | None) -> Gradient[Params]:
    """The given gradient, its shapes checked at every call, or that of autograd."""
    if grad is None:
        return autograd(loss)

    return lambda theta: _as_shaped("grad", grad(theta), theta)


def _as_shaped(name: str, slope: Params, theta: Params) -> Params:
    """The slope as a tuple of theta's type, its shapes checked."""
    shapes = [tuple(p.shape) for p in slope]
    due = [tuple(p.shape) for p in theta]
    if shapes != due:
        raise ValueError(f"{name} returned shapes {shapes}; they must be {due}")
    return _like(theta, [p.detach() for p in slope])


def _report(trajectory: Trajectory[Params], throw: bool) -> Trajectory[Params]:
    bad = ~trajectory.finished
    if throw and bool(bad.any()):
        why = ", ".join(
            f"{int((trajectory.outcome == o).sum())} {o.name}"
            for o in (Outcome.NOT_FINITE, Outcome.STUCK)
            if bool((trajectory.outcome == o).any())
        )
        raise RunStoppedError(
            f"{int(bad.sum())} of {bad.numel()} problems did not finish ({why}); the first stopped "
            f"at t = {float(trajectory.stopped[bad].min()):.6g}. Pass throw=False to get the "
            "trajectory with its outcome, or take it from this error",
            trajectory,
        )
    return trajectory


# ----------------------------------------------------------------------------------------------
# Gradient flow
# ----------------------------------------------------------------------------------------------


def gradient_flow(
    loss: Loss[Params],
    theta0: Params,
    t_end: float,
    *,
    grad: Gradient[Params] | None = None,
    times: Tensor | None = None,
    rtol: float = 1e-9,
    atol: float = 1e-12,
    max_steps: int = 100_000,
    batch_ndim: int = 0,
    dense: bool = True,
    throw: bool = True,
    progress: bool | None = None,
) -> Trajectory[Params]:
    """Integrate θ̇ = −∇L(θ) from theta0 to time t_end with scipy's DOP853.

    Args:
        loss: θ ↦ (*batch), one loss a problem.
        theta0: tuple of tensors (*batch, …), finite.
        t_end: final time, positive.
        grad: θ ↦ ∇L(θ) as the same tuple; automatic differentiation of ``loss`` when absent. Any
            other direction may stand here: the run follows θ̇ = −grad(θ).
        times: increasing times in [0, t_end] to record; 101 equal ones when absent.
        rtol, atol: tolerance of every accepted step *for each problem*: the root mean square of
            (estimated error)/(atol + rtol·|θ|) over a problem's parameters stays below 1. (All
            problems share one step; the integrator's own norm runs over the whole batch, so both
            are divided by the square root of the number of problems; the quotient of rtol is kept
            above 1e-13, the least that rounding allows.) The integrator works in float64; loss
            and gradient are called in the dtype and on the device of theta0.
        max_steps: cap on accepted steps; what reaches it is `Outcome.STUCK`.
        batch_ndim: how many leading dimensions number the problems.
        dense: keep every step's interpolant for ``at(t)``. It costs three gradients and the
            memory of eight copies of θ a step; without it only ``times`` are kept.
        throw: raise when a problem does not finish; otherwise report it in ``outcome``.
        progress: show a bar; by default only in a terminal and after a second.

    Returns:
        `Trajectory`. A problem that stops early is frozen at its last valid point.

    Raises:
        RunStoppedError: with ``throw``, when a problem stops early (it holds the trajectory).
        ValueError, TypeError: for wrong input.
    """
    batch = _check(theta0, batch_ndim)
    if not 0 < t_end < float("inf"):
        raise ValueError(f"t_end is {t_end}; it must be positive and finite")
    if not (rtol > 0 and atol > 0 and max_steps >= 1):
        raise ValueError(
            f"rtol is {rtol}, atol {atol}, max_steps {max_steps}; all three must be positive"
        )
    like = theta0[0]
    if times is None:
        times = torch.linspace(0, t_end, 101, dtype=torch.float64)
    grid = times.detach().double().cpu()
    if grid.ndim != 1 or not (
        len(grid) and bool((grid.diff() > 0).all()) and grid[0] >= 0 and grid[-1] <= t_end
    ):
        raise ValueError(f"times must increase strictly within [0, t_end = {t_end}]")
    direction = _direction(loss, grad)

    # The integrator's state is (problems, n), float64, on the CPU.
    problems = batch.numel()
    sizes = [p.numel() // problems for p in theta0]

    def flatten(theta: Params) -> Tensor:
        joined = torch.cat([p.detach().reshape(problems, -1) for p in theta], dim=1)
        return joined.double().cpu()

    def unflatten(flat: Tensor) -> Params:
        parts = flat.to(like).split(sizes, dim=1)
        return _like(theta0, [x.reshape(p.shape) for x, p in zip(parts, theta0, strict=True)])

    def value(flat: Tensor) -> Tensor:
        with torch.no_grad():
            return _evaluate(loss, unflatten(flat), batch).reshape(problems).double().cpu()

    full = flatten(theta0).clone()
    if not bool(value(full).isfinite().all()):
        raise ValueError("theta0 has a loss that is not finite; start where the loss is finite")
    active = torch.ones(problems, dtype=torch.bool)
    outcome = torch.zeros(problems, dtype=torch.int64)
    stopped = torch.full((problems,), float(t_end), dtype=torch.float64)

    def rhs(_: float, y: np.ndarray) -> np.ndarray:
        moving = torch.from_numpy(y).reshape(-1, full.shape[1])
        if len(moving) == problems:
            return -flatten(direction(unflatten(moving.clone()))).reshape(-1).numpy()
        state = full.clone()
        state[active] = moving
        return -flatten(direction(unflatten(state)))[active].reshape(-1).numpy()

    # One piece a step: who moved, how, and the frozen states of the others.
    pieces: list[tuple[Tensor, Callable[[float], np.ndarray]]] = []
    ends: list[float] = []

    def between(piece: tuple[Tensor, Callable[[float], np.ndarray]], s: float) -> Tensor:
        moved, interpolant = piece
        state = full.clone()
        there = torch.from_numpy(interpolant(s)).reshape(-1, full.shape[1])
        going = stopped >= s
        state[moved & going] = there[going[moved]]
        return state

    records: list[Tensor] = []
    t, steps = 0.0, 0
    bar = tqdm(
        total=float(t_end), desc="gradient flow", delay=1.0, leave=False, unit="t",
        disable=None if progress is None else not progress,
    )  # fmt: skip
    while t < t_end and bool(active.any()):
        scale = float(active.sum()) ** 0.5
        with np.errstate(all="ignore"):
            solver = DOP853(
                rhs, t, full[active].reshape(-1).numpy(), t_end,
                rtol=max(rtol / scale, 1e-13), atol=atol / scale,
            )  # fmt: skip
            lost = torch.zeros_like(active)
            while solver.status == "running" and steps < max_steps and not bool(lost.any()):
                solver.step()
                if solver.status == "failed":
                    break
                steps += 1
                before = full.clone()
                full[active] = torch.from_numpy(solver.y).reshape(int(active.sum()), -1)
                lost = active & ~(value(full).isfinite() & full.isfinite().all(1))
                full[lost] = before[lost]
                outcome[lost], stopped[lost] = int(Outcome.NOT_FINITE), float(solver.t_old)
                bar.update(float(solver.t) - t)
                t = float(solver.t)
                wanted = len(records) < len(grid) and float(grid[len(records)]) <= t
                if dense or wanted:
                    piece = (active, solver.dense_output())
                    while len(records) < len(grid) and float(grid[len(records)]) <= t:
                        records.append(between(piece, float(grid[len(records)])))
                    if dense:
                        pieces.append(piece)
                        ends.append(t)
        if bool(lost.any()):
            active = active & ~lost
        elif solver.status == "failed":
            # The step size went to zero. The stages of the last trial step say whose fault it is:
            # they are not finite, or they spread most. Stop those problems, keep the others.
            stages = torch.from_numpy(solver.K).reshape(len(solver.K), -1, full.shape[1])
            spread = (stages - stages[0]).norm(dim=2).amax(0).nan_to_num(nan=torch.inf)
            culprits = active.nonzero().squeeze(1)[spread == spread.max()]
            outcome[culprits], stopped[culprits] = int(Outcome.STUCK), t
            active = active.clone()
            active[culprits] = False
        elif solver.status == "running":
            outcome[active], stopped[active] = int(Outcome.STUCK), t
            active = torch.zeros_like(active)
    bar.close()

    records += [full] * (len(grid) - len(records))  # after the last step nothing moves

    def at(s: float) -> Params:
        if not 0 <= s <= t_end:
            raise ValueError(f"t is {s}; it must lie in [0, {t_end}]")
        i = bisect_left(ends, s)
        return unflatten(between(pieces[i], s) if i < len(pieces) else full)

    record = torch.stack(records)
    theta = _like(
        theta0,
        [
            x.to(like).reshape(len(grid), *p.shape)
            for x, p in zip(record.split(sizes, dim=2), theta0, strict=True)
        ],
    )
    losses = torch.stack([value(x) for x in record]).to(like).reshape(len(grid), *batch)
    trajectory = Trajectory(
        t=grid,
        theta=theta,
        loss=losses,
        outcome=outcome.reshape(batch),
        stopped=stopped.reshape(batch),
        steps=steps,
        dense=at if dense else None,
    )
    return _report(trajectory, throw)


# ----------------------------------------------------------------------------------------------
# Gradient descent
# ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepState(Generic[Params]):
    """What a step rule may look at: step number, iterate, loss (*batch), gradient, last steps."""

    k: int
    theta: Params
    value: Tensor
    grad: Params
    last: Tensor | None
    loss: Loss[Params]


class StepRule(Protocol):
    """A step rule: the state of the run ↦ step sizes, one for all or of shape (*batch)."""

    def __call__(self, state: StepState[Any], /) -> Tensor | float: ...


@dataclass(frozen=True)
class Backtracking:
    """Armijo's rule: the largest η = grow·η_last·shrink^j with L(θ − η∇L) ≤ L − c η |∇L|².

    Each problem of the batch finds its own step. The first trial is ``initial``. Where the
    gradient is 0, or ``max_halvings`` reductions do not help, the step is 0 and the problem rests
    from then on: at a minimiser that is right, and elsewhere it shows in the recorded loss.
    (Armijo 1966; Nocedal and Wright, Numerical Optimization, algorithm 3.1.)
    """

    initial: float = 1.0
    shrink: float = 0.5
    grow: float = 2.0
    c: float = 1e-4
    max_halvings: int = 60

    def __post_init__(self) -> None:
        if not (self.initial > 0 and 0 < self.shrink < 1 <= self.grow and 0 < self.c < 1):
            raise ValueError(f"{self}; it must have initial > 0, 0 < shrink < 1 ≤ grow, 0 < c < 1")
        if self.max_halvings < 1:
            raise ValueError(f"max_halvings is {self.max_halvings}; it must be at least 1")

    def __call__(self, state: StepState[Any], /) -> Tensor:
        value = state.value
        squared = torch.zeros_like(value)
        for part in state.grad:
            squared = squared + part.square().reshape(*value.shape, -1).sum(-1)
        eta = torch.full_like(value, self.initial) if state.last is None else self.grow * state.last
        eta = torch.where(squared == 0, 0.0, eta)
        for _ in range(self.max_halvings):
            trial = state.loss(_moved(state.theta, state.grad, eta))
            # ``not ≤`` also refuses a loss that is NaN.
            refused = (eta > 0) & ~(trial <= value - self.c * eta * squared)
            if not bool(refused.any()):
                return eta
            eta = torch.where(refused, self.shrink * eta, eta)
        return torch.where(refused, torch.zeros_like(eta), eta)


def _moved(theta: Params, grad: Params, eta: Tensor) -> Params:
    """θ − η ∇L, with one step size a problem."""
    return _like(theta, [p - _spread(eta, p) * g for p, g in zip(theta, grad, strict=True)])


def gradient_descent(
    loss: Loss[Params],
    theta0: Params,
    step: float | Tensor | StepRule,
    steps: int,
    *,
    grad: Gradient[Params] | None = None,
    loss_and_grad: LossAndGradient[Params] | None = None,
    record_every: int = 1,
    batch_ndim: int = 0,
    throw: bool = True,
    progress: bool | None = None,
) -> Trajectory[Params]:
    """Iterate θ ← θ − η ∇L(θ).

    Args:
        loss: θ ↦ (*batch), one loss a problem.
        theta0: tuple of tensors (*batch, …), finite.
        step: a positive number; a tensor (*batch) of them; or a rule that maps a `StepState` to
            such numbers (0 is allowed: the problem rests), for example `Backtracking`.
        steps: how many, at least 1.
        grad: θ ↦ ∇L(θ) as the same tuple; automatic differentiation of ``loss`` when absent.
        loss_and_grad: θ ↦ (loss(θ), ∇L(θ)), where the two share work; in place of ``grad``.
        record_every: keep every so many iterates (the first and the last are always kept).
        batch_ndim: how many leading dimensions number the problems.
        throw: raise when a loss stops being finite; otherwise report it in ``outcome``.
        progress: show a bar; by default only in a terminal and after a second.

    Returns:
        `Trajectory` whose ``t`` counts steps. A problem whose next loss is not finite stays at its
        last finite iterate; when all have stopped the run ends early.

    Raises:
        RunStoppedError: with ``throw``, when a problem stops early (it holds the trajectory).
        ValueError, TypeError: for wrong input.
    """
    batch = _check(theta0, batch_ndim)
    if grad is not None and loss_and_grad is not None:
        raise ValueError("grad and loss_and_grad are both given; give one of them")
    if steps < 1 or record_every < 1:
        raise ValueError(f"steps is {steps} and record_every {record_every}; both must be positive")
    constant: Tensor | None = None
    if callable(step):
        rule: StepRule = step
    else:
        constant = torch.as_tensor(step, dtype=theta0[0].dtype, device=theta0[0].device)
        if constant.shape not in (torch.Size(), batch) or not bool(
            ((constant > 0) & constant.isfinite()).all()
        ):
            raise ValueError(
                f"step is {step}; it must be positive and finite, of shape () or {tuple(batch)}"
            )
        constant = constant.expand(batch)
    both: LossAndGradient[Params] | None = None  # with a grad of its own, nothing is shared
    if loss_and_grad is not None:

        def both(theta: Params) -> tuple[Tensor, Params]:
            value, slope = loss_and_grad(theta)
            value = _one_each("loss_and_grad", value.detach(), batch)
            return value, _as_shaped("loss_and_grad", slope, theta)

    elif grad is None:
        both = _autograd_both(loss)
    gradient = _direction(loss, grad) if both is None else lambda theta: both(theta)[1]
    device = theta0[0].device
    theta = _like(theta0, [p.detach().clone() for p in theta0])
    with torch.no_grad():
        slope: Params | None = None  # at theta, where it is known already
        if both is None:
            value = _evaluate(loss, theta, batch)
        else:
            value, slope = both(theta)
            _one_each("loss", value, batch)
        if not bool(value.isfinite().all()):
            raise ValueError("theta0 has a loss that is not finite; start where the loss is finite")
        outcome = torch.zeros(batch, dtype=torch.int64, device=device)
        stopped = torch.full(batch, float(steps), dtype=torch.float64, device=device)
        kept, thetas, values = [0], [theta], [value]
        eta: Tensor | None = None
        going = torch.ones_like(outcome, dtype=torch.bool)
        taken = 0
        for k in tqdm(
            range(steps), desc="gradient descent", delay=1.0, leave=False, unit="step",
            disable=None if progress is None else not progress,
        ):  # fmt: skip
            g = gradient(theta) if slope is None else slope
            if constant is not None:
                eta = constant
            else:
                chosen = rule(StepState(k, theta, value, g, eta, loss))
                eta = torch.as_tensor(chosen, dtype=value.dtype, device=value.device)
                if eta.shape not in (torch.Size(), batch):
                    raise ValueError(
                        f"step returned shape {tuple(eta.shape)}; it must be () or {tuple(batch)}"
                    )
                eta = eta.expand(batch)
                if bool((going & ~((eta >= 0) & eta.isfinite())).any()):
                    raise ValueError(f"step returned {eta} at step {k}; it must be finite and ≥ 0")
            proposal = _moved(theta, g, eta)
            if both is None or k + 1 == steps:
                proposed, slope = _evaluate(loss, proposal, batch), None
            else:
                proposed, slope = both(proposal)
            still = going & _finite(proposal, proposed)
            if bool(still.all()):
                theta, value = proposal, proposed
            else:
                lost, going, slope = going & ~still, still, None
                outcome[lost], stopped[lost] = int(Outcome.NOT_FINITE), float(k)
                theta = _like(
                    theta,
                    [torch.where(_spread(going, p), n, p)
                     for n, p in zip(proposal, theta, strict=True)],
                )  # fmt: skip
                value = torch.where(going, proposed, value)
            taken = k + 1
            over = not bool(going.any())
            if taken % record_every == 0 or taken == steps or over:
                kept.append(taken)
                thetas.append(theta)
                values.append(value)
            if over:
                break
    trajectory = Trajectory(
        t=torch.tensor(kept, dtype=torch.float64),
        theta=_like(theta, [torch.stack(parts) for parts in zip(*thetas, strict=True)]),
        loss=torch.stack(values),
        outcome=outcome,
        stopped=stopped,
        steps=taken,
    )
    return _report(trajectory, throw)
