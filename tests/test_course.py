"""The course's pages, its plan and its problem set agree with each other and with the chapters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from course import tasks
from course.problem_set import SOLVED, STUDENTS, students_version

ROOT = Path(__file__).parents[1]
PLAN: dict[str, Any] = yaml.safe_load((ROOT / "book" / "course.yml").read_text(encoding="utf-8"))
MINUTES = {**{f"session-{n}": 90 for n in range(1, 7)}, "short": 120}
PAGES = {p.stem: p.read_text(encoding="utf-8") for p in sorted(ROOT.glob("book/course*.md"))}
TEXTS = {**PAGES, "instructor": (ROOT / "book" / "instructor.md").read_text(encoding="utf-8")}
WHATS = {name: "\n".join(" ".join(s["what"].split()) for s in one["plan"]) + "\n" + one["read"]
         for name, one in PLAN.items()}  # fmt: skip
CHAPTERS = {
    p.stem: json.loads(p.read_text(encoding="utf-8"))["cells"]
    for p in sorted(ROOT.glob("notebooks/*.ipynb"))
}
MARKDOWN = {
    stem: "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    for stem, cells in CHAPTERS.items()
}
BOOK = "\n\n".join(MARKDOWN.values())
LABELS = set(re.findall(r"^:label: (\S+)$", BOOK, flags=re.M))
SECTIONS = set(re.findall(r"^\((sec-[\w-]+)\)=$", BOOK, flags=re.M))
EQUATIONS = set(re.findall(r"^\$\$ \(([\w-]+)\)$", BOOK, flags=re.M))
FIGURES = {
    cell["metadata"].get("mystnb", {}).get("figure", {}).get("name")
    for cells in CHAPTERS.values()
    for cell in cells
}
EXERCISES = {
    label: (stars, int(minutes))
    for stars, minutes, label in re.findall(
        r"^:::+\{exercise\} [^\n]*\((★+), (\d+) min\)\n:label: (\S+)$", BOOK, flags=re.M
    )
}
READ = {
    stem: int(re.search(r"\*\*Read:\*\* (\d+) min", text).group(1))  # type: ignore[union-attr]
    for stem, text in MARKDOWN.items()
}
KNOWN = {"prf:ref": LABELS, "ref": SECTIONS | LABELS, "eq": EQUATIONS, "numref": FIGURES}


def everything() -> Iterator[tuple[str, str]]:
    yield from TEXTS.items()
    yield from WHATS.items()


def pieces() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, session in PLAN.items():
        for step in session["plan"]:
            for piece in step.get("slides", []):
                yield name, piece


def test_there_are_six_sessions_and_a_short_version() -> None:
    assert list(PLAN) == list(MINUTES)
    for name in PLAN:
        shown = [page for page in PAGES.values() if f":::{{course-plan}} {name}\n" in page]
        assert len(shown) == 1, name


@pytest.mark.parametrize("name", MINUTES)
def test_minutes_add_up(name: str) -> None:
    session = PLAN[name]
    assert session["minutes"] == MINUTES[name]
    assert sum(step["minutes"] for step in session["plan"]) == MINUTES[name]
    assert all(5 <= step["minutes"] <= 20 for step in session["plan"])


@pytest.mark.parametrize("name", MINUTES)
def test_a_session_has_guesses_proofs_runs_and_exercises(name: str) -> None:
    kinds = [step["kind"] for step in PLAN[name]["plan"]]
    assert {"guess", "board", "run", "talk"} <= set(kinds)
    assert "exercise" in kinds or name == "session-6"
    assert 3 <= len(PLAN[name]["aims"]) <= 4


@pytest.mark.parametrize("page", PAGES)
def test_a_session_page_has_all_that_a_teacher_needs(page: str) -> None:
    if page == "course":
        return
    text = PAGES[page]
    wrong, hand_in = (
        "## Misconceptions",
        "## To hand in" if page != "course_short" else "## To take",
    )
    assert wrong in text
    assert hand_in in text
    part = text[text.index(wrong) : text.index(hand_in)]
    assert len(re.findall(r"^\*\*[“\"]", part, flags=re.M)) >= 4, page


def test_every_label_that_is_named_exists() -> None:
    for where, text in everything():
        for role, label in re.findall(r"\{(prf:ref|ref|eq|numref)\}`([^`<]+)`", text):
            assert label in KNOWN[role], (where, role, label)
    for name, piece in pieces():
        for kind in ("statement", "proof", "exercise"):
            if kind in piece:
                assert piece[kind] in LABELS, (name, piece)
        if "figure" in piece:
            assert piece["figure"] in FIGURES, (name, piece)
        if "takeaway" in piece:
            assert 1 <= piece["takeaway"] <= len(CHAPTERS)


def test_every_page_that_is_named_exists() -> None:
    for where, text in everything():
        for target in re.findall(r"\{doc\}`(?:[^`<]*<)?([^`>]+)>?`", text):
            folder = ROOT if target.startswith("/") else ROOT / "book"
            found = [folder / (target.lstrip("/") + end) for end in (".md", ".ipynb")]
            assert any(p.is_file() for p in found), (where, target)


def test_exercises_have_the_stars_and_minutes_that_are_said() -> None:
    said = 0
    for where, text in everything():
        for label, stars, minutes in re.findall(r"\{ref\}`(ex-\d\d-\d)` \((★+), (\d+) min\)", text):
            assert EXERCISES[label] == (stars, int(minutes)), (where, label)
            said += 1
    assert said >= 15


def test_exercises_in_class_have_their_minutes() -> None:
    for name, session in PLAN.items():
        for step in session["plan"]:
            if step["kind"] == "exercise":
                labels = re.findall(r"\{ref\}`(ex-\d\d-\d)`", step["what"])
                assert labels, (name, step["what"])
                assert sum(EXERCISES[label][1] for label in labels) <= step["minutes"]


def test_reading_takes_as_long_as_the_chapters_say() -> None:
    said = 0
    for where, text in everything():
        flat = " ".join(text.split())
        for stem, rest in re.findall(r"\{doc\}`/notebooks/(\w+)`([^{]*)", flat):
            for part, whole in re.findall(r"\((?:(\d+) of its )?(\d+) min\)", rest):
                assert int(whole) == READ[stem], (where, stem)
                assert int(part or whole) <= int(whole)
                said += 1
    assert said >= 8
    for name, session in PLAN.items():
        reads = re.findall(r"\((\d+) (?:of its \d+ )?min\)|\{doc\}", session["read"])
        assert name == "short" or reads


def test_explorables_are_looked_for_where_they_are() -> None:
    homes = {"cobweb": "02", "sphere": "06", "landscape": "05", "link": "11", "rate": "08"}
    seen = set()
    for name, text in WHATS.items():
        for explorable, chapter in re.findall(
            r"explorable \*(\w+)\*[^`]*\{doc\}`/notebooks/(\d\d)", text
        ):
            assert homes[explorable] == chapter, (name, explorable)
            seen.add(explorable)
    assert seen == set(homes)


# --- the problem set ---------------------------------------------------------------------------


def source_of(path: Path) -> dict[str, dict[str, Any]]:
    """The notebook's cells by what stands in them."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {"".join(cell["source"]): cell for cell in cells}


