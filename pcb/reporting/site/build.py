"""The site of a results folder: `build(study)` writes site/index.html and the data files beside it.

It is one static page of all tables, figures, claims and runs. It links the rendered notebooks,
opens from disk without a server or network, and can be copied anywhere with its folder. Every
number leads to the run that it comes from; what was not run or rendered is marked as such.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import yaml
from PIL import Image

from pcb import formatting
from pcb.errors import UserError
from pcb.files import ROOT, locked, write_text
from pcb.reporting import captions, findings, style, tables, verdict
from pcb.reporting.claims import VERDICTS, count_verdicts
from pcb.reporting.current import DOCUMENTS, SITE, record_page, site_from
from pcb.reporting.gather import collect, outdated, scale_about
from pcb.reporting.results import Results
from pcb.reporting.site import data, docs, run_pages
from pcb.reporting.tables import ResultTable
from pcb.study import Page, Study, Summary
from pcb.study.claims import GROUPS
from pcb.study.current import site_line
from pcb.study.departures import table as departure_table


def build(study: Study, wait: bool = True) -> Path:
    """Write the site from the metrics and rendered pages that exist now.

    Args:
        study: The study.
        wait: Wait for another process that writes the site now.

    Returns:
        The path of its index.

    Raises:
        UserError: A result cannot be read, or another process writes the site.
    """
    with locked(study.paths.log("site").with_suffix(".lock"), "the site", wait):
        return _build(study)


def _build(study: Study) -> Path:
    made_from = site_from(study)  # before it is read: what comes later is not shown
    results = Results(study)
    claims = findings.collect(results)["claims"]
    found = verdict.of_results(results, claims)
    for claim in claims:
        claim["links"] = [{"name": formatting.number(t), "href": f"#{t}"} for t in claim["tables"]]
    runs = data.runs(results)
    shown = [collect(results, target) for target in study.tables]
    about = scale_about(results, study.runs())
    documents, paper = docs.write(study), cited()
    files_of_data = data.write(results, runs, claims, found)
    page = (
        style.templates()
        .get_template("site.html.j2")
        .render(
            scale=about["scale"],
            verdict=found,
            glossary=docs.glossary(),
            documents=documents,
            links=outside(documents, paper),
            citation=paper["text"],
            notes=captions.notes(about),
            seeds=study.seeds,
            progress=progress(runs),
            tables=[section(study, table, claims) for table in shown],
            claims=claims,
            all=True,
            changes=findings.changes,
            protocol_names=style.PROTOCOLS,
            departures=[line.partition(":")[0] for line in about["scale"]["departures"]],
            departure_table=departure_table(
                study.scale, [study.experiments[run].backbone for run in study.runs()]
            ),
            tally_of_claims=tally(claims),
            group_titles=GROUPS,
            summary=count_verdicts(claims),
            verdicts=VERDICTS,
            pages=[
                page_link(study, page)
                for page in (*study.pages.values(), *study.summaries.values())
                if page.id != "findings"  # it has its place above the claims
            ],
            findings=page_link(study, study.summaries["findings"])
            if "findings" in study.summaries
            else None,
            runs=run_lines(study, runs),
            missing=data.missing(runs),
            unmeasured=unmeasured(results),
            files=[
                file | {"size": size(file["path"]), "href": link(study, file["path"])}
                for file in files_of_data
            ],
            data=script_json(data.provenance(results, shown, runs) | {"glossary": docs.glossary()}),
        )
    )
    run_pages.write(results, runs)
    write_text(study.paths.index, page)  # last: what it leads to exists
    written = [study.paths.index, *(file["path"] for file in files_of_data)]
    written += [study.paths.run_page(run) for run in study.runs()]
    written += [study.paths.document(name) for name in DOCUMENTS]
    record_page(study, SITE, written, made_from)
    return study.paths.index


def refresh(study: Study, least: float = 60.0) -> str | None:
    """Write the site again during a run, after a page was made.

    It is not written where the last one is younger than `least` seconds, or where another process
    writes it now: the next page, the next evaluation or the end of the run has it.

    Returns:
        `open INDEX (3 of 16 pages)`; None where it was not written.
    """
    files = study.paths.page_record(SITE), study.paths.index
    if all(file.exists() and 0 <= time.time() - file.stat().st_mtime < least for file in files):
        return None
    try:
        build(study, wait=False)
    except (UserError, OSError) as error:  # of another page, which must not fail this one
        print(f"the site was not written: {error}", flush=True)
        return None
    return site_line(study)


def cited() -> dict:
    """The paper by CITATION.cff: `text`, `href`, and the `repository` of this code or None."""
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = about["preferred-citation"]
    authors = ", ".join(author["family-names"] for author in paper["authors"])
    number = next(i["value"] for i in paper["identifiers"] if i["value"].startswith("arXiv:"))
    return {
        "text": f"Cite the paper: {authors}. {paper['title']}. {paper['conference']['name']}, "
        f"{paper['year']}. {number}. CITATION.cff of the repository has it for reference managers.",
        "href": f"https://arxiv.org/abs/{number.removeprefix('arXiv:')}",
        "repository": about.get("repository-code"),
    }


def outside(documents: list[dict], paper: dict) -> list[dict]:
    """Links beside the sections: paper, repository where it has an address, documents, citation."""
    links = [{"name": "Paper", "href": paper["href"]}]
    if paper["repository"]:
        links.append({"name": "Code", "href": paper["repository"]})
    names = {"methods": "Methods", "glossary": "Glossary"}
    links += [
        {"name": names[d["name"]], "href": d["href"]} for d in documents if d["name"] in names
    ]
    return [*links, {"name": "Cite", "href": "#cite"}]


def section(study: Study, table: ResultTable, claims: list[dict]) -> dict:
    """A table or figure of the page: cells, picture, files, how much was measured, claims."""
    about_table = [claim for claim in claims if table.target in claim["tables"]]
    return {
        **tables.layout(table),
        "name": formatting.number(table.target),
        "title": table.about["title"],
        "claim": table.claim,
        "size": sum(not row.absent for row in table.rows),
        "measured": sum(bool(row.ours) for row in table.rows),
        "outdated": outdated(study, table),
        "page": link(study, study.paths.html(table.target)),
        "picture": picture(study, table.target),
        "files": files(study, table.target),
        "claims": about_table,
        "tally": tally(about_table)["ours"],
    }


def page_link(study: Study, page: Page | Summary) -> dict:
    """A page that is no table: a rendered notebook with what it shows."""
    key = page.id
    return {
        "key": key,
        "name": formatting.number(key),
        "title": page.title,
        "shows": page.shows,
        "page": link(study, study.paths.html(key)),
        "picture": picture(study, key),
        "files": files(study, key),
    }


def picture(study: Study, target: str) -> dict | None:
    """A target's picture, its size and description; None where there is none that can be read."""
    path = study.paths.figure(target)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            alt = image.info.get("Description", "")
            size = {"width": image.width, "height": image.height}
    except OSError:
        return None
    return {"src": link(study, path), **size, "alt": alt}


