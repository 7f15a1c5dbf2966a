"""The output of a run of the workflow: a line when a training starts and when any job ends.

    14:02:11  start         Train v05_r50_rfs_softmax_plain (tables 2 6)
    14:02:54  done 12/96    Train v05_r50_rfs_softmax_plain (tables 2 6), 43 s; 12 min left
    14:02:54  kept 13/96    Train v05_r50_rfs_ls_plain (table 4): it was made before
    14:03:01  open results/mini/site/index.html (3 of 16 pages)
    14:02:54  so far        5 of 43 trainings, 3 evaluated; next table01: 1 training; done at 14:15

    14:03:20  FAILED        Score v05_r50_rfs_softmax_plain (tables 2 6); log: results/mini/logs/…
                error: what is wrong
                fix: what to do
    14:03:31  stopped       Train v05_r50_rfs_ls_plain (table 4); the same command resumes it

workflow/rules/common.smk attaches a `ProgressHandler` to Snakemake's logger. Dry runs and the log
file below .snakemake/log stay as Snakemake writes them. (A logger plugin of Snakemake would have to
be a separately installed package and to print all other messages again.)
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import TextIO

from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake_interface_logger_plugins.common import LogEvent

from pcb.errors import UserError
from pcb.formatting import duration, short
from pcb.planning.jobs import tables_of
from pcb.planning.status import done_at
from pcb.study import Study

# Seconds of a job relative to a training's, until jobs of its rule have been timed; for every rule
# with a command.
COSTS = {
    "download": 1.0,
    "data": 0.3,
    "check_data": 0.05,
    "pretrain": 0.1,
    "trunk": 0.7,
    "train": 1.0,
    "infer": 0.25,
    "infer_split": 0.25,
    "oracle": 0.5,
    "train_confusion": 0.25,
    "score": 0.05,
    "gather": 0.02,
    "notebook": 0.2,
    "gather_page": 0.05,
    "page": 0.2,
    "gather_summary": 0.02,
    "summary": 0.2,
    "site": 0.02,
}
ANNOUNCED = {"download", "pretrain", "trunk", "train"}  # long jobs get a line at their start too
OVERVIEW_AFTER = {"train", "score", "notebook"}  # jobs that change the progress of a table
OVERVIEW_INTERVAL = 60.0  # minimum seconds between two overviews
LOG_LINES = 25  # last lines shown of a failed job's log without a line `error:`
JOB_EVENTS = {
    LogEvent.JOB_INFO,
    LogEvent.JOB_STARTED,
    LogEvent.JOB_FINISHED,
    LogEvent.JOB_ERROR,
    LogEvent.PROGRESS,
    LogEvent.SHELLCMD,
}
KILLED = re.compile(r"exit status 137|SIGKILL")
STOPPED = re.compile(r"exit status (129|130|143)|SIGINT|SIGTERM|SIGHUP|user request")


def describe(study: Study, verb: str, run: str, seed: str | int) -> str:
    """Words for a run's job: `Train RUN (tables 2 6)`, with the seed where there are several."""
    tables = [short(table) for table in tables_of(study, run)]
    where = f"table{'s' * (len(tables) > 1)} {' '.join(tables)}" if tables else "in no table"
    with_seed = f" seed {seed}" if len(study.seeds) > 1 else ""
    return f"{verb} {run}{with_seed} ({where})"


