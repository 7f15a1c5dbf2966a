"""Judgements on a machine's facts: each check returns findings, and touches nothing but files.

A check takes a `Machine`, whose facts tests replace. Its findings are `ok`, `warning` (works, but
not as well as it could) or `error` (a job of this scale will fail), with the fix.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pcb.errors import UserError
from pcb.files import located, locked
from pcb.formatting import size

if TYPE_CHECKING:
    from pcb.study import Study

Status = Literal["ok", "warning", "error"]

# Oldest driver of each major version of CUDA. Source: NVIDIA, CUDA Compatibility, Table 1.
DRIVERS = {11: 450, 12: 525, 13: 580}
CUDA_12_LOCK = "requirements-cuda12.lock"
OLDER_LOCK = f"`make setup LOCK={CUDA_12_LOCK}` installs a torch for CUDA 12 (docs/scaling.md)"
REBUILD = "run `make setup`, which compiles them anew"
PYTHONS = ((3, 11), (3, 12))
SHARED_MEMORY = 2 * 10**9  # bytes in /dev/shm, through which loaders pass images
PROBE_SECONDS = 180


@dataclass(frozen=True)
class Finding:
    """The result of a check: `text` describes what was found, `fix` what to do about it."""

    check: str
    status: Status
    text: str
    fix: str = ""


@dataclass
class Machine:
    """Facts about this machine. All but the arguments are found out when they are first used.

    Args:
        cuda: Whether GPUs will be used.
        gpus: Number of GPUs of one job.
        run: Whether the operators are run, too.
        study: The study whose data, weights and results folder are checked; None: none.
    """

    cuda: bool
    gpus: int = 0
    run: bool = True
    study: Study | None = None
    python: tuple[int, int] = field(default=sys.version_info[:2])

    @cached_property
    def probe(self) -> dict[str, Any]:
        """What `pcb.doctor.probe` found, in a process of its own."""
        import json

        command = [sys.executable, "-W", "ignore", "-m", "pcb.doctor.probe"]
        command += ["--run"] if self.run else []
        try:
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", timeout=PROBE_SECONDS, check=False
            )
            return json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            problem = f"no answer within {PROBE_SECONDS} s"
        except (ValueError, IndexError):  # it crashed: the last line of the error tells most
            problem = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        return {"errors": {"torch": problem, "operators": problem}, "ran": []}

    @cached_property
    def driver(self) -> list[dict[str, str]]:
        """The GPUs that nvidia-smi lists: name, driver_version, compute_cap, memory.total (MiB)."""
        keys = ("name", "driver_version", "compute_cap", "memory.total")
        query = [f"--query-gpu={','.join(keys)}", "--format=csv,noheader,nounits"]
        return [
            dict(zip(keys, map(str.strip, line.split(",")), strict=False))
            for line in output("nvidia-smi", *query).splitlines()
            if line.count(",") >= len(keys) - 1
        ]

    @cached_property
    def compiler(self) -> str | None:
        """The version of g++."""
        return output("g++", "-dumpfullversion", "-dumpversion").strip() or None

    @cached_property
    def shared_memory(self) -> int | None:
        """Bytes of /dev/shm; None where there is none."""
        try:
            return shutil.disk_usage("/dev/shm").total
        except OSError:
            return None

    def free(self, folder: Path) -> int:
        """Bytes free on the disk of a folder that may not exist yet."""
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free


def output(*command: str) -> str:
    """Standard output of a command; empty if it is missing or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


# The environment ------------------------------------------------------------------------------


def python(machine: Machine) -> list[Finding]:
    """Python is a version that the lock was made for."""
    text = ".".join(map(str, machine.python))
    if machine.python in PYTHONS:
        return [Finding("python", "ok", text)]
    fix = "make the environment with Python 3.11 or 3.12: `make setup PYTHON=python3.11`"
    return [Finding("python", "error", f"{text} is not supported", fix)]


