"""Every command that the README, the docs, the site and the head of a file print is executed.

Each is followed in a copy of the repository that has all files which the commands name, so that a
command runs as it is printed. Long ones are dry runs: what is done with a program is in `RULES`,
what is put for a word in `FILLED`. A program without a rule fails, so that no new command goes
untried.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
import yaml
from datasets import tiny
from fabricate import fabricate, study_in
from own_data import TRAIN, VAL, annotation_file
from packaging.requirements import Requirement

from pcb import cli
from pcb.files import ROOT
from pcb.study import load_study
from pcb.study.load import save_study_json
from pcb.study.records import write_record

# What a command says, and what is executed. In this order, all that apply.
FILLED = {
    r"\[([^\]]+)\]": r"\1",  # what may be left out is put in
    r"^(snakemake .*?)\.\.\.": r"\1--cores all",
    r" ?(\.\.\.|…)(?= |$)": "",
    r"^(sudo|srun --gpus=\d+) ": "",  # runs the rest
    r"^docker run (?:--?\S+ (?:\d+g |all |\S+:\S+ )?)+pcb ": "",  # as the image does
    r" --measure\b": "",  # minutes; tests/integration/test_workflow_measure.py
    r" --watch\b": "",  # does not end by itself
    r"^pcb export RUN DEST$": r"\g<0> --scale smoke",  # where nothing is trained
    r"^pcb new-scale .*": r"\g<0> --device cpu --force",  # the scale is there for what comes after
    r"^pcb check-data --deep$": r"\g<0> --scale mine",
    r"--container-image \S+": "--container-image image",
    r"--executor kubernetes|--kubernetes-\S+ \S+": "",  # the plug-in and a cluster are not here
    r"/mnt/pcb": ".",
    r"\b(A|BEFORE)\b(?= (B|AFTER)\b)": "results/mini",
    r"(?<=results/mini )(B|AFTER)\b": "results/published/mini",
    r"\bVERB\b": "status",
    r"\bRUN\b": "v05_r50_random_softmax_plain",
    r"\bDEST\b": "a-folder",
    r"\bFOLDER\b": "/tmp/a-folder",
    r"\bFILE\b": "a-file.json",
    r"\bSECTION\b": "parity",
    r"\bNAME\b(?!=)": "losses",
    r"LOCK=$": "LOCK=requirements-cuda12.lock",
}

# What a template puts into a command.
VALUES = {
    "table.target": "table02",
    "page.key": "gallery",
    "run": "v05_r50_random_softmax_plain",
    "seeds[0]": "0",
    "scale.name": "smoke",
    "of_scale": " --config scale=smoke",
    "option": " --scale smoke",
}

# What a command answers here in place of success: exit statuses, and words of its output.
ANSWERS = {
    r"pcb doctor --scale lvis": ((0, 1), " ok, "),  # 1: without eight GPUs
    r"pcb compare": ((1,), "differ"),  # fabricated and published results
    r"pcb download --scale mine": ((2,), "needs no download"),  # on a CPU
    r"pcb (train|score)": ((2,), "fix: "),  # without data and detections
    r"pcb export": ((2,), "`pcb train"),  # not trained here; tests/integration/test_export.py
}

# Directories of the repository: a path below them that a command names exists.
TRACKED = ("configs", "docs", "notebooks", "profiles", "tests", "tools", "benchmarks", "workflow")


# Finding the commands -----------------------------------------------------------------------------

PROGRAM = re.compile(
    r"(?:sudo |\.venv/bin/)?(?:pcb|snakemake|make|python3?|pip|pipx|npm|sh|bash|jupyter|source|git"
    r"|conda|docker|srun|sbatch|tests/\S+\.sh|tools/\S+\.sh) +\S"
)
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("results/benchmarks/*.md")),
    ROOT / "results/published/mini/README.md",
]
TEMPLATES = sorted(ROOT.glob("pcb/reporting/style/*.j2"))
HEADS = [
    *(ROOT / name for name in ("Snakefile", "Dockerfile", "environment.yml", "pyproject.toml")),
    ROOT / ".pre-commit-config.yaml",
    *(
        path
        for pattern in (
            "profiles/*/*.yaml",
            "configs/**/*.yaml",
            "docs/plugin/*.py",
            "workflow/rules/*.smk",
            "tools/*.*",
            "benchmarks/*.py",
            "tests/manual/**/*.py",
            "tests/manual/**/*.sh",
            "notebooks/*.ipynb",
        )
        for path in sorted(ROOT.glob(pattern))
    ),
]


def in_document(text: str) -> list[str]:
    """The commands of a Markdown page: lines of its shell blocks, and spans of code."""
    found = []
    fence = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.S | re.M)
    for language, block in fence.findall(text):
        if language in ("sh", "bash", "console", "shell"):
            found += lines_of(block)
        elif not language:  # output, as a rule
            found += [line for line in lines_of(block) if PROGRAM.match(line)]
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", fence.sub("", text))
    return found + [named(span) for span in spans if PROGRAM.match(span)]


def named(span: str) -> str:
    """The command in a span of code. A verb alone is its name, not a command to follow."""
    return re.sub(r"^pcb [a-z-]+$", r"\g<0> --help", " ".join(span.split()))


def lines_of(block: str) -> list[str]:
    """The commands of a shell block: continued lines are one, a here-document is of its command."""
    documents = {}
    for whole in re.findall(r"^.*<<'?END'?\n.*?^END$", block, re.S | re.M):
        documents[whole.splitlines()[0]] = whole
        block = block.replace(whole, whole.splitlines()[0])
    lines = (re.sub(r"^\$ ", "", line.strip()) for line in block.replace("\\\n", " ").split("\n"))
    lines = [one for line in lines for one in line.split("# or: ")]
    return [documents.get(line, uncommented(line)) for line in lines if uncommented(line)]


def uncommented(line: str) -> str:
    """A line without its comment, with single spaces."""
    return " ".join(re.sub(r"(^|\s)#.*", "", line).split())


def in_template(text: str) -> list[str]:
    """The commands of a template of the site: its elements of code."""
    codes = [code for code in re.findall(r"<code>(.*?)</code>", text) if PROGRAM.match(code)]
    return [re.sub(r"\{\{ (.*?) \}\}", lambda name: VALUES[name[1]], code) for code in codes]


def in_head(path: Path) -> list[str]:
    """The commands of a file's comments (of a module: its docstring).

    A span of code, a line that is indented or follows `Usage:`, and what starts with `python` and a
    script. Two spaces end a command: then comes what it does.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        comment = ast.get_docstring(ast.parse(text)) or ""
    elif path.suffix == ".ipynb":
        sources = ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
        comment = "\n".join(re.findall(r"# ?(.*)", "\n".join(sources)))
    else:
        comment = "\n".join(re.findall(r"(?:^|\s)#(?!:) ?(.*)", text, re.M))
    spans = [named(span) for span in re.findall(r"`([^`]+)`", comment)]
    lines = re.findall(r"^(?: {2,}|Usage: |(?=python \S+\.py))(\S.*)$", joined(comment), re.M)
    lines += re.findall(r"\S +(python \S+\.py .*)$", re.sub(r"`[^`]+`", "", comment), re.M)
    return [
        re.split(r"\s{2,}", command)[0]
        for command in dict.fromkeys(spans + lines)
        if PROGRAM.match(command)
    ]


