"""The site of a results folder: `build(study)` writes `results/<scale>/site/index.html` and the data files beside it.

One static page for all tables, figures, claims and runs; it links the rendered notebooks, opens from disk without a server or
network, and may be copied anywhere with its folder. Behind every number stands the run that it comes from. What has not been run
or rendered is said. Look: style/site.html.j2, site.css and site.js.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

from pcb import formatting
from pcb.files import write_text
from pcb.reporting import captions, style
from pcb.reporting.claims import verdicts
from pcb.reporting.gather import read_metrics
from pcb.reporting.site import data, tables
from pcb.study import Study, Table
from pcb.study.claims import FAILS, HOLDS, NOT_PRINTED, NOT_RUN, WITHIN_NOISE

VERDICTS = (HOLDS, WITHIN_NOISE, FAILS, NOT_RUN, NOT_PRINTED)


def build(study: Study) -> Path:
    """Write the site from whatever metrics and rendered pages exist now; returns its index. Raises `UserError` on a broken file."""
    found = {
        (run, seed): read_metrics(study, run, seed) for run in study.runs() for seed in study.seeds
    }
    claims = verdicts(study, found)
    for claim in claims:
        claim["links"] = [{"name": formatting.number(t), "href": f"#{t}"} for t in claim["tables"]]
    entries = data.runs(study, found)
    views = [tables.view(study, target, found) for target in study.tables]
    scale = captions.scale_facts(study.scale, study.scale["backbones"])
    page = (
        style.templates()
        .get_template("site.html.j2")
        .render(
            scale=scale,
            warning=captions.warning(
                {"comparable": not study.scale.get("synthetic"), "scale": scale}
            ),
            seeds=study.seeds,
            progress=progress(entries),
            tables=[about(study, view, claims) for view in views],
            claims=claims,
            all=True,
            tally=tally(claims),
            verdicts=VERDICTS,
            pages=[picture_page(study, key) for key in study.pages],
            runs=trainings(study, entries),
            missing=data.missing(entries),
            unmeasured=unmeasured(study, found),
            files=[
                link | {"size": size(link["path"]), "href": existing(study, link["path"])}
                for link in data.write(study, found, entries, claims)
            ],
            data=script_json(data.embedded(study, found, entries, views)),
        )
    )
    write_text(study.paths.index, page)
    return study.paths.index


def about(study: Study, view: dict, claims: list[dict]) -> dict:
    """A table or figure of the page: its view, words, picture, files, how much of it was measured, and the claims on it."""
    table, target = study.tables[view["target"]], view["target"]
    mine = [claim for claim in claims if target in claim["tables"]]
    return {
        **view,
        "name": formatting.number(target),
        "title": table.title,
        "claim": table.claim,
        "size": len(view["rows"]),
        "page": existing(study, study.paths.html(target)),
        "picture": picture(study, target),
        "files": files(study, target),
        "measured": sum(
            all(cell["kind"] != "notrun" for cell in row["cells"]) for row in view["rows"]
        ),
        "claims": mine,
        "tally": tally(mine)["ours"],
    }


def picture_page(study: Study, key: str) -> dict:
    """The gallery or the pair explorer: a rendered notebook without a table."""
    page = study.pages[key]
    return {
        "key": key,
        "name": formatting.number(key),
        "title": page.title,
        "shows": page.shows,
        "compare": page.compare,
        "page": existing(study, study.paths.html(key)),
        "picture": picture(study, key),
        "files": files(study, key),
    }


def picture(study: Study, target: str) -> dict | None:
    """A target's picture and its size; None where there is none, or where the file is no PNG."""
    path = study.paths.figure(target)
    head = path.read_bytes()[:24] if path.exists() else b""
    if not head.startswith(b"\x89PNG") or len(head) < 24:
        return None
    width, height = struct.unpack(">2I", head[16:])  # PNG's first chunk
    return {"src": existing(study, path), "width": width, "height": height}


def files(study: Study, target: str) -> list[dict]:
    """Links to what there is of a target to download."""
    paths = study.paths
    offers = [
        ("notebook", paths.notebook(target)),
        *(
            (name, paths.table(target, suffix))
            for name, suffix in (("CSV", "csv"), ("Markdown", "md"), ("LaTeX", "tex"))
        ),
    ]
    return [
        {"name": name, "href": href} for name, path in offers if (href := existing(study, path))
    ]


def trainings(study: Study, entries: list[dict]) -> list[dict]:
    """A line per run: the tables and pages that it is in, its trunk, and its state at every seed."""
    states: dict[str, list[dict]] = {}
    for entry in entries:
        seconds = entry["record"].get("seconds")
        states.setdefault(entry["run"], []).append(
            {
                "seed": entry["seed"],
                "state": entry["state"],
                "seconds": seconds,
                "took": None if seconds is None else formatting.duration(seconds),
            }
        )
    return [
        {
            "run": run,
            "seeds": seeds,
            "targets": [short(target) for target in study.targets.values() if run in target.runs],
            "trunk": study.experiments[run].trunk,
        }
        for run, seeds in states.items()
    ]


def short(target) -> dict:
    """A link to a target in the least space: `5`, `F1`, `gallery`."""
    name = formatting.number(target.id)
    label = (
        name.replace("Table ", "").replace("Figure ", "F").lower()
        if isinstance(target, Table)
        else name.lower()
    )
    return {
        "label": label.upper() if label.startswith("f") else label,
        "name": name,
        "href": f"#{target.id}",
    }


def progress(entries: list[dict]) -> dict:
    """How far the study is: trainings measured of all, their time, dates and code."""
    measured = [entry for entry in entries if entry["state"] == data.MEASURED]
    records = [entry["record"] for entry in measured]
    dates = sorted(str(r["finished"])[:10] for r in records if r.get("finished"))
    return {
        "measured": len(measured),
        "all": len(entries),
        "dates": list(dict.fromkeys([*dates[:1], *dates[-1:]])),
        "time": formatting.duration(sum(r.get("seconds") or 0 for r in records)),
        "code": sorted({formatting.commit(r["git"]) for r in records if r.get("git")}),
    }


def unmeasured(study: Study, found: dict) -> list[str]:
    """Evaluation variants that some table asks of a measured run, yet its metrics lack."""
    return [
        f"{run}, seed {seed}: {variant}"
        for (run, seed), metrics in found.items()
        if metrics
        for variant in study.variants(run)
        if variant not in metrics["variants"]
    ]


def tally(claims: list[dict]) -> dict[str, dict[str, int]]:
    """How many claims hold, fail, and so on, on our numbers and on the paper's."""
    return {
        source: {
            verdict: sum(c[source]["verdict"] == verdict for c in claims) for verdict in VERDICTS
        }
        for source in ("ours", "paper")
    }


def existing(study: Study, path: Path) -> str | None:
    """A link from the index to a file that is there."""
    return Path(os.path.relpath(path, study.paths.site)).as_posix() if path.exists() else None


def size(path: Path) -> str:
    return f"{path.stat().st_size / 1024:.0f} KiB"


def script_json(value: object) -> str:
    """JSON that may stand inside a script element: no `</`, no `<!--`."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
