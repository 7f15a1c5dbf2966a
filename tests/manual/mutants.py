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

Files of tests run in turn, each collected once; then every mutant is a fork of that process, in
which the changed functions are replaced, so it costs little more than the test that notices it. A
change outside of functions is imported anew. Those tests run that call the changed function or
start processes, all where none does; first those that have killed most. What was killed is not
tried with further files. The outcomes are in `--out` after each mutant. A run that was stopped goes
on from there: what was killed stays killed while its line is unchanged, survivors are tried again.
`--fresh` starts over.
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
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
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
ANEW, ANEW_STATUS = "anew", 4  # not in a function that can be replaced

# Module -> tests of its area, files of tests/unit in the order in which they run.
AREAS = {
    "pcb/confusion.py": "confusion losses losses_device",
    "pcb/calibration.py": "calibration",
    "pcb/losses/base.py": "losses losses_base losses_device",
    "pcb/losses/regulariser.py": "losses heads losses_base losses_device overflow",
    "pcb/losses/softmax.py": "losses losses_naive losses_device",
    "pcb/losses/eqlv2.py": "losses_base losses_device overflow",
    "pcb/losses/seesaw.py": "losses_base losses_device overflow",
    "pcb/losses/bags.py": "losses_base losses_device",
    "pcb/losses/label_smoothing.py": "losses_base",
    "pcb/losses/soft_labels.py": "losses_base losses_device",
    "pcb/losses/loce.py": "losses_base overflow",
    "pcb/iterative.py": "heads",
    "pcb/average_precision.py": "eval_score lvis_metric",
    "pcb/lvis_metric.py": "lvis_metric",
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
            found = mutants_of(file, paths(tests))
            by_file.append(sorted(found, key=lambda m: chance(*m.key)))
    by_file.sort(key=lambda found: chance(found[0].file))
    rounds = range(max(map(len, by_file)))
    return [found[i] for i in rounds for found in by_file if i < len(found)][:count]


def paths(tests: str) -> str:
    """The files of an area, from the root of the repository."""
    return " ".join(f"tests/unit/test_{name}.py" for name in tests.split())


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


def enclosing(source: str, line: int) -> int:
    """First line of the innermost function of which a line is in the body; 0 if there is none.

    As in code objects, decorators belong to a function.
    """
    found = [
        min(part.lineno for part in [node, *node.decorator_list])
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body[0].lineno <= line <= (node.end_lineno or 0)
    ]
    return max(found, default=0)


def functions_of(path: Path) -> list[types.FunctionType]:
    """All functions that exist of a module, wherever they are kept."""
    return [
        thing
        for thing in gc.get_objects()
        if isinstance(thing, types.FunctionType) and thing.__code__.co_filename == str(path)
    ]


def replace_code(functions: list[types.FunctionType], changed: str, path: Path) -> bool:
    """Give functions of a module their code in its changed text; False where none differs."""
    new, to_visit = {}, [compile(changed, str(path), "exec")]
    while to_visit:
        code = to_visit.pop()
        new[code.co_qualname, code.co_firstlineno] = code
        to_visit += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    replaced = False
    for function in functions:
        old = function.__code__
        if (code := new.get((old.co_qualname, old.co_firstlineno))) not in (None, old):
            function.__code__, replaced = code, True
    return replaced


def fork(limit: float, child: Callable[[], int]) -> int:
    """Exit status of a function in a fork of this process, negative where a signal ended it.

    The fork may use `limit` seconds of CPU time; a mutant that loops forever counts as killed.
    """
    if (pid := os.fork()) == 0:
        os.setpgrp()
        signal.setitimer(signal.ITIMER_PROF, limit)
        signal.alarm(TIMEOUT)
        status = 3
        try:
            status = child()
        finally:
            os._exit(status)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it started, or itself after Ctrl-C


class Watch:
    """Records what tests do without a mutant: functions that they call, seconds, imports."""

    def __init__(self, folder: Path):
        """Functions are those of the package in `folder`."""
        self.folder, self.tests, self.calls = f"{folder}/", {}, set()
        self.starts = False  # whether the present test starts a process
        self.files: dict[str, str] = {}  # file -> its path from the root, empty outside of pcb/
        sys.addaudithook(self.audit)

    def run(self, item: pytest.Item, following: pytest.Item | None) -> None:
        """Run a test and record what it does."""
        began, self.calls, self.starts = time.process_time(), set(), False
        sys.settrace(self.trace)
        threading.settrace(self.trace)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        sys.settrace(None)
        threading.settrace(None)  # ty: ignore[invalid-argument-type]
        self.tests[item.nodeid] = {
            "calls": [f"{file}:{line}" for file, line in self.calls],
            "starts": self.starts,
            "seconds": time.process_time() - began,
        }

    def audit(self, event, arguments):
        """Notice the start of a process, whose calls are not traced."""
        if event in ("os.fork", "os.posix_spawn", "subprocess.Popen"):
            self.starts = True

    def trace(self, frame, event, argument):
        """Note a call of a function of the package."""
        code = frame.f_code
        if (file := self.files.get(code.co_filename)) is None:
            inside = code.co_filename.startswith(self.folder + "pcb/")
            file = code.co_filename[len(self.folder) :] if inside else ""
            self.files[code.co_filename] = file
        if file and code.co_flags & inspect.CO_NEWLOCALS:
            self.calls.add((file, code.co_firstlineno))

    def imported(self) -> list[str]:
        """Modules of Python and of its packages."""
        places = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
        return [
            name
            for name, module in list(sys.modules.items())
            if (getattr(module, "__file__", None) or "").startswith(places)
        ]


@contextlib.contextmanager
def changed_file(path: Path, source: str, changed: str) -> Iterator[None]:
    """Change a module for a while."""
    times = path.stat()
    try:
        path.write_text(changed, encoding="utf-8")
        later = times.st_mtime_ns + 10**10  # so that a compiled module is not taken for it
        os.utime(path, ns=(times.st_atime_ns, later))
        yield
    finally:
        path.write_text(source, encoding="utf-8")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def verdict(status: int, by: str | None) -> tuple[str, str | None]:
    """The status of a mutant, from the exit status of its tests and the one that failed."""
    if status == 0:
        return SURVIVED, None
    if status == ANEW_STATUS:
        return ANEW, None
    return KILLED, by or ("timeout" if status in (-signal.SIGPROF, -signal.SIGALRM) else "import")


class Session:
    """A plugin of pytest that collects a file of tests once and tries mutants in forks.

    Args:
        folder: The copy of the repository.
        mutants: The mutants to try.
        kills: How many mutants each test has killed.
        tell: Takes the outcome of each: its index, a status and the test that failed.
    """

    def __init__(self, folder: Path, mutants: list[Mutant], kills: Counter, tell: Callable):
        self.folder, self.mutants, self.kills, self.tell = folder, mutants, kills, tell
        self.report = folder.parent / "report.json"
        self.failed: str | None = None
        self.known: dict[str, dict] = {}
        self.functions: dict[Path, list[types.FunctionType]] = {}

    def pytest_runtest_logreport(self, report):
        """Keep the first test that fails."""
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_runtestloop(self, session):
        """Run all tests without a mutant, then the mutants."""
        status = fork(TIMEOUT, lambda: self.watch(session.items))
        found = json.loads(self.report.read_text(encoding="utf-8")) if status == 0 else {}
        if status:
            for index in range(len(self.mutants)):
                self.tell(index, BROKEN, None)
            return True
        self.known = found["tests"]
        gc.disable()  # forks share memory that no collection touches
        self.tell(None, "imported", found["imported"])
        for index, mutant in enumerate(self.mutants):
            self.tell(index, *self.outcome(mutant, session.items))
        return True

    def watch(self, items: list[pytest.Item]) -> int:
        """Run tests under a watch, in a fork."""
        watch = Watch(self.folder)
        for item, following in zip(items, [*items[1:], None], strict=True):
            watch.run(item, following)
            if self.failed:
                return 1
        found = {"tests": watch.tests, "imported": watch.imported()}
        self.report.write_text(json.dumps(found), encoding="utf-8")
        return 0

    def outcome(self, mutant: Mutant, items: list[pytest.Item]) -> tuple[str, str | None]:
        """The status of a mutant and the test that killed it."""
        path = self.folder / mutant.file
        source = path.read_text(encoding="utf-8")
        if (changed := mutant.apply(source)) is None:
            return STALE, None
        first = enclosing(source, mutant.line_in(source))
        chosen = self.choose(items, f"{mutant.file}:{first}")
        slowest = max((self.known[item.nodeid]["seconds"] for item in chosen), default=0)
        if path not in self.functions:
            self.functions[path] = functions_of(path)
        module = mutant.file.removesuffix(".py").replace("/", ".")

        def child() -> int:
            inside = first and replace_code(self.functions[path], changed, path)
            if module in sys.modules and not inside:
                return ANEW_STATUS
            for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.failed:
                    self.report.write_text(json.dumps(self.failed), encoding="utf-8")
                    return 1
            return 0

        self.report.write_text("null", encoding="utf-8")
        with changed_file(path, source, changed):  # for processes that tests start
            status = fork(20 + 3 * slowest, child)
        by = json.loads(self.report.read_text(encoding="utf-8"))
        self.kills[by] += by is not None
        return verdict(status, by)

    def choose(self, items: list[pytest.Item], place: str) -> list[pytest.Item]:
        """The tests that may notice a change of a function: those with most kills in least time."""

        def rate(item):
            return (self.kills[item.nodeid] + 0.5) / (self.known[item.nodeid]["seconds"] + 0.02)

        chosen = sorted(items, key=rate, reverse=True)
        reaching = [item for item in chosen if place in self.known[item.nodeid]["calls"]]
        starting = [item for item in chosen if self.known[item.nodeid]["starts"]]
        return [*reaching, *(i for i in starting if i not in reaching)] if reaching else chosen


class Trial:
    """Tries mutants in one copy of the repository."""

    def __init__(self, folder: Path, data: Path | None = None):
        """Copies the repository into `folder`, and links `data` beside it."""
        self.folder, self.scratch = folder / "copy", folder / "tests"
        copy_repository(self.folder)
        if data is not None:
            (folder / "shared").symlink_to(data.resolve())
        self.kills: Counter = Counter()

    def outcomes(self, mutants: list[Mutant]) -> Iterator[tuple[Mutant, str, str | None]]:
        """Each mutant, its status, and the test that killed it."""
        every = [*map(paths, AREAS.values()), *(mutant.test for mutant in mutants)]
        order = list(dict.fromkeys(test for tests in every for test in tests.split()))
        last = {mutant: max(mutant.test.split(), key=order.index) for mutant in mutants}
        pending = list(mutants)
        for test in order:
            chosen = [m for m in pending if test in m.test.split()]
            anew = []
            for mutant, status, by in self.together(test, chosen) if chosen else ():
                if status == ANEW:
                    anew.append(mutant)
                elif status == SURVIVED and test != last[mutant]:
                    continue
                else:
                    pending.remove(mutant)
                    yield mutant, status, by
            for mutant in anew:
                status, by = self.alone(test, mutant)
                if status == KILLED or test == last[mutant]:
                    pending.remove(mutant)
                    yield mutant, status, by

    def together(self, test: str, mutants: list[Mutant]) -> Iterator[tuple]:
        """Try mutants in forks of one process that has collected the tests."""
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(read)
            with os.fdopen(write, "w") as pipe:

                def tell(*found) -> None:
                    print(json.dumps(found), file=pipe, flush=True)

                self.pytest([test], Session(self.folder, mutants, self.kills, tell))
            os._exit(0)
        os.close(write)
        answered = set()
        try:
            with os.fdopen(read) as pipe:
                for line in pipe:
                    index, status, about = json.loads(line)
                    if index is None:
                        preload(about)
                        continue
                    answered.add(index)
                    if status == KILLED:
                        self.kills[about] += 1
                    yield mutants[index], status, about
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
        for index in set(range(len(mutants))) - answered:
            yield mutants[index], BROKEN, None

    def alone(self, test: str, mutant: Mutant) -> tuple[str, str | None]:
        """Try a mutant in a process that imports the package anew."""
        path, report = self.folder / mutant.file, self.folder.parent / "alone.json"
        source = path.read_text(encoding="utf-8")
        changed = mutant.apply(source)
        assert changed is not None
        report.write_text("null", encoding="utf-8")

        def child() -> int:
            return int(self.pytest(["-x", test], Failure(report)))

        with changed_file(path, source, changed):
            status = fork(TIMEOUT / 2, child)
        by = json.loads(report.read_text(encoding="utf-8"))
        self.kills[by] += by is not None
        return verdict(status, by)

    def pytest(self, arguments: list[str], plugin: object) -> int:
        """Run pytest in the copy, without output."""
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        os.environ.update(PYTHONPATH=str(self.folder))
        options = ["-q", "-p", "no:cacheprovider", f"--basetemp={self.scratch}"]
        return pytest.main([*options, *arguments], plugins=[plugin])


class Failure:
    """A plugin of pytest that writes the name of the first test that fails."""

    def __init__(self, report: Path):
        self.report = report

    def pytest_runtest_logreport(self, report):
        """Write it."""
        if report.failed:
            self.report.write_text(json.dumps(report.nodeid), encoding="utf-8")


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
    parser.add_argument(
        "--shared", type=Path, help="folder of real LVIS data, for the tests that need it (slow)"
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
    found: dict[Mutant, dict] = {}
    about = {"seed": args.seed, "generated": len(mutants)} if args.generate else {}

    def settle(mutant: Mutant, status: str, **why) -> None:
        found[mutant] = {**asdict(mutant), "status": status, **why}
        write(args.out, [found[m] for m in mutants if m in found], **about)

    for mutant in mutants:
        if mutant.key in without_effect:
            settle(mutant, EQUAL, reason=without_effect[mutant.key])
        elif mutant.key in known:
            settle(mutant, KILLED, by=known[mutant.key]["by"])
    to_try = [mutant for mutant in mutants if mutant not in found]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        outcomes = Trial(Path(temporary), args.shared).outcomes(to_try)
        for number, (mutant, status, by) in enumerate(outcomes, 1):
            settle(mutant, status, by=by)
            left = (time.monotonic() - began) / number * (len(to_try) - number) / 60
            name = re.sub(".*::", "", by or "")
            print(
                f"{number}/{len(to_try)}  {left:.0f} min left  {status:10} {describe(mutant)} "
                f" {name}",
                flush=True,
            )
    found = {mutant: found[mutant] for mutant in mutants}
    print(table(list(found.values())))
    bad = [entry for entry in found.values() if entry["status"] in (SURVIVED, STALE, BROKEN)]
    for entry in bad:
        print(f"{entry['status']}: {entry['file']}:{entry['line'] or ''} {entry['new'].strip()}")
    sys.exit(bool(bad))


def describe(mutant: Mutant) -> str:
    """A mutant in one line of text."""
    text = " ".join(f"{mutant.old} -> {mutant.new}".split())
    return f"{mutant.file}:{mutant.line or ''}  {text[:220]}"


if __name__ == "__main__":
    main()
