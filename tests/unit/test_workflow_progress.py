"""What a person sees of a run: single lines with done, total and the time left, and of a failed job its error and fix."""

import io
import json
import logging
import os
import re
import time
from pathlib import Path

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from pcb.planning.status import status
from pcb.study import load_study
from workflow.progress import COSTS, Lines, describe, says_more


class Run:
    """Plays Snakemake's events to a handler, on a clock of its own."""

    def __init__(self, overview=None, **stats):
        self.now, self.out = 0.0, io.StringIO()
        self.lines = Lines(self.out, clock=lambda: self.now, overview=overview)
        self.lines.begin(logging.getLogger("nobody"))
        self.event(LogEvent.RUN_INFO, stats={**stats, "all": 1, "total": sum(stats.values()) + 1})

    def event(self, event, **fields):
        self.lines.emit(logging.makeLogRecord({"event": event, **fields}))

    def start(self, job, rule, words="a job"):
        self.event(LogEvent.JOB_INFO, jobid=job, rule_name=rule, rule_msg=words)

    def end(self, job):
        self.event(LogEvent.JOB_FINISHED, job_id=job)

    @property
    def said(self):
        return [line[10:] for line in self.out.getvalue().splitlines()]


def test_every_rule_that_runs_something_has_its_lines():
    rules = Path(__file__).resolve().parents[2] / "workflow/rules"
    named = {
        name
        for path in rules.glob("*.smk")
        for name in re.findall(r"^ *rule (\w+):", path.read_text(), re.MULTILINE)
    }
    assert set(COSTS) == named - {"train_all"}


def test_a_long_job_is_announced_and_its_end_has_done_total_and_time():
    run = Run(train=3)
    run.start(1, "train", "Train x")
    run.now = 40
    run.end(1)
    assert run.said == ["start         Train x", "done 1/3      Train x, 40 s; 80 s left"]


def test_jobs_side_by_side_halve_the_time_left():
    run = Run(train=6)
    run.start(1, "train")
    run.start(2, "train")
    run.now = 60
    run.end(1)
    assert run.said[-1].endswith(
        "60 s; 2 min left"
    )  # four more and none of the running one's 60 s, two at a time


def test_a_rule_without_a_finished_job_is_estimated_from_the_others():
    run = Run(train=1, infer=2)
    run.start(1, "train")
    run.now = 100
    run.end(1)
    assert run.said[-1].endswith("; 50 s left")  # an inference costs a quarter of a training


def test_a_short_job_says_only_its_end_and_a_target_nothing():
    run = Run(gather=1)
    run.start(1, "gather", "Gather the rows of table05")
    run.end(1)
    run.start(2, "table05")
    run.end(2)
    assert run.said == ["done 1/1      Gather the rows of table05, 0 s"]


@pytest.mark.parametrize(
    ("log", "tail"),
    [
        (
            "epoch 1\nerror: the disk is full\nfix: free some\n",
            ["error: the disk is full", "fix: free some"],
        ),
        ("Traceback\nBoom\n", ["Traceback", "Boom"]),
    ],
)
def test_a_failed_job_says_its_error_and_where_its_log_is(tmp_path, log, tail):
    (tmp_path / "x.log").write_text(log)
    run = Run(score=2)
    run.start(1, "score", "Score x")
    run.event(LogEvent.JOB_ERROR, jobid=1, log=[str(tmp_path / "x.log")])
    assert run.said[0] == f"FAILED        Score x; log: {tmp_path}/x.log"
    assert [line.strip() for line in run.out.getvalue().splitlines()[1:]] == tail


def test_a_killed_job_is_said_to_have_been_killed_and_the_next_failure_is_not():
    run = Run(train=2)
    for job in (1, 2):
        run.start(job, "train", f"Train {job}")
    run.event(
        LogEvent.ERROR, exception="RuleException", msg="... returned non-zero exit status 137."
    )
    run.event(LogEvent.JOB_ERROR, jobid=1, log=[])
    run.event(LogEvent.ERROR, exception="RuleException", msg="... returned non-zero exit status 2.")
    run.event(LogEvent.JOB_ERROR, jobid=2, log=[])
    assert "Train 1 (killed" in run.said[2] and "killed" not in run.said[3]