def compiler(machine: Machine) -> list[Finding]:
    """There is a C++ compiler; only set-up needs it."""
    if machine.compiler:
        return [Finding("compiler", "ok", f"g++ {machine.compiler}")]
    fix = "only set-up needs it; on Debian or Ubuntu: apt-get install build-essential"
    return [Finding("compiler", "warning", "no C++ compiler (g++)", fix)]


def torch(machine: Machine) -> list[Finding]:
    """PyTorch can be imported and, where GPUs are used, is a build with CUDA."""
    facts = machine.probe
    if problem := facts["errors"].get("torch"):
        return [Finding("torch", "error", f"torch cannot be imported: {problem}", "`make setup`")]
    built = facts["cuda"]
    text = f"torch {facts['torch']}, " + (f"for CUDA {built}" if built else "a CPU build")
    if built or not (machine.cuda or machine.driver):
        return [Finding("torch", "ok", text)]
    plain = facts["torch"].partition("+")[0]
    fix = (
        f"install the CUDA build, `python -m pip install --force-reinstall torch==={plain}` "
        "(`===` passes over wheels named +cpu), then `make setup`"
    )
    where = ", but this machine has a GPU" if machine.driver else ", but the job needs a GPU"
    return [Finding("torch", "error" if machine.cuda else "warning", text + where, fix)]


def driver(machine: Machine) -> list[Finding]:
    """The driver is new enough for the CUDA of torch."""
    if not machine.driver:
        if not machine.cuda:
            return [Finding("driver", "ok", "no NVIDIA driver; none is needed here")]
        fix = "run this on a machine with a GPU; in a container, start it with the GPUs (--gpus)"
        return [Finding("driver", "error", "nvidia-smi finds no NVIDIA driver", fix)]
    found = machine.driver[0]["driver_version"]
    built = machine.probe.get("cuda")
    need = DRIVERS.get(major(built)) if built else None
    if need is None:
        return [Finding("driver", "ok", f"driver {found}")]
    if major(found) >= need:
        text = f"driver {found}; CUDA {built} needs {need} or newer"
        return [Finding("driver", "ok", text)]
    text = f"driver {found} is too old: torch's CUDA {built} needs {need} or newer"
    older = f"; until then {OLDER_LOCK}" if need > DRIVERS[12] and major(found) >= 525 else ""
    return [Finding("driver", "error", text, f"have the driver updated to {need}{older}")]


def gpus(machine: Machine) -> list[Finding]:
    """There are as many GPUs as a job takes, of a generation that torch has kernels for."""
    if not machine.cuda and not machine.driver:
        return [Finding("gpus", "ok", "no GPU; none is needed here")]
    built, found = machine.probe.get("cuda"), machine.probe.get("gpus", [])
    count = len(found) if built else len(machine.driver)
    findings = []
    if machine.cuda and machine.driver and built and not found:
        problem = machine.probe["errors"].get("gpus", "CUDA_VISIBLE_DEVICES may hide them")
        fix = "check `nvidia-smi`, and the driver above"
        findings.append(Finding("gpus", "error", f"torch finds no GPU: {problem}", fix))
    elif count < machine.gpus:
        text = f"{count} GPUs, but a training of this scale takes {machine.gpus}"
        fix = "lower hardware.gpus_per_job in the scale's YAML file, or use a machine with more"
        findings.append(Finding("gpus", "error", text, fix))
    architectures = machine.probe.get("architectures", [])
    for index, gpu in enumerate(found):
        version = ".".join(map(str, gpu["capability"]))
        text = f"GPU {index}: {gpu['name']}, {gpu['memory'] / 1e9:.0f} GB, capability {version}"
        if runs_on(architectures, *gpu["capability"]):
            findings.append(Finding("gpus", "ok", text))
            continue
        text += f"; this torch has kernels for {', '.join(architectures)} only"
        older = gpu["capability"] < [7, 5]
        fix = OLDER_LOCK if older else "install a newer torch, or use another GPU"
        findings.append(Finding("gpus", "error", text, fix))
    return findings or [Finding("gpus", "ok", f"{count} GPUs")]


