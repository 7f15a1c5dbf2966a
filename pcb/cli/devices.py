"""The GPUs of a job: checked before it starts, leased, one process on each."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pcb.study import Study


@contextmanager
def on_gpus(
    study: Study, arguments: Namespace, gpus: int | None = None, backend: str | None = None
) -> Generator[None]:
    """Run the body once on each GPU of a job, in a process of its own; see `launcher.ranks`.

    Args:
        study: The study, whose scale names the device.
        arguments: The arguments of this command, which the processes get too.
        gpus: Number of GPUs; None: `gpus_per_job` of the scale.
        backend: Of the process group; None: NCCL with GPUs, else gloo.
    """
    from pcb.cluster.launcher import ranks

    hardware = study.scale["hardware"]
    count = hardware["gpus_per_job"] if gpus is None else gpus
    require_gpus(study, count)
    with ranks(count, hardware["device"], arguments.given, backend=backend):
        yield


def require_gpus(study: Study, gpus: int) -> None:
    """Stop a job whose environment cannot use GPUs, with the fix that `pcb doctor` prints."""
    if gpus:  # the import is spared on a CPU
        from pcb.doctor.report import require_gpus as require

        require(study, gpus)
