"""What all benchmarks share: ratios against a reference, tables, and the page of results."""

import json
import subprocess
import sys

import pytest
from harness import Figure, by_turns, table
from run import names, page

from pcb.files import ROOT


@pytest.mark.parametrize(
    ("figure", "ratio", "met"),
    [
        (Figure("against a reference", 3.0, 2.0, "ms", target=1.5), 1.5, True),
        (Figure("against a reference", 3.1, 2.0, "ms", target=1.5), 1.55, False),
        (Figure("alone", 1.0, unit="s", target=2.0), None, True),
        (Figure("alone", 3.0, unit="s", target=2.0), None, False),
        (Figure("without a target", 3.0, 2.0, "s"), 1.5, None),
    ],
)
def test_a_target_is_for_the_ratio_or_without_reference_for_the_figure_itself(figure, ratio, met):
    assert figure.ratio == (ratio and pytest.approx(ratio)) and figure.met is met


def test_both_sides_take_turns_and_the_least_of_each_counts():
    now, calls = (
        iter([0, 0, 0, 3, 0, 4, 0, 2, 0, 5]),
        [],
    )  # the first turn of each only warms up, and has no end
    seconds = by_turns(
        2,
        clock=lambda: next(now),
        ours=lambda: calls.append("o"),
        reference=lambda: calls.append("r"),
    )
    assert calls == ["o", "r"] * 3 and seconds == {"ours": 2, "reference": 4}


def test_the_table_fits_a_terminal():
    figures = [
        Figure(
            "a figure whose name is so long that it needs more than one line of the table",
            12345.678,
            67.8,
            "points",
            1e-6,
        )
    ]
    assert max(map(len, table(figures).splitlines())) <= 100


def test_the_page_is_that_of_the_saved_figures():
    folder = ROOT / "results/benchmarks"
    saved = [path for path in folder.glob("*.json") if "figures" in json.loads(path.read_text())]
    assert saved and {path.stem for path in saved} <= set(names())
    assert (folder / "README.md").read_text() == page(folder)


def test_a_benchmark_that_does_not_exist_is_refused():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/run.py", "speed"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        done.returncode == 2
        and "no benchmark named speed" in done.stderr
        and "Traceback" not in done.stderr
    )
