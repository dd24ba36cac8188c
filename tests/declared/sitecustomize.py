"""Notebook kernels that see only what a reader's machine is promised to have.

`make test` puts this folder on PYTHONPATH, so Python reads this file when it starts. In a kernel
it refuses to import any package that `deqlib[notebooks]` does not bring: Binder, Colab and a
reader who installs only that have nothing else. In every other process it does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

if any("ipykernel_launcher" in word for word in sys.orig_argv):
    from importlib.abc import MetaPathFinder

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

    class Declared(MetaPathFinder):
        """Knows no module; refuses those of a distribution that was not asked for."""

        def __init__(self) -> None:
            self.allowed = installed(["deqlib[notebooks]", "ipykernel"])
            self.owners = packages_distributions()

        def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
            owners = {canonicalize_name(d) for d in self.owners.get(fullname, ())}
            if owners and not owners & self.allowed:
                raise ModuleNotFoundError(
                    f"{fullname} belongs to {', '.join(sorted(owners))}, which "
                    f"deqlib[notebooks] does not install (see pyproject.toml)",
                    name=fullname,
                )

    sys.meta_path.insert(0, Declared())
