"""What a person sees while the workflow runs: one line when a training starts, one when a job ends, and now and then one of it all.

    14:02:11  start         Train v05_r50_rfs_softmax_plain (tables 2 6)
    14:02:54  done 12/96    Train v05_r50_rfs_softmax_plain (tables 2 6), 43 s; 12 min left
    14:02:54  so far        5 of 43 trainings, 3 evaluated; next table01: 1 training; done at 14:15

    14:03:20  FAILED        Score v05_r50_rfs_softmax_plain (tables 2 6); log: results/mini/logs/score/…
                error: what is wrong
                fix: how to mend it
    14:03:31  stopped       Train v05_r50_rfs_ls_plain (table 4); the same command continues it

The Snakefile attaches `Lines` to Snakemake's logger. Dry runs and the log file below .snakemake/log stay as Snakemake has them.
`describe` is the one place that words a run.
"""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path

from snakemake_interface_logger_plugins.common import LogEvent

from pcb.formatting import duration, short
from pcb.planning.jobs import tables_of
from pcb.planning.status import at
from pcb.study import Study

# Seconds of a job relative to a training's, until jobs of that rule have been timed. All rules that run something.
COSTS = {
    "download": 1.0,
    "data": 0.3,
    "check_data": 0.05,
    "pretrain": 0.1,
    "trunk": 0.7,
    "train": 1.0,
    "infer": 0.25,
    "infer_split": 0.25,
    "train_confusion": 0.25,
    "score": 0.05,
    "gather": 0.02,
    "notebook": 0.2,
    "gather_page": 0.05,
    "page": 0.2,
}
ANNOUNCED = {"download", "pretrain", "trunk", "train"}  # long enough for a line at their start
OVERVIEWED = {"train", "score", "notebook"}  # after which there is news of a table
SAID_HERE = {
    LogEvent.JOB_INFO,
    LogEvent.JOB_STARTED,
    LogEvent.JOB_FINISHED,
    LogEvent.JOB_ERROR,
    LogEvent.PROGRESS,
    LogEvent.SHELLCMD,
}
LOG_LINES = 25  # of a failed job whose log has no line `error:`
SO_FAR = 60.0  # seconds between two lines of it all
KILLED = re.compile(r"exit status 137|SIGKILL")
ASKED_TO_END = re.compile(r"exit status (130|143)|SIGINT|SIGTERM|user request")


def describe(study: Study, verb: str, run: str, seed: str | int) -> str:
    """`Train RUN (tables 2 6)`; the seed is named only where there are several, `shared` is what is in no table by itself."""
    tables = tables_of(study, run)
    with_seed = f" seed {seed}" if len(study.seeds) > 1 else ""
    place = f"table{'s' * (len(tables) > 1)} {' '.join(map(short, tables))}" if tables else "shared"
    return f"{verb} {run}{with_seed} ({place})"


