"""The grader: clear reports on good, missing and hostile submissions, and nothing else touched.

Each submission below runs in a process of its own, which costs a start of torch, about two seconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from course import grade as grading
from course import tasks
from course.grade import Report, grade, main
from course.problem_set import SOLVED, STUDENTS
from course.run import Limits, Submission

if os.name != "posix":
    pytest.skip("the grader needs Linux or macOS", allow_module_level=True)

# seconds enough for a busy machine: what is to be ended is ended by them
QUICK = Limits(seconds=4.0, megabytes=256)
SEED = 20_26
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A notebook with these code cells, after those of the solved problem set if ``solved``."""

    def made(*cells: str, solved: bool = False, name: str = "submission.ipynb") -> Path:
        notebook = json.loads(SOLVED.read_text(encoding="utf-8"))
        mine = [{"cell_type": "code", "metadata": {}, "source": source} for source in cells]
        notebook["cells"] = (notebook["cells"] if solved else []) + mine
        path = tmp_path / name
        path.write_text(json.dumps(notebook), encoding="utf-8")
        return path

    return made


def points(report: Report) -> dict[str, int]:
    return {task.name: task.points for task in report.tasks}


def sentences(report: Report, task: str) -> set[str]:
    return {part.said for one in report.tasks if one.name == task for part in one.parts}


def children() -> set[int]:
    return {p.pid for p in psutil.Process().children(recursive=True)}


def test_perfect() -> None:
    report = grade(SOLVED, SEED)
    assert report.points == report.of == 60
    assert report.notes == [] if landlock() else "Landlock" in report.notes[0]
    assert set(points(report).values()) == {10}
    assert "60 of 60" in report.text()


def test_untouched_notebook_and_no_notebook(make: Make, tmp_path: Path) -> None:
    report = grade(STUDENTS, SEED)
    assert report.points == 0
    for task in tasks.TASKS:
        assert sentences(report, task.name) == {"still to do: it raises NotImplementedError"}
    empty = grade(make(), SEED)
    assert empty.points == 0
    for task in tasks.TASKS:
        assert sentences(empty, task.name) == {f"the notebook defines no function {task.name}"}
    broken = tmp_path / "broken.ipynb"
    broken.write_text("not JSON", encoding="utf-8")
    assert "not a notebook" in grade(broken, SEED).notes[0]
    assert grade(broken, SEED).points == 0


def test_endless_hungry_and_crashing_functions_cost_their_own_task_only(make: Make) -> None:
    path = make(
        "def solve_equilibrium(**given):\n    while True:\n        pass",
        "def implicit_gradient(**given):\n    kept = []\n    while True:\n"
        "        kept.append(bytearray(50_000_000))",
        "import os\ndef conservation_report(**given):\n    os._exit(0)",
        solved=True,
    )
    before = children()  # other tests of this process may have left some
    report = grade(path, SEED, QUICK)
    assert sentences(report, "solve_equilibrium") == {"it did not end within 4 s"}
    assert sentences(report, "implicit_gradient") == {"it ran out of memory: more than 256 MB"}
    assert sentences(report, "conservation_report") == {"it ended the process (exit status 0)"}
    for task in ("predict_limit", "step_sizes", "one_point"):
        assert points(report)[task] == 10
    assert children() == before


def test_endless_cell_is_left_out(make: Make) -> None:
    report = grade(make("while True:\n    pass", "1 / 0", solved=True), SEED, QUICK)
    assert report.points == 60
    assert any("did not end within 4 s" in note for note in report.notes)
    assert any("ZeroDivisionError" in note for note in report.notes)


def test_wrong_answers_say_by_how_much_and_not_what_is_right(make: Make) -> None:
    path = make(
        "right = solve_equilibrium\n"
        "def solve_equilibrium(W, b, tol, max_steps):\n"
        "    found = right(W, b, tol, max_steps)\n"
        "    return {'z': found['z'], 'residual': 0.0, 'converged': True}",
        "def implicit_gradient(z, W, U, b, x, v):  # one term of the Neumann series\n"
        "    q = (1 - z**2) * v\n"
        "    return {'W': torch.outer(q, z), 'U': torch.outer(q, x), 'b': q}",
        "def conservation_report(W, U):\n    return {'drift': math.nan, 'kind': 'flow'}",
        "def predict_limit(a, u, A):\n    raise KeyError('A\\x1b[31m')",
        "def step_sizes(a, u, A, S):\n    return [1, 2, 3]",
        "def one_point(a, w, a_star, w_star, X):\n    return {'z': X, 'inner': 'much'}",
        solved=True,
    )
    report = grade(path, SEED, QUICK)
    assert points(report)["solve_equilibrium"] == 4  # z, and its claim there
    assert any("but the residual of its z is" in s for s in sentences(report, "solve_equilibrium"))
    assert points(report)["implicit_gradient"] == 0
    assert all("is off by" in s for s in sentences(report, "implicit_gradient"))
    assert "drift holds NaN or infinity" in sentences(report, "conservation_report")
    assert points(report)["conservation_report"] == 2  # the one path that is a flow
    assert sentences(report, "predict_limit") == {"it raised KeyError: 'A\\x1b[31m'"}
    assert any("a dict with the key" in s for s in sentences(report, "step_sizes"))
    assert any("z has shape (12, 2)" in s for s in sentences(report, "one_point"))
    assert any("numbers are due" in s for s in sentences(report, "one_point"))


