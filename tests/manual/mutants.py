"""Mutation testing: change single lines of the package and see whether a test fails.

    python tests/manual/mutants.py                      # the list in mutants.json
    python tests/manual/mutants.py --file pcb/confusion.py
    python tests/manual/mutants.py --generate 30 --seed 1
    python tests/manual/mutants.py --list               # show them, run nothing

A mutant that no test of its area notices has survived: a fact that no test states, or a change
without effect. mutants.json holds such changes found by hand, all of which must be killed. With
`--generate`, operators and constants of the modules in `AREAS` are changed at random instead. The
repository is never changed: tests run in a copy in a temporary folder.

A mutant takes as long as its tests: of the list one test each, of a random one all of its area.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutants.json")
TIMEOUT = 600  # seconds; a mutant that loops forever counts as killed
PRELOADED = ("hotcoco", "matplotlib.pyplot", "mmdet.apis", "pyarrow.parquet", "scipy.stats")

# Module -> tests of its area, for mutants that are generated.
AREAS = {
    "pcb/confusion.py": "tests/unit/test_confusion.py",
    "pcb/calibration.py": "tests/unit/test_calibration.py",
    "pcb/losses/softmax.py": "tests/unit/test_losses.py",
    "pcb/losses/regulariser.py": "tests/unit/test_losses.py",
    "pcb/losses/eqlv2.py": "tests/unit/test_losses_base.py",
    "pcb/losses/seesaw.py": "tests/unit/test_losses_base.py",
    "pcb/losses/bags.py": "tests/unit/test_losses_base.py",
    "pcb/losses/label_smoothing.py": "tests/unit/test_losses_base.py",
    "pcb/heads/stepped.py": "tests/unit/test_heads.py",
    "pcb/heads/iterative.py": "tests/unit/test_heads.py",
    "pcb/heads/refinement.py": "tests/unit/test_heads.py",
    "pcb/heads/loce.py": "tests/unit/test_heads.py",
    "pcb/evaluation/score.py": "tests/unit/test_eval_score.py",
    "pcb/evaluation/matches.py": "tests/unit/test_eval_matches.py",
    "pcb/evaluation/confusion_metrics.py": "tests/unit/test_eval_confusion_metrics.py",
    "pcb/study/claims.py": "tests/unit/test_study_claims.py",
    "pcb/reporting/claims.py": "tests/unit/test_report.py",
    "pcb/data/lvis/masks.py": "tests/unit/test_data_masks.py",
    "pcb/data/lvis/annotations.py": "tests/unit/test_data_index.py",
    "pcb/training/sampler.py": "tests/unit/test_train_sampler.py",
}
OPERATORS = {
    **{"+": "-", "-": "+", "*": "/", "/": "*", "and": "or", "or": "and"},
    **{"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="},
}


@dataclass(frozen=True)
class Mutant:
    """A change to one file.

    Attributes:
        file: Path from the root of the repository.
        old: Text that occurs once in the file, or a line of it.
        new: Text in its place.
        test: Tests of the area, as pytest takes them.
        line: Number of the line that is `old`, which may then occur elsewhere too.
    """

    file: str
    old: str
    new: str
    test: str
    line: int | None = None

    def apply(self, source: str) -> str:
        """Change the text of the file."""
        if self.line is not None:
            lines = source.splitlines(keepends=True)
            lines[self.line - 1] = self.new + "\n"
            return "".join(lines)
        if source.count(self.old) != 1:
            sys.exit(f"{self.file}: {self.old!r} occurs {source.count(self.old)} times, not once")
        return source.replace(self.old, self.new)


def listed() -> list[Mutant]:
    """The mutants of mutants.json."""
    return [Mutant(**entry) for entry in json.loads(LIST.read_text(encoding="utf-8"))]


def generated(count: int, seed: int, only: str | None = None) -> list[Mutant]:
    """Choose mutants at random, equally many of each module, or `only` of one."""
    rng, by_file = random.Random(seed), []
    for file, test in AREAS.items():
        if only not in (None, file):
            continue
        found = list(mutants_of(file, test))
        by_file.append(rng.sample(found, len(found)))
    rng.shuffle(by_file)
    rounds = range(max(map(len, by_file)))
    return [found[i] for i in rounds for found in by_file if i < len(found)][:count]


def mutants_of(file: str, test: str) -> Iterator[Mutant]:
    """All mutants of a module: another operator, number or truth value, one at a time."""
    source = (ROOT / file).read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in code(ast.parse(source)):
        if (found := span_of(node)) is None:
            continue
        row, start, end = found
        line = lines[row - 1].encode()  # columns of a syntax tree count bytes
        text = line[start:end].decode()
        if (new := changed(text)) is not None:
            replaced = line[:start] + new.encode() + line[end:]
            yield Mutant(file, lines[row - 1], replaced.decode(), test, row)


def code(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those in formatted text, which is mostly of messages."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.JoinedStr):
            yield from code(child)


def span_of(node: ast.AST) -> tuple[int, int, int] | None:
    """Line, first and last column of a constant, or of what is between two operands."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        return node.lineno, node.col_offset, node.end_col_offset or 0
    if isinstance(node, ast.BinOp):
        left, right = node.left, node.right
    elif isinstance(node, ast.Compare):
        left, right = node.left, node.comparators[0]
    elif isinstance(node, ast.BoolOp):
        left, right = node.values[:2]
    else:
        return None
    if left.end_lineno != right.lineno:
        return None
    return right.lineno, left.end_col_offset or 0, right.col_offset