def joined(comment: str) -> str:
    """A comment whose continued lines are one."""
    return re.sub(r" *\\\n\s*", " ", comment)


def commands() -> dict[str, str]:
    """Every printed command once, and the first file that prints it."""
    found: dict[str, str] = {}
    for path in DOCUMENTS:
        for command in in_document(path.read_text(encoding="utf-8")):
            found.setdefault(command, str(path.relative_to(ROOT)))
    for path in TEMPLATES:
        for command in in_template(path.read_text(encoding="utf-8")):
            found.setdefault(command, str(path.relative_to(ROOT)))
    for path in HEADS:
        for command in in_head(path):
            found.setdefault(command, str(path.relative_to(ROOT)))
    help_text = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, env=environment(), **OUTPUT
    ).stdout
    for target in re.findall(r"^ +(make \w+) ", help_text, re.M):
        found.setdefault(target, "make help")
    return found


# The folder in which they are followed ------------------------------------------------------------

OUTPUT = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "check": False}
LIMIT = 180  # seconds of a command, on a busy machine


def environment() -> dict[str, str]:
    """The environment of a user's shell, not of the `make test` around this."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))
    }
    return inherited | {"CONDA_PREFIX": sys.prefix, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def too_long(*_) -> None:
    """Fail, as the handler of an alarm."""
    raise TimeoutError(f"it has not ended after {LIMIT} s; should it be a dry run?")


class Clone:
    """A copy of the repository in which commands are followed.

    Each runs once. `pcb` and `snakemake` run in forks of a process that has imported the copy's
    code and the libraries, which saves most of a command's time.
    """

    def __init__(self, folder: Path):
        self.folder, self.done = folder, {}
        path = folder / "tests/manual/pipeline_mutants.py"
        spec = importlib.util.spec_from_file_location("pipeline_mutants_of_the_clone", path)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [*sys.path])
            spec.loader.exec_module(module)
        self.forks = module.Forks(folder.parent)

    def run(self, *command: str) -> tuple[int, str]:
        """Run `pcb …` or `snakemake …`; its exit status and output."""
        if command not in self.done:
            signal.signal(signal.SIGALRM, too_long)
            signal.alarm(LIMIT)
            try:
                self.done[command] = self.forks.run(self.folder, list(command))
            finally:
                signal.alarm(0)
        return self.done[command]

    def stop(self) -> None:
        """End the server and what it started."""
        os.killpg(self.forks.server.pid, signal.SIGKILL)
        self.forks.stop()

    def process(self, *command: str) -> str:
        """Run any program, which has to succeed and to print something."""
        here = environment() | {"PYTHONPATH": str(self.folder)}
        done = subprocess.run(command, cwd=self.folder, env=here, timeout=LIMIT, **OUTPUT)
        assert done.returncode == 0 and done.stdout, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the repository with results, and the files that commands name, in place."""
    folder = tmp_path_factory.mktemp("followed") / "pcb"
    put_repository(folder)
    put_lvis(folder)
    put_results(folder)
    put_studies(folder)
    put_own_data(folder)
    clone = Clone(folder)
    options = "--train train.json --val val.json --images photos --name mine --device cpu"
    pcb(clone, ["new-scale", *options.split()])
    pcb(clone, ["site", "--scale", "mine"])
    yield clone
    clone.stop()


