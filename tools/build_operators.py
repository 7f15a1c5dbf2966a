"""Build mmcv's operators and install them: `python tools/build_operators.py VERSION FOLDER KEY`.

tools/setup.sh calls it with the environment's own Python. Environment variables select the build
(FORCE_CUDA, TORCH_CUDA_ARCH_LIST, CUDA_HOME, CFLAGS), as in mmcv's own setup.py.

- Sources are unpacked into FOLDER and compiled there, so that an interrupted build resumes with the
  files that are missing: pip unpacks them anew into a temporary folder each time.
- Most of a file's time goes into torch's headers (of `roi_align.cpp` 15 of 16 s), so the files are
  compiled in groups: 4 min of one core instead of 20. If the compiler finds an error in a group, as
  an unknown compiler may, each file is compiled by itself. A compiler that was killed, as for lack
  of memory, found none: the same command resumes.
- The wheel is kept under ~/.cache/pcb for other checkouts, by KEY: the versions of mmcv and torch,
  CUDA and its architectures. `--fresh` replaces it, and so does a wheel that does not install.
  PIP_NO_CACHE_DIR=1 keeps none.
- The output of all is kept beside FOLDER, in mmcv-build.log.
- ccache is used where it is installed.

Only Python's own library is used.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import sysconfig
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import moving_line

SOURCES = Path("mmcv/ops/csrc/pytorch")
ALONE = {"pybind.cpp", "info.cpp"}  # long, or about how it is compiled
# Files for the CPU that define the same names, tried on mmcv 2.3.6: each begins a group of its own.
APART = ("bezier_align.cpp", "roi_align.cpp", "roi_align_rotated.cpp", "rotated_feature_align.cpp")
LAST = "psamask.cpp"  # defines macros `min` and `max`
GROUPED = "grouped"  # names of the files that say how far FOLDER is
SECONDS = 20.0  # of a file, before one was timed
# In a compiler's output: an error at a line of a file, and what is no fault of the source.
FOUND_ERROR = re.compile(r"[:(]\d+\)?: (fatal |internal compiler )?error\b", re.IGNORECASE)
NO_FAULT = re.compile(
    r"\bkilled\b|terminated by signal|out of memory|cannot allocate memory|memory exhausted"
    r"|no space left on device",
    re.IGNORECASE,
)


def main(arguments: Sequence[str]) -> int:
    """Build or fetch the wheel and install it; return the exit status."""
    fresh = "--fresh" in arguments
    version, folder, key = (a for a in arguments if a != "--fresh")
    build = Build(version, Path(folder).resolve(), key)
    if not fresh and (kept := build.kept()):
        print(f"mmcv's operators were built before: {kept}", flush=True)
        status = build.install(kept)
        if status == 0 or stopped(status):
            return status
        print("They are built anew instead", flush=True)
        kept.unlink(missing_ok=True)
    wheel = build.wheel()
    if not isinstance(wheel, Path):
        return wheel
    return build.install(wheel)


def stopped(status: int) -> bool:
    """Whether an exit status is that of a command which a signal ended."""
    return status < 0 or status > 128


class Build:
    """A build in a folder.

    Args:
        version: Version of mmcv.
        folder: Where it is unpacked and compiled.
        key: What the compiled files depend on.
    """

    def __init__(self, version: str, folder: Path, key: str) -> None:
        self.version, self.folder = version, folder
        self.key = f"{key} {sysconfig.get_platform()} python={sys.version_info[:2]}"
        self.source = folder / "source"
        self.log = folder.with_name("mmcv-build.log")  # stays when the folder is removed
        self.jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)

    @property
    def cache(self) -> Path | None:
        """Where the wheel is kept; None where the user wants no cache."""
        if os.environ.get("PIP_NO_CACHE_DIR", "0").lower() not in ("", "0", "false", "off", "no"):
            return None
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        digest = hashlib.sha256(self.key.encode()).hexdigest()[:12]
        return Path(home).expanduser() / "pcb" / f"mmcv-{self.version}-{digest}"

    def kept(self) -> Path | None:
        """The wheel of an earlier build with the same key."""
        return next(self.cache.glob("*.whl"), None) if self.cache and self.cache.exists() else None

    def install(self, wheel: Path) -> int:
        """Install a wheel and remove the folder of the build; return pip's exit status."""
        options = ("install", "--no-deps", "--force-reinstall")
        status = self.pip("Installing mmcv", *options, str(wheel))
        if status == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        return status

    def pip(self, title: str, *arguments: str) -> int:
        """Run pip with one moving line; return its exit status."""
        command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
        return moving_line.run(title, self.python(command), self.log)

    def python(self, command: list[str]) -> list[str]:
        """The command with the interpreter that set-up named."""
        return [os.environ.get("SETUP_PYTHON") or command[0], *command[1:]]

    def wheel(self) -> Path | int:
        """Build the wheel; return its path, or the exit status of what failed."""
        if status := self.unpack():
            return status
        begin = moving_line.size(self.log)
        status = self.compile()
        if status and not stopped(status) and self.groups_are_at_fault(begin):
            print("Compiling each file by itself instead", flush=True)
            shutil.rmtree(self.folder)
            if status := self.unpack(grouped=False):
                return status
            status = self.compile()
        if status:
            return status
        (wheel,) = (self.folder / "dist").glob("*.whl")
        if self.cache:
            self.cache.mkdir(parents=True, exist_ok=True)
            partial = self.cache / f".{wheel.name}.{os.getpid()}"
            shutil.copy(wheel, partial)
            wheel = partial.rename(self.cache / wheel.name)
        return wheel

    def unpack(self, grouped: bool = True) -> int:
        """Put mmcv's sources into the folder, unless they are there; return an exit status."""
        about = self.folder / "key"
        if about.exists() and about.read_text(encoding="utf-8") == self.key:
            return 0
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        options = ["--no-deps", "--no-build-isolation", "--no-binary", "onedl-mmcv"]
        package = f"onedl-mmcv=={self.version}"
        download = ["download", *options, "--dest", str(self.folder), package]
        if status := self.pip("Fetching mmcv's sources", *download):
            return status
        (archive,) = self.folder.glob("*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(self.folder, filter="data")
        next(path.parent for path in self.folder.glob("*/setup.py")).rename(self.source)
        if grouped:
            group(self.source / SOURCES, min(8, max(2, self.jobs)))
            (self.folder / GROUPED).touch()
        about.write_text(self.key, encoding="utf-8")
        return 0

    def groups_are_at_fault(self, begin: int) -> bool:
        """Whether files of groups did not compile, by the log from a byte on."""
        if not (self.folder / GROUPED).exists():
            return False
        output = "\n".join(moving_line.text(self.log, begin))
        if NO_FAULT.search(output):
            print(
                "A compiler was killed, or memory or disk ran out. `MAX_JOBS=1 make setup` "
                "compiles one file at a time, which takes the least memory",
                flush=True,
            )
            return False
        return FOUND_ERROR.search(output) is not None

    def compile(self) -> int:
        """Compile what is missing and make the wheel; return an exit status."""
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
        command += ["--disable-pip-version-check", "--wheel-dir", str(self.folder / "dist")]
        environment = {**os.environ, "MMCV_WITH_OPS": "1", "MAX_JOBS": str(self.jobs)}
        if ccache := shutil.which("ccache"):
            environment["PATH"] = (
                f"{masquerade(ccache, self.folder)}{os.pathsep}{os.environ['PATH']}"
            )
        progress = Progress(self.source, self.jobs)
        if progress.begun:
            print(f"Resuming: {progress.begun} files were compiled before", flush=True)
        command = self.python([*command, str(self.source)])
        return moving_line.run(
            "Compiling mmcv's operators", command, self.log, progress.state, environment
        )


class Progress:
    """How far a compilation is, from the object files and ninja's plan in a build folder.

    The time left is that of the files that are missing, at the pace of those compiled since the
    start.

    Args:
        source: The folder with setup.py.
        jobs: Number of files that are compiled at once.
    """

    def __init__(self, source: Path, jobs: int) -> None:
        self.source, self.jobs = source, jobs
        self.begun = self.done()
        self.started = time.monotonic()

    def done(self) -> int:
        """Number of compiled files."""
        return sum(1 for _ in self.source.glob("build/temp*/**/*.o"))

    def planned(self) -> int:
        """Number of files, from ninja's plan; before it exists from the sources themselves."""
        for plan in self.source.glob("build/temp*/build.ninja"):
            lines = plan.read_text(encoding="utf-8").splitlines()
            return sum(bool(re.match(r"build .*: (cuda_)?compile ", line)) for line in lines)
        found = self.source.glob(f"{SOURCES}/*.cpp"), self.source.glob(f"{SOURCES}/cpu/*.cpp")
        return sum(1 for files in found for _ in files)

    def state(self) -> str:
        """`12 of 78 files, 9 min left`."""
        done, planned = self.done(), self.planned()
        new, elapsed = done - self.begun, time.monotonic() - self.started
        pace = elapsed / new if new else max(SECONDS, elapsed) / self.jobs
        left = moving_line.duration(pace * max(0, planned - done))
        about = "" if new else "about "  # no file has been timed yet
        return f"{done} of {planned} files, {about}{left} left"


def group(sources: Path, count: int) -> None:
    """Let files be compiled together: `group0.cpp` includes `a.inl`, `b.inl`, … in their place.

    Args:
        sources: mmcv/ops/csrc/pytorch.
        count: Number of groups of the files that dispatch to devices.
    """
    names = sorted(path.name for path in sources.glob("*.cpp") if path.name not in ALONE)
    write_groups(sources, [names[k::count] for k in range(count)])
    cpu = sources / "cpu"
    names = sorted(path.name for path in cpu.glob("*.cpp"))
    others = [name for name in names if name not in (*APART, LAST)]
    groups = [
        [*(name for name in names if name == first), *others[k :: len(APART)]]
        for k, first in enumerate(APART)
    ]
    groups[-1] += [name for name in names if name == LAST]
    write_groups(cpu, groups)


def write_groups(folder: Path, groups: Sequence[Sequence[str]]) -> None:
    """Rename the files and write one that includes them for each group."""
    for k, names in enumerate(groups):
        included = []
        for name in names:
            path = folder / name
            included.append(path.rename(path.with_suffix(".inl")).name)
        if included:
            lines = [f'#include "{name}"\n' for name in included]
            (folder / f"group{k}.cpp").write_text("".join(lines), encoding="utf-8")


def masquerade(ccache: str, folder: Path) -> Path:
    """A folder in which the compilers' names lead to ccache."""
    links = folder / "ccache"
    links.mkdir(exist_ok=True)
    for name in ("gcc", "g++", "cc", "c++"):
        link = links / name
        link.unlink(missing_ok=True)
        link.symlink_to(ccache)
    return links


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
