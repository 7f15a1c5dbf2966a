"""Shared by all benchmarks: `Figure`, ours beside a reference of the same run, and `main`.

    from harness import Figure, by_turns, main

    def measure(quick: bool) -> list[Figure]:
        seconds = by_turns(9 if quick else 99, ours=..., reference=...)
        return [Figure("what was timed", seconds["ours"], seconds["reference"], "s", target=2.5)]

    if __name__ == "__main__":
        main("name", measure)

    python benchmarks/NAME.py            # print the table
    python benchmarks/NAME.py --quick    # fewer repeats
    python benchmarks/NAME.py --write    # and write results/benchmarks/NAME.json

No machine is ever quite idle: a comparison alternates between both sides and takes the least time
of each. Only the ratio is worth quoting.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results/benchmarks"
WIDEST = 46  # first column; the table then fits 100 columns


@dataclass(frozen=True)
class Figure:
    """One line of the table; less is better.

    Attributes:
        what: What was measured.
        ours: Our value.
        reference: The value of the reference, if there is one.
        unit: Unit of both.
        target: Largest acceptable ours / reference or, without a reference, ours; None for no
            target.
    """

    what: str
    ours: float
    reference: float | None = None
    unit: str = ""
    target: float | None = None

    @property
    def ratio(self) -> float | None:
        """Ours divided by the reference."""
        return self.ours / self.reference if self.reference else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.target is None:
            return None
        return (self.ours if self.reference is None else self.ratio) <= self.target

    @property
    def judged(self) -> tuple[str, str, str]:
        """Ratio, target, and whether it is met, as text; empty where there is none."""
        ratio = "" if self.ratio is None else f"{number(self.ratio)}x"
        unit = f" {self.unit}" if self.reference is None else "x"
        target = "" if self.target is None else f"{number(self.target)}{unit}"
        return ratio, target, {None: "", True: "met", False: "missed"}[self.met]


def by_turns(
    repeats: int, clock: Callable[[], float] = time.perf_counter, **sides: Callable[[], object]
) -> dict[str, float]:
    """Return the least seconds of each side over alternating rounds, after one to warm up.

    Args:
        repeats: Number of rounds.
        clock: `time.process_time` measures CPU seconds, which suffer less from a busy machine.
        **sides: Name to call.
    """
    least = dict.fromkeys(sides, float("inf"))
    for turn in range(repeats + 1):
        for name, call in sides.items():
            start = clock()
            call()
            if turn:
                least[name] = min(least[name], clock() - start)
    return least


class Stopwatch:
    """CPU seconds of sections of a program, each without the sections that it calls.

    Args:
        sections: Name of a section, and (module, class or "", name) of each of its functions,
            which are timed from now on.
    """

    def __init__(self, sections: dict[str, list[tuple[str, str, str]]]):
        self.spent: dict[str, float] = dict.fromkeys(sections, 0.0)
        self.stack: list[float] = []  # seconds of the sections called from each running one
        for section, functions in sections.items():
            for module, owner, name in functions:
                holder = importlib.import_module(module)
                holder = getattr(holder, owner) if owner else holder
                setattr(holder, name, self.wrap(section, getattr(holder, name)))

    def wrap(self, section: str, function: Callable) -> Callable:
        """Return the function, timed."""

        @functools.wraps(function)
        def timed(*args, **kwargs):
            start = time.process_time()
            self.stack.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.process_time() - start
                self.spent[section] += whole - self.stack.pop()
                if self.stack:
                    self.stack[-1] += whole

        return timed

    def reset(self) -> None:
        """Start again from zero."""
        self.spent = dict.fromkeys(self.spent, 0.0)

    def figures(self, whole: float, times: int, name: str) -> list[Figure]:
        """Return the milliseconds of each section, the largest first, and of the whole.

        Args:
            whole: Seconds of all repeats.
            times: Number of repeats.
            name: Name of the whole.
        """
        rest = ("everything else", whole - sum(self.spent.values()))
        seconds = [*sorted([*self.spent.items(), rest], key=lambda s: -s[1]), (name, whole)]
        return [Figure(what, 1e3 * value / times, unit="ms") for what, value in seconds]


def number(value: float | None) -> str:
    """Return three significant digits; empty for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(figures: list[Figure]) -> str:
    """Return the figures, one a line (more for a long name), at most 100 columns wide."""
    width = min(max([len("what"), *(len(f.what) for f in figures)]), WIDEST)
    lines = [
        f"{'what':{width}}  {'ours':>8}  {'reference':>9}  {'':6}  {'ratio':>6}  {'target':>7}"
    ]
    for f in figures:
        ratio, target, met = f.judged
        first, *rest = textwrap.wrap(f.what, width)
        line = f"{first:{width}}  {number(f.ours):>8}  {number(f.reference):>9}  {f.unit:6}"
        lines.append(f"{line}  {ratio:>6}  {target:>7}  {met}".rstrip())
        lines += [f"  {line}" for line in rest]
    return "\n".join(lines)


def save(path: Path, name: str, figures: list[Figure], quick: bool) -> None:
    """Write figures with machine, versions, commit and date."""
    import torch

    from pcb.cluster import provenance
    from pcb.files import write_json

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [asdict(f) | {"ratio": f.ratio, "met": f.met} for f in figures]
    write_json(
        path,
        {
            "name": name,
            "quick": quick,
            "figures": rows,
            "hardware": provenance.hardware(device),
            "versions": provenance.versions(),
            "git": provenance.git(),
            "date": provenance.now(),
        },
    )


def main(name: str, measure: Callable[[bool], list[Figure]]) -> None:
    """Run a benchmark from the command line. `measure(quick)` returns its figures."""
    module = inspect.getmodule(measure)
    parser = argparse.ArgumentParser(description=(module.__doc__ or name).split("\n")[0])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer repeats and smaller sizes: a look, not a figure to quote",
    )
    parser.add_argument(
        "--write",
        nargs="?",
        const=RESULTS / f"{name}.json",
        type=Path,
        metavar="PATH",
        help=f"save the figures, by default as results/benchmarks/{name}.json",
    )
    arguments = parser.parse_args()
    from pcb.cluster.instructions import use_same_instructions

    use_same_instructions()  # as the jobs on a CPU do
    figures = measure(arguments.quick)
    print(table(figures), flush=True)
    if arguments.write:
        save(arguments.write, name, figures, arguments.quick)
