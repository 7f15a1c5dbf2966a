"""The data of the site: every number, run and verdict, as files and for the page's dialog.

    metrics.csv    run, seed, variant, metric, value: everything that was measured
    runs.json      where each run comes from: code, hardware, versions, times, trunk
    claims.json    each claim of the paper, its quote, its checks, and the verdicts on both sets of
                   numbers, with margins and intervals
    claims.csv     the same, one line a check
    verdict.json   the three lines at the top, and the counts of claims by group
    training.csv   each epoch of each training: losses, PwB of the moving matrix, time, memory
    oracle.csv     AP of parts of val, calibrated with their own and with other statistics

None of them contains a path of this machine.
"""

from __future__ import annotations

from collections.abc import Iterator

from pcb import formatting
from pcb.files import write_json, write_text
from pcb.reporting import style
from pcb.reporting.results import Results
from pcb.reporting.tables import KINDS, ResultTable, csv_text
from pcb.study import METRICS
from pcb.study.current import weights_of
from pcb.study.variants import oracle_runs

MEASURED, TRAINED, NOT_RUN = "measured", "trained, not scored", "not run"
CLAIM_COLUMNS = (
    *("claim", "group", "kind", "where", "quote", "statement", "claim_ours", "claim_paper"),
    *("check", "ours", "margin", "low", "high", "seeds", "images", "paper", "paper_margin"),
)
ORACLE_COLUMNS = (
    *("run", "seed", "entry", "of", "images", "proposals"),
    *("classes", "column", "metric", "value"),
)
EVALUATION = ("evaluation", "images", "split", "git")  # fields of metrics.json about the scoring
LOCAL = {"checkpoint"}  # fields of run.json that mean nothing on another machine


def runs(results: Results) -> list[dict]:
    """Every run at every seed: its state, record and log, as JSON values."""
    study, out = results.study, []
    for run in study.runs():
        for seed in study.seeds:
            record, metrics = results.record(run, seed), results.metrics(run, seed)
            log = study.paths.log(f"train/{run}/seed{seed}").relative_to(study.paths.root)
            out.append(
                {
                    "run": run,
                    "seed": seed,
                    "state": MEASURED if metrics else TRAINED if record else NOT_RUN,
                    "fingerprint": study.fingerprint(run, seed),
                    "factors": study.experiments[run].factors,
                    "record": {k: v for k, v in (record or {}).items() if k not in LOCAL},
                    "log": log.as_posix() if record else None,
                    "evaluation": {k: metrics.get(k) for k in EVALUATION} if metrics else None,
                }
            )
    return out


def write(results: Results, entries: list[dict], claims: list[dict], verdict: dict) -> list[dict]:
    """Write the files named above.

    Args:
        results: The results.
        entries: What `runs` returned.
        claims: What `findings.collect` found.
        verdict: What `verdict.of_results` found.

    Returns:
        Name, description and path of each file.
    """
    paths = results.study.paths
    numbers = csv_text(("run", "seed", "variant", "metric", "value"), metric_lines(results))
    judged = csv_text(CLAIM_COLUMNS, claim_lines(claims))
    write_text(paths.download("metrics.csv"), numbers)
    write_json(paths.download("runs.json"), entries)
    write_json(paths.download("claims.json"), claims)
    write_text(paths.download("claims.csv"), judged)
    write_json(paths.download("verdict.json"), verdict)
    write_text(paths.download("oracle.csv"), csv_text(ORACLE_COLUMNS, oracle_lines(results)))
    write_text(paths.download("training.csv"), training_csv(results))
    described = {
        "metrics.csv": "every metric of every run, seed and variant",
        "claims.csv": "each check of each claim, with margin, interval and verdict",
        "oracle.csv": "AP of parts of val, calibrated with own and with other statistics",
        "training.csv": "each epoch of each training: losses, PwB of the moving matrix, time",
        "runs.json": "where every run comes from",
        "claims.json": "claims with the paper's sentence, their checks, margins and intervals",
        "verdict.json": "the lines at the top of this page, and claims by group",
    }
    return [
        {"name": name, "about": about, "path": paths.download(name)}
        for name, about in described.items()
    ]


def metric_lines(results: Results) -> Iterator[tuple]:
    """The lines of metrics.csv."""
    for run in results.study.runs():
        for seed in results.study.seeds:
            metrics = results.metrics(run, seed)
            for variant, values in metrics["variants"].items() if metrics else ():
                for metric in METRICS:
                    if values.get(metric) is not None:
                        yield run, seed, variant, metric, values[metric]


def oracle_lines(results: Results) -> Iterator[tuple]:
    """The lines of oracle.csv: parts of val by themselves, and cross-fits over all of val."""
    for run in oracle_runs(results.study):
        for seed in results.study.seeds:
            record = results.oracle(run, seed) or {}
            for kind in ("parts", "crossfit"):
                for entry in record.get(kind, ()):
                    about = [
                        run,
                        seed,
                        kind,
                        *(entry.get(k) for k in ("of", "images", "proposals")),
                    ]
                    for classes in ("all", "known"):
                        for column, values in entry[classes].items():
                            for metric, value in values.items():
                                if value is not None:
                                    yield *about, classes, column, metric, round(value, 3)


