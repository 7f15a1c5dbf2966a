"""What a user sees of a mistake: two lines, with commands that can be copied."""

from __future__ import annotations

import os
import re
import select
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress

from pcb.errors import UserError


def report(error: UserError, options: Sequence[str] = ()) -> int:
    """Print a user's mistake in two lines.

    Args:
        error: The mistake.
        options: Options that select the study. Commands in the error get them too, `snakemake`
            as `--config`, so that they can be copied.

    Returns:
        The exit status.
    """
    lines = [f"error: {error.what}", *([f"fix: {error.fix}"] if error.fix else [])]
    for line in lines:
        print(with_options(line, options), file=sys.stderr)
    return 2


def with_options(text: str, options: Sequence[str]) -> str:
    """Add the options that select the study to the commands in a text, but not in its comments.

    A comment, `<!-- … -->`, is what a file has to hold word for word.
    """
    parts = re.split(r"(<!--.*?-->)", text)
    return "".join(part if part.startswith("<!--") else selecting(part, options) for part in parts)


def selecting(text: str, options: Sequence[str]) -> str:
    """Add the options that select the study to all commands in a text."""
    selection = f" {shlex.join(options)}" if options else ""
    given = dict(zip(options[::2], options[1::2], strict=True))
    pairs = [f"{key[2:]}={value}" for key, value in given.items() if key != "--study"]
    config = f" --config {shlex.join(pairs)}" if pairs else ""
    text = re.sub(r"`(pcb [a-z][^`]*)`", lambda match: f"`{match[1]}{selection}`", text)
    if "--study" in given:  # a job of the workflow does not know its `--config`
        own = " with this study's `--config`"
        return re.sub(rf"(`snakemake --cores [^`]*`)(?!{own})", rf"\1{own}", text)
    return re.sub(r"`(snakemake --cores [^`]*)`", lambda match: f"`{match[1]}{config}`", text)


def not_installed(error: ImportError, verb: str) -> UserError | None:
    """Return the user's mistake behind a failed import: a package that is not installed.

    Returns:
        The mistake; None if the module belongs to this package, or to one that is installed.
    """
    missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
    name = missing.name if isinstance(missing, ModuleNotFoundError) else None
    if not name or name.partition(".")[0] == "pcb" or "." in name:
        return None
    return UserError(
        f"`pcb {verb}` needs the package {name}, which is not installed for {sys.executable}",
        "run `make setup` in a clone of the repository, which installs all packages, and use the "
        ".venv/bin/pcb there",
    )


def unread() -> bool:
    """Whether nobody reads the output any more, as in `pcb plan | head`; the rest is discarded."""
    with suppress(OSError):
        sys.stdout.flush()
    try:
        output = sys.stdout.fileno()
    except OSError:  # replaced by a stream in memory
        return False
    poll = select.poll()
    poll.register(output, 0)
    if not poll.poll(0):  # no POLLERR, no POLLHUP
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True
