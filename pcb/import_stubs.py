"""Block or replace modules that cost start-up time and are not used.

Neither context touches a module that is already imported. Afterwards imports find the real modules
again.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def blocked(*names: str) -> Generator[None]:
    """Let the import of these modules fail within this context."""
    finder = _Blocker(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def hide_pandas_from_pyarrow() -> None:
    """Let pyarrow find no pandas in this process, whose import takes half a second.

    It looks once, with its first array. Afterwards it cannot convert tables to data frames.
    """
    import pyarrow

    with blocked("pandas"):
        pyarrow.array([0]).to_numpy()


@contextmanager
def replaced(modules: Mapping[str, ModuleType]) -> Generator[None]:
    """Replace the real modules of these names within this context."""
    placed = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(placed)
    try:
        yield
    finally:
        for name in placed:
            sys.modules.pop(name, None)


class _Blocker:
    """A finder of modules that fails for some names and knows no others.

    None in `sys.modules` would block a name too, but not for Cython's imports, as in pyarrow.
    """

    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def find_spec(self, name: str, path=None, target=None) -> None:
        if name in self.names:
            raise ModuleNotFoundError(f"{name} is blocked by pcb.import_stubs", name=name)
