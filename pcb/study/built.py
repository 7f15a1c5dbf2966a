"""What the code can run so far. Everything else of the paper is planned and shown as `not run`; a new method adds its name here."""

from __future__ import annotations

from pcb.study.experiment import Experiment

LOSSES = frozenset({"softmax", "eqlv2", "seesaw", "ls", "ols", "bags", "loce"})
PARADIGMS = frozenset({"plain", "iterative", "dsn", "rm"})
VARIANTS = frozenset({"plain", "step1", "step2", "cm-val", "ms-val", "cm-train", "norcal"})


def is_built(experiment: Experiment) -> bool:
    """Whether the code can train this experiment."""
    return experiment.loss in LOSSES and experiment.paradigm in PARADIGMS


def is_variant_built(variant: str) -> bool:
    """Whether the code can evaluate a trained run in this way."""
    return variant in VARIANTS
