"""The verdict: three lines on whether PCB reproduces, why, and on what, written from the results.

    of_results(results, claims)   for the site
    of_published(study, folder)   for the README, from a copy that `pcb publish` made

A line follows from numbers by a rule, never by hand. `configs/paper.yaml` names what they rest on:
the main claims, and three rows that split the gain into paradigm and soft targets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from pcb.errors import UserError
from pcb.files import write_text
from pcb.formatting import signed
from pcb.reporting import captions
from pcb.reporting.claims import difference, grouped, metric_name, rows_of
from pcb.reporting.gather import scale_about
from pcb.reporting.results import PublishedResults, Results
from pcb.reporting.style import JUDGED, PHRASES, notation, tally
from pcb.reporting.tables import LESS_IS_BETTER
from pcb.study import Study
from pcb.study.claims import DIRECTION, FAILS, HOLDS, NOT_RUN, WITHIN_NOISE, Verdict
from pcb.study.study import PAIRED_LABELS

MAIN_METRICS = ("AP", "APr", "PwB")  # of a verdict on data of one's own
TURNED = {HOLDS: FAILS, FAILS: HOLDS}  # where less is better
# What the words of the lines mean, said once below them.
NOISE = (
    "A difference is beyond the noise where its 95 % interval, over validation images and seeds, "
    "excludes 0. PwB is the pairwise bias: less is better."
)
CHECKS = (
    "A check is one comparison of our numbers: it holds if they differ as claimed beyond the "
    "noise, fails if they differ the other way beyond it, and else is within noise. A claim holds "
    "if all its checks hold and fails if one fails; it partly holds if some hold and the others "
    "are within noise."
)
BEGIN, END = "<!-- verdict: written by `pcb verdict` -->", "<!-- end of verdict -->"


def of_results(results: Results, claims: Sequence[dict]) -> dict:
    """The verdict on a study.

    Args:
        results: The results.
        claims: What `claims.verdicts` or `findings.collect` found.

    Returns:
        `lines`, each with `question`, `answer` (a few words), `text` and `target` (the id on the
        site that has more); `words`, what the terms in them mean; `groups` of claims, each with
        the counts of its claims and checks; and whether all is `provisional`.
    """
    study = results.study
    about = scale_about(results, study.runs())
    about["comparable"] = bool(claims) and all(claim["comparable"] for claim in claims)
    measured = sum(bool(results.metrics(run, s)) for run in study.runs() for s in study.seeds)
    provisional = bool(measured) and len(study.seeds) == 1
    by_id = {claim["id"]: claim for claim in claims}
    main = [by_id[name] for name in study.verdict.get("main", ()) if name in by_id]
    lines = [
        line("Does PCB help here?", "tables", *helps(results, provisional))
        if about["scale"]["own"]
        else line("Does PCB reproduce?", "claims", *reproduces(main, provisional)),
        *(
            [line("Where does the gain come from?", gain_target(study), *gain(results))]
            if study.verdict or not about["scale"]["own"]
            else []
        ),
        line("On which data, by which rule?", "departures", *basis(study, about, measured, claims)),
    ]
    found = groups(claims)
    words = f"{NOISE} {CHECKS}" if found else NOISE
    return {"lines": lines, "words": words, "groups": found, "provisional": provisional}


def line(question: str, target: str, answer: str, text: str) -> dict:
    """A line as JSON values."""
    return {"question": question, "target": target, "answer": answer, "text": text}


def reproduces(main: Sequence[dict], provisional: bool) -> tuple[str, str]:
    """The answer from the main claims: a few words, and what became of each claim."""
    checks = [check["ours"] for claim in main for check in claim["checks"]]
    judged = [check for check in checks if check["verdict"] in JUDGED]
    if not judged:
        return "Not measured yet.", ""
    towards = all(check["margin"] > 0 for check in judged)
    answer = answer_of([check["verdict"] for check in judged], towards)
    to_come = sum(check["verdict"] == NOT_RUN for check in checks)
    answer = qualified(answer, provisional, len(judged), len(judged) + to_come)
    return answer, "; ".join(filter(None, map(outcome, main))) + "."


def helps(results: Results, provisional: bool) -> tuple[str, str]:
    """The same on data of one's own, where the paper claims nothing: from rows and base rows."""
    tables = [t for t in results.study.tables.values() if t.labels == PAIRED_LABELS]
    found: dict[str, list[str]] = {}
    towards, to_come = True, 0
    for table in tables:
        rows = {row.id: row for row in table.rows}
        for row in table.rows:
            base = rows.get(row.base or "")
            if base is None:
                continue
            for metric in MAIN_METRICS:
                check = difference(results, row, base, metric)
                if check.margin is not None:
                    less = metric in LESS_IS_BETTER
                    status = TURNED.get(check.status, check.status) if less else check.status
                    found.setdefault(metric, []).append(status)
                    towards &= (check.margin < 0) if less else (check.margin > 0)
                to_come += check.status == NOT_RUN
    if not found:
        return "Not measured yet.", ""
    statuses = [status for metric in found for status in found[metric]]
    judged = len(statuses)
    answer = qualified(answer_of(statuses, towards), provisional, judged, judged + to_come)
    parts = []
    for metric, statuses in found.items():
        held, failed = statuses.count(HOLDS), statuses.count(FAILS)
        lost = f", worse in {failed}" if failed else ""
        name = metric_name(metric)
        parts.append(f"{name} is better beyond the noise in {held} of {len(statuses)} pairs{lost}")
    return answer, "With PCB: " + "; ".join(parts) + "."


