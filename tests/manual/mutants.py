"""Mutation testing: change single lines of the package and see whether a test fails.

    python tests/manual/mutants.py                          # the list in mutants.json
    python tests/manual/mutants.py --file pcb/confusion.py
    python tests/manual/mutants.py --generate 200 --seed 1  # others, at random
    python tests/manual/mutants.py --list                   # show them, run nothing

A mutant that no test of its area notices has survived: a fact that no test states, or a change
without effect. `mutants.json` holds changes found by hand, all of which must be killed.
`--generate` changes an operator, constant, condition or call of the modules in `AREAS` instead,
equally many in each module; `mutants-equivalent.json` holds those without effect, each with the
reason. The repository is never changed: tests run in a copy in a temporary folder.

Every mutant is tried in a fork of one warm process, so it costs little more than the test that
notices it. Of its area those tests run that execute the changed line or start processes, all where
none does; first those that have killed most. The outcomes are in `--out` after each mutant. A
run that was stopped goes on from there: what was killed stays killed while its line is unchanged,
survivors are tried again. `--fresh` starts over.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import hashlib
import importlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutants.json")
EQUIVALENT = Path(__file__).with_name("mutants-equivalent.json")
TIMEOUT = 600  # seconds; a mutant that loops forever counts as killed
KILLED, SURVIVED, EQUAL = "killed", "survived", "equivalent"
# Not tried: its text is not in the file, or its tests fail without it.
STALE, BROKEN = "stale", "broken"

# Module -> tests of its area, files of tests/unit in the order in which they run.
AREAS = {
    "pcb/confusion.py": "confusion losses losses_device",
    "pcb/calibration.py": "calibration",
    "pcb/losses/base.py": "losses losses_base losses_device",
    "pcb/losses/regulariser.py": "losses heads losses_device overflow",
    "pcb/losses/softmax.py": "losses losses_naive losses_device",
    "pcb/losses/eqlv2.py": "losses_base losses_device overflow",
    "pcb/losses/seesaw.py": "losses_base losses_device overflow",
    "pcb/losses/bags.py": "losses_base losses_device",
    "pcb/losses/label_smoothing.py": "losses_base",
    "pcb/losses/soft_labels.py": "losses_base losses_device",
    "pcb/losses/loce.py": "losses_base overflow",
    "pcb/heads/stepped.py": "heads",
    "pcb/heads/iterative.py": "heads",
    "pcb/heads/deep_supervision.py": "heads",
    "pcb/heads/refinement.py": "heads",
    "pcb/heads/loce.py": "heads overflow",
    "pcb/evaluation/score.py": "eval_score eval_protocols",
    "pcb/evaluation/matches.py": "eval_matches eval_score eval_protocols",
    "pcb/evaluation/protocols.py": "eval_protocols",
    "pcb/evaluation/bootstrap.py": "eval_bootstrap",
    "pcb/evaluation/confusion_metrics.py": "eval_confusion_metrics bias",
    "pcb/evaluation/bias.py": "bias",
    "pcb/study/claims.py": "study_claims report",
    "pcb/reporting/claims.py": "report",
    "pcb/data/lvis/annotations.py": "data_index data_check",
    "pcb/data/lvis/masks.py": "data_masks data_dataset",
    "pcb/data/lvis/polygons.py": "data_emoji data_masks",
    "pcb/data/lvis/sampling.py": "data_dataset data_check",
    "pcb/data/lvis/federated.py": "data_check data_emoji",
    "pcb/inference/mask_rle.py": "eval_predict",
    "pcb/inference/multi_variant_nms.py": "eval_predict",
    "pcb/inference/proposal_confusion.py": "eval_predict",
    "pcb/training/sampler.py": "train_sampler",
}
OPERATORS = {
    **{"+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "*", "**": "*"},
    **{"&": "|", "|": "&", "and": "or", "or": "and"},
    **{"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="},
    **{"is": "is not", "is not": "is", "in": "not in", "not in": "in"},
}
NAMES = {
    **{"any": "all", "min": "max", "amin": "amax", "argmin": "argmax", "floor": "ceil"},
    **{"minimum": "maximum", "zeros": "ones", "zeros_like": "ones_like"},
}
NAMES |= {new: old for old, new in NAMES.items()}


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

    def apply(self, source: str) -> str | None:
        """Change the text of the file; None where it does not have `old` once."""
        if self.line is not None:
            lines = source.splitlines(keepends=True)
            lines[self.line - 1] = self.new + "\n"
            return "".join(lines)
        return source.replace(self.old, self.new) if source.count(self.old) == 1 else None

    def line_in(self, source: str) -> int:
        """The number of the first line that changes."""
        return self.line or source[: source.index(self.old)].count("\n") + 1

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies it while other lines of the file change."""
        return self.file, self.old.strip(), self.new.strip()


