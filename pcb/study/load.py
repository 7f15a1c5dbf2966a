"""`load_study`: read configs/paper.yaml, a scale and an overlay, check and join them."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from pathlib import Path

import yaml
from yaml.constructor import ConstructorError

from pcb.errors import UserError, choose
from pcb.files import ROOT, write_json
from pcb.formatting import counted
from pcb.study.checks import (
    DATASET_FILES,
    check_datasets,
    check_is_used,
    check_paper,
    check_scale,
    check_shows,
)
from pcb.study.overlay import check_names, extend, registry_of
from pcb.study.own_data import lay_out
from pcb.study.schema import validate
from pcb.study.study import FORMAT, Study, fingerprint

PAPER = ROOT / "configs/paper.yaml"
SCALES = ROOT / "configs/scale"


def load_study(
    scale: str | Path = "mini",
    overlay: str | Path | None = None,
    overrides: dict | None = None,
    paper: str | Path = PAPER,
) -> Study:
    """Load a study.

    Args:
        scale: A name under configs/scale/, a path to such a YAML file, or a study.json, which
            holds a whole study.
        overlay: A YAML file that adds losses, experiments, rows, tables or claims to the paper.
        overrides: Values of the scale to replace, `{"seeds": [0, 1], "results": "/tmp/r"}`; a
            mapping replaces only the keys that it names.
        paper: The YAML file of the paper.

    Raises:
        UserError: Naming file, key and reason.
    """
    path = Path(scale)
    if path.suffix == ".json":
        if overlay or overrides:
            raise UserError(
                f"{path} holds a whole study, which takes no overlay and no overrides",
                "name the scale instead",
            )
        resolved, unchanged = read_study_json(path)
        if unchanged:  # skipping the checks saves 0.2 s in each job
            return Study(resolved)
        paper_source = scale_source = str(path)
    else:
        if path.suffix not in (".yaml", ".yml"):
            path = SCALES / f"{scale}.yaml"
        if not path.exists():
            known = sorted(p.stem for p in SCALES.glob("*.yaml"))
            raise UserError(
                f"no scale {str(scale)!r}: {path} does not exist",
                f"{choose(str(scale), known)}, or give a path to a YAML file",
            )
        paper_source = str(paper)
        scale_source = f"{path} with {', '.join(overrides)} overridden" if overrides else str(path)
        values = merge(read_yaml(path), overrides or {})
        validate(values, "scale", scale_source)
        check_datasets(values, scale_source)
        resolved = lay_out(read_yaml(Path(paper)), values)
        if overlay:
            resolved = extend(resolved, read_overlay(Path(overlay)), Path(overlay))
            paper_source = f"{overlay}, laid over {paper}"
        resolved["scale"] = values
    registry = registry_of(valid_losses(resolved, paper_source))
    content = {key: value for key, value in resolved.items() if key != "scale"}
    validate(content, "paper", paper_source, registry)
    validate(resolved["scale"], "scale", scale_source)
    check_paper(resolved, registry, paper_source)
    check_scale(resolved["scale"], scale_source)
    check_is_used(resolved, scale_source)
    resolve_paths(resolved["scale"])
    study = Study(resolved)
    check_shows(study, scale_source)
    return study


def study_json(study: Study) -> dict:
    """Content of study.json: the resolved study, its format, and a digest of what was checked."""
    return {**study.resolved, "format": FORMAT, "checked": fingerprint(study.resolved)}


def save_study_json(study: Study) -> None:
    """Write study.json where its content differs, is torn or is missing."""
    content = study_json(study)
    try:
        saved = json.loads(study.paths.study.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        saved = None
    if saved != content:
        write_json(study.paths.study, content)


def read_study_json(path: Path) -> tuple[dict, bool]:
    """Read a study.json.

    Returns:
        The resolved study, and whether it is unchanged since it was checked and written.

    Raises:
        UserError: The file is missing, broken, or of another version of the pipeline.
    """
    rewrite = "run `snakemake --cores all` with this study's `--config`: it writes this file"
    try:
        resolved = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", rewrite) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}", f"delete it and {rewrite}") from error
    if not isinstance(resolved, dict) or not isinstance(resolved.get("scale"), dict):
        raise UserError(f"{path} does not hold a study", f"delete it and {rewrite}")
    written_by_pipeline = "checked" in resolved
    if (version := resolved.pop("format", 1)) != FORMAT and written_by_pipeline:
        raise UserError(
            f"{path} was written by another version of the pipeline (format {version}, not "
            f"{FORMAT})",
            "its results count as not run; `snakemake --cores all` with this study's `--config` "
            "makes them again in this folder",
        )
    return resolved, resolved.pop("checked", None) == fingerprint(resolved)


def notice_of_old_results(study: Study) -> str | None:
    """A warning if the results folder was written by another version of the pipeline."""
    try:
        content = json.loads(study.paths.study.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or "checked" not in content:  # not written by a run
        return None
    if (version := content.get("format", 1)) == FORMAT:
        return None
    return (
        f"{study.paths.root} holds results of another version of the pipeline "
        f"(format {version}, not {FORMAT}): they count as not run"
    )


def notice_of_unused_gpus(study: Study) -> str | None:
    """A warning if jobs would hold GPUs and compute on the CPU."""
    hardware = study.scale["hardware"]
    gpus = hardware["gpus_per_job"]
    if hardware["device"] != "cpu" or not gpus:
        return None
    return (
        f"hardware.device is cpu, but hardware.gpus_per_job is {gpus}: a job holds "
        f"{counted(gpus, 'GPU')} and does not use {'it' if gpus == 1 else 'them'}; set "
        "`gpus_per_job: 0`, or `device: cuda`"
    )


def valid_losses(resolved: dict, source: str) -> dict:
    """The `losses` of an overlay, checked before the registry is built from them."""
    losses = resolved.get("losses", {})
    if losses:
        validate({"losses": losses}, "losses", source)
    return losses


def read_overlay(path: Path) -> dict:
    """Read an overlay and check its form, before it is laid over the paper.

    Raises:
        UserError: A key or value is not allowed; the message names file, key and reason.
    """
    overlay = {key: value for key, value in read_yaml(path).items() if value is not None}
    check_names(overlay, path)
    registry = registry_of(valid_losses(overlay, str(path)))
    validate(overlay, "overlay", path, registry)
    return overlay


def merge(base: dict, changes: dict) -> dict:
    """Lay `changes` over `base`, mappings key by key."""
    out = copy.deepcopy(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if nested else value
    return out


def resolve_paths(scale: dict) -> None:
    """Replace `{results}` in paths by the path of the results folder, and `~` by the home folder.

    Raises:
        UserError: The path of the results folder has braces, or leads through a file.
    """
    scale["results"] = expanded(scale["results"])
    if set("{}") & set(scale["results"]):
        raise UserError(
            f"results: {scale['results']} has braces, in which Snakemake would fill in names",
            "choose a folder without { and }",
        )
    folder = Path(scale["results"]) / scale["name"]
    exists = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not exists.is_dir():
        raise UserError(
            f"results: {scale['results']} cannot hold results: {exists} is not a folder",
            "choose another folder",
        )
    root = f"{folder}"
    for entry in scale["datasets"].values():
        files = {key: entry[key] for key in DATASET_FILES if key in entry}
        entry.update({k: expanded(file.replace("{results}", root)) for k, file in files.items()})
    for entry in scale["backbones"].values():
        entry.update({key: expanded(entry[key]) for key in ("weights", "config")})


def expanded(path: str) -> str:
    """A path with `~` replaced by the home folder; a path without it stays as written."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


class StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML whose mappings may not name a key twice; the parser alone silently keeps the last."""

    def construct_mapping(self, node, deep=False):
        """Construct a mapping after checking its keys."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise ConstructorError(
                None, None, f"the key {twice[0]!r} appears twice", node.start_mark
            )
        return super().construct_mapping(node, deep)

    def construct_decimal(self, node) -> int:
        """Construct an integer; one that YAML would read as octal or in base 60 is refused."""
        text = self.construct_scalar(node)
        if not re.fullmatch(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", text):
            raise ConstructorError(
                None, None, f"{text} is not a decimal number in YAML", node.start_mark
            )
        return super().construct_yaml_int(node)

    def construct_finite(self, node) -> float:
        """Construct a number; infinity and nan are refused."""
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise ConstructorError(
                None, None, f"{self.construct_scalar(node)} is not a finite number", node.start_mark
            )
        return value


StrictLoader.add_constructor("tag:yaml.org,2002:int", StrictLoader.construct_decimal)
StrictLoader.add_constructor("tag:yaml.org,2002:float", StrictLoader.construct_finite)


def read_yaml(path: Path) -> dict:
    """Read a YAML file that holds a mapping. Raises `UserError`."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}", "give the path of a readable YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}", "correct that line") from error
    if not isinstance(value, dict):
        raise UserError(
            f"{path} holds {type(value).__name__}, not a mapping", "write `key: value` lines"
        )
    return value
