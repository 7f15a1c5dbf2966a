"""Set-up, run as a script with stand-ins for pip, torch, mmcv, nvidia-smi and nvcc.

The script, its Python and `pcb doctor` are real. The stand-in for pip writes down how it is called
and "compiles" an mmcv that names the CUDA it was built for; like the real one it takes a wheel from
its cache unless an option forbids it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pcb.files import ROOT

TORCH = """
import os
__version__ = os.environ["TORCH"]
class version:
    cuda = os.environ["TORCH_CUDA"] or None
class _C:
    _cuda_getArchFlags = staticmethod(lambda: "sm_75 sm_80 sm_90" if version.cuda else None)
class cuda:
    is_available = staticmethod(lambda: False)
class Values(list):
    flatten = lambda self: self
    tolist = lambda self: list(self)
tensor = ones = lambda *arguments, device=None: Values()
"""
OPERATORS = """
import torch
get_compiling_cuda_version = lambda: {built!r}
nms = lambda boxes, scores, threshold: (boxes, torch.Values([0, 2]))
roi_align = lambda features, rois, size: torch.Values([1.0] * 4)
"""
PIP = """
import json, os, pathlib, sys
root = pathlib.Path(os.environ["STAND_INS"])
arguments = sys.argv[1:]
keys = ("FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CFLAGS")
call = {"arguments": arguments, "env": {k: os.environ.get(k) for k in keys}}
with open(root / "pip.log", "a") as log:
    log.write(json.dumps(call) + "\\n")
def distribution(name, version):
    folder = root / "site" / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(f"Name: {name}\\nVersion: {version}\\n")
for name, _, version in (a.partition("==") for a in arguments if "==" in a):
    if name == "onedl-mmcv":
        cached, folder = root / "cached", root / "site/mmcv"
        if (folder / "ops.py").exists() and "--force-reinstall" not in arguments:
            print("Requirement already satisfied")
            continue
        force = os.environ["FORCE_CUDA"] == "1"
        built = os.environ["TORCH_CUDA"] if force else "not available"
        if cached.exists() and "--no-cache-dir" not in arguments:
            built = cached.read_text(encoding="utf-8")
        distribution("onedl_mmcv", version)
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / "ops.py").write_text(OPERATORS.format(built=built))
    if name.startswith("cuda-toolkit["):
        home = root / "site/nvidia/cu13"
        for part in ("bin", "include", "lib"):
            (home / part).mkdir(parents=True, exist_ok=True)
        for header in ("cusparse", "cublas_v2", "cusolverDn"):
            (home / f"include/{header}.h").touch()
        nvcc = home / "bin/nvcc"
        nvcc.write_text("#!/bin/sh\\necho 'Cuda compilation tools, release 13.0, V13.0.88'\\n")
        nvcc.chmod(0o755)
