"""Which results are current: of the configuration and of the files that the study has now.

    current_training(study, run, seed)     run.json
    current_detections(study, run, seed)   detections.json
    current_metrics(study, run, seed)      metrics.json

Each returns the record, or None where it is missing or of another identity. All who read results
(pages, `pcb status`, `pcb plan`, the workflow) call these, so that they agree.
"""

from __future__ import annotations

from pathlib import Path

from pcb.errors import UserError
from pcb.study.records import current_record, read_record, require_record
from pcb.study.study import Study
from pcb.study.variants import (
    ORACLE_PARTS,
    detected_variants,
    gamma_split,
    score_columns,
    with_gamma,
)


def checkpoint_of(study: Study, record: dict) -> Path:
    """The checkpoint that the record of a training or trunk names.

    The results folder may have been moved since, so it is looked up there by its name first.
    """
    recorded = Path(record["checkpoint"])
    here = study.paths.work(record["fingerprint"]) / recorded.name
    return here if here.exists() else recorded


def weights_of(record: dict) -> str:
    """Digest of the weights that the record of a training or trunk names.

    An equal training that ran again has the same, though its checkpoint holds other times. Records
    of earlier versions have only the digest of the file. "" where there is none.
    """
    return record.get("weights") or record.get("sha256") or ""


def current_trunk(study: Study, run: str, seed: int) -> dict | None:
    """The record of a trunk (trunk.json)."""
    return current_record(study.paths.trunk(run, seed), study.fingerprint(run, seed))


def current_training(study: Study, run: str, seed: int) -> dict | None:
    """The record of a finished training (run.json), from the trunk that there is now."""
    record = current_record(study.paths.train(run, seed), study.fingerprint(run, seed))
    trunk = study.experiments[run].trunk
    if record and trunk and (origin := current_trunk(study, trunk, seed)):
        branched_from = weights_of(record.get("trunk") or {})
        return record if branched_from == weights_of(origin) else None
    return record


def current_detections(study: Study, run: str, seed: int, split: str = "val") -> dict | None:
    """The manifest of the detections on a split (detections.json)."""
    manifest = read_record(study.paths.detections(run, seed, split))
    return manifest if is_evaluation(study, manifest, run, seed, split) else None


def current_metrics(study: Study, run: str, seed: int) -> dict | None:
    """The metrics on val (metrics.json)."""
    metrics = read_record(study.paths.metrics(run, seed))
    if not metrics or not is_evaluation(study, metrics, run, seed, "val"):
        return None
    if with_gamma(study.variants(run)):
        other = study.evaluation(run, seed, gamma_split(study, run))
        return metrics if metrics.get("gamma_evaluation") == other else None
    return metrics


def current_oracle(study: Study, run: str, seed: int) -> dict | None:
    """The metrics with statistics of the same and of other images (oracle.json)."""
    record = read_record(study.paths.oracle(run, seed))
    if not record or record.get("parts_of_val") != {str(k): n for k, n in ORACLE_PARTS.items()}:
        return None
    return record if is_evaluation(study, record, run, seed, "val") else None


def lacking(study: Study, record: dict, run: str, split: str = "val") -> list[str]:
    """Variants that the study needs on a split and a manifest, or metrics on val, lack.

    A manifest also lacks a variant of which it does not have every column of scores, as after
    another γ of NorCal was added.
    """
    present = set(record.get("variants", ()))
    columns = record.get("columns")  # of a manifest
    if columns is not None:
        present = {v for v in present if set(columns).issuperset(score_columns([v]))}
    return sorted(set(detected_variants(study, run, split)) - present)


def is_evaluation(study: Study, record: dict | None, run: str, seed: int, split: str) -> bool:
    """Whether a record is of this evaluation, of the weights that run.json names."""
    if not record or record.get("fingerprint") != study.fingerprint(run, seed):
        return False
    if record.get("evaluation") != study.evaluation(run, seed, split):
        return False
    training = current_training(study, run, seed)
    if training is None:  # a copy of the numbers alone, or a training that will run again
        return not study.paths.train(run, seed).exists()
    return record.get("checkpoint") == weights_of(training)


def require_detections(study: Study, run: str, seed: int, split: str = "val") -> dict:
    """Read the manifest of detections that a score needs.

    Raises:
        UserError: It is missing, or of another training, evaluation or checkpoint, or lacks a
            variant that the study needs on val.
    """
    of_split = "" if split == "val" else f" --split {split}"
    command = f"pcb infer {run} --seed {seed}{of_split}"
    path = study.paths.detections(run, seed, split)
    manifest = require_record(path, study.fingerprint(run, seed), command)
    if manifest.get("evaluation") != study.evaluation(run, seed, split):
        raise UserError(
            f"{path} is of another evaluation: other data, test settings or detector config",
            f"run `{command}` again",
        )
    training = current_training(study, run, seed)
    if training and manifest.get("checkpoint") != weights_of(training):
        raise UserError(
            f"{path} is of another checkpoint than {study.paths.train(run, seed)} names",
            f"run `{command}` again",
        )
    if split == "val" and (missing := lacking(study, manifest, run)):
        raise UserError(f"{path} lacks the variants {', '.join(missing)}", f"run `{command}` again")
    return manifest


def pages_made(study: Study) -> int:
    """How many tables, figures and pages exist."""
    return sum(study.paths.page_record(target).exists() for target in study.targets)


def site_lacks_pages(study: Study) -> bool:
    """Whether a page was made after the site was last written."""
    records = [study.paths.page_record(target) for target in study.targets]
    made = [record.stat().st_mtime for record in records if record.exists()]
    site = study.paths.page_record("site")
    return bool(made) and (not site.exists() or max(made) > site.stat().st_mtime)


def site_line(study: Study, absolute: bool = False) -> str:
    """Where the site is, and how many of its pages exist where not all do.

    `open results/mini/site/index.html (3 of 16 pages)`.
    """
    made, index = pages_made(study), study.paths.index
    of_all = "" if made == len(study.targets) else f" ({made} of {len(study.targets)} pages)"
    return f"open {index.resolve() if absolute else index}{of_all}"
