"""The paper's experiments: recorded numbers, and runs that outlive interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from deqlib import linear, one_point
from deqlib.__main__ import main
from deqlib.activations import logistic
from deqlib.experiments import PROTOCOLS, backward, runner, sigmoid, table, weak
from deqlib.experiments.recorded import Recorded, agreeing
from deqlib.experiments.runner import Job
from deqlib.theorems.approximate_backward import SCHEMES, step_direction

RESULTS = Path(__file__).parents[1] / "book" / "results"
MANY = ["linear-counter-example", "--seeds", "60"]  # 300 runs of some milliseconds


# ----------------------------------------------------------------------------------------------
# Recorded numbers (the authors' public repository, float64)
# ----------------------------------------------------------------------------------------------


def test_linear_ends_where_it_was_recorded() -> None:
    records = PROTOCOLS["linear"]()
    first, end = records[0], records[-1]
    assert (first.w, first.a) == (0.024422950667176008, 0.06781783200788559)
    assert first.radius == pytest.approx(0.9325020508512407, abs=1e-15)
    assert end.step == 200
    assert end.w == pytest.approx(0.8402616937669253, abs=1e-13)
    assert end.a == pytest.approx(0.5798691531162682, abs=1e-13)
    # 5.45e-25 is (F − 2)²E[x²] with F − 2 of 1.3e-12: what is left of it in float64 is 3 digits
    assert end.risk == pytest.approx(5.45e-25, rel=2e-3)


def test_near_singular_ends_where_it_was_recorded() -> None:
    records = PROTOCOLS["linear-near-singular"]()
    assert min(r.radius for r in records) == pytest.approx(0.07208147374701138, abs=1e-15)
    assert records[-1].a == pytest.approx(1.1302, abs=5e-5)
    assert records[-1].risk == pytest.approx(4.8e-9, abs=0.05e-9)


def test_sigmoid_after_4000_steps_is_where_it_was_recorded() -> None:
    end = PROTOCOLS["sigmoid"](steps=4000)[-1]
    assert end.w == pytest.approx(1.6327588560755617, abs=1e-11)
    assert end.a == pytest.approx(0.2359775365708395, abs=1e-11)


def test_two_terms_stall_where_it_was_recorded() -> None:
    ends = {name: PROTOCOLS["linear-counter-example"](name)[-1] for name in backward.FACTORS}
    assert ends["two terms"].a == pytest.approx(-1, abs=1e-12)
    assert ends["two terms"].risk == pytest.approx(0.0160, abs=5e-5)
    assert all(end.risk < 1e-25 for name, end in ends.items() if name != "two terms")


def test_digits_are_counted_as_a_reader_would() -> None:
    given = Recorded("linear", "exact", 200, "risk", 0.0160, 3)
    record = PROTOCOLS["linear"](steps=1)[0]
    for risk, digits in ((0.01604, 3), (0.01609, 2), (0.0172, 1), (0.03, 0), (-0.016, 0)):
        assert agreeing(given, record._replace(risk=risk)) == digits, risk


# ----------------------------------------------------------------------------------------------
# The protocols say what they claim
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_shorter_run_is_the_beginning_of_a_longer_one(name: str) -> None:
    one = PROTOCOLS[name]
    first, second, third = one.milestones[:3]
    long = one(steps=third)
    short = one(steps=second)
    assert [r.step for r in long] == [first, second, third]
    assert long[:2] == short
    assert long[2] != long[1] != long[0]


def test_seeds_are_the_papers_and_go_on() -> None:
    assert PROTOCOLS["tanh"].seeds() == (100, 101, 102, 103, 104)
    assert PROTOCOLS["weak-nonlinearity"].seeds() == tuple(range(1729, 1734))
    assert PROTOCOLS["linear"].seeds(3) == (42, 44, 46)
    assert len(PROTOCOLS["linear-starts"].seeds()) == 20


def test_seeds_and_variants_make_a_difference() -> None:
    for name in ("linear", "linear-starts", "linear-counter-example", "tanh", "weak-nonlinearity"):
        one = PROTOCOLS[name]
        a, b = (one(seed=seed, steps=10)[-1] for seed in one.seeds(2))
        assert a.w != b.w, name
        if len(one.variants) > 1:
            assert one(one.variants[1], steps=10)[-1].a != a.a, name


def test_factors_are_the_truncated_series_of_the_theorem() -> None:
    """Beside the theorem's iteration v ← (1 − λ)v + λ(G + Wᵀv), a computation of its own."""
    theta = linear.LinearDEQ(*torch.tensor([[[-0.7]], [[1.9]]], dtype=torch.float64))
    one = torch.ones(1, 1).double()
    exact = linear.gradient(theta, one, one)
    names = {"JFB": "JFB", "two terms": "two terms", "three terms": "three terms",
             "damped, two": "damped two terms"}  # fmt: skip
    for theirs, ours in names.items():
        m, lam = SCHEMES[theirs]
        q = step_direction(theta, one, one, torch.tensor(m), torch.tensor(lam).double())
        factor = backward.FACTORS[ours](-0.7)
        assert float(q.U) == pytest.approx(factor * 1.7 * float(exact.U), rel=1e-13)
    assert backward.FACTORS["exact"](-0.7) == pytest.approx(1 / 1.7)


