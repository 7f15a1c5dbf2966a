"""What a page says around a table, from its sidecar: heading, scale, departures, caption. Plain text, one sentence an item."""

from __future__ import annotations

from pcb.formatting import commit, duration, number

GROUPS = {"r": "rare", "c": "common", "f": "frequent"}


def heading(about: dict) -> str:
    return f"{number(about['target'])}. {about['title']}"


def origin(about: dict) -> str:
    """Where our numbers were measured, in a few words for the head of a column block."""
    return "measured, " + about["scale"]["title"].split(":")[0]


def warning(about: dict) -> str:
    """What must be known before comparing the two blocks; empty where data set and recipe are the paper's own."""
    if about["comparable"]:
        return ""
    return f"Ours were measured on {about['scale']['title']}; the paper's on LVIS. Compare directions, not sizes."


def statements(about: dict) -> list[str]:
    """The sentences that belong to any copy of the table's numbers."""
    return [s for s in (warning(about), departures(about)) if s]


def departures(about: dict) -> str:
    return (
        f"Departures of this scale from the paper: {'; '.join(about['departures'])}."
        if about["departures"]
        else ""
    )


def caption(about: dict) -> list[tuple[str, str]]:
    """(term, text) pairs of the caption: data, seeds, departures, runs, code."""
    runs = about["runs"]
    out = [
        ("Data", "; ".join(dataset(about, d) for d in about["datasets"])),
        ("Seeds", seeds(about)),
        ("Departures", "; ".join(about["departures"]) or "none: the paper's own recipe"),
    ]
    if not runs:
        return [*out, ("Runs", "none of this page's runs has been done at this scale")]
    dates = sorted(str(r["finished"])[:10] for r in runs if r["finished"])
    span = (
        dates[0]
        if dates and dates[0] == dates[-1]
        else f"{dates[0]} to {dates[-1]}"
        if dates
        else "undated"
    )
    many, spent = "s" if len(runs) > 1 else "", duration(sum(r["seconds"] or 0 for r in runs))
    out.append(("Runs", f"{len(runs)} training{many} finished, {span}, {spent} in all"))
    if code := sorted({commit(r["git"]) for r in runs if r["git"]}):
        out.append(("Code", "git " + ", ".join(code)))
    return out


def seeds(about: dict) -> str:
    """The seeds of a table; of a page of pictures the one whose detections it shows."""
    named = ", ".join(map(str, about["seeds"]))
    if "shown_seed" not in about:
        return named
    return f"{about['shown_seed']}" + (
        f", the first of the seeds {named}" if len(about["seeds"]) > 1 else ""
    )


def dataset(about: dict, entry: dict) -> str:
    name = (
        f"{about['scale']['title'].split(':')[0]}, {entry['version']} flavour"
        if not about["comparable"]
        else f"LVIS {entry['version']}"
    )
    if not entry["classes"]:
        return name
    groups = entry["classes"]
    return (
        f"{name}: {entry['val_images']} val images, {sum(groups.values())} classes "
        f"({groups['r']} rare, {groups['c']} common, {groups['f']} frequent)"
    )
