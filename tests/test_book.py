"""The book's sources agree with each other and with deqlib.

A theorem in a chapter without its object, or an object without its theorem, fails here; so do a
citation without an entry, an entry nobody cites, and a file that the table of contents forgot.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import contents
import pytest
import yaml

from deqlib.theorems import FINDINGS, THEOREMS

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(ROOT.glob("notebooks/*.ipynb"))
PAGES = sorted(ROOT.glob("book/**/*.md"))


def markdown(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    captions = [c["metadata"].get("mystnb", {}).get("figure", {}).get("caption", "") for c in cells]
    texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    return "\n\n".join(texts + captions)


TEXTS = {path: markdown(path) for path in [*CHAPTERS, *PAGES]}


class Directive(NamedTuple):
    kind: str
    argument: str
    label: str
    body: str
    path: Path


def directives(path: Path, text: str) -> Iterator[Directive]:
    """Every labelled ``:::{kind} argument`` block of a text."""
    pattern = r"^(:{3,})\{([\w:-]+)\}([^\n]*)\n((?::\w+:[^\n]*\n)*)(.*?)^\1[ ]*$"
    for found in re.finditer(pattern, text, flags=re.M | re.S):
        _, kind, argument, options, body = found.groups()
        label = re.search(r"^:label:\s*(\S+)", options, flags=re.M)
        yield Directive(kind, argument.strip(), label.group(1) if label else "", body, path)
        yield from directives(path, body)


DIRECTIVES = [one for path, text in TEXTS.items() for one in directives(path, text)]
STATED = {one.label: one for one in DIRECTIVES if one.kind == "prf:theorem"}


def test_table_of_contents_and_files_are_the_same() -> None:
    files = [p.relative_to(ROOT).with_suffix("").as_posix() for p in TEXTS]
    assert sorted(contents.PAGES) == sorted(files)


def test_theorems_and_objects_are_the_same() -> None:
    assert set(STATED) == set(THEOREMS)


def test_every_theorem_has_its_page_in_the_order_of_the_book() -> None:
    """A page is named by its label and holds one directive, which writes the rest."""
    assert [f"book/theorems/{label}" for label in THEOREMS] == contents.THEOREM_PAGES
    for page in contents.THEOREM_PAGES:
        assert TEXTS[ROOT / f"{page}.md"] == ":::{theorem-page}\n:::\n", page


@pytest.mark.parametrize("label", THEOREMS)
def test_theorem_stands_in_its_chapter(label: str) -> None:
    assert STATED[label].path.stem == THEOREMS[label].chapter


@pytest.mark.parametrize("label", THEOREMS)
def test_theorem_names_its_hypotheses(label: str) -> None:
    """A hypothesis is written ``*(name)*`` in the statement, with the object's name for it."""
    named = re.findall(r"\*\(([^()]+)\)\*", STATED[label].body)
    assert {name.replace(" ", "-") for name in named} == set(THEOREMS[label].hypotheses)


@pytest.mark.parametrize("label", THEOREMS)
def test_theorem_is_proved_after_it_is_stated(label: str) -> None:
    text = TEXTS[STATED[label].path]
    assert "{prf:proof}" in text[text.index(f":label: {label}") :]


@pytest.mark.parametrize("label", FINDINGS)
def test_finding_stands_in_its_chapter_and_is_no_theorem(label: str) -> None:
    target = re.fullmatch(r"\{(?:prf:)?ref\}`([^`]+)`", FINDINGS[label].where)
    assert target is not None
    chapter = next(path for path in CHAPTERS if path.stem == FINDINGS[label].chapter)
    anchored = {one.label for one in directives(chapter, TEXTS[chapter])}
    anchored |= set(re.findall(r"^\(([\w-]+)\)=$", TEXTS[chapter], flags=re.M))
    assert target[1] in anchored
    assert label not in STATED


@pytest.mark.parametrize("label", [*THEOREMS, *FINDINGS])
def test_theorem_has_its_own_tests(label: str) -> None:
    stem = type({**THEOREMS, **FINDINGS}[label]).__module__.rsplit(".", 1)[1]
    assert (ROOT / "tests" / f"test_{stem}.py").is_file()


def test_open_questions_are_references_that_exist() -> None:
    """Roles point at labels and pages of the book; each question ends and names a place."""
    labels = {one.label for one in DIRECTIVES}
    for text in TEXTS.values():
        labels |= set(re.findall(r"^\(([\w-]+)\)=$", text, flags=re.M))
        labels |= set(re.findall(r"^\$\$[ ]*\(([\w-]+)\)[ ]*$", text, flags=re.M))
    for theorem in [*THEOREMS.values(), *FINDINGS.values()]:
        for question in theorem.open_questions:
            roles = re.findall(r"\{([\w:]+)\}`([^`]+)`", question)
            assert roles, question
            for kind, target in roles:
                known = set(contents.PAGES) if kind == "doc" else labels
                assert target.lstrip("/") in known, (theorem.label, target)


def test_labels_are_unique_and_no_file_names() -> None:
    labels = [one.label for one in DIRECTIVES if one.label]
    for text in TEXTS.values():
        labels += re.findall(r"^\(([\w-]+)\)=$", text, flags=re.M)
        labels += re.findall(r"^\$\$[ ]*\(([\w-]+)\)[ ]*$", text, flags=re.M)
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    assert repeated == []
    pages = {path.stem for path in TEXTS}
    assert set(labels).isdisjoint(pages - set(THEOREMS)), "but for a theorem's own page"


def bib_keys() -> list[str]:
    text = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    return re.findall(r"^@\w+\{([^,\s]+),", text, flags=re.M)


def cited_keys() -> set[str]:
    found = re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", "\n".join(TEXTS.values()))
    return {key.strip() for group in found for key in group.split(",")}


def test_citations_and_bibliography_are_the_same() -> None:
    keys = bib_keys()
    assert len(set(keys)) == len(keys)
    assert cited_keys() - set(keys) == set(), "cited, but not in references.bib"
    assert set(keys) - cited_keys() == set(), "in references.bib, but cited nowhere"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_exercise_has_its_solution(path: Path) -> None:
    mine = [one for one in DIRECTIVES if one.path == path]
    exercises = [d.label for d in mine if d.kind in ("exercise", "exercise-start")]
    solutions = [d.argument for d in mine if d.kind in ("solution", "solution-start")]
    assert 3 <= len(exercises) <= 6
    assert sorted(exercises) == sorted(solutions)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_glued_numbers_are_used_and_used_numbers_are_glued(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    glued = re.findall(r"""glue\(\s*f?["']([^"'{]+)["']""", code)
    used = {k.split(":")[0] for k in re.findall(r"\{glue:\w+\}`([^`]+)`", TEXTS[path])}
    assert len(set(glued)) == len(glued), "one name glued twice"
    assert used - set(glued) == set(), "used, but never glued"
    assert set(glued) - used == set(), "glued, but never used"


def test_public_repository_is_named_in_one_place() -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    address = config["repository"]["url"]
    files = [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml")]
    for path in [*files, *PAGES, *CHAPTERS, *ROOT.glob("deqlib/**/*.py")]:
        assert address not in path.read_text(encoding="utf-8"), path