def changed(text: str) -> str | None:
    """Another constant or operator in place of this one; None for operators that are left alone."""
    if text in ("True", "False"):
        return str(text == "False")
    operator = text.strip(" ()")
    if operator in OPERATORS:
        return text.replace(operator, OPERATORS[operator])
    try:
        return repr(ast.literal_eval(text) + 1)
    except (SyntaxError, ValueError, TypeError):
        return None


def copy_repository(folder: Path) -> None:
    """Copy every file that git tracks or would track."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def preload() -> None:
    """Import what most tests need and no mutant changes; it takes longer than most tests."""
    for name in PRELOADED:
        importlib.import_module(name)


def passes(folder: Path, test: str) -> bool:
    """Whether tests pass in a copy of the repository, in a fork of this process."""
    child = os.fork()
    if child == 0:
        signal.alarm(TIMEOUT)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        os.environ.update(PYTHONPATH=str(folder))
        os._exit(pytest.main(["-qx", "-p", "no:cacheprovider", *test.split()]))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main() -> None:
    """Run the mutants and write the outcome of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generate", type=int, metavar="N", help="N random mutants instead")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")
    parser.add_argument("--file", help="only the mutants of this file")
    parser.add_argument("--list", action="store_true", help="show the mutants only")
    parser.add_argument("--out", type=Path, default=Path("mutants-found.json"))
    args = parser.parse_args()
    if args.file and args.generate and args.file not in AREAS:
        sys.exit(f"{args.file} has no tests in AREAS")
    chosen = generated(args.generate, args.seed, args.file) if args.generate else listed()
    mutants = [mutant for mutant in chosen if args.file in (None, mutant.file)]
    found: list[dict] = []
    sound: dict[str, bool] = {}  # tests that pass without a mutant
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        folder = Path(temporary)
        copy_repository(folder)
        sys.dont_write_bytecode = True  # else a mutant of equal size and time could be missed
        if not args.list:
            preload()
        for mutant in mutants:
            path = folder / mutant.file
            source = path.read_text(encoding="utf-8")
            changed = mutant.apply(source)
            line = mutant.line or source[: source.index(mutant.old)].count("\n") + 1
            status = "listed"
            if not args.list:
                sound[mutant.test] = sound.get(mutant.test) or passes(folder, mutant.test)
                if not sound[mutant.test]:
                    sys.exit(f"{mutant.test} fails without a mutant, or does not exist")
                path.write_text(changed, encoding="utf-8")
                status = "survived" if passes(folder, mutant.test) else "killed"
                path.write_text(source, encoding="utf-8")
            found.append({**asdict(mutant), "line": line, "status": status})
            text = " ".join(f"{mutant.old} -> {mutant.new}".split())
            print(f"{status:8} {mutant.file}:{line}  {text[:200]}", flush=True)
            if not args.list:
                args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for file, counts in sorted(by_file(found).items()):
        print(f"{file:40} " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
    sys.exit(any(entry["status"] == "survived" for entry in found))


def by_file(found: list[dict]) -> dict[str, Counter]:
    """How many mutants of each file have which status."""
    out: dict[str, Counter] = {}
    for entry in found:
        out.setdefault(entry["file"], Counter())[entry["status"]] += 1
    return out


if __name__ == "__main__":
    main()