def runs_on(architectures: list[str], major: int, minor: int) -> bool:
    """Whether kernels for `architectures` run on a GPU of this compute capability.

    A binary (`sm_86`) runs on the same major version and an equal or higher minor one; PTX
    (`compute_90`) on anything from there on.
    """
    for name in architectures:
        match = re.match(r"(sm|compute)_(\d+)(\d)", name)
        if match and match[1] == "sm" and int(match[2]) == major and int(match[3]) <= minor:
            return True
        if match and match[1] == "compute" and (int(match[2]), int(match[3])) <= (major, minor):
            return True
    return False


def operators(machine: Machine) -> list[Finding]:
    """The operators of mmcv are compiled for what the jobs need, and run."""
    facts = machine.probe
    if problem := facts["errors"].get("operators"):
        text = f"mmcv's operators cannot be imported: {problem}"
        return [Finding("operators", "error", text, REBUILD)]
    compiled = facts["operators"]
    text = f"mmcv {facts['mmcv']}, compiled for " + (f"CUDA {compiled}" if compiled else "the CPU")
    if machine.cuda and not compiled:
        fix = f"{REBUILD}; on a machine without a GPU: `FORCE_CUDA=1 make setup`"
        return [Finding("operators", "error", f"{text} only", fix)]
    built = facts.get("cuda")
    if compiled and built and major(compiled) != major(built):
        return [Finding("operators", "error", f"{text}, but torch for CUDA {built}", REBUILD)]
    for device in ("cpu", *(f"cuda:{i}" for i in range(len(facts.get("gpus", []))))):
        if problem := facts["errors"].get(device):
            fix = f"{REBUILD} (with TORCH_CUDA_ARCH_LIST unset, or with this GPU's capability)"
            text = f"NMS and RoIAlign fail on {device}: {problem}"
            return [Finding("operators", "error", text, fix if "cuda" in device else REBUILD)]
    if facts["ran"]:
        text += f"; NMS and RoIAlign run on {', '.join(facts['ran'])}"
    if machine.driver and not compiled:
        return [Finding("operators", "warning", f"{text}, though there is a GPU", REBUILD)]
    return [Finding("operators", "ok", text)]


def nccl(machine: Machine) -> list[Finding]:
    """NCCL is there if a job takes several GPUs."""
    found = machine.probe.get("nccl")
    if found:
        return [Finding("nccl", "ok", f"NCCL {found}")]
    if machine.gpus > 1:
        fix = "install the CUDA build of torch, which brings it"
        return [Finding("nccl", "error", "no NCCL, which trainings on several GPUs need", fix)]
    return [Finding("nccl", "ok", "no NCCL; none is needed here")]


def shared_memory(machine: Machine) -> list[Finding]:
    """/dev/shm is large enough for the images that loaders pass to a training."""
    workers = machine.study.scale["hardware"]["workers"] if machine.study else int(machine.cuda)
    size = machine.shared_memory
    if not workers:
        return [Finding("shm", "ok", "/dev/shm is not needed: no loader workers")]
    if size is None:
        return [Finding("shm", "error", "there is no /dev/shm, which data loaders use", SHM_FIX)]
    text = f"/dev/shm has {gigabytes(size)}"
    if size >= SHARED_MEMORY:
        return [Finding("shm", "ok", text)]
    text += f"; data loaders with {workers} workers need {gigabytes(SHARED_MEMORY)} or more"
    return [Finding("shm", "warning", text, SHM_FIX)]


SHM_FIX = "in a container: `docker run --shm-size 8g` or an emptyDir with `medium: Memory`"


# The study ------------------------------------------------------------------------------------


def results(machine: Machine) -> list[Finding]:
    """The results folder can be written, and `flock` works there."""
    folder = machine.study.paths.root if machine.study else Path(tempfile.gettempdir())
    path = folder / f".doctor-{os.getpid()}-{platform.node()}"
    existed = folder.exists()
    try:
        with locked(path, "the check of locks"):
            try:
                with locked(path, "the check of locks"):
                    pass
            except UserError:  # the second lock is refused, as it should be
                return [Finding("results", "ok", f"{folder} is writable; flock works there")]
        text = f"{folder}: flock grants one lock twice, so two jobs could write one folder"
        return [Finding("results", "error", text, FLOCK_FIX)]
    except UserError as error:
        return [Finding("results", "error", error.what, error.fix)]
    except OSError as error:
        return [Finding("results", "error", f"{folder}: flock fails: {error}", FLOCK_FIX)]
    finally:
        path.unlink(missing_ok=True)
        if not existed and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


