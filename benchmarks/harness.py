"""What every benchmark here shares: a `Figure` is ours beside a reference of the same run, `main` prints the figures as one table.

    from harness import Figure, by_turns, main

    def measure(quick: bool) -> list[Figure]:
        seconds = by_turns(9 if quick else 99, ours=..., reference=...)
        return [Figure("what was timed", seconds["ours"] * 1e3, seconds["reference"] * 1e3, "ms", target=2.5)]

    if __name__ == "__main__":
        main("name", measure)

    python benchmarks/NAME.py            # the table
    python benchmarks/NAME.py --quick    # the same, rougher and sooner
    python benchmarks/NAME.py --write    # and results/benchmarks/NAME.json, with machine, versions, commit and date

A machine is never quite idle: a comparison takes both sides by turns and the least time of each, and only the ratio is worth quoting.
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
    """One line of the table: less is better.

    `target` is the most that ours / reference may be or, without a reference, that ours may be in `unit`; None: there is no target.
    """

    what: str
    ours: float
    reference: float | None = None
    unit: str = ""
    target: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.reference if self.reference else None

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return (self.ours if self.reference is None else self.ratio) <= self.target

    @property
    def judged(self) -> tuple[str, str, str]:
        """Ratio, target, and whether it is met, in words; empty where there is none."""
        ratio = "" if self.ratio is None else f"{number(self.ratio)}x"
        target = (
            ""
            if self.target is None
            else number(self.target) + ("x" if self.reference is not None else f" {self.unit}")
        )
        return ratio, target, {None: "", True: "met", False: "missed"}[self.met]


def by_turns(
    repeats: int, clock: Callable[[], float] = time.perf_counter, **sides: Callable[[], object]
) -> dict[str, float]:
    """Least seconds of each side over `repeats` rounds in which each takes its turn; one round before to warm up.

    With `clock=time.process_time` they are the CPU seconds of this process, which suffer less from a busy machine.
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
    """CPU seconds of the parts of a program, each without those of parts called from within it: where a whole goes.

    `parts`: what a part is called, and (module, class or "", name) of each function that is it. They are timed from now on.
    """

    def __init__(self, parts: dict[str, list[tuple[str, str, str]]]):
        self.spent: dict[str, float] = dict.fromkeys(parts, 0.0)
        self.stack: list[float] = []  # seconds that parts within the running ones have taken
        for part, functions in parts.items():
            for module, owner, name in functions:
                place = importlib.import_module(module)
                place = getattr(place, owner) if owner else place
                setattr(place, name, self.wrap(part, getattr(place, name)))

    def wrap(self, part: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def timed(*args, **kwargs):
            start = time.process_time()
            self.stack.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.process_time() - start
                self.spent[part] += whole - self.stack.pop()
                if self.stack:
                    self.stack[-1] += whole

        return timed

    def reset(self) -> None:
        self.spent = dict.fromkeys(self.spent, 0.0)

    def figures(self, whole: float, times: int, name: str) -> list[Figure]:
        """Milliseconds of each part, the largest first, and of the whole, which took `whole` seconds in `times` repeats."""
        parts = [*self.spent.items(), ("everything else", whole - sum(self.spent.values()))]
        return [
            Figure(part, 1e3 * seconds / times, unit="ms")
            for part, seconds in sorted(parts, key=lambda p: -p[1])
        ] + [Figure(name, 1e3 * whole / times, unit="ms")]


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(figures: list[Figure]) -> str:
    """The figures, one a line (a long name takes more), at most 100 columns wide."""
    width = min(max([len("what"), *(len(f.what) for f in figures)]), WIDEST)
    lines = [
        f"{'what':{width}}  {'ours':>8}  {'reference':>9}  {'':6}  {'ratio':>6}  {'target':>7}"
    ]
    for f in figures:
        ratio, target, met = f.judged
        first, *rest = textwrap.wrap(f.what, width)
        lines.append(
            f"{first:{width}}  {number(f.ours):>8}  {number(f.reference):>9}  {f.unit:6}  {ratio:>6}  {target:>7}  {met}".rstrip()
        )
        lines += [f"  {line}" for line in rest]
    return "\n".join(lines)


def save(path: Path, name: str, figures: list[Figure], quick: bool) -> None:
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
    """Run the benchmark `name` as the command line says. `measure(quick)` returns its figures."""
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
    figures = measure(arguments.quick)
    print(table(figures), flush=True)
    if arguments.write:
        save(arguments.write, name, figures, arguments.quick)