def listed() -> list[Mutant]:
    """The mutants of mutants.json."""
    return [Mutant(**entry) for entry in json.loads(LIST.read_text(encoding="utf-8"))]


def equivalent() -> dict[tuple[str, str, str], str]:
    """The mutants without effect and the reason of each."""
    entries = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
    return {(entry["file"], entry["old"], entry["new"]): entry["reason"] for entry in entries}


def generated(count: int, seed: int, only: str | None = None) -> list[Mutant]:
    """Choose mutants at random, equally many of each module, or `only` of one.

    They are ordered by a digest of seed and change, so a line that is edited or moved changes the
    choice of no other.
    """

    def chance(*of: str) -> bytes:
        return hashlib.sha256(":".join([str(seed), *of]).encode()).digest()

    by_file = []
    for file, tests in AREAS.items():
        if only in (None, file):
            paths = " ".join(f"tests/unit/test_{name}.py" for name in tests.split())
            by_file.append(sorted(mutants_of(file, paths), key=lambda m: chance(*m.key)))
    by_file.sort(key=lambda found: chance(found[0].file))
    rounds = range(max(map(len, by_file)))
    return [found[i] for i in rounds for found in by_file if i < len(found)][:count]


def mutants_of(file: str, test: str) -> Iterator[Mutant]:
    """All mutants of a module, one change at a time.

    Changed are operators, numbers, truth values, names as in `NAMES`, conditions and signs, which
    are negated, and calls and assignments without a value, which are left out.
    """
    source = (ROOT / file).read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in code(ast.parse(source)):
        for row, start, end, new in changes(node, lines):
            line = lines[row - 1].encode()  # columns of a syntax tree count bytes
            changed = (line[:start] + new.encode() + line[end:]).decode()
            yield Mutant(file, lines[row - 1], changed, test, row)