def put_repository(folder: Path) -> None:
    """The repository, in which every run of the workflow is a dry run."""
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "node_modules")
    for name in (*TRACKED, "pcb", "results/published/mini", "results/benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, folder)
    with (folder / "profiles/default/config.yaml").open("a") as profile:
        profile.write("dry-run: true\n")
    # SLURM's plug-in is not installed.
    slurm = folder / "profiles/slurm/config.yaml"
    slurm.write_text(re.sub(r"^executor:.*\n", "", slurm.read_text(), flags=re.M))
    (folder / "lvis.yaml").symlink_to("configs/scale/lvis.yaml")


def put_results(folder: Path) -> None:
    """Results of the mini scale that were never measured; empty pages of it and of `smoke`."""
    study = study_in(folder / "results")
    save_study_json(study)
    for run in study.experiments:
        fabricate(study, run)
    paths = study.paths
    for target in study.targets:
        files = [paths.notebook(target), paths.html(target), paths.figure(target)]
        for path in files + [paths.table(target, suffix) for suffix in ("csv", "md", "tex")]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    shutil.copytree(paths.site / "tables", folder / "results/smoke/site/tables")


def put_lvis(folder: Path) -> None:
    """Files where the lvis scale has LVIS: tiny ones, and what `pcb measure` finds on a GPU."""
    path = folder / "configs/scale/lvis.yaml"  # no class of the files is rare by its threshold
    path.write_text(re.sub(r"(rfs_threshold:) \S+", r"\1 0.1", path.read_text()))
    scale = load_study("lvis").scale
    for name, entry in scale["datasets"].items():
        source = tiny(name)
        for split in ("train", "val"):
            (folder / entry[split]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / f"{split}.json", folder / entry[split])
        shutil.copytree(source / "images", folder / entry["images"], dirs_exist_ok=True)
        for photographs in ("train2017", "val2017"):
            (folder / entry["images"] / photographs).mkdir(exist_ok=True)
    for backbone in scale["backbones"].values():
        (folder / backbone["weights"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / backbone["weights"]).touch()
    measured = {"iteration": {"v05_r50": {"softmax_plain": 0.2}}}
    measured["image"] = {"v05_r50": {"softmax_plain": 0.1}}
    record = {"timings": measured, "date": "2030-01-01", "machine": "m", "timed": True}
    (folder / "results/lvis").mkdir()
    write_record(folder / "results/lvis/timings.json", record)


def put_studies(folder: Path) -> None:
    """The files of docs/adding-a-row.md, in the page's order, and a study with a new table."""
    page = (ROOT / "docs/adding-a-row.md").read_text()
    blocks = re.findall(r"```(?:yaml|python)\n(.*?)```", page, re.S)
    for name, text in zip(
        ("my_alpha.yaml", "logit_adjustment.py", "my_loss.yaml"), blocks, strict=True
    ):
        assert f"`{name}`" in page
        (folder / name).write_text(text)
    tables = yaml.safe_load((ROOT / "configs/paper.yaml").read_text())["tables"]
    mine = {"tables": {"table12": tables["table06"]}}
    (folder / "my_study.yaml").write_text(yaml.safe_dump(mine))


def put_own_data(folder: Path) -> None:
    """Annotations, photographs and detections under each name in the docs."""
    mine = folder / "data/mine"
    mine.mkdir()
    train, val = (
        annotation_file(mine / f"{split}.json", images, split)
        for split, images in (("train", TRAIN), ("val", VAL))
    )
    (mine / "images").rename(mine / "photos")
    shutil.copytree(mine / "photos", folder / "photos")
    (folder / "annotations").mkdir()
    for name in ("train.json", "annotations/train.json"):
        shutil.copy(train, folder / name)
    for name in ("val.json", "GT.json", "lvis_v1_val.json", "lvis_v0.5_val.json"):
        shutil.copy(val, folder / name)
    objects = json.loads(val.read_text(encoding="utf-8-sig"))["annotations"]
    keys = ("image_id", "category_id", "bbox")
    found = [{**{key: o[key] for key in keys}, "score": 0.9} for o in objects if not o["iscrowd"]]
    for name in ("DT.json", "detections.json"):
        (folder / name).write_text(json.dumps(found))


# Following them -----------------------------------------------------------------------------------


def pcb(clone: Clone, words: list[str]) -> None:
    """Runs; of the help only in this process."""
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            cli.main(words)
        return
    command = " ".join(["pcb", *words])
    answers = [answer for pattern, answer in ANSWERS.items() if re.match(pattern, command)]
    expected, said = answers[0] if answers else ((0,), "")
    status, output = clone.run("pcb", *words)
    assert status in expected and said in output, output


def snakemake(clone: Clone, words: list[str]) -> None:
    """A dry run, by the profile in the folder; without it, it has to know how many cores to use."""
    enough = ("--cores", "-c", "--jobs", "-j", "-n", "--dry-run", "--profile", "--report", "--help")
    assert any(word in enough for word in words), "without --cores it does not start"
    status, output = clone.run("snakemake", *words)
    assert status == 0, output


def make(clone: Clone, words: list[str]) -> None:
    """A dry run, and what it would start of the pipeline and of the benchmarks."""
    recipe = clone.process("make", "--dry-run", "--no-print-directory", *words)
    for command in re.findall(r"bin/python (-m pcb .*|benchmarks/.*)$", recipe, re.M):
        python(clone, shlex.split(command))


def python(clone: Clone, words: list[str]) -> None:
    """Modules run (of pytest the collection); of scripts the arguments are parsed."""
    if words[:2] == ["-m", "pytest"]:
        words = [*words, "--collect-only", "-p", "no:cacheprovider"]
    if words[0] == "-m":
        clone.process(sys.executable, *words)
    else:
        script(words)


def script(words: list[str]) -> None:
    """Start a script of the repository and end it when its arguments are parsed."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(parser, *arguments):
        parse(parser, *arguments)
        raise SystemExit(0)

    path = ROOT / words[0]
    parses = "ArgumentParser(" in path.read_text() or "import Figure, main" in path.read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *words[1:]])
        patch.setattr(sys, "path", [str(path.parent), *sys.path])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
        patch.setitem(sys.modules, "resvg_py", types.ModuleType("resvg_py"))  # not a dependency
        if not parses:
            runpy.run_path(str(path), run_name="imported")
            return
        with pytest.raises(SystemExit) as done:
            runpy.run_path(str(path), run_name="__main__")
    assert done.value.code == 0


def shell(clone: Clone, words: list[str]) -> None:
    """The script's syntax: those printed need a GPU, a compiler or SLURM."""
    subprocess.run(["bash", "-n", words[0]], cwd=clone.folder, check=True)


def pip(clone: Clone, words: list[str]) -> None:
    """Nothing is installed: a folder has a project, anything else is a requirement."""
    assert words[0] == "install"
    for word in words[1:]:
        if word.startswith("."):
            project = tomllib.loads((clone.folder / word / "pyproject.toml").read_text())
            assert project["project"]["name"]
        elif not word.startswith("-"):
            Requirement(word)


def files_only(clone: Clone, words: list[str]) -> None:
    """Nothing; that the files which it names exist is checked of every command."""


def cat(clone: Clone, words: list[str]) -> None:
    assert all((clone.folder / word).is_file() for word in words)


def source(clone: Clone, words: list[str]) -> None:
    """What set-up makes (tests/integration/test_setup.py)."""
    assert words == [".venv/bin/activate"]


RULES = {
    "pcb": pcb,
    "snakemake": snakemake,
    "make": make,
    "python": python,
    "sh": shell,
    "pip": pip,
    "cat": cat,
    "source": source,
    # Not executed, and why:
    "conda": files_only,  # not installed, and fetches packages
    "docker": files_only,  # not installed; what it runs in the image is followed
    "git": files_only,  # `clone` fetches
    "jupyter": files_only,  # serves until it is stopped
    "npm": files_only,  # fetches packages that only tools/build_sprites.py takes
    "pipx": files_only,  # fetches pre-commit
}


def filled(command: str) -> str:
    """A command as it is executed."""
    for pattern, value in FILLED.items():
        command = re.sub(pattern, value, command)
    return " ".join(command.split())


@pytest.mark.parametrize(
    "command", [pytest.param(c, id=f"{path}: {c}") for c, path in commands().items()]
)
def test_a_printed_command_runs(command, clone):
    if "\n" in command:  # a here-document
        assert command.startswith("python - ")
        clone.process("bash", "-ec", command)
        return
    for part in command.split(" && "):
        words = shlex.split(filled(part).replace("$CONDA_PREFIX", sys.prefix))
        program = words[0].rpartition("/")[2]
        if words[0].endswith(".sh"):
            program, words = "sh", ["sh", *words]
        assert program in RULES, f"no rule for {program}"
        for path in re.split(r"[\s=]", " ".join(words)):
            if path.split("/")[0] in TRACKED or path.endswith((".lock", ".yml")):
                assert (clone.folder / path).exists(), path
        RULES[program](clone, words[1:])


def test_commands_are_found():
    """One of each form: a block, a span, a comment, a docstring, a table, the help of make."""
    found = commands()
    for command in (
        "pcb plan --scale mine --measure table02",
        "snakemake --cores all --config scale=mine",
        "snakemake --cores all train_all",
        "python tests/manual/kills.py --trials 3 --seed 7",
        ".venv/bin/python -m pytest tests/unit/test_losses.py",
        "make bench",
        "snakemake --cores all table02 --config scale=smoke",
    ):
        assert command in found
