"""The package as a user installs it, from a wheel, outside of the repository. Run by hand.

    .venv/bin/python tests/manual/standalone.py [FOLDER]    # FOLDER: another mmdet 3.x to use

Builds the wheel from the tracked files, installs it alone (--no-deps) into an empty folder and
checks there, without the repository in Python's path: the list of files of the wheel, `pcb bias`,
the three configs of docs/plugin/ on a data set of squares, one of them on two processes (DDP,
gloo), that no package of the pipeline is imported, and the losses in a plain torch loop.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = (
    "snakemake",
    "papermill",
    "nbconvert",
    "jsonschema",
    "msgspec",
    "hotcoco",
)  # pandas and seaborn mmdet 3.3 imports itself

TRAIN = """
import os, sys, torch
sys.path.insert(0, os.environ["HELPERS"])
from mmengine.config import Config
from mmengine.runner import Runner
from user import shrink
if "LAUNCHER" in os.environ:
    torch.distributed.init_process_group("gloo")  # mmengine's own start asks for a GPU
cfg = Config.fromfile(sys.argv[1])
shrink(cfg)
cfg.work_dir, cfg.launcher = sys.argv[2], os.environ.get("LAUNCHER", "none")
if cfg.launcher != "none":
    # The default names a GPU.
    cfg.model_wrapper_cfg = dict(
        type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False
    )
runner = Runner.from_cfg(cfg)
model = runner.train()
import mmdet, mmdet.version, pcb
from pcb.losses import Regulariser
gates = [m for m in model.modules() if isinstance(m, Regulariser)]
assert pcb.__file__.startswith(os.environ["SITE"]), pcb.__file__
assert gates and all(g.is_active for g in gates)
assert all(torch.allclose(g.confusion.matrix.sum(1), torch.ones(3)) for g in gates)
banks = torch.stack([g.confusion.bank for g in gates])
if torch.distributed.is_initialized():
    both = [torch.empty_like(banks) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(both, banks)
    assert torch.equal(both[0], both[1]), "ranks disagree on the matrix"
pipeline = sorted(set(os.environ["PIPELINE"].split()) & set(sys.modules))
assert not pipeline, pipeline
ranks, rank = 1, 0
if torch.distributed.is_initialized():
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
if rank == 0:
    print(
        f"{os.path.basename(sys.argv[1])}: {type(model).__name__}, {len(gates)} matrices, active, "
        f"mmdet {mmdet.__version__}, {ranks} process(es), no package of the pipeline imported"
    )
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="pcb-standalone-") as name:
        folder = Path(name)
        source, site, user = folder / "source", folder / "site", folder / "user"
        source.mkdir(), user.mkdir()
        tracked = subprocess.run(
            ["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", source], input=tracked, check=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        subprocess.run(
            [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder / "dist", source],
            check=True,
        )
        (wheel,) = (folder / "dist").glob("*.whl")
        check_contents(wheel, source)
        subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
        shutil.rmtree(source)  # nothing may lean on it

        sys.path[:0] = [str(ROOT / "tests/helpers"), str(ROOT / "tests/integration")]
        from squares import write_squares
        from test_plugin import CONFIGS, YOURS

        data = write_squares(user / "data")
        path = os.pathsep.join([str(site), *sys.argv[1:]])
        env = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "SITE": str(site),
            "HELPERS": str(user),
            "PIPELINE": " ".join(PIPELINE),
        }
        (user / "train.py").write_text(TRAIN, encoding="utf-8")
        text = (ROOT / "tests/integration/test_plugin.py").read_text(encoding="utf-8")
        (user / "user.py").write_text(
            "import copy\n\n\n"
            + text[text.index("def shrink(cfg):") : text.index("def regularisers(model):")],
            encoding="utf-8",
        )
        for config in CONFIGS:
            text = (ROOT / f"docs/plugin/{config}.py").read_text(encoding="utf-8")
            for ours, yours in YOURS.items():
                text = text.replace(ours, yours.format(data=data))
            (user / f"{config}.py").write_text(text, encoding="utf-8")
            run([sys.executable, "-P", "train.py", f"{config}.py", f"work/{config}"], user, env)
        torchrun = [
            sys.executable,
            "-P",
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
        ]
        run(
            [*torchrun, "train.py", "mask_rcnn_lvis.py", "work/ddp"],
            user,
            env | {"LAUNCHER": "pytorch"},
        )
        shutil.copy(ROOT / "tests/helpers/torch_only.py", user)
        run([sys.executable, "-P", "torch_only.py"], user, env)
        run([sys.executable, "-P", "-m", "pcb", "plan"], user, env, status=2)
        (user / "dt.json").write_text(
            '[{"image_id": 1, "category_id": 5, "bbox": [2, 4, 30, 30], "score": 0.9}]',
            encoding="utf-8",
        )
        run(
            [
                sys.executable,
                "-P",
                "-m",
                "pcb",
                "bias",
                "--gt",
                "data/annotations/val.json",
                "--dt",
                "dt.json",
            ],
            user,
            env,
        )


def check_contents(wheel: Path, source: Path) -> None:
    """Assert that the wheel holds the tracked files of the package, licence and notice only."""
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {str(p.relative_to(source)) for p in (source / "pcb").rglob("*") if p.is_file()}
    rest = {n for n in inside - package if ".dist-info/" not in n}
    assert package <= inside, sorted(package - inside)
    assert not rest, sorted(rest)
    assert {"LICENSE", "NOTICE"} <= {Path(n).name for n in inside}
    size = wheel.stat().st_size / 2**20
    print(f"{wheel.name}: {size:.1f} MiB, {len(package)} files of the package, LICENSE and NOTICE")


def run(command: list, folder: Path, env: dict, status: int = 0) -> None:
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, encoding="utf-8", timeout=600
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-6000:]
    lines = (done.stderr if status else done.stdout).splitlines()
    print("\n".join(lines if "pcb" in command else lines[-1:]), flush=True)


if __name__ == "__main__":
    main()
