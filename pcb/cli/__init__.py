"""The command `pcb`: one verb for each stage of the pipeline, as the workflow's rules call it.

Each verb parses its arguments, calls one function and prints; its docstring is its help. It
imports what it needs when it runs, so that `pcb --help` starts at once. Exit status: 2 after a
mistake that the user can fix (two lines, `error:` and `fix:`), 130 after an interrupt. Any other
exception is a bug and keeps its traceback.

Verbs are functions in a module for each subject, with their arguments beside them.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import io
import os
import signal
import sys
from contextlib import ExitStack

from pcb import __version__
from pcb.cli import data, detectors, pages, runs, workflow
from pcb.cli.arguments import Parser, Verbs, name_of, summary
from pcb.cli.errors import not_installed, report, unread
from pcb.cli.selection import options_of
from pcb.errors import UserError
from pcb.files import unwritable

SUBJECTS = {
    "the whole": workflow,
    "data": data,
    "one run": runs,
    "pages": pages,
    "any detector": detectors,
}
# Verbs that only print. Others have not done their work where the output is cut off.
PRINTERS = ("plan", "status", "doctor", "verdict", "compare", "bias")


def main(argv: list[str] | None = None) -> int:
    """Run `pcb` with the given arguments, by default the process's own.

    Returns:
        The exit status.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, None where it is closed
    for stream in (sys.stdout, sys.stderr):  # a locale without "…" or "Δ" must not end a command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # At its end Python would look for cycles among all objects, a second where torch is imported.
    atexit.register(gc.freeze)
    try:
        return run(argv)
    finally:
        unread()  # else Python would try again when it exits, with a traceback


def run(argv: list[str] | None) -> int:
    """Run one verb; a mistake of the user is printed. Returns the exit status."""
    arguments = parser().parse_args(argv)
    arguments.given = sys.argv[1:] if argv is None else argv
    arguments.until_end = ExitStack()
    try:
        with arguments.until_end:
            arguments.do(arguments)
        sys.stdout.flush()
    except UserError as error:
        return report(error, options_of(arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not unread():  # another pipe, such as that of a worker
            raise
        return 0 if arguments.verb in PRINTERS else 128 + signal.SIGPIPE
    except OSError as error:
        if for_user := unwritable(error):
            return report(for_user)
        raise
    except ImportError as error:
        if for_user := not_installed(error, arguments.verb):
            return report(for_user)
        raise
    return 0


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line. Imports nothing of the pipeline."""
    top = Parser(
        prog="pcb",
        usage="pcb VERB ...",
        description=(
            "Pairwise Class Balance, from data to tables: the steps that `snakemake` runs, "
            "one by one.\n`pcb VERB --help` describes what a verb reads and writes.\n\n"
        )
        + contents(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--version", action="version", version=f"pcb {__version__}", help="print the version"
    )
    verbs = Verbs(top)
    for subject in SUBJECTS.values():
        subject.add_to(verbs)
    return top


def contents() -> str:
    """The verbs by subject, each with the first sentence of its docstring."""
    lines = []
    for title, subject in SUBJECTS.items():
        lines += [f"{title}:", *(f"  {name_of(do):<15}{summary(do)}" for do in subject.VERBS), ""]
    return "\n".join(lines)
