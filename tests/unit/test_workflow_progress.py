"""The lines of a run: jobs done, all jobs, the time left; of a failed job its error and fix."""

import io
import logging
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from fabricate import evaluated, finish, finish_pages, study_in
from snakemake.common import NOTHING_TO_BE_DONE_MSG
from snakemake_interface_logger_plugins.common import LogEvent

from pcb.planning.jobs import targets_in_order
from pcb.planning.status import status, watch
from pcb.study import load_study
from pcb.study.records import write_record
from workflow.progress import COSTS, ProgressHandler, describe, keeps_snakemake_line
from workflow.signals import in_thread


class Run:
    """Plays Snakemake's events to a handler, on a clock of its own."""

    def __init__(self, overview=None, **stats):
        self.now, self.out = 0.0, io.StringIO()
        self.handler = ProgressHandler(self.out, lambda: self.now, overview)
        self.handler.begin(logging.getLogger("nobody"))
        self.event(LogEvent.RUN_INFO, stats={**stats, "all": 1, "total": sum(stats.values()) + 1})

    def event(self, event, **fields):
        self.handler.emit(logging.makeLogRecord({"event": event, **fields}))

    def start(self, job, rule, message="a job"):
        self.event(LogEvent.JOB_INFO, jobid=job, rule_name=rule, rule_msg=message)

    def end(self, job):
        self.event(LogEvent.JOB_FINISHED, job_id=job)

    def fail(self, job, how, *logs):
        self.event(LogEvent.ERROR, exception="RuleException", msg=f"Command ... {how}")
        self.event(LogEvent.JOB_ERROR, jobid=job, log=list(map(str, logs)))

    @property
    def lines(self):
        return [line[10:] for line in self.out.getvalue().splitlines()]


def test_every_rule_that_runs_something_has_a_cost():
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
    assert run.lines == ["start         Train x", "done 1/3      Train x, 40 s; 80 s left"]


def test_jobs_side_by_side_halve_the_time_left():
    run = Run(train=6)
    run.start(1, "train")
    run.start(2, "train")
    run.now = 60
    run.end(1)
    # Four more jobs, two at a time; the running one has no time left.
    assert run.lines[-1].endswith("60 s; 2 min left")


def test_a_rule_without_a_finished_job_is_estimated_from_the_others():
    run = Run(train=1, infer=2)
    run.start(1, "train")
    run.now = 100
    run.end(1)
    assert run.lines[-1].endswith("; 50 s left")  # an inference costs a quarter of a training


def test_a_short_job_has_a_line_at_its_end_only_and_a_target_none():
    run = Run(gather=1)
    run.start(1, "gather", "Gather the rows of table05")
    run.end(1)
    run.start(2, "table05")
    run.end(2)
    assert run.lines == ["done 1/1      Gather the rows of table05, 0 s"]


@pytest.mark.parametrize(
    ("log", "tail"),
    [
        ("epoch 1\nerror: disk full\nfix: free some\n", ["error: disk full", "fix: free some"]),
        ("Traceback\nBoom\n", ["Traceback", "Boom"]),
    ],
)
def test_a_failed_job_shows_its_error_and_its_log(tmp_path, log, tail):
    (tmp_path / "x.log").write_text(log)
    run = Run(score=2)
    run.start(1, "score", "Score x")
    run.event(LogEvent.JOB_ERROR, jobid=1, log=[str(tmp_path / "x.log")])
    assert run.lines[0] == f"FAILED        Score x; log: {tmp_path}/x.log"
    assert [line.strip() for line in run.out.getvalue().splitlines()[1:]] == tail


def test_a_killed_job_is_reported_as_killed_and_the_next_failure_is_not():
    run = Run(train=2)
    for job in (1, 2):
        run.start(job, "train", f"Train {job}")
    run.fail(1, "returned non-zero exit status 137.")
    run.fail(2, "returned non-zero exit status 2.")
    assert "Train 1 (killed" in run.lines[2] and "killed" not in run.lines[3]


