"""The student edition: blank, it fails where it should; and every check refuses wrong answers.

The solved edition is the notebooks themselves, which nbval runs against their stored outputs. Here
each chapter runs once more in this process, but only those statements on which its exercises depend
(`slicing.py`), and then

* the edition's exercise cells as the student finds them: each check must fail, and because of the
  line that the student is to replace, nothing else fails;
* the chapter's own exercise cells: they must print what is stored, or the slice misses something;
* each check again, with the answer changed: scaled by 1.01, negated, zero, NaN, and for an answer
  of several parts each part scaled alone. All must be refused, one of them at least by an assertion
  that says why.

A right answer that the changes cannot spoil (a free sign, a free choice) is named with its reason
in the solution cell's metadata: {"accepted": {"answer negated": "an eigenvector's sign is free"}}.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hygiene
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import student
import torch
from nbclient import NotebookClient
from slicing import needed

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(ROOT.glob("notebooks/*.ipynb"))
Notebook = dict[str, Any]
every_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def read(path: Path) -> Notebook:
    return json.loads(path.read_text(encoding="utf-8"))


def edition(path: Path) -> Notebook:
    return student.edition(read(path), path.stem, "https://example.org/book")


def code_cells(notebook: Notebook) -> list[Notebook]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


# -- what the answers are ----------------------------------------------------------------------


def marked(code: str) -> set[int]:
    """The numbers of the lines between the marks."""
    inside, found = False, set()
    for number, line in enumerate(code.splitlines(), start=1):
        inside = (inside or line.strip() == student.BEGIN) and line.strip() != student.END
        found |= {number} if inside else set()
    return found


def answers(solution: str, check: str) -> list[str]:
    """Functions (or "Class.method") with a marked body; marked names that the check reads."""
    lines, found = marked(solution), []
    read_names = {node.id for node in ast.walk(ast.parse(check)) if isinstance(node, ast.Name)}

    def visit(node: ast.AST, owner: str) -> None:
        for child in ast.iter_child_nodes(node):
            if not lines & set(range(child.lineno, child.end_lineno + 1)):
                continue
            name = getattr(child, "name", "")
            if isinstance(child, ast.ClassDef) and child.lineno not in lines:
                visit(child, f"{child.name}.")
            elif isinstance(child, ast.FunctionDef) and child.lineno not in lines:
                found.append(owner + name)
            else:
                stored = (n for n in ast.walk(child) if isinstance(n, ast.Name))
                bound = {n.id for n in stored if isinstance(n.ctx, ast.Store)} | {name}
                found.extend(sorted(bound & read_names - set(found)))

    visit(ast.parse(solution), "")
    return found


# -- wrong answers -----------------------------------------------------------------------------


def spoil(value: Any, number: Callable[[Any], Any], truth: Callable[[Any], Any]) -> Any:
    """The value with ``number`` applied to all its numbers and ``truth`` to its booleans."""

    def again(part: Any) -> Any:
        return spoil(part, number, truth)

    match value:
        case bool() | np.bool_():
            return truth(value)
        case torch.Tensor() if value.dtype == torch.bool:
            return truth(value.long()).bool()
        case np.ndarray() if value.dtype == bool:
            return truth(value.astype(int)).astype(bool)
        case torch.Tensor() if not (value.is_floating_point() or value.is_complex()):
            return number(value.double())
        case int() | float() | complex() | np.number() | np.ndarray() | torch.Tensor():
            return number(value)
        case str():
            return value + "?"
        case dict():
            return {key: again(part) for key, part in value.items()}
        case tuple() if hasattr(value, "_fields"):
            return type(value)(*map(again, value))
        case tuple() | list() | set():
            return type(value)(map(again, value))
        case _ if dataclasses.is_dataclass(value):
            fields = [f.name for f in dataclasses.fields(value) if f.init]
            return dataclasses.replace(value, **{f: again(getattr(value, f)) for f in fields})
        case _ if callable(value):
            return lambda *args, **named: again(value(*args, **named))
        case None:
            return None
    raise TypeError(f"{type(value)} cannot be made wrong; teach `spoil` to do it")


def opposite(value: Any) -> Any:
    return not value if isinstance(value, bool | np.bool_) else 1 - value


CHANGES: dict[str, Callable[[Any], Any]] = {
    "scaled": lambda value: spoil(value, lambda x: 1.01 * x, opposite),
    "negated": lambda value: spoil(value, lambda x: -x, opposite),
    "zero": lambda value: spoil(value, lambda x: 0 * x, lambda x: x and 0 * x),
    "NaN": lambda value: spoil(value, lambda x: float("nan") * x, opposite),
}


def one_part(index: int) -> Callable[[Any], Any]:
    """A change of one entry of a tuple."""

    def change(value: tuple[Any, ...]) -> Any:
        parts = list(value)
        parts[index] = CHANGES["scaled"](parts[index])
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)

    return change


class Returned:
    """Stands in for a function, and remembers how many parts its answer had."""

    def __init__(self, function: Callable[..., Any], change: Callable[[Any], Any] | None) -> None:
        self.function, self.change, self.parts, self.calls = function, change, 0, 0

    def __call__(self, *args: Any, **named: Any) -> Any:
        value = self.function(*args, **named)
        self.calls += 1
        self.parts = len(value) if isinstance(value, tuple) else 0
        return self.change(value) if self.change else value

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else lambda *args, **named: self(instance, *args, **named)


# -- running -----------------------------------------------------------------------------------


class Outcome(NamedTuple):
    error: Exception | None
    printed: str


class Namespace:
    """The names of a running chapter, which can be put back as they were."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def run(self, code: str) -> Outcome:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(code, "<cell>", "exec"), self.names)
        except Exception as error:
            return Outcome(error, printed.getvalue())
        finally:
            plt.close("all")
        return Outcome(None, printed.getvalue())

    @contextlib.contextmanager
    def put_back(self) -> Iterator[None]:
        """Undo new bindings, and the draws of random generators."""
        before = dict(self.names)
        torches = [(g, g.get_state()) for g in before.values() if isinstance(g, torch.Generator)]
        numpies = [
            (g.bit_generator, g.bit_generator.state)
            for g in before.values()
            if isinstance(g, np.random.Generator)
        ]
        try:
            yield
        finally:
            self.names.clear()
            self.names.update(before)
            for generator, state in torches:
                generator.set_state(state)
            for bits, state in numpies:
                bits.state = state

    @contextlib.contextmanager
    def replaced(self, answer: str, value: Callable[[Any], Any]) -> Iterator[Any]:
        """One answer of the student's, ``name`` or ``Class.method``, replaced."""
        name, _, method = answer.partition(".")
        owner = self.names[name]
        if method:
            original = vars(owner)[method]
            setattr(owner, method, new := value(original))
        else:
            self.names[name] = new = value(owner)
        try:
            yield new
        finally:
            if method:
                setattr(owner, method, original)
            else:
                self.names[name] = owner


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A chapter's surroundings: its folder, no windows, its own default type and style."""
    monkeypatch.chdir(ROOT / "notebooks")
    monkeypatch.setattr(plt, "show", lambda *args, **named: None)
    dtype = torch.get_default_dtype()
    with plt.rc_context({"backend": "agg"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_default_dtype(dtype)


def exercise_cells(notebook: Notebook) -> tuple[list[Notebook], list[Notebook]]:
    """The code cells before the first solution cell's own solution starts, and those from it on."""
    before, after, reached = [], [], False
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            reached = reached or "## Exercises" in student.source(cell)
        else:
            (after if reached else before).append(cell)
    return before, after


def chapter_up_to_exercises(notebook: Notebook) -> tuple[Namespace, list[Notebook]]:
    before, after = exercise_cells(notebook)
    space = Namespace()
    for code in needed([student.source(c) for c in before], [student.source(c) for c in after]):
        if error := space.run(code).error:
            raise RuntimeError(f"of the slice, {code!r} fails") from error
    return space, after


# -- the tests of a chapter --------------------------------------------------------------------


@every_chapter
def test_blank_edition_fails_where_it_should_and_checks_refuse_wrong_answers(
    path: Path, quiet: None
) -> None:
    notebook = read(path)
    space, cells = chapter_up_to_exercises(notebook)
    with space.put_back():
        wrong = blank_complaints(space, exercise_cells(edition(path))[1])
    wrong += solved_complaints(space, cells)
    assert wrong == []


def blank_complaints(space: Namespace, cells: list[Notebook]) -> list[str]:
    wrong, stub_error = [], None
    for cell in cells:
        error, _ = space.run(student.source(cell))
        said = f"blank, cell {cell['id']}: {type(error).__name__} {error}"
        if "solution" in student.tags(cell):
            due = re.search(r'raise NotImplementedError\("(ex-[\w-]+: .*)"\)', student.source(cell))
            stub_error = error
            if error and str(error) != due[1]:
                wrong.append(said)
        elif "check" in student.tags(cell):
            missing_name = isinstance(error, NameError) and stub_error is not None
            if not missing_name and str(error) != due[1]:
                wrong.append(f"{said}; due is NotImplementedError {due[1]}")
        elif error and "raises-exception" not in student.tags(cell):
            wrong.append(said)
    return wrong


def solved_complaints(space: Namespace, cells: list[Notebook]) -> list[str]:
    wrong, solution = [], {}
    for cell in cells:
        code = student.source(cell)
        if "check" in student.tags(cell):
            wrong += check_complaints(space, solution, cell)
        error, printed = space.run(code)
        stored = "".join(
            "".join(o["text"]) for o in cell["outputs"] if o["output_type"] == "stream"
        )
        if error:
            wrong.append(f"solved, cell {cell['id']}: {type(error).__name__} {error}")
        elif printed != stored:
            wrong.append(f"solved, cell {cell['id']} prints {printed!r}, and stored is {stored!r}")
        if "solution" in student.tags(cell):
            solution = cell
    return wrong


def check_complaints(space: Namespace, solution: Notebook, check: Notebook) -> Iterator[str]:
    """What the check accepts of what it should refuse."""
    code, where = student.source(check), f"check {check['id']}"
    mine = answers(student.source(solution), code)
    accepted = solution["metadata"].get("accepted", {})
    if not mine:
        yield f"{where}: reads nothing of what the student writes"
    seen = set()
    for answer in mine:
        changes, reasons = dict(CHANGES), []
        with space.put_back(), space.replaced(answer, lambda x: remembering(x, None)) as spy:
            space.run(code)
        if isinstance(spy, Returned):
            if not spy.calls:
                yield f"{where}: never calls {answer}"
                continue
            if spy.parts > 1:
                changes |= {f"part {k} scaled": one_part(k) for k in range(spy.parts)}
        for name, change in changes.items():
            with space.put_back(), space.replaced(answer, lambda x, c=change: remembering(x, c)):
                error = space.run(code).error
            case = f"{answer} {name}"
            seen.add(case)
            if isinstance(error, AssertionError):
                reasons.append(str(error))
            if isinstance(error, TypeError) and "cannot be made wrong" in str(error):
                yield f"{where}: {error}"
            if error is None and not accepted.get(case):
                yield f"{where}: accepts {case}"
            if error is not None and case in accepted:
                yield f"{where}: refuses {case}, so the reason to accept it is void"
        if not any(reasons):
            yield f"{where}: no wrong {answer} was refused by an assertion that says why"
    yield from (f"{where}: no such case, {case}" for case in accepted if case not in seen)


def remembering(value: Any, change: Callable[[Any], Any] | None) -> Any:
    if callable(value):
        return Returned(value, change)
    return change(value) if change else value


def test_there_are_chapters() -> None:
    assert CHAPTERS


@every_chapter
def test_filled_stubs_give_the_chapter_back(path: Path) -> None:
    """Code cell by code cell, with each stub replaced by what the chapter has between its marks."""
    chapter, blank = code_cells(read(path)), code_cells(edition(path))
    assert [cell["id"] for cell in chapter] == [cell["id"] for cell in blank]
    for cell, stubbed in zip(chapter, blank, strict=True):
        solution = student.source(cell)
        blocks = re.findall(rf"^[ ]*{student.BEGIN}\n.*?{student.END}", solution, re.M | re.S)
        filled = re.sub(
            r'^[ ]*raise NotImplementedError\("ex-.*"\)$',
            lambda _, blocks=blocks: blocks.pop(0),
            student.source(stubbed),
            flags=re.M,
        )
        assert filled == solution
        assert blocks == []


@every_chapter
def test_edition_keeps_exercises_and_hints_and_no_solution(path: Path) -> None:
    chapter, blank = read(path), edition(path)
    texts = ["".join(c["source"]) for c in blank["cells"] if c["cell_type"] == "markdown"]
    original = [
        part
        for cell in chapter["cells"]
        if cell["cell_type"] == "markdown"
        for part in student.parts(student.source(cell))
    ]
    text, inside, dropped = "\n".join(texts), False, []
    for part in original:
        if part.kind in ("exercise", "dropdown") and not inside:
            assert part.text in text
        inside = part.kind == "solution-start" or (inside and part.kind != "solution-end")
        if part.kind.startswith("solution") or inside:
            dropped += [line for line in part.text.splitlines() if len(line) > 40]
    assert dropped
    assert [line for line in dropped if line in text] == []
    assert "{solution" not in text
    assert not any(student.BEGIN in student.source(cell) for cell in blank["cells"])
    assert "{admonition} Student edition" in text
    for cell in code_cells(blank):
        if "raises-exception" in student.tags(cell):
            assert cell["outputs"] == []


# -- a small chapter, to break -----------------------------------------------------------------

EXERCISE = """## Exercises

:::{exercise} Twice (★, 1 min)
:label: ex-00-1

Double a number.
:::

:::{dropdown} Hint
Add it to itself.
:::"""
START = """:::{solution-start} ex-00-1
:label: sol-00-1
:class: dropdown
:::

A number and the same number again make two of it, as everybody knows."""
SOLUTION = """def double(x):
    \"\"\"Twice x.\"\"\"
    # BEGIN SOLUTION
    y = x + x
    return y
    # END SOLUTION


def half(x):
    # BEGIN SOLUTION
    return x / 2
    # END SOLUTION"""
CHECK = """for x in (1.0, 3.0):
    assert double(x) == x + x, f"twice {x} is {x + x}, yours is {double(x)}"
    assert half(x) + half(x) == x, f"two halves of {x} make {2 * half(x)}"
print("right")"""


def small_chapter() -> Notebook:
    def markdown(name: str, text: str) -> Notebook:
        return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}

    def code(name: str, text: str, printed: str, *tags: str) -> Notebook:
        outputs = [{"output_type": "stream", "name": "stdout", "text": printed}] if printed else []
        return {
            "cell_type": "code",
            "id": name,
            "metadata": {"tags": list(tags)} if tags else {},
            "execution_count": 1,
            "source": text,
            "outputs": outputs,
        }

    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": copy.deepcopy(hygiene.METADATA),
        "cells": [
            markdown("title", "# A chapter"),
            code("said", "print(2)", "2\n"),
            markdown("exercise", EXERCISE + "\n\n" + START),
            code("answer", SOLUTION, "", "solution"),
            code("check", CHECK, "right\n", "check"),
            markdown("end", "Now you know.\n\n:::{solution-end}\n:::\n\n## Summary"),
            code("later", "print(4)", "4\n"),
        ],
    }


