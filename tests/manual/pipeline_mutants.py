"""Mutation test of the pipeline: change or damage a file of a finished run, run again, compare.

    python tests/manual/pipeline_mutants.py                      # about 20 minutes on two cores
    python tests/manual/pipeline_mutants.py --all                # every kind for every file; hours
    python tests/manual/pipeline_mutants.py --only detections    # those whose name matches
    python tests/manual/pipeline_mutants.py --list               # show them, run nothing
    python tests/manual/pipeline_mutants.py --folder /tmp/x      # resume there what was cut off
    python tests/manual/pipeline_mutants.py --write              # and results/benchmarks/

A project is a folder of inputs (annotations, images, weights, detector config, scale, study) and
its results, up to the page of a table. Each mutation changes one file of a copy of it, or the
folder as a whole. The same command runs again. Every published number must then be that of a fresh
folder with the same inputs, or the run must be refused with the name of a file and a fix that
works when it is followed. Else the mutation was silent.

A file is mutated at rest, and real Snakemake decides what runs; and, where a job reads it, that job
(`pcb score`, …) runs on it again. Of a changed input, the scores of one run are made again, in its
folder and in a fresh one. What is saved is to start Python, as `pcb` and `snakemake` run in forks
of one process that has imported the libraries, and the index of the site.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import hotcoco  # noqa: F401, E402
import matplotlib.pyplot  # noqa: F401, E402
import mmdet.apis  # noqa: F401, E402
import numpy as np  # noqa: E402
import papermill  # noqa: F401, E402
import pyarrow.parquet  # noqa: F401, E402
import snakemake.cli  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from PIL import Image  # noqa: E402

import pcb.inference.oracle  # noqa: E402
import pcb.reporting.notebook.render  # noqa: E402
import pcb.reporting.site.build  # noqa: E402
import pcb.training.train  # noqa: E402
from pcb import cli  # noqa: E402
from pcb.cluster import provenance  # noqa: E402
from pcb.errors import UserError  # noqa: E402
from pcb.files import write_text  # noqa: E402
from pcb.study import load_study  # noqa: E402
from pcb.study.load import SCALES, read_yaml  # noqa: E402
from pcb.study.records import read_record  # noqa: E402
from pcb.synthetic.generate import Recipe, write_dataset  # noqa: E402

# A trunk with its branch, calibrations by matrices of val and of train, and NorCal.
TRUNK, BRANCH = "v05_r50_rfs_softmax_plain", "v05_r50_rfs_softmax_plain_pcb-a0.2-g0.99"
TABLE = "table12"
STUDY = f"""\
tables:
  {TABLE}:
    title: A trunk and its branch
    claim: None; this table is for a test.
    labels: [Variant]
    columns: [AP, APr, APc, APf, APb]
    rows:
      - {{id: plain, labels: [plain], run: {TRUNK}}}
      - {{id: train, labels: [cm-train], run: {TRUNK}, variant: cm-train}}
      - {{id: norcal, labels: [norcal], run: {TRUNK}, variant: norcal}}
      - {{id: pcb, labels: [pcb], run: {BRANCH}}}