def test_plausible_mistakes_cost_their_own_parts(tmp_path: Path) -> None:
    """Methods that pass, or nearly pass, the public checks, and what the instances make of them."""
    picard = "z = X @ w * 0\n    for _ in range(500):\n        z = torch.tanh(a * z + X @ w)"
    mistakes = {
        "solve_equilibrium": ('"converged": bool(residual <= tol)', '"converged": True', 3),
        "implicit_gradient": (  # a series of 200 terms in place of the linear system
            "torch.linalg.solve(torch.eye(len(z), dtype=z.dtype) - J.T, v)",
            "sum(torch.linalg.matrix_power(J.T, k) @ v for k in range(200))",
            5,
        ),
        "conservation_report": ("lowest >= -1e-8 * size", "True", 2),
        "predict_limit": ("torch.sign(P) * r", "r", 3),  # forgets the other side of the wall
        "step_sizes": ("/ top(A)", "/ (values[-1] * (1 + A @ A))", 2),  # right for one input
        "one_point": ("z, y = torch.tanh(u)", f"{picard}\n    z, y = z", 2),
    }
    text = SOLVED.read_text(encoding="utf-8")
    for old, new, _ in mistakes.values():
        old, new = json.dumps(old)[1:-1], json.dumps(new)[1:-1]
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = tmp_path / "mistakes.ipynb"
    path.write_text(text, encoding="utf-8")
    lost = {name: 10 - got for name, got in points(grade(path, SEED, QUICK)).items()}
    assert lost["one_point"] >= mistakes["one_point"][2]  # z is wrong, and all that is made of it
    del lost["one_point"]
    assert lost == {name: mistakes[name][2] for name in lost}


def test_seeds_and_reports(make: Make) -> None:
    """Answers noted down from one seed are worth nothing under another."""
    noted = {}
    for task, calls in tasks.calls(1):
        if task.name == "predict_limit":
            noted = {float(c.arguments["a"]): c for c in calls}
    ends = {}
    from deqlib import linear

    for a, call in noted.items():
        theta = linear.LinearDEQ(call.arguments["a"].reshape(1, 1), call.arguments["u"][None])
        end = linear.sphere_limit(theta, call.arguments["A"][None])
        ends[a] = {"a": end.W.item(), "u": end.U[0].tolist(), "picard": bool(abs(end.W) < 1)}
    path = make(
        f"known = {ends!r}\ndef predict_limit(a, u, A):\n"
        "    return known.get(float(a), {'a': 0.0, 'u': [0.0, 0.0, 0.0], 'picard': 1})"
    )
    first, second, again = grade(path, 1, QUICK), grade(path, 2, QUICK), grade(path, 1, QUICK)
    assert points(first)["predict_limit"] == 10
    assert points(second)["predict_limit"] == 0
    assert first.text() == again.text()
    assert first.json() == again.json()
    assert first.text() != second.text()


def test_instances_depend_on_the_seed_alone() -> None:
    def numbers(seed: int) -> list[float]:
        found = [c.arguments for _, calls in tasks.calls(seed) for c in calls]
        return [float(v.sum()) for a in found for v in a.values() if hasattr(v, "sum")]

    assert numbers(5) == numbers(5)
    assert all(x != y for x, y in zip(numbers(5), numbers(6), strict=True))


def test_what_is_printed_and_started_does_no_harm(make: Make) -> None:
    """A flood of output, children that hide in a session of their own, and a fork bomb."""
    path = make(
        "print('x' * 30_000_000)",
        "import os, time\n"
        "def solve_equilibrium(**given):\n"
        "    if os.fork() == 0:\n        os.setsid()\n"
        "        if os.fork() == 0:\n            time.sleep(600)\n        os._exit(0)\n"
        "    return {}",
        "def implicit_gradient(**given):\n    while True:\n        if os.fork() == 0:\n"
        "            time.sleep(600)",
        "def conservation_report(**given):\n    import sys\n"
        "    for fd in range(3, 50):\n        try:\n"
        '            os.write(fd, b\'{"value": {"kind": "flow"}}\\n\')\n'
        "        except OSError:\n            pass\n    return {}",
        solved=True,
    )
    before = children()
    report = grade(path, SEED, QUICK)
    assert points(report)["solve_equilibrium"] == 0
    assert points(report)["implicit_gradient"] == 0
    assert sentences(report, "implicit_gradient") <= {
        "it started more than 16 processes",
        "it raised BlockingIOError: [Errno 11] Resource temporarily unavailable",
    }
    assert points(report)["conservation_report"] == 0
    assert points(report)["one_point"] == 10
    time.sleep(0.2)
    assert children() == before


