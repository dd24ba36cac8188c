"""Flow and descent against closed forms, and every way in which a run can end."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqlib.dynamics import (
    Backtracking,
    Outcome,
    RunStoppedError,
    StepState,
    autograd,
    gradient_descent,
    gradient_flow,
)

PROPERTY = settings(deadline=None, derandomize=True, max_examples=15)
FLOWS = settings(deadline=None, derandomize=True, max_examples=4)
SEEDS = st.integers(0, 2**31 - 1)
F64 = torch.float64


class Pair(NamedTuple):
    u: Tensor
    v: Tensor


def quadratics(seed: int, batch: int, n: int, top: float = 10.0) -> tuple[Tensor, Tensor]:
    """Positive definite H (batch, n, n) with eigenvalues in [0.1, top], and starts (batch, n)."""
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(batch, n, n, generator=generator, dtype=F64)).Q
    values = 0.1 + (top - 0.1) * torch.rand(batch, n, generator=generator, dtype=F64)
    start = torch.randn(batch, n, generator=generator, dtype=F64)
    return (Q * values[:, None, :]) @ Q.mT, start


def quadratic_loss(H: Tensor) -> Any:
    return lambda theta: 0.5 * torch.einsum("...i,...ij,...j->...", theta[0], H, theta[0])


def product_loss(theta: Pair) -> Tensor:
    return 0.5 * (theta.u * theta.v - 1).square()


def blow_up(theta: tuple[Tensor, ...]) -> Tensor:
    """Problem 0 follows x' = x³, which ends at t = 1/(2 x0²); the others follow x' = −x."""
    x = theta[0]
    first = torch.arange(len(x)) == 0
    return torch.where(first, -x.pow(4) / 4, x.square() / 2)


# ------------------------------------------------------------------------------------------ flow


@FLOWS
@given(seed=SEEDS, n=st.integers(1, 5), t=st.floats(0.0, 3.0))
def test_flow_of_a_quadratic_is_the_matrix_exponential(seed: int, n: int, t: float) -> None:
    H, start = quadratics(seed, 1, n)
    run = gradient_flow(quadratic_loss(H[0]), (start[0],), 3.0, rtol=1e-10, atol=1e-13)
    assert run.finished.shape == ()
    # a contraction does not amplify: at most the sum of local errors, that is steps × tolerance
    allowed = 100 * run.steps * (1e-13 + 1e-10 * float(start.norm()))
    for s, state in ((t, run.at(t)[0]), (3.0, run.end[0]), (1.5, run.theta[0][50])):
        exact = torch.linalg.matrix_exp(-H[0] * s) @ start[0]
        assert float((state - exact).norm()) <= allowed


def test_a_smaller_tolerance_gives_a_smaller_error() -> None:
    H, start = quadratics(1, 1, 4)
    exact = torch.linalg.matrix_exp(-H[0]) @ start[0]

    def error(rtol: float) -> float:
        run = gradient_flow(quadratic_loss(H[0]), (start[0],), 1.0, rtol=rtol, atol=rtol)
        return float((run.end[0] - exact).norm())

    assert error(1e-11) < error(1e-7) / 100 < error(1e-3) / 1e4


@pytest.mark.parametrize("top", [1.0, 30.0, 300.0])
def test_dense_output_is_as_good_as_the_steps(top: float) -> None:
    H = torch.diag(torch.tensor([top, 1.0], dtype=F64))
    start = torch.ones(2, dtype=F64)
    run = gradient_flow(quadratic_loss(H), (start,), 4.0)
    for s in torch.linspace(0, 4, 101, dtype=F64).tolist():
        exact = torch.exp(-H.diagonal() * s)
        assert float((run.at(s)[0] - exact).abs().max()) < 1e-7
    records = torch.stack([run.at(float(s))[0] for s in run.t])
    assert torch.equal(records, run.theta[0])


@FLOWS
@given(seed=SEEDS)
def test_a_problem_in_a_batch_is_solved_as_well_as_alone(seed: int) -> None:
    H, start = quadratics(seed, 20, 3, top=20.0)
    exact = (torch.linalg.matrix_exp(-H) @ start[..., None])[..., 0]
    together = gradient_flow(quadratic_loss(H), (start,), 1.0, batch_ndim=1).end[0]
    alone = gradient_flow(quadratic_loss(H[0]), (start[0],), 1.0).end[0]
    scale = 1e-9 * start.norm(dim=1)
    assert bool(((together - exact).norm(dim=1) <= 100 * scale).all())
    assert float((alone - together[0]).norm()) <= 200 * float(scale[0])


def test_two_batch_dimensions() -> None:
    H, start = quadratics(3, 6, 2)
    H, start = H.reshape(2, 3, 2, 2), start.reshape(2, 3, 2)
    run = gradient_flow(quadratic_loss(H), (start,), 1.0, batch_ndim=2)
    exact = (torch.linalg.matrix_exp(-H) @ start[..., None])[..., 0]
    assert run.theta[0].shape == (101, 2, 3, 2)
    assert run.loss.shape == (101, 2, 3)
    assert run.outcome.shape == run.stopped.shape == (2, 3)
    torch.testing.assert_close(run.end[0], exact, rtol=0, atol=1e-8)
    torch.testing.assert_close(run.loss[-1], quadratic_loss(H)((exact,)), rtol=0, atol=1e-8)


def test_the_times_are_the_recorded_times() -> None:
    H, start = quadratics(0, 1, 3)
    times = torch.tensor([0.3, 0.30001, 1.7], dtype=F64)
    run = gradient_flow(quadratic_loss(H[0]), (start[0],), 2.0, times=times)
    assert torch.equal(run.t, times)
    for i, s in enumerate(times.tolist()):
        exact = torch.linalg.matrix_exp(-H[0] * s) @ start[0]
        assert float((run.theta[0][i] - exact).norm()) < 1e-8
    # dense output reaches t_end, past the last recorded time
    assert float((run.at(2.0)[0] - torch.linalg.matrix_exp(-2 * H[0]) @ start[0]).norm()) < 1e-8


def test_without_dense_output_the_records_are_the_same_and_at_refuses() -> None:
    H, start = quadratics(0, 1, 3)
    calls = {True: 0, False: 0}
    runs = {}
    for dense in calls:

        def grad(theta: tuple[Tensor], dense: bool = dense) -> tuple[Tensor]:
            calls[dense] += 1
            return (H[0] @ theta[0],)

        runs[dense] = gradient_flow(
            quadratic_loss(H[0]), (start[0],), 2.0, grad=grad, dense=dense,
            times=torch.tensor([0.0, 2.0], dtype=F64),
        )  # fmt: skip
    assert torch.equal(runs[True].theta[0], runs[False].theta[0])
    assert calls[False] < calls[True]
    with pytest.raises(ValueError, match="dense=False"):
        runs[False].at(1.0)


def test_any_direction_may_stand_for_the_gradient() -> None:
    theta0 = (torch.tensor([1.0, 0.0], dtype=F64),)
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64)
    run = gradient_flow(
        lambda th: th[0].square().sum(), theta0, torch.pi / 2, grad=lambda th: (turn @ th[0],)
    )
    torch.testing.assert_close(run.end[0], torch.tensor([0.0, 1.0], dtype=F64), rtol=0, atol=1e-8)


def test_the_flow_conserves_what_it_should() -> None:
    start = Pair(torch.linspace(-2, 2, 8, dtype=F64), torch.linspace(1, 3, 8, dtype=F64))
    run = gradient_flow(product_loss, start, 5.0, batch_ndim=1)
    assert type(run.theta) is type(run.end) is type(run.at(0.7)) is Pair
    balance = run.theta.u.square() - run.theta.v.square()
    assert float((balance - balance[0]).abs().max()) < 1e-7
    assert bool((run.loss.diff(dim=0) <= 1e-9).all())


def test_a_blow_up_is_reported_and_the_others_go_on() -> None:
    start = torch.tensor([1.0, 2.0, -3.0], dtype=F64)
    run = gradient_flow(blow_up, (start,), 2.0, batch_ndim=1, throw=False)
    assert run.finished.tolist() == [False, True, True]
    assert int(run.outcome[0]) in (Outcome.STUCK, Outcome.NOT_FINITE)
    assert float(run.stopped[0]) == pytest.approx(0.5, abs=1e-6)
    assert run.stopped[1:].tolist() == [2.0, 2.0]
    exact = start[1:] * torch.exp(-run.t)[:, None]
    torch.testing.assert_close(run.theta[0][:, 1:], exact, rtol=1e-7, atol=1e-9)
    before = run.t < 0.49
    exact = (1 - 2 * run.t[before]).rsqrt()
    torch.testing.assert_close(run.theta[0][before, 0], exact, rtol=1e-6, atol=0)
    # frozen afterwards, in the records and in the dense output; no NaN anywhere
    after = run.theta[0][run.t > 0.51, 0]
    assert bool((after == after[0]).all())
    assert float(run.at(1.9)[0][0]) == float(after[0])
    assert bool(run.loss.isfinite().all())
    assert bool(run.theta[0].isfinite().all())


def test_a_blow_up_throws_and_the_error_holds_the_run() -> None:
    start = (torch.tensor([1.0, 2.0], dtype=F64),)
    with pytest.raises(RunStoppedError, match=r"1 of 2 problems did not finish .* t = 0\.5") as e:
        gradient_flow(blow_up, start, 2.0, batch_ndim=1, rtol=1e-4, dense=False)
    assert e.value.trajectory.finished.tolist() == [False, True]


@pytest.mark.parametrize("guilty", [0, 1, 2])
def test_the_problem_that_stops_the_integrator_is_the_one_that_is_stopped(guilty: int) -> None:
    """x' = −1.5 √x reaches 0 at t = 4/3 with speed 0 and ends there: the slowest of the batch."""

    def loss(theta: tuple[Tensor, ...]) -> Tensor:
        parts = [5 * x.square() + 100 * x for x in theta[0]]
        parts[guilty] = theta[0][guilty] ** 1.5
        return torch.stack(parts)

    start = torch.tensor([3.0, -2.0, 2.0], dtype=F64)
    start[guilty] = 1.0
    run = gradient_flow(loss, (start,), 2.0, batch_ndim=1, throw=False)
    others = [i for i in range(3) if i != guilty]
    assert run.finished.tolist() == [i != guilty for i in range(3)]
    assert float(run.stopped[guilty]) == pytest.approx(4 / 3, abs=1e-3)
    exact = -10 + (start[others] + 10) * torch.exp(torch.tensor(-20.0, dtype=F64))
    torch.testing.assert_close(run.end[0][others], exact, rtol=1e-7, atol=0)


