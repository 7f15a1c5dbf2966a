"""Names of the score columns behind the evaluation variants. Shared by inference and scoring; never imports torch."""

from __future__ import annotations

from collections.abc import Iterable

GAMMAS = tuple(k / 10 for k in range(1, 11))  # NorCal's grid; γ = 0 is `plain`
NORCAL = "norcal-"


def columns(variants: Iterable[str]) -> list[str]:
    """The columns of scores that some variants need: one each, NorCal one for each γ."""
    return [c for v in variants for c in ([f"{NORCAL}{gamma:g}" for gamma in GAMMAS] if v == "norcal" else [v])]


def gamma_of(column: str) -> float | None:
    """γ of a NorCal column, 0 for `plain`, None for any other."""
    if column == "plain":
        return 0.0
    return float(column.removeprefix(NORCAL)) if column.startswith(NORCAL) else None


def sources(variants: Iterable[str]) -> set[str]:
    """Whose confusion matrix must be known before these variants can score: 'val' (the split itself), 'train'."""
    return {v.split("-")[1] for v in variants if v in ("cm-val", "ms-val", "cm-train")}
