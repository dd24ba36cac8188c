"""The benchmarks still run, at sizes that end in a second. Times decide nothing here."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks import layer, report, timing, training
from benchmarks.__main__ import main
from benchmarks.report import Group
from benchmarks.timing import Contender, best_peer, measured, ratios, tuned

OURS = {"deqlib, Picard", "deqlib, Anderson", "unrolled autograd", "hand-written loop"}
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
