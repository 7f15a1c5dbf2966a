"""Set-up, run as a script with stand-ins for pip, torch, mmcv, nvidia-smi and nvcc.

The scripts, their Python and `pcb doctor` are real. The stand-in for pip writes down how it is
called, hands out sources of three files, and "compiles" what is not compiled yet, one object file
for each; the wheel names the CUDA that it was built for.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
import sys
import time
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
SOURCES = ["nms", "pybind", "roi_align", "roi_pool", "cpu/nms", "cpu/roi_align", "cpu/psamask"]
OPERATORS = """
import torch
get_compiling_cuda_version = lambda: {built!r}
nms = lambda boxes, scores, threshold: (boxes, torch.Values([0, 2]))
roi_align = lambda features, rois, size: torch.Values([1.0] * 4)
"""
PIP = """
import io, json, os, pathlib, signal, sys, tarfile, time
root = pathlib.Path(os.environ["STAND_INS"])
arguments = sys.argv[1:]
keys = ("FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CFLAGS", "MAX_JOBS", "PATH")
call = {"arguments": arguments, "env": {k: os.environ.get(k) for k in keys}}
with open(root / "pip.log", "a") as log:
    log.write(json.dumps(call) + "\\n")
def distribution(name, version):
    folder = root / "site" / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(f"Name: {name}\\nVersion: {version}\\n")
def after(option):
    return pathlib.Path(arguments[arguments.index(option) + 1])
print("Collecting", *arguments)
if (root / "no-network").exists():
    sys.exit("ERROR: Could not find a version that satisfies the requirement")
while (root / "hold").exists():
    time.sleep(0.05)
if arguments[0] == "download":
    with tarfile.open(after("--dest") / "onedl_mmcv-2.3.6.tar.gz", "w:gz") as archive:
        for name in ("setup.py", *(f"mmcv/ops/csrc/pytorch/{n}.cpp" for n in SOURCES)):
            member = tarfile.TarInfo(f"onedl_mmcv-2.3.6/{name}")
            archive.addfile(member, io.BytesIO(b""))
if arguments[0] == "wheel":
    source = pathlib.Path(arguments[-1])
    objects = source / "build/temp.linux"
    objects.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("mmcv/**/*.cpp")):
        if path.stem.startswith("group") and (root / "no-groups").exists():
            sys.exit("roi_align.inl:3:6: error: redefinition of 'add'")
        if not (objects / f"{path.stem}.o").exists():
            (objects / f"{path.stem}.o").touch()
            with open(root / "compiled", "a") as log:
                print(path.name, file=log)
            if (root / "interrupt").exists():
                (root / "interrupt").unlink()
                os.kill(os.getppid(), signal.SIGINT)
                sys.exit(130)
            if (root / "no-memory").exists():
                (root / "no-memory").unlink()
                sys.exit("group0.cpp:1:1: fatal error: Killed signal terminated program cc1plus")
            if (root / "kill").exists():
                (root / "kill").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
    built = os.environ["TORCH_CUDA"] if os.environ["FORCE_CUDA"] == "1" else "not available"
    after("--wheel-dir").mkdir(exist_ok=True)
    (after("--wheel-dir") / "onedl_mmcv-2.3.6-cp311-linux.whl").write_text(built)
if arguments[0] == "install" and (wheel := [a for a in arguments if a.endswith(".whl")]):
    if pathlib.Path(wheel[0]).read_text(encoding="utf-8") == "damaged":
        sys.exit("ERROR: Wheel is invalid")
    folder = root / "site/mmcv"
    distribution("onedl_mmcv", "2.3.6")
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").touch()
    built = pathlib.Path(wheel[0]).read_text(encoding="utf-8")
    (folder / "ops.py").write_text(OPERATORS.format(built=built))