def test_a_loss_that_becomes_nan_is_reported() -> None:
    def loss(theta: tuple[Tensor, ...]) -> Tensor:
        x = theta[0]
        nan = torch.where((x < 0.5) & (torch.arange(2) == 0), torch.nan, 0.0)
        return x.square() / 2 + nan

    start = torch.ones(2, dtype=F64)
    run = gradient_flow(loss, (start,), 2.0, grad=lambda th: th, batch_ndim=1, throw=False)
    assert run.outcome.tolist() == [Outcome.NOT_FINITE, Outcome.FINISHED]
    assert float(run.stopped[0]) <= float(torch.log(torch.tensor(2.0)))
    assert float(run.end[0][0]) >= 0.5
    assert bool(run.loss.isfinite().all())
    assert float(run.end[0][1]) == pytest.approx(float(torch.exp(torch.tensor(-2.0))), rel=1e-7)


def test_the_cap_on_steps_is_reported() -> None:
    H, start = quadratics(0, 2, 3)
    run = gradient_flow(quadratic_loss(H), (start,), 50.0, max_steps=7, batch_ndim=1, throw=False)
    assert run.steps == 7
    assert (run.outcome == Outcome.STUCK).all()
    stop = float(run.stopped[0])
    assert 0 < stop < 50
    exact = (torch.linalg.matrix_exp(-H * stop) @ start[..., None])[..., 0]
    torch.testing.assert_close(run.end[0], exact, rtol=0, atol=1e-7)


