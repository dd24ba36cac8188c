"""``python -m deqlib``: what it prints and what it returns."""

from __future__ import annotations

import pytest

from deqlib import __main__ as command
from deqlib.__main__ import main
from deqlib.theorems import FINDINGS, THEOREMS


def test_ledger_lists_every_theorem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the quick ones here; each theorem's own row is made in test_theorems.py."""
    assert command.THEOREMS is THEOREMS
    assert command.FINDINGS is FINDINGS
    quick = {label: THEOREMS[label] for label in ("picard-rate", "linear-gradient", "descent-rate")}
    monkeypatch.setattr(command, "THEOREMS", quick)
    monkeypatch.setattr(command, "FINDINGS", {"slow-law": FINDINGS["slow-law"]})
    assert main(["--draws", "14"]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()[1 : 2 + len(quick)]]
    assert [line[0] for line in lines] == [*quick, "slow-law"]
    assert [line[1] for line in lines] == ["proved"] * len(quick) + ["asymptotic"]
    assert "Everything is as stated." in printed


def test_one_theorem_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["linear-gradient", "--draws", "30", "--seed", "2"]) == 0
    printed = capsys.readouterr().out
    assert "holds of 30 instances (seed 2)" in printed
    assert "0 failures" in printed


def test_a_theorem_says_what_is_open_about_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["picard-safe", "--draws", "4"]) == 0
    printed = capsys.readouterr().out
    assert "open:" in printed
    assert "A search found no violation (picard-zero-open)." in printed
    assert main(["picard-rate", "--draws", "4"]) == 0
    assert "(notebooks/02_solving.ipynb)" in capsys.readouterr().out
    assert main(["linear-gradient", "--draws", "4"]) == 0
    assert "open:" not in capsys.readouterr().out


def test_a_dropped_hypothesis_is_expected_to_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["linear-gradient", "--draws", "10", "--drop", "exact-equilibrium"]) == 0
    assert "FAILS on 10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no-such-theorem"], "no theorem is called 'no-such-theorem'"),
        (["linear-gradient", "--drop", "luck"], "--drop is 'luck'"),
        (["--draws", "0"], "--draws is 0"),
        (["--drop", "invertible"], "--drop needs a theorem's label"),
    ],
)
def test_wrong_input_gets_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
