"""Which pages are current: a page is known by the content of all that it was made from.

    gathered_is_stale(study, "table06")    gathered/table06.json
    page_is_stale(study, "table06")        its notebook, HTML, tables and picture
    site_is_stale(study)                   index.html and the data files

Each returns why the page has to be made again, None where it is current or does not exist. A
gathered file, and the record of a page (`paths.page_record`), hold digests of the results, settings
and code behind them; the latter also of the page's own files, so that an edited or damaged one is
made again. Times are no part of it, so results may be copied. Imports nothing that draws.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

from pcb.errors import UserError
from pcb.files import ROOT
from pcb.study import Study, canonical, fingerprint
from pcb.study.checks import DATASET_FILES
from pcb.study.departures import departures
from pcb.study.records import read_record, write_record
from pcb.study.variants import oracle_runs

REPORTING = ROOT / "pcb/reporting"
SITE = "site"  # name of the site's own record
# Documents below docs/ that the site has as pages, and their titles.
DOCUMENTS = {
    "methods": "Methods: every formula, and where paper and code differ",
    "glossary": "Glossary",
    "experiments": "Experiments on why claims fail",
}
# Modules whose results are in gathered files, so that none is read by code of another structure.
GATHERING = ("captions", "claims", "findings", "gather", "oracle", "results", "tables")
MADE_FROM = "made_from"  # its key in a record


# What a page is made from -------------------------------------------------------------------------


def results_of(study: Study, target: str) -> list[Path]:
    """The results that a target shows: those that its gathered file is made from."""
    if target in study.pages:
        return page_results(study, target)
    if target in study.summaries:
        oracle = oracle_results(study) if target == "protocols" else []
        return [*table_results(study, *study.tables), *oracle]
    return table_results(study, target)


def table_results(study: Study, *targets: str) -> list[Path]:
    """The results behind tables and figures.

    These are metrics, their bootstrap and records of their runs, the checks of their data sets and
    some confusion matrices.
    """
    paths = study.paths
    return [
        *data_checks(study, *targets),
        *(
            get(run, seed)
            for run in study.runs(*targets)
            for seed in study.seeds
            for get in (paths.train, paths.metrics, paths.bootstrap)
        ),
        *(
            paths.confusion(run, seed)
            for run in confusions_shown(study, *targets)
            for seed in study.seeds
        ),
    ]


def page_results(study: Study, page: str) -> list[Path]:
    """The results behind a page of images, of the first seed."""
    paths, seed = study.paths, study.seeds[0]
    return data_checks(study, page) + [
        get(run, seed)
        for run in study.pages[page].runs
        for get in (paths.train, paths.metrics, paths.detections, paths.confusion)
    ]


def oracle_results(study: Study) -> list[Path]:
    """The comparisons of own and other statistics, of the runs that have them, at all seeds."""
    return [study.paths.oracle(run, seed) for run in oracle_runs(study) for seed in study.seeds]


def data_checks(study: Study, *targets: str) -> list[Path]:
    """The checks of the data sets behind some tables, figures and pages."""
    datasets = {study.experiments[run].dataset for run in study.runs(*targets)}
    return [study.paths.data_check(dataset) for dataset in sorted(datasets)]


def confusions_shown(study: Study, *targets: str) -> list[str]:
    """The runs of figures, and of rows of which a claim compares two classes."""
    compared = {
        row
        for claim in study.claims
        for check in claim.checks
        for row in check.rows
        if check.form == "taken"
    }
    rows = ((target, row) for target in targets for row in study.tables[target].rows)
    return list(
        dict.fromkeys(
            row.run
            for target, row in rows
            if target.startswith("figure") or (target, row.id) in compared
        )
    )


def template(target: str) -> Path:
    """The notebook that renders a target, as a path in the repository.

    A target has the notebook of its own name, if there is one; other tables and figures share
    notebooks/table.ipynb.
    """
    own = Path("notebooks") / f"{target}.ipynb"
    shared = re.match("table|figure", target) and not (ROOT / own).exists()
    return own.with_name("table.ipynb") if shared else own


def settings_of(study: Study, target: str) -> dict:
    """What determines a page besides results: its specification and facts about the scale."""
    resolved = study.resolved
    keys = ("title", "notes", "methods", "seeds")
    scale = {key: study.scale.get(key) for key in keys}
    scale["datasets"] = {
        name: {key: value for key, value in settings.items() if key not in DATASET_FILES}
        for name, settings in study.scale["datasets"].items()
    }
    scale["backbones"] = sorted(study.scale["backbones"])
    out: dict = {"scale": scale, "departures": departures(study.scale)}
    if target in study.pages:
        return out | {"page": resolved["pages"][target]}
    if target in study.summaries:
        return out | {key: resolved.get(key) for key in ("tables", "claims", "summaries")}
    if target == SITE:
        return out | {key: resolved.get(key) for key in ("tables", "claims", "pages", "summaries")}
    claims = [claim for claim in resolved.get("claims", []) if target in canonical(claim)]
    return out | {"table": resolved["tables"][target], "claims": claims}


@cache
def code(kind: str) -> str:
    """Digest of the code, templates and documents behind `gathered` files, `page`s or `site`."""
    files = sorted(
        path
        for path in REPORTING.rglob("*")
        if path.suffix in {".py", ".css", ".j2", ".js"} and path.name != "publish.py"
    )
    images = REPORTING / "images"
    chosen = {
        "gathered": lambda path: path.parent == REPORTING and path.stem in GATHERING,
        "images": lambda path: (
            path.parent == images or (path.parent == REPORTING and path.stem in GATHERING)
        ),
        "page": lambda path: "site" not in path.relative_to(REPORTING).parts,
        "site": lambda path: True,
    }[kind]
    shown = [ROOT / f"docs/{name}.md" for name in DOCUMENTS] if kind == SITE else []
    digest = hashlib.sha256()
    for path in [*filter(chosen, files), *shown]:
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def digests(study: Study, paths: list[Path]) -> dict[str, str | None]:
    """Digest of each file, None where it is missing, by its path in the results folder."""
    root = study.paths.root
    return {path.relative_to(root).as_posix(): study.contents.of_file(path) for path in paths}


def gathered_from(study: Study, target: str) -> dict:
    """What a gathered file is made from."""
    return {
        "results": digests(study, results_of(study, target)),
        "settings": fingerprint(settings_of(study, target)),
        "code": code("images" if target in study.pages else "gathered"),
    }


def page_from(study: Study, target: str) -> dict:
    """What a page is made from."""
    return {
        "results": digests(study, [study.paths.gathered(target)]),
        "settings": hashlib.sha256((ROOT / template(target)).read_bytes()).hexdigest(),
        "code": code("page"),
    }


def site_from(study: Study) -> dict:
    """What the index and the data files of the site are made from."""
    pages = [study.paths.page_record(target) for target in study.targets]
    logs = [study.paths.training_log(run, seed) for run in study.runs() for seed in study.seeds]
    results = [*table_results(study, *study.tables), *oracle_results(study), *pages, *logs]
    return {
        "results": digests(study, results),
        "settings": fingerprint(settings_of(study, SITE)),
        "code": code("site"),
    }


# Records ------------------------------------------------------------------------------------------


def record_page(study: Study, target: str, files: list[Path], made_from: dict) -> None:
    """Record what a page or the site was made from, and the digests of its files."""
    record = {MADE_FROM: made_from, "files": digests(study, files)}
    write_record(study.paths.page_record(target), record)


def gathered_is_stale(study: Study, target: str) -> str | None:
    """Why a gathered file is not current."""
    return _reason(study.paths.gathered(target), lambda: gathered_from(study, target))


def page_is_stale(study: Study, target: str) -> str | None:
    """Why the files of a page are not current."""
    path = study.paths.page_record(target)
    return _reason(path, lambda: page_from(study, target)) or _damaged(study, path)


def site_is_stale(study: Study) -> str | None:
    """Why the files of the site are not current."""
    path = study.paths.page_record(SITE)
    return _reason(path, lambda: site_from(study)) or _damaged(study, path)


def _reason(path: Path, made_from) -> str | None:
    """Why what a record describes is not made from what there is now."""
    if not path.exists():
        return None
    try:
        record = read_record(path) or {}
    except UserError as error:
        return f"unreadable: {error.what}"
    before, now = record.get(MADE_FROM) or {}, made_from()
    if before == now:
        return None
    of_results = before.get("results") or {}
    changed = [name for name, digest in now["results"].items() if of_results.get(name) != digest]
    if changed:
        return f"made from another {changed[0]}"
    return "made by other code, or with other settings"


def _damaged(study: Study, path: Path) -> str | None:
    """Whether a file of a page differs from what was written."""
    if not path.exists():
        return None
    files = (read_record(path) or {}).get("files") or {}
    for name, digest in files.items():
        if digest and study.contents.of_file(study.paths.root / name) != digest:
            return f"damaged: {name} was changed or deleted after it was written"
    return None
