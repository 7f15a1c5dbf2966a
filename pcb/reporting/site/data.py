"""The site's data: every number, run and verdict, as files to download and as what the page's dialog reads.

    metrics.csv    run, seed, variant, metric, value: everything that was measured
    runs.json      where each run comes from: code, hardware, versions, times, trunk
    claims.json    each claim of the paper, its checks, and the verdicts on both sets of numbers; claims.csv in short

None of them holds a path of the machine on which it was made.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from pcb import formatting
from pcb.files import write_json, write_text
from pcb.reporting import style
from pcb.study import METRICS, Study
from pcb.study.records import current_record

MEASURED, TRAINED, NOT_RUN = "measured", "trained, not scored", "not run"
LOCAL = {"checkpoint"}  # fields of run.json that mean nothing elsewhere


def runs(study: Study, found: dict) -> list[dict]:
    """One entry per training and seed: its state, its record as far as it is of the present configuration, and its log's place."""
    out = []
    for run in study.runs():
        for seed in study.seeds:
            fingerprint, metrics = study.fingerprint(run, seed), found[run, seed]
            record = current_record(study.paths.train(run, seed), fingerprint) or {}
            state = MEASURED if metrics else TRAINED if record else NOT_RUN
            out.append(
                {
                    "run": run,
                    "seed": seed,
                    "state": state,
                    "fingerprint": fingerprint,
                    "factors": study.experiments[run].factors,
                    "record": {k: v for k, v in record.items() if k not in LOCAL},
                    "log": study.paths.log(f"train/{run}/seed{seed}")
                    .relative_to(study.paths.root)
                    .as_posix()
                    if record
                    else None,
                    "evaluation": {k: metrics.get(k) for k in ("evaluation", "images", "split")}
                    if metrics
                    else None,
                }
            )
    return out


def write(study: Study, found: dict, entries: list[dict], claims: list[dict]) -> list[dict]:
    """Write the files named above; returns a name, a description and a path of each."""
    numbers = table(("run", "seed", "variant", "metric", "value"), metrics(found))
    judged = table(("id", "where", "says", "ours", "paper"), verdicts(claims))
    files = [
        ("metrics.csv", "every metric of every run, seed and variant", numbers),
        ("claims.csv", "the verdict on each claim", judged),
    ]
    for name, _, text in files:
        write_text(study.paths.download(name), text)
    values = [
        ("runs.json", "where every run comes from", entries),
        ("claims.json", "claims with their checks, margins and noise", claims),
    ]
    for name, _, value in values:
        write_json(study.paths.download(name), value)
    return [
        {"name": name, "about": about, "path": study.paths.download(name)}
        for name, about, _ in (*files, *values)
    ]


def metrics(found: dict) -> Iterator[tuple]:
    """A line per number; an empty value where there was nothing to measure, as AP_r without a rare class."""
    for (run, seed), measured in found.items():
        for variant, numbers in sorted(((measured or {}).get("variants") or {}).items()):
            for metric, value in sorted(numbers.items()):
                yield run, seed, variant, metric, "" if value is None else repr(float(value))


def verdicts(claims: list[dict]) -> Iterator[tuple]:
    for claim in claims:
        yield (
            claim["id"],
            claim["where"],
            claim["says"],
            claim["ours"]["verdict"],
            claim["paper"]["verdict"],
        )


def table(head: tuple[str, ...], lines: Iterator[tuple]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return text.getvalue()


# What the dialog behind a number shows ---------------------------------------------------------------------------------


def embedded(study: Study, found: dict, entries: list[dict], views: list[dict]) -> dict:
    """The page's own data, as JSON: tables with run and variant of each row, and runs by id and seed with values and provenance."""
    targets = {}
    for view in views:
        table = study.tables[view["target"]]
        targets[table.id] = {
            "name": formatting.number(table.id),
            "columns": [
                {key: c[key] for key in ("block", "metric", "html")} for c in view["columns"]
            ],
            "rows": {
                row.id: {
                    "name": " · ".join(row.labels.values()),
                    "run": row.run,
                    "variant": row.variant,
                    "paper": row.paper,
                    "copied": row.copied,
                }
                for row in table.rows
            },
        }
    shown: dict[str, dict] = {run: {} for run in study.runs()}
    for entry in entries:
        run, seed = entry["run"], entry["seed"]
        variants = (found[run, seed] or {}).get("variants") or {}
        shown[run][seed] = {
            "state": entry["state"],
            "facts": facts(entry),
            "values": {
                variant: {m: numbers[m] for m in METRICS if numbers.get(m) is not None}
                for variant, numbers in variants.items()
            },
        }
    return {
        "seeds": list(study.seeds),
        "targets": targets,
        "runs": shown,
        "metrics": {m: style.name(m, "html") for m in METRICS},
    }


def facts(entry: dict) -> list[tuple[str, str]]:
    """(term, text) pairs of a run's provenance; of one that was not run only its fingerprint."""
    record = entry["record"]
    out = [("fingerprint", entry["fingerprint"])]
    if not record:
        return out
    git = record.get("git")
    out.append(
        (
            "git",
            git["commit"] + (", with changes not committed" if git.get("changed") else "")
            if git
            else "not known",
        )
    )
    if record.get("finished"):
        out.append(
            ("finished", str(record["finished"]).replace("T", " ").replace("+00:00", " UTC"))
        )
    if record.get("seconds") is not None:
        out.append(
            (
                "took",
                f"{formatting.duration(record['seconds'])}"
                + (f" for {record['iterations']} iterations" if record.get("iterations") else ""),
            )
        )
    if hardware := record.get("hardware"):
        gpus = hardware.get("gpus")
        out.append(
            (
                "hardware",
                (f"{len(gpus)} × {gpus[0]}, " if gpus else "")
                + f"{hardware.get('cpu')}, {hardware.get('cores')} cores, {hardware.get('threads')} thread"
                + ("s" if hardware.get("threads") != 1 else ""),
            )
        )
    if trunk := record.get("trunk"):
        out.append(("trunk", f"first epochs shared, from {trunk['run']}"))
    if versions := record.get("versions"):
        out.append(
            (
                "software",
                ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
            )
        )
    if entry["evaluation"]:
        out.append(
            (
                "scored on",
                f"{entry['evaluation']['images']} images, evaluation {entry['evaluation']['evaluation']}",
            )
        )
    if record.get("sha256"):
        out.append(("weights", f"sha256 {record['sha256'][:16]}…"))
    return [*out, ("log", f"{entry['log']}, in the results folder")]


def missing(entries: list[dict]) -> list[dict]:
    """Trainings without metrics, those together that lack the same seeds: `what` lacks, as words, and `runs`."""
    lacks: dict[str, dict[str, list[int]]] = {}
    for entry in entries:
        if entry["state"] != MEASURED:
            lacks.setdefault(entry["run"], {}).setdefault(entry["state"], []).append(entry["seed"])
    out: dict[str, list[str]] = {}
    for run, states in lacks.items():
        what = "; ".join(
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} {state}"
            for state, seeds in states.items()
        )
        out.setdefault(what, []).append(run)
    return [{"what": what, "runs": runs} for what, runs in out.items()]
