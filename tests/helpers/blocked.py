"""Runs a program or the command `pcb` as in an environment with torch and numpy alone.

    python -P blocked.py pcb plan
    python -P blocked.py FILE.py

Every package that is installed, but neither torch nor numpy nor one that they require, cannot be
imported.
"""

from __future__ import annotations

import re
import runpy
import sys
from importlib import metadata

KEPT = ("torch", "numpy", "pcb")


def canonical(name: str) -> str:
    """The name of a distribution as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def required(names: tuple[str, ...]) -> set[str]:
    """These distributions and all that they require, without their extras."""
    found, rest = set(), list(names)
    while rest:
        name = canonical(rest.pop())
        if name in found or name == "pcb":
            continue
        found.add(name)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        rest += [re.match(r"[\w.-]+", r)[0] for r in requirements if "extra ==" not in r]
    return found


def blocked_modules() -> set[str]:
    """The modules of all packages that are installed and not kept."""
    kept = required(KEPT)
    return {
        module
        for module, distributions in metadata.packages_distributions().items()
        if not kept & set(map(canonical, distributions)) and module not in KEPT
    }


class Without:
    """A finder of modules that does not find the blocked ones."""

    def __init__(self, finder, blocked: set[str]) -> None:
        self.finder, self.blocked = finder, blocked

    def __getattr__(self, name: str):
        return getattr(self.finder, name)

    def find_spec(self, name: str, path=None, target=None):
        """Find a module as the finder does, or not at all."""
        found = name.partition(".")[0] not in self.blocked
        return self.finder.find_spec(name, path, target) if found else None


if __name__ == "__main__":
    blocked = blocked_modules()
    assert {"mmengine", "mmdet", "yaml", "pandas", "pyarrow"} <= blocked
    assert not {"torch", "numpy", "pcb"} & blocked
    sys.meta_path[:] = [Without(finder, blocked) for finder in sys.meta_path]
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "pcb":
        from pcb.__main__ import main

        raise SystemExit(main())
    runpy.run_path(sys.argv[0], run_name="__main__")