def training_csv(results: Results) -> str:
    """training.csv: the last record of each epoch, a column for each part of the losses."""
    study = results.study
    ids = [(run, seed) for run in study.runs() for seed in study.seeds]
    logs = {of: curves for of in ids if (curves := results.curves(*of))}
    parts = sorted({name for curves in logs.values() for name in curves.parts})
    lines = [
        (
            *of,
            *(record[key] for key in ("stage", "epoch", "iteration", "lr", "loss")),
            *(record["losses"].get(name) for name in parts),
            record.get("pwb", {}).get(curves.momentum),
            record["seconds_per_iteration"],
            *(record["memory_mib"].get(key) for key in ("process", "gpu")),
        )
        for of, curves in logs.items()
        for record in curves.by_epoch()
    ]
    head = ["run", "seed", "stage", "epoch", "iteration", "lr", "loss", *parts, "PwB"]
    head += ["seconds_per_iteration", "process_mib", "gpu_mib"]
    return csv_text(head, lines)


def claim_lines(claims: list[dict]) -> Iterator[tuple]:
    """The lines of claims.csv, one for each check; of a claim without checks a line without one."""
    for claim in claims:
        about = [claim[key] for key in ("id", "group", "kind", "where", "quote", "statement")]
        about += [claim["ours"]["verdict"], claim["paper"]["verdict"]]
        for check in claim["checks"]:
            ours, paper = check["ours"], check["paper"]
            limits = [ours[key] for key in ("verdict", "margin", "low", "high", "seeds", "images")]
            yield *about, check["text"], *limits, paper["verdict"], paper["margin"]
        if not claim["checks"]:
            yield *about, *[None] * (len(CLAIM_COLUMNS) - len(about))


# The dialog behind a number


def provenance(results: Results, shown: list[ResultTable], entries: list[dict]) -> dict:
    """Data for the page's script: run and variant of each row, values and facts of each run."""
    targets = {
        table.target: {
            "name": formatting.number(table.target),
            "columns": [
                {
                    "block": block,
                    "kind": KINDS[block],
                    "metric": metric,
                    "html": style.name(metric, "html"),
                }
                for block in table.blocks
                for metric in table.metrics
            ],
            "rows": {
                row.id: {
                    "name": " · ".join(row.labels),
                    "run": row.run,
                    "variant": row.variant,
                    "paper": row.paper,
                    "copied_from": row.copied_from,
                    "base": row.base,
                    "gains": {
                        metric: [
                            None if gain[key] is None else round(gain[key], 3)
                            for key in ("mean", "low", "high")
                        ]
                        for metric, gain in row.gains.items()
                    },
                }
                for row in table.rows
            },
        }
        for table in shown
    }
    of_run: dict[str, dict] = {}
    for entry in entries:
        metrics = results.metrics(entry["run"], entry["seed"])
        of_run.setdefault(entry["run"], {})[entry["seed"]] = {
            "state": entry["state"],
            "facts": facts(entry),
            "values": {
                variant: {m: round(values[m], 4) for m in METRICS if values.get(m) is not None}
                for variant, values in (metrics["variants"] if metrics else {}).items()
            },
        }
    return {
        "seeds": list(results.study.seeds),
        "targets": targets,
        "runs": of_run,
        "metrics": {m: style.name(m, "html") for m in METRICS},
    }


def facts(entry: dict) -> list[tuple[str, str]]:
    """(term, text) pairs of a run's provenance; the fingerprint alone where it was not run."""
    record = entry["record"]
    out = [("fingerprint", entry["fingerprint"])]
    if not record:
        return out
    out.append(("trained by commit", commit(record)))
    if finished := record.get("finished"):
        out.append(("finished", str(finished).replace("T", " ").replace("+00:00", " UTC")))
    if record.get("seconds") is not None:
        iterations = record.get("iterations")
        amount = f" for {iterations} iterations" if iterations else ""
        out.append(("took", formatting.duration(record["seconds"]) + amount))
    if record.get("hardware"):
        out.append(("hardware", hardware(record["hardware"])))
    if trunk := record.get("trunk"):
        out.append(("trunk", f"first epochs shared, from {trunk['run']}"))
    if versions := record.get("versions"):
        text = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        out.append(("software", text))
    if scored := entry["evaluation"]:
        text = f"{scored['images']} images; evaluation {scored['evaluation']}"
        out += [("scored on", text), ("scored by commit", commit(scored))]
    if weights := weights_of(record):
        out.append(("weights", f"sha256 {weights}"))
    return out


def commit(record: dict) -> str:
    """The commit that wrote a record: `4f2a…, with changes not committed`."""
    git = record.get("git")
    changed = ", with changes not committed" if git and git.get("changed") else ""
    return git["commit"] + changed if git else "not known"


def hardware(record: dict) -> str:
    """The machine of a training: `8 × NVIDIA H100, AMD EPYC 9654, 96 cores, 1 thread, AVX2`."""
    gpus, threads = record.get("gpus"), record.get("threads")
    devices = f"{len(gpus)} × {gpus[0]}, " if gpus else ""
    plural = "s" if threads != 1 else ""
    cpu = f"{record.get('cpu')}, {record.get('cores')} cores, {threads} thread{plural}"
    instructions = record.get("instructions")  # earlier results do not name them
    return devices + cpu + (f", {instructions}" if instructions else "")


def missing(entries: list[dict]) -> list[dict]:
    """Runs without metrics, grouped by what they lack.

    Returns:
        For each group `what` it lacks in words, such as `seed 1 not run`, and its `runs`.
    """
    lacks: dict[str, dict[str, list[int]]] = {}
    for entry in entries:
        if entry["state"] != MEASURED:
            states = lacks.setdefault(entry["run"], {})
            states.setdefault(entry["state"], []).append(entry["seed"])
    out: dict[str, list[str]] = {}
    for run, states in lacks.items():
        what = "; ".join(
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} {state}"
            for state, seeds in states.items()
        )
        out.setdefault(what, []).append(run)
    return [{"what": what, "runs": names} for what, names in out.items()]
