"""All benchmarks in turn, and one table of them: `make bench`, or `make bench QUICK=1`.

    python benchmarks/run.py [--quick] [--write] [NAME ...]

Each runs in a process of its own; one that fails is named at the end and does not hide the others.
`--write` saves each as results/benchmarks/NAME.json, and a page of all that are saved, README.md.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import RESULTS, Figure, number, table

HERE = Path(__file__).resolve().parent


def names() -> list[str]:
    """Return the names of the files that call the harness's main."""
    return sorted(
        path.stem
        for path in HERE.glob("*.py")
        if path.stem not in ("harness", "run") and 'main("' in path.read_text(encoding="utf-8")
    )


def read(path: Path) -> list[Figure]:
    """Read saved figures."""
    rows = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return [
        Figure(*(row[k] for k in ("what", "ours", "reference", "unit", "target"))) for row in rows
    ]


def page(folder: Path) -> str:
    """Return a folder's saved figures as Markdown: a heading and a table for each benchmark."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench WRITE=1`, a single one by `make bench WRITE=1 NAME=losses`. "
        "Less is better. The first lines of a benchmark describe what it measures.",
        "",
    ]
    for path in sorted(folder.glob("*.json")):
        saved = json.loads(path.read_text(encoding="utf-8"))
        if "figures" not in saved:
            continue
        about, hardware = docstring(HERE / f"{path.stem}.py"), saved["hardware"]
        changes = " and changes" if saved["git"]["changed"] else ""
        quick = ", with fewer repeats (`--quick`)" if saved["quick"] else ""
        lines += [
            f"## [{path.stem}](../../benchmarks/{path.stem}.py)",
            "",
            about,
            "",
            f"{saved['date'][:10]}, commit {saved['git']['commit'][:7]}{changes}, "
            f"{', '.join(hardware.get('gpus', [hardware['cpu']]))}, "
            f"{hardware['cores']} cores{quick}.",
            "",
            "| what | ours | reference | ratio | target | |",
            "|---|---:|---:|---:|---:|---|",
        ]
        lines += ["| " + " | ".join(cells(f)) + " |" for f in read(path)] + [""]
    return "\n".join(lines)


def cells(f: Figure) -> list[str]:
    """Return the cells of a row of the page."""
    ours, reference = (
        " ".join(filter(None, (number(value), f.unit))) if value is not None else ""
        for value in (f.ours, f.reference)
    )
    return [f.what, ours, reference, *f.judged]


def docstring(path: Path) -> str:
    """Return the first line of a program's docstring, without importing it."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n")[0]


def main() -> int:
    """Run the benchmarks from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which; all without any: {', '.join(names())}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller sizes")
    parser.add_argument(
        "--write", action="store_true", help="save figures below results/benchmarks/"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(names())
    if unknown:
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}")
    figures: dict[str, list[Figure]] = {}
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names or names():
            print(f"\n== {name}", flush=True)
            path = (RESULTS if arguments.write else Path(folder)) / f"{name}.json"
            command = [
                sys.executable,
                str(HERE / f"{name}.py"),
                "--write",
                str(path),
                *(["--quick"] if arguments.quick else []),
            ]
            if subprocess.run(command).returncode:
                failed.append(name)
            else:
                figures[name] = read(path)
    if arguments.write:
        (RESULTS / "README.md").write_text(page(RESULTS), encoding="utf-8")
    print("\n== all")
    print(
        table(
            [
                Figure(f"{name}: {f.what}", f.ours, f.reference, f.unit, f.target)
                for name, of_name in figures.items()
                for f in of_name
            ]
        )
    )
    if failed:
        print(f"failed: {', '.join(failed)} (see above)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
