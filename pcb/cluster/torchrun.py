"""One training on several GPUs of a machine: torchrun starts its ranks, which join a group."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

from pcb.cluster.gpus import lease


@contextmanager
def ranks(gpus: int, device: str, arguments: list[str]) -> Generator[None]:
    """Run the body on `gpus` leased GPUs, once for each of them.

    With several GPUs, the first process replaces itself by torchrun, which runs `pcb ARGUMENTS`
    again as each rank; a rank joins the others and runs the body.

    Args:
        gpus: Number of GPUs; 0 runs the body once, without any.
        device: The scale's device, "cuda" or "cpu".
        arguments: Arguments of this command, after `pcb`.
    """
    if is_rank():
        join(device)
        yield
        return
    with lease(gpus):
        if gpus > 1:
            launch(gpus, arguments)
        yield


def launch(ranks: int, arguments: list[str]) -> None:
    """Replace this process by torchrun with `ranks` processes of `pcb ARGUMENTS`. Never returns.

    torchrun takes a free port. It inherits the lease on the GPUs. The threads of the job
    (`OMP_NUM_THREADS`) are divided among the ranks.
    """
    threads = int(os.environ.get("OMP_NUM_THREADS", ranks))
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // ranks))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *torchrun, "-m", "pcb", *arguments])


def is_rank() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def join(device: str) -> None:
    """Join the other ranks, before anything asks for the world size.

    Args:
        device: "cuda", where each rank takes a GPU of its own, or "cpu".
    """
    import torch  # here, because `launch` and `is_rank` are called by processes without torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
