"""The index of a results folder: `build(study)` writes `results/<scale>/index.html`, one card per table and figure, and all claims.

A static page without script or network. It links only what exists; what has not been run or rendered is said.
"""

from __future__ import annotations

import os
from pathlib import Path

from pcb.files import write_text
from pcb.reporting import style, words
from pcb.reporting.gather import read_metrics, read_record
from pcb.reporting.verdicts import verdicts
from pcb.study import Study
from pcb.study.claims import FAILS, HOLDS, NOT_RUN, WITHIN_NOISE


def build(study: Study) -> Path:
    """Write the index from whatever metrics and rendered pages exist now; returns its path."""
    found = {(run, seed): read_metrics(study, run, seed) for run in study.runs() for seed in study.seeds}
    claims = verdicts(study, found)
    for claim in claims:
        claim["links"] = [{"name": words.number(t), "href": existing(study, study.paths.html(t))} for t in claim["tables"]]
    out = study.paths.index
    write_text(out, style.templates().get_template("index.html.j2").render(
        scale=study.scale, warning=words.warning({"comparable": not study.scale.get("embedded"), "scale": study.scale}),
        seeds=", ".join(map(str, study.seeds)), runs=trainings(study, found), cards=[card(study, target, found) for target in study.tables],
        claims=claims, all=True, tally=tally(claims)))
    return out


def card(study: Study, target: str, found: dict) -> dict:
    """What the index shows of one table: its name, picture, links, and how many of its rows were measured."""
    table, paths = study.tables[target], study.paths
    measured = [any(row.variant in ((found[row.run, seed] or {}).get("variants") or {}) for seed in study.seeds) for row in table.rows]
    missing = [" · ".join(row.labels.values()) for row, done in zip(table.rows, measured, strict=True) if not done]
    files = [{"name": name, "href": existing(study, path)} for name, path in
             (("notebook", paths.notebook(target)), *((s, paths.table(target, s)) for s in ("csv", "md", "tex")))]
    return {"name": words.number(target), "title": table.title, "claim": table.claim, "page": existing(study, paths.html(target)),
            "picture": existing(study, paths.figure(target)), "files": [f for f in files if f["href"]], "rows": len(measured),
            "measured": sum(measured), "missing": missing, "target": target}


def trainings(study: Study, found: dict) -> dict:
    """How far the study is: trainings that have results, of all; their time, dates and code."""
    records = [read_record(study.paths.train(run, seed)) or {} for (run, seed), metrics in found.items() if metrics]
    dates = sorted(str(r["finished"])[:10] for r in records if r.get("finished"))
    return {"done": sum(m is not None for m in found.values()), "all": len(found),
            "missing": [f"{run}, seed {seed}" for (run, seed), metrics in found.items() if metrics is None],
            "time": words.duration(sum(r.get("seconds") or 0 for r in records)), "dates": list(dict.fromkeys([*dates[:1], *dates[-1:]])),
            "code": sorted({words.commit(r["git"]) for r in records if r.get("git")})}


def tally(claims: list[dict]) -> dict[str, dict[str, int]]:
    """How many claims hold, fail, are within noise or were not run, on our numbers and on the paper's."""
    return {source: {verdict: sum(c[source]["verdict"] == verdict for c in claims) for verdict in (HOLDS, FAILS, WITHIN_NOISE, NOT_RUN)}
            for source in ("ours", "paper")}


def existing(study: Study, path: Path) -> str | None:
    """A link from the index to a file that is there."""
    return os.path.relpath(path, study.paths.site) if path.exists() else None