def qualified(answer: str, provisional: bool, judged: int, of_all: int) -> str:
    """An answer with what limits it: a single seed, or checks that have not been run yet."""
    limits = ["one seed"] * provisional
    if judged < of_all:
        limits.append(f"{judged} of {of_all} main checks run so far")
    if not limits:
        return answer
    return f"Provisional, {', '.join(limits)}: {answer[0].lower()}{answer[1:]}"


def answer_of(verdicts: Sequence[str], towards: bool = True) -> str:
    """A few words on the checks of the main claims.

    Args:
        verdicts: The verdict on each check.
        towards: Whether every number, noise aside, is on the claimed side.
    """
    held, failed = verdicts.count(HOLDS), verdicts.count(FAILS)
    if failed:
        return "In part." if held else "No."
    if held == len(verdicts):
        return "Yes."
    if not held:
        return "Not decided: every difference is within the noise."
    if 2 * held >= len(verdicts):
        if not towards:
            return "Mostly: some differences point the other way, within the noise."
        return "Yes in direction, though not every difference is beyond the noise."
    return "Weakly: most differences are within the noise."


def outcome(claim: dict) -> str:
    """What became of a claim: how many of its checks point its way, and how many hold."""
    judged = [c["ours"] for c in claim["checks"] if c["ours"]["verdict"] in JUDGED]
    if not judged:
        return ""
    towards = sum(check["margin"] > 0 for check in judged)
    counts = [check["verdict"] for check in judged]
    held, failed = counts.count(HOLDS), counts.count(FAILS)
    plural = "s point" if len(judged) > 1 else " points"
    beyond = "all hold" if held == len(judged) else f"{held} hold{'s' * (held == 1)}"
    against = f", {failed} fail{'s' * (failed == 1)}" if failed else ""
    statement = claim["statement"].rstrip(".")
    return f"{statement}: {towards} of {len(judged)} check{plural} that way, {beyond}{against}"


def gain(results: Results) -> tuple[str, str]:
    """The parts of the gain: of the paradigm alone, and of the soft targets on top of it."""
    spec = results.study.verdict.get("gain")
    if spec is None:
        return "Not asked of this study.", ""
    base, paradigm, full = gain_rows(results.study)
    metric = spec["metric"]
    total, first, second = (
        difference(results, row, other, metric)
        for row, other in ((full, base), (paradigm, base), (full, paradigm))
    )
    if total.margin is None or first.margin is None or second.margin is None:
        return "Not measured yet.", ""
    name = metric_name(metric)
    known = total.images or total.seeds > 1  # else the limits would be those of rounding
    noise = {WITHIN_NOISE: " (within the noise)"} if known else {}
    if known and total.status != HOLDS:
        answer = f"There is no gain in {name} beyond the noise."
    else:
        answer = (
            f"Under {spec['under']}, {signed(first.margin)} of {signed(total.margin)} {name} from "
            f"the iterative paradigm alone{noise.get(first.status, '')}, {signed(second.margin)} "
            f"from the soft targets on top{noise.get(second.status, '')}."
        )
    text = ""
    if known:
        over = "images and seeds" if total.images and total.seeds > 1 else "images"
        over = over if total.images else "seeds alone"
        text = (
            f"95 % intervals over {over}: paradigm {limits(first)}, soft targets {limits(second)}, "
            f"both {limits(total)}."
        )
    before, middle, after = (row.paper.get(metric) for row in (base, paradigm, full))
    if before is not None and middle is not None and after is not None:
        text += (
            f" In the paper: {signed(middle - before)} of {signed(after - before)}, and "
            f"{signed(after - middle)}."
        )
    return answer, text.strip()


def gain_rows(study: Study) -> list:
    """The three rows: base method, with the paradigm, with both."""
    rows = rows_of(study)
    keys = (study.verdict["gain"][key].split("/") for key in ("base", "paradigm", "full"))
    return [rows[table, row] for table, row in keys]