def cell(notebook: Notebook, name: str) -> Notebook:
    return next(c for c in notebook["cells"] if c["id"] == name)


def complaints_of(notebook: Notebook) -> list[str]:
    space, cells = chapter_up_to_exercises(notebook)
    return solved_complaints(space, cells)


def test_small_chapter_is_in_form() -> None:
    assert list(student.faults(small_chapter())) == []
    assert complaints_of(small_chapter()) == []


def test_small_edition_reads_as_expected() -> None:
    blank = student.edition(small_chapter(), "00_small", "https://example.org/book")
    assert [c["id"] for c in blank["cells"]] == [
        "title", "student-edition", "said", "exercise", "answer", "check", "end", "later",
    ]  # fmt: skip
    assert cell(blank, "exercise")["source"] == EXERCISE
    assert cell(blank, "end")["source"] == "## Summary"
    assert cell(blank, "answer")["source"] == (
        'def double(x):\n    """Twice x."""\n'
        '    raise NotImplementedError("ex-00-1: replace this line by your code")\n\n\n'
        "def half(x):\n"
        '    raise NotImplementedError("ex-00-1: replace this line by your code")'
    )
    assert cell(blank, "said")["outputs"] != []


def test_small_edition_runs_to_its_end_in_jupyter() -> None:
    blank = student.edition(small_chapter(), "00_small", "https://example.org/book")
    ran = NotebookClient(nbformat.from_dict(blank), kernel_name="python3").execute()
    errors = {c.id: [o.ename for o in c.outputs if o.output_type == "error"] for c in ran.cells
              if c.cell_type == "code"}  # fmt: skip
    assert errors == {"said": [], "answer": [], "check": ["NotImplementedError"], "later": []}
    assert cell(ran, "later")["outputs"][0]["text"] == "4\n"