"""
RESULTS = Path("results/smoke")
OLD = 1_500_000_000  # seconds since the epoch of a file that was restored from a backup
ROUNDS = 4  # fixes that are followed before a mutation counts as not fixed


# Commands in forks --------------------------------------------------------------------------------


CLIENT = """\
#!{python} -IS
import json, os, socket, sys
if sys.argv[1:3] != ["-m", "pcb"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
command = ["pcb", *sys.argv[3:]]
socket.send_fds(link, [json.dumps([os.getcwd(), command]).encode()], [0, 1, 2])
sys.exit(int(link.recv(8) or b"1"))
"""


class Forks:
    """Runs `pcb` and `snakemake` in forks of a server that has imported the libraries.

    The server is a process of its own: in a fork of one that has computed before, such as the
    tests, hotcoco would wait for threads that a fork does not have. Jobs of the workflow are
    `PYTHON -m pcb …`; in the forks, PYTHON is a small client that asks the same server.
    """

    def __init__(self, folder: Path):
        client, self.address = folder / "python", str(folder / "socket")
        text = CLIENT.format(python=sys.executable, address=self.address)
        client.write_text(text, encoding="utf-8")
        client.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen(64)
            command = [sys.executable, __file__, "--serve", str(listener.fileno()), str(client)]
            self.server = subprocess.Popen(
                command, pass_fds=(listener.fileno(),), start_new_session=True
            )

    def stop(self) -> None:
        """End the server."""
        self.server.kill()
        self.server.wait()

    def run(self, folder: Path, command: list[str]) -> tuple[int, str]:
        """Run `pcb …`, `snakemake …` or `settle` in a folder; return its status and output."""
        with tempfile.TemporaryFile() as output, socket.socket(socket.AF_UNIX) as link:
            link.connect(self.address)
            message = json.dumps([str(folder), command]).encode()
            descriptors = [0, output.fileno(), output.fileno()]
            socket.send_fds(link, [message], descriptors)
            code = int(link.recv(8) or b"1")
            output.seek(0)
            return code, output.read().decode(errors="replace")


def serve(listener: socket.socket, client: str) -> None:
    """Fork for every command that is sent, for ever."""
    while True:
        link, _ = listener.accept()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not os.fork():
            listener.close()
            message, descriptors, _, _ = socket.recv_fds(link, 1 << 16, 3)
            folder, command = json.loads(message)
            os.chdir(folder)
            for standard, descriptor in enumerate(descriptors):
                os.dup2(descriptor, standard)
            if command[0] == "snakemake":
                sys.executable = client
                pcb.reporting.site.build.build = lambda study: study.paths.index
            finish_as(command, link)
        link.close()


def finish_as(command: list[str], link: socket.socket) -> None:
    """Run a command in this process, send its exit status and end."""
    mains = {"pcb": cli.main, "snakemake": snakemake.cli.main, "settle": settle}
    code = 1
    try:
        sys.argv = command
        code = int(mains[command[0]](command[1:]) or 0)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        with suppress(OSError):
            link.send(str(code).encode())
        os._exit(code)


# Projects -----------------------------------------------------------------------------------------


@dataclass
class Project:
    """A folder with inputs and results.

    Attributes:
        folder: The folder.
        forks: Runs its commands.
        cwd: Where its command runs, if not in the folder.
        config: `--config` of its command, if not the usual one.
        scores_only: Whether its command makes the scores of one run alone.
    """

    folder: Path
    forks: Forks
    cwd: Path | None = None
    config: tuple[str, ...] = ()
    scores_only: bool = False

    @property
    def root(self) -> Path:
        """Folder of the results."""
        return self.folder / RESULTS

    def snakemake(self, targets: Sequence[str] = ()) -> tuple[int, str]:
        """Run the project's command, or make other targets."""
        config = self.config or ("scale=inputs/scale.yaml", "paper=inputs/study.yaml")
        root = RESULTS if self.cwd is None else self.root
        command = ["snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
        runs = f"{root}/runs/{TRUNK}/seed0"
        wanted = [f"{runs}/metrics.json"] if self.scores_only else [TABLE, f"{runs}/oracle.json"]
        targets = targets or wanted
        command += ["--config", *config, "--", *targets]
        return self.forks.run(self.cwd or self.folder, command)

    def pcb(self, arguments: list[str]) -> tuple[int, str]:
        """Run a verb of `pcb`."""
        return self.forks.run(self.cwd or self.folder, ["pcb", *arguments])

    def copy(self, folder: Path, *, results: bool = True, times: bool = True) -> Project:
        """Copy it, with or without its results and times."""
        shutil.rmtree(folder, ignore_errors=True)
        ignore = None if results else shutil.ignore_patterns("results", ".snakemake")
        how = shutil.copy2 if times else shutil.copy
        shutil.copytree(self.folder, folder, ignore=ignore, copy_function=how, symlinks=True)
        return Project(folder, self.forks)

    def settle(self) -> None:
        """Remember the digests of all files as they are now, as a run does in its own folder.

        A copy has other inodes: without this, no mutation in it would be compared with a digest
        that was remembered.
        """
        code, output = self.forks.run(self.folder, ["settle"])
        if code:
            sys.exit(f"{self.folder}: digests could not be remembered\n{output}")

    def numbers(self) -> dict[str, str]:
        """Every published number that its command makes, as text by the file that it is in."""
        root, out = self.root, {}
        if self.scores_only:
            return {"scores": measured(root / f"runs/{TRUNK}/seed0/metrics.json")}
        for name in ("csv", "md", "tex"):
            out[f"tables/{TABLE}.{name}"] = read(root / f"site/tables/{TABLE}.{name}")
        page = re.search(r"<table.*?</table>", read(root / f"site/notebooks/{TABLE}.html"), re.S)
        out["page"] = re.sub(r"<[^>]*>|\s+", " ", page[0]) if page else ""
        for path in sorted(root.glob("runs/*/*/*.json")):
            if path.name in ("metrics.json", "oracle.json"):
                out[str(path.relative_to(root))] = measured(path)
        for run in (TRUNK, BRANCH):
            out[f"weights of {run}"] = str(weights(root / f"runs/{run}/seed0/run.json"))
        return out


def settle(_: Sequence[str] = ()) -> None:
    """List the images and save the digests of all files that identities depend on."""
    from pcb.data.lvis.check import check

    study = load_study("inputs/scale.yaml", "inputs/study.yaml")
    if not study.contents.is_generated("v05"):
        check(study, "v05")
    study.contents.damaged_files("v05")
    for run in (TRUNK, BRANCH):
        study.evaluation(run, 0)
    study.contents.of_file(study.paths.weights("r50"))
    study.contents.save()


def read(path: Path) -> str:
    """The text of a file, "" where there is none or it is none."""
    return path.read_bytes().decode(errors="replace") if path.is_file() else ""


def measured(path: Path) -> str:
    """What a record measured, as text; not of which files, how fast or when."""
    try:
        record = read_record(path) or {}
    except UserError as error:
        return f"unreadable: {error.what}"
    about = r"checkpoint|fingerprint|evaluation|confusion|bootstrap|seconds|started|finished"
    kept = {key: value for key, value in record.items() if not re.search(about, key)}
    return json.dumps(kept, sort_keys=True)


def weights(path: Path) -> str | None:
    """Digest of the weights that a record of a training names; None where it is damaged."""
    with suppress(UserError):
        return (read_record(path) or {}).get("weights")
    return None


def make_own(folder: Path, seed: int = 0) -> None:
    """The inputs of a project on data of a user's own: real files, nothing is generated."""
    scale = read_yaml(SCALES / "smoke.yaml")
    recipe = Recipe.read({**scale.pop("synthetic"), "seed": seed})
    write_dataset(recipe, "v05", folder / "inputs/v05")
    (folder / "inputs/v05/manifest.json").unlink()
    shutil.copytree(ROOT / "configs/mmdet", folder / "inputs/mmdet")
    weights = scale["backbones"]["r50"]["weights"]
    shutil.copy(ROOT / weights, folder / "inputs/start.pth")
    files = {s: f"inputs/v05/{s}.json" for s in ("train", "val", "dev")}
    for dataset in scale["datasets"].values():
        dataset |= {**files, "images": "inputs/v05/images"}
    scale["backbones"]["r50"] = {
        "config": "inputs/mmdet/mini_r18.py",
        "weights": "inputs/start.pth",
    }
    write_yaml(folder / "inputs/scale.yaml", scale)
    write_text(folder / "inputs/study.yaml", STUDY)


def make_generated(folder: Path, seed: int = 0) -> None:
    """The inputs of a project whose data the pipeline draws."""
    scale = read_yaml(SCALES / "smoke.yaml")
    scale["synthetic"]["seed"] = seed
    write_yaml(folder / "inputs/scale.yaml", scale)
    write_text(folder / "inputs/study.yaml", STUDY)


def write_yaml(path: Path, value: dict) -> None:
    write_text(path, yaml.safe_dump(value, sort_keys=False))


MAKE = {"own": make_own, "generated": make_generated}


# Mutations ----------------------------------------------------------------------------------------


def flip(data: bytes, rng: random.Random) -> bytes:
    """One bit at a random place."""
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """The end is missing."""
    return data[: rng.randrange(len(data))]


def zero(data: bytes, rng: random.Random) -> bytes:
    """A block of zeros, of 4 KiB or a quarter of the file."""
    size = min(4096, max(1, len(data) // 4))
    place = rng.randrange(len(data) - size + 1)
    return data[:place] + bytes(size) + data[place + size :]


def edit(data: bytes, rng: random.Random, path: Path) -> bytes:
    """A valid file with another content, as by a careful hand."""
    return EDITS[path.suffix](data, rng)


def edit_json(data: bytes, rng: random.Random) -> bytes:
    """Half of the objects of an annotation file are smaller; another digit in any other file."""
    try:
        content = json.loads(data)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        return edit_text(data, rng)
    for one in rng.sample(content["annotations"], len(content["annotations"]) // 2):
        left, top, width, height = one["bbox"]
        one["bbox"] = [left, top, width * 0.75, height * 0.75]
        one["area"] *= 0.75**2
        for polygon in one["segmentation"]:
            polygon[::2] = [left + 0.75 * (x - left) for x in polygon[::2]]
            polygon[1::2] = [top + 0.75 * (y - top) for y in polygon[1::2]]
    return json.dumps(content).encode()


def edit_text(data: bytes, rng: random.Random) -> bytes:
    """Another digit in a number."""
    numbers = list(re.finditer(rb"(?<![\w.])[1-9]\d*(?![\w])", data))
    if not numbers:
        return data + b"\n"
    found = rng.choice(numbers)
    digit = b"%d" % (int(data[found.start() : found.start() + 1]) % 9 + 1)
    return data[: found.start()] + digit + data[found.start() + 1 :]


def edit_image(data: bytes, rng: random.Random) -> bytes:
    """A grey rectangle over a third of the picture."""
    image = Image.open(io.BytesIO(data))
    image.load()
    width, height = image.size
    image.paste(128, (width // 6, height // 6, width // 2, height // 2))
    out = io.BytesIO()
    image.save(out, image.format or "PNG", **({"quality": 95} if image.format == "JPEG" else {}))
    return out.getvalue()


def edit_weights(data: bytes, rng: random.Random) -> bytes:
    """Another value in each tensor, in a file that is valid."""
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    for value in state.get("state_dict", state).values():
        if torch.is_tensor(value) and value.is_floating_point():
            value.mul_(1.1)
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


def edit_arrays(data: bytes, rng: random.Random) -> bytes:
    """Other values in the arrays, in a file that is valid."""
    with np.load(io.BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    out = io.BytesIO()
    np.savez(out, **{name: array[::-1] if array.ndim else array for name, array in arrays.items()})
    return out.getvalue()


EDITS = {
    ".json": edit_json,
    **dict.fromkeys((".jsonl", ".csv", ".md", ".tex", ".html", ".ipynb"), edit_text),
    **dict.fromkeys((".png", ".jpg", ".webp"), edit_image),
    ".pth": edit_weights,
    ".npz": edit_arrays,
}
DAMAGES = {"flip": flip, "cut": cut, "zero": zero}
KINDS = ("edit", "flip", "cut", "zero", "other", "old", "delete")
AT_REST = ("edit", "other", "old", "delete")  # what Snakemake might take for a result
WHEN_READ = ("edit", "flip", "cut", "zero", "old")


@dataclass(frozen=True)
class File:
    """A file of a finished project that is mutated.

    Attributes:
        name: What it is.
        pattern: Its path from the project's folder; of several that match, one is drawn.
        kinds: Ways to mutate it.
        readers: Commands that read it; () to mutate it at rest.
        unread: Paths of what is deleted before, so that they do not keep what there is.
        project: `own` or `generated`.
        is_input: Whether the user made it: numbers are compared with those of a fresh folder.
    """

    name: str
    pattern: str
    kinds: tuple[str, ...] = AT_REST
    readers: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    project: str = "own"
    is_input: bool = False


def of_run(name: str, pattern: str, *readers: str, unread: tuple[str, ...] = ()) -> list[File]:
    """A result, mutated at rest and, where a reader is known, when it is read.

    Without `readers` the project's command makes again what is `unread`, and reads it for that.
    """
    pattern = f"{RESULTS}/{pattern}"
    out = [File(name, pattern)]
    if readers or unread:
        deleted = tuple(f"{RESULTS}/{path}" for path in unread)
        out.append(File(f"{name}, read", pattern, WHEN_READ, readers, deleted))
    return out


T, B = f"runs/{TRUNK}/seed0", f"runs/{BRANCH}/seed0"
SCORE, DETECT = f"score {TRUNK}", f"infer {TRUNK}"
GATHERED = (f"gathered/{TABLE}.json",)
DETECTIONS = (f"{T}/detections.json", f"{T}/detections")
INPUTS = [
    File("annotations of train", "inputs/v05/train.json", ("edit", "cut", "old"), is_input=True),
    File("annotations of val", "inputs/v05/val.json", ("edit", "zero", "other"), is_input=True),
    File("annotations of dev", "inputs/v05/dev.json", ("edit",), is_input=True),
    File("image of train", "inputs/v05/images/0000001*", ("edit", "cut", "old"), is_input=True),
    File("image of val", "inputs/v05/images/0000002*", ("flip", "zero", "other"), is_input=True),
    File("image of dev", "inputs/v05/images/0000003*", ("delete",), is_input=True),
    File("starting weights", "inputs/start.pth", ("edit", "flip", "delete"), is_input=True),
]
INTERMEDIATE = [
    *of_run("check", "data/v05.check.json", unread=GATHERED),
    *of_run("list of images", "data/v05.images.json"),
    *of_run("remembered digests", "data/digests/*.json"),
    *of_run("index of val", "data/index/val-*.arrow", SCORE),
    *of_run("record of an index", "data/index/train-*.json", SCORE),
    *of_run("pretrained", "pretrained/r50.pth", f"trunk {TRUNK}", unread=("work/*/trunk.*.pth",)),
    *of_run("record of pretrained", "pretrained/r50.json"),
    *of_run("trunk.json", f"{T}/trunk.json", f"train {BRANCH}"),
    *of_run("trunk-log.jsonl", f"{T}/trunk-log.jsonl"),
    *of_run(
        "checkpoint of a trunk",
        "work/*/trunk.*.pth",
        f"train {BRANCH}",
        unread=(f"{B}/run.json", "work/*/final.*.pth"),
    ),
    *of_run("run.json", f"{T}/run.json", DETECT, SCORE),
    *of_run("log.jsonl", f"{T}/log.jsonl"),
    *of_run("final checkpoint", "work/*/final.*.pth", DETECT, f"infer {BRANCH}", SCORE),
    *of_run("train confusion", f"{T}/confusion-train.npz", DETECT, SCORE, unread=DETECTIONS),
    *of_run("record of train confusion", f"{T}/confusion-train.json", DETECT, unread=DETECTIONS),
    *of_run("shard of train confusion", f"{T}/confusion-train/*.npz", f"confusion {TRUNK}"),
    *of_run("detections.json", f"{T}/detections.json", SCORE),
    *of_run("shard of detections", f"{T}/detections/*.parquet", SCORE),
    *of_run("confusion.npz", f"{T}/confusion.npz", SCORE),
    *of_run("shard of confusion", f"{T}/confusion/*.npz", DETECT, SCORE),
    *of_run("confusion-images.npz", f"{T}/confusion-images.npz", SCORE),
    *of_run("detections-dev.json", f"{T}/detections-dev.json", SCORE),
    *of_run("shard of detections on dev", f"{T}/detections-dev/*.parquet", SCORE),
    *of_run("metrics.json", f"{T}/metrics.json", unread=GATHERED),
    *of_run("bootstrap.npz", f"{T}/bootstrap.npz", unread=GATHERED),
    *of_run("oracle.json", f"{T}/oracle.json"),
    *of_run("study.json", "study.json", SCORE),
]
PUBLISHED = [
    *of_run("gathered table", f"gathered/{TABLE}.json", f"render {TABLE}"),
    *of_run("record of a page", f"gathered/pages/{TABLE}.json"),
    *of_run("table as CSV", f"site/tables/{TABLE}.csv"),
    *of_run("table as LaTeX", f"site/tables/{TABLE}.tex"),
    *of_run("page", f"site/notebooks/{TABLE}.html"),
    *of_run("notebook", f"site/notebooks/{TABLE}.ipynb"),
    *of_run("figure", f"site/figures/{TABLE}.png"),
]
DRAWN = [
    File("feature cache", f"{RESULTS}/work/features/*", ("old",), project="generated"),
    File(
        "feature cache, read",
        f"{RESULTS}/work/features/*",
        ("flip", "other"),
        (DETECT, SCORE),
        tuple(f"{RESULTS}/{path}" for path in DETECTIONS),
        "generated",
    ),
    File("drawn annotations", f"{RESULTS}/data/v05/val.json", ("edit", "cut"), project="generated"),
    File("drawn image", f"{RESULTS}/data/v05/images/0*", ("flip", "old"), project="generated"),
    File(
        "manifest of the data", f"{RESULTS}/data/v05/manifest.json", ("edit",), (), (), "generated"
    ),
]


@dataclass(frozen=True)
class Mutation:
    """One mutation.

    Attributes:
        name: Its name, unique.
        file: What it mutates, or what of the folder or of a setting.
        kind: How.
        project: `own` or `generated`.
        is_input: Whether numbers are compared with those of a fresh folder.
        apply: Changes a project; returns the path that it changed, if one.
        readers, unread: See `File`.
    """

    name: str
    file: str
    kind: str
    project: str
    is_input: bool
    apply: Callable[[Project, Bases], Path | None]
    readers: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


@dataclass
class Bases:
    """Finished projects, made when they are needed.

    Attributes:
        folder: Where they are.
        forks: Runs their commands.
        fresh: Numbers of fresh folders by the digest of their inputs; None where one is refused.
        clean: Copies that are as their base is.
    """

    folder: Path
    forks: Forks
    fresh: dict[str, dict[str, str] | None] = field(default_factory=dict)
    clean: dict[str, Project] = field(default_factory=dict)

    def get(self, name: str, seed: int = 0) -> Project:
        """A finished project; another `seed` has other data and other numbers."""
        project = Project(self.folder / f"{name}{seed}", self.forks)
        done = project.folder / ".done"
        if not done.exists():
            shutil.rmtree(project.folder, ignore_errors=True)
            MAKE[name](project.folder, seed)
            code, output = project.snakemake()
            if code:
                sys.exit(f"the {name} project failed:\n{output}")
            done.touch()
        return project

    def copy(self, name: str) -> Project:
        """A copy of a finished project, to be mutated."""
        if name not in self.clean:
            project = self.get(name).copy(self.folder / f"mutated-{name}")
            project.settle()
            return project
        return self.clean.pop(name)

    def expected(self, project: Project) -> dict[str, str] | None:
        """The numbers of a fresh folder with the inputs of a project; None if it is refused."""
        files = sorted(p for p in (project.folder / "inputs").rglob("*") if p.is_file())
        digest = hashlib.sha256()
        for path in files:
            digest.update(f"{path.relative_to(project.folder)}\n".encode() + path.read_bytes())
        key = digest.hexdigest() + "scores" * project.scores_only
        if key not in self.fresh:
            fresh = project.copy(self.folder / "fresh", results=False)
            fresh.scores_only = project.scores_only
            code, _ = fresh.snakemake()
            self.fresh[key] = None if code else fresh.numbers()
        return self.fresh[key]


def mutate(file: File, kind: str, seed: int) -> Mutation:
    """A mutation of a file, the same for the same seed."""
    name = f"{file.name}: {kind}"

    def apply(project: Project, bases: Bases) -> Path:
        rng = random.Random(f"{seed} {name}")
        path = rng.choice(sorted(project.folder.glob(file.pattern)))
        if kind == "delete":
            path.unlink()
        elif kind == "other":
            others = sorted(set(other_files(project, path)) - {path})
            path.write_bytes(rng.choice(others).read_bytes() if others else b"")
        elif kind == "old":
            old = bases.get(file.project, seed=1)
            relative = path.relative_to(project.folder)
            source = old.folder / relative
            if not source.exists():
                source = rng.choice(sorted(old.folder.glob(file.pattern)))
            path.write_bytes(source.read_bytes())
            os.utime(path, (OLD, OLD))
        elif kind == "edit":
            path.write_bytes(edit(path.read_bytes(), rng, path))
        else:
            path.write_bytes(DAMAGES[kind](path.read_bytes(), rng))
        return path

    return Mutation(
        name, file.name, kind, file.project, file.is_input, apply, file.readers, file.unread
    )


def other_files(project: Project, path: Path) -> Iterator[Path]:
    """Files of the same kind in other places: of another run, split or epoch."""
    stem = re.sub(r"[0-9a-f]{12,}|\d+", "*", path.name)
    yield from path.parent.glob(stem)
    if RESULTS.name in path.parts:
        yield from project.root.rglob(stem)
    yield from path.parent.glob(f"*{path.suffix}")


def set_scale(*keys: str, value: object) -> Callable[[Project, Bases], Path]:
    """Change a key of the scale's YAML file."""

    def apply(project: Project, bases: Bases) -> Path:
        path = project.folder / "inputs/scale.yaml"
        scale = read_yaml(path)
        section = scale
        for key in keys[:-1]:
            section = section[key]
        section[keys[-1]] = value
        write_yaml(path, scale)
        return path

    return apply


def edit_detector(old: str, new: str) -> Callable[[Project, Bases], Path]:
    """Change a detector config that another one inherits from, or that itself."""

    def apply(project: Project, bases: Bases) -> Path:
        path = project.folder / "inputs/mmdet/mini_r18.py"
        text = path.read_text(encoding="utf-8")
        assert old in text
        write_text(path, text.replace(old, new))
        return path

    return apply


def setting(name: str, apply: Callable, project: str = "own") -> Mutation:
    """A changed setting."""
    return Mutation(f"setting: {name}", "settings", name, project, True, apply)


SETTINGS = [
    setting("score_thr", set_scale("test", "score_thr", value=0.2)),
    setting("max_per_image", set_scale("test", "max_per_image", value=7)),
    setting("rfs_threshold", set_scale("train", "rfs_threshold", value=0.12)),
    setting("detector config", edit_detector("num=24", "num=20")),
    setting("recipe, val only", set_scale("synthetic", "novel_styles", value=0.6), "generated"),
]


def lose_metadata(project: Project, bases: Bases) -> None:
    """`.snakemake` is lost."""
    shutil.rmtree(project.folder / ".snakemake")


def copy_without_times(project: Project, bases: Bases) -> None:
    """The results are a copy, as `cp -r` makes it, in an order that is not that of the jobs."""
    lose_metadata(project, bases)
    kept = project.root.rename(project.folder / "kept")
    for path in sorted(kept.rglob("*"), key=lambda path: path.name, reverse=True):
        if path.is_file():
            copy = project.root / path.relative_to(kept)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    shutil.rmtree(kept)


def move(project: Project, bases: Bases) -> None:
    """The whole folder has moved."""
    moved = project.folder.with_name("moved")
    shutil.rmtree(moved, ignore_errors=True)
    project.folder = project.folder.rename(moved)


def link(project: Project, bases: Bases) -> None:
    """Results and inputs are symbolic links to folders elsewhere."""
    for name in ("results", "inputs/v05"):
        path = project.folder / name
        elsewhere = project.folder.with_name(f"elsewhere-{path.name}")
        shutil.rmtree(elsewhere, ignore_errors=True)
        path.rename(elsewhere)
        path.symlink_to(elsewhere)


def elsewhere(project: Project, bases: Bases) -> None:
    """The command runs in another working directory, with absolute paths."""
    project.cwd = project.folder.with_name("cwd")
    project.cwd.mkdir(exist_ok=True)
    scale = read_yaml(project.folder / "inputs/scale.yaml")
    inputs = f"{project.folder}/inputs"
    text = yaml.safe_dump(scale).replace("inputs/", f"{inputs}/")
    write_text(project.folder / "inputs/scale.yaml", text)
    project.config = (
        f"scale={inputs}/scale.yaml",
        f"paper={inputs}/study.yaml",
        f"results={project.folder}/results",
    )


def scramble(project: Project, bases: Bases) -> None:
    """Every file has another time, inputs and results alike."""
    rng = random.Random(0)
    for path in sorted(project.folder.rglob("*")):
        if path.is_file() and ".snakemake" not in path.parts:
            moment = OLD + rng.randrange(10**8)
            os.utime(path, (moment, moment))


FOLDERS = {
    "metadata lost": lose_metadata,
    "copied without times": copy_without_times,
    "moved": move,
    "linked": link,
    "another working directory": elsewhere,
    "times scrambled": scramble,
}


def folder_mutations() -> list[Mutation]:
    """Changes of the whole folder, alone and with a changed input that must still be noticed."""
    annotations = mutate(INPUTS[1], "edit", 0).apply

    def both(first: Callable, second: Callable) -> Callable[[Project, Bases], Path | None]:
        def apply(project: Project, bases: Bases) -> Path | None:
            second(project, bases)
            return first(project, bases)

        return apply

    out = []
    for name, apply in FOLDERS.items():
        out.append(Mutation(f"folder: {name}", "folder", name, "own", False, apply))
        if name in ("linked", "copied without times"):  # their times say nothing of a change
            kind = f"{name}, other annotations of val"
            change = both(apply, annotations)
            out.append(Mutation(f"folder: {kind}", "folder", kind, "own", True, change))
    return out


def mutations(seed: int = 0, every: bool = False) -> list[Mutation]:
    """The mutations of a seed, or all of them.

    Of a result at rest it has one kind, of one that is read two: other seeds have others.
    """
    out = []
    for number, file in enumerate([*INPUTS, *DRAWN, *INTERMEDIATE, *PUBLISHED]):
        kinds = [kind for kind in file.kinds if fits(file, kind)]
        if not every and file.kinds in (AT_REST, WHEN_READ):
            first, count = number + seed, 2 if file.kinds is WHEN_READ else 1
            kinds = [kinds[(first + further) % len(kinds)] for further in range(count)]
        out += [mutate(file, kind, seed) for kind in kinds]
    return [*out, *SETTINGS, *folder_mutations()]


def fits(file: File, kind: str) -> bool:
    """Whether a kind of mutation is possible for a file."""
    suffix = Path(file.pattern).suffix
    if kind == "edit":
        return suffix in EDITS or "images/" in file.pattern
    return True


# Outcomes -----------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of a mutation.

    Attributes:
        name, file, kind: Those of the mutation.
        outcome: See `judge`.
        fine: Whether no number was wrong without a word.
        ran: Messages of the jobs that ran.
        error: The error, if the run was refused.
        fixes: Fixes that were followed.
        differs: Files in which a number is not that of a fresh folder.
        changed: Whether the numbers of the fresh folder are others than before the mutation.
        seconds: Time that it took.
    """

    name: str
    file: str
    kind: str
    outcome: str = ""
    fine: bool = False
    ran: list[str] = field(default_factory=list)
    error: str = ""
    fixes: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    changed: bool = False
    seconds: float = 0.0


def judge(mutation: Mutation, bases: Bases) -> Outcome:
    """Apply a mutation to a copy of its project, run the command, follow its fixes, compare.

    The outcome is one of `equal: nothing ran`, `equal: made again`, `refused, the fix works`,
    `refused as in a fresh folder`, and, not fine, `SILENT`, `TRACEBACK`, `no fix`.
    """
    began = time.monotonic()
    base, project = bases.get(mutation.project), bases.copy(mutation.project)
    project.scores_only = mutation.is_input and mutation.file != "folder"
    before = replace(base, scores_only=project.scores_only).numbers()
    kept = {}
    for path in (project.folder / "inputs").rglob("*"):
        if path.is_file():
            kept[path.relative_to(project.folder)] = path.read_bytes()
    changed = mutation.apply(project, bases)
    original = base.folder / changed.relative_to(project.folder) if changed else None
    for path in (path for pattern in mutation.unread for path in project.folder.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out = Outcome(mutation.name, mutation.file, mutation.kind)
    code, output = run(project, mutation.readers)
    out.ran = re.findall(r"(?:done|kept) \d+/\d+ +([A-Z].*?)(?:,|:| \(|$)", output, re.M)
    out.ran += mutation.readers
    while code and len(out.fixes) < ROUNDS:
        if "Traceback" in output:
            out.outcome, out.error = "TRACEBACK", output[-3000:]
            break
        found = re.search(r"error: (.*)\n\s*fix: (.*)", output)
        if not found:
            out.outcome, out.error = "no fix", output[-3000:]
            break
        out.error = out.error or found[0]
        inputs = kept if mutation.is_input else {}
        fix = follow(project, *found.groups(), inputs, changed)
        if fix is None or fix in out.fixes:
            out.outcome = "no fix"
            break
        out.fixes.append(fix)
        code, output = run(project, mutation.readers)
    restored = any(fix.startswith("restored") for fix in out.fixes)
    expected = before if restored or not mutation.is_input else bases.expected(project)
    out.changed = expected != before
    if not out.outcome:
        if code or expected is None:
            out.outcome = "no fix" if code else "SILENT"
            out.error = out.error or output[-3000:]
        else:
            numbers = project.numbers()
            names = sorted(numbers.keys() | expected.keys())
            out.differs = [n for n in names if numbers.get(n) != expected.get(n)]
            kind = "refused, the fix works" if out.fixes else "equal: made again"
            kind = kind if out.ran or out.fixes else "equal: nothing ran"
            out.outcome = "SILENT" if out.differs else kind
            out.fine = not out.differs
    unchanged = out.outcome == "equal: nothing ran" and not mutation.is_input
    if unchanged and original and original.exists():
        shutil.copy2(original, changed)
        bases.clean[mutation.project] = project
    out.seconds = round(time.monotonic() - began, 1)
    return out


def run(project: Project, readers: Sequence[str]) -> tuple[int, str]:
    """Run a project's command, or the jobs that read a file, up to the first that fails."""
    if not readers:
        return project.snakemake()
    code, output = 0, ""
    for reader in readers:
        seed = [] if reader.split()[0] in ("gather", "render") else ["--seed", "0"]
        command = [*reader.split(), *seed, "--study", str(RESULTS / "study.json")]
        code, text = project.pcb(command)
        output += text
        if code:
            break
    return code, output


def follow(
    project: Project, what: str, fix: str, inputs: dict[Path, bytes], changed: Path | None
) -> str | None:
    """Do what a fix says, literally; of one about a file of the user's, restore the file.

    Returns:
        What was done; None where the fix names nothing that can be done.
    """
    done = []
    if re.match(r"delete it\b", fix):
        found = re.search(r"(\S*results/\S+?)[:,]?(?= |$)", what)
        if found and (path := (project.cwd or project.folder) / found[1]).exists():
            path.unlink()
            done.append("deleted")
    for command in re.findall(r"`((?:pcb|snakemake) [^`]*)`", fix):
        verb, *arguments = shlex.split(command)
        if verb == "snakemake":
            project.snakemake()
        elif arguments[0] in (
            "train",
            "trunk",
            "infer",
            "confusion",
            "score",
            "pretrain",
            "gather",
        ):
            if "--study" not in arguments:
                arguments += ["--study", str(project.root / "study.json")]
            project.pcb(arguments)
        else:
            continue
        done.append(command)
    if not done and inputs and changed:
        relative = changed.relative_to(project.folder)
        changed.write_bytes(inputs[relative])
        done.append(f"restored {relative}")
    return "; ".join(done) or None


HEAD = """\
# Mutations of a finished run

Written by `python tests/manual/pipeline_mutants.py --write`. One file, setting or folder of a
finished run is changed; the same command runs again (rows "read": the job that reads the file).

`=`: nothing ran, and every number is that of a fresh folder. `again`: what depends on it was made
again, with the numbers of a fresh folder. `fixed`: refused with the name of the file; the fix was
followed literally, and gave these numbers. Bold: a wrong number without a word, a traceback, or a
fix that does not work.
"""
TABLE_OF_OUTCOMES = ROOT / "results/benchmarks/pipeline_mutants.md"

# The script ---------------------------------------------------------------------------------------


@contextmanager
def workplace(folder: Path | None) -> Iterator[Bases]:
    """Bases in a folder, or in a temporary one."""
    temporary = folder is None
    folder = Path(tempfile.mkdtemp(prefix="mutants-")) if folder is None else folder.resolve()
    sockets = Path(tempfile.mkdtemp(prefix="forks-"))
    folder.mkdir(parents=True, exist_ok=True)
    forks = Forks(sockets)
    try:
        yield Bases(folder, forks)
    finally:
        forks.stop()
        shutil.rmtree(sockets, ignore_errors=True)
        if temporary:
            shutil.rmtree(folder, ignore_errors=True)


def table(outcomes: list[Outcome]) -> str:
    """Outcomes as Markdown: a line for each file, a column for each kind."""
    short = {
        "equal: nothing ran": "=",
        "equal: made again": "again",
        "refused, the fix works": "fixed",
        "refused as in a fresh folder": "refused",
    }
    by_file: dict[str, dict[str, str]] = {}
    for out in outcomes:
        by_file.setdefault(out.file, {})[out.kind] = short.get(out.outcome, f"**{out.outcome}**")
    lines = [f"| file | {' | '.join(KINDS)} |", f"|---{'|---' * len(KINDS)}|"]
    others = []
    for file, kinds in by_file.items():
        if kinds.keys() <= set(KINDS):
            cells = [kinds.get(kind, "") for kind in KINDS]
            lines.append(f"| {file} | {' | '.join(cells)} |")
        else:
            others += [f"| {file}: {kind} | {outcome} |" for kind, outcome in kinds.items()]
    return "\n".join([*lines, "", "| setting or folder | outcome |", "|---|---|", *others]) + "\n"


def main() -> int:
    """Run the mutations; exit status 1 if one of them is not fine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="only mutations whose name this pattern is in")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default: 0)")
    parser.add_argument("--all", action="store_true", help="every kind of mutation of every file")
    parser.add_argument("--folder", type=Path, help="work here and keep it; resumes")
    parser.add_argument("--list", action="store_true", help="show the mutations, run nothing")
    parser.add_argument("--write", action="store_true", help="write to results/benchmarks/")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        descriptor, client = arguments.serve
        serve(socket.socket(fileno=int(descriptor)), client)
    every = mutations(arguments.seed, arguments.all)
    chosen = [m for m in every if re.search(arguments.only, m.name)]
    if arguments.list:
        print("\n".join(m.name for m in chosen))
        return 0
    with workplace(arguments.folder) as bases:
        log = bases.folder / "outcomes.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        done = {out["name"]: Outcome(**out) for out in map(json.loads, lines)}
        todo = [m for m in chosen if m.name not in done]
        began = time.monotonic()
        for number, mutation in enumerate(todo, 1):
            out = done[mutation.name] = judge(mutation, bases)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(out)) + "\n")
            left = (time.monotonic() - began) / number * (len(todo) - number) / 60
            print(
                f"{number}/{len(todo)}  {out.name}: {out.outcome} ({len(out.ran)} jobs, "
                f"{out.seconds:.0f} s); {left:.0f} min left",
                flush=True,
            )
            if not out.fine:
                print(f"    {out.error[-600:]} {out.differs}", flush=True)
        outcomes = [done[m.name] for m in chosen]
    print(f"\n{report(outcomes)}")
    if arguments.write:
        write(outcomes, arguments.seed, bases.folder)
    return any(not out.fine for out in outcomes)


def report(outcomes: list[Outcome]) -> str:
    """Outcomes as a document."""
    counts = Counter(out.outcome for out in outcomes)
    lines = [f"- {count} {outcome}" for outcome, count in counts.most_common()]
    return f"{HEAD}\n{len(outcomes)} mutations:\n\n" + "\n".join(lines) + f"\n\n{table(outcomes)}"


def write(outcomes: list[Outcome], seed: int, folder: Path) -> None:
    """Write outcomes to results/benchmarks/, without times and folders of this machine."""
    entries = [asdict(out) for out in outcomes]
    for entry in entries:
        del entry["seconds"]
    about = {"seed": seed, "commit": (provenance.git() or {}).get("commit"), "mutations": entries}
    text = json.dumps(about, indent=1, ensure_ascii=False)
    for path in (folder, ROOT):
        text = text.replace(f"{path}/", "")
    write_text(TABLE_OF_OUTCOMES.with_suffix(".json"), text + "\n")
    write_text(TABLE_OF_OUTCOMES.with_suffix(".md"), report(outcomes))


if __name__ == "__main__":
    sys.exit(main())
