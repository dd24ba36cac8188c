"""Make the students' notebook from the solved one.

    python -m course.problem_set

`course/solutions/problem_set.ipynb` is the only source: what stands there between the lines
``# BEGIN SOLUTION`` and ``# END SOLUTION`` becomes ``raise NotImplementedError`` in
`course/problem_set.ipynb`, and cells that would stop "Run all" are told to go on.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent / "book" / "_tools"))
from student import stub  # noqa: E402  the student edition's own rule, of a folder of scripts

SOLVED = FOLDER / "solutions" / "problem_set.ipynb"
STUDENTS = FOLDER / "problem_set.ipynb"


def unsolved(cell: dict[str, Any]) -> dict[str, Any]:
    tags = cell["metadata"].get("tags", [])
    source = "".join(cell["source"])
    if "solution" in tags:
        name = re.search(r"^def (\w+)", source, flags=re.M)
        count = source.count("# BEGIN SOLUTION")
        if name is None or count != 1:
            raise ValueError(f"cell {cell['id']} needs one function with one marked solution")
        source = stub(source, name.group(1))
    if "solution" in tags or "check" in tags:
        tags = [*tags, "raises-exception"]
    metadata = {**cell["metadata"], "tags": tags} if tags else cell["metadata"]
    return {**cell, "metadata": metadata, "source": source.splitlines(keepends=True)}


def students_version(text: str) -> str:
    """The notebook without its solutions, as text."""
    notebook = json.loads(text)
    notebook["cells"] = [unsolved(cell) for cell in notebook["cells"]]
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    STUDENTS.write_text(students_version(SOLVED.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {STUDENTS.relative_to(FOLDER.parent)}")