"""


class Machine:
    """A machine of stand-ins in `root`, with an environment that has torch."""

    def __init__(self, root: Path):
        self.root = root
        self.bin, self.site, self.env = root / "bin", root / "site", root / "env"
        self.variables = {"TORCH": "2.13.0+cu130", "TORCH_CUDA": "13.0"}
        for folder in (self.bin, self.site / "torch", self.site / "mmdet", self.env / "bin"):
            folder.mkdir(parents=True)
        (self.site / "torch/__init__.py").write_text(TORCH)
        (self.site / "mmdet/__init__.py").touch()
        (root / "pip.py").write_text(f"OPERATORS = {OPERATORS!r}\n{PIP}")
        self.toolkit("cuda_toolkit-13.0.3")
        for name in ("sh", "dirname", "sed", "grep", "sort", "paste", "cat", "rm", "date", "cksum"):
            self.bin.joinpath(name).symlink_to(shutil.which(name))
        for name in ("g++", "getconf", "ln", "env", "make"):
            self.bin.joinpath(name).symlink_to(shutil.which(name))
        self.script(
            self.env / "bin/python",
            f'PYTHONPATH="{self.site}:$PYTHONPATH"; export PYTHONPATH\n'
            'if [ "$1 $2" = "-m pip" ]; then\n'
            f'    shift 2; exec {sys.executable} "{root}/pip.py" "$@"\n'
            "fi\n"
            f'exec {sys.executable} "$@"',
        )

    def script(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def toolkit(self, name: str) -> None:
        """Install the packages of torch's CUDA libraries."""
        folder = self.site / f"{name}.dist-info"
        folder.mkdir()
        package, version = name.split("-")
        folder.joinpath("METADATA").write_text(f"Name: {package}\nVersion: {version}\n")

    def gpu(self, driver="580.65.06", capability="9.0") -> None:
        """Put in a GPU."""
        listing = f"NVIDIA H100, {driver}, {capability}, 81559"
        self.script(
            self.bin / "nvidia-smi",
            'case "$1" in\n'
            '    -L) echo "GPU 0: NVIDIA H100 (UUID: GPU-1)" ;;\n'
            f'    --query-gpu=compute_cap) echo "{capability}" ;;\n'
            f'    *) echo "{listing}" ;;\n'
            "esac",
        )

    def nvcc(self, release: str, complete=True) -> Path:
        """Install a CUDA toolkit; return its folder."""
        home = self.root / f"cuda-{release}"
        self.script(home / "bin/nvcc", f"echo 'Cuda compilation tools, release {release}, V1'")
        home.joinpath("include").mkdir()
        for header in ("cusparse", "cublas_v2", "cusolverDn") if complete else ():
            home.joinpath(f"include/{header}.h").touch()
        return home

    def set_up(self, **variables: str) -> subprocess.CompletedProcess:
        """Run tools/setup.sh."""
        environment = {
            "PATH": str(self.bin),
            "HOME": str(self.root),
            "PYTHON": sys.executable,
            "ENV": str(self.env),
            "STAND_INS": str(self.root),
            **self.variables,
            **variables,
        }
        return subprocess.run(
            ["sh", str(ROOT / "tools/setup.sh")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def builds(self) -> list[dict]:
        """The builds of mmcv so far."""
        log = self.root / "pip.log"
        calls = (
            [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            if log.exists()
            else []
        )
        return [c for c in calls if any(a.startswith("onedl-mmcv==") for a in c["arguments"])]

    def compiled_for(self) -> str:
        """The CUDA of the installed operators."""
        text = self.site.joinpath("mmcv/ops.py").read_text(encoding="utf-8")
        return re.findall(r"lambda: '(.*)'", text)[0]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def ok(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_without_a_gpu_the_operators_are_for_the_cpu_and_stay(machine):
    ok(machine.set_up())
    (build,) = machine.builds()
    assert build["env"]["FORCE_CUDA"] == "0" and "-g0" in build["env"]["CFLAGS"]
    ok(machine.set_up())
    assert len(machine.builds()) == 1
    assert (machine.env / ".ready").exists()


def test_force_cuda_is_honoured_without_a_gpu(machine):
    """As in the build of a container: for all GPUs that torch supports, if none are named."""
    home = machine.nvcc("13.0")
    ok(machine.set_up(FORCE_CUDA="1", CUDA_HOME=str(home)))
    (build,) = machine.builds()
    assert build["env"]["FORCE_CUDA"] == "1" and build["env"]["CUDA_HOME"] == str(home)
    assert build["env"]["TORCH_CUDA_ARCH_LIST"] == "7.5;8.0;9.0"
    assert machine.compiled_for() == "13.0"


def test_a_gpu_that_appears_after_a_cpu_build_leads_to_a_new_build(machine):
    ok(machine.set_up())
    machine.gpu()
    ok(machine.set_up(CUDA_HOME=str(machine.nvcc("13.0"))))
    assert {"--no-cache-dir", "--force-reinstall"} <= set(machine.builds()[1]["arguments"])
    assert machine.builds()[1]["env"]["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert machine.compiled_for() == "13.0"


def test_other_gpus_lead_to_a_new_build(machine):
    home = str(machine.nvcc("13.0"))
    for architectures in ("8.0", "8.0", "9.0"):
        ok(machine.set_up(FORCE_CUDA="1", CUDA_HOME=home, TORCH_CUDA_ARCH_LIST=architectures))
    assert [b["env"]["TORCH_CUDA_ARCH_LIST"] for b in machine.builds()] == ["8.0", "9.0"]


def test_another_cuda_of_torch_leads_to_a_new_build(machine):
    ok(machine.set_up(FORCE_CUDA="1", CUDA_HOME=str(machine.nvcc("13.0"))))
    machine.variables |= {"TORCH": "2.13.0+cu126", "TORCH_CUDA": "12.6"}
    ok(machine.set_up(FORCE_CUDA="1", CUDA_HOME=str(machine.nvcc("12.6"))))
    assert machine.compiled_for() == "12.6"


def test_pips_cached_cpu_wheel_is_not_taken_for_cuda(machine):
    (machine.root / "cached").write_text("not available")
    ok(machine.set_up(FORCE_CUDA="1", CUDA_HOME=str(machine.nvcc("13.0"))))
    assert machine.compiled_for() == "13.0"


def test_an_environment_from_before_these_stamps_is_not_built_again(machine):
    ok(machine.set_up())
    (machine.env / ".mmcv").write_text("onedl-mmcv==2.3.6 cuda=0\n")
    ok(machine.set_up())
    assert len(machine.builds()) == 1


def test_operators_that_do_not_import_are_built_anew(machine):
    ok(machine.set_up())
    (machine.site / "mmcv/ops.py").write_text("raise ImportError('undefined symbol')")
    (machine.env / ".mmcv").unlink()
    ok(machine.set_up())
    assert "--force-reinstall" in machine.builds()[1]["arguments"]


def test_set_up_ends_in_an_error_if_the_operators_are_not_for_cuda(machine):
    """The result is checked, not the request: this stand-in's build ignores FORCE_CUDA."""
    pip = machine.root / "pip.py"
    pip.write_text(
        pip.read_text(encoding="utf-8").replace('os.environ["FORCE_CUDA"] == "1"', "False")
    )
    done = machine.set_up(FORCE_CUDA="1", CUDA_HOME=str(machine.nvcc("13.0")))
    assert done.returncode == 2 and "compiled for the CPU only" in done.stdout
    assert not (machine.env / ".ready").exists() and not (machine.env / ".mmcv").exists()


def test_a_cpu_build_of_torch_on_a_gpu_machine_stops_set_up(machine):
    machine.gpu()
    machine.variables |= {"TORCH": "2.13.0+cpu", "TORCH_CUDA": ""}
    done = machine.set_up()
    assert done.returncode == 2 and "a CPU build" in done.stdout
    assert "torch===2.13.0" in done.stdout and "PCB_CPU_ONLY=1" in done.stderr
    assert not machine.builds()
    ok(machine.set_up(PCB_CPU_ONLY="1"))


def test_an_old_driver_stops_set_up_before_the_build(machine):
    machine.gpu(driver="535.104.05")
    done = machine.set_up()
    assert done.returncode == 2 and "535.104.05 is too old" in done.stdout
    assert not machine.builds()


@pytest.mark.parametrize(
    ("release", "complete"), [("12.4", True), ("13.0", False)], ids=["another major", "no headers"]
)
def test_an_unfit_toolkit_is_noticed_before_the_build_and_replaced(machine, release, complete):
    home = machine.nvcc(release, complete)
    printed = ok(machine.set_up(FORCE_CUDA="1", CUDA_HOME=str(home)))
    assert "No complete CUDA 13 toolkit" in printed and str(home) in printed
    (build,) = machine.builds()
    assert build["env"]["CUDA_HOME"] == str(machine.site / "nvidia/cu13")


def test_a_toolkit_of_another_major_stops_set_up_where_none_can_be_installed(machine):
    shutil.rmtree(machine.site / "cuda_toolkit-13.0.3.dist-info")
    machine.variables |= {"TORCH": "2.10.0+cu128", "TORCH_CUDA": "12.8"}
    done = machine.set_up(FORCE_CUDA="1", CUDA_HOME=str(machine.nvcc("13.0")))
    assert done.returncode == 2 and "module load cuda/12.8" in done.stderr
    assert not machine.builds()


def test_make_setup_runs_the_script_again_and_make_test_does_not(machine):
    """`make setup` notices a GPU; `make test` and `make demo` start at once."""

    def commands(target: str) -> str:
        make = ["make", "-n", target, f"ENV={machine.env}"]
        done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout

    (machine.env / ".ready").touch()
    assert "tools/setup.sh" in commands("setup")
    assert "tools/setup.sh" not in commands("test")


def test_the_second_lock_is_installed_where_it_is_named(machine):
    machine.variables |= {"TORCH": "2.10.0+cu128", "TORCH_CUDA": "12.8"}
    machine.gpu(driver="535.104.05", capability="7.0")
    ok(machine.set_up(LOCK="requirements-cuda12.lock", CUDA_HOME=str(machine.nvcc("12.8"))))
    calls = (machine.root / "pip.log").read_text(encoding="utf-8")
    assert '"torch==2.10.0"' in calls and machine.compiled_for() == "12.8"
    printed = ok(machine.set_up(CUDA_HOME=str(machine.root / "cuda-12.8")))  # it stays the lock
    assert "Installing" not in printed and len(machine.builds()) == 1
    done = machine.set_up(LOCK="requirements-cuda11.lock")
    assert done.returncode == 2 and "requirements-cuda12.lock" in done.stderr


# The image -------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile: (instruction, its arguments)."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [tuple(line.split(maxsplit=1)) for line in lines if line]


def test_the_steps_of_the_dockerfile_set_up_an_environment(machine):
    """Run without an engine: each COPY into an empty folder, each RUN but apt's as a command."""
    folder = machine.root / "pcb"
    folder.mkdir()
    variables = {"STAND_INS": str(machine.root), "PYTHON": sys.executable, **machine.variables}
    variables |= {"PATH": str(machine.bin), "HOME": str(machine.root)}
    commands = []
    for name, arguments in instructions():
        if name == "COPY" and arguments != ". .":
            *sources, target = arguments.split()
            for source in sources:
                into = folder / target / Path(source).name if target == "./" else folder / target
                path = ROOT / source
                copy = shutil.copytree if path.is_dir() else shutil.copy
                copy(path, into)
        elif name == "ARG":
            key, _, value = arguments.partition("=")
            variables[key] = value.strip('"')
        elif name == "RUN" and "apt-get" not in arguments:
            commands.append(arguments)
            done = subprocess.run(
                ["sh", "-c", arguments.replace("/opt/pcb", str(machine.env))],
                cwd=folder,
                env=variables,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            ok(done)
    assert commands == ["make setup ENV=/opt/pcb"]
    assert machine.compiled_for() == "13.0" and (machine.env / ".ready").exists()
    assert machine.builds()[0]["env"]["TORCH_CUDA_ARCH_LIST"] == "8.0;8.6;9.0"


def test_the_image_has_what_set_up_asks_for():
    (apt,) = [text for name, text in instructions() if name == "RUN" and "apt-get" in text]
    assert {"g++", "make", "git"} <= set(apt.split())
    (base,) = [text for name, text in instructions() if name == "FROM"]
    assert base.startswith("python:3.11-")  # an image of the Python that the lock is for
