"""The parser of the command line: verbs, the options that several of them share, numbers."""

from __future__ import annotations

import argparse
import inspect
import re
from types import FunctionType
from typing import NoReturn

from pcb.cli.errors import report
from pcb.errors import UserError, choose


class Parser(argparse.ArgumentParser):
    """A parser whose error on a wrong verb names the nearest ones."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        if found := re.search(
            r"argument VERB: invalid choice: '(.*?)' \(choose from (.*)\)", message
        ):
            verb, known = found[1], re.findall(r"[\w-]+", found[2])
            raise SystemExit(report(UserError(f"pcb has no verb {verb!r}", choose(verb, known))))
        super().error(message)


class Verbs:
    """The verbs of a parser; each is a function whose docstring is its help."""

    def __init__(self, top: Parser):
        self._verbs = top.add_subparsers(
            dest="verb", required=True, metavar="VERB", prog="pcb", help=argparse.SUPPRESS
        )
        self._of_scale = Parser(add_help=False)
        self._of_scale.add_argument(
            "--scale",
            metavar="NAME",
            help="a name under configs/scale/ or a YAML file (default: mini)",
        )
        self._of_scale.add_argument(
            "--paper",
            metavar="FILE",
            help="a YAML file with your own study, laid over configs/paper.yaml; "
            "see docs/adding-a-row.md",
        )
        self._of_scale.add_argument(
            "--results",
            metavar="FOLDER",
            help="the folder of all results, with a subfolder SCALE (default: results)",
        )
        self._of_study = Parser(add_help=False)
        self._of_study.add_argument(
            "--study",
            metavar="FILE",
            help="the study.json of a results folder, instead of the three options above",
        )

    def add(
        self, do: FunctionType, scale: bool = True, study: bool = True
    ) -> argparse.ArgumentParser:
        """Add a verb.

        Args:
            do: Does it, given the parsed arguments.
            scale: Whether `--scale`, `--paper` and `--results` select a study.
            study: Whether `--study` may do so instead.

        Returns:
            Its parser, for its own arguments.
        """
        shared = [self._of_scale] * scale + [self._of_study] * study
        command = self._verbs.add_parser(
            name_of(do), description=inspect.getdoc(do), parents=shared
        )
        command.set_defaults(do=do)
        return command


def name_of(do: FunctionType) -> str:
    """The verb of a function: `make-data`."""
    return do.__name__.replace("_", "-")


def summary(do: FunctionType) -> str:
    """The first line of a verb's help, without its full stop."""
    return (inspect.getdoc(do) or "").split("\n")[0].rstrip(".")


def add_json(command: argparse.ArgumentParser) -> None:
    """Add the option to print JSON."""
    command.add_argument("--json", action="store_true", help="print JSON")


def natural(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return value


def cores(text: str) -> str:
    """`all` or a whole number from 1 on, for argparse."""
    if text != "all" and not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text} is neither `all` nor a whole number from 1 on")
    return text


def interval(text: str) -> float:
    """Seconds between two readings, at most a day, for argparse."""
    value = positive(text)
    if value > 86_400:
        raise argparse.ArgumentTypeError(f"{text} is more than 86400, a day")
    return value


def distance(text: str) -> float:
    """A number from 0 on, for argparse."""
    value = float(text)
    if not value >= 0:  # nor is NaN
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value


def positive(text: str) -> float:
    """A number above 0, for argparse."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value
