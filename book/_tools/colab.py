"""The cell that makes a chapter run on Colab, where neither the library nor the book's data is.

Each chapter carries it as its second cell, hidden on the site. Elsewhere it does nothing. The
repository's address in it comes from `repository.url` in _config.yml; after a change there,

    python book/_tools/colab.py

puts the new address into all chapters, without running them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CODE = """\
# Only Colab needs this cell: it fetches the book and installs its library, in about a minute.
import sys

if "google.colab" in sys.modules:
    import os
    import subprocess

    if not os.path.isdir("/content/book"):
        book = "{repository}"
        subprocess.run(["git", "clone", "--depth=1", book, "/content/book"], check=True)
        install = [sys.executable, "-m", "pip", "install", "/content/book[notebooks]"]
        subprocess.run(install, check=True)
    os.chdir("/content/book/notebooks")"""
NAME = "colab"


def cell(root: Path = ROOT) -> dict[str, Any]:
    """The cell for the repository that _config.yml names."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    code = CODE.format(repository=config["repository"]["url"])
    return {
        "cell_type": "code",
        "execution_count": 1,
        "id": NAME,
        "metadata": {"tags": ["remove-cell"]},
        "outputs": [],
        "source": code.splitlines(keepends=True),
    }


def put(notebook: dict[str, Any], setup: dict[str, Any]) -> None:
    """Make ``setup`` the second cell, in place of an older one if there is one."""
    cells = [one for one in notebook["cells"] if one.get("id") != NAME]
    notebook["cells"] = [cells[0], setup, *cells[1:]]
    code = (one for one in notebook["cells"] if one["cell_type"] == "code")
    for count, one in enumerate(code, start=1):
        one["execution_count"] = count
        for output in one["outputs"]:
            if "execution_count" in output:
                output["execution_count"] = count


def main() -> None:
    setup = cell()
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        before = path.read_text(encoding="utf-8")
        notebook = json.loads(before)
        put(notebook, setup)
        after = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{path.name}: changed")


if __name__ == "__main__":
    main()