def test_a_flow_in_float32() -> None:
    H, start = quadratics(0, 1, 3)
    H32 = H[0].float()
    run = gradient_flow(quadratic_loss(H32), (start[0].float(),), 1.0, rtol=1e-6, atol=1e-8)
    assert run.theta[0].dtype == run.loss.dtype == run.at(0.5)[0].dtype == torch.float32
    exact = torch.linalg.matrix_exp(-H32.double()) @ start[0].float().double()
    torch.testing.assert_close(run.end[0].double(), exact, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_runs_on_a_gpu() -> None:
    H, start = quadratics(0, 4, 3)
    there = start.cuda()
    flow = gradient_flow(quadratic_loss(H.cuda()), (there,), 1.0, batch_ndim=1)
    exact = (torch.linalg.matrix_exp(-H) @ start[..., None])[..., 0]
    assert flow.end[0].is_cuda
    torch.testing.assert_close(flow.end[0].cpu(), exact, rtol=0, atol=1e-8)
    descent = gradient_descent(quadratic_loss(H.cuda()), (there,), 0.05, 10, batch_ndim=1)
    assert descent.loss.is_cuda
    assert bool(descent.finished.all())


# --------------------------------------------------------------------------------------- descent


@PROPERTY
@given(seed=SEEDS, n=st.integers(1, 5), k=st.integers(1, 30), eta=st.floats(1e-3, 0.25))
def test_descent_on_a_quadratic_is_a_matrix_power(seed: int, n: int, k: int, eta: float) -> None:
    H, start = quadratics(seed, 3, n)
    run = gradient_descent(quadratic_loss(H), (start,), eta, k, batch_ndim=1)
    power = torch.linalg.matrix_power(torch.eye(n, dtype=F64) - eta * H, k)
    exact = (power @ start[..., None])[..., 0]
    assert run.steps == k
    assert run.t.tolist() == list(range(k + 1))
    size = float(exact.abs().max() + start.abs().max())
    torch.testing.assert_close(run.end[0], exact, rtol=0, atol=1e-12 * size)
    assert torch.equal(run.loss[-1], quadratic_loss(H)(run.end))


@FLOWS
@given(seed=SEEDS)
def test_descent_halves_its_distance_to_the_flow_with_the_step(seed: int) -> None:
    H, start = quadratics(seed, 1, 3, top=5.0)
    exact = torch.linalg.matrix_exp(-H[0]) @ start[0]

    def error(k: int) -> float:
        run = gradient_descent(quadratic_loss(H[0]), (start[0],), 1 / k, k, record_every=k)
        return float((run.end[0] - exact).norm())

    assert error(100) / error(200) == pytest.approx(2, rel=0.1)


def test_a_step_for_each_problem() -> None:
    H, start = quadratics(5, 3, 2)
    steps = torch.tensor([0.01, 0.05, 0.15], dtype=F64)
    together = gradient_descent(quadratic_loss(H), (start,), steps, 20, batch_ndim=1)
    for i in range(3):
        alone = gradient_descent(quadratic_loss(H[i]), (start[i],), float(steps[i]), 20)
        torch.testing.assert_close(together.theta[0][:, i], alone.theta[0])


def test_a_rule_may_return_a_number_or_one_a_problem() -> None:
    H, start = quadratics(5, 3, 2)
    seen: list[int] = []

    def number(state: StepState[Any]) -> float:
        seen.append(state.k)
        return 0.1 / (state.k + 1)

    def tensor(state: StepState[Any]) -> Tensor:
        assert state.value.shape == (3,)
        assert state.grad[0].shape == state.theta[0].shape
        torch.testing.assert_close(state.loss(state.theta), state.value)
        if state.last is not None:
            assert float(state.last[0]) == pytest.approx(0.1 / state.k)
        return torch.full((3,), 0.1 / (state.k + 1), dtype=F64)

    a, b = (
        gradient_descent(quadratic_loss(H), (start,), rule, 9, batch_ndim=1)
        for rule in (number, tensor)
    )
    assert seen == list(range(9))
    assert torch.equal(a.theta[0], b.theta[0])


@PROPERTY
@given(seed=SEEDS, initial=st.floats(1e-3, 1e3), c=st.floats(1e-4, 0.5))
def test_backtracking_satisfies_armijo_at_every_step(seed: int, initial: float, c: float) -> None:
    H, start = quadratics(seed, 4, 3, top=100.0)
    loss = quadratic_loss(H)
    steps: list[Tensor] = []
    rule = Backtracking(initial=initial, c=c)

    def watched(state: StepState[Any]) -> Tensor:
        steps.append(rule(state))
        return steps[-1]

    run = gradient_descent(loss, (start,), watched, 30, batch_ndim=1)
    eta = torch.stack(steps)
    squared = torch.einsum("bij,tbj->tbi", H, run.theta[0])[:-1].square().sum(-1)
    rounding = 1e-12 * run.loss[:-1]
    assert bool((run.loss[1:] <= run.loss[:-1] - c * eta * squared + rounding).all())
    assert bool((run.loss[-1] < run.loss[0]).all())
    # every step below 2 (1 − c)/λ_max succeeds, so the search stops above half of it at the latest
    due = (1 - c) / torch.linalg.eigvalsh(H)[:, -1]
    reached = eta.cummax(0).values >= due
    assert bool((eta >= due * (1 - 1e-9))[reached].all())
    assert bool(reached[-1].all())


def test_backtracking_rests_at_a_minimiser_and_lets_the_others_go() -> None:
    start = torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=F64)
    etas: list[Tensor] = []
    rule = Backtracking(initial=0.3)

    def watched(state: StepState[Any]) -> Tensor:
        etas.append(rule(state))
        return etas[-1]

    run = gradient_descent(
        lambda th: th[0].square().sum(-1) / 2, (start,), watched, 300, batch_ndim=1
    )
    assert all(float(eta[0]) == 0 for eta in etas)
    assert float(etas[0][1]) == 0.3
    assert bool((run.theta[0][:, 0] == 0).all())
    assert float(run.loss[-1, 1]) < 1e-20
    assert all(bool(eta.isfinite().all()) for eta in etas)