def gain_target(study: Study) -> str:
    """The table of the rows that split the gain."""
    return study.verdict["gain"]["full"].split("/")[0] if study.verdict else "tables"


def limits(found: Verdict) -> str:
    """The interval of a difference."""
    return f"[{signed(found.low or 0)}, {signed(found.high or 0)}]"


def basis(study: Study, about: dict, measured: int, claims: Sequence[dict]) -> tuple[str, str]:
    """Data, detector, seeds and the rule of scoring behind the numbers."""
    scale, planned = about["scale"], len(study.runs()) * len(study.seeds)
    detectors = captions.detector_names(about, "name")
    seeds = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"
    known = about["comparable"] or scale["own"]
    data = scale["data"] if known else f"{scale['data']}, not LVIS"
    answer = f"{data}, scored by {scale['rule']}."
    text = f"Measured with {detectors}, {seeds}, {measured} of {planned} trainings."
    if not known:
        text += (
            f" The paper's are of LVIS with {captions.detector_names(about, 'paper')}: "
            "directions compare, sizes do not."
        )
    elif scale["departures"]:
        names = ", ".join(departure.partition(":")[0] for departure in scale["departures"])
        text += f" The recipe departs from the paper's in {names}."
    judged = [c for c in claims if c["kind"] == DIRECTION and c["ours"]["verdict"] in JUDGED]
    with_rules = [claim for claim in judged if claim.get("protocols")]
    if with_rules:
        changed = sum(
            any(p["verdict"] != claim["ours"]["verdict"] for p in claim["protocols"].values())
            for claim in with_rules
        )
        text += f" Scored by other rules, {changed} of {len(with_rules)} claims change."
    return answer, text


def groups(claims: Sequence[dict]) -> list[dict]:
    """The claims of direction by group: how many claims and checks have which verdict."""
    return [
        {key: group[key] for key in ("id", "title", "counts", "paper", "checks")}
        for group in grouped([claim for claim in claims if claim["kind"] == DIRECTION])
    ]


# In a README


def of_published(study: Study, folder: Path) -> dict:
    """The verdict of a published copy: its own, or of one of an earlier version from its numbers.

    Raises:
        UserError: The folder is no published copy.
    """
    path = folder / "data/verdict.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    results = PublishedResults(study, folder)
    return of_results(results, results.claims())


def markdown(verdict: dict) -> str:
    """The three lines and the groups of claims, as Markdown."""
    lines = [
        f"- **{entry['question']} {notation(entry['answer'])}** {notation(entry['text'])}".rstrip()
        for entry in verdict["lines"]
    ]
    if verdict["groups"]:
        lines.append("- **All claims of direction**")
        lines += [f"  - {group_text(group)}" for group in verdict["groups"]]
    if verdict.get("words"):  # a copy of an earlier version has none
        lines.append(f"- {notation(verdict['words'])}")
    text = (line.replace("&#39;", "'") for line in lines)
    return "\n".join(
        fill(line, 100, subsequent_indent=indent(line), break_on_hyphens=False) for line in text
    )


def indent(line: str) -> str:
    """The indent of the lines that continue an item of a list."""
    return " " * (line.index("-") + 2)


def plain(verdict: dict) -> str:
    """The same for a terminal."""
    lines = [f"{e['question']} {e['answer']} {e['text']}".rstrip() for e in verdict["lines"]]
    lines += [group_text(group) for group in verdict["groups"]]
    return "\n".join([*lines, *filter(None, [verdict.get("words")])])


def group_text(group: dict) -> str:
    """A group with its counts: `Core: PCB on base methods – 3 hold; 34 of 61 checks hold; ...`."""
    claims, paper = (
        ", ".join(f"{n} {PHRASES[verdict]}" for verdict, n in tally(group[source]))
        for source in ("counts", "paper")
    )
    judged = sum(group["checks"].get(verdict, 0) for verdict in JUDGED)
    checks = f"; {group['checks'].get(HOLDS, 0)} of {judged} checks hold" if judged else ""
    return f"{group['title']} – {claims}{checks}; on the paper's own numbers {paper}."


def write_into(path: Path, verdict: dict) -> None:
    """Replace the text between the two marks of a Markdown file by the verdict.

    Raises:
        UserError: The file is missing, or does not have each mark once, in order.
    """
    fix = f"add the lines {BEGIN} and {END} where the verdict shall be"
    if not path.is_file():
        raise UserError(f"{path} does not exist", "name a Markdown file with the marks")
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{path} does not have the marks of a verdict", fix)
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text(path, f"{before}{BEGIN}\n{markdown(verdict)}\n{END}{after}")