class Lines(logging.StreamHandler):
    """A handler beside Snakemake's own that turns job events into single lines; `begin` silences the same events there.

    Attach it while the Snakefile is read, so that it hears how many jobs there are; call `begin` when the run starts, which a
    dry run never does. The time left is the remaining jobs at the mean duration of their rule, over the jobs that run at once.
    `overview` words how far the study is; it is asked after a training or an evaluation, once a minute at most.
    """

    def __init__(self, stream=None, clock=time.time, overview=None):
        super().__init__(stream)
        self.clock, self.overview = clock, overview
        self.said_so_far = clock()
        self.speaking = False
        self.waiting: dict[str, int] = {}  # rule -> jobs that have not ended
        self.running: dict[int, tuple[str, str, float]] = {}  # job id -> rule, words, start
        self.took: dict[str, list[float]] = {}  # rule -> seconds of its jobs that ended
        self.side_by_side: list[int] = []  # jobs that ran when one ended
        self.killed = False  # whether the last shell that failed was killed
        self.stopped = False  # whether it, or the whole run, was asked to end
        self.stopping = False

    def begin(self, logger: logging.Logger) -> None:
        self.speaking = True
        for handler in logger.handlers:
            if handler.name == "DefaultStreamHandler":
                handler.addFilter(says_more)

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        line = None
        if event == LogEvent.RUN_INFO:
            self.waiting = {rule: count for rule, count in record.stats.items() if rule in COSTS}
        elif event == LogEvent.JOB_INFO and record.rule_name in COSTS:
            line = self.start(record.jobid, record.rule_name, record.rule_msg)
        elif event == LogEvent.JOB_FINISHED and record.job_id in self.running:
            line = self.end(record.job_id)
        elif failed_shell(record):  # comes before the job's own event, which lacks the status
            self.killed, self.stopped = (
                bool(found.search(record.getMessage())) for found in (KILLED, ASKED_TO_END)
            )
        elif event == LogEvent.JOB_ERROR and record.jobid in self.running:
            line = self.failure(record.jobid, record.log)
        elif "on user request" in record.getMessage():
            self.stopping = True
        if line and self.speaking:
            self.stream.write(
                f"{time.strftime('%H:%M:%S', time.localtime(self.clock()))}  {line}\n"
            )
            self.flush()

    def start(self, job: int, rule: str, words: str) -> str | None:
        self.running[job] = (rule, words, self.clock())
        return f"start         {words}" if rule in ANNOUNCED else None

    def end(self, job: int) -> str:
        self.side_by_side.append(len(self.running))
        rule, words, begun = self.running.pop(job)
        seconds = self.clock() - begun
        self.took.setdefault(rule, []).append(seconds)
        self.waiting[rule] = self.waiting.get(rule, 1) - 1
        done = sum(map(len, self.took.values()))
        left = self.seconds_left()
        eta = f"; {duration(left)} left" if left >= 1 else ""
        return f"done {f'{done}/{done + sum(self.waiting.values())}':<9}{words}, {duration(seconds)}{eta}{self.so_far(rule, left)}"

    def so_far(self, rule: str, left: float) -> str:
        """The line of it all, if it is time for one."""
        now = self.clock()
        if (
            not self.overview
            or rule not in OVERVIEWED
            or left < 1
            or now - self.said_so_far < SO_FAR
        ):
            return ""
        self.said_so_far = now
        return f"\n{time.strftime('%H:%M:%S', time.localtime(now))}  so far        {self.overview()}; {at(now + left, now)}"

    def failure(self, job: int, logs: list[str]) -> str:
        rule, words, _ = self.running.pop(job)
        self.waiting[rule] = self.waiting.get(rule, 1) - 1
        lines = "".join(Path(log).read_text() for log in logs if Path(log).exists()).splitlines()
        begin = max(
            (i for i, line in enumerate(lines) if line.startswith("error: ")),
            default=max(0, len(lines) - LOG_LINES),
        )
        why = (
            " (killed, perhaps because memory ran out; what it had saved is kept)"
            if self.killed
            else ""
        )
        asked, self.killed, self.stopped = self.stopped or self.stopping, False, False
        if asked:
            return f"stopped       {words}; the same command continues it"
        return "\n".join(
            [
                f"FAILED        {words}{why}; log: {', '.join(logs)}",
                *(f"{'':14}{line}" for line in lines[begin:]),
            ]
        )

    def seconds_left(self) -> float:
        unit = sum(map(sum, self.took.values())) / sum(
            COSTS[rule] * len(times) for rule, times in self.took.items()
        )
        mean = {
            rule: sum(self.took[rule]) / len(self.took[rule])
            if rule in self.took
            else COSTS[rule] * unit
            for rule in COSTS
        }
        work = sum(mean[rule] * count for rule, count in self.waiting.items())
        work -= sum(
            min(self.clock() - begun, mean[rule]) for rule, _, begun in self.running.values()
        )
        return work / (sum(self.side_by_side) / len(self.side_by_side))


def says_more(record: logging.LogRecord) -> bool:
    """Whether Snakemake's own line tells more than ours: not of a job's start and end, nor that its shell exited with an error."""
    event = getattr(record, "event", None)
    return (
        event not in SAID_HERE
        and not failed_shell(record)
        and record.msg != "Select jobs to execute..."
    )


def failed_shell(record: logging.LogRecord) -> bool:
    return (
        getattr(record, "event", None) == LogEvent.ERROR
        and getattr(record, "exception", None) == "RuleException"
    )
