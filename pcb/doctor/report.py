"""Run checks and print them; stop a job whose environment cannot do it."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pcb.cluster.launcher import is_rank
from pcb.doctor.checks import ENVIRONMENT, STUDY, Finding, Machine
from pcb.errors import UserError, combined

if TYPE_CHECKING:
    from pcb.study import Study

WIDTH = 100
NAMES = {
    "python": "Python",
    "gpus": "GPUs",
    "nccl": "NCCL",
    "shm": "/dev/shm",
    "results": "results folder",
}
# What a job on a GPU dies of. Set-up has run the others, or they are a matter of speed.
OF_GPU_JOBS = ("torch", "driver", "gpus", "operators", "nccl")


def diagnose(machine: Machine, names: Sequence[str] = ()) -> list[Finding]:
    """Run checks and return their findings, in a fixed order.

    Args:
        machine: The machine.
        names: Names of the checks. Default: all, those of the study if the machine has one.
    """
    checks = {**ENVIRONMENT, **(STUDY if machine.study else {})}
    chosen = [name for name in checks if name in names] if names else list(checks)
    return [finding for name in chosen for finding in checks[name](machine)]


def of_study(study: Study) -> Machine:
    """The machine, with what the jobs of a study need of it."""
    hardware = study.scale["hardware"]
    return Machine(hardware["device"] == "cuda", hardware["gpus_per_job"], study=study)


def text(findings: Sequence[Finding]) -> str:
    """Return the findings for a person: one line each, its fix below, and a summary."""
    indent = " " * 25
    lines = []
    for finding in findings:
        name = NAMES.get(finding.check, finding.check)
        head = f"{finding.status:<9}{name:<16}"
        lines.append(textwrap.fill(finding.text, WIDTH, initial_indent=head, **wrap(indent)))
        if finding.fix:
            head = f"{indent}fix: "
            lines.append(textwrap.fill(finding.fix, WIDTH, initial_indent=head, **wrap(indent)))
    counts = {s: sum(f.status == s for f in findings) for s in ("ok", "warning", "error")}
    plural = {"ok": "ok", "warning": "warnings", "error": "errors"}
    summary = [f"{n} {plural[s] if n != 1 else s}" for s, n in counts.items() if n or s == "error"]
    return "\n".join([*lines, ", ".join(summary)])


def wrap(indent: str) -> dict:
    """Options of `textwrap.fill`: nothing is broken within a word, so commands stay whole."""
    return {
        "subsequent_indent": indent,
        "break_long_words": False,
        "break_on_hyphens": False,
    }


def as_data(findings: Sequence[Finding]) -> dict:
    """Return the findings as JSON."""
    return {
        "errors": sum(finding.status == "error" for finding in findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def require_gpus(study: Study, gpus: int) -> None:
    """Stop a job that needs GPUs where the environment has none that it can use.

    Takes a few seconds on a GPU and nothing on a CPU. The operators are not run, so that no memory
    of a GPU is taken that another job has leased.

    Args:
        study: The study.
        gpus: Number of GPUs of the job; 0 checks nothing, nor does a rank, whose parent did.

    Raises:
        UserError: What the job would die of later, each with its fix.
    """
    if not gpus or study.scale["hardware"]["device"] != "cuda" or is_rank():
        return
    machine = Machine(cuda=True, gpus=gpus, run=False)
    findings = diagnose(machine, OF_GPU_JOBS)
    for finding in findings:
        if finding.status == "warning":
            print(f"warning: {finding.text}\n  fix: {finding.fix}", file=sys.stderr)
    errors = [UserError(f.text, f.fix) for f in findings if f.status == "error"]
    if errors:
        raise errors[0] if len(errors) == 1 else combined(errors)
