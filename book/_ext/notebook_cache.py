"""Run a notebook again when deqlib or a pinned package changed, not only when the notebook did.

jupyter-cache keys a stored run on the notebook's own code. Here the folder of stored runs carries
in its name a digest of everything else that an output depends on: the sources of deqlib, the
pinned packages and Python's version. An edit to any of them starts a new folder, and the folders
of older states are removed.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx


def digest(root: Path) -> str:
    """Digest of all that a notebook's outputs depend on besides the notebook."""
    files = [*root.glob("deqlib/**/*.py"), root / "constraints.txt", root / "requirements.txt"]
    state = hashlib.sha256(platform.python_version().encode())
    for path in sorted(files):
        state.update(path.relative_to(root).as_posix().encode() + b"\0")
        state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.hexdigest()[:16]


def choose_cache(app: Sphinx, config: Any) -> None:
    folder = Path(app.outdir).parent / ".jupyter_cache"
    current = folder / digest(Path(app.srcdir))
    for other in folder.iterdir() if folder.is_dir() else []:
        if other != current:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    config.nb_execution_cache_path = str(current)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", choose_cache)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