for name, _, version in (a.partition("==") for a in arguments if "==" in a):
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
        (root / "pip.py").write_text(f"OPERATORS = {OPERATORS!r}\nSOURCES = {SOURCES}\n{PIP}")
        self.toolkit("cuda_toolkit-13.0.3")
        for name in ("sh", "dirname", "sed", "grep", "sort", "paste", "cat", "rm", "date", "cksum"):
            self.bin.joinpath(name).symlink_to(shutil.which(name))
        for name in ("g++", "getconf", "ln", "env", "make", "mkdir"):
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
        process = self.start(**variables)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, **variables: str) -> subprocess.Popen:
        """Start tools/setup.sh."""
        environment = {
            "PATH": str(self.bin),
            "HOME": str(self.root),
            "PYTHON": sys.executable,
            "ENV": str(self.env),
            "STAND_INS": str(self.root),
            **self.variables,
            **variables,
        }
        return subprocess.Popen(
            ["sh", str(ROOT / "tools/setup.sh")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def forget_mmcv(self) -> None:
        """Leave another version of mmcv, before the one that the tests themselves may run with."""
        for path in self.site.glob("*mmcv*"):
            shutil.rmtree(path)
        self.env.joinpath(".mmcv").unlink(missing_ok=True)
        self.site.joinpath("onedl_mmcv-2.0.0.dist-info").mkdir()
        text = "Name: onedl-mmcv\nVersion: 2.0.0\n"
        self.site.joinpath("onedl_mmcv-2.0.0.dist-info/METADATA").write_text(text)

    def builds(self) -> list[dict]:
        """The builds of mmcv so far."""
        log = self.root / "pip.log"
        calls = (
            [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            if log.exists()
            else []
        )
        return [c for c in calls if c["arguments"][0] == "wheel"]

    def compiled(self) -> list[str]:
        """The files that were compiled so far, in order."""
        return (self.root / "compiled").read_text(encoding="utf-8").split()

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


def wait_for(condition) -> None:
    """Wait until a condition holds, at most half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_a_gpu_the_operators_are_for_the_cpu_and_stay(machine):
    ok(machine.set_up())
    (build,) = machine.builds()
    assert build["env"]["FORCE_CUDA"] == "0" and {"-g0", "-O2"} <= set(
        build["env"]["CFLAGS"].split()
    )
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


def test_the_wheel_is_kept_for_another_environment_and_not_for_another_cuda(machine):
    home = str(machine.nvcc("13.0"))
    ok(machine.set_up())
    machine.forget_mmcv()
    assert "were built before" in ok(machine.set_up()) and len(machine.builds()) == 1
    ok(machine.set_up(FORCE_CUDA="1", CUDA_HOME=home))
    assert machine.compiled_for() == "13.0" and len(machine.builds()) == 2


def test_no_wheel_is_kept_where_pip_keeps_none(machine):
    ok(machine.set_up(PIP_NO_CACHE_DIR="1"))
    assert not (machine.root / ".cache").exists() and machine.compiled_for()


def test_an_interrupted_build_resumes_with_the_files_that_are_missing(machine):
    machine.forget_mmcv()
    (machine.root / "interrupt").touch()
    stopped = machine.set_up()
    assert stopped.returncode == 2 and "stopped; the same command resumes" in stopped.stdout
    assert len(machine.compiled()) == 1
    printed = ok(machine.set_up())
    assert "Resuming: 1 files were compiled before" in printed
    names = machine.compiled()
    assert len(names) == len(set(names)) and "pybind.cpp" in names
    assert not (machine.env / ".mmcv-build").exists()  # its 200 MB are not needed any more


def test_a_second_set_up_of_an_environment_ends_before_it_touches_it(machine):
    hold, calls = machine.root / "hold", machine.root / "pip.log"
    hold.touch()
    first = machine.start()
    wait_for(calls.exists)
    second = machine.set_up()
    assert second.returncode == 2 and f"runs here: process {first.pid}" in second.stderr
    assert len(calls.read_text(encoding="utf-8").splitlines()) == 1
    hold.unlink()
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, out[-2000:] + err[-2000:]
    ok(machine.set_up())


def test_the_lock_of_a_set_up_is_beside_the_environment(machine):
    """A broken .venv is removed, and a lock inside would go with it."""
    with machine.env.with_name("env.setup-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert machine.set_up(ENV=f"{machine.env}/").returncode == 2
    ok(machine.set_up(ENV=f"{machine.env}/"))


def test_other_options_of_the_build_do_not_resume_it(machine):
    (machine.root / "interrupt").touch()
    machine.set_up()
    machine.variables["TORCH"] = "2.14.0+cu130"
    assert "Resuming" not in ok(machine.set_up())


def test_files_are_compiled_alone_where_groups_do_not_compile(machine):
    (machine.root / "no-groups").touch()
    printed = ok(machine.set_up())
    assert "redefinition of 'add'" in printed and "each file by itself" in printed
    assert {"nms.cpp", "roi_align.cpp", "psamask.cpp"} <= set(machine.compiled())
    (log,) = re.findall("FAILED .*; all of its output: (.*)", printed)
    assert "redefinition of 'add'" in Path(log).read_text(encoding="utf-8")


@pytest.mark.parametrize("how", ["no-memory", "kill"])
def test_a_killed_compilation_keeps_what_is_compiled(machine, how):
    (machine.root / how).touch()
    killed = machine.set_up()
    assert killed.returncode == 2 and "each file by itself" not in killed.stdout
    assert ("MAX_JOBS=1 make setup" in killed.stdout) == (how == "no-memory")
    printed = ok(machine.set_up(MAX_JOBS="1"))
    assert "Resuming: 1 files were compiled before" in printed
    names = machine.compiled()
    assert len(names) == len(set(names)) and machine.builds()[-1]["env"]["MAX_JOBS"] == "1"


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("nms.inl:12:5: error: redefinition of 'add'", True),
        ("      nms.inl:12:5: fatal error: a.h: No such file or directory", True),
        ("nms_cuda.cu(12): error: identifier is undefined", True),
        ("nms.inl:12:5: internal compiler error: Segmentation fault", True),
        ("nms.inl:12:5: internal compiler error: Killed (program cc1plus)", False),
        ("nms.inl:12:5: fatal error: error writing to /tmp/a.s: No space left on device", False),
        ("error: subprocess-exited-with-error", False),
        ("RuntimeError: Error compiling objects for extension", False),
    ],
)
def test_groups_are_given_up_for_an_error_in_their_source_only(
    tmp_path, monkeypatch, output, found
):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import build_operators

    build = build_operators.Build("2.3.6", tmp_path / "build", "key")
    build.folder.mkdir()
    build.log.write_text(f"{output}\n")
    assert not build.groups_are_at_fault(0)  # its files are compiled alone already
    (build.folder / build_operators.GROUPED).touch()
    assert build.groups_are_at_fault(0) == found


def test_a_damaged_wheel_is_built_again(machine):
    ok(machine.set_up())
    (wheel,) = (machine.root / ".cache/pcb").glob("*/*.whl")
    whole = wheel.read_text(encoding="utf-8")
    wheel.write_text("damaged")
    machine.forget_mmcv()
    assert "They are built anew instead" in ok(machine.set_up())
    assert len(machine.builds()) == 2 and wheel.read_text(encoding="utf-8") == whole


def test_sigterm_ends_what_a_moving_line_runs(tmp_path):
    """Also the children of the command, such as pip's compilers."""
    pid = tmp_path / "pid"
    command = ["sh", "-c", f"sh -c 'echo $$ >{pid}; exec sleep 60'; true"]
    script = str(ROOT / "tools/moving_line.py")
    process = subprocess.Popen(
        [sys.executable, script, "Sleeping", str(tmp_path / "log"), *command],
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: pid.exists() and pid.read_text(encoding="utf-8").strip())
    status = Path(f"/proc/{pid.read_text(encoding='utf-8').strip()}/status")
    process.terminate()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143 and "stopped; the same command resumes" in out
    wait_for(lambda: not status.exists() or "State:\tZ" in status.read_text(encoding="utf-8"))


def test_clean_env_removes_what_set_up_made_and_nothing_else(machine):
    ok(machine.set_up())
    clean = ["make", "clean-env", f"ENV={machine.site}"]
    assert subprocess.run(clean, cwd=ROOT, capture_output=True, check=False).returncode == 2
    assert machine.site.exists()
    clean = ["make", "clean-env", f"ENV={machine.env}"]
    subprocess.run(clean, cwd=ROOT, capture_output=True, check=True)
    assert not machine.env.exists() and not list(machine.root.glob("*.setup-lock"))


def test_without_a_network_set_up_says_so(machine):
    (machine.root / "no-network").touch()
    done = machine.set_up()
    assert done.returncode == 2 and "Could not find a version" in done.stdout
    assert "pip could not install torch==" in done.stderr and "fix: " in done.stderr


def test_ccache_is_used_where_it_is_installed(machine):
    machine.script(machine.bin / "ccache", "exit 0")
    (machine.root / "interrupt").touch()  # so that the folder stays
    machine.set_up()
    first = Path(machine.builds()[0]["env"]["PATH"].split(":")[0])
    assert (first / "g++").resolve() == (machine.bin / "ccache").resolve()


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
    assert len(machine.builds()) == 2


def test_set_up_ends_in_an_error_if_the_operators_are_not_for_cuda(machine):
    """The result is checked, not the request: this stand-in's build ignores FORCE_CUDA."""
    pip = machine.root / "pip.py"
    text = pip.read_text(encoding="utf-8")
    pip.write_text(text.replace('os.environ["FORCE_CUDA"] == "1"', "False"))
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


@pytest.mark.parametrize(
    ("target", "facts"),
    [("demo", ["43 trainings", "disk", "Ctrl-C"]), ("test", ["smoke run", "Not timed", "/tmp"])],
)
def test_a_long_target_says_first_what_it_does_and_needs(machine, target, facts):
    (machine.env / ".ready").touch()
    machine.script(machine.env / "bin/python", "echo STARTED")
    make = ["make", "--no-print-directory", target, f"ENV={machine.env}"]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    before, _, _ = done.stdout.partition("STARTED")
    assert all(fact in before for fact in facts) and before.startswith(f"{target}: ")


def test_the_line_of_a_build_has_files_done_and_time_left(tmp_path, monkeypatch):
    """The pace is that of files compiled since the start, not of those that were there."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import build_operators

    objects = tmp_path / "build/temp.linux/mmcv"
    objects.mkdir(parents=True)
    plan = [f"build {n}.o: compile {n}.cpp" for n in range(8)] + ["build x.o: cuda_compile x.cu"]
    (objects.parent / "build.ninja").write_text("\n".join(["rule compile", *plan]))
    for n in range(2):
        (objects / f"{n}.o").touch()
    progress = build_operators.Progress(tmp_path, jobs=2)
    assert progress.begun == 2 and progress.state() == "2 of 9 files, about 70 s left"
    for n in (2, 3):
        (objects / f"{n}.o").touch()
    progress.started -= 120
    assert progress.state() == "4 of 9 files, 5 min left"


def test_files_that_define_the_same_names_are_compiled_apart(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import build_operators

    names = [*build_operators.APART, build_operators.LAST, "nms.cpp", "voxelization.cpp"]
    (tmp_path / "cpu").mkdir()
    for name in names:
        (tmp_path / "cpu" / name).touch()
    build_operators.group(tmp_path, 2)
    groups = [path.read_text() for path in sorted(tmp_path.glob("cpu/group*.cpp"))]
    included = [re.findall(r'"(\w+)\.inl"', text) for text in groups]
    assert sorted(f"{name}.cpp" for group in included for name in group) == sorted(names)
    assert all(len(set(g) & {Path(n).stem for n in build_operators.APART}) == 1 for g in included)
    assert included[-1][-1] == Path(build_operators.LAST).stem


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
