"""The one exception for mistakes that a user can fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

# torch raises an error in a worker of a data loader again, made of the text of its traceback.
IN_WORKER = "Caught UserError in "


class UserError(Exception):
    """A mistake outside the program.

    `pcb.cli` prints it as two lines, `error:` and `fix:`, without a traceback, and exits with
    status 2.

    Args:
        what: What is wrong, with the file and the value.
        fix: What the user can do about it.
    """

    def __init__(self, what: str, fix: str = ""):
        if what.startswith(IN_WORKER):
            what, _, fix = what.rstrip().rpartition("UserError: ")[2].partition("\n  fix: ")
        super().__init__(f"{what}\n  fix: {fix}" if fix else what)
        self.what, self.fix = what, fix

    def _render_traceback_(self) -> list[str]:
        """Return what Jupyter shows instead of a traceback."""
        return [f"error: {self.what}", *([f"fix: {self.fix}"] if self.fix else [])]


def require_choice(name: str, value: object, choices: tuple) -> None:
    """Raise `UserError` where the value of the option `name` is none of its `choices`."""
    if value not in choices:
        allowed = ", ".join(map(repr, choices))
        raise UserError(f"{name}={value!r}", f"choose one of {allowed}")


def require_fraction(name: str, value: float) -> None:
    """Raise `UserError` where the value of the option `name` is not from 0 to 1, as NaN is not."""
    if not 0 <= value <= 1:
        raise UserError(f"{name}={value!r}", "give a number from 0 to 1")


def choose(name: str, known: Iterable[str], listed: str = "") -> str:
    """Return the fix of a wrong name: the nearest name, then all or the place that lists them.

    Args:
        name: What was given; `Table 5` is near `table05`.
        known: The names that exist.
        listed: What lists them, where they are too many for a line.
    """
    known = list(known)
    near = get_close_matches(name.lower().replace(" ", ""), known, n=1)
    others = (
        f"choose one of those that {listed}" if listed else f"choose one of: {', '.join(known)}"
    )
    return f"did you mean {near[0]}? Otherwise {others}" if near else others


def combined(errors: Sequence[UserError]) -> UserError:
    """Return one error for several: all faults, then every distinct fix."""
    return UserError(
        "\n".join(error.what for error in errors),
        "\n".join(dict.fromkeys(error.fix for error in errors)),
    )