FLOCK_FIX = "use a file system with flock (NFS 4, Lustre with -o flock): `pcb … --results FOLDER`"


def disk(machine: Machine) -> list[Finding]:
    """There is room for what is still to be written."""
    assert machine.study
    from pcb.planning.costs import Costs, total
    from pcb.planning.timings import Timings

    folder = machine.study.paths.root
    costs = Costs(machine.study, Timings.of(machine.study))
    remaining = costs.remaining(costs.items)
    data = 0.0 if (folder / "data").exists() else costs.data_bytes()
    needed = total([costs.bytes(remaining), data, costs.work_bytes() if remaining else 0.0])
    free = machine.free(folder)
    text = f"{gigabytes(free)} free for {folder}"
    if needed is None:
        return [Finding("disk", "ok", f"{text}; `pcb measure` finds out what the runs take")]
    text += f"; what is still to be run takes {gigabytes(needed)}"
    if needed < free:
        return [Finding("disk", "ok", text)]
    fix = "free some, use another folder (`pcb … --results FOLDER`), or run fewer tables"
    return [Finding("disk", "warning", text, fix)]


def data(machine: Machine) -> list[Finding]:
    """Annotations and images of the scale are there."""
    assert machine.study
    from pcb.data.download import V05_BY_HAND, downloads, expected_files, missing_file_fix

    scale, entries = machine.study.scale, downloads()
    public = {path for paths in expected_files(scale).values() for path in paths}
    findings = []
    for name, entry in scale["datasets"].items():
        images = Path(entry["images"])
        paths = [Path(entry[split]) for split in ("train", "val", "dev") if split in entry]
        paths += sorted(path for path in public if path.parent == images) or [images]
        missing = [path for path in paths if not path.exists()]
        if not missing:
            findings.append(Finding("data", "ok", f"{name}: annotations and images exist"))
        elif machine.study.contents.is_generated(name):
            text = f"{name}: not generated yet; the first run does it"
            findings.append(Finding("data", "ok", text))
        else:
            text = f"{name}: missing: {', '.join(map(str, missing))}"
            names = " ".join(path.name for path in missing if path in public)
            fix = f"run `pcb download {names}`" if names else missing_file_fix(missing[0])
            withdrawn = any("withdrawn" in entries.get(path.name, {}) for path in missing)
            fix += f". {V05_BY_HAND}" if withdrawn else ", or correct the paths in the YAML"
            findings.append(Finding("data", "error", text, fix))
    return findings


def weights(machine: Machine) -> list[Finding]:
    """Starting weights of the scale's backbones are there."""
    assert machine.study
    from pcb.data.download import missing_file_fix

    findings = []
    for name, backbone in machine.study.scale["backbones"].items():
        source = backbone["weights"]
        if source in ("pretrain", "random") or located(source).exists():
            findings.append(Finding("weights", "ok", f"{name}: {source}"))
        else:
            fix = missing_file_fix(Path(source))
            findings.append(Finding("weights", "error", f"{name}: no file {source}", fix))
    return findings


ENVIRONMENT: dict[str, Callable[[Machine], list[Finding]]] = {
    "python": python,
    "compiler": compiler,
    "torch": torch,
    "driver": driver,
    "gpus": gpus,
    "operators": operators,
    "nccl": nccl,
    "shm": shared_memory,
}
STUDY: dict[str, Callable[[Machine], list[Finding]]] = {
    "results": results,
    "disk": disk,
    "data": data,
    "weights": weights,
}


def major(version: str) -> int:
    """The first number of a version."""
    return int(version.split(".")[0])


def gigabytes(count: float) -> str:
    """Bytes as text."""
    return size(count)