def test_backtracking_refuses_a_step_into_nan() -> None:
    def loss(theta: tuple[Tensor, ...]) -> Tensor:  # NaN for x ≤ 0, minimum at 1
        return theta[0] - theta[0].log()

    start = torch.tensor([0.01], dtype=F64)
    run = gradient_descent(lambda th: loss(th).sum(), (start,), Backtracking(), 200)
    assert float(run.end[0]) == pytest.approx(1.0, abs=1e-6)


def test_record_every_keeps_the_first_and_the_last() -> None:
    H, start = quadratics(0, 1, 2)
    every = gradient_descent(quadratic_loss(H[0]), (start[0],), 0.05, 10)
    some = gradient_descent(quadratic_loss(H[0]), (start[0],), 0.05, 10, record_every=4)
    assert some.t.tolist() == [0, 4, 8, 10]
    assert torch.equal(some.theta[0], every.theta[0][[0, 4, 8, 10]])
    assert torch.equal(some.loss, every.loss[[0, 4, 8, 10]])


def test_a_descent_that_overflows_is_frozen_and_the_others_go_on() -> None:
    start = torch.tensor([10.0, 0.1], dtype=F64)
    run = gradient_descent(
        lambda th: th[0].pow(4) / 4, (start,), 1.0, 50, batch_ndim=1, throw=False
    )
    assert run.outcome.tolist() == [Outcome.NOT_FINITE, Outcome.FINISHED]
    stop = int(run.stopped[0])
    assert 0 < stop < 10
    assert bool(run.theta[0].isfinite().all())
    assert bool(run.loss.isfinite().all())
    assert bool((run.theta[0][stop:, 0] == run.theta[0][stop, 0]).all())
    alone = gradient_descent(lambda th: th[0].pow(4) / 4, (start[1],), 1.0, 50)
    assert torch.equal(run.theta[0][:, 1], alone.theta[0])
    with pytest.raises(RunStoppedError, match="1 of 2 problems did not finish") as error:
        gradient_descent(lambda th: th[0].pow(4) / 4, (start,), 1.0, 50, batch_ndim=1)
    assert torch.equal(error.value.trajectory.loss, run.loss)