def test_approximate_direction_with_the_exact_factor_is_the_gradient() -> None:
    start, target, X, _ = backward.tanh_problem(100)
    y = torch.tanh(X @ target.w)
    loss = backward.Approximate("exact", X, y)
    auto = torch.func.grad(lambda v: _unrolled_loss(v, X, y))(torch.cat([start.a[None], start.w]))
    ours = loss.gradient(start)
    assert float((torch.cat([ours.a[None], ours.w]) - auto).norm()) < 1e-12
    crude = backward.Approximate("JFB", X, y).gradient(start)
    assert float((crude.a - ours.a).abs()) > 1e-4


def _unrolled_loss(v: torch.Tensor, X: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = torch.zeros_like(y)
    for _ in range(60):  # contracts by 0.15 a step
        z = torch.tanh(v[0] * z + X @ v[1:])
    return 0.5 * (z - y).square().mean()


def test_weak_start_lies_near_the_ray() -> None:
    start, target, _, _ = weak.problem(1729)
    off = start.w - (1 - start.a) * target.w
    assert float(off.norm()) == pytest.approx(0.03, abs=1e-12)
    assert float(start.a) == pytest.approx(0.1 / 2**0.5)


# ----------------------------------------------------------------------------------------------
# The runner
# ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of an uninterrupted run of `MANY`."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["experiments", *MANY, "--out", str(folder)]) == 0
    return (folder / "results.csv").read_bytes()


def begin(folder: Path, *options: str) -> subprocess.Popen[str]:
    """The command in a process of its own, once it has finished some of its runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deqlib", "experiments", *MANY, "--out", str(folder), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell's background jobs ignore SIGINT, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(finished(folder)) < 10:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


def finished(folder: Path) -> dict[str, int]:
    """Finished runs and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("runs/*.json")}


def resume(folder: Path, before: dict[str, int], whole: bytes) -> None:
    """The same command again: nothing finished is made again, and the table is the same."""
    assert 10 <= len(before) < 300
    assert main(["experiments", *MANY, "--out", str(folder)]) == 0
    after = finished(folder)
    assert len(after) == 300
    assert {name: after[name] for name in before} == before
    assert (folder / "results.csv").read_bytes() == whole
    assert list(folder.rglob("*.part")) == []


@pytest.mark.parametrize("options", [(), ("--jobs", "2")], ids=["one process", "two workers"])
def test_sigint_leaves_a_clean_state(
    options: tuple[str, ...], tmp_path: Path, whole: bytes
) -> None:
    process = begin(tmp_path, *options)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in err
    assert "Traceback" not in out + err
    before = finished(tmp_path)
    assert f"{len(before)} of 300 runs are finished" in err
    assert not (tmp_path / "results.csv").exists()
    assert list(tmp_path.rglob("*.part")) == []
    resume(tmp_path, before, whole)