class ProgressHandler(logging.StreamHandler):
    """Prints single lines for Snakemake's job events, beside its own handler.

    Attach it while the Snakefile is read, so that it gets the number of jobs; call `begin` when the
    run starts, which never happens in a dry run. The time left is that of the remaining jobs, at
    the mean duration of their rule, divided by the mean number of jobs that ran at once.

    Args:
        stream: Where to print; None: stderr.
        clock: Returns the current time, in seconds since the epoch.
        overview: Returns the progress of the study in one line. It is called after a training or an
            evaluation, at most once a minute.
        result: Returns the line below a run that had nothing to do; "" for none.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.time,
        overview: Callable[[], str] | None = None,
        result: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(stream)
        self.clock, self.overview, self.result = clock, overview, result
        self.last_overview = clock()
        self.active = False
        self.remaining: dict[str, int] = {}  # rule -> jobs that have not ended
        self.running: dict[int, tuple[str, str, float]] = {}  # job -> rule, message, start
        self.logs: dict[int, list[str]] = {}  # job -> its log files
        self.kept = 0  # jobs that ended because their result existed
        self.durations: dict[str, list[float]] = {}  # rule -> seconds of each finished job
        self.concurrency: list[int] = []  # number of running jobs, each time that one ended
        self.shell_error = ""  # message of the last shell command that failed
        self.stopping = False  # whether the user interrupted the run

    def begin(self, logger: logging.Logger) -> None:
        """Start to print, and keep Snakemake's own handler from printing the same events."""
        self.active = True
        silence_job_events(logger)

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record's event, and print its line if it has one."""
        try:
            if self.result and record.getMessage() == NOTHING_TO_BE_DONE_MSG:
                if text := self.result():
                    self.stream.write(f"{text}\n")
                return
            line = self.line(record)
            if line and self.active:
                moment = time.strftime("%H:%M:%S", time.localtime(self.clock()))
                self.stream.write(f"{moment}  {line}\n")
                self.flush()
        except Exception:  # a line that cannot be made must not end the run
            self.handleError(record)

    def line(self, record: logging.LogRecord) -> str | None:
        """The line of a record, None where it has none. Snakemake adds `event` and its fields."""
        event, fields = getattr(record, "event", None), vars(record)
        if event == LogEvent.RUN_INFO:
            self.remaining = {r: count for r, count in fields["stats"].items() if r in COSTS}
        elif event == LogEvent.JOB_INFO and fields["rule_name"] in COSTS:
            self.logs[fields["jobid"]] = list(fields.get("log") or [])
            return self.start(fields["jobid"], fields["rule_name"], fields["rule_msg"])
        elif event == LogEvent.JOB_FINISHED and fields["job_id"] in self.running:
            return self.end(fields["job_id"])
        elif is_shell_error(record):  # precedes the job's own event, which lacks the exit status
            self.shell_error = record.getMessage()
        elif event == LogEvent.JOB_ERROR and fields["jobid"] in self.running:
            return self.failure(fields["jobid"], fields["log"])
        elif "on user request" in record.getMessage():
            self.stopping = True
        return None

    def start(self, job: int, rule: str, message: str) -> str | None:
        """Note that a job starts; return its line if it is a long one."""
        self.running[job] = (rule, message, self.clock())
        return f"start         {message}" if rule in ANNOUNCED else None

    def end(self, job: int) -> str:
        """Note that a job is done; return its line, and the overview if it is time for one."""
        self.concurrency.append(len(self.running))
        rule, message, start = self.running.pop(job)
        seconds = self.clock() - start
        self.remaining[rule] = self.remaining.get(rule, 1) - 1
        logs = self.logs.pop(job, [])
        kept = bool(lines_with("kept: ", logs))  # the job found its result, and did not make it
        if kept:
            self.kept += 1
        else:
            self.durations.setdefault(rule, []).append(seconds)
        done = self.kept + sum(map(len, self.durations.values()))
        count = f"{done}/{done + sum(self.remaining.values())}"
        left = self.seconds_left()
        time_left = f"; {duration(left)} left" if left >= 1 else ""
        if kept:
            line = f"kept {count:<9}{message}: it was made before{time_left}"
        else:
            line = f"done {count:<9}{message}, {duration(seconds)}{time_left}"
        now = self.clock()
        due = now - self.last_overview >= OVERVIEW_INTERVAL and rule in OVERVIEW_AFTER
        if opened := lines_with("open ", logs):  # the site was written again
            moment = time.strftime("%H:%M:%S", time.localtime(now))
            line = f"{line}\n{moment}  {opened[-1]}"
        if not self.overview or not due or left < 1:
            return line
        self.last_overview = now
        moment = time.strftime("%H:%M:%S", time.localtime(now))
        try:
            summary = self.overview()
        except UserError:  # a broken record; the job that reads it reports it
            return line
        return f"{line}\n{moment}  so far        {summary}; {done_at(now + left, now)}"

    def failure(self, job: int, logs: list[str]) -> str:
        """Note that a job failed; return its line and the error in its log."""
        rule, message, _ = self.running.pop(job)
        self.remaining[rule] = self.remaining.get(rule, 1) - 1
        error, self.shell_error = self.shell_error, ""
        if self.stopping or STOPPED.search(error):
            return f"stopped       {message}; the same command resumes it"
        why = ""
        if KILLED.search(error):
            why = " (killed, perhaps because memory ran out; its checkpoints are kept)"
        existing = [Path(log) for log in logs if Path(log).exists()]
        text = "".join(log.read_text(encoding="utf-8", errors="replace") for log in existing)
        lines = [f"FAILED        {message}{why}; log: {', '.join(logs)}"]
        return "\n".join([*lines, *(f"{'':14}{line}" for line in end_of_log(text.splitlines()))])

    def seconds_left(self) -> float:
        """Seconds until all jobs are done; 0 before the first is done."""
        if not self.durations:
            return 0.0
        finished = sum(map(sum, self.durations.values()))
        weights = sum(COSTS[rule] * len(times) for rule, times in self.durations.items())
        mean = {rule: cost * finished / weights for rule, cost in COSTS.items()}
        mean |= {rule: fmean(times) for rule, times in self.durations.items()}
        work = sum(mean[rule] * count for rule, count in self.remaining.items())
        now = self.clock()
        work -= sum(min(now - start, mean[rule]) for rule, _, start in self.running.values())
        return work / fmean(self.concurrency)