def code(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those of formatted text, which is mostly of messages, and of annotations."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr | ast.Assert):
                yield from code(child)


def changes(node: ast.AST, lines: list[str]) -> Iterator[tuple[int, int, int, str]]:
    """Line, first and last column of what a node lets change, and the text in its place."""
    row, start, end = getattr(node, "lineno", 0), getattr(node, "col_offset", 0), 0
    if getattr(node, "end_lineno", None) == row:
        end = getattr(node, "end_col_offset", 0)

    def text(start: int, end: int, row: int = row) -> str:
        return lines[row - 1].encode()[start:end].decode()

    match node:
        case ast.Constant(value=bool()) if end:
            yield row, start, end, str(not node.value)
        case ast.Constant(value=int() | float()) if end:
            yield row, start, end, repr(node.value + 1)
        case ast.BinOp() | ast.Compare() | ast.BoolOp():
            operands = {
                ast.BinOp: lambda n: (n.left, n.right),
                ast.Compare: lambda n: (n.left, n.comparators[0]),
                ast.BoolOp: lambda n: n.values[:2],
            }
            left, right = operands[type(node)](node)
            if left.end_lineno == right.lineno:
                a, b, row = left.end_col_offset, right.col_offset, right.lineno
                between = text(a, b, row)
                operator = between.strip(" ()")
                if operator in OPERATORS:
                    yield row, a, b, between.replace(operator, OPERATORS[operator])
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()) if end:
            yield row, start, end, f"({text(start, end).removeprefix('not').lstrip('~- ')})"
        case ast.Call(func=ast.Attribute() as called) if called.attr in NAMES:
            row, end = called.end_lineno or 0, called.end_col_offset or 0
            yield row, end - len(called.attr), end, NAMES[called.attr]
        case ast.Call(func=ast.Name() as called) if called.id in NAMES:
            yield row, start, start + len(called.id), NAMES[called.id]
        case ast.keyword() if node.arg in NAMES:
            yield row, start, start + len(node.arg), NAMES[node.arg]
        case ast.Expr(value=ast.Call()) | ast.AugAssign() if end:
            yield row, start, end, "pass"
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        test = node.test
        plain = isinstance(test, ast.Compare) or ast.unparse(test) == "TYPE_CHECKING"
        if test.end_lineno == test.lineno and not plain:
            a, b = test.col_offset, test.end_col_offset or 0
            yield test.lineno, a, b, f"not ({text(a, b, test.lineno)})"