def test_sigkill_loses_no_finished_run(tmp_path: Path, whole: bytes) -> None:
    process = begin(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    resume(tmp_path, finished(tmp_path), whole)


def workers(parent: int) -> Iterator[int]:
    """Process ids of the pool's workers."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    for line in listed.stdout.splitlines():
        pid, ppid, args = line.split(None, 2)
        if int(ppid) == parent and "LokyProcess" in args:
            yield int(pid)


def test_a_killed_worker_loses_no_finished_run(tmp_path: Path, whole: bytes) -> None:
    """The command itself goes on with a new pool."""
    process = begin(tmp_path, "--jobs", "2")
    before = finished(tmp_path)
    os.kill(next(workers(process.pid)), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    after = finished(tmp_path)
    assert len(before) < 300
    assert {name: after[name] for name in before} == before
    assert (tmp_path / "results.csv").read_bytes() == whole


@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_gives_the_same_table(tmp_path: Path, whole: bytes) -> None:
    """Two workers on loopback, one of them killed on the way."""
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    )
    with cluster:
        process = begin(tmp_path, "--backend", "dask", "--scheduler", cluster.scheduler_address)
        before = finished(tmp_path)
        with distributed.Client(cluster) as client:
            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(before) < 300
    after = finished(tmp_path)
    assert {name: after[name] for name in before} == before
    assert (tmp_path / "results.csv").read_bytes() == whole


def test_stale_runs_are_noticed_and_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["experiments", "linear", "--seeds", "2", "--out", str(tmp_path)]
    assert main(command) == 0
    table_before = (tmp_path / "results.csv").read_bytes()
    before = finished(tmp_path)
    assert "made again" not in capsys.readouterr().out
    monkeypatch.setattr(runner, "fingerprint", lambda name: "other code")
    assert main(command) == 0
    assert "2 finished runs are of other code" in capsys.readouterr().out
    assert all(finished(tmp_path)[name] > at for name, at in before.items())
    damaged = next(iter(tmp_path.glob("runs/*.json")))
    damaged.write_text("{", encoding="utf-8")
    assert main(command) == 0
    assert "1 finished runs" in capsys.readouterr().out
    assert (tmp_path / "results.csv").read_bytes() == table_before


def test_fingerprint_sees_code_and_not_comments() -> None:
    plain = "def f(x):\n    return x + 1\n"
    said = 'def f(x):\n    """One more."""\n    # as it says\n    return x + 1\n'
    assert runner.meaning(plain) == runner.meaning(said)
    assert runner.meaning(plain) != runner.meaning(plain.replace("1", "2"))
    assert runner.fingerprint("tanh") != runner.fingerprint("sigmoid")
    assert runner.fingerprint("tanh") == runner.fingerprint("linear-counter-example")


def test_other_code_in_a_worker_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perform = runner.perform
    monkeypatch.setattr(runner, "perform", lambda job: (job, "older", perform(job)[2]))
    with pytest.raises(runner.ClusterError, match="other code"):
        runner.run(runner.plan(["linear"]), tmp_path)
    assert finished(tmp_path) == {}


def test_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    jobs = runner.plan(["linear", "linear-intercept"])[:1]
    records = PROTOCOLS["linear"]()
    rows = [table.Row(jobs[0].protocol, jobs[0].variant, jobs[0].seed, r) for r in records]
    path = tmp_path / "table.csv"
    table.write(path, "a command", rows)
    assert table.read(path) == rows
    assert table.select(rows, "exact", 42) == records
    assert path.read_text().startswith("# a command\nprotocol,variant,seed,step,w,a,")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has columns"):
        table.read(path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no-such"], "no experiment is called 'no-such'; there are linear,"),
        (["linear", "--seeds", "0"], "--seeds is 0"),
        (["linear", "--jobs", "0"], "--jobs is 0"),
        (["linear", "--backend", "smoke"], "--backend is 'smoke'; it must be one of loky, dask"),
        (["linear", "--backend", "dask"], "--backend dask needs --scheduler"),
        (["linear", "--scheduler", "tcp://x:1"], "goes with --backend dask only"),
        (["linear", "--out", __file__], "which is a file"),
    ],
)
def test_wrong_input_gets_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["experiments", *arguments])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_without_dask_a_sentence_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    arguments = ["linear", "--backend", "dask", "--scheduler", "tcp://127.0.0.1:1"]
    assert main(["experiments", *arguments, "--out", str(tmp_path)]) == 1
    assert "pip install 'deqlib[dask]'" in capsys.readouterr().err


def test_functions_refuse_wrong_input(tmp_path: Path) -> None:
    one, jobs = PROTOCOLS["linear"], [Job("linear", "exact", 42, 200)]
    for call, sentence in (
        (lambda: one("JFB"), "variant is 'JFB'"),
        (lambda: one(seed=-1), "seed is -1"),
        (lambda: one(steps=0), "steps is 0"),
        (lambda: one.seeds(0), "count is 0"),
        (lambda: runner.run(jobs, tmp_path, workers=0), "workers is 0"),
        (lambda: runner.run(jobs, tmp_path, backend="smoke"), "backend is 'smoke'"),
        (lambda: runner.run(jobs, tmp_path, backend="dask"), "scheduler is None"),
        (lambda: runner.gather(tmp_path, jobs), "is not finished"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_list_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiments", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in PROTOCOLS)


# ----------------------------------------------------------------------------------------------
# The committed summaries
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_committed_summary_is_what_the_command_makes(name: str) -> None:
    """Its head line names the command, it holds every run, and its beginning is made again."""
    path = RESULTS / f"{name}.csv"
    assert path.read_text(encoding="utf-8").startswith(f"# python -m deqlib experiments {name}\n")
    rows = table.read(path)
    one = PROTOCOLS[name]
    for variant in one.variants:
        for seed in one.seeds():
            records = table.select(rows, variant, seed)
            assert [r.step for r in records] == [k for k in one.milestones if k <= one.steps]
    early = [k for k in one.milestones if k <= 100][-1]
    variant, seed = one.variants[-1], one.seeds()[-1]
    for ours, kept in zip(
        one(variant, seed, early), table.select(rows, variant, seed), strict=False
    ):
        for a, b in zip(ours, kept, strict=True):
            assert a is b or a == pytest.approx(b, rel=1e-9, abs=1e-14)


def test_sigmoid_tail_is_the_hessians() -> None:
    """From 30,000 to 40,000 steps the distance shrinks by 1 − 2ηλ_min(H) a step, to 1 %."""
    H = one_point.hessian(logistic, sigmoid.TARGET, sigmoid.inputs(42))
    rate = 2 * sigmoid.NEAR_STEP * float(torch.linalg.eigvalsh(H)[0])
    *_, a, b = table.read(RESULTS / "sigmoid.csv")
    assert (a.record.step, b.record.step) == (30_000, 40_000)
    measured = 1 - (b.record.error / a.record.error) ** (1 / 10_000)
    assert measured == pytest.approx(rate, rel=0.01)