def replace(name: str, old: str, new: str) -> Callable[[Notebook], None]:
    def spoil_it(notebook: Notebook) -> None:
        one = cell(notebook, name)
        assert old in one["source"]
        one["source"] = one["source"].replace(old, new)

    return spoil_it


def untag(name: str) -> Callable[[Notebook], None]:
    return lambda notebook: cell(notebook, name)["metadata"].pop("tags")


def remove(name: str) -> Callable[[Notebook], None]:
    return lambda notebook: notebook["cells"].remove(cell(notebook, name))


HINT = ":::{dropdown} Hint\nAdd it to itself.\n:::"


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (replace("answer", "    # END SOLUTION\n", ""), "# BEGIN SOLUTION within a solution"),
        (replace("answer", "    return x / 2\n    # END SOLUTION", ""), "is never closed"),
        (replace("answer", "    # BEGIN SOLUTION\n    y", "    y"), "# END SOLUTION without"),
        (replace("answer", "/ 2\n    # END", "/ 2\n# END"), "indented like its # BEGIN"),
        (replace("answer", "    return x / 2\n", ""), "nothing between"),
        (replace("answer", "def half(x):", "def half(x):)"), "not Python"),
        (replace("answer", SOLUTION, "y = 2"), "solution cell without # BEGIN SOLUTION"),
        (untag("answer"), "marks a solution, but is not tagged"),
        (remove("answer"), "the solution of ex-00-1 has no cell tagged solution"),
        (remove("answer"), "cell check: a check cell, but no solution cell before it"),
        (untag("check"), "cell answer: a solution cell without a check cell after it"),
        (remove("check"), "cell answer: a solution cell without a check cell after it"),
        (replace("check", CHECK, "print(double(2))"), "asserts nothing"),
        (replace("check", 'x, f"two halves', 'x  # f"two halves'), "has no message"),
        (replace("exercise", HINT, ""), "exercise ex-00-1 has no hint"),
        (replace("exercise", EXERCISE, "## Exercises\n\n" + HINT), "a hint without an exercise"),
        (replace("exercise", START, ""), "tagged solution, but outside of a coded solution"),
        (replace("exercise", START, ""), "a {solution-end} without its {solution-start}"),
        (replace("exercise", START, START + "\n\n" + START), "starts within that of ex-00-1"),
        (replace("end", ":::{solution-end}\n:::", ""), "no {solution-end}"),
        (replace("exercise", "itself.\n:::", "itself."), "has no closing line"),
        (
            lambda notebook: cell(notebook, "said")["metadata"].update(tags=["raises-exception"]),
            "tagged raises-exception",
        ),
    ],
)
def test_malformed_chapter_is_refused(break_it: Callable[[Notebook], None], said: str) -> None:
    notebook = small_chapter()
    break_it(notebook)
    found = list(student.faults(notebook))
    assert any(said in sentence for sentence in found), found
    with pytest.raises(student.MalformedError, match=r"^00_small, "):
        student.edition(notebook, "00_small", "https://example.org/book")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (replace("check", "double(x) == x + x", "abs(double(x) - 2 * x) < 0.1"), "double scaled"),
        (replace("check", "double(x) == x + x", "double(x) > 0"), "accepts double scaled"),
        (replace("check", "double(x) == x + x", "abs(double(x)) == 2 * x"), "double negated"),
        (replace("check", "assert double", "assert double(x) != double(x) or double"), "NaN"),
        (replace("check", "half(x) + half(x) == x", "double(x) > 0"), "never calls half"),
        (replace("check", 'f"twice {x} is {x + x}, yours is {double(x)}"', '""'), "says why"),
        (replace("answer", "x + x", "x + x + 1"), "solved, cell check: AssertionError"),
        (replace("check", "right", "wrong"), "solved, cell check prints"),
        (
            lambda notebook: cell(notebook, "answer")["metadata"].update(
                accepted={"double negated": "the sign is free"}
            ),
            "refuses double negated",
        ),
    ],
)
def test_weak_check_is_noticed(break_it: Callable[[Notebook], None], said: str) -> None:
    notebook = small_chapter()
    break_it(notebook)
    found = complaints_of(notebook)
    assert any(said in sentence for sentence in found), found