def files(study: Study, target: str) -> list[dict]:
    """Links to the files of a target that exist."""
    names = {"csv": "CSV", "md": "Markdown", "tex": "LaTeX"}
    offers = [("notebook", study.paths.notebook(target))]
    offers += [(name, study.paths.table(target, suffix)) for suffix, name in names.items()]
    return [{"name": name, "href": href} for name, path in offers if (href := link(study, path))]


def run_lines(study: Study, runs: list[dict]) -> list[dict]:
    """A line for each run: the targets that it is in, its trunk, and its state at every seed."""
    lines: dict[str, dict] = {}
    for entry in runs:
        run, seconds = entry["run"], entry["record"].get("seconds")
        places = {**study.tables, **study.pages}
        targets = [target for target in places if run in places[target].runs]
        line = lines.setdefault(
            run,
            {
                "run": run,
                "trunk": study.experiments[run].trunk,
                "targets": [
                    {
                        "label": formatting.short(target),
                        "name": formatting.number(target),
                        "href": f"#{target}",
                    }
                    for target in targets
                ],
                "seeds": [],
            },
        )
        line["seeds"].append(
            {
                "seed": entry["seed"],
                "state": entry["state"],
                "seconds": seconds,
                "took": None if seconds is None else formatting.duration(seconds),
            }
        )
    return list(lines.values())


def progress(runs: list[dict]) -> dict:
    """The progress of the study: number of measured runs, with their time, dates and code."""
    measured = [entry for entry in runs if entry["state"] == data.MEASURED]
    records = [entry["record"] for entry in measured]
    dates = sorted(str(r["finished"])[:10] for r in records if r.get("finished"))
    return {
        "measured": len(measured),
        "all": len(runs),
        "dates": list(dict.fromkeys([*dates[:1], *dates[-1:]])),
        "time": formatting.duration(sum(r.get("seconds") or 0 for r in records)),
        "code": code(records),
    }


def code(records: list[dict]) -> list[str]:
    """The commits that trained the runs; of several, the number of trainings of each."""
    found = Counter(formatting.commit(r["git"]) for r in records if r.get("git"))
    if len(found) < 2:
        return list(found)
    return [f"{name} ({count} trainings)" for name, count in found.most_common()]


def unmeasured(results: Results) -> list[str]:
    """Evaluation variants that a table needs of a run that was scored without them."""
    return [
        f"{run}, seed {seed}: {variant}"
        for run in results.study.runs()
        for seed in results.study.seeds
        if results.metrics(run, seed)
        for variant in results.study.variants(run)
        if results.values(run, seed, variant) is None
    ]


def tally(claims: list[dict]) -> dict[str, dict[str, int]]:
    """How many claims have each verdict, on our numbers and on the paper's."""
    return {
        source: {
            verdict: sum(c[source]["verdict"] == verdict for c in claims) for verdict in VERDICTS
        }
        for source in ("ours", "paper")
    }


def link(study: Study, path: Path) -> str | None:
    """The address of a file as seen from the index; None where it does not exist."""
    return Path(os.path.relpath(path, study.paths.site)).as_posix() if path.exists() else None


def size(path: Path) -> str:
    """The size of a file, for a person."""
    return formatting.size(path.stat().st_size)


def script_json(value: object) -> str:
    """JSON that may stand inside a script element: without `</` and `<!--`."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
