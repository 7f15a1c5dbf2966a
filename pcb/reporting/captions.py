"""Text of a page around a table: heading, data, detector, departures, provenance.

Every function takes `about`, the metadata in `gathered/<target>.json`, and returns plain text.
`scale_facts` makes the entry about the scale.
"""

from __future__ import annotations

from collections.abc import Iterable

from pcb.formatting import commit, duration, number
from pcb.study.departures import data_title, departures, detectors, unstated
from pcb.study.own_data import PAPER_DATASETS


def scale_facts(
    scale: dict, backbones: Iterable[str], datasets: Iterable[str] | None = None
) -> dict:
    """Facts about a scale, and about the backbones and data sets that a page uses, as JSON values.

    `own` is whether none of the data sets (None: all of the scale) is one of the paper's. Data are
    then no departure.
    """
    shown = sorted(scale["datasets"] if datasets is None else set(datasets))
    own = bool(shown) and not set(shown) & set(PAPER_DATASETS)
    rules = {scale["datasets"][key].get("format", "lvis") for key in shown}
    listed = departures(scale, backbones)
    return {
        "name": scale["name"],
        "title": scale["title"],
        "data": data_title(scale, shown),
        "generated": "synthetic" in scale and not own,
        "own": own,
        "rule": " and ".join(f"{name.upper()}'s rule" for name in sorted(rules)),
        "detectors": detectors(scale, backbones),
        "departures": [line for line in listed if not (own and line.startswith("Data:"))],
        "unstated": unstated(),
        "notes": scale.get("notes", []),
    }


def heading(about: dict) -> str:
    """The title of a page, for instance `Table 6. The weight α of PCB`."""
    return f"{number(about['target'])}. {about['title']}"


def origin(about: dict) -> str:
    """Data and detector behind our numbers, for the heading of their block of columns."""
    return f"measured: {about['scale']['data']}, {detector_names(about, 'name')}"


def detector_names(about: dict, key: str) -> str:
    """The detectors of a page: ours for the key `name`, the paper's for `paper`."""
    pairs = [detector[key].partition(", ") for detector in about["scale"]["detectors"]]
    if len({size for _, _, size in pairs}) == 1:
        return " and ".join(name for name, _, _ in pairs) + "".join(pairs[0][1:])
    return " and ".join("".join(pair) for pair in pairs)


def warning(about: dict) -> str:
    """What a reader must know before comparing ours with the paper; empty where nothing differs."""
    scale = about["scale"]
    if scale["own"] or (about["comparable"] and not scale["departures"]):
        return ""
    measured = f"Ours were measured on {scale['data']} with {detector_names(about, 'name')}"
    if about["comparable"]:
        return f"{measured}, with departures from the paper's recipe."
    if not scale["generated"]:
        measured += " (`pcb check-data` has not found these data equal to the LVIS release)"
    theirs = f"the paper's on LVIS with {detector_names(about, 'paper')}"
    return " ".join([f"{measured}; {theirs}. Compare directions, not sizes.", *notes(about)])


def notes(about: dict) -> list[str]:
    """The scale's own notes as sentences."""
    return [f"{note[0].upper()}{note[1:]}." for note in about["scale"]["notes"]]


def statements(about: dict) -> list[str]:
    """The sentences that belong to any copy of the table's numbers, in Markdown or LaTeX."""
    lines = about["scale"]["departures"]
    out = [warning(about)]
    if about["scale"]["own"]:
        measured = f"Measured on {about['scale']['data']} with {detector_names(about, 'name')}"
        out = [f"{measured}, scored by {about['scale']['rule']}.", *notes(about)]
    if lines:
        groups = ", ".join(line.partition(":")[0] for line in lines)
        out.append(
            f"The recipe departs from the one for LVIS ({groups}); the table's page lists how."
        )
    return [sentence for sentence in out if sentence]


def caption(about: dict) -> list[tuple[str, str]]:
    """(term, text) pairs of a caption: data, detector, seeds, departures, runs, code."""
    runs, scale = about["runs"], about["scale"]
    out = [
        ("Data", "; ".join(dataset(about, entry) for entry in about["datasets"])),
        ("Detector", "; ".join(map(detector, scale["detectors"]))),
        ("Seeds", seeds(about)),
    ]
    for line in scale["departures"]:
        group, _, text = line.partition(": ")
        out.append((f"Departures: {group}", text))
    if not scale["departures"]:
        out.append(("Departures", "none: the recipe is the one for LVIS"))
    out.append(("Not in the paper", scale["unstated"]))
    if scale["notes"]:
        out.append(("Notes", " ".join(notes(about))))
    if not runs:
        return [*out, ("Runs", "none of this page's trainings has been run at this scale")]
    dates = sorted(str(run["finished"])[:10] for run in runs if run["finished"])
    span = " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]])) or "undated"
    plural = "s" if len(runs) > 1 else ""
    spent = duration(sum(run["seconds"] or 0 for run in runs))
    out.append(("Runs", f"{len(runs)} training{plural} finished, {span}, {spent} in all"))
    if code := sorted({commit(run["git"]) for run in runs if run["git"]}):
        out.append(("Code", "git " + ", ".join(code)))
    return out


def detector(entry: dict) -> str:
    """Our detector, and the paper's where it is another."""
    if entry["title"] == entry["paper"]:
        return entry["title"]
    return f"{entry['title']}, where the paper has {entry['paper']}"


def seeds(about: dict) -> str:
    """The seeds of a table; for a page of pictures the one whose detections it shows."""
    names = ", ".join(map(str, about["seeds"]))
    if "shown_seed" not in about:
        return names
    several = f", the first of the seeds {names}" if len(about["seeds"]) > 1 else ""
    return f"{about['shown_seed']}{several}"


def dataset(about: dict, entry: dict) -> str:
    """A data set by name, with its size where a run has been measured on it."""
    name = dataset_name(about, entry)
    if not (classes := entry["classes"]):
        return name
    return (
        f"{name}: {entry['val_images']} val images, {sum(classes.values())} classes "
        f"({classes['r']} rare, {classes['c']} common, {classes['f']} frequent)"
    )


def dataset_name(about: dict, entry: dict) -> str:
    """The name of a data set by its `version` or `title` and `format`."""
    name = f"LVIS {entry.get('version')}"
    if entry.get("title"):
        name = f"{entry['title']}, in {entry.get('format', 'lvis').upper()}'s format"
    elif about["scale"]["generated"]:
        name = f"{about['scale']['data']}, {entry['version']} flavour"
    elif not about["comparable"]:
        name = f"{about['scale']['title']}, format of {name}, not found equal to its release"
    return name