def test_reason_lets_a_check_accept() -> None:
    notebook = small_chapter()
    replace("check", "double(x) == x + x", "abs(double(x)) == 2 * x")(notebook)
    cell(notebook, "answer")["metadata"]["accepted"] = {"double negated": "the sign is free"}
    assert complaints_of(notebook) == []


def test_blank_edition_that_passes_is_noticed() -> None:
    notebook = small_chapter()
    blank = student.edition(notebook, "00_small", "https://example.org/book")
    assert blank_complaints(Namespace(), exercise_cells(blank)[1]) == []
    cell(blank, "check")["source"] = "double"
    assert "due is NotImplementedError ex-00-1" in blank_complaints(
        Namespace(), exercise_cells(blank)[1]
    )[0]  # fmt: skip
    cell(blank, "later")["source"] = "double(2)"
    assert "cell later" in blank_complaints(Namespace(), exercise_cells(blank)[1])[-1]


def test_parts_of_an_answer_are_spoiled_one_by_one() -> None:
    notebook = small_chapter()
    replace("answer", "return y", "return y, x")(notebook)
    replace("check", "double(x) == x + x", "double(x)[0] == x + x")(notebook)
    assert "check check: accepts double part 1 scaled" in complaints_of(notebook)


# -- the slice and the download ----------------------------------------------------------------