def test_memory_is_counted_over_all_processes(make: Make) -> None:
    """Four children of 120 MB: each is within the limit of 256 MB, together they are not."""
    path = make(
        "import os, time\ndef solve_equilibrium(**given):\n    for _ in range(4):\n"
        "        if os.fork() == 0:\n            kept = b'x' * 120_000_000\n"
        "            time.sleep(600)\n    time.sleep(600)",
        solved=True,
    )
    before = children()
    report = grade(path, SEED, QUICK)
    assert sentences(report, "solve_equilibrium") == {"it ran out of memory: more than 256 MB"}
    assert points(report)["one_point"] == 10
    assert children() == before


def landlock() -> int:
    """The version of this kernel's Landlock, which its system call 444 tells; 0 without it."""
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None)
    return max(0, libc.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


@pytest.mark.skipif(not landlock(), reason="this system has no Landlock")
def test_nothing_outside_is_written_read_or_signalled(make: Make, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    secret = outside / "secret.txt"
    secret.write_text("20_26", encoding="utf-8")
    home = Path.home()
    attempts = {
        "write": f"open({str(outside / 'new')!r}, 'w').write('x')",
        "overwrite": f"open({str(secret)!r}, 'w').write('x')",
        "remove": f"__import__('os').remove({str(secret)!r})",
        "rename": f"__import__('os').rename({str(secret)!r}, {str(outside / 'b')!r})",
        "read": f"open({str(secret)!r}).read()",
        "list": f"__import__('os').listdir({str(outside)!r})",
        "home": f"open({str(home / '.grade-sentinel')!r}, 'w').write('x')",
        "grader": "open(f'/proc/{__import__(\"os\").getppid()}/cmdline').read()",
        "memory": "open(f'/proc/{__import__(\"os\").getppid()}/mem', 'rb').read(1)",
        "answers": f"open({str(Path(tasks.__file__))!r}).read()",
        "shell": f"__import__('subprocess').run('echo x > {outside / 'new'}', shell=True, "
        "check=True)",
        "kill": "__import__('os').kill(__import__('os').getppid(), 0)",
        "network": "__import__('socket').create_connection(('127.0.0.1', 9), 1)",
        "library": "__import__('deqlib').__file__",
    }
    cells = [
        f"try:\n    {code}\n    {name} = 'done'\nexcept Exception as error:\n"
        f"    {name} = type(error).__name__\n"
        for name, code in attempts.items()
    ]
    tell = ", ".join(f"{name!r}: {name}" for name in attempts)
    inside = "open('mine.txt', 'w').write('x'); open('mine.txt').read()"
    cells.append(f"{inside}\ndef tell():\n    return {{{tell}}}")
    with Submission(QUICK) as running:
        assert running.confined
        folder = Path(running.folder.name)
        assert running.load(cells, []) == {}
        assert running.call("tell", {}, 5.0)["value"] == {
            **dict.fromkeys(attempts, "PermissionError"),
            "shell": "CalledProcessError",
            "library": "ModuleNotFoundError",
            **({} if landlock() >= 4 else {"network": "ConnectionRefusedError"}),
            **({} if landlock() >= 6 else {"kill": "done"}),
        }
    assert sorted(p.name for p in outside.iterdir()) == ["secret.txt"]
    assert secret.read_text(encoding="utf-8") == "20_26"
    assert not (home / ".grade-sentinel").exists()
    assert not folder.exists()


def test_the_environment_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_SECRET", "42")
    with Submission(QUICK) as running:
        running.load(["import os\ndef tell():\n    return dict(os.environ)"], [])
        seen = running.call("tell", {}, 5.0)["value"]
    assert "COURSE_SECRET" not in seen
    assert "PYTHONPATH" not in seen
    assert Path(seen["HOME"]).name.startswith("grade-")


def test_a_folder_becomes_a_table(make: Make, tmp_path: Path) -> None:
    make(name="ada.ipynb")
    (tmp_path / "bob.ipynb").write_text("{}", encoding="utf-8")
    table, reports = tmp_path / "grades.csv", tmp_path / "reports"
    arguments = [str(tmp_path), "--seed", "3", "--csv", str(table), "--reports", str(reports)]
    assert main(arguments) == 0
    lines = table.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("submission,solve_equilibrium,")
    assert [line.split(",")[0] for line in lines[1:]] == ["ada.ipynb", "bob.ipynb"]
    assert sorted(p.name for p in reports.iterdir()) == ["ada.txt", "bob.txt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.ipynb", "--seed", "1"], "there is no nowhere.ipynb"),
        ([str(STUDENTS), "--seed", "-1"], "the seed is -1"),
        ([str(STUDENTS), "--seed", "1", "--time", "0"], "the time is 0.0 s"),
        ([str(STUDENTS), "--seed", "1", "--memory", "1"], "the memory is 1 MB"),
        ([str(STUDENTS), "--seed", "1", "--csv", "x.csv"], "are for a folder"),
        ([str(STUDENTS)], "--seed"),
    ],
)
def test_wrong_input_gets_a_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err


def test_windows_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("course.run.os.name", "nt")
    with pytest.raises(OSError, match="needs Linux or macOS"):
        grading.available()
