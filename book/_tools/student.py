"""The student edition: the chapters with exercises, hints, stubs and checks, without solutions.

The chapters are its only source. In a chapter, a solution that is code stands between
`{solution-start}` and `{solution-end}` as a cell tagged `solution`, whose answer lies between the
lines `# BEGIN SOLUTION` and `# END SOLUTION`, followed by a cell tagged `check`, which asserts what
the answer must do. The edition puts a `NotImplementedError` in the answer's place, and drops
`{solution}` blocks and the prose of solutions. Figures above the exercises keep their outputs.

    python book/_tools/student.py           # write _build/student
    python book/_tools/student.py --check   # say what is malformed, write nothing

As a Sphinx extension it adds the edition to the site, as `_static/student-edition.zip`.
"""

from __future__ import annotations

import argparse
import ast
import copy
import io
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "# BEGIN SOLUTION", "# END SOLUTION"
STUB = 'raise NotImplementedError("{label}: replace this line by your code")'
RESULTS = "book/results/*.csv"  # measured by hours of runs; two chapters read them

HEADER = """\
:::{{admonition}} Student edition
:class: note
This is chapter *{chapter}* of *The Equilibrium Book* without the solutions. Where a cell says
`raise NotImplementedError`, put your code in the place of that line, run the cell, and run the
check below it. A check that ends without an error accepts your answer; an `AssertionError` says
what is wrong. *Run all* goes to the end whatever is missing.

Everything imports the book's library: `pip install "deqlib[notebooks] @ git+{repository}"`. The
solutions are in the book.
:::"""

README = """\
# The Equilibrium Book, student edition

The chapters without their solutions: exercises, hints, stubs to fill in, and checks that say what
is wrong. Python 3.10 to 3.13 is needed. In this folder:

    pip install jupyterlab jupyterlab-myst "deqlib[notebooks] @ git+{repository}"
    jupyter lab notebooks

Text: CC BY 4.0. Code: BSD 3-Clause. Solutions: in the book, {repository}
"""

Notebook = dict[str, Any]


class MalformedError(ValueError):
    """A chapter's exercises are not in the form that the edition is made from."""


# -- reading a chapter -------------------------------------------------------------------------


class Part(NamedTuple):
    """A directive at the top level of a markdown cell, or the text between two of them."""

    kind: str  # "text", or the directive's name
    argument: str
    text: str


def parts(text: str) -> Iterator[Part]:
    """Split a markdown cell into its directives in colons and the text between them."""
    between: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        opened = re.match(r"(:{3,})\{([\w:-]+)\}\s*(.*)", line)
        if not opened:
            between.append(line)
            continue
        yield Part("text", "", "\n".join(between))
        between, body = [], [line]
        for inner in lines:
            body.append(inner)
            if inner.rstrip() == opened[1]:
                break
            if inner.startswith(opened[1] + "{"):
                raise MalformedError(f"{line!r} has no closing line {opened[1]} before {inner!r}")
        else:
            raise MalformedError(f"{line!r} has no closing line {opened[1]}")
        yield Part(opened[2], opened[3].strip(), "\n".join(body))
    yield Part("text", "", "\n".join(between))


def label(part: Part) -> str:
    found = re.search(r"^:label:\s*(\S+)", part.text, flags=re.M)
    return found[1] if found else part.argument


