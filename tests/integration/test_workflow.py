"""The DAG by dry runs: jobs of each scale, what runs again after an edit, mistakes.

The project is copied, its results are empty files that Snakemake has on record (`--touch`), the
copy is edited, and a dry run lists the jobs that would run.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fabricate
import pytest

from pcb.files import ROOT, locked, registered, working
from pcb.study import load_study
from pcb.study.records import read_record, write_record

RUNS, TARGETS = load_study().runs(), load_study().targets
# Jobs of all trainings and evaluations at one seed, and of all tables and pages.
ONE_SEED = {
    "trunk": len(load_study().trunks),
    "train": len(RUNS),
    "infer": len(RUNS),
    "infer_split": 4,
    "train_confusion": 1,
    "score": len(RUNS),
    "oracle": 2,
}
PAGES = {"gather": 12, "notebook": 12, "gather_page": 2, "page": 2, "site": 1}
SUMMARIES = dict.fromkeys(("gather_summary", "summary"), len(load_study().summaries))
PAGES |= SUMMARIES


def snakemake(folder, *arguments, env=None):
    """Run snakemake on the project in `folder`; its output is one text."""
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
        check=False,
    )


def dry_run(folder, *arguments, env=None):
    """The number of jobs of each rule, and the runs that would be trained."""
    result = snakemake(folder, "-n", *arguments, env=env)
    assert result.returncode == 0, result.stdout
    table = re.search(r"Job stats:\n(.*?)\n\n", result.stdout, re.DOTALL)
    counts = dict(re.findall(r"^(\w+) +(\d+)$", table[1], re.MULTILINE)) if table else {}
    jobs = {
        rule: int(count)
        for rule, count in counts.items()
        if rule not in ("total", "all", "train_all", *TARGETS)
    }
    return jobs, set(re.findall(r"Job \d+: Train (v\S+)", result.stdout))


def copy_project(folder):
    """The project without its results, data and heavy assets."""
    for name in ("pcb", "workflow", "configs", "profiles", "notebooks", "docs"):
        shutil.copytree(
            ROOT / name,
            folder / name,
            ignore=shutil.ignore_patterns("__pycache__", "assets", ".ipynb_checkpoints"),
        )
    for name in ("Snakefile", "CITATION.cff"):
        shutil.copy2(ROOT / name, folder / name)
    (folder / "environment.yml").write_text(
        "dependencies: [python]\n"
    )  # Snakemake keeps a copy of it with each job's record
    return folder


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    return copy_project(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory):
    folder = copy_project(tmp_path_factory.mktemp("finished"))
    program = Path(fabricate.__file__)
    env = {**os.environ, "PYTHONPATH": str(folder)}
    subprocess.run([sys.executable, program], cwd=folder, env=env, check=True)
    for line in snakemake(folder, "--summary").stdout.splitlines():
        if line.startswith("results/"):
            path = folder / line.split("\t")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_text("{}")
    subprocess.run([sys.executable, program, "pages"], cwd=folder, env=env, check=True)
    result = snakemake(folder, "--touch", "--forceall", "--cores", "100")
    assert result.returncode == 0, result.stdout
    return folder


@pytest.fixture
def finished(finished_once, tmp_path):
    """A project with every result."""
    return Path(shutil.copytree(finished_once, tmp_path / "project"))


def edit(path, old, new):
    text = path.read_text()
    assert old in text, f"{path} does not hold {old!r}"
    path.write_text(text.replace(old, new))


# The DAG ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["smoke", "mini", "midi", "lvis"])
def test_the_dag_of_every_scale(fresh, scale):
    jobs, _ = dry_run(fresh, "--config", f"scale={scale}")
    backbones = {load_study().experiments[run].backbone for run in RUNS}
    data = {"check_data": 2, "pretrain": len(backbones)} | ({} if scale == "lvis" else {"data": 2})
    assert jobs == ONE_SEED | PAGES | data
    assert not (fresh / "results").exists()  # a dry run writes nothing there


def test_a_table_trains_only_its_own_rows(fresh):
    jobs, trained = dry_run(fresh, "table05")
    rows = set(load_study().runs("table05"))
    assert trained == rows and jobs["notebook"] == 1 and jobs["trunk"] == 1


def test_named_targets(fresh):
    jobs, trained = dry_run(fresh, "figure1", "table11")
    assert jobs["notebook"] == 2 and trained == set(load_study().runs("figure1", "table11"))
    jobs, trained = dry_run(fresh, "train_all")
    assert trained == set(RUNS) and "infer" not in jobs


def test_a_page_of_images_trains_what_it_compares(fresh):
    jobs, trained = dry_run(fresh, "gallery")
    assert trained == set(load_study().runs("gallery"))
    assert jobs["gather_page"] == jobs["page"] == 1 and "notebook" not in jobs


def test_a_dry_run_takes_no_torch_and_little_time(fresh, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('a dry run must not need torch')")
    before = os.times().children_user
    dry_run(fresh, env={"PYTHONPATH": str(tmp_path)})
    assert os.times().children_user - before < 5


def test_results_can_lie_elsewhere(fresh, tmp_path):
    result = snakemake(fresh, "-n", "train_all", "--config", f"results={tmp_path}/elsewhere")
    assert f"{tmp_path}/elsewhere/mini/runs" in result.stdout
    assert "results/mini" not in result.stdout


# What runs again ----------------------------------------------------------------------------------


def test_a_touch_a_comment_and_another_thread_count_run_nothing_again(finished):
    (finished / "notebooks/table.ipynb").touch()
    for path in (finished / "pcb/training").glob("*.py"):
        path.write_text(path.read_text() + "\n# a comment\n")
    edit(finished / "configs/scale/mini.yaml", "threads_per_job: 1", "threads_per_job: 2")
    assert dry_run(finished) == ({}, set())


def test_a_forced_touch_deletes_nothing(finished):
    run = finished / f"results/mini/runs/{RUNS[0]}/seed0"
    work = finished / "results/mini/work" / read_record(run / "run.json")["fingerprint"]
    work.mkdir(parents=True)
    files = [work / "final.0123456789abcdef.pth", run / "detections.json"]
    files[0].touch()
    assert snakemake(finished, "--touch", "--forceall", "--cores", "100").returncode == 0
    assert all(path.exists() for path in files)


def test_an_edited_notebook_renders_only_its_targets(finished):
    (finished / "notebooks/figure1.ipynb").write_text('{"cells": ["a sentence"]}')
    assert dry_run(finished) == ({"notebook": 1, "site": 1}, set())
    (finished / "notebooks/table.ipynb").write_text('{"cells": ["a sentence"]}')
    assert dry_run(finished) == ({"notebook": 12, "site": 1}, set())


def test_an_edited_plot_retrains_nothing(finished):
    with (finished / "pcb/reporting/plots/rows.py").open("a") as file:
        file.write("\n# a recoloured line\n")
    pages = {"notebook": 12, "page": 2, "summary": SUMMARIES["summary"], "site": 1}
    assert dry_run(finished) == (pages, set())


def test_an_edited_table_model_gathers_again(finished):
    with (finished / "pcb/reporting/tables.py").open("a") as file:
        file.write("\n# another structure\n")
    assert dry_run(finished) == (PAGES, set())


def test_a_published_number_renders_only_its_table_and_lost_metrics_are_scored_again(finished):
    row = next(row for row in load_study().tables["table06"].rows if row.id == "a0.8")
    edit(
        finished / "configs/paper.yaml",
        f"paper: [{row.paper['AP']}, {row.paper['APr']}",
        f"paper: [{row.paper['AP']}, 99.9",
    )
    pages = {"gather": 1, "notebook": 1, "site": 1, **SUMMARIES}
    assert dry_run(finished) == (pages, set())
    (finished / f"results/mini/runs/{row.run}/seed0/metrics.json").unlink()
    assert dry_run(finished) == ({"score": 1, **pages}, set())


def test_a_changed_alpha_retrains_only_its_experiment(finished):
    path, run = finished / "configs/paper.yaml", "v05_r50_rfs_softmax_iterative_pcb-a{}-g0.99"
    old, new = run.format(0.8), run.format(0.7)
    lines = path.read_text().splitlines()
    line = next(line for line in lines if line.strip().startswith(f"{old}:"))
    edit(path, line, line.replace("alpha: 0.8", "alpha: 0.7"))
    edit(path, old, new)
    jobs, trained = dry_run(finished)
    rules = ("train", "infer", "score", "gather", "notebook", "site")
    assert trained == {new} and jobs == dict.fromkeys(rules, 1) | SUMMARIES


def test_a_new_gamma_of_a_branch_retrains_its_trunk(finished):
    path, trunk = finished / "configs/paper.yaml", "v05_r50_rfs_softmax_iterative"
    old, new = f"{trunk}_pcb-a0.4-g0.9", f"{trunk}_pcb-a0.4-g0.95"
    edit(path, f"{old}:", f"{new}:")
    edit(path, "pcb: {alpha: 0.4, gamma: 0.9}", "pcb: {alpha: 0.4, gamma: 0.95}")
    edit(path, f"{old}}}", f"{new}}}")
    jobs, trained = dry_run(finished)
    assert jobs["trunk"] == 1
    assert trained == {*load_study().trunks[trunk], new} - {old}


def test_a_test_setting_evaluates_again_and_trains_nothing(finished):
    edit(finished / "configs/scale/mini.yaml", "max_per_image: 50", "max_per_image: 51")
    jobs, trained = dry_run(finished)
    assert not trained and jobs["infer"] == jobs["score"] == len(RUNS)


def test_a_further_seed_trains_only_that_seed(finished):
    jobs, _ = dry_run(finished, "--config", "seeds=0,1")
    assert jobs == ONE_SEED | PAGES


# Independent of what Snakemake remembers ----------------------------------------------------------


def lose_metadata(folder):
    """What another checkout, another working directory or a cleaned one amounts to."""
    shutil.rmtree(folder / ".snakemake")


def touch_all(folder):
    """Give every file the time of now, in an order that is not that of the jobs."""
    for path in sorted(folder.rglob("*"), key=lambda path: path.name, reverse=True):
        if path.is_file() and ".snakemake" not in path.parts:
            path.touch()


def test_without_metadata_only_a_changed_setting_runs_anything(finished):
    lose_metadata(finished)
    assert dry_run(finished) == ({}, set())
    edit(finished / "configs/scale/mini.yaml", "score_thr: 1.0e-3", "score_thr: 0.3")
    jobs, trained = dry_run(finished)
    assert not trained and jobs["infer"] == jobs["score"] == len(RUNS)


def test_without_metadata_a_changed_recipe_trains_again(finished):
    lose_metadata(finished)
    edit(finished / "configs/scale/mini.yaml", "rfs_threshold: 0.03", "rfs_threshold: 0.04")
    jobs, trained = dry_run(finished)
    assert trained == set(RUNS) and jobs["trunk"] == ONE_SEED["trunk"] and "data" not in jobs


def test_moved_results_used_from_another_folder_run_nothing(finished, tmp_path):
    moved = shutil.copytree(finished / "results", tmp_path / "moved", copy_function=shutil.copy)
    (tmp_path / "elsewhere").mkdir()
    arguments = ("--snakefile", str(finished / "Snakefile"), "train_all")
    result = snakemake(tmp_path / "elsewhere", "-n", *arguments, "--config", f"results={moved}")
    assert "Nothing to be done" in result.stdout, result.stdout


def test_a_touched_tree_runs_nothing(finished):
    touch_all(finished)
    assert dry_run(finished) == ({}, set())


def test_a_copy_with_other_times_and_no_metadata_renders_nothing(finished):
    touch_all(finished)
    lose_metadata(finished)
    assert dry_run(finished) == ({}, set())


def test_other_metrics_reach_the_pages_whatever_their_time(finished):
    run = next(r.run for r in load_study().tables["table06"].rows if r.id == "a0.8")
    path = finished / f"results/mini/runs/{run}/seed0/metrics.json"
    record = read_record(path)
    record["variants"]["plain"]["AP"] += 1
    write_record(path, record)
    os.utime(path, (1, 1))
    lose_metadata(finished)
    assert dry_run(finished) == ({"gather": 1, "notebook": 1, "site": 1, **SUMMARIES}, set())


@pytest.mark.parametrize("name", ["tables/table06.csv", "notebooks/table06.html"])
@pytest.mark.parametrize("change", [lambda path: path.write_text("edited"), Path.unlink])
def test_an_edited_or_deleted_page_is_rendered_again(finished, name, change):
    change(finished / "results/mini/site" / name)
    assert dry_run(finished) == ({"notebook": 1, "site": 1}, set())


@pytest.mark.parametrize(("page", "renders"), [("table06", {"notebook": 1}), ("site", {})])
def test_a_page_without_its_record_is_made_again(finished, page, renders):
    """Such as after a Ctrl-C between the two; no target asks for the record."""
    (finished / f"results/mini/gathered/pages/{page}.json").unlink()
    assert dry_run(finished) == ({**renders, "site": 1}, set())


def test_an_equal_training_that_ran_again_changes_no_detection(finished):
    run = RUNS[0]
    path = finished / f"results/mini/runs/{run}/seed0/run.json"
    record = read_record(path)
    weights = record["sha256"]
    write_record(path, record | {"sha256": "with other times", "weights": weights})
    jobs, trained = dry_run(finished)
    assert not trained and not jobs.keys() & {"infer", "score", "oracle"}


def test_a_key_of_val_draws_the_data_again_and_trains_nothing(finished):
    edit(finished / "configs/scale/mini.yaml", "novel_styles: 0.15", "novel_styles: 0.25")
    jobs, trained = dry_run(finished)
    assert not trained and "trunk" not in jobs
    assert jobs["data"] == jobs["check_data"] == 2 and jobs["infer"] == len(RUNS)


def test_an_edited_detector_config_trains_again_what_uses_it(finished):
    edit(finished / "configs/mmdet/mini_r34.py", "depth=34", "depth=34, style='caffe'")
    _, trained = dry_run(finished)
    assert trained == {run for run in RUNS if load_study().experiments[run].backbone == "r101"}


def test_a_result_of_other_weights_is_made_again(finished):
    run = RUNS[0]
    path = finished / f"results/mini/runs/{run}/seed0/run.json"
    write_record(path, read_record(path) | {"sha256": "of other weights"})
    jobs, trained = dry_run(finished)
    assert not trained and jobs["infer"] == jobs["score"] == 1


def test_a_broken_record_is_made_again(finished):
    path = finished / f"results/mini/runs/{RUNS[0]}/seed0/metrics.json"
    path.write_text(path.read_text().replace("90.0", "95.0"))
    jobs, trained = dry_run(finished)
    assert not trained and jobs["score"] == 1 and "infer" not in jobs


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "scale=huge"], "no scale 'huge'"),
        (["--config", "speed=9"], "--config does not know: speed"),
        (["--config", "seeds=many"], "seeds"),
        (["--config", "paper=absent.yaml"], "absent.yaml"),
        (["table99"], "No rule to produce table99"),
        (["results/mini/runs/v05_r50_random_softmax_plain/seed0/trunk.json"], "No rule to produce"),
    ],
)
def test_a_mistake_on_the_command_line_ends_in_one_message(fresh, arguments, message):
    result = snakemake(fresh, "-n", *arguments)
    assert result.returncode != 0 and message in result.stdout and "Traceback" not in result.stdout


# The rules ----------------------------------------------------------------------------------------


def test_two_runs_do_not_share_a_results_folder(tmp_path):
    folder = copy_project(tmp_path / "project")
    with locked(folder / "results/smoke/.lock", "these results"):
        command = [sys.executable, "-m", "pcb", "reproduce", "--scale", "smoke"]
        reproduce = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        plain = snakemake(folder, "--cores", "1", "--config", "scale=smoke")
    busy = f"another process is working on these results: process {os.getpid()}"
    for text, code in ((reproduce.stderr, reproduce.returncode), (plain.stdout, plain.returncode)):
        assert code and busy in text and "Traceback" not in text
    assert not (folder / "results/smoke/study.json").exists()


def test_a_run_waits_for_jobs_of_an_earlier_one_that_still_live(tmp_path):
    folder = copy_project(tmp_path / "project")
    unfinished = folder / "results/smoke/runs/x/.tmp-0123.json"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    with registered(folder / "results/smoke/.jobs", f"`pcb train {RUNS[0]}`"):
        result = snakemake(folder, "--cores", "1", "--config", "scale=smoke")
    named = f"still work here: `pcb train {RUNS[0]}`, process {os.getpid()} on "
    assert result.returncode and named in result.stdout and "Traceback" not in result.stdout
    assert not (folder / "results/smoke/study.json").exists() and unfinished.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_ends_a_run_and_its_jobs(tmp_path, number):
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile"]
    command += ["--directory", tmp_path, "--cores", "1", "--config", "scale=smoke", "--"]
    with (tmp_path / "log.txt").open("w") as log:
        run = subprocess.Popen(
            [*command, "results/smoke/data/v05/manifest.json"],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    jobs = tmp_path / "results/smoke/.jobs"
    while not working(jobs) and run.poll() is None:
        time.sleep(0.05)
    os.killpg(run.pid, number)
    assert run.wait(timeout=120) != 0 and not working(jobs)
    text = (tmp_path / "log.txt").read_text()
    assert "Draw the data set v05; the same command resumes it" in text, text
    assert "Traceback" not in text and not (tmp_path / "results/smoke/data/v05").exists()
    with locked(tmp_path / "results/smoke/.lock", "these results"):
        pass


def test_locks_of_a_killed_snakemake_do_not_stop_the_next_run(finished):
    locks = finished / ".snakemake/locks"
    locks.mkdir(parents=True, exist_ok=True)
    (locks / "0.output.lock").write_text(f"results/mini/runs/{RUNS[0]}/seed0/run.json\n")
    result = snakemake(finished, "--touch", "--cores", "1", "train_all")
    assert result.returncode == 0, result.stdout


def test_lint_and_format():
    lint = snakemake(ROOT, "--lint")
    assert lint.returncode == 0 and "Congratulations" in lint.stdout, lint.stdout
    command = [Path(sys.executable).parent / "snakefmt", "--check", "Snakefile", "workflow/rules"]
    style = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert style.returncode == 0, style.stdout + style.stderr


def test_no_name_from_configuration_is_evaluated_by_a_shell():
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    commands = re.findall(r'shell:\n\s+"(.*)"', rules)
    assert len(commands) == rules.count("shell:\n") > 8
    for command in commands:
        assert all(field.endswith(":q") for field in re.findall(r"{(.*?)}", command)), command
