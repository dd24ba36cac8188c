"""Notebook kernels that see only what a reader's machine is promised to have.

`make test` puts this folder on PYTHONPATH, so Python reads this file when it starts. In a kernel
it hides every package that `deqlib[notebooks]` does not bring, as if it were not installed:
Binder, Colab and a reader who installs only that have nothing else. In every other process it
does nothing. "No module named …" for a package that is installed means: declare it in
pyproject.toml, under `notebooks`.
"""

from __future__ import annotations

import sys

if any("ipykernel_launcher" in word for word in sys.orig_argv):
    from collections.abc import Iterable
    from importlib.machinery import ModuleSpec, PathFinder
    from importlib.metadata import PackageNotFoundError, packages_distributions, requires
    from typing import Any

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    def installed(wanted: Iterable[str]) -> set[str]:
        """The named distributions, what they require, what that requires, and so on."""
        found: set[tuple[str, str]] = set()
        waiting = [Requirement(text) for text in wanted]
        while waiting:
            requirement = waiting.pop()
            name = canonicalize_name(requirement.name)
            for extra in {"", *requirement.extras}:
                if (name, extra) in found:
                    continue
                found.add((name, extra))
                try:
                    needs = [Requirement(text) for text in requires(name) or ()]
                except PackageNotFoundError:
                    continue
                waiting += [n for n in needs if not n.marker or n.marker.evaluate({"extra": extra})]
        return {name for name, _ in found}

    ALLOWED = installed(["deqlib[notebooks]", "ipykernel"])
    HIDDEN = {
        module
        for module, owners in packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & ALLOWED
    }

    class Declared(PathFinder):
        """Finds what Python finds, without the hidden modules."""

        @classmethod
        def find_spec(cls, fullname: str, *where: Any) -> ModuleSpec | None:
            return None if fullname in HIDDEN else super().find_spec(fullname, *where)

    sys.meta_path[sys.meta_path.index(PathFinder)] = Declared