def test_a_rule_sees_the_gradient_at_the_frozen_point() -> None:
    seen: list[Tensor] = []

    def rule(state: Any) -> float:
        assert torch.equal(state.grad[0], state.theta[0].pow(3))
        seen.append(state.grad[0])
        return 1.0

    start = torch.tensor([10.0, 0.1], dtype=F64)
    run = gradient_descent(
        lambda th: th[0].pow(4) / 4, (start,), rule, 20, batch_ndim=1, throw=False
    )
    assert run.outcome.tolist() == [Outcome.NOT_FINITE, Outcome.FINISHED]
    assert bool(torch.stack(seen).isfinite().all())


def test_loss_and_gradient_in_one_call_are_the_same_descent_at_fewer_calls() -> None:
    H, start = quadratics(3, 4, 3)
    calls = {"loss": 0, "both": 0}

    def loss(theta: tuple[Tensor, ...]) -> Tensor:
        calls["loss"] += 1
        return quadratic_loss(H)(theta)

    def both(theta: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        calls["both"] += 1
        return quadratic_loss(H)(theta), ((H @ theta[0][..., None])[..., 0],)

    apart = gradient_descent(
        quadratic_loss(H), (start,), 0.05, 10, grad=lambda th: both(th)[1], batch_ndim=1
    )
    calls["both"] = 0
    together = gradient_descent(loss, (start,), 0.05, 10, loss_and_grad=both, batch_ndim=1)
    assert torch.equal(together.theta[0], apart.theta[0])
    assert torch.equal(together.loss, apart.loss)
    assert calls == {"loss": 1, "both": 10}  # the last point needs no gradient


def test_a_run_ends_early_when_all_have_stopped() -> None:
    start = torch.tensor([10.0, 20.0], dtype=F64)
    run = gradient_descent(
        lambda th: th[0].pow(4), (start,), 1.0, 10**6, record_every=10**6, batch_ndim=1,
        throw=False,
    )  # fmt: skip
    assert run.steps < 20
    assert not run.finished.any()
    assert float(run.t[-1]) == run.steps


def test_descent_keeps_the_tuple_type_and_the_dtype() -> None:
    start = Pair(torch.tensor([1.5, 0.5]), torch.tensor([0.2, 2.0]))
    run = gradient_descent(product_loss, start, 0.1, 100, batch_ndim=1)
    assert type(run.theta) is type(run.end) is Pair
    assert run.theta.u.dtype == run.loss.dtype == torch.float32
    assert float(run.loss[-1].max()) < 1e-8
    plain = gradient_descent(lambda th: product_loss(Pair(*th)), tuple(start), 0.1, 100,
                             batch_ndim=1)  # fmt: skip
    assert type(plain.theta) is tuple
    assert torch.equal(plain.loss, run.loss)
    with pytest.raises(ValueError, match="dense output"):
        run.at(3.0)


def test_the_start_is_left_alone() -> None:
    start = torch.ones(3, dtype=F64, requires_grad=True)
    gradient_descent(lambda th: th[0].square().sum(), (start,), 0.1, 5)
    gradient_flow(lambda th: th[0].square().sum(), (start,), 1.0)
    assert start.grad is None
    assert torch.equal(start, torch.ones(3, dtype=F64))


def test_a_parameter_that_the_loss_does_not_use_stays() -> None:
    theta = (torch.ones(2, dtype=F64), torch.ones(3, dtype=F64))
    loss = lambda th: th[0].square().sum()  # noqa: E731
    assert torch.equal(autograd(loss)(theta)[1], torch.zeros(3, dtype=F64))
    assert torch.equal(gradient_descent(loss, theta, 0.1, 5).end[1], theta[1])
    assert torch.equal(gradient_flow(loss, theta, 1.0).end[1], theta[1])


# ---------------------------------------------------------------------------------- wrong input

ONE = (torch.ones(2, dtype=F64),)


def square(theta: tuple[Tensor, ...]) -> Tensor:
    return theta[0].square().sum()


@pytest.mark.parametrize(
    ("theta0", "options", "sentence"),
    [
        ([torch.ones(2)], {}, "theta0 is a list"),
        ((), {}, "must be a tuple of tensors"),
        ((torch.ones(2), torch.ones(3)), {"batch_ndim": 1}, r"\[\(2,\), \(3,\)\].*batch_ndim = 1"),
        ((torch.ones(2),), {"batch_ndim": 2}, "batch_ndim = 2"),
        ((torch.tensor([1.0, torch.nan]),), {}, r"theta0\[0\] must hold finite"),
        ((torch.ones(2, dtype=torch.int64),), {}, r"theta0\[0\] must hold finite floating"),
        ((torch.ones(2), torch.ones(2, dtype=F64)), {}, r"theta0\[1\] is torch.float64"),
        ((torch.ones(0),), {}, "must not be empty"),
    ],
)
def test_a_wrong_start_is_refused(theta0: Any, options: Any, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        gradient_flow(square, theta0, 1.0, **options)
    with pytest.raises((TypeError, ValueError), match=sentence):
        gradient_descent(square, theta0, 0.1, 5, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"t_end": 0.0}, "t_end is 0.0"),
        ({"t_end": torch.nan}, "t_end is nan"),
        ({"t_end": torch.inf}, "t_end is inf"),
        ({"rtol": 0.0}, "rtol is 0.0"),
        ({"atol": -1.0}, "atol -1.0"),
        ({"max_steps": 0}, "max_steps 0"),
        ({"times": torch.tensor([0.0, 2.0])}, "times must increase strictly within"),
        ({"times": torch.tensor([0.5, 0.5])}, "times must increase"),
        ({"times": torch.tensor([0.0, torch.nan])}, "times must increase"),
        ({"times": torch.tensor([])}, "times must increase"),
        ({"loss": lambda th: th[0]}, r"loss returned shape \(2,\)"),
        ({"loss": lambda th: th[0].sum() * torch.nan}, "loss that is not finite"),
        ({"grad": lambda th: (th[0][None],)}, r"grad returned shapes \[\(1, 2\)\]"),
    ],
)
def test_a_wrong_argument_of_the_flow_is_refused(options: Any, sentence: str) -> None:
    arguments = {"loss": square, "theta0": ONE, "t_end": 1.0} | options
    with pytest.raises(ValueError, match=sentence):
        gradient_flow(**arguments)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"step": 0.0}, "step is 0.0"),
        ({"step": torch.inf}, "step is inf"),
        ({"step": torch.ones(3)}, r"of shape \(\) or \(\)"),
        ({"step": lambda s: torch.ones(3)}, r"step returned shape \(3,\)"),
        ({"step": lambda s: torch.nan}, "step returned .*nan.* at step 0"),
        ({"step": lambda s: -0.1}, "must be finite and ≥ 0"),
        ({"steps": 0}, "steps is 0"),
        ({"record_every": 0}, "record_every 0"),
        ({"loss": lambda th: th[0]}, r"loss returned shape \(2,\)"),
        ({"loss": lambda th: th[0].sum() * torch.inf}, "loss that is not finite"),
        ({"grad": lambda th: (th[0][None],)}, r"grad returned shapes \[\(1, 2\)\]"),
        (
            {"loss_and_grad": lambda th: (square(th), (th[0][None],))},
            r"loss_and_grad returned shapes \[\(1, 2\)\]",
        ),
        ({"loss_and_grad": lambda th: (th[0], th)}, r"loss_and_grad returned shape \(2,\)"),
        ({"grad": lambda th: th, "loss_and_grad": lambda th: (square(th), th)}, "both given"),
    ],
)
def test_a_wrong_argument_of_the_descent_is_refused(options: Any, sentence: str) -> None:
    arguments = {"loss": square, "theta0": ONE, "step": 0.1, "steps": 5} | options
    with pytest.raises(ValueError, match=sentence):
        gradient_descent(**arguments)


@pytest.mark.parametrize(
    "options",
    [{"initial": 0.0}, {"shrink": 1.0}, {"grow": 0.5}, {"c": 0.0}, {"max_halvings": 0}],
)
def test_a_wrong_backtracking_rule_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match=r"must be at least 1|it must have"):
        Backtracking(**options)


@pytest.mark.parametrize("t", [-0.1, 1.1, torch.nan])
def test_dense_output_outside_the_run_is_refused(t: float) -> None:
    run = gradient_flow(square, ONE, 1.0)
    with pytest.raises(ValueError, match=r"it must lie in \[0, 1\.0\]"):
        run.at(t)