@pytest.mark.parametrize(
    "how",
    ["non-zero exit status 143.", "non-zero exit status 130.", "died with <Signals.SIGTERM: 15>."],
)
def test_a_job_that_was_asked_to_end_did_not_fail(tmp_path, how):
    (tmp_path / "x.log").write_text("x  epoch 3/24\n")
    run = Run(train=2)
    run.start(1, "train", "Train x")
    run.event(LogEvent.ERROR, exception="RuleException", msg=f"... {how}")
    run.event(LogEvent.JOB_ERROR, jobid=1, log=[str(tmp_path / "x.log")])
    assert run.said[1:] == ["stopped       Train x; the same command continues it"]
    run.start(2, "train", "Train y")
    run.event(LogEvent.JOB_ERROR, jobid=2, log=[])
    assert run.said[-1].startswith("FAILED        Train y")


def test_after_ctrl_c_no_job_failed():
    run = Run(train=2)
    for job in (1, 2):
        run.start(job, "train", f"Train {job}")
    run.lines.emit(
        logging.makeLogRecord(
            {"msg": "Terminating processes on user request, this might take some time."}
        )
    )
    for job in (1, 2):
        run.event(LogEvent.JOB_ERROR, jobid=job, log=[])
    assert [line.split()[0] for line in run.said] == ["start", "start", "stopped", "stopped"]


def test_how_far_it_all_is_is_said_once_a_minute_at_most():
    run = Run(lambda: "1 of 3 trainings", train=3, gather=1)
    for job, moment in ((1, 59), (2, 70), (3, 80)):
        run.start(job, "train")
        run.now = moment
        run.end(job)
    said = [line for line in run.said if line.startswith("so far")]
    assert len(said) == 1 and said[0].startswith("so far        1 of 3 trainings; done at ")


def test_snakemake_s_other_errors_are_still_said():
    assert says_more(
        logging.makeLogRecord({"event": LogEvent.ERROR, "exception": "MissingInputException"})
    )
    assert says_more(logging.makeLogRecord({"msg": "Nothing to be done"}))
    assert not says_more(
        logging.makeLogRecord({"event": LogEvent.ERROR, "exception": "RuleException"})
    )


def test_a_dry_run_says_nothing_of_this_kind():
    out = io.StringIO()
    lines = Lines(out)
    lines.emit(
        logging.makeLogRecord(
            {"event": LogEvent.JOB_INFO, "jobid": 1, "rule_name": "train", "rule_msg": "Train x"}
        )
    )
    assert out.getvalue() == ""


def test_a_run_is_described_by_its_place_and_its_tables():
    study = load_study("mini")
    words = describe(study, "Train", "v05_r50_rfs_softmax_plain", "0")
    assert words == "Train v05_r50_rfs_softmax_plain (tables 1 2 4 8 10)"
    several = load_study("mini", overrides={"seeds": [0, 1]})
    assert "v05_r50_rfs_softmax_plain seed 1 (" in describe(
        several, "Train", "v05_r50_rfs_softmax_plain", "1"
    )


def test_status_tells_what_is_done_what_runs_and_how_long_the_rest_takes(tmp_path):
    study = load_study("smoke", overrides={"results": str(tmp_path)})
    done, running = (
        "v05_r50_random_softmax_plain",
        "v05_r50_random_softmax_iterative_pcb-a0.4-g0.99",
    )
    assert status(study).endswith(" trainings, 0 evaluated; next figure1: 1 training")
    records = {
        study.paths.train(done, 0): {"seconds": 48.0, "iterations": 96, "epochs": 24},
        study.paths.metrics(done, 0): {},
        study.paths.detections(done, 0): {"images": 24, "seconds": 3.0, "folder": "detections"},
    }
    for path, record in records.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"fingerprint": study.fingerprint(done, 0), **record}))
    log = study.paths.log(f"train/{running}/seed0")
    log.parent.mkdir(parents=True)
    log.write_text(f"{running}  epoch 3/24\n")
    said = status(study)
    assert "1 of 43 trainings, 1 evaluated; next table01" in said and said.endswith(
        f"train  {running}  epoch 3/24"
    )
    assert re.search(r"^about .* left while one job runs: done ", said, re.MULTILINE)
    os.utime(log, (time.time() - 600,) * 2)  # a log that nobody writes any more
    assert running not in status(study)