def lines_with(start: str, logs: list[str]) -> list[str]:
    """The lines in a job's logs that start with a word."""
    texts = (
        Path(log).read_text(encoding="utf-8", errors="replace")
        for log in logs
        if Path(log).exists()
    )
    return [line for text in texts for line in text.splitlines() if line.startswith(start)]


def end_of_log(lines: list[str]) -> list[str]:
    """The last error in a log and what follows it; without one, its last lines."""
    for index in reversed(range(len(lines))):
        if lines[index].startswith("error: "):
            return lines[index:]
    return lines[-LOG_LINES:]


def silence_job_events(logger: logging.Logger) -> None:
    """Keep Snakemake's handler on the terminal from printing what a `ProgressHandler` prints.

    `quiet: [progress, rules]` in the profile would do so in dry runs too, whose list of jobs is
    wanted. The handler's name is not a documented interface; tested with Snakemake 9.27.1.
    Under another name, nothing is silenced and both handlers print.
    """
    for handler in logger.handlers:
        if handler.name == "DefaultStreamHandler":
            handler.addFilter(keeps_snakemake_line)


def keeps_snakemake_line(record: logging.LogRecord) -> bool:
    """Whether Snakemake's handler prints a record.

    Not the start, end and error of a job, and not that the index of the site came into being before
    the job that makes it: rendering writes it too.
    """
    event = getattr(record, "event", None)
    job_event = event in JOB_EVENTS or is_shell_error(record)
    known = ("Select jobs to execute...", "were not present when the DAG was created")
    return not job_event and not any(text in record.getMessage() for text in known)


def is_shell_error(record: logging.LogRecord) -> bool:
    """Whether a record reports that a job's shell command failed."""
    event, exception = getattr(record, "event", None), getattr(record, "exception", None)
    return event == LogEvent.ERROR and exception == "RuleException"
