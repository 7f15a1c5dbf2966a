"""The command: quick to start, exit statuses, and `reproduce` that becomes Snakemake."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout

import pytest

from pcb import __version__, cli
from pcb.errors import UserError
from pcb.files import working, write_json
from pcb.study import load_study
from pcb.study.load import study_json

VERBS = next(action.choices for action in cli.parser()._actions if action.dest == "verb")


def test_help_starts_at_once_and_imports_nothing_heavy():
    code = (
        "import sys, pcb.cli; pcb.cli.parser().format_help();"
        "print(sorted({'torch', 'numpy', 'yaml', 'pandas'} & sys.modules.keys()))"
    )
    before = os.times().children_user
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
    assert os.times().children_user - before < 0.3


def test_the_help_lists_every_verb_once():
    assert sorted(re.findall(r"^  ([a-z-]+)  ", cli.contents(), re.MULTILINE)) == sorted(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help(verb, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main([verb, "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0 and len(text.split("\n\n")[1]) > 40


@contextmanager
def unread_output():
    """Standard output is a pipe that nobody reads, as after the end of `head`."""
    reader, writer = os.pipe()
    os.close(reader)
    # Closing the stream would raise where something is left to write.
    with open(writer, "w") as stream, redirect_stdout(stream):
        yield


LENGTHS = pytest.mark.parametrize("length", [10, 100_000])  # less than the buffer, and more


@LENGTHS
def test_output_that_nobody_reads_is_no_mistake(monkeypatch, length):
    monkeypatch.setattr("pcb.planning.status.status", lambda study: "x" * length)
    with unread_output():
        assert cli.main(["status"]) == 0


@LENGTHS
def test_a_job_whose_output_is_cut_off_does_not_count_as_done(monkeypatch, length):
    monkeypatch.setattr("pcb.data.download.download", lambda *_: print("x" * length))
    with unread_output():
        assert cli.main(["download"]) == 141


def test_the_status_of_a_command_outlives_its_output(monkeypatch):
    def fail(*_):
        print("x")
        raise SystemExit(3)

    monkeypatch.setattr("pcb.data.download.download", fail)
    with unread_output(), pytest.raises(SystemExit) as done:
        cli.main(["download"])
    assert done.value.code == 3


def test_a_closed_output_is_no_mistake(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)  # as Python has it after `>&-`
    monkeypatch.setattr("pcb.planning.status.status", lambda study: "done")
    assert cli.main(["status"]) == 0


def test_another_broken_pipe_is_a_bug(monkeypatch):
    def fail(study):
        raise BrokenPipeError

    monkeypatch.setattr("pcb.planning.status.status", fail)
    with pytest.raises(BrokenPipeError):
        cli.main(["status"])


def test_each_line_of_the_help_fits_100_columns():
    assert max(map(len, cli.contents().splitlines())) <= 100


def test_the_exit_status_distinguishes_mistakes_interrupts_and_bugs(monkeypatch, capsys):
    def fail_with(error):
        def status(study):
            raise error

        monkeypatch.setattr("pcb.planning.status.status", status)

    fail_with(UserError("a.json is torn", "delete it"))
    assert cli.main(["status"]) == 2
    assert capsys.readouterr().err == "error: a.json is torn\nfix: delete it\n"
    fail_with(KeyboardInterrupt())
    assert cli.main(["status"]) == 130
    fail_with(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        cli.main(["status"])


def test_commands_in_a_fix_select_the_same_study(capsys, tmp_path):
    run = "v05_r50_rfs_softmax_plain"
    options = ["--scale", "smoke", "--results", str(tmp_path)]
    assert cli.main(["score", run, *options]) == 2
    command = f"`pcb infer {run} --seed 0 --scale smoke --results {tmp_path}`"
    assert command in capsys.readouterr().err


def test_a_snakemake_command_in_a_fix_does_too(capsys, tmp_path):
    options = ["--scale", "smoke", "--results", str(tmp_path)]
    assert cli.main(["render", "table05", *options]) == 2
    command = f"`snakemake --cores all table05 --config scale=smoke results={tmp_path}`"
    assert command in capsys.readouterr().err


def test_a_job_of_the_workflow_names_its_config_without_knowing_it(capsys, tmp_path):
    study = load_study("smoke", overrides={"results": str(tmp_path)})
    write_json(study.paths.study, study_json(study))
    assert cli.main(["render", "table05", "--study", str(study.paths.study)]) == 2
    assert "`snakemake --cores all table05` with this study's `--config`" in capsys.readouterr().err


def test_results_of_another_version_are_named_as_such(capsys, tmp_path):
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke/study.json").write_text('{"checked": "0123456789ab", "format": 1}')
    assert cli.main(["status", "--scale", "smoke", "--results", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/smoke holds results of another version of the pipeline" in line


@pytest.mark.parametrize("arguments", [["plan", "--gpus", "0"], ["measure", "--iterations", "0"]])
def test_a_count_is_at_least_one(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "0 is not a whole number from 1 on" in capsys.readouterr().err


@pytest.mark.parametrize("cores", ["0", "-1", "1.5", "many"])
def test_cores_are_all_or_a_count(cores, capsys):
    """Snakemake would wait for ever with 0."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(["reproduce", f"--cores={cores}"])
    assert f"{cores} is neither `all` nor a whole number from 1 on" in capsys.readouterr().err


