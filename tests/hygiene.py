"""What a stored chapter must look like. `complaints` names everything that is wrong with one.

nbval compares outputs only where outputs are stored, so a notebook that was saved without them
would pass with nothing checked. These rules close that hole and keep the chapters in one form.
The form of the exercises is that of the student edition: book/_tools/student.py has its rules.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

import student

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
LARGEST_FILE = 1_500_000
IMAGES = {"image/png", "image/jpeg", "image/gif", "image/svg+xml"}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
UNCOMPARED = "nbval-ignore-output"

MACHINE_PATH = re.compile(
    r"(?<![\w.:/-])(/(?:work|root|tmp|home|opt|Users|usr|var|mnt|private)/[\w./-]+)"
    r"|([A-Z]:\\\\?Users\\\\?\w+)"
)
GLOBAL_RANDOMNESS = re.compile(
    r"torch\.manual_seed|(?<![\w.])random\.seed"
    r"|(?:np|numpy)\.random\.(?!default_rng|Generator)\w+"
)
UNSEEDED_DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}
UNSEEDABLE_DRAWS = {"rand_like", "randn_like", "randint_like"}
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+")
MOST_DIGITS = 6


def code(cell: dict[str, Any]) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def text_of(output: dict[str, Any]) -> str:
    """Everything in an output that a reader sees as text."""
    parts = [output.get("text", "")]
    parts += [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return "".join(part if isinstance(part, str) else "".join(part) for part in parts)


def complaints(text: str) -> list[str]:
    """Sentences that say what is wrong with the notebook whose file holds ``text``."""
    notebook = json.loads(text)
    cells = notebook["cells"]
    return [
        *whole(notebook, text),
        *execution([cell for cell in cells if cell["cell_type"] == "code"]),
        *student.faults(notebook),
        *(f"cell {cell.get('id')}: {said}" for cell in cells for said in one_cell(cell)),
    ]


def whole(notebook: dict[str, Any], text: str) -> Iterator[str]:
    cells = notebook["cells"]
    if len(text.encode()) > LARGEST_FILE:
        yield f"the file holds {len(text.encode()):,} bytes; at most {LARGEST_FILE:,}"
    if notebook["metadata"] != METADATA:
        yield f"the metadata is {notebook['metadata']}; `make refresh` stores {METADATA}"
    ids = [cell.get("id") for cell in cells]
    if None in ids or len(set(ids)) < len(ids):
        yield "cell ids are missing or used twice"
    headings = [
        line
        for cell in cells
        if cell["cell_type"] == "markdown"
        for line in re.sub(r"^```.*?^```", "", code(cell), flags=re.M | re.S).splitlines()
        if line.startswith("# ")
    ]
    if len(headings) != 1 or not code(cells[0]).startswith("# "):
        yield f"one title, in the first cell, is due; there are {headings}"
    if not any("assert " in code(cell) for cell in cells if cell["cell_type"] == "code"):
        yield "no cell asserts anything"
    names = [cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") for cell in cells]
    named = [name for name in names if name]
    if len(set(named)) < len(named):
        yield f"two figures share a name: {sorted(named)}"


def execution(cells: list[dict[str, Any]]) -> Iterator[str]:
    """Counts, and how much of the chapter is not compared."""
    counts = [cell.get("execution_count") for cell in cells]
    if counts != list(range(1, len(cells) + 1)) or not cells:
        yield f"execution counts are {counts}; they must be 1, 2, 3, … in order"
    ignored = [cell for cell in cells if UNCOMPARED in cell["metadata"].get("tags", [])]
    if len(ignored) > max(1, len(cells) // 5):
        yield f"{len(ignored)} of {len(cells)} outputs are not compared; at most a fifth"
    for cell in ignored:
        if not cell["metadata"].get("nbval_ignore_reason"):
            yield f"cell {cell.get('id')}: not compared, without an nbval_ignore_reason"


def one_cell(cell: dict[str, Any]) -> Iterator[str]:
    if cell["cell_type"] == "code":
        yield from code_cell(cell)
    elif cell["cell_type"] == "markdown":
        yield from markdown_cell(code(cell))
    else:
        yield f"a {cell['cell_type']} cell; only markdown and code belong in the book"
    if found := MACHINE_PATH.search(code(cell)):
        yield f"a machine's path, {found.group(0)}"


def markdown_cell(text: str) -> Iterator[str]:
    if found := re.search(r"^\s*`{3,}\s*\{.*", text, flags=re.M):
        yield f"a directive in backticks, {found.group(0)!r}; colons take any title"
    if found := re.search(r"\\(?:newcommand|renewcommand|DeclareMathOperator|def\\)", text):
        yield f"a macro, {found.group(0)}; JupyterLab shows those in red"


def code_cell(cell: dict[str, Any]) -> Iterator[str]:
    source, outputs = code(cell), cell["outputs"]
    if not source.strip():
        yield "no code in a code cell"
    if re.search(r"^\s*[%!]", source, flags=re.M):
        yield "a magic or a shell command; a chapter is plain Python"
        return
    if "set_num_threads" in source:
        yield "sets the number of threads, which can make batched LU silently wrong"
    if found := GLOBAL_RANDOMNESS.search(source):
        yield f"{found.group(0)} touches the global random state; pass a generator"
    yield from unseeded(source)

    kinds = {output["output_type"] for output in outputs}
    if "error" in kinds:
        yield "a stored error"
    images = [o for o in outputs if IMAGES & o.get("data", {}).keys()]
    if images:
        yield from image(cell, images)
    calls = top_level_calls(source)
    if "print" in calls and "stream" not in kinds:
        yield "prints, but nothing it printed is stored"
    if "show" in calls and not images and UNCOMPARED not in cell["metadata"].get("tags", []):
        yield "shows a figure, but no figure is stored"
    for output in outputs:
        if output.get("name") == "stderr":
            yield "output on stderr"
        if WIDGET_VIEW in output.get("data", {}):
            yield "a stored widget, which no static page can show"
        if found := MACHINE_PATH.search(text_of(output)):
            yield f"a machine's path in its output, {found.group(0)}"
        for number in DECIMAL.findall(text_of(output)):
            if len(number.replace(".", "").lstrip("0")) > MOST_DIGITS:
                yield f"prints {number}: digits that another machine may not share"
    if "execution" in cell["metadata"]:
        yield "stores when it ran; `make refresh` drops that"


def image(cell: dict[str, Any], images: list[dict[str, Any]]) -> Iterator[str]:
    if len(images) > 1:
        yield f"{len(images)} figures in one cell share one caption; one figure a cell"
    rich = [o for o in cell["outputs"] if o["output_type"] in ("display_data", "execute_result")]
    if len(rich) > len(images):
        yield "glued or displayed values beside a figure would take the figure's name; another cell"
    if any("image/svg+xml" in output["data"] for output in images):
        yield "an SVG figure, whose ids and dates differ from run to run"
    mystnb = cell["metadata"].get("mystnb", {})
    figure, alt = mystnb.get("figure", {}), mystnb.get("image", {}).get("alt", "")
    if not figure.get("caption", "").strip():
        yield "a figure without a caption (metadata mystnb.figure.caption)"
    if not figure.get("name", "").startswith("fig-"):
        yield "a figure without a name fig-… (metadata mystnb.figure.name)"
    if len(alt.strip()) < 20 or "$" in alt:
        yield "a figure without alternative text in plain words (metadata mystnb.image.alt)"


def top_level_calls(source: str) -> set[str]:
    """Names of the functions that the cell calls as statements of their own."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = node.value.func
            names.add(function.attr if isinstance(function, ast.Attribute) else "")
            names.add(function.id if isinstance(function, ast.Name) else "")
    return names - {""}


def unseeded(source: str) -> Iterator[str]:
    """Draws of torch that no generator decides."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"):
            continue
        seeded = any(keyword.arg == "generator" for keyword in node.keywords)
        if node.func.attr in UNSEEDABLE_DRAWS or (node.func.attr in UNSEEDED_DRAWS and not seeded):
            yield f"torch.{node.func.attr} draws without a generator"