def tags(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def is_hint(part: Part) -> bool:
    return part.kind == "dropdown" and part.argument == "Hint"


# -- stubs -------------------------------------------------------------------------------------


def stub(code: str, exercise: str) -> str:
    """The code with each marked block replaced by one line that raises, equally indented."""
    given, margin = [], None
    for line in code.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        match line.strip(), margin:
            case "# BEGIN SOLUTION", None:
                margin, answer = indent, ""
            case "# BEGIN SOLUTION", _:
                raise MalformedError(f"{BEGIN} within a solution; {END} is due before it")
            case "# END SOLUTION", None:
                raise MalformedError(f"{END} without {BEGIN} before it")
            case "# END SOLUTION", _:
                if indent != margin:
                    raise MalformedError(f"{END} must be indented like its {BEGIN}")
                if not answer.strip():
                    raise MalformedError(f"nothing between {BEGIN} and {END}")
                given.append(margin + STUB.format(label=exercise))
                margin = None
            case _, None:
                given.append(line)
            case _:
                answer += line
    if margin is not None:
        raise MalformedError(f"{BEGIN} is never closed; {END} is due on a line of its own")
    return "\n".join(given)


# -- what is malformed -------------------------------------------------------------------------


def faults(notebook: Notebook) -> Iterator[str]:
    """Sentences that name what keeps the chapter from having a student edition."""
    inside, answers, unchecked, code = "", 0, "", 0
    for cell in notebook["cells"]:
        here = f"cell {cell.get('id')}"
        mine = {"solution", "check"} & set(tags(cell))
        if cell["cell_type"] != "code":
            try:
                pieces = list(parts(source(cell)))
            except MalformedError as error:
                yield f"{here}: {error}"
                continue
            yield from (f"{here}: {said}" for said in hints_missing(pieces))
            for part in pieces:
                if part.kind == "solution-start":
                    if inside:
                        yield f"{here}: solution {part.argument} starts within that of {inside}"
                    inside, answers = part.argument, 0
                elif part.kind == "solution-end":
                    if not inside:
                        yield f"{here}: a {{solution-end}} without its {{solution-start}}"
                    elif not answers:
                        yield f"{here}: the solution of {inside} has no cell tagged solution"
                    if unchecked:
                        yield f"cell {unchecked}: a solution cell without a check cell after it"
                    inside, unchecked = "", ""
            continue

        code += "solution" in mine
        if "raises-exception" in tags(cell):
            yield f"{here}: tagged raises-exception; nothing in a chapter raises"
        if mine and not inside:
            yield f"{here}: tagged {', '.join(sorted(mine))}, but outside of a coded solution"
        if unchecked and "check" not in mine:
            yield f"cell {unchecked}: a solution cell without a check cell after it"
            unchecked = ""
        if "solution" in mine:
            answers, unchecked = answers + 1, str(cell.get("id"))
            yield from (f"{here}: {said}" for said in solution_faults(source(cell), inside))
        elif BEGIN in source(cell) or END in source(cell):
            yield f"{here}: marks a solution, but is not tagged solution"
        if "check" in mine:
            if not answers:
                yield f"{here}: a check cell, but no solution cell before it"
            unchecked = ""
            yield from (f"{here}: {said}" for said in check_faults(source(cell)))
    if inside:
        yield f"the solution of {inside} has a {{solution-start}} and no {{solution-end}}"
    if not code:
        yield "no exercise has a solution in code; one at least is due, tagged solution"


def hints_missing(pieces: list[Part]) -> Iterator[str]:
    """Each exercise is followed by a folded hint, with no more than text between them."""
    waiting = ""
    for part in pieces:
        if is_hint(part):
            if not waiting:
                yield "a hint without an exercise before it"
            waiting = ""
        elif part.kind != "text" and waiting:
            yield f"exercise {waiting} has no hint; :::{{dropdown}} Hint is due right after it"
            waiting = ""
        if part.kind == "exercise":
            waiting = label(part)
    if waiting:
        yield f"exercise {waiting} has no hint; :::{{dropdown}} Hint is due right after it"


def solution_faults(code: str, exercise: str) -> Iterator[str]:
    if BEGIN not in code and END not in code:
        yield f"a solution cell without {BEGIN} and {END}"
        return
    try:
        ast.parse(stub(code, exercise))
    except MalformedError as error:
        yield str(error)
    except SyntaxError as error:
        yield f"without its answer the cell is not Python: {error}"


def check_faults(code: str) -> Iterator[str]:
    asserted = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assert)]
    if not asserted:
        yield "a check cell that asserts nothing"
    for node in asserted:
        if node.msg is None:
            yield f"{ast.unparse(node)!r} has no message; say what is wrong with the answer"


# -- making the edition ------------------------------------------------------------------------


def edition(notebook: Notebook, chapter: str, repository: str) -> Notebook:
    """The chapter without its solutions. Raises MalformedError with all its faults."""
    if found := list(faults(notebook)):
        raise MalformedError("\n".join(f"{chapter}, {said}" for said in found))
    cells: list[dict[str, Any]] = []
    exercise, answered = "", False
    for original in notebook["cells"]:
        cell = copy.deepcopy(original)
        if cell["cell_type"] == "markdown":
            kept = []
            for part in parts(source(cell)):
                if part.kind in ("solution-start", "solution-end"):
                    exercise, answered = part.argument, False
                elif part.kind != "solution" and not exercise:
                    kept.append(part.text)
            text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
            if text:
                cells.append(cell | {"source": text})
            continue
        if not exercise:
            cells.append(cell)
            continue
        if "solution" in tags(cell):
            cell["source"], answered = stub(source(cell), exercise), True
        if answered:  # raises until the student has an answer, and must not stop "Run all"
            cell["outputs"], cell["execution_count"] = [], None
            cell["metadata"]["tags"] = [*tags(cell), "raises-exception"]
        cells.append(cell)
    header = HEADER.format(chapter=chapter, repository=repository)
    about = {"cell_type": "markdown", "id": "student-edition", "metadata": {}, "source": header}
    made = dict(notebook) | {"cells": [cells[0], about, *cells[1:]]}
    nbformat.validate(nbformat.from_dict(made))
    return made


def repository() -> str:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return config["repository"]["url"]


def files() -> dict[str, str]:
    """Everything in the edition's folder: path and text. Raises MalformedError for all chapters."""
    address = repository()
    made, malformed = {"README.md": README.format(repository=address)}, []
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        chapter = json.loads(path.read_text(encoding="utf-8"))
        try:
            notebook = edition(chapter, path.stem, address)
        except MalformedError as error:
            malformed.append(str(error))
            continue
        made[f"notebooks/{path.name}"] = nbformat.writes(nbformat.from_dict(notebook)) + "\n"
    for path in sorted(ROOT.glob(RESULTS)):
        made[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    if malformed:
        raise MalformedError("\n".join(malformed))
    return made


def archive(folder: dict[str, str]) -> bytes:
    """The files as a zip, the same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for name, text in sorted(folder.items()):
            entry = zipfile.ZipInfo(f"student-edition/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            packed.writestr(entry, text.encode())
    return buffer.getvalue()


def add_to_site(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        (Path(app.outdir) / "_static" / "student-edition.zip").write_bytes(archive(files()))


def setup(app: Any) -> dict[str, bool]:
    app.connect("build-finished", add_to_site)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    try:
        folder = files()
    except MalformedError as error:
        print(error, file=sys.stderr)
        return 1
    for name, text in {} if options.check else folder.items():
        path = ROOT / "_build" / "student" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    notebooks = sum(name.endswith(".ipynb") for name in folder)
    print(f"{notebooks} chapters" + ("" if options.check else " in _build/student/notebooks"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