def test_slice_keeps_what_is_needed_and_nothing_else() -> None:
    before = [
        "import math\nimport torch\ntorch.set_default_dtype(torch.float64)",
        "generator = torch.Generator().manual_seed(1)",
        "first = torch.randn(2, generator=generator)",
        "def times(x):\n    return factor * x\n\n\ndef scale(x):\n    return times(x)",
        "factor = math.factorial(20)",
        "factor = 3\nkept = []",
        "slow = [math.sin(k) for k in range(10)]\nprint(slow)\nassert slow",
        "for name in ('a', 'b'):\n    kept.append(name)",
        "name = 'unused'",
    ]
    after = ["second = torch.randn(2, generator=generator)", "for name in kept:\n    scale(name)"]
    assert needed(before, after) == [
        "import torch",
        "torch.set_default_dtype(torch.float64)",
        "generator = torch.Generator().manual_seed(1)",
        "first = torch.randn(2, generator=generator)",
        "def times(x):\n    return factor * x",
        "def scale(x):\n    return times(x)",
        "factor = 3",
        "kept = []",
        "for name in ('a', 'b'):\n    kept.append(name)",
    ]


def test_archive_holds_every_chapter_and_is_the_same_each_time() -> None:
    files = student.files()
    packed = student.archive(files)
    assert packed == student.archive(dict(reversed(files.items())))
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        names = archive.namelist()
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        for path in ROOT.glob("notebooks/*.ipynb"):
            text = archive.read(f"student-edition/notebooks/{path.name}").decode()
            nbformat.validate(nbformat.reads(text, as_version=4))
    assert "student-edition/README.md" in names
    assert "student-edition/book/results/tanh.csv" in names