def run(path: Path, change: tuple[str, str] | None = None) -> dict[str, Any]:
    """Run a notebook's code cells. Returns its names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for source, cell in source_of(path).items():
        if cell["cell_type"] == "code":
            changed = source.replace(*change) if change and "solution" in tags(cell) else source
            exec(compile(changed, "<cell>", "exec"), names)
    return names


def tags(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def test_students_notebook_is_made_from_the_solved_one() -> None:
    solved = SOLVED.read_text(encoding="utf-8")
    assert STUDENTS.read_text(encoding="utf-8") == students_version(solved)
    assert "SOLUTION" not in STUDENTS.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [SOLVED, STUDENTS], ids=["solved", "students"])
def test_notebooks_are_clean(path: Path) -> None:
    cells = source_of(path).values()
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in cells
               if c["cell_type"] == "code")  # fmt: skip
    assert "deqlib" not in " ".join(source_of(path))
    for task in tasks.TASKS:
        assert any(s.startswith(f"def {task.name}(") for s in source_of(path)), task.name


def test_students_functions_say_that_they_are_to_do() -> None:
    for source, cell in source_of(STUDENTS).items():
        if "solution" in tags(cell):
            names: dict[str, Any] = {}
            exec(source, names)
            name, function = next((k, v) for k, v in names.items() if callable(v))
            with pytest.raises(NotImplementedError, match=name):
                function(*[None] * function.__code__.co_argcount)
        assert "raises-exception" in tags(cell) or not {"solution", "check"} & set(tags(cell))


def test_solutions_pass_the_public_checks(capsys: pytest.CaptureFixture[str]) -> None:
    run(SOLVED)
    assert capsys.readouterr().out.count("passes its public checks") == len(tasks.TASKS)


@pytest.mark.parametrize(
    "change",
    [
        ('"converged": bool(residual <= tol)', '"converged": True'),
        ("z = last  # the residual was measured here", "pass"),
        ("slopes = 1 - z**2", "slopes = torch.ones_like(z)"),
        ("J.T, v)", "J, v)"),
        ('"U": torch.outer(q, x)', '"U": torch.outer(q, z[:2])'),
        ("C = P @ P.mT + U @ U.mT", "C = P @ P.mT"),
        ("- W\n", "+ W\n"),
        ("lowest >= -1e-8 * size", "lowest >= -1e8 * size"),
        ("r = torch.sqrt(P**2 + u @ u)", "r = torch.abs(P)"),
        ("bool(abs(1 - P_end) < 1)", "bool(P_end > 0)"),
        ("P_end * A,", "A,"),
        ("edge = 2 *", "edge = 4 *"),
        ("(1 + Phi**2) ** 2", "(1 + Phi**2)"),
        ("2 * omega + 4", "omega + 4"),
        ("D = slope / (1 - a * slope)", "D = -slope"),
        ("low, high = s - abs(a), s + abs(a)", "low, high = s - 1, s + 1"),
    ],
    ids=lambda change: change[1][:30],
)
def test_public_checks_can_fail(change: tuple[str, str]) -> None:
    assert sum(change[0] in source for source in source_of(SOLVED)) >= 1
    with pytest.raises(AssertionError):
        run(SOLVED, change)


def test_points_and_minutes_of_the_problem_set() -> None:
    text = "\n".join(source_of(SOLVED))
    said = re.findall(r"^## (\d)\. .*\((\d+) points, (\d+) min\)$", text, flags=re.M)
    assert [int(points) for _, points, _ in said] == [task.points for task in tasks.TASKS]
    minutes = {number: int(m) for number, _, m in said}
    table = re.findall(r"^\| \d \| ([\d and]+), .*\| (\d+) \|$", PAGES["course"], flags=re.M)
    assert len(table) == 5
    for numbers, due in table:
        assert sum(minutes[n] for n in re.findall(r"\d", numbers)) == int(due)
    for page, whole in PAGES.items():
        for number, due in re.findall(r"[Tt]ask (\d) of .*?\((\d+) min\)", whole):
            assert minutes[number] == int(due), page
    given = "\n".join(WHATS.values())
    for number in "123456":
        assert re.search(rf"[Gg]ive out (?:the first task|tasks? [\d and]*{number})", given) or (
            number == "1" and "the first task" in given
        )


def test_commands_of_the_instructors_page_are_the_graders() -> None:
    from course.grade import parser

    commands = re.findall(r"python -m course\.grade ([^`]*?)\n```", TEXTS["instructor"])
    assert len(commands) == 3
    for command in commands:
        parser().parse_args(command.split())
    options = set(re.findall(r"`(--\w+)", TEXTS["instructor"]))
    assert options <= set(parser().format_help().replace("[", " ").replace(",", " ").split())