@pytest.mark.parametrize(
    "how",
    [
        "non-zero exit status 143.",
        "non-zero exit status 130.",
        "died with <Signals.SIGTERM: 15>.",
        "died with <Signals.SIGHUP: 1>.",
        "exit status 129.",
    ],
)
def test_a_terminated_job_is_reported_as_stopped(tmp_path, how):
    (tmp_path / "x.log").write_text("x  epoch 3/24\n")
    run = Run(train=2)
    run.start(1, "train", "Train x")
    run.fail(1, how, tmp_path / "x.log")
    assert run.lines[1:] == ["stopped       Train x; the same command resumes it"]
    run.start(2, "train", "Train y")
    run.event(LogEvent.JOB_ERROR, jobid=2, log=[])
    assert run.lines[-1].startswith("FAILED        Train y")


def test_after_ctrl_c_jobs_are_reported_as_stopped():
    run = Run(train=2)
    for job in (1, 2):
        run.start(job, "train", f"Train {job}")
    message = "Terminating processes on user request, this might take some time."
    run.handler.emit(logging.makeLogRecord({"msg": message}))
    for job in (1, 2):
        run.event(LogEvent.JOB_ERROR, jobid=job, log=[])
    assert [line.split()[0] for line in run.lines] == ["start", "start", "stopped", "stopped"]


def test_the_overview_is_printed_once_a_minute_at_most():
    run = Run(lambda: "1 of 3 trainings", train=3, gather=1)
    for job, moment in ((1, 59), (2, 70), (3, 80)):
        run.start(job, "train")
        run.now = moment
        run.end(job)
    overviews = [line for line in run.lines if line.startswith("so far")]
    assert len(overviews) == 1
    assert overviews[0].startswith("so far        1 of 3 trainings; done at ")


def test_snakemake_still_prints_its_other_messages():
    missing = {"event": LogEvent.ERROR, "exception": "MissingInputException"}
    failed = {"event": LogEvent.ERROR, "exception": "RuleException"}
    assert keeps_snakemake_line(logging.makeLogRecord(missing))
    assert keeps_snakemake_line(logging.makeLogRecord({"msg": "Nothing to be done"}))
    assert not keeps_snakemake_line(logging.makeLogRecord(failed))


def test_a_dry_run_prints_no_such_lines():
    out = io.StringIO()
    start = {"event": LogEvent.JOB_INFO, "jobid": 1, "rule_name": "train", "rule_msg": "Train x"}
    ProgressHandler(out).emit(logging.makeLogRecord(start))
    assert out.getvalue() == ""


def test_a_job_is_described_by_its_run_and_its_tables():
    run = "v05_r50_rfs_softmax_plain"
    one_seed, two_seeds = load_study("mini"), load_study("mini", overrides={"seeds": [0, 1]})
    assert describe(one_seed, "Train", run, "0") == f"Train {run} (tables 1 2 4 8 10)"
    assert f"{run} seed 1 (" in describe(two_seeds, "Train", run, "1")


def test_status_shows_progress_running_jobs_and_the_time_left(tmp_path):
    study = load_study("smoke", overrides={"results": str(tmp_path)})
    done = "v05_r50_random_softmax_plain"
    running = "v05_r50_random_softmax_iterative_pcb-a0.4-g0.99"
    assert status(study).endswith(" trainings, 0 evaluated; next figure1: 1 training")
    weights = evaluated(study, done)["checkpoint"]
    records = {
        study.paths.train(done, 0): {"seconds": 48.0, "iterations": 96, "epochs": 24},
        study.paths.metrics(done, 0): {"variants": {key: {} for key in study.variants(done)}},
        study.paths.detections(done, 0): {"images": 24, "seconds": 3.0, "folder": "detections"},
    }
    for path, record in records.items():
        write_record(path, {**evaluated(study, done), "sha256": weights, **record})
    dev = {"images": 24, "seconds": 3.0, "folder": "detections-dev"}  # for NorCal's γ
    write_record(
        study.paths.detections(done, 0, "dev"), {**evaluated(study, done, split="dev"), **dev}
    )
    log = study.paths.log(f"train/{running}/seed0")
    log.parent.mkdir(parents=True)
    log.write_text(f"{running}  epoch 3/24\n")
    text = status(study)
    assert "1 of 43 trainings, 1 evaluated; next table01" in text
    assert text.endswith(f"train  {running}  epoch 3/24")
    assert re.search(r"^about .* left while one job runs: done ", text, re.MULTILINE)
    os.utime(log, (time.time() - 600,) * 2)  # a log without recent lines
    assert running not in status(study)


