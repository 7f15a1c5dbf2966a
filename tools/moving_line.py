"""Run a command with its output in a file and one line on the terminal that moves.

    python tools/moving_line.py TITLE LOG COMMAND...

The line shows TITLE, the last thing of note in the output and the time. On a terminal it replaces
itself; elsewhere, as in a CI log, a new one comes every half minute. If the command fails, the end
of its output follows. Ctrl-C and the signals TERM and HUP end the command with all that it started.
Only Python's own library is used: nothing is installed yet.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

SHOWN = re.compile(r"(Collecting|Downloading|Using cached|Building|Installing|Preparing) ?.*")
LINES = 30  # of the output, after a failure
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(
    title: str,
    command: Sequence[str],
    log: Path,
    state: Callable[[], str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a command; return its exit status.

    It is negative after a signal that ended the command alone, and 128 and the number of the signal
    that stopped both: 130 after Ctrl-C.

    Args:
        title: What it does.
        command: The command.
        log: File for its output, which is added at the end.
        state: How far it is; None: the last line of the output that pip writes for a person.
        environment: Its environment; None: that of this process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    begin, started = size(log), time.monotonic()
    with log.open("a", encoding="utf-8") as file, passed_on() as (group, received):
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        group.append(process.pid)
        for number in received:  # while it started
            end(process.pid, number)
        wait(process, lambda: f"{title}: {(state or (lambda: last(log, begin)))()}", started)
    if received:
        show(f"{title}: stopped; the same command resumes", end="\n")
        return 128 + received[0]
    took = duration(time.monotonic() - started)
    if process.returncode:
        show(f"{title}: FAILED after {took}; all of its output: {log}", end="\n")
        print(*tail(log, begin), sep="\n", flush=True)
    else:
        show(f"{title}: done in {took}", end="\n")
    return process.returncode


@contextmanager
def passed_on() -> Generator[tuple[list[int], list[int]]]:
    """Pass signals that would end this process on to a process group, which may outlive it else.

    Yields:
        A list for the number of the group, once it exists, and one of the signals received.
    """
    group: list[int] = []
    received: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)
        for one in group:
            end(one, number)

    heeded = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in heeded}
    try:
        yield group, received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(group: int, number: int) -> None:
    """Send a signal to a process group, if it exists."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def wait(process: subprocess.Popen, line: Callable[[], str], started: float) -> None:
    """Show how far a process is until it ends."""
    terminal = sys.stdout.isatty()
    due = started + (0 if terminal else 30)
    while process.poll() is None:
        if time.monotonic() >= due:
            took = duration(time.monotonic() - started)
            show(f"{line()} ({took})", end="" if terminal else "\n")
            due = time.monotonic() + (1 if terminal else 30)
        time.sleep(0.2)


def show(text: str, end: str) -> None:
    """Print a line in place of the one before, where the output is a terminal."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        text = f"\r\033[K{text[:width]}"
    print(text, end=end, flush=True)


def size(log: Path) -> int:
    """Bytes in a log, 0 before it exists."""
    return log.stat().st_size if log.exists() else 0


def last(log: Path, begin: int) -> str:
    """The last line of note in a log, from a byte on."""
    found = [line.strip() for line in text(log, begin) if SHOWN.match(line.strip())]
    return found[-1][:60] if found else "starting"


def tail(log: Path, begin: int) -> list[str]:
    """The last lines of a log, from a byte on."""
    return [f"    {line}" for line in text(log, begin)[-LINES:]]


def text(log: Path, begin: int) -> list[str]:
    """The lines of a log from a byte on."""
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace").splitlines()


def duration(seconds: float) -> str:
    """`43 s` or `3 min`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    os.environ["PYTHONUNBUFFERED"] = "1"
    _, about, file, *arguments = sys.argv
    raise SystemExit(run(about, arguments, Path(file)))
