"""The benchmarks still run, at sizes that end in a second. Times decide nothing here."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks import flows, layer, levers, report, timing, training
from benchmarks.__main__ import main
from benchmarks.report import Group
from benchmarks.timing import Contender, best_peer, measured, ratios, tuned
from deqlib import linear
from deqlib.implicit import equilibrium

OURS = {*layer.DEQLIB, "unrolled autograd", "hand-written loop"}
KERNEL = "one f in torch"


@pytest.mark.parametrize("rho", layer.RATES)
def test_the_layer_meets_its_targets_and_is_timed(rho: float) -> None:
    everyone = [c for c in layer.contenders(layer.problem(8, 4, rho)) if c.name in OURS]
    assert {c.name for c in everyone} == OURS
    for c in everyone:
        assert tuned(c, layer.TARGET, 1e-3)
        assert all(e <= t for e, t in zip(c.found, layer.TARGET, strict=True))
    measured(everyone, 2, least=0)
    assert all(len(c.seconds) == 2 for c in everyone)
    peer = best_peer(everyone)
    assert peer is not None
    assert peer.name == "unrolled autograd"  # the hand-written loop is no peer
    assert ratios(peer, peer) == (1, 1, 1)


def test_the_reference_is_the_gradient() -> None:
    p = layer.problem(6, 3, 0.9)
    z, gW, gx = layer.reference(p)
    W, x = layer.leaves(p)
    again = z
    for _ in range(400):
        again = torch.tanh(again @ W.T + x)
    again.backward(p.c)
    torch.testing.assert_close(W.grad, gW, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(x.grad, gx, rtol=1e-9, atol=1e-12)


def test_a_wrong_gradient_never_enters() -> None:
    p = layer.problem(8, 4, 0.5)
    check = layer.errors(p, layer.reference(p))

    def one_step(tol: float) -> layer.Result:
        """The gradient that forgets the adjoint: u = c."""
        z, _, _ = layer.hand_written(p, tol)
        u = (1 - z * z) * p.c
        return z, u.T @ z, u

    assert not tuned(Contender("one step", one_step, check), layer.TARGET, 1e-6)


def test_tuning_finds_the_loose_end() -> None:
    c = Contender("a", lambda tol: tol, lambda tol: (10 * tol,))
    assert tuned(c, (1e-6,), 1e-2)
    assert 1e-6 / 4 <= 10 * c.tol <= 1e-6
    assert not tuned(Contender("b", lambda tol: tol, lambda tol: (float("nan"),)), (1e-6,), 1e-2)


def test_tuning_looks_between_a_success_and_a_failure() -> None:
    # The error jumps at 1e-4, where proportion says nothing: the answer is just below.
    tried: list[float] = []

    def error(tol: float) -> tuple[float]:
        tried.append(tol)
        return (1e-9 if tol < 1e-4 else 1.0,)

    c = Contender("jump", lambda tol: tol, error)
    assert tuned(c, (1e-6,), 1e-6)
    assert max(t for t in tried if t < 1e-4) == c.tol > 1e-5


def test_why_counts_what_deqlib_evaluates() -> None:
    p = layer.problem(8, 4, 0.5)
    everyone = [c for c in layer.contenders(p) if c.name in {*OURS, KERNEL}]
    for c in everyone:
        c.tol = c.tol if c.tol == c.tol else 1e-6
        c.seconds = [1.0] if c.name == KERNEL else [100.0]
    everyone = [c for c in everyone if c.name not in layer.DEQLIB or c.name == "deqlib, Picard"]
    count = layer.evaluations(p, 1e-6, "deqlib, Picard")
    W, x = layer.leaves(p)
    calls: list[int] = []
    e = equilibrium(
        lambda z: (calls.append(1), torch.tanh(z @ W.T + x))[1],
        torch.zeros_like(x), method="picard", tol=1e-6,
    )  # fmt: skip
    assert count == len(calls) - 1 + 8  # one more looks for the gradient; J has 8 rows
    assert e.forward.converged.all()
    said = layer.why(p, everyone)
    assert f"{count} evaluations" in said
    assert f"are {count / 100:.2f} of deqlib's time" in said


@pytest.mark.parametrize("count", [3, 5])
def test_the_gradient_written_out_is_the_gradient(count: int) -> None:
    theta, S, A = flows.problems(count)
    S_last, A_last = (t.movedim(0, -1) for t in (S, A))
    found = levers.written_out(flows.joined(theta).T, S_last, A_last).T
    exact = flows.joined(linear.gradient(theta, S, A))
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)


def test_every_lever_of_the_layer_and_of_training_meets_the_targets() -> None:
    everyone = levers.of_the_layer(layer.problem(8, 4, 0.5))
    assert everyone[0].name == levers.PLAIN
    for c in everyone:
        if "compiled" not in c.name:  # which needs a compiler of C++
            assert tuned(c, layer.TARGET, 1e-6)
    for c in levers.of_training(3, 4, 5):
        assert tuned(c, training.TARGET, 0)


def test_a_lever_stands_beside_the_time_without_it() -> None:
    plain = Contender(levers.PLAIN, lambda _: None, seconds=[2.0, 2.0, 2.0])
    lever = Contender("a lever", lambda _: None, seconds=[1.0, 3.0, 1.5])
    group = Group("levers", "a layer", [plain, lever], ["no compiler"], {}, "")
    assert report.levers([group], levers.PLAIN)[1:] == [
        ["a layer", levers.PLAIN, "2000", "1.00 (1.00 to 1.00)"],
        ["a layer", "a lever", "1500", "0.75 (0.50 to 1.50)"],
        ["a layer", "no compiler", "missed the accuracy", ""],
    ]
    assert len(report.summary([group])) == 1  # no row of its own


def test_training_agrees_with_the_loop_by_hand() -> None:
    for c in training.contenders(3, 4, 5):
        assert tuned(c, training.TARGET, 0)


def test_a_scaled_run_counts_for_the_whole_and_the_reason_is_said() -> None:
    slow = Contender("deqlib", lambda _: None, role="deqlib", seconds=[2.0, 4.0, 3.0])
    quick = Contender("peer", lambda _: None, seconds=[1.0, 1.0, 1.0])
    group = Group("layer", "a layer", [slow, quick], ["late"], {}, "because")
    assert report.summary([group])[1] == [
        "a layer",
        "deqlib: 3000",
        "peer: 1000",
        "3.00 (2.00 to 4.00)",
        "because",
    ]
    assert report.details([group], "layer")[-1][1:3] == ["late", "missed the accuracy"]
    half = Contender("half", lambda _: None, tol=0, scale=1e6)
    measured([half], 1, least=0)
    assert half.seconds[0] >= 0
    assert timing.TRIES >= 3


def test_the_command_writes_its_tables_and_its_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    everyone = layer.contenders
    monkeypatch.setattr(
        layer, "contenders", lambda p: [c for c in everyone(p) if c.name in {*OURS, KERNEL}]
    )
    main(["--small", "--only", "layer", "--repeats", "1", "--out", str(tmp_path)])
    assert "ratio to the best peer" in capsys.readouterr().out
    assert (tmp_path / "benchmarks.png").stat().st_size > 1000
    for name in ("layer", "summary"):
        with (tmp_path / f"benchmarks_{name}.csv").open(encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert len({len(row) for row in rows}) == 1
        assert len(rows) > 2
