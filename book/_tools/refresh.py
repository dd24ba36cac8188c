"""Run the notebooks and store their outputs in one normal form.

A second run leaves every file as it is, byte for byte, so `git diff` shows what really changed.
A cell that raises, or that writes to stderr, stops the refresh: neither belongs in the book.

    python book/_tools/refresh.py                    # all notebooks
    python book/_tools/refresh.py notebooks/02*.ipynb
    python book/_tools/refresh.py --check            # say what would change, write nothing
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[2]
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def name_cells(cells: list[dict[str, Any]]) -> None:
    """Give each cell an id of its own: the one it has, or one made from its position."""
    taken: set[str] = set()
    for position, cell in enumerate(cells, start=1):
        name = cell.get("id") or f"cell-{position:02d}"
        while name in taken:
            name += "x"
        cell["id"] = name
        taken.add(name)


def normalise(notebook: Any) -> None:
    """Drop what changes from run to run or from machine to machine."""
    notebook["metadata"] = nbformat.from_dict(METADATA)
    notebook["nbformat_minor"] = 5
    for cell in notebook["cells"]:
        for key in ("execution", "collapsed", "scrolled", "jupyter", "trusted"):
            cell["metadata"].pop(key, None)
        for output in cell.get("outputs", []):
            # a widget's id is drawn anew in each run, and its state lives in the kernel
            output.get("data", {}).pop(WIDGET_VIEW, None)


def run(path: Path) -> str:
    """Execute the notebook and return the text that its file should hold."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    name_cells(raw["cells"])
    raw["nbformat_minor"] = 5
    notebook = nbformat.reads(json.dumps(raw), as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=600,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise ValueError(f"cell {cell.id} writes to stderr:\n{output.text}")
    normalise(notebook)
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a change")
    options = parser.parse_args()

    paths = [p.resolve() for p in options.notebooks] or sorted(ROOT.glob("notebooks/*.ipynb"))
    changed, failed = [], []
    for path in paths:
        start = time.perf_counter()
        try:
            text = run(path)
        except (CellExecutionError, ValueError) as error:
            failed.append(path)
            print(f"{path.name}: FAILED\n{error}", file=sys.stderr, flush=True)
            continue
        same = text == path.read_text(encoding="utf-8")
        if not same:
            changed.append(path)
            if not options.check:
                path.write_text(text, encoding="utf-8")
        verdict = "unchanged" if same else "differs" if options.check else "refreshed"
        print(f"{path.name}: {verdict} ({time.perf_counter() - start:.1f} s)", flush=True)
    return 1 if failed or (options.check and changed) else 0


if __name__ == "__main__":
    sys.exit(main())