def test_a_watch_looks_at_least_once_a_day(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["status", "--watch", "1e10"])
    assert "1e10 is more than 86400, a day" in capsys.readouterr().err


def test_a_watch_outlives_a_file_that_is_broken_for_a_while(monkeypatch, tmp_path, capsys):
    study = load_study("smoke", overrides={"results": str(tmp_path)})
    record = study.paths.train("v05_r50_rfs_softmax_plain", 0)
    record.parent.mkdir(parents=True)
    record.write_text("{")
    monkeypatch.setattr("time.sleep", lambda seconds: record.unlink())
    monkeypatch.setattr("pcb.planning.status.is_done", lambda study: True)
    assert cli.main(["status", "--watch", "--scale", "smoke", "--results", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "run.json cannot be read" in captured.err and "0 of 43 trainings" in captured.out
    assert cli.main(["status", "--watch", "--scale", "miny"]) == 2  # would never be there


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"pcb {__version__}\n"


def test_results_are_not_looked_for_below_a_file(capsys):
    assert cli.main(["status", "--scale", "smoke", "--results", "/dev/null"]) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert "/dev/null is not a folder" in error and fix == "fix: choose another folder"


def test_the_marks_of_a_verdict_are_printed_as_they_have_to_be_written(capsys, tmp_path):
    page, options = tmp_path / "page.md", ["--scale", "smoke", "--results", str(tmp_path / "r")]
    page.write_text("# Page\n")
    assert cli.main(["verdict", "--write", str(page), *options]) == 2
    marks = re.findall("<!--.*?-->", capsys.readouterr().err)
    page.write_text("\n".join(marks))
    assert cli.main(["verdict", "--write", str(page), *options]) == 0
    assert "Does PCB reproduce?" in page.read_text(encoding="utf-8")


def test_a_verdict_that_is_printed_writes_nothing(capsys, tmp_path):
    assert cli.main(["verdict", "--scale", "smoke", "--results", str(tmp_path)]) == 0
    assert "Does PCB reproduce?" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_closed_pipe_is_no_error():
    result = subprocess.run(
        f"{sys.executable} -m pcb plan | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout and result.stderr == ""


def test_reproduce_becomes_snakemake(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(os, "execv", lambda program, command: called.append(command))
    results = ["--results", str(tmp_path)]
    assert cli.main(["reproduce", "--scale", "smoke", *results, "--cores", "2", "table05"]) == 0
    (command,) = called
    assert command[1:3] == ["-m", "snakemake"] and command[-2:] == ["--", "table05"]
    assert {"--cores", "2", "--config", "scale=smoke", f"results={tmp_path}"} <= set(command)


def test_a_wrong_verb_ends_with_the_nearest_one(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["stauts"])
    error, hint = capsys.readouterr().err.splitlines()
    assert "'stauts'" in error and "did you mean status? Otherwise choose one of:" in hint


@pytest.mark.parametrize(
    ("arguments", "what", "fix"),
    [
        (["gather", "table99"], "no table, figure or page is called 'table99'", "table05"),
        (["train", "nothing"], "no experiment is called 'nothing'", "pcb plan"),
        (["plan", "Tabel 5"], "is called 'Tabel 5'", "did you mean table05? Otherwise choose one"),
        (
            ["score", "v05_r50_rfs_softmax_plian"],
            "no experiment is called",
            "did you mean v05_r50_rfs_softmax_plain?",
        ),
        (["plan", "--scale", "miny"], "no scale 'miny'", "did you mean mini?"),
        (["make-data", "coco"], "no data set is called 'coco'", "v05, v1, pretrain"),
        (["contact-sheet", "v05", "--split", "test"], "no split", "train, val, dev"),
        (["pretrain", "vit"], "no backbone is called 'vit'", "r50, r101"),
        (["status", "--study", "study.json", "--scale", "mini"], "--study", "leave out --study"),
        (["train", "v05_r50_rfs_softmax_plain", "--seed", "7"], "seed 7", "seeds=0,7"),
    ],
)
def test_a_wrong_name_ends_with_the_names_that_exist(arguments, what, fix, capsys):
    assert cli.main(arguments) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert what in error and fix in hint


def test_a_verb_that_writes_results_is_registered_while_it_works(monkeypatch, tmp_path, capsys):
    found = []

    def note(study, *_):
        found.append(working(study.paths.jobs))
        return {}

    monkeypatch.setattr("pcb.reporting.gather.gather", note)
    monkeypatch.setattr("pcb.planning.status.status", note)
    options = ["--scale", "smoke", "--results", str(tmp_path)]
    assert cli.main(["gather", "table05", *options]) == cli.main(["status", *options]) == 0
    ((job,), none) = found
    assert job.startswith(f"`pcb gather table05`, process {os.getpid()} on ") and none == []
    assert not list((tmp_path / "smoke/.jobs").iterdir())
