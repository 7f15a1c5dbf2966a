"""The one exception for mistakes that a user can mend: what is wrong, where, and what to do about it."""


class UserError(Exception):
    """A mistake outside the program: `what` names the file and the reason, `fix` says how to mend it.

    `pcb.cli` prints both without a traceback and exits with status 2.
    """

    def __init__(self, what: str, fix: str = ""):
        super().__init__(f"{what}\n  fix: {fix}" if fix else what)
        self.what, self.fix = what, fix

    def _render_traceback_(self) -> list[str]:
        """What Jupyter shows in the place of a traceback."""
        return [f"error: {self.what}", *([f"fix: {self.fix}"] if self.fix else [])]