def copy_repository(folder: Path) -> None:
    """Copy every file that git tracks or would track."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def preload(names: list[str]) -> None:
    """Import what tests need and no mutant changes, which takes longer than most tests."""
    for name in names:
        if name.partition(".")[0] not in ("pcb", "tests", "conftest"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.freeze()


class Watch:
    """A plugin of pytest that records what tests do without a mutant: lines, seconds, imports."""

    def __init__(self, report: Path, folder: Path):
        """Lines are those of the modules in `folder`."""
        self.report, self.folder, self.tests, self.lines = report, f"{folder}/", {}, set()
        self.starts = False  # whether the present test starts a process
        self.files: dict[str, str] = {}  # file -> its path from the root, empty outside of pcb/

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        """Run a test under a trace."""
        if not self.tests:
            sys.addaudithook(self.audit)
        began, self.lines, self.starts = time.perf_counter(), set(), False
        sys.settrace(self.trace)
        threading.settrace(self.trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # ty: ignore[invalid-argument-type]
            seconds = time.perf_counter() - began
            self.tests[item.nodeid] = {
                "lines": [f"{file}:{line}" for file, line in self.lines],
                "starts": self.starts,
                "seconds": seconds,
            }

    def audit(self, event, arguments):
        """Notice the start of a process, whose lines are not traced."""
        if event in ("os.fork", "os.posix_spawn", "subprocess.Popen"):
            self.starts = True

    def trace(self, frame, event, argument):
        """Follow only functions of the package; what is outside of them runs on every import."""
        code = frame.f_code
        if (file := self.files.get(code.co_filename)) is None:
            inside = code.co_filename.startswith(self.folder + "pcb/")
            file = code.co_filename[len(self.folder) :] if inside else ""
            self.files[code.co_filename] = file
        if not file or not code.co_flags & inspect.CO_NEWLOCALS:
            return None
        self.lines.add((file, frame.f_lineno))
        return self.trace

    def pytest_sessionfinish(self):
        """Write what was recorded."""
        places = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
        imported = [
            name
            for name, module in list(sys.modules.items())
            if (getattr(module, "__file__", None) or "").startswith(places)
        ]
        found = {"tests": self.tests, "imported": imported}
        self.report.write_text(json.dumps(found), encoding="utf-8")


class Order:
    """A plugin of pytest that puts the tests first that probably fail, and tells which did.

    It leaves out tests that cannot reach the line `place`, by `known`, what `Watch` recorded of
    each. First are the ones with the most kills in the least time.
    """

    def __init__(self, report: Path, place: str, known: dict[str, dict], kills: Counter):
        self.report, self.place, self.known, self.kills = report, place, known, kills
        self.failed: str | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        """Choose and sort the tests."""

        def reaches(item):
            return self.place in self.known[item.nodeid]["lines"]

        def rate(item):
            return (self.kills[item.nodeid] + 0.5) / (self.known[item.nodeid]["seconds"] + 0.05)

        items.sort(key=lambda item: (not reaches(item), -rate(item)))
        if items and reaches(items[0]):
            items[:] = [i for i in items if reaches(i) or self.known[i.nodeid]["starts"]]

    def pytest_runtest_logreport(self, report):
        """Keep the first test that fails."""
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_sessionfinish(self):
        """Write what was found."""
        self.report.write_text(json.dumps({"failed": self.failed}), encoding="utf-8")


def run(folder: Path, test: str, plugin: Watch | Order) -> tuple[int, dict]:
    """Run tests in a copy of the repository, in a fork of this process.

    Returns:
        pytest's exit status, negative where a signal ended it, and what the plugin reported.
    """
    plugin.report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setpgrp()
        signal.alarm(TIMEOUT)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        os.environ.update(PYTHONPATH=str(folder))
        scratch = f"--basetemp={folder.parent / 'tests'}"
        options = ["-qx", "-p", "no:cacheprovider", scratch]
        os._exit(pytest.main([*options, *test.split()], plugins=[plugin]))
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it started, or itself after Ctrl-C
    written = plugin.report.is_file()
    return status, json.loads(plugin.report.read_text(encoding="utf-8")) if written else {}


class Trial:
    """Tries mutants in one copy of the repository."""

    def __init__(self, folder: Path):
        """Copies the repository into `folder`."""
        self.folder, self.report = folder / "copy", folder / "report.json"
        copy_repository(self.folder)
        # Some tests use data that lie beside the checkout, of a worktree beside its main one.
        data = (ROOT / git("rev-parse", "--git-common-dir")).resolve().parents[1] / "shared"
        if data.is_dir():
            (folder / data.name).symlink_to(data)
        self.known: dict[str, dict | None] = {}  # argument of pytest -> what its tests do unmutated
        self.kills: Counter = Counter()

    def watch(self, test: str) -> dict | None:
        """What tests do without a mutant; None where they fail."""
        if test not in self.known:
            # Only here are compiled modules stored: one of a mutant could be taken for the module.
            sys.dont_write_bytecode = False
            status, found = run(self.folder, test, Watch(self.report, self.folder))
            sys.dont_write_bytecode = True
            preload(found.get("imported", []))
            self.known[test] = None if status else found["tests"]
        return self.known[test]

    def outcome(self, mutant: Mutant) -> tuple[str, str | None]:
        """A status, and the tests that failed."""
        path = self.folder / mutant.file
        source = path.read_text(encoding="utf-8")
        changed = mutant.apply(source)
        if changed is None:
            return STALE, None
        place, times = f"{mutant.file}:{mutant.line_in(source)}", path.stat()
        for test in mutant.test.split():
            if (known := self.watch(test)) is None:
                return BROKEN, test
            order = Order(self.report, place, known, self.kills)
            try:
                path.write_text(changed, encoding="utf-8")
                later = times.st_mtime_ns + 10**10  # so that a compiled module is not taken for it
                os.utime(path, ns=(times.st_atime_ns, later))
                status, found = run(self.folder, test, order)
            finally:
                path.write_text(source, encoding="utf-8")
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            if status:
                by = found.get("failed")
                self.kills[by] += by is not None
                return KILLED, by or ("timeout" if status == -signal.SIGALRM else "import")
        return SURVIVED, None


def table(found: list[dict]) -> str:
    """The score of each file, as Markdown."""
    by_file: dict[str, Counter] = defaultdict(Counter)
    for entry in found:
        by_file[entry["file"]][entry["status"]] += 1
    rows = [*sorted(by_file.items()), ("all", sum(by_file.values(), Counter()))]
    out = ["| file | mutants | killed | equivalent | survived | score |", "|---|" + "---:|" * 5]
    for file, n in rows:
        counted = n[KILLED] + n[SURVIVED]
        score = f"{100 * n[KILLED] / counted:.0f} %" if counted else "-"
        out.append(f"| {file} | {n.total()} | {n[KILLED]} | {n[EQUAL]} | {n[SURVIVED]} | {score} |")
    return "\n".join(out)


def git(*command: str) -> str:
    """Output of a git command in this repository."""
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def write(path: Path, found: list[dict], **about) -> None:
    """Write outcomes as JSON, and with them what they are of."""
    content = {**about, "git": {"commit": git("rev-parse", "HEAD")}, "mutants": found}
    content["git"]["changed"] = bool(git("status", "--porcelain", "--", "pcb", "tests"))
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def earlier(path: Path) -> dict[tuple[str, str, str], dict]:
    """Killed mutants of a run that was stopped."""
    if not path.is_file():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))["mutants"]
    killed = [entry for entry in entries if entry["status"] == KILLED]
    return {(e["file"], e["old"].strip(), e["new"].strip()): e for e in killed}


def main() -> None:
    """Run the mutants and write the outcome of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generate", type=int, metavar="N", help="N random mutants instead")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")
    parser.add_argument("--file", help="only the mutants of this file")
    parser.add_argument("--list", action="store_true", help="show the mutants only")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("mutants-found.json"),
        help="outcomes of all mutants (default: %(default)s)",
    )
    parser.add_argument("--fresh", action="store_true", help="take nothing from an earlier --out")
    args = parser.parse_args()
    if args.file and args.generate and args.file not in AREAS:
        sys.exit(f"{args.file} has no tests in AREAS")
    chosen = generated(args.generate, args.seed, args.file) if args.generate else listed()
    mutants = [mutant for mutant in chosen if args.file in (None, mutant.file)]
    without_effect = equivalent()
    if args.list:
        for mutant in mutants:
            print(describe(mutant), without_effect.get(mutant.key, ""))
        return
    known = {} if args.fresh else earlier(args.out)
    found: list[dict] = []
    about = {"seed": args.seed, "generated": len(mutants)} if args.generate else {}
    began, tried = time.monotonic(), 0
    to_try = sum(m.key not in known and m.key not in without_effect for m in mutants)
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        trial = Trial(Path(temporary))
        for number, mutant in enumerate(mutants, 1):
            if mutant.key in without_effect:
                status, about_it = EQUAL, {"reason": without_effect[mutant.key]}
            elif mutant.key in known:
                status, about_it = KILLED, {"by": known[mutant.key]["by"]}
            else:
                status, by = trial.outcome(mutant)
                about_it, tried = {"by": by}, tried + 1
            found.append({**asdict(mutant), "status": status, **about_it})
            write(args.out, found, **about)
            left = (time.monotonic() - began) / max(tried, 1) * (to_try - tried)
            print(
                f"{number}/{len(mutants)}  {left / 60:.0f} min left  {status:10} {describe(mutant)}"
                f"  {re.sub('.*::', '', about_it.get('by') or '')}",
                flush=True,
            )
    print(table(found))
    bad = [entry for entry in found if entry["status"] in (SURVIVED, STALE, BROKEN)]
    for entry in bad:
        print(f"{entry['status']}: {entry['file']}:{entry['line'] or ''} {entry['new'].strip()}")
    sys.exit(bool(bad))


def describe(mutant: Mutant) -> str:
    """A mutant in one line of text."""
    text = " ".join(f"{mutant.old} -> {mutant.new}".split())
    return f"{mutant.file}:{mutant.line or ''}  {text[:220]}"


if __name__ == "__main__":
    main()
