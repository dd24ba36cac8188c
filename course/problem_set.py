"""Make the students' notebook from the solved one.

    python -m course.problem_set

`course/solutions/problem_set.ipynb` is the only source: what stands there between the lines
``# BEGIN SOLUTION`` and ``# END SOLUTION`` becomes ``raise NotImplementedError`` in
`course/problem_set.ipynb`, and cells that would stop "Run all" are told to go on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SOLVED = FOLDER / "solutions" / "problem_set.ipynb"
STUDENTS = FOLDER / "problem_set.ipynb"
MARKED = re.compile(r"^([ ]*)# BEGIN SOLUTION\n.*?^\1# END SOLUTION$", flags=re.M | re.S)


def unsolved(cell: dict[str, Any]) -> dict[str, Any]:
    tags = cell["metadata"].get("tags", [])
    source = "".join(cell["source"])
    if "solution" in tags:
        name = re.search(r"^def (\w+)", source, flags=re.M)
        said = f"{name.group(1) if name else 'here'}: replace this line by your code"
        source, count = MARKED.subn(rf'\1raise NotImplementedError("{said}")', source)
        if count != 1:
            raise ValueError(f"cell {cell['id']} has {count} marked solutions; one is due")
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
