"""The chapters as stored: outputs there, in order, clean; and the rules can fail."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hygiene import METADATA, complaints

CHAPTERS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))
Notebook = dict[str, Any]


def test_there_are_chapters() -> None:
    assert CHAPTERS


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_is_clean(path: Path) -> None:
    assert complaints(path.read_text(encoding="utf-8")) == []


def code_cell(name: str, count: int, source: str, *outputs: Any, **metadata: Any) -> Notebook:
    return {
        "cell_type": "code",
        "id": name,
        "metadata": metadata,
        "execution_count": count,
        "source": source,
        "outputs": list(outputs),
    }


def markdown_cell(name: str, source: str) -> Notebook:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source}


EXERCISE = """:::{exercise} Two
:label: ex-two

Make two.
:::

:::{dropdown} Hint
One more than one.
:::

:::{solution-start} ex-two
:::"""


def clean_notebook() -> Notebook:
    """The smallest chapter that no rule objects to."""
    picture = {
        "output_type": "display_data",
        "metadata": {},
        "data": {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 640x480 with 1 Axes>"},
    }
    caption = {
        "figure": {"name": "fig-line", "caption": "A line $y = x$."},
        "image": {"alt": "A straight line from the lower left to the upper right."},
    }
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": copy.deepcopy(METADATA),
        "cells": [
            markdown_cell("title", "# A chapter"),
            code_cell("check", 1, "assert 1 + 1 == 2"),
            code_cell(
                "said", 2, "print(2)", {"output_type": "stream", "name": "stdout", "text": "2\n"}
            ),
            code_cell("drawn", 3, "plt.plot([0, 1])\nplt.show()", picture, mystnb=caption),
            code_cell(
                "moved",
                4,
                "interact(draw)",
                tags=["nbval-ignore-output"],
                nbval_ignore_reason="a slider needs a kernel",
            ),
            markdown_cell("exercise", EXERCISE),
            code_cell("solved", 5, "# BEGIN SOLUTION\ntwo = 2\n# END SOLUTION", tags=["solution"]),
            code_cell("checked", 6, "assert two == 2, f'two is {two}'", tags=["check"]),
            markdown_cell("end", ":::{solution-end}\n:::"),
        ],
    }


def cell(notebook: Notebook, name: str) -> Notebook:
    return next(c for c in notebook["cells"] if c["id"] == name)


def test_the_clean_notebook_is_clean() -> None:
    assert complaints(json.dumps(clean_notebook())) == []


def clear_outputs(notebook: Notebook) -> None:
    for one in notebook["cells"][1:]:
        one["outputs"], one["execution_count"] = [], None


def clear_one_print(notebook: Notebook) -> None:
    cell(notebook, "said")["outputs"] = []


def clear_one_figure(notebook: Notebook) -> None:
    cell(notebook, "drawn")["outputs"] = []


def swap_order(notebook: Notebook) -> None:
    cell(notebook, "check")["execution_count"], cell(notebook, "said")["execution_count"] = 2, 1


def store_error(notebook: Notebook) -> None:
    cell(notebook, "check")["outputs"] = [
        {"output_type": "error", "ename": "AssertionError", "evalue": "", "traceback": []}
    ]


def write_to_stderr(notebook: Notebook) -> None:
    cell(notebook, "check")["outputs"] = [
        {"output_type": "stream", "name": "stderr", "text": "a warning"}
    ]


def lose_alt(notebook: Notebook) -> None:
    del cell(notebook, "drawn")["metadata"]["mystnb"]["image"]


def lose_caption(notebook: Notebook) -> None:
    cell(notebook, "drawn")["metadata"]["mystnb"]["figure"]["caption"] = " "


def lose_name(notebook: Notebook) -> None:
    del cell(notebook, "drawn")["metadata"]["mystnb"]["figure"]["name"]


def glue_beside_figure(notebook: Notebook) -> None:
    glued = {"output_type": "display_data", "metadata": {}, "data": {"text/plain": "'1'"}}
    cell(notebook, "drawn")["outputs"].append(glued)


def repeat_id(notebook: Notebook) -> None:
    cell(notebook, "said")["id"] = "check"


def say_where(notebook: Notebook) -> None:
    cell(notebook, "said")["outputs"][0]["text"] = "/" + "home/reader/book/data.csv"


def print_digits(notebook: Notebook) -> None:
    cell(notebook, "said")["outputs"][0]["text"] = "0.30000000000000004"


def name_a_machine(notebook: Notebook) -> None:
    notebook["metadata"]["kernelspec"]["display_name"] = "my environment"


def set_threads(notebook: Notebook) -> None:
    cell(notebook, "check")["source"] += "\ntorch.set_num_threads(2)"


def seed_globally(notebook: Notebook) -> None:
    cell(notebook, "check")["source"] += "\ntorch.manual_seed(0)"


def draw_globally(notebook: Notebook) -> None:
    cell(notebook, "check")["source"] += "\nx = np.random.randn(3)"


def draw_without_generator(notebook: Notebook) -> None:
    cell(notebook, "check")["source"] += "\nx = torch.randn(3)"


def ignore_without_reason(notebook: Notebook) -> None:
    del cell(notebook, "moved")["metadata"]["nbval_ignore_reason"]


def ignore_much(notebook: Notebook) -> None:
    for name in ("said", "check"):
        cell(notebook, name)["metadata"] = dict(cell(notebook, "moved")["metadata"])


def use_magic(notebook: Notebook) -> None:
    cell(notebook, "check")["source"] += "\n%matplotlib inline"


def assert_nothing(notebook: Notebook) -> None:
    for name in ("check", "checked"):
        cell(notebook, name)["source"] = "1 + 1"


def lose_hint(notebook: Notebook) -> None:
    cell(notebook, "exercise")["source"] = EXERCISE.replace("{dropdown} Hint", "{note}")


def lose_check(notebook: Notebook) -> None:
    cell(notebook, "checked")["metadata"] = {}


def add_title(notebook: Notebook) -> None:
    cell(notebook, "title")["source"] += "\n\n# Another title"


def fence_with_backticks(notebook: Notebook) -> None:
    cell(notebook, "title")["source"] += "\n\n```{prf:theorem} On `x`\n```"


def define_macro(notebook: Notebook) -> None:
    cell(notebook, "title")["source"] += "\n\n$\\newcommand{\\R}{\\mathbb R}$"


def store_widget(notebook: Notebook) -> None:
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "0"}}
    cell(notebook, "moved")["outputs"] = [
        {"output_type": "display_data", "metadata": {}, "data": view}
    ]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (clear_outputs, "execution counts"),
        (clear_one_print, "nothing it printed is stored"),
        (clear_one_figure, "no figure is stored"),
        (swap_order, "execution counts"),
        (store_error, "a stored error"),
        (write_to_stderr, "stderr"),
        (lose_alt, "alternative text"),
        (lose_caption, "without a caption"),
        (lose_name, "without a name"),
        (glue_beside_figure, "beside a figure"),
        (repeat_id, "used twice"),
        (say_where, "machine's path"),
        (print_digits, "another machine may not share"),
        (name_a_machine, "the metadata is"),
        (set_threads, "number of threads"),
        (seed_globally, "global random state"),
        (draw_globally, "global random state"),
        (draw_without_generator, "without a generator"),
        (ignore_without_reason, "nbval_ignore_reason"),
        (ignore_much, "not compared"),
        (use_magic, "plain Python"),
        (assert_nothing, "asserts"),
        (add_title, "one title"),
        (fence_with_backticks, "backticks"),
        (define_macro, "macro"),
        (store_widget, "stored widget"),
        (lose_hint, "exercise ex-two has no hint"),
        (lose_check, "a solution cell without a check cell"),
    ],
)
def test_each_rule_can_fail(spoil: Callable[[Notebook], None], said: str) -> None:
    notebook = clean_notebook()
    spoil(notebook)
    found = complaints(json.dumps(notebook))
    assert any(said in complaint for complaint in found), found
