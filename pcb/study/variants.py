"""Names of the score columns behind the evaluation variants, and where NorCal's γ is chosen. Never imports torch."""

from __future__ import annotations

import random
from collections.abc import Container, Iterable, Sequence

GAMMAS = tuple(k / 10 for k in range(1, 11))  # NorCal's grid; γ = 0 is `plain`
NORCAL = "norcal-"
TRAIN_PART = "train-part"  # a split of `PART` training images, drawn with a fixed seed
PART = 5000


def columns(variants: Iterable[str]) -> list[str]:
    """The columns of scores that some variants need: one each, NorCal one for each γ."""
    return [
        c
        for v in variants
        for c in ([f"{NORCAL}{gamma:g}" for gamma in GAMMAS] if v == "norcal" else [v])
    ]


def gamma_of(column: str) -> float | None:
    """γ of a NorCal column, 0 for `plain`, None for any other."""
    if column == "plain":
        return 0.0
    return float(column.removeprefix(NORCAL)) if column.startswith(NORCAL) else None


def sources(variants: Iterable[str]) -> set[str]:
    """Whose confusion matrix must be known before these variants can score: 'val' (the split itself), 'train'."""
    return {v.split("-")[1] for v in variants if v in ("cm-val", "ms-val", "cm-train")}


def choice(splits: Container[str]) -> str:
    """The split on which γ is chosen beside the one that is scored: `dev` where a data set has it, else part of the training images."""
    return "dev" if "dev" in splits else TRAIN_PART


def train_part(ids: Sequence[int]) -> list[int]:
    """`PART` of the training images (all where there are fewer), the same in every run."""
    return sorted(random.Random(0).sample(sorted(ids), min(PART, len(ids))))


def file_of(split: str) -> str:
    """The annotation file, as a scale names it, behind a split."""
    return "train" if split == TRAIN_PART else split