def test_status_shows_a_training_after_its_end_only_while_it_detects(tmp_path):
    study = load_study("smoke", overrides={"results": str(tmp_path)})
    run = "v05_r50_random_softmax_plain"
    write_record(study.paths.train(run, 0), evaluated(study, run))
    log = study.paths.log(f"train/{run}/seed0")
    log.parent.mkdir(parents=True)
    log.write_text(f"{run}  epoch 24/24\n")
    assert "train " not in status(study)
    log.write_text(f"{run}  epoch 24/24\n{run} on val: 8 of 24 images, 00:02 left\r")
    assert status(study).endswith(f"train  {run} on val: 8 of 24 images, 00:02 left")


def test_an_error_in_an_overview_does_not_end_the_run(capsys):
    def overview():
        raise ZeroDivisionError

    run = Run(overview, train=2)
    run.start(1, "train")
    run.now = 70
    run.end(1)
    run.start(2, "train")
    assert [line.split()[0] for line in run.lines] == ["start", "start"]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_job_that_kept_its_result_is_not_called_done(tmp_path):
    run, log = Run(train=3), tmp_path / "train.log"
    run.start(1, "train", "Train a")
    run.now = 40
    run.end(1)
    log.write_text("kept: b was trained before, to final.pth\n")
    run.event(LogEvent.JOB_INFO, jobid=2, rule_name="train", rule_msg="Train b", log=[str(log)])
    run.now = 43
    run.end(2)
    kept = next(line for line in run.lines if "Train b" in line and "start" not in line)
    assert kept == "kept 2/3      Train b: it was made before; 40 s left"  # not 21 s


@pytest.mark.parametrize("result", ["open results/mini/site/index.html", ""])
def test_a_run_with_nothing_to_do_says_where_the_results_are(result):
    out = io.StringIO()
    handler = ProgressHandler(out, result=lambda: result)
    handler.emit(logging.makeLogRecord({"msg": NOTHING_TO_BE_DONE_MSG}))
    assert out.getvalue() == (f"{result}\n" if result else "")


def test_a_site_that_was_written_again_is_told_with_its_pages(tmp_path):
    run, log = Run(notebook=3), tmp_path / "table02.log"
    log.write_text("open results/mini/site/index.html (1 of 16 pages)\n")
    event = {"rule_name": "notebook", "rule_msg": "Render table02", "log": [str(log)]}
    run.event(LogEvent.JOB_INFO, jobid=1, **event)
    run.now = 4
    run.end(1)
    assert run.lines == [
        "done 1/3      Render table02, 4 s; 8 s left",
        "open results/mini/site/index.html (1 of 16 pages)",
    ]


def test_a_signal_may_come_while_the_lock_that_its_handler_takes_is_held():
    lock, stopped = threading.Lock(), threading.Event()

    def stop(*_):
        with lock:
            stopped.set()

    previous = signal.signal(signal.SIGTERM, in_thread(stop))
    try:
        with lock:
            signal.raise_signal(signal.SIGTERM)
            assert not stopped.is_set()
        assert stopped.wait(10)
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_table_2_is_made_first_and_then_what_needs_few_further_runs(tmp_path):
    study = load_study()
    order = targets_in_order(study)
    assert sorted(order) == sorted(study.targets)
    known, further = set(study.runs("table02")), []
    for target in order[1:]:
        further.append(len({*study.runs(target)} - known))
        known |= {*study.runs(target)}
    of_table_2 = further.index(next(filter(None, further)))
    assert order[0] == "table02" and of_table_2 == 6  # tables 1, 7, 8, figure 1, gallery, pairs
    assert known == set(study.runs()) and {"findings", "protocols"} == set(order[-2:])


def test_watch_prints_anew_until_all_is_done(tmp_path, capsys, monkeypatch):
    study = study_in(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: finish_all(study))
    watch(lambda: study_in(tmp_path), 5)
    before, after = re.findall(r"\d+ of 43 trainings.*", capsys.readouterr().out)
    assert before.startswith("0 of") and after.startswith("43 of 43 trainings, 43 evaluated")


def finish_all(study):
    finish(study)
    finish_pages(study)
