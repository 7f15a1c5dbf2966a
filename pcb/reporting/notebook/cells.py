"""What a notebook shows, one call a cell: `intro`, `table`, `claims`, `caption`. Each returns something that Jupyter displays."""

from __future__ import annotations

from dataclasses import dataclass

from pcb.evaluation.confusion_metrics import Confusion
from pcb.frequency import GROUP_NAMES
from pcb.reporting import captions, style, tables
from pcb.reporting.album import Album
from pcb.reporting.images import gallery_view
from pcb.reporting.pairs import one_sided
from pcb.reporting.tables import Gathered


@dataclass(frozen=True)
class Html:
    """A piece of a page; Jupyter displays it, and `text` is what it shows where there is no HTML."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def intro(table: Gathered | Album) -> Html:
    """The title, the paper's claim in our words (or what a page of pictures shows), and a warning where sizes are not comparable."""
    about = table.about
    claim, shows = about.get("claim"), about.get("shows")
    return piece(
        "intro",
        f"{captions.heading(about)}\n{claim or shows}\n{captions.warning(about)}".strip(),
        title=about["title"],
        claim=claim,
        shows=shows,
        warning=captions.warning(about),
    )


def table(table: Gathered) -> Html:
    """The table: ours | paper | Δ."""
    return Html(tables.html(table), tables.markdown(table))


def claims(table: Gathered) -> Html:
    """What the paper's text says of this table, judged by its own numbers and by ours."""
    entries = table.about["claims"]
    text = "\n".join(
        f"{c['says']} Paper: {c['paper']['verdict']}. Ours: {c['ours']['verdict']}."
        for c in entries
    )
    return piece(
        "claims", text or "The paper's text makes no claim of this table alone.", claims=entries
    )


def caption(table: Gathered | Album) -> Html:
    """Data set, scale, seeds, departures, dates and code of the runs."""
    entries = captions.caption(table.about)
    return piece("caption", "\n".join(f"{term}: {text}" for term, text in entries), entries=entries)


def pairs(found: Confusion) -> Html:
    """The pairs of classes with the most one-sided confusion."""
    frame = one_sided(found)
    return piece("pairs", frame.to_string(index=False), rows=frame.to_dict("records"))


def gallery(album: Album) -> Html:
    """Images before and after PCB, ground truth beside; every comparison of the page."""
    compare, least = album.about["compare"], album.about["settings"]["score"]
    parts = [
        part
        for k, entry in enumerate(compare)
        if not entry["missing"]
        for part in gallery_view.parts(entry, f"photo-{k}", least)
    ]
    missing = [run for entry in compare for run in entry["missing"]]
    found = piece(
        "gallery",
        f"{sum(len(part['shots']) for part in parts)} images before and after PCB",
        groups=GROUP_NAMES,
        parts=parts,
    )
    return joined(found if parts else None, absent(missing) if missing else None)


def explorer(album: Album) -> Html:
    """The most one-sided pairs of classes of every comparison: the two probabilities before and after, and what the classes look like."""
    compare = album.about["compare"]
    lists = [
        part for entry in compare if not entry["missing"] for part in gallery_view.pairs(entry)
    ]
    missing = [run for entry in compare for run in entry["missing"]]
    found = piece(
        "explorer",
        f"{sum(len(part['pairs']) for part in lists)} pairs of classes",
        groups=GROUP_NAMES,
        lists=lists,
    )
    return joined(found if lists else None, absent(missing) if missing else None)


def not_run(table: Gathered) -> Html:
    """What stands in the place of a result that has not been measured."""
    return absent([table.rows["run"].iloc[0]])


def absent(runs: list[str]) -> Html:
    text = f"not run: no results of {', '.join(dict.fromkeys(runs))} at this scale yet"
    return Html(f'<p class="pcb-note"><em>{text}</em></p>', text)


def joined(*pieces: Html | None) -> Html:
    there = [p for p in pieces if p]
    return Html("\n".join(p.html for p in there), "\n".join(p.text for p in there))


def piece(template: str, text: str, **values) -> Html:
    return Html(style.templates().get_template(f"{template}.html.j2").render(**values), text)
