"""The minutes that a chapter states agree with its length.

Reading: 230 words of prose a minute, a second and a half for a formula in a line, ten seconds for
a displayed one, fifteen for a figure, and one for each line of code that is shown unfolded, up to
the exercises. Doing: the sum of the exercises' own minutes. A reader's pace varies more than this
model, so the two may differ by a factor of 3/2; a chapter that grows by half must state more.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from contents import CHAPTERS, ROOT

STATED = re.compile(r"\*\*Read:\*\* (\d+) min · \*\*Do:\*\* (\d+) min")
FACTOR = 1.5
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


def cells(chapter: str) -> list[tuple[dict[str, Any], str]]:
    found = json.loads((ROOT / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [(cell, "".join(cell["source"])) for cell in found]


def stated(chapter: str) -> tuple[int, int]:
    found = STATED.search(cells(chapter)[0][1])
    assert found is not None, "the first cell states no minutes"
    return int(found.group(1)), int(found.group(2))


def seconds_of_prose(text: str) -> float:
    displays = re.findall(r"\$\$.*?\$\$", text, flags=re.S)
    text = re.sub(r"\$\$.*?\$\$", " ", text, flags=re.S)
    formulas = re.findall(r"\$[^$]+\$", text)
    words = re.findall(r"[A-Za-z’']{2,}", re.sub(r"\$[^$]+\$", " ", text))
    return len(words) * 60 / 230 + len(formulas) * 1.5 + len(displays) * 10


def minutes_to_read(chapter: str) -> float:
    seconds = 0.0
    for cell, text in cells(chapter):
        if cell["cell_type"] == "markdown":
            before, heading, _ = text.partition("## Exercises")
            seconds += seconds_of_prose(before)
            if heading:
                return seconds / 60
            continue
        seconds += 15 if "mystnb" in cell["metadata"] else 0
        if not FOLDED & set(cell["metadata"].get("tags", [])):
            seconds += sum(1 for line in text.splitlines() if line.strip())
    raise AssertionError("there are no exercises")


def minutes_to_do(chapter: str) -> int:
    text = "\n".join(text for _, text in cells(chapter))
    return sum(map(int, re.findall(r"\(★+, (\d+) min\)", text)))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_reading_takes_the_minutes_that_are_stated(chapter: str) -> None:
    read, estimate = stated(chapter)[0], minutes_to_read(chapter)
    assert read / FACTOR <= estimate <= read * FACTOR, f"states {read}, takes about {estimate:.0f}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_exercises_take_the_minutes_that_are_stated(chapter: str) -> None:
    do, total = stated(chapter)[1], minutes_to_do(chapter)
    assert do / FACTOR <= total <= do * FACTOR, f"states {do}, its exercises say {total}"
